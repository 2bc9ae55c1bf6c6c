"""Criteria that came from elsewhere, against Torch-Pruning's importances of plain twins, and against literal loops."""

import warnings

import pytest
import torch
from torch.nn.functional import cross_entropy

from lib import methods, nets
from tests import test_convnets as convnets
from tests import test_nets as mlps

with warnings.catch_warnings():  # of what torch has deprecated
    warnings.simplefilter("ignore")
    from torch_pruning import DependencyGraph
    from torch_pruning.pruner import function, importance

CLOSE = {"rtol": 1e-5, "atol": 1e-9}
FIRST = {"group_reduction": "first", "normalizer": None}  # the layer that a group of coupled layers begins with
PRUNED = {torch.nn.Linear: function.prune_linear_out_channels, torch.nn.Conv2d: function.prune_conv_out_channels}


def mlp():
    net = mlps.stack(["no-WN"] * 2, sizes=(12, 9, 7, 4)).double()
    return net, [mlps.plain(net, run) for run in range(2)], 12


def resnet():
    net = convnets.small("resnet20", 8, 4)
    for seed, weight in enumerate(nets.weights(net).values()):  # no two of them alike, as numbers in float32 may be
        weight.data = (
            (weight * (1 + torch.rand(weight.shape, generator=convnets.generator(seed)) / 100)).float().double()
        )
    return net, [convnets.plain(net, run, "resnet20", 8) for run in range(2)], 3 * 8 * 8


@pytest.fixture(params=[mlp, resnet])
def case(request):
    """Return (a stack of two networks, their plain twins, examples, labels), all in eval mode and float64."""
    net, twins, inputs = request.param()
    x = torch.randn(6, inputs, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    return net.eval(), [twin.eval() for twin in twins], x, torch.arange(6) % 4


def layers(twin, net):
    """Return the layers of a twin by the names that those of the stack have, in the order of the stack."""
    found = [part for part in twin.modules() if isinstance(part, tuple(PRUNED))]
    names = dict.fromkeys(nets.layers(net))
    for name, layer in nets.layers(net).items():
        (names[name],) = [part for part in found if part.weight.shape == layer.weight.shape[1:] and any(
            torch.equal(part.weight, own) for own in layer.weight)]  # fmt: skip
    return names


def of_units(twin, net, x, score):
    """Return Torch-Pruning's scores of the hidden units, `{layer: (O,)}`."""
    graph = DependencyGraph().build_dependency(twin, example_inputs=x[:1])
    found = {}
    for name, layer in list(layers(twin, net).items())[:-1]:
        group = graph.get_pruning_group(layer, PRUNED[type(layer)], list(range(len(layer.weight))))
        found[name] = score(group).detach()
    return found


def same(found, twins, expected):
    for run, twin in enumerate(twins):
        theirs = expected(twin)
        assert list(found) == list(theirs)
        for name, score in found.items():
            torch.testing.assert_close(score[run], theirs[name].to(score), **CLOSE)


def test_taylor_is_that_of_torch_pruning(case):
    net, twins, x, y = case
    for twin in twins:
        cross_entropy(twin(x), y).backward()
    found = methods.score(net, "taylor", x, y, of="units")
    same(found, twins, lambda twin: of_units(twin, net, x, importance.TaylorImportance(**FIRST)))
    weights = methods.score(net, "snip", x, y, training=False)
    rows = {name.removesuffix(".weight"): score.flatten(2).sum(2) for name, score in list(weights.items())[:-1]}
    assert all(torch.equal(rows[name], score) for name, score in found.items())


def test_hessian_is_that_of_torch_pruning(case):
    """Of one example after the other: it remembers the last alone, whose score it says to be a mean."""
    net, twins, x, y = case
    found = methods.score(net, "hessian", x, y)
    rows = {name.removesuffix(".weight"): score.flatten(2).sum(2) for name, score in list(found.items())[:-1]}

    def theirs(twin):
        total = {}
        for k in range(len(y)):
            score = importance.HessianImportance(**FIRST)
            twin.zero_grad()
            cross_entropy(twin(x[[k]]), y[[k]]).backward()
            score.accumulate_grad(twin)
            for name, part in of_units(twin, net, x, score).items():
                total[name] = total.get(name, 0) + part / len(y)
        return total

    same(rows, twins, theirs)


def test_hessian_of_batches_is_that_of_all(case):
    net, _, x, y = case
    whole, parts = (methods.score(net, "hessian", *given) for given in ((x, y), ([x[:2], x[2:]], [y[:2], y[2:]])))
    for name in whole:
        torch.testing.assert_close(whole[name], parts[name], rtol=1e-12, atol=0)


def test_lamp_is_that_of_torch_pruning(case):
    """Of which a number is said in float32 whatever the network is, and its sums are float32 too."""
    net, twins, *_ = case
    torch.set_default_dtype(torch.float64)
    try:
        theirs = importance.LAMPImportance()
        same(methods.score(net, "lamp"), twins, lambda twin: {
            f"{name}.weight": theirs._lamp(layer.weight.detach().square()) for name, layer in layers(twin, net).items()
        })  # fmt: skip
    finally:
        torch.set_default_dtype(torch.float32)


def test_lamp_by_a_literal_loop():
    net, *_ = mlp()
    for name, score in methods.score(net, "lamp").items():
        weights = nets.weights(net)[name][0].detach().flatten().tolist()
        expected = [w * w / sum(v * v for v in weights if v * v >= w * w) for w in weights]
        torch.testing.assert_close(score[0].flatten(), torch.tensor(expected, dtype=torch.float64), rtol=1e-12, atol=0)
        assert float(score.amax()) == 1, "of each layer the largest stays longest"
    net.layers[0].weight.data.zero_()
    assert not methods.score(net, "lamp")["layers.0.weight"].any()


def test_fpgm_is_that_of_torch_pruning(case):
    """Which measures between absolute values, where the paper has the weights: so of weights that are positive."""
    net, twins, x, _ = case
    theirs = [part.weight for twin in twins for part in layers(twin, net).values()]
    for weight in (*nets.weights(net).values(), *theirs):
        weight.data.abs_()
    score = importance.FPGMImportance(p=1, **FIRST)
    same(methods.score(net, "fpgm", of="units"), twins, lambda twin: of_units(twin, net, x, score))


def test_fpgm_is_the_sum_of_distances():
    net, *_ = mlp()
    for name, score in methods.score(net, "fpgm", of="units").items():
        rows = list(net.get_submodule(name).weight[1].detach())
        expected = [sum(float((row - other).norm()) for other in rows) for row in rows]
        torch.testing.assert_close(score[1], torch.tensor(expected, dtype=torch.float64), rtol=1e-12, atol=0)
