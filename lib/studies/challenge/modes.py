"""The modes of the pruning challenge: when weights or units are taken away, and what is trained before and after.

Every mode returns a `Pruned` stack, one run per seed, for each sparsity, so that one notebook serves them all.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from lib.errors import choice, listed
from lib.networks import nets
from lib.pruning import masks, methods, remask, shrink
from lib.training import lab as frame
from lib.training.evaluate import evaluate_alone
from lib.training.trainer import Trainer

HIDDEN = (1000, 1000, 500, 200)
KINDS = {"weight": remask.RemaskedWeights, "neuron": remask.RemaskedUnits}  # by magnitude, of which the study is
OF = {"weight": "weights", "neuron": "units"}  # what the last word of a type says is pruned


@dataclass
class Pruned:
    """R pruned networks and how they came to be.

    net: the stack at full width, zeros where it was pruned; masks: `{weight: bool (R, O, I)}`;
    train_accuracy, test_accuracy (R, T): before and after every epoch of the training that the mode consists of;
    while weights change the former is counted over the epoch, and it is nan where nothing was counted.
    """

    net: torch.nn.Module
    masks: dict
    train_accuracy: np.ndarray
    test_accuracy: np.ndarray


def build(lab, hidden=None, scheme="torch_kaiming"):
    """Return ReLU networks without biases as they start, one per seed, of other `hidden` widths if given."""
    sizes = [lab.train[0].shape[-1], *(hidden or lab.hidden), int(lab.train[1].max()) + 1]
    return nets.init_(nets.MLP(sizes, ["no-WN"] * len(lab.seeds), bias=False), lab.seeds, scheme)


@dataclass(kw_only=True)
class Lab(frame.Lab):
    """What all modes share, see `frame.Lab`: epochs of a whole training, and after pruning; scope: see `masks.top`."""

    build: Callable = build
    hidden: tuple = HIDDEN
    epochs: int = 5
    retrain_epochs: int = 5
    scope: str = "layer"

    def dense(self, epochs, hidden=None):
        """Return (networks trained for `epochs`, their history), trained now or some time before."""
        hidden = tuple(hidden or self.hidden)
        return super().dense(epochs, self.network(hidden), hidden=list(hidden))


def types():
    """Return the types of `weight_vs_neuron`: by magnitude, by every other score that needs nothing, the control."""
    scores = [f"{name}_{word}" for word, of in OF.items() for name in methods.names(of, ["nothing"], draws=False)
              if name != "magnitude"]  # fmt: skip
    return [*KINDS, *scores, "small"]


def complaint(p):
    """Return what a notebook's parameters `p` ask for that cannot be, all taken together, or None."""
    if p["mode"] == "during" and set(p["type"]) - {*KINDS, "small"}:
        return f"type = {p['type']} with mode = 'during': masks are made anew by magnitude alone, of {listed(KINDS)}"
    for sparsity in p["sparsities"] if "small" in p["type"] else ():
        if 0 in (few := left(p["hidden"], sparsity)):
            return f"sparsities = {p['sparsities']}: {sparsity} leaves {few} of {p['hidden']} units; small needs one"
    return None


def recipe(dataset, train_examples, rule, mode=""):
    """Return what names the trained networks of one data set and training rule; the widths and epochs join it later.

    Those of the mode `as_published`, its control, read other pixels.
    """
    pixels = {"pixels": "in [0, 1]"} if mode == "as_published" else {}
    return {"name": f"{dataset}-challenge", "train_examples": train_examples, **rule, **pixels}


def left(hidden, sparsity):
    """Return how many units of each layer unit pruning at `sparsity` leaves, the widths of the control `small`."""
    return [masks.count(width, 1 - sparsity) for width in hidden]


def masks_of(net, kind, densities, seeds=None, scope="layer"):
    """Return (masks, units) of a stack: `{weight: bool (R, O, I)}`, and `{layer: bool (R, O)}` or None, by a type.

    densities: one per run. The layer that makes the logits stays whole, as the challenge has it.
    """
    name, _, word = f"magnitude_{kind}".rpartition("_") if kind in KINDS else kind.rpartition("_")
    how = {"layers": list(nets.layers(net))[:-1], "scope": scope, "of": OF[word]}
    (made,) = methods.prune_each(net, name, [densities], seeds=seeds, **how)  # at 99 % of few units none may be left
    return (masks.expand(made, net), made) if word == "neuron" else (made, None)


def chosen(lab, net, kind, sparsity):
    """Return (masks, units) of a stack at one sparsity, see `masks_of`.

    Units are what is kept where only whole units go, as many in every run, so that it can be narrowed; else None.
    """
    made, units = masks_of(net, kind, [1 - sparsity] * nets.runs(net), lab.seeds, lab.scope)
    counts = [set(kept.sum(1).tolist()) for kept in (units or {}).values()]
    return made, units if all(len(found) == 1 and 0 not in found for found in counts) else None


# ---- the modes: (lab, kind, sparsities) -> [Pruned]


def posthoc(lab, kind, sparsities):
    """Return trained networks pruned at once, nothing trained afterwards."""
    dense, _ = lab.dense(lab.epochs)
    return [_pruned_at_once(lab, dense, *chosen(lab, dense, kind, s)) for s in sparsities]


def _pruned_at_once(lab, dense, kept, units):
    net = masks.apply_(copy.deepcopy(dense), kept)
    tested = shrink.narrow(dense, units) if units else net  # the same logits, in a fraction of the time
    accuracies = (evaluate_alone(tested, *split).accuracy.cpu().numpy()[:, None] for split in (lab.train, lab.test))
    return Pruned(net, kept, *accuracies)


def finetune(lab, kind, sparsities):
    """Return trained networks pruned at once and trained on under their masks."""
    dense, _ = lab.dense(lab.epochs)
    return [_retrained(lab, dense, *chosen(lab, dense, kind, s), lab.retrain_epochs, lab.epochs) for s in sparsities]


def rewind(lab, kind, sparsities):
    """Return networks trained from their initial weights under the masks of the trained ones (arXiv 1803.03635)."""
    dense, _ = lab.dense(lab.epochs)
    return [_retrained(lab, lab.network(), *chosen(lab, dense, kind, s), lab.retrain_epochs) for s in sparsities]


def hard(lab, kind, sparsities):
    """Return networks pruned for good at the first step of training.

    A weight that stays zero is the smallest there is: masks made anew at every step would stay those of the start.
    """
    start = lab.network()
    return [_retrained(lab, start, *chosen(lab, start, kind, s), lab.epochs) for s in sparsities]


def _retrained(lab, start, kept, units, epochs, epoch=0):
    """Return `start` trained under masks that stay; unit masks as the physically smaller stack, the same function."""

    def train(lab, net, runs):
        own, trainer = nets.take(kept, runs), lab.trainer(net, epoch=epoch)
        if not units:
            trainer.prune(own)
        trainer.fit(epochs, lab.states)
        if units:
            net = shrink.widen(net, nets.take(start, runs), nets.take(units, runs))
        return _outcome(net, own, trainer)

    return lab.split(train, shrink.narrow(start, units) if units else start)


def _outcome(net, kept, trainer):
    return Pruned(net, kept, trainer.curve("train_accuracy"), trainer.curve("test_accuracy"))


def during(lab, kind, sparsities):
    """Return networks trained while they are pruned: the masks are made anew at every step.

    The gradient of the pruned network trains the dense weights behind it, so that what was pruned can come back.
    """

    def train(lab, net, each):
        layers = list(nets.layers(net))[:-1]
        behind = KINDS[kind](net, [1 - sparsity for sparsity in each], layers, lab.scope)
        trainer = lab.trainer(behind).fit(lab.epochs, lab.states, {"during": kind, "scope": lab.scope})
        kept = behind.masks()
        return masks.apply_(net, kept), kept, trainer

    return _all_at_once(lab, sparsities, train)


def gradual(lab, kind, sparsities):
    """Return networks trained while ever more of them is pruned, for good: see `frame.Lab.gradual`.

    What is pruned stays zero, and so stays pruned; the last epoch trains at the final sparsity.
    """

    def train(lab, net, each):
        of = {"gradual": kind, "scope": lab.scope, "sparsities": each}
        trainer = lab.gradual(
            net, each, lab.epochs, lambda at, left: masks_of(at.net, kind, left, at.seeds, lab.scope)[0], of
        )
        return net, trainer.masks, trainer

    return _all_at_once(lab, sparsities, train)


def _all_at_once(lab, sparsities, train):
    """Return one `Pruned` per sparsity of a stack in which every seed stands once for each of them."""
    each = [s for s in sparsities for _ in lab.seeds]
    stacks = [lab.network()] * len(sparsities)
    return lab.grid(lambda lab, net, runs: _outcome(*train(lab, net, nets.take(each, runs))), stacks)


def small(lab, epochs, sparsities):
    """Return the control: networks of the widths that unit pruning leaves, trained from scratch for `epochs`.

    At full width, as if the first units of each layer had been kept, so that all counts compare.
    """
    if wrong := complaint({"mode": "", "type": ["small"], "sparsities": sparsities, "hidden": list(lab.hidden)}):
        raise ValueError(wrong)
    outcomes = []
    for sparsity in sparsities:
        narrow, history = lab.dense(epochs, widths := left(lab.hidden, sparsity))
        full = lab.network()
        first = shrink.first(full, dict(zip(nets.layers(full), widths, strict=False)))
        kept = masks.expand(first, full)
        net = shrink.widen(narrow, full, first)
        outcomes.append(Pruned(net, kept, history["train_accuracy"], history["test_accuracy"]))
    return outcomes


def as_published(lab, kind, sparsities):
    """Return what the published program trained and reported.

    Its pruning replaced the variables of all layers but the last by constants, so that only the last was ever
    trained, on the frozen features of a pruned network of standard normal weights; and its accuracies were never
    reset, so that each is the mean over all epochs so far. Its pixels are in [0, 1], and those of `lab` must be too.
    """
    return [_only_the_last(lab, kind, sparsity) for sparsity in sparsities]


def _only_the_last(lab, kind, sparsity):
    net = lab.network(scheme="standard_normal")
    kept, _ = chosen(lab, net, kind, sparsity)
    masks.apply_(net, kept)
    last = nets.MLP([lab.hidden[-1], net.layers[-1].weight.shape[1]], ["no-WN"] * len(lab.seeds), bias=False)
    last.layers[0] = net.layers[-1]  # which is trained where it stands
    sets = [(_features(net, x), y) for x, y in (lab.train, lab.test)]
    trainer = Trainer(last, *sets, lab.seeds, **lab.rule).fit(lab.epochs, lab.states)
    curves = [trainer.curve(name) for name in ("train_accuracy", "test_accuracy")]
    for curve in curves:  # the mean over all epochs up to each; there is none before the first
        curve[:, 1:], curve[:, 0] = np.cumsum(curve[:, 1:], 1) / np.arange(1, curve.shape[1]), np.nan
    return Pruned(net, kept, *curves)


@torch.no_grad()
def _features(net, x):
    """Return what the last layer of every run reads for `x (N, I)`, `(R, N, units)`."""
    act, parts = nets.ACTIVATIONS[net.activation], []
    for part in x.split(5000):
        for layer in net.layers[:-1]:
            part = act(layer(part))
        parts.append(part)
    return torch.cat(parts, 1)


MODES = {
    "posthoc": posthoc, "finetune": finetune, "rewind": rewind, "during": during, "hard": hard, "gradual": gradual,
    "as_published": as_published,
}  # fmt: skip


def prune(lab, mode, kind, sparsities):
    """Return one `Pruned` per sparsity, by any of `MODES`, or of the control if `kind` is "small"."""
    choice("mode", mode, MODES), choice("kind", kind, [*KINDS, "small"] if mode == "during" else types())
    if kind != "small":
        with lab.keeping() as lab:
            return MODES[mode](lab, kind, sparsities)
    fair = {"finetune": lab.epochs + lab.retrain_epochs, "rewind": lab.retrain_epochs}  # as long as the mode trains
    return small(lab, fair.get(mode, lab.epochs), sparsities)
