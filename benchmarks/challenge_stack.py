"""The posthoc and finetune grid of one seed of the pruning challenge, as we run it, beside every run at full width.

Both train the same network once, prune it to ten sparsities by weights and by neurons, measure all twenty and train
them on under their masks, on the first examples of MNIST. The baseline does so one by one at full width, zeros and all;
ours takes pruned neurons out first. Both in turn in one process. Run: python benchmarks/challenge_stack.py [rounds]
"""

import copy
import sys
import tempfile
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parents[1])]
import measure  # noqa: E402

from lib import masks, runs, sets  # noqa: E402
from lib.studies.challenge import modes  # noqa: E402
from lib.training.evaluate import evaluate  # noqa: E402

SPARSITIES = [0.0, 0.25, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.97, 0.99]
EXAMPLES, EPOCHS = 5120, 1  # twenty steps of 256: all of it is the same work 59 times over
WIDTHS = (1, 2, 5)  # seeds in a stack, of which the fastest per seed is the best stack


def laboratory(real, seeds):
    train, test = ((x[:EXAMPLES], y[:EXAMPLES]) for x, y in (real.split("train"), real.split("test")))
    rule = {"rule": "adam", "lr": 0.001, "batch": 256, "bar": False}
    return modes.Lab(train, test, seeds, modes.recipe("mnist", EXAMPLES, rule), rule, epochs=EPOCHS,
                     retrain_epochs=EPOCHS)  # fmt: skip


def ours(real, seeds):
    lab = laboratory(real, seeds)
    for kind in modes.KINDS:
        modes.posthoc(lab, kind, SPARSITIES)
        modes.finetune(lab, kind, SPARSITIES)


def one_by_one(real, seed):
    lab = laboratory(real, [seed])
    dense, _ = lab.dense(EPOCHS)
    for kind in modes.KINDS:
        for sparsity in SPARSITIES:
            kept, _ = modes.chosen(lab, dense, kind, sparsity)
            net = masks.apply_(copy.deepcopy(dense), kept)
            for split in (lab.train, lab.test):
                evaluate(net, *split)
            trainer = lab.trainer(net, epoch=EPOCHS)
            trainer.prune(kept)
            trainer.fit(EPOCHS)


def seconds(function, *arguments):
    """Return the time of a call that finds no network trained before."""
    with tempfile.TemporaryDirectory() as folder:
        before, runs.folder = runs.folder, lambda: Path(folder)
        try:
            return measure.seconds(function, *arguments)
        finally:
            runs.folder = before


def main(rounds):
    real = sets.load("mnist")
    about = f"784-1000-1000-500-200-10, {EXAMPLES} examples, {EPOCHS} epoch before and after pruning, a seed's grid"
    report, base = measure.Report("challenge_stack", about), "full width, one by one"
    times = {base: []} | {f"ours, stack of {width}": [] for width in WIDTHS}
    for _ in range(rounds):
        times[base].append(seconds(one_by_one, real, 0))
        for width in WIDTHS:
            times[f"ours, stack of {width}"].append(seconds(ours, real, list(range(width))) / width)
    ratios = [report.add(name, values, base * (name != base)) for name, values in times.items()]
    report.close(max(ratios[1:]), 2)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 3)
