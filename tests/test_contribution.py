"""Contribution scores against the literal loop over examples, next units and units, and against small cases."""

import numpy as np
import pytest
import torch
from torch.nn.functional import conv2d

from lib import convnets, methods, nets, shrink
from lib.pruning import contribution as own
from lib.pruning.contribution import Sums, contributing, of_units, prunable
from lib.studies.importance import study


def draw(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def contribution(weight, activations, average=1.0, maximum=0.0, **options):
    """Return the scores of one layer's units, from all examples or chunk by chunk."""
    sums = Sums(weight, maximum=bool(maximum), **options)
    for part in [activations] if isinstance(activations, torch.Tensor) else activations:
        sums.add(part)
    return sums.score(average, maximum)


def literal(weight, activations):
    """Return (mean, largest) share of one run in percent, `(n,)` each, as the study's loops compute them."""
    weight, activations = weight.detach(), activations.detach()
    (m, n), examples = weight.shape, len(activations)
    mean, largest = np.zeros(n), np.zeros(n)
    for s in range(examples):
        for t in range(m):
            total = sum(abs(float(weight[t, k])) * abs(float(activations[s, k])) for k in range(n))
            for k in range(n):
                share = 100 * abs(float(weight[t, k])) * abs(float(activations[s, k])) / total if total else 0.0
                mean[k] += share / (examples * m)
                largest[k] = max(largest[k], share)
    return mean, largest


@pytest.mark.parametrize("m, n, examples", [(4, 3, 5), (1, 7, 3), (5, 1, 2), (9, 37, 11)])
def test_is_the_literal_loop(m, n, examples):
    weight, activations = draw(2, m, n), draw(2, examples, n, seed=1)
    for average, maximum in ((1.0, 0.0), (0.0, 1.0), (0.5, 0.25)):
        found = contribution(weight, activations, average, maximum)
        for run in range(2):
            mean, largest = literal(weight[run], activations[run])
            np.testing.assert_allclose(found[run], average * mean + maximum * largest, rtol=1e-12, atol=0)


@pytest.mark.parametrize("chunk", [1, 4, 1000])
def test_chunks_change_nothing(chunk, monkeypatch):
    weight, activations = draw(2, 4, 6), draw(2, 11, 6, seed=1)
    whole = contribution(weight, activations, 1.0, 1.0)
    monkeypatch.setattr(own, "CHUNK", chunk)
    torch.testing.assert_close(contribution(weight, activations, 1.0, 1.0), whole, rtol=1e-12, atol=0)
    parts = iter(activations.split(3, 1))
    torch.testing.assert_close(contribution(weight, parts, 1.0, 1.0), whole, rtol=1e-12, atol=0)


def test_one_layer_s_shares_are_a_hundred_together():
    assert torch.allclose(contribution(draw(3, 5, 8), draw(3, 20, 8, seed=1)).sum(1), torch.full((3,), 100.0).double())


def test_silent_examples_and_silent_readers_give_zero():
    """D = 0 where an example's units are all silent, and where a next unit has weights only for silent ones."""
    weight = torch.tensor([[[2.0, 6.0, 0.0], [0.0, 0.0, 2.0]]], dtype=torch.float64)
    activations = torch.tensor([[[0.0, 0.0, 0.0], [2.0, 2.0, 0.0]]], dtype=torch.float64)
    # Of two examples and two readers one pair says something: a quarter of 25, 75 and 0 %.
    assert contribution(weight, activations)[0].tolist() == pytest.approx([25 / 4, 75 / 4, 0])
    assert contribution(weight, activations, 0.0, 1.0)[0].tolist() == pytest.approx([25, 75, 0])
    assert not contribution(weight, activations * 0).any()


def test_float32_holds_numbers_of_any_size():
    weight, activations = draw(1, 4, 6), draw(1, 9, 6, seed=1)
    small = contribution((weight * 1e-30).float(), (activations * 1e-30).float())
    torch.testing.assert_close(small, contribution(weight, activations), rtol=1e-5, atol=0)


def test_a_unit_of_several_inputs_is_the_sum_of_their_shares():
    weight, activations = draw(2, 4, 6), draw(2, 9, 6, seed=1)
    alone = contribution(weight, activations)
    torch.testing.assert_close(contribution(weight, activations, each=3), alone.view(2, 2, 3).sum(2))
    largest = contribution(weight, activations, 0.0, 1.0, each=3)
    parts = weight.abs()[:, None] * activations.abs()[:, :, None]
    shares = 100 * parts.view(2, 9, 4, 2, 3).sum(4) / parts.sum(3, keepdim=True)
    torch.testing.assert_close(largest, shares.amax((1, 2)))


def test_next_units_that_were_pruned_do_not_count():
    weight, activations = draw(1, 5, 6), draw(1, 9, 6, seed=1)
    pruned = weight.clone()
    pruned[:, 2:4] = 0
    torch.testing.assert_close(contribution(pruned, activations), contribution(weight[:, [0, 1, 4]], activations))


# ---- networks


def mlp(runs=2):
    net = nets.MLP([10, 7, 6, 5, 3], ["no-WN"] * runs, bias=False)
    return nets.init_(net, list(range(runs))).double()


@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize("on", ["activation", "preactivation"])
def test_units_of_a_deep_network(on, own):
    net, shared = mlp(), draw(8, 10)
    x = torch.stack([shared, 2 * shared.flip(0) + 1]) if own else shared
    found = contributing(net, x, None, None, maximum=0.5, on=on)
    assert list(found) == ["layers.0", "layers.1", "layers.2"]
    for run in range(2):
        h = x[run] if own else x
        for k, name in enumerate(found):
            z = h @ net.layers[k].weight[run].detach().T
            h = torch.relu(z)
            mean, largest = literal(net.layers[k + 1].weight[run], z if on == "preactivation" else h)
            np.testing.assert_allclose(found[name][run], mean + 0.5 * largest, rtol=1e-10)


def test_a_network_in_training_stays_in_training_and_keeps_no_hook():
    net = mlp().train()
    of_units(net, draw(8, 10))
    assert net.training and not any(layer._forward_hooks or layer._forward_pre_hooks for layer in net.layers)


def test_units_of_a_narrower_stack_score_the_same():
    """Units that went do not touch the scores of those that stay: masked or removed, it is the same network."""
    from lib import masks

    net, x = mlp(), draw(8, 10)
    kept = masks.top({"layers.0": draw(2, 7), "layers.1": draw(2, 6, seed=3)}, 0.6)
    narrow = shrink.narrow(net, kept)
    masks.apply_(net, masks.expand(kept, net))
    whole, small = of_units(net, x, 1.0, 1.0), of_units(narrow, x, 1.0, 1.0)
    for name, score in small.items():
        rows = kept.get(name, torch.ones_like(whole[name], dtype=torch.bool))
        torch.testing.assert_close(whole[name][rows].view_as(score), score)
        assert not whole[name][~rows].any()


def test_channels():
    """Every place of a filter is an example; what a channel sends is summed over the filter's positions."""
    net = nets.init_(study.convnet((3, 8, 8), (4, 5), (6,), 3, 2), [0, 1]).double()
    x = draw(3, 3 * 64)
    found = of_units(net, x, channels=True)
    assert list(found) == prunable(net, True) == ["convs.0", "convs.1", "hidden.0"]
    assert prunable(net) == ["hidden.0"] == list(of_units(net, x))
    for run in range(2):
        first, second = net.convs
        a = torch.relu(torch.max_pool2d(conv2d(x.view(3, 3, 8, 8), first.weight[run], first.bias[run], padding=1), 2))
        w = second.weight[run].abs()
        parts = torch.stack([conv2d(a[:, [c]], w[:, [c]], padding=1) for c in range(4)], -1)  # (s, t, y, x, c)
        shares = parts / parts.sum(-1, keepdim=True)
        torch.testing.assert_close(found["convs.0"][run], 100 * shares.nan_to_num(0).mean((0, 1, 2, 3)))
        b = torch.relu(torch.max_pool2d(conv2d(a, second.weight[run], second.bias[run], padding=1), 2)).flatten(1)
        mean, _ = literal(net.hidden[0].weight[run], b)
        np.testing.assert_allclose(found["convs.1"][run], mean.reshape(5, 4).sum(1), rtol=1e-10)


def test_where_all_that_is_hidden_are_filters_they_have_scores():
    net = nets.init_(convnets.build("vgg11", (1, 32, 32), 3, 2, 2), [0, 1])
    x = draw(3, 1024).float()
    found = methods.score(net, "contribution", x, torch.arange(3), of="units")
    asked = contributing(net, x, None, None, channels=True)
    assert list(found) == prunable(net) == [f"convs.{k}" for k in range(8)] and prunable(net, False) == []
    assert all(torch.equal(found[name], score) for name, score in asked.items())
    with pytest.raises(ValueError, match="contribution has no score of a hidden layer of VGG.*of convs.0"):
        methods.score(net, "contribution", x, torch.arange(3), of="units", on="preactivation")


@pytest.mark.parametrize(
    "weight, activations, options",
    [
        ((1, 4, 6), (1, 9, 5), {}),
        ((2, 4, 6), (1, 9, 6), {}),
        ((4, 6), (9, 6), {}),
        ((1, 4, 6), (1, 9, 6), {"each": 4}),
        ((1, 4, 6), (1, 0, 6), {}),
    ],
)
def test_what_does_not_fit_is_refused(weight, activations, options):
    with pytest.raises(ValueError, match="needed|no example"):
        contribution(draw(*weight), draw(*activations), **options)


def test_each_run_is_scored_alone():
    net, x = nets.init_(nets.MLP([12, 9, 7, 4], ["no-WN"] * 3), [1, 2, 3]), draw(30, 12).float()
    found = contributing(net, x, None, None, average=1.0, maximum=1.0)
    for run in range(3):
        alone = of_units(nets.take(net, [run]), x, 1.0, 1.0)
        assert all(torch.equal(alone[name][0], score[run]) for name, score in found.items())
    with pytest.raises(ValueError, match="2 sets of examples for a stack of 3 runs"):
        contributing(net, x.expand(2, -1, -1), None, None)
    with pytest.raises(ValueError, match="of which there is one at least"):
        of_units(net, x[:0])


def test_networks_that_have_no_such_score():
    with pytest.raises(ValueError, match="shortcuts"):
        prunable(convnets.build("resnet20", (3, 8, 8), 10, 1))
    with pytest.raises(ValueError, match="allowed"):
        of_units(mlp(), draw(8, 10), on="output")
    with pytest.raises(ValueError, match="channels"):
        of_units(mlp(), draw(8, 10), on="preactivation", channels=True)


def test_sums_hold_no_more_than_a_chunk():
    """A share of every example, unit and reader at once would be 2·10⁹ numbers."""
    sums = Sums(torch.ones(1, 200, 1000))
    assert torch.allclose(sums.add(torch.ones(1, 10_000, 1000)).score(), torch.tensor(0.1).double())
