"""The panels of the PHEW summary, from tidy rows of its records."""

import re

import numpy as np
import pandas as pd
from matplotlib.ticker import MaxNLocator

from lib.data.sets import SHAPES
from lib.figures import drawing, evidence, gallery, plots, tables
from lib.networks import convnets, nets
from lib.records import runs
from lib.studies.phew.study import ABLATIONS

DASHES = {"ours": "-", "ours, norms as they start": "--", "ours, one round": ":"}  # of masks without training
ABOUT = ["type", "rounds", "width", "seed"]
MAIN = ("phew", "synflow"), ("phew", "synflow_l2")  # what the answer stands on
OTHERS = [
    ("synflow", "synflow_l2"),
    *((kind, "random") for kind in ("phew", "synflow", "synflow_l2")),
]  # told at all densities
CHANGES = {"shuffled": "masks shuffled", "phew": "weights drawn anew", "evci": "weights drawn anew as Evci's",
           "liu": "weights drawn anew as Liu's"}  # of what was pruned, before training, in words  # fmt: skip


def points(name, **where):
    """Return the array `name` of records of `phew_density`, tidy: runs of other densities are points of one curve.

    A density that two runs of one type and seed have is one point. where: see `runs.records`.
    """
    rows = runs.curves("phew_density", name, **where).drop(columns="densities", errors="ignore")
    return rows.drop_duplicates([column for column in rows if column != name])


def lowest(rows):
    """Return the lowest density of pruned networks with seeds enough to decide, or with most seeds if none has them.

    rows: tidy, with type, seed and density; dense networks alone are at 1.
    """
    pruned = rows[rows["type"] != "dense"]
    seeds = pruned.groupby("density")["seed"].nunique().clip(upper=evidence.NEEDED)
    return seeds.index[seeds == seeds.max()].min() if len(seeds) else 1.0


def curved(rows):
    """Return the rows of pruned types that were run at several densities, of the seeds with most of them."""
    pruned = rows[rows["type"] != "dense"]
    had = pruned.groupby(["type", "seed"])["density"].transform("nunique")
    return pruned[(had > 1) & (had == had.groupby(pruned["type"]).transform("max"))]


def against_density(axes, rows, value):
    """Draw the column `value` of `curved` rows against density, which is marked where it was run."""
    plots.lines(axes, rows, "density", value)
    axes.set(xlabel="density", xscale="log")
    if len(known := sorted(set(rows["density"]))) < 5:
        axes.set_xticks(known, [f"{density:g}" for density in known]), axes.minorticks_off()


def strips(axes, rows, kinds):
    """Draw every seed's accuracy of each type of `kinds` in a row of its own, the first on top, and its median.

    rows: what was done -> a tidy table with type and accuracy in percent; "as is" comes first, and the rows of changed
    masks or weights below that of the type. A type without runs has no row.
    """
    shown = [(kind, change, own) for kind in kinds for change, table in rows.items()
             if len(own := table.loc[table["type"] == kind, "accuracy"])]  # fmt: skip
    for row, (kind, _, own) in enumerate(shown):
        drawing.strip(axes, -row, own, kind)
    names = [drawing.look(kind)[0] + (f", {CHANGES[change]}" if change in CHANGES else "") for kind, change, _ in shown]
    axes.set(yticks=range(0, -len(shown), -1), yticklabels=names)


def pairs(kinds):
    """Return pairs of types, the first claimed to be above the second, of those among `kinds`.

    What takes PHEW apart is compared with the walks that it differs from in one thing, which serve all densities.
    """
    other = {kind: "phew_res" for kind, (method, _) in ABLATIONS.items() if method == "phew"}
    none = "phew", "phew_res", "magnitude_trained"  # walks are drawn alike, and the last is claimed to be above
    found = [(other.get(kind, "phew"), kind) for kind in kinds if kind not in none]
    found += [*OTHERS, ("magnitude_trained", "phew")]
    return [pair for pair in dict.fromkeys(found) if set(pair) <= set(kinds)]


def trained(kind, setting):
    """Return for how many epochs networks of a type were trained in all; setting: the parameters of their records."""
    before = setting["epochs"] + setting["prune_epochs"] if kind == "magnitude_trained" else 0
    return before + setting["epochs"]


def conditions(setting, kinds=()):
    """Return network, images and epochs of records in words, and in all of those of `kinds` that were trained longer.

    setting: the parameters of the records. The published epochs are what the notebook has by default.
    """
    longer = [f"{drawing.look(kind)[0]}: {trained(kind, setting)} in all" for kind in kinds
              if trained(kind, setting) > setting["epochs"]]  # fmt: skip
    said = f"{setting['epochs']} epochs of {runs.declared('phew_density')['epochs']} published"
    said = [drawing.words(setting["net"]), drawing.words(setting["dataset"]), gallery.images(setting), said]
    return ", ".join(said) + (f" ({'; '.join(longer)})" if longer else "")


def ranked(rows, setting):
    """Return the claims of who is more accurate: all `pairs` at the `lowest` density, elsewhere `MAIN` and `OTHERS`.

    rows: tidy, with type, seed, density and accuracy in percent. setting: see `trained`; a claim about types that were
    trained for longer and for less says so.
    """
    claims, least = [], lowest(rows)
    for density, own in rows[rows["type"] != "dense"].groupby("density"):
        found, decisive = pairs(drawing.ordered(own["type"])), MAIN if density == least else ()
        shown = found if density == least else [pair for pair in found if pair in (*MAIN, *OTHERS)]
        for pair in shown:
            long, short = (trained(kind, setting) for kind in pair)
            said = "{} is above {}" if long == short else f"{{}} ({long} epochs in all) is above {{}} ({short} epochs)"
            claims += gallery.ahead(own, [pair], "accuracy", f"Density {density:g}: {said}", decisive)
    return claims


def exceptions(claims):
    """Return the claims about PHEW and another type, trained alike, that do not speak for PHEW: a sentence, or none."""
    ahead, behind = re.compile(r": PHEW is above (?!itself)"), re.compile(r" is above PHEW$")
    said = [f"{one['text']}: {one['effect']}, {one['verdict']}" for one in claims if one["n"]
            and (ahead.search(one["text"]) and one["verdict"] != "confirmed"
                 or behind.search(one["text"]) and one["verdict"] == "confirmed")]  # fmt: skip
    return [f"PHEW is not ahead of everything. {'; '.join(said)}."] * bool(said)


def behind(axes, gains, kinds, strips):
    """Draw rows of `tables.paired`, of PHEW: how far it is ahead of each of `kinds`, a row each.

    The rows are those that the axes `strips` beside it have.
    """
    drawing.seeds(axes, "bars", *gains["n"])
    for one in gains.itertuples():
        _, colour, marker, _ = drawing.look(one.second)
        bar = [[one.mean - one.low], [one.high - one.mean]]
        axes.errorbar(one.mean, -kinds.index(one.second), xerr=bar, fmt=marker, color=colour, markersize=4, capsize=2,
                      linewidth=0.8)  # fmt: skip
    axes.axvline(0, color="black", linewidth=0.5)
    axes.set(xlabel="points that PHEW is ahead", title="right of the line PHEW is better", yticks=[],
             ylim=strips.get_ylim())  # fmt: skip


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
    rows = points("layer_sparsity", **where).merge(points("active_units", **where))
    rows = rows.merge(layers, on="layer").assign(kept=lambda rows: (1 - rows["layer_sparsity"]) * rows["weights"])
    by = ["type", "seed", "density", "part"]
    sums = rows.groupby(by, as_index=False, sort=False)[["kept", "weights", "active_units", "units"]].sum()
    return sums.assign(weights=sums["kept"] / sums["weights"], units=sums["active_units"] / sums["units"])


def bars(axes, rows, value, names, kinds):
    """Draw the mean of `value` over seeds as bars, one of each type in each of the parts `names`; zeros as a nought."""
    wide = 0.8 / max(len(kinds), 1)
    drawing.seeds(axes, "mean", *rows[rows["type"].isin(kinds)].groupby("type")["seed"].nunique())
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
    logs = {}
    for kind in kinds:
        sides = tables.joined(experiment, ("score_in", "score_out"), **where, type=kind)
        if len(sides):
            ratio = sides.query("score_in > 0 and score_out > 0")
            logs[kind] = np.log10(ratio["score_out"] / ratio["score_in"]).to_numpy()
    return logs


def ratios(axes, logs):
    """Draw the distribution of `conserved` of every type over a base line of its own, and its median as a bar."""
    for row, (kind, values) in enumerate(logs.items()):
        colour = drawing.look(kind)[1]
        low, high = np.quantile(values, (0.005, 0.995))
        if high - low > 1e-3:
            counts, edges = np.histogram(values, 60, (low, high))
            axes.stairs(0.8 * counts / counts.max() - row, edges, baseline=-row, fill=True, color=colour, alpha=0.5)
        axes.plot([np.median(values)] * 2, [-row, 0.8 - row], color=colour, linewidth=1.5)
    axes.set(yticks=range(0, -len(logs), -1), yticklabels=[drawing.look(kind)[0] for kind in logs])
    axes.axvline(0, color="black", linewidth=0.5, zorder=0)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.xaxis.set_major_formatter(lambda decade, _: f"{10.0**decade:g}")


def emptied(records):
    """Return how many layers the masks of `records` empty: columns type, rounds, width, seed, density, empty."""
    rows = []
    for record in records:
        about = [record.type, record.parameters["rounds"], record.parameters["width"], record.seed]
        empty = (record.array("layer_sparsity")[0] == 1).sum(1)
        rows += [[*about, at, n] for at, n in zip(record.axes["density"], empty, strict=True)]
    return pd.DataFrame(rows, columns=[*ABOUT, "density", "empty"])


def lasting(rows):
    """Return the lowest density down to which no layer is empty, a value a run, infinite where one always is.

    rows: of `emptied`. The index is type, rounds, width and seed.
    """
    by = [rows[name] for name in ABOUT]
    worst = rows["density"].where(rows["empty"] > 0, 0.0).groupby(by).transform("max")
    return rows["density"].where(rows["density"] > worst, np.inf).groupby(by).min()


def collapse(axes, rows):
    """Draw the median of the emptied layers against density, and quartiles, with what the lines are; see `emptied`."""
    for (kind, rounds, _), own in rows.groupby(ABOUT[:3]):
        norms = "ours, norms as they start" if kind.endswith("_frozen") else "ours"
        dashes = DASHES["ours, one round" if rounds == 1 else norms]
        line = {"linestyle": dashes, "marker": drawing.look(kind)[2], "label": False, "medians": True}
        drawing.spread(axes, own, "density", "empty", kind, **line)
    for name, dashes in DASHES.items():
        axes.plot([], [], color=drawing.GREY, linestyle=dashes, label=name)
    axes.plot([], [], color=drawing.GREY, linestyle="--", linewidth=0.6, label="published: first layer empty")
    axes.set(xlabel="density", ylabel="layers without weights", xscale="log")


def densities(lasts):
    """Return the median of values of `lasting`, and the lowest and the highest, as text."""
    low, middle, high = (f"{value:.2g}".replace("inf", "none") for value in lasts.quantile([0, 0.5, 1], "nearest"))
    return middle, low if low == high else f"{low} to {high}"


def outlasts(lasts, first, seconds):
    """Return the gallery's claims that a type keeps all layers to a lower density than each of `seconds`.

    lasts: of `lasting`, of which those with 100 rounds are taken.
    """
    kinds = lasts.xs(100, level="rounds").unstack("type")
    claims = []
    for second in [kind for kind in seconds if kind in kinds]:
        both = kinds[[first, second]].dropna()
        said = f"keeps every layer of VGG16 down to a lower density than {drawing.look(second)[0]}"
        claims.append(gallery.share(f"Masks alone: {drawing.look(first)[0]} {said}", both[first] < both[second]))
    return claims


def changes(rows, setting):
    """Return the gallery's claims that a type is above itself with its masks or weights changed, paired by seed.

    rows: as of `strips`, with seeds; setting: of all of them, in words.
    """
    claims, rows = [], dict(rows)
    own = rows.pop("as is")
    for change, others in rows.items():
        both = pd.concat([own, others.assign(type=others["type"] + change)])
        for kind in drawing.ordered(set(others["type"]) & set(own["type"])):
            said = f"{setting}: {drawing.look(kind)[0]} is above itself with its {CHANGES[change]}"
            claims.append(gallery.claim(said, evidence.apart(both, kind, kind + change, "accuracy")))
    return claims


def widened(rows, own, setting):
    """Return the claims that a type gets better with the units its shuffle may use, and better than PHEW, by seed.

    rows: of `phew_width`, tidy, with type, seed, share of the idle units and accuracy in percent; own: the same without
    a share, of masks that are not shuffled; setting: of all of them, in words. The narrowest and widest shuffle count.
    """
    claims = []
    for kind in drawing.ordered(rows["type"]):
        mine, name = rows[rows["type"] == kind], drawing.look(kind)[0]
        every = pd.concat([mine.assign(type=mine["share"]), own])
        least, most = mine["share"].min(), mine["share"].max()
        pairs = [(most, kind, "itself"), (most, least, f"the same among {100 * least:g} %"), (most, "phew", "PHEW"),
                 (least, "phew", "PHEW")]  # fmt: skip
        for share, other, told in pairs[::2] if least == most else pairs:
            said = f"{setting}: {name} shuffled among {100 * share:g} % of its idle units is above {told}"
            claims.append(gallery.claim(said, evidence.apart(every, share, other, "accuracy")))
    return claims


def levels(axes, rows, kinds):
    """Draw the mean accuracy of each of `kinds` in `rows` as a horizontal line with its name, where there is one."""
    for kind, own in rows[rows["type"].isin(kinds)].groupby("type"):
        (label, colour, _, dashes), mean = drawing.look(kind), own["accuracy"].mean()
        axes.axhline(mean, color=colour, linewidth=0.6, linestyle=dashes)
        axes.text(0.02, mean, f"{label}, not shuffled", color=colour, va="bottom", fontsize=6,
                  transform=axes.get_yaxis_transform())  # fmt: skip
