"""What the arena's summary says in words and tables, from the numbers of `standings`."""

import itertools

import numpy as np
import scipy

from lib.figures import evidence, gallery
from lib.studies.arena import standings
from lib.studies.arena.figures import FAMILIES, label
from lib.studies.arena.standings import FREE, PAIRS, RANDOM


def leaderboard(table, records):
    """Return the table of `ladder` as Markdown, with the milliseconds of one image and of a batch where measured."""
    took = {f"ms of such widths, {batch} image{'s' * (batch > 1)}": standings.timed(table, own)["ms"].to_numpy()
            for batch, own in standings.speeds(records).groupby("batch")}  # fmt: skip
    lines = []
    for k, (kind, own) in enumerate(table.iterrows()):
        cells = [f"{own['rank']:g} ({own['low']:g} to {own['high']:g})", label(kind), FAMILIES[own["family"]][0]]
        cells += [_known(own["raw"]), _known(own["reweighted"]), f"{_known(own['tuned'])} ± {_known(own['sd'])}"]
        cells += [_known(own["gap"]), f"{own['wins']} / {own['ties']} / {own['losses']}"]
        cells += [_known(own[name], 1) for name in ("true", "effective", "macs")]
        lines.append([*cells, *(_known(ms[k], 3) for ms in took.values()), _known(own["seconds"]), f"{own['n']:.0f}"])
    return gallery.pipes(["rank (95 %)", "type", "what goes, and when", "raw", "reweighted", "tuned", "− shuffled",
                          "won / tied / lost", "true", "effective", "MACs", *took, "mask (s)", "n"], lines)  # fmt: skip


def _known(value, digits=2):
    return "" if np.isnan(value) else gallery.number(value, digits)


def claims(title, frame, table, main):
    """Return the claims of one network at one sparsity: what is best on the holdout against what costs nothing.

    And one score at two moments, and own masks against shuffled ones. frame: rows of `standings.whole`; main: whether
    the verdict stands on them.
    """
    best, found = standings.winners(table), []
    pairs = [(best[family], other, family in ("units", "after")) for family in FAMILIES if family in best
             for other in (RANDOM[family], "small")]  # fmt: skip
    pairs += [(best[one], best[other], False) for one, other in itertools.combinations(best, 2)]
    for kind, other, counts in pairs:
        text = f"{title}: {label(kind)}, the best on the holdout, is above {label(other)}"
        found.append(gallery.claim(text, evidence.apart(frame, kind, other, "tuned"), main=main and counts))
    for score, kinds in standings.moments(frame).items():
        for one, other in standings.compared(kinds):
            text = f"{title}: {label(score)} {one} training is above {label(score)} {other} it"
            found.append(gallery.claim(text, evidence.apart(frame, kinds[one], kinds[other], "tuned")))
    for kind, gains in standings.own_minus_shuffled(frame, table).items():
        text = f"{title}: {label(kind)} is above its own masks, shuffled"
        found.append(gallery.claim(text, gains, main=main and kind == best.get("after")))
    return found


def reading(title, frame, table, outcome):
    """Return sentences about one network at one sparsity: what cannot be told apart, and where a control wins."""
    decided, pairs = int((outcome.to_numpy() > 0).sum()), len(table) * (len(table) - 1) // 2
    methods = [kind for kind in table.index if kind not in FREE]
    said = [f"Of {pairs} pairs {decided} are told apart; were all alike, about {0.05 * pairs:.0f} would be by chance."]
    for family, first in standings.winners(table).items():
        alike = [kind for kind in methods if kind != first and outcome.loc[first, kind] == 0]
        ties = f"it cannot be told apart from {_listed(alike)}" if alike else "no method ties with it"
        said.append(f"Of {FAMILIES[family][0]}, {label(first)} is the best on the holdout; on the test set {ties}.")
    for free in [kind for kind in table.index if kind in FREE and kind != "none"]:
        above, alike = ([kind for kind in methods if outcome.loc[free, kind] == what] for what in (1, 0))
        parts = [f"{what} {_listed(kinds)}" for what, kinds in (("is above", above), ("ties with", alike)) if kinds]
        said.append(f"The control {label(free)} {' and '.join(parts) or 'is below every method'}.")
    said += _when(frame)
    gains = {kind: evidence.judged(own) for kind, own in standings.own_minus_shuffled(frame, table).items()}
    alike = [kind for kind, found in gains.items() if found["verdict"] != "confirmed"]
    if gains:
        said.append(f"Of {len(gains)} type{'s' * (len(gains) > 1)} whose masks were shuffled, not above that:"
                    f" {_listed(alike) or 'none'}.")  # fmt: skip
    cut = frame["effective"].eq(100).groupby(frame["type"]).agg(["sum", "size"]).query("sum > 0")
    if len(cut):
        each = ", ".join(f"{label(kind)} ({n} of {every})" for kind, n, every in cut.itertuples())
        said.append(f"No path from an image to a class is left, so that training mends nothing: {each}.")
    both = table.dropna(subset=["raw"])
    rho = scipy.stats.spearmanr(both["raw"], both["tuned"]).statistic if len(both) > 2 else np.nan
    if np.isfinite(rho):
        said.append(f"The order at once and the order after training correlate by {gallery.number(rho)} (Spearman).")
    seeds = " to ".join(f"{n:g}" for n in sorted({table["n"].min(), table["n"].max()}))
    return "\n".join([f"**{title}**, n = {seeds}:\n", *(f"- {one}" for one in said)])


def by_moment(frame):
    """Return a table as Markdown: by how many points one score is better at one moment than at another, by sparsity.

    Bold: decided, see `evidence.judged`. None without a pair.
    """
    found = standings.apart_by_moment(frame)
    if found.empty:
        return None
    sparsities, lines = sorted(found["sparsity"].unique()), []
    for (score, one, other), own in found.groupby(["score", "one", "other"], sort=False):
        cells = [_effect(row) for _, row in own.set_index("sparsity").loc[sparsities].iterrows()]
        lines.append([label(score), f"{one} − {other}", *cells, own["n"].max()])
    return gallery.pipes(["score", "moments", *(f"{gallery.percent(one)} pruned" for one in sparsities), "n"], lines)


def _effect(row):
    mean, low, high = (gallery.number(row[name]) for name in ("mean", "low", "high"))
    span = f" ({low} to {high})" if row["n"] > 1 else ""
    return (f"**{mean}**" if row["clear"] else mean) + span


def _when(frame):
    """Return a sentence for every two moments of pruning: for which scores the first is better, at one sparsity."""
    found, said = standings.apart_by_moment(frame), []
    for one, other in PAIRS if len(found) else ():
        own = found[(found["one"] == one) & (found["other"] == other)]
        clear, better = own["clear"].astype(bool), own["mean"] > 0
        fates = (("better", clear & better), ("worse", clear & ~better), ("undecided", ~clear))
        parts = [f"{what} for {_listed(own['score'][rows])}" for what, rows in fates if rows.any()]
        if parts:
            said.append(f"Pruned {one} training instead of {other} it, by the same score: {'; '.join(parts)}.")
    return said


def trained(found):
    """Return a sentence on how the networks of `standings.groups` were trained, `found`, before and after pruning."""
    alike = {}
    for title, p in {title: records[0].parameters for title, records in found.items()}.items():
        long = "down to that log-loss" if p["level"] else f"for {p['epochs']} epochs"
        falls = f", at a tenth of the rate after each of epochs {' and '.join(map(str, p['drops']))}" * any(p["drops"])
        how = f"{long}, then pruned, then for {p['recovery']} epochs, on {gallery.images(p)}{falls}"
        alike.setdefault(how, []).append(title)
    return "\n".join(["How networks were trained:\n", *(f"- {how}: {'; '.join(of)}." for how, of in alike.items())])


def cheapest(title, fronts):
    """Return what the rows of `front` say of one network, for each cost, `{what: rows}`: equal fronts in one line."""
    said = {}
    for what, best in fronts.items():
        each = ", ".join(label(kind) + (f" at {gallery.percent(at)}" if kind != "none" else "")
                         for kind, at in zip(best["type"], best["sparsity"], strict=True))  # fmt: skip
        said.setdefault(each, []).append(what)
    lines = [f"- By {', by '.join(costs)} nothing is both cheaper and better than, from cheap to good: {each}."
             for each, costs in said.items()]  # fmt: skip
    lines += ["- By milliseconds: not measured."] * (len(fronts) == 1)
    return "\n".join([f"**{title}**:\n", *lines])


def uncut(title, frame):
    """Return a sentence about networks of which no units were taken out, whose time is that of their whole layers."""
    least = frame["macs"].min()
    return (f"**{title}**: masks of single weights alone, which leave {gallery.number(least, 0)} % or more of the"
            " multiplications when units on no path go; what would be timed are full layers.")  # fmt: skip


def agreement(tables):
    """Return a table as Markdown: how far every two networks agree on the order of the types that both have.

    tables: of `ladder`, by network. A pair with few types in common has an empty cell; None where all have.
    """
    lines, cells = [], {}
    for k, (title, own) in enumerate(tables.items(), 1):
        for j, other in enumerate(list(tables.values())[: k - 1], 1):
            ranks = own[["tuned"]].join(other["tuned"].rename("other"), how="inner")
            if len(ranks) > 5:  # five agree by chance in one order of 120
                cells[k, j] = f"{gallery.number(scipy.stats.spearmanr(*ranks.to_numpy().T).statistic)} ({len(ranks)})"
        lines.append([k, title, *(cells.get((k, j), "") for j in range(1, len(tables)))])
    return gallery.pipes(["", "network", *range(1, len(tables))], lines) if cells else None


def _listed(kinds):
    return ", ".join(map(label, kinds))
