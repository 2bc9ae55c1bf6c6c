"""What summaries compute between reading records and drawing: groups, means beside published means, resampling."""

import numpy as np
import pandas as pd

from lib.errors import RecordError
from lib.figures import drawing, evidence
from lib.records import runs
from lib.records.parameters import scientific, without

# Parameters that notebooks had once; at their defaults in every record, so that they tell none apart.
GONE = ("own_order", "batch_mean_loss")


def largest_group(experiment, free=(), **where):
    """Return the parameters shared by the largest set of comparable records, as a filter for `runs.curves`.

    free: parameters in which they may differ, see `comparable`; where: narrows the choice. RecordError without any.
    """
    return _setting(comparable(_found(experiment, where), free)[0], free)


def comparable(records, free=()):
    """Return the largest set of `records` that differ in nothing but seed, type, how they were computed, and `free`."""
    settings = [_setting(record, free) for record in records]
    largest = max(settings, key=settings.count)
    return [record for record, setting in zip(records, settings, strict=True) if setting == largest]


def deep_groups(experiment, **where):
    """Return what `largest_group` does, of every set of records that has seeds enough of two types to decide.

    The one that went deepest with so many (`evidence.NEEDED`) comes first. Records that differ in `levels` are
    comparable: one of -300 has passed -100. Without enough seeds anywhere, the deepest set alone, of such the largest.
    """
    settings, rows = [], []
    for record in _found(experiment, where):
        setting = _setting(record, ["levels"])
        settings += [] if setting in settings else [setting]
        at = settings.index(setting)
        there = [level for level in record.parameters["levels"] if record.scores[f"log_loss_at_{level:g}"] is not None]
        rows += [(at, level, record.type, record.seed) for level in there]
    frame = pd.DataFrame(rows, columns=["at", "level", "type", "seed"])
    seeds = frame.groupby(["at", "level", "type"])["seed"].nunique()
    pairs = seeds.groupby(["at", "level"]).agg(lambda n: n.nlargest(2).min() if len(n) > 1 else 0)
    enough = pairs[pairs >= evidence.NEEDED]
    ranked = sorted(pairs.index if enough.empty else enough.index, key=lambda key: (key[1], -pairs[key]))
    groups = [settings[at] for at in dict.fromkeys(at for at, _ in ranked)]
    return groups[:1] if enough.empty else groups


def _found(experiment, where):
    records = runs.filtered(experiment, where)
    if not records:
        raise RecordError(f"no run of {experiment} {where or ''} has a record yet: ./run_all.sh makes them.")
    return records


def _setting(record, free):
    return without(scientific(record.parameters), {*free, *GONE})


def deepest(frame):
    """Return the rows that belong to the record with the most `levels` of every type and seed.

    A run that went to -300 has passed -10 on the way, so its record repeats that of the shorter run.
    """
    if "levels" not in frame:
        return frame
    depth = frame["levels"].astype(str).str.count(",")
    return frame[depth == depth.groupby([frame["type"], frame["seed"]]).transform("max")].drop(columns="levels")


def beside(ours, facts, by, value):
    """Return our mean and spread of `value` beside the published, one row per group of the columns `by`.

    Both frames have one row per seed and group. sd is the population standard deviation over seeds, as the
    studies report it; the last column is the difference of the means in published standard deviations.
    """
    parts = {}
    for name, frame in (("ours", ours), ("published", facts)):
        groups = frame.groupby(by, observed=True)[value]
        parts |= {name: groups.mean(), f"{name} sd": groups.std(ddof=0), f"{name} n": groups.count()}
    table = pd.DataFrame(parts)
    table = table[table["ours n"] > 0].astype({"ours n": int})
    return table.assign(**{"difference / sd": (table["ours"] - table["published"]) / table["published sd"]})


def joined(experiment, names, columns=(), /, **where):
    """Return the arrays `names` of all records as columns of one tidy table, one row per element they share.

    The parameters in `columns` are such even if they have one value everywhere. `where`: see `runs.records`.
    """
    frame = runs.curves(experiment, names[0], **where)
    for name in names[1:]:
        frame = frame.merge(runs.curves(experiment, name, **where))
    records = runs.records(experiment, **where) if columns else []
    constant = {key: records[0].parameters[key] for key in columns if records and key not in frame}
    return frame.assign(**constant)


def gains(frame, first, second, by, value):
    """Return how much more `value` the first type has than the second, a row for each seed and group of `by`.

    The column of the difference is gain. What only one of both types has is left out.
    """
    return evidence.differences(frame, [*by, "seed"], (first, second), value).rename("gain").reset_index()


def paired(frame, pairs, by, value):
    """Return how much more `value` the first type of every pair has than the second, one row per pair and group `by`.

    Paired by seed, judged as the claim that it has more: see `evidence.judged` for the columns. pairs: of types,
    [(first, second), ...], which must both have a group for it to be there.
    """
    parts = []
    for first, second in pairs:
        for key, own in gains(frame, first, second, by, value).groupby(list(by))["gain"]:
            row = {"first": first, "second": second, **dict(zip(by, key, strict=True))}
            parts.append(row | evidence.judged(own.to_numpy()))
    return pd.DataFrame(parts, columns=["first", "second", *by, *evidence.judged([])])


def resample(frame, x, y, at):
    """Return `y` at the values `at` of `x`, interpolated within each type and seed and missing beyond its ends."""
    at, parts = np.asarray(at, float), []
    for (kind, seed), group in frame.groupby(["type", "seed"], observed=True):
        group = group.sort_values(x)
        values = np.interp(at, group[x], group[y], left=np.nan, right=np.nan)
        parts.append(pd.DataFrame({"type": kind, "seed": seed, x: at, y: values}))
    return pd.concat(parts, ignore_index=True)


def sweeps(experiment, **where):
    """Return the record with the most seeds of every type, {type: record}, in the order of the types' looks."""
    found = sorted(runs.records(experiment, **where), key=lambda record: -len(record.axes.get("seed", ())))
    longest = {record.type: record for record in reversed(found)}
    return {kind: longest[kind] for kind in drawing.ordered(longest)}
