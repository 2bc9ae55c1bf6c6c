"""Liveness against the enumeration of every path, unit by unit and weight by weight."""

import random

import pytest
import torch

from lib import nets, paths
from lib.networks.nets import Hop

RESIDUAL = [Hop("stem", 0, 1), Hop("a", 1, 2), Hop("b", 2, 3), Hop(None, 1, 3), Hop("out", 3, 4)]


def weights_of(hops, sizes, cells=(), features=1, runs=2):
    """Return empty weights of every layer; the layers into the last node are linear, with `features` a channel."""
    shapes = {}
    for hop in hops:
        last = hop.target == max(sizes)
        if hop.layer:
            inputs = sizes[hop.source] * (features if last and hop.source else 1)
            shapes[f"{hop.layer}.weight"] = (runs, sizes[hop.target], inputs, *(() if last else cells))
    return {name: torch.empty(shape) for name, shape in shapes.items()}


def random_case(seed):
    """Return the hops and masks of a random small graph: layers, identities, filters, features behind channels."""
    draw, g = random.Random(seed), torch.Generator().manual_seed(seed)
    last = draw.randint(1, 5)
    sizes = {node: draw.choice([2, 3]) for node in range(last + 1)}
    hops = []
    for target in range(1, last + 1):
        for source in draw.sample(range(target), min(target, draw.randint(1, 2))):
            same = source and sizes[source] == sizes[target]
            hops.append(Hop(None if same and draw.random() < 0.4 else f"l{len(hops)}", source, target))
    hops += [] if any(hop.source == 0 and hop.layer for hop in hops) else [Hop("direct", 0, last)]
    hops += [Hop(f"end{node}", node, last) for node in range(last) if node not in {hop.source for hop in hops}]
    cells, features = draw.choice([((), 1), ((2, 2), 3), ((1, 3), 1)])
    density = draw.choice([0.2, 0.5])
    shapes = weights_of(hops, sizes, cells, features)
    masks = {name: torch.rand(empty.shape, generator=g) < density for name, empty in shapes.items()}
    return hops, masks, sizes


def every_path(hops, masks, sizes, run):
    """Return what lies on the paths from the input: (units reached, units on paths to the end, weights)."""
    reached, complete, used = set(), set(), set()

    def walk(node, unit, units, weights):
        units = [*units, (node, unit)]
        reached.add((node, unit))
        if node == max(sizes):
            complete.update(units)
            used.update(weights)
        for hop in (hop for hop in hops if hop.source == node):
            if hop.layer is None:
                walk(hop.target, unit, units, weights)
                continue
            mask = masks[f"{hop.layer}.weight"][run]
            features = mask.shape[1] // sizes[node]
            for entry in mask.nonzero().tolist():
                if entry[1] // features == unit:
                    walk(hop.target, entry[0], units, [*weights, (hop.layer, *entry)])

    for unit in range(sizes[0]):
        walk(0, unit, [], [])
    return reached, complete, used


def numbered(units, run):
    """Return `{node: (R, C)}` as a set of (node, unit)."""
    return {(node, unit) for node, kept in units.items() for unit in kept[run].nonzero().flatten().tolist()}


@pytest.mark.parametrize("seed", range(25))
def test_liveness_is_what_the_paths_say(seed):
    hops, masks, sizes = random_case(seed)
    live = paths.live(hops, masks)
    for run in range(2):
        reached, on_path, used = every_path(hops, masks, sizes, run)
        assert numbered(live.reached, run) == reached
        assert numbered(live.units, run) == on_path
        found = {
            (name.removesuffix(".weight"), *entry)
            for name, mask in live.masks.items()
            for entry in mask[run].nonzero().tolist()
        }
        assert found == used


def test_an_identity_keeps_the_stream_alive():
    weights = weights_of(RESIDUAL, {0: 2, 1: 3, 2: 2, 3: 3, 4: 2}, runs=1)
    masks = paths.complete({"b.weight": torch.zeros(1, 3, 2, dtype=torch.bool)}, weights)
    live = paths.live(RESIDUAL, masks)
    assert live.units[3].all() and live.units[1].all() and not live.units[2].any()
    left = {name: int(mask.sum()) for name, mask in live.masks.items() if mask.any()}
    assert not {"a.weight", "b.weight"} & set(left) and sum(left.values()) == 6 + 6


def test_a_channel_has_its_features_in_a_row():
    hops = [Hop("conv", 0, 1), Hop("out", 1, 2)]
    conv = torch.ones(1, 2, 1, 3, 3, dtype=torch.bool)
    conv[0, 1] = False
    out = torch.tensor([[[0, 0, 0, 1, 1, 1], [0, 1, 0, 0, 0, 0]]], dtype=torch.bool)
    live = paths.live(hops, {"conv.weight": conv, "out.weight": out})
    assert live.reached[1].tolist() == [[True, False]] and live.reached[2].tolist() == [[False, True]]
    assert live.masks["out.weight"].tolist() == [[[False] * 6, [False, True] + [False] * 4]]


def test_a_run_does_not_depend_on_its_neighbours():
    hops, masks, _ = random_case(3)
    alone = paths.live(hops, {name: mask[1:] for name, mask in masks.items()})
    both = paths.live(hops, masks)
    assert all(torch.equal(alone.masks[name][0], both.masks[name][1]) for name in masks)


def test_a_chain_collapses_as_a_whole():
    net = nets.MLP([4, 3, 3, 2], ["no-WN"] * 2)
    none = torch.ones(2, 3, 3, dtype=torch.bool)
    none[1] = False
    masks = paths.complete({"layers.1.weight": none}, nets.weights(net))
    left = [mask.flatten(1).sum(1).tolist() for mask in paths.live(nets.graph(net), masks).masks.values()]
    assert left == [[4 * 3, 0], [3 * 3, 0], [3 * 2, 0]]


def test_what_does_not_fit_is_an_error():
    net = nets.MLP([4, 3, 2], ["no-WN"])
    hops, weights = nets.graph(net), nets.weights(net)
    full, four = paths.complete({}, weights), torch.ones(1, 2, 4, dtype=torch.bool)
    with pytest.raises(ValueError, match="layers.1.weight.*not in both"):
        paths.live(hops, {"layers.0.weight": full["layers.0.weight"]})
    with pytest.raises(ValueError, match="layers.7.weight.*layers.0.weight"):
        paths.complete({"layers.7.weight": full["layers.0.weight"]}, weights)
    with pytest.raises(ValueError, match="bool \\(1, 3, 4\\)"):
        paths.complete({"layers.0.weight": full["layers.0.weight"].float()}, weights)
    with pytest.raises(ValueError, match="layers.1 starts at group 1"):
        paths.live(hops[::-1], full)
    with pytest.raises(ValueError, match="b adds 2 units to the 3 of group 1"):
        paths.live([Hop("a", 0, 1), Hop("b", 0, 1)], {"a.weight": full["layers.0.weight"], "b.weight": four})
    with pytest.raises(ValueError, match="layers.1 has 3 inputs per unit, behind a group of 2 units"):
        paths.live([Hop("layers.1", 0, 1), Hop("layers.1", 1, 2)], {"layers.1.weight": full["layers.1.weight"]})
    with pytest.raises(ValueError, match="layers.0 starts at group 1, to which no hop before it leads"):
        paths.live([Hop("layers.0", 1, 2)], {"layers.0.weight": full["layers.0.weight"]})
