"""Scores of units: one number per unit of a hidden layer, larger = kept: see `methods`. More are in `contribution`."""

import torch

from lib import draws
from lib.networks import nets
from lib.pruning import hops
from lib.pruning.methods import method
from lib.pruning.scores import drawn, snip


@method("magnitude", of="units")
def magnitude(net, x, y, seeds):
    """Return the norm of every hidden unit's effective weights, `{layer: (R, O)}`: the criterion of three studies."""
    norms = nets.unit_norms(net)
    return {layer: norms[layer] for layer in nets.hidden(net)}


@method("taylor", of="units", needs="examples")
def taylor(net, x, y, seeds):
    """Return the sum of |w · dL/dw| over the weights into every hidden unit, `{layer: (R, O)}`, in `eval()` mode.

    How much of the loss hangs on them, to first order (Molchanov et al., arXiv 1906.10771, where |Σ w · dL/dw| is
    squared; the sum of absolute values is what Torch-Pruning computes). For single weights it is SNIP's score.
    """
    scores, names = snip(net, x, y, seeds, training=False), {id(w): name for name, w in nets.weights(net).items()}
    hidden = {layer: net.get_submodule(layer).weight for layer in nets.hidden(net)}  # several layers may share one
    return {layer: scores[names[id(weight)]].flatten(2).sum(2) for layer, weight in hidden.items()}


@method("fpgm", of="units")
def fpgm(net, x, y, seeds):
    """Return the sum of the distances between the weights into a hidden unit and those into each other of its layer.

    `{layer: (R, O)}`; what lies nearest to the geometric median of all goes first (He et al., arXiv 1811.00250).
    """
    each = {layer: net.get_submodule(layer).weight.detach().flatten(2) for layer in nets.hidden(net)}
    fine = torch.promote_types(next(iter(each.values())).dtype, torch.float32)  # of half torch has no distances
    exact = "donot_use_mm_for_euclid_dist"  # by products, which are faster, equal weights are apart
    return {name: torch.cdist(*[w.to(fine)] * 2, compute_mode=exact).sum(2) for name, w in each.items()}


@method("growth", of="units", needs="history")
def growth(net, x, y, seeds, now=None):
    """Return by how much the norm of every hidden unit has grown, with its sign, since it was `x {layer: (R, O)}`.

    What shrank goes first (arXiv 2010.12909). now: norms that stand for those of `net`. ValueError for the norms of
    another network.
    """
    now = now or magnitude(net, None, None, None)
    for layer, norm in now.items():
        if getattr(x.get(layer), "shape", None) not in (norm.shape, norm.shape[1:]):
            told = 'methods.score(net, "magnitude", of="units") of an earlier state of this network'
            raise ValueError(f"x has no norms {tuple(norm.shape)} of the units of {layer}; needed is {told}")
    return {layer: norm - x[layer] for layer, norm in now.items()}


@method("random", of="units")
def random(net, x, y, seeds, keys=None, draw=draws.uniform):
    """Return numbers drawn for every hidden unit from its run's seed, `{layer: (R, O)}`; keys, draw: `scores.drawn`.

    Studies name keys, and a draw, of their own: those that the masks of their records were drawn by.
    """
    like = magnitude(net, None, None, None)
    return drawn(like, seeds, keys or {layer: ("random_units", 0, k) for k, layer in enumerate(like)}, draw)


@method("outgoing_l1", of="units")
def outgoing_l1(net, x, y, seeds, signed=False):
    """Return the sum of |w| over the weights that read a unit, `{layer: (R, O)}`.

    signed: sum w itself, as published for teacher and student. ValueError for a network with shortcuts.
    """
    scores, layers = {}, nets.layers(net)
    if odd := [name for name, layer in layers.items() if getattr(layer, "groups", 1) > 1]:
        raise ValueError(f"{odd} read in groups; what reads a unit is told of layers that read all of them")
    width = {hop.target: hop.wiring.width for hop in hops.wired(nets.graph(net))}
    for name, reading in readers(net).items():
        sums = (_read(layers[hop.layer], hop.wiring, width[hop.source], signed) for hop in reading)
        units = _rows(layers[name]).shape[1]  # each several of what is read, if it works at places of their own
        scores[name] = sum(each.unflatten(1, (units, -1)).sum(2) for each in sums)
    return scores


def _read(layer, wiring, width, signed):
    """Return the sum of the weights, or of |w|, that read each unit of the group before, `(R, width)`."""
    if wiring.places is not None and wiring.places[0].shape[1] > 1:
        told = "reads pixels or tokens that are units of their own"
        raise ValueError(f"a layer of weights {tuple(layer.weight[0].shape)} {told}: who reads a unit is not told")
    weight = _rows(layer)
    sums = (weight if signed else weight.abs()).flatten(2).sum(1)
    if wiring.pairs is None:
        return sums
    here, inputs = wiring.pairs.to(sums.device)
    each = sums.unflatten(1, (weight.shape[2], -1)).sum(2)
    return each.new_zeros(len(each), width).index_add_(1, here, each[:, inputs])


def _rows(layer):
    """Return the weights (R, O, I, ...) of a layer, whichever of both axes comes first."""
    return layer.weight.detach().transpose(1, 2) if getattr(layer, "turned", False) else layer.weight.detach()


def readers(net):
    """Return `{layer: [the hops.Hop that read its units]}` of hidden layers, in forward order.

    ValueError for shortcuts that are identities: what reads their units reads sums of several layers' units.
    """
    graph, found = hops.wired(nets.graph(net)), {}
    for hop in graph:
        if hop.layer is None:
            told = "has sums, or pools of pixels that are units of their own"
            raise ValueError(f"{type(getattr(net, '_own', net)).__name__} {told}: who reads a unit is told of chains")
        found.setdefault(hop.layer, []).extend(other for other in graph if other.source == hop.target)
    return {layer: reading for layer, reading in found.items() if reading}
