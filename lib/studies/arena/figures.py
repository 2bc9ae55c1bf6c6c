"""The panels of the arena's summary, and how its types look."""

import numpy as np
from matplotlib.colors import ListedColormap
from matplotlib.ticker import MaxNLocator

from lib.figures import drawing, evidence
from lib.studies.arena.standings import FREE

FAMILIES = {  # what a type prunes, and when: (in words, colour, marker)
    "units": ("units, after training", drawing.RED, "s"),
    "after": ("weights, after training", drawing.BLUE, "o"),
    "early": ("weights, before or during training", drawing.GREEN, "^"),
    "control": ("controls", drawing.BLACK, "D"),
}
ENDS = {"_units": " units", "_init": " at start", "_gradual": " gradually"}  # of types, and what they say


def look(kind):
    """Return (label, colour, marker, dashes) of a type: those of its method, and what its end says."""
    for end, said in ENDS.items():
        if kind.endswith(end):
            label, colour, marker, dashes = drawing.look(kind.removesuffix(end))
            return label + said, colour, "*" if end == "_gradual" else marker, dashes
    return drawing.look(kind)


def label(kind):
    """Return what a type is called."""
    return look(kind)[0]


def ranking(axes, table):
    """Draw the rank of every type, the best on top, with its interval, its error beside it, hollow its shuffle's."""
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    for family, (said, colour, marker) in FAMILIES.items():
        if (own := table[table["family"] == family]).empty:
            continue
        at = [list(table.index).index(kind) for kind in own.index]
        bars = own["rank"] - own["low"], own["high"] - own["rank"]
        axes.errorbar(own["rank"], at, xerr=bars, fmt=marker, color=colour, markersize=3.5, linewidth=1.2, label=said)
        hollow = {"markerfacecolor": "white", "markeredgewidth": 0.7, "zorder": 1}
        axes.plot(own["ghost"], at, marker, color=colour, **hollow, label="shuffled" if family == "after" else None)
    for k, (kind, error) in enumerate(table["error"].items()):
        axes.text(len(table) + 1, k, f"{error:.2f}", va="center", ha="left", fontsize=5.5)
        axes.axhspan(k - 0.5, k + 0.5, color=drawing.GREY, alpha=0.25 * (kind in FREE), linewidth=0, zorder=0)
    axes.set_yticks(range(len(table)), map(label, table.index))
    axes.set(ylim=(len(table) - 0.4, -0.6), xlim=(0.3, len(table) + 0.7))


def errors(axes, frame, family):
    """Draw the error of a family's types against the share of weights that stay, both logarithmic, beside the controls.

    Lines are means over seeds with their 95 % bands, hollow markers are of shuffled masks.
    """
    for kind in drawing.ordered(frame[(frame["family"] == family) | frame["type"].isin(["none", "small"])]["type"]):
        mine = frame[frame["type"] == kind].assign(kept=lambda mine: (1 - mine["sparsity"]).round(6))
        name, colour, marker, dashes = look(kind)
        means = mine.groupby("kept")[["error", "shuffled"]].mean()
        if mine["seed"].nunique() > 1:
            band = evidence.interval(mine.pivot(index="seed", columns="kept", values="error"))
            axes.fill_between(means.index, *band, color=colour, alpha=0.15, linewidth=0)
        style = {"color": colour, "marker": marker, "linestyle": dashes, "linewidth": 1}
        axes.plot(means.index, means["error"], **style, label=name)
        axes.plot(means.index, 100 - means["shuffled"], **style | {"linestyle": "", "markerfacecolor": "white"})
    drawing.log_ticks(axes)
    drawing.share_ticks(axes)


def matrix(axes, frame, table):
    """Draw who is ahead of whom at one sparsity, types in the order of `ladder`; return how many pairs are decided."""
    _, outcome = evidence.duels(frame.pivot(index="seed", columns="type", values="tuned")[list(table.index)])
    colours = ListedColormap([drawing.RED, "white", drawing.BLUE])
    axes.imshow(outcome, cmap=colours, vmin=-1, vmax=1, aspect="auto", interpolation="nearest")
    axes.set_xticks(range(len(table)), map(label, table.index), rotation=90)
    axes.set_yticks(range(len(table)), map(label, table.index))
    axes.set_xticks(np.arange(0.5, len(table)), minor=True)
    axes.set_yticks(np.arange(0.5, len(table)), minor=True)
    axes.grid(which="minor", color=drawing.GREY, linewidth=0.3)
    axes.tick_params(which="both", length=0)
    return int(np.triu(outcome != 0).sum())


def front(axes, found, x):
    """Draw errors against a cost, the column `x`, and a line through the rows that nothing is cheaper and better than.

    Return these rows, the cheapest first; none where no cost is known, which the panel says.
    """
    found = found.dropna(subset=[x])
    if found.empty:
        axes.text(0.5, 0.5, "not measured", ha="center", transform=axes.transAxes)
        axes.set(xticks=[], yticks=[])
        return found
    for family, (said, colour, marker) in FAMILIES.items():
        if len(own := found[found["family"] == family]):
            axes.plot(own[x], own["error"], marker, color=colour, alpha=0.6, markeredgewidth=0, label=said)
    best = found.sort_values([x, "error"])
    best = best[best["error"] < best["error"].cummin().shift(fill_value=np.inf)]
    axes.plot(best[x], best["error"], color="black", linewidth=0.6, drawstyle="steps-post", zorder=0)
    for axis in ("x", "y"):
        drawing.log_ticks(axes, axis)
    return best
