"""Training steps recorded as CUDA graphs beside launched and compiled ones; the numbers of `capture.MEASURED`.

descend: steps of nine MNIST descents of 1,024 units, and of 100 networks of 20 units on the points of XOR. fit: steps
of the challenge's network and of ResNet20 with augmentation, alone and in a stack of three. Each kind of steps is made
twice or three times from the same start, and its steps are taken in turn, a pass at a time. The last line is the least
by which recording beats launching; for each loop where it does so in all cases a line for `MEASURED` is printed.
Needs a CUDA GPU, MNIST and CIFAR-10. Run: python benchmarks/captured_steps.py [rounds] [--compiled]
"""

import os
import sys
from functools import partial
from pathlib import Path
from unittest import mock

sys.path[:0] = [str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parents[1])]
import workloads  # noqa: E402
from measure import Report, machine, need_cuda, seconds, sized  # noqa: E402

from lib import capture  # noqa: E402

STEPS, POINTS = sized((150, 100), (5, 3))  # of a pass; networks of XOR
WAYS = {"launched": "0", "recorded": "1", "compiled": "0"}  # and the PRUNING_CAPTURE that each is made under


def fitting(make, rule):
    """Return a function that makes (a trainer, a call that takes a pass, how many steps it has)."""

    def made():
        trainer = make(STEPS * rule["batch"])
        return trainer, partial(trainer.fit, 1), STEPS

    return made


def cases():
    """Return {(loop of `capture.MEASURED`, what): a function that makes its steps}."""
    found = {
        ("descend", "9 MNIST descents"): partial(workloads.mnist_steps, 9, STEPS * 128),
        ("descend", f"{POINTS} XOR networks"): partial(workloads.xor_steps, POINTS, STEPS),
    }
    for runs in (1, 3):
        of, seeds = f", stack of {runs}", list(range(runs))
        make = partial(workloads.challenge_trainer, seeds)
        found["fit", "the challenge's network" + of] = fitting(make, workloads.ADAM)
        make = partial(workloads.cifar_trainer, "resnet20", seeds, augment=True)
        found["fit", "ResNet20" + of] = fitting(make, workloads.SCHEDULE)
    return found


def ways(make, compiled):
    """Return {way: (a call that takes a pass, its steps)} of steps made thrice, each warmed up."""
    found = {}
    for way, choice in WAYS.items():
        if way == "compiled" and not compiled:
            continue
        with mock.patch.dict(os.environ, {capture.VARIABLE: choice}):
            made, one_pass, count = make()
            reason = workloads.compiled(made, one_pass) if way == "compiled" else ""
            if reason:
                print(f"no row of compiled steps: {reason}")
                continue
            one_pass()
            found[way] = one_pass, count
    return found


def compare(report, what, found, rounds):
    """Add the lines of one kind of steps; return by how much recording beats launching."""
    times = {way: [] for way in found}
    for _ in range(rounds):
        for way, (one_pass, count) in found.items():
            times[way].append(1e6 * seconds(one_pass) / count)
    base = f"{what}, launched"
    report.add(base, times.pop("launched"), unit="µs")
    ratios = {way: report.add(f"{what}, {way}", column, base, "µs") for way, column in times.items()}
    return ratios["recorded"]


def main(rounds, compiled):
    report = Report("captured_steps", f"one step, of {STEPS} in a row")
    ratios = {loop: [] for loop in capture.MEASURED}
    for (loop, what), make in cases().items():
        ratios[loop].append(compare(report, what, ways(make, compiled), rounds))
    for loop, found in ratios.items():
        if min(found) > 1:
            print(f'capture.MEASURED["{loop}"] = "{min(found):.2f}x of launching on {machine()["device"]}"')
    report.close(min(map(min, ratios.values())), 2)


if __name__ == "__main__":
    need_cuda("captured_steps")
    given = [text for text in sys.argv[1:] if text != "--compiled"]
    main(int(given[0]) if given else sized(5, 1), "--compiled" in sys.argv)
