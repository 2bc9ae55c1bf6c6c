"""One attempt of the CIFAR descent (a training pass and an evaluation pass) beside plain PyTorch, on a stated subset.

The baseline is the same VGG, rate, batch size and rescaled loss, written the usual way: torchvision's `CIFAR10`, a
`DataLoader`, modules that build their normalised filters, autograd, `torch.optim.SGD`. Both run in turn in one process.
Run: python benchmarks/cifar_epoch.py [images] [rounds] [types]
"""

import os
import sys
from pathlib import Path

import torch
from torch import nn

sys.path[:0] = [str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parents[1])]
from measure import DEVICE, Report, seconds, sized  # noqa: E402
from mnist_epoch import BATCH, our_attempt, plain_attempt  # noqa: E402

from lib import convnets, descend, nets  # noqa: E402
from lib import sets as data  # noqa: E402

TYPES = ("no-WN", "EWN", "SWN")
WIDTHS, POOL_AFTER = (64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512), (2, 4, 7, 10, 13)


class Normalised(nn.Module):
    """A weight-normalised convolution as one would first write it."""

    def __init__(self, inputs, units, kind, bias):
        super().__init__()
        w = torch.randn(units, inputs, 3, 3) * (2 / (9 * inputs)) ** 0.5
        size = w.flatten(1).norm(dim=1)
        self.v, self.kind = nn.Parameter(w / size[:, None, None, None]), kind
        self.s = nn.Parameter(size.log() if kind == "EWN" else size)
        self.bias = nn.Parameter(torch.zeros(units)) if bias else None

    def forward(self, x):
        size = self.s.exp() if self.kind == "EWN" else self.s
        unit = self.v / self.v.flatten(1).norm(dim=1)[:, None, None, None]
        return nn.functional.conv2d(x, size[:, None, None, None] * unit, self.bias, padding=1)


def plain_network(kind):
    modules, inputs = [], 3
    for k, units in enumerate(WIDTHS, 1):
        if kind == "no-WN":
            modules.append(nn.Conv2d(inputs, units, 3, padding=1, bias=k == 1))
            nn.init.kaiming_normal_(modules[-1].weight)
        else:
            modules.append(Normalised(inputs, units, kind, bias=k == 1))
        modules += [nn.ReLU()] + [nn.MaxPool2d(2)] * (k in POOL_AFTER)
        inputs = units
    return nn.Sequential(*modules, nn.Flatten(), nn.Linear(inputs, 10, bias=False))


def plain_loader(count):
    """Return a DataLoader over the first images of torchvision's own CIFAR-10."""
    from torchvision import datasets, transforms

    steps = [transforms.ToTensor(), transforms.Normalize((0.5,) * 3, (0.5,) * 3)]
    folder = Path(data.ROOT, os.environ.get("PRUNING_DATA", "data"))
    found = datasets.CIFAR10(str(folder), train=True, transform=transforms.Compose(steps))
    return torch.utils.data.DataLoader(torch.utils.data.Subset(found, range(count)), batch_size=BATCH, shuffle=True)


def operations(examples):
    """Return the float32 operations of an attempt: products forward, for the gradients, and of the evaluation."""
    total, inputs, side = 0, 3, 32
    for k, units in enumerate(WIDTHS, 1):
        total += (4 if k > 1 else 3) * 9 * inputs * units * side**2  # the images need no gradient
        inputs, side = units, side // 2 if k in POOL_AFTER else side
    return 2 * examples * (total + 4 * inputs * 10)


def main(count, rounds, kinds):
    real = data.load("cifar10", DEVICE, train_examples=count)
    sets = real.split("train"), tuple(part[:1] for part in real.split("test"))  # an attempt has no test pass
    about = f"VGG of 13 convolutions, {count} images of CIFAR-10, batch {BATCH}, float32: an attempt"
    report, loader = Report("cifar_epoch", about), plain_loader(count)
    ratios = [compare(report, kind, loader, sets, rounds, real) for kind in kinds]
    report.close(ratios[-1], 2)


def compare(report, kind, loader, sets, rounds, real):
    """Report one type's two times and return their ratio."""
    net = nets.init_(convnets.VGG(real.train_x.shape[1:], real.classes, [kind]), [0], "torch_kaiming_output_first")
    states, other = [descend.start(net.to(DEVICE), [0], sets)], plain_network(kind).to(DEVICE)
    times, work = {"plain": [], "ours": []}, operations(len(sets[0][1]))
    for _ in range(rounds):
        times["ours"].append(seconds(our_attempt, states, sets))
        times["plain"].append(seconds(plain_attempt, other, loader, 0.0))
    report.add(f"{kind}, plain PyTorch", times["plain"], flops=work)
    return report.add(f"{kind}, ours", times["ours"], f"{kind}, plain PyTorch", flops=work)


if __name__ == "__main__":
    given = sys.argv[1:]
    main(
        int(given[0]) if given else sized(2000, 4),
        int(given[1]) if given[1:] else sized(3, 1),
        tuple(given[2:]) or TYPES[:2],
    )
