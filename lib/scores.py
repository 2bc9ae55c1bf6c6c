"""Scores: one number per unit or weight, larger = kept. A score is made here, a mask in `masks`."""

from lib import nets


def norm_criteria(reached, level, stale=False):
    """Return the EWN study's criteria at a level, `{criterion: {hidden layer: (R, O)}}`.

    "norm" is the norm of a unit's effective weights; "since_init" and "since_<level>" how much it has grown
    since then, with its sign: units that shrank go first. `reached` maps levels to `descent.Descent` of the
    same runs. `stale=True` reads norms one epoch older than the weights, as the study did
    (arXiv 2010.12909).
    """
    now = _norms(reached[level], stale)
    earlier = {"init": reached[level].norms_start}
    earlier |= {f"{other:g}": _norms(found, stale) for other, found in reached.items() if other > level}
    criteria = {"norm": now}
    criteria |= {f"since_{k}": {layer: now[layer] - then[layer] for layer in now} for k, then in earlier.items()}
    return criteria


def _norms(descent, stale):
    """Return the norms of the hidden units; the output units are never pruned."""
    norms = descent.norms_before if stale else nets.unit_norms(descent.net)
    return {layer: norms[layer] for layer in list(norms)[:-1]}
