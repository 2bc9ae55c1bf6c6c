"""The train-time pruning study: units go in rounds while the network trains, by how much they contribute.

A public course report, "neural importance-based train-time pruning". After some initial epochs every hidden layer
loses a share of the units that it still has, the network trains on, and so forth; nothing is ever brought back.
"""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace

import numpy as np
import torch

from lib import draws
from lib.data import sets
from lib.errors import ParameterError, distinct
from lib.networks import convnets, nets, plain
from lib.networks.layers import Linear
from lib.pruning import anatomy, contribution, masks, methods, shrink
from lib.records import store
from lib.records.ranges import reject_outside
from lib.training import lab as frame
from lib.training import optimizers
from lib.training.evaluate import evaluate
from lib.training.trainer import Trainer

DATASETS = ("mnist", "fashion_mnist", "cifar10", "cifar100", "digits", "digits32")
EXAMPLES = ("all", "last_batch")
FILTERS = (16, 32)  # of the two convolutions in front of the linear layers, for images in colour
# (hidden widths, examples a step), by the channels of the images
PUBLISHED = {1: ((50, 30), 5000), 3: ((256, 128), 128)}
AS_PUBLISHED = {"on": "preactivation", "score_examples": "last_batch", "reset_optimizer": True}
SCORED = ("channels", "on", "average", "maximum", "score_examples", "reset_optimizer")  # parameters of a `Study`
CURVES = ("train_accuracy", "test_accuracy", "train_loss", "test_loss")
TIMED = 10_000  # training examples of the pass whose time is measured, at most


def types():
    """Return the types of `train_time_prune`: not pruned, every method of units, and the control."""
    return distinct(["none", *methods.names("units"), "small"])


# ---- when, and how many


@dataclass(frozen=True)
class Schedule:
    """When units go: after `initial` epochs, and then after every `increment`, as long as epochs are left.

    fraction: of the units that a layer still has, which go in one round; minimum: units that always stay. All training
    takes `epochs`, for which the last round is shortened; with `overshoot` it is not, as in the study. Raises
    ParameterError for what makes no schedule.
    """

    epochs: int = 100
    initial: int = 30
    increment: int = 10
    fraction: float = 0.1
    minimum: int = 1
    overshoot: bool = False

    def __post_init__(self):
        reject_outside("", asdict(self))
        if wrong := schedule_complaint(asdict(self)):
            raise ParameterError(wrong)

    @property
    def rounds(self):
        """Return how many epochs follow each pruning, one entry a round."""
        left = range(self.initial, self.epochs, self.increment)
        return [self.increment if self.overshoot else min(self.increment, self.epochs - began) for began in left]

    @property
    def total(self):
        """Return the epochs of a whole training."""
        return self.initial + sum(self.rounds)

    def keep(self, width):
        """Return how many of `width` units one round leaves: rank r > max(1, (1 - fraction) width) goes."""
        floor = masks.count(width, 1 - self.fraction, "keep_floor")
        return max(1, floor, min(width, self.minimum))

    def widths(self, start):
        """Return the widths after each round, `[(width of each layer), ...]`, the first entry before all of them."""
        each = [tuple(start)]
        for _ in self.rounds:
            each.append(tuple(map(self.keep, each[-1])))
        return each


# ---- the study


@dataclass
class Trained:
    """R trained networks and how they came to be.

    net: at full width, zeros where units went; kept: `{layer: bool (R, O)}` of its prunable layers. history: the
    columns of `Trainer`, (R, T). widths (R, rounds, layers); after_accuracy, after_loss (R, rounds): on test, right
    after a pruning and before any training, nan for what is never pruned. stacked: of each the types trained beside it.
    """

    net: torch.nn.Module
    kept: dict
    history: dict
    widths: np.ndarray
    after_accuracy: np.ndarray
    after_loss: np.ndarray
    stacked: list


def build(study, widths=None):
    """Return the networks as they start, one per seed, with other `widths` of the prunable layers if given."""
    widths = list(widths or study.start_widths)
    filters, hidden = (widths[:2], widths[2:]) if study.channels else (study.filters, widths)
    if study.filters:
        net = convnet(study.image, filters, hidden, study.classes, len(study.seeds))
    else:
        net = nets.MLP([math.prod(study.image), *hidden, study.classes], ["no-WN"] * len(study.seeds), bias=False)
    return nets.init_(net, study.seeds, "torch_default")


def convnet(image, filters, hidden, classes, count):
    """Return `count` networks of 3×3 convolutions with biases, each before a 2×2 max-pool, and linear layers."""
    net = convnets.VGG(image, classes, ["no-WN"] * count, 1, [(n,) for n in filters], biases=True, head=hidden)
    sizes = [net.hidden[0].weight.shape[2], *hidden, classes]
    *inner, net.output = (Linear(count, i, o, bias=False) for i, o in zip(sizes, sizes[1:], strict=False))
    net.hidden, net.drops = torch.nn.ModuleList(inner), torch.nn.ModuleList(torch.nn.Identity() for _ in inner)
    return net


@dataclass(kw_only=True)
class Study(frame.Lab):
    """What all runs share, see `frame.Lab`: the network, the schedule, and how units are scored.

    image: (C, H, W); three channels get two convolutions. channels: whether their filters are pruned too. on, average,
    maximum: see `contribution`; score_examples: "all" training examples, or those of the last mini-batch.
    reset_optimizer: forget its state in every round, else what units that stay have of it stays.
    """

    build: Callable = build
    image: tuple
    classes: int
    hidden: tuple
    schedule: Schedule
    channels: bool = False
    on: str = "activation"
    average: float = 1.0
    maximum: float = 0.0
    score_examples: str = "all"
    reset_optimizer: bool = False

    @property
    def filters(self):
        return FILTERS if self.image[0] == 3 else ()

    @property
    def start_widths(self):
        """Return the widths of the prunable layers before any pruning."""
        return (*(self.filters if self.channels else ()), *self.hidden)

    def dense(self, epochs, widths=None):
        """Return (the networks after `epochs`, their history), trained now or some time before."""
        of = self.start_widths if widths is None else widths
        return super().dense(epochs, self.network(widths), widths=list(of))

    def run(self, seed, kinds):
        """Return `{type: Trained}` of one seed, R = 1; those that prune are one stack, from shared first epochs on."""
        for kind in set(kinds) - {"none", "small"}:
            methods.get(kind, "units")  # or an error that says what there is
        one, together = replace(self, seeds=[seed]), [kind for kind in kinds if kind != "small"]
        trained = one._pruned(together) if together else {}
        return trained | ({"small": one._small()} if "small" in kinds else {})

    def _small(self):
        """Return the control: a network of the widths that the rounds leave, trained from scratch just as long."""
        widths = self.schedule.widths(self.start_widths)
        net, history = self.dense(self.schedule.total, widths[-1])
        rounds, kept = len(self.schedule.rounds), self._units(net, {})
        never = np.full((1, rounds), np.nan)
        of_rounds = np.array([widths[-1]] * rounds).reshape(1, rounds, len(kept))
        return Trained(net, kept, history, of_rounds, never, never, [["small"]])

    def _start(self):
        """Return (network, history or None, epochs behind it) that all types of a seed share.

        An optimiser with a state cannot be handed on through a file: its first epochs are trained in the stack.
        """
        stateless = self.rule.get("rule", "sgd") == "sgd" and not self.rule.get("momentum")
        if self.schedule.initial and stateless:
            return *self.dense(self.schedule.initial), self.schedule.initial
        return self.network(), None, 0

    def _pruned(self, kinds):
        """Return `{type: Trained}` of types trained in one stack: they share the order of examples, so the input."""
        start, before, epoch = self._start()
        of = {name: getattr(self, name) for name in SCORED} | asdict(self.schedule)

        def train(lab, net, chosen):
            trainer, mine = lab.trainer(net, epoch=epoch), [kinds[run] for run in chosen]
            if before:
                trainer.remember(nets.take(before, [0] * len(mine)))
            each = [lab.schedule.initial - epoch, *lab.schedule.rounds]
            for number in trainer.rounds(each, lab.states, of | {"types": mine}):
                if number:
                    lab._round(trainer, mine, number - 1)
            return lab._outcome(trainer, mine)

        with self.keeping() as lab:
            return dict(zip(kinds, lab.grid(train, [start] * len(kinds)), strict=True))

    def _units(self, net, notes):
        """Return the units that networks still have, `{layer: bool (R, O)}`, as the notes of their trainer say."""
        names = contribution.prunable(net, self.channels)
        every = {name: torch.ones_like(net.get_submodule(name).scale, dtype=torch.bool) for name in names}
        kept = {name: notes[name][-1] for name in names if name in notes}
        return every | {name: torch.from_numpy(units).to(every[name].device) for name, units in kept.items()}

    def _round(self, trainer, kinds, number):
        """Prune round `number`, and note which units stay, and how good the networks are right afterwards."""
        units = self._fewer(trainer, self._units(trainer.net, trainer.notes), kinds, number)
        trainer.prune(masks.expand(units, trainer.net))
        if self.reset_optimizer:
            trainer.reset_optimizer()
        tested = evaluate(trainer.net, *self.test)
        notes = {name: kept.cpu() for name, kept in units.items()}
        notes |= {"accuracy": tested.accuracy.cpu(), "loss": tested.log_loss.exp().cpu()}
        for name, values in notes.items():
            trainer.notes.setdefault(name, []).append(values.numpy())

    def _outcome(self, trainer, kinds):
        """Return the `Trained` of a stack."""
        units, notes, runs = self._units(trainer.net, trainer.notes), trainer.notes, len(kinds)
        each = {name: np.array([note.reshape(runs, -1).sum(1) for note in notes.get(name, ())]).reshape(-1, runs).T
                for name in (*units, "accuracy", "loss")}  # fmt: skip
        widths = np.stack([each[name] for name in units], 2)
        return Trained(trainer.net, units, trainer.curves(), widths, each["accuracy"], each["loss"], [kinds] * runs)

    def _fewer(self, trainer, units, kinds, number):
        """Return the units `{layer: bool (R, O)}` that round `number` leaves of `units`: all of them of type "none"."""
        parts = []
        for run, kind in enumerate(kinds):
            within = nets.take(units, [run])
            shares = {name: self.schedule.keep(int(kept.sum())) / kept.shape[1] for name, kept in within.items()}
            how = {"of": "units", "within": within, "layers": list(units), **self.options(kind, number, units)}
            given = nets.take(trainer.net, [run]), kind, shares, *self._read(trainer), [trainer.seeds[run]]
            parts.append(within if kind == "none" else methods.prune(*given, **how))
        return nets.join(parts)

    def options(self, kind, number, units):
        """Return the keywords of a method in round `number`, of the layers `units`."""
        rule = {"average": self.average, "maximum": self.maximum, "on": self.on, "channels": self.channels}
        keys = {name: ("random_units", number, position) for position, name in enumerate(units)}
        return {"contribution": rule, "worst": rule, "random": {"keys": keys}}.get(kind, {})

    def _read(self, trainer):
        """Return the examples (x, y) that methods read: of training, all or those of the last mini-batch."""
        if self.score_examples == "all":
            return self.train
        n = len(self.train[1])
        order = draws.permutation(trainer.seeds[0], "order", trainer.epoch - 1, n)
        last = torch.from_numpy(order[(n - 1) // trainer.batch * trainer.batch :])
        return tuple(part[last.to(part.device)] for part in self.train)


# ---- from a notebook's parameters, and to its records


def complaint(p):
    """Return what a notebook's parameters `p` ask for that cannot be, all taken together, or None."""
    p = p | (AS_PUBLISHED if p["as_published"] else {})
    if p["hidden"] != [0] and 0 in p["hidden"]:
        return f"hidden = {p['hidden']}: widths are 1 or more; 0 alone is for the study's own"
    if not p["average"] and not p["maximum"]:
        return "average = 0.0 and maximum = 0.0: all units would have one score; take another number for one of them"
    if p["channels"] and p["on"] != "activation":
        return f"channels = True with on = {p['on']!r}: filters have a score by {contribution.ON[0]!r} alone"
    if p["channels"] and sets.SHAPES[p["dataset"]][0] == 1:
        return f"channels = True with dataset = {p['dataset']!r}: gray images have no filters here; take digits32"
    return schedule_complaint(p) or optimizers.complaint(p["rule"], p["momentum"])


def schedule_complaint(p, first=0):
    """Return what is wrong with the epochs before the first round, `first` at least, or None."""
    fits = first <= p["initial"] <= p["epochs"]
    return None if fits else f"initial = {p['initial']}: allowed are {first} to epochs = {p['epochs']}"


def study(real, p):
    """Return the `Study` of a notebook's parameters `p` on `real`, a `sets.Data`.

    0 for hidden or batch_size is what the study has for images of that kind; as_published goes before all keywords.
    """
    p = p | (AS_PUBLISHED if p["as_published"] else {})
    hidden, batch = PUBLISHED[real.train_x.shape[1]]
    hidden = tuple(p["hidden"]) if p["hidden"] != [0] else hidden
    names = ("epochs", "initial", "increment", "fraction", "minimum")
    schedule = Schedule(*(p[name] for name in names), overshoot=p["as_published"])
    rule = {"rule": p["rule"], "lr": p["lr"], "momentum": p["momentum"], "batch": p["batch_size"] or batch}
    recipe = {"name": f"{p['dataset']}-importance", "train_examples": p["train_examples"], **rule}
    recipe |= {"channels": True} if p["channels"] else {}  # whose widths may be those of another network without
    scored = {name: p[name] for name in SCORED}
    return Study(
        real.split("train"), real.split("test"), [], recipe, rule | {"bar": False}, image=tuple(real.train_x.shape[1:]),
        classes=real.classes, hidden=hidden, schedule=schedule, stack=p["stack"], **scored,
    )  # fmt: skip


def record(study, outcome):
    """Return the scores, cost, arrays and axes of one run's record, for `Run.save`."""
    rounds, whole = len(study.schedule.rounds), nets.parameters_per_run(replace(study, seeds=[0]).network())
    last = {f"final_{name}": float(outcome.history[name][0, -1]) for name in CURVES}
    ends = np.cumsum([study.schedule.initial, *study.schedule.rounds])[:-1]
    arrays = {name: outcome.history[name] for name in CURVES} | {
        "widths": outcome.widths, "start_widths": np.array([study.start_widths]), "prune_epoch": ends[None],
        "after_prune_accuracy": outcome.after_accuracy, "after_prune_loss": outcome.after_loss,
    }  # fmt: skip
    axes = dict.fromkeys(arrays, ("round",)) | dict.fromkeys(CURVES, ("epoch",))
    axes |= {"widths": ("round", "layer"), "start_widths": ("layer",)}
    named = {"round": range(1, rounds + 1), "layer": contribution.prunable(outcome.net, study.channels)}
    cost = {"dense_parameters": whole, "units_left": int(sum(kept.sum() for kept in outcome.kept.values()))}
    cost |= {"dense_units": sum(study.start_widths)} | left(study, outcome)
    return {"scores": last, "cost": cost, **store.of_run(arrays, 0, axes, named)}


def left(study, outcome):
    """Return what is left of one network, and what it costs when the units that went are really taken out.

    parameters, macs (of one example): of the smaller network; live_units: hidden ones on a path from input to output;
    epoch_seconds: of a pass over the training set, measured on a part of it; test_seconds: of all test logits.
    """
    kept = masks.expand(outcome.kept, outcome.net)
    narrow, sizes = shrink.narrow(outcome.net, outcome.kept), anatomy.anatomy(outcome.net, kept)
    return {
        "parameters": nets.parameters_per_run(narrow), "macs": nets.macs_per_run(narrow),
        "live_units": int(sizes["live_units"][0][:-1].sum()),
        "epoch_seconds": _epoch_seconds(study, narrow),
        "test_seconds": plain.latency(shrink.shrink(outcome.net, kept), study.test[0], 3, None).median / 1000,
    }  # fmt: skip


def _epoch_seconds(study, net):
    """Return the seconds of a training pass: the shortest of at least three and of 0.3 seconds of them."""
    (x, y), n = study.train, min(TIMED, len(study.train[1]))
    trainer = Trainer(net, (x[:n], y[:n]), tuple(part[:1] for part in study.test), [0], **study.rule)
    while trainer.seconds < 0.3 or trainer.epoch < 3:
        trainer.fit(1)
    return float(np.diff(trainer.curve("seconds")[0]).min() * len(y) / n)
