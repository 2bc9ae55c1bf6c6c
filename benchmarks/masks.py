"""Making masks on the CIFAR networks ResNet20 and VGG19, on one thread; and PHEW's walks drawn one after another.

Two walkers stand beside `phew` on ResNet20, both by the rule of the published code: `published` draws as that code
does, with tables from Python lists, a library call for every choice and a count of all masks after every walk;
`one_by_one` is the same loop written with care, from cumulative tables by bisection, counting what is new. Times are
processor times, ours with the reading of the network; memory is the peak of a process that makes one mask (Linux).
SynFlow, SNIP and GraSP as the notebooks make them, and by the same formulas in plain PyTorch on the modules of this
file, are what `claims.py` times.
Run: python benchmarks/masks.py [rounds]
"""

import random
import subprocess
import sys
import time
from bisect import bisect_right
from functools import partial
from itertools import accumulate
from pathlib import Path

import numpy as np
import torch
from torch import nn

sys.path[:0] = [str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parents[1])]
import measure  # noqa: E402

from lib import anneal, phew, scores, synflow  # noqa: E402
from lib import masks as kept_masks  # noqa: E402

VGG19 = (64, 64, 0, 128, 128, 0, 256, 256, 256, 256, 0, 512, 512, 512, 512, 0, 512, 512, 512, 512)  # 0 is a max-pool


class Block(nn.Module):
    """Two convolutions beside an identity or, where the width changes, a 1×1 convolution (arXiv 1512.03385)."""

    def __init__(self, inputs, units):
        super().__init__()
        stride = 1 if inputs == units else 2
        self.conv1, self.bn1 = nn.Conv2d(inputs, units, 3, stride, 1, bias=False), nn.BatchNorm2d(units)
        self.conv2, self.bn2 = nn.Conv2d(units, units, 3, 1, 1, bias=False), nn.BatchNorm2d(units)
        projection = (nn.Conv2d(inputs, units, 1, stride, bias=False), nn.BatchNorm2d(units))
        self.shortcut = nn.Sequential(*(projection if stride == 2 else ()))

    def forward(self, x):
        y = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x)))))
        return torch.relu(y + self.shortcut(x))


def resnet20(seed, classes=10):
    """Return the CIFAR ResNet20 with projection shortcuts, 270,896 weights, from its Kaiming-normal start."""
    widths = (16, 16, 16, 16, 32, 32, 32, 64, 64, 64)
    blocks = [Block(a, b) for a, b in zip(widths, widths[1:], strict=False)]
    stem = (nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU())
    return start(nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, classes)), seed)


def vgg19(seed, classes=10):
    """Return the CIFAR VGG19 with batch normalisation, 20,024,000 weights, from its Kaiming-normal start."""
    modules, inputs = [], 3
    for units in VGG19:
        modules += (
            [nn.Conv2d(inputs, units, 3, padding=1), nn.BatchNorm2d(units), nn.ReLU()] if units else [nn.MaxPool2d(2)]
        )
        inputs = units or inputs
    return start(nn.Sequential(*modules, nn.AvgPool2d(2), nn.Flatten(), nn.Linear(512, classes)), seed)


def start(network, seed):
    """Return the network with all its weights drawn Kaiming-normal by fan-in."""
    stream = torch.Generator().manual_seed(seed)
    for parameter in network.parameters():
        if parameter.dim() > 1:
            nn.init.kaiming_normal_(parameter, generator=stream)
    return network


def layers(network):
    """Return the weights of all layers as registered, a block's shortcut after its two convolutions."""
    return [parameter.detach() for parameter in network.parameters() if parameter.dim() > 1]


def path(shapes, t, choose, legacy=False):
    """Yield (layer, unit, input, cell) along walk `t`, by the published rule for a list of layers.

    A layer of 1×1 kernels is a shortcut beside the two layers before it. The published code asks for the one three
    layers ahead (`legacy`), which belongs to the next block.
    """
    shortcut = [len(shape) == 4 and shape[2] == 1 for shape in shapes] + [False] * 3
    if t % 2 == 0:
        k, unit, ahead = 0, t // 2 % shapes[0][1], 3 if legacy else 2
        while k < len(shapes):
            if shortcut[k + ahead] and choose.coin(t, k + ahead):
                k += ahead
            out = choose.unit(t, k, unit)
            yield k, out, unit, choose.cell(t, k, out, unit)
            k, unit = k + (2 if shortcut[k + 1] else 1), out
    else:
        k, unit = len(shapes) - 1, t // 2 % shapes[-1][0]
        while k >= 0:
            if shortcut[k] and not choose.coin(t, k):
                k -= 1
            source = choose.unit(t, k, unit)
            yield k, unit, source, choose.cell(t, k, unit, source)
            k, unit = k - (3 if shortcut[k] else 1), source


def total(row):
    """Return the sum of a list, added up in Python as the published tables do for every one of their entries."""
    result = 0.0
    for n in row:
        result += n
    return result


class Lists:
    """The published choices: a library call each, from fresh lists; tables that sum their row again for every entry."""

    def __init__(self, weights):
        kernels = [weight.abs().double().reshape(*weight.shape[:2], -1).numpy() for weight in weights]
        sums = [[[float(np.sum(kernel)) for kernel in row] for row in layer] for layer in kernels]
        columns = [list(map(list, zip(*layer, strict=True))) for layer in sums]
        self.tables = [[[[n / total(row) for n in row] for row in layer] for layer in side] for side in (columns, sums)]
        self.cells = [layer / np.array(rows)[..., None] for layer, rows in zip(kernels, sums, strict=True)]

    def coin(self, t, k):
        return random.randint(0, 1)

    def unit(self, t, k, unit):
        row = self.tables[t % 2][k][unit]
        return int(np.random.choice(list(range(len(row))), p=[row[other] for other in range(len(row))]))

    def cell(self, t, k, unit, source):
        kernel = self.cells[k][unit, source]
        return int(np.random.choice(list(range(len(kernel))), p=[float(share) for share in kernel]))


def published(weights, target):
    """Return (weight masks, bias masks, walks) as the published code makes them."""
    choose, shapes, t = Lists(weights), [weight.shape for weight in weights], 0
    masks = [torch.zeros(*weight.shape[:2], weight[0, 0].numel()) for weight in weights]
    biases = [torch.zeros(len(weight)) for weight in weights]
    while sum(float(mask.sum()) for mask in masks) < target:
        for k, unit, source, cell in path(shapes, t, choose, legacy=True):
            masks[k][unit, source, cell] = 1
            biases[k][unit] = 1
        t += 1
    return masks, biases, t


class Tables:
    """Careful choices, by bisection; `draw(t, k)` is a pair of draws for layer k, `draw(t, ~k)` for the fork there."""

    def __init__(self, weights, draw):
        self.draw = draw
        kernels = [
            weight.abs().double().flatten(2) if weight.dim() > 2 else weight.abs().double()[..., None]
            for weight in weights
        ]
        sides = [[kernel.sum(2).t() for kernel in kernels], [kernel.sum(2) for kernel in kernels]]
        self.tables = [[(layer.cumsum(1) / layer.sum(1, keepdim=True)).tolist() for layer in side] for side in sides]
        self.cells = [kernel.tolist() for kernel in kernels]

    def coin(self, t, k):
        return self.draw(t, ~k)[0] >= 0.5

    def unit(self, t, k, unit):
        row = self.tables[t % 2][k][unit]
        return min(bisect_right(row, self.draw(t, k)[0]), len(row) - 1)

    def cell(self, t, k, unit, source):
        sums = list(accumulate(self.cells[k][unit][source]))
        return min(bisect_right(sums, self.draw(t, k)[1] * sums[-1]), len(sums) - 1)


def one_by_one(weights, target, draw, legacy=False):
    """Return ({(layer, unit, input, cell)} kept, walks), of walks made one after another and counted as they go."""
    choose, shapes, kept, t = Tables(weights, draw), [weight.shape for weight in weights], set(), 0
    while len(kept) < target:
        kept.update(path(shapes, t, choose, legacy))
        t += 1
    return kept, t


def make_phew(network, sparsity, seed):
    return phew.phew_masks(network, 100 * sparsity, verbose=False, seed=seed)[0]


NETWORKS = {"ResNet20": resnet20, "VGG19": vgg19}
METHODS = {"PHEW": make_phew}  # name: function of (network, sparsity, seed) that returns the masks
SPARSITIES = (0.90, 0.95, 0.98)
STACKS = {"ResNet20": "resnet20", "VGG19": "vgg19_bn"}  # what `lib.networks.convnets` calls them
DENSITY, ROUNDS, IMAGES = 0.05, 100, 100


seconds = partial(measure.seconds, clock=time.process_time)


def make_one(name, method, sparsity):
    """Print the most MiB that this process has held, which makes one mask."""
    METHODS[method](NETWORKS[name](0), float(sparsity), 0)
    print(measure.held())


def table(report, rounds):
    """Report the time and the memory of every network, method and sparsity."""
    for name, build in NETWORKS.items():
        network = build(0)
        for method, make in METHODS.items():
            for sparsity in SPARSITIES:
                make(network, sparsity, rounds)
                times = [seconds(make, network, sparsity, seed) for seed in range(rounds)]
                alone = [sys.executable, __file__, "one", name, method, str(sparsity)]
                memory = float(subprocess.run(alone, capture_output=True, text=True, check=True).stdout)
                report.add(f"{name}, {method}, sparsity {sparsity:.2f}", times)
                report.add(f"{name}, {method}, sparsity {sparsity:.2f}, memory", [memory], unit="MiB")


def images():
    """Return 100 images of noise and their labels; what is in them costs nothing."""
    stream = torch.Generator().manual_seed(0)
    return torch.randn(IMAGES, 3, 32, 32, generator=stream), torch.arange(IMAGES) % 10


def by_lib(kind, net):
    """Return the masks of a `lib` network as the notebooks make them."""
    if kind == "SynFlow":
        return anneal.anneal(synflow.synflow, net, [DENSITY], ROUNDS)[0]
    x, y = images()
    return kept_masks.top(
        {"SNIP": scores.snip, "GraSP": scores.grasp}[kind](net, x.flatten(1), y, [0]), DENSITY, "global"
    )


def highest(values, density):
    """Return masks of the highest of all scores together, by the threshold that `kthvalue` finds."""
    joined = torch.cat([value.flatten() for value in values])
    threshold = joined.kthvalue(max(1, joined.numel() - int(density * joined.numel()))).values
    return [value > threshold for value in values]


def plain_synflow(network):
    """Return SynFlow's masks of a module, weights made positive once and multiplied by their masks in every round."""
    weights, ones = layers(network), torch.ones(1, 3, 32, 32)
    signs = [weight.sign() for weight in weights]
    parameters = [parameter for parameter in network.parameters() if parameter.dim() > 1]
    for weight in weights:
        weight.abs_()
    whole, network = [weight.clone() for weight in weights], network.eval()
    for e in range(1, ROUNDS + 1):
        slopes = torch.autograd.grad(network(ones).sum(), parameters)
        kept = highest([w * slope for w, slope in zip(weights, slopes, strict=True)], DENSITY ** (e / ROUNDS))
        for weight, start, mask in zip(weights, whole, kept, strict=True):
            torch.mul(start, mask, out=weight)
    for weight, start, sign in zip(weights, whole, signs, strict=True):
        torch.mul(start, sign, out=weight)
    network.train()
    return kept


def plain_from_data(network, second):
    """Return SNIP's masks of a module, or with `second` derivatives GraSP's, by two backward passes."""
    x, y = images()
    parameters = [parameter for parameter in network.parameters() if parameter.dim() > 1]
    loss = nn.functional.cross_entropy(network(x) / (200 if second else 1), y)
    slopes = torch.autograd.grad(loss, parameters, create_graph=second)
    if second:
        along = sum((slope * slope.detach()).sum() for slope in slopes)
        slopes = torch.autograd.grad(along, parameters)
    products = [w.detach() * slope for w, slope in zip(parameters, slopes, strict=True)]
    return highest(products if second else [product.abs() for product in products], DENSITY)


def main(rounds):
    report = measure.Report("masks", "masks of the CIFAR networks, processor time of one thread")
    table(report, rounds)
    compare(report, rounds)


def compare(report, rounds):
    """Report the walkers side by side on ResNet20, and how many times longer than ours the published one takes."""
    network, draw = resnet20(0), lambda t, k: (random.random(), random.random())
    weights, hops = layers(network), phew.topology(network)
    names = [f"{hop.layer}.weight" for hop in hops if hop.layer is not None]
    stack, target = {name: network.get_parameter(name).detach()[None] for name in names}, int(0.05 * 270_896)
    times = {"ours": [], "hops given": [], "one by one": [], "published": []}
    for seed in range(rounds):
        np.random.seed(seed)
        random.seed(seed)
        times["published"].append(seconds(published, weights, target))
        times["one by one"].append(seconds(one_by_one, weights, target, draw))
        times["ours"].append(seconds(make_phew, network, 0.95, seed))
        times["hops given"].append(seconds(phew.masks, hops, stack, 0.05, [seed]))
    slowest = "ResNet20 at 0.95, published"
    ratios = [report.add(slowest, times.pop("published"))]
    ratios += [report.add(f"ResNet20 at 0.95, {name}", values, slowest) for name, values in times.items()]
    report.close(ratios[1])


if __name__ == "__main__":
    torch.set_num_threads(1)
    if sys.argv[1:2] == ["one"]:
        make_one(*sys.argv[2:])
    else:
        main(int(sys.argv[1]) if len(sys.argv) > 1 else 5)
