"""Reweighting: what is kept makes up, by least squares on the training inputs, for what is dropped.

For a unit with weights w and kept inputs S the new weights minimise |Σ_(i in S) v_i x_i - Σ_i w_i x_i|² over the
examples (DIVNET, Mariet & Sra, arXiv 1511.05077; Acharyya, Zhang et al.). The normal equations need blocks of one
Gram matrix alone. It is singular (MNIST's has rank 713 of 784: border pixels never change), so of all
solutions the one that changes the weights least is taken.
"""

import torch

from lib import workers
from lib.errors import choice, listed
from lib.networks import nets
from lib.pruning import likelihood, masks

CHUNK_BYTES = {"cpu": 20e6, "cuda": 1e9}  # of Gram blocks solved at a time


@torch.no_grad()
def refit(weight, kept, moments, intercept=True):
    """Return (weights, shift): `weight (R, P, I)` refitted to the kept inputs and 0 elsewhere, and (R, P) for the bias.

    kept: bool (R, P, I), the inputs that each unit keeps, or (R, I), what all units of a run keep. moments: the
    `likelihood.Moments` of the inputs, with gram (I, I), or (R, I, I) where runs differ in theirs. intercept: fit a
    constant too, which the bias takes over; without it, as published, the shift is 0. Each run is refitted alone, so
    that no neighbour can round its weights.
    """
    if kept.shape not in (weight.shape, weight[:, 0].shape):
        told = f"kept is {tuple(kept.shape)}; allowed for {tuple(weight.shape)} are that, or without the units"
        raise ValueError(told)
    each = zip(weight, kept, moments.of_runs(len(weight)), strict=True)
    parts = (_refit(*mine, intercept) for mine in each)
    return tuple(map(torch.stack, zip(*parts, strict=True)))


def _refit(weight, kept, moments, intercept):
    """Return what `refit` does of one run: `weight (P, I)`, kept (P, I) or (I,)."""
    groups, kept = (weight.double()[:, None], kept) if kept.dim() == 2 else (weight.double()[None], kept[None])
    gram, mean, new, counts = moments.gram, moments.mean, torch.zeros_like(groups), kept.sum(-1)
    if intercept:
        gram = gram - moments.examples * mean[:, None] * mean
    for count in counts.unique().tolist():
        if count:
            _solve_(new, groups, kept, (counts == count).nonzero()[:, 0], gram)
    new = new.view(weight.shape)
    shift = ((weight.double() - new) * mean).sum(-1) * intercept
    return new.to(weight.dtype), shift.to(weight.dtype)


def _solve_(new, groups, kept, rows, gram):
    """Set the rows of `new (B, P, I)` from `groups`, for rows of `kept (B, I)` that all keep the same number."""
    inputs = kept[rows].nonzero()[:, 1].view(len(rows), -1)

    def work(part):
        row, chosen = rows[part], inputs[part]
        dropped = groups[row].masked_fill(kept[row, None], 0)
        index = chosen[:, None].expand(-1, groups.shape[1], -1)
        change = _least(gram[chosen[:, :, None], chosen[:, None, :]], (dropped @ gram).gather(2, index))
        new[row] = torch.zeros_like(dropped).scatter_(2, index, groups[row].gather(2, index) + change)

    size = int(CHUNK_BYTES[gram.device.type] / (8 * inputs.shape[1] ** 2))
    workers.each(work, workers.slices(len(rows), max(1, size)), gram.device)


def _least(blocks, right):
    """Return the shortest `x (B, P, k)` that minimises |blocks x - right|, for `blocks (B, k, k)` semidefinite."""
    values, vectors = torch.linalg.eigh(blocks)
    noise = blocks.shape[-1] * torch.finfo(blocks.dtype).eps * values[:, -1:]
    inverse = torch.where(values > noise, 1 / values, 0.0)
    return (right @ vectors * inverse[:, None]) @ vectors.mT


@torch.no_grad()
def edges_(net, mask, moments, intercept=True):
    """Prune the edges of one layer in place and refit those kept; return `net`.

    mask: `{"<layer>.weight": bool (R, O, I)}`, as from `kinds.masks_of`. moments: the `Moments` of the layer's inputs.
    intercept: the layer's bias takes a constant; without it, as published, the bias stays.
    """
    name, kept = _one(mask)
    layer = plain_layer(net, name.removesuffix(".weight"))
    likelihood.assert_fitting({name.removesuffix(".weight"): moments}, net, "weights")
    layer.weight[:], shift = refit(layer.weight, kept, moments, intercept)
    _add_(layer, shift, intercept, name)
    return net


@torch.no_grad()
def units_(net, units, activation, moments=None, intercept=True, as_published=False):
    """Prune units of one hidden layer in place, with what they say to the next layer; return `net`.

    units: `{layer: bool (R, O)}`. moments: None, or the `Moments` (R, O, O) of the layer's outputs, to refit the
    next layer to the units kept. Without them a pruned unit leaves activation(bias), which is what it says when its
    weights are 0, in the next bias. As published (arXiv 1511.05077's code by Acharyya, Zhang et al.) it goes on saying
    so, through its bias, and a refit has no intercept; the published moments are of activations without the bias.
    """
    name, kept = _one(units)
    layer, after = plain_layer(net, name), plain_layer(net, next_layer(net, name))
    if moments is not None:
        likelihood.assert_fitting({next_layer(net, name): moments}, net, "weights")
        intercept = intercept and not as_published
        after.weight[:], shift = refit(after.weight, kept, moments, intercept)
    elif as_published:
        layer.weight *= kept[:, :, None]
        return net
    else:
        bias = torch.zeros_like(layer.scale) if layer.bias is None else layer.bias
        shift = (after.weight * (activation(bias.clone()) * ~kept)[:, None]).sum(-1)
        intercept = bool((shift != 0).any())
    _add_(after, shift, intercept, next_layer(net, name))
    return masks.apply_(net, masks.expand(units, net))


def _one(kept):
    if len(masks.assert_named(kept)) != 1:
        raise ValueError(f"masks are of {listed(kept)}; needed are those of one layer: they are refitted one by one")
    return next(iter(kept.items()))


def plain_layer(net, name):
    """Return the layer called `name`, a linear one without normalisation."""
    linear = {key: layer for key, layer in nets.layers(net).items() if layer.weight.dim() == 3}
    nets.assert_plain(net)
    return linear[choice("the linear layer", name, linear)]


def next_layer(net, name):
    """Return the name of the layer behind `name`."""
    names = list(nets.layers(net))
    return names[names.index(choice("the hidden layer", name, names[:-1])) + 1]


def _add_(layer, shift, wanted, name):
    if not wanted:
        return
    if layer.bias is None:
        raise ValueError(f"{name} has no bias that could take the constant; pass intercept=False, as published")
    layer.bias += shift
