"""The optimizers that train stacks, by rule: torch's own, and SGD that updates and masks in one pass over memory."""

import torch

from lib.errors import ParameterError, flags, number
from lib.kernels import fused, twins

RULES = ("sgd", "adam", "rms")
# What a `Trainer` takes: numbers, and whole ones.
RATES = {"lr": "(0, inf)", "momentum": "[0, 1)", "weight_decay": "[0, inf)", "drop": "(0, 1]", "every": "[0, inf]"}
COUNTS = {"batch": "[1, 2^31)", "epoch": "[0, 2^31)"}
FLAGS = dict.fromkeys(("nesterov", "shuffle", "bf16", "bar"), False)


def make(rule, parameters, lr, options, recorded=False):
    """Return the optimizer of a rule for a list of parameters; `options` has momentum, nesterov and weight_decay.

    recorded: its steps will be replayed from a CUDA graph, so that its rate is a tensor and its count is on the GPU.
    Fused ones step all tensors in one pass over memory: a tenth of a training step's time on a CPU, a quarter unfused.
    """
    decay, momentum, nesterov = (options[name] for name in ("weight_decay", "momentum", "nesterov"))
    lr = torch.tensor(lr, device=parameters[0].device) if recorded else lr
    if rule == "sgd":
        if fused.picks("masked_sgd", parameters[0]):
            return MaskedSGD(parameters, lr, momentum, nesterov, decay)
        return torch.optim.SGD(parameters, lr, momentum, 0, decay, nesterov, fused=True)
    if rule == "adam":
        made = torch.optim.Adam(parameters, lr, weight_decay=decay, fused=True, capturable=recorded)
    else:
        made = torch.optim.RMSprop(parameters, lr, weight_decay=decay, momentum=momentum, capturable=recorded)
    made._warned_capturable_if_run_uncaptured = True  # the steps before a recording, and the last of a pass, are not
    return made


def complaint(rule, momentum=0.0, nesterov=False):
    """Return what is wrong with a rule, or which option torch's optimizer would leave unused or refuse, or None."""
    if rule not in RULES:
        return f"rule is {rule!r}; allowed are {list(RULES)}"
    if momentum and rule == "adam":
        return f"momentum = {momentum} with rule {rule!r}, which has its own; leave it at 0"
    if nesterov and (rule != "sgd" or not momentum):
        return f"nesterov = {nesterov} with rule {rule!r} and momentum {momentum}; only 'sgd' with a momentum has it"
    return None


def assert_numbers(given):
    """Raise ParameterError for the first of the options of a `Trainer`, by name, that is no number of its interval.

    Or neither True nor False.
    """
    flags(FLAGS, given)
    for name, interval in (RATES | COUNTS).items():
        number(name, given[name], interval, whole=name in COUNTS)
    drops = [number("an epoch of drops", when, "[0, 2^31)", whole=True) for when in given["drops"]]
    if len(set(drops)) < len(drops):
        raise ParameterError(f"drops are {drops}; every epoch goes once")


def set_rate(optimizer, rate):
    """Set the rate of all parameters, in place where it is a tensor, which a recording reads."""
    for group in optimizer.param_groups:
        if isinstance(group["lr"], torch.Tensor):
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate


def hand_over(optimizer, kept):
    """Return [(parameter, what is pruned)] to be zeroed by who takes steps, of `kept`, [(parameter, mask)].

    Nothing is, where the optimizer does it.
    """
    if isinstance(optimizer, MaskedSGD):
        optimizer.kept = dict(kept)
        return []
    return [(p, ~mask) for p, mask in kept]


class MaskedSGD(torch.optim.Optimizer):
    """`torch.optim.SGD` of stacks by `twins.masked_sgd_`: `kept`, masks by parameter, are part of the step.

    lr: one number, or a tensor of one, or of one for every run.
    """

    def __init__(self, parameters, lr, momentum=0.0, nesterov=False, weight_decay=0.0):
        options = {"momentum": momentum, "nesterov": nesterov, "weight_decay": weight_decay}
        super().__init__(parameters, {"lr": lr} | options)
        self.kept = {}

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            options = {name: group[name] for name in ("momentum", "nesterov", "weight_decay")}
            for p in group["params"]:
                if p.grad is not None:
                    # A fill, unlike a copy from the host, waits for nothing.
                    lr = group["lr"]
                    rates = lr.to(p.dtype) if isinstance(lr, torch.Tensor) else p.new_full((), lr)
                    rates = rates.expand(len(p))
                    twins.masked_sgd_(p, p.grad, self._velocity(p, options), self.kept.get(p), rates, **options)

    def _velocity(self, p, options):
        """Return the momentum of a parameter, under torch's name for it, or None where the rule has none."""
        if not options["momentum"]:
            return None
        state = self.state[p]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(p)
        return state["momentum_buffer"]
