"""The log-loss descent against a literal version, alone and stacked, to e^-300, resumed and killed."""

import dataclasses
import functools
import math
import os
import shutil

import pytest
import torch

from lib import descend, descent, draws, nets, stacking, twins
from lib import sets as data
from lib.errors import ParameterError, RecordError
from lib.studies.ewn import study as ewn

TYPES = ["EWN", "SWN", "no-WN"]


@pytest.fixture(scope="module")
def digits():
    """A hundred digits for training and fifty for testing."""
    whole = data.load("digits")
    train = {k: getattr(whole, k)[:100] for k in ("train_x", "train_y")}
    return dataclasses.replace(whole, **train, test_x=whole.test_x[:50], test_y=whole.test_y[:50])


def stack(types, seeds, width=12):
    return nets.init_(nets.MLP([784, width, 10], types), seeds)


@pytest.fixture(scope="module")
def uninterrupted(digits):
    """Return a function of `(kinds, seeds, *levels)` to the levels that a descent in one go reaches, made once."""

    @functools.cache
    def descended(kinds, seeds, *levels):
        return descend.descend(stack(list(kinds), list(seeds)), digits, list(seeds), list(levels), batch=16)[0]

    return descended


class Literal:
    """Algorithm B as the study tells it, for one network in float64: loops, autograd, one matrix per type."""

    def __init__(self, net, kind, seed, sets, batch):
        self.kind, self.seed, self.batch, (self.x, self.y) = kind, seed, batch, sets
        layer = net.layers[0]
        self.p = [layer.weight[0], layer.scale[0], layer.bias[0], net.layers[1].weight[0]]
        self.p = [p.detach().double().clone().requires_grad_() for p in self.p]
        self.level, self.rho, self.epoch, self.attempt = math.log(self.loss(self.x, self.y).item()), 0.01, 0, 0

    def loss(self, x, y):
        v, s, b, out = self.p
        if self.kind != "no-WN":
            v = (s.exp() if self.kind == "EWN" else s)[:, None] * v / v.norm(dim=1, keepdim=True)
        return torch.nn.functional.cross_entropy(torch.relu(x @ v.T + b) @ out.T, y)

    def try_epoch(self):
        snapshot = [p.detach().clone() for p in self.p]
        order = torch.from_numpy(draws.permutation(self.seed, "order", self.attempt, len(self.y)))
        for index in order.split(self.batch):
            rescaled = self.loss(self.x[index], self.y[index]) / math.exp(self.level)
            used = [p for k, p in enumerate(self.p) if not (k == 1 and self.kind == "no-WN")]
            for p, g in zip(used, torch.autograd.grad(rescaled, used), strict=True):
                p.data -= self.rho * g
        ratio = (self.loss(self.x, self.y) / math.exp(self.level)).item()
        self.attempt += 1
        if ratio <= 1:
            self.rho, self.level, self.epoch = self.rho * 1.1, self.level + math.log(ratio), self.epoch + 1
        else:
            self.rho /= 1.1
            for p, old in zip(self.p, snapshot, strict=True):
                p.data.copy_(old)


@pytest.mark.parametrize("kind", TYPES)
def test_the_descent_is_the_literal_one(digits, kind):
    """Sixty attempts in float64, rejected ones among them: the same path to the last digits."""
    sets = tuple((digits.split(part)[0].double(), digits.split(part)[1]) for part in ("train", "test"))
    net = stack([kind], [7]).double()
    literal = Literal(net, kind, 7, sets[0], batch=16)
    state = descend.start(net, [7], sets)
    for _ in range(60):
        literal.try_epoch()
        descend.attempt(state, sets, 16)
        assert math.isclose(state.log_loss[0], literal.level, rel_tol=1e-7)
        assert math.isclose(state.step[0], literal.rho, rel_tol=1e-12)
    assert int(state.epoch[0]) == literal.epoch < literal.attempt == int(state.attempt[0])


def test_alone_and_in_a_stack_of_nine_agree(digits):
    """In float64 a run ends where it ends alone; in float32 the first epochs agree to rounding."""
    kinds, seeds = TYPES * 3, [1, 1, 1, 2, 2, 2, 3, 3, 3]
    for dtype, attempts, tolerance in ((torch.float64, 25, 1e-9), (torch.float32, 3, 1e-4)):
        sets = tuple((digits.split(part)[0].to(dtype), digits.split(part)[1]) for part in ("train", "test"))
        together = descend.start(stack(kinds, seeds).to(dtype), seeds, sets)
        alone = [descend.start(stack([k], [s]).to(dtype), [s], sets) for k, s in zip(kinds, seeds, strict=True)]
        for _ in range(attempts):
            descend.attempt(together, sets, 16)
            for state in alone:
                descend.attempt(state, sets, 16)
        expected = torch.cat([state.log_loss for state in alone])
        torch.testing.assert_close(together.log_loss, expected, rtol=tolerance, atol=tolerance)


def test_a_loss_of_e_to_the_minus_300_in_float32(digits):
    """All three types get there; nothing on the way is infinite or not a number."""
    four = dataclasses.replace(digits, train_x=digits.train_x[:4], train_y=digits.train_y[:4])
    reached, ends = descend.descend(stack(TYPES, [1, 1, 1], width=64), four, [1, 1, 1], [-10, -100, -300], batch=1)
    for found, end in zip(reached, ends, strict=True):
        assert list(found) == [-10, -100, -300]
        assert float(end.log_loss) < -300
        assert all(math.isfinite(value) for row in end.history[0] for value in row)
        assert all(torch.isfinite(p).all() for p in end.net.parameters())
        losses = [row[descent.HISTORY.index("log_loss")] for row in end.history[0]]
        assert losses == sorted(losses, reverse=True)


def test_what_is_cut_from_gradients_does_not_change_the_path(digits, monkeypatch):
    ten = dataclasses.replace(digits, train_x=digits.train_x[:10], train_y=digits.train_y[:10])

    def path():
        _, ends = descend.descend(stack(TYPES, [1, 1, 1]), ten, [1, 1, 1], [-25], batch=5)
        return [end.history[0] for end in ends]

    with_cut = [[row[:-1] for row in history] for history in path()]
    monkeypatch.setattr(twins, "NEGLIGIBLE", 0.0)
    assert with_cut == [[row[:-1] for row in history] for history in path()]


def count_attempts(monkeypatch):
    """Return a list that gets an entry for every attempt."""
    made, attempt = [], descend.attempt
    monkeypatch.setattr(descend, "attempt", lambda *arguments: (made.append(1), attempt(*arguments)))
    return made


def test_a_level_once_reached_trains_nothing(digits, tmp_path, monkeypatch):
    folders = [tmp_path / kind for kind in TYPES]
    first, _ = descend.descend(stack(TYPES, [1] * 3), digits, [1] * 3, [-2], folders=folders, batch=16)
    made = count_attempts(monkeypatch)
    again, ends = descend.descend(stack(TYPES, [1] * 3), digits, [1] * 3, [-2], folders=folders, batch=16)
    assert made == []
    for a, b, end in zip(first, again, ends, strict=True):
        same_descent(a[-2], b[-2])
        same_descent(b[-2], end)


def same_descent(a, b):
    for name, tensor in a.net.state_dict().items():
        assert torch.equal(tensor, b.net.state_dict()[name]), name
    rows = [[row[:-1] for row in d.history[0]] for d in (a, b)]  # but for the seconds
    assert rows[0] == rows[1]
    for k in set(descent.VECTORS) - {"seconds"}:
        assert torch.equal(getattr(a, k), getattr(b, k))


def test_a_further_level_goes_on_from_the_last(digits, uninterrupted, tmp_path, monkeypatch):
    whole = uninterrupted(("EWN",), (1,), -1, -2, -4)
    descend.descend(stack(["EWN"], [1]), digits, [1], [-2], folders=[tmp_path / "a"], batch=16)
    made = count_attempts(monkeypatch)
    further, _ = descend.descend(stack(["EWN"], [1]), digits, [1], [-2, -4], folders=[tmp_path / "a"], batch=16)
    for level in (-2, -4):
        same_descent(whole[0][level], further[0][level])
    assert len(made) == int(whole[0][-4].attempt[0] - whole[0][-2].attempt[0])


def break_off(monkeypatch, after, *arguments, **keywords):
    """Descend, and break off after so many attempts."""
    made, real = [], descend.attempt

    def stop(*given):
        made.append(1)
        if len(made) > after:
            raise KeyboardInterrupt
        real(*given)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(descend, "attempt", stop)
        descend.descend(*arguments, **keywords)


@pytest.mark.parametrize("broken_off_at", [1, 7, 23])
def test_a_stack_broken_off_ends_where_the_uninterrupted_one_does(
    digits, uninterrupted, tmp_path, monkeypatch, broken_off_at
):
    """At the first attempt, on the way to the first level, and beyond it."""
    seeds, kinds = [1, 1, 2], ["EWN", "SWN", "no-WN"]
    whole = uninterrupted(tuple(kinds), tuple(seeds), -1, -2)
    keywords = {"folders": [tmp_path / f"{k}" for k in kinds], "batch": 16, "checkpoint": 0.0}
    break_off(monkeypatch, broken_off_at, stack(kinds, seeds), digits, seeds, [-1, -2], **keywords)
    again, _ = descend.descend(stack(kinds, seeds), digits, seeds, [-1, -2], **keywords)
    for a, b in zip(whole, again, strict=True):
        assert list(a) == list(b)
        for level in a:
            same_descent(a[level], b[level])
    assert not list(tmp_path.rglob("towards-*.safetensors")), "what is kept on the way goes when all is done"


def test_a_run_that_stalled_before_its_stack_was_killed_is_what_it_was(digits, tmp_path, monkeypatch):
    """One run without a living unit: it ends at once, and neither the resumed stack nor a later call trains it."""
    monkeypatch.setattr(descend, "SMALLEST_STEP", 5e-3)
    start, keywords = stack(["EWN", "no-WN"], [1, 1]), {"folders": [tmp_path / "a", tmp_path / "b"], "batch": 16}
    with torch.no_grad():
        start.layers[0].weight[1].zero_(), start.layers[0].bias[1].fill_(-1)
    arguments = digits, [1, 1], [-1]
    _, whole = descend.descend(nets.take(start, [0, 1]), *arguments, batch=16)
    break_off(monkeypatch, int(whole[1].attempt[0]) + 2, nets.take(start, [0, 1]), *arguments, **keywords)
    made = count_attempts(monkeypatch)
    for attempts in (int(whole[0].attempt[0] - whole[1].attempt[0]), 0):
        _, ends = descend.descend(nets.take(start, [0, 1]), *arguments, **keywords)
        assert len(made) == attempts
        for a, b in zip(whole, ends, strict=True):
            same_descent(a, b)
        made.clear()


def test_a_killed_run_goes_on_in_smaller_stacks_and_to_other_levels(digits, tmp_path, monkeypatch):
    """A higher level comes in between; then memory no longer suffices for two. What was on the way to a level goes."""
    folders = [tmp_path / "1", tmp_path / "2"]
    keywords, here = {"batch": 16, "checkpoint": 0.0}, stack(["EWN"] * 2, [1, 2])
    break_off(monkeypatch, 20, nets.take(here, [0, 1]), digits, [1, 2], [-2], folders=folders, **keywords)
    (found,), _ = descend.descend(stack(["EWN"], [1]), digits, [1], [-0.25], folders=folders[:1], **keywords)
    made, attempt = [], descend.attempt

    def small(state, *given):
        if len(state.seeds) > 1:
            raise torch.OutOfMemoryError
        made.append(1)
        attempt(state, *given)

    monkeypatch.setattr(descend, "attempt", small)
    with pytest.warns(stacking.MemoryWarning):
        _, ends = descend.descend(here, digits, [1, 2], [-2, -2.1], folders=folders, **keywords)
    assert found[-0.25].attempt[0] < 20 and len(made) == sum(int(end.attempt[0]) - 20 for end in ends)
    kept = {path.parent.name + path.stem for path in tmp_path.rglob("*.safetensors")}
    assert kept == {"1level-0.25", "1level-2", "1level-2.1", "2level-2", "2level-2.1"}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")  # of threads, of which the child has none
def test_two_processes_train_a_run_once(digits, tmp_path, monkeypatch):
    """In another stack, to another level: the second waits until the first is through, and finds it there."""
    attempt, child, folders = descend.attempt, [], [tmp_path / "a", tmp_path / "b"]

    def other(*given):
        monkeypatch.setattr(descend, "attempt", attempt)
        child.append(os.fork())
        if child == [0]:
            made = count_attempts(monkeypatch)
            descend.descend(stack(["EWN"], [1]), digits, [1], [-1], folders=folders[:1], batch=16)
            os._exit(min(len(made), 99))
        attempt(*given)

    monkeypatch.setattr(descend, "attempt", other)
    descend.descend(stack(["EWN", "SWN"], [1, 1]), digits, [1, 1], [-1, -2], folders=folders, batch=16)
    assert os.waitstatus_to_exitcode(os.waitpid(child[0], 0)[1]) == 0, "attempts that the other made"


@pytest.mark.parametrize("between", [-2, -1])
def test_a_run_goes_on_from_a_level_that_another_call_reached_since(
    digits, uninterrupted, tmp_path, monkeypatch, between
):
    whole = uninterrupted(("EWN",), (1,), -1, -2, -4)
    keywords = {"folders": [tmp_path / "a"], "batch": 16, "checkpoint": 0.0}
    break_off(monkeypatch, 3, stack(["EWN"], [1]), digits, [1], [-2, -4], **keywords)
    descend.descend(stack(["EWN"], [1]), digits, [1], [between], **keywords)
    made = count_attempts(monkeypatch)
    again, _ = descend.descend(stack(["EWN"], [1]), digits, [1], [-2, -4], **keywords)
    assert len(made) == int(whole[0][-4].attempt[0] - whole[0][between].attempt[0]), "nothing is trained again"
    same_descent(whole[0][-4], again[0][-4])


def test_a_file_of_another_name_is_no_state(digits, tmp_path):
    """Copies of a level under names that a person gave them: neither read nor deleted, and none counts as a level."""
    names = "towards-5 (copy)", "level-1 (copy)", "level-old", "level-", "level-.5.2", "level--3", "level-01"
    keywords = {"folders": [tmp_path / "a"], "batch": 16}
    descend.descend(stack(["EWN"], [1]), digits, [1], [-0.25], **keywords)
    content = descent.level_path(tmp_path / "a", -0.25).read_bytes()
    strays = [tmp_path / "a" / f"{name}.safetensors" for name in names]
    for stray in strays:
        stray.write_bytes(content)
    (found,), _ = descend.descend(stack(["EWN"], [1]), digits, [1], [-0.25, -0.5], **keywords)
    assert list(found) == [-0.25, -0.5] and all(stray.read_bytes() == content for stray in strays)


@pytest.mark.parametrize("before", [[-1, -4], [-3], [-1, -3]])
def test_a_level_asked_for_after_a_deeper_one_is_the_one_on_the_way(digits, uninterrupted, tmp_path, before):
    """As by one call that asked for all of them, and the end is the deepest."""
    (whole,) = uninterrupted(("EWN",), (1,), -1, -2, -4)
    keywords = {"folders": [tmp_path / "a"], "batch": 16}
    descend.descend(stack(["EWN"], [1]), digits, [1], before, **keywords)
    (found,), (last,) = descend.descend(stack(["EWN"], [1]), digits, [1], [-1, -2, -4], **keywords)
    for level in whole:
        same_descent(whole[level], found[level])
        same_descent(whole[level], descent.load(descent.level_path(tmp_path / "a", level), stack(["EWN"], [1]))[0])
    same_descent(whole[-4], last)


def test_a_level_of_another_run_is_refused(digits, tmp_path):
    """The files of two seeds exchanged, and a level under the name of another."""
    folders = [tmp_path / "1", tmp_path / "2"]
    keywords = {"folders": folders, "batch": 16}
    descend.descend(stack(["EWN"] * 2, [1, 2]), digits, [1, 2], [-1, -2], **keywords)
    paths = [descent.level_path(folder, -2) for folder in folders]
    contents = [path.read_bytes() for path in paths]
    paths[0].write_bytes(contents[1])
    with pytest.raises(RecordError, match=r"1.level-2.*holds seed 2; asked for is seed 1.*Put the right file"):
        descend.descend(stack(["EWN"] * 2, [1, 2]), digits, [1, 2], [-1, -2], **keywords)
    paths[0].write_bytes(descent.level_path(folders[0], -1).read_bytes())
    with pytest.raises(RecordError, match=r"holds level -1\.0; asked for is level -2\.0"):
        descend.descend(stack(["EWN"] * 2, [1, 2]), digits, [1, 2], [-1, -2], **keywords)
    paths[0].write_bytes(contents[0])
    with pytest.raises(RecordError, match="holds type 'EWN'; asked for is type 'SWN'"):
        descend.descend(stack(["SWN"] * 2, [1, 2]), digits, [1, 2], [-1, -2], **keywords)
    other = [{"type": "EWN", "seed": seed, "batch_size": 8} for seed in (1, 2)]
    with pytest.raises(RecordError, match="holds no batch_size; asked for is batch_size 8"):
        descend.descend(stack(["EWN"] * 2, [1, 2]), digits, [1, 2], [-1, -2], recipes=other, **keywords)


def test_what_is_said_to_be_trained_is_not_trained(digits, tmp_path):
    keywords = {"folders": [tmp_path / "there"], "batch": 16}
    descend.descend(stack(["EWN"], [1]), digits, [1], [-1], **keywords)
    assert descend.descend(stack(["EWN"], [1]), digits, [1], [-1], trained=True, **keywords)[0][0][-1].seeds == [1]
    with pytest.raises(RecordError, match=r"has no level-2\.safetensors; there is level-1\.safetensors"):
        descend.descend(stack(["EWN"], [1]), digits, [1], [-1, -2], trained=True, **keywords)
    with pytest.raises(RecordError, match="has no level-1"):
        descend.descend(stack(["EWN"], [1]), digits, [1], [-1], trained=True, folders=[tmp_path / "nowhere"])
    assert not (tmp_path / "nowhere").exists()
    shutil.copytree(tmp_path / "there", tmp_path / "of a colleague/there")
    keywords["folders"] = [tmp_path / "of a colleague/there"]
    descend.descend(stack(["EWN"], [1]), digits, [1], [-1], trained=True, **keywords)
    assert [path.name for path in (tmp_path / "of a colleague").iterdir()] == ["there"], "nothing is written there"


def test_a_loss_that_stays_what_it_is_ends_in_a_stall(digits):
    """With no unit alive there is no gradient: the step shrinks until the run is given up, not 10,000 epochs later."""
    net = stack(["no-WN"], [1])
    with torch.no_grad():
        net.layers[0].weight.zero_(), net.layers[0].bias.fill_(-1)
    _, (end,) = descend.descend(net, digits, [1], [-5], batch=100)
    assert int(end.epoch[0]) == 0 and float(end.step[0]) <= descend.SMALLEST_STEP


def test_a_run_that_does_not_get_there_is_missing_its_level(digits):
    reached, ends = descend.descend(stack(["EWN"], [1]), digits, [1], [-0.5, -50], batch=16, max_epochs=20)
    assert list(reached[0]) == [-0.5]
    p = {"levels": [-0.5, -50], "sparsities": [0.0]}
    record = ewn.record(reached[0], ends[0], torch.zeros(2, 3, 1), p)
    assert record["scores"]["test_accuracy_at_-0.5"] > 0.3
    assert record["scores"]["test_accuracy_at_-50"] is None


def test_stale_norms_are_one_epoch_older(digits):
    reached, ends = descend.descend(stack(["EWN"], [1]), digits, [1], [-50], batch=16, max_epochs=1)
    (layer,) = ewn.norm_criteria({-50: ends[0]}, -50)["norm"]
    stale, now = (ewn.norm_criteria({-50: ends[0]}, -50, stale=s) for s in (True, False))
    assert torch.equal(stale["norm"][layer], ends[0].norms_start[layer])
    assert torch.equal(now["norm"][layer], nets.unit_norms(ends[0].net)[layer])
    assert not stale["since_init"][layer].any()


def test_growth_is_counted_from_every_earlier_level(digits):
    reached, _ = descend.descend(stack(["SWN"], [1]), digits, [1], [-1, -2, -3], batch=16)
    assert list(ewn.norm_criteria(reached[0], -1)) == ["norm", "since_init"]
    last = ewn.norm_criteria(reached[0], -3)
    assert list(last) == ["norm", "since_init", "since_-1", "since_-2"]
    now, then = (nets.unit_norms(reached[0][level].net)["layers.0"] for level in (-3, -1))
    assert torch.equal(last["since_-1"]["layers.0"], now - then)
    assert list(last["norm"]) == ["layers.0"], "output units are never pruned"


def test_runs_of_one_seed_share_the_order(digits):
    state = descend.start(stack(TYPES, [1, 1, 2]), [1, 1, 2], (digits.split("train"), digits.split("test")))
    orders = draws.orders(state.seeds, state.attempt.tolist(), 100)
    assert (orders[0] == orders[1]).all() and (orders[0] != orders[2]).any()
    assert (orders[2] == draws.permutation(2, "order", 0, 100)).all()


@pytest.mark.parametrize("levels", [[], [-10, -5], [1], [-10, -10], [-10, -10.00001]])
def test_bad_levels_are_told(digits, levels):
    with pytest.raises(ValueError, match="each negative and below"):
        descend.descend(stack(["EWN"], [1]), digits, [1], levels)


def test_two_runs_cannot_share_a_folder(digits, tmp_path):
    with pytest.raises(ValueError, match="share one"):
        descend.descend(stack(TYPES[:2], [1, 2]), digits, [1, 2], [-1], folders=[tmp_path, tmp_path])


def test_histories_are_thinned_but_keep_the_levels():
    rows = [(float(k), *[0.0] * (len(descent.HISTORY) - 1)) for k in range(5001)]
    state = descent.Descent(None, [1], *[None] * len(descent.VECTORS), {}, {}, [rows])
    epochs = state.thinned(keep=[4321])["epoch"]
    assert len(epochs) <= 201 and epochs[0] == 0 and epochs[-1] == 5000 and 4321 in epochs


def test_two_runs_share_no_folder(digits, tmp_path):
    """As of a notebook's weights, one folder, with two seeds."""
    with pytest.raises(ParameterError, match="two runs share one; name one each, or take one run"):
        descend.descend(stack(["EWN"] * 2, [1, 2]), digits, [1, 2], [-2], folders=[tmp_path] * 2, batch=16)
    assert not [*tmp_path.iterdir()]
