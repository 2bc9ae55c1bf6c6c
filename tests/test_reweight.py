"""Reweighting against least squares on the raw inputs, and pruned networks against removing units by hand."""

import copy

import numpy as np
import pytest
import torch

from lib import likelihood, nets, reweight

ACT = torch.relu


def inputs(examples=300, size=14):
    """Return examples (N, I) float64, more than half of the inputs combinations of others or constant."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(examples, size)) + 0.5
    x[:, 4:7] = -0.4242
    x[:, 7:] = x[:, :4] @ rng.normal(size=(4, 7)) + 1e-2 * rng.normal(size=(examples, 7)) * (np.arange(7) > 3)
    return torch.from_numpy(x)


def random_mask(shape, share=0.6, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).random(shape) < share)


def by_lstsq(x, w, kept, intercept):
    """Return the shortest change of weights, and the residual, of one unit on the raw inputs."""
    x, w, kept = x.numpy(), w.numpy(), kept.numpy()
    left, right = x[:, kept], x[:, ~kept] @ w[~kept]
    if intercept:
        left, right = left - left.mean(0), right - right.mean()
    change = np.linalg.lstsq(left, right, rcond=1e-9)[0]
    return change, np.linalg.norm(left @ change - right)


@pytest.mark.parametrize("intercept", [False, True])
def test_edges_equal_least_squares_on_the_inputs(intercept):
    x, w, kept = inputs(), torch.randn(2, 5, 14, dtype=torch.float64), random_mask((2, 5, 14))
    new, shift = reweight.refit(w, kept, likelihood.moments(x), intercept)
    assert (new[~kept] == 0).all()
    for run in range(2):
        for unit in range(5):
            row, was, now = kept[run, unit], w[run, unit], new[run, unit]
            change, residual = by_lstsq(x, was, row, intercept)
            np.testing.assert_allclose((now - was)[row], change, rtol=1e-5, atol=1e-6)
            error = torch.linalg.vector_norm(x @ now + shift[run, unit] - x @ was)
            np.testing.assert_allclose(error, residual, rtol=1e-5, atol=1e-5)
    assert intercept or (shift == 0).all()


@pytest.mark.parametrize("intercept", [False, True])
def test_units_equal_least_squares_for_every_dropped_one(intercept):
    """As published: each dropped unit o is fitted by those kept, and W2 takes what W2[o] did to it."""
    a, after, units = inputs(), torch.randn(1, 3, 14, dtype=torch.float64), random_mask((1, 14))
    new, shift = reweight.refit(after, units, likelihood.moments(a), intercept)
    kept, expected = units[0].numpy(), after[0].clone()
    for dropped in np.flatnonzero(~kept):
        alone = torch.zeros(14, dtype=torch.float64)
        alone[dropped] = 1
        change, _ = by_lstsq(a, alone, units[0], intercept)
        expected[:, units[0]] += after[0, :, [dropped]] * torch.from_numpy(change)
    np.testing.assert_allclose(new[0][:, kept], expected[:, units[0]], rtol=1e-5, atol=1e-6)
    assert (new[0][:, ~kept] == 0).all()
    means = ((a @ (after - new)[0].T).mean(0)) * intercept
    torch.testing.assert_close(shift[0], means, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("shape", [(2, 5, 14), (2, 14)])
def test_all_kept_leaves_the_weights_alone(shape):
    w = torch.randn(2, 5, 14)
    new, shift = reweight.refit(w, torch.ones(shape, dtype=torch.bool), likelihood.moments(inputs()))
    torch.testing.assert_close(new, w, rtol=1e-6, atol=1e-6)
    assert shift.abs().max() < 1e-6


def test_a_unit_that_keeps_nothing_becomes_its_mean():
    x, w = inputs(), torch.randn(1, 2, 14, dtype=torch.float64)
    kept = torch.stack([torch.zeros(14), torch.ones(14)])[None].bool()
    new, shift = reweight.refit(w, kept, likelihood.moments(x))
    assert (new[0, 0] == 0).all()
    torch.testing.assert_close(shift[0, 0], (x @ w[0, 0]).mean())


def test_each_run_has_its_own_gram_matrix(monkeypatch):
    x = torch.stack([inputs(), inputs().flip(1)])
    w, edges, units = torch.randn(2, 5, 14), random_mask((2, 5, 14)), random_mask((2, 14))
    monkeypatch.setattr(reweight, "CHUNK_BYTES", {"cpu": 1})
    for kept in (edges, units):
        both, shifts = reweight.refit(w, kept, likelihood.moments(x))
        for run in range(2):
            one = slice(run, run + 1)
            new, shift = reweight.refit(w[one], kept[one], likelihood.moments(x[run]))
            torch.testing.assert_close(both[one], new, rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(shifts[one], shift, rtol=1e-4, atol=1e-5)


# ------------------------------------------------------------------------------------------------- networks


def network(sizes=(14, 9, 6, 3), bias=True):
    net = nets.init_(nets.MLP(list(sizes), ["no-WN"] * 2, bias=bias, output_bias=bias), [1, 2]).double()
    with torch.no_grad():
        for layer in net.layers:
            if layer.bias is not None:
                layer.bias.normal_(generator=torch.Generator().manual_seed(0))
    return net


def test_edges_of_a_layer_are_pruned_and_refitted():
    net, x, kept = network(), inputs(), random_mask((2, 9, 14))
    found = likelihood.moments(x)
    raw, fitted, published = (copy.deepcopy(net) for _ in range(3))
    raw.layers[0].weight.data *= kept
    reweight.edges_(fitted, {"layers.0.weight": kept}, found)
    reweight.edges_(published, {"layers.0.weight": kept}, found, intercept=False)
    whole = net.layers[0](x)
    errors = [(n.layers[0](x) - whole).square().sum((1, 2)) for n in (fitted, published, raw)]
    assert (errors[0] <= errors[1] * (1 + 1e-9)).all() and (errors[1] < errors[2]).all()
    assert (fitted.layers[0].weight[~kept] == 0).all()
    assert torch.equal(published.layers[0].bias, net.layers[0].bias)


def test_a_pruned_unit_leaves_its_constant_to_the_next_bias():
    """The published network, in which a pruned unit goes on sending its constant, and ours, in which it is gone."""
    net, x, units = network(), inputs(), {"layers.0": random_mask((2, 9))}
    removed = reweight.units_(copy.deepcopy(net), units, ACT)
    published = reweight.units_(copy.deepcopy(net), units, ACT, as_published=True)
    torch.testing.assert_close(removed(x), published(x))
    by_hand = copy.deepcopy(net)
    by_hand.layers[0].weight.data *= units["layers.0"][:, :, None]
    torch.testing.assert_close(published(x), by_hand(x), rtol=0, atol=0)
    gone = ~units["layers.0"]
    assert (removed.layers[0].weight[gone] == 0).all() and (removed.layers[0].bias[gone] == 0).all()
    assert (removed.layers[1].weight.mT[gone] == 0).all()
    assert not torch.allclose(removed(x), net(x))


def test_units_are_pruned_and_the_next_layer_refitted():
    net, x, units = network(), inputs(), {"layers.0": random_mask((2, 9))}
    first = net.layers[0]
    found = likelihood.unit_moments(x, first.weight, first.bias, ACT)
    bare = likelihood.unit_moments(x, first.weight, None, ACT)
    raw = reweight.units_(copy.deepcopy(net), units, ACT)
    fitted = reweight.units_(copy.deepcopy(net), units, ACT, found)
    published = reweight.units_(copy.deepcopy(net), units, ACT, bare, as_published=True)
    whole = net.layers[1](ACT(first(x)))
    errors = [(n.layers[1](ACT(n.layers[0](x))) - whole).square().sum((1, 2)) for n in (fitted, published, raw)]
    assert (errors[0] < errors[1]).all() and (errors[0] < errors[2]).all()
    for other in (fitted, published):
        assert (other.layers[1].weight.mT[~units["layers.0"]] == 0).all()
    assert torch.equal(published.layers[1].bias, net.layers[1].bias)


def test_all_units_kept_is_the_same_network():
    net, x, units = network(), inputs(), {"layers.1": torch.ones(2, 6, dtype=torch.bool)}
    hidden = ACT(net.layers[0](x))
    found = likelihood.unit_moments(hidden, net.layers[1].weight, net.layers[1].bias, ACT)
    for keywords in ({}, {"moments": found}, {"moments": found, "as_published": True}, {"as_published": True}):
        torch.testing.assert_close(reweight.units_(copy.deepcopy(net), units, ACT, **keywords)(x), net(x))


def test_a_network_without_biases():
    net, x, units = network(bias=False), inputs(), {"layers.0": random_mask((2, 9))}
    found = likelihood.unit_moments(x, net.layers[0].weight, None, ACT)
    pruned = reweight.units_(copy.deepcopy(net), units, ACT)
    assert pruned.layers[1].bias is None and (pruned.layers[1].weight.mT[~units["layers.0"]] == 0).all()
    with pytest.raises(ValueError, match=r"layers\.1 has no bias.*intercept=False"):
        reweight.units_(copy.deepcopy(net), units, ACT, found)
    reweight.units_(net, units, ACT, found, intercept=False)
    with pytest.raises(ValueError, match=r"layers\.1 has no bias"):
        reweight.units_(network(bias=False), units, torch.sigmoid)


def test_errors_at_the_door():
    net = network()
    with pytest.raises(ValueError, match=r"\(2, 3\).*allowed"):
        reweight.refit(net.layers[0].weight, torch.ones(2, 3, dtype=torch.bool), likelihood.moments(inputs()))
    with pytest.raises(ValueError, match=r"'layers\.9'.*layers\.0"):
        reweight.units_(net, {"layers.9": random_mask((2, 9))}, ACT)
    with pytest.raises(ValueError, match=r"the hidden layer is 'layers\.2'; allowed are layers\.0"):
        reweight.units_(net, {"layers.2": random_mask((2, 3))}, ACT)
    normalised = nets.init_(nets.MLP([14, 9, 3], ["EWN"]), [0])
    with pytest.raises(ValueError, match="normalised.*fold"):
        reweight.edges_(normalised, {"layers.0.weight": random_mask((1, 9, 14))}, likelihood.moments(inputs()))
