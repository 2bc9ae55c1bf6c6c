"""Whole tables of the studies, each made by one call, beside the time that it is to take on one GPU.

challenge: the challenge's grid, 2 kinds × 10 sparsities × 5 seeds, 100 epochs of MNIST each with masks made anew at
every step: 180 s. masks: 6 methods × ResNet20 and VGG19 × 8 sparsities × 10 seeds: 90 s. dpp: 9 budgets × 5 seeds of
500 units, 22,500 draws from the k-DPPs of one layer's edges, each refitted: 90 s. epoch: ResNet20 on CIFAR-10,
augmented, 160 epochs of a run: 60 s, by one epoch of stacks, and on a GPU of two processes at once. descent: attempts
of nine MNIST descents, and from them the minutes to a log-loss of -100 and -300, with as many attempts as descents on
small digits took; the last line is the share of the float32 ceiling.
Ratios are of the time allowed to the time taken: above 1 the table is made in time. --share takes so much of each list
of seeds, sparsities, budgets, epochs and images, one at least, and of the time allowed by the number of results;
without a GPU it is 0.01. Run: python benchmarks/whole_tables.py [PIECE ...] [--share 0.01]
"""

import argparse
import subprocess
import sys
from pathlib import Path

import torch

sys.path[:0] = [str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parents[1])]
import challenge_stack  # noqa: E402
import mnist_epoch  # noqa: E402
import workloads  # noqa: E402
from measure import DEVICE, STAND_IN, Report, seconds, sized, timed  # noqa: E402

from lib import dpp, likelihood, masks, reweight  # noqa: E402
from lib import sets as data  # noqa: E402
from lib.studies.challenge import modes  # noqa: E402
from lib.studies.phew import study  # noqa: E402

PIECES = ("challenge", "masks", "dpp", "epoch", "descent")
EPOCHS, SEEDS = 100, 5
METHODS = sized(("phew", "synflow", "synflow_l2", "snip", "grasp", "magnitude_init"), ("phew", "snip"))
NETWORKS = sized(("resnet20", "vgg19"), ("resnet20",))
DENSITIES, MASK_SEEDS = (0.5, 0.2, 0.1, 0.05, 0.02, 0.01, 0.005, 0.002), 10
UNITS, BUDGETS, BETA = sized(500, 2), 9, 0.3
IMAGES, STACKS, PASSES = sized((50_000, (1, 3, 8, 16), 160), (100, (1,), 160))
DESCENTS, ATTEMPTS = 9, {-100: 2200, -300: 7200}


def some(items, share):
    """Return the first of a list, as many as the share says, one at least."""
    return list(items)[: max(1, round(share * len(items)))]


def told(name, about, results, whole, limit, spent):
    """Report the time of a table, or of `results` of its `whole` results, beside the time that these may take."""
    report = Report(f"whole_tables.{name}", f"{about}: {results:,} of {whole:,} results")
    report.add("allowed", [limit * results / whole])
    report.close(report.add("taken", [spent], "allowed"), 3)


def grid(share):
    seeds, epochs = some(range(SEEDS), share), len(some(range(EPOCHS), share))
    sparsities = some(challenge_stack.SPARSITIES[::-1], share)
    lab = modes.Lab(*workloads.mnist_whole(), seeds, {}, workloads.ADAM, hidden=workloads.HIDDEN, epochs=epochs)
    spent = seconds(lambda: [modes.during(lab, kind, sparsities) for kind in modes.KINDS])
    each, whole = len(seeds) * len(sparsities) * epochs, SEEDS * len(challenge_stack.SPARSITIES) * EPOCHS
    told("challenge", "epochs of runs of the challenge", 2 * each, 2 * whole, 180, spent)


def all_masks(share):
    seeds, densities = some(range(MASK_SEEDS), share), some(DENSITIES[::-1], share)
    real = data.load(workloads.CIFAR, DEVICE, statistics="phew")

    def make():
        for net in NETWORKS:
            for method in METHODS:
                spent = seconds(study.prune, study.lab(real, seeds, net=net), method, densities)
                print(f"{net}, {method}: {spent:.3g} s", flush=True)

    each, whole = len(seeds) * len(densities), MASK_SEEDS * len(DENSITIES)
    kinds = len(NETWORKS) * len(METHODS)
    told("masks", "masks of ResNet20 and VGG19", kinds * each, kinds * whole, 90, seconds(make))


def edge_sets(share):
    """Draw and refit; one layer's k-DPPs serve all budgets and seeds, as all types of a trained network have them."""
    (x, _), _ = workloads.mnist_whole()
    seeds, tenths = some(range(SEEDS), share), some(range(1, BUDGETS + 1), share)
    keeps = [masks.count(x.shape[1], n / 10, "prune_floor") for n in tenths]
    bound = (6 / (x.shape[1] + UNITS)) ** 0.5
    weight = (
        torch.rand(UNITS, x.shape[1], generator=torch.Generator().manual_seed(0)).sub(0.5).mul(2 * bound).to(DEVICE)
    )

    def make():
        found = likelihood.moments(x)
        kept = dpp.sample(likelihood.Edges(found, weight, BETA), keeps, seeds).flatten(0, 1)
        for part in kept:
            reweight.refit(weight[None], part[None], found)
        return len(kept)

    spent, sets = timed(make)
    told("dpp", f"reweighted sets of edges, keep {keeps}", sets * UNITS, UNITS * SEEDS * BUDGETS, 90, spent)


def epoch(share):
    images = len(some(range(IMAGES), share))
    about = f"{PASSES} epochs of a run of ResNet20 on {IMAGES:,} images, by one of {images:,}"
    report, ratios = Report("whole_tables.epoch", about), []
    report.add("allowed", [60.0])
    for runs in some(STACKS, max(share, 0.5)):
        for kind in ("bfloat16", "float32"):
            ways = {"": one_epoch(runs, images, kind)}
            ways |= {" of two": at_once(runs, images, kind) / 2} if DEVICE == "cuda" else {}
            for way, spent in ways.items():
                one_run = spent / runs * PASSES * IMAGES / images
                ratios.append(report.add(f"stack of {runs}{way}, {kind}", [one_run], "allowed"))
    report.close(max(ratios), 3)


def one_epoch(runs, images, kind):
    """Return the seconds of the second epoch of a stack."""
    seeds = list(range(int(runs)))
    trainer = workloads.cifar_trainer("resnet20", seeds, int(images), augment=True, bf16=kind == "bfloat16")
    trainer.fit(1)
    return seconds(trainer.fit, 1)


def at_once(runs, images, kind):
    """Return the seconds of the second epoch of the slower of two processes that begin together."""
    command = [sys.executable, __file__, "one_epoch", str(runs), str(images), kind]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    return max(float(process.communicate()[0]) for process in both)


def descent(share):
    train, test = workloads.mnist_whole()
    count = len(some(range(len(train[1])), share))
    sets = tuple(part[:count] for part in train), tuple(part[:1] for part in test)
    states = mnist_epoch.our_stacks(workloads.kinds(DESCENTS), sets)
    mnist_epoch.our_attempt(states, sets)
    spent = [seconds(mnist_epoch.our_attempt, states, sets) for _ in range(5)]
    report = Report("whole_tables.descent", f"{DESCENTS} descents, {count:,} of {len(train[1]):,} images")
    report.add("an attempt of all", spent, flops=DESCENTS * mnist_epoch.operations(count))
    for level, attempts in ATTEMPTS.items():
        times = [one * attempts * len(train[1]) / count / 60 for one in spent]
        report.add(f"to {level}, {attempts:,} attempts of all images", times, unit="min")
    report.close(100 * report.rows[0]["share_of_ceiling"], 0, " % of the float32 ceiling")


TABLES = dict(zip(PIECES, (grid, all_masks, edge_sets, epoch, descent), strict=True))


def main(given):
    parser = argparse.ArgumentParser()
    parser.add_argument("pieces", nargs="*")
    parser.add_argument("--share", type=float, default=1.0 if DEVICE == "cuda" and not STAND_IN else 0.01)
    asked = parser.parse_args(given)
    if not set(asked.pieces) <= set(PIECES) or not 0 < asked.share <= 1:
        parser.error(f"pieces are {asked.pieces}, share {asked.share}; allowed are {PIECES} and 0 < share <= 1")
    for piece in asked.pieces or PIECES:
        TABLES[piece](asked.share)


if __name__ == "__main__":
    if sys.argv[1:2] == ["one_epoch"]:
        print(one_epoch(*sys.argv[2:]))
    else:
        main(sys.argv[1:])
