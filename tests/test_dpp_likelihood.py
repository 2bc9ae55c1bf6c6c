"""Likelihood matrices from one Gram matrix against distances taken one pair of vectors at a time."""

import numpy as np
import pytest
import torch

from lib import dpp, likelihood


def inputs(examples=5000, size=11, seed=0):
    """Return examples (N, I) float32 with two constant inputs, more of them than are worked on at a time."""
    x = torch.from_numpy(np.random.default_rng(seed).normal(size=(examples, size))).float()
    x[:, 3:5] = -0.4242
    return x


def layer(runs=2, units=4, size=11):
    rng = np.random.default_rng(1)
    return tuple(torch.from_numpy(rng.normal(size=s)).float() / 5 for s in ((runs, units, size), (runs, units)))


def distances(vectors):
    """Return |a_i - a_j|² of the rows of `vectors (M, N)`, pair by pair."""
    rows = vectors.double()
    return torch.stack([torch.stack([(a - b).square().sum() for b in rows]) for a in rows])


def test_moments_are_sums_over_the_examples():
    x = inputs()
    found = likelihood.moments(x)
    assert found.gram.dtype == torch.float64 and found.examples == 5000
    torch.testing.assert_close(found.gram, x.double().T @ x.double(), rtol=1e-12, atol=1e-9)
    torch.testing.assert_close(found.mean, x.double().mean(0), rtol=1e-12, atol=1e-12)
    stacked = likelihood.moments(torch.stack([x, 2 * x]))
    torch.testing.assert_close(stacked.gram[1], 4 * found.gram, rtol=1e-12, atol=1e-9)


@pytest.mark.parametrize("beta, number", [(0.003, 0.003), ("10/N", 10 / 5000), (10 / 5000, 10 / 5000)])
def test_edges_equal_brute_force(beta, number):
    x, (weight, _) = inputs(), layer()
    edges = likelihood.Edges(likelihood.moments(x), weight[0], beta)
    assert edges.shape == (4, 11, 11)
    for unit in range(4):
        expected = (-number * distances((weight[0, unit] * x).T)).exp() + 0.01 * torch.eye(11)
        torch.testing.assert_close(edges[unit : unit + 1][0], expected, rtol=1e-5, atol=1e-12)


@pytest.mark.parametrize("items", likelihood.ITEMS)
def test_nodes_equal_brute_force(items):
    x, (weight, bias) = inputs(), layer()
    if items == "preactivation":
        found = likelihood.projected(likelihood.moments(x), weight)
    else:
        found = likelihood.unit_moments(x, weight, bias, torch.sigmoid)
    matrices = likelihood.likelihood(found.gram, found.examples, 0.002, ridge=0.5)
    for run in range(2):
        z = x @ weight[run].T
        a = z if items == "preactivation" else torch.sigmoid(z + bias[run])
        expected = (-0.002 * distances(a.T)).exp() + 0.5 * torch.eye(4)
        torch.testing.assert_close(matrices[run], expected, rtol=1e-5, atol=1e-12)
        torch.testing.assert_close(found.mean[run], a.double().mean(0), rtol=1e-5, atol=1e-6)


def test_runs_may_have_inputs_of_their_own():
    x, (weight, bias) = torch.stack([inputs(50), inputs(50, seed=3)]), layer()
    both = likelihood.unit_moments(x, weight, bias, torch.relu)
    for run in range(2):
        alone = likelihood.unit_moments(x[run], weight[run : run + 1], bias[run : run + 1], torch.relu)
        torch.testing.assert_close(both.gram[run], alone.gram[0])


def test_the_linear_matrices_of_teacher_and_student():
    x, (weight, _) = inputs(), layer()
    found = likelihood.moments(x)
    z = (x @ weight[0].T).double()
    nodes = likelihood.likelihood(likelihood.projected(found, weight[0]).gram, 5000, form="linear")
    torch.testing.assert_close(nodes, z.T @ z / 5000, rtol=1e-5, atol=1e-9)
    weighted = (weight[0, 2] * x).double()
    edges = likelihood.Edges(found, weight[0], form="linear")[2:3][0]
    torch.testing.assert_close(edges, weighted.T @ weighted / 5000, rtol=1e-5, atol=1e-9)


def test_the_median_makes_half_of_the_entries_larger_than_one_over_e():
    x, (weight, _) = inputs(), layer()
    matrices = likelihood.Edges(likelihood.moments(x), weight[0], "median", ridge=0)[:]
    for unit, found in enumerate(matrices):
        squares = distances((weight[0, unit] * x).T)[*np.triu_indices(11, 1)]
        expected = (-squares / squares.sort().values[(len(squares) - 1) // 2]).exp()
        np.testing.assert_allclose(found[*np.triu_indices(11, 1)], expected, rtol=1e-5)


def test_quantiles_are_of_what_is_off_the_diagonal():
    rng = np.random.default_rng(0)
    matrices = torch.from_numpy(rng.normal(size=(3, 7, 7)))
    matrices = matrices + matrices.mT
    found = likelihood.quantiles(matrices, (0, 0.3, 1))
    for row, matrix in zip(found, matrices, strict=True):
        np.testing.assert_allclose(row, np.quantile(matrix.numpy()[~np.eye(7, dtype=bool)], (0, 0.3, 1)), atol=0.5)
        np.testing.assert_allclose(row, np.quantile(matrix.numpy()[np.triu_indices(7, 1)], (0, 0.3, 1)))


def test_the_published_node_matrix_is_the_identity_and_draws_say_so():
    """Pre-activations of 5,000 examples are hundreds apart, so that beta = 0.3 leaves nothing off the diagonal."""
    x, (weight, _) = inputs(), layer()
    published = likelihood.projected(likelihood.moments(x), weight)
    matrices = likelihood.likelihood(published.gram, published.examples, 0.3)
    assert likelihood.quantiles(matrices).max() < 1e-100
    with pytest.warns(dpp.IdentityWarning, match="2 of 2"):
        dpp.sample(matrices, 2, [0])


@pytest.mark.parametrize("beta", [0, -1, "N/10", "mean", "-1/N"])
def test_an_impossible_beta_is_an_error(beta):
    with pytest.raises(ValueError, match=r"beta is .*a number above 0.*10/N.*median"):
        likelihood.likelihood(torch.eye(3).double(), 10, beta)


def test_other_errors_at_the_door():
    x, (weight, _) = inputs(), layer()
    with pytest.raises(ValueError, match="'cosine'.*rbf"):
        likelihood.likelihood(torch.eye(3).double(), 10, form="cosine")
    with pytest.raises(ValueError, match="half of the items of a matrix are equal"):
        likelihood.likelihood(torch.ones(3, 3).double(), 10, "median")
    with pytest.raises(ValueError, match=r"weight is \(2, 4, 11\).*one run at a time"):
        likelihood.Edges(likelihood.moments(x), weight)
