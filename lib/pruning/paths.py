"""Paths: which units and weights of a masked network lie on a way from its input to its output.

The network is a list of hops between nodes, as `nets.graph` returns it: a hop has a layer (None for an identity
shortcut, unit i to unit i), a source and a target. Only masks decide. A bias makes no path: a unit without a
kept weight on its way from the input says the same thing of every example.
"""

from typing import NamedTuple

import torch

from lib.kernels.twins import trailing
from lib.pruning import hops as h
from lib.pruning import phew
from lib.pruning.masks import assert_like, assert_named


class Live(NamedTuple):
    """What of R masked networks is alive.

    reached, units: `{node: bool (R, C)}`, the units that the input reaches, and those of them that lie on a path to the
    output; masks: `{name: bool (R, O, *F)}`, the kept weights between such units.
    """

    reached: dict
    units: dict
    masks: dict


def complete(masks, weights):
    """Return masks of all `weights`, `{name: bool (R, O, *F)}`: what `masks` does not name is kept whole.

    Entries that end in ".bias" are left out. ValueError for the mask of no layer, or of another shape.
    """
    biases = {f"{name.removesuffix('.weight')}.bias" for name in weights}
    masks = {name: mask for name, mask in assert_named(masks).items() if name not in biases}
    assert_like(masks, weights)
    return {name: masks.get(name, torch.ones_like(weight, dtype=torch.bool)) for name, weight in weights.items()}


def live(hops, masks):
    """Return the `Live` units and weights of R networks whose graph is `hops`, from their kept weights.

    masks: `{layer + ".weight": bool (R, O, *F)}` of every layer of the graph, see `complete`.
    """
    sizes, like = widths(hops, masks), next(iter(masks.values()))
    across = [_across(hop.layer and masks[f"{hop.layer}.weight"], sizes[hop.source]) for hop in hops]
    reached, units, *_ = phew.alive(h.wired(hops), across, like.new_ones(len(like), sizes[0]))
    ends = {f"{hop.layer}.weight": (units[hop.source], units[hop.target]) for hop in hops if hop.layer}
    return Live(reached, units, {name: _between(masks[name], *both) for name, both in ends.items()})


def _across(mask, channels):
    """Return what says to which units others lead, see `phew.alive`: by a mask, or each to itself if it is None."""
    if mask is None:
        return lambda units, back: units
    pairs = joined(mask, channels)
    return lambda units, back: (pairs & units[:, :, None]).any(1) if back else (pairs & units[:, None]).any(2)


def joined(mask, channels):
    """Return which units a layer's mask `(R, O, I, *F)` joins to which of so many before it, `bool (R, O, channels)`.

    By any entry of a filter, or of the inputs in a row that a channel is after flattening.
    """
    return mask.flatten(2).unflatten(2, (channels, -1)).any(3)


def _between(mask, sources, targets):
    """Return the entries of a layer's mask that join units of its `sources` to units of its `targets`."""
    return mask & trailing(per_input(sources, mask)[:, None], mask) & trailing(targets, mask)


def joint(hops, scores):
    """Return scores `{layer: (R, O)}` of which units that go together have one: the sum over all their layers.

    Together go units that are added up: those of layers that lead to one node, or to nodes that an identity joins.
    """
    group = {}
    for hop in hops:
        group.setdefault(hop.target, hop.target)
        if hop.layer is None:
            old, new = group[hop.target], group[hop.source]
            group = {node: new if own == old else own for node, own in group.items()}
    groups = {hop.layer: group[hop.target] for hop in hops}
    return {layer: sum(scores[other] for other in scores if groups[other] == groups[layer]) for layer in scores}


def per_input(units, weight):
    """Return `(R, I)` of `units (R, C)`, for a layer's inputs: behind a convolution a channel has several, in a row."""
    return units.repeat_interleave(weight.shape[2] // units.shape[1], dim=1)


def widths(hops, masks):
    """Return the number of units of every node, `{node: C}`; ValueError where masks and hops do not fit."""
    named = {f"{hop.layer}.weight" for hop in hops}
    return phew.widths(h.wired(hops), {name: mask[0] for name, mask in masks.items() if name in named})
