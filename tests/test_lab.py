"""The frame of the studies: names of what they train, trainings in parts, and rounds of pruning that were killed."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from lib import nets, once, runs, sets, stacking
from lib.studies.challenge import modes
from lib.studies.dpp import study as dpp
from lib.studies.importance import study as importance
from lib.studies.importance import vae_study
from lib.studies.importance.study import Schedule
from lib.studies.phew import study as phew
from lib.training.trainer import Trainer

DIGITS = sets.load("digits", train_examples=50)
COLOUR = sets.load("digits32", train_examples=20, statistics="phew")
TRAIN, TEST = DIGITS.split("train"), tuple(part[:40] for part in DIGITS.split("test"))
ADAM = {"rule": "adam", "lr": 0.001, "batch": 128}
NEVER = {"every": 0, "bar": False}


# ---- names


PHEW = {
    "dataset": "digits32", "lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 1e-4, "bf16": False,
    "rule": "sgd", "batch_size": 128, "net": "resnet20", "width": 4, "epochs": 160, "drops": [80, 120], "watch": 2000,
    "augment": True,
}  # fmt: skip
ROUNDS = {
    "dataset": "digits", "train_examples": 50, "as_published": False, "hidden": [0], "epochs": 100, "initial": 30,
    "increment": 10, "fraction": 0.1, "minimum": 1, "rule": "sgd", "lr": 0.1, "momentum": 0.0, "batch_size": 0,
    "channels": False, "on": "activation", "average": 1.0, "maximum": 0.0, "score_examples": "all",
    "reset_optimizer": False, "stack": 0,
}  # fmt: skip
VAE = {
    "dataset": "digits", "train_examples": 50, "hidden": [9, 7], "latent": 3, "epochs": 3, "initial": 1,
    "increment": 1, "fraction": 0.5, "lr": 0.01, "batch_size": 25, "score_examples": 10, "reset_optimizer": False,
    "as_published": False, "bf16": False, "watch": 40,
}  # fmt: skip
NAMES = {  # of folders in which networks of earlier versions lie, and are to be found
    "digits-challenge/dense-3;batch=128;epochs=5;hidden=30,20;lr=0.001;rule=adam;train_examples=50": lambda: modes.Lab(
        TRAIN, TEST, [3], modes.recipe("digits", 50, ADAM), ADAM, hidden=[30, 20]
    ).dense(5),
    "digits-dpp/dense-3;dropout=0.0;epochs=40;hidden=500;lr=0.1;train_examples=50": lambda: dpp.Lab(
        TRAIN, TEST, [3], {"name": "digits-dpp", "train_examples": 50, "lr": 0.1}, {"lr": 0.1}, hidden=[500]
    ).dense(),
    "digits32-resnet20/dense-3;augment=True;batch=128;bf16=False;drops=80,120;epochs=160;lr=0.1;momentum=0.9;"
    "nesterov=True;rule=sgd;train_examples=20;watch=2000;weight_decay=0.0001;width=4": lambda: phew.labs(
        COLOUR, PHEW, [(3, "phew")]
    )["phew"].dense(160),
    "digits-importance/dense-3;batch=5000;epochs=30;lr=0.1;momentum=0.0;rule=sgd;train_examples=50;widths=50,30": (
        lambda: importance.study(DIGITS, ROUNDS).run(3, ["none"])
    ),
    "digits-importance/dense-3;batch=5000;epochs=100;lr=0.1;momentum=0.0;rule=sgd;train_examples=50;widths=22,12": (
        lambda: importance.study(DIGITS, ROUNDS).run(3, ["small"])
    ),
    "digits-vae/vae-3;batch=25;bf16=False;epochs=1;hidden=9,7;latent=3;lr=0.01;shuffle=True;train_examples=50;"
    "watch=40": (lambda: vae_study.lab(DIGITS, VAE, [3]).begun()),
}


class Stopped(Exception):
    """What was asked for is known."""


@pytest.mark.parametrize("name", NAMES)
def test_networks_lie_where_earlier_versions_put_them(name, monkeypatch):
    found = []

    def stop(start, recipes, *rest):
        found.extend(str(runs.trained(recipe).relative_to(runs.folder() / "trained")) for recipe in recipes)
        raise Stopped

    monkeypatch.setattr(once, "obtain", stop)
    with pytest.raises(Stopped):
        NAMES[name]()
    assert found == [name]


# ---- rounds that were killed


def challenge(mode, kind):
    rule = {"rule": "adam", "lr": 0.005, "batch": 20} | NEVER
    lab = modes.Lab(TRAIN, TEST, [1, 2], {"name": "toy"}, rule, hidden=(12, 8), epochs=4, retrain_epochs=3)
    found = modes.prune(lab, mode, kind, [0.5, 0.8])
    return [(p.net, *p.masks.values(), p.train_accuracy, p.test_accuracy) for p in found]


def train_time(options):
    rule, schedule = {"rule": "adam", "lr": 0.01, "batch": 20} | NEVER, Schedule(6, 2, 2, 0.2)
    study = importance.Study(
        TRAIN,
        TEST,
        [],
        {"name": "toy"},
        rule,
        image=(1, 28, 28),
        classes=10,
        hidden=(12, 8),
        schedule=schedule,
        **options,
    )
    found = study.run(3, ["none", "contribution", "worst", "random", "magnitude"]).values()
    return [(o.net, *o.kept.values(), o.widths, o.after_accuracy, o.after_loss, o.history["test_loss"]) for o in found]


def autoencoders(options):
    picture = DIGITS.train_x.view(-1, 1, 28, 28)[:24, :, ::4, ::4]
    picture = torch.nn.functional.pad(picture, (0, 1, 0, 1)).flatten(1)
    whole, rule = (picture, torch.zeros(24, dtype=torch.int64)), {"lr": 0.005, "batch": 8} | NEVER
    lab = vae_study.Lab(
        whole, whole, [1, 2], {"name": "toy"}, rule, image=(1, 8, 8), hidden=(20, 11), latent=4,
        schedule=Schedule(7, 1, 2, 0.3), **options,
    )  # fmt: skip
    found = vae_study.study(lab, "contribution")
    return [(found.net, *found.rounds.values(), *found.pictures.values(), found.history["test_kl"])]


def magnitude(options):
    rule = {"lr": 0.05, "batch": 10, "momentum": 0.9} | NEVER
    lab = phew.lab(COLOUR, [1, 2], width=2, epochs=1, drops=(), rule=rule, watch=5, prune_epochs=4, **options)
    return [(start.net, *start.masks.values()) for start in phew.prune(lab, "magnitude_trained", [0.3, 0.1])]


LOOPS = {
    "gradual": (challenge, ("gradual", "weight"), 4), "gradual neurons": (challenge, ("gradual", "neuron"), 4),
    "during": (challenge, ("during", "weight"), 4), "finetune": (challenge, ("finetune", "neuron"), 10),
    "train-time": (train_time, ({},), 6), "forgetful": (train_time, ({"reset_optimizer": True},), 6),
    "autoencoder": (autoencoders, ({},), 7), "magnitude": (magnitude, ({"augment": False},), 5),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:.*that stay, most of all, have a score of 0")  # of units that are silent yet
@pytest.mark.parametrize("loop", LOOPS)
def test_pruning_while_training_goes_on_where_it_was_killed(loop, tmp_path, monkeypatch):
    """Killed in each of the last epochs in turn: what was trained is not trained again, and all ends bit for bit."""
    work, options, epochs = LOOPS[loop]
    epoch, trained_epochs, dies = Trainer._epoch, [], [0]

    def dying(self):
        if len(trained_epochs) == dies[0]:
            raise Stopped
        trained_epochs.append(self.epoch)
        epoch(self)

    monkeypatch.setattr(Trainer, "_epoch", dying)
    monkeypatch.setenv("PRUNING_RUNS", str(tmp_path / "killed"))
    for dies[0] in range(1, epochs):
        with pytest.raises(Stopped):
            work(*options)
    dies[0] = epochs
    found = work(*options)
    assert len(trained_epochs) == epochs, "none of them twice"
    left = [path for path in tmp_path.rglob("training-*") if path.parent.name != ".locks"]
    assert not left
    monkeypatch.setattr(Trainer, "_epoch", epoch)
    monkeypatch.setenv("PRUNING_RUNS", str(tmp_path / "whole"))
    for mine, other in zip(found, work(*options), strict=True):
        for a, b in zip(numbers(mine), numbers(other), strict=True):
            np.testing.assert_array_equal(a, b)


def numbers(parts):
    """Return all arrays of networks, tensors and arrays."""
    found = []
    for part in parts:
        found += [p.detach() for p in part.parameters()] if isinstance(part, torch.nn.Module) else [part]
    return [np.asarray(array) for array in found]


# ---- parts


def test_a_grid_is_what_its_stacks_are_alone():
    """Two stacks of two runs are trained as one of four, and given back as they came, each run by its own seed."""
    lab = modes.Lab(TRAIN, TEST, [1, 2], {"name": "toy"}, {"batch": 20, "bar": False}, hidden=(12, 8))
    stacks, met = [lab.network(), modes.build(replace(lab, seeds=[7, 8]))], []

    def work(lab, net, runs):
        met.append((lab.seeds, runs))
        trainer = lab.trainer(net).fit(1)
        return {"net": trainer.net, "loss": trainer.curve("train_loss"), "seeds": np.array(lab.seeds)}

    found = lab.grid(work, stacks)
    assert met == [([1, 2, 1, 2], [0, 1, 2, 3])]
    for one, stack in zip(found, stacks, strict=True):
        alone = lab.split(work, stack)
        assert one["seeds"].tolist() == alone["seeds"].tolist() == [1, 2]
        np.testing.assert_allclose(one["loss"], alone["loss"], rtol=1e-5)


def test_a_lab_trains_in_parts_what_a_cpu_trains_faster_alone(tmp_path, monkeypatch):
    """One by one or together: the same networks in float64, each training with its own state; kept one by one."""
    double = [(x.double(), y) for x, y in (TRAIN, TEST)]
    lab = modes.Lab(*double, [1, 2, 3], {"name": "toy"}, {"batch": 20, "bar": False}, hidden=(12, 8), epochs=2,
                    build=lambda *args: modes.build(*args).double())  # fmt: skip
    epoch, widths, found = Trainer._epoch, [], {}
    monkeypatch.setattr(Trainer, "_epoch", lambda self: widths.append(len(self.seeds)) or epoch(self))
    for bound in (0, 10**9):
        monkeypatch.setenv("PRUNING_RUNS", str(tmp_path / str(bound)))
        monkeypatch.setitem(stacking.TOO_LARGE_TO_STACK, "dense", bound)
        dense, history = lab.dense(2)
        found[bound] = dense, history["test_loss"], *(pruned.net for pruned in modes.gradual(lab, "weight", [0.5, 0.9]))
    assert widths == [1] * 6 + [1] * 12 + [3] * 2 + [6] * 2
    for a, b in zip(numbers(found[0]), numbers(found[10**9]), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12)
    assert replace(lab, stack=2).together(dense) == 2


def test_what_was_trained_alone_is_kept_before_the_next_begins(tmp_path, monkeypatch):
    monkeypatch.setenv("PRUNING_RUNS", str(tmp_path))
    monkeypatch.setitem(stacking.TOO_LARGE_TO_STACK, "dense", 0)
    lab = modes.Lab(TRAIN, TEST, [1, 2], {"name": "toy"}, {"batch": 20, "bar": False}, hidden=(12, 8))
    epoch, seeds = Trainer._epoch, []

    def dying(self):
        seeds.extend(self.seeds)
        if self.seeds == [2] and len(seeds) < 3:
            raise Stopped
        epoch(self)

    monkeypatch.setattr(Trainer, "_epoch", dying)
    with pytest.raises(Stopped):
        lab.dense(1)
    net, _ = lab.dense(1)
    assert seeds == [1, 2, 2] and nets.runs(net) == 2
