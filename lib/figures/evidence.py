"""What a claim stands on: differences paired by seed, their interval, a sign-flip test, and a verdict."""

import numpy as np
from scipy import stats

NEEDED = 6  # paired seeds; below that the smallest p of a two-sided sign-flip test, 2 / 2^n, is above 0.05
BOOTSTRAP_FROM, RESAMPLES = 30, 2000


def interval(values, seed=0):
    """Return (low, high) of the 95 % interval of the mean over axis 0 of `values (n, ...)`, n >= 2.

    Student's t below 30 values, where a bootstrap is too narrow; from there on its percentiles.
    """
    n, mean = len(values), np.mean(values, axis=0)
    if n < BOOTSTRAP_FROM:
        half = stats.t.ppf(0.975, n - 1) * np.std(values, axis=0, ddof=1) / np.sqrt(n)
        return mean - half, mean + half
    draws = np.random.default_rng(seed).integers(n, size=(RESAMPLES, n))
    return tuple(np.quantile(np.asarray(values)[draws].mean(axis=1), (0.025, 0.975), axis=0))


def sign_flip(apart):
    """Return the two-sided p of paired differences `(n,)` under flips of their signs, exact for few of them."""
    found = stats.permutation_test((apart,), np.mean, permutation_type="samples", n_resamples=10_000, random_state=0)
    return float(found.pvalue)


def apart(frame, first, second, value):
    """Return how much more `value` the first type has than the second, paired by seed, `(n,)`; empty without pairs.

    frame: a tidy table with one row per type and seed.
    """
    one, other = (frame[frame["type"] == kind].set_index("seed")[value] for kind in (first, second))
    return (one - other).dropna().to_numpy(float)


def judged(gains, than=0.0):
    """Return mean, low, high, n, p and verdict of the claim that the mean of `gains (n,)` is above `than`.

    "confirmed" and "refuted" need an interval that leaves out `than`, p of at most 0.05 and `NEEDED` seeds.
    """
    n, mean = len(gains), float(np.mean(gains)) if len(gains) else np.nan
    low, high = map(float, interval(gains)) if n > 1 else (np.nan, np.nan)
    p = sign_flip(np.asarray(gains) - than) if n > 1 else np.nan
    decided = n >= NEEDED and p <= 0.05
    verdict = "confirmed" if decided and low > than else "refuted" if decided and high < than else "undecided"
    return {"mean": mean, "low": low, "high": high, "n": n, "p": p, "verdict": verdict}


def counted(hits):
    """Return what `judged` does of the claim that more than half of all seeds are as `hits (n,)`, each true or false.

    mean, low and high are shares, the interval the exact one of a binomial share, p that of a fair coin.
    """
    hits = np.asarray(hits, bool)
    found = stats.binomtest(int(hits.sum()), len(hits))
    low, high = found.proportion_ci()
    verdict = "confirmed" if low > 0.5 else "refuted" if high < 0.5 else "undecided"
    return {"mean": hits.mean(), "low": low, "high": high, "n": len(hits), "p": found.pvalue, "verdict": verdict}
