"""The 500 DPP edge masks of a 784-500 layer beside DPPy, and reweighting beside one least squares per unit.

Two baselines, timed on a few units: (a) as published, every unit's distances from all 60,000 rows in float32
(torch.cdist, the faster of the usual ways), then DPPy; (b) our likelihood matrices handed to DPPy. Ours does all 500
units, of which a 500th is told: cold is the Gram matrix, 500 matrices, their eigenpairs and one draw of each; further
keeps and seeds reuse the eigenpairs. Weights are Xavier-uniform. Also shown: where DPPy's arithmetic fails.
Real MNIST is needed. Run: python benchmarks/dpp.py [half of the units timed]
"""

import sys
import warnings
from pathlib import Path

import numpy as np
import torch
from dppy.finite_dpps import FiniteDPP

sys.path[:0] = [str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parents[1])]
from measure import Report, timed  # noqa: E402

from lib import dpp, likelihood, reweight, sets  # noqa: E402

INPUTS, UNITS, KEEP, BETA = 784, 500, 387, 0.3


def published_matrix(x, w):
    """Return one unit's likelihood matrix in float32, from distances between columns of 60,000 rows."""
    columns = (x * w).t().contiguous()
    matrix = torch.exp(-BETA * torch.cdist(columns, columns).square())
    return (matrix + likelihood.RIDGE * torch.eye(INPUTS)).numpy()


def by_dppy(matrix, keep=KEEP, seed=0):
    """Return (process, why it failed or "") of one draw; a failed draw is not repeated, so it costs no more."""
    process = FiniteDPP("likelihood", L=matrix)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of divisions by zero, before it says that probabilities are NaN
            chosen = process.sample_exact_k_dpp(keep, random_state=np.random.RandomState(seed))
        distinct = len(set(chosen))
        return process, "" if distinct == keep else f"{distinct} distinct items instead of {keep}"
    except (ValueError, IndexError) as error:
        return process, str(error)


def baselines(x, edges, units):
    """Return for every unit the times of (a), of (b) and of DPPy's further draw, and how many draws of (a) failed."""
    times, failed = [], 0
    for unit in units:
        distances, single = timed(published_matrix, x, edges.weight[unit])
        rest, (_, why) = timed(by_dppy, single)
        failed += bool(why)
        b, (process, _) = timed(lambda unit=unit: by_dppy(edges[unit : unit + 1][0].numpy()))
        further, _ = timed(lambda process=process: process.sample_exact_k_dpp(KEEP, random_state=1))
        times.append([distances + rest, b, further])
    return times, failed


def cold(x, weight, keeps, seeds):
    """Return sets of all units, from the inputs alone."""
    return dpp.sample(likelihood.Edges(likelihood.moments(x), weight, BETA), keeps, seeds)


def ours(x, weight):
    """Return the times of all units: cold, and by how much a further seed and a further keep lengthen it; masks."""
    first, kept = timed(cold, x, weight, [KEEP], [0])
    seed, both = timed(cold, x, weight, [KEEP], [0, 1])
    keep, _ = timed(cold, x, weight, [KEEP, 228], [0])
    assert (both.sum(-1) == KEEP).all() and torch.equal(kept[0, 0], both[0, 0])
    return [first, seed - first, keep - first], kept[0, 0]


def least_squares(x, w, kept):
    """Return the change of one unit's kept weights by least squares on all rows, as published."""
    rows = x.numpy().astype(np.float64)
    return np.linalg.lstsq(rows[:, kept], rows[:, ~kept] @ w.numpy()[~kept].astype(np.float64), rcond=None)[0]


def refitting(report, x, found, weight, kept, units):
    """Report the times of reweighting, and print the largest difference."""
    whole, (new, _) = timed(reweight.refit, weight[None], kept[None], found, False)
    theirs = [timed(least_squares, x, weight[u], kept[u].numpy()) for u in units]
    off = max(
        np.abs(change - (new[0] - weight)[u, kept[u]].numpy()).max()
        for u, (_, change) in zip(units, theirs, strict=True)
    )
    report.add("least squares on 60,000 rows", [one for one, _ in theirs])
    report.add("our reweighting", [whole / UNITS], "least squares on 60,000 rows")
    print(f"largest difference of a weight between the two: {off:.0e}")


def failures(x, edges):
    """Print what DPPy says where its arithmetic ends, and that ours goes on."""
    flat = likelihood.Edges(edges.moments, edges.weight[:1], 10 / 60_000)
    cases = [("float32, keep 706", published_matrix(x, edges.weight[0]), 706, edges)]
    cases.append(("float64, beta 10/60000, keep 387", flat[:][0].numpy(), KEEP, flat))
    for name, matrix, keep, same in cases:
        _, why = by_dppy(matrix, keep)
        values = dpp._eigen(same[:1], slice(0, 1)).values
        kept, size = dpp.sample(same[:1], keep, [0])[0, 0], dpp.log_polynomials(values, keep)[0, -1] / np.log(10)
        said = why.strip().splitlines()[0] if why else "no failure"
        print(f"DPPy, {name}: {said} (e_{keep} is 10^{size:.0f}); ours keeps {int(kept.sum())}")


def main(units):
    x, _ = sets.load("mnist").split("train")
    bound = (6 / (INPUTS + UNITS)) ** 0.5
    weight = (2 * torch.rand(UNITS, INPUTS, generator=torch.Generator().manual_seed(0)) - 1) * bound
    found = likelihood.moments(x)
    edges = likelihood.Edges(found, weight, BETA)
    report = Report("dpp", f"MNIST, 784-{UNITS}, keep {KEEP}, beta {BETA}: one unit, ours as a share of all {UNITS}")
    before, failed = baselines(x, edges, range(units))
    (first, seed, keep), kept = ours(x, weight)
    after, failed_too = baselines(x, edges, range(units, 2 * units))  # half before ours and half after
    a, b, more = (list(column) for column in zip(*before, *after, strict=True))
    names = "(a) 60,000-row distances, DPPy", "(b) our matrices, DPPy", "DPPy, a further draw"
    report.add(names[0], a)
    report.add(names[1], b, names[0])
    report.add(names[2], more, names[0])
    print(f"{failed + failed_too} of {2 * units} draws of (a) failed")
    ratio = report.add("ours, cold", [first / UNITS], names[0])
    report.add("ours, cold, beside (b)", [first / UNITS], names[1])
    for other in (names[0], names[2]):
        report.add("ours, a further seed", [seed / UNITS], other)
    report.add("ours, a further keep, 228", [keep / UNITS], names[0])
    refitting(report, x, found, weight, kept, range(units))
    failures(x, edges)
    report.close(ratio, 0)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 2)
