"""The toy descents: against the published step counts, against autograd, and against the algorithm written plainly."""

import copy
import math

import numpy as np
import pytest
import torch

from lib import line_search, nets, twins
from lib.studies.ewn import toys

XOR = {"EWN": (5, 0.1), "SWN": (15, 1.0), "no-WN": (15, 0.1)}  # type -> exponent, cap
STARTS = ((1, 1), (3, 1), (1, 3), (5, 1), (1, 5))


def xor_net(kinds, seeds, dtype=torch.float64):
    net = nets.MLP([2, 20, 1], kinds, "relu", bias=False).to(dtype)
    return toys.fix_output_(nets.init_(net, seeds, "torch_default"), [1.0] * 10 + [-1.0] * 10)


def xor_search(kinds, seeds, dtype=torch.float64, **options):
    net = xor_net(kinds, seeds, dtype)
    rules = [XOR[kind][0] for kind in kinds], [XOR[kind][1] for kind in kinds]
    return line_search.search(net, *toys.xor(), *rules, 50, **options)


def random_net(activation, kinds=("EWN", "SWN", "no-WN"), inputs=3, units=5, outer=True):
    torch.manual_seed(0)
    net = nets.MLP([inputs, units, 1], list(kinds), activation, bias=False, normalise_output=outer).double()
    nets.init_(net, range(len(kinds)), "torch_default")
    with torch.no_grad():
        for layer in net.layers:  # v of any length, s of both signs
            layer.weight.mul_(1 + torch.rand_like(layer.weight))
            layer.scale.add_(torch.randn_like(layer.scale)).mul_(layer.norm[:, None] != twins.NO_WN)
    return net


# ---------------------------------------------------------------- published numbers


@pytest.fixture(scope="module")
def trajectories():
    kinds = [kind for kind in ("EWN", "no-WN", "SWN") for _ in STARTS]
    net = nets.MLP([1, 2, 1], kinds, "none", bias=False).double()
    toys.fix_output_(net, [2.0, 1.0])
    toys.set_(net.layers[0], torch.tensor(STARTS * 3, dtype=torch.float64)[:, :, None])
    result = line_search.search(net, torch.ones(1, 1), torch.ones(1), 10, 0.1, 50, loss="exponential")
    return result, nets.fold(result.net).layers[0].weight.detach()[..., 0]


def test_simple_trajectories_take_the_published_steps(trajectories):
    result, _ = trajectories
    assert result.steps.tolist()[:10] == [57, 49, 58, 45, 52, 2770, 2755, 2763, 2734, 2755]
    assert result.rejected.tolist() == [0] * 15 and result.end == ["limit"] * 15
    assert result.step.tolist() == pytest.approx([0.10834706] * 15)
    assert float(result.history["log_loss"][4, 0]) == pytest.approx(-7)


def test_simple_trajectories_end_where_published(trajectories):
    ewn = [(24.67140, 1.97017), (25.10101, 1.17687), (2.72328, 45.57282), (25.25367, 1.08907), (1.57671, 48.21635)]
    no_wn = [(19.80215, 10.40107), (20.20223, 9.60111), (19.00199, 12.001), (20.60257, 8.80129), (18.20223, 13.60111)]
    np.testing.assert_allclose(trajectories[1][:10], ewn + no_wn, atol=6e-6)  # published with five decimals


def test_a_normalised_unit_of_one_positive_input_is_a_plain_one(trajectories):
    result, ends = trajectories
    assert torch.equal(result.steps[5:10], result.steps[10:])
    torch.testing.assert_close(ends[5:10], ends[10:], rtol=1e-12, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_xor_as_published(dtype):
    result = xor_search(["EWN", "SWN", "no-WN"], [9156] * 3, dtype)
    first = [[1.587536, 1.561583, 1.553628], [1.587536, 1.548945, 1.539360], [1.587536, 1.508342, 1.488670]]
    np.testing.assert_allclose(result.history["log_loss"][:, :3], first, atol=1e-6)
    assert (int(result.steps[0]), int(result.steps[2])) == (2785, 1617)
    assert result.rejected[[0, 2]].tolist() == [0, 0]
    squares = nets.unit_norms(result.net)["layers.0"].square()
    shares = squares.topk(4).values.sum(1) / squares.sum(1)
    np.testing.assert_allclose(shares, [0.988, 0.397, 0.310], atol=0.002)
    assert squares[0].topk(4).indices.sort().values.tolist() == [1, 4, 13, 17]


@pytest.fixture(scope="module")
def separated():
    """Both types of lin-sep at the published seed, float32 as published, to e^-300."""
    points = toys.lin_sep([2137, 2137])
    net = nets.MLP([2, 8, 1], ["EWN", "SWN"], "relu2", bias=False, normalise_output=True)
    nets.init_(net, [2137, 2137], "torch_default")
    kept = ("weights", "slopes", "margins")
    return line_search.search(net, points.train_x, points.train_y, 30, 0.01, 300, budget=40_000, keep=kept)


def test_lin_sep_begins_as_published(separated):
    first = [[0.862291, 0.853907, 0.850243, 0.846534, 0.842797], [0.862291, 0.850127, 0.844779, 0.839327, 0.833804]]
    np.testing.assert_allclose(separated.history["log_loss"][:, :5], first, atol=1e-5)


def test_lin_sep_ends_as_published(separated):
    assert separated.end == ["limit", "limit"]
    assert separated.steps.tolist() == [pytest.approx(653, rel=0.03), pytest.approx(12_284, rel=0.03)]
    weights = [layer.weight.detach() for layer in nets.fold(separated.net).layers]
    inner, outer = (twins.lengths(w) for w in weights)
    assert [row.topk(2).indices.sort().values.tolist() for row in inner] == [[5, 7], [5, 6]]
    np.testing.assert_allclose(inner[0, [5, 7]], [5.213, 5.982], rtol=0.01)
    np.testing.assert_allclose(inner[1, [5, 6]], [5.945, 6.693], rtol=0.01)
    np.testing.assert_allclose(outer[:, 0], [8.433, 6.442], rtol=0.01)


@pytest.mark.parametrize(
    ("run", "active", "margin", "slope"), [(0, [5, 7, 8], 0.1876, -0.87), (1, [5, 6, 8], 0.2133, 1.04)]
)
def test_lin_sep_has_the_published_margin_and_relation(separated, run, active, margin, slope):
    _, kept = separated.thinned([run])
    weights, slopes, margins = (kept[name][0, -1].numpy() for name in ("weights", "slopes", "margins"))
    assert margins.min() / np.square(weights).sum() ** 1.5 == pytest.approx(margin, abs=0.005)
    norms, gradients = toys.unit_norms(weights, [2, 8, 1])[active], toys.unit_norms(slopes, [2, 8, 1])[active]
    assert toys.slope(np.log(norms), np.log(gradients)) == pytest.approx(slope, abs=0.1)
    cosines = toys.unit_cosines(weights, slopes, [2, 8, 1])
    assert cosines[active[:2]] == pytest.approx(-1, abs=1e-3) and cosines[8] < -0.97


# ---------------------------------------------------------------- the gradient


@pytest.mark.parametrize("loss", ["logistic", "exponential"])
@pytest.mark.parametrize("activation", ["none", "relu", "relu2"])
@pytest.mark.parametrize("shared", [True, False])
def test_the_gradient_is_autograds(loss, activation, shared):
    net = random_net(activation)
    x, y = torch.randn(7, 3, dtype=torch.float64), torch.randn(7, dtype=torch.float64).sign()
    x = x if shared else torch.randn(3, 7, 3, dtype=torch.float64)
    state = line_search._start(net, x, y, loss, 0.01, 10, 1, 50)
    losses = -y * net(x)[..., 0]
    losses = torch.nn.functional.softplus(losses).log() if loss == "logistic" else losses
    log_loss = losses.logsumexp(1)
    log_loss.sum().backward()
    torch.testing.assert_close(state.log_loss, log_loss.detach(), rtol=1e-12, atol=1e-13)
    for layer, v, s in zip(net.layers, state.gradient[::2], state.gradient[1::2], strict=True):
        torch.testing.assert_close(v.permute(2, 1, 0), layer.weight.grad, rtol=1e-10, atol=1e-13)
        torch.testing.assert_close(s.t(), layer.scale.grad, rtol=1e-10, atol=1e-13)


def test_a_fixed_output_has_no_gradient_and_stays():
    result = xor_search(["EWN", "no-WN"], [1, 2], budget=5)
    assert torch.equal(result.net.layers[1].weight[:, 0], torch.tensor([[1.0] * 10 + [-1.0] * 10] * 2).double())
    plain = line_search._start(xor_net(["no-WN"], [1]), *toys.xor(), "logistic", 0.01, 5, 1, 50)
    assert plain.gradient[1:] == [None] * 3


# ---------------------------------------------------------------- the algorithm


def published_loop(net, x, y, exponent, cap, limit, budget):
    """Return (log-losses, rejected attempts): Algorithm A as its authors describe it, for one network.

    The loss is rescaled before it is summed, and one is dropped in log(1 + e^-m) where all margins are above 30.
    """

    def rescaled(level):
        margins = y * net(x)[0, :, 0]
        if margins.min() > 30:
            return (-margins - level).exp().sum()
        return math.exp(-level) * torch.log1p((-margins).exp()).sum()

    parameters = [p for p in net.parameters() if p.requires_grad]
    step, level, logged, rejected = 0.01, 0.0, [], 0
    while len(logged) < budget:
        loss = rescaled(level)
        gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
        before = [p.detach().clone() for p in parameters]
        while True:
            rate = step * math.exp(level / exponent) if exponent else step
            with torch.no_grad():
                for p, old, gradient in zip(parameters, before, gradients, strict=True):
                    p.copy_(old if gradient is None else old - rate * gradient)
                if rescaled(level) <= loss:
                    break
            step, rejected = step / 1.1, rejected + 1
        step = step * 1.1 if step < cap else step
        level += float(loss.detach().log())
        logged.append(level)
        if level < -limit:
            break
    return logged, rejected


@pytest.mark.parametrize(("kind", "exponent", "cap"), [("EWN", 5, 0.1), ("SWN", 15, 1.0), ("no-WN", 0, 30.0)])
def test_the_stack_follows_the_published_loop(kind, exponent, cap):
    """Steps that are accepted and steps that are rejected, before and after the margins pass 30."""
    logged, rejected = published_loop(xor_net([kind], [3]), *toys.xor(), exponent, cap, 36, 120)
    net = xor_net([kind] * 2, [4, 3])
    result = line_search.search(net, *toys.xor(), exponent, cap, 36, budget=120, points=1000)
    steps = min(len(logged), 120)
    np.testing.assert_allclose(result.history["log_loss"][1, :steps], logged[:steps], rtol=1e-6, atol=1e-6)
    assert int(result.rejected[1]) == pytest.approx(rejected, abs=1)
    assert kind == "EWN" or rejected > 0
    assert kind != "no-WN" or logged[-1] < -36


@pytest.mark.parametrize("activation", ["relu", "relu2"])
def test_a_stack_is_its_runs_alone(activation):
    kinds = ["EWN", "SWN", "no-WN", "EWN"]
    x, y = torch.randn(4, 6, 3, dtype=torch.float64), torch.ones(6, dtype=torch.float64)
    x = x.abs() * y[:, None]  # the labels can be met: y is 1 and x is positive
    exponent, cap = [5, 15, 10, 7], [0.1, 1.0, 0.1, 0.05]
    net = random_net(activation, kinds)
    alone = [nets.take(net, [k]) for k in range(4)]
    options = {"budget": 60, "keep": ("weights", "slopes", "margins")}
    stack = line_search.search(net, x, y, exponent, cap, 5, **options)
    for k, one in enumerate(alone):
        single = line_search.search(one, x[k], y, exponent[k], cap[k], 5, **options)
        assert (single.steps[0], single.rejected[0]) == (stack.steps[k], stack.rejected[k])
        assert single.end[0] == stack.end[k]
        for name, values in single.history.items():
            torch.testing.assert_close(stack.history[name][k], values[0], rtol=1e-6, atol=1e-9, equal_nan=True)
        for mine, other in zip(stack.net.parameters(), single.net.parameters(), strict=True):
            torch.testing.assert_close(mine[k], other[0], rtol=1e-9, atol=1e-12)


def test_a_descent_leaves_its_network_as_it_was():
    """Else the cell that trains, run once more, would go on from there and save that."""
    net, (linear, x, y) = random_net("relu"), linear_nets(2, ["EWN", "no-WN"], [1, 2])
    before = copy.deepcopy([net.state_dict(), linear.state_dict()])
    points = torch.randn(5, 3, dtype=torch.float64).abs(), torch.ones(5, dtype=torch.float64)
    first, again = (line_search.search(net, *points, 5, 0.1, 5, budget=30, keep=("weights",)) for _ in range(2))
    one, other = (line_search.gradient_descent(linear, x, y, 0.001, 20) for _ in range(2))
    assert torch.equal(one[1], other[1])
    np.testing.assert_array_equal(first.history["weights"], again.history["weights"])
    for mine, old in zip((net, linear), before, strict=True):
        assert all(torch.equal(tensor, old[name]) for name, tensor in mine.state_dict().items())
    assert not torch.equal(first.net.layers[0].weight, net.layers[0].weight)


def test_only_rejected_runs_try_again():
    """A run whose first step is far too long shrinks it until the loss falls; its neighbour does not wait."""
    net = xor_net(["no-WN"] * 2, [1, 1])
    state = line_search._start(net, *toys.xor(), "logistic", torch.tensor([1e4, 0.01]), 15, 0.1, 50)
    before, moved = state.theta[0].clone(), line_search._attempt(state)
    assert moved.tolist() == [False, True]
    assert torch.equal(state.theta[0][..., 0], before[..., 0])  # where it was, to the last bit
    assert not torch.equal(state.theta[0][..., 1], before[..., 1])
    assert state.step.tolist() == pytest.approx([1e4 / 1.1, 0.011])
    assert (state.taken.tolist(), state.rejected.tolist()) == ([0, 1], [1, 0])
    assert float(state.level[0]) == 0 and float(state.level[1]) == float(state.log_loss[0])


@pytest.mark.parametrize("first", [1e200, 1e308])
def test_a_loss_that_is_no_number_is_rejected(first):
    state = line_search._start(xor_net(["EWN"], [1]), *toys.xor(), "logistic", first, 5, 0.1, 50)
    assert not line_search._attempt(state)[0]
    assert state.log_loss.isfinite().all() and all(t.isfinite().all() for t in state.theta)


def test_the_step_passes_its_cap_by_less_than_its_growth():
    result = xor_search(["EWN"], [9156], budget=60)
    assert float(result.step[0]) == pytest.approx(0.10834706)


def test_runs_that_miss_the_limit_are_counted():
    result = xor_search(["EWN", "no-WN"], [9156, 9156], budget=1700)
    assert result.end == ["budget", "limit"]  # the second leaves the stack earlier
    assert result.steps.tolist() == [1700, 1617] and float(result.log_loss[0]) > -50 > float(result.log_loss[1])
    steps, history = result.thinned([1], limit=50)
    assert len(steps) <= 50 and steps[0] == 0 and 1500 < steps[-1] < 1617
    assert history["log_loss"].shape == (1, len(steps)) and history["log_loss"].isfinite().all()


def test_an_equal_loss_is_accepted():
    net = xor_net(["no-WN"], [0])
    with torch.no_grad():
        net.layers[0].weight.zero_()  # no unit is active and none ever will be
    result = line_search.search(net, *toys.xor(), 15, 0.1, 50, budget=3)
    assert result.end == ["budget"] and result.rejected.tolist() == [0]


def test_a_run_that_cannot_descend_stalls():
    net = xor_net(["no-WN", "no-WN"], [0, 9156])
    with torch.no_grad():
        net.layers[0].weight[0].fill_(torch.nan)
    result = line_search.search(net, *toys.xor(), 15, 0.1, 50, budget=1000)
    assert result.end == ["stalled", "budget"] and result.steps.tolist() == [0, 1000]
    assert 600 < int(result.rejected[0]) < 1000 and result.net.layers[0].weight[1].isfinite().all()


def test_what_does_not_fit_is_refused():
    deep = nets.MLP([2, 3, 3, 1], ["EWN"], bias=False)
    with pytest.raises(ValueError, match="one hidden layer"):
        line_search.search(deep, *toys.xor(), 1, 1, 1)
    with pytest.raises(ValueError, match="logistic"):
        xor_search(["EWN"], [1], loss="hinge")
    with pytest.raises(ValueError, match="allowed are"):
        xor_search(["EWN"], [1], keep=("colour",))


# ---------------------------------------------------------------- the constant rate


def linear_nets(depth, kinds, seeds, raw_length=True, dtype=torch.float32):
    points, targets = toys.clusters(seeds)
    widths = [2] + [100] * (depth - 1) + [1]
    net = nets.MLP(widths, kinds, "none", bias=False, normalise_output=True).to(dtype)
    toys.start_at_(nets.init_(net, seeds, "torch_default"), targets, raw_length)
    return net, points.train_x.to(dtype), points.train_y.to(dtype)


def test_convergence_rate_of_one_layer_as_published():
    net, x, y = linear_nets(1, ["EWN", "SWN", "no-WN"], [6782] * 3)
    at, ends, log_losses = line_search.gradient_descent(net, x, y, 0.001, 5000)
    losses = log_losses.exp()
    np.testing.assert_allclose(losses[:, 0], [3.771677] * 3, rtol=1e-6)
    np.testing.assert_allclose(losses[:, 1], [3.743018, 3.722778, 3.722791], rtol=1e-6)
    np.testing.assert_allclose(losses[:, -1], [0.008710, 0.124671, 0.146334], rtol=2e-3)
    cosine = torch.nn.functional.cosine_similarity(ends[:, -1], torch.tensor([[-1.0, 0.0]]))
    np.testing.assert_allclose(cosine, [0.99907, 0.98928, 0.96951], atol=1e-4)
    assert at[0] == 0 and at[-1] == 4999 and len(at) <= 200


def test_deeper_starts_as_published():
    """The second loss of every depth, from the stream that the study's data loaders advance."""
    kinds, seeds = ["EWN", "SWN", "no-WN"], [6782] * 3
    points, targets = toys.clusters(seeds)
    widths = [[2] + [100] * (depth - 1) + [1] for depth in (1, 2, 3, 4)]
    deep = [nets.MLP(w, kinds, "none", bias=False, normalise_output=True) for w in widths]
    toys.old_stream_(deep, seeds, 5000)
    seconds = []
    for net in deep:
        toys.start_at_(net, targets, raw_length=True)
        _, _, log_losses = line_search.gradient_descent(net, points.train_x.float(), points.train_y.float(), 0.001, 2)
        seconds.append(log_losses[:, 1].exp().tolist())
    published = [[3.743018, 3.696057, 3.674874, 3.671060], [3.722778, 3.072197, 3.491395, 3.583045],
                 [3.722791, 2.967538, 3.451819, 3.453067]]  # fmt: skip
    np.testing.assert_allclose(np.transpose(seconds), published, atol=3e-6)


def test_the_constant_rate_is_plain_gradient_descent():
    net, x, y = linear_nets(3, ["EWN", "SWN", "no-WN"], [1, 2, 3], dtype=torch.float64)
    slow = nets.take(net, [0, 1, 2])
    optimizer = torch.optim.SGD(slow.parameters(), lr=0.001)
    _, ends, log_losses = line_search.gradient_descent(net, x, y, 0.001, 20)
    for k in range(20):
        losses = torch.nn.functional.softplus(-y * slow(x)[..., 0]).sum(1)
        torch.testing.assert_close(log_losses[:, k], losses.detach().log(), rtol=1e-9, atol=0)
        optimizer.zero_grad()
        losses.sum().backward()
        optimizer.step()
    assert ends.shape == (3, 20, 2)
