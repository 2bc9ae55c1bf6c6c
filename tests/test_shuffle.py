"""Shuffled masks: counts, which units they may use, and the same chance for every place."""

import functools

import pytest
import torch

from lib import convnets, methods, nets, paths, shuffle


@functools.cache
def pruned(name="vgg11_bn", side=32, density=0.05, runs=2):
    net = nets.init_(convnets.build(name, (3, side, side), 4, runs, 3), list(range(runs)), "phew")
    return nets.graph(net), methods.prune(net, "synflow", density, rounds=10)


@pytest.mark.parametrize("name, side", [("vgg11_bn", 32), ("vgg11_bn", 64), ("resnet20", 8)])
@pytest.mark.parametrize("width", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("as_published", [False, True])
def test_every_layer_keeps_its_count(name, side, width, as_published):
    hops, kept = pruned(name, side)
    found = shuffle.shuffled(hops, kept, [1, 2], width, as_published)
    assert list(found) == [f"{hop.layer}.weight" for hop in hops if hop.layer]
    before, after = ({name: mask.flatten(1).sum(1) for name, mask in part.items()} for part in (kept, found))
    assert all(torch.equal(before[key], after[key]) and found[key].shape == kept[key].shape for key in found)
    assert any(not torch.equal(kept[key], found[key]) for key in found)


def test_a_seed_is_a_shuffle_whoever_is_beside_it():
    hops, kept = pruned()
    both = shuffle.shuffled(hops, kept, [5, 6], 0.5)
    alone = shuffle.shuffled(hops, {name: mask[1:] for name, mask in kept.items()}, [6], 0.5)
    other = shuffle.shuffled(hops, kept, [5, 7], 0.5)
    assert all(torch.equal(both[name][1], alone[name][0]) for name in kept)
    assert any(not torch.equal(both[name][1], other[name][1]) for name in kept)


HOPS = nets.chain(["a", "b", "c"])


def small():
    """Return masks of a chain of 2 inputs, 10 and 10 units, 3 outputs, whose units 4, 7 and 9, 2 are in use."""
    kept = {"a.weight": (1, 10, 2), "b.weight": (1, 10, 10), "c.weight": (1, 3, 10)}
    kept = {name: torch.zeros(shape, dtype=torch.bool) for name, shape in kept.items()}
    for name, entries in {"a": [(4, 0), (7, 1)], "b": [(9, 4), (2, 7)], "c": [(0, 9), (1, 2)]}.items():
        for row, column in entries:
            kept[f"{name}.weight"][0, row, column] = True
    return kept


def reached(kept, draws, axis, **options):
    """Return all rows, or columns, of the three layers that many shuffles use."""
    used = [set(), set(), set()]
    for seed in range(draws):
        for places, mask in zip(used, shuffle.shuffled(HOPS, kept, [seed], **options).values(), strict=True):
            places |= set(mask[0].nonzero()[:, axis].tolist())
    return used


def test_units_in_use_come_first():
    kept = small()
    assert reached(kept, 60, 0, width=0.0) == [{4, 7}, {2, 9}, {0, 1}]
    assert reached(kept, 60, 1, width=0.0) == [{0, 1}, {4, 7}, {2, 9}]
    # a quarter of eight idle units are two, the first ones; of one idle output none
    assert reached(kept, 200, 0, width=0.25) == [{0, 1, 4, 7}, {0, 1, 2, 9}, {0, 1}]
    assert reached(kept, 200, 1, width=0.25) == [{0, 1}, {0, 1, 4, 7}, {0, 1, 2, 9}]


def test_the_published_width_takes_the_first_units_and_all_inputs():
    kept, options = small(), {"width": 0.25, "as_published": True}
    assert reached(kept, 300, 0, **options) == [{0, 1, 2, 3}, {0, 1, 2, 3}, {0, 1}]
    assert reached(kept, 300, 1, **options)[1:] == [set(range(10))] * 2


@pytest.mark.parametrize("as_published", [False, True])
def test_at_full_width_every_place_has_the_same_chance(as_published):
    kept, hits = small(), torch.zeros(10, 10)
    for seed in range(800):
        hits += shuffle.shuffled(HOPS, kept, [seed], 1.0, as_published)["b.weight"][0]
    # 2 of 100 places in each of 800 draws: 16 each, with a variance of 15.7; chi-squared of 99 degrees, p about 1e-4
    assert float(((hits - 16) ** 2 / 15.7).sum()) < 160


@pytest.mark.parametrize("width", [0.0, 0.4])
def test_no_weight_reads_an_idle_channel(width):
    """Behind a convolution of 64×64 images a channel has four inputs, and they are used or idle together."""
    hops, kept = pruned("vgg11_bn", 64, 0.01, 1)
    found = shuffle.shuffled(hops, kept, [3], width)
    by_layer = {hop.layer: hop for hop in hops}
    hop = by_layer["hidden.0"]
    before = next(other for other in hops if other.target == hop.source)
    used = kept[f"{before.layer}.weight"].flatten(2).any(2)
    columns = found["hidden.0.weight"].any(1).unflatten(1, (used.shape[1], -1)).any(2)
    idle = (~used[0]).nonzero()[:, 0].tolist()
    opened = idle[: int(width * len(idle))]
    assert len(idle) > 4 and set((columns & ~used)[0].nonzero()[:, 0].tolist()) <= set(opened)


def test_wider_shuffles_use_more_units():
    """The bottlenecks of SynFlow open, in a network of one connected chain."""
    hops, kept = pruned("vgg11_bn", 32, 0.02, 1)
    narrow, middle, wide = (
        sum(int(m.flatten(2).any(2).sum()) for m in shuffle.shuffled(hops, kept, [0], width).values())
        for width in (0.0, 0.5, 1.0)
    )
    assert narrow < middle < wide
    assert paths.widths(hops, kept)[0] == 3


def test_what_does_not_fit_is_an_error():
    with pytest.raises(ValueError, match="width.* is 1.5"):
        shuffle.shuffled(HOPS, small(), [0], 1.5)
    with pytest.raises(ValueError, match="2 seeds for a stack of 1"):
        shuffle.shuffled(HOPS, small(), [0, 1])
