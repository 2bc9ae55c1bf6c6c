"""What one form of a sparse network costs, over sparsities, kinds of masks and batch sizes."""

import numpy as np

from lib.networks import nets, plain
from lib.studies.challenge import modes, sparse

# What masks keep, or drop, as a whole. Two of four is a pattern of one sparsity, which tensor cores know.
WHOLE = ("weight", "neuron", "block", "two_of_four")


def masks_of(net, whole, sparsity):
    """Return masks of all layers but the last, `{weight: bool (R, O, I)}`, that drop weights, units or blocks whole."""
    weights = dict(list(nets.weights(net).items())[:-1])
    if whole == "block":
        return sparse.block_masks(weights, 1 - sparsity)
    if whole == "two_of_four":
        return sparse.two_of_four(weights)
    return modes.masks_of(net, whole, [1 - sparsity] * nets.runs(net))[0]


def survey(net, form, sparsities, inputs, repeats=30, threads=1):
    """Return `{name: array}` of the first run of `net` in one of `sparse.FORMS`, nan where the form has no such thing.

    latency (whole, sparsity, batch, 3): median and quartiles in ms of one call; macs, bytes (whole, sparsity). inputs:
    one `(batch, pixels)` for each batch size. The pattern of two of four stands at the sparsity one half.
    """
    shape = len(WHOLE), len(sparsities)
    found = {name: np.full(shape, np.nan) for name in ("macs", "bytes")}
    found["latency"] = np.full((*shape, len(inputs), 3), np.nan)
    for w, whole in enumerate(WHOLE):
        for k, sparsity in enumerate(sparsities):
            if (whole == "two_of_four") != (form == "semi_structured") or (whole == "two_of_four" and sparsity != 0.5):
                continue
            made = sparse.forms(net, masks_of(net, whole, sparsity), names=[form])[form]
            found["macs"][w, k], found["bytes"][w, k] = made.macs, made.bytes
            for b, x in enumerate(inputs):
                took = plain.latency(made, x, repeats, threads)
                found["latency"][w, k, b] = took.median, took.low, took.high
    return found
