"""Trainings that are killed and go on: bit for bit where the uninterrupted ones end, and never from another's state."""

import copy
import os
import time
from contextlib import nullcontext

import numpy as np
import pytest
import torch

from lib import checkpoint, convnets, disk, images, masks, nets, once, remask, runs, scores, sets, store
from lib.errors import RecordError
from lib.studies.importance import vae
from lib.studies.importance.vae_study import Bound
from lib.studies.phew import outcome
from lib.studies.phew import study as phew
from lib.training.checkpoint import States
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

    def __call__(self, epoch, index):
        self.steps += epoch == self.dies
        if self.steps > 2:
            raise Killed
        return self.inner(epoch, index) if self.inner else TRAIN[0][index] + (epoch + 1) / 100


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
        begin(KILLED - 1, **options).fit(EPOCHS, States(path))


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
    for name in set(expected.history) - {"seconds"}:
        np.testing.assert_array_equal(found.curve(name), expected.curve(name), err_msg=name)
    assert (np.diff(found.curve("seconds")) > 0).all()


# ---- where the uninterrupted training ends


@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("rule", RULES)
def test_ends_where_the_uninterrupted_one_does(rule, masked, tmp_path):
    """With dropout, drops of the rate and batches that depend on the epoch."""
    options = RULES[rule] | {"masks": half(mlp()) if masked else None}
    killed(tmp_path, **options)
    batches = Batches(dies=0)
    found = begin(**options, batches=batches).fit(EPOCHS, States(tmp_path))
    assert batches.steps == 1, "the look at the first inputs, and no step of the first epoch"
    same(found, begin(**options).fit(EPOCHS))


def test_with_batch_normalisation_bfloat16_and_moved_images(tmp_path):
    def options(dies=None):
        net = convnets.VGG((1, 28, 28), 10, ["no-WN"] * 2, 2, ((1,), (1,)), biases=True, batch_norm=True)
        moved = Batches(dies, images.Augmented(DIGITS, [1, 2]))
        train = DIGITS.train_x.flatten(1), DIGITS.train_y
        return {"net": nets.init_(net, [1, 2]), "seeds": [1, 2], "train": train, "batches": moved, "bf16": True}

    with pytest.raises(Killed):
        begin(**options(1), momentum=0.9).fit(3, States(tmp_path))
    found = begin(**options(), momentum=0.9).fit(3, States(tmp_path))
    same(found, begin(**options(), momentum=0.9).fit(3))


def test_autoencoders_go_on_too(tmp_path):
    """They have another objective, with a history of its own."""
    pixels = DIGITS.train_x.flatten(1), DIGITS.train_y

    def training(dies=None):
        net = nets.init_(vae.VAE((1, 28, 28), 2, (8, 6), 3), [1, 2], "torch_default")
        batches = Batches(dies, lambda epoch, at: vae.numbers(pixels[0][at]))
        return begin(net=net, seeds=[1, 2], train=pixels, test=pixels, objective=Bound(), batches=batches, rule="adam")

    with pytest.raises(Killed):
        training(2).fit(3, States(tmp_path))
    same(training().fit(3, States(tmp_path)), training().fit(3))


def test_masks_made_at_every_step_are_those_of_the_weights_in_the_file(tmp_path):
    """Such a network holds masks while it is evaluated, and may hold none of its former weights."""

    def trainer(epochs):
        net = remask.RemaskedWeights(mlp([1], dropout=0.0), [0.3], ["layers.0"])
        return begin(net=net, seeds=[1]).fit(epochs, States(tmp_path))

    whole, found = trainer(2), trainer(2)
    assert torch.equal(found.net(TEST[0]), whole.net(TEST[0]))


def test_a_training_that_is_over_is_read(tmp_path):
    whole, batches = begin().fit(2, States(tmp_path)), Batches(dies=0)
    same(begin(batches=batches).fit(2, States(tmp_path)), whole)
    assert batches.steps == 1, "the look at the first inputs, and no step"


# ---- when it is written


def test_a_training_shorter_than_the_interval_writes_nothing(tmp_path):
    begin(every=60.0).fit(2, States(tmp_path / "folder"))
    assert not list(tmp_path.iterdir())


@pytest.fixture
def clock(monkeypatch):
    """Return [seconds], to be moved on by who is timed."""
    seconds = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: seconds[0])
    return seconds


def writings(monkeypatch, what):
    """Return the list to which every writing of a state adds `what(trainer)`."""
    written, keep = [], checkpoint.weights.save
    monkeypatch.setattr(checkpoint.weights, "save", lambda *args: written.append(what(args[-1])) or keep(*args))
    return written


def test_it_is_written_when_due_and_at_the_end_of_what_was_written(tmp_path, monkeypatch, clock):
    def batches(epoch, index):
        clock[0] += 25 / 4  # of the steps of an epoch
        return TRAIN[0][index]

    written = writings(monkeypatch, lambda meta: meta["epoch"])
    begin(every=60.0, batches=batches, net=mlp([1]), seeds=[1]).fit(7, States(tmp_path))
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
    shared = {"momentum": 0.9, "masks": half(mlp()), "shuffle": what != "epoch"}
    options = shared | OTHERS[what]
    assert differ(begin(**shared), begin(**options)) == what
    begin(**shared).fit(1, States(tmp_path))
    ((path, before),) = [(path, path.read_bytes()) for path in states(tmp_path)]
    other = begin(**copy.deepcopy(options)).fit(1, States(tmp_path))
    same(other, begin(**options).fit(1))
    assert path.read_bytes() == before and len(states(tmp_path)) == 2


def differ(one, other):
    """Return by what two trainings are told apart."""
    here, there = (checkpoint.identity(trainer) for trainer in (one, other))
    return ", ".join(name for name in here if here[name] != there[name])


def test_members_of_a_stack_rounds_and_what_is_done_in_them_are_told_apart(tmp_path):
    begin().fit(2, States(tmp_path))
    begin(net=mlp([1, 2]), seeds=[1, 2]).fit(2, States(tmp_path))
    for each, of in (([1, 1], None), ([1, 1], {"sparsities": [0.5]}), ([1, 1], {"sparsities": [0.6]}), ([3], None)):
        assert [*begin().rounds(each, States(tmp_path), of)] == list(range(len(each)))
    assert len(states(tmp_path)) == 6


def test_a_state_that_is_none_is_told_in_a_sentence(tmp_path):
    begin(momentum=0.9).fit(1, States(tmp_path))
    (path,) = states(tmp_path)
    whole = path.read_bytes()
    for damage, told in (
        (lambda: once.save(path, mlp(), {}, {"seed": 1}), "holds kind 'trained network'.*asked for is kind 'state"),
        (lambda: path.write_bytes(whole[:-100]), "not hold the weights of a run.*Restore it"),
        (lambda: begin(momentum=0.8).fit(1, States(tmp_path)) and os.replace(*states(tmp_path)), "holds digest"),
    ):
        path.write_bytes(whole)
        damage()
        for other in set(states(tmp_path)) - {path}:
            os.replace(other, path)
        with pytest.raises(RecordError, match=f"{told}.*elete it"):
            begin(momentum=0.9).fit(1, States(tmp_path))


# ---- rounds of pruning


def pruned_in_rounds(folder, dies=None, rule="adam"):
    """Return a trainer of three rounds, of 2, 1 and 2 epochs, before each of which a quarter goes, and the rounds."""
    trainer, begun = begin(dies, **RULES[rule]), []
    for number in trainer.rounds([2, 1, 2], folder and States(folder)):
        begun.append(number)
        kept = trainer.masks or {name: w > -9 for name, w in nets.weights(trainer.net).items()}
        shares = [0.75 ** (number + 1)] * len(SEEDS)
        trainer.prune(masks.top(scores.magnitude(trainer.net, None, None, None), shares, within=kept))
        trainer.notes.setdefault("loss", []).append(trainer.curve("test_loss")[:, -1])
    return trainer, begun


@pytest.mark.parametrize("dies, again", [(0, [0, 1, 2]), (1, [1, 2]), (2, [1, 2]), (3, [2]), (4, [])])
@pytest.mark.parametrize("rule", ["nesterov", "adam"])
def test_rounds_go_on_in_the_round_they_were_in(rule, dies, again, tmp_path):
    """Killed in each of five epochs: in a round that had begun masks are those of the file, and are not made anew."""
    with pytest.raises(Killed):
        pruned_in_rounds(tmp_path, dies, rule)
    (found, begun), (whole, rounds) = pruned_in_rounds(tmp_path, None, rule), pruned_in_rounds(None, None, rule)
    same(found, whole)
    assert (begun, rounds) == (again, [0, 1, 2])
    assert all(torch.equal(found.masks[name], mask) for name, mask in whole.masks.items())
    np.testing.assert_array_equal(found.notes["loss"], whole.notes["loss"])


# ---- networks that are trained once, and trainings under masks


def states(folder):
    return sorted(path for path in folder.rglob("*.safetensors") if path.name != once.FILE)


def recipes(seeds):
    return [{"name": "toy", "type": "dense", "seed": seed} for seed in seeds]


def test_networks_that_are_trained_once_go_on(tmp_path, monkeypatch):
    monkeypatch.setenv("PRUNING_RUNS", str(tmp_path))
    wanted, dies = recipes(SEEDS[:2]), KILLED - 1
    folder = runs.trained(wanted[0])

    def train(net, missing, state):
        trainer = begin(dies, net, [SEEDS[run] for run in missing]).fit(EPOCHS, state)
        return trainer.net, trainer.curves()

    start = mlp(SEEDS[:2])
    with pytest.raises(Killed):
        once.obtain(start, wanted, train)
    (kept,) = states(tmp_path)
    assert kept.parent == folder and kept.name.startswith("training-") and not (folder / once.FILE).exists()
    dies = None
    (folder / f"training-{'0a' * 8}.safetensors").touch()  # of a larger stack, killed for good
    copies = [folder / f"{kept.stem} (copy).safetensors", folder / f"{kept.name}.bak"]  # a person's, and nobody else's
    for file in copies:
        file.write_bytes(kept.read_bytes())
    net, history = once.obtain(start, wanted, train)
    whole = begin(net=nets.take(start, [0, 1]), seeds=SEEDS[:2]).fit(EPOCHS)
    for name, tensor in whole.net.state_dict().items():
        assert torch.equal(net.state_dict()[name], tensor)
    np.testing.assert_array_equal(history["train_loss"], whole.curve("train_loss"))
    for file in copies:
        file.unlink()  # which are still there
    assert not states(tmp_path)
    for name in kept.name, f"{kept.name}.new":  # killed between the last network and the end of its state
        (folder / name).touch()
    once.obtain(start, wanted, None)
    assert [path.name for path in folder.iterdir() if path.is_file()] == [once.FILE]


@pytest.mark.parametrize("moves", range(4))
def test_networks_of_one_stack_are_saved_together(tmp_path, monkeypatch, moves):
    """The list of them, and then each of two, is moved into place; killed behind `moves`, all stay or none."""
    monkeypatch.setenv("PRUNING_RUNS", str(tmp_path))
    start, asked, done = mlp(SEEDS[:2]), [], []
    trainer = begin(net=nets.take(start, [0, 1]), seeds=SEEDS[:2])

    def train(net, missing, state):
        asked.append(missing)
        return trainer.net, trainer.curves()

    def replace(source, target, move=os.replace):
        if len(done) == moves:
            raise Killed
        done.append(move(source, target))

    with monkeypatch.context() as patch, pytest.raises(Killed) if moves < 3 else nullcontext():
        patch.setattr(os, "replace", replace)
        once.obtain(start, recipes(SEEDS[:2]), train)
    net, _ = once.obtain(start, recipes(SEEDS[:2]), train)
    assert asked == [[0, 1]] * (2 if moves == 0 else 1)
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), trainer.net.parameters(), strict=True))
    left = [*tmp_path.rglob("*.new"), *tmp_path.rglob(".saving-*")]
    assert not [file for file in left if file.parent.name != ".locks"]


def test_what_another_saved_before_it_was_killed_is_not_trained_again(tmp_path, monkeypatch):
    """Killed while it was waited for, between the list of what is to be moved and the moves."""
    monkeypatch.setenv("PRUNING_RUNS", str(tmp_path))
    start, trained = mlp([1]), mlp([2])
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(disk, "_finish", lambda intent: (_ for _ in ()).throw(Killed))
        once.obtain(start, recipes([1]), lambda *given: (trained, {}))
    (intent,) = (path for path in tmp_path.rglob(".saving-*") if path.parent.name != ".locks")
    hidden, acquire = intent.rename(tmp_path / "not yet"), disk.acquire
    monkeypatch.setattr(disk, "acquire", lambda path: (acquire(path), hidden.exists() and hidden.rename(intent)))
    net, _ = once.obtain(start, recipes([1]), None)
    assert torch.equal(net.layers[0].weight, trained.layers[0].weight)


def test_states_are_in_the_folder_of_the_first_member(tmp_path, monkeypatch):
    monkeypatch.setenv("PRUNING_RUNS", str(tmp_path))
    found = []

    def train(net, missing, state):
        found.append(state)
        raise Killed

    for chosen in ([1, 2, 3], [2, 3]):
        with pytest.raises(Killed):
            once.obtain(mlp([1, 2, 3][: len(chosen)]), recipes(chosen), train)
    assert [state.folder.name for state in found] == ["dense-1", "dense-2"]


def lab(stack, **rule):
    """Return a lab of the VGG with one filter in the first block, trained for three epochs."""
    small = sets.load("digits32", train_examples=60, statistics="phew")
    rule = {"lr": 0.05, "batch": 20, "momentum": 0.9, "bar": False} | rule
    return phew.lab(small, [1], net="vgg11", width=1, epochs=3, drops=(2,), rule=rule, watch=20, stack=stack)


@pytest.mark.parametrize("stack", [1, 0])
def test_trainings_under_masks_go_on(stack, tmp_path, monkeypatch):
    """PHEW at two densities, killed in the last epoch of its last training: nothing else is trained again."""
    monkeypatch.setenv("PRUNING_RUNS", str(tmp_path))
    here, epoch, seen = lab(stack, every=0), Trainer._epoch, []
    starts = phew.prune(here, "phew", [0.5, 0.3])
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
    assert {state.parent for state in states(tmp_path)} == {tmp_path / "trained/digits32-vgg11"}
    found = outcome.train(here, "phew", starts)
    assert seen == [0, 1, 2] * (2 if stack else 1) + [2]
    for name in whole.keys() - {"seconds"}:
        np.testing.assert_array_equal(found[name], whole[name], err_msg=name)
    assert not states(tmp_path)


def test_what_is_trained_is_safe_until_its_record_is_saved(tmp_path, monkeypatch):
    """Killed while another type is trained, or before its own record is saved, a process trains nothing again."""
    monkeypatch.setenv("PRUNING_RUNS", str(tmp_path))
    here, kinds = lab(0, every=0), ("phew", "random", "magnitude_init")
    starts = {kind: phew.prune(here, kind, [0.5]) for kind in kinds}

    def save(kind):
        document = dict.fromkeys(store.FIELDS, {}) | {"experiment": "toy", "type": kind, "seed": 1}
        store.write([(tmp_path / f"toy/{kind}-1.json", document, store.pack({}, {})[0])])
        disk.release(tmp_path / f"toy/{kind}-1")

    for kind in kinds:
        disk.acquire(tmp_path / f"toy/{kind}-1")  # as a run does that computes it
    whole = {kind: outcome.train(here, kind, starts[kind]) for kind in kinds[:2]}
    save("phew")
    with monkeypatch.context() as patch:  # the second record failed, as of a full disk
        patch.setattr(Trainer, "_epoch", None)
        patch.setattr(disk, "discard", lambda: None)  # of this process, which would have ended
        found = outcome.train(here, "random", starts["random"])
    np.testing.assert_array_equal(found["train_loss"], whole["random"]["train_loss"])
    save("random")
    outcome.train(here, "magnitude_init", starts["magnitude_init"])
    assert len(states(tmp_path)) == 1, "what others were trained for is saved"
    save("magnitude_init")
    assert store.read(tmp_path / "toy/magnitude_init-1.json").seed == 1 and not states(tmp_path)
    with disk.lock(tmp_path.with_name("elsewhere") / "phew-1"):
        outcome.train(here, "phew", starts["phew"])
        assert not states(tmp_path)


def test_many_short_trainings_are_a_long_one(tmp_path, monkeypatch, clock):
    """Three of 24 seconds each, and a state is due after a minute: what the third has come to is written."""
    monkeypatch.setenv("PRUNING_RUNS", str(tmp_path))
    epoch = Trainer._epoch

    def slow(self):
        clock[0] += 8
        epoch(self)

    monkeypatch.setattr(Trainer, "_epoch", slow)
    starts, written = phew.prune(lab(1), "random", [0.5, 0.4, 0.3]), writings(monkeypatch, lambda meta: clock[0])
    outcome.train(lab(1), "random", starts)
    assert written == [64, 72] and not states(tmp_path)
