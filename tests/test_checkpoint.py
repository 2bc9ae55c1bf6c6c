"""Trainings that are killed and go on: bit for bit where the uninterrupted ones end, and never from another's state."""

import os
import time
from contextlib import nullcontext

import numpy as np
import pytest
import torch

from lib import checkpoint, images, nets, remask, runs, sets, stacking, trained
from lib.errors import RecordError
from lib.studies.importance import vae
from lib.studies.importance.vae_study import Training
from lib.studies.phew import initial, outcome
from lib.training.trainer import Trainer

DIGITS = sets.load("digits", train_examples=60)
TRAIN, TEST = DIGITS.split("train"), tuple(part[:30] for part in DIGITS.split("test"))
SEEDS, EPOCHS, KILLED = [1, 2, 1], 5, 3  # while epoch 3 is trained, so that the state of epochs 1 and 2 is there
RULES = {
    "sgd": {"rule": "sgd", "lr": 0.2},
    "nesterov": {"rule": "sgd", "lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 0.01},
    "adam": {"rule": "adam", "lr": 0.01, "weight_decay": 0.01},
    "rms": {"rule": "rms", "lr": 0.01, "momentum": 0.5},
}


class Killed(BaseException):
    """What stands for the death of the process."""


class Batches:
    """Batches with noise of their epoch; death comes in the middle of one."""

    def __init__(self, dies=None, inner=None):
        self.dies, self.inner, self.steps = dies, inner, 0

    def __call__(self, epoch, index, part):
        self.steps += epoch == self.dies
        if self.steps > 2:
            raise Killed
        return self.inner(epoch, index, part) if self.inner else TRAIN[0][index] + (epoch + 1) / 100


def mlp(seeds=SEEDS, **options):
    options = {"output_bias": True, "dropout": 0.2} | options
    return nets.init_(nets.MLP([784, 9, 10], ["no-WN"] * len(seeds), **options), seeds)


def begin(dies=None, net=None, seeds=SEEDS, masks=None, **options):
    """Return a `Trainer` that writes after every epoch, and dies while it trains the one behind `dies`."""
    net = mlp(seeds) if net is None else net
    options = {"train": TRAIN, "test": TEST, "batch": 16, "drops": (1, 4), "every": 0, "bar": False} | options
    options = {"batches": Batches(dies)} | options
    trainer = Trainer(net, seeds=seeds, **options)
    if masks:
        trainer.prune(masks)
    return trainer


def half(net, seed=0):
    rng = torch.Generator().manual_seed(seed)
    return {name: torch.rand(w.shape, generator=rng) < 0.5 for name, w in nets.weights(net).items()}


def killed(path, **options):
    with pytest.raises(Killed):
        begin(KILLED - 1, **options).fit(EPOCHS, path)


def same(found, expected):
    """Assert that two trainers are equal to the last bit in all but the time that they took."""
    pairs = [(found.net, expected.net)]
    pairs += [(found.memory()[key], stack) for key, stack in expected.memory().items()]
    for one, other in pairs:
        for name, tensor in other.state_dict().items():
            assert torch.equal(one.state_dict()[name], tensor), name
    assert (found.epoch, found.steps, found.memory().keys()) == (
        expected.epoch,
        expected.steps,
        expected.memory().keys(),
    )
    for name in set(expected.columns) - {"seconds"}:
        np.testing.assert_array_equal(found.curve(name), expected.curve(name), err_msg=name)
    assert (np.diff(found.curve("seconds")) > 0).all()


# ---- where the uninterrupted training ends


@pytest.mark.parametrize("together", [True, False])
@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("rule", RULES)
def test_ends_where_the_uninterrupted_one_does(rule, masked, together, tmp_path, monkeypatch):
    """With dropout, drops of the rate and batches that depend on the epoch, as a whole and in parts."""
    monkeypatch.setattr(stacking, "TOO_LARGE_TO_STACK", 10**6 if together else 1)
    options = RULES[rule] | {"masks": half(mlp()) if masked else None}
    killed(tmp_path / "state", **options)
    again = Batches()
    found = begin(**options | {"batches": again}).fit(EPOCHS, tmp_path / "state")
    assert len(found.parts) == (1 if together else 3)
    same(found, begin(**options).fit(EPOCHS))


def test_with_batch_normalisation_bfloat16_and_moved_images(tmp_path):
    def options(dies=None):
        net = nets.VGG((1, 28, 28), 10, ["no-WN"] * 2, 2, ((1,), (1,)), biases=True, batch_norm=True)
        moved = Batches(dies, images.Augmented(DIGITS, [1, 2]))
        train = DIGITS.train_x.flatten(1), DIGITS.train_y
        return {"net": nets.init_(net, [1, 2]), "seeds": [1, 2], "train": train, "batches": moved, "bf16": True}

    with pytest.raises(Killed):
        begin(**options(1), momentum=0.9).fit(3, tmp_path / "state")
    found = begin(**options(), momentum=0.9).fit(3, tmp_path / "state")
    same(found, begin(**options(), momentum=0.9).fit(3))


def test_autoencoders_go_on_too(tmp_path, monkeypatch):
    """A `Training` has a history and inputs of its own."""
    pixels = DIGITS.train_x.flatten(1), DIGITS.train_y

    def training():
        net = nets.init_(vae.VAE((1, 28, 28), 2, (8, 6), 3), [1, 2], "torch_default")
        return Training(net, pixels, pixels, [1, 2], "adam", 0.01, 20, every=0, bar=False)

    whole, inputs = training().fit(3), Training._inputs
    monkeypatch.setattr(Training, "_inputs", lambda self, *at: inputs(self, *at) if self.epoch < 2 else die())
    with pytest.raises(Killed):
        training().fit(3, tmp_path / "state")
    monkeypatch.setattr(Training, "_inputs", inputs)
    same(training().fit(3, tmp_path / "state"), whole)


def die():
    raise Killed


def test_masks_made_at_every_step_are_those_of_the_weights_in_the_file(tmp_path):
    """Such a network holds masks while it is evaluated, and may hold none of its former weights."""

    def trainer(epochs):
        net = remask.RemaskedWeights(mlp([1], dropout=0.0), [0.3], ["layers.0"])
        return begin(net=net, seeds=[1]).fit(epochs, tmp_path / "state")

    whole, found = trainer(2), trainer(2)
    assert torch.equal(found.net(TEST[0]), whole.net(TEST[0]))


def test_a_training_may_go_on_beyond_what_was_asked_first(tmp_path):
    begin().fit(2, tmp_path / "state")
    same(begin().fit(EPOCHS, tmp_path / "state"), begin().fit(EPOCHS))


def test_a_training_that_is_over_is_read(tmp_path):
    whole, batches = begin().fit(2, tmp_path / "state"), Batches(dies=0)
    same(begin(batches=batches).fit(2, tmp_path / "state"), whole)
    assert batches.steps == 1, "the look at the first inputs, and no step"


# ---- when it is written


def test_a_training_shorter_than_the_interval_writes_nothing(tmp_path):
    begin(every=60.0).fit(2, tmp_path / "folder" / "state")
    assert not list(tmp_path.iterdir())


def test_it_is_written_when_due_and_at_the_end_of_what_was_written(tmp_path, monkeypatch):
    clock, written, save = [0.0], [], checkpoint.save

    def batches(epoch, index, part):
        clock[0] += 25 / 4  # of the steps of an epoch
        return TRAIN[0][index]

    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(checkpoint, "save", lambda trainer, *to: written.append(trainer.epoch) or save(trainer, *to))
    begin(every=60.0, batches=batches, net=mlp([1]), seeds=[1]).fit(7, tmp_path / "state")
    assert written == [3, 6, 7]


# ---- whose state it is


OTHERS = {
    "seeds, inputs": {"seeds": [1, 3, 1], "net": mlp()},
    "networks": {"net": mlp([1, 2, 3])},
    "networks, masks": {"masks": half(mlp(), 1)},
    "lr": {"lr": 0.2},
    "nesterov": {"nesterov": True},
    "drops": {"drops": (1, 3)},
    "epoch": {"epoch": 1, "batches": lambda epoch, *rest: Batches()(epoch - 1, *rest), "shuffle": False},
    "train": {"train": (TRAIN[0], TRAIN[1].flip(0))},
    "test": {"test": (TEST[0] + 1, TEST[1])},
    "inputs": {"batches": None},
}


@pytest.mark.parametrize("what", OTHERS)
def test_the_state_of_another_training_is_neither_read_nor_overwritten(what, tmp_path):
    path, shared = tmp_path / "state", {"momentum": 0.9, "masks": half(mlp()), "shuffle": what != "epoch"}
    begin(**shared).fit(1, path)
    before = path.read_bytes()
    other = begin(**shared | OTHERS[what])
    with pytest.raises(RecordError, match=rf"state of another training, with other {what}\. Give another file"):
        other.fit(2, path)
    assert path.read_bytes() == before and other.steps == 0


def test_members_of_a_stack_are_told_apart(tmp_path):
    begin().fit(1, tmp_path / "state")
    with pytest.raises(RecordError, match="with other seeds, networks"):
        begin(net=mlp([1, 2]), seeds=[1, 2]).fit(2, tmp_path / "state")


def test_a_state_beyond_what_is_asked_is_an_error(tmp_path):
    begin().fit(3, tmp_path / "state")
    with pytest.raises(RecordError, match="state after epoch 3; this training ends with epoch 2"):
        begin().fit(2, tmp_path / "state")


def rewritten(path, arrays=None, **meta):
    there, before = runs.load_tensors(path)
    runs.save_tensors(path, arrays(there) if arrays else there, before | meta)


def test_what_does_not_fit_is_told_in_a_sentence(tmp_path):
    path, told = tmp_path / "state", r"format 1\. Give another file, finish .* delete it"
    begin(momentum=0.9).fit(1, path)
    whole = path.read_bytes()
    rewritten(path, format=0)
    with pytest.raises(RecordError, match=f"holds format 0; .*{told}"):
        begin(momentum=0.9).fit(2, path)
    trained.save(path, mlp(), {}, {"seed": 1})
    with pytest.raises(RecordError, match=f"holds no state of a training; .*{told}"):
        begin(momentum=0.9).fit(2, path)
    for change in (
        lambda arrays: arrays | {"net/layers.0.weight": arrays["net/layers.0.weight"][:, :5]},
        lambda arrays: {name: array for name, array in arrays.items() if "layers.0.weight" not in name},
    ):
        path.write_bytes(whole)
        rewritten(path, change)
        with pytest.raises(RecordError, match="altered in .*net/layers.0.weight.*Delete it to train from the start"):
            begin(momentum=0.9).fit(2, path)
    path.write_bytes(whole[:-100])
    with pytest.raises(RecordError, match="not hold the weights of a run.*delete it"):
        begin(momentum=0.9).fit(2, path)


# ---- networks that are trained once, and trainings under masks


def states(folder):
    return sorted(path for path in folder.rglob("*.safetensors") if path.name != trained.FILE)


def recipes(seeds):
    return [{"name": "toy", "type": "dense", "seed": seed} for seed in seeds]


def test_networks_that_are_trained_once_go_on(tmp_path, monkeypatch):
    monkeypatch.setenv("PRUNING_RUNS", str(tmp_path))
    wanted, dies = recipes(SEEDS[:2]), KILLED - 1
    folder = runs.trained(wanted[0])

    def train(net, missing, state):
        return begin(dies, net, [SEEDS[run] for run in missing]).fit(EPOCHS, state)

    start = mlp(SEEDS[:2])
    with pytest.raises(Killed):
        trained.obtain(start, wanted, train)
    (kept,) = states(tmp_path)
    assert kept.parent == folder and not (folder / trained.FILE).exists()
    dies = None
    (folder / "training-of-a-larger-stack.safetensors").touch()  # killed for good
    net, history = trained.obtain(start, wanted, train)
    whole = begin(net=nets.take(start, [0, 1]), seeds=SEEDS[:2]).fit(EPOCHS)
    for name, tensor in whole.net.state_dict().items():
        assert torch.equal(net.state_dict()[name], tensor)
    np.testing.assert_array_equal(history["train_loss"], whole.curve("train_loss"))
    assert not states(tmp_path)
    for name in kept.name, f"{kept.name}.new":  # killed between the last network and the end of its state
        (folder / name).touch()
    trained.obtain(start, wanted, None)
    assert [path.name for path in folder.iterdir() if path.is_file()] == [trained.FILE]


@pytest.mark.parametrize("moves", range(4))
def test_networks_of_one_stack_are_saved_together(tmp_path, monkeypatch, moves):
    """The list of them, and then each of two, is moved into place; killed behind `moves`, all stay or none."""
    monkeypatch.setenv("PRUNING_RUNS", str(tmp_path))
    start, asked, done = mlp(SEEDS[:2]), [], []
    trainer = begin(net=nets.take(start, [0, 1]), seeds=SEEDS[:2])

    def train(net, missing, state):
        asked.append(missing)
        return trainer

    def replace(source, target, move=os.replace):
        if len(done) == moves:
            raise Killed
        done.append(move(source, target))

    with monkeypatch.context() as patch, pytest.raises(Killed) if moves < 3 else nullcontext():
        patch.setattr(os, "replace", replace)
        trained.obtain(start, recipes(SEEDS[:2]), train)
    net, _ = trained.obtain(start, recipes(SEEDS[:2]), train)
    assert asked == [[0, 1]] * (2 if moves == 0 else 1)
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), trainer.net.parameters(), strict=True))
    left = [*tmp_path.rglob("*.new"), *tmp_path.rglob(".saving-*")]
    assert not [file for file in left if file.parent.name != ".locks"]


def test_other_members_begin_a_file_of_their_own(tmp_path, monkeypatch):
    monkeypatch.setenv("PRUNING_RUNS", str(tmp_path))
    found = []

    def train(net, missing, state):
        found.append(state)
        raise Killed

    for chosen in ([1, 2, 3], [1, 2], [2, 3], [1]):
        with pytest.raises(Killed):
            trained.obtain(mlp([1, 2, 3][: len(chosen)]), recipes(chosen), train)
    assert len(set(found)) == 4
    assert [state.parent.name for state in found] == ["dense-1", "dense-1", "dense-2", "dense-1"]


def lab(stack, **rule):
    """Return a lab of the VGG with one filter in the first block, trained for three epochs."""
    small = sets.load("digits32", train_examples=60, statistics="phew")
    rule = {"lr": 0.05, "batch": 20, "momentum": 0.9, "bar": False} | rule
    return initial.Lab(small, [1], "vgg11", 1, 3, (2,), rule, augment=True, watch=20, stack=stack)


@pytest.mark.parametrize("stack", [1, 0])
def test_trainings_under_masks_go_on(stack, tmp_path, monkeypatch):
    """PHEW at two densities, killed in the last epoch of its last training: nothing else is trained again."""
    monkeypatch.setenv("PRUNING_RUNS", str(tmp_path))
    here, epoch, seen = lab(stack, every=0), Trainer._epoch, []
    starts = initial.prune(here, "phew", [0.5, 0.3])
    whole = outcome.train(here, "phew", starts)
    assert not states(tmp_path)

    def dying(self):
        seen.append(self.epoch)
        if len(seen) == (6 if stack else 3):
            raise Killed
        epoch(self)

    monkeypatch.setattr(Trainer, "_epoch", dying)
    with pytest.raises(Killed):
        outcome.train(here, "phew", starts)
    assert len(states(tmp_path)) == (2 if stack else 1)
    assert states(tmp_path)[0].name.startswith("phew-1;epochs=3;training=")
    found = outcome.train(here, "phew", starts)
    assert seen == [0, 1, 2] * (2 if stack else 1) + [2]
    for name in whole.keys() - {"seconds"}:
        np.testing.assert_array_equal(found[name], whole[name], err_msg=name)
    assert not states(tmp_path)


def test_many_short_trainings_are_a_long_one(tmp_path, monkeypatch):
    """Three of 24 seconds each, and a state is due after a minute: what the third has come to is written."""
    monkeypatch.setenv("PRUNING_RUNS", str(tmp_path))
    clock, epoch, written, save = [0.0], Trainer._epoch, [], checkpoint.save

    def slow(self):
        clock[0] += 8
        epoch(self)

    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(Trainer, "_epoch", slow)
    monkeypatch.setattr(checkpoint, "save", lambda trainer, *to: written.append(clock[0]) or save(trainer, *to))
    outcome.train(lab(1), "random", initial.prune(lab(1), "random", [0.5, 0.4, 0.3]))
    assert written == [72] and not states(tmp_path)
