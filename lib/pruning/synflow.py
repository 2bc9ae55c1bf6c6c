"""Flows: sums over all paths of a network, the scores of weights made of them, and its path kernel; without data.

A score is made here, a mask in `masks` and `anneal`: see `methods`.
"""

import copy
import math
from typing import NamedTuple

import torch
from torch import nn

from lib.networks import convnets, nets
from lib.networks.layers import Absorbed, BatchNorm
from lib.pruning import paths
from lib.pruning.masks import apply_
from lib.pruning.methods import method, run_by_run
from lib.pruning.modules import assert_flows
from lib.pruning.scores import plain

# The sum of logits between which float32 holds all that lies behind it, gradients and single paths included.
SAFE = 1e-15, 1e30
POWERED = "of power."  # where a copy keeps its power and its weights: no part of a module has a name with a point


@method("synflow", rounds=100)
@run_by_run
def synflow(net, x, y, seeds):
    """Return |w| · dR/d|w| of every weight, `{name: (R, O, *F)}`: SynFlow (Tanaka et al., arXiv 2006.05467).

    R, see `flow`, is the sum over all paths of the product of their |w|, a score that of those through a weight.
    """
    flows = flow(net)
    return {name: slope.mul_(flows.weights[name]) for name, slope in flows.slopes.items()}


synflow.form = lambda net: _thinned(powered(net, absorb=True))


@method("synflow_l2", rounds=100)
@run_by_run
def synflow_l2(net, x, y, seeds, power=2):
    """Return |w|^power · dR/d(w²) of every weight, `{name: (R, O, *F)}`: SynFlow-L2 (arXiv 2010.11354).

    As `synflow`, of a network whose parameters are squared. power 2: a sum over paths, as in the paper; 1: as its code.
    """
    flows = flow(net, 2)
    return {name: slope.mul_(flows.weights[name].pow(power / 2)) for name, slope in flows.slopes.items()}


# What the published code computes is no product of a weight and its slope, which alone a scaling leaves as it is.
synflow_l2.form = lambda net, power=2: _thinned(powered(net, 2, absorb=power == 2))


class Flow(NamedTuple):
    """What `flow` returns: R `(runs,)`, and of every weight dR/d(|w|^power) and |w|^power, `{name: (R, O, *F)}`."""

    total: torch.Tensor
    slopes: dict
    weights: dict


@torch.enable_grad()
def flow(net, power=1, dtype=None):
    """Return the `Flow` of the network with all parameters |p|^power, and its gradient.

    R is the sum of the logits for an input of ones, in `eval()` mode: with the biases at zero, and with batch
    normalisations that have seen nothing, it is the flow from input to output (arXiv 2006.05467). net: a network, or
    its `powered` copy of the same power. dtype: of the computation; None is the network's own or, where R leaves the
    range that float32 is safe in, float64: deep networks grow R beyond 1e38, and sparse ones under 1e-38.
    """
    own = next(iter(nets.weights(net).values())).dtype
    made = net if _powers(net) == power and dtype in (None, own) else powered(net, power, dtype or own)
    _, weights = vars(made)[POWERED]
    total = made(_ones(made, next(iter(weights.values())))).sum((1, 2))
    if dtype is None and own != torch.float64 and not bool(((total > SAFE[0]) & (total < SAFE[1])).all()):
        return flow(net, power, torch.float64)
    slopes = torch.autograd.grad(total.sum(), list(weights.values()), materialize_grads=True)
    detached = {name: w.detach() for name, w in weights.items()}
    return Flow(total.detach(), dict(zip(weights, slopes, strict=True)), detached)


def path_kernel(net, masks):
    """Return the trace of the path kernel of every run under `masks`, `(R,)` float64: how fast training can move it.

    It is the sum over all kept weights w and all paths through w of the product of the other squared weights on the
    path, Σ_w dR/d(w²), with R the sum over all paths of their squared products (Gebhart, Saxena & Schrater, arXiv
    2101.10552; Patil & Dovrolis, arXiv 2010.11354). Biases and batch normalisations take part as in `flow`. masks: as
    of `masks.top`; weights that they do not name are kept, so that {} is the dense network. ValueError beyond float64.
    """
    kept = paths.complete(masks, nets.weights(net))
    each = nets.apart(apply_(copy.deepcopy(net), kept))
    slopes = nets.join(flow(alone, 2, torch.float64).slopes for alone in each)
    total = sum(slope.masked_fill_(~kept[name], 0).flatten(1).sum(1) for name, slope in slopes.items())
    if not bool(total.isfinite().all()):
        raise ValueError(f"the traces are {total.tolist()}: the weights are too large for float64; start them smaller")
    return total


@torch.no_grad()
def powered(net, power=1, dtype=None, absorb=False):
    """Return a copy in `eval()` mode whose parameters are |p|^power, or `net` as another dtype if it is such a copy.

    absorb: batch normalisations are gone, and in the weights: w · dR/dw is the same then, in half of the time.
    """
    weights, made = plain(net), copy.deepcopy(net).eval().to(dtype or next(net.parameters()).dtype)
    if _powers(net) is None:
        assert_flows(net, _ones(net, next(iter(weights.values()))))
        for p in made.parameters():
            p.requires_grad_(False).copy_(p.abs() if power == 1 else p.abs().pow_(power))
    for weight in nets.weights(made).values():
        weight.requires_grad_()
    vars(made)[POWERED] = power, nets.weights(made)
    if absorb and any(isinstance(module, BatchNorm) for module in made.modules()):
        for hop in (hop for hop in nets.graph(made) if hop.norm):
            norm, layer = made.get_submodule(hop.norm), made.get_submodule(hop.layer)
            weight, shift = norm.folded(layer.weight, layer.bias)
            layer.weight.copy_(weight)
            layer.bias = nn.Parameter(shift, requires_grad=False) if bool(shift.any()) else None
            made.set_submodule(hop.norm, Absorbed())
    return made


def _powers(net):
    """Return the power of a `powered` copy, None of other networks."""
    return vars(net).get(POWERED, [None])[0]


def _thinned(net):
    """Return the convolutional network itself, which from now on computes alike rows and columns once, of `_ones`.

    Such images differ from the one in their middle only as far as the zeros around them reach: one row more from either
    border with each 3×3 filter, half as many behind a stride or a pool. One row stands for all in between until more
    are needed, so that the images of a ResNet20's first stage have a side of 3 to 15, not of 32. The sums are the same.
    """
    places, reach, now = _places(net), 0, None
    side = net.image[1] if places else 0
    if side % math.prod(shrinks for _, steps in places for _, shrinks in steps):
        return net  # a stride that leaves a remainder reads the lower border otherwise than the upper one
    for place, steps in places:
        for radius, shrinks in steps:
            reach = -(-(reach + radius) // shrinks)
        shrunk = math.prod(shrinks for _, shrinks in steps)
        wanted = side if place is places[-1][0] else min(side, shrunk * (2 * reach + 1))
        if now is None:
            net.image = (net.image[0], wanted, wanted)
        elif wanted > now:
            place.register_forward_pre_hook(_repeats(now, wanted, place))
        side, now = side // shrunk, wanted // shrunk
    return net


def _places(net):
    """Return [(module, [(radius of a filter, how many times smaller images are behind it)])] of a convolutional one."""
    if isinstance(net, convnets.VGG):
        return [(conv, [(conv.weight.shape[-1] // 2, 1 + (k in net.ends))]) for k, conv in enumerate(net.convs)]
    if not isinstance(net, convnets.ResNet):
        return []
    parts = [(net.stem, [net.stem]), *((block, block.convs) for block in net.blocks)]
    return [(part, [(c.weight.shape[-1] // 2, c.options["stride"]) for c in convs]) for part, convs in parts]


def _repeats(now, wanted, place):
    """Return a hook that gives a module images of the side `wanted`: of the side `now`, their middle repeated."""
    at, more = torch.arange(wanted, device=next(place.parameters()).device), wanted - now
    at = at.clamp(max=now // 2) + (at - now // 2 - more).clamp(min=0)
    return lambda _, given: given[0].index_select(3, at).index_select(4, at)


def _ones(net, weight):
    """Return one example of ones for every run, `(R, 1, I)`, of the type and on the device of the first `weight`.

    Each run has its own, though all are the same: with a shared one a convolution lays its channels last, and of a
    single example in that order torch (2.15, CPU) computes a wrong gradient of a batch normalisation before a max-pool.
    """
    inputs = math.prod(net.image) if hasattr(net, "image") else weight.shape[2]
    return weight.new_ones(len(weight), 1, inputs)
