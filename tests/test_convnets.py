"""Graphs of networks against hand-drawn tables, and convolutional networks against plain torch modules."""

import copy

import pytest
import torch
from torch import nn

from lib import chance as kernel_chance
from lib import convnets, layers, nets
from lib import twins as kernels
from lib.errors import ParameterError
from lib.networks.layers import BatchNorm
from lib.networks.nets import Hop

# What the PHEW study prunes and trains (layers, their weights, all parameters), by network, classes, side of the image.
PUBLISHED = {
    ("resnet20", 10, 32): (22, 270_896, 272_474),
    ("resnet20", 100, 32): (22, 276_656, 278_324),
    ("resnet32", 10, 32): (34, 464_432, 466_906),
    ("wide_resnet20", 10, 32): (22, 1_081_440, 1_084_586),
    ("resnet18", 10, 32): (21, 11_164_352, 11_173_962),
    ("resnet34", 10, 32): (37, 21_265_088, 21_282_122),
    ("resnet50", 10, 32): (54, 23_467_712, 23_520_842),
    ("vgg11_bn", 10, 32): (9, 9_222_848, 9_231_114),
    ("vgg13_bn", 10, 32): (11, 9_407_168, 9_416_010),
    ("vgg16_bn", 10, 32): (14, 14_715_584, 14_728_266),
    ("vgg19_bn", 10, 32): (17, 20_024_000, 20_040_522),
    ("vgg19_bn", 100, 32): (17, 20_070_080, 20_086_692),
    ("vgg16_bn", 200, 64): (16, 18_060_992, 18_075_912),
    ("vgg19_bn", 200, 64): (19, 23_369_408, 23_388_168),
    ("resnet18", 200, 64): (21, 11_261_632, 11_271_432),
    ("resnet34", 200, 64): (37, 21_362_368, 21_379_592),
}
EXACT = {"rtol": 1e-10, "atol": 1e-10}
# One network of every kind, narrow: name, side of the image, width.
KINDS = [("resnet20", 16, 2), ("resnet18", 18, 3), ("resnet50", 8, 2), ("vgg11_bn", 32, 2), ("vgg11_bn", 64, 1)]
KINDS += [("vgg13", 32, 2)]


def generator(seed):
    return torch.Generator().manual_seed(seed)


def shaken(net, seed=0):
    """Return `net` in float64 with every number drawn anew, the running statistics too."""
    g = generator(seed)
    with torch.no_grad():
        for layer in nets.layers(net).values():
            layer.weight.copy_(torch.randn(layer.weight.shape, generator=g) * layer.weight[0, 0].numel() ** -0.5)
            if layer.bias is not None:
                layer.bias.copy_(torch.randn(layer.bias.shape, generator=g))
        for layer in of_kind(net):
            for tensor in layer.state_dict().values():
                tensor.copy_(torch.rand(tensor.shape, generator=g) + 0.5)
    return net.double()


def of_kind(net, kind=BatchNorm):
    return [module for module in net.modules() if isinstance(module, kind)]


def small(name, side, width, runs=2, classes=4, seed=0):
    return shaken(convnets.build(name, (3, side, side), classes, runs, width), seed)


def images(n, side, seed=1, runs=None):
    lead = (n,) if runs is None else (runs, n)
    return torch.randn(*lead, 3 * side**2, generator=generator(seed), dtype=torch.float64)


# ------------------------------------------------------------------------------------- the plain twins


def conv(layer, run, stride=1):
    weight = layer.weight[run].detach()
    twin = nn.Conv2d(*weight.shape[1::-1], weight.shape[2], stride, weight.shape[2] // 2, bias=layer.bias is not None)
    return filled(twin, layer, run)


def linear(layer, run):
    return filled(nn.Linear(*layer.weight.shape[:0:-1]), layer, run)


def norm(layer, run):
    return filled(nn.BatchNorm2d(layer.weight.shape[1]), layer, run)


def filled(twin, layer, run):
    for name, tensor in layer.state_dict().items():
        if name in twin.state_dict():
            twin.state_dict()[name].copy_(tensor[run])
            assert twin.state_dict()[name].shape == tensor[run].shape
    return twin.double()


class PlainBlock(nn.Module):
    def __init__(self, block, run, stride):
        super().__init__()
        strides = (1, stride, 1) if len(block.convs) == 3 else (stride, 1)
        self.convs = nn.ModuleList(conv(c, run, s) for c, s in zip(block.convs, strides, strict=True))
        self.norms = nn.ModuleList(norm(n, run) for n in block.norms)
        self.short = nn.Identity()
        if block.shortcut is not None:
            self.short = nn.Sequential(conv(block.shortcut, run, stride), norm(block.shortcut_norm, run))

    def forward(self, x):
        out = x
        for k in range(len(self.convs)):
            out = self.norms[k](self.convs[k](out))
            out = torch.relu(out) if k < len(self.convs) - 1 else out
        return torch.relu(out + self.short(x))


def plain_resnet(net, run, side, counts):
    firsts = {sum(counts[:k]) for k in range(1, len(counts))}
    blocks = [PlainBlock(block, run, 2 if k in firsts else 1) for k, block in enumerate(net.blocks)]
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), linear(net.output, run)]
    return nn.Sequential(
        nn.Unflatten(1, (3, side, side)), conv(net.stem, run), norm(net.stem_norm, run), nn.ReLU(), *blocks, *head
    )


def plain_vgg(net, run, side, plan):
    """`plan` is the published text: widths of the convolutions, M for a max-pool, A for a mean-pool."""
    modules, k = [nn.Unflatten(1, (3, side, side))], 0
    for token in plan:
        if token in "MA":
            modules.append(nn.MaxPool2d(2) if token == "M" else nn.AvgPool2d(2))
            continue
        modules += [conv(net.convs[k], run), *([norm(net.norms[k], run)] if net.norms else []), nn.ReLU()]
        k += 1
    modules.append(nn.Flatten())
    for layer in net.hidden:
        modules += [linear(layer, run), nn.ReLU()]
    return nn.Sequential(*modules, linear(net.output, run))


PLANS = {("vgg11_bn", 32): "cMcMccMccMccA", ("vgg11_bn", 64): "cMcMccMccMccM", ("vgg13", 32): "ccMccMccMccMccA"}


def plain(net, run, name, side):
    if name.startswith("resnet"):
        return plain_resnet(net, run, side, {"20": (3, 3, 3), "18": (2, 2, 2, 2), "50": (3, 4, 6, 3)}[name[6:]])
    return plain_vgg(net, run, side, PLANS[name, side])


# -------------------------------------------------------------------------------------------- networks


@pytest.mark.parametrize("case", PUBLISHED)
def test_sizes_are_the_published_ones(case):
    name, classes, side = case
    net = convnets.build(name, (3, side, side), classes, 1)
    shapes = [weight.shape[1:] for weight in nets.weights(net).values()]
    assert (len(shapes), sum(map(torch.Size.numel, shapes)), nets.parameters_per_run(net)) == PUBLISHED[case]


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("case", KINDS)
def test_a_stack_is_torch_modules_run_by_run(case, training):
    name, side, _ = case
    net = small(*case)
    net.train(training and not len(net.drops if name.startswith("vgg") else ()))  # dropout has a test of its own
    twins = [plain(net, r, name, side).train(net.training) for r in range(2)]
    own, shared = images(3, side, runs=2), images(5, side, 2)
    for x in (own, shared):  # in training mode the second batch finds the running statistics that the first one left
        inputs = own if x is own else (shared, shared)
        expected = torch.stack([twin(each) for twin, each in zip(twins, inputs, strict=True)])
        torch.testing.assert_close(net(x), expected, **EXACT)
    for k, layer in enumerate(of_kind(net)):
        for r, twin in enumerate(twins):
            torch.testing.assert_close(layer.running_mean[r], of_kind(twin, nn.BatchNorm2d)[k].running_mean, **EXACT)
            torch.testing.assert_close(layer.running_var[r], of_kind(twin, nn.BatchNorm2d)[k].running_var, **EXACT)


@pytest.mark.parametrize("case", [KINDS[0], KINDS[3]])
def test_gradients_are_those_of_torch_modules(case):
    name, side, _ = case
    net, x = small(*case), images(3, side)
    twins = [plain(net, r, name, side) for r in range(2)]
    net(x).square().sum().backward()
    for r, twin in enumerate(twins):
        twin(x).square().sum().backward()
        pairs = list(zip(nets.layers(net).values(), of_kind(twin, nn.Conv2d | nn.Linear), strict=True))
        pairs += zip(of_kind(net), of_kind(twin, nn.BatchNorm2d), strict=True)
        for layer, other in pairs:
            torch.testing.assert_close(layer.weight.grad[r], other.weight.grad, rtol=1e-8, atol=1e-8)
            if layer.bias is not None:
                torch.testing.assert_close(layer.bias.grad[r], other.bias.grad, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("case", KINDS[:4])
def test_macs_are_counted_where_filters_are_placed(case):
    name, side, _ = case
    net, counted = small(*case), []
    twin = plain(net, 0, name, side).eval()
    for module in twin.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.register_forward_hook(lambda m, _, out: counted.append(out[0, 0].numel() * m.weight.numel()))
    twin(images(1, side))
    assert nets.macs_per_run(net) == sum(counted)


def test_the_names_that_exist_are_told():
    with pytest.raises(ParameterError, match="'resnet19'; allowed are resnet20, .*vgg19_bn. Did you mean 'resnet"):
        convnets.build("resnet19", (3, 32, 32), 10, 1)
    with pytest.raises(ParameterError, match="28×28; vgg16 takes 32×32 or 64×64"):
        convnets.build("vgg16", (1, 28, 28), 10, 1)
    with pytest.raises(ParameterError, match="28×32; resnet20 takes squares"):
        convnets.build("resnet20", (3, 28, 32), 10, 1)


@pytest.mark.parametrize("name", convnets.NAMES)
def test_every_network_of_the_registry_is_built_and_its_graph_covers_it(name):
    net = convnets.build(name, (3, 32, 32), 4, 2, width=1)
    hops = nets.graph(net)
    assert [hop.layer for hop in hops if hop.layer] == list(nets.layers(net))
    norms = [path for path, module in net.named_modules() if isinstance(module, BatchNorm)]
    assert [hop.norm for hop in hops if hop.norm] == norms
    done = {0}
    for k, hop in enumerate(hops):
        assert hop.source in done
        if all(later.target != hop.target for later in hops[k + 1 :]):
            done.add(hop.target)
    assert done == set(range(len(done)))


# ---------------------------------------------------------------------------------------------- graphs


def test_the_graph_of_an_mlp_is_a_chain():
    net = nets.MLP([7, 5, 4, 3], ["no-WN"])
    assert nets.graph(net) == [("layers.0", 0, 1, None), ("layers.1", 1, 2, None), ("layers.2", 2, 3, None)]


def test_the_graph_of_a_vgg_is_a_chain():
    hops = nets.graph(convnets.VGG((3, 32, 32), 10, ["EWN"], width=2))
    assert hops == [*((f"convs.{k}", k, k + 1, None) for k in range(13)), ("output", 13, 14, None)]
    tiny = nets.graph(convnets.build("vgg11_bn", (3, 64, 64), 10, 1, width=1))
    ends = [("hidden.0", 8, 9, None), ("hidden.1", 9, 10, None), ("output", 10, 11, None)]
    assert tiny == [*((f"convs.{k}", k, k + 1, f"norms.{k}") for k in range(8)), *ends]


def test_the_graph_of_a_resnet_has_its_shortcuts():
    r"""0 -stem- 1 -- 2 -- 3 -- 4 -- 5 -output- 6, and over it 1 ---- 3 (identity) and 3 ---- 5 (1×1)."""
    assert nets.graph(convnets.ResNet((3, 8, 8), 4, 1, 2, (1, 1))) == [
        Hop("stem", 0, 1, "stem_norm"),
        Hop("blocks.0.convs.0", 1, 2, "blocks.0.norms.0"),
        Hop("blocks.0.convs.1", 2, 3, "blocks.0.norms.1"),
        Hop(None, 1, 3),
        Hop("blocks.1.convs.0", 3, 4, "blocks.1.norms.0"),
        Hop("blocks.1.convs.1", 4, 5, "blocks.1.norms.1"),
        Hop("blocks.1.shortcut", 3, 5, "blocks.1.shortcut_norm"),
        Hop("output", 5, 6),
    ]


def test_the_first_bottleneck_has_a_convolution_as_shortcut():
    hops = nets.graph(convnets.ResNet((3, 8, 8), 4, 1, 2, (2,), bottleneck=True))
    assert [(hop.layer, hop.source, hop.target) for hop in hops[1:]] == [
        *((f"blocks.0.convs.{k}", 1 + k, 2 + k) for k in range(3)),
        ("blocks.0.shortcut", 1, 4),
        *((f"blocks.1.convs.{k}", 4 + k, 5 + k) for k in range(3)),
        (None, 4, 7),
        ("output", 7, 8),
    ]


def test_layers_come_in_the_published_order():
    """Layer by layer of ResNet20: 9 and 16 are the 1×1 convolutions of the shortcuts."""
    sides = [w.shape[-1] for w in nets.weights(convnets.build("resnet20", (3, 32, 32), 10, 1)).values()]
    assert sides == [1 if k in (9, 16) else 64 if k == 21 else 3 for k in range(22)]


# ------------------------------------------------------------------------------------- parts of networks


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("side,stride,padding", [(3, 2, None), (1, 2, None), (1, 1, None), (3, 2, 0), (5, 3, 1)])
def test_strided_convolutions_and_their_steps_are_torchs(side, stride, padding, shared):
    layer = shaken(layers.Conv2d(3, 2, 5, side, norm=["EWN", "SWN", "no-WN"], stride=stride, padding=padding))
    with torch.no_grad():
        layer.scale.normal_(generator=generator(3))
    x = torch.randn(*(() if shared else (3,)), 2, 2, 9, 7, generator=generator(4), dtype=torch.float64)
    pad = side // 2 if padding is None else padding
    w = kernels.weight_norm(layer.weight, layer.scale, layer.norm)
    inputs = [x] * 3 if shared else x
    expected = [torch.conv2d(i, f, b, stride, pad) for i, f, b in zip(inputs, w, layer.bias, strict=True)]
    torch.testing.assert_close(layer(x), torch.stack(expected))
    other, upstream = copy.deepcopy(layer), torch.randn_like(expected[0])
    layer(x).backward(upstream.expand(3, -1, -1, -1, -1))
    through = x.clone().requires_grad_()
    with nets.sgd_in_backward(other, torch.full((3,), 0.1, dtype=torch.float64)):
        other(through).backward(upstream.expand(3, -1, -1, -1, -1))
    for name, p in layer.named_parameters():
        torch.testing.assert_close(dict(other.named_parameters())[name], p - 0.1 * p.grad)


@pytest.mark.parametrize("training", [True, False])
def test_a_batch_normalisation_can_be_differentiated_twice(training):
    """Second derivatives are what GraSP's scores are made of."""
    g = generator(5)
    x, weight, bias = (
        torch.randn(shape, generator=g, dtype=torch.float64) for shape in ((2, 3, 2, 1, 2), (2, 2), (2, 2))
    )
    inputs = [tensor.requires_grad_() for tensor in (x, weight, bias)]

    def normalise(*tensors):
        statistics = torch.zeros(2, 2, dtype=torch.float64), torch.full((2, 2), 1.5, dtype=torch.float64)
        return kernels.batch_norm(*tensors, *statistics, training)

    assert torch.autograd.gradcheck(normalise, inputs) and torch.autograd.gradgradcheck(normalise, inputs)


def test_a_step_in_the_backward_pass_of_a_batch_normalisation_is_refused():
    net = small(*KINDS[0])
    with pytest.raises(ValueError, match="batch normalisation.*optimizer"), nets.sgd_in_backward(net, torch.ones(2)):
        pass


def splitmix64(key, draw):
    """Return draw number `draw`, from one, in Python's own integers."""
    z = (key + draw * 0x9E3779B97F4A7C15) % 2**64
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 % 2**64
    z = (z ^ z >> 27) * 0x94D049BB133111EB % 2**64
    return z ^ z >> 31


def test_coins_are_splitmix64():
    assert [splitmix64(1234567, k) for k in (1, 2, 3)] == [
        6457827717110365317, 3203168211198807973, 9817491932198370423,
    ]  # fmt: skip
    keys, step = [3, 2**63 - 5], [0, 7]
    for chance in (0.5, 0.3):
        found = kernel_chance.coins(torch.tensor(keys), torch.tensor(step), 300, chance)
        expected = [
            # as a signed number below (chance - 1/2)·2⁶⁴
            [(splitmix64(k, s * 2**32 + i + 1) + 2**63) % 2**64 < chance * 2**64 for i in range(300)]
            for k, s in zip(keys, step, strict=True)
        ]
        assert found.tolist() == expected
    many = kernel_chance.coins(torch.arange(4), torch.arange(4), 100_000, 0.3).double()
    assert (many.mean(1) - 0.3).abs().max() < 0.006, "four standard deviations"


def test_dropout_is_that_of_each_run_whatever_else_is_in_the_stack():
    net = nets.init_(convnets.build("vgg11_bn", (3, 64, 64), 4, 3, width=1), [5, 6, 7], "phew").double()
    alone, x = nets.take(net, [1]), images(6, 64)
    first = [net(x), net(x)]
    again = [alone(x), alone(x)]
    assert not torch.equal(first[0], first[1]) and net.drops[0].step.tolist() == [2, 2, 2]
    for together, other in zip(first, again, strict=True):
        torch.testing.assert_close(together[1], other[0], **EXACT)
    activations = torch.ones(3, 400, 16, dtype=torch.float64)
    dropped = net.drops[0](activations)
    assert set(dropped.unique().tolist()) == {0.0, 2.0} and not torch.equal(dropped[0], dropped[1])
    assert torch.equal(net.drops[0].eval()(activations), activations)
    assert len(set(net.drops[0].key.tolist() + net.drops[1].key.tolist())) == 6


# -------------------------------------------------------------------------------------- whole networks


@pytest.mark.parametrize("case", KINDS)
def test_take_join_and_fold_work(case):
    net, x = small(*case, runs=3).eval(), images(3, case[1])
    again = nets.join([nets.take(net, [0, 1]), nets.take(net, slice(2, 3))])
    assert all(torch.equal(tensor, again.state_dict()[name]) for name, tensor in net.state_dict().items())
    torch.testing.assert_close(again(x), net(x), **EXACT)
    torch.testing.assert_close(nets.fold(net)(x), net(x), **EXACT)
    torch.testing.assert_close(nets.take(net, [2])(x)[0], net(x)[2], **EXACT)
    assert all(tensor.shape[0] == 3 for tensor in net.state_dict().values()) and nets.runs(net) == 3


def test_a_slice_shares_its_running_statistics():
    net = small(*KINDS[0])
    nets.take(net, slice(1, 2)).train()(images(3, 16))
    fresh = small(*KINDS[0])
    assert torch.equal(net.stem_norm.running_mean[0], fresh.stem_norm.running_mean[0])
    assert not torch.equal(net.stem_norm.running_mean[1], fresh.stem_norm.running_mean[1])


def test_alone_and_in_a_stack_agree_while_training():
    net, y = (
        nets.init_(convnets.build("resnet20", (3, 12, 12), 4, 3, 2), [1, 2, 3], "phew").double(),
        torch.arange(8) % 4,
    )
    alone = nets.take(net, [2])
    optimizers = [torch.optim.SGD(n.parameters(), 0.05, 0.9) for n in (net, alone)]
    for step in range(5):
        x = images(8, 12, step)
        for n, optimizer in zip((net, alone), optimizers, strict=True):
            optimizer.zero_grad()
            kernels.log_loss(n(x), y).sum().backward()
            optimizer.step()
    for name, tensor in alone.state_dict().items():
        torch.testing.assert_close(tensor[0], net.state_dict()[name][2], rtol=1e-7, atol=1e-9)
