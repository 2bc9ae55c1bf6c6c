"""Evaluation against torch and against loops over examples."""

import math

import pytest
import torch
from torch.nn.functional import cross_entropy

from lib import evaluate, masks, nets
from lib.studies.ewn import study as ewn


@pytest.fixture
def case():
    g = torch.Generator().manual_seed(1)
    net = nets.init_(nets.MLP([6, 9, 4], ["EWN", "SWN", "no-WN"]), [1, 2, 3]).double()
    return net, torch.randn(2345, 6, generator=g, dtype=torch.float64), torch.randint(4, (2345,), generator=g)


def test_log_loss_and_accuracy_are_torchs(case):
    net, x, y = case
    found = evaluate.evaluate(net, x, y)
    for r, logits in enumerate(net(x)):
        assert math.isclose(found.log_loss[r], cross_entropy(logits, y).log().item(), rel_tol=1e-12)
        assert found.accuracy[r] == (logits.argmax(1) == y).double().mean()


def test_top5_is_that_of_a_stable_sort():
    g = torch.Generator().manual_seed(2)
    net = nets.init_(nets.MLP([6, 9, 12], ["no-WN"] * 2), [1, 2]).double()
    x, y = torch.randn(2345, 6, generator=g, dtype=torch.float64), torch.randint(12, (2345,), generator=g)
    found = evaluate.evaluate(net, x, y, top5=True).top5
    for r, logits in enumerate(net(x)):
        first = logits.sort(descending=True, stable=True).indices[:, :5]  # some outputs are zeros, all equal
        assert found[r] == (first == y[:, None]).any(1).double().mean()
    with torch.no_grad():
        net.layers[1].weight[0].fill_(float("nan"))
    assert evaluate.evaluate(net, x, y).top5.isnan().all()


def test_what_is_not_a_number_has_no_accuracy(case):
    """Neither at the first example nor at the last; the other networks of the stack keep theirs."""
    net, x, y = case
    before = evaluate.evaluate(net, x, y, top5=True)
    lost = x.clone()
    lost[-1, 0] = math.nan
    found = evaluate.evaluate(net, lost, y, top5=True)
    assert found.accuracy.isnan().all() and found.top5.isnan().all()
    with torch.no_grad():
        net.layers[1].weight[1] = math.nan
    found = evaluate.evaluate(net, x, y, top5=True)
    assert found.accuracy.isnan().tolist() == found.top5.isnan().tolist() == [False, True, False]
    assert torch.equal(found.accuracy[[0, 2]], before.accuracy[[0, 2]])
    assert torch.equal(found.top5[[0, 2]], before.top5[[0, 2]])


def test_pruned_accuracy_is_that_of_networks_without_the_units(case):
    net, x, y = case
    scores = {"layers.0": torch.rand(3, 9)}
    sparsities = [0.0, 0.3, 0.5, 0.9]
    found = ewn.pruned_accuracy(net, x, y, scores, sparsities)
    folded = nets.fold(net)
    (w0, b0), w1 = (folded.layers[0].weight, folded.layers[0].bias), folded.layers[1].weight
    for r in range(3):
        for k, sparsity in enumerate(sparsities):
            kept = scores["layers.0"][r].argsort()[int(sparsity * 9) :]
            logits = torch.relu(x @ w0[r][kept].T + b0[r][kept]) @ w1[r][:, kept].T
            assert found[r, k] == (logits.argmax(1) == y).double().mean()


@pytest.mark.parametrize("sizes", [[5, 4], [5, 9, 4], [5, 9, 7, 4]])
def test_what_is_made_once_is_what_the_whole_pruned_network_says(sizes):
    """Of a unit whose activation of nothing is not nothing, through no, one and two hidden layers."""
    net = nets.init_(nets.MLP(sizes, ["EWN", "no-WN"], "sigmoid"), [1, 2]).double()
    x, y = torch.randn(2100, 5, dtype=torch.float64), torch.randint(4, (2100,))
    scores = {f"layers.{k}": torch.rand(2, size) for k, size in enumerate(sizes[1:-1])}
    found = ewn.pruned_accuracy(net, x, y, scores, [0.0, 0.5])
    for k, sparsity in enumerate([0.0, 0.5]):
        pruned = nets.fold(net)
        units = masks.top(scores, 1 - sparsity, rounding="prune_floor")
        masks.apply_(pruned, masks.expand(units, pruned))
        assert torch.equal(found[:, k], evaluate.evaluate(pruned, x, y).accuracy)


def test_pruning_leaves_the_network_as_it_was(case):
    net, x, y = case
    before = {k: v.clone() for k, v in net.state_dict().items()}
    ewn.pruned_accuracy(net, x, y, {"layers.0": torch.rand(3, 9)}, [0.5])
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
