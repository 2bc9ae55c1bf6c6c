"""Training of stacks by mini-batches: SGD, Adam and RMSprop, schedules, masks that stay zero. The last epoch counts."""

import copy
import time
from contextlib import nullcontext
from functools import partial

import numpy as np
import torch
from torch.nn.functional import cross_entropy
from tqdm.auto import tqdm

from lib import draws
from lib.kernels import capture
from lib.networks import nets
from lib.pruning import masks, shrink
from lib.training import checkpoint, optimizers, stacking
from lib.training.evaluate import evaluate
from lib.training.optimizers import RULES

HISTORY = (
    "epoch",  # passes made so far
    "lr",  # of that pass, nan before the first
    "train_loss",  # mean over the pass, while the weights change
    "train_accuracy",  # likewise
    "test_loss",  # after the pass
    "test_accuracy",
    "seconds",  # of all passes so far, evaluation included, a stack's time shared among its runs
)


class Trainer:
    """R networks in training: `fit(epochs)` goes on from wherever they are, `prune(masks)` takes weights away for good.

    net: a stack whose parameters are trained in place; train, test: `(x, y)` as `Data.split` gives them, or x
    `(R, N, I)` with inputs of each run's own; seeds: one per run, which order its examples (draw "order"), so that
    runs of one seed see the same batches. rule: "sgd" (momentum, nesterov), "adam" or "rms", of torch.optim.
    drops: the epochs at which lr shrinks by `drop`. shuffle=False keeps the order of the data.
    batches: `(epoch, index, runs) -> x`, the inputs of a batch of these runs in place of `train[0][index]`
    (augmentation); bf16 computes the products in bfloat16; epoch: passes that the networks have behind them already,
    which orders and drops count from; every: seconds between two writings of the state that `fit` keeps on request.
    `history` has one row of (R,) arrays per epoch, row 0 before the first. Nothing is chosen by the test set: it is
    looked at after each epoch and that is all.
    """

    columns = HISTORY

    def __init__(
        self, net, train, test, seeds, rule="sgd", lr=0.1, batch=128, momentum=0.0, nesterov=False, weight_decay=0.0,
        drops=(), drop=0.1, shuffle=True, batches=None, bf16=False, epoch=0, bar=True, every=60.0,
    ):  # fmt: skip
        _check(net, train, seeds, rule, lr, batch)
        if wrong := optimizers.complaint(rule, momentum, nesterov):
            raise ValueError(wrong)
        self.net, self.train, self.test, self.seeds = net, train, test, list(seeds)
        self.lr, self.batch, self.drops, self.drop, self.shuffle = lr, batch, tuple(drops), drop, shuffle
        self.batches, self.bf16, self.bar, self.every, self.masks = batches, bf16, bar, every, {}
        self.options = {"momentum": momentum, "nesterov": nesterov, "weight_decay": weight_decay}
        self.rule, self.epoch, self.seconds, self.history = rule, epoch, 0.0, {name: [] for name in self.columns}
        self.resume(net)
        missing = np.full(len(seeds), np.nan)
        self._write(missing, missing, np.nan, began=None)

    def reset_optimizer(self):
        """Forget momentum and second moments, as after a fresh start."""
        self.recorded = capture.wanted("fit", next(self.net.parameters()).device)
        self.optimizers = [
            optimizers.make(self.rule, list(net.parameters()), self.lr, self.options, self.recorded)
            for net in self.nets
        ]
        self.steps, self.gone, self.launch = 0, {}, {}

    def memory(self):
        """Return what the optimizers remember of the parameters, `{"exp_avg": a stack like net}`; {} at the start."""
        found = {}
        for optimizer, net, part in zip(self.optimizers, self.nets, self.parts, strict=True):
            for name, p in net.named_parameters():
                for key, value in optimizer.state[p].items():
                    if getattr(value, "shape", None) == p.shape:
                        if key not in found:
                            found[key] = copy.deepcopy(self.net).requires_grad_(False)
                            for parameter in found[key].parameters():
                                parameter.zero_()
                        found[key].get_parameter(name)[part] = value
        return found

    def resume(self, net, memory=None, steps=0):
        """Go on with the stack `net`, trained in place, and with optimizers of this `memory`, made in `steps` steps."""
        self.net, self.parts = net, stacking.parts(net)
        self.nets = [nets.take(net, part) if len(self.parts) > 1 else net for part in self.parts]
        self.reset_optimizer()
        if memory:
            self.steps = steps
            for optimizer, net, part in zip(self.optimizers, self.nets, self.parts, strict=True):
                for name, p in net.named_parameters():
                    state = {key: stack.get_parameter(name).detach()[part] for key, stack in memory.items()}
                    if self.rule != "sgd":
                        device = p.device if self.rule == "adam" or self.recorded else "cpu"  # as torch has it
                        state["step"] = torch.tensor(float(steps), device=device)
                    optimizer.state[p] = state

    def narrow(self, units):
        """Go on without the units that `units` drop, see `shrink.narrow`; what stays keeps its momentum and moments.

        The networks become another stack, `net`. ValueError after `prune`, whose masks have the old shapes.
        """
        if self.masks:
            raise ValueError("masks were pruned before, which fit the present widths: narrow first, then prune")
        memory = {key: shrink.narrow(stack, units) for key, stack in self.memory().items()}
        self.resume(shrink.narrow(self.net, units), memory, self.steps)

    def prune(self, kept):
        """Zero what `kept`, masks by parameter name, prunes; it stays zero for good, and so do its moments."""
        masks.apply_(self.net, kept)
        self.masks |= {name: mask & self.masks.get(name, mask) for name, mask in kept.items()}
        for optimizer, net, part in zip(self.optimizers, self.nets, self.parts, strict=True):
            for name, p in net.named_parameters():
                if name in kept:
                    moments = [v for v in optimizer.state[p].values() if getattr(v, "shape", None) == p.shape]
                    for moment in moments:
                        moment.masked_fill_(~kept[name][part], 0)
        self.gone, self.launch = {}, {}  # a recorded step has the masks of its time

    def fit(self, epochs, keep=None):
        """Train for `epochs` more passes; return this trainer, its history longer by as many rows.

        keep: a file for the state, written after an epoch where the last writing, or the start, is `every` seconds ago,
        and then again at the end. If it is there already, training goes on from it, and ends where it would have ended
        without a break. It stays: who asked for it deletes it, when what came of the training is safe. Each call has a
        file of its own. RecordError if it holds another training, which is neither read nor overwritten: see
        `checkpoint.restore`.
        """
        until, saved_at = self.epoch + epochs, time.monotonic()
        of = checkpoint.identity(self) if keep else None
        written = bool(keep) and checkpoint.restore(self, keep, of, until)
        passes = range(self.epoch, until)
        before = epochs - len(passes)
        for _ in tqdm(passes, "training", epochs, initial=before, unit="epoch", disable=not self.bar):
            self._epoch()
            due = time.monotonic() - saved_at >= self.every or (written and self.epoch == until)
            if keep and due:
                checkpoint.save(self, keep, of)
                written, saved_at = True, time.monotonic()
        return self

    def _epoch(self):
        """Take one pass, and write a row of the history."""
        began = time.perf_counter()
        orders, rate = self._orders(), self._rate()
        sums = [
            self._pass(net, optimizer, orders[part], part, rate)
            for net, optimizer, part in zip(self.nets, self.optimizers, self.parts, strict=True)
        ]
        self.epoch += 1
        self.steps += -(-orders.shape[1] // self.batch)
        loss, correct = (torch.cat(columns).cpu().numpy() / orders.shape[1] for columns in zip(*sums, strict=True))
        self._write(loss, correct, rate, began)

    def next_inputs(self):
        """Return the inputs of the next step, a tensor for each of `parts`: data, order and `batches` together."""
        orders = self._orders()
        return [self._inputs(self._index(orders[part])[..., : self.batch], part) for part in self.parts]

    def _orders(self):
        """Return every run's order of the examples `(R, N)`, drawn once for the runs of one seed."""
        n = self.train[1].shape[-1]
        if not self.shuffle:
            return torch.arange(n).expand(len(self.seeds), n)
        drawn = {s: torch.from_numpy(draws.permutation(s, "order", self.epoch, n)) for s in dict.fromkeys(self.seeds)}
        return torch.stack([drawn[s] for s in self.seeds])

    def _rate(self):
        return self.lr * self.drop ** sum(self.epoch >= when for when in self.drops)

    def _pass(self, net, optimizer, orders, part, rate):
        """Take one pass of steps; return the summed loss and the correct answers of every run, `(R,)` each."""
        net.train()
        y, index = self.train[1], self._index(orders)
        if net not in self.gone:
            kept = [(p, self.masks[name][part]) for name, p in net.named_parameters() if name in self.masks]
            self.gone[net] = optimizers.hand_over(optimizer, kept)
        loss, correct = torch.zeros(2, len(orders), dtype=torch.float64, device=y.device)
        optimizers.set_rate(optimizer, rate)
        for at in index.split(self.batch, -1):
            losses, right = self._step(net, optimizer, at, part, self.gone[net])
            loss, correct = loss + losses * at.shape[-1], correct + right
        return loss, correct

    def _index(self, orders):
        """Return the orders of a part on the device, `(N,)` where its runs share one, else `(R, N)`."""
        shared = bool((orders == orders[:1]).all())
        return (orders[0] if shared else orders).to(self.train[1].device)

    def _step(self, net, optimizer, at, part, gone):
        if net not in self.launch:
            self.launch[net] = capture.Step(partial(self._learn, net, optimizer, gone), self.recorded)
        return self.launch[net](self._inputs(at, part), self.train[1][at].expand(nets.runs(net), -1))

    def _learn(self, net, optimizer, gone, x, labels):
        """Take one step; return the losses and the correct answers of every run, `(R,)` each."""
        with torch.autocast(labels.device.type, torch.bfloat16) if self.bf16 else nullcontext():
            logits = net(x)
        logits = logits.float() if self.bf16 else logits
        losses = cross_entropy(logits.transpose(1, 2), labels, reduction="none").mean(1)
        self._update(optimizer, losses.sum(), gone)
        return losses.detach().double(), (logits.detach().argmax(2) == labels).sum(1)

    def _update(self, optimizer, loss, gone):
        optimizer.zero_grad()
        loss.backward()
        for p, pruned in gone:  # a zero with zero gradient and moments stays zero under every rule, decay included
            p.grad.masked_fill_(pruned, 0)
        optimizer.step()

    def _inputs(self, at, part):
        if self.batches is not None:
            return self.batches(self.epoch, at, part)
        x = self.train[0]
        if x.dim() == 2:  # whole rows at once take a third of the time of x[at], and less
            return x.index_select(0, at) if at.dim() == 1 else x[at]
        own = x[part]
        return own[:, at] if at.dim() == 1 else own.gather(1, at[:, :, None].expand(-1, -1, x.shape[2]))

    def _write(self, loss, correct, rate, began):
        """Append a row to the history: of a pass at the rate `rate`, which started when `began` says."""
        self.net.eval()
        tests = []
        for net, part in zip(self.nets, self.parts, strict=True):
            net.eval()
            x, y = self.test
            tests.append(evaluate(net, x if x.dim() == 2 else x[part], y))
        if began is not None:
            self.seconds += (time.perf_counter() - began) / len(self.seeds)
        correct = np.where(np.isnan(loss), np.nan, correct)  # of a network that is no number argmax says class 0
        everywhere = np.ones(len(self.seeds))
        row = (
            everywhere * self.epoch, everywhere * rate, loss, correct,
            torch.cat([t.log_loss for t in tests]).exp().cpu().numpy(),
            torch.cat([t.accuracy for t in tests]).cpu().numpy(), everywhere * self.seconds,
        )  # fmt: skip
        for name, values in zip(HISTORY, row, strict=True):
            self.history[name].append(np.asarray(values, float))

    def curve(self, name):
        """Return one column of the history, `(R, epochs + 1)`."""
        return np.stack(self.history[name], 1)


def _check(net, train, seeds, rule, lr, batch):
    if rule not in RULES:
        raise ValueError(f"rule is {rule!r}; allowed are {list(RULES)}")
    if len(seeds) != nets.runs(net):
        raise ValueError(f"{len(seeds)} seeds for a stack of {nets.runs(net)} runs; one per run is needed")
    if not lr > 0 or batch < 1:
        raise ValueError(f"lr = {lr}, batch = {batch}; both must be above zero")
    if train[0].shape[-2] != len(train[1]):
        raise ValueError(f"{train[0].shape[-2]} examples with {len(train[1])} labels")
