"""The EWN study's claim as figures: what is left after pruning, level of log-loss by level, type beside type."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.ticker import FixedLocator, NullLocator

from lib.figures import drawing, evidence, tables

SHARES = (0.5, 0.8, 0.9, 0.95)  # of the hidden units, pruned
KINDS = ("no-WN", "EWN", "SWN")
PAIRS = [("EWN", "no-WN"), ("EWN", "SWN")]


def depth(pruned, facts, shares=SHARES):
    """Return a figure: test error against the level, one column a share of units, and paired differences below.

    pruned, facts: tidy tables of our runs and of the study with the columns type, seed, level, sparsity and accuracy in
    percent, of one criterion; facts may be empty.
    """
    figure, rows = plt.subplots(2, len(shares), figsize=(drawing.WIDE, 3.6), sharex=True, sharey="row", squeeze=False)
    gains = tables.paired(pruned, PAIRS, ["level", "sparsity"], "accuracy")
    for share, top, bottom in zip(shares, *rows, strict=True):
        _errors(top, pruned[np.isclose(pruned["sparsity"], share)], facts[np.isclose(facts["sparsity"], share)])
        top.set(title=f"{share:.0%} of the units pruned", yscale="log")
        top.yaxis.set_major_locator(FixedLocator([1, 2, 5, 10, 20, 50]))
        top.yaxis.set_major_formatter("{x:g}")
        top.yaxis.set_minor_locator(NullLocator())
        _gains(bottom, gains[np.isclose(gains["sparsity"], share)])
        bottom.set_xlabel("−log-loss")
    rows[0, 0].set_ylabel("test error (%)")
    rows[1, 0].set_ylabel("ahead by (points)")
    shown = [axes.get_legend_handles_labels() for axes in rows[:, 0]]
    figure.legend(*(sum(parts, []) for parts in zip(*shown, strict=True)), loc="outside upper center", ncols=4)
    return figure


def _errors(axes, ours, told):
    for kind in KINDS:
        _, colour, marker, _ = drawing.look(kind)
        own = ours[ours["type"] == kind].assign(depth=lambda t: -t["level"], error=lambda t: 100 - t["accuracy"])
        if len(own):
            drawing.spread(axes, own, "depth", "error", kind, marker=marker)
        published = told[told["type"] == kind].groupby("level")["accuracy"].mean()
        axes.plot(-published.index, 100 - published, marker, color=colour, markersize=5, markerfacecolor="white",
                  markeredgewidth=1.2, zorder=3, label=f"{kind}, published" if len(published) else None)  # fmt: skip


def _gains(axes, gains):
    axes.axhline(0, color="black", linewidth=0.6)
    for first, second in PAIRS:
        _, colour, _, dashes = drawing.look(second)
        rows = gains[(gains["first"] == first) & (gains["second"] == second)].sort_values("level", ascending=False)
        spread = (rows["mean"] - rows["low"], rows["high"] - rows["mean"])
        axes.errorbar(-rows["level"], rows["mean"], spread, color=colour, fmt=f"o{dashes}", elinewidth=0.8, capsize=2,
                      label=f"EWN ahead of {second}")  # fmt: skip


def verdicts(pruned, shares=SHARES):
    """Return one row for every share and pair: whether EWN is ahead at the level `deepest`, and since which level.

    Points of accuracy, paired by seed, as `evidence.judged` has them. since: the first level from which on, down to
    there, the interval lies above zero at every level; missing if there is none.
    """
    pruned = pruned[np.isclose(pruned["sparsity"].to_numpy()[:, None], shares).any(1)]
    gains = tables.paired(pruned, PAIRS, ["level", "sparsity"], "accuracy")
    rows = []
    for (second, share), own in gains.groupby(["second", "sparsity"]):
        level = deepest(pruned, second)
        own = own[own["level"] >= level].sort_values("level")
        above = (own["low"] > 0).cummin()
        found = evidence.judged(ahead(pruned, second, level, share))
        since = own["level"][above].max() if above.any() else np.nan
        rows.append({"than": second, "sparsity": share, "level": level, **found, "since": since})
    return pd.DataFrame(rows)


def deepest(pruned, second="no-WN"):
    """Return the deepest level with enough seeds to decide between EWN and `second`; if none has, the deepest of all.

    A level that one of the two never reached is none of theirs; the types are compared where there are both.
    """
    seeds = pruned[pruned["type"].isin(["EWN", second])].groupby(["level", "type"])["seed"].nunique().unstack()
    pairs = seeds.dropna().min(axis=1)
    return (pairs[pairs >= evidence.NEEDED] if (pairs >= evidence.NEEDED).any() else pairs).index.min()


def ahead(pruned, second, level, share):
    """Return how much more accuracy EWN has than the type `second` at one level and share, paired by seed, `(n,)`."""
    here = pruned[(pruned["level"] == level) & np.isclose(pruned["sparsity"], share)]
    return evidence.apart(here, "EWN", second, "accuracy")
