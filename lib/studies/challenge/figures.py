"""The panels and the claims of the challenge's summary, from tidy rows of its records."""

import matplotlib as mpl
import numpy as np
import pandas as pd

from lib.figures import drawing, evidence, gallery, plots, tables
from lib.records import runs

KINDS = ("weight", "neuron", "small")
HOW = {"posthoc": "Pruned at once", "finetune": "Fine-tuned", "rewind": "Rewound", "during": "Pruned while training",
       "hard": "Pruned for good while training", "gradual": "Pruned little by little",
       "as_published": "As published"}  # fmt: skip
AFTER = {"posthoc": "no training after", "finetune": "training goes on after", "gradual": "training between steps",
         "rewind": "training anew from the start"}  # fmt: skip
CHANCE = 90  # % of errors: ten classes
TOLD = (0.5, 0.8, 0.9, 0.95, 0.97, 0.99)  # sparsities that claims are about
FORMS = {  # what computes, and what was pruned: in words, and its look, weights blue and neurons red
    ("dense", "weight"): ("weights: full matrices, masked", drawing.BLACK, "o", "-"),
    ("csr", "weight"): ("weights: compressed rows", drawing.BLUE, "^", "-"),
    ("shrunk", "weight"): ("weights: idle units taken out", drawing.BLUE, "D", ":"),
    ("block", "block"): ("blocks of weights", drawing.CYAN, "X", "--"),
    ("shrunk", "neuron"): ("neurons: taken out", drawing.RED, "s", "-"),
}


def facts():
    """Return the values of the published plots: type, split, epochs; at and kept, shares; accuracy and error in %."""
    told = runs.published("challenge").rename(columns={"sparsity": "at"}).assign(seed=0)
    accuracy = 100 * told["accuracy"]
    return told.assign(kept=1 - told["at"], accuracy=accuracy, error=100 - accuracy)


def ends(experiment, name, **where):
    """Return the rows of an accuracy at its last epoch: asked and kept, shares; accuracy and error in %.

    left: the share of all weights that stays in truth; a neuron takes its column in the layer behind along.
    """
    rows = tables.joined(experiment, (name, "sparsity"), **where).eval("left = 1 - sparsity")
    rows = rows[rows["epoch"] == rows.groupby("type")["epoch"].transform("max")]
    asked, accuracy = rows["asked"].astype(float), 100 * rows[name]
    rows = rows.drop(columns=[name, "epoch", "sparsity"])
    return rows.assign(asked=asked, kept=(1 - asked).round(6), accuracy=accuracy, error=100 - accuracy)


def fan(axes, table, x, y, by):
    """Draw the mean of `y` against `x` for every value of `by`, a share, as one line each, from dark to light."""
    drawing.seeds(axes, "mean", table["seed"].nunique())
    lines = table.groupby([by, x])[y].mean().unstack(by)
    for shade, (share, line) in zip(np.linspace(0, 0.92, lines.shape[1]), lines.items(), strict=True):
        axes.plot(line.index, line, color=mpl.colormaps["viridis"](shade), label=gallery.percent(share))
    drawing.log_ticks(axes)


def epochs(setting):
    """Return for how long networks were trained, in words; setting: the parameters of their records."""
    first, more = setting["epochs"], setting["retrain_epochs"]
    of = {"finetune": f"{first} + {more} epochs", "rewind": f"{more} epochs, masks of networks after {first}"}
    return of.get(setting["mode"], f"{first} epochs")


def errors(axes, rows, x="kept"):
    """Draw the error of every type against a share that is kept, both logarithmic, from all that is to little."""
    if x != "kept":  # a share that came out, a little different for every seed
        rows = rows.assign(**{x: rows.groupby(["type", "asked"])[x].transform("mean")})
    plots.lines(axes, rows, x, "error", KINDS, markersize=2)
    axes.axhline(CHANCE, color="black", linewidth=0.6, label="chance")
    drawing.log_ticks(axes)
    drawing.share_ticks(axes)


def matched(rows, value="accuracy"):
    """Return the rows of neurons, and of weights with as much of all weights left: type, seed, asked, left, `value`.

    The `value` of weights lies on the line through what was run of them, over the logarithm of what is left, seed by
    seed; asked is what was asked of the neurons. Where neurons leave less than any run of weights does there is no row.
    """
    neurons = rows.loc[rows["type"] == "neuron", ["type", "seed", "asked", "left", value]]
    parts = [neurons]
    for seed, own in neurons.groupby("seed"):
        known = rows[(rows["type"] == "weight") & (rows["seed"] == seed)].sort_values("left")
        if len(known):
            at, over = np.log(own["left"]), np.log(known["left"])
            line = np.interp(at, over, known[value], left=np.nan, right=np.nan)
            parts.append(own.assign(type="weight", **{value: line}).dropna(subset=value))
    return pd.concat(parts)


def compared(mode, rows):
    """Return the claims of one mode at every sparsity of `TOLD`: weights, neurons, `small`, and the whole network.

    Weights and neurons are compared where as much of all weights is gone, see `matched`.
    """
    claims, same, pair = [], matched(rows), ("weight", "neuron")
    for at, own in rows[rows["asked"].isin(TOLD)].groupby("asked"):
        here, left = f"{HOW[mode]} at {gallery.percent(at)}", own.groupby("type")["left"].mean()
        gone = [f"{gallery.percent(1 - left.get(kind, np.nan), 1)} of all weights gone" for kind in pair]
        main = [pair] if (mode, at) in (("posthoc", 0.8), ("finetune", 0.9)) else ()
        said = f"{HOW[mode]}, {gone[1]}: {{}} (interpolated) are above {{}}"
        claims += gallery.ahead(same[same["asked"] == at], [pair], "accuracy", said, main)
        if mode == "during":  # as the challenge compares them
            said = f"{here}, as asked: {{}} ({gone[0]}) are above {{}} ({gone[1]})"
            claims += gallery.ahead(own, [pair], "accuracy", said)
        claims += gallery.ahead(own, [("neuron", "small")], "accuracy", f"{here}, {gone[1]}: {{}} are above {{}}")
        for kind, lost in zip(pair, gone, strict=True) if mode in ("finetune", "rewind") else ():
            text = f"{here}, {lost}: {drawing.look(kind)[0]} are within half a point of the whole network"
            whole = rows[(rows["type"] == kind) & (rows["asked"] == 0)].set_index("seed")["accuracy"]
            left = (own[own["type"] == kind].set_index("seed")["accuracy"] - whole).dropna()
            claims.append(gallery.claim(text, left.to_numpy(), than=-0.5))
    return claims


def layers(experiment, **where):
    """Return the rows of every layer pruned alone: mass, root = √mass, and error, the change of its output."""
    rows = tables.joined(experiment, ("mass", "error"), **where, type=list(KINDS[:2]))
    return rows.assign(root=np.sqrt(rows["mass"].clip(lower=0)), asked=rows["asked"].astype(float))


def dead(experiment, **where):
    """Return the share in % of hidden units on no path from a pixel to a logit, by type, seed and asked."""
    live = runs.curves(experiment, "live_units", **where, type=list(KINDS[:2])).query("layer < layer.max()")
    live = live.groupby(["type", "seed", "asked"], as_index=False)["live_units"].sum()
    whole = live[live["asked"] == 0].set_index(["type", "seed"])["live_units"].rename("whole")
    live = live.join(whole, on=["type", "seed"])
    return live.assign(dead=100 * (1 - live["live_units"] / live["whole"]), asked=live["asked"].astype(float))


def more(before, after):
    """Return how much more accuracy the runs of `after` have than those of `before`, by type, seed and asked."""
    by = ["type", "seed", "asked"]
    return (after.set_index(by)["accuracy"] - before.set_index(by)["accuracy"]).dropna().reset_index()


def hypotheses(changes, gone, posthoc, finetuned):
    """Return the claims of the four hypotheses, as the summary numbers them.

    changes: of `layers`; gone: of `dead`; posthoc, finetuned: of `ends`, the latter may be empty. The last hypothesis
    is about 90 % of the neurons, and weights `matched`: without runs of it there is no claim.
    """
    at = changes[changes["asked"] == 0.8].groupby(["type", "seed"], as_index=False)[["mass", "root", "error"]].mean()
    own = at[at["type"] == "weight"]
    units = evidence.apart(at, "neuron", "weight", "mass")
    lost = gone[(gone["type"] == "weight") & (gone["asked"] == 0.95)]["dead"].to_numpy()
    claims = [
        gallery.claim("Hypothesis 1: the smallest 80 % of the weights hold less than half of the squares",
                      100 * (0.5 - own["mass"].to_numpy())),
        gallery.claim("Hypothesis 1: without them a layer's output changes by less than the root of that share",
                      100 * (own["root"] - own["error"]).to_numpy()),
        gallery.claim("Hypothesis 2: 80 % of the neurons take more of the squares than 80 % of the weights",
                      100 * units),
        gallery.claim("Hypothesis 3: beyond the knee, at 95 % of the weights, a tenth of the hidden units is"
                      " disconnected", lost, than=10, unit=" %"),
    ]  # fmt: skip
    own = matched(posthoc).query("asked == 0.9")
    if len(finetuned) and len(own):
        here = f"without 90 % of the neurons, {gallery.percent(1 - own['left'].mean(), 1)} of all weights"
        text = f"Hypothesis 4: {here}, more epochs bring more than pruning as many weights (interpolated) instead would"
        both = pd.concat([own[own["type"] == "weight"], finetuned.query("asked == 0.9 and type == 'neuron'")])
        claims.append(gallery.claim(text, evidence.apart(both, "neuron", "weight", "accuracy")))
    return claims


def asked(axes):
    """Name the x axis of shares that were asked to go, in percent."""
    axes.set_xlabel("pruned of each hidden layer (%)")
    axes.xaxis.set_major_formatter(lambda share, _: f"{100 * share:.0f}")


def speed(axes, rows, batch):
    """Draw the milliseconds of a pass of one batch size by form: medians, and quartiles as bars."""
    for (form, whole), (label, colour, marker, dashes) in FORMS.items():
        own = rows[(rows["type"] == form) & (rows["whole"] == whole) & (rows["batch"] == batch)]
        if own.empty:
            continue
        own = own.groupby(["asked", "quantile"])["latency"].median().unstack("quantile")
        bars = own["median"] - own["low"], own["high"] - own["median"]
        axes.errorbar(own.index, own["median"], bars, label=label, color=colour, marker=marker, linestyle=dashes,
                      markersize=2.5, elinewidth=0.8)  # fmt: skip
    drawing.log_ticks(axes)


def faster(rows):
    """Return the claims that without 80 % of the neurons a pass is faster than without as many weights, or blocks.

    rows: type, seed, whole, batch, asked, quantile, latency, macs. A gain is how many times faster, by medians, where
    weights and blocks leave as many multiplications as neurons do, see `matched`.
    """
    claims, rows = [], rows[rows["quantile"] == "median"].assign(asked=rows["asked"].astype(float))
    rows = rows.assign(left=rows["macs"] / rows.loc[rows["type"] == "shrunk", "macs"].max())
    for batch, own in rows.groupby("batch"):
        weights = own[own["whole"].isin(["weight", "block"])].groupby(["seed", "asked"], as_index=False)
        weights = weights[["latency", "left"]].min().assign(type="weight")
        neurons = own[(own["whole"] == "neuron") & (own["type"] == "shrunk")].assign(type="neuron")
        here = matched(pd.concat([weights, neurons]), "latency").query("abs(asked - 0.8) < 1e-6")
        wide = here.pivot(index="seed", columns="type", values="latency").reindex(columns=["weight", "neuron"])
        gone, images = gallery.percent(1 - here["left"].mean(), 1), f"{batch} image{'s' * (batch > 1)}"
        text = f"{gone} of all weights gone, {images}: neurons are faster than weights or blocks (interpolated)"
        times = (wide["weight"] / wide["neuron"]).dropna().to_numpy()
        claims.append(gallery.claim(f"{text} in any form", times, 1, " times", main=bool(batch == 1)))
    return claims
