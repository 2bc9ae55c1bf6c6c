"""What is left of pruned networks, against paths counted one by one and numbers worked out by hand."""

import itertools

import numpy as np
import pytest
import torch

from lib import anatomy, convnets, masks, nets


def tiny(runs=4, bias=False):
    return nets.init_(nets.MLP([3, 4, 3, 2], ["no-WN"] * runs, bias=bias), range(runs))


def drawn(net, density, seed):
    rng = torch.Generator().manual_seed(seed)
    return {name: torch.rand(w.shape, generator=rng) < density for name, w in nets.weights(net).items()}


def on_paths(matrices):
    """Return the entries `{(layer, unit, input)}` that lie on a path, by walking all of them."""
    used = set()
    for path in itertools.product(*(range(m.shape[1]) for m in matrices), range(matrices[-1].shape[0])):
        steps = [(k, path[k + 1], path[k]) for k in range(len(matrices))]
        if all(matrices[k][o, i] for k, o, i in steps):
            used |= set(steps)
    return used


@pytest.mark.parametrize("density", [0.25, 0.4, 0.6, 1.0])
def test_counts_are_those_of_all_paths(density):
    net = tiny()
    kept = drawn(net, density, 7)
    found = anatomy.anatomy(net, kept)
    sizes = [12, 12, 6]
    for run in range(4):
        matrices = [mask[run].numpy() for mask in kept.values()]
        used = on_paths(matrices)
        left = [int(m.sum()) for m in matrices]
        effective = [sum(k == layer for k, _, _ in used) for layer in range(3)]
        live = [{i for k, _, i in used if k == 0}, *({o for k, o, _ in used if k == layer} for layer in range(3))]
        assert found["parameters"][run] == sum(left)
        assert found["sparsity"][run] == pytest.approx(1 - sum(left) / 30)
        assert found["effective_sparsity"][run] == pytest.approx(1 - len(used) / 30)
        assert found["layer_sparsity"][run] == pytest.approx(
            [1 - n / size for n, size in zip(left, sizes, strict=True)]
        )
        assert found["layer_effective_sparsity"][run] == pytest.approx(
            [1 - n / size for n, size in zip(effective, sizes, strict=True)]
        )
        assert found["live_units"][run].tolist() == [len(units) for units in live[1:]]
        assert found["macs"][run] == sum(len(a) * len(b) for a, b in itertools.pairwise(live))


def test_a_layer_without_a_mask_counts_as_whole():
    net = tiny(1)
    found = anatomy.anatomy(net, {"layers.0.weight": torch.arange(12).view(1, 4, 3) % 2 == 0})
    assert found["parameters"].tolist() == [6 + 12 + 6]
    assert found["sparsity"].tolist() == [pytest.approx(6 / 30)]


def test_half_the_units_are_a_third_of_the_weights():
    """784-1000-1000-500-200-10 at half the units of every hidden layer: what is left, multiplied out by hand."""
    net = nets.MLP([784, 1000, 1000, 500, 200, 10], ["no-WN"], bias=False)
    units = {f"layers.{k}": torch.arange(width)[None] % 2 == 0 for k, width in enumerate((1000, 1000, 500, 200))}
    found = anatomy.anatomy(net, masks.expand(units, net))
    left = 784 * 500 + 500 * 500 + 500 * 250 + 250 * 100 + 100 * 10
    assert found["parameters"].tolist() == [left] == found["macs"].tolist() == [793_000]
    assert found["sparsity"][0] == found["effective_sparsity"][0] == pytest.approx(1 - 793_000 / 2_386_000)
    assert found["layer_sparsity"][0] == pytest.approx([0.5, 0.75, 0.75, 0.75, 0.5])
    assert found["live_units"].tolist() == [[500, 500, 250, 100, 10]]


def test_a_convolution_multiplies_at_every_position():
    """8×8 images, 3×3 filters 1-2-4 and two pools: with a filter gone of each layer, by hand; and with none gone."""
    net = convnets.VGG((1, 8, 8), 5, ["no-WN"], 2, ((1,), (2,)))
    whole = anatomy.anatomy(net, {})
    assert whole["macs"].tolist() == [nets.macs_per_run(net)] == [9 * 2 * 64 + 2 * 4 * 9 * 16 + 4 * 4 * 5]
    units = {
        "convs.0": torch.tensor([[False, True]]),
        "convs.1": torch.tensor([[True, True, True, False]]),
    }
    kept = {name: mask for name, mask in masks.expand(units, net).items() if name.endswith("weight")}
    found = anatomy.anatomy(net, kept)
    assert found["macs"].tolist() == [9 * 1 * 64 + 1 * 3 * 9 * 16 + 3 * 4 * 5]
    assert found["live_units"].tolist() == [[1, 3, 5]]


# ---- what pruning does to the outputs


@pytest.mark.parametrize("bias", [False, True])
def test_perturbation_is_the_formula(bias):
    net, x = tiny(bias=bias).double(), np.random.default_rng(1).normal(size=(20, 3))
    if bias:
        units = {f"layers.{k}": torch.rand(4, width) < 0.7 for k, width in enumerate((4, 3))}
        for layer in net.layers[:2]:
            layer.bias.data.normal_()
        kept = masks.expand(units, net)
    else:
        kept = drawn(net, 0.6, 3)
        del kept["layers.2.weight"]
    before = {name: p.clone() for name, p in net.named_parameters()}
    found = anatomy.perturbation(net, kept, torch.from_numpy(x))
    for run in range(4):
        h = pruned = x
        for k, layer in enumerate(net.layers):
            w, b = layer.weight[run].detach().numpy(), 0
            m = kept[f"layers.{k}.weight"][run].numpy() if f"layers.{k}.weight" in kept else np.ones_like(w)
            b_left = 0
            if layer.bias is not None:
                b = layer.bias[run].detach().numpy()
                b_left = b * kept[f"layers.{k}.bias"][run].numpy()
            z, left, last = h @ w.T + b, h @ (w * m).T + b_left, pruned @ (w * m).T + b_left
            assert found["mass"][run, k] == pytest.approx((w[m == 0] ** 2).sum() / (w**2).sum())
            assert found["error"][run, k] == pytest.approx(np.linalg.norm(z - left) / np.linalg.norm(z))
            h, pruned = np.maximum(z, 0), np.maximum(last, 0)
        assert found["output_error"][run] == pytest.approx(np.linalg.norm(last - z) / np.linalg.norm(z))
    assert all(torch.equal(p, before[name]) for name, p in net.named_parameters())


def test_nothing_pruned_changes_nothing():
    net = tiny()
    found = anatomy.perturbation(net, {}, torch.randn(50, 3, generator=torch.Generator().manual_seed(1)))
    assert not any(values.any() for values in found.values())
    assert found["mass"].shape == found["error"].shape == (4, 3) and found["output_error"].shape == (4,)


def test_normalised_weights_are_an_error():
    net = nets.init_(nets.MLP([3, 4, 2], ["SWN"]), [1])
    with pytest.raises(ValueError, match="fold"):
        anatomy.perturbation(net, drawn(net, 0.5, 1), torch.ones(5, 3))
