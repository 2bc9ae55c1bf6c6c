"""The path kernel's trace against the enumeration of all paths, and against the kernel matrix itself."""

import itertools

import pytest
import torch

from lib import anneal, convnets, masks, nets, scores, synflow


def mlp(runs=2):
    return nets.init_(nets.MLP([3, 4, 3, 2], ["no-WN"] * runs, bias=False), list(range(runs))).double()


def half(net, density=0.5):
    return masks.top(scores.random(net, None, None, range(nets.runs(net))), density, "global")


def literal(net, kept, run):
    """Return, path by path and weight by weight, the sum of the squared products of the other weights."""
    weights = [(w[run] * kept[name][run]).detach() for name, w in nets.weights(net).items()]
    alive = [kept[name][run] for name in nets.weights(net)]
    sizes, total = [weights[0].shape[1], *(len(w) for w in weights)], 0.0
    for way in itertools.product(*map(range, sizes)):
        steps = [(w[o, i].item(), a[o, i].item()) for w, a, i, o in zip(weights, alive, way, way[1:], strict=False)]
        for k, (_, here) in enumerate(steps):
            product = 1.0
            for other, (w, _) in enumerate(steps):
                product *= w**2 if other != k else 1.0
            total += product * here
    return total


@pytest.mark.parametrize("density", [1.0, 0.6, 0.3])
def test_the_trace_is_the_sum_over_paths(density):
    net = mlp()
    kept = half(net, density)
    found = synflow.path_kernel(net, kept)
    assert found.dtype == torch.float64
    assert found.tolist() == pytest.approx([literal(net, kept, run) for run in range(2)], rel=1e-12)


def test_the_trace_is_that_of_the_kernel_matrix():
    """Of J Jᵀ, where J is the derivative of the values of all paths by the kept weights."""
    net = mlp(1)
    kept = half(net, 0.7)
    start = [w[0].detach() * kept[name][0] for name, w in nets.weights(net).items()]

    def values(*weights):
        first, second, third = weights
        return torch.einsum("bi,cb,oc->ibco", first, second, third).flatten()

    jacobians = torch.autograd.functional.jacobian(values, tuple(start))
    total = sum(float((j * mask[0]).square().sum()) for j, mask in zip(jacobians, kept.values(), strict=True))
    assert synflow.path_kernel(net, kept).tolist() == pytest.approx([total], rel=1e-12)


def test_an_empty_mask_is_the_dense_network():
    net = mlp()
    everything = {name: torch.ones_like(w, dtype=torch.bool) for name, w in nets.weights(net).items()}
    assert torch.equal(synflow.path_kernel(net, {}), synflow.path_kernel(net, everything))


def test_the_network_may_be_pruned_already_and_stays_as_it_is():
    net = mlp()
    kept, before = half(net), {key: value.clone() for key, value in net.state_dict().items()}
    found = synflow.path_kernel(net, kept)
    assert all(torch.equal(before[key], value) for key, value in net.state_dict().items())
    assert torch.equal(synflow.path_kernel(masks.apply_(net, kept), kept), found)


def test_synflow_l2_has_the_largest_trace_and_random_the_smallest():
    """The order of the PHEW study (arXiv 2010.11354), for a convolutional network at a density of a tenth."""
    net = nets.init_(convnets.build("resnet20", (3, 8, 8), 10, 2, 8), [0, 1], "phew")
    kinds = {"synflow_l2": synflow.synflow_l2, "synflow": synflow.synflow, "random": scores.random}
    found = {
        name: synflow.path_kernel(net, anneal.anneal(score, net, [0.1], 1 if name == "random" else 20, seeds=[0, 1])[0])
        for name, score in kinds.items()
    }
    assert bool((found["synflow_l2"] > found["synflow"]).all() and (found["synflow"] > 10 * found["random"]).all())


def test_what_does_not_fit_is_an_error():
    net = mlp()
    with pytest.raises(ValueError, match="no.weight.*layers.0.weight"):
        synflow.path_kernel(net, {"no.weight": torch.ones(2, 4, 3, dtype=torch.bool)})
    with torch.no_grad():
        net.layers[0].weight.fill_(1e200)
    with pytest.raises(ValueError, match="too large for float64"):
        synflow.path_kernel(net, {})
