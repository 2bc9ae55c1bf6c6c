"""Convolutional networks as stacks: those of the PHEW study (Patil & Dovrolis, arXiv 2010.11354) by name, and VGG.

`build("resnet20", (3, 32, 32), 10, runs=2)`; its weights then come from `nets.init_(net, seeds, "phew")`.
"""

import math

import torch
from torch import nn

from lib.errors import ParameterError, choice
from lib.kernels import twins
from lib.networks import nets
from lib.networks.layers import BatchNorm, Conv2d, Dropout, Linear

BOTTLENECK = 4  # how many times more filters its last convolution has than the others
# name: (filters of the first stage, blocks of each stage, whether they are bottlenecks)
RESNETS = {
    "resnet20": (16, (3, 3, 3), False),
    "resnet32": (16, (5, 5, 5), False),
    "wide_resnet20": (32, (3, 3, 3), False),
    "resnet18": (64, (2, 2, 2, 2), False),
    "resnet34": (64, (3, 4, 6, 3), False),
    "resnet50": (64, (3, 4, 6, 3), True),
    "resnet101": (64, (3, 4, 23, 3), True),
    "resnet152": (64, (3, 8, 36, 3), True),
}
BLOCKS = ((1, 1), (2, 2), (4, 4, 4), (8, 8, 8), (8, 8, 8))  # of VGG-16
VGGS = {  # name: the filters of each convolution, block by block, in widths
    "vgg11": ((1,), (2,), (4,) * 2, (8,) * 2, (8,) * 2),
    "vgg13": ((1,) * 2, (2,) * 2, (4,) * 2, (8,) * 2, (8,) * 2),
    "vgg16": BLOCKS,
    "vgg19": ((1,) * 2, (2,) * 2, (4,) * 4, (8,) * 4, (8,) * 4),
}
HEADS = {32: (), 64: (16, 16)}  # the hidden linear layers of a VGG, in widths, by the side of its images
NAMES = (*RESNETS, *VGGS, *(f"{name}_bn" for name in VGGS))


def build(name, image, classes, runs, width=None):
    """Return `runs` networks called `name` as one stack: pixels in a row, `(R, N, C·H·W)` or `(N, C·H·W)`, to logits.

    image: (C, H, W). For 64×64 a VGG has a fifth max-pool and a head of three linear layers, as the study has it for
    Tiny-ImageNet, for 32×32 a last mean-pool and one linear layer; a ResNet takes squares of any size. width: the
    filters of the first stage, by default the published. ParameterError for an unknown name and images that do not fit.
    """
    choice("network", name, NAMES)
    sides = tuple(HEADS) if name.startswith("vgg") else ()
    if image[1] != image[2] or image[1] not in (sides or image):
        allowed = " or ".join(f"{side}×{side}" for side in sides) or "squares"
        raise ParameterError(f"images are {image[1]}×{image[2]}; {name} takes {allowed}")
    if name in RESNETS:
        published, blocks, bottleneck = RESNETS[name]
        return ResNet(image, classes, runs, width or published, blocks, bottleneck)
    head, blocks = HEADS[image[1]], VGGS[name.removesuffix("_bn")]
    options = {"biases": True, "batch_norm": name.endswith("_bn"), "average": not head, "head": head}
    net = VGG(image, classes, ["no-WN"] * runs, width or 64, blocks, **options)
    net.family = "headed_vgg" if head else "vgg"
    return net


class VGG(nn.Module):
    """R networks of 3×3 convolutions in blocks that end with a 2×2 max-pool, and a linear layer (arXiv 1409.1556).

    Pixels in a row, `(R, N, C·H·W)` or shared `(N, C·H·W)` as `Data.split` gives them, to logits `(R, N, classes)`.
    The defaults are the network of the EWN study (arXiv 2010.12909): 13 convolutions (VGG-16), of which only the first
    has a bias, and an output without. `norm` is the type of all convolutions, not of linear layers. `image` is
    (C, H, W); `width` the filters of the first block, 64 in the study.

    blocks: the filters of each convolution, in widths; biases: of all layers; batch_norm: behind every convolution;
    average: the last pool takes means; head: hidden linear layers, in widths, each with a dropout of one half.
    """

    def __init__(
        self, image, classes, norm, width=64, blocks=BLOCKS, biases=False, batch_norm=False, average=False, head=()
    ):
        super().__init__()
        norm = nets.types(norm)
        (channels, height, side), smallest = image, 2 ** len(blocks)
        if height != side or side < smallest:
            raise ValueError(f"images are {height}×{side}; VGG takes squares of {smallest}×{smallest} and more")
        runs, self.image, self.average, self.ends = len(norm), tuple(image), average, []
        self.convs, self.norms = nn.ModuleList(), nn.ModuleList()
        for block in blocks:
            for units in (width * share for share in block):
                biased = biases or not self.convs
                self.convs.append(Conv2d(runs, channels, units, bias=biased, norm=norm, positions=side**2))
                channels = units
            self.ends.append(len(self.convs) - 1)
            side //= 2
        if batch_norm:
            self.norms.extend(BatchNorm(runs, conv.weight.shape[1]) for conv in self.convs)
        sizes = [channels * side**2, *(width * share for share in head)]
        self.hidden = nn.ModuleList(Linear(runs, i, o) for i, o in zip(sizes, sizes[1:], strict=False))
        self.drops = nn.ModuleList(Dropout(runs) for _ in self.hidden)
        self.output = Linear(runs, sizes[-1], classes, bias=biases)

    def forward(self, x):
        x = nets.pixels(x, self.image)
        for k, conv in enumerate(self.convs):
            x, averaged = conv(x), self.average and k == self.ends[-1]
            # The study pools after the ReLU, which is the same function, and four times the work.
            pooled = k in self.ends and not averaged
            if self.norms:
                x = self.norms[k](x, rectified=not pooled)
            elif not pooled:
                x = torch.relu(x)
            if pooled:
                x = torch.relu(twins.max_pool(x, 2))
            elif averaged:
                x = twins.average_pool(x, 2)
        x = x.flatten(2)
        for layer, drop in zip(self.hidden, self.drops, strict=True):
            x = drop(torch.relu(layer(x)))
        return self.output(x)

    def graph(self):
        norms = [f"norms.{k}" for k in range(len(self.norms))] or [None] * len(self.convs)
        return nets.chain(list(nets.layers(self)), norms + [None] * (len(self.hidden) + 1))


class Block(nn.Module):
    """R residual blocks: convolutions, each with a batch normalisation, beside a shortcut; ReLU of their sum.

    plan: (side, filters, stride) of each convolution. The shortcut is a 1×1 convolution with batch normalisation
    where the stride or the number of channels changes, else the identity. `side`: height and width of the input.
    """

    def __init__(self, runs, channels, plan, side):
        super().__init__()
        inputs, stride = channels, math.prod(stride for *_, stride in plan)
        self.convs, self.norms = nn.ModuleList(), nn.ModuleList()
        self.shortcut = self.shortcut_norm = None
        for filter_side, units, step in plan:
            side = math.ceil(side / step)
            self.convs.append(_conv(runs, inputs, units, filter_side, step, side))
            self.norms.append(BatchNorm(runs, units))
            inputs = units
        if stride > 1 or inputs != channels:
            self.shortcut = _conv(runs, channels, inputs, 1, stride, side)
            self.shortcut_norm = BatchNorm(runs, inputs)

    def forward(self, x):
        beside, out = x if self.shortcut is None else self.shortcut_norm(self.shortcut(x)), x
        *within, last = zip(self.convs, self.norms, strict=True)
        for conv, norm in within:
            out = norm(conv(out), rectified=True)
        return last[1](last[0](out), beside, rectified=True)

    def hops(self, name, first):
        """Return the hops of this block, called `name`, from node `first` to as many further ones as convolutions."""
        last = first + len(self.convs)
        steps = enumerate(range(first, last))
        through = [nets.Hop(f"{name}.convs.{k}", node, node + 1, f"{name}.norms.{k}") for k, node in steps]
        if self.shortcut is None:
            return [*through, nets.Hop(None, first, last)]
        return [*through, nets.Hop(f"{name}.shortcut", first, last, f"{name}.shortcut_norm")]


def _conv(runs, inputs, units, side, stride, output_side):
    return Conv2d(runs, inputs, units, side, bias=False, positions=output_side**2, stride=stride)


class ResNet(nn.Module):
    """R residual networks (He et al., arXiv 1512.03385) for small images, as the PHEW study has them.

    A 3×3 convolution of stride 1, stages of blocks with `width`, 2·width, 4·width, … filters, of which all but the
    first stage begin with stride 2, the mean over all positions, and a linear layer with bias; no other layer has one.
    `blocks`: how many blocks each stage has. The networks of three stages are the study's thin ones.
    """

    def __init__(self, image, classes, runs, width, blocks, bottleneck=False):
        super().__init__()
        channels, side, _ = self.image = tuple(image)
        self.family = "thin_resnet" if len(blocks) == 3 else "resnet"
        self.stem, self.stem_norm = _conv(runs, channels, width, 3, 1, side), BatchNorm(runs, width)
        self.blocks, channels = nn.ModuleList(), width
        for stage, count in enumerate(blocks):
            for k in range(count):
                stride, units = 2 if stage and not k else 1, width * 2**stage
                plan = [(3, units, stride), (3, units, 1)]
                if bottleneck:
                    plan = [(1, units, 1), (3, units, stride), (1, BOTTLENECK * units, 1)]
                self.blocks.append(Block(runs, channels, plan, side))
                channels, side = plan[-1][1], math.ceil(side / stride)
        self.output = Linear(runs, channels, classes)

    def forward(self, x):
        x = self.stem_norm(self.stem(nets.pixels(x, self.image)), rectified=True)
        for block in self.blocks:
            x = block(x)
        return self.output(x.mean((3, 4)))

    def graph(self):
        hops = [nets.Hop("stem", 0, 1, "stem_norm")]
        for k, block in enumerate(self.blocks):
            hops += block.hops(f"blocks.{k}", hops[-1].target)
        return [*hops, nets.Hop("output", hops[-1].target, hops[-1].target + 1)]
