"""Paths: which units and weights of a masked network lie on a way from its input to its output.

The network is a list of hops between nodes, as `nets.graph` returns it: a hop has a layer (None for an identity
shortcut, unit i to unit i), a source and a target. Only masks decide. A bias makes no path: a unit without a
kept weight on its way from the input says the same thing of every example.
"""

from typing import NamedTuple

import torch

from lib.pruning.masks import trailing


class Live(NamedTuple):
    """What of R masked networks is alive.

    forward, backward: `{node: bool (R, C)}`, the units that the input reaches, and those that reach the output;
    masks: `{name: bool (R, O, *F)}`, the kept weights that lead from the one to the other.
    """

    forward: dict
    backward: dict
    masks: dict

    def units(self, node):
        """Return the units of a node that lie on a path, `bool (R, C)`."""
        return self.forward[node] & self.backward[node]


def complete(masks, weights):
    """Return masks of all `weights`, `{name: bool (R, O, *F)}`: what `masks` does not name is kept whole.

    Entries that end in ".bias" are left out. ValueError for the mask of no layer, or of another shape.
    """
    biases = {f"{name.removesuffix('.weight')}.bias" for name in weights}
    unknown = [name for name in masks if name not in weights and name not in biases]
    if unknown:
        raise ValueError(f"there are masks of {unknown}; the network has {list(weights)} and biases of these layers")
    masks = {name: mask for name, mask in masks.items() if name in weights}
    for name, mask in masks.items():
        if mask.dtype != torch.bool or mask.shape != weights[name].shape:
            wanted = tuple(weights[name].shape)
            raise ValueError(f"the mask of {name} is {mask.dtype} {tuple(mask.shape)}; it must be bool {wanted}")
    return {name: masks.get(name, torch.ones_like(weight, dtype=torch.bool)) for name, weight in weights.items()}


def live(hops, masks):
    """Return the `Live` units and weights of R networks whose graph is `hops`, from their kept weights.

    masks: `{layer + ".weight": bool (R, O, *F)}` of every layer of the graph, see `complete`.
    """
    sizes = widths(hops, masks)
    pairs = {hop.layer: _pairs(masks[_key(hop)], sizes[hop.source]) for hop in hops if hop.layer}
    like = next(iter(masks.values()))
    every = {node: like.new_zeros(len(like), size) for node, size in sizes.items()}
    forward, backward = dict(every), dict(every)
    forward[0], backward[max(sizes)] = ~every[0], ~every[max(sizes)]
    for hop in hops:
        here = forward[hop.source]
        arriving = (pairs[hop.layer] & here[:, None]).any(2) if hop.layer else here
        forward[hop.target] = forward[hop.target] | arriving
    for hop in reversed(hops):
        there = backward[hop.target]
        leading = (pairs[hop.layer] & there[:, :, None]).any(1) if hop.layer else there
        backward[hop.source] = backward[hop.source] | leading
    on_path = {_key(hop): _between(hop, masks[_key(hop)], forward, backward) for hop in hops if hop.layer}
    return Live(forward, backward, on_path)


def _key(hop):
    return f"{hop.layer}.weight"


def _between(hop, mask, forward, backward):
    """Return the entries of a layer's mask that join a unit the input reaches to one that reaches the output."""
    inputs = per_input(forward[hop.source], mask)
    return mask & trailing(inputs[:, None], mask) & trailing(backward[hop.target], mask)


def joint(hops, scores):
    """Return scores `{layer: (R, O)}` of which units that go together have one: the sum over all their layers.

    Together go units that are added up: those of layers that lead to one node, or to nodes that an identity joins.
    """
    group, sums = {}, {}
    for hop in hops:
        group.setdefault(hop.target, hop.target)
        if hop.layer is None:
            old, new = group[hop.target], group[hop.source]
            group = {node: new if own == old else own for node, own in group.items()}
    groups = {hop.layer: group[hop.target] for hop in hops}
    for layer, score in scores.items():
        sums[groups[layer]] = sums[groups[layer]] + score if groups[layer] in sums else score
    return {layer: sums[groups[layer]] for layer in scores}


def per_input(units, weight):
    """Return `(R, I)` of `units (R, C)`, for a layer's inputs: behind a convolution a channel has several, in a row."""
    return units.repeat_interleave(weight.shape[2] // units.shape[1], dim=1)


def widths(hops, masks):
    """Return the number of units of every node, `{node: C}`; ValueError where masks and hops do not fit."""
    missing = [hop.layer for hop in hops if hop.layer and _key(hop) not in masks]
    if missing:
        raise ValueError(f"no mask of {missing}; paths.complete(masks, nets.weights(net)) adds all-kept ones")
    entries = [masks[_key(hop)].shape[2] for hop in hops if hop.layer and hop.source == 0]
    if not entries:
        raise ValueError("no layer reads node 0, the input: its number of units is unknown")
    sizes = {0: min(entries)}
    for hop in hops:
        if hop.source not in sizes:
            raise ValueError(
                f"{hop} comes before any hop to node {hop.source}; hops have the order of the forward pass"
            )
        size = masks[_key(hop)].shape[1] if hop.layer else sizes[hop.source]
        if sizes.setdefault(hop.target, size) != size:
            raise ValueError(f"{hop} brings {size} units to node {hop.target}, which has {sizes[hop.target]}")
        if hop.layer and masks[_key(hop)].shape[2] % sizes[hop.source]:
            inputs, units = masks[_key(hop)].shape[2], sizes[hop.source]
            raise ValueError(f"{hop} has {inputs} inputs; that is no multiple of the {units} units before it")
    return sizes


def _pairs(mask, channels):
    """Return which units a layer joins, `bool (R, O, C)`: where a filter, or a channel's inputs, keep anything."""
    cells = mask.flatten(3).any(3) if mask.dim() > 3 else mask
    return cells if cells.shape[2] == channels else cells.unflatten(2, (channels, -1)).any(3)
