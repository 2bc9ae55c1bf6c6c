"""Every form of a masked network against the masked stack, and the masks that some forms need against loops."""

import copy
import time

import numpy as np
import pytest
import torch
from torch import nn

from lib import convnets, masks, nets, plain, sets
from lib.studies.challenge import sparse
from tests.test_shrink import random_masks

SIZES = (20, 18, 13, 9, 4)
F64 = torch.float64


def mlp(bias=True, dtype=F64, runs=2, **options):
    net = nets.init_(nets.MLP(list(SIZES), ["no-WN"] * runs, bias=bias, **options), range(runs)).to(dtype)
    with torch.no_grad():
        for layer in net.layers:
            if layer.bias is not None:
                layer.bias.normal_(generator=torch.Generator().manual_seed(1))
    return net


def masked(net, kept, x, run):
    with torch.no_grad():
        return masks.apply_(copy.deepcopy(net), kept)(x)[run]


def forms(net, kept):
    return {name: sparse.FORMS[name](net, kept) for name in sparse.ANYWHERE}


@pytest.mark.parametrize("count", [1, 6])
@pytest.mark.parametrize("density", [1.0, 0.4, 0.1, 0.02])
@pytest.mark.parametrize("options", [{}, {"bias": False}, {"activation": "relu2", "output_bias": True}])
def test_every_form_has_the_masked_logits(options, density, count, monkeypatch):
    net = mlp(**options)
    kept = random_masks(net, density)
    x = torch.randn(count, SIZES[0], generator=torch.Generator().manual_seed(2), dtype=F64)
    for block in (4, 5):
        monkeypatch.setattr(sparse, "BLOCK", block)
        for form in forms(net, kept).values():
            torch.testing.assert_close(form.compute(x), masked(net, kept, x, 0), rtol=1e-12, atol=1e-12)


def test_single_precision_stays_single():
    net = mlp(dtype=torch.float32)
    kept, x = random_masks(net, 0.3), torch.randn(5, SIZES[0], generator=torch.Generator().manual_seed(2))
    for form in forms(net, kept).values():
        assert form.compute(x).dtype == torch.float32
        torch.testing.assert_close(form.compute(x), masked(net, kept, x, 0), rtol=1e-5, atol=1e-5)


def test_matrices_may_be_filled_up():
    """What semi_structured does, here with full matrices: sides of multiples of 64, and another precision inside."""
    net, x = mlp(), torch.randn(5, SIZES[0], generator=torch.Generator().manual_seed(2), dtype=F64)
    dense = sparse.FORMS["dense"](net, {}).compute
    filled = sparse.Transposed(list(dense), lambda weight: weight, 64, torch.float32)
    assert [tuple(weight.shape) for weight, _, _ in filled.layers] == [(64, 64)] * 4
    assert filled(x).dtype == F64
    torch.testing.assert_close(filled(x), masked(net, {}, x, 0), rtol=1e-4, atol=1e-4)


def test_costs_are_those_that_are_counted(monkeypatch):
    monkeypatch.setattr(sparse, "BLOCK", 4)
    net = mlp(bias=False, dtype=torch.float32, runs=1)
    units = {"layers.1": torch.arange(13)[None] < 5}
    kept = masks.expand(units, net)
    found = forms(net, kept)
    total, left = 20 * 18 + 18 * 13 + 13 * 9 + 9 * 4, 20 * 18 + 18 * 5 + 5 * 9 + 9 * 4
    blocks = 5 * 5 + 2 * 5 + 3 * 2 + 1 * 3  # of 4×4, in matrices of 18×20, 5×18, 9×5 and 4×9
    assert {name: form.macs for name, form in found.items()} == {
        "dense": total, "csr": left, "block": 16 * blocks, "shrunk": left,
    }  # fmt: skip
    rows = [18, 13, 9, 4]
    assert found["dense"].bytes == 4 * total and found["shrunk"].bytes == 4 * left
    assert found["csr"].bytes == 8 * left + 4 * sum(n + 1 for n in rows)
    assert found["block"].bytes == (4 * 16 + 4) * blocks + 4 * sum(-(-n // 4) + 1 for n in rows)


def test_convolutions_have_two_forms():
    net = nets.init_(convnets.build("resnet20", (3, 8, 8), 4, 1, 4), [0], "phew").double().eval()
    kept, x = random_masks(net, 0.2), torch.randn(2, 192, dtype=F64)
    for form in ("dense", "shrunk"):
        made = sparse.FORMS[form](net, kept)
        torch.testing.assert_close(made.compute(x), masked(net, kept, x, 0), rtol=1e-10, atol=1e-12)
    assert sparse.FORMS["dense"](net, {}).macs == nets.macs_per_run(net)
    with pytest.raises(ValueError, match="csr.*ResNet.*dense or shrunk"):
        sparse.FORMS["csr"](net, kept)


def test_what_has_no_form_is_an_error():
    with pytest.raises(ValueError, match="CUDA.*cpu.*dense, csr"):
        sparse.FORMS["semi_structured"](mlp(), {})


@pytest.mark.parametrize("block, density", [(4, 0.3), (5, 0.5), (8, 0.1)])
def test_block_masks_keep_the_largest_blocks(block, density):
    weights = {name: weight.detach() for name, weight in nets.weights(mlp()).items()}
    for name, mask in sparse.block_masks(weights, density, block).items():
        assert mask.shape == weights[name].shape
        for weight, kept in zip(weights[name], mask, strict=True):
            tiles = [
                (float(tile(weight, block, i, j).norm()), tile(kept, block, i, j))
                for i in range(-(-weight.shape[0] // block))
                for j in range(-(-weight.shape[1] // block))
            ]
            tiles.sort(key=lambda pair: pair[0])
            lost = len(tiles) - masks.count(len(tiles), density)
            assert all(not part.any() for _, part in tiles[:lost]) and all(part.all() for _, part in tiles[lost:])


def tile(matrix, block, i, j):
    return matrix[i * block : (i + 1) * block, j * block : (j + 1) * block]


def test_two_of_every_four_inputs_are_kept():
    weights = {name: weight.detach() for name, weight in nets.weights(mlp()).items()}
    for name, mask in sparse.masks_of(mlp(), "two_of_four", 0.5).items():
        for weight, kept in zip(weights[name].flatten(0, 1).abs(), mask.flatten(0, 1), strict=True):
            for values, part in zip(weight.split(4), kept.split(4), strict=True):
                keep = min(2, len(values))
                assert part.sum() == keep and set(values[part].tolist()) == set(sorted(values.tolist())[-keep:])


def test_latency_is_of_a_call_in_milliseconds_on_so_many_threads():
    seen, before = [], torch.get_num_threads()

    def function(x):
        seen.append(torch.get_num_threads())
        time.sleep(0.004)  # at least so long, and on a busy machine longer

    found = plain.latency(function, torch.zeros(1), repeats=5, threads=2)
    assert 4 <= found.low <= found.median <= found.high < 4000 and found.count == 5
    assert set(seen) == {2} and torch.get_num_threads() == before and len(seen) >= 5


def test_latency_of_a_network():
    form = sparse.FORMS["csr"](mlp(), {}).compute
    found = plain.latency(form, torch.zeros(3, SIZES[0], dtype=F64), repeats=5, threads=None)
    assert 0 < found.low <= found.median <= found.high and found.count == 5


def test_of_convolutions_units_go_and_their_multiplications_with_them():
    """A convolution between u and v units of a side s takes 9·u·v·s² multiplications, literally counted."""
    net = nets.init_(convnets.build("resnet20", (3, 8, 8), 10, 1, 8), [0], "phew")
    found = sparse.survey(net, "shrunk", [0.0, 0.5], [torch.randn(2, 192)], repeats=1)
    assert np.isnan(found["macs"][[0, 2, 3]]).all() and (found["latency"][1] > 0).all()
    for count, macs in zip((1, 2), found["macs"][1], strict=True):
        a, b, c = 8 // count, 16 // count, 32 // count
        stages = 64 * (27 * a + 54 * a * a), 16 * (10 * a * b + 45 * b * b), 4 * (10 * b * c + 45 * c * c)
        assert macs == sum(stages) + 10 * c


def test_networks_are_trained_where_that_decides_which_zeros_there_are(tmp_path, monkeypatch):
    monkeypatch.setenv("PRUNING_RUNS", str(tmp_path))
    data = sets.load("digits", train_examples=50)
    p = {"net": "mlp", "dataset": "digits", "train_examples": 50, "lr": 0.01, "batch_size": 10, "epochs": 1}
    p["hidden"] = [6]
    trained, start = sparse.network(data, p, [3]), nets.init_(nets.MLP([784, 6, 10], ["no-WN"], bias=False), [3])
    assert not torch.equal(trained.layers[0].weight, start.layers[0].weight)
    assert sparse.complaint(p | {"type": ["csr"]}) is None
    wrong = sparse.complaint(p | {"net": "resnet20", "type": ["shrunk", "csr"]})
    assert "net = 'resnet20'" in wrong and "take type shrunk" in wrong


def test_a_form_draws_nothing():
    before = torch.random.get_rng_state()
    forms(mlp(), random_masks(mlp(), 0.3))
    assert torch.equal(before, torch.random.get_rng_state())
    assert isinstance(sparse.FORMS["shrunk"](mlp(), {}).compute, nn.Sequential)
