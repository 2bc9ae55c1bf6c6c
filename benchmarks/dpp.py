"""The 500 DPP edge masks of a 784-500 layer beside DPPy, and reweighting beside one least squares per unit.

Two baselines, each timed on a few units and multiplied up to 500: (a) as published, every unit's distances from all
60,000 rows in float32 (torch.cdist, the faster of the usual ways), then DPPy; (b) our likelihood matrices handed to
DPPy. Ours does all 500 units: cold is the Gram matrix, 500 matrices, their eigenpairs and one draw of each; further
keeps and seeds reuse the eigenpairs. Weights are Xavier-uniform. Also shown: where DPPy's arithmetic fails.
Real MNIST is needed. Run: python benchmarks/dpp.py [half of the units timed]
"""

import platform
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import torch
from dppy.finite_dpps import FiniteDPP

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from lib import data, dpp, likelihood, reweight  # noqa: E402

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


def clocked(function, *arguments):
    """Return (seconds on the wall, seconds of all threads) and the result."""
    wall, cpu = time.perf_counter(), time.process_time()
    result = function(*arguments)
    return np.array([time.perf_counter() - wall, time.process_time() - cpu]), result


def shown(pair):
    return f"{pair[0]:7.2f} s ({pair[1]:7.2f})"


def baselines(x, edges, units):
    """Return for every unit the times of (a), of (b) and of DPPy's further draw, and how many draws of (a) failed."""
    times, failed = [], 0
    for unit in units:
        distances, single = clocked(published_matrix, x, edges.weight[unit])
        rest, (_, why) = clocked(by_dppy, single)
        failed += bool(why)
        b, (process, _) = clocked(lambda unit=unit: by_dppy(edges[unit : unit + 1][0].numpy()))
        further, _ = clocked(lambda process=process: process.sample_exact_k_dpp(KEEP, random_state=1))
        times.append([distances + rest, b, further])
    return times, failed


def cold(x, weight):
    """Return the eigenpairs of all units, and one set of each, from the inputs alone."""
    edges = likelihood.Edges(likelihood.moments(x), weight, BETA)
    found = dpp.eigen(edges)
    return found, dpp.sample(found, KEEP, [0])[0]


def ours(x, weight):
    """Return the times of all units: cold, a further seed, a further keep; and the masks of the first."""
    first, (found, kept) = clocked(cold, x, weight)
    seed, other = clocked(dpp.sample, found, KEEP, [1])
    keep, _ = clocked(dpp.sample, found, 228, [0])
    assert (kept.sum(1) == KEEP).all() and (other.sum(-1) == KEEP).all()
    return [first, seed, keep], kept


def least_squares(x, w, kept):
    """Return the change of one unit's kept weights by least squares on all rows, as published."""
    rows = x.numpy().astype(np.float64)
    return np.linalg.lstsq(rows[:, kept], rows[:, ~kept] @ w.numpy()[~kept].astype(np.float64), rcond=None)[0]


def refitting(x, found, weight, kept, units):
    """Print the times of reweighting and the largest difference."""
    seconds, (new, _) = clocked(reweight.refit, weight[None], kept[None], found, False)
    theirs = [clocked(least_squares, x, weight[u], kept[u].numpy()) for u in units]
    off = max(
        np.abs(change - (new[0] - weight)[u, kept[u]].numpy()).max()
        for u, (_, change) in zip(units, theirs, strict=True)
    )
    one = np.median([t for t, _ in theirs], axis=0)
    print(f"least squares on 60,000 rows, a unit {shown(one)}")
    print(f"ours, 500 units                      {shown(seconds)}   {ratio(UNITS * one, seconds)}")
    print(f"largest difference of a weight between the two: {off:.0e}")


def ratio(theirs, ours):
    return f"{theirs[0] / ours[0]:.0f}x ({theirs[1] / ours[1]:.0f}x)"


def failures(x, edges):
    """Print what DPPy says where its arithmetic ends, and that ours goes on."""
    flat = likelihood.Edges(edges.found, edges.weight[:1], 10 / 60_000)
    cases = [("float32, keep 706", published_matrix(x, edges.weight[0]), 706, edges)]
    cases.append(("float64, beta 10/60000, keep 387", flat[:][0].numpy(), KEEP, flat))
    for name, matrix, keep, same in cases:
        _, why = by_dppy(matrix, keep)
        found = dpp.eigen(same[:1])
        kept, size = dpp.sample(found, keep, [0])[0, 0], dpp.log_polynomials(found.values, keep)[0, -1] / np.log(10)
        said = why.strip().splitlines()[0] if why else "no failure"
        print(f"DPPy, {name}: {said} (e_{keep} is 10^{size:.0f}); ours keeps {int(kept.sum())}")


def main(units):
    x, _ = data.load("mnist").split("train")
    bound = (6 / (INPUTS + UNITS)) ** 0.5
    weight = (2 * torch.rand(UNITS, INPUTS, generator=torch.Generator().manual_seed(0)) - 1) * bound
    found = likelihood.moments(x)
    edges = likelihood.Edges(found, weight, BETA)
    print(f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    print(f"MNIST, 784-{UNITS}, keep {KEEP}, beta {BETA}; time on the wall (CPU time of all threads)")
    before, failed = baselines(x, edges, range(units))
    (first, seed, keep), kept = ours(x, weight)
    after, failed_too = baselines(x, edges, range(units, 2 * units))
    a, b, more = np.median(np.array(before + after), axis=0)
    print(f"median of {2 * units} units, half of them timed before ours and half after, and its ratio to 500 of ours")
    print(f"(a) 60,000-row distances, DPPy       {shown(a)}   {failed + failed_too} of {2 * units} draws failed")
    print(f"    range on the wall                {min(t[0][0] for t in before + after):.2f} to", end=" ")
    print(f"{max(t[0][0] for t in before + after):.2f} s")
    print(f"(b) our matrices, DPPy               {shown(b)}")
    print(f"    DPPy, a further draw             {shown(more)}")
    print(f"ours, 500 units, cold                {shown(first)}   {ratio(UNITS * b, first)} of (b)")
    print(f"    a further seed                   {shown(seed)}   {ratio(UNITS * a, seed)} of (a),", end=" ")
    print(f"{ratio(UNITS * more, seed)} of DPPy's")
    print(f"    a further keep, 228              {shown(keep)}   {ratio(UNITS * a, keep)} of (a)")
    refitting(x, found, weight, kept, range(units))
    failures(x, edges)
    print(f"cold against (a) in CPU time: {UNITS * a[1] / first[1]:.1f}x; on the wall:")
    print(f"dpp: {UNITS * a[0] / first[0]:.0f}x")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 2)
