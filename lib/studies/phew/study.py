"""Pruning at initialisation: from the name of a type to the masks of networks that nobody has trained.

A type is a method of `lib.pruning.methods`, or a variant of one. It makes a `Start` for every density, a stack with one
run per seed; what is left of it, and what it learns, `lib.studies.phew.outcome` says.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, fields, replace

import numpy as np
import torch

from lib import draws
from lib.data import images
from lib.data.sets import NAMES, SHAPES, Data
from lib.errors import choice, distinct, hint, listed
from lib.networks import convnets, nets
from lib.pruning import methods, paths
from lib.pruning.sampled import derived
from lib.pruning.shuffle import shuffled as shuffled_masks
from lib.records import runs
from lib.records.parameters import without
from lib.training import lab as frame
from lib.training import optimizers

# Type: (method, its keywords), where the name of a method does not say it all. nested: the masks of all densities come
# from one series of walks, as in all published ablations; init, reinit: schemes of `nets.init_`, before the masks are
# made, and of `nets.reinit_`, or again of `nets.init_`, after; shuffle: the width of `shuffle.shuffled`.
VARIANTS = {
    "phew_res": ("phew", {"nested": True}),
    "magnitude_init": ("magnitude", {}),
    "snip_frozen": ("snip", {"training": False}),  # as the SynFlow study scores: batch normalisations as they start
    "grasp_frozen": ("grasp", {"training": False}),
}
ABLATIONS = {
    "inverse": ("phew", {"nested": True, "invert": True}),
    "uniform": ("phew", {"nested": True, "power": 0}),
    "squared": ("phew", {"nested": True, "power": 2}),
    "kernels": ("phew", {"nested": True, "kernels": True}),
    "kernel_walk": ("phew", {"nested": True, "kernel_walk": True}),
    "normal_init": ("phew", {"nested": True, "init": "phew_normal"}),
    "xavier_init": ("phew", {"nested": True, "init": "phew_xavier"}),
    "reinit": ("phew", {"nested": True, "reinit": "phew"}),
    "evci": ("phew", {"nested": True, "reinit": "evci"}),
    "liu": ("phew", {"nested": True, "reinit": "liu"}),
    "evci_random": ("random", {"reinit": "evci"}),
    "liu_random": ("random", {"reinit": "liu"}),
    "synflow_shuffled": ("synflow", {"shuffle": 1.0}),
    "synflow_l2_shuffled": ("synflow_l2", {"shuffle": 1.0}),
}
AROUND = ("init", "shuffle", "reinit")  # keywords that no method has, of what comes before it and after
REINITS = ("none", "phew", "evci", "liu")
# What the published code does otherwise, method by method; all of its masks keep what is above a percentile.
QUIRKS = {"phew": {"legacy_branch": True}, "synflow_l2": {"power": 1}, "grasp": {"over": "all"}}
BATCH = 256  # examples that a score looks at together, as published


def types():
    """Return the types of `phew_density`: the dense network, all methods, what is made of them, and ablations."""
    renamed = [name for name, options in VARIANTS.values() if not options]
    plain = [name for name in methods.names() if name not in renamed]
    return distinct(["dense", *plain, *VARIANTS, "magnitude_trained", *ABLATIONS])


def method_of(kind):
    """Return (`methods.Method`, keywords) of a type; None and {} of those that no method alone makes."""
    if kind in ("dense", "magnitude_trained"):
        return None, {}
    name, options = (VARIANTS | ABLATIONS).get(kind, (kind, {}))
    return methods.get(name), dict(options)


def only(kinds):
    """Return a check of a list of types: what is wrong with it, or None; published names are told apart from typos."""

    def wrong(values):
        if unknown := [value for value in values if value not in kinds]:
            if said := meaning(unknown[0]):
                return f"{said}; allowed are {listed(kinds)}"
            return f"{unknown[0]!r} is no type of this notebook.{hint(unknown[0], kinds)} Allowed are {listed(kinds)}"
        return None

    return wrong


def meaning(name):
    """Return what an experiment of the published code is called here, as a clause, or "" for a name that it lacks."""
    known = runs.published("phew_names").fillna("").set_index("name")
    notebook, kind = known.loc[name] if name in known.index else (None, None)
    if kind:
        return f"the published {name!r} is type {kind!r} of {notebook} here"
    return "" if kind is None else f"{name!r} is a name for which the published code does nothing"


def complaint(p):
    """Return what a notebook's parameters `p` ask for that cannot be, all taken together, or None."""
    (_, side, classes, train, _), count = SHAPES[p["dataset"]], p.get("examples_per_class", 0)
    if p["net"].startswith("vgg") and side not in convnets.HEADS:
        sides = [name for name, (_, other, *_) in SHAPES.items() if other in convnets.HEADS and name in NAMES]
        return f"net = {p['net']!r}: it takes images of {listed(sides)}, not {p['dataset']}"
    read = [method for method, _ in map(method_of, p["type"]) if method and method.needs == "examples"]
    if read and count * classes > (p["train_examples"] or train):
        return f"examples_per_class = {count}: {classes} classes of them are more than the training images"
    return optimizers.complaint(p["rule"], p["momentum"], p["nesterov"])


def levels(kind, densities):
    """Return the densities at which a type is made: those asked for, but 1 of the dense network."""
    return [1.0] if kind == "dense" else list(densities)


@dataclass
class Start:
    """R networks before their training under masks, one per seed.

    net: the stack, whose pruned weights may not be zero yet, and which several starts may share; masks: `{weight:
    bool (R, O, *F)}` of all layers; epochs: passes that the networks have behind them; seconds: what one mask took.
    """

    net: torch.nn.Module
    masks: dict
    epochs: int = 0
    seconds: float = 0.0


def build(lab, scheme="phew", seeds=None):
    """Return the networks as they start, one per seed of the lab, drawn by other `seeds` if given."""
    image = tuple(lab.data.train_x.shape[1:])
    net = convnets.build(lab.net, image, lab.data.classes, len(lab.seeds), lab.width or None)
    return nets.init_(net, seeds or lab.seeds, scheme)


@dataclass(kw_only=True)
class Lab(frame.Lab):
    """What all types share, see `frame.Lab`: the network by its name, and how it is pruned and trained.

    width: filters of the first stage, 0 for the published; epochs, drops: of a training; augment: crop and mirror
    training images; rounds: of `anneal`; examples_per_class: whose gradients SNIP and GraSP read, that many of all
    classes together; prune_epochs: of magnitude pruning after training, 0 for at once; as_published: with `QUIRKS`.
    """

    build: Callable = build
    data: Data
    net: str = "resnet20"
    width: int = 0
    epochs: int = 160
    drops: tuple = (80, 120)
    augment: bool = True
    rounds: int = 100
    examples_per_class: int = 10
    prune_epochs: int = 10
    as_published: bool = False

    @property
    def rounding(self):
        return "percentile" if self.as_published else "nearest"

    def trainer(self, net, epoch=0, drops=None):
        """Return a `Trainer` of a stack that has `epoch` passes behind it, and its drops before it."""
        drops = [epoch + drop for drop in (self.drops if drops is None else drops)]
        batches = images.Augmented(self.data, self.seeds) if self.augment else None
        return super().trainer(net, epoch=epoch, drops=drops, batches=batches)

    def examples(self):
        """Return (x, y), lists of batches `(R, B, C·H·W)` and `(R, B)`: training images of each run's own choice.

        As the first epoch shows them, cropped and mirrored with `augment`; not balanced, as published.
        """
        count, n = self.examples_per_class * self.data.classes, len(self.data.train_y)
        if not 0 < count <= n:
            raise ValueError(f"{self.examples_per_class} examples per class are {count}; there are {n} training images")
        chosen = [draws.permutation(seed, "examples", 0, n)[:count] for seed in self.seeds]
        index = torch.from_numpy(np.stack(chosen)).to(self.data.device).split(BATCH, 1)
        seen = images.Augmented(self.data, self.seeds)
        x = [seen(0, at) if self.augment else self.train[0][at] for at in index]
        return x, [self.data.train_y[at] for at in index]


def lab(data, seeds, **options):
    """Return the `Lab` of these seeds on a `Data`; options: its other fields."""
    made = Lab((), data.split("test"), seeds, {}, data=data, **options)
    # Augmented batches are made of bytes: a standardised copy of all images would lie there unused.
    train = (data.train_x.flatten(1), data.train_y) if made.augment else data.split("train")
    recipe = {"name": f"{data.name}-{made.net}", "drops": list(made.drops), "train_examples": len(data.train_y)}
    recipe |= {name: getattr(made, name) for name in ("width", "augment", "watch")} | made.rule
    return replace(made, train=train, recipe=without(recipe, {"bar"}))


def labs(data, parameters, todo):
    """Return a `Lab` for every type of `todo`, pairs (seed, type), from the parameters that the notebooks share."""
    rule = {name: parameters[name] for name in ("lr", "momentum", "nesterov", "weight_decay", "bf16")}
    rule |= {"rule": parameters["rule"], "batch": parameters["batch_size"]}
    shared = {f.name: parameters[f.name] for f in fields(Lab) if f.name in parameters} | {"rule": rule}
    kinds = dict.fromkeys(kind for _, kind in todo)
    return {kind: lab(data, [seed for seed, other in todo if other == kind], **shared) for kind in kinds}


# ---- from a type to masks


def prune(lab, kind, densities, shuffle=None, reinit=None):
    """Return one `Start` per density, of a type of `types` or `ABLATIONS`.

    shuffle, reinit: whether its masks are then shuffled, see `shuffled`, and its weights drawn anew, see `restarted`;
    None leaves that to the type. ParameterError for an unknown type.
    """
    method, options = method_of(choice("type", kind, types()))
    scheme, own_width, own_scheme = (options.pop(name, None) for name in AROUND)
    began = time.perf_counter()
    if kind == "magnitude_trained":
        starts = _gradual(lab, densities)
    else:
        net = lab.network(scheme or "phew")
        made = _masks(lab, net, method, densities, options)
        starts = [Start(net, kept) for kept in made]
    for start in starts:
        start.seconds = (time.perf_counter() - began) / len(starts) / len(lab.seeds)
    width, scheme = own_width if shuffle is None else shuffle, reinit or own_scheme or "none"
    starts = starts if width is None else [shuffled(lab, start, width) for start in starts]
    return starts if scheme == "none" else [restarted(lab, start, scheme) for start in starts]


def _masks(lab, net, method, densities, options):
    """Return masks of all layers for each density, by a method that needs no training; None prunes nothing."""
    if method is None:
        return [paths.complete({}, nets.weights(net))] * len(densities)
    x, y, options = given(lab, method, options)
    rounds = lab.rounds if method.rounds > 1 else 1
    return methods.prune_each(net, method.name, densities, x, y, lab.seeds, rounding=lab.rounding, rounds=rounds,
                              **options)  # fmt: skip


def given(lab, method, options):
    """Return (x, y, keywords) for a method: examples if it reads any, and its published ways if those are asked for."""
    x, y = lab.examples() if method.needs == "examples" else (None, None)
    return x, y, (QUIRKS.get(method.name, {}) if lab.as_published else {}) | options


def _gradual(lab, densities):
    """Return trained networks of which ever more small weights are pruned while they train on, see `frame.Lab.gradual`.

    In `prune_epochs`, at the first rate. The training under masks that follows goes on from the weights of the last.
    """
    dense, _ = lab.dense(lab.epochs)
    each, epochs = [1 - density for density in densities for _ in lab.seeds], lab.prune_epochs

    def smaller(trainer, shares):
        return methods.prune(trainer.net, "magnitude", shares, rounding=lab.rounding, within=trainer.masks or None)

    def train(lab, net, chosen):
        goals = nets.take(each, chosen)
        of = {"magnitude": goals, "rounding": lab.rounding}
        return {"net": net, "masks": lab.gradual(net, goals, epochs, smaller, of, epoch=lab.epochs, drops=()).masks}

    with lab.keeping() as lab:
        return [Start(**found, epochs=lab.epochs + epochs) for found in lab.grid(train, [dense] * len(densities))]


def shuffled(lab, start, width):
    """Return a `Start` of the same weights whose masks are shuffled within layers: see `shuffle.shuffled`."""
    moved = shuffled_masks(nets.graph(start.net), start.masks, lab.seeds, width, lab.as_published)
    return Start(start.net, moved, start.epochs, start.seconds)


def restarted(lab, start, scheme):
    """Return a `Start` of the same masks whose weights are drawn anew.

    scheme: "phew", as a network of that family starts, from another seed; "evci" or "liu", see `nets.reinit_`.
    """
    if scheme == "phew":
        net = lab.network(seeds=[derived(seed, "restart") % 2**32 for seed in lab.seeds])
    else:
        wide = "_fan_out" if start.net.family == "headed_vgg" else ""
        net = nets.reinit_(lab.network(), start.masks, lab.seeds, scheme + wide)
    return Start(net, start.masks, 0, start.seconds)
