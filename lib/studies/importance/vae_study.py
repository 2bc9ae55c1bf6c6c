"""Pruning autoencoders while they train: rounds that take hidden units away, and what is measured on the way.

The protocol of the study of neural importance-based train-time pruning (a public course report): train some epochs,
then in rounds take a tenth of each hidden fully connected layer out and train on. What is taken is really gone: the
networks become narrower, and a step cheaper.
"""

import copy
import time
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from types import SimpleNamespace

import numpy as np
import torch
from torch import nn

from lib import draws
from lib.errors import ParameterError
from lib.networks import nets
from lib.pruning import methods
from lib.studies.importance import vae
from lib.studies.importance.study import Schedule, schedule_complaint
from lib.training import trained
from lib.training.trainer import Trainer

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


class Training(Trainer):
    """A `Trainer` of autoencoders: images as bytes `(N, C·H·W)`, the loss summed over a batch, noise from the seeds.

    The draw ε of an image in a pass depends on seed, pass and image alone (draw "latent"), not on batch or device.
    """

    columns = HISTORY

    def _pass(self, net, optimizer, orders, part, rate):
        self.noise = noise(self.seeds[part], "latent", self.epoch, len(self.train[1]), net.latent, self.train[1].device)
        return super()._pass(net, optimizer, orders, part, rate)

    def _step(self, net, optimizer, at, part, gone):
        x = self._inputs(at, part)
        row = torch.arange(len(self.noise), device=at.device)[:, None]
        drawn = self.noise[:, at] if at.dim() == 1 else self.noise[row, at]
        with torch.autocast(x.device.type, torch.bfloat16) if self.bf16 else nullcontext():
            outputs = net(x, drawn)
        reconstruction, kl = vae.losses(*outputs, x)
        self._update(optimizer, reconstruction.sum() + kl.sum(), gone)
        return reconstruction.detach().mean(1).double(), kl.detach().sum(1).double()

    def _inputs(self, at, part):
        return vae.numbers(self.train[0][at])

    def _write(self, reconstruction, kl, rate, began):
        if began is None and self.epoch:  # networks that go on have their history with them
            return
        tested = self.test_losses()
        if began is not None:
            self.seconds += (time.perf_counter() - began) / len(self.seeds)
        everywhere = np.ones(len(self.seeds))
        row = everywhere * self.epoch, reconstruction, kl, *tested, everywhere * self.seconds
        for name, values in zip(HISTORY, row, strict=True):
            self.history[name].append(np.asarray(values, float))

    def test_losses(self):
        """Return the mean (reconstruction, KL) of the test images, twice `(R,)`; the noise is always the same."""
        found = [self._measured(net, self.seeds[part]) for net, part in zip(self.nets, self.parts, strict=True)]
        return [np.concatenate(column) for column in zip(*found, strict=True)]

    @torch.no_grad()
    def _measured(self, net, seeds):
        images, device = self.test[0], next(net.parameters()).device
        drawn = noise(seeds, "latent of the test", 0, len(images), net.latent, device)
        sums = torch.zeros(2, len(seeds), dtype=torch.float64, device=device)
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


@dataclass
class Lab:
    """What all types share: images, one seed per run, the networks, and how they are trained and pruned.

    train, test: (bytes `(N, C·H·W)`, labels, which are not used); image: (C, H, W); rule: keywords of `Trainer`;
    schedule: when units go, and how many of each hidden layer; score_examples: how many training images
    contributions are averaged over, the first ones, 0 for all; reset_optimizer: Adam starts anew after each round,
    for "none" too; as_published: it does, and contributions are of values before ReLU, in the last batch; recipe:
    names the folders of the networks after the first epochs (`runs.trained`). ParameterError without any first epochs.
    """

    train: tuple
    test: tuple
    image: tuple
    seeds: list
    recipe: dict
    hidden: tuple = vae.HIDDEN
    latent: int = vae.LATENT
    schedule: Schedule = Schedule(10, 5, 5)
    score_examples: int = 0
    reset_optimizer: bool = False
    as_published: bool = False
    rule: dict = field(default_factory=dict)

    def __post_init__(self):
        if not self.schedule.initial:
            raise ParameterError("initial is 0; an autoencoder is trained for an epoch at least before it is pruned")

    def network(self):
        """Return autoencoders as they start, one per seed: uniform in ±1/sqrt(fan-in), biases zero."""
        net = vae.VAE(self.image, len(self.seeds), tuple(self.hidden), self.latent)
        return nets.init_(net, self.seeds, "torch_default").to(self.train[0].device)

    def training(self, net, epoch=0):
        return Training(net, self.train, self.test, self.seeds, "adam", epoch=epoch, **self.rule)

    def begun(self):
        """Return what all types begin with: a `Training` after the first epochs, made once and then read.

        Kept with the networks are Adam's moments, so that it goes on as if it had never stopped.
        """
        recipe = self.recipe | {"type": "vae", "hidden": list(self.hidden), "latent": self.latent}

        def train(start, missing, state):
            lab = replace(self, seeds=[self.seeds[run] for run in missing])
            done = lab.training(start["net"]).fit(self.schedule.initial, state)
            return SimpleNamespace(net=_carrier(done), history=done.history, curve=done.curve)

        recipes = [recipe | {"seed": seed, "epochs": self.schedule.initial} for seed in self.seeds]
        start = self.network()
        blank = nn.ModuleDict({"net": start, **{key: copy.deepcopy(start) for key in MOMENTS}})
        found, history = trained.obtain(blank, recipes, train)
        return self._resumed(found, history)

    def _resumed(self, found, history):
        training = self.training(found["net"], self.schedule.initial)
        steps = self.schedule.initial * -(-len(self.train[1]) // training.batch)
        training.resume(found["net"], {key: found[key] for key in MOMENTS}, steps)
        training.seconds = float(history["seconds"][:, -1].mean())
        training.history = {name: list(history[name].T) for name in HISTORY}
        return training


MOMENTS = ("exp_avg", "exp_avg_sq")  # as Adam calls them


def _carrier(training):
    return nn.ModuleDict({"net": training.net, **training.memory()})


# ---- which units stay


def types():
    """Return the types of `vae_prune`: not pruned, and every method of units."""
    return ["none", *methods.names("units")]


def chosen(lab, net, kind, number):
    """Return the units kept in a round, `{layer: bool (R, O)}`, as many of each layer as the schedule says.

    kind: a method of units; number: of the round, from 1.
    """
    images, widths = _scored_on(lab), vae.widths(net)
    shares = {layer: lab.schedule.keep(width) / width for layer, width in widths.items()}
    drawn = noise(lab.seeds, "latent of the score", number, len(images), lab.latent, images.device)
    rule = {"noise": drawn, "preactivation": lab.as_published}
    # Permutations, where other studies draw numbers: the committed records were made so.
    keys = {"keys": {layer: (f"pruned {layer}", number) for layer in widths}, "draw": _order}
    options = {"contribution": rule, "worst": rule, "random": keys}.get(kind, {})
    return methods.prune(net, kind, shares, images, None, lab.seeds, of="units", layers=list(widths), **options)


def _order(stream, shape):
    return stream.permutation(*shape)


def _scored_on(lab):
    """Return the training images that contributions are averaged over."""
    images = lab.train[0]
    if lab.as_published:  # the images are not shuffled: the last batch of a pass is that of the data
        batch = lab.rule["batch"]
        return images[(len(images) - 1) // batch * batch :]
    return images[: lab.score_examples or len(images)]


# ---- the study


@dataclass
class Outcome:
    """R autoencoders of one type, trained and pruned.

    training: with the networks as they are in the end, and the history; rounds: `{name: (R, K + 1) or (R, K + 1,
    layers)}`, entry 0 the start, where nothing is taken; pictures: `{name: uint8 (R, n, C, H, W)}`.
    """

    training: Training
    rounds: dict
    pictures: dict


def study(lab, kind):
    """Return the `Outcome` of one type: the first epochs, and rounds of pruning and training."""
    if kind != "none":
        methods.get(kind, "units")  # or an error that says what there is
    training = lab.begun()
    rounds = [_row(vae.VAE(lab.image, len(lab.seeds), tuple(lab.hidden), lab.latent), training, 0)]
    shown = training.test[0][:LOOKED_AT]
    pictures = {"before": reconstructions(training.net, shown)}
    for number, epochs in enumerate(lab.schedule.rounds, 1):
        if kind != "none":
            training.narrow(chosen(lab, training.net, kind, number))
        if lab.reset_optimizer or lab.as_published:
            training.reset_optimizer()
        rounds.append(_row(training.net, training, training.epoch))
        if number == 1:
            pictures["after"] = reconstructions(training.net, shown)
        training.fit(epochs)
    pictures = {"originals": _originals(shown, lab), "after": pictures["before"], **pictures}
    pictures |= {"end": reconstructions(training.net, shown), "samples": samples(training.net, lab.seeds)}
    pictures["walk"] = walk(training.net, shown)
    pictures = {name: part.unflatten(2, lab.image).cpu().numpy() for name, part in pictures.items()}
    return Outcome(training, {name: np.stack([row[name] for row in rounds], 1) for name in rounds[0]}, pictures)


def _row(net, training, epoch):
    """Return what is said of a round, made of `net` after so many epochs, `{name: (R,) or (R, layers)}`."""
    ones = np.ones(len(training.seeds))
    before = {name: training.history[f"test_{name}"][epoch] for name in ("reconstruction", "kl")}
    after = training.test_losses() if epoch else before.values()
    return {
        "round_epoch": ones * epoch,
        "round_parameters": ones * nets.parameters_per_run(net),
        "round_macs": ones * nets.macs_per_run(net),
        "round_widths": ones[:, None] * np.array(list(vae.widths(net).values())),
        **{f"before_{name}": value for name, value in before.items()},
        **{f"after_{name}": value for name, value in zip(before, after, strict=True)},
    }


def content(outcome, run):
    """Return scores, arrays, axes and cost of one run's record, as keywords of `Run.save`."""
    training, net = outcome.training, outcome.training.net
    last = {name: float(training.curve(f"test_{name}")[run, -1]) for name in ("reconstruction", "kl")}
    axes = {"epoch": training.curve("epoch")[run].astype(int).tolist(), "layer": list(vae.widths(net))}
    arrays = {name: (training.curve(name)[run], ("epoch",)) for name in HISTORY[1:]}
    for name, values in outcome.rounds.items():
        arrays[name] = values[run], ("round", "layer")[: values.ndim - 1]
    axes["round"] = list(range(outcome.rounds["round_epoch"].shape[1]))
    for name, values in outcome.pictures.items():
        arrays[name] = values[run], (f"of_{name}", "channel", "row", "column")
        axes[f"of_{name}"] = list(range(values.shape[1]))
    axes |= dict(
        zip(("channel", "row", "column"), map(list, map(range, outcome.pictures["end"].shape[2:])), strict=True)
    )
    cost = {"parameters": nets.parameters_per_run(net), "macs": nets.macs_per_run(net)}
    cost["dense_parameters"] = int(outcome.rounds["round_parameters"][run, 0])
    return {"scores": {**last, "loss": sum(last.values())}, "arrays": arrays, "axes": axes, "cost": cost}


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


def _originals(images, lab):
    return images.expand(len(lab.seeds), *images.shape)


def tiles(*rows):
    """Return rows of images, each uint8 `(n, C, H, W)`, as one image `(rows · H, n · W, 3)` to be shown."""
    table = np.stack(rows)  # (rows, n, C, H, W)
    whole = table.transpose(0, 3, 1, 4, 2).reshape(table.shape[0] * table.shape[3], -1, table.shape[2])
    return np.broadcast_to(whole, (*whole.shape[:2], 3))


def complaint(p):
    """Return what a notebook's parameters `p` ask for that cannot be, all taken together, or None."""
    return schedule_complaint(p, first=1)


def lab(real, p, seeds):
    """Return the `Lab` of these seeds, of a notebook's parameters `p` on `real`, a `sets.Data`."""
    schedule = Schedule(*(p[name] for name in ("epochs", "initial", "increment", "fraction")))
    rule = {name: p[name] for name in ("lr", "bf16")} | {"batch": p["batch_size"], "shuffle": not p["as_published"]}
    recipe = {"name": f"{p['dataset']}-vae", **{name: p[name] for name in ("train_examples", "watch")}, **rule}
    shown = slice(p["watch"] or None)
    train, test = (real.train_x.flatten(1), real.train_y), (real.test_x[shown].flatten(1), real.test_y[shown])
    named = {name: p[name] for name in ("latent", "score_examples", "reset_optimizer", "as_published")}
    image, hidden = tuple(real.train_x.shape[1:]), tuple(p["hidden"])
    return Lab(train, test, image, seeds, recipe, hidden, schedule=schedule, rule=rule | {"bar": False}, **named)


def loss(record, when):
    """Return reconstruction + KL of a record: "train" and "test" by epoch; "before" and "after" by round, on test."""
    return sum(record.array(f"{when}_{name}")[0] for name in ("reconstruction", "kl"))


def parameters(p, record):
    """Return the parameters that networks of the types that prune have, entry k behind k rounds; `p`: of the notebook.

    Counted without any network, so that those of "none" have a place beside the others.
    """
    image = record.array("end")[0].shape[1:]
    schedule = Schedule(*(p[name] for name in ("epochs", "initial", "increment", "fraction")))
    return np.array([vae.parameters(image, hidden, p["latent"]) for hidden in schedule.widths(p["hidden"])])
