"""Annealing: masks by scores that are made again, round after round, of what is left of the network."""

import copy

import numpy as np
import torch

from lib.pruning import masks

SCHEDULES = {  # the density after a share t of all rounds
    "exponential": lambda density, t: density**t,
    "linear": lambda density, t: (1 - t) + density * t,
}


def anneal(
    score, net, density, rounds=100, schedule="exponential", scope="global", rounding="nearest", x=None, y=None,
    seeds=None,
):  # fmt: skip
    """Return masks `{name: bool (R, O, *F)}` of `density`, which is reached in `rounds`, each scoring what is left.

    score: one of `scores`, or a `functools.partial` of it for its keywords; x, y, seeds: for it. density: one
    number, or one per run. After round e of E the density is density^(e/E), "exponential", or falls in equal steps,
    "linear"; what is pruned stays pruned, and each time exactly `masks.count` weights are kept. SynFlow takes 100
    exponential rounds, so that no layer is emptied before the others (arXiv 2006.05467); one round prunes at once.
    scope, rounding: see `masks.top`. `net` is left as it is.
    """
    if schedule not in SCHEDULES:
        raise ValueError(f"schedule is {schedule!r}; allowed are {list(SCHEDULES)}")
    if rounds < 1:
        raise ValueError(f"rounds is {rounds}; it takes at least 1, which prunes at once")
    one = np.ndim(density) == 0
    goals, left, kept = [float(d) for d in ([density] if one else density)], net, None
    for e in range(1, rounds + 1):
        levels = [SCHEDULES[schedule](goal, e / rounds) for goal in goals]
        level, found = levels[0] if one else levels, score(left, x, y, seeds)
        if kept is None:
            kept = masks.top(found, level, scope, rounding)
            # In `eval()` mode, which the scores of many rounds take: else each round would switch it twice.
            left = copy.deepcopy(net).eval() if rounds > 1 else net
        else:
            kept = masks.top_within(found, kept, level, scope, rounding)
        if e < rounds:
            _prune_(left, kept)
    return kept


@torch.no_grad()
def _prune_(left, kept):
    """Zero what is not kept in a copy of a network.

    A product takes less than half the time of `masks.apply_`; weights that are not finite would stay so, in the copy.
    """
    for name, mask in kept.items():
        left.get_parameter(name).mul_(mask)
