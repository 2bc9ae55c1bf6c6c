"""What the arena's records say: groups that are comparable, tidy rows, ranks, costs, and who wins; nothing is drawn."""

import numpy as np
import pandas as pd

from lib.figures import drawing, evidence, tables
from lib.records import runs
from lib.studies.arena import bout, entrants

RANDOM = {"units": "random_units", "after": "random", "during": "random_gradual", "before": "random_init"}
FREE = ("none", "small", *RANDOM.values())  # what methods are measured against
WANTED = (  # what a summary says is missing; a verdict stands on the first two
    "MNIST, MLP 1024", "FashionMNIST, MLP 1024", "CIFAR-10, ResNet20", "MNIST, MLP 1024, EWN to −10",
    "MNIST, MLP 1024, SWN to −10", "MNIST, MLP 1024, no-WN to −10", "MNIST, MLP 1000-1000-500-200",
    "FashionMNIST, MLP 1000-1000-500-200",
)  # fmt: skip
ENDS = {when: end for end, when in entrants.WHEN.items()}  # of the types of weights, by the moment of pruning
PAIRS = ("during", "after"), ("before", "after"), ("during", "before")  # moments of pruning that are compared
NETWORK = ("dataset", "net", "hidden", "width", "norm", "level")  # parameters that tell networks apart
NUMBERS = ["raw", "reweighted", "tuned", "shuffled", "gap", "held_out", "error", "true", "effective", "macs", "work",
           "seconds"]  # fmt: skip


def groups():
    """Return `{title: records}`: of every network the largest set of comparable records, in the order of `WANTED`."""
    found = {}
    for record in runs.records("arena"):
        found.setdefault(tuple(str(record.parameters[name]) for name in NETWORK), []).append(record)
    named = {_title(own[0].parameters): tables.comparable(own) for own in found.values()}
    return {title: named[title] for title in drawing.ordered(named, WANTED)}


def _title(p):
    name = f"MLP {'-'.join(map(str, p['hidden']))}" if p["net"] == "mlp" else drawing.words(p["net"])
    name += f" of width {p['width']}" if p["width"] else ""
    trained = f", {p['norm']}" if p["level"] or p["norm"] != "no-WN" else ""
    trained += f" to {p['level']:g}".replace("-", "−") if p["level"] else ""
    return drawing.words(f"{p['dataset']}, {name}{trained}")


def rows(records):
    """Return what records say, rows of type, seed, family and sparsity, accuracies and true sparsities in %.

    raw, reweighted, tuned: on the test set; shuffled: tuned, of shuffled masks; gap: how far its own are above;
    held_out; error: 100 - tuned; true, effective; macs: share of the whole network's, in %; work: multiplications
    without the units that lie on no path, all inputs there; seconds that the mask took. NaN is never right.
    """
    columns = {}
    for record in records:
        accuracy, held_out = (100 * record.array(name)[0] for name in ("accuracy", "held_out_accuracy"))
        own = dict(zip(bout.STAGES, accuracy[0], strict=True)) | {"held_out": held_out[0], "shuffled": accuracy[1, -1]}
        own |= {name: 100 * record.array(f"{name}_sparsity")[0] for name in ("true", "effective")}
        own |= {"macs": 100 * record.array("macs")[0] / record.cost["dense_macs"], "work": _work(record)}
        family = record.scores["when"] if record.scores["of"] == "weights" else record.scores["of"]
        own |= {"type": record.type, "seed": record.seed, "family": family, "seconds": record.cost["mask_seconds"]}
        own |= {"sparsity": record.axes["sparsity"]}
        for name, values in own.items():
            columns.setdefault(name, []).append(np.broadcast_to(values, len(own["sparsity"])))
    frame = pd.DataFrame({name: np.concatenate(parts) for name, parts in columns.items()})
    tuned = frame["tuned"].fillna(0)
    return frame.assign(tuned=tuned, error=100 - tuned, gap=tuned - frame["shuffled"])


def _work(record):
    """Return the multiplications of a network of the live units by sparsity; of an MLP all inputs and outputs stay."""
    p, live = record.parameters, record.array("live_units")[0]
    if p["net"] != "mlp":
        return record.array("macs")[0]
    inputs, *_, classes = entrants.sizes(p)
    widths = np.pad(live[:, :-1].astype(float), ((0, 0), (1, 1)), constant_values=((0, 0), (inputs, classes)))
    return (widths[:, 1:] * widths[:, :-1]).sum(1)


def whole(frame):
    """Return (the rows of the types that can be ranked, {type: seeds} of the others).

    Of the seeds that all types have which have most, a type needs six, or all, if these are fewer.
    """
    counts = frame.groupby("type")["seed"].nunique()
    most = frame[frame["type"].isin(counts.index[counts == counts.max()])].groupby("seed")["type"].nunique()
    frame = frame[frame["seed"].isin(most.index[most == most.max()])]
    own = frame.groupby("type")["seed"].nunique().reindex(counts.index, fill_value=0)
    few = counts[own < min(evidence.NEEDED, own.max())]
    return frame[~frame["type"].isin(few.index)], few.to_dict()


def ladder(frame):
    """Return (what is known of every type at one sparsity, the best first; all `duels`), from rows of `whole`.

    rank, low, high: see `evidence.ranks`; ghost: the rank that its shuffled masks would have among the others; wins,
    ties, losses: against all others; n: seeds; means over seeds of all numbers of `rows`, see `evidence.means` for
    those by which types are ordered, but the least seconds: other work adds some; sd: the spread of the tuned accuracy.
    """
    wide = {name: frame.pivot(index="seed", columns="type", values=name) for name in ("tuned", "held_out")}
    outcome, kinds = evidence.duels(wide["tuned"]), wide["tuned"].columns
    found = pd.DataFrame(dict(zip(("rank", "low", "high"), evidence.ranks(wide["tuned"]), strict=True)), kinds)
    for name, what in (("wins", 1), ("ties", 0), ("losses", -1)):
        found[name] = (outcome == what).sum(1) - (what == 0)
    own = frame.groupby("type")
    found = found.join(own[NUMBERS].mean()).join(own[["family"]].first())
    found = found.assign(sd=own["tuned"].std(ddof=0), n=own["seed"].nunique(), seconds=own["seconds"].min())
    found = found.assign(**{name: evidence.means(values.to_numpy()) for name, values in wide.items()})
    above = found["tuned"].to_numpy() > found["shuffled"].to_numpy()[:, None]
    np.fill_diagonal(above, False)
    found["ghost"] = (1 + above.sum(1)).astype(float)
    found.loc[found["shuffled"].isna(), "ghost"] = np.nan
    found = found.assign(error=100 - found["tuned"]).sort_values(["rank", "type"])
    return found, pd.DataFrame(outcome, kinds, kinds).loc[found.index, found.index]


def points(frame):
    """Return the means over seeds of macs, work and error by type and sparsity; what is not pruned stands once."""
    found = frame.groupby(["type", "family", "sparsity"], as_index=False)[["macs", "work", "error"]].mean()
    return found.drop_duplicates(["type", "macs", "error"])


def speeds(records):
    """Return the median milliseconds of a pass of one shrunk network, rows of batch, work and ms; none without records.

    From `sparse_speed` of networks of these sizes, whose units were taken out; it measures MLPs without biases.
    """
    p, parts = records[0].parameters, []
    shape = ("net", "hidden") if p["net"] == "mlp" else ("net",)
    for record in runs.records("sparse_speed", type="shrunk"):
        units = record.axes["whole"].index("neuron")
        work, took = record.array("macs")[0][units], record.array("latency")[0][units, :, :, 0]
        if work.max() == records[0].cost["dense_macs"] and all(record.parameters[name] == p[name] for name in shape):
            parts += [pd.DataFrame({"batch": batch, "work": work, "ms": took[:, k]})
                      for k, batch in enumerate(record.axes["batch"])]  # fmt: skip
    found = pd.concat(parts) if parts else pd.DataFrame(columns=["batch", "work", "ms"])
    return found.groupby(["batch", "work"], as_index=False)["ms"].median()


def timed(found, measured):
    """Return `found` with the milliseconds of so much `work`, between measured ones and nan beyond them.

    measured: rows of `speeds`, of one batch. Both logarithms are interpolated linearly.
    """
    ms = np.full(len(found), np.nan)
    if len(measured):
        at, took = (np.log(measured[name].to_numpy(float)) for name in ("work", "ms"))
        work = np.log(found["work"].where(found["work"] > 0))
        ms = np.exp(np.interp(work, at, took, left=np.nan, right=np.nan))
    return found.assign(ms=ms)


def winners(table):
    """Return the type of every family that is best on the holdout, `{family: type}`; controls win nothing."""
    own = table.drop(index=[kind for kind in FREE if kind in table.index])
    return own.groupby("family")["held_out"].idxmax().to_dict()


def own_minus_shuffled(frame, table):
    """Return by how much every method's own masks are above their shuffles, `{type: (n,)}`; random ones are alike."""
    kinds = [kind for kind in table.index[table["shuffled"].notna()] if kind not in FREE]
    return {kind: frame[frame["type"] == kind].sort_values("seed")["gap"].to_numpy() for kind in kinds}


def moments(frame):
    """Return `{score: {family: type}}` of the scores that choose weights at more than one moment of training.

    Of a trained network SNIP's score is Taylor's.
    """
    found = {}
    for kind, family in frame.groupby("type")["family"].first().items():
        if family in ENDS:
            score = "snip" if kind == "taylor" else kind.removesuffix(ENDS[family])
            found.setdefault(score, {})[family] = kind
    return {score: found[score] for score in drawing.ordered(found) if len(found[score]) > 1}


def compared(kinds):
    """Return the `PAIRS` of moments at which a score of `moments`, `{family: type}`, has a type."""
    return [(one, other) for one, other in PAIRS if {one, other} <= kinds.keys()]


def apart_by_moment(frame):
    """Return rows of `tables.paired`, with the score and both moments beside the two types, by score and sparsity."""
    parts = []
    for score, kinds in moments(frame).items():
        pairs = [(kinds[one], kinds[other]) for one, other in compared(kinds)]
        rows = tables.paired(frame, pairs, ["sparsity"], "tuned")
        clear = rows["verdict"] != "undecided"
        when = {kind: family for family, kind in kinds.items()}
        parts.append(rows.assign(score=score, clear=clear, one=rows["first"].map(when), other=rows["second"].map(when)))
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=["score"])
