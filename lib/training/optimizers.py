"""The optimizers that train stacks, by rule: torch's own."""

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

import torch

from lib.errors import ParameterError, flags, number

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
    # An import of seconds, of which no kernel gets over a half: an interrupt, the main thread's alone, waits for all.
    with ThreadPoolExecutor(1) as aside:
        aside.submit(__import__, "torch._dynamo").result()
    decay, momentum, nesterov = (options[name] for name in ("weight_decay", "momentum", "nesterov"))
    lr = torch.tensor(lr, device=parameters[0].device) if recorded else lr
    if rule == "sgd":
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


def numbers(given):
    """Return the numbers among the options of a `Trainer` by name, as Python has them, drops as a tuple.

    ParameterError for the first that is not of its interval, or that is neither True nor False.
    """
    flags(FLAGS, given)
    found = {name: number(name, given[name], of, whole=name in COUNTS) for name, of in (RATES | COUNTS).items()}
    alone = not isinstance(drops := given["drops"], Iterable) or getattr(drops, "shape", None) == ()
    drops = [number("an epoch of drops", when, "[0, 2^31)", whole=True) for when in ([drops] if alone else drops)]
    if len(set(drops)) < len(drops):
        raise ParameterError(f"drops are {drops}; every epoch goes once")
    return found | {"drops": tuple(drops)}


def set_rate(optimizer, rate):
    """Set the rate of all parameters, in place where it is a tensor, which a recording reads."""
    for group in optimizer.param_groups:
        if isinstance(group["lr"], torch.Tensor):
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate
