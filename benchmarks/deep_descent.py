"""Attempts of the MNIST descent far down, at log-losses of -100 and -300, beside a descent that leaves nothing out.

The baseline takes every example of every batch by autograd and measures all of them in the order of the data, stopping
where the loss is certainly not lower: what `descend` did before it had `screening`. Both begin with copies of one
state and make the same attempts, in turn. The states are made here, once, on a part of MNIST, and kept with the trained
networks (hours for EWN and SWN). Run: python benchmarks/deep_descent.py [rounds] [images] [type]
"""

import math
import sys
from pathlib import Path

import torch

sys.path[:0] = [str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parents[1])]
import workloads  # noqa: E402
from measure import DEVICE, Report, seconds  # noqa: E402

from lib import descend, draws, nets, passes, runs, screening, twins  # noqa: E402
from lib import sets as data  # noqa: E402

LEVELS, BATCH, WIDTH, SEED = [-50, -100, -300], 128, 1024, 9192
ATTEMPTS = 8  # of one round
EARLY, SAME = 10, 30  # attempts whose outcome is compared
CHUNK = 1000


def states(real, images, kind):
    """Return `{level: Descent}`, read or made."""
    recipe = {
        "name": f"{workloads.MNIST}-mlp{WIDTH}",
        "batch_size": BATCH,
        "own_order": False,
        "train_examples": images,
    }
    recipe |= {"seed": SEED, "type": kind}
    net = nets.init_(nets.MLP([784, WIDTH, 10], [kind]), [SEED]).to(real.device)
    given = {"folders": [runs.trained(recipe)], "recipes": [recipe], "batch": BATCH}
    return descend.descend(net, real, [SEED], LEVELS, **given)[0][0]


@torch.no_grad()
def log_loss(net, x, y, bound):
    """Return the log of the mean loss, or inf as soon as it is certainly above `bound`."""
    total = torch.tensor([-math.inf], dtype=torch.float64, device=x.device)
    for start in range(0, len(y), CHUNK):
        part = slice(start, start + CHUNK)
        losses = twins.log_losses(net(x[part]), y[part]).double()
        total = torch.logaddexp(total, losses.logsumexp(1) - math.log(len(y)))
        if not bool(total <= bound):
            return torch.full_like(total, math.inf)
    return total


def plain(state, sets, steps):
    """Try one epoch with every example, undone where the loss did not fall."""
    (x, y), net = sets[0], state.net
    before = [p.detach().clone() for p in net.parameters()]
    order = torch.from_numpy(draws.permutation(SEED, "order", int(state.attempt[0]), len(y)))[None]
    steps.epoch(x, y, order, state.step, state.log_loss, BATCH)
    found = log_loss(net, x, y, state.log_loss)
    accepted = bool(found < state.log_loss)
    if not accepted:
        with torch.no_grad():
            for p, old in zip(net.parameters(), before, strict=True):
                p.copy_(old)
    state.step = state.step * descend.GROWTH if accepted else state.step / descend.GROWTH
    state.log_loss = found if accepted else state.log_loss
    state.epoch, state.attempt = state.epoch + int(accepted), state.attempt + 1


def several(attempt, *arguments):
    for _ in range(ATTEMPTS):
        attempt(*arguments)


def compare(report, level, state, sets, rounds):
    """Report both descents from one state, and return their ratio."""
    ours, theirs = nets.take(state, [0]), nets.take(state, [0])
    steps = passes.Steps(theirs.net)
    share = float(screening.counted(state.losses, state.log_loss, torch.float32).double().mean())
    report.add(f"share of the examples that count, at {level}", [share], unit="")
    times = {"whole": [], "screened": []}
    for _ in range(rounds):
        times["whole"].append(seconds(several, plain, theirs, sets, steps) / ATTEMPTS)
        times["screened"].append(seconds(several, descend.attempt, ours, sets, BATCH) / ATTEMPTS)
    report.add(f"all examples, at {level}", times["whole"])
    return report.add(f"screened, at {level}", times["screened"], f"all examples, at {level}")


def path(state, sets, screened, dtype=torch.float32, written_out=True):
    """Return the log-losses after each of `SAME` attempts, `(SAME,)`."""
    state, sets = nets.take(state, [0]), [(x.to(dtype), y) for x, y in sets]
    state.net = state.net.to(dtype)
    if not written_out:
        state.steps = passes.Steps(state.net)
    losses = []
    for _ in range(SAME):
        descend.attempt(state, sets, BATCH, screened=screened)
        losses.append(float(state.log_loss))
    return torch.tensor(losses, dtype=torch.float64)


def agree(report, state, sets):
    """Report by how much the log-losses of first attempts differ, beside what rounding alone does to them.

    In float64 a screened descent is the whole one. In float32 a decision may turn after some attempts, as it does
    between two whole descents that round differently, one of them by autograd.
    """
    exact, whole = path(state, sets, False, torch.float64), path(state, sets, False)
    pairs = {"float64, screened": (path(state, sets, True, torch.float64), exact)}
    pairs["float32, screened"] = path(state, sets, True), whole
    pairs["float32, all of them by autograd"] = path(state, sets, False, written_out=False), whole
    for what, (ours, theirs) in pairs.items():
        for count in (EARLY, SAME):
            apart = float((ours / theirs - 1)[:count].abs().max())
            report.add(f"{what}, {count} attempts, relative difference", [apart], unit="")


def main(rounds=5, images=10_000, kind="no-WN"):
    real = data.load(workloads.MNIST, DEVICE, train_examples=images)
    test = tuple(part[:1] for part in real.split("test"))  # an attempt has no test pass
    sets = real.split("train"), test
    report = Report("deep_descent", f"{kind}, 784-{WIDTH}-10, {images} images of MNIST: an attempt, float32")
    found = states(real, images, kind)
    with descend.full_precision():
        agree(report, found[LEVELS[0]], sets)
        ratios = {level: compare(report, level, found[level], sets, rounds) for level in LEVELS[1:]}
    report.close(ratios[LEVELS[1]])


if __name__ == "__main__":
    main(*map(int, sys.argv[1:3]), *sys.argv[3:])
