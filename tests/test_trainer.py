"""The trainer against literal loops of torch.nn and torch.optim, alone and in stacks; and trained networks as files."""

import copy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from lib import checkpoint, convnets, draws, nets, once, runs
from lib.errors import RecordError
from lib.training.trainer import HISTORY, Trainer

SIZES, BATCH = (12, 9, 7, 4), 16
RULES = {
    "sgd": ({"rule": "sgd", "lr": 0.2}, lambda p: torch.optim.SGD(p, 0.2, foreach=False)),
    "nesterov": (
        {"rule": "sgd", "lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 0.02},
        lambda p: torch.optim.SGD(p, 0.1, 0.9, weight_decay=0.02, nesterov=True, foreach=False),
    ),
    "adam": (
        {"rule": "adam", "lr": 0.02, "weight_decay": 0.01},
        lambda p: torch.optim.Adam(p, 0.02, weight_decay=0.01, foreach=False),
    ),
    "rms": (
        {"rule": "rms", "lr": 0.01, "momentum": 0.5, "weight_decay": 0.01},
        lambda p: torch.optim.RMSprop(p, 0.01, momentum=0.5, weight_decay=0.01, foreach=False),
    ),
}


def examples(n, seed, inputs=SIZES[0]):
    """Inputs whose class is that of the largest of four random features, in float64."""
    rng = torch.Generator().manual_seed(seed)
    x = torch.randn(n, inputs, generator=rng, dtype=torch.float64)
    return x, (x @ torch.randn(inputs, SIZES[-1], generator=rng, dtype=torch.float64)).argmax(1)


TRAIN, TEST = examples(70, 1), examples(40, 2)


def stack(seeds, sizes=SIZES):
    return nets.init_(nets.MLP(sizes, ["no-WN"] * len(seeds), output_bias=True), seeds).double()


def alone(net, run):
    """One run of an MLP as a torch module."""
    modules = []
    for layer in net.layers:
        modules += [nn.Linear(*layer.weight.shape[:0:-1], dtype=torch.float64), nn.ReLU()]
        modules[-2].weight.data.copy_(layer.weight[run].data)
        modules[-2].bias.data.copy_(layer.bias[run].data)
    return nn.Sequential(*modules[:-1])


class Literal:
    """One network trained by the loop that everyone writes."""

    def __init__(self, model, rule, seed, train=TRAIN, drops=(), epoch=0, shuffle=True):
        self.model, (options, make), self.seed, self.train = model, RULES[rule], seed, train
        self.optimizer, self.lr, self.drops = make(model.parameters()), options["lr"], drops
        self.epoch, self.shuffle, self.masks = epoch, shuffle, {}
        self.history = {"lr": [], "train_loss": [], "train_accuracy": [], "test_loss": [], "test_accuracy": []}

    def fit(self, epochs):
        for _ in range(epochs):
            rate = self.lr
            for when in self.drops:
                rate = rate * 0.1 if self.epoch >= when else rate
            self.optimizer.param_groups[0]["lr"] = rate
            self.model.train()
            sums = np.zeros(2)
            for index in self.batches():
                sums += self.step(self.train[0][index], self.train[1][index])
            self.epoch += 1
            self.model.eval()
            with torch.no_grad():
                logits = self.model(TEST[0])
            tested = nn.functional.cross_entropy(logits, TEST[1]).item(), (logits.argmax(1) == TEST[1]).double().mean()
            row = rate, *(sums / len(self.train[1])), *tested
            for column, value in zip(self.history.values(), row, strict=True):
                column.append(float(value))
        return self

    def batches(self):
        n = len(self.train[1])
        order = torch.arange(n)
        if self.shuffle:
            order = torch.from_numpy(draws.permutation(self.seed, "order", self.epoch, n))
        return [order[k : k + BATCH] for k in range(0, n, BATCH)]

    def step(self, x, y):
        self.optimizer.zero_grad()
        logits = self.model(x)
        loss = nn.functional.cross_entropy(logits, y)
        loss.backward()
        parameters = dict(self.model.named_parameters())
        for name, mask in self.masks.items():
            parameters[name].grad *= mask
        self.optimizer.step()
        return loss.item() * len(y), (logits.argmax(1) == y).sum().item()

    def prune(self, name, mask):
        self.masks[name] = mask
        p = dict(self.model.named_parameters())[name]
        p.data *= mask
        for moment in self.optimizer.state[p].values():
            if torch.is_tensor(moment) and moment.shape == p.shape:
                moment *= mask


def begin(net, seeds, rule, **options):
    options = {"train": TRAIN, "test": TEST, "batch": BATCH, "bar": False} | RULES[rule][0] | options
    return Trainer(net, seeds=seeds, **options)


def same_weights(net, run, model):
    linear = [module for module in model if isinstance(module, nn.Linear)]
    for layer, other in zip(net.layers, linear, strict=True):
        torch.testing.assert_close(layer.weight[run].data, other.weight.data, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(layer.bias[run].data, other.bias.data, rtol=1e-10, atol=1e-10)


# ---- one stack is as many literal loops


@pytest.mark.parametrize("rule", RULES)
def test_a_stack_is_as_many_literal_loops(rule):
    seeds = [3, 1, 3]  # the first and the last draw the same batches, and start at different weights
    net = stack([5, 6, 7])
    literal = [Literal(alone(net, run), rule, seed, drops=(1, 2)).fit(3) for run, seed in enumerate(seeds)]
    trainer = begin(net, seeds, rule, drops=(1, 2)).fit(3)
    for run, one in enumerate(literal):
        same_weights(net, run, one.model)
        for name, column in one.history.items():
            np.testing.assert_allclose(trainer.curve(name)[run, 1:], column, rtol=1e-9, err_msg=name)
    assert trainer.curve("lr")[0, 1] > trainer.curve("lr")[0, 3] * 99


def test_runs_of_one_seed_read_every_batch_once():
    net = stack([5, 6])
    literal = [Literal(alone(net, run), "adam", 4).fit(2) for run in range(2)]
    seen = []
    net.register_forward_pre_hook(lambda module, args: seen.append(args[0].dim()) if module.training else None)
    begin(net, [4, 4], "adam").fit(2)
    for run in range(2):
        same_weights(net, run, literal[run].model)
    assert set(seen) == {2}


def test_alone_is_as_in_the_stack():
    net = stack([5, 6, 7])
    one = nets.take(net, [1])
    whole, single = begin(net, [1, 2, 3], "nesterov").fit(3), begin(one, [2], "nesterov").fit(3)
    torch.testing.assert_close(net.layers[1].weight[1:2], one.layers[1].weight, rtol=1e-10, atol=1e-10)
    for name in set(HISTORY) - {"seconds"}:
        np.testing.assert_allclose(whole.curve(name)[1:2], single.curve(name), rtol=1e-10, err_msg=name)


def test_the_order_of_the_data():
    net = stack([5, 6])
    literal = Literal(alone(net, 1), "sgd", 9, shuffle=False).fit(2)
    begin(net, [8, 9], "sgd", shuffle=False).fit(2)
    same_weights(net, 1, literal.model)


@pytest.mark.parametrize("seeds", [[1, 2], [1, 1]])
def test_inputs_of_each_runs_own(seeds):
    net, own = stack([5, 6]), torch.stack([TRAIN[0], TRAIN[0].flip(1)])
    literal = [Literal(alone(net, run), "sgd", seeds[run], (own[run], TRAIN[1])).fit(2) for run in range(2)]
    tests = torch.stack([TEST[0], TEST[0]])
    trainer = begin(net, seeds, "sgd", train=(own, TRAIN[1]), test=(tests, TEST[1])).fit(2)
    for run, one in enumerate(literal):
        same_weights(net, run, one.model)
        np.testing.assert_allclose(trainer.curve("test_accuracy")[run, 1:], one.history["test_accuracy"])


def test_batches_made_elsewhere():
    net, factor, asked = stack([5, 6]), torch.tensor([2.0, 3.0], dtype=torch.float64), []

    def batches(epoch, index):
        asked.append(epoch)
        return TRAIN[0][index.expand(2, -1)] * factor[:, None, None]

    literal = [
        Literal(alone(net, run), "sgd", run, (TRAIN[0] * factor[run], TRAIN[1]), epoch=4).fit(2) for run in range(2)
    ]
    begin(net, [0, 1], "sgd", batches=batches, epoch=4).fit(2)
    for run in range(2):
        same_weights(net, run, literal[run].model)
    assert set(asked) == {4, 5}


def test_training_goes_on_where_it_ended():
    """One Trainer, one called twice, and one with another one's epochs behind it: the same order, drops and weights."""
    straight, twice, second = (stack([5, 6]) for _ in range(3))
    whole = begin(straight, [1, 2], "sgd", drops=(3,)).fit(4)
    begin(twice, [1, 2], "sgd", drops=(3,)).fit(1).fit(3)
    begin(second, [1, 2], "sgd", drops=(3,)).fit(2)
    rest = begin(second, [1, 2], "sgd", drops=(3,), epoch=2).fit(2)
    for other in (twice, second):
        for a, b in zip(straight.parameters(), other.parameters(), strict=True):
            assert torch.equal(a, b)
    assert rest.curve("epoch")[0].tolist() == [2, 3, 4]
    np.testing.assert_array_equal(whole.curve("lr")[:, 3:], rest.curve("lr")[:, 1:])


def test_a_fresh_optimizer_remembers_nothing():
    net = stack([5])
    trainer = begin(net, [1], "adam").fit(1)
    literal = Literal(alone(net, 0), "adam", 1, epoch=1).fit(1)
    trainer.reset_optimizer()
    trainer.fit(1)
    same_weights(net, 0, literal.model)


INTERRUPTED = """
import os, signal, sys
import torch
from lib import optimizers

class Interrupt:
    once = ["sympy.geometry"]

    def find_spec(self, name, path=None, target=None):
        if name in self.once:
            self.once.remove(name)
            os.kill(os.getpid(), signal.SIGINT)

def make():
    options = {"momentum": 0.0, "nesterov": False, "weight_decay": 0.0}
    return optimizers.make("sgd", [torch.nn.Parameter(torch.ones(2))], 0.1, options)

signal.signal(signal.SIGINT, signal.default_int_handler)  # which what is started in the background has not
sys.meta_path.insert(0, Interrupt())
try:
    make()
except KeyboardInterrupt:
    print(type(make()).__name__)
"""


def test_an_interrupt_in_the_imports_of_an_optimizer_breaks_none_of_them():
    command, root = [sys.executable, "-c", INTERRUPTED], Path(__file__).parents[1]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True)
    assert done.stdout == "SGD\n", done.stderr


def test_bfloat16_is_near():
    nets_ = [stack([5, 6]).float() for _ in range(2)]
    sets = {"train": (TRAIN[0].float(), TRAIN[1]), "test": (TEST[0].float(), TEST[1])}
    exact, rounded = (begin(net, [1, 2], "sgd", bf16=k == 1, **sets).fit(3) for k, net in enumerate(nets_))
    loss = rounded.curve("test_loss")
    assert nets_[1].layers[0].weight.dtype == torch.float32
    np.testing.assert_allclose(loss, exact.curve("test_loss"), rtol=0.03)
    assert not np.array_equal(loss[:, 1:], exact.curve("test_loss")[:, 1:])
    assert (rounded.curve("train_loss")[:, 3] < rounded.curve("train_loss")[:, 1]).all()


# ---- masks


def some(net, seed, density):
    rng = torch.Generator().manual_seed(seed)
    return {
        f"layers.{k}.{part}": torch.rand(getattr(net.layers[k], part).shape, generator=rng) < density
        for k, part in ((0, "weight"), (1, "weight"), (1, "bias"))
    }


@pytest.mark.parametrize("rule", RULES)
def test_what_is_pruned_stays_zero(rule):
    """Against a literal loop that masks gradients and moments; after training, and again after more is pruned."""
    net = stack([5, 6])
    net.layers[1].bias.data.fill_(0.1)
    first, second = some(net, 0, 0.7), some(net, 1, 0.6)
    literal = [Literal(alone(net, run), rule, run + 1).fit(1) for run in range(2)]
    trainer = begin(net, [1, 2], rule).fit(1)
    for kept in (first, {name: first[name] & second[name] for name in first}):
        trainer.prune(kept)
        parameters = dict(net.named_parameters())
        for name, mask in kept.items():
            state = trainer.optimizer.state[parameters[name]]
            moments = [value for value in state.values() if torch.is_tensor(value) and value.dim() > 1]
            assert len(moments) == {"sgd": 0, "nesterov": 1, "adam": 2, "rms": 2}[rule]
            assert all(m.any() and not m[~mask].any() for m in moments)
        for run, one in enumerate(literal):
            for name, mask in kept.items():
                _, k, part = name.split(".")
                one.prune(f"{2 * int(k)}.{part}", mask[run])
            one.fit(2)
        trainer.fit(2)
        for name, mask in kept.items():
            assert (parameters[name][~mask] == 0).all() and (parameters[name][mask] != 0).all()
        for run, one in enumerate(literal):
            same_weights(net, run, one.model)


def test_what_is_pruned_never_returns():
    """Masks that keep what an earlier prune took give nothing back, and leave other masks alone."""
    net = stack([5, 6])
    first, second = some(net, 0, 0.7), some(net, 1, 0.6)
    trainer = begin(net, [1, 2], "adam")
    trainer.prune(first)
    trainer.prune({"layers.0.weight": second["layers.0.weight"]})
    trainer.fit(2)
    both = first["layers.0.weight"] & second["layers.0.weight"]
    assert torch.equal(net.layers[0].weight != 0, both)
    assert torch.equal(trainer.masks["layers.0.weight"], both)
    assert torch.equal(net.layers[1].weight != 0, first["layers.1.weight"])


# ---- batch normalisation


def pool():
    return convnets.VGG((1, 4, 4), 4, ["no-WN"] * 2, 3, ((1,), (2,)), biases=True, batch_norm=True)


def as_torch(net, run):
    model = nn.Sequential(
        nn.Unflatten(1, (1, 4, 4)), nn.Conv2d(1, 3, 3, padding=1), nn.BatchNorm2d(3), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(6, 4),
    ).double()  # fmt: skip
    names = {"1": "convs.0", "2": "norms.0", "5": "convs.1", "6": "norms.1", "10": "output"}
    for there, here in names.items():
        for name, tensor in model.get_submodule(there).state_dict().items():
            if name != "num_batches_tracked":
                tensor.copy_(getattr(net.get_submodule(here), name)[run])
    return model, names


def test_batch_normalisation(monkeypatch):
    """Training moves the running statistics, testing uses them and leaves them; a stack is as many torch modules."""
    monkeypatch.setitem(globals(), "TEST", examples(40, 2, 16))
    train, net = examples(70, 1, 16), nets.init_(pool(), [5, 6]).double()
    literal = [Literal(as_torch(net, run)[0], "nesterov", run + 1, train).fit(3) for run in range(2)]
    trainer = begin(net, [1, 2], "nesterov", train=train, test=TEST).fit(3)
    assert not net.training
    for run, one in enumerate(literal):
        for there, here in as_torch(net, run)[1].items():
            for name, tensor in one.model.get_submodule(there).state_dict().items():
                if name != "num_batches_tracked":
                    mine = getattr(net.get_submodule(here), name)[run]
                    torch.testing.assert_close(mine.detach(), tensor, rtol=1e-9, atol=1e-10)
        for name, column in one.history.items():
            np.testing.assert_allclose(trainer.curve(name)[run, 1:], column, rtol=1e-9, err_msg=name)


# ---- the history, and errors


def test_the_history_has_a_row_before_the_first_pass():
    net = stack([5, 6])
    with torch.no_grad():
        expected = (net(TEST[0]).argmax(2) == TEST[1]).double().mean(1).numpy()
    trainer = begin(net, [1, 2], "sgd").fit(2)
    assert tuple(trainer.history) == HISTORY
    assert all(trainer.curve(name).shape == (2, 3) for name in HISTORY)
    assert np.array_equal(trainer.curve("test_accuracy")[:, 0], expected)
    assert trainer.curve("epoch").tolist() == [[0, 1, 2]] * 2
    for name in ("lr", "train_loss", "train_accuracy"):
        assert np.isnan(trainer.curve(name)[:, 0]).all() and np.isfinite(trainer.curve(name)[:, 1:]).all()
    seconds = trainer.curve("seconds")
    assert (np.diff(seconds) > 0).all() and (seconds[:, 0] == 0).all()


@pytest.mark.parametrize(
    "options, message",
    [
        ({"rule": "lion"}, "rule is 'lion'; allowed are .*'sgd', 'adam', 'rms'"),
        ({"seeds": [1]}, "1 seeds for a stack of 2"),
        ({"lr": 0}, "lr is 0;"),
        ({"lr": float("nan")}, "lr is nan"),
        ({"batch": 0}, "batch is 0"),
        ({"train": (TRAIN[0], TRAIN[1][:9])}, r"70 examples with labels \(9,\)"),
        ({"rule": "adam", "momentum": 0.9}, "momentum = 0.9 with rule 'adam'"),
        ({"rule": "rms", "nesterov": True}, "nesterov = True with rule 'rms'"),
    ],
)
def test_what_cannot_be_trained_is_an_error(options, message):
    with pytest.raises(ValueError, match=message):
        Trainer(**{"net": stack([5, 6]), "train": TRAIN, "test": TEST, "seeds": [1, 2], "bar": False} | options)


# ---- trained networks as files


class Counted:
    """What trains the missing runs, and remembers which they were."""

    def __init__(self, seeds, epochs=2):
        self.seeds, self.epochs, self.asked = seeds, epochs, []

    def __call__(self, net, missing, state):
        self.asked.append(missing)
        trainer = begin(net, [self.seeds[run] for run in missing], "adam").fit(self.epochs, state)
        return trainer.net, trainer.curves()


@pytest.fixture
def recipe(tmp_path, monkeypatch):
    """Return what makes the recipe of a seed, of networks that are kept in an empty folder."""
    monkeypatch.setenv("PRUNING_RUNS", str(tmp_path))
    return lambda seed, **options: {"name": "toy", "type": "dense", "seed": seed, "widths": (3, 4), **options}


def kept(recipe):
    return runs.trained(recipe) / once.FILE


def test_a_network_is_trained_once(recipe):
    start, seeds = stack([5, 6, 7]), [1, 2, 3]
    recipes, train = [recipe(seed) for seed in seeds], Counted(seeds)
    before = copy.deepcopy(start.state_dict())
    expected = begin(nets.take(start, [0, 1, 2]), seeds, "adam").fit(2)
    once.obtain(nets.take(start, [1]), recipes[1:2], Counted([2]))
    net, history = once.obtain(start, recipes, train)
    again, same = once.obtain(start, recipes, train)
    assert train.asked == [[0, 2]], "the second run was there, and later they all were"
    for name, tensor in expected.net.state_dict().items():
        torch.testing.assert_close(net.state_dict()[name], tensor, rtol=1e-10, atol=1e-10)
        assert torch.equal(net.state_dict()[name], again.state_dict()[name])
        assert torch.equal(start.state_dict()[name], before[name])
    for name in set(HISTORY) - {"seconds"}:
        np.testing.assert_allclose(history[name], expected.curve(name), rtol=1e-10, err_msg=name)
        np.testing.assert_array_equal(history[name], same[name])


def test_what_is_killed_in_training_leaves_no_network(recipe):
    def killed(net, missing, state):
        raise KeyboardInterrupt

    start, train = stack([5]), Counted([1])
    with pytest.raises(KeyboardInterrupt):
        once.obtain(start, [recipe(1)], killed)
    once.obtain(start, [recipe(1)], train)
    assert train.asked == [[0]]


def test_a_file_of_another_network_is_an_error(recipe):
    once.obtain(stack([5]), [recipe(1)], Counted([1]))
    with pytest.raises(ValueError, match=r"holds .*this network has .*\(8, 12\).*delete it"):
        once.obtain(stack([5], (12, 8, 7, 4)), [recipe(1)], Counted([1]))


def test_networks_trained_for_different_times_are_an_error(recipe):
    for seed, epochs in ((5, 1), (6, 2)):
        net = stack([seed])
        once.save(kept(recipe(seed)), net, {"epoch": np.arange(epochs + 1.0)}, recipe(seed))
    with pytest.raises(ValueError, match=r"trained for different times: .*5.*: 2, .*6.*: 3"):
        once.obtain(stack([5, 6]), [recipe(5), recipe(6)], Counted([5, 6]))


@pytest.mark.parametrize("damage", [lambda data: data[: len(data) // 2], lambda data: b"", lambda data: b"x" * 100])
def test_a_damaged_file_is_an_error(recipe, damage):
    once.obtain(stack([5]), [recipe(1)], Counted([1]))
    path = kept(recipe(1))
    path.write_bytes(damage(path.read_bytes()))
    train = Counted([1])
    with pytest.raises(RecordError, match="not hold the weights of a run.*delete it"):
        once.obtain(stack([5]), [recipe(1)], train)
    assert not train.asked


@pytest.mark.parametrize("seeds", [[1, 1], [1], [1, 2, 3]])
def test_one_recipe_per_run(recipe, seeds):
    with pytest.raises(ValueError, match="different recipes for a stack of 2"):
        once.obtain(stack([5, 6]), [recipe(seed) for seed in seeds], Counted([1, 2]))


def test_a_file_that_was_made_by_another_recipe_is_an_error(recipe):
    """Such as one of two seeds that were swapped, or what was copied from another folder."""
    once.obtain(stack([5, 6]), [recipe(1), recipe(2)], Counted([1, 2]))
    one, other = kept(recipe(1)), kept(recipe(2))
    swapped = one.read_bytes(), other.read_bytes()
    other.write_bytes(swapped[0]), one.write_bytes(swapped[1])
    for path, told in ((one, "holds seed 2; asked for is seed 1"), (other, "holds seed 1; asked for is seed 2")):
        with pytest.raises(RecordError, match=rf"{path} {told}\. Name the parameters .*delete it"):
            once.obtain(stack([5]), [recipe(2 if path is other else 1)], Counted([1]))
    kept(recipe(2, lr=0.1)).parent.mkdir()
    kept(recipe(2, lr=0.1)).write_bytes(swapped[1])
    with pytest.raises(RecordError, match=r"holds no lr; asked for is lr 0\.1"):
        once.obtain(stack([5]), [recipe(2, lr=0.1)], Counted([1]))


def test_a_state_of_a_training_passes_for_no_network(recipe):
    trainer, path = begin(stack([5]), [1], "sgd", every=0), kept(recipe(1))
    checkpoint.save(trainer, path, {"kind": checkpoint.KIND})
    with pytest.raises(RecordError, match="holds kind 'state of a training'.*asked for is kind 'trained network'"):
        once.obtain(stack([5]), [recipe(1)], Counted([1]))
