"""Shrunk and narrowed networks against the masked stack that they came from, and their sizes against brute force."""

import copy
import io

import pytest
import torch
from torch import nn

from lib import convnets, disk, masks, nets, paths, plain, shrink
from lib.errors import RecordError
from lib.networks.layers import BatchNorm

F64 = torch.float64
SIZES = (12, 20, 15, 9, 4)


def mlp(runs=2, bias=True, sizes=SIZES, dtype=F64, **options):
    net = nets.init_(nets.MLP(list(sizes), ["no-WN"] * runs, bias=bias, **options), range(runs))
    return shaken(net).to(dtype)


def shaken(net, seed=5):
    """Return the network in float64 and eval() mode, with random biases and normalisations."""
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in net.state_dict().items():
            if name.rpartition(".")[2] in ("bias", "weight", "running_mean"):
                tensor.add_(0.3 * torch.randn(tensor.shape, generator=g))
            elif name.endswith("running_var"):
                tensor.copy_(0.5 + torch.rand(tensor.shape, generator=g))
    return net.double().eval()


def random_masks(net, density, seed=0):
    g = torch.Generator().manual_seed(seed)
    return {name: torch.rand(w.shape, generator=g) < density for name, w in nets.weights(net).items()}


def inputs(count, size, dtype=F64, seed=3):
    return torch.randn(count, size, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def assert_same(found, net, kept, x, run, tolerance=1e-12):
    """The module's logits are those of the masked stack, relative to their size."""
    with torch.no_grad():
        expected = masks.apply_(copy.deepcopy(net), kept)(x)[run]
        scale = expected.abs().max().clamp_min(1e-300)
        torch.testing.assert_close(found(x) / scale, expected / scale, rtol=0, atol=tolerance)


# ---- fully connected networks


@pytest.mark.parametrize("density", [1.0, 0.6, 0.3, 0.15, 0.08, 0.01])
@pytest.mark.parametrize(
    "options", [{}, {"bias": False}, {"output_bias": True}, *({"activation": name} for name in nets.ACTIVATIONS)]
)
def test_any_masked_mlp_keeps_its_logits(density, options):
    net, x = mlp(**options), inputs(6, SIZES[0])
    for seed in range(6):
        kept = random_masks(net, density, seed)
        small = shrink.shrink(net, kept, run=seed % 2)
        assert_same(small, net, kept, x, seed % 2)
        assert_same(shrink.unshrunk(net, kept, run=seed % 2), net, kept, x, seed % 2)
        if isinstance(small, nn.Sequential):
            assert [m.weight.shape[0] for m in small if isinstance(m, nn.Linear)] == left(net, kept, seed % 2)


def left(net, kept, run):
    """Return how many units every layer keeps: one after the other goes, while there is one to go."""
    matrices = [kept[name][run].tolist() for name in nets.weights(net)]
    alive = [set(range(size)) for size in SIZES]
    while True:
        gone = [
            (k, unit)
            for k in range(1, len(SIZES) - 1)
            for unit in alive[k]
            if not any(matrices[k - 1][unit][i] for i in alive[k - 1])
            or not any(matrices[k][o][unit] for o in alive[k + 1])
        ]
        if not gone:
            return [len(units) for units in alive[1:]]
        for k, unit in gone:
            alive[k].discard(unit)


def test_at_one_percent_the_dead_units_are_gone():
    net = nets.init_(nets.MLP([100, 60, 50, 10], ["no-WN"]), [1])
    kept = random_masks(net, 0.02)
    small, x = shrink.shrink(net, kept), inputs(5, 100, torch.float32)
    live = paths.live(nets.graph(net), kept)
    assert [len(m.weight) for m in small if isinstance(m, nn.Linear)][:2] == [int(live.units[n].sum()) for n in (1, 2)]
    assert plain.macs(small, 100) < nets.macs_per_run(net) / 4
    assert_same(small, net, kept, x, 0, 1e-5)


def test_single_precision_stays_close():
    net, x = mlp(dtype=torch.float32), inputs(6, SIZES[0], torch.float32)
    for seed in range(6):
        kept = random_masks(net, 0.2, seed)
        small = shrink.shrink(net, kept)
        assert all(p.dtype == torch.float32 for p in small.parameters())
        assert_same(small, net, kept, x, 0, 1e-5)


def test_unit_masks_leave_exactly_their_units():
    net, x = mlp(), inputs(6, SIZES[0])
    units = masks.top({k: v for k, v in nets.unit_norms(net).items() if k != "layers.3"}, 0.4)
    kept = masks.expand(units, net)
    small = shrink.shrink(net, kept, run=1)
    assert [tuple(m.weight.shape) for m in small if isinstance(m, nn.Linear)] == [(8, 12), (6, 8), (4, 6), (4, 4)]
    assert_same(small, net, kept, x, 1)
    assert plain.macs(small, 12) == 8 * 12 + 6 * 8 + 4 * 6 + 4 * 4
    assert plain.parameters(small) == plain.macs(small, 12) + 8 + 6 + 4


def test_a_dead_layer_leaves_its_constant():
    net, x = mlp(output_bias=True), inputs(6, SIZES[0])
    for name in nets.weights(net):
        kept = {name: torch.zeros_like(nets.weights(net)[name], dtype=torch.bool)}
        small = shrink.shrink(net, kept)
        assert isinstance(small, plain.Constant) and plain.macs(small, SIZES[0]) == 0
        assert_same(small, net, kept, x, 0)


def test_the_network_of_the_dpp_study_is_shrunk():
    """784-500-10 with sigmoids and biases: whole units gone, which go on saying σ(bias), or single weights."""
    net, x = mlp(sizes=(784, 500, 10), activation="sigmoid", output_bias=True), inputs(4, 784)
    units = {"layers.0": torch.rand(2, 500, generator=torch.Generator().manual_seed(1)) < 0.2}
    for kept in (masks.expand(units, net), random_masks(net, 0.001)):
        for run in range(2):
            assert_same(shrink.shrink(net, kept, run), net, kept, x, run)


def test_zeros_in_the_weights_are_masks_too():
    net, x = mlp(), inputs(6, SIZES[0])
    kept = random_masks(net, 0.1)
    pruned = masks.apply_(copy.deepcopy(net), kept)
    assert str(shrink.shrink(pruned)) == str(shrink.shrink(net, kept))
    assert_same(shrink.shrink(pruned), net, kept, x, 0)


def test_a_masked_bias_is_no_bias():
    net, x = mlp(), inputs(6, SIZES[0])
    kept = random_masks(net, 0.2)
    kept["layers.0.bias"] = torch.zeros_like(net.layers[0].bias, dtype=torch.bool)
    assert_same(shrink.shrink(net, kept), net, kept, x, 0)


def test_a_mask_of_what_is_not_there_is_an_error():
    net = mlp()
    for name in ("layers.9.weight", "layers.9.bias", "layers.9", "layers.0.bais", "bias"):
        with pytest.raises(ValueError, match=rf"the mask of {name} is .*; it must be one of .*layers\.0\.weight"):
            shrink.shrink(net, {name: torch.ones(2, 20, dtype=torch.bool)})
    for name, mask, told in (
        ("layers.3.bias", torch.ones(2, 4, dtype=torch.bool), "it must be one of .*layers.2.bias"),
        ("layers.0.bias", torch.ones(2, 19, dtype=torch.bool), r"it must be bool \(2, 20\)"),
        ("layers.0.bias", torch.ones(2, 20), r"it must be bool \(2, 20\)"),
    ):
        with pytest.raises(ValueError, match=rf"the mask of {name} is .*; {told}"):
            shrink.shrink(net, {name: mask})


# ---- convolutions, normalisation, shortcuts


def small_convnet(name, side=None, width=4):
    side = side or (32 if name.startswith("vgg") else 8)
    return shaken(nets.init_(convnets.build(name, (3, side, side), 5, 2, width), [0, 1], "phew"))


NETWORKS = ["vgg11", "vgg11_bn", "resnet20", "resnet18", "resnet50"]


@pytest.mark.parametrize("name", NETWORKS)
def test_any_masked_convolutional_network_keeps_its_logits(name):
    net = small_convnet(name)
    x = inputs(2, 3 * net.image[1] ** 2)
    for seed, density in enumerate((1.0, 0.3, 0.1, 0.05, 0.03)):
        kept = random_masks(net, density, seed)
        assert_same(shrink.shrink(net, kept, run=1), net, kept, x, 1)
    assert_same(shrink.unshrunk(net, kept, run=1), net, kept, x, 1)


@pytest.mark.parametrize("name", ["vgg11_bn", "resnet20"])
def test_single_precision_convolutions_stay_close(name):
    net = small_convnet(name).float()
    kept = random_masks(net, 0.2)
    assert_same(shrink.shrink(net, kept), net, kept, inputs(2, 3 * net.image[1] ** 2, torch.float32), 0, 1e-5)


def test_the_head_of_a_large_image_is_shrunk_too():
    net = small_convnet("vgg11_bn", 64, 2)
    kept = random_masks(net, 0.15)
    assert_same(shrink.shrink(net, kept), net, kept, inputs(2, 3 * 64**2), 0)


@pytest.mark.parametrize("name", NETWORKS)
def test_no_unit_without_a_path_is_left(name):
    net = small_convnet(name)
    for seed, density in enumerate((0.3, 0.1)):
        kept = random_masks(net, density, seed)
        live = paths.live(nets.graph(net), kept)
        expected = {node: int(units[0].sum()) for node, units in live.units.items()}
        small = shrink.shrink(net, kept)
        for k, (hop, modules) in enumerate(zip(*by_hop(net, small), strict=True)):
            layer = next(m for m in modules if isinstance(m, plain.LAYERS))
            used = (layer.weight != 0).flatten(2).any(2) if layer.weight.dim() == 4 else layer.weight != 0
            assert hop.source == 0 or used.any(0).all(), f"hop {k} reads a channel for nothing"
            if not isinstance(small, plain.Graph) and k < len(nets.graph(net)) - 1:
                assert len(layer.weight) == expected[hop.target] and used.any(1).all()


def by_hop(net, small):
    """Return the layers' hops that are left, and their modules."""
    if isinstance(small, plain.Graph):
        ways = [way for way in small.ways if any(isinstance(m, plain.LAYERS) for m in way)]
        return [nets.Hop("", *hop) for hop, way in zip(small.hops, small.ways, strict=True) if way in ways], ways
    return nets.graph(net), [[m] for m in small if isinstance(m, plain.LAYERS)]


def test_a_stream_that_loses_all_its_blocks_goes_on():
    net = small_convnet("resnet20")
    weights = nets.weights(net)
    kept = {name: torch.zeros_like(w, dtype=torch.bool) for name, w in weights.items() if ".convs." in name}
    small, x = shrink.shrink(net, kept), inputs(3, 3 * 8 * 8)
    assert_same(small, net, kept, x, 0)
    convolutions = [m for m in small.modules() if isinstance(m, nn.Conv2d)]
    assert len(convolutions) == 3 and not isinstance(small, plain.Graph)  # the stem and the two projections, a chain


@pytest.mark.parametrize(("width", "pools"), [(3, 2), (4, 1), (8, 0)])
def test_pools_take_the_steps_of_projections_whose_gradient_would_not_be_safe(width, pools):
    """Those of less than eight channels; see `twins.FEW`."""
    net, x = small_convnet("resnet20", width=width), inputs(3, 3 * 8 * 8)
    small = shrink.shrink(net)
    assert_same(small, net, {}, x, 0)
    narrow = [m for m in small.modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (1, 1)]
    assert sum(isinstance(m, nn.AvgPool2d) for m in small.modules()) == pools
    assert sorted(m.stride[0] for m in narrow) == [1] * pools + [2] * (2 - pools)


def test_a_dead_filter_is_stored_as_what_it_does_at_the_border():
    """A filter that says relu(bias) everywhere: to the next, padded convolution it is 3×3 numbers for each unit."""
    net = shaken(nets.init_(convnets.VGG((1, 32, 32), 3, ["no-WN"], width=4), [0]))
    with torch.no_grad():
        net.convs[0].bias.copy_(torch.tensor([0.5, 1.0, -1.0, 0.2]))
    kept = {"convs.0.weight": torch.ones_like(net.convs[0].weight, dtype=torch.bool)}
    kept["convs.0.weight"][0, :3] = False
    small, x = shrink.shrink(net, kept), inputs(3, 32 * 32)
    assert_same(small, net, kept, x, 0)
    offset = next(m for m in small if isinstance(m, plain.Offset))
    ones = torch.nn.functional.conv2d(
        torch.tensor([0.5, 1.0, 0.0], dtype=F64)[None, :, None, None].expand(1, 3, 16, 16),
        net.convs[1].weight[0, :, :3], padding=1,
    )  # fmt: skip
    assert offset.values.shape == (4, 3, 3)
    torch.testing.assert_close(offset.values, ones[0][:, [0, 8, 15]][:, :, [0, 8, 15]])
    with torch.no_grad():
        net.convs[0].bias.copy_(torch.tensor([-0.5, -1.0, -1.0, 0.2]))
    small = shrink.shrink(net, kept)
    assert not any(isinstance(m, plain.Offset) for m in small) and small[1].out_channels == 1
    assert_same(small, net, kept, x, 0)


# ---- what users do with the module


def test_an_mlp_becomes_torchs_own_modules():
    net = mlp()
    small = shrink.shrink(net, random_masks(net, 0.3))
    assert all(type(module) in (nn.Sequential, nn.Linear, nn.ReLU) for module in small.modules())
    file = io.BytesIO()
    torch.save(small, file)
    file.seek(0)
    x = inputs(4, SIZES[0])
    assert torch.equal(torch.load(file, weights_only=False)(x), small(x))


def small_modules():
    net, conv, residual = mlp(), small_convnet("vgg11_bn"), small_convnet("resnet20")
    yield shrink.shrink(net, random_masks(net, 0.3)), SIZES[0]
    yield shrink.shrink(net, random_masks(net, 0.01)), SIZES[0]
    yield shrink.shrink(conv, random_masks(conv, 0.1)), 3 * 32 * 32
    yield shrink.shrink(residual, random_masks(residual, 0.1)), 3 * 8 * 8
    squared = mlp(activation="relu2", dtype=torch.float32)
    yield shrink.shrink(squared, random_masks(squared, 0.5)), SIZES[0]
    for activation in ("sigmoid", "erf"):
        net = mlp(activation=activation)
        yield shrink.shrink(net, random_masks(net, 0.5)), SIZES[0]


def test_there_is_a_module_of_every_kind():
    kinds = {type(part) for small, _ in small_modules() for part in small.modules()}
    assert kinds >= set(plain.KINDS)


def test_every_module_is_traced():
    for small, size in small_modules():
        x = inputs(3, size, next(small.parameters()).dtype)
        assert torch.equal(torch.fx.symbolic_trace(small)(x), small(x))


def test_every_module_is_kept_in_a_file(tmp_path):
    for k, (small, size) in enumerate(small_modules()):
        x = inputs(3, size, next(small.parameters()).dtype)
        path = plain.save(small, tmp_path / str(k))
        before = torch.random.get_rng_state()
        loaded = plain.load(path.parent)
        assert torch.equal(loaded(x), small(x)) and str(loaded) == str(small)
        assert torch.equal(before, torch.random.get_rng_state())
        assert plain.macs(loaded, size) == plain.macs(small, size)


def test_a_file_that_is_not_whole_is_an_error(tmp_path):
    net = mlp()
    path = plain.save(shrink.shrink(net), tmp_path)
    with pytest.raises(RecordError, match="no weights at"):
        plain.load(tmp_path / "elsewhere")
    arrays, meta = disk.load_tensors(path)
    whole = path.read_bytes()
    for part in (0, 7, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:part])
        with pytest.raises(RecordError, match=str(path)):
            plain.load(tmp_path)
    del meta["module"][2]["0"]
    disk.save_tensors(path, arrays, meta)
    with pytest.raises(RecordError, match="does not hold a network"):
        plain.load(tmp_path)
    disk.save_tensors(path, arrays, {**meta, "format": 99})
    with pytest.raises(RecordError, match="format 99"):
        plain.load(tmp_path)


def test_what_cannot_be_shrunk_is_an_error():
    with pytest.raises(ValueError, match="fold"):
        shrink.shrink(nets.init_(nets.MLP([3, 4, 2], ["EWN"]), [0]))
    with pytest.raises(ValueError, match=r"run is 2; .*\[0, 2\)"):
        shrink.shrink(mlp(), run=2)
    with pytest.raises(ValueError, match="stacks of lib.networks.layers.Linear are not known.*MLP"):
        shrink.shrink(nets.Linear(1, 3, 2))


def test_shrinking_changes_nothing_and_draws_nothing():
    net = small_convnet("resnet20")
    before, state = torch.random.get_rng_state(), copy.deepcopy(net.state_dict())
    shrink.shrink(net, random_masks(net, 0.2))
    assert torch.equal(before, torch.random.get_rng_state())
    assert all(torch.equal(tensor, state[name]) for name, tensor in net.state_dict().items())


# ---- narrower stacks


def unit_masks(net, layers, density, seed=0):
    g = torch.Generator().manual_seed(seed)
    named = nets.layers(net)
    scores = {layer: torch.rand(named[layer].weight.shape[:2], generator=g) for layer in layers}
    return masks.top(scores, density)


def cases():
    yield mlp(3), ["layers.0", "layers.2"], SIZES[0]
    yield small_convnet("vgg11_bn"), ["convs.0", "convs.3", "convs.7"], 3 * 32 * 32
    yield small_convnet("vgg11_bn", 64, 2), ["convs.7", "hidden.0", "hidden.1"], 3 * 64 * 64
    yield small_convnet("resnet20"), [f"blocks.{k}.convs.0" for k in range(9)], 3 * 8 * 8
    yield small_convnet("resnet50"), [f"blocks.{k}.convs.{j}" for k in range(16) for j in (0, 1)], 3 * 8 * 8


@pytest.mark.parametrize("case", range(5))
def test_a_narrow_stack_is_the_masked_one(case):
    net, layers, size = list(cases())[case]
    units, x = unit_masks(net, layers, 0.5), inputs(3, size)
    kept = expanded(net, units)
    small = shrink.narrow(net, units)
    assert type(small) is type(net) and nets.weights(small).keys() == nets.weights(net).keys()
    widths = {layer: module.weight.shape[1] for layer, module in nets.layers(small).items()}
    full = {layer: module.weight.shape[1] for layer, module in nets.layers(net).items()}
    assert widths == {layer: masks.count(n, 0.5) if layer in layers else n for layer, n in full.items()}
    wide = shrink.widen(small, net, units)
    with torch.no_grad():
        expected = masks.apply_(copy.deepcopy(net), kept)(x)
        torch.testing.assert_close(small(x), expected, rtol=1e-12, atol=1e-12 * float(expected.abs().max()))
        torch.testing.assert_close(wide(x), expected, rtol=1e-12, atol=1e-12 * float(expected.abs().max()))
    assert all(not nets.weights(wide)[name][~mask].any() for name, mask in kept.items() if name.endswith("weight"))


def expanded(net, units):
    """Return `masks.expand` of a network, normalisations left out: they are no layers of the chain."""
    bare = copy.deepcopy(net)
    for part in bare.modules():
        if isinstance(part, BatchNorm):
            part.weight = part.bias = None
    return masks.expand(units, bare)


def sgd(net, x, y, steps, after=lambda net: None):
    """Return the stack after steps of plain SGD on the sum of all runs' losses."""
    net.train()
    for _ in range(steps):
        net.zero_grad()
        loss = sum(nn.functional.cross_entropy(logits, y) for logits in net(x))
        loss.backward()
        with torch.no_grad():
            for p in net.parameters():
                if p.grad is not None:
                    p -= 0.05 * p.grad
        after(net)
    return net.eval()


@pytest.mark.parametrize("case", [0, 3])
def test_training_the_narrow_stack_is_training_the_masked_one(case):
    net, layers, size = list(cases())[case]
    units, x, y = unit_masks(net, layers, 0.5), inputs(4, size), torch.tensor([0, 1, 2, 3])
    kept = expanded(net, units)
    masked = sgd(masks.apply_(copy.deepcopy(net), kept), x, y, 3, lambda n: masks.apply_(n, kept))
    wide = shrink.widen(sgd(shrink.narrow(net, units), x, y, 3), net, units)
    torch.testing.assert_close(wide(x), masked(x), rtol=1e-9, atol=1e-9)
    for name, weight in nets.weights(masked).items():
        torch.testing.assert_close(nets.weights(wide)[name], weight, rtol=1e-9, atol=1e-9)


def test_a_whole_stream_can_be_narrowed():
    net, x = small_convnet("resnet20"), inputs(3, 3 * 8 * 8)
    half = unit_masks(net, ["stem"], 0.5)["stem"]
    stream = ["stem", *(f"blocks.{k}.convs.1" for k in range(3))]
    small = shrink.narrow(net, dict.fromkeys(stream, half))
    by_hand = copy.deepcopy(net)
    with torch.no_grad():  # whoever reads the stream no longer sees the other half
        for reader in (*(block.convs[0] for block in by_hand.blocks[:4]), by_hand.blocks[3].shortcut):
            reader.weight *= half[:, None, :, None, None]
        torch.testing.assert_close(small(x), by_hand(x), rtol=1e-10, atol=1e-10)
    with pytest.raises(ValueError, match="same ones"):
        shrink.narrow(net, {"stem": half})


def test_a_run_does_not_depend_on_its_neighbours():
    net = mlp(3)
    units = unit_masks(net, ["layers.0"], 0.5)
    alone = shrink.narrow(nets.take(net, [2]), {layer: mask[2:] for layer, mask in units.items()})
    assert torch.equal(alone.layers[1].weight[0], shrink.narrow(net, units).layers[1].weight[2])


def test_what_cannot_be_narrowed_is_an_error():
    net = mlp()
    kept = unit_masks(net, ["layers.0"], 0.5)
    kept["layers.0"][0] = True
    with pytest.raises(ValueError, match="layers.0 keeps \\[20, 10\\].*take"):
        shrink.narrow(net, kept)
    with pytest.raises(ValueError, match="counts above 0"):
        shrink.narrow(net, {"layers.0": torch.zeros(2, 20, dtype=torch.bool)})
    with pytest.raises(ValueError, match="layers.7.*layers.0"):
        shrink.narrow(net, {"layers.7": kept["layers.0"]})
    with pytest.raises(ValueError, match="output"):
        shrink.narrow(net, unit_masks(net, ["layers.3"], 0.5))
    normalised = nets.init_(nets.MLP([3, 4, 2], ["EWN"]), [0])
    with pytest.raises(ValueError, match="fold"):
        shrink.narrow(normalised, unit_masks(normalised, ["layers.0"], 0.5))
