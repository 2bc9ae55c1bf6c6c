"""The panels of the PHEW summary, from tidy rows of its records."""

import numpy as np
import pandas as pd

from lib.data.sets import SHAPES
from lib.figures import drawing
from lib.networks import convnets, nets
from lib.records import runs


def strips(axes, rows, value, kinds):
    """Draw every seed's `value` of each type of `kinds` in a row of its own, the first on top, and its median."""
    for row, kind in enumerate(kinds):
        drawing.strip(axes, -row, rows.loc[rows["type"] == kind, value], kind)
    axes.set(yticks=range(0, -len(kinds), -1), yticklabels=[drawing.look(kind)[0] for kind in kinds])


def behind(axes, found, kinds):
    """Draw rows of `tables.paired`, of one first type: how far it is ahead of each of `kinds`, a row each.

    The rows are those of `strips`.
    """
    for row, kind in enumerate(kinds):
        for one in found[found["second"] == kind].itertuples():
            _, colour, marker, _ = drawing.look(kind)
            axes.errorbar(one.mean, -row, xerr=[[one.mean - one.low], [one.high - one.mean]], fmt=marker, color=colour,
                          markersize=4, capsize=2, linewidth=0.8)  # fmt: skip
    axes.axvline(0, color="black", linewidth=0.5)


def parts(net, dataset, width):
    """Return the layers of a network, in forward order: columns layer, part, units and weights, of one run.

    part: the stem, the output, the shortcuts, or all other layers of so many filters.
    """
    channels, side, classes, *_ = SHAPES[dataset]
    layers = nets.layers(convnets.build(net, (channels, side, side), classes, 1, width or None))
    rows = [(name, layer.weight.shape[1], layer.weight[0].numel()) for name, layer in layers.items()]
    frame = pd.DataFrame(rows, columns=["layer", "units", "weights"])
    special = {frame["layer"].iloc[0]: "stem", frame["layer"].iloc[-1]: "output"}
    own = [special.get(name) or ("shortcuts" if "shortcut" in name else f"{units} filters")
           for name, units in zip(frame["layer"], frame["units"], strict=True)]  # fmt: skip
    return frame.assign(part=own)


def left(layers, **where):
    """Return what stays of every part of a network: type, seed, density, part, share of weights and of units.

    layers: of `parts`; where: records of `phew_density`.
    """
    rows = runs.curves("phew_density", "layer_sparsity", **where).merge(
        runs.curves("phew_density", "active_units", **where)
    )
    rows = rows.merge(layers, on="layer").assign(kept=lambda rows: (1 - rows["layer_sparsity"]) * rows["weights"])
    by = ["type", "seed", "density", "part"]
    sums = rows.groupby(by, as_index=False, sort=False)[["kept", "weights", "active_units", "units"]].sum()
    return sums.assign(weights=sums["kept"] / sums["weights"], units=sums["active_units"] / sums["units"])


def bars(axes, rows, value, names, kinds):
    """Draw the mean of `value` over seeds as bars, one of each type in each of the parts `names`; zeros as a nought."""
    wide = 0.8 / len(kinds)
    for k, kind in enumerate(kinds):
        label, colour, _, _ = drawing.look(kind)
        heights = rows[rows["type"] == kind].groupby("part")[value].mean().reindex(names)
        at = np.arange(len(names)) + (k - (len(kinds) - 1) / 2) * wide
        axes.bar(at, heights, wide, color=colour, label=label)
        for x in at[heights == 0]:
            axes.text(x, 0, "0", ha="center", va="bottom", color=colour, fontsize=6)
    axes.set_xticks(range(len(names)), names, rotation=20)


def conserved(experiment, kinds, **where):
    """Return log10 of what comes out of a unit over what goes in, of every hidden unit, `{type: (n,)}`.

    Units whose scores sum to nothing or less on a side are left out. kinds: types that have such scores in the records.
    """
    found = {}
    for kind in kinds:
        sides = [runs.curves(experiment, name, **where, type=kind) for name in ("score_in", "score_out")]
        if all(len(side) for side in sides):
            ratio = sides[0].merge(sides[1]).query("score_in > 0 and score_out > 0")
            found[kind] = np.log10(ratio["score_out"] / ratio["score_in"]).to_numpy()
    return found


def ratios(axes, found):
    """Draw the distribution of `conserved` of every type over a base line of its own, and its median as a bar."""
    for row, (kind, values) in enumerate(found.items()):
        colour = drawing.look(kind)[1]
        low, high = np.quantile(values, (0.005, 0.995))
        if high - low > 1e-3:
            counts, edges = np.histogram(values, 60, (low, high))
            axes.stairs(0.8 * counts / counts.max() - row, edges, baseline=-row, fill=True, color=colour, alpha=0.5)
        axes.plot([np.median(values)] * 2, [-row, 0.8 - row], color=colour, linewidth=1.5)
    axes.set(yticks=range(0, -len(found), -1), yticklabels=[drawing.look(kind)[0] for kind in found])
    axes.axvline(0, color="black", linewidth=0.5, zorder=0)
