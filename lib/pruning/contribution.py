"""Contributions: how much of what the next layer sums up comes from a unit, on average over examples.

The score of the study of neural importance-based train-time pruning (a public course report). With |a| what a unit
sends and |w| the weights that read it, its share of the sum that unit t of the next layer makes of example s is

    c[s, t, k] = 100 |w[t, k]| |a[s, k]| / D[s, t],   D[s, t] = sum over k of |w[t, k]| |a[s, k]|

and its score is average · mean over s and t + maximum · largest over s and t. The mean needs no c at all: with P = 1/D
it is 100 / (S m) · sum over t of |w[t, k]| (Pᵀ |A|)[t, k], two matrix products.
"""

import math
from contextlib import ExitStack

import torch
from torch.nn.functional import unfold

from lib.errors import choice
from lib.networks import nets
from lib.networks.layers import Conv2d
from lib.pruning.checks import assert_tensors
from lib.pruning.methods import method
from lib.pruning.reweight import next_layer

ON = ("activation", "preactivation")
CHUNK = 1000  # examples of one run at once: the products stay in the cache of a CPU
ACTIVATIONS = 2**23  # no more of them in a layer at once: 32 MiB


class Sums:
    """What the score of one layer's units adds up over examples, a chunk after the other.

    weight: (R, m, n) of the layer that reads the units; each: consecutive inputs that are one unit, of which |w| |a| is
    summed; maximum: are the largest shares wanted. No more than CHUNK · (m + n) numbers are held at once. An example of
    which a next unit reads nothing (D = 0) gives shares of 0 where the study's code divides by zero; it counts in the
    mean. Next units without weights (pruned ones) do not: so the score is that of the smaller one.
    ValueError for other shapes, and without examples.
    """

    def __init__(self, weight, each=1, maximum=False):
        if weight.dim() != 3 or each < 1 or weight.shape[2] % each:
            raise ValueError(f"weight is {tuple(weight.shape)}, each {each}; needed: (R, m, n), a divisor of n")
        # A row's scale cancels in every share. Without it, products of small numbers do not leave float32.
        self.weight, self.each = _scaled(weight.detach().abs()), each
        self.shares = torch.zeros_like(self.weight, dtype=torch.float64)
        self.largest = weight.new_zeros(len(weight), weight.shape[2] // each, dtype=torch.float64) if maximum else None
        self.examples = 0

    def add(self, activations):
        """Add examples, `(R, S, n)`; return this."""
        shape, size = tuple(activations.shape), self.weight.shape
        if len(shape) != 3 or shape[0] != size[0] or shape[2] != size[2]:
            raise ValueError(f"activations are {shape}, the weight {tuple(size)}; needed are (R, S, n) and (R, m, n)")
        self.examples += activations.shape[1]
        for part in activations.detach().split(CHUNK, 1):
            size = _scaled(part.abs())
            sums = size @ self.weight.mT
            inverse = torch.where(sums < torch.finfo(sums.dtype).tiny, 0, 1 / sums)
            self.shares += inverse.mT @ size
            if self.largest is not None:
                units = zip(size.split(self.each, 2), self.weight.split(self.each, 2), strict=True)
                tops = [((a @ w.mT).mul_(inverse)).amax((1, 2)) for a, w in units]
                self.largest = torch.maximum(self.largest, torch.stack(tops, 1).double())
        return self

    def score(self, average=1.0, maximum=0.0):
        """Return the scores of what was added, `(R, n / each)` float64, between 0 and 100.

        average, maximum: factors of the mean and of the largest share.
        """
        if not self.examples:
            raise ValueError("there is no example; a contribution is a mean over examples")
        read = (self.weight > 0).any(2).sum(1).clamp_min(1)[:, None]
        mean = (self.shares * self.weight).sum(1).unflatten(1, (-1, self.each)).sum(2) / (self.examples * read)
        return 100 * (average * mean + (maximum * self.largest if maximum else 0))


def _scaled(size):
    """Return non-negative numbers divided by the largest of their row, rows of zeros as they are."""
    largest = size.amax(-1, keepdim=True)
    return size / torch.where(largest > 0, largest, 1)


# ---- all units of a network


@method("contribution", of="units", needs="examples")
def contributing(net, x, y, seeds, **options):
    """Return the contribution scores of hidden units, `{layer: (R, O)}`; of no chain, what the network itself says.

    Each run is scored alone, so that no rank depends on a neighbour's rounding.
    """
    return net.contributions(x, **options) if hasattr(net, "contributions") else of_units(net, x, **options)


@method("worst", of="units", needs="examples")
def worst(net, x, y, seeds, **options):
    """Return the contribution scores with the other sign: what contributes most goes first."""
    return {layer: -score for layer, score in contributing(net, x, y, seeds, **options).items()}


def prunable(net, channels=None):
    """Return the names of the layers whose units have a score: all but the output, convolutions only with `channels`.

    None: with them where nothing else is hidden. ValueError for a network that is not a chain of layers.
    """
    hops = nets.graph(net)
    if not all(isinstance(hop, nets.Hop) for hop in hops):
        raise ValueError("contributions are of stacks, nets.MLP or convnets.VGG; of a torch module take taylor instead")
    if any(hop.layer is None or (hop.source, hop.target) != (k, k + 1) for k, hop in enumerate(hops)):
        raise ValueError(f"{type(net).__name__} has shortcuts; contributions are of chains of layers, MLP and VGG")
    hidden = [hop.layer for hop in hops[:-1]]
    linear = [layer for layer in hidden if not isinstance(net.get_submodule(layer), Conv2d)]
    return hidden if channels or channels is None and not linear else linear


@torch.no_grad()
def of_units(net, x, average=1.0, maximum=0.0, on="activation", channels=None):
    """Return the scores of a stack's hidden units for the examples `x`, `{layer: (R, units)}` float64.

    x: `(N, I)`, or `(R, N, I)` of each run's own. on: "activation", what the next layer reads, or "preactivation", the
    value before that function, as the study has it: a unit that is silent then counts by how far below zero it is.
    channels: score those of convolutions too, see `prunable`. A channel's contribution to a next unit sums |w| |a| over
    the filter's positions; every place where a next convolution puts its filter is an example more, and a linear layer
    behind a convolution reads all positions of a channel. They have no preactivation score.
    """
    choice("on", on, ON), assert_tensors(x)
    if channels and on != ON[0]:
        raise ValueError(f"on is {on!r} with channels=True; channels have a score by {ON[0]!r} alone")
    sums = {}
    with nets.mode(net, training=False), ExitStack() as hooks:
        for name in prunable(net, channels if on == ON[0] else False):
            weight = net.get_submodule(next_layer(net, name)).weight.flatten(2)
            sums[name] = Sums(weight, weight.shape[2] // net.get_submodule(name).weight.shape[1], bool(maximum))
            hooks.enter_context(_adding(sums[name], net, name, on))
        for part in x.split(max(1, min(CHUNK, ACTIVATIONS // nets.widest(net))), -2):
            net(part)
    return {name: own.score(average, maximum) for name, own in sums.items()}


def _adding(sums, net, name, on):
    """Return a hook, a context, by which every forward pass adds its examples to the `Sums` of a layer's units."""
    if on == "activation":
        reader = net.get_submodule(next_layer(net, name))
        return reader.register_forward_pre_hook(lambda layer, given: sums.add(_rows(layer, given[0])) and None)
    (module,) = (hop.norm or hop.layer for hop in nets.graph(net) if hop.layer == name)
    # A ReLU may work in place: what is added is made of the values before it runs.
    return net.get_submodule(module).register_forward_hook(lambda layer, given, found: sums.add(found) and None)


def _rows(layer, x):
    """Return what a layer multiplies its weights by, `(R, examples, inputs of a unit)`."""
    if not isinstance(layer, Conv2d):
        return x
    patches = unfold(x.flatten(0, 1), layer.weight.shape[-1], **layer.options)
    return patches.mT.reshape(len(x), -1, math.prod(layer.weight.shape[2:]))
