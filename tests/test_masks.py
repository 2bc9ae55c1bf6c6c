"""Masks against tables that a person would draw."""

import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import prune

from lib import convnets, masks, methods, nets, selection


@pytest.mark.parametrize(
    "n, density, rounding, kept",
    [
        (1024, 1.0, "prune_floor", 1024),
        (1024, 0.95, "prune_floor", 1024 - 51),  # 5 % of 1024 is 51.2
        (64, 0.95, "prune_floor", 61),  # 5 % of 64 is 3.2
        (1024, 0.05, "prune_floor", 52),  # 95 % is 972.8
        (20, 1 - 0.35, "prune_floor", 13),  # 0.35 * 20 is exactly 7, whatever float says
        (100, 1 - 0.29, "prune_floor", 71),
        (10, 0.25, "nearest", 3),
        (10, 0.24, "nearest", 2),
        (10, 0.29, "keep_floor", 2),
        (1000, 0.3, "keep_floor", 300),
    ],
)
def test_counts(n, density, rounding, kept):
    assert masks.count(n, density, rounding) == kept


def test_published_counts_at_every_cutoff():
    for percent in range(0, 100, 5):
        assert 1024 - masks.count(1024, 1 - percent / 100, "prune_floor") == percent * 1024 // 100


@pytest.mark.parametrize("density", [0, -0.1, 1.5, float("nan")])
def test_a_density_outside_its_range_is_an_error(density):
    with pytest.raises(ValueError, match="density"):
        masks.count(10, density)


def test_an_unknown_rounding_is_an_error():
    with pytest.raises(ValueError, match="'up'.*prune_floor"):
        masks.count(10, 0.5, "up")


def test_top_keeps_the_highest_units_of_each_run():
    scores = {"a": torch.tensor([[3.0, 1.0, 2.0, 0.0], [0.0, 1.0, -2.0, 5.0]])}
    kept = masks.top(scores, 0.5)["a"]
    assert kept.tolist() == [[True, False, True, False], [False, True, False, True]]


def test_among_equal_scores_the_earlier_goes_first():
    scores = {"a": torch.zeros(2, 5)}
    assert masks.top(scores, 0.4)["a"].tolist() == [[False, False, False, True, True]] * 2


@pytest.mark.parametrize("how", [{"scope": "layer"}, {"scope": "global"}, {"least": 0.1}])
def test_of_no_scores_there_are_no_masks(how):
    assert masks.top({}, 0.5, **how) == {}


def test_a_score_that_is_no_number_is_an_error():
    with pytest.raises(ValueError, match="NaN"):
        masks.top({"a": torch.tensor([[1.0, float("nan")]])}, 0.5)


def tiny():
    net = nets.MLP([2, 3, 2], ["no-WN"])
    with torch.no_grad():
        net.layers[0].weight.copy_(torch.arange(1.0, 7).reshape(1, 3, 2))
        net.layers[0].bias.fill_(7)
        net.layers[1].weight.copy_(torch.arange(8.0, 14).reshape(1, 2, 3))
    return net


def test_a_pruned_unit_loses_row_bias_and_column():
    net = tiny()
    units = {"layers.0": torch.tensor([[True, False, True]])}
    masks.apply_(net, masks.expand(units, net))
    assert net.layers[0].weight[0].tolist() == [[1, 2], [0, 0], [5, 6]]
    assert net.layers[0].bias[0].tolist() == [7, 0, 7]
    assert net.layers[1].weight[0].tolist() == [[8, 0, 10], [11, 0, 13]]


def test_pruning_units_is_removing_them():
    """The masked network equals the one whose matrices lack the units, on random input."""
    net = nets.init_(nets.MLP([5, 9, 8, 3], ["no-WN"]), [1]).double()
    with torch.no_grad():
        for layer in net.layers[:-1]:
            layer.bias.normal_()
    keep = {"layers.0": torch.rand(1, 9) < 0.6, "layers.1": torch.rand(1, 8) < 0.6}
    a, b = (k[0] for k in keep.values())
    x = torch.randn(6, 5, dtype=torch.float64)
    w0, w1, w2 = (layer.weight[0].detach() for layer in net.layers)
    h = torch.relu(x @ w0[a].T + net.layers[0].bias[0].detach()[a])
    expected = torch.relu(h @ w1[b][:, a].T + net.layers[1].bias[0].detach()[b]) @ w2[:, b].T
    masks.apply_(net, masks.expand(keep, net))
    torch.testing.assert_close(net(x)[0], expected)


def test_masks_meet_plain_weights_only():
    net = nets.init_(nets.MLP([2, 3, 2], ["EWN"]), [0])
    units = {"layers.0": torch.tensor([[True, False, True]])}
    with pytest.raises(ValueError, match="fold"):
        masks.apply_(net, masks.expand(units, net))


@pytest.mark.parametrize("rule", ["SGD", "AdamW"])
def test_what_is_held_trains_as_under_torchs_own_pruning(rule):
    """Momentum and weight decay bring nothing back; a normalisation stands between, one layer is frozen."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))
    net[3].requires_grad_(False)
    x, y, other = torch.randn(20, 6).double(), torch.arange(20) % 3, copy.deepcopy(net.double())
    kept = {f"{k}.weight": torch.rand_like(net[k].weight) < 0.5 for k in (0, 3, 5)}
    for k in (0, 3, 5):
        prune.custom_from_mask(other[k], "weight", kept[f"{k}.weight"])
    options = {"lr": 0.1, "weight_decay": 0.01} | ({"momentum": 0.9, "nesterov": True} if rule == "SGD" else {})
    optimizers = [getattr(torch.optim, rule)(one.parameters(), **options) for one in (net, other)]
    handle = masks.hold_(net, kept, optimizers[0])
    for _ in range(5):
        for one, optimizer in zip((net, other), optimizers, strict=True):
            optimizer.zero_grad()
            nn.functional.cross_entropy(one(x), y).backward()
            optimizer.step()
    other(x)  # which computes its weights anew
    for k in (0, 3, 5):
        torch.testing.assert_close(net[k].weight, other[k].weight, rtol=1e-9, atol=1e-12)
        assert torch.equal(net[k].weight == 0, ~kept[f"{k}.weight"])
    handle.remove()
    optimizers[0].step()
    assert net[0].weight[~kept["0.weight"]].any(), "what is not held comes back"


def test_an_unknown_layer_is_an_error():
    with pytest.raises(ValueError, match="layers.7.*layers.0"):
        masks.expand({"layers.7": torch.ones(1, 3, dtype=torch.bool)}, tiny())


@pytest.mark.parametrize(
    "scope, first, second",
    [
        ("layer", [[0, 0], [1, 1]], [[1, 0], [1, 0]]),
        ("global", [[0, 0], [0, 1]], [[1, 0], [1, 1]]),
        ("unit", [[0, 1], [0, 1]], [[1, 0], [1, 0]]),
    ],
)
def test_a_scope_is_what_shares_one_count(scope, first, second):
    scores = {"a": torch.tensor([[[1.0, 2.0], [3.0, 7.0]]]), "b": torch.tensor([[[8.0, 4.0], [9.0, 5.0]]])}
    kept = masks.top(scores, 0.5, scope)
    assert kept["a"].int().tolist() == [first]
    assert kept["b"].int().tolist() == [second]


def literally(scores, keep):
    """Return the mask of one row: a stable sort, and what comes first goes first."""
    kept = torch.ones(len(scores), dtype=torch.bool)
    kept[np.argsort(scores.numpy(), kind="stable")[: len(scores) - keep]] = False
    return kept


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("ties", [True, False])
def test_top_is_a_stable_sort(seed, ties):
    rng = torch.Generator().manual_seed(seed)
    shapes = {"a": (3, 7, 5), "b": (3, 4, 2, 3, 3), "c": (3, 37, 1)}
    scores = {k: torch.randn(shape, generator=rng) for k, shape in shapes.items()}
    if ties:
        scores = {k: (score * 1.5).round() for k, score in scores.items()}
    densities = [0.07, 0.5, 0.93]
    for scope in masks.SCOPES:
        kept = masks.top(scores, densities, scope)
        for run, density in enumerate(densities):
            alone = masks.top({k: score[run : run + 1] for k, score in scores.items()}, density, scope)
            for k in scores:
                assert kept[k].shape == scores[k].shape
                assert torch.equal(alone[k][0], kept[k][run]), "one density per run is one run at a time"
            rows = {
                "layer": [(score[run].flatten(), kept[k][run].flatten()) for k, score in scores.items()],
                "unit": [
                    (s, m)
                    for k in scores
                    for s, m in zip(scores[k][run].flatten(1), kept[k][run].flatten(1), strict=True)
                ],
                "global": [tuple(torch.cat([t[k][run].flatten() for k in scores]) for t in (scores, kept))],
                "four": [
                    pair
                    for k in scores
                    for row in zip(*(t[k][run].movedim(1, -1).flatten(0, -2) for t in (scores, kept)), strict=True)
                    for pair in zip(*(part.split(4) for part in row), strict=True)
                ],
            }[scope]
            for score, mask in rows:
                keep = masks.count(4 if scope == "four" else len(score), density)
                assert torch.equal(mask, literally(score, min(keep, len(score))))


def long_rows(kind, n=5 * selection.SAMPLE + 7):
    """Return scores `(2, 1, n)`, more than a sample is taken of; every fifth of "comb", all of a sample, misleads."""
    rows = torch.randn(2, 1, n, generator=torch.Generator().manual_seed(3)).double()
    if kind == "ties":
        rows = (rows * 1.5).round()
    elif kind == "mostly zero":
        rows = rows.clamp_min(2) - 2
    elif kind == "comb":
        rows[..., ::5] += 100
    return rows.sort().values if kind == "rising" else rows


@pytest.mark.parametrize("kind", ["any", "ties", "mostly zero", "comb", "rising"])
@pytest.mark.parametrize("density", [1e-4, 0.03, 0.5, 0.9, 0.9999])
def test_the_highest_of_many_are_found_from_a_sample(kind, density):
    rows = long_rows(kind)
    kept = masks.top({"a": rows}, density)["a"]
    inside = masks.top({"a": rows.flip(2)}, 0.95)
    within = masks.top({"a": rows}, density * 0.9, within=inside)["a"]
    for score, mask, here, some in zip(rows, kept, inside["a"], within, strict=True):
        assert torch.equal(mask[0], literally(score[0], masks.count(len(mask[0]), density)))
        left = literally(score[here], masks.count(len(mask[0]), density * 0.9))
        assert torch.equal(some[here], left) and not bool((some & ~here).any())


def test_all_equal_scores_keep_exactly_the_count():
    for keep in range(1, 11):
        kept = masks.top({"a": torch.zeros(1, 2, 5)}, keep / 10)["a"].flatten()
        assert kept.tolist() == [False] * (10 - keep) + [True] * keep


def test_minus_zero_is_zero():
    assert masks.top({"a": torch.tensor([[[0.0, -0.0]]])}, 0.5)["a"].flatten().tolist() == [False, True]


def test_a_score_is_not_changed_and_may_lie_anyhow_in_memory():
    score = torch.randn(5, 3, 2, generator=torch.Generator().manual_seed(1))
    turned, before = score.permute(2, 1, 0), score.clone()
    kept = masks.top({"a": turned}, [0.2, 0.6])["a"]
    assert torch.equal(kept, masks.top({"a": turned.contiguous()}, [0.2, 0.6])["a"])
    assert torch.equal(score, before)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("scope", masks.SCOPES)
def test_no_order_no_masks(bad, scope):
    scores = {"a": torch.ones(1, 3, 4)}
    scores["a"][0, 1, 2] = bad
    with pytest.raises(ValueError, match="no order"):
        masks.top(scores, 0.5, scope)


def test_errors_of_top():
    with pytest.raises(ValueError, match="'row'.*layer"):
        masks.top({"a": torch.ones(1, 3, 4)}, 0.5, "row")
    with pytest.raises(ValueError, match="3 densities for a stack of 2"):
        masks.top({"a": torch.ones(2, 3, 4)}, [0.1, 0.2, 0.3])
    with pytest.raises(ValueError, match="density.* is 0"):
        masks.top({"a": torch.ones(2, 3, 4)}, [0.1, 0])


@pytest.mark.parametrize("dtype", [torch.int32, torch.uint8, torch.bool])
def test_whole_numbers_are_scores_too(dtype):
    score = torch.tensor([[[0, 3, 0, 1], [2, 0, 0, 1]]]).to(dtype)
    within = {"a": torch.tensor([[[False, True, True, True], [False, True, True, False]]])}
    found, wanted = (masks.top({"a": each}, 0.5, within=within)["a"] for each in (score, score.double()))
    assert torch.equal(found, wanted) and not (found & ~within["a"]).any()


def test_expand_refuses_batch_normalisation():
    net = convnets.VGG((1, 4, 4), 5, ["no-WN"], 2, ((1,), (2,)), batch_norm=True)
    with pytest.raises(ValueError, match="batch normalisation"):
        masks.expand({"convs.0": torch.ones(1, 2, dtype=torch.bool)}, net)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_scores_of_half_precision_have_an_order_too(dtype):
    score = {"w": torch.from_numpy(np.random.default_rng(0).normal(size=(2, 30, 700))).to(dtype)}
    exact = {"w": score["w"].double()}
    assert torch.equal(masks.top(score, 0.3)["w"], masks.top(exact, 0.3)["w"])
    assert torch.equal(masks.top(score, 0.3)["w"], masks.top(exact, 0.3)["w"])
    inside = masks.top(exact, 0.5)
    assert torch.equal(masks.top(score, 0.3, within=inside)["w"], masks.top(exact, 0.3, within=inside)["w"])


@pytest.mark.parametrize("density", [torch.tensor(0.25), np.float32(0.25), np.array(0.25), torch.tensor([0.25, 0.25])])
def test_a_density_may_be_a_number_of_any_library(density):
    score = {"w": torch.arange(16.0).view(2, 8)}
    assert torch.equal(masks.top(score, density)["w"], masks.top(score, 0.25)["w"])


# ---- masks of a torch module


def module():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 5, 3), nn.ReLU(), nn.Flatten(), nn.Linear(45, 7))


def test_a_pruned_module_is_pruned_again_by_masks_from_a_file(tmp_path):
    network, twin = module(), module()
    kept = methods.prune(network, "phew", 0.2)
    masks.apply_(network, kept)
    torch.save(kept, tmp_path / "masks.pt")
    masks.apply_(nn.DataParallel(twin), torch.load(tmp_path / "masks.pt"))
    assert all(torch.equal(a, b) for a, b in zip(network.parameters(), twin.parameters(), strict=True))
    for name, mask in kept.items():
        assert torch.equal(twin.get_parameter(name) != 0, mask)


def test_a_shared_weight_is_masked_under_either_name():
    network = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    network[1].weight = network[0].weight
    masks.apply_(network, {"1.weight": torch.eye(4, dtype=torch.bool)})
    assert int((network[0].weight != 0).sum()) == 4


def test_what_is_no_mask_of_the_module_is_told_and_changes_nothing():
    network = module()
    before = [parameter.clone() for parameter in network.parameters()]
    good = torch.zeros(5, 3, 3, 3, dtype=torch.bool)
    for wrong, told in (
        ({"0.wieght": good}, "the mask of 0.wieght is .*; it must be one of 0.weight, 0.bias, 3.weight, 3.bias"),
        ({"3.weight": good}, r"the mask of 3.weight is torch.bool \(5, 3, 3, 3\); it must be bool \(7, 45\)"),
        ({"0.bias": torch.ones(5)}, r"the mask of 0.bias is torch.float32 \(5,\)"),
    ):
        with pytest.raises(ValueError, match=told):
            masks.apply_(network, {"0.weight": good} | wrong)
    assert all(torch.equal(a, b) for a, b in zip(network.parameters(), before, strict=True))
