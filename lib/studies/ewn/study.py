"""What the EWN study (arXiv 2010.12909) asks of networks on their way down: criteria to rank units by, and a record.

Its criteria are norms of units, how much these grew, and, on CIFAR, their order as texts.
"""

import copy
import os

import numpy as np
import torch

from lib.networks import nets
from lib.pruning import masks, methods
from lib.records import runs
from lib.training import descend, evaluate

QUIRKS = ("stale_norms", "text_ranking")  # of `norm_criteria`, in its order; a notebook has those that its networks had


def descended(run, net, real, name):
    """Return (levels reached, ends) of the networks of `run.todo`, as `descend.descend` does: now or some time before.

    run: a `runs.Run`; net: their stack as it starts; real: a `sets.Data`; name: of the network, before its width.
    """
    p = run.parameters
    # own_order was a quirk that nothing needed; it stays in the names of what was trained.
    recipe = {"name": f"{p['dataset']}-{name}{p['width']}", "own_order": False}
    recipe |= {name: p[name] for name in ("batch_size", "train_examples")}
    recipes = [recipe | {"seed": seed, "type": kind} for seed, kind in run.todo]
    folders = [os.path.expanduser(p["weights"]) or runs.trained(own) for own in recipes]
    seeds, trained = [seed for seed, _ in run.todo], bool(p["weights"])
    return descend.descend(net, real, seeds, p["levels"], folders=folders, recipes=recipes, batch=p["batch_size"],
                         stack=p["stack"], trained=trained)  # fmt: skip


def criteria(levels):
    """Return the names of the criteria at falling levels, as `norm_criteria` gives them at the last."""
    return ["norm", "since_init", *(f"since_{level:g}" for level in levels[:-1])]


def accuracies(reached, p, test):
    """Return the accuracy of one run after pruning, `(levels, criteria, sparsities)`, nan where there is no such thing.

    reached: `{level: Descent}`; p: a notebook's parameters; test: (x, y).
    """
    levels, names = p["levels"], criteria(p["levels"])
    left = np.full((len(levels), len(names), len(p["sparsities"])), np.nan)
    quirks = [name in p and (p[name] or p["as_published"]) for name in QUIRKS]
    for level, at in reached.items():
        for name, score in norm_criteria(reached, level, *quirks).items():
            accuracy = pruned_accuracy(at.net, *test, score, p["sparsities"])
            left[levels.index(level), names.index(name)] = accuracy[0].cpu()
    return left


def pruned_accuracy(net, x, y, scores, sparsities):
    """Return the accuracy `(R, len(sparsities))` after pruning the lowest-scored units of every hidden layer.

    x: `(N, I)`; scores: `{layer: (R, O)}`; sparsities: shares of the units to prune, in [0, 1). Nothing is retrained.
    """
    kept = [masks.top(scores, 1 - sparsity, rounding="prune_floor") for sparsity in sparsities]
    parts = []
    for run, alone in enumerate(nets.apart(nets.fold(net))):
        own = [{layer: units[[run]] for layer, units in choice.items()} for choice in kept]
        parts.append(torch.cat([evaluate.evaluate(*pruned, y).accuracy for pruned in _pruned(alone, x, own)]))
    return torch.stack(parts)


@torch.no_grad()
def _pruned(plain, x, kept):
    """Yield for every choice of units (a network of one run that has no others, what it is to be given).

    What the first layer of an `MLP` brings is nearly all of the work and the same for all choices: it is made once and
    given in the layer's place. Whom a pruned unit speaks to no longer listens.
    """
    first = plain.layers[0] if isinstance(plain, nets.MLP) and len(plain.layers) > 1 else None
    given = x if first is None else torch.cat([first(part) for part in x.split(evaluate.chunk(plain))], 1)
    for units in kept:
        pruned = copy.deepcopy(plain)
        masks.apply_(pruned, masks.expand(units, pruned))
        if first is not None:
            pruned.layers[0] = torch.nn.Identity()
        yield pruned, given


def record(reached, end, pruned, p):
    """Return what a record keeps of one run, as keywords of `runs.Run.save`; curves are thinned.

    reached: `{level: Descent}`, end: where it ended; a level that was not reached has missing scores. pruned: see
    `accuracies`; p: a notebook's parameters.
    """
    levels = p["levels"]
    at = {level: reached[level].last() if level in reached else {} for level in levels}
    curve = end.thinned(keep=[row["epoch"] for row in at.values() if row])
    kept = ("log_loss", "train_accuracy", "test_accuracy", "test_log_loss", "step", "attempt")
    scored = ("test_accuracy", "log_loss", "epoch", "attempt")
    axes = {"level": levels, "criterion": criteria(levels), "sparsity": p["sparsities"]}
    return {
        "scores": {f"{name}_at_{level:g}": row.get(name) for level, row in at.items() for name in scored},
        "axes": {"epoch": curve["epoch"], **axes},
        "arrays": {name: (curve[name], ("epoch",)) for name in kept} | {"pruned_accuracy": (pruned, tuple(axes))},
        "cost": {"parameters": nets.parameters_per_run(end.net), "macs": nets.macs_per_run(end.net)},
        "seconds": end.last()["seconds"],
    }


def norm_criteria(reached, level, stale=False, as_text=False):
    """Return the EWN study's criteria at a level, `{criterion: {hidden layer: (R, O)}}`.

    "norm" is the norm of a unit's effective weights; "since_init" and "since_<level>" how much it has grown
    since then, with its sign: units that shrank go first. `reached` maps levels to `descent.Descent` of the
    same runs. `stale=True` reads norms one epoch older than the weights, as the study did
    (arXiv 2010.12909). `as_text=True` gives the units the order that their printed norms have as texts.
    """
    now = _norms(reached[level], stale)
    earlier = {"init": reached[level].norms_start}
    earlier |= {f"{other:g}": _norms(found, stale) for other, found in reached.items() if other > level}
    found = {"norm": now}
    for name, then in earlier.items():
        found[f"since_{name}"] = methods.score(reached[level].net, "growth", then, of="units", now=now)
    return {k: text_ranks(scores) for k, scores in found.items()} if as_text else found


def text_ranks(scores):
    """Return for every unit its place, from 0, among the scores of its layer sorted as texts, `{layer: (R, O)}`.

    The EWN study read the printed norms of its CIFAR networks back as texts and sorted those. A minus sign comes
    before all digits, so whatever shrank still goes first, but what shrank least before the others; and a number
    in e-notation goes by its mantissa, so 9.9e-05 outranks 0.9.
    """
    ranks = {}
    for layer, score in scores.items():
        if not torch.isfinite(score).all():
            raise ValueError("a score is NaN or infinite: no order exists; look at the network that it came from")
        texts = score.cpu().numpy().astype(np.float32).astype(str)
        # The place of each in the sorted order is the inverse of the permutation that sorts.
        ranks[layer] = torch.from_numpy(np.argsort(np.argsort(texts, axis=1, kind="stable"), axis=1)).to(score)
    return ranks


def _norms(descent, stale):
    """Return the norms of the hidden units; the output units are never pruned."""
    norms = methods.score(descent.net, "magnitude", of="units")
    return {layer: descent.norms_before[layer] for layer in norms} if stale else norms
