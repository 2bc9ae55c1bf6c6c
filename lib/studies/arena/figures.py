"""The panels of the arena's summary, and how its types look."""

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.colors import ListedColormap
from matplotlib.ticker import MaxNLocator

from lib.figures import drawing, evidence
from lib.studies.arena.standings import FREE

FAMILIES = {  # what a type prunes, and when: (in words, colour, marker)
    "units": ("units, after training", drawing.RED, "s"),
    "after": ("weights, after training", drawing.BLUE, "o"),
    "during": ("weights, during training", drawing.YELLOW, "v"),
    "before": ("weights, before training", drawing.GREEN, "^"),
    "control": ("controls", drawing.BLACK, "D"),
}
PANELS = {  # of `errors`: what is said, and the families in it
    "units, after training": ["units"], "weights, after training": ["after"],
    "weights, before or during training": ["before", "during"],
}  # fmt: skip
ENDS = {"_units": " units", "_init": " at start", "_gradual": " gradually"}  # of types, and what they say


def panels(heights, columns):
    """Return (figure, panels), `columns` side by side, of so many inches each; a row is as tall as its tallest."""
    columns = min(columns, len(heights))
    rows = [max(heights[k : k + columns]) for k in range(0, len(heights), columns)]
    size = {"figsize": (drawing.WIDE, sum(rows)), "height_ratios": rows, "squeeze": False}
    figure, found = plt.subplots(len(rows), columns, **size)
    for spare in found.flat[len(heights) :]:
        spare.axis("off")
    return figure, found.flat[: len(heights)]


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
    """Draw the rank of every type, by what goes and when, with its interval, its error beside it, hollow its shuffle's.

    Of a type that lacks seeds their number stands behind its name.
    """
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    at, ticks, names = 0, [], []
    for family, (said, colour, marker) in FAMILIES.items():
        if (own := table[table["family"] == family]).empty:
            continue
        axes.text(0.02, at, said, color=colour, weight="bold", va="center", transform=axes.get_yaxis_transform())
        rows = at + 1 + np.arange(len(own))
        bars = own["rank"] - own["low"], own["high"] - own["rank"]
        axes.errorbar(own["rank"], rows, xerr=bars, fmt=marker, color=colour, markersize=3.5, linewidth=1.2, label=said)
        hollow = {"color": colour, "markerfacecolor": "white", "markeredgewidth": 0.7, "zorder": 1}
        axes.plot(own["ghost"], rows, marker, **hollow, label="its masks shuffled" if family == "after" else None)
        for row, (kind, one) in zip(rows, own.iterrows(), strict=True):
            axes.text(len(table) + 1, row, f"{one['error']:.2f}", va="center", ha="left", fontsize=5.5)
            axes.axhspan(row - 0.5, row + 0.5, color=drawing.GREY, alpha=0.25 * (kind in FREE), linewidth=0, zorder=0)
            names.append(label(kind) + f" (n = {one['n']:.0f})" * bool(one["n"] < table["n"].max()))
        ticks, at = [*ticks, *rows], rows[-1] + 1
    axes.set_yticks(ticks, names)
    axes.set(ylim=(at - 0.4, -0.6), xlim=(0.3, len(table) + 0.7))


def order(axes, frame, table):
    """Draw the test error of every type with its 95 % interval over seeds, the best on top, controls on grey.

    frame: `standings.rows` at one sparsity, of which `table` is the `standings.ladder`.
    """
    for row, (kind, one) in enumerate(table.iterrows()):
        said, colour, marker = FAMILIES[one["family"]]
        own = frame.loc[frame["type"] == kind, "error"]
        if len(own) > 1:  # about the mean of the ladder, which knows what seeds are missing
            axes.plot(evidence.interval(own - own.mean() + one["error"]), [row, row], color=colour, linewidth=1.2)
        first = kind == table.index[table["family"] == one["family"]][0]
        axes.plot(one["error"], row, marker, color=colour, markersize=3.5, label=said if first else None)
        axes.axhspan(row - 0.5, row + 0.5, color=drawing.GREY, alpha=0.25 * (kind in FREE), linewidth=0, zorder=0)
    axes.set_yticks(range(len(table)), map(label, table.index))
    axes.set_ylim(len(table) - 0.4, -0.6)
    drawing.log_ticks(axes, "x")


def errors(axes, frame, kinds):
    """Draw the error of types against the share of weights that stays, both logarithmic, beside the controls.

    kinds: type -> (label, colour, marker, dashes). Lines are means over seeds, see `drawing.spread`, hollow markers are
    of shuffled masks.
    """
    free = {kind: look(kind) for kind in ("none", "small") if kind in set(frame["type"])}
    for kind, (name, colour, marker, dashes) in (kinds | free).items():
        mine = frame[frame["type"] == kind].assign(kept=lambda mine: (1 - mine["sparsity"]).round(6))
        line = drawing.spread(axes, mine, "kept", "error", kind, color=colour, linestyle=dashes, linewidth=1)
        line.set(marker=marker, label=name)
        shuffled = 100 - mine.groupby("kept")["shuffled"].mean()
        axes.plot(shuffled.index, shuffled, marker, color=colour, markerfacecolor="white")
    drawing.log_ticks(axes)
    drawing.share_ticks(axes)


def of_families(frame, families):
    """Return `{type: look}` of the types of some families, for `errors`."""
    return {kind: look(kind) for kind in drawing.ordered(frame[frame["family"].isin(families)]["type"])}


def of_moments(kinds):
    """Return `{type: look}` of one score at several moments, `{family: type}`, each as its family, for `errors`."""
    return {kinds[family]: (*FAMILIES[family], "-") for family in FAMILIES if family in kinds}


def matrix(axes, frame, table):
    """Draw who is ahead of whom at one sparsity, types in the order of `ladder`; return how many pairs are decided."""
    outcome = evidence.duels(frame.pivot(index="seed", columns="type", values="tuned")[list(table.index)])
    colours = ListedColormap([drawing.RED, "white", drawing.BLUE])
    axes.imshow(outcome, cmap=colours, vmin=-1, vmax=1, aspect="auto", interpolation="nearest")
    axes.set_xticks(range(len(table)), map(label, table.index), rotation=90)
    axes.set_yticks(range(len(table)), map(label, table.index))
    axes.set_xticks(np.arange(0.5, len(table)), minor=True)
    axes.set_yticks(np.arange(0.5, len(table)), minor=True)
    axes.grid(which="minor", color=drawing.GREY, linewidth=0.3)
    axes.tick_params(which="both", length=0)
    for colour, said in ((drawing.BLUE, "the row is ahead"), (drawing.RED, "the column is ahead")):
        axes.plot([], [], "s", color=colour, label=said)
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
    line = {"color": "black", "linewidth": 0.6, "drawstyle": "steps-post", "zorder": 0}
    axes.plot(best[x], best["error"], **line, label="nothing is cheaper and better")
    for axis in ("x", "y"):
        drawing.log_ticks(axes, axis)
    return best
