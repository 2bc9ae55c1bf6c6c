"""The panels of the train-time pruning summary: tidy rows from its records, and functions that draw a kind of panel."""

from collections import Counter

import numpy as np
import pandas as pd

from lib.figures import drawing, evidence, gallery, plots, tables
from lib.records import runs

CONTROLS = ("none", "small")  # types that no method prunes
ORDER = ("none", "contribution", "magnitude", "random", "worst", "small")  # of the known types in legends and tables
LEGEND = tuple(drawing.look(kind)[0] for kind in ORDER)
TOOTH = 0.01  # epochs between what a pruning meets and what it leaves


def groups(experiment, datasets, by):
    """Return `{"data set, k rounds": records}`, the largest group of comparable runs for each value of `by`.

    by: the parameter that sets the number of rounds; values with the same number are told apart. Data sets as in the
    list, fewer rounds first; records by type as in `ORDER`, then by seed. Runs without any round are left out.
    """
    titled, every = {}, runs.records(experiment)
    for dataset in datasets:
        own = [record for record in every if record.parameters["dataset"] == dataset]
        values = {record.parameters[by] for record in own}
        each = {value: tables.comparable([one for one in own if one.parameters[by] == value]) for value in values}
        each = [(max(records[0].axes["round"]), value, records)
                for value, records in each.items() if records[0].axes["round"]]  # fmt: skip
        often = Counter(rounds for rounds, *_ in each)
        for rounds, value, records in sorted(each, key=lambda one: one[:2]):
            order = drawing.ordered([record.type for record in records], ORDER)
            title = f"{dataset}, {rounds} round{'s' * (rounds > 1)}" + f", {by} {value}" * (often[rounds] > 1)
            titled[title] = sorted(records, key=lambda record: (order.index(record.type), record.seed))  # noqa: B023
    return titled


def curves(records):
    """Return the test accuracy in % by epoch of every record, rows of type, seed, epoch, accuracy.

    What each pruning left before any training stands just behind its epoch.
    """
    parts = []
    for record in records:
        values, at, left = (record.array(name)[0] for name in ("test_accuracy", "prune_epoch", "after_prune_accuracy"))
        there = np.isfinite(left)
        epochs = np.append(np.arange(len(values), dtype=float), at[there] + TOOTH)
        accuracy = 100 * np.append(values, left[there])
        rows = {"type": record.type, "seed": record.seed, "epoch": epochs, "accuracy": accuracy}
        parts.append(pd.DataFrame(rows).sort_values("epoch"))
    return pd.concat(parts, ignore_index=True)


def rounds(records):
    """Return what every round did, rows of type, seed and round, which is 0 before the first pruning.

    epoch: at which the round ends; pruned: share of hidden units that are gone, train, test: accuracy when it ends,
    before, after: test accuracy on both sides of the pruning that it starts with, all in %; by layer its width.
    """
    parts = []
    for record in records:
        names = "prune_epoch", "widths", "start_widths", "after_prune_accuracy", "train_accuracy", "test_accuracy"
        started, widths, start, after, train, test = (record.array(name)[0] for name in names)
        each, ends = np.vstack([start, widths]), np.append(started.astype(int), len(test) - 1)
        values = {"train": train[ends], "test": test[ends], "pruned": 1 - each.sum(1) / start.sum()}
        values |= {"before": np.append(np.nan, test[ends[:-1]]), "after": np.append(np.nan, after)}
        rows = {"type": record.type, "seed": record.seed, "round": range(len(ends)), "epoch": ends}
        rows |= {name: 100 * value for name, value in values.items()}
        parts.append(pd.DataFrame(rows | dict(zip(record.axes["layer"], each.T, strict=True))))
    return pd.concat(parts, ignore_index=True)


def training(axes, frame, kind, events):
    """Draw the accuracy of one type by epoch, in front of that without pruning, and a line at each of `events`.

    frame: rows of `curves`; events: epochs. A type without rows leaves its panel away.
    """
    if kind not in set(frame["type"]):
        return axes.axis("off")
    axes.set_title(drawing.look(kind)[0])
    for one, width in (("none", 0.8), (kind, 1.2)):
        if len(mine := frame[frame["type"] == one]):
            drawing.spread(axes, mine, "epoch", "accuracy", one, label=one == "none", linewidth=width)
    for event in () if kind in CONTROLS else events:
        axes.axvline(event, color="black", linewidth=0.5, ls=":", zorder=0, label="a tenth of the units goes")


def kept(axes, frame, split):
    """Draw the accuracy of every type at the end of its rounds against the share of units that are gone: medians.

    frame: rows of `rounds`. The control, which has one width alone, is a marker with quartiles.
    """
    rows = _last(frame[~frame["type"].isin(CONTROLS)], "pruned")
    plots.lines(axes, rows, "pruned", split, ORDER, medians=True, markersize=2)
    small = frame[frame["type"] == "small"]
    if len(last := small[small["round"] == small["round"].max()]):
        label, colour, marker, _ = drawing.look("small")
        low, middle, high = np.quantile(last[split], (0.25, 0.5, 0.75))
        axes.errorbar(last["pruned"].mean(), middle, [[middle - low], [high - middle]], fmt=marker, color=colour,
                      markersize=4, label=label)  # fmt: skip


def _last(frame, size):
    """Return the rows but those before a round that took nothing away, since all layers had their least width."""
    return frame.drop_duplicates(["type", "seed", size], keep="last")


def against_unpruned(frame):
    """Return how much higher the test accuracy of every type is than without pruning, paired by seed and epoch.

    frame: rows of `rounds`. Rows as of `tables.paired`, in points, with the share of units that are gone.
    """
    kinds = [kind for kind in drawing.ordered(frame["type"], ORDER) if kind not in CONTROLS]
    gains = tables.paired(frame, [(kind, "none") for kind in kinds], ["epoch"], "test")
    shares = frame.groupby(["type", "epoch"], as_index=False)["pruned"].mean().rename(columns={"type": "first"})
    return gains.merge(shares, on=["first", "epoch"])


def claims(title, frame, ends, main):
    """Return the claims about contribution: what it costs at about 40 % of the units, and what it is better than.

    frame: rows of `rounds`; ends: its last rows, one per type and seed; main: whether the verdict stands on them.
    """
    if "contribution" not in set(frame["type"]):
        return []
    away = (frame[frame["type"] == "contribution"].groupby("epoch")["pruned"].mean() - 40).abs()
    here = frame[frame["epoch"] == away.idxmin()]
    gone, title = here[here["type"] == "contribution"]["pruned"].mean(), drawing.words(title)
    text = f"{title}: {gone:.0f} % of the units go for less than half a point"
    gains = evidence.apart(here, "contribution", "none", "test")
    told = [gallery.claim(text, gains, than=-0.5, main=main)] if len(gains) else []
    pairs = [("contribution", other) for other in ("random", "magnitude", "worst", "small")]
    decisive = [pairs[0], pairs[-1]] if main else ()
    return told + gallery.ahead(ends, pairs, "test", f"{title}: {{}} ends above {{}}", decisive)


def differences(axes, gains):
    """Draw rows of `against_unpruned`: mean and 95 % interval by the share of units that are gone."""
    for kind, mine in gains.groupby("first", sort=False):
        drawing.apart(axes, mine, "pruned", drawing.look(kind))


def recovery(axes, frame, value):
    """Draw by round how far the test accuracy is from what it was before a pruning: "after" it, or at the end ("test").

    frame: rows of `rounds`.
    """
    later = frame[(frame["round"] > 0) & ~frame["type"].isin(CONTROLS)]
    plots.lines(axes, later.assign(change=later[value] - later["before"]), "round", "change", ORDER, markersize=2)
    axes.axhline(0, color="black", linewidth=0.5)


# ---- autoencoders


def autoencoders(records, count):
    """Return what was left when each round ended, rows of type, seed and round, 0 before the first pruning.

    epoch; reconstruction, kl: of the test images, nats an image; parameters: in millions, `count(parameters, record)`
    by round of the types that prune, where "none" stands too.
    """
    parts = []
    for record in records:
        names = "round_epoch", "test_reconstruction", "test_kl"
        starts, reconstruction, kl = (record.array(name)[0] for name in names)
        ends, sizes = np.append(starts[1:].astype(int), len(kl) - 1), count(record.parameters, record)
        rows = {"type": record.type, "seed": record.seed, "round": range(len(ends)), "epoch": ends}
        rows |= {"parameters": sizes / 1e6, "reconstruction": reconstruction[ends], "kl": kl[ends]}
        parts.append(pd.DataFrame(rows))
    return pd.concat(parts, ignore_index=True)


def left_over(axes, frame, name):
    """Draw how much more of the loss `name` than without pruning there is, against the parameters of each round.

    frame: rows of `autoencoders`. Paired by seed; without pruning the parameters are as many as the others have.
    """
    parts = [tables.gains(frame, kind, "none", ["round"], name).assign(type=kind) for kind in frame["type"].unique()]
    sizes = frame.groupby(["type", "round"], as_index=False)["parameters"].first()
    rows = _last(pd.concat(parts).merge(sizes), "parameters")
    plots.lines(axes, rows[rows["type"] != "none"], "parameters", "gain", ORDER, markersize=2.5)
    axes.axhline(0, color="black", linewidth=0.5)


def picture(axes, image, title, rows=()):
    """Show an image without ticks but for what each of its `rows`, all of one height, is."""
    axes.imshow(image)
    axes.set(title=title, xticks=[], yticks=[(k + 0.5) * len(image) / len(rows) for k in range(len(rows))])
    axes.set_yticklabels(rows)
    axes.tick_params(length=0)
