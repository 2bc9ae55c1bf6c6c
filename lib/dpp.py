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
import operator
import warnings
from dataclasses import dataclass

import numpy as np
import torch

from lib import draws, workers

SAMPLERS = ("exact", "dppy")
BLOCK = 64  # candidates at a time; measured on 784 items, 48 to 96 cost the same
# How many bytes of matrices are worked on at a time, and of rows being drawn. On a CPU what is larger than
# the cache is slow, and what is larger than 32 MB is mapped anew, page by page, at every allocation.
CHUNK_BYTES = {"cpu": 80e6, "cuda": 1e9}
GROUP_BYTES = {"cpu": 40e6, "cuda": 1e9}
UNIFORM = 0.01  # an L this near to a multiple of I draws every set with the same probability, within one percent


class IdentityWarning(UserWarning):
    """A likelihood matrix is numerically a multiple of the identity: the "diverse" sets are uniformly random."""


@dataclass(frozen=True)
class Eigen:
    """The eigenpairs of M likelihood matrices: values (M, N), rising, and vectors (M, N, N), in columns."""

    values: torch.Tensor
    vectors: torch.Tensor

    @property
    def shape(self):
        return self.vectors.shape

    @property
    def device(self):
        return self.vectors.device

    def __getitem__(self, matrices):
        return Eigen(self.values[matrices], self.vectors[matrices])


def eigen(matrices, together=False):
    """Return the `Eigen` of `matrices (M, N, N)`: of a tensor, or of anything that has a shape and can be sliced.

    It holds 8 M N² bytes, 2.5 GB for the edges of 784 to 500; `sample` does without, a few matrices at a time.
    together: on CUDA, hand many matrices to the batched solver instead of one after the other; which
    is faster there has not been measured. Raises ValueError for a matrix that is not symmetric, finite and
    positive semidefinite, warns (`IdentityWarning`) of one that is a multiple of the identity.
    """
    values = torch.empty(matrices.shape[:2], dtype=torch.float64, device=matrices.device)
    vectors = torch.empty(matrices.shape, dtype=torch.float64, device=matrices.device)

    def work(part):
        found = _eigen(matrices, part, together)
        values[part], vectors[part] = found.values, found.vectors

    workers.each(work, _parts(matrices), matrices.device)
    _warn_of_identity(values)
    return Eigen(values, vectors)


def _parts(matrices):
    """Return the slices of matrices that are worked on at a time."""
    count, items, _ = matrices.shape
    return workers.slices(count, max(1, int(CHUNK_BYTES[matrices.device.type] / (8 * items**2))))


def _eigen(matrices, part, together=False):
    """Return the `Eigen` of the matrices of one slice, eigenvalues within rounding of 0 set to 0."""
    found, name = matrices[part].detach(), f"a likelihood matrix from number {part.start} on"
    # What builds its own matrices builds them symmetric.
    given = isinstance(matrices, torch.Tensor)
    if not found.sum().isfinite() or given and (found - found.mT).abs().amax() > 1e-8 * found.abs().amax():
        raise ValueError(f"{name} is not symmetric, or not finite")
    values, vectors = _eigh(found.double(), together)
    noise = (found.shape[-1] * torch.finfo(torch.float64).eps) * values[:, -1:].abs()
    if (values < -noise).any():
        raise ValueError(f"{name} has the eigenvalue {float(values.min()):.3g}; allowed is >= 0")
    return Eigen(values.masked_fill(values <= noise, 0), vectors)


def _eigh(matrices, together):
    """Return (values, vectors). On a CPU by NumPy, whose LAPACK took 60 ms where torch's took 85 (784 items, AMD)."""
    if matrices.device.type == "cpu":
        return tuple(map(torch.from_numpy, np.linalg.eigh(matrices.numpy())))
    if together:
        return torch.linalg.eigh(matrices)
    return tuple(torch.stack(parts) for parts in zip(*map(torch.linalg.eigh, matrices), strict=True))


def _warn_of_identity(values):
    """Warn if log det L_S is nearly the same for all S: half of |L / mean - I|² bounds how much it can differ."""
    distance = (values / values.mean(1, keepdim=True) - 1).square().sum(1) / 2
    alike = int((distance < UNIFORM).sum())
    if alike:
        warnings.warn(
            f"{alike} of {len(values)} likelihood matrices are numerically the identity: their sets are uniformly"
            f" random, not diverse. Look at likelihood.quantiles, and take a smaller beta or beta='median'.",
            IdentityWarning,
            stacklevel=3,
        )


def sample(matrices, keep, seeds, sampler="exact", purpose="dpp"):
    """Return one set of each likelihood matrix and seed as a mask, `bool (S, M, N)`; `keep` items are True.

    matrices: `(M, N, N)`, or what can be sliced so, or their `Eigen`, which makes every further draw cheap. keep: an
    integer from 1 to the rank of every matrix, or a list of K of them, which adds a leading axis: (K, S, M, N).
    A draw is decided by (seed, purpose, keep, number of the matrix) alone. sampler: "exact", or "dppy", the
    published one, with an error where its arithmetic fails.
    """
    keeps = [operator.index(k) for k in ([keep] if np.ndim(keep) == 0 else keep)]
    items = matrices.shape[-1]
    if sampler not in SAMPLERS:
        raise ValueError(f"sampler is {sampler!r}; allowed are {SAMPLERS}")
    if not len(seeds):
        raise ValueError("seeds is empty; give one integer for each set that is to be drawn")
    if not keeps or not all(1 <= k <= items for k in keeps):
        raise ValueError(f"keep is {keep}; allowed is 1 to {items}, the number of items")
    draw = _draw if sampler == "exact" else _draw_by_dppy

    def work(part):
        found = matrices[part] if isinstance(matrices, Eigen) else _eigen(matrices, part)
        _check_rank(found, part.start, max(keeps))
        return found.values, draw(found, part.start, keeps, seeds, purpose)

    found, sets = zip(*workers.each(work, _parts(matrices), matrices.device), strict=True)
    if not isinstance(matrices, Eigen):
        _warn_of_identity(torch.cat(found))
    sets = torch.cat(sets, dim=2)
    if not (sets.sum(-1) == torch.tensor(keeps, device=sets.device)[:, None, None]).all():
        raise RuntimeError(f"a draw of {keep} items has another size; rounding must have got the better of a matrix")
    return sets[0] if np.ndim(keep) == 0 else sets


def _check_rank(found, first, keep):
    ranks = (found.values > 0).sum(1)
    if int(ranks.min()) < keep:
        matrix = int(ranks.argmin())
        raise ValueError(
            f"keep is {keep}, but likelihood matrix {first + matrix} has rank {int(ranks[matrix])}: every larger set"
            f" has probability 0. Keep at most that many, or add a ridge (0.01 in the published matrices)."
        )


def _streams(count, first, keep, seeds, purpose):
    """Return the generators of all draws, those of the first seed first."""
    return [draws.generator(seed, purpose, keep, first + m) for seed in seeds for m in range(count)]


def _draw(found, first, keeps, seeds, purpose):
    """Return the sets `bool (K, S, M, N)` of M matrices, of which the first is number `first`."""
    count, items, _ = found.shape
    values = found.values.cpu().numpy()[:, ::-1]
    table = ratios(values, max(keeps))
    vectors = found.vectors if count > 1 else found.vectors.expand(len(seeds), -1, -1)
    sets = torch.ones(len(keeps), len(seeds) * count, items, dtype=torch.bool, device=found.device)
    for kept, keep in zip(sets, keeps, strict=True):
        if keep == items:
            continue
        streams = _streams(count, first, keep, seeds, purpose)
        chosen = _choose(values, table, keep, np.stack([stream.random(items) for stream in streams]))
        chosen = torch.from_numpy(chosen[:, ::-1].copy()).to(found.device)
        smaller = keep <= items - keep
        wanted = chosen if smaller else ~chosen
        drawn = torch.cat([_project(vectors, wanted[p], streams[p]) for p in workers.slices(len(kept), len(vectors))])
        kept.copy_(drawn if smaller else ~drawn)
    return sets.unflatten(1, (len(seeds), count))


def ratios(values, most):
    """Return r[n, m, j-1] = e_j / e_(j-1) of the first n eigenvalues of `values (M, N)`, falling: (N + 1, M, most).

    e_j(n) = e_j(n-1) + λ_n e_(j-1)(n-1), divided by the same for j - 1. All terms are positive, so nothing
    cancels. `most` may not be more than the rank: beyond it there is no ratio. NumPy arrays, since each of the many
    small steps costs a fraction of a call of torch, and on CUDA a launch.
    """
    table = np.empty((values.shape[1] + 1, values.shape[0], most))
    table[0] = 0
    for before, after, value in zip(table, table[1:], values.T[:, :, None], strict=False):
        total = before + value
        after[:, :1] = total[:, :1]
        np.divide(before[:, :-1], total[:, :-1], out=after[:, 1:])
        after[:, 1:] *= total[:, 1:]
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
    left = np.full(len(uniform), keep)
    chosen = np.zeros(uniform.shape[::-1], dtype=bool)
    for n in range(uniform.shape[1] - 1, -1, -1):
        value, ratio = values[which, n], table[n][which, left - 1]
        chosen[n] = (uniform[:, n] * (value + ratio) < value) & (left > 0)
        left -= chosen[n]
    return chosen.T


def _project(vectors, chosen, streams):
    """Return the sets drawn from the projections onto the chosen columns of `vectors (M, N, N)`, `bool (M, N)`."""
    rows, items = chosen.shape
    size = int(chosen[0].sum())
    group = max(1, int(GROUP_BYTES[chosen.device.type] / (16 * size * items)))
    width = 2 * size + min(BLOCK, size)
    room = torch.empty(min(rows, group), items, width, dtype=torch.float64, device=chosen.device)
    sets = []
    for part in workers.slices(rows, group):
        factor, columns = room[: part.stop - part.start], chosen[part].nonzero()[:, 1].view(-1, 1, size)
        torch.gather(vectors[part], 2, columns.expand(-1, items, -1), out=factor[:, :, :size])
        sets.append(_eliminate(factor, size, streams[part]))
    return torch.cat(sets)


def _eliminate(factor, size, streams):
    """Return the sets `bool (M, N)` of the projections VVᵀ, V the first `size` columns of `factor (M, N, room)`.

    The columns behind receive the Y by which what is kept reduces all the others: given the items
    kept so far, the process goes on with VVᵀ - YYᵀ. Each block keeps at least one item, so it ends.
    """
    used, first = size, torch.arange(len(factor), device=factor.device)[:, None] * factor.shape[1]
    lengths = torch.linalg.vector_norm(factor[:, :, :size], dim=2).square_()
    kept = torch.zeros_like(lengths, dtype=torch.bool)
    left = kept.sum(1) + size
    while left.any():
        candidates, coins = _propose(lengths, min(BLOCK, size), streams)
        whole = factor[:, :, :used]
        rows = whole.flatten(0, 1).index_select(0, (candidates + first).flatten()).view(*candidates.shape, used)
        signed = torch.cat([rows[:, :, :size], -rows[:, :, size:]], 2)
        order, taken, root = _taken_first(*_accept(product(signed, rows.mT), coins, left), factor.device)
        signed = signed.gather(1, order[:, :, None].expand(-1, -1, used)) * taken[:, :, None]
        fresh = product(torch.linalg.solve_triangular(root, signed, upper=False), whole.mT)
        row, column = taken.nonzero(as_tuple=True)
        kept[row, candidates.gather(1, order)[row, column]] = True
        lengths = (lengths - torch.linalg.vector_norm(fresh, dim=1).square_()).clamp_(min=0).masked_fill_(kept, 0)
        left = left - taken.sum(1)
        if used + fresh.shape[1] > factor.shape[2]:
            factor = torch.cat([factor, torch.empty_like(factor)], 2)
        factor[:, :, used : used + fresh.shape[1]] = fresh.mT
        used += fresh.shape[1]
    return kept


def product(a, b):
    """Return a @ b of two batches. On a CPU by NumPy: its library multiplied 1.25 times as fast as torch's (AMD)."""
    if a.device.type == "cpu":
        return torch.from_numpy(np.matmul(a.numpy(), b.numpy()))
    return a @ b


def _propose(lengths, block, streams):
    """Return `block` candidates of each row, drawn with probability ∝ `lengths (rows, N)`, and a coin for each."""
    uniform = torch.from_numpy(np.stack([stream.random((2, block)) for stream in streams])).to(lengths.device)
    sums = lengths.cumsum(1)
    found = torch.searchsorted(sums, uniform[:, 0] * sums[:, -1:], right=True)
    return found.clamp_(max=lengths.shape[1] - 1), uniform[:, 1]


def _accept(products, coins, left):
    """Return who of the candidates is kept, `bool (rows, b)`, and the Cholesky factor of those who are.

    products: the candidates' inner products (rows, b, b). One after the other, a candidate is kept if what its
    residual length still is, relative to what it was, exceeds its coin.
    """
    products, coins, left = (t.cpu().numpy() for t in (products, coins, left))
    root, taken = np.zeros_like(products), np.zeros(coins.shape, dtype=bool)
    bars = coins * products.diagonal(axis1=1, axis2=2)
    for i in range(coins.shape[1]):
        column = products[:, i:, i] - np.matmul(root[:, i:, :i], root[:, i, :i, None])[:, :, 0]
        pivot = column[:, 0]
        taken[:, i] = (pivot > bars[:, i]) & (left > 0)
        left = left - taken[:, i]
        root[:, i:, i] = column * (taken[:, i] / np.sqrt(np.where(taken[:, i], pivot, 1)))[:, None]
    return taken, root


def _taken_first(taken, root, device):
    """Return the order (rows, t) that puts who is kept first, and both in that order; t is the most that a row keeps.

    Rows that keep fewer are filled up with refused candidates, as rows of the identity in the factor.
    """
    order = np.argsort(~taken, axis=1, kind="stable")[:, : taken.sum(1).max()]
    taken = np.take_along_axis(taken, order, axis=1)
    root = np.take_along_axis(np.take_along_axis(root, order[:, :, None], axis=1), order[:, None], axis=2)
    root = root * taken[:, :, None] + np.eye(order.shape[1]) * ~taken[:, :, None]
    return tuple(torch.from_numpy(array).to(device) for array in (order, taken, root))


def _draw_by_dppy(found, first, keeps, seeds, purpose):
    """Return what `_draw` returns, by DPPy (Gautier et al., arXiv 1809.07258), from the same eigenpairs."""
    from dppy.finite_dpps import FiniteDPP

    count, items, _ = found.shape
    sets = torch.zeros(len(keeps), len(seeds) * count, items, dtype=torch.bool)
    for kept, keep in zip(sets, keeps, strict=True):
        _check_dppy(found, first, keep)
        for row, stream in enumerate(_streams(count, first, keep, seeds, purpose)):
            pairs = found.values[row % count].cpu().numpy(), found.vectors[row % count].cpu().numpy()
            state = np.random.RandomState(stream.bit_generator)
            try:
                chosen = FiniteDPP("likelihood", L_eig_dec=pairs).sample_exact_k_dpp(keep, random_state=state)
            except ValueError as error:
                raise ValueError(f"DPPy cannot keep {keep} items ({error}); take sampler='exact'") from error
            kept[row, chosen] = True
    return sets.unflatten(1, (len(seeds), count)).to(found.device)


def _check_dppy(found, first, keep):
    """Raise ValueError where DPPy would divide by a polynomial that has become 0 or infinite in float64."""
    logs = log_polynomials(found.values, keep)
    # Its first step divides e_(keep-1) of all eigenvalues but the largest.
    lowest = logs[:, -1] - np.log(found.values[:, -1].cpu().numpy().clip(1))
    numbers = np.finfo(np.float64)
    wrong = (lowest < math.log(numbers.tiny)) | (logs.max(1) > math.log(numbers.max))
    if wrong.any():
        matrix = int(wrong.argmax())
        raise ValueError(
            f"DPPy cannot keep {keep} items of likelihood matrix {first + matrix}: it needs e_{keep} of the eigenvalues"
            f" and all before it. It is 10^{float(logs[matrix, -1]) / math.log(10):.0f}, the largest"
            f" 10^{float(logs[matrix].max()) / math.log(10):.0f}; float64 ends at 10^-308 and 10^308."
            f" Take sampler='exact'."
        )
