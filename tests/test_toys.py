"""The toys' points and starts: the published seed's, and what holds for every seed."""

import numpy as np
import pytest
import torch

from lib import nets, twins
from lib.studies.ewn import toys

TYPES = ["EWN", "SWN", "no-WN"]


def test_xor_is_the_product_of_signs():
    x, y = toys.xor()
    assert sorted(map(tuple, x.tolist())) == [(-1, -1), (-1, 1), (1, -1), (1, 1)]
    assert [float(-a * b) for a, b in x] == y.tolist()


def test_lin_sep_has_the_published_points():
    points = toys.lin_sep([2137])
    expected = [(1, 1), (1.72251619, 1.10770697), (-1, 1), (-1.4814836, -1.39158483)]
    np.testing.assert_allclose(points.train_x[0], expected, atol=1e-7)
    assert points.train_y.tolist() == [[-1, -1, 1, 1]]
    assert points.test_x.shape == (1, 100, 2) and points.test_y.sum() == 0


@pytest.mark.parametrize("seed", [0, 1, 2137])
def test_the_squares_of_lin_sep_mirror_each_other(seed):
    points = toys.lin_sep([seed])
    right, left = points.test_x[0, :50], points.test_x[0, 50:]
    assert (right >= 1).all() and (right <= 2).all() and (left <= -1).all() and (left >= -2).all()


def test_clusters_have_the_published_target():
    points, targets = toys.clusters([6782])
    np.testing.assert_allclose(targets, [(-0.67507115, -0.31850365)], atol=1e-8)
    assert points.train_x.shape == (1, 20, 2) and points.test_x.shape == (1, 100, 2)
    assert points.train_x[0, [0, 10]].tolist() == [[1, 1], [-1, 1]]
    assert (points.train_x.abs().amin(2)[0, [0, 10]] == 1).all()
    assert (points.train_x.abs().amin(2)[0, 1:10] >= 1.5).all()


def test_a_seed_has_the_same_points_in_any_company():
    points, targets = toys.clusters([3, 6782])
    alone, target = toys.clusters([6782])
    assert all(torch.equal(a[1], b[0]) for a, b in zip(points, alone, strict=True))
    assert torch.equal(targets[1], target[0])


@pytest.mark.parametrize("activation", ["relu", "relu2"])
def test_the_types_start_at_one_function(activation):
    net = nets.MLP([2, 20, 1], TYPES, activation, bias=False, normalise_output=True)
    nets.init_(net, [9156] * 3, "torch_default")
    out = net(torch.randn(50, 2)).detach()
    torch.testing.assert_close(out[:1].expand(3, -1, -1), out, atol=1e-5, rtol=0)


def test_torch_default_draws_what_torch_draws():
    net = nets.init_(nets.MLP([2, 8, 1], ["no-WN"], bias=False), [2137], "torch_default")
    torch.manual_seed(2137)
    for layer in net.layers:
        inputs, units = layer.weight.shape[2], layer.weight.shape[1]
        assert torch.equal(layer.weight[0], torch.nn.Linear(inputs, units, bias=False).weight)


def test_a_fixed_output_is_not_trained():
    net = toys.fix_output_(nets.MLP([2, 4, 1], TYPES, bias=False), [1.0, 1.0, -1.0, -1.0])
    assert net.layers[1].weight[:, 0].tolist() == [[1, 1, -1, -1]] * 3
    assert not net.layers[1].weight.requires_grad and net.layers[0].weight.requires_grad


def test_units_start_where_they_are_told():
    start = torch.tensor([[[3.0], [1.0]]]).expand(3, -1, -1)
    net = nets.MLP([1, 2, 1], TYPES, "none", bias=False)
    toys.set_(net.layers[0], start)
    torch.testing.assert_close(nets.fold(net).layers[0].weight.detach(), start)
    assert net.layers[0].weight[:2].flatten().tolist() == [1] * 4


@pytest.mark.parametrize("depth", [1, 2, 3, 4])
@pytest.mark.parametrize("raw_length", [True, False])
def test_all_depths_start_at_one_linear_map(depth, raw_length):
    targets = torch.tensor([[-0.675, -0.3185]] * 3, dtype=torch.float64)
    sizes = [2] + [100] * (depth - 1) + [1]
    net = nets.MLP(sizes, TYPES, "none", bias=False, normalise_output=True).double()
    toys.start_at_(nets.init_(net, [6782] * 3, "torch_default"), targets, raw_length)
    torch.testing.assert_close(net(torch.eye(2, dtype=torch.float64))[..., 0].detach(), targets)
    length = twins.lengths(net.layers[-1].weight)[:2, 0].detach()
    size = nets.unit_norms(net)[f"layers.{depth - 1}"][:2, 0]
    torch.testing.assert_close(length, size if raw_length else torch.ones(2, dtype=torch.float64))


def test_units_by_hand():
    flat = np.array([3.0, 4.0, 0.0, 0.0, 1.0, -1.0])  # two units of two inputs, and one of two
    assert toys.unit_norms(flat, [2, 2, 1]) == pytest.approx([5, 0, 2**0.5])
    assert toys.unit_cosines(flat, np.array([3.0, 4.0, 1.0, 1.0, -1.0, 1.0]), [2, 2, 1]) == pytest.approx([1, 0, -1])
    assert toys.top_share(np.array([[1.0, 2.0, 3.0]]), 2) == pytest.approx(13 / 14)


def test_slopes_by_hand():
    x, y = np.array([[0.0, 1.0, 2.0], [1.0, 2.0, 9.0]]), np.array([[1.0, 3.0, 5.0], [4.0, 3.0, 7.0]])
    assert toys.slope(x[0], y[0]) == pytest.approx(2)
    kept = np.array([[True, True, True], [True, True, False]])
    assert toys.slope(x, y, kept) == pytest.approx([2, -1])


def test_alignment_by_hand():
    """Two hidden units of one input and the output: norms 4, 2 (active), 1; the gradient is minus the weights."""
    weights = np.array([[4.0, 2.5, 0.0, 1.0]])
    by_run, by_unit = toys.alignment(weights, -weights, np.array([[3.0, 2.0]]), [1, 2, 1], 0.5)
    assert by_unit["unit_active"].tolist() == [[True, True, True]]
    assert by_run["margin"] == pytest.approx(2 / (16 + 6.25 + 1) ** 1.5)
    assert by_run["relation"] == pytest.approx(1) and by_run["cosine"] == pytest.approx(-1)
    assert by_run["active_units"].tolist() == [2]


def test_last_rows_stop_where_the_run_did():
    log_loss = np.array([[1.0, 2.0, np.nan], [1.0, 2.0, 3.0]])
    rows = toys.last_rows({"log_loss": log_loss, "weights": np.arange(12).reshape(2, 3, 2)})
    assert rows["log_loss"].tolist() == [2, 3] and rows["weights"].tolist() == [[2, 3], [10, 11]]


def test_three_numbers_are_asked_for():
    assert toys.only(3, "a b c")([1.0, 2.0, 3.0]) is None and "3 numbers, a b c" in toys.only(3, "a b c")([1.0])


def test_settling_by_hand():
    weights = np.array([[3.0, 0.0, 4.0, 1.0], [0.0, 0.0, 4.0, 0.0]])  # two units of one input, an output of two
    curves = toys.settling(
        weights, -weights, np.array([[1.0, 2.0], [5.0, 5.0]]), [1, 2, 1], np.array([True, False, True])
    )
    assert curves["unit norms"][0] == pytest.approx([3, 0, 17**0.5])
    assert curves["loss vector"][1] == pytest.approx([0.5**0.5, 0.5**0.5])
    assert curves["loss vector"][0, 1] / curves["loss vector"][0, 0] == pytest.approx(np.exp(-1))
    assert curves["cos(weights, end)"][:, 0] == pytest.approx([4 / 26**0.5, 1])
    assert curves["cos(weight, gradient)"][0] == pytest.approx([-1, -1])
    assert curves["cos(gradient, limit)"][:, 0] == pytest.approx([-4 / 26**0.5, -1])
    assert curves["normalised margin"][:, 0] == pytest.approx([1 / 26**1.5, 5 / 64])
