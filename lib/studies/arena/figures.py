"""The panels, the leaderboard and the reading of the arena's summary, from tidy rows of its records."""

import itertools

import numpy as np
import pandas as pd
import scipy
from matplotlib.colors import ListedColormap
from matplotlib.ticker import MaxNLocator

from lib.figures import drawing, evidence, gallery, tables
from lib.records import runs
from lib.studies.arena import bout, entrants

FAMILIES = {  # what a type prunes, and when: (in words, colour, marker)
    "units": ("units, after training", drawing.RED, "s"),
    "after": ("weights, after training", drawing.BLUE, "o"),
    "early": ("weights, before or during training", drawing.GREEN, "^"),
    "control": ("controls", drawing.BLACK, "D"),
}
RANDOM = {"units": "random_units", "after": "random", "early": "random_init"}
FREE = ("none", "small", *RANDOM.values())  # what methods are measured against
ENDS = {"_units": " units", "_init": " at start", "_gradual": " gradually"}  # of types, and what they say
WANTED = (  # what a summary says is missing
    "MNIST, MLP 1024", "FashionMNIST, MLP 1024", "MNIST, MLP 1000-1000-500-200", "FashionMNIST, MLP 1000-1000-500-200",
    "CIFAR-10, ResNet20",
)  # fmt: skip
NETWORK = ("dataset", "net", "hidden", "width", "norm", "level")  # parameters that tell networks apart


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


def groups():
    """Return `{title: records}`: of every network and data set the largest set of comparable records; MNIST first."""
    found = {}
    for record in runs.records("arena"):
        found.setdefault(tuple(str(record.parameters[name]) for name in NETWORK), []).append(record)
    known = [dataset for dataset in drawing.WORDS if any(key[0] == dataset for key in found)]
    order = sorted(found, key=lambda key: (known.index(key[0]), *key))
    return {_title(found[key][0].parameters): tables.comparable(found[key]) for key in order}


def _title(p):
    name = f"MLP {'-'.join(map(str, p['hidden']))}" if p["net"] == "mlp" else drawing.words(p["net"])
    name += f" of width {p['width']}" if p["width"] else ""
    trained = f", {p['norm']} to {p['level']:g}" if p["level"] else f", {p['norm']}" if p["norm"] != "no-WN" else ""
    return drawing.words(f"{p['dataset']}, {name}{trained}")


def rows(records):
    """Return what records say, rows of type, seed, family and sparsity, accuracies and true sparsities in %.

    raw, reweighted, tuned: on the test set; shuffled: tuned, of shuffled masks; held_out; error: 100 - tuned; true,
    effective; macs: share of the whole network's, in %; work: multiplications without the units that lie on no path,
    nan of what is no MLP; seconds that the mask took. A network whose outputs are no numbers is never right.
    """
    parts = []
    for record in records:
        accuracy, held_out = (100 * record.array(name)[0] for name in ("accuracy", "held_out_accuracy"))
        own = dict(zip(bout.STAGES, accuracy[0], strict=True)) | {"held_out": held_out[0], "shuffled": accuracy[1, -1]}
        own |= {name: 100 * record.array(f"{name}_sparsity")[0] for name in ("true", "effective")}
        own |= {"macs": 100 * record.array("macs")[0] / record.cost["dense_macs"], "work": _work(record)}
        family = {"": "control", "control": "control", "units": "units"}.get(record.scores["of"])
        family = family or ("after" if record.scores["when"] == "after" else "early")
        own |= {"type": record.type, "seed": record.seed, "family": family, "seconds": record.cost["mask_seconds"]}
        parts.append(pd.DataFrame(own | {"sparsity": record.axes["sparsity"]}))
    frame = pd.concat(parts, ignore_index=True)
    tuned = frame["tuned"].fillna(0)
    return frame.assign(tuned=tuned, error=100 - tuned)


def _work(record):
    """Return the multiplications of an MLP of the live units by sparsity; its inputs and outputs all stay."""
    p, live = record.parameters, record.array("live_units")[0]
    if p["net"] != "mlp":
        return np.full(len(live), np.nan)
    inputs, *_, classes = entrants.sizes(p)
    widths = np.pad(live[:, :-1].astype(float), ((0, 0), (1, 1)), constant_values=((0, 0), (inputs, classes)))
    return (widths[:, 1:] * widths[:, :-1]).sum(1)


def whole(frame):
    """Return (the rows of the types that have all seeds, {type: seeds} of the others): ranks are of the same seeds."""
    counts = frame.groupby("type")["seed"].nunique()
    few = counts[counts < counts.max()]
    return frame[~frame["type"].isin(few.index)], few.to_dict()


def ladder(frame):
    """Return what is known of every type at one sparsity, the best first, from rows that have all seeds.

    rank, low, high: see `evidence.ranks`; ghost: the rank that its shuffled masks would have among the others; wins,
    ties, losses: against all others; means over seeds of all numbers of `rows`, sd: the spread of the tuned accuracy.
    """
    wide = frame.pivot(index="seed", columns="type", values="tuned")
    rank, low, high = evidence.ranks(wide)
    _, outcome = evidence.duels(wide)
    found = pd.DataFrame({"rank": rank, "low": low, "high": high}, wide.columns)
    for name, what in (("wins", 1), ("ties", 0), ("losses", -1)):
        found[name] = (outcome == what).sum(1) - (what == 0)
    own = frame.groupby("type")
    found = found.join(own[NUMBERS].mean()).join(own[["family"]].first()).assign(sd=own["tuned"].std(ddof=0))
    above = found["tuned"].to_numpy() > found["shuffled"].to_numpy()[:, None]
    np.fill_diagonal(above, False)
    found["ghost"] = (1 + above.sum(1)).astype(float)
    found.loc[found["shuffled"].isna(), "ghost"] = np.nan
    return found.sort_values(["rank", "type"])


NUMBERS = ["raw", "reweighted", "tuned", "shuffled", "held_out", "error", "true", "effective", "macs", "work",
           "seconds"]  # fmt: skip


# ---- panels


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


def points(frame):
    """Return the means over seeds of macs, work and error by type and sparsity; what is not pruned stands once."""
    found = frame.groupby(["type", "family", "sparsity"], as_index=False)[["macs", "work", "error"]].mean()
    return found.drop_duplicates(["type", "macs", "error"])


def speeds(records):
    """Return the median milliseconds of a pass of one shrunk MLP, rows of batch, work and ms; none without records.

    From `sparse_speed` of networks of these sizes, whose units were taken out; it measures them without biases.
    """
    p, parts = records[0].parameters, []
    for record in runs.records("sparse_speed", type="shrunk"):
        units = record.axes["whole"].index("neuron")
        work, took = record.array("macs")[0][units], record.array("latency")[0][units, :, :, 0]
        if record.parameters["hidden"] == p["hidden"] and work.max() == records[0].cost["dense_macs"]:
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


def front(axes, found, x):
    """Draw errors against a cost, the column `x`, and a line through the rows that nothing is cheaper and better than.

    Return these rows, the cheapest first.
    """
    found = found.dropna(subset=[x])
    for family, (said, colour, marker) in FAMILIES.items():
        own = found[found["family"] == family]
        axes.plot(own[x], own["error"], marker, color=colour, alpha=0.6, markeredgewidth=0, label=said)
    best = found.sort_values([x, "error"])
    best = best[best["error"] < best["error"].cummin().shift(fill_value=np.inf)]
    axes.plot(best[x], best["error"], color="black", linewidth=0.6, drawstyle="steps-post", zorder=0)
    for axis in ("x", "y"):
        drawing.log_ticks(axes, axis)
    return best


# ---- tables and words


def leaderboard(table, records):
    """Return the table of `ladder` as Markdown, with the milliseconds of one image and of a batch where measured."""
    took = {f"ms, {batch} image{'s' * (batch > 1)}": timed(table, own)["ms"].to_numpy()
            for batch, own in speeds(records).groupby("batch")}  # fmt: skip
    lines = []
    for k, (kind, own) in enumerate(table.iterrows()):
        cells = [f"{own['rank']:g} ({own['low']:g} to {own['high']:g})", label(kind), FAMILIES[own["family"]][0]]
        cells += [_known(own["raw"]), _known(own["reweighted"]), f"{_known(own['tuned'])} ± {_known(own['sd'])}"]
        cells += [_known(own["tuned"] - own["shuffled"]), f"{own['wins']} / {own['ties']} / {own['losses']}"]
        cells += [_known(own[name], 1) for name in ("true", "effective", "macs")]
        lines.append([*cells, *(_known(ms[k], 3) for ms in took.values()), _known(own["seconds"])])
    return gallery.pipes(["rank (95 %)", "type", "what goes, and when", "raw", "reweighted", "tuned", "− shuffled",
                          "won / tied / lost", "true", "effective", "MACs", *took, "mask (s)"], lines)  # fmt: skip


def _known(value, digits=2):
    return "" if np.isnan(value) else gallery.number(value, digits)


def winners(table):
    """Return the type of every family that is best on the holdout, `{family: type}`; controls win nothing."""
    own = table.drop(index=[kind for kind in FREE if kind in table.index])
    return own.groupby("family")["held_out"].idxmax().to_dict()


def claims(title, frame, table, main):
    """Return the claims of one network at one sparsity: what is best on the holdout against what costs nothing.

    frame: rows that have all seeds; main: whether the verdict stands on them. And own masks against shuffled ones.
    """
    best, found = winners(table), []
    pairs = [(best[family], other, family != "early") for family in ("units", "after", "early") if family in best
             for other in (RANDOM[family], "small")]  # fmt: skip
    pairs += [(best[one], best[other], False) for one, other in itertools.combinations(best, 2)]
    for kind, other, counts in pairs:
        text = f"{title}: {label(kind)}, the best on the holdout, is above {label(other)}"
        found.append(gallery.claim(text, evidence.apart(frame, kind, other, "tuned"), main=main and counts))
    for kind, gains in _own_minus_shuffled(frame, table).items():
        text = f"{title}: {label(kind)} is above its own masks, shuffled"
        found.append(gallery.claim(text, gains, main=main and kind == best.get("after")))
    return found


def reading(title, frame, table):
    """Return sentences about one network at one sparsity: what cannot be told apart, and where a control wins."""
    wide = frame.pivot(index="seed", columns="type", values="tuned")[list(table.index)]
    _, outcome = evidence.duels(wide)
    outcome, pairs = pd.DataFrame(outcome, table.index, table.index), len(table) * (len(table) - 1) // 2
    decided = int((outcome.to_numpy() > 0).sum())
    methods = [kind for kind in table.index if kind not in FREE]
    said = [f"Of {pairs} pairs {decided} are told apart; were all alike, {0.05 * pairs:.0f} would be by chance."]
    for family, first in winners(table).items():
        alike = [kind for kind in methods if kind != first and outcome.loc[first, kind] == 0]
        ties = f"it cannot be told apart from {_listed(alike)}" if alike else "no method ties with it"
        said.append(f"Of {FAMILIES[family][0]}, {label(first)} is the best on the holdout; on the test set {ties}.")
    for free in [kind for kind in table.index if kind in FREE and kind != "none"]:
        above, alike = ([kind for kind in methods if outcome.loc[free, kind] == what] for what in (1, 0))
        parts = [f"{what} {_listed(kinds)}" for what, kinds in (("is above", above), ("ties with", alike)) if kinds]
        said.append(f"The control {label(free)} {' and '.join(parts) or 'is below every method'}.")
    gains = {kind: evidence.judged(own) for kind, own in _own_minus_shuffled(frame, table).items()}
    alike = [kind for kind, found in gains.items() if found["verdict"] != "confirmed"]
    if gains:
        said.append(f"Of {len(gains)} types whose masks were shuffled {len(alike)} are not above that"
                    + (f": {_listed(alike)}." if alike else "."))  # fmt: skip
    both = table.dropna(subset=["raw"])
    rho = scipy.stats.spearmanr(both["raw"], both["tuned"]).statistic if len(both) > 2 else np.nan
    if np.isfinite(rho):
        said.append(f"The order at once and the order after training correlate by {gallery.number(rho)} (Spearman).")
    return "\n".join([f"**{title}**, n = {len(wide)}:\n", *(f"- {one}" for one in said)])


def _own_minus_shuffled(frame, table):
    """Return by how much every method's own masks are above their shuffles, `{type: (n,)}`; random ones are alike."""
    kinds = [kind for kind in table.index[table["shuffled"].notna()] if kind not in FREE]
    each = {kind: frame[frame["type"] == kind].sort_values("seed") for kind in kinds}
    return {kind: (own["tuned"] - own["shuffled"]).to_numpy() for kind, own in each.items()}


def cheapest(best, what):
    """Return a sentence about the rows that `front` returned."""
    each = ", ".join(label(kind) + (f" at {at:.0%}" if kind != "none" else "")
                     for kind, at in zip(best["type"], best["sparsity"], strict=True))  # fmt: skip
    return f"- By {what} nothing is both cheaper and better than, from cheap to good: {each}."


def agreement(tables):
    """Return sentences on how far two networks agree on the order of types that both have; tables: of `ladder`."""
    said = []
    for (one, first), (other, second) in itertools.combinations(tables.items(), 2):
        ranks = first[["tuned"]].join(second["tuned"].rename("other"), how="inner")
        if len(ranks) > 2:
            rho = gallery.number(scipy.stats.spearmanr(*ranks.to_numpy().T).statistic)
            said.append(f"The orders of {one} and {other} correlate by {rho} (Spearman, {len(ranks)} types).")
    return said


def _listed(kinds):
    return ", ".join(map(label, kinds))
