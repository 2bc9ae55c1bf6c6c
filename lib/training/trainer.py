"""Training of stacks by mini-batches: SGD, Adam and RMSprop, schedules, masks that stay zero. The last epoch counts."""

import time
from contextlib import nullcontext
from functools import partial

import numpy as np
import torch
from torch.nn.functional import cross_entropy
from tqdm.auto import tqdm

from lib import draws
from lib.errors import choice, instance, number, one_each
from lib.kernels import capture
from lib.networks import nets
from lib.pruning import checks, masks, shrink
from lib.training import optimizers, weights
from lib.training.evaluate import evaluate

HISTORY = (
    "epoch",  # passes made so far
    "lr",  # of that pass, nan before the first
    "train_loss",  # mean over the pass, while the weights change
    "train_accuracy",  # likewise
    "test_loss",  # after the pass
    "test_accuracy",
    "seconds",  # of all passes so far, evaluation included, a stack's time shared among its runs
)

BATCH = 128  # examples a step, unless told otherwise


class CrossEntropy:
    """What a `Trainer` descends on, here the cross-entropy of labels; another objective has these names too."""

    history = HISTORY

    def beside(self, trainer):
        """Return what a pass reads of every example beside its inputs, `(N,)`, or `(R, N, ...)` of each run's own."""
        return trainer.train[1]

    def outputs(self, net, x, labels):
        """Return what the networks make of inputs, in bfloat16 where that was asked for."""
        return net(x)

    def losses(self, logits, x, labels):
        """Return (the loss, summed over runs, and two columns of the history, summed over examples, `(R,)` each)."""
        logits = logits.float() if logits.dtype == torch.bfloat16 else logits
        losses = cross_entropy(logits.transpose(1, 2), labels, reduction="none").mean(1)
        right = (logits.detach().argmax(2) == labels).sum(1)
        return losses.sum(), losses.detach().double() * labels.shape[1], right

    def columns(self, trainer, loss, correct):
        """Return a row of the history, `{name: (R,)}`: of a pass, by the means of its sums, and of the test set."""
        tested = evaluate(trainer.net, *trainer.test)
        correct = np.where(np.isnan(loss), np.nan, correct)  # of a network that is no number argmax says class 0
        loss_after, accuracy = tested.log_loss.exp().cpu().numpy(), tested.accuracy.cpu().numpy()
        return {"train_loss": loss, "train_accuracy": correct, "test_loss": loss_after, "test_accuracy": accuracy}


class Trainer:
    """R networks in training: `fit(epochs)` goes on from wherever they are, `prune(masks)` takes weights away for good.

    net: a stack whose parameters are trained in place; train, test: `(x, y)` as `Data.split` gives them, or x
    `(R, N, I)` with inputs of each run's own; seeds: one per run, which order its examples (draw "order"), so that
    runs of one seed see the same batches. rule: "sgd" (momentum, nesterov), "adam" or "rms", of torch.optim.
    drops: the epochs at which lr shrinks by `drop`. shuffle=False keeps the order of the data.
    batches: `(epoch, index) -> x`, the inputs of a batch in place of `train[0][index]` (augmentation); objective: what
    is descended on, see `CrossEntropy`; bf16 computes the products in bfloat16; epoch: passes that the networks have
    behind them already, which orders and drops count from; every: seconds between two writings of the state that `fit`
    keeps on request. `history` has one row of (R,) arrays per epoch, row 0 before the first; `notes`, lists of arrays
    by name, is for who prunes between epochs, and goes into the state. Nothing is chosen by the test set.
    """

    def __init__(
        self, net, train, test, seeds, rule="sgd", lr=0.1, batch=BATCH, momentum=0.0, nesterov=False, weight_decay=0.0,
        drops=(), drop=0.1, shuffle=True, batches=None, objective=None, bf16=False, epoch=0, bar=True, every=60.0,
    ):  # fmt: skip
        numbers = optimizers.numbers(locals())
        one_each(nets.runs(net), seeds=seeds)
        for what, part in (("train", train), ("test", test)):
            x, y = instance(f"{what} is", part, tuple, f'(x, y), as split("{what}") of the data gives them')
            setattr(self, what, (x, checks.labels(net, x, y, not objective, bool(objective or batches))))
        if wrong := optimizers.complaint(rule, momentum, nesterov):
            raise ValueError(wrong)
        self.options = {name: numbers.pop(name) for name in ("momentum", "weight_decay")} | {"nesterov": nesterov}
        vars(self).update(numbers)  # lr, batch, drops, drop, epoch, every
        self.seeds, self.rule, self.shuffle, self.bf16, self.bar = list(seeds), rule, shuffle, bf16, bar
        self.batches, self.objective, self.seconds = batches, objective or CrossEntropy(), 0.0
        self.history, self.masks, self.notes = {name: [] for name in self.objective.history}, {}, {}
        self.resume(net)
        missing = np.full(len(seeds), np.nan)
        self._write(missing, missing, np.nan, began=None)

    def reset_optimizer(self):
        """Forget momentum and second moments, as after a fresh start."""
        self.recorded = capture.wanted("fit", next(self.net.parameters()).device)
        parameters = list(self.net.parameters())
        self.optimizer = optimizers.make(self.rule, parameters, self.lr, self.options, self.recorded)
        self.steps, self.step = 0, None

    def memory(self):
        """Return what the optimizer remembers of the parameters, `{"exp_avg": a stack like net}`; {} at the start."""
        moments = {}
        for name, p in self.net.named_parameters():
            for key, value in self.optimizer.state[p].items():
                if getattr(value, "shape", None) == p.shape:
                    moments.setdefault(key, {})[name] = value
        return {key: weights.shaped(self.net, tensors) for key, tensors in moments.items()}

    def resume(self, net, memory=None, steps=0):
        """Go on with the stack `net`, trained in place, and an optimizer of this `memory`, made in `steps` steps."""
        self.net = net
        self.reset_optimizer()
        if memory:
            self.steps = steps
            for name, p in net.named_parameters():
                state = {key: stack.get_parameter(name).detach() for key, stack in memory.items()}
                if self.rule != "sgd":
                    device = p.device if self.rule == "adam" or self.recorded else "cpu"  # as torch has it
                    state["step"] = torch.tensor(float(steps), device=device)
                self.optimizer.state[p] = state

    def remember(self, history):
        """Take over the history of the passes that the networks have behind them, `{column: (R, T)}`."""
        self.seconds = float(history["seconds"][:, -1].mean())
        self.history = {name: list(history[name].T) for name in self.history}

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
        for name, p in self.net.named_parameters():
            if name in kept:
                for moment in self.optimizer.state[p].values():
                    if getattr(moment, "shape", None) == p.shape:
                        moment.masked_fill_(~kept[name], 0)
        self.step = None  # a recorded step has the masks of its time

    def fit(self, epochs, keep=None, of=None):
        """Train for `epochs` more passes; return this trainer, its history as many rows longer. More: see `rounds`."""
        for _ in self.rounds([epochs], keep, of):
            pass
        return self

    def rounds(self, each, keep=None, of=None):
        """Yield the number of each round that begins, for the caller to prune, and train its epochs of `each` then.

        keep: `checkpoint.States`, which writes the state after an epoch where the last writing is `every` seconds ago,
        and at the end. Where these rounds, from networks as they are now, have a state, all goes on from it, with its
        masks and notes, and ends where it would have ended without a break; rounds that began there are not yielded.
        of: `{name: value}` of what else the rounds and the networks are, of which no other training takes the state.
        """
        each = [number("epochs", epochs, "[0, 2^31)", whole=True) for epochs in each]
        ends = (self.epoch + np.cumsum(each)).tolist()
        write = keep and keep.keeper(self, {"rounds": each, **(of or {})})
        for k, (epochs, end) in enumerate(zip(each, ends, strict=True)):
            if self.epoch <= end - epochs:
                yield k
            passes = range(self.epoch, end)
            before = epochs - len(passes)
            for _ in tqdm(passes, "training", epochs, initial=before, unit="epoch", disable=not self.bar):
                self._epoch()
                if write:
                    write(over=self.epoch == ends[-1])

    def _epoch(self):
        """Take one pass, and write a row of the history."""
        began = time.perf_counter()
        orders, rate = self._orders(), self.lr * self.drop ** sum(self.epoch >= when for when in self.drops)
        sums = self._pass(orders, rate)
        self.epoch += 1
        self.steps += -(-orders.shape[1] // self.batch)
        self._write(*(column.cpu().numpy() / orders.shape[1] for column in sums), rate, began)

    def next_inputs(self):
        """Return the inputs of the next step: data, order and `batches` together."""
        return self._inputs(self._index(self._orders())[..., : self.batch])

    def _orders(self):
        """Return every run's order of the examples `(R, N)`."""
        n, runs = self.train[1].shape[-1], len(self.seeds)
        if not self.shuffle:
            return torch.arange(n).expand(runs, n)
        return torch.from_numpy(draws.orders(self.seeds, [self.epoch] * runs, n))

    def _pass(self, orders, rate):
        """Take one pass of steps; return two sums over the examples for every run, `(R,)` each."""
        self.net.train()
        index, beside = self._index(orders), self.objective.beside(self)
        if self.step is None:
            gone = [(p, ~self.masks[name]) for name, p in self.net.named_parameters() if name in self.masks]
            self.step = capture.Step(partial(self._learn, gone), self.recorded)
        sums = torch.zeros(2, len(orders), dtype=torch.float64, device=index.device)
        optimizers.set_rate(self.optimizer, rate)
        for at in index.split(self.batch, -1):
            read = beside[at].expand(len(orders), -1) if beside.dim() == 1 else _rows(beside, at)
            first, second = self.step(self._inputs(at), read)
            sums = torch.stack([sums[0] + first, sums[1] + second])
        return sums

    def _index(self, orders):
        """Return the orders on the device, `(N,)` where the runs share one, else `(R, N)`."""
        shared = bool((orders == orders[:1]).all())
        return (orders[0] if shared else orders).to(self.train[1].device)

    def _learn(self, gone, x, read):
        """Take one step; return the objective's sums of every run, `(R,)` each."""
        with torch.autocast(x.device.type, torch.bfloat16) if self.bf16 else nullcontext():
            outputs = self.objective.outputs(self.net, x, read)
        loss, *sums = self.objective.losses(outputs, x, read)
        self.optimizer.zero_grad()
        loss.backward()
        for p, pruned in gone:  # a zero with zero gradient and moments stays zero under every rule, decay included
            p.grad is None or p.grad.masked_fill_(pruned, 0)
        self.optimizer.step()
        return tuple(sums)

    def _inputs(self, at):
        return _rows(self.train[0], at) if self.batches is None else self.batches(self.epoch, at)

    def _write(self, first, second, rate, began):
        """Append a row to the history: of a pass at the rate `rate`, which started when `began` says."""
        self.net.eval()
        row = {"lr": rate} | self.objective.columns(self, first, second)
        if began is not None:
            self.seconds += (time.perf_counter() - began) / len(self.seeds)
        row |= {"epoch": self.epoch, "seconds": self.seconds}
        for name, rows in self.history.items():
            rows.append(np.ones(len(self.seeds)) * row[name])

    def curve(self, name):
        """Return one column of the history, `(R, epochs + 1)`."""
        return np.stack(self.history[choice("the column", name, self.history)], 1)

    def curves(self):
        """Return the history by column, `{name: (R, epochs + 1)}`."""
        return {name: self.curve(name) for name in self.history}


def _rows(x, at):
    """Return the examples `at`, `(n,)` or `(R, n)`, of `x (N, I)` that all runs share, or of `(R, N, I)`."""
    if x.dim() == 2:  # whole rows at once take a third of the time of x[at], and less
        return x.index_select(0, at) if at.dim() == 1 else x[at]
    return x[:, at] if at.dim() == 1 else x.gather(1, at[:, :, None].expand(-1, -1, x.shape[2]))
