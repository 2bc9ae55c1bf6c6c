"""Annealed masks against slow literal loops; counts, nesting and layers that must not collapse."""

from functools import partial

import numpy as np
import pytest
import torch

from lib import anneal, convnets, masks, nets, paths, scores, synflow
from lib.networks.layers import BatchNorm


def conv(runs=1, name="vgg11_bn", width=2, side=32):
    net = convnets.build(name, (3, side, side), 4, runs, width)
    return nets.init_(net, list(range(3, 3 + runs)), "phew")


def learned(net):
    """Return a network whose batch normalisations do something, some with shifts below zero."""
    g = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for part in (part for part in net.modules() if isinstance(part, BatchNorm)):
            for tensor, low, high in ((part.weight, 0.5, 2), (part.bias, -0.2, 1), (part.running_mean, -0.5, 0.5)):
                tensor.uniform_(low, high, generator=g)
            part.running_var.uniform_(0.5, 3, generator=g)
    return net


def annealed(score, net, density, *more, **options):
    """Return the masks of one density."""
    return anneal.anneal(score, net, [density], *more, **options)[0]


def kept_in_all(found):
    return torch.stack([mask.flatten(1).sum(1) for mask in found.values()]).sum(0).tolist()


def total(net):
    return sum(w[0].numel() for w in nets.weights(net).values())


def literal(net, density, rounds, inside=True):
    """Return the masks of SynFlow of one run by a sort of all scores in every round, of the weights still there."""
    weights = {name: w[0].detach().double().abs() for name, w in nets.weights(net).items()}
    n, twin = total(net), nets.take(net, [0]).double()
    alive = np.ones(n, bool) & inside
    for e in range(1, rounds + 1):
        level = density ** (e / rounds)
        with torch.no_grad():
            parts = torch.from_numpy(alive).split([w.numel() for w in weights.values()])
            for (name, w), part in zip(weights.items(), parts, strict=True):
                nets.weights(twin)[name].copy_((w * part.view_as(w))[None])
        found = torch.cat([score.flatten() for score in synflow.synflow(twin, None, None, None).values()]).numpy()
        order = np.argsort(np.where(alive, found, -1), kind="stable")
        alive = np.zeros(n, bool)
        alive[order[n - masks.count(n, level) :]] = True
        alive &= inside
    return alive


@pytest.mark.parametrize("name, side", [("vgg11_bn", 32), ("resnet20", 8), ("resnet20", 32)])
@pytest.mark.parametrize("density, rounds", [(0.3, 1), (0.1, 7), (0.02, 25)])
def test_annealing_is_the_literal_loop(name, side, density, rounds):
    """In which nothing is absorbed: the form that rounds score ranks all weights alike."""
    net = learned(conv(name=name, side=side)).double()
    found = annealed(synflow.synflow, net, density, rounds)
    joined = torch.cat([mask.flatten() for mask in found.values()]).numpy()
    assert np.array_equal(joined, literal(net, density, rounds))


@pytest.mark.parametrize("rounds", [1, 7])
def test_what_lies_outside_never_comes_back(rounds):
    net = learned(conv(name="resnet20", side=8)).double()
    within = {name: torch.rand(w.shape, generator=torch.Generator().manual_seed(4)) < 0.3
              for name, w in nets.weights(net).items()}  # fmt: skip
    inside = torch.cat([mask.flatten() for mask in within.values()]).numpy()
    found = annealed(synflow.synflow, net, 0.1, rounds, within=within)
    joined = torch.cat([mask.flatten() for mask in found.values()]).numpy()
    assert joined.sum() == masks.count(total(net), 0.1) and not (joined & ~inside).any()
    if rounds > 1:  # at once, scores are of the whole network
        assert np.array_equal(joined, literal(net, 0.1, rounds, inside))


@pytest.mark.parametrize("side", [32, 64])
@pytest.mark.parametrize("name", ["resnet20", "resnet18", "resnet50", "vgg11", "vgg19_bn"])
def test_rows_that_are_alike_are_computed_once(name, side):
    """A flow is that of the whole image, by torch's gradients of all of it."""
    net = learned(conv(name=name, side=side)).double()
    whole, found = synflow.flow(net), synflow.flow(thin := synflow.synflow.form(net))
    assert thin.image[1] == (6 if name == "vgg11" else 3), "one row, or a pool's two, between those near a border"
    torch.testing.assert_close(found.total, whole.total, rtol=1e-12, atol=0)
    for key, slope in whole.slopes.items():
        expected, score = slope * whole.weights[key], found.slopes[key] * found.weights[key]
        torch.testing.assert_close(score, expected, rtol=1e-9, atol=1e-12 * float(expected.abs().max()))


def test_rows_that_a_stride_leaves_over_are_computed_all():
    net = conv(name="resnet20", side=18).double()
    whole, found = synflow.flow(net), synflow.flow(thin := synflow.synflow.form(net))
    assert thin.image == (3, 18, 18)
    torch.testing.assert_close(found.total, whole.total, rtol=1e-12, atol=0)


@pytest.mark.parametrize("rounds", [1, 2, 100])
@pytest.mark.parametrize("rounding", masks.ROUNDINGS)
def test_counts_are_exact(rounds, rounding):
    net = conv()
    for density in (0.9, 0.37, 0.01):
        found = annealed(scores.magnitude, net, density, rounds, rounding=rounding)
        assert kept_in_all(found) == [masks.count(total(net), density, rounding)]


@pytest.mark.parametrize("scope", masks.SCOPES[:3])
@pytest.mark.parametrize("rounds", [1, 6])
def test_magnitude_is_the_same_in_one_round_or_many(scope, rounds):
    """Weights that stay do not change, so the largest of the largest are the largest."""
    net = conv(2)
    found = annealed(scores.magnitude, net, 0.2, rounds, scope=scope)
    expected = masks.top({name: w.detach().abs() for name, w in nets.weights(net).items()}, 0.2, scope)
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.filterwarnings("ignore:.*that stay, most of all, have a score of 0")
def test_what_is_pruned_stays_pruned():
    """Even with scores that would have it back, and where all scores are zero."""
    net, seen = conv(), []

    def treacherous(left, x, y, seeds):
        """Score highest what is zero already."""
        seen.append({name: w.detach() != 0 for name, w in nets.weights(left).items()})
        return {name: (w.detach() == 0).float() for name, w in nets.weights(left).items()}

    last = annealed(treacherous, net, 0.1, 8)
    for before, after in zip(seen, [*seen[1:], last], strict=True):
        assert all(not bool((after[name] & ~before[name]).any()) for name in last)
    assert kept_in_all(last) == [masks.count(total(net), 0.1)]


@pytest.mark.parametrize("score", [synflow.synflow, partial(synflow.synflow_l2, power=1)])
def test_a_run_does_not_depend_on_its_neighbours(score):
    net = conv(3, "resnet20", 4, 8).double()
    together = annealed(score, net, [0.1, 0.1, 0.3], 10)
    alone = annealed(score, nets.take(net, [2]), 0.3, 10)
    assert kept_in_all(together) == [masks.count(total(net), d) for d in (0.1, 0.1, 0.3)]
    assert all(torch.equal(together[name][2], alone[name][0]) for name in alone)


@pytest.mark.parametrize("threads", [1, 2])
def test_the_densities_of_a_sweep_do_not_depend_on_each_other(threads):
    net, densities = conv(2), [0.3, [0.05, 0.2], 0.1]
    found = on_threads(threads, lambda: anneal.anneal(synflow.synflow, net, densities, 4))
    alone = [annealed(synflow.synflow, net, density, 4) for density in densities]
    assert all(torch.equal(a[name], b[name]) for a, b in zip(found, alone, strict=True) for name in b)


def on_threads(threads, work):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        return work()
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("power", [1, 2])
def test_the_code_of_synflow_l2_is_annealed_as_it_is_scored(power):
    net = learned(conv(name="resnet20", side=8)).double()
    fast = annealed(partial(synflow.synflow_l2, power=power), net, 0.1, 5)
    slow = annealed(lambda *given: synflow.synflow_l2(*given, power=power), net, 0.1, 5)
    assert all(torch.equal(fast[name], slow[name]) for name in slow)


def test_annealing_leaves_the_network_alone():
    net = conv()
    before = {key: value.clone() for key, value in net.state_dict().items()}
    annealed(synflow.synflow, net, 0.1, 5)
    assert all(torch.equal(before[key], value) for key, value in net.state_dict().items())


def test_scores_get_their_examples_and_seeds():
    net, x, y = conv(2), torch.randn(6, 3 * 32 * 32), torch.arange(6) % 4
    found = annealed(scores.snip, net, 0.3, 1, x=x, y=y)
    expected = masks.top(scores.snip(net, x, y, None), 0.3, "global")
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    drawn = annealed(scores.random, net, 0.3, 1, seeds=[8, 8])
    assert all(torch.equal(mask[0], mask[1]) for mask in drawn.values())


def test_a_hundred_rounds_empty_no_layer_and_one_does():
    """A narrow VGG16 of 14 layers and 230,000 weights, of which 200 stay."""
    net = conv(1, "vgg16_bn", 8)
    density = 200 / total(net)
    many, once = (annealed(synflow.synflow, net, density, rounds) for rounds in (100, 1))
    assert kept_in_all(many) == kept_in_all(once) == [200]
    left, none = (paths.live(nets.graph(net), kept).masks.values() for kept in (many, once))
    assert len(left) == 14 and all(mask.any() for mask in left) and not any(mask.any() for mask in none)
    assert sum(int(mask.sum()) for mask in left) == pytest.approx(200, rel=0.05)


def test_the_published_count_of_resnet20():
    """95 percent of 270,896 weights by NumPy's percentile, strictly above it, as the PHEW study prunes."""
    assert masks.count(270_896, 0.05, "percentile") == 13_545
    score = np.random.default_rng(0).permutation(1000)
    for percent in (0, 12.5, 48.8, 90, 98.2, 99.9):
        assert masks.count(1000, 1 - percent / 100, "percentile") == (score > np.percentile(score, percent)).sum()


@pytest.mark.parametrize("scope", masks.SCOPES)
def test_the_highest_within_masks_are_those_of_the_rest(scope):
    g = torch.Generator().manual_seed(1)
    found = {"a": torch.randint(0, 4, (2, 3, 8), generator=g).float(), "b": torch.rand(2, 4, 2, 2, 2, generator=g)}
    within = masks.top({name: torch.rand(score.shape, generator=g) for name, score in found.items()}, 0.7, scope)
    kept = masks.top(found, [0.2, 0.6], scope, within=within)
    low = {name: score.masked_fill(~within[name], -1) for name, score in found.items()}
    expected = masks.top(low, [0.2, 0.6], scope)
    assert all(torch.equal(kept[name], expected[name]) for name in found)


def test_what_does_not_fit_is_an_error():
    net = conv()
    with pytest.raises(ValueError, match="rounds is 0"):
        annealed(scores.magnitude, net, 0.1, 0)
    with pytest.raises(ValueError, match="2 densities for a stack of 1"):
        annealed(scores.magnitude, net, [0.1, 0.2])
    with pytest.raises(ValueError, match="density.* is 0.0; allowed are numbers in"):
        annealed(scores.magnitude, net, 0.0)
    with pytest.raises(ValueError, match="scope is 'all'"):
        annealed(scores.magnitude, net, 0.1, scope="all")
    few = masks.top({"a": torch.rand(1, 2, 5)}, 0.3)
    with pytest.raises(ValueError, match="5 weights are to be kept, of which only 3"):
        masks.top({"a": torch.rand(1, 2, 5)}, 0.5, within=few)
