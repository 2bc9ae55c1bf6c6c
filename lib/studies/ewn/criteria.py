"""What the EWN study ranks units by (arXiv 2010.12909): their norms, how much these grew, and its order of texts."""

import numpy as np
import torch

from lib.pruning import methods


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
    criteria = {"norm": now}
    for name, then in earlier.items():
        criteria[f"since_{name}"] = methods.score(reached[level].net, "growth", then, of="units", now=now)
    return {k: text_ranks(scores) for k, scores in criteria.items()} if as_text else criteria


def text_ranks(scores):
    """Return for every unit its place, from 0, among the scores of its layer sorted as texts, `{layer: (R, O)}`.

    The EWN study read the printed norms of its CIFAR networks back as texts and sorted those. A minus sign comes
    before all digits, so whatever shrank still goes first, but what shrank least before the others; and a number
    in e-notation goes by its mantissa, so 9.9e-05 outranks 0.9.
    """
    return {layer: torch.stack([_text_ranks(row) for row in score]) for layer, score in scores.items()}


def _text_ranks(score):
    if not torch.isfinite(score).all():
        raise ValueError("a score is NaN or infinite: no order exists; look at the network that it came from")
    texts = [str(number) for number in score.cpu().numpy().astype(np.float32)]
    # The place of each in the sorted order is the inverse of the permutation that sorts.
    return torch.from_numpy(np.argsort(np.argsort(texts, kind="stable"))).to(score)


def _norms(descent, stale):
    """Return the norms of the hidden units; the output units are never pruned."""
    norms = methods.score(descent.net, "magnitude", of="units")
    return {layer: descent.norms_before[layer] for layer in norms} if stale else norms
