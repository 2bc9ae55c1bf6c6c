"""What the library chooses on a CPU, each choice beside its alternative: threads, layout of images, compiling, stacks.

threads: all cores or one, for an attempt of a wide MNIST descent, a stack of 100 XOR networks, and steps of ResNet20.
layout: images channels-last or contiguous, for a step of ResNet20 and of VGG16 with batch normalisation.
compile: steps as they are or by torch.compile, of the MNIST descent and of ResNet20; what cannot be compiled within
minutes, or then computes something else, has no row. stack: MNIST descents whose size is around
`stacking.TOO_LARGE_TO_STACK["descent"]`, one by one or together.
The ratio of the last line is by how much the best alternative beats the library: above 1 a choice is wrong here.
MNIST and CIFAR-10 are needed. Run: python benchmarks/cpu_choices.py [rounds] [CHOICE ...]
"""

import sys
from functools import partial
from pathlib import Path
from unittest import mock

import torch

sys.path[:0] = [str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parents[1])]
import mnist_epoch  # noqa: E402
import toy_stack  # noqa: E402
import workloads  # noqa: E402
from measure import Report, on_threads, seconds  # noqa: E402

from lib import nets, stacking  # noqa: E402

EXAMPLES, IMAGES, BATCH = 5120, 256, 128
XOR, RUNS = 100, 4
WIDTHS = (64, 130, 310, 320)  # with 310 units a run is just below the bound, with 320 just above
SAME = 1e-3  # of a weight, after some steps in another order of operations


def descents(width, runs, together=0):
    """Return a call that makes an attempt of `runs` MNIST descents, so many `together`, 0 as the library has it."""
    sets = workloads.mnist_sets(EXAMPLES)
    with mock.patch.object(mnist_epoch, "WIDTH", width):
        states = mnist_epoch.our_stacks(workloads.kinds(runs), sets, together)
    return partial(mnist_epoch.our_attempt, states, sets)


# ---- the choices: each returns {what: {way: a call}}, the library's way first


def threads():
    works = {f"MNIST attempt, {workloads.UNITS:,} units": descents(workloads.UNITS, 1)}
    works[f"stack of {XOR} XOR runs"] = partial(toy_stack.ours, ["EWN"] * XOR, list(range(XOR)))
    works["steps of ResNet20"] = partial(workloads.cifar_trainer("resnet20", [0], IMAGES).fit, 1)
    ways = {"all threads": torch.get_num_threads(), "1 thread": 1}
    return {what: {way: partial(on_threads, n, work) for way, n in ways.items()} for what, work in works.items()}


def layout():
    found = {}
    for name in ("resnet20", "vgg16_bn"):
        work = partial(workloads.cifar_trainer(name, [0], BATCH, batch=BATCH).fit, 1)
        found[f"step of {name}"] = {"channels last": work, "contiguous": partial(contiguous, work)}
    return found


def contiguous(work):
    with mock.patch.object(nets, "pixels", lambda x, image: x.unflatten(-1, image)):
        work()


def compiling():
    return {"steps of the MNIST descent": compiled(descent), "steps of ResNet20": compiled(resnet)}


def descent():
    steps, work, _ = workloads.mnist_steps(1, EXAMPLES)
    return steps, work


def resnet():
    made = workloads.cifar_trainer("resnet20", [0], IMAGES, batch=BATCH)
    return made, partial(made.fit, 1)


def compiled(make):
    """Return the ways of one kind of steps; say why compiled ones are not among them."""
    (made, work), (other, again) = make(), make()
    reason = workloads.compiled(other, again)
    if not reason:
        work()
        off = workloads.apart(made.net, other.net)
        reason = "" if off < SAME else f"a weight then differs by {off:.2g}"
    if reason:
        print(f"no row of torch.compile for {make.__name__}: {reason}")
    return {"eager": work} | ({} if reason else {"torch.compile": again})


def stack():
    found = {}
    for width in WIDTHS:
        size = nets.parameters_per_run(nets.MLP([784, width, 10], ["EWN"]))
        ours = "one by one" if size > stacking.TOO_LARGE_TO_STACK["descent"] else "together"
        ways = {way: descents(width, RUNS, size) for way, size in (("one by one", 1), ("together", RUNS))}
        found[f"{RUNS} MNIST runs of {size:,} weights"] = {ours: ways.pop(ours)} | ways
    return found


CHOICES = {"threads": threads, "layout": layout, "compile": compiling, "stack": stack}


def compare(report, what, ways, rounds):
    """Add a line for every way; return by how much each of the others beats the first."""
    times = {way: [] for way in ways}
    for work in ways.values():
        work()
    for _ in range(rounds):
        for way, work in ways.items():
            times[way].append(seconds(work))
    ours, *others = ways
    report.add(f"{what}, {ours}", times[ours])
    ratios = {way: report.add(f"{what}, {way}", times[way], f"{what}, {ours}") for way in others}
    for way, ratio in ratios.items():
        print(f"{what}: the library has {ours}; {way} takes {1 / ratio:.2f} times as long")
    return list(ratios.values())


def main(rounds, chosen):
    about = f"on the CPU, each choice of the library first; {EXAMPLES} MNIST, {IMAGES} CIFAR-10 examples"
    report, ratios = Report("cpu_choices", about), []
    with mock.patch.object(workloads, "DEVICE", "cpu"):
        for choice in chosen:
            for what, ways in CHOICES[choice]().items():
                ratios += compare(report, what, ways, rounds)
    report.close(max(ratios, default=1.0), 2)


if __name__ == "__main__":
    given = sys.argv[1:]
    main(int(given[0]) if given else 5, given[1:] or list(CHOICES))
