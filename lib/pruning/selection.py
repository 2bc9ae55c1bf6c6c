"""The highest of many numbers, exactly so many of each row, or of four in a row, by selection instead of a sort."""

import numpy as np
import torch
from torch import nn

SAMPLE = 2**12  # entries from which the place of a score among many is guessed


def highest(score, keep):
    """Return a mask of the `keep` highest entries along the last axis; of equal ones the later stay."""
    if score.is_floating_point() and score.element_size() < 4:
        score = score.float()  # the same order, in numbers that NumPy has
    if score.numel() and not all(bool(extreme.isfinite()) for extreme in score.aminmax()):
        raise ValueError("a score is NaN or infinite, as where training diverged: it has no order; try a smaller lr")
    if keep in (0, score.shape[-1]):
        return torch.full_like(score, keep > 0, dtype=torch.bool)
    lowest = _largest(score, keep)
    kept = score >= lowest
    if int(kept.count_nonzero()) == keep * lowest.numel():  # each row has at least `keep`
        return kept
    level = kept & (score == lowest)
    if score.dim() == 1:  # of a long row this takes an eighth of the time
        return kept.index_fill_(0, level.nonzero()[: int(kept.count_nonzero()) - keep, 0], False)
    surplus = kept.sum(-1, keepdim=True) - keep
    return kept & ~(level & (level.cumsum(-1) <= surplus))


def _largest(score, place):
    """Return the `place`-th largest entry along the last axis, `(..., 1)`, by partition instead of a sort."""
    if score.device.type != "cpu":
        return score.topk(place, dim=-1).values[..., -1:]
    n, entries = score.shape[-1], score.detach().numpy()
    if n < 4 * SAMPLE:
        # NumPy's partition takes a quarter of the time of torch's kthvalue, a million entries measured.
        return torch.from_numpy(np.partition(entries, n - place, axis=-1)[..., n - place, None])
    largest = [_ranked(row, n - place) for row in entries.reshape(-1, n)]
    return torch.from_numpy(np.stack(largest).reshape(*score.shape[:-1], 1))


def _ranked(row, rank):
    """Return the entry at place `rank` of a long row in rising order, sought between two bounds that a sample gives.

    That takes two fifths of the time of a partition of all, from eighty thousand to twenty million entries measured; it
    is the selection of Floyd & Rivest (1975), with one step. Where the sample misleads, all entries are partitioned.
    """
    sample = np.sort(row[:: len(row) // SAMPLE])
    middle, slack = rank * len(sample) // len(row), len(sample) // 32
    low, high = sample[max(middle - slack, 0)], sample[min(middle + slack, len(sample) - 1)]
    between, below = np.compress((row >= low) & (row <= high), row), int(np.count_nonzero(row < low))
    if not below <= rank < below + len(between):
        between, below = row, 0
    return np.partition(between, rank - below)[rank - below]


def fours(tensor):
    """Return `(R, O, *F, n, 4)` of `(R, O, I, *F)`: four inputs in a row, of a filter those of one place.

    Filled up with the lowest of all numbers, or with True, so that of scores and places that are left none is lost.
    """
    inputs = (tensor if tensor.is_floating_point() or tensor.dtype == torch.bool else tensor.double()).movedim(2, -1)
    last = torch.finfo(inputs.dtype).min if inputs.is_floating_point() else True
    return nn.functional.pad(inputs, (0, -inputs.shape[-1] % 4), value=last).unflatten(-1, (-1, 4))


def unfolded(parts, like):
    """Return `(R, O, I, *F)` from its `fours`, as `like` has them."""
    return parts.flatten(-2).movedim(-1, 2)[:, :, : like.shape[2]]
