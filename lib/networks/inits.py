"""How weights start: what one seed draws for the layers of a network; `nets.init_` and `nets.reinit_` put it there.

A start is `(weight (O, *F), bias (O,) or None)`; None leaves the biases at zero. Nothing here knows of stacks: a run
draws from a stream of its own seed, whoever its neighbours are.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import nn

from lib import draws
from lib.errors import choice, number
from lib.kernels import twins

fan_in = nn.init.kaiming_normal_  # variance 2 / inputs of a unit (He et al., arXiv 1502.01852)
fan_out = partial(nn.init.kaiming_normal_, mode="fan_out", nonlinearity="relu")
xavier = nn.init.xavier_uniform_  # Glorot & Bengio 2010


def normal(std):
    """Return what draws weights of mean zero and deviation `std`."""
    return partial(nn.init.normal_, std=std)


class Rules(NamedTuple):
    """What draws the weights of convolutions and of linear layers, and whether the latter's biases stay torch's own."""

    conv: Callable
    linear: Callable
    own_bias: bool = False


# The same for every layer of every network; torch_kaiming is also how the SynFlow study starts all of its networks.
EVERYWHERE = {
    "torch_kaiming": Rules(fan_in, fan_in),
    "xavier_uniform": Rules(xavier, xavier),
    "standard_normal": Rules(normal(1.0), normal(1.0)),
}
# The PHEW study (Patil & Dovrolis, arXiv 2010.11354) starts each family of networks in its own way, and has two
# ablations of that.
VGG = {
    "phew": Rules(fan_in, normal(0.01)),
    "phew_normal": Rules(normal(0.1**0.5), normal(0.1**0.5)),
    "phew_xavier": Rules(xavier, normal(0.01)),
}
FAMILIES = {
    "thin_resnet": {
        "phew": Rules(fan_in, fan_in),
        "phew_normal": VGG["phew_normal"],
        "phew_xavier": Rules(xavier, xavier),
    },
    "resnet": {
        "phew": Rules(fan_out, fan_out, own_bias=True),
        "phew_normal": Rules(normal(1.0), normal(1.0)),
        "phew_xavier": Rules(xavier, xavier),
    },
    "vgg": VGG,
    # The ablations were not published for VGGs whose head has three layers; here they are those of the other VGGs.
    "headed_vgg": VGG | {"phew": Rules(fan_out, normal(0.01))},
}
TORCH = ("torch_default", "torch_kaiming_output_first")
SCHEMES = (*EVERYWHERE, *TORCH, *VGG)


def starts(layers, seed, scheme, family=None):
    """Return what `seed` draws, `[(weight, bias or None)]`, for the weight layers of a network, in forward order.

    As a script of torch modules draws it after `manual_seed(seed)`: first every module's defaults, then the scheme,
    layer by layer, so that published seeds start at their published function. family: of `FAMILIES`, None of no
    convolutions. ParameterError for a scheme that is unknown, or not of the family.
    """
    where, allowed = ("", SCHEMES) if family else (" of what is not by `convnets.build`", [*EVERYWHERE, *TORCH])
    choice(f"scheme{where}", scheme, allowed)
    stream = torch.Generator().manual_seed(number("seed", seed, draws.SEEDS, whole=True))
    drawn = torch_defaults(layers, stream)
    if scheme == "torch_default":
        return [(weight, None) for weight, _ in drawn]
    if scheme == "torch_kaiming_output_first":
        rules, order = EVERYWHERE["torch_kaiming"], [drawn[-1], *drawn[:-1]]
    else:
        rules, order = EVERYWHERE.get(scheme) or FAMILIES[family][scheme], drawn
    for weight, _ in order:
        (rules.linear if weight.dim() == 2 else rules.conv)(weight, generator=stream)
    return [(weight, bias if rules.own_bias and weight.dim() == 2 else None) for weight, bias in drawn]


def torch_defaults(layers, stream):
    """Return what torch's own layers draw for themselves, `[(weight, bias or None)]`: uniform in ±1/sqrt(fan-in)."""
    drawn = []
    for layer in layers:
        weight = torch.empty(layer.weight.shape[1:], dtype=torch.float32)
        nn.init.kaiming_uniform_(weight, a=5**0.5, generator=stream)
        bias, bound = None, weight[0].numel() ** -0.5
        if layer.bias is not None:
            bias = nn.init.uniform_(torch.empty(len(weight), dtype=torch.float32), -bound, bound, generator=stream)
        drawn.append((weight, bias))
    return drawn


def _per_unit(kept):
    return kept.flatten(1).sum(1).clamp_min(1)


def _per_layer(kept):
    return kept.sum().clamp_min(1) / len(kept)


# The variances of the weights that a mask `kept (O, *F)` of one layer leaves; the fan-in that counts is what is kept
# of a unit (Evci et al., arXiv 2010.03533), or of a layer's average unit (Liu et al., arXiv 1810.05270). The second two
# are the PHEW study's for the VGGs with a head: I/O in place of 2, so that a dense layer has variance 1 / fan-out.
SPARSE = {
    "evci": lambda kept: 2 / _per_unit(kept),
    "liu": lambda kept: 2 / _per_layer(kept),
    "evci_fan_out": lambda kept: kept.shape[1] / kept.shape[0] / _per_unit(kept),
    "liu_fan_out": lambda kept: kept.shape[1] / kept.shape[0] / _per_layer(kept),
}


def sparse_starts(masks, seed, scheme):
    """Return the weights `[(O, *F)]` that `seed` draws under the masks of one run, one per layer: normal, of mean zero.

    The draws have a purpose of their own ("reinit"): they are independent of the start that the masks were made on.
    """
    choice("scheme", scheme, SPARSE)
    stream = torch.Generator().manual_seed(int(draws.generator(seed, "reinit").integers(2**63)))
    drawn = []
    for kept in masks:
        deviation = twins.trailing(SPARSE[scheme](kept).sqrt(), kept)
        drawn.append(torch.randn(kept.shape, generator=stream, dtype=torch.float32) * deviation * kept)
    return drawn
