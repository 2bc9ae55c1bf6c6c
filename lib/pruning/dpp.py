"""Exact draws from k-DPPs, many matrices at a time: sets S of a given size with probability ∝ det L_S.

One eigendecomposition serves every size, every seed and every round (Kulesza & Taskar, arXiv 1207.6083): first as many
eigenvectors are chosen as items are to be kept, then the items are drawn from the projection onto them.

Choosing needs the elementary symmetric polynomials e_j of the eigenvalues, which leave float64 at a few hundred
items. Only the ratios e_j / e_(j-1) are kept: they are of the order of the eigenvalues, and cost no logarithm.
Beyond half of the items, what is not kept is drawn instead, from the eigenvectors not chosen: the complement of a
projection DPP is the projection DPP of the complement, so no matrix is inverted and L may be singular.

Items come in blocks. Candidates are proposed by the residual lengths at the start of a block and accepted
one after the other with probability (length now) / (length then), which is exact rejection sampling; the lengths of
all the other items are then brought up to date by matrix products.
"""

import math
import warnings
from contextlib import suppress
from typing import NamedTuple

import numpy as np
import torch

from lib import draws, workers
from lib.errors import choice, number
from lib.kernels import fused
from lib.workers import product, squares

SAMPLERS = ("exact", "dppy")
BLOCK = 64  # candidates at a time; measured on 784 items, 48 to 96 cost the same
# How many bytes of matrices are decomposed at a time, and of rows drawn, of which many share a small step.
CHUNK_BYTES = {"cpu": 25e6, "cuda": 1e9}
GROUP_BYTES = {"cpu": 80e6, "cuda": 1e9}
UNIFORM = 0.01  # an L this near to a multiple of I draws every set with the same probability, within one percent


class IdentityWarning(UserWarning):
    """A likelihood matrix is numerically a multiple of the identity: the "diverse" sets are uniformly random."""


class Eigen(NamedTuple):
    """The eigenpairs of M likelihood matrices: values (M, N), rising, and vectors (M, N, N), in columns."""

    values: torch.Tensor
    vectors: torch.Tensor


def _given(matrices):
    """Return the matrices as a tensor, or as what builds its own when sliced; ValueError for other shapes."""
    if isinstance(matrices, np.ndarray | list | tuple):
        with suppress(TypeError, ValueError):  # of ragged lists and texts, which have no shape
            matrices = torch.from_numpy(np.array(matrices))
    shape = tuple(getattr(matrices, "shape", ()))
    if len(shape) != 3 or shape[1] != shape[2] or 0 in shape:
        raise ValueError(f"matrices are {shape or repr(matrices)}; needed is (M, N, N), of a single L it is L[None]")
    if isinstance(matrices, torch.Tensor) and matrices.is_complex():
        raise ValueError(f"matrices are {matrices.dtype}; likelihood matrices are real and symmetric here")
    return matrices


def _eigen(matrices, part):
    """Return the `Eigen` of the matrices of one slice, eigenvalues within rounding of 0 set to 0.

    ValueError for a matrix that is not real, symmetric, finite and positive semidefinite, up to the rounding of the
    numbers given: float32 ones may be off by more.
    """
    matrix, name = matrices[part].detach(), f"a likelihood matrix from number {part.start} on"
    items, exact = matrix.shape[-1], torch.finfo(torch.float64).eps
    precision = torch.finfo(matrix.dtype).eps if matrix.is_floating_point() else exact
    matrix = matrix.double()
    if not matrix.sum().isfinite():
        raise ValueError(f"{name} is not finite")
    if isinstance(matrices, torch.Tensor):  # what builds its own matrices builds them symmetric
        apart, largest = (float(tensor.abs().amax()) for tensor in (matrix - matrix.mT, matrix))
        if apart > precision**0.5 * largest:
            raise ValueError(f"{name} is not symmetric: two entries that should be equal differ by {apart:.3g}")
        matrix = (matrix + matrix.mT) / 2
    values, vectors = _eigh(matrix)
    # That of the decomposition; or of the numbers given, N² roundings, each as likely up as down.
    noise = max(items * exact, items**0.5 * precision) * values[:, -1:].abs()
    if (values < -noise).any():
        raise ValueError(f"{name} has the eigenvalue {float(values.min()):.3g}; allowed is >= 0")
    return Eigen(values.masked_fill(values <= noise, 0), vectors)


def _eigh(matrices):
    """Return (values, vectors). On a CPU by NumPy, whose LAPACK took 60 ms where torch's took 85 (784 items, AMD).

    On CUDA one after the other: the batched solver took up to 100 times as long before torch 2.12.
    """
    if matrices.device.type == "cpu":
        return tuple(map(torch.from_numpy, np.linalg.eigh(matrices.numpy())))
    return tuple(torch.stack(parts) for parts in zip(*map(torch.linalg.eigh, matrices), strict=True))


def _warn_of_identity(values):
    """Warn if log det L_S is nearly the same for all S: half of |L / mean - I|² bounds how much it can differ."""
    distance = (values / values.mean(1, keepdim=True) - 1).square().sum(1) / 2
    alike = int((distance < UNIFORM).sum())
    if alike:
        told = f"{alike} of {len(values)} likelihood matrices are numerically the identity: their sets are uniformly"
        told += " random, not diverse. Look at likelihood.quantiles, and take a smaller beta or beta='median'."
        warnings.warn(told, IdentityWarning, stacklevel=3)


def sample(matrices, keep, seeds, sampler="exact", purpose="dpp"):
    """Return one set of each likelihood matrix and seed as a mask, `bool (S, M, N)`; `keep` items are True.

    matrices: `(M, N, N)`, of a tensor or array, or of what has a shape and can be sliced: a few are decomposed at a
    time, all of the edges of 784 to 500 would hold 2.5 GB. keep: an integer from 1 to the rank of every matrix, or a
    list of K of them, which adds a leading axis: (K, S, M, N). A draw is decided by (seed, purpose, keep, number of the
    matrix) alone. sampler: "exact", or "dppy", the published one, with an error where its arithmetic fails. Warns
    (`IdentityWarning`) of multiples of the identity.
    """
    matrices = _given(matrices)
    items = matrices.shape[-1]
    keeps = [number("keep", k, f"[1, {items}]", whole=True) for k in ([keep] if np.ndim(keep) == 0 else keep)]
    draw = _draw if choice("sampler", sampler, SAMPLERS) == "exact" else _draw_by_dppy
    if np.ndim(seeds) != 1 or not len(seeds):
        raise ValueError(f"seeds is {seeds!r}; needed is a list, one integer for each set that is to be drawn")
    if not keeps:
        raise ValueError(f"keep is {keep}; needed is a number of items, or a list of them")

    def work(part):
        eigen = _eigen(matrices, part)
        _check_rank(eigen, part.start, max(keeps))
        return eigen.values, draw(eigen, part.start, keeps, seeds, purpose)

    parts = workers.slices(matrices.shape[0], max(1, int(CHUNK_BYTES[matrices.device.type] / (8 * items**2))))
    values, sets = zip(*workers.each(work, parts, matrices.device), strict=True)
    _warn_of_identity(torch.cat(values))
    sets = torch.cat(sets, dim=2)
    if not (sets.sum(-1) == torch.tensor(keeps, device=sets.device)[:, None, None]).all():
        raise RuntimeError(f"a draw of {keep} items has another size; rounding must have got the better of a matrix")
    return sets[0] if np.ndim(keep) == 0 else sets


def _check_rank(eigen, first, keep):
    ranks = (eigen.values > 0).sum(1)
    if int(ranks.min()) < keep:
        matrix = int(ranks.argmin())
        told = f"keep is {keep}, but likelihood matrix {first + matrix} has rank {int(ranks[matrix])}"
        way_out = "Keep at most that many, or add a ridge (0.01 in the published matrices)."
        raise ValueError(f"{told}: every larger set has probability 0. {way_out}")


def _streams(count, first, keep, seeds, purpose):
    """Return the generators of all draws, those of the first seed first."""
    return [draws.generator(seed, purpose, keep, first + m) for seed in seeds for m in range(count)]


def _draw(eigen, first, keeps, seeds, purpose):
    """Return the sets `bool (K, S, M, N)` of M matrices, of which the first is number `first`."""
    count, items = eigen.values.shape
    values = eigen.values.cpu().numpy()[:, ::-1]
    table = ratios(values, max(keeps), min(keeps))
    vectors = eigen.vectors if count > 1 else eigen.vectors.expand(len(seeds), -1, -1)
    sets = torch.ones(len(keeps), len(seeds) * count, items, dtype=torch.bool, device=eigen.values.device)
    for kept, keep in zip(sets, keeps, strict=True):
        if keep == items:
            continue
        streams = _streams(count, first, keep, seeds, purpose)
        chosen = _choose(values, table, keep, np.stack([stream.random(items) for stream in streams]))
        chosen = torch.from_numpy(chosen[:, ::-1].copy()).to(eigen.values.device)
        smaller = keep <= items - keep
        wanted = chosen if smaller else ~chosen
        parts = workers.slices(len(kept), len(vectors))
        drawn = torch.cat([_project(vectors, wanted[p], streams[p]) for p in parts])
        kept.copy_(drawn if smaller else ~drawn)
    return sets.unflatten(1, (len(seeds), count))


def ratios(values, most, least=1):
    """Return r[n, m, j-1] = e_j / e_(j-1) of the first n eigenvalues of `values (M, N)`, falling: (N + 1, M, most).

    e_j(n) = e_j(n-1) + λ_n e_(j-1)(n-1), divided by the same for j - 1. All terms are positive, so nothing
    cancels. `most` may not be more than the rank: beyond it there is no ratio. Only what leads to e_least and above
    is filled in. NumPy arrays: each of the many small steps costs a fraction of a call of torch, or of a launch.
    """
    items = values.shape[1]
    table = np.zeros((items + 1, values.shape[0], most))  # e_j(n) is 0 for j > n
    for n, value in enumerate(values.T[:, :, None], 1):
        low, high = max(0, least - 1 - (items - n)), min(n, most)
        before, after = table[n - 1, :, max(0, low - 1) : high], table[n, :, low:high]
        total = before + value
        if low == 0:
            after[:, 0] = total[:, 0]
            after = after[:, 1:]
        np.divide(before[:, :-1], total[:, :-1], out=after)
        after *= total[:, 1:]
    return table


def log_polynomials(values, most):
    """Return log e_1 to log e_most of the eigenvalues `(M, N)`, any order, as an array (M, most); see `ratios`.

    e_j is Σ_S det L_S over all sets of j items, with which log det L_S becomes a log-probability.
    """
    return np.log(ratios(-np.sort(-values.cpu().numpy()), most)[-1]).cumsum(1)


def _choose(values, table, keep, uniform):
    """Return which eigenvectors span the projection, `bool (rows, N)`, with `keep` True in each row of `uniform`.

    Eigenvector n of the falling `values (M, N)` is taken with probability λ_n e_(j-1)(n-1) / e_j(n), where j
    are still to be taken: λ_n / (λ_n + r). Row k belongs to matrix k mod M.
    """
    which = np.arange(len(uniform)) % len(values)
    ahead, left = which * table.shape[2] - 1, np.full(len(uniform), keep)
    values, uniform = np.ascontiguousarray(values.T[:, which]), np.ascontiguousarray(uniform.T)
    chosen = np.zeros(uniform.shape, dtype=bool)
    for n in range(len(chosen) - 1, -1, -1):
        ratio = table[n].take(ahead + left)  # with none left, any
        np.less(uniform[n] * (values[n] + ratio), values[n], out=chosen[n])
        chosen[n] &= left > 0
        left -= chosen[n]
    return chosen.T


def _project(vectors, chosen, streams):
    """Return the sets drawn from the projections onto the chosen columns of `vectors (M, N, N)`, `bool (M, N)`."""
    rows, items = chosen.shape
    size = int(chosen[0].sum())
    most = size + min(BLOCK, size)  # rows that keep fewer of a block than others are filled up
    group = max(1, int(GROUP_BYTES[chosen.device.type] / (8 * (size * items + most * (size + items)))))
    sets = []
    for part in workers.slices(rows, group):
        count, columns = part.stop - part.start, chosen[part].nonzero()[:, 1].view(-1, 1, size)
        factor = vectors[part].gather(2, columns.expand(-1, items, -1))
        spaces = (factor.new_empty(count, most, width) for width in (size, items))
        sets.append(_eliminate(factor, *spaces, streams[part]))
    return torch.cat(sets)


def _eliminate(factor, basis, reach, streams):
    """Return the sets `bool (M, N)` of the projections VVᵀ, V = `factor (M, N, size)`.

    `basis (M, room, size)` receives an orthonormal basis Q of the rows of V that are kept, and `reach (M, room, N)`
    QVᵀ, by which they reduce all the others: given those, the process goes on with VVᵀ - VQᵀQVᵀ. Each block
    keeps at least one item, so it ends.
    """
    (rows, items, size), used = factor.shape, 0
    first = torch.arange(rows, device=factor.device)[:, None] * items
    lengths = torch.linalg.vector_norm(factor, dim=2).square_()
    kept = torch.zeros_like(lengths, dtype=torch.bool)
    while True:
        candidates, coins = _propose(lengths, min(BLOCK, size), streams)
        own = factor.flatten(0, 1).index_select(0, (candidates + first).flatten()).view(*candidates.shape, size)
        shares = reach[:, :used].gather(2, candidates[:, None].expand(-1, used, -1))
        products = product(own, own.mT) - product(shares.mT, shares)
        taken, root = accept(products, coins, size - kept.sum(1))
        kept.view(torch.uint8).scatter_reduce_(1, candidates, taken.view(torch.uint8), "amax")
        fewest, most = torch.stack([kept.sum(1).min(), taken.sum(1).max()]).tolist()  # a GPU is waited for once a block
        if fewest == size:
            return kept
        solver = _solver(taken, root, most)
        until = used + solver.shape[1]
        if until > basis.shape[1]:
            basis, reach = (torch.cat([whole, torch.empty_like(whole)], 1) for whole in (basis, reach))
        fresh = product(solver, own, out=basis[:, used:until])
        fresh -= product(product(solver, shares.mT), basis[:, :used])
        lengths = lengths - squares(product(fresh, factor.mT, out=reach[:, used:until]))
        lengths.clamp_(min=0).masked_fill_(kept, 0)
        used = until


def _propose(lengths, block, streams):
    """Return `block` candidates of each row, drawn with probability ∝ `lengths (rows, N)`, and a coin for each."""
    uniform = torch.from_numpy(np.stack([stream.random((2, block)) for stream in streams])).to(lengths.device)
    sums = lengths.cumsum(1)
    found = torch.searchsorted(sums, uniform[:, 0] * sums[:, -1:], right=True)
    return found.clamp_(max=lengths.shape[1] - 1), uniform[:, 1]


@fused.twin("accept")
def accept(products, coins, left):
    """Return who of the candidates is kept, `bool (rows, b)`, and the Cholesky factor of those who are.

    products: the candidates' inner products (rows, b, b). One after the other, a candidate is kept if what its
    residual length still is, relative to what it was, exceeds its coin. `left (rows,)`: how many may be.
    """
    device, (products, coins, left) = products.device, (t.cpu().numpy() for t in (products, coins, left))
    root, taken = np.zeros_like(products), np.zeros(coins.shape, dtype=bool)
    bars, left = coins * products.diagonal(axis1=1, axis2=2), left.copy()
    for i in range(coins.shape[1]):
        column = products[:, i:, i] - np.matmul(root[:, i:, :i], root[:, i, :i, None])[:, :, 0]
        pivot = column[:, 0]
        np.logical_and(pivot > bars[:, i], left > 0, out=taken[:, i])
        left -= taken[:, i]
        root[:, i:, i] = column * (taken[:, i] / np.sqrt(np.where(taken[:, i], pivot, 1)))[:, None]
    return torch.from_numpy(taken).to(device), torch.from_numpy(root).to(device)


def _solver(taken, root, most):
    """Return `(rows, most, b)` that makes the rows of an orthonormal basis of b candidates, the most that a row keeps.

    It is the inverse of the Cholesky factor of those who are kept, 0 for those who are not. Shorter rows have zeros.
    """
    order = taken.int().argsort(dim=1, descending=True, stable=True)[:, :most]
    eye = torch.eye(root.shape[1], dtype=root.dtype, device=root.device)
    inverse = torch.linalg.solve_triangular(root + eye * ~taken[:, :, None], eye, upper=False)
    inverse *= taken[:, :, None] & taken[:, None, :]
    return inverse.gather(1, order[:, :, None].expand(-1, -1, root.shape[1]))


def _draw_by_dppy(eigen, first, keeps, seeds, purpose):
    """Return what `_draw` returns, by DPPy (Gautier et al., arXiv 1809.07258), from the same eigenpairs."""
    from dppy.finite_dpps import FiniteDPP

    count, items = eigen.values.shape
    sets = torch.zeros(len(keeps), len(seeds) * count, items, dtype=torch.bool)
    for kept, keep in zip(sets, keeps, strict=True):
        _check_dppy(eigen, first, keep)
        for row, stream in enumerate(_streams(count, first, keep, seeds, purpose)):
            pairs = eigen.values[row % count].cpu().numpy(), eigen.vectors[row % count].cpu().numpy()
            state = np.random.RandomState(stream.bit_generator)
            try:
                chosen = FiniteDPP("likelihood", L_eig_dec=pairs).sample_exact_k_dpp(keep, random_state=state)
            except ValueError as error:
                raise ValueError(f"DPPy cannot keep {keep} items ({error}); take sampler='exact'") from error
            kept[row, chosen] = True
    return sets.unflatten(1, (len(seeds), count)).to(eigen.values.device)


def _check_dppy(eigen, first, keep):
    """Raise ValueError where DPPy would divide by a polynomial that has become 0 or infinite in float64."""
    logs = log_polynomials(eigen.values, keep)
    # Its first step divides e_(keep-1) of all eigenvalues but the largest.
    lowest = logs[:, -1] - np.log(eigen.values[:, -1].cpu().numpy().clip(1))
    numbers = np.finfo(np.float64)
    wrong = (lowest < math.log(numbers.tiny)) | (logs.max(1) > math.log(numbers.max))
    if wrong.any():
        matrix = int(wrong.argmax())
        last, most = (float(log) / math.log(10) for log in (logs[matrix, -1], logs[matrix].max()))
        told = f"DPPy cannot keep {keep} items of likelihood matrix {first + matrix}: it needs e_{keep} of the"
        ends = "float64 ends at 10^±308. Take sampler='exact'."
        raise ValueError(f"{told} eigenvalues, and all before: 10^{last:.0f}, the largest 10^{most:.0f}; {ends}")
