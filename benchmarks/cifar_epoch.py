"""One attempt of the CIFAR descent (a training pass and an evaluation pass) beside plain PyTorch, on a stated subset.

The baseline is the same VGG, rate, batch size and rescaled loss, written the usual way: torchvision's `CIFAR10`, a
`DataLoader`, modules that build their normalised filters, autograd, `torch.optim.SGD`. Both run in turn in one process.
Also printed: the peak memory of the process, and how long the whole training set takes at this speed.
Run: python benchmarks/cifar_epoch.py [images] [rounds] [types]
"""

import os
import platform
import resource
import statistics
import sys
from pathlib import Path

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from mnist_epoch import BATCH, our_attempt, plain_attempt, seconds, spread  # noqa: E402

from lib import data, nets, train  # noqa: E402

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


def peak():
    """Return the most memory that the process has held, in GB (Linux counts in KiB)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def main(count, rounds, kinds):
    real = data.load("cifar10", train_examples=count)
    sets = real.split("train"), tuple(part[:1] for part in real.split("test"))  # an attempt has no test pass
    print(f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    print(f"VGG of 13 convolutions, {count} images of CIFAR-10, batch {BATCH}, float32: an attempt, {rounds} rounds")
    loader = plain_loader(count)
    ratios = {kind: compare(kind, loader, sets, rounds, real) for kind in kinds}
    print(f"cifar_epoch: {ratios[kinds[-1]]:.2f}x")


def compare(kind, loader, sets, rounds, real):
    """Print one type's two times and return their ratio."""
    net = nets.init_(nets.VGG(real.train_x.shape[1:], real.classes, [kind]), [0], "torch_kaiming_output_first")
    state, times = train.start(net, [0], sets), {"ours": [], "plain": []}
    print(f"{kind:6}  {peak():.2f} GB held at most before the first attempt")
    other = plain_network(kind)
    for k in range(rounds):
        times["ours"].append(seconds(our_attempt, state, sets))
        if k == 0:
            print(f"{kind:6}  {peak():.2f} GB after ours")
        times["plain"].append(seconds(plain_attempt, other, loader, 0.0))
    ratio = statistics.median(p / o for p, o in zip(times["plain"], times["ours"], strict=True))
    print(f"{kind:6}  plain {spread(times['plain'])}   ours {spread(times['ours'])}   {ratio:.2f}x")
    whole = statistics.median(times["ours"]) * 50_000 / len(sets[0][1]) / 60
    print(f"{kind:6}  all 50,000 images at this speed: {whole:.0f} minutes an attempt")
    return ratio


if __name__ == "__main__":
    given = sys.argv[1:]
    main(int(given[0]) if given else 2000, int(given[1]) if given[1:] else 3, tuple(given[2:]) or TYPES[:2])
