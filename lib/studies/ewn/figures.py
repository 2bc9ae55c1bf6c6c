"""The EWN study's claim as figures: what is left after pruning, level of log-loss by level, type beside type."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from lib.figures import drawing, evidence, gallery, plots, tables
from lib.records import runs

SHARES = (0.5, 0.8, 0.9, 0.95)  # of the hidden units, pruned
LEVELS = (-10, -100, -300)  # of log-loss, the study's
FEW = 10  # points of a line that are marked
KINDS = ("no-WN", "EWN", "SWN")
PAIRS = [("EWN", "no-WN"), ("EWN", "SWN")]


def words(criterion):
    """Return what units are pruned by, in words."""
    grown = criterion.removeprefix("since_")
    since = "the start" if grown == "init" else f"−{grown.removeprefix('-')}"
    return criterion if grown == criterion else f"growth since {since}"


def left(parts):
    """Return a figure: test error against the units pruned, a column for each of `parts`, and gains of EWN below.

    parts: by their titles, pairs of tidy tables, our runs and the study's, which may be empty, with the columns type,
    seed, level, sparsity and accuracy in percent, each of one level and criterion. Gains are paired by seed.
    """
    figure, rows = _panels(parts, "pruned", "units pruned (%)")
    for axes, (ours, _) in zip(rows[1], parts.values(), strict=True):
        ours = ours.assign(pruned=100 * ours["sparsity"])
        for first, second in PAIRS:
            gains = tables.gains(ours, first, second, ["pruned"], "accuracy")
            if len(gains):
                drawing.spread(axes, gains, "pruned", "gain", second, label=False)
        axes.axhline(0, color="black", linewidth=0.6)
    drawing.legend(figure, ncols=4, loc="outside upper center")
    return figure


def depth(pruned, facts):
    """Return a figure: test error against the level, one column a share of units, and paired differences below.

    pruned, facts: as of `left`, of one criterion. Ours end at the level `deepest`: few seeds say little of more.
    """
    pruned = pruned[pruned["level"] >= deepest(pruned)]
    at = [[table[np.isclose(table["sparsity"], share)] for table in (pruned, facts)] for share in SHARES]
    parts = {f"{gallery.percent(share)} of the units pruned": pair for share, pair in zip(SHARES, at, strict=True)}
    figure, rows = _panels(parts, "depth", "−log-loss")
    for axes, (ours, _) in zip(rows[1], parts.values(), strict=True):
        gains = tables.paired(ours.assign(depth=-ours["level"]), PAIRS, ["depth"], "accuracy")
        for second, own in gains.groupby("second", sort=False):
            drawing.apart(axes, own, "depth", drawing.look(second))
    drawing.legend(figure, ncols=4, loc="outside upper center")
    return figure


def _panels(parts, x, label):
    """Return (figure, two rows of axes), test errors against `x` in the upper one, a column a pair of tables."""
    size = (drawing.WIDE, 3.6)
    figure, rows = plt.subplots(2, len(parts), figsize=size, sharex=True, sharey="row", squeeze=False)
    for (title, both), top, bottom in zip(parts.items(), *rows, strict=True):
        both = [t.assign(depth=-t["level"], pruned=100 * t["sparsity"], error=100 - t["accuracy"]) for t in both]
        ours, told = both[0], both[1].groupby(["type", x], as_index=False)["error"].mean()
        plots.lines(top, ours, x, "error", KINDS, told, **{"marker": ""} if ours[x].nunique() >= FEW else {})
        drawing.log_ticks(top)
        top.set_title(title), bottom.set_xlabel(label)
    rows[0, 0].set_ylabel("test error (%)")
    rows[1, 0].set_ylabel("EWN ahead of the type\nof that colour (points)")
    return figure, rows


def verdicts(pruned):
    """Return one row for every share and pair: whether EWN is ahead at the level `deepest`, and since which level.

    Points of accuracy, paired by seed, as `evidence.judged` has them. since: the first level from which on, down to
    there, it is confirmed at every level; missing if there is none.
    """
    pruned = pruned[np.isclose(pruned["sparsity"].to_numpy()[:, None], SHARES).any(1)]
    gains = tables.paired(pruned, PAIRS, ["level", "sparsity"], "accuracy")
    rows = []
    for (second, _), own in gains.groupby(["second", "sparsity"]):
        level = deepest(pruned, second)
        own = own[own["level"] >= level].sort_values("level")
        above = (own["verdict"] == "confirmed").cummin()
        since = own["level"][above].max() if above.any() else np.nan
        rows.append({"than": second, **own.iloc[0].drop(["first", "second"]), "since": since})
    return pd.DataFrame(rows)


def descents(settings):
    """Return the accuracies of pruned networks in percent, `{which: tidy table}`; settings: of `tables.deep_groups`.

    which: how many images they were trained on, and what tells them from others of as many, in words. The one that goes
    deepest comes first, of equally deep ones that of most images. A run of several records is shown by the deepest.
    """
    found = {}
    for setting in sorted(settings, key=_images):
        down = tables.deepest(runs.curves("mnist_prune", "pruned_accuracy", **setting)).dropna(subset="pruned_accuracy")
        found[_which(setting, settings)] = down.assign(accuracy=100 * down["pruned_accuracy"].astype(float))
    return dict(sorted(found.items(), key=lambda item: deepest(item[1])))


def _images(setting):
    return -(setting["train_examples"] or np.inf)


def _which(setting, settings):
    alike = [one for one in settings if one["train_examples"] == setting["train_examples"]]
    apart = [name for name, value in setting.items() if any(one[name] != value for one in alike)]
    return ", ".join([gallery.images(setting), *(f"{name.replace('_', ' ')} {setting[name]}" for name in apart)])


def pace(settings):
    """Return a Markdown table of the accepted epochs until each level, means over the seeds that came there.

    settings: as of `descents`. How many did stands beside the mean where it is not all: the study stops at 10,000.
    """
    rows = [(_which(setting, settings), -level, record.type, record.seed, record.scores[f"epoch_at_{level:g}"])
            for setting in sorted(settings, key=_images) for record in runs.records("mnist_prune", **setting)
            for level in record.parameters["levels"]]  # fmt: skip
    frame = pd.DataFrame(rows, columns=["which", "depth", "type", "seed", "epoch"]).astype({"epoch": float})
    once = frame.groupby(["which", "depth", "type", "seed"], sort=False)["epoch"].max()  # of several records of a run
    found = once.groupby(["which", "depth", "type"], sort=False).agg(_epochs).unstack("type").fillna("")
    kinds = [kind for kind in KINDS if kind in found]
    lines = [[which, gallery.number(-depth, 0), *own[kinds]] for which in frame["which"].unique()
             for depth, own in found.loc[which].sort_index().iterrows()]  # fmt: skip
    return gallery.pipes(["trained on", "log-loss", *kinds], lines)


def _epochs(own):
    came = own.dropna()
    few = f" ({len(came)} of {len(own)})" * (len(came) < len(own))
    return f"{came.mean():,.0f}{few}" if len(came) else "none"


def hours(settings, told):
    """Return the hours that a network took, rows of which images, type, level, whose, hours, and whether it came there.

    settings: as of `descents`; told: published rows of the metric time_taken, which is taken for minutes: as seconds
    it would be less than the images of an epoch take to be read. level: the deepest that was asked for.
    """
    rows = []
    for setting in sorted(settings, key=_images):
        for record in runs.records("mnist_prune", **setting):
            level = min(record.parameters["levels"])
            took, came = record.provenance["seconds"] / 3600, record.scores[f"epoch_at_{level:g}"] is not None
            rows.append((_which(setting, settings), record.type, level, "ours", took, came))
    rows += [("all images", row.type, row.level, "study", row.value / 60, True) for row in told.itertuples()]
    return pd.DataFrame(rows, columns=["which", "type", "level", "whose", "hours", "came"])


def hours_table(took):
    """Return a Markdown table of `hours`: medians over networks, those of the study in italics."""
    by = ["which", "level", "type"]
    cells = took.groupby([*by, "whose"])["hours"].median().map("{:.2g}".format).reset_index()  # ours before the study's
    cells["hours"] = cells["hours"].where(cells["whose"] == "ours", "*" + cells["hours"] + "*")
    text = cells.groupby(by)["hours"].agg(" ".join).unstack("type", fill_value="")
    kinds, lines = [kind for kind in KINDS if kind in text], []
    for which in took["which"].unique():
        for level, own in text.loc[which].sort_index(ascending=False).iterrows():
            lines.append([which, _end(took[(took["which"] == which) & (took["level"] == level)]), *own[kinds]])
    return gallery.pipes(["trained on", "down to", *kinds], lines)


def _end(took):
    """Return where networks of `hours` were to end, and that 10,000 epochs ended some before."""
    return gallery.number(took["level"].min(), 0) + ("" if took["came"].all() else " or 10,000 epochs")


def not_reached(pruned, images):
    """Return a sentence on the levels that fewer seeds reached than would decide, in a list; [] where there is none.

    pruned: as of `claims`; images: which they are, as of `descents`.
    """
    every = pruned.groupby("type")["seed"].nunique()
    seeds = pruned.groupby(["level", "type"])["seed"].nunique().unstack(fill_value=0)
    few = seeds[(seeds < np.minimum(every, evidence.NEEDED)).any(axis=1)].sort_index(ascending=False)
    each = [f"{gallery.number(level, 0)} by " + ", ".join(f"{n} of {every[kind]} {kind}" for kind, n in own.items())
            for level, own in few.iterrows()]  # fmt: skip
    said = f"With {images} not all networks came to the end within 10,000 accepted epochs: to {'; to '.join(each)}."
    return [said] if each else []


def aside(claims, took):
    """Return what is said behind the claim that tells the answer, or "": how far EWN was ahead at first, and the cost.

    claims: rows of `claims`, of which those of the same images, share and other type are told; took: of `hours`.
    """
    there, level, said = [one for one in claims if one["n"]], LEVELS[0], ""
    if not there:
        return ""
    first = gallery.headline(there)
    same = [one for one in there if all(one[key] == first[key] for key in ("images", "share", "second"))]
    for one in same if first["level"] != level else ():
        if one["level"] == level:  # where the claim is that EWN is behind
            mean, low, high = (gallery.number(-one[name]) for name in ("mean", "high", "low"))
            said = f"; at log-loss {gallery.number(level, 0)}: {mean} ({low} to {high})"
    return said + _hours(took, first["images"])


def _hours(took, images):
    """Return how many hours networks on these images took, and the study's at its deepest, on all images."""
    ours, theirs = took[(took["whose"] == "ours") & (took["which"] == images)], took[took["whose"] == "study"]
    theirs = theirs[theirs["level"] == theirs["level"].min()]
    if ours.empty or theirs.empty:
        return ""
    least, most, low, high = (f"{own['hours'].agg(end):.2g}" for own in (ours, theirs) for end in ("min", "max"))
    return (f"; {least} to {most} core-hours each, to {_end(ours)}"
            f" (the study's hours, all images, if logged in minutes: {low} to {high})")  # fmt: skip


def stale(group):
    """Return sentences on how much it changes that norms are ranked one epoch late, as in the study; [] without runs.

    group: a setting. Runs of one depth are compared: those that went further may have been trained anew, elsewhere.
    """
    late = group | {"stale_norms": True}
    if not (found := runs.records("mnist_prune", **late)):
        return []
    pairs = [{**setting, "levels": found[0].parameters["levels"]} for setting in (late, group)]
    each = [runs.curves("mnist_prune", "pruned_accuracy", **setting) for setting in pairs]
    both = each[0].merge(each[1], on=["type", "seed", "level", "criterion", "sparsity"], suffixes=("_late", ""))
    moved = 100 * (both["pruned_accuracy_late"].astype(float) - both["pruned_accuracy"].astype(float)).abs()
    far, most = gallery.number(moved.quantile(0.95)), gallery.number(moved.max())
    kinds = ", ".join(drawing.ordered(both["type"], KINDS))
    return [f"Ranked by norms one epoch late, as in the study, 95 % of the accuracies change by at most {far} points,"
            f" none by more than {most} ({kinds}, n = {both['seed'].nunique()})."]  # fmt: skip


def claims(pruned, images, main):
    """Return the gallery's claims, that EWN is ahead: at the level `deepest` and at the study's above it, by norm.

    At the study's first level it has EWN behind, and that is the claim, unless the verdict stands on that level.
    pruned: as of `left`, of all criteria; images: which they are, as of `descents`; main: whether the verdict stands on
    the deepest of these levels. Besides what `gallery.claim` says, a row has images, level, share and second.
    """
    furthest, rows = deepest(pruned), []
    of = "" if images == "all images" else f" on {images}"
    levels = [*(level for level in LEVELS if level > furthest), furthest]
    told = pruned["level"].isin(levels) & (pruned["criterion"] == "norm")
    for level, own in pruned[told].groupby("level"):
        for share in SHARES:
            for second in sorted({*own["type"]} - {"EWN"}, reverse=True):
                said = f"Log-loss {gallery.number(level, 0)}{of}, {gallery.percent(share)} pruned by norm"
                here, stands = own[np.isclose(own["sparsity"], share)], main and level == furthest
                pair = (second, "EWN") if level == LEVELS[0] and not stands else ("EWN", second)
                decisive = [pair] if stands and second == "no-WN" and share in (0.5, 0.9) else ()
                (row,) = gallery.ahead(here, [pair], "accuracy", f"{said}: {{}} is ahead of {{}}", decisive)
                rows.append(row | {"images": images, "level": level, "share": share, "second": second})
    return rows


def deepest(pruned, second="no-WN"):
    """Return the deepest level with enough seeds to decide between EWN and `second`; if none has, the deepest of all.

    A level that one of the two never reached is none of theirs; the types are compared where there are both.
    """
    seeds = pruned[pruned["type"].isin(["EWN", second])].groupby(["level", "type"])["seed"].nunique().unstack()
    pairs = seeds.dropna().min(axis=1)
    return (pairs[pairs >= evidence.NEEDED] if (pairs >= evidence.NEEDED).any() else pairs).index.min()


def end_labels(axes, lines, gap=0.045):
    """Write every line's label at its right end, pushed apart where they would touch; `gap` is of the height."""
    axes.autoscale_view()  # which matplotlib puts off: before it, `transData` is of other limits
    to_axes = (axes.transData + axes.transAxes.inverted()).transform
    ends = [(*to_axes((line.get_xdata()[-1], line.get_ydata()[-1])), line) for line in lines]
    at, units = -np.inf, ("axes fraction", "offset points")
    for x, wanted, line in sorted(ends, key=lambda end: end[1]):
        at = max(wanted, at + gap)
        axes.annotate(line.get_label(), (x, at), (3, 0), *units, color=line.get_color(), va="center")
