"""Descents that leave out what is lost in rounding, beside descents that leave out nothing."""

import dataclasses
import math

import pytest
import torch

from lib import descend, evaluate, nets, passes, screening, twins
from lib import sets as data

TYPES = ["EWN", "SWN", "no-WN"]


@pytest.fixture(scope="module")
def digits():
    """Three hundred digits for training and fifty for testing."""
    whole = data.load("digits")
    train = {k: getattr(whole, k)[:300] for k in ("train_x", "train_y")}
    return dataclasses.replace(whole, **train, test_x=whole.test_x[:50], test_y=whole.test_y[:50])


def sets_of(digits, dtype):
    return tuple((digits.split(part)[0].to(dtype), digits.split(part)[1]) for part in ("train", "test"))


def begun(digits, kinds, seeds, dtype, level=-60.0, settled=0):
    """Descents at `level`, and their data: networks that have learned the digits, their logits multiplied."""
    sets = sets_of(digits, dtype)
    state = descend.start(nets.init_(nets.MLP([784, 24, 10], kinds), seeds).to(dtype), seeds, sets)
    while bool((state.losses > -2).any()):
        descend.attempt(state, sets, 16)
    factor = (level / state.losses.amax(1)).to(dtype)
    with torch.no_grad():
        state.net.layers[-1].weight.mul_(factor[:, None, None])
    deep = descend.start(state.net, seeds, sets)
    deep.step = state.step / factor.square()
    for _ in range(settled):
        descend.attempt(deep, sets, 16)
    return deep, sets


def both(state, sets, attempts, tolerance):
    """Make attempts from one state with and without screening; return the least share that was trained on."""
    everyone = list(range(len(state.seeds)))
    ours, whole, least = nets.take(state, everyone), nets.take(state, everyone), 1.0
    for _ in range(attempts):
        counted = screening.counted(ours.losses, ours.log_loss, ours.net.layers[0].weight.dtype)
        least = min(least, float(counted.double().mean()))
        descend.attempt(ours, sets, 16)
        descend.attempt(whole, sets, 16, screened=False)
        assert torch.equal(ours.epoch, whole.epoch), "the same attempts are accepted"
        torch.testing.assert_close(ours.log_loss, whole.log_loss, rtol=tolerance, atol=tolerance)
    assert 0 < int(ours.epoch[0] - state.epoch[0]) < attempts, "some were accepted and some were not"
    return least


@pytest.mark.parametrize("kind", TYPES)
def test_a_hundred_attempts_in_float64_are_those_with_all_examples(digits, kind):
    state, sets = begun(digits, [kind], [3], torch.float64)
    assert both(state, sets, 100, 1e-9) < 0.9


def test_a_stack_takes_the_examples_of_each_run(digits):
    state, sets = begun(digits, TYPES, [1, 1, 2], torch.float64)
    assert both(state, sets, 20, 1e-9) < 0.9


@pytest.mark.parametrize("kind", TYPES)
def test_the_first_attempts_in_float32(digits, kind):
    """To the rounding of the logits: at log-losses of -80 neighbouring numbers are 8e-6 apart."""
    half = dataclasses.replace(digits, train_x=digits.train_x[:150], train_y=digits.train_y[:150])
    state, sets = begun(half, [kind], [3], torch.float32, -50.0, settled=200)
    assert both(state, sets, 30, 1e-6) < 0.8


def test_an_example_that_comes_back_costs_no_correctness(digits, monkeypatch):
    """One is planted: it is believed to be far below, and is the hardest of all."""
    state, sets = begun(digits, ["no-WN"], [3], torch.float64)
    planted, whole = nets.take(state, [0]), nets.take(state, [0])
    hardest = int(state.losses[0].argmax())
    planted.losses[0, hardest] = float(state.log_loss) - screening.rounding(torch.float64) - screening.RISE - 1
    screened, tried = [], descend._try
    monkeypatch.setattr(descend, "_try", lambda *a, **k: (screened.append(k.get("screened", a[-1])), tried(*a, **k))[1])
    for state in (planted, whole):
        descend.attempt(state, sets, 16)
    assert screened[:2] == [True, False], "the attempt was made again, whole"
    assert torch.equal(planted.epoch, whole.epoch)
    torch.testing.assert_close(planted.log_loss, whole.log_loss, rtol=0, atol=1e-9)
    for p, q in zip(planted.net.parameters(), whole.net.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=0, atol=1e-9)


def test_one_far_below_is_found_before_a_level_is_kept(digits):
    """Further than what is measured each time; the goal makes all be looked at, the planted one with them."""
    state, sets = begun(digits, ["no-WN"], [3], torch.float64)
    hardest = int(state.losses[0].argmax())
    state.losses[0, hardest] = -1000.0
    while int(state.epoch[0]) == int(state.history[0][0][0]) or state.losses[0, hardest] == -1000.0:
        descend.attempt(state, sets, 16, goals=state.log_loss + 1)
    losses = twins.log_losses(state.net(sets[0][0]), sets[0][1]).double()
    torch.testing.assert_close(state.losses, losses, rtol=0, atol=1e-9)


@pytest.mark.parametrize("shift", [-3.0, -1e-9, 1e-9, 0.5])
def test_a_pass_is_broken_off_only_when_all_runs_are_lost(digits, shift):
    (x, y), _ = sets_of(digits, torch.float64)
    net = nets.init_(nets.MLP([784, 1024, 10], ["EWN", "SWN", "no-WN"]), [1, 2, 3]).double()
    whole, steps = evaluate.evaluate(net, x, y), passes.make(net)
    losses, nothing = twins.log_losses(net(x), y).detach(), torch.zeros(3, dtype=torch.float64)
    trained = torch.ones_like(losses, dtype=torch.bool)

    def measured(level):
        return screening.measure(steps, x, y, losses, level, trained, nothing, nothing - math.inf)

    found = measured(whole.log_loss + shift)
    assert found.complete == (shift > 0)
    if found.complete:
        torch.testing.assert_close(found.log_loss, whole.log_loss, rtol=0, atol=1e-12)
        assert torch.equal(found.right, whole.accuracy)
    one = whole.log_loss - 1
    one[1] += 2  # this run is within its bound, so the pass goes on to the end
    assert measured(one).complete
    with torch.no_grad():
        net.layers[0].weight.fill_(float("nan"))
    assert not measured(whole.log_loss + 1).complete, "what is no number is lost"


def test_batches_hold_what_counts_and_their_own_size():
    orders = torch.stack([torch.randperm(50) for _ in range(2)])
    counted = torch.rand(2, 50) < 0.3
    for order in (orders, orders[:1].expand(2, -1)):
        wanted = [part for part in order.split(16, 1)]
        shared = bool((order == order[:1]).all())
        found = list(passes.batches(order, counted, 16))
        full = [k for k, part in enumerate(wanted) if bool(counted.gather(1, part).any())]
        assert len(found) == len(full)
        for k, (index, examples) in zip(full, found, strict=True):
            assert examples == wanted[k].shape[1]
            for run in range(2):
                own = index if shared else index[run]
                need = wanted[k][run][(counted.any(0) if shared else counted[run])[wanted[k][run]]]
                assert set(need.tolist()) <= set(own.tolist()) <= set(wanted[k][run].tolist())
                assert len(set(own.tolist())) == len(own)


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("sizes, last", [([7, 5, 3], False), ([7, 37, 11, 4], True)])
def test_steps_written_out_are_those_of_autograd(kind, sizes, last):
    """In float64, biases of the output too, with the last layer normalised or not, some examples left out."""
    net = nets.init_(nets.MLP(sizes, [kind], output_bias=True, normalise_output=last), [5]).double()
    other = nets.take(net, [0])
    x, y = torch.randn(41, 7, dtype=torch.float64), torch.randint(sizes[-1], (41,))
    counted, order = torch.rand(1, 41) < 0.6, torch.randperm(41)[None]
    assert isinstance(passes.make(net), passes.ReluSteps)
    for steps in (passes.make(net), passes.Steps(other)):
        for _ in range(3):
            steps.epoch(x, y, order, torch.tensor([0.1]).double(), torch.tensor([-0.5]).double(), 8, counted)
    for p, q in zip(net.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("kind", TYPES)
def test_steps_do_not_depend_on_what_else_there_was_room_for(kind):
    """After a resume the first pass comes before any evaluation, which takes room for more examples."""
    x, y = torch.randn(300, 784), torch.randint(10, (300,))
    order, rate, level = torch.randperm(300)[None], torch.tensor([0.1]), torch.tensor([0.0]).double()
    ends = []
    for seen in (5, 300):
        net = nets.init_(nets.MLP([784, 32, 10], [kind]), [5])
        steps = passes.make(net)
        steps.logits(x, torch.arange(seen))
        steps.epoch(x, y, order, rate, level, 5)
        ends.append([p.detach() for p in net.parameters()])
    assert all(map(torch.equal, *ends))
