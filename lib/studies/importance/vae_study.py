"""Pruning autoencoders while they train: rounds that take hidden units away, and what is measured on the way.

The protocol of the study of neural importance-based train-time pruning (a public course report): train some epochs,
then in rounds take a tenth of each hidden fully connected layer out and train on. What is taken is really gone: the
networks become narrower, and a step cheaper.
"""

import copy
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial

import numpy as np
import torch
from torch import nn

from lib import draws
from lib.errors import ParameterError, distinct
from lib.networks import nets
from lib.pruning import methods
from lib.records import store
from lib.studies.importance import vae
from lib.studies.importance.study import Schedule, schedule_complaint
from lib.training import lab as frame
from lib.training import once

DATASETS = ("celeba", "mnist", "fashion_mnist", "cifar10", "digits", "digits32")
HISTORY = (
    "epoch",  # passes made so far
    "train_reconstruction",  # mean over the pass, while the weights change; nats an image, as all losses
    "train_kl",  # likewise
    "test_reconstruction",  # after the pass, with the same draw of the latent numbers after each
    "test_kl",
    "seconds",  # of all passes so far, as in `Trainer`
)
LOOKED_AT = 8  # test images whose reconstructions are kept, and steps of the walk
DRAWN = 16  # images decoded from draws of the prior
CHUNK = {"cpu": 500, "cuda": 5000}  # images that are evaluated together
MOMENTS = ("exp_avg", "exp_avg_sq")  # as Adam calls them


class Bound:
    """The objective of a `Trainer` of autoencoders, see `trainer.CrossEntropy`: reconstruction + KL of a batch.

    The draw ε of an image in a pass depends on seed, pass and image alone (draw "latent"), not on batch or device.
    """

    history = HISTORY

    def beside(self, trainer):
        y = trainer.train[1]
        return noise(trainer.seeds, "latent", trainer.epoch, len(y), trainer.net.latent, y.device)

    def outputs(self, net, x, drawn):
        return net(x, drawn)

    def losses(self, outputs, x, drawn):
        reconstruction, kl = vae.losses(*outputs, x)
        return reconstruction.sum() + kl.sum(), *(part.detach().sum(1).double() for part in (reconstruction, kl))

    def columns(self, trainer, reconstruction, kl):
        tested = dict(zip(("test_reconstruction", "test_kl"), test_losses(trainer), strict=True))
        return {"train_reconstruction": reconstruction, "train_kl": kl} | tested


@torch.no_grad()
def test_losses(trainer):
    """Return the mean (reconstruction, KL) of the test images, twice `(R,)`; the noise is always the same."""
    net, images = trainer.net, trainer.test[0]
    device = next(net.parameters()).device
    drawn = noise(trainer.seeds, "latent of the test", 0, len(images), net.latent, device)
    sums = torch.zeros(2, len(drawn), dtype=torch.float64, device=device)
    size = CHUNK[device.type]
    for part, draw in zip(images.split(size), drawn.split(size, 1), strict=True):
        x = vae.numbers(part)
        sums += torch.stack([loss.double().sum(1) for loss in vae.losses(*net(x, draw), x)])
    return (sums / len(images)).cpu().numpy()


def noise(seeds, purpose, position, count, latent, device="cpu"):
    """Return standard normal `(R, count, latent)` float32, of each run's own seed, the same on every device."""
    drawn = {
        seed: draws.generator(seed, purpose, position).standard_normal((count, latent), np.float32)
        for seed in dict.fromkeys(seeds)
    }
    return torch.stack([torch.from_numpy(drawn[seed]) for seed in seeds]).to(device)


def build(lab):
    """Return autoencoders as they start, one per seed: uniform in ±1/sqrt(fan-in), biases zero."""
    net = vae.VAE(lab.image, len(lab.seeds), tuple(lab.hidden), lab.latent)
    return nets.init_(net, lab.seeds, "torch_default")


@dataclass(kw_only=True)
class Lab(frame.Lab):
    """What all types share, see `frame.Lab`: images as bytes, the networks, and how they are pruned.

    train, test: (bytes `(N, C·H·W)`, labels, which are not used); image: (C, H, W); schedule: when units go, and how
    many of each hidden layer; score_examples: how many training images contributions are averaged over, the first ones,
    0 for all; reset_optimizer: Adam starts anew after each round, for "none" too; as_published: it does, and
    contributions are of values before ReLU, in the last batch; recipe: names the folders of the networks after the
    first epochs (`runs.trained`). ParameterError without any first epochs.
    """

    build: Callable = build
    image: tuple
    hidden: tuple = vae.HIDDEN
    latent: int = vae.LATENT
    schedule: Schedule = Schedule(10, 5, 5)
    score_examples: int = 0
    reset_optimizer: bool = False
    as_published: bool = False

    def __post_init__(self):
        if wrong := schedule_complaint(asdict(self.schedule), first=1):
            raise ParameterError(wrong)

    def trainer(self, net, epoch=0):
        """Return a `Trainer` of autoencoders by Adam, images as numbers in [0, 1]."""
        read = {"objective": Bound(), "batches": lambda _, at: vae.numbers(self.train[0][at])}
        return super().trainer(net, rule="adam", epoch=epoch, **read)

    def begun(self):
        """Return (what all types begin with, its history): networks after the first epochs, made once and then read.

        With them are Adam's moments, so that training goes on as if it had never stopped: see `resumed`.
        """
        recipe = self.recipe | {"type": "vae", "hidden": list(self.hidden), "latent": self.latent}

        def train(start, missing, states):
            done = self.of(missing).trainer(start["net"]).fit(self.schedule.initial, states)
            return _carrier(done.net, done.memory()), done.curves()

        recipes = [recipe | {"seed": seed, "epochs": self.schedule.initial} for seed in self.seeds]
        start = self.network()
        blank = _carrier(start, {key: copy.deepcopy(start) for key in MOMENTS})
        return once.obtain(blank, recipes, train, self.together(start))

    def resumed(self, begun, history):
        """Return a `Trainer` of what `begun` returns."""
        trainer = self.trainer(begun["net"], self.schedule.initial)
        steps = self.schedule.initial * -(-len(self.train[1]) // trainer.batch)
        trainer.resume(begun["net"], {key: begun[key] for key in MOMENTS}, steps)
        trainer.remember(history)
        return trainer


def _carrier(net, memory):
    return nn.ModuleDict({"net": net, **memory})


# ---- which units stay


def types():
    """Return the types of `vae_prune`: not pruned, and every method of units that reads no labels."""
    return distinct(["none", *(name for name in methods.names("units") if name != "taylor")])


def chosen(lab, net, kind, number):
    """Return the units kept in a round, `{layer: bool (R, O)}`, as many of each layer as the schedule says.

    kind: a method of units; number: of the round, from 1.
    """
    images, widths = _scored_on(lab), vae.hidden_widths(net)
    shares = {layer: lab.schedule.keep(width) / width for layer, width in widths.items()}
    drawn = noise(lab.seeds, "latent of the score", number, len(images), lab.latent, images.device)
    rule = {"noise": drawn, "preactivation": lab.as_published}
    # Permutations, where other studies draw numbers: the committed records were made so.
    keys = {layer: (f"pruned {layer}", number) for layer in widths}
    keys = {"keys": keys, "draw": lambda stream, shape: stream.permutation(*shape)}
    options = {"contribution": rule, "worst": rule, "random": keys}.get(kind, {})
    return methods.prune(net, kind, shares, images, None, lab.seeds, of="units", layers=list(widths), **options)


def _scored_on(lab):
    """Return the training images that contributions are averaged over."""
    images = lab.train[0]
    if lab.as_published:  # the images are not shuffled: the last batch of a pass is that of the data
        batch = lab.rule["batch"]
        return images[(len(images) - 1) // batch * batch :]
    return images[: lab.score_examples or len(images)]


# ---- the study


@dataclass
class Autoencoders:
    """R autoencoders of one type, trained and pruned.

    net: as they are in the end; history: `{column: (R, T)}`; rounds: `{name: (R, K + 1) or (R, K + 1, layers)}`, entry
    0 the start, where nothing is taken; pictures: `{name: uint8 (R, n, C, H, W)}`.
    """

    net: torch.nn.Module
    history: dict
    rounds: dict
    pictures: dict


def study(lab, kind):
    """Return the `Autoencoders` of one type: the first epochs, and rounds of pruning and training."""
    if kind != "none":
        methods.get(kind, "units")  # or an error that says what there is
    begun, history = lab.begun()

    def run(lab, net, chosen):
        stack = _carrier(net, {key: nets.take(begun[key], chosen) for key in MOMENTS})
        return _pruned(lab, kind, lab.resumed(stack, nets.take(history, chosen)))

    with lab.keeping() as lab:
        return lab.split(run, begun["net"])


def _pruned(lab, kind, trainer):
    """Return the `Autoencoders` of networks after their first epochs."""
    shown, number = trainer.test[0][:LOOKED_AT], 0
    start, before = _row(lab.network(), trainer, 0), reconstructions(trainer.net, shown).cpu().numpy()
    of = {"kind": kind, "examples": lab.score_examples, "reset": lab.reset_optimizer, "published": lab.as_published}
    for number in trainer.rounds(lab.schedule.rounds, lab.states, of | asdict(lab.schedule)):
        if kind != "none":
            trainer.narrow(chosen(lab, trainer.net, kind, number + 1))
        if lab.reset_optimizer or lab.as_published:
            trainer.reset_optimizer()
        row = _row(trainer.net, trainer, trainer.epoch)
        if number == 0:
            row["after"] = reconstructions(trainer.net, shown).cpu().numpy()
        for name, values in row.items():
            trainer.notes.setdefault(name, []).append(values)
    net, after = trainer.net, trainer.notes.pop("after", [before])[0]
    pictures = {"originals": shown.expand(len(lab.seeds), *shown.shape), "before": before, "after": after}
    pictures |= {"end": reconstructions(net, shown), "samples": samples(net, lab.seeds), "walk": walk(net, shown)}
    pictures = {name: torch.as_tensor(part).unflatten(2, lab.image).cpu().numpy() for name, part in pictures.items()}
    rounds = {name: np.stack([first, *trainer.notes.get(name, ())], 1) for name, first in start.items()}
    return Autoencoders(net, trainer.curves(), rounds, pictures)


def _row(net, trainer, epoch):
    """Return what is said of a round, made of `net` after so many epochs, `{name: (R,) or (R, layers)}`."""
    ones = np.ones(len(trainer.seeds))
    before = {name: trainer.history[f"test_{name}"][epoch] for name in ("reconstruction", "kl")}
    after = test_losses(trainer) if epoch else before.values()
    return {
        "round_epoch": ones * epoch,
        "round_parameters": ones * nets.parameters_per_run(net),
        "round_macs": ones * nets.macs_per_run(net),
        "round_widths": ones[:, None] * np.array(list(vae.hidden_widths(net).values())),
        **{f"before_{name}": value for name, value in before.items()},
        **{f"after_{name}": value for name, value in zip(before, after, strict=True)},
    }


def content(outcome, run):
    """Return scores, arrays, axes and cost of one run's record, as keywords of `Run.save`."""
    net, history = outcome.net, outcome.history
    last = {name: float(history[f"test_{name}"][run, -1]) for name in ("reconstruction", "kl")}
    axes = dict.fromkeys(HISTORY[1:], ("epoch",))
    axes |= {name: ("round", "layer")[: values.ndim - 1] for name, values in outcome.rounds.items()}
    axes |= {name: (f"of_{name}", "channel", "row", "column") for name in outcome.pictures}
    arrays = {name: history[name] for name in HISTORY[1:]} | outcome.rounds | outcome.pictures
    cost = {"parameters": nets.parameters_per_run(net), "macs": nets.macs_per_run(net)}
    cost["dense_parameters"] = int(outcome.rounds["round_parameters"][run, 0])
    named = {"epoch": history["epoch"][run].astype(int), "layer": list(vae.hidden_widths(net))}
    return {"scores": {**last, "loss": sum(last.values())}, "cost": cost, **store.of_run(arrays, run, axes, named)}


# ---- pictures, all uint8 (R, n, C·H·W)


@torch.no_grad()
def reconstructions(net, images):
    """Return what the networks make of images, decoded from μ."""
    return _bytes(net.decode(net.encode(vae.numbers(images))[0]))


@torch.no_grad()
def samples(net, seeds):
    """Return images decoded from draws of the prior N(0, 1)."""
    return _bytes(net.decode(noise(seeds, "prior", 0, DRAWN, net.latent, next(net.parameters()).device)))


@torch.no_grad()
def walk(net, images):
    """Return the images on the straight way between the μ of the first two."""
    first, second = net.encode(vae.numbers(images[:2]))[0].split(1, 1)
    share = torch.linspace(0, 1, LOOKED_AT, device=first.device)[:, None]
    return _bytes(net.decode(first + share * (second - first)))


def _bytes(logits):
    return (255 * logits.sigmoid()).round().to(torch.uint8)


def tiles(*rows):
    """Return rows of images, each uint8 `(n, C, H, W)`, as one image `(rows · H, n · W, 3)` to be shown."""
    table = np.stack(rows)  # (rows, n, C, H, W)
    whole = table.transpose(0, 3, 1, 4, 2).reshape(table.shape[0] * table.shape[3], -1, table.shape[2])
    return np.broadcast_to(whole, (*whole.shape[:2], 3))


complaint = partial(schedule_complaint, first=1)  # of a notebook's parameters


def lab(real, p, seeds):
    """Return the `Lab` of these seeds, of a notebook's parameters `p` on `real`, a `sets.Data`."""
    schedule = Schedule(*(p[name] for name in ("epochs", "initial", "increment", "fraction")))
    rule = {name: p[name] for name in ("lr", "bf16")} | {"batch": p["batch_size"], "shuffle": not p["as_published"]}
    recipe = {"name": f"{p['dataset']}-vae", **{name: p[name] for name in ("train_examples", "watch")}, **rule}
    shown = slice(p["watch"] or None)
    train, test = (real.train_x.flatten(1), real.train_y), (real.test_x[shown].flatten(1), real.test_y[shown])
    named = {name: p[name] for name in ("latent", "score_examples", "reset_optimizer", "as_published")}
    image, hidden = tuple(real.train_x.shape[1:]), tuple(p["hidden"])
    rule |= {"bar": False}
    return Lab(train, test, seeds, recipe, rule, image=image, hidden=hidden, schedule=schedule, **named)


def loss(record, when):
    """Return reconstruction + KL of a record: "train" and "test" by epoch; "before" and "after" by round, on test."""
    return sum(record.array(f"{when}_{name}")[0] for name in ("reconstruction", "kl"))


def parameters(p, record):
    """Return the parameters that networks of the types that prune have, entry k behind k rounds; `p`: of the notebook.

    Those of "none" have so a place beside the others.
    """
    image = record.array("end")[0].shape[1:]
    schedule = Schedule(*(p[name] for name in ("epochs", "initial", "increment", "fraction")))
    smaller = (vae.VAE(image, 1, hidden, p["latent"]) for hidden in schedule.widths(p["hidden"]))
    return np.array([nets.parameters_per_run(net) for net in smaller])
