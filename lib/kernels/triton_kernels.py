"""Triton kernels, one launch each where torch needs many; `lib.kernels.fused` chooses and launches them.

Needs Triton, so `fused` imports it only when a kernel is asked for. Pointers come first, then strides and sizes;
arguments in capitals are compiled in. Float32 and float64, everything computed in the type of the input.

How much of a GPU they fill, reasoned from what the compiler says for sm_80, sm_90 and sm_100 (tests/test_fused.py
prints and bounds it), not measured. An SM has 65,536 registers, room for 64 warps, and 164 KB of shared memory or more.
The three of the linear layer have 8 warps of at most 80 registers a thread in float32: three programs, 24 warps, are at
work on an SM, and their 8 to 15 KB of shared memory are no bound. Of one run, a batch of 128 through 784-1024 is 64
programs of `linear` and 128 of `linear_step`: half of 132 SMs stay idle going forward; nine runs fill them 1.5 times.
`log_loss` is one program a run, so nine runs keep nine SMs busy: it is short, and spares launches. `accept`
holds 64 × 64 float64 in the registers of 8 warps, 230 a thread (of 255, by Triton 3.6): an SM has one matrix.
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


@triton.jit
def _pulled(delta, out, cells, inside, RELU: tl.constexpr):
    """Return the gradient at `cells` by what goes into the ReLU, if there is one; what came out of it is `out`."""
    pull = tl.load(delta + cells, inside, 0)
    return tl.where(tl.load(out + cells, inside, 0) <= 0, 0, pull) if RELU else pull


@triton.jit
def linear(
    x, v, scale, bias, norm, out, products, gains, lengths, run_x, examples, inputs, units,
    NORMALISED: tl.constexpr, BIASED: tl.constexpr, RELU: tl.constexpr,
    TN: tl.constexpr, TO: tl.constexpr, TI: tl.constexpr,
):  # fmt: skip
    """x (R or 1, N, I), v (R, O, I), scale, bias (R, O), norm (R,) -> out, products (R, N, O), gains, lengths (R, O).

    Contiguous but for `run_x`, which is 0 where the runs share x; grid (O / TO, N / TN, R). A program goes through
    the rows of v once, for the products and, meanwhile, for the lengths of the rows.
    """
    run = tl.program_id(2).to(tl.int64)
    unit, row = tl.program_id(0) * TO + tl.arange(0, TO), tl.program_id(1) * TN + tl.arange(0, TN)
    here = unit < units
    dtype = v.dtype.element_ty
    x, v = x + run * run_x + row[:, None] * inputs, v + (run * units + unit[:, None]) * inputs
    total, square = tl.zeros((TN, TO), dtype), tl.zeros((TO,), dtype)
    for start in range(0, inputs, TI):
        at = (start + tl.arange(0, TI))[None, :]
        w = tl.load(v + at, here[:, None] & (at < inputs), 0)
        z = tl.load(x + at, (row < examples)[:, None] & (at < inputs), 0)
        total = tl.dot(z, tl.trans(w), total, input_precision="ieee", out_dtype=dtype)
        if NORMALISED:
            square += tl.sum(w * w, 1)
    cells, inside = (run * examples + row[:, None]) * units + unit, (row < examples)[:, None] & here
    if NORMALISED:
        length, code = tl.where(here, tl.sqrt(square), 1), tl.load(norm + run)
        size = tl.load(scale + run * units + unit, here, 1)
        gain = tl.where(code == 0, 1, tl.where(code == 2, tl.exp(size), size) / length)
        tl.store(products + cells, total, inside)
        first = unit < tl.where(tl.program_id(1) == 0, units, 0)
        tl.store(gains + run * units + unit, gain, first)
        tl.store(lengths + run * units + unit, length, first)
        total = total * gain
    if BIASED:
        total += tl.load(bias + run * units + unit, here, 0)
    tl.store(out + cells, tl.where(total < 0, 0, total) if RELU else total, inside)  # a NaN stays one


@triton.jit
def linear_back(
    delta, v, gains, out, slope, examples, inputs, units,
    NORMALISED: tl.constexpr, RELU: tl.constexpr, TN: tl.constexpr, TO: tl.constexpr, TI: tl.constexpr,
):  # fmt: skip
    """delta, out (R, N, O), v (R, O, I), gains (R, O) -> slope (R, N, I), contiguous; grid (I / TI, N / TN, R)."""
    run = tl.program_id(2).to(tl.int64)
    at, row = tl.program_id(0) * TI + tl.arange(0, TI), tl.program_id(1) * TN + tl.arange(0, TN)
    wide, there = at < inputs, (row < examples)[:, None]
    dtype = v.dtype.element_ty
    total = tl.zeros((TN, TI), dtype)
    for start in range(0, units, TO):
        unit = start + tl.arange(0, TO)
        pull = _pulled(delta, out, (run * examples + row[:, None]) * units + unit, there & (unit < units), RELU)
        if NORMALISED:
            pull = pull * tl.load(gains + run * units + unit, unit < units, 0)
        w = tl.load(v + (run * units + unit[:, None]) * inputs + at, (unit < units)[:, None] & wide, 0)
        total = tl.dot(pull, w, total, input_precision="ieee", out_dtype=dtype)
    tl.store(slope + (run * examples + row[:, None]) * inputs + at, total, there & wide)


@triton.jit
def linear_step(
    delta, x, v, scale, bias, norm, lr, products, gains, lengths, out, run_x, examples, inputs, units,
    NORMALISED: tl.constexpr, BIASED: tl.constexpr, RELU: tl.constexpr,
    TN: tl.constexpr, TO: tl.constexpr, TI: tl.constexpr, SPAN: tl.constexpr,
):  # fmt: skip
    """Step v, scale and bias in place; shapes as of `linear`, delta as out, lr (R,); grid (O / TO, I / SPAN, R).

    A program goes through all examples of its units for their sums, which is what s, bias and the length of v move by;
    then it makes a tile of the gradient of v after the other, takes it off, and keeps none.
    """
    run, span = tl.program_id(2).to(tl.int64), tl.program_id(1) * SPAN
    unit = tl.program_id(0) * TO + tl.arange(0, TO)
    here, row_of = unit < units, run * units + unit
    dtype = v.dtype.element_ty
    x, v, rate = x + run * run_x, v + row_of[:, None] * inputs, tl.load(lr + run)
    summed, along = tl.zeros((TO,), dtype), tl.zeros((TO,), dtype)
    for first in range(0, examples, TN):
        row = first + tl.arange(0, TN)[:, None]
        cells, inside = (run * examples + row) * units + unit, (row < examples) & here
        pull = _pulled(delta, out, cells, inside, RELU)
        summed += tl.sum(pull, 0)
        if NORMALISED:
            along += tl.sum(pull * tl.load(products + cells, inside, 0), 0)
    step, turn, once = tl.zeros((TO,), dtype) + rate, tl.full((TO,), 1, dtype), unit < tl.where(span == 0, units, 0)
    if NORMALISED:
        gain, length = tl.load(gains + row_of, here, 0), tl.load(lengths + row_of, here, 1)
        code = tl.load(norm + run)
        slope = tl.where(code == 0, 0, tl.where(code == 2, gain * along, along / length))
        tl.store(scale + row_of, tl.load(scale + row_of, once, 0) - rate * slope, once)
        turn += tl.where(code == 0, 0, rate * gain * along / (length * length))
        step = rate * gain
    if BIASED:
        tl.store(bias + row_of, tl.load(bias + row_of, once, 0) - rate * summed, once)
    for start in range(span, tl.minimum(span + SPAN, inputs), TI):
        at = (start + tl.arange(0, TI))[None, :]
        total = tl.zeros((TO, TI), dtype)
        for first in range(0, examples, TN):
            row = first + tl.arange(0, TN)[:, None]
            cells, inside = (run * examples + row) * units + unit, (row < examples) & here
            z = tl.load(x + row * inputs + at, (row < examples) & (at < inputs), 0)
            pull = tl.trans(_pulled(delta, out, cells, inside, RELU))
            total = tl.dot(pull, z, total, input_precision="ieee", out_dtype=dtype)
        inside = here[:, None] & (at < inputs)
        tl.store(v + at, tl.load(v + at, inside, 0) * turn[:, None] - total * step[:, None], inside)
