"""The contribution scores of 784-50-30-10 for a batch of 5,000 examples, on one thread, three ways.

`loops` is the rule as the train-time pruning study's program has it: Python loops over examples, next units and units,
the sum by a library call. It is timed on a sample of the examples and scaled, which its loop over them allows.
`broadcast` holds the share of every example, next unit and unit at once. `ours` is `contribution`. All take float32
activations made beforehand; memory is what a process that does it once holds at most, over what it had before.
Run: python benchmarks/importance.py [rounds]
"""

import subprocess
import sys
from pathlib import Path

import numpy as np
import torch

sys.path[:0] = [str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parents[1])]
import measure  # noqa: E402

from lib.pruning.contribution import Sums  # noqa: E402

WIDTHS, EXAMPLES, SAMPLE = (784, 50, 30, 10), 5000, 100


def layers():
    """Return [(activations (S, n), weight of the next layer (m, n))] of both hidden layers, as a network starts."""
    stream = torch.Generator().manual_seed(0)
    x, found = torch.randn(EXAMPLES, WIDTHS[0], generator=stream), []
    for n, m in zip(WIDTHS, WIDTHS[1:], strict=False):
        weight = torch.randn(m, n, generator=stream) * (2 / n) ** 0.5
        found.append((x, weight))
        x = torch.relu(x @ weight.T)
    return found[1:]


def loops(activations, weight):
    """Return the mean share of every unit in percent, `(n,)`, one share at a time."""
    sizes, weights = np.abs(activations.numpy()), np.abs(weight.numpy())
    scores = np.zeros(weights.shape[1])
    for size in sizes:
        for row in weights:
            total = np.dot(row, size)
            for k in range(len(row)):
                if total:
                    scores[k] += 100 * row[k] * size[k] / total
    return scores / (len(sizes) * len(weights))


def broadcast(activations, weight):
    """Return the same from all shares at once, `(S, m, n)`."""
    parts = activations.abs()[:, None] * weight.abs()
    return (100 * parts / parts.sum(2, keepdim=True)).nan_to_num(0).mean((0, 1))


def ours(activations, weight):
    return Sums(weight[None]).add(activations[None]).score()[0]


WAYS = {"loops": loops, "broadcast": broadcast, "ours": ours}


def score(way, pairs, examples=EXAMPLES):
    """Make the scores of both layers from the first `examples`."""
    for activations, weight in pairs:
        WAYS[way](activations[:examples], weight)


def once(way):
    """Print the MiB that the scores of both layers take beyond what the process, warmed up on few examples, has."""
    pairs = layers()
    score(way, pairs, 2)
    before = measure.held()
    score(way, pairs, SAMPLE if way == "loops" else EXAMPLES)
    print(measure.held() - before)


def memory(way):
    """Return the MiB that `once` prints in a process of its own."""
    alone = [sys.executable, __file__, "once", way]
    return float(subprocess.run(alone, capture_output=True, text=True, check=True).stdout)


def main(rounds):
    pairs, few = layers(), [(a[:SAMPLE], w) for a, w in layers()]
    for a, w in few:  # they are the same scores
        np.testing.assert_allclose(loops(a, w), ours(a, w), rtol=1e-4)
        torch.testing.assert_close(broadcast(a, w).double(), ours(a, w), rtol=1e-4, atol=1e-6)
    about = f"{'-'.join(map(str, WIDTHS))}, {EXAMPLES} examples; loops timed on {SAMPLE} and scaled"
    report, times = measure.Report("importance", about), {way: [] for way in WAYS}
    for _ in range(rounds):
        times["loops"].append(measure.seconds(score, "loops", few) * EXAMPLES / SAMPLE)
        times["broadcast"].append(measure.seconds(score, "broadcast", pairs))
        times["ours"].append(measure.seconds(score, "ours", pairs))
    report.add("loops", times["loops"])
    report.add("broadcast", times["broadcast"], "loops")
    ratio = report.add("ours", times["ours"], "loops")
    for way in WAYS:
        report.add(f"memory of {way}", [memory(way)], unit="MiB")
    report.close(ratio, 0)


if __name__ == "__main__":
    torch.set_num_threads(1)
    if sys.argv[1:2] == ["once"]:
        once(sys.argv[2])
    else:
        main(int(sys.argv[1]) if len(sys.argv) > 1 else 5)
