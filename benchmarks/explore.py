"""A move of the explorer's slider: two methods on a trained network, by processor time, on one thread.

A move draws the table, the figure and the looks of the units anew, from what was computed before; beside it a click
at a unit, which computes two networks, and what the figure alone takes if it is made from nothing. A move is to take
200 ms at most.
Run: python benchmarks/explore.py [rounds]
"""

import contextlib
import io
import itertools
import sys
import time
from pathlib import Path

import torch

sys.path[:0] = [str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parents[1])]
import measure  # noqa: E402
import workloads  # noqa: E402

from lib import board, controls, drawing, nets, sets, subjects  # noqa: E402

ROUNDS, WIDTH, EXAMPLES = 15, 1024, 2000


def shown(subject):
    """Return an explorer of a subject, on show."""
    explorer = controls.Explorer()
    explorer._subjects[subjects.DIGITS] = subject
    with contextlib.redirect_stdout(io.StringIO()):
        explorer.show()
    return explorer


def wide():
    """Return a `Subject` of the MNIST network of the EWN study as it starts: what is drawn takes as long."""
    data = sets.load(workloads.MNIST)
    net = nets.init_(nets.MLP([data.train_x[0].numel(), WIDTH, data.classes], "no-WN"), [1])
    return subjects._of("mnist", net, data, "ewn", 1, EXAMPLES)


def main():
    """Print the table and the ratio of a move to a figure from nothing."""
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else ROUNDS
    torch.set_num_threads(1)
    drawing.style()
    report = measure.Report("explore", "a move of the slider, processor time")
    for name, subject in (("digits", subjects.subject(subjects.DIGITS)), ("mnist", wide())):
        explorer = shown(subject)
        stops = itertools.cycle([stop for _, stop in explorer.slider.options][4:18])
        places = itertools.cycle(range(len(explorer.ranked)))
        actions = {
            "a figure from nothing": lambda e=explorer: board.Board(e.subject, e.sweeps).png(e.cuts),
            "a move": lambda e=explorer, s=stops: setattr(e.slider, "value", next(s)),
            "a click": lambda e=explorer, p=places: e.units[next(p)].click(),
        }
        times = {what: [] for what in actions}
        for _ in range(rounds):
            for what, action in actions.items():
                with contextlib.redirect_stdout(io.StringIO()):
                    times[what].append(1000 * measure.seconds(action, clock=time.process_time))
                explorer.by_hand = {}
        first = next(f"{name}, {what}" for what in actions)
        found = {what: report.add(f"{name}, {what}", own, "" if f"{name}, {what}" == first else first, unit="ms")
                 for what, own in times.items()}  # fmt: skip
    report.close(found["a move"])


if __name__ == "__main__":
    main()
