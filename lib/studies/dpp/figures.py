"""The panels of the DPP study's summary: each function draws one kind of panel from tidy rows."""

import numpy as np
from matplotlib.ticker import MaxNLocator

from lib.figures import drawing, gallery, plots, tables
from lib.records import runs
from lib.studies.dpp import committee

# The first of each pair is asked to beat the second.
PAIRS = (
    ("dpp_edge", "random_edge"),
    ("dpp_node", "random_node"),
    ("dpp_edge", "magnitude_edge"),
    ("dpp_node", "outgoing_l1_node"),
)
ACROSS = (("dpp_edge", "dpp_node"),)  # of as many weights
FAMILIES = {
    "edges": ("dpp_edge", "random_edge", "magnitude_edge"),
    "nodes": ("dpp_node", "random_node", "outgoing_l1_node"),
}
# Looks that no type of the study has, and on which side of a point each is drawn.
HALF = {"raw": ("raw", drawing.YELLOW, "v", ""), "reweighted": ("reweighted", drawing.GREEN, "o", "")}
SIDES = {"raw": -0.01, "reweighted": 0.01}  # of the width


def ways(records):
    """Return the ways to train that are told apart, `{name: filters of records}`, of the records there are."""
    shapes = {tuple(one.parameters["hidden"]) for one in records}
    one, more = ([list(shape) for shape in sorted(shapes) if (len(shape) > 1) == deep] for deep in (False, True))
    chances = {"plain": (0.0, 0.0, one), "dropout": (0.5, 0.0, one), "dropconnect": (0.0, 0.5, one),
               "deep": (0.0, 0.0, more)}  # fmt: skip
    return {name: dict(zip(("dropout", "dropconnect", "hidden"), of, strict=True)) for name, of in chances.items()}


def published(p):
    """Return the published errors in % of the network that parameters `p` of `dpp_prune` train, as rows of seed 0.

    None of networks of other data, nor of DropConnect.
    """
    facts, network = runs.published("dpp"), "-".join(map(str, [784, *p["hidden"], 10]))
    known = p["dataset"] == "mnist" and not p["dropconnect"]
    mine = facts[(facts["network"] == network) & (facts["dropout"] == p["dropout"]) & known]
    return mine.assign(seed=0, error=100 * mine["error"])


def errors(axes, rows, facts):
    """Draw the error of every type against the weights left, with bands, and the published values of `facts`.

    rows: type, seed, kept, left, error; facts: type, kept, error, drawn where the rows have that type and number.
    """
    told = facts.merge(rows.groupby(["type", "kept"], as_index=False)["left"].first())
    told["left"] += np.ptp(rows["left"]) / 60  # a little to the right, or a value like ours would hide
    plots.lines(axes, rows, "left", "error", facts=told, few=1, markersize=2)
    drawing.log_ticks(axes)


def differences(panels, rows):
    """Draw how much the first of each of `PAIRS` errs more than the second, paired by seed.

    rows: type, seed, weighting, left, error.
    """
    for weighting, look in HALF.items():
        gains = tables.paired(rows[rows["weighting"] == weighting], PAIRS, ["left"], "error")
        for axes, (first, second) in zip(panels, PAIRS, strict=True):
            mine = gains[(gains["first"] == first) & (gains["second"] == second)]
            drawing.apart(axes, mine, "left", look, SIDES[weighting] * np.ptp(rows["left"]))
            axes.set_title(f"{drawing.look(first)[0]}\n− {drawing.look(second)[0]}")
            axes.set_yscale("symlog", linthresh=0.1)
            axes.yaxis.set_major_formatter("{x:g}")


def claims(rows, by, value, said, main=(), unit=" points", pairs=PAIRS):
    """Return the claims that the first of each of `pairs` errs less than the second, at each number in the column `by`.

    rows: type, seed, `by` and `value`, an error; said: what is written before, with a place for the number; main: pairs
    that the verdict stands on.
    """
    found, rows = [], rows.assign(right=-rows[value])
    for pair in pairs:
        for budget, own in rows[rows["type"].isin(pair)].groupby(by):
            decisive = [pair] if (*pair, budget) in main else ()
            text = f"{said.format(budget)}: {{}} errs less than {{}}"
            found += gallery.ahead(own, [pair], "right", text, decisive, unit)
    return found


def alike(rows, beta):
    """Return a sentence on how alike the items are that were drawn at `beta`, in a list; [] where nobody looked.

    rows: as of `entries`, with type, of one kind of items each. Similarities fall with the bandwidth: the nearest that
    was looked at, and is not above `beta`, bounds them.
    """
    near = rows[rows["bandwidth"] == rows["bandwidth"][rows["bandwidth"] <= beta].max()]
    near = near[near["quantile"] == near["quantile"].max()]
    most = near.groupby("type")["entries"].max()
    each = [f"of two {kind.split('_')[1]}s at most {gallery.number(value, 3)}" for kind, value in most.items()]
    share, width = gallery.percent(near["quantile"].max()), f"{near['bandwidth'].max():g}"
    return [f"{share} of the similarities at β = {width} are {', '.join(each)}; the types were drawn at {beta:g}, where"
            " they are no larger. Where all are 0, DPP draws as random does."] if each else []  # fmt: skip


def entries(axes, rows, beta):
    """Draw the quantiles of the entries of L against beta, mean over seeds; `beta` is what the runs were drawn at.

    rows: seed, bandwidth, quantile, entries.
    """
    lines = rows.groupby(["bandwidth", "quantile"])["entries"].mean().unstack("quantile")
    for (quantile, line), grey, marker in zip(lines.items(), ("0.75", "0.5", "0"), "v.^", strict=False):
        axes.plot(line.index, line, color=grey, marker=marker, label=gallery.percent(quantile))
    axes.axvline(beta, color=drawing.RED, linewidth=0.8, linestyle="--", label="β of the runs")
    axes.set(xscale="log", xlabel="bandwidth β", ylim=(-0.05, 1.05), xlim=(5e-7, 2))


def diversity(axes, rows, kinds, beta):
    """Draw the error against log det per item, a point per budget, mean over seeds; hollow where β is not `beta`.

    rows: type, beta (0 for the median rule), kept, log_det, error.
    """
    drawing.seeds(axes, "mean", *rows[rows["type"].isin(kinds)].groupby("type")["seed"].nunique())
    for kind in kinds:
        label, colour, marker, _ = drawing.look(kind)
        for width, mine in rows[rows["type"] == kind].groupby("beta"):
            middle = mine.groupby("kept")[["log_det", "error"]].mean()
            other = "" if width == beta else f", β {f'{width:g}' if width else 'by the median'}"
            axes.plot(middle["log_det"], middle["error"], marker, linestyle=":", linewidth=0.6, color=colour,
                      markerfacecolor="none" if other else colour, label=label + other)  # fmt: skip
    axes.set_xlabel("log det of the kept set, per item (right: more diverse)")
    drawing.log_ticks(axes)
    drawing.legend(axes, title=drawing.told(axes), title_fontsize=6.5)


def taught(records):
    """Return the students there are, `{in words: (parameters, rows, published values)}`, those of most runs first.

    rows: error, simulated and deviation of every set, with budget, the rank of what is kept; published: of as many
    units, where records are of the study's size.
    """
    shapes = [tuple(one.parameters[name] for name in ("students", "teachers", "soft")) for one in records]
    found, facts = {}, runs.published("dpp_teacher_student").assign(weighting="raw")
    for units, teachers, soft in sorted(set(shapes), key=lambda shape: (-shapes.count(shape), shape)):
        own = {"students": units, "teachers": teachers, "soft": soft}
        p = tables.largest_group("dpp_teacher_student", free=["normalise"], **own)
        rows = tables.joined("dpp_teacher_student", ["error", "simulated", "deviation"], ["normalise"], **p)
        rows["budget"] = rows.groupby("type")["kept"].rank("dense")
        known = p["inputs"] == 500 and p["samples"] == 800_000 and not soft
        told = facts[(facts["students"] == units) & (facts["teachers"] == teachers) & known]
        found[f"{'soft committees' if soft else 'students'} of {units} units, taught by {teachers}"] = p, rows, told
    return found


def cases(rows):
    """Return the panels of `students`, [(normalise, sigma, weighting)], of rows as of `taught`."""
    flags, noise = sorted(rows["normalise"].unique()), sorted(rows["sigma"].unique())
    raw = [(flags[0], sigma, "raw") for sigma in noise] + [(flag, noise[0], "raw") for flag in flags[1:]]
    return [*raw, (flags[0], noise[0], "reweighted")]


def thirds(units):
    """Return the budgets that claims are made at: a third and two thirds of the units."""
    return [round(units / 3), round(2 * units / 3)]


def students(axes, rows, facts):
    """Draw every type's closed-form error against the budget as lines, the simulation as dots, `facts` hollow.

    rows: type, seed, budget, error, simulated, by set; facts: type, budget, error.
    """
    means = rows.groupby(["type", "seed", "budget"], as_index=False)[["error", "simulated"]].mean()
    plots.lines(axes, means, "budget", "error", facts=facts.assign(budget=facts["budget"] + 0.12), marker="")
    for kind, seen in means.groupby(["type", "budget"])["simulated"].mean().groupby("type"):
        axes.plot(seen.index.unique("budget"), seen, drawing.look(kind)[2], color=drawing.look(kind)[1], markersize=2)
    axes.plot([], [], "o", color="black", markersize=2, label="dots: simulation")
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    drawing.log_ticks(axes)


def formula(axes, rows, setting, sigma):
    """Draw what random edges leave of a perfect student by `committee.random_edges`, as crosses over the budgets.

    rows: as of `students`, with kept; setting: parameters of the records. Nothing of soft committees, and where
    teacher units have no equal numbers of copies.
    """
    each, over = divmod(setting["students"], setting["teachers"])
    kept = rows[rows["type"] == "random_edge"].groupby("budget")["kept"].first()
    if not over and not setting["soft"]:
        errors = [committee.random_edges(keep / setting["inputs"], setting["teachers"], each, setting["v_star"], sigma)
                  for keep in kept]  # fmt: skip
        axes.plot(kept.index, errors, "x", color="black", markersize=4, label="random edges, by formula")


def heat(axes, matrix, title):
    """Draw |matrix| as a heat map from 0 to 1.5, rows and columns numbered from 1; return the image."""
    image = axes.imshow(np.abs(matrix), vmin=0, vmax=1.5, cmap="viridis")
    rows, columns = matrix.shape
    axes.set(title=title, xticks=range(columns), yticks=range(rows), xticklabels=range(1, columns + 1),
             yticklabels=range(1, rows + 1))  # fmt: skip
    return image


def agreement(rows):
    """Return how far the simulation is from the closed form, in its standard errors, one row per type and weighting.

    rows: type, weighting, seed, sigma, budget, error, simulated, deviation, one per set. All sets of a student are
    tested on the same samples, so their mean has about the error of one: it is that mean which is compared. Columns:
    the largest distance, how many means there are, and the share of them within one, two and three standard errors.
    """
    by = ["type", "weighting", "seed", "sigma", "budget"]
    means = rows.groupby(by)[["error", "simulated", "deviation"]].mean()
    far = ((means["simulated"] - means["error"]) / means["deviation"]).abs()
    groups = far.groupby(level=["type", "weighting"])
    within = {f"within {most}": (far <= most).groupby(level=["type", "weighting"]).mean() for most in (1, 2, 3)}
    return groups.agg(largest="max", means="size").assign(**within)
