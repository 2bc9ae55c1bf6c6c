"""The path kernel of a network: how fast gradient descent can move its function, told from its weights alone."""

import copy

import torch

from lib.networks import nets
from lib.pruning import masks as masking
from lib.pruning import paths, synflow


def trace(net, masks):
    """Return the trace of the path kernel of every run under `masks`, `(R,)` float64.

    It is the sum over all kept weights w and all paths through w of the product of the other squared weights on the
    path, Σ_w dR/d(w²), with R the sum over all paths of their squared products (Gebhart, Saxena & Schrater, arXiv
    2101.10552; Patil & Dovrolis, arXiv 2010.11354). Biases and batch normalisations take part as in `synflow.flow`.
    masks: as of `masks.top`; weights that they do not name are kept, so that {} is the dense network. Raises
    ValueError where float64 cannot hold the trace.
    """
    kept = paths.complete(masks, nets.weights(net))
    each = nets.apart(masking.apply_(copy.deepcopy(net), kept))
    slopes = nets.join(synflow.flow(alone, 2, torch.float64).slopes for alone in each)
    total = sum(slope.masked_fill_(~kept[name], 0).flatten(1).sum(1) for name, slope in slopes.items())
    if not bool(total.isfinite().all()):
        raise ValueError(f"the traces are {total.tolist()}: the weights are too large for float64; start them smaller")
    return total
