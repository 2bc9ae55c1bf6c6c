"""One attempt of the MNIST descent (a training pass and an evaluation pass) beside plain PyTorch.

The baseline is the same network, rate, batch size and rescaled loss, written the usual way: torchvision's `MNIST`
from decompressed files, a `DataLoader`, modules, autograd, `torch.optim.SGD`. Both run in turn in one process.
Also measured: the cost per run in a stack of nine. Run: python benchmarks/mnist_epoch.py [rounds]
"""

import math
import sys
import tempfile
from pathlib import Path

import torch
from torch import nn

sys.path[:0] = [str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parents[1])]
from measure import DEVICE, Report, seconds, sized  # noqa: E402

from lib import descend, nets, stacking  # noqa: E402
from lib import sets as data  # noqa: E402

TYPES = ("no-WN", "EWN", "SWN")
BATCH, WIDTH, STEP = 128, sized(1024, 16), 0.01
EXAMPLES = sized(0, 300)  # 0 for all


class Normalised(nn.Module):
    """A weight-normalised linear layer as one would first write it."""

    def __init__(self, inputs, units, kind):
        super().__init__()
        w = torch.randn(units, inputs) * (2 / inputs) ** 0.5
        size = w.norm(dim=1)
        self.v, self.kind = nn.Parameter(w / size[:, None]), kind
        self.s = nn.Parameter(size.log() if kind == "EWN" else size)
        self.bias = nn.Parameter(torch.zeros(units))

    def forward(self, x):
        size = self.s.exp() if self.kind == "EWN" else self.s
        weight = size[:, None] * self.v / self.v.norm(dim=1, keepdim=True)
        return nn.functional.linear(x, weight, self.bias)


def plain_network(kind):
    hidden = nn.Linear(784, WIDTH) if kind == "no-WN" else Normalised(784, WIDTH, kind)
    return nn.Sequential(nn.Flatten(), hidden, nn.ReLU(), nn.Linear(WIDTH, 10, bias=False))


def plain_loss(logits, y, level):
    wrong = torch.ones_like(logits, dtype=torch.bool).scatter_(1, y[:, None], False)
    delta = (logits.gather(1, y[:, None]) - logits)[wrong].view(len(y), -1)
    return torch.log1p(torch.exp(-delta).sum(1)).mean() * math.exp(-level)


def plain_attempt(net, loader, level):
    optimizer = torch.optim.SGD(net.parameters(), lr=STEP)
    for x, y in loader:
        optimizer.zero_grad()
        plain_loss(net(x.to(DEVICE)), y.to(DEVICE), level).backward()
        optimizer.step()
    with torch.no_grad():
        losses = (plain_loss(net(x.to(DEVICE)), y.to(DEVICE), level).item() * len(y) for x, y in loader)
        return sum(losses) / len(loader.dataset)


def plain_loader(real, folder):
    """Return a DataLoader over torchvision's own MNIST, its files laid out decompressed beforehand."""
    from torchvision import datasets, transforms

    raw = Path(folder, "MNIST", "raw")
    raw.mkdir(parents=True)
    for prefix, x, y in (("train", real.train_x, real.train_y), ("t10k", real.test_x, real.test_y)):
        images, labels = x[:, 0].numpy().tobytes(), y.to(torch.uint8).numpy().tobytes()
        sizes = b"".join(n.to_bytes(4, "big") for n in (len(y), 28, 28))
        (raw / f"{prefix}-images-idx3-ubyte").write_bytes(b"\0\0\x08\x03" + sizes + images)
        (raw / f"{prefix}-labels-idx1-ubyte").write_bytes(b"\0\0\x08\x01" + sizes[:4] + labels)
    steps = [transforms.ToTensor(), transforms.Normalize(real.mean, real.std)]
    found = datasets.MNIST(folder, train=True, transform=transforms.Compose(steps))
    return torch.utils.data.DataLoader(found, batch_size=BATCH, shuffle=True)


def our_stacks(kinds, sets, together=0):
    """Return the descents of these runs in stacks of so many, 0 for as many as the library has in one."""
    seeds = list(range(len(kinds)))
    net = nets.init_(nets.MLP([784, WIDTH, 10], kinds), seeds).to(sets[0][0].device)
    together = together or stacking.width(net, BATCH, kind="descent")
    parts = [seeds[k : k + together] for k in range(0, len(seeds), together)]
    return [descend.start(nets.take(net, part), part, sets) for part in parts]


def our_attempt(states, sets):
    for state in states:
        descend.attempt(state, sets, BATCH)


def operations(examples):
    """Return the float32 operations of an attempt: products forward, for the gradients, and of the evaluation."""
    weights = 784 * WIDTH + WIDTH * 10
    return 2 * examples * (3 * weights + WIDTH * 10)  # no gradient of the inputs


def main(rounds):
    real = data.load("mnist", train_examples=EXAMPLES)
    here = data.load("mnist", DEVICE, train_examples=EXAMPLES)
    sets = here.split("train"), tuple(part[:1] for part in here.split("test"))  # an attempt has no test pass
    report = Report(
        "mnist_epoch", f"784-{WIDTH}-10 on MNIST, batch {BATCH}, float32: an attempt of training and evaluation"
    )
    with tempfile.TemporaryDirectory() as folder:
        loader = plain_loader(real, folder)
        ratios = {kind: compare(report, kind, loader, sets, rounds) for kind in TYPES}
    stacked(report, sets, rounds)
    report.close(ratios["EWN"])


def compare(report, kind, loader, sets, rounds):
    """Report one type's two times and return their ratio."""
    net, states, work = plain_network(kind).to(DEVICE), our_stacks([kind], sets), operations(len(sets[0][1]))
    times = {"plain": [], "ours": []}
    for _ in range(rounds):
        times["plain"].append(seconds(plain_attempt, net, loader, 0.0))
        times["ours"].append(seconds(our_attempt, states, sets))
    report.add(f"{kind}, plain PyTorch", times["plain"], flops=work)
    return report.add(f"{kind}, ours", times["ours"], f"{kind}, plain PyTorch", flops=work)


def stacked(report, sets, rounds):
    """Report the time per run alone, and of nine runs in one stack."""
    kinds = [kind for kind in TYPES for _ in range(3)]
    nine, alone = our_stacks(kinds, sets), [our_stacks([kind], sets) for kind in TYPES]
    single, together = [], []
    for _ in range(rounds):
        single.append(sum(seconds(our_attempt, states, sets) for states in alone) / len(alone))
        together.append(seconds(our_attempt, nine, sets) / len(kinds))
    report.add("a run alone, mean of the types", single)
    report.add("a run in a stack of nine", together, "a run alone, mean of the types")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else sized(3, 1))
