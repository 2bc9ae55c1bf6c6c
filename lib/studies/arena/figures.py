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
LEAST = 1.7  # inches of height, of a single type too: for a title, numbers and a legend

LEGEND = [said for said, *_ in FAMILIES.values()]  # in this order


def panels(heights, columns):
    """Return (figure, panels) of so many inches each, every one in the column that is the shortest so far."""
    stacks = [[] for _ in range(min(columns, len(heights)))]  # of (which panel, its height)
    for k, height in enumerate(heights):
        min(stacks, key=lambda stack: sum(tall for _, tall in stack)).append((k, height))
    sums = [sum(height for _, height in stack) for stack in stacks]
    figure, found = plt.figure(figsize=(drawing.WIDE, max(*sums, LEAST))), {}
    for place, stack, full in zip(np.ravel(figure.subfigures(1, len(stacks))), stacks, sums, strict=True):
        ratios = [height for _, height in stack] + [max(sums) - full] * (max(sums) - full > 0.01)
        grid = place.add_gridspec(len(ratios), 1, height_ratios=ratios)
        found |= {k: place.add_subplot(grid[row]) for row, (k, _) in enumerate(stack)}
    return figure, [found[k] for k in range(len(heights))]


def grid(count, height):
    """Return (figure, panels), so many of so many inches each, three side by side."""
    rows = -(-count // 3)
    figure, found = plt.subplots(rows, 3, figsize=(drawing.WIDE, rows * height), squeeze=False)
    for spare in found.flat[count:]:
        spare.axis("off")
    return figure, found.flat[:count]


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


def label_errors(axes, title):
    """Label the y axis of test errors of what has a title, its network in a line of its own: rows are not high."""
    axes.set_ylabel("\n".join([*title.rsplit(", ", 1), "test error (%)"]))


def ranking(axes, table):
    """Draw the rank of every type, by what goes and when, with its interval, its error beside it, hollow its shuffle's.

    Of a type that lacks seeds their number stands behind its name.
    """
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    at, ticks, names, right = 0, [], [], len(table) + 1
    axes.text(right, 0, "error (%)", va="center", fontsize=6)
    for family, (said, colour, marker) in FAMILIES.items():
        if (own := table[table["family"] == family]).empty:
            continue
        axes.text(0.02, at, said, color=colour, weight="bold", va="center", transform=axes.get_yaxis_transform())
        rows = at + 1 + np.arange(len(own))
        bars = own["rank"] - own["low"], own["high"] - own["rank"]
        axes.errorbar(own["rank"], rows, xerr=bars, fmt=marker, color=colour, markersize=3.5, linewidth=1.2, label=said)
        axes.plot(own["ghost"], rows, marker, color=colour, markerfacecolor="white", markeredgewidth=0.7, zorder=1)
        for row, (kind, one) in zip(rows, own.iterrows(), strict=True):
            axes.text(right, row, f"{one['error']:.2f}", va="center", fontsize=6)
            _free(axes, row, kind)
            names.append(label(kind) + f" (n = {one['n']:.0f})" * bool(one["n"] < table["n"].max()))
        ticks, at = [*ticks, *rows], rows[-1] + 1
    _hollow(axes)
    axes.set_yticks(ticks, names)
    axes.set(ylim=(at - 0.4, -0.6), xlim=(0.3, len(table) + 0.7))


def _free(axes, row, kind):
    """Put the row of a type on grey if it is what methods are measured against."""
    if kind in FREE:
        axes.axhspan(row - 0.5, row + 0.5, color="0.93", linewidth=0, zorder=0, label="needs no method")


def _hollow(axes):
    """Say in the legend what hollow markers are."""
    axes.plot([], [], "o", color="black", markerfacecolor="white", label="masks shuffled")


def order(axes, frame, table):
    """Draw the test error of every type with its 95 % interval over seeds, the best on top, controls on grey.

    frame: `standings.rows` at one sparsity, of which `table` is the `standings.ladder`.
    """
    drawing.seeds(axes, "bars" if table["n"].max() > 1 else "one", *table["n"])
    for row, (kind, one) in enumerate(table.iterrows()):
        said, colour, marker = FAMILIES[one["family"]]
        own = frame.loc[frame["type"] == kind, "error"]
        if len(own) > 1:  # about the mean of the ladder, which knows what seeds are missing
            axes.plot(evidence.interval(own - own.mean() + one["error"]), [row, row], color=colour, linewidth=1.2)
        first = kind == table.index[table["family"] == one["family"]][0]
        axes.plot(one["error"], row, marker, color=colour, markersize=3.5, label=said if first else None)
        _free(axes, row, kind)
    axes.set_yticks(range(len(table)), map(label, table.index))
    axes.set_ylim(len(table) - 0.4, -0.6)
    drawing.log_ticks(axes, "x")


def errors(axes, frame, kinds):
    """Draw the error of types against the share of weights that stays, both logarithmic, beside the controls.

    kinds: type -> (label, colour, marker, dashes). Lines are means over seeds, see `drawing.spread`; hollow: shuffled.
    """
    free = {kind: look(kind) for kind in ("none", "small") if kind in set(frame["type"])}
    for kind, (name, colour, marker, dashes) in (kinds | free).items():
        mine = frame[frame["type"] == kind].assign(kept=lambda mine: (1 - mine["sparsity"]).round(6))
        line = drawing.spread(axes, mine, "kept", "error", kind, color=colour, linestyle=dashes, linewidth=1)
        line.set(marker=marker, label=name)
        shuffled = 100 - mine.groupby("kept")["shuffled"].mean()
        axes.plot(shuffled.index, shuffled, marker, color=colour, markerfacecolor="white")
    if frame[frame["type"].isin(kinds)]["shuffled"].notna().any():
        _hollow(axes)
    drawing.log_ticks(axes)
    drawing.share_ticks(axes)


def of_families(frame, families):
    """Return `{type: look}` of the types of some families, for `errors`."""
    return {kind: look(kind) for kind in drawing.ordered(frame[frame["family"].isin(families)]["type"])}


def of_moments(kinds):
    """Return `{type: look}` of one score at several moments, `{family: type}`, each as its family, for `errors`."""
    return {kinds[family]: (*FAMILIES[family], "-") for family in FAMILIES if family in kinds}


def matrix(axes, outcome):
    """Draw who is ahead of whom, as `ladder` returns it, columns numbered as rows; return how many are decided."""
    colours = ListedColormap([drawing.RED, "white", drawing.BLUE])
    axes.imshow(outcome, cmap=colours, vmin=-1, vmax=1, aspect="auto", interpolation="nearest")
    axes.set_xticks(range(len(outcome)), range(1, len(outcome) + 1), rotation=90, fontsize=5.5)
    axes.set_yticks(range(len(outcome)), [f"{label(kind)}  {n}" for n, kind in enumerate(outcome.index, 1)])
    axes.set_xticks(np.arange(0.5, len(outcome)), minor=True)
    axes.set_yticks(np.arange(0.5, len(outcome)), minor=True)
    axes.grid(which="minor", color=drawing.GREY, linewidth=0.3)
    axes.tick_params(which="both", length=0)
    told = {"the row is ahead": drawing.BLUE, "the column is ahead": drawing.RED, "undecided": "white"}
    for said, colour in told.items():
        axes.plot([], [], "s", color=colour, markeredgecolor=drawing.GREY, label=said)
    return int(np.triu(outcome != 0).sum())


def front(axes, found, x):
    """Draw errors against a cost, the column `x`, and a line through the rows that nothing is cheaper and better than.

    Return these rows, the cheapest first. Left out is what was not measured, and what multiplies nothing: it is cut.
    """
    found = found[found[x] > 0]
    for family, (said, colour, marker) in FAMILIES.items():
        if len(own := found[found["family"] == family]):
            axes.plot(own[x], own["error"], marker, color=colour, alpha=0.6, markeredgewidth=0, label=said)
    best = found.sort_values([x, "error"])
    best = best[best["error"] < best["error"].cummin().shift(fill_value=np.inf)]
    line = {"color": "black", "linewidth": 0.6, "drawstyle": "steps-post", "zorder": 0}
    axes.plot(best[x], best["error"], **line, label="no point is both cheaper and better than the line")
    for axis in ("x", "y"):
        drawing.log_ticks(axes, axis)
    return best
