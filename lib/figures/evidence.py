"""What a claim stands on: differences paired by seed, their interval, a sign-flip test, and a verdict."""

import itertools

import numpy as np
import scipy  # which imports its statistics when they are needed: every notebook draws, few judge

from lib.errors import ParameterError, listed

NEEDED = 6  # paired seeds; below that the smallest p of a two-sided sign-flip test, 2 / 2^n, is above 0.05
MOST = 1000  # seeds, of those that would decide a claim
BOOTSTRAP_FROM, RESAMPLES = 30, 2000
EXACT_TO, FLIPS = 30, 10_000  # differences of which all flips of signs are counted; of more, as many are drawn


def interval(values):
    """Return (low, high) of the 95 % interval of the mean over axis 0 of `values (n, ...)`, n >= 2.

    Student's t below 30 values, where a bootstrap is too narrow; from there on the bootstrap, bias-corrected and
    accelerated (Efron 1987), but for values that are all alike, which are their own interval.
    """
    values = np.asarray(values, float)
    n, mean, spread = len(values), values.mean(axis=0), values.std(axis=0, ddof=1)
    if n < BOOTSTRAP_FROM:
        half = scipy.stats.t.ppf(0.975, n - 1) * spread / np.sqrt(n)
        return mean - half, mean + half
    low, high = np.array(mean), np.array(mean)
    if (vary := np.asarray(spread > 0)).any():
        drawn = scipy.stats.bootstrap((values[:, vary],), np.mean, n_resamples=RESAMPLES, random_state=0)
        low[vary], high[vary] = drawn.confidence_interval
    return low, high


def sign_flip(apart):
    """Return the two-sided p of paired differences `(n,)` under flips of their signs, exact up to `EXACT_TO` of them.

    The 2^n sums of all flips are those of one half of the differences plus those of the other, which is sorted.
    """
    apart = np.asarray(apart, float)
    n, least = len(apart), abs(apart.sum()) - 1e-5 * np.abs(apart).sum()  # float32 records part equal sums
    if n > EXACT_TO:
        options = {"permutation_type": "samples", "n_resamples": FLIPS, "random_state": 0}
        return float(scipy.stats.permutation_test((apart,), np.mean, **options).pvalue)
    one, other = _sums(apart[: n // 2]), np.sort(_sums(apart[n // 2 :]))
    below = np.searchsorted(other, -least - one, side="right")
    above = len(other) - np.searchsorted(other, least - one)
    return float(min(1.0, (below + above).sum() / 2**n))


def _sums(apart):
    """Return the sums `(2^n,)` of all flips of the signs of `apart (n,)`."""
    return np.ravel(sum(np.meshgrid(*[[-one, one] for one in apart])))


def apart(frame, first, second, value):
    """Return how much more `value` the first type has than the second, paired by seed, `(n,)`; empty without pairs.

    frame: a tidy table with one row per type and seed; ParameterError where a seed has several.
    """
    return differences(frame, ["seed"], (first, second), value).to_numpy(float)


def differences(frame, by, pair, value):
    """Return how much more `value` the first type of a pair has, by seed and what else is in `by`, as a Series."""
    rows = [frame[frame["type"] == kind].set_index(by)[value] for kind in pair]
    for kind, own in zip(pair, rows, strict=True):
        if own.index.has_duplicates:
            told = f"{kind} has several rows of {listed(by)} = {own.index[own.index.duplicated()].tolist()[0]}"
            raise ParameterError(f"{told}; needed is one: narrow the table first")
    return (rows[0] - rows[1]).dropna()


def judged(gains, than=0.0):
    """Return mean, low, high, n, p and verdict of the claim that the mean of `gains (n,)` is above `than`.

    "confirmed" and "refuted" need an interval that leaves out `than`, p of at most 0.05 and `NEEDED` seeds. enough: of
    the undecided, how many seeds would decide if mean and spread stayed as they are, infinite above `MOST`.
    """
    if np.ndim(gains) != 1 or not np.isfinite(np.asarray(gains, float)).all():
        raise ParameterError(f"gains are {gains}; needed are finite numbers (n,), of each seed one")
    n, mean = len(gains), float(np.mean(gains)) if len(gains) else np.nan
    low, high = map(float, interval(gains)) if n > 1 else (np.nan, np.nan)
    p = sign_flip(np.asarray(gains) - than) if n > 1 else np.nan
    decided = n >= NEEDED and p <= 0.05
    verdict = "confirmed" if decided and low > than else "refuted" if decided and high < than else "undecided"
    more = np.arange(max(NEEDED, n + 1), MOST + 1)
    clear = more > 0
    if n > 1 and verdict == "undecided":
        clear = scipy.stats.t.ppf(0.975, more - 1) * np.std(gains, ddof=1) / np.sqrt(more) < abs(mean - than)
    found = {"mean": mean, "low": low, "high": high, "n": n, "p": p, "verdict": verdict}
    return found | {"enough": _first(more, clear) if verdict == "undecided" else n}


def _first(numbers, clear):
    """Return the first of `numbers` that is `clear`, infinity if none is."""
    return float(numbers[clear][0]) if clear.any() else np.inf


def counted(hits):
    """Return what `judged` does of the claim that more than half of all seeds are as `hits (n,)`, each true or false.

    mean, low and high are shares, the interval the exact one of a binomial share, p that of a fair coin.
    """
    hits = np.asarray(hits)
    if hits.ndim != 1 or not np.isin(hits, (False, True)).all():
        raise ParameterError(f"hits are {hits}; needed are True and False (n,), of each seed one")
    if not len(hits):
        return judged(hits)
    found = scipy.stats.binomtest(int(hits.sum()), len(hits))
    low, high = found.proportion_ci()
    verdict = "confirmed" if low > 0.5 else "refuted" if high < 0.5 else "undecided"
    more = np.arange(len(hits) + 1, MOST + 1)
    right = np.round(more * max(hits.mean(), 1 - hits.mean()))
    enough = _first(more, scipy.stats.beta.ppf(0.025, right, more - right + 1) > 0.5)
    row = {"mean": hits.mean(), "low": low, "high": high, "n": len(hits), "p": found.pvalue, "verdict": verdict}
    return row | {"enough": enough if verdict == "undecided" else len(hits)}


def ranks(values):
    """Return (rank, low, high), each `(K,)`, of K columns by their `means`: 1 is the largest, equal ones share theirs.

    values: `(n, K)`, each row of one seed, nan where a column lacks it. The interval holds 95 % of the ranks when
    seeds are drawn with replacement, the same for all columns, each in place of one that the same columns have.
    """
    values = np.asarray(values, float)
    rng, (_, pattern) = np.random.default_rng(0), np.unique(np.isnan(values), axis=0, return_inverse=True)
    alike = [np.flatnonzero(pattern.ravel() == k) for k in range(pattern.max() + 1)]
    drawn = [rows[rng.integers(len(rows), size=(RESAMPLES, len(rows)))] for rows in alike]
    found = scipy.stats.rankdata(-means(values[np.concatenate(drawn, axis=1)]), axis=1)
    low, high = np.quantile(found, (0.025, 0.975), axis=0, method="nearest")
    return scipy.stats.rankdata(-means(values)), low, high


def means(values):
    """Return the means `(..., K)` of the columns of `values (..., n, K)`, each row of one seed.

    A column that lacks seeds, nan, is as far from the mean of those that lack none as on the seeds that it has.
    """
    lacks = np.isnan(values)
    level = values[..., ~lacks.any(axis=tuple(range(values.ndim - 1)))].mean(axis=-1, keepdims=True)
    return np.where(lacks, level + np.nanmean(values - level, axis=-2, keepdims=True), values).mean(axis=-2)


def duels(values):
    """Return who wins, `(K, K)`: 1 where it is confirmed that column i is above column j, -1 where it is refuted.

    Else 0, a tie; see `judged`. values: `(n, K)`, each row of one seed, nan where a column lacks it.
    """
    values = np.asarray(values, float)
    outcome = np.zeros((values.shape[1],) * 2, int)
    for i, j in itertools.combinations(range(values.shape[1]), 2):
        apart = values[:, i] - values[:, j]
        verdict = judged(apart[~np.isnan(apart)])["verdict"]
        outcome[i, j] = int(verdict == "confirmed") - int(verdict == "refuted")
    return outcome - outcome.T
