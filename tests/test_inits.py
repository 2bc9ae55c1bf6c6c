"""The starts of networks against scripts of plain torch modules, and the variances of sparse starts."""

import pytest
import torch
from torch import nn

from lib import convnets, inits, nets
from lib.networks.layers import BatchNorm

SEED = 4711


def script(net, rule_of):
    """Return the modules that a script draws under `manual_seed(SEED)`: all with their defaults, then by the rules."""
    with torch.random.fork_rng():
        torch.manual_seed(SEED)
        modules = [twin(layer) for layer in nets.layers(net).values()]
        for module in modules:
            rule_of(module)(module.weight)
    return modules


def twin(layer):
    shape, bias = layer.weight.shape[1:], layer.bias is not None
    if len(shape) == 2:
        return nn.Linear(shape[1], shape[0], bias=bias)
    return nn.Conv2d(shape[1], shape[0], shape[2], bias=bias)


def by_kind(conv, linear):
    return lambda module: conv if isinstance(module, nn.Conv2d) else linear


def published(name, side):
    """Return the published rules of a network: thin ResNets and CIFAR's VGGs by fan-in, the others by fan-out."""
    if name == "resnet20":
        return by_kind(nn.init.kaiming_normal_, nn.init.kaiming_normal_)

    def fan_out(weight):
        return nn.init.kaiming_normal_(weight, mode="fan_out", nonlinearity="relu")

    def small(weight):
        return nn.init.normal_(weight, 0, 0.01)

    if name.startswith("resnet"):
        return by_kind(fan_out, fan_out)
    return by_kind(nn.init.kaiming_normal_ if side == 32 else fan_out, small)


NETWORKS = [("resnet20", 8), ("resnet18", 8), ("resnet50", 8), ("vgg11_bn", 32), ("vgg11", 64)]


def build(name, side, runs=1, width=3):
    return convnets.build(name, (3, side, side), 5, runs, width)


@pytest.mark.parametrize("name,side", NETWORKS)
def test_a_published_start_is_that_of_the_script(name, side):
    net = nets.init_(build(name, side), [SEED], "phew")
    modules = script(net, published(name, side))
    for layer, module in zip(nets.layers(net).values(), modules, strict=True):
        assert torch.equal(layer.weight[0], module.weight)
        if layer.bias is not None:
            kept = name in ("resnet18", "resnet50") and isinstance(module, nn.Linear)
            assert torch.equal(layer.bias[0], module.bias if kept else torch.zeros_like(module.bias))


@pytest.mark.parametrize(
    "scheme,rule",
    [
        ("torch_kaiming", nn.init.kaiming_normal_),
        ("xavier_uniform", nn.init.xavier_uniform_),
    ],
)
def test_a_general_start_is_that_of_the_script(scheme, rule):
    for net in (nets.MLP([7, 6, 5], ["no-WN"]), build("resnet18", 8), build("vgg11_bn", 32)):
        nets.init_(net, [SEED], scheme)
        modules = script(net, by_kind(rule, rule))
        for layer, module in zip(nets.layers(net).values(), modules, strict=True):
            assert torch.equal(layer.weight[0], module.weight)
            assert layer.bias is None or not layer.bias.any()


@pytest.mark.parametrize("scheme", ["phew_normal", "phew_xavier"])
@pytest.mark.parametrize("name,side", NETWORKS)
def test_the_ablations_are_the_published_ones(name, side, scheme):
    net = nets.init_(build(name, side), [SEED], scheme)
    std = 1.0 if name in ("resnet18", "resnet50") else 0.1**0.5
    conv = linear = lambda w: nn.init.normal_(w, 0, std)  # noqa: E731
    if scheme == "phew_xavier":
        conv = linear = nn.init.xavier_uniform_
        linear = (lambda w: nn.init.normal_(w, 0, 0.01)) if name.startswith("vgg") else linear
    for layer, module in zip(nets.layers(net).values(), script(net, by_kind(conv, linear)), strict=True):
        assert torch.equal(layer.weight[0], module.weight)
        assert layer.bias is None or not layer.bias.any()


def test_a_run_starts_the_same_in_any_stack():
    for start in (
        lambda net, seeds: nets.init_(net, seeds, "phew"),
        lambda net, seeds: nets.reinit_(net, all_of(net), seeds),
    ):
        alone, third = start(build("vgg11", 64, 1, 1), [8]), start(build("vgg11", 64, 3, 1), [1, 8, 8])
        for name, tensor in alone.state_dict().items():
            assert torch.equal(tensor[0], third.state_dict()[name][2]) and torch.equal(
                tensor[0], third.state_dict()[name][1]
            )


def all_of(net):
    return {name: torch.ones_like(weight, dtype=torch.bool) for name, weight in nets.weights(net).items()}


@pytest.mark.parametrize("start", ["init", "reinit"])
def test_a_start_makes_batch_normalisations_the_identity(start):
    net = build("resnet20", 8).train()
    with torch.no_grad():
        for p in net.parameters():
            p.normal_()
    net(torch.randn(4, 192))
    nets.init_(net, [1], "phew") if start == "init" else nets.reinit_(net, all_of(net), [1])
    for norm in (module for module in net.modules() if isinstance(module, BatchNorm)):
        assert [tensor.unique().tolist() for tensor in norm.state_dict().values()] == [[1], [0], [0], [1]]


# ------------------------------------------------------------------------------------------- sparse starts


def uneven(runs, units, fan_in, seed=0):
    """Return masks whose units keep very different shares of their inputs, and one of them nothing."""
    g = torch.Generator().manual_seed(seed)
    share = torch.rand(runs, units, *[1] * len(fan_in), generator=g) ** 2
    share[:, 3] = 0
    return torch.rand(runs, units, *fan_in, generator=g) < share


def moments(scheme, fan_in):
    """Return how many weights every unit keeps `(R, O)`, and the mean square of all that are kept, over many seeds."""
    conv = len(fan_in) > 1
    net = convnets.VGG((fan_in[0], 32, 32), 2, ["no-WN"], width=8) if conv else nets.MLP([*fan_in, 8, 2], ["no-WN"])
    name = next(iter(nets.weights(net)))
    masks = all_of(net) | {name: uneven(1, 8, fan_in)}
    kept, squares = masks[name][0].flatten(1).sum(1), torch.zeros(8)
    for seed in range(SEEDS):
        weight = nets.weights(nets.reinit_(net, masks, [seed], scheme))[name][0].detach()
        assert not weight[~masks[name][0]].any()
        squares += weight.square().flatten(1).sum(1) / SEEDS
    return kept, squares


SEEDS = 60


@pytest.mark.parametrize("fan_in", [(40,), (6, 3, 3)])
@pytest.mark.parametrize("scheme", inits.SPARSE)
def test_sparse_starts_have_the_published_variance(scheme, fan_in):
    kept, squares = moments(scheme, fan_in)
    average = kept.sum() / len(kept)
    fan = {"evci": kept, "liu": average, "evci_fan_out": kept, "liu_fan_out": average}[scheme]
    gain = fan_in[0] / len(kept) if scheme.endswith("fan_out") else 2
    expected = gain / fan * kept  # the sum of the squares of a unit
    few = 5 * expected * (2 / (SEEDS * kept)) ** 0.5  # five standard deviations of a sum of squares
    assert kept[3] == 0 and squares[3] == 0
    assert ((squares - expected).abs()[kept > 0] < few[kept > 0]).all()


def test_a_sparse_start_has_nothing_of_the_start_before():
    net = nets.init_(build("resnet20", 8, width=8), [SEED])
    before = torch.cat([w.detach().flatten() for w in nets.weights(net).values()])
    nets.reinit_(net, all_of(net), [SEED])
    after = torch.cat([w.detach().flatten() for w in nets.weights(net).values()])
    assert abs(torch.corrcoef(torch.stack([before, after]))[0, 1]) < 4 * len(before) ** -0.5


def test_what_cannot_be_started_is_told():
    mlp = nets.MLP([3, 2, 2], ["EWN"])
    with pytest.raises(
        ValueError, match=r"scheme of what is not by `convnets.build` is 'phew'; allowed are torch_kaiming"
    ):
        nets.init_(mlp, [0], "phew")
    with pytest.raises(ValueError, match="'xavier'; allowed are .*phew_normal"):
        nets.init_(build("resnet20", 8), [0], "xavier")
    with pytest.raises(ValueError, match="normalised.*fold"):
        nets.reinit_(mlp, all_of(mlp), [0])
    with pytest.raises(ValueError, match="'evcy'; allowed are .*evci.*liu"):
        nets.reinit_(build("resnet20", 8), all_of(build("resnet20", 8)), [0], "evcy")
    with pytest.raises(ValueError, match="2 seeds for a stack of 1"):
        nets.reinit_(build("resnet20", 8), all_of(build("resnet20", 8)), [0, 1])
