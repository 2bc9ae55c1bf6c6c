"""Triton kernels, one launch each where torch needs many; `lib.kernels.fused` chooses and launches them.

Needs Triton, so `fused` imports it only when a kernel is asked for. Pointers come first, then strides and sizes;
arguments in capitals are compiled in. Float32 and float64, everything computed in the type of the input.
"""

import triton
import triton.language as tl


@triton.jit
def _log1p(u):
    """Return log(1 + u) for u in [0, 1], exact to rounding: what 1 + u loses, the quotient gives back (Kahan)."""
    whole = 1 + u
    return tl.where(whole == 1, u, tl.log(whole) * (u / tl.where(whole == 1, 1, whole - 1)))


@triton.jit
def _centre(highest):
    """Return what is taken off exponents before they are summed: their highest, or 0 where that is infinite."""
    return tl.where(tl.abs(highest) == float("inf"), 0, highest)


@triton.jit
def _margins(logits, labels, row, classes, by_example, by_class, by_label, C: tl.constexpr):
    """Return the margins z_j - z_y of the examples `row` `(N, C)`, -inf at the true class, their logsumexp, labels."""
    column = tl.arange(0, C)
    label = tl.load(labels + row * by_label)
    at = logits + row.to(tl.int64)[:, None] * by_example
    own = tl.load(at + label[:, None] * by_class)
    z = tl.load(at + column[None, :] * by_class, (column < classes)[None, :], -float("inf"))
    margins = tl.where(column[None, :] == label[:, None], -float("inf"), z - own)
    centre = _centre(tl.max(margins, 1))
    return margins, tl.log(tl.sum(tl.exp(margins - centre[:, None]), 1)) + centre, label


@triton.jit
def log_loss(
    logits, labels, loss, gradient, run_z, example_z, class_z, run_y, example_y, examples, classes,
    FAR: tl.constexpr, NEGLIGIBLE: tl.constexpr, N: tl.constexpr, C: tl.constexpr,
):  # fmt: skip
    """logits (R, N, C), labels (R, N), any strides -> loss (R,), gradient (R, N, C) contiguous; grid (R,).

    A program reads its run's logits twice, N examples at a time: for the logsumexp of the examples' log-losses, then,
    knowing it, for the gradient. What is left of the last tile repeats the last example, and does not count.
    """
    run = tl.program_id(0).to(tl.int64)
    logits, labels, gradient = logits + run * run_z, labels + run * run_y, gradient + run * examples * classes
    dtype = loss.dtype.element_ty
    highest, total, count = tl.full([], -float("inf"), dtype), tl.full([], 0, dtype), tl.full([], 0, dtype) + examples
    for start in range(0, examples, N):
        row = start + tl.arange(0, N)
        last = tl.minimum(row, examples - 1)
        _, a, _ = _margins(logits, labels, last, classes, example_z, class_z, example_y, C)
        near = tl.where(a < FAR, FAR, a)
        soft = tl.log(tl.maximum(near, 0) + _log1p(tl.exp(-tl.abs(near))))
        losses = tl.where(row < examples, tl.where(a < FAR, a, soft), -float("inf"))
        before, highest = highest, tl.maximum(highest, tl.max(losses, 0))
        centre = _centre(highest)
        total = total * tl.exp(before - centre) + tl.sum(tl.exp(losses - centre), 0)
    total = tl.log(total) + _centre(highest)
    tl.store(loss + run, total - tl.log(count))
    for start in range(0, examples, N):
        row, column = start + tl.arange(0, N), tl.arange(0, C)[None, :]
        last = tl.minimum(row, examples - 1)
        margins, a, label = _margins(logits, labels, last, classes, example_z, class_z, example_y, C)
        share = tl.exp(tl.minimum(a, 0) - _log1p(tl.exp(-tl.abs(a))) - total)[:, None]
        slope = tl.where(column == label[:, None], -share, share * tl.exp(margins - a[:, None]))
        slope = tl.where(tl.abs(slope) <= NEGLIGIBLE, 0, slope)  # a NaN stays one
        tl.store(gradient + row[:, None] * classes + column, slope, (row < examples)[:, None] & (column < classes))


@triton.jit
def masked_sgd(
    weight, gradient, velocity, kept, lr, lr_stride, size, per_run,
    MOMENTUM: tl.constexpr, NESTEROV: tl.constexpr, DECAY: tl.constexpr, MASKED: tl.constexpr, N: tl.constexpr,
):  # fmt: skip
    """weight, gradient, velocity, kept (uint8) of `size` entries, contiguous; lr (R,); in place; grid (size / N,)."""
    at = tl.program_id(0).to(tl.int64) * N + tl.arange(0, N)
    inside = at < size
    w, step = tl.load(weight + at, inside), tl.load(gradient + at, inside)
    stays = tl.load(kept + at, inside) != 0 if MASKED else inside
    if DECAY != 0:
        step += DECAY * w
    if MOMENTUM != 0:
        moved = MOMENTUM * tl.load(velocity + at, inside) + step
        step = step + MOMENTUM * moved if NESTEROV else moved
        tl.store(velocity + at, tl.where(stays, moved, 0), inside)
    rate = tl.load(lr + at // per_run * lr_stride, inside)
    tl.store(weight + at, tl.where(stays, w - rate * step, 0), inside)


@triton.jit
def accept(products, coins, left, taken, root, count, B: tl.constexpr):
    """products (M, b, b), coins (M, b), left (M,) -> taken (M, b) as uint8, root (M, b, b), contiguous; grid (M,).

    A program holds the products of one matrix. Candidate k is kept if its pivot, what the candidates kept before it
    leave of its length, is above its bar; its column of the Cholesky factor then takes its share off all later ones.
    """
    row, i = tl.program_id(0).to(tl.int64), tl.arange(0, B)
    line, column, inside = i[:, None], i[None, :], i < count
    both, cells = inside[:, None] & inside[None, :], row * count * count + line * count + column
    rest = tl.load(products + cells, both, 0)
    bars = tl.load(coins + row * count + i, inside, 0) * tl.sum(tl.where(line == column, rest, 0), 1)
    wanted, kept = tl.load(left + row), tl.zeros((B,), tl.int32)
    for k in range(0, count):
        own = tl.sum(tl.where(column == k, rest, 0), 1)
        pivot, bar = tl.sum(tl.where(i == k, own, 0), 0), tl.sum(tl.where(i == k, bars, 0), 0)
        takes = (pivot > bar) & (wanted > 0)
        own = tl.where(i >= k, own * tl.where(takes, 1 / tl.sqrt(tl.where(takes, pivot, 1)), 0), 0)
        later = tl.where(column > k, own[:, None] * own[None, :], 0)
        rest = tl.where(column == k, own[:, None], rest - later)
        kept, wanted = tl.where(i == k, takes.to(tl.int32), kept), wanted - takes.to(tl.int64)
    tl.store(taken + row * count + i, kept.to(tl.uint8), inside)
    tl.store(root + cells, rest, both)
