"""k-DPP draws against enumeration, exact marginals and DPPy; large matrices against what must hold of any draw."""

import functools
import itertools
import math
import os
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats

from lib import dpp, likelihood, workers
from lib import sets as data

REAL = Path(data.ROOT, os.environ.get("PRUNING_DATA", "data"))
needs_mnist = pytest.mark.skipif(
    not (REAL / "MNIST" / "raw" / "train-images-idx3-ubyte.gz").exists(), reason="no MNIST in $PRUNING_DATA"
)
DRAWS = 20_000
LEVEL = 1e-3  # of every chi-square test; the seeds are fixed, so a test that passes once always passes


def matrix(items, rank, seed=0):
    """Return a likelihood matrix (N, N) of a given rank with eigenvalues far apart."""
    factor = torch.from_numpy(np.random.default_rng(seed).normal(size=(items, rank)))
    return (
        factor * torch.linspace(0.3, 2, items)[:, None].double() @ factor.t() * torch.linspace(0.3, 2, items).double()
    )


def probabilities(found, keep):
    """Return {set: probability} of all sets of `keep` items, by their determinants."""
    subsets = list(itertools.combinations(range(len(found)), keep))
    weights = [max(0.0, float(torch.linalg.det(found[list(s)][:, list(s)]))) for s in subsets]
    return dict(zip(subsets, np.array(weights) / sum(weights), strict=True))


def p_value(sets, expected):
    """Return the chi-square p-value of drawn sets `bool (draws, N)`; cells expected less than 5 times are one cell."""
    powers = 1 << np.arange(sets.shape[1])
    counts = dict(zip(*np.unique(sets.numpy() @ powers, return_counts=True), strict=True))
    seen = np.array([counts.pop(int(powers[list(chosen)].sum()), 0) for chosen in expected], dtype=float)
    assert not counts, "a set of another size"
    wanted = np.array(list(expected.values())) * len(sets)
    rare = wanted < 5
    seen, wanted = (np.append(v[~rare], v[rare].sum()) for v in (seen, wanted))
    return stats.chisquare(seen[wanted > 0], wanted[wanted > 0]).pvalue if (wanted > 0).sum() > 1 else 1.0


@pytest.mark.parametrize("items, rank", [(8, 8), (6, 4)])
def test_every_set_is_drawn_as_often_as_its_determinant_says(items, rank):
    found = matrix(items, rank)
    drawn = dpp.sample(found[None], list(range(1, rank + 1)), range(DRAWS))[:, :, 0]
    for keep, sets in enumerate(drawn, 1):
        expected = probabilities(found, keep)
        assert p_value(sets, expected) > LEVEL, f"keep {keep} of {items}"
        if 1 < len(expected) and keep < rank:  # uniform draws would have been found out
            assert p_value(sets, dict.fromkeys(expected, 1 / len(expected))) < 1e-12


def marginals(found, keep):
    """Return P(i in S) = Σ_n V_in² λ_n e_(k-1)(without n) / e_k, the polynomials as coefficients of Π (1 + λ t)."""
    values, vectors = torch.linalg.eigh(found)
    values, shares = values.numpy(), []
    whole = np.poly(-values)[::-1]  # Π (t + λ): e_j is the coefficient of t^(N - j)
    for n in range(len(values)):
        rest = np.poly(-np.delete(values, n))[::-1]
        shares.append(values[n] * rest[len(values) - keep] / whole[len(values) - keep])
    return (vectors.square().numpy() * shares).sum(1)


@pytest.mark.parametrize("block", [1, 5, 64])
@pytest.mark.parametrize("keep", [9, 15])
def test_marginals_of_more_items_in_every_size_of_block(block, keep, monkeypatch):
    monkeypatch.setattr(dpp, "BLOCK", block)
    found, draws = matrix(24, 24, 1), 4000
    often = dpp.sample(found.expand(draws, 24, 24), keep, [block])[0].double().mean(0).numpy()
    expected = marginals(found, keep)
    assert abs(expected.sum() - keep) < 1e-8 and expected.std() > 0.05
    z = (often - expected) / np.sqrt(expected * (1 - expected) / draws)
    assert np.abs(z).max() < 4.2, "24 normal deviates pass 4.2 once in 1,600 times"


def test_dppy_draws_from_the_same_distribution():
    found = matrix(5, 5, 2)
    sets = dpp.sample(found[None], 2, range(3000), sampler="dppy")[:, 0]
    assert p_value(sets, probabilities(found, 2)) > LEVEL
    found, draws = matrix(20, 20, 3), 1000
    ours, theirs = (dpp.sample(found[None], 7, range(draws), sampler=s)[:, 0].double().mean(0) for s in dpp.SAMPLERS)
    z = (ours - theirs) / ((ours * (1 - ours) + theirs * (1 - theirs)) / draws).sqrt()
    assert z.abs().max() < 4.2 and not torch.equal(ours, theirs)


def test_the_identity_gives_uniform_sets_and_says_so():
    with pytest.warns(dpp.IdentityWarning, match="1 of 1 .* numerically the identity.*uniformly"):
        sets = dpp.sample(1.01 * torch.eye(6).double()[None], 3, range(DRAWS))[:, 0]
    assert p_value(sets, dict.fromkeys(itertools.combinations(range(6), 3), 1 / 20)) > LEVEL


def test_the_warning_counts_the_matrices_and_knows_a_diagonal_from_the_identity():
    nearly = torch.eye(9).double() + 0.01 * (matrix(9, 9) / 10).fill_diagonal_(0)
    both = torch.stack([nearly, torch.linspace(1, 2, 9).double().diag(), torch.eye(9).double()])
    with pytest.warns(dpp.IdentityWarning, match="2 of 3"):
        dpp.sample(both, 3, [0])


def test_a_singular_matrix_serves_up_to_its_rank():
    found = torch.stack([matrix(9, 9), matrix(9, 5)])
    assert dpp.sample(found, 5, [0, 1]).sum(-1).tolist() == [[5, 5], [5, 5]]
    with pytest.raises(ValueError, match="keep is 6, but likelihood matrix 1 has rank 5.*ridge"):
        dpp.sample(found, 6, [0])


# ------------------------------------------------------------------------------------ what decides a draw


def several(count=7, items=12):
    return torch.stack([matrix(items, items, seed) for seed in range(count)])


def test_a_draw_depends_on_seed_keep_purpose_and_number_alone(monkeypatch):
    found, keeps, seeds = several(), [3, 6, 8, 12], [4, 5, 6]
    whole = dpp.sample(found, keeps, seeds)
    assert whole.shape == (4, 3, 7, 12) and (whole.sum(-1) == torch.tensor(keeps)[:, None, None]).all()
    assert torch.equal(whole[1, 2:], dpp.sample(found, 6, [6]))
    assert torch.equal(whole[:, :, :2], dpp.sample(found[:2], keeps, seeds))
    monkeypatch.setattr(dpp, "CHUNK_BYTES", {"cpu": 2 * 8 * 12**2})
    monkeypatch.setattr(dpp, "GROUP_BYTES", {"cpu": 1})
    assert torch.equal(whole, dpp.sample(found, keeps, seeds))
    others = [dpp.sample(found, keeps, seeds, purpose="other"), dpp.sample(found, keeps, [7, 8, 9])]
    assert not any(torch.equal(whole, other) for other in others)
    assert not torch.equal(*dpp.sample(found[:1].expand(2, -1, -1), 6, [4])[0])


def test_two_workers_draw_what_one_draws(monkeypatch):
    monkeypatch.setattr(dpp, "CHUNK_BYTES", {"cpu": 2 * 8 * 12**2})
    found, threads = several(), torch.get_num_threads()
    one = dpp.sample(found, [3, 9], [0])
    try:
        torch.set_num_threads(2)
        assert torch.equal(one, dpp.sample(found, [3, 9], [0]))
        assert torch.get_num_threads() == 2
        with pytest.raises(ValueError, match="rank"):  # an error in a worker is everyone's
            dpp.sample(torch.stack([matrix(12, 4)] * 7), 5, [0])
    finally:
        torch.set_num_threads(threads)


def test_draws_stay_what_they_are():
    """A change here changes every DPP result: these numbers may only be edited with all records made again."""
    kept = [row.nonzero()[:, 0].tolist() for row in dpp.sample(several(2), 4, [9192])[0]]
    assert kept == [[4, 5, 7, 9], [5, 8, 10, 11]]


def test_pieces_are_worked_on_in_order():
    assert workers.each(lambda k: k * k, range(5)) == [0, 1, 4, 9, 16]
    assert workers.slices(5, 2) == [slice(0, 2), slice(2, 4), slice(4, 5)]


# --------------------------------------------------------------------------------------------- polynomials


def test_polynomials_equal_the_exact_ones():
    values = [Fraction(n * n + 1, 7) for n in range(9)]
    exact = [sum(math.prod(s) for s in itertools.combinations(values, j)) for j in range(1, 10)]
    logs = dpp.log_polynomials(torch.tensor([[float(v) for v in values]], dtype=torch.float64), 9)[0]
    assert np.allclose(np.exp(logs), [float(e) for e in exact], rtol=1e-13)


def test_polynomials_beyond_float64_are_binomial_coefficients():
    logs = dpp.log_polynomials(torch.full((1, 3072), 1e-2, dtype=torch.float64), 3072)[0]
    expected = [
        math.lgamma(3073) - math.lgamma(j + 1) - math.lgamma(3073 - j) + j * math.log(1e-2) for j in range(1, 3073)
    ]
    assert logs.min() < -10_000 and np.allclose(logs, expected, rtol=1e-10, atol=1e-9)


# -------------------------------------------------------------------------------------------- 784 items


@functools.cache
def inputs(name):
    return likelihood.moments(data.load(name).split("train")[0])


def edges(name, beta, units=1):
    """Return the likelihood matrices of a first layer of Xavier weights on a real data set."""
    weight = (torch.rand(units, 784, generator=torch.Generator().manual_seed(0)) * 2 - 1) * (6 / 1284) ** 0.5
    return likelihood.Edges(inputs(name), weight, beta)


@pytest.mark.parametrize("beta", ["10/N", 0.3])
@pytest.mark.parametrize("name", ["digits", pytest.param("mnist", marks=needs_mnist)])
def test_784_items(name, beta):
    keeps = [1, 392, 706, 783]
    for keep, kept in zip(keeps, dpp.sample(edges(name, beta), keeps, [0, 1]), strict=True):
        assert kept.shape == (2, 1, 784) and (kept.sum(-1) == keep).all()
        assert not torch.equal(kept[0], kept[1])


def test_dppy_is_an_error_where_it_underflows_or_overflows():
    low, high = (value * torch.eye(items).double()[None] for value, items in ((0.0104, 784), (1.01, 1100)))
    with pytest.raises(ValueError, match=r"DPPy cannot keep 387 items of likelihood matrix 0.*10\^-5\d\d.*exact"):
        dpp.sample(low, 387, [0], sampler="dppy")
    with pytest.raises(ValueError, match=r"DPPy cannot keep 550 .*10\^3\d\d.*exact"):
        dpp.sample(high, 550, [0], sampler="dppy")
    for matrix, keep in ((low, 387), (high, 550)):
        with pytest.warns(dpp.IdentityWarning):
            assert (dpp.sample(matrix, keep, [0]).sum(-1) == keep).all()


# ------------------------------------------------------------------------------------------------- the door


@pytest.mark.parametrize(
    "broken, message",
    [
        (torch.tensor([[1.0, 0.5], [0.2, 1.0]]), "number 0 on is not symmetric"),
        (torch.tensor([[1.0, math.nan], [math.nan, 1.0]]), "not finite"),
        (torch.tensor([[1.0, 2.0], [2.0, 1.0]]), "eigenvalue -1; allowed is >= 0"),
    ],
)
def test_what_is_no_likelihood_matrix_is_an_error(broken, message):
    with pytest.raises(ValueError, match=message):
        dpp.sample(broken[None], 1, [0])


@pytest.mark.parametrize(
    "keep, seeds, sampler, message",
    [
        (0, [0], "exact", r"keep is 0; allowed are whole numbers in \[1, 12\]"),
        ([3, 13], [0], "exact", "keep is 13; allowed are"),
        ([], [0], "exact", "keep"),
        (3, [], "exact", r"seeds is \[\]; needed is a list"),
        (3, 5, "exact", "seeds is 5; needed is a list"),
        (3, [0], "mcmc", "'mcmc'.*exact.*dppy"),
    ],
)
def test_what_cannot_be_drawn_is_an_error(keep, seeds, sampler, message):
    with pytest.raises(ValueError, match=message):
        dpp.sample(several(1), keep, seeds, sampler=sampler)


@pytest.mark.parametrize(
    "matrices, message",
    [(torch.eye(3), r"\(3, 3\); needed is \(M, N, N\)"), (torch.ones(1, 2, 3), "needed"),
     (torch.eye(3)[None] + 0j, "complex64; likelihood matrices are real"), ("L", "are 'L'; needed is")],
)  # fmt: skip
def test_what_is_no_stack_of_matrices_is_an_error(matrices, message):
    with pytest.raises(ValueError, match=message):
        dpp.sample(matrices, 1, [0])


def test_arrays_and_lists_are_matrices_too():
    matrices = several(2)
    wanted = dpp.sample(matrices, 3, np.arange(2))
    for given in (matrices.numpy(), matrices.tolist(), matrices.numpy()[:, ::-1, ::-1].copy()[:, ::-1, ::-1]):
        assert torch.equal(dpp.sample(given, 3, [0, 1]), wanted)


def test_a_float32_gram_matrix_has_the_rank_of_its_features():
    """Its eigenvalues beyond are zeros that rounding made negative, or positive, by some 1e-6."""
    x = torch.from_numpy(np.random.default_rng(0).normal(size=(3, 40, 5))).float()
    gram = x @ x.mT
    assert float(torch.linalg.eigvalsh(gram.double()).min()) < -1e-7
    assert (dpp.sample(gram, 5, [0]).sum(-1) == 5).all()
    with pytest.raises(ValueError, match="has rank 5"):
        dpp.sample(gram, 6, [0])


def test_a_float32_kernel_may_be_asymmetric_by_rounding():
    x = torch.from_numpy(np.random.default_rng(1).normal(size=(1, 60, 30))).float()
    kernel = (-torch.cdist(x, x).square() / 60).exp() + 0.01 * torch.eye(60)
    kernel[0, 3, 5] += 1.5e-7
    even = (kernel.double() + kernel.double().mT) / 2
    assert torch.equal(dpp.sample(kernel, 20, [0, 1]), dpp.sample(even, 20, [0, 1]))
    with pytest.raises(ValueError, match="not symmetric: .* differ by 1.5e-07"):
        wrong = even.clone()
        wrong[0, 3, 5] += 1.5e-7
        dpp.sample(wrong, 20, [0])


def test_a_large_float32_matrix_keeps_its_ridge():
    """784 items that are nearly the same: the ridge is a hundred-thousandth of the largest eigenvalue, and counts."""
    matrix = torch.ones(1, 784, 784) + 0.01 * torch.eye(784)
    assert dpp.sample(matrix, 500, [0]).sum() == 500
