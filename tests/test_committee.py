"""Committees against literal loops in float64, integrals by brute force, and the order parameters of a large sample."""

import math

import numpy as np
import pytest
import torch

from lib import nets
from lib.studies.dpp import committee

SEEDS, NOISE = [3, 4, 3], [0.0, 0.5, 0.5]
INPUTS, UNITS, COUNT, LR = 40, 3, 1000, 0.5


def pair(seeds=SEEDS, units=UNITS, inputs=INPUTS, teacher_units=2):
    return committee.students(seeds, inputs, units), committee.teachers(seeds, inputs, teacher_units)


def gathered(seed, inputs, count, purpose="train"):
    """Return all inputs and noise of a run, float64 arrays."""
    blocks = [committee.samples(seed, inputs, block, purpose) for block in range(count // committee.DRAWN)]
    return (np.concatenate([part.double().numpy() for part in parts]) for parts in zip(*blocks, strict=True))


def literal(student, teacher, run, noise, count, lr):
    """Return w √I and v after the published program's steps: rates lr/√I and lr/I, one sample after the other."""
    w, w_star = (n.layers[0].weight[run].detach().double().numpy() * math.sqrt(INPUTS) for n in (student, teacher))
    v, v_star = (n.layers[1].weight[run, 0].detach().double().numpy() for n in (student, teacher))
    w, v = w.copy(), v.copy()
    erf = np.vectorize(math.erf)
    for x, epsilon in zip(*gathered(SEEDS[run], INPUTS, count), strict=True):
        y = v_star @ erf(w_star @ x / math.sqrt(2 * INPUTS)) + noise * epsilon
        h = w @ x / math.sqrt(INPUTS)
        g, slope = erf(h / math.sqrt(2)), math.sqrt(2 / math.pi) * np.exp(-h * h / 2)
        wrong = v @ g - y
        w, v = (
            w - lr / math.sqrt(INPUTS) * wrong * (v * slope)[:, None] * x,
            v - lr / INPUTS * wrong * g,
        )
    return w, v


@pytest.fixture(scope="module")
def learned():
    student, teacher = pair()
    history = committee.learn_(student, teacher, SEEDS, NOISE, COUNT, LR, bar=False)
    return student, teacher, history


@pytest.mark.parametrize("run", range(3))
def test_learning_is_the_published_update_sample_by_sample(learned, run):
    student, teacher, _ = learned
    w, v = literal(pair()[0], teacher, run, NOISE[run], COUNT, LR)
    np.testing.assert_allclose(student.layers[0].weight[run].detach() * math.sqrt(INPUTS), w, atol=2e-5)
    np.testing.assert_allclose(student.layers[1].weight[run, 0].detach(), v, atol=2e-5)


def test_a_run_does_not_depend_on_its_neighbours(learned):
    student, teacher = pair([4])
    committee.learn_(student, teacher, [4], [0.5], COUNT, LR, bar=False)
    for name, tensor in student.named_parameters():
        torch.testing.assert_close(tensor[0], dict(learned[0].named_parameters())[name][1], atol=1e-5, rtol=1e-5)


def test_the_history_ends_at_the_error_of_the_networks(learned):
    student, teacher, history = learned
    start, _ = pair()
    assert history["samples"].tolist() == [0, 500, 1000] and history["error"].shape == (3, 3)
    np.testing.assert_allclose(history["error"][:, 0], committee.error(start, teacher, NOISE))
    np.testing.assert_allclose(history["error"][:, -1], committee.error(student, teacher, NOISE))
    assert (history["error"][:, -1] < history["error"][:, 0]).all()


def test_runs_of_one_seed_share_teacher_and_inputs_but_not_noise_levels(learned):
    student, teacher, _ = learned
    assert torch.equal(teacher.layers[0].weight[0], teacher.layers[0].weight[2])
    assert not torch.equal(teacher.layers[0].weight[0], teacher.layers[0].weight[1])
    assert not torch.allclose(student.layers[0].weight[0], student.layers[0].weight[2], atol=1e-3)


def test_samples_are_standard_normal_and_of_their_own_key():
    x, epsilon = gathered(5, 100, 20_000)
    assert abs(x.mean()) < 5 / math.sqrt(x.size) and abs(x.var() - 1) < 5 * math.sqrt(2 / x.size)
    assert abs(np.corrcoef(x[:, 0], epsilon)[0, 1]) < 5 / math.sqrt(len(x))
    drawn = {key: committee.samples(*key)[0][0, 0].item()
             for key in [(5, 9, 0), (5, 9, 1), (6, 9, 0), (5, 9, 0, "test")]}  # fmt: skip
    assert len(set(drawn.values())) == len(drawn)


# -------------------------------------------------------------------------------------------------- closed form


def random_committees(seed=0, inputs=3, units=2):
    """Return a student and a teacher of few inputs, with weights of order one."""
    student, teacher = pair([seed], units, inputs, teacher_units=1)
    for layer in (*student.layers, *teacher.layers):
        torch.nn.init.normal_(layer.weight, generator=torch.Generator().manual_seed(seed))
    return student.double(), teacher.double()


@pytest.mark.parametrize("noise", [0.0, 0.7])
def test_the_closed_form_is_the_integral(noise):
    student, teacher = random_committees()
    nodes, weights = np.polynomial.hermite_e.hermegauss(40)
    grid = torch.from_numpy(np.stack(np.meshgrid(nodes, nodes, nodes), -1).reshape(-1, 3))
    density = np.einsum("i,j,k->ijk", weights, weights, weights).transpose(1, 0, 2).ravel() / (2 * math.pi) ** 1.5
    gap = (student(grid) - teacher(grid))[0, :, 0].detach().numpy()
    expected = (density * gap**2).sum() / 2 + noise**2 / 2
    np.testing.assert_allclose(committee.error(student, teacher, noise), [expected], rtol=1e-6)


def test_a_student_that_is_its_teacher_errs_by_the_noise_alone():
    teacher = committee.teachers([1, 2], 30)
    np.testing.assert_allclose(committee.error(teacher, teacher, [0.0, 0.25]), [0, 0.25**2 / 2], atol=1e-7)


def test_pruned_to_nothing_the_error_is_half_the_variance_of_the_label():
    student, teacher = pair([1], inputs=4000)
    torch.nn.init.zeros_(student.layers[0].weight)
    # Two teacher units that hardly overlap, of length near 1: 16 E g² each, and E g² = 2/π asin(1/2) = 1/3.
    np.testing.assert_allclose(committee.error(student, teacher), [16 / 3], rtol=0.15)


def test_the_simulation_meets_the_closed_form(learned):
    student, teacher, _ = learned
    for run in range(3):
        alone, its = nets.take(student, [run]), nets.take(teacher, [run])
        mean, deviation = committee.simulated(alone, its, *committee.many(SEEDS[run], INPUTS, 20_000), NOISE[run])
        truth = committee.error(alone, its, NOISE[run])
        assert (deviation > 0).all() and ((mean - truth).abs() < 4 * deviation).all()


def test_the_simulation_is_a_mean_over_the_test_samples():
    student, teacher = pair([7, 8])
    teacher = nets.take(teacher, [0])
    x, epsilon = gathered(7, INPUTS, COUNT, "test")
    answers = [n(torch.from_numpy(x).float())[:, :, 0].detach().double().numpy() for n in (student, teacher)]
    losses = (answers[0] - answers[1] - 0.5 * epsilon) ** 2 / 2
    mean, deviation = committee.simulated(student, teacher, *committee.many(7, INPUTS, COUNT), 0.5)
    np.testing.assert_allclose(mean, losses.mean(1), rtol=1e-5)
    np.testing.assert_allclose(deviation, losses.std(1, ddof=1) / math.sqrt(COUNT), rtol=1e-5)


# -------------------------------------------------------------------------------------------------- overlaps


def test_overlaps_are_covariances_of_the_local_fields(learned):
    student, teacher, _ = learned
    found = committee.overlaps(student, teacher)
    x, _ = gathered(11, INPUTS, 20_000, "test")
    for run in range(3):
        fields = [(n.layers[0].weight[run].detach().double().numpy() @ x.T) for n in (student, teacher)]
        covariance = np.concatenate(fields) @ np.concatenate(fields).T / len(x)
        for got, expected in ((found.student, covariance[:UNITS, :UNITS]), (found.cross, covariance[:UNITS, UNITS:]),
                              (found.teacher, covariance[UNITS:, UNITS:])):  # fmt: skip
            np.testing.assert_allclose(got[run], expected, atol=0.1)


def test_normalised_units_have_length_one_and_the_original_stays(learned):
    student, teacher, _ = learned
    before = student.layers[0].weight.clone()
    short = committee.normalised(student)
    np.testing.assert_allclose(short.layers[0].weight.norm(dim=2).detach(), 1, rtol=1e-6)
    assert torch.equal(student.layers[0].weight, before) and torch.equal(
        short.layers[1].weight, student.layers[1].weight
    )


def test_matching_puts_the_units_of_one_teacher_unit_together():
    teacher = committee.teachers([1], 200, 2)
    student = committee.committee(1, 200, 4)
    w = teacher.layers[0].weight[0].detach()
    with torch.no_grad():
        student.layers[0].weight[0] = torch.stack([-0.5 * w[1], 0.9 * w[0], 0.8 * w[1], 0.3 * w[0]])
        student.layers[1].weight[0, 0] = torch.arange(4.0)
    ordered = committee.matched(student, teacher)
    assert ordered.layers[1].weight[0, 0].tolist() == [1, 3, 2, 0]
    torch.testing.assert_close(committee.error(ordered, teacher), committee.error(student, teacher))


@pytest.mark.parametrize(
    "change, message",
    [
        ({"count": 750}, "multiples of 500"),
        ({"count": 0}, "multiples of 500"),
        ({"lr": 0.0}, "rates above 0"),
        ({"noise": [0.0]}, "1 noise for a stack of"),
        ({"seeds": [1]}, "1 seeds"),
    ],
)
def test_wrong_calls_of_learning_are_errors(change, message):
    student, teacher = pair()
    keywords = {"seeds": SEEDS, "noise": NOISE, "count": COUNT, "lr": LR} | change
    with pytest.raises(ValueError, match=message):
        committee.learn_(student, teacher, bar=False, **keywords)


@pytest.mark.parametrize("count", [0, 499, 750])
def test_samples_come_in_whole_draws(count):
    with pytest.raises(ValueError, match="multiples of 500"):
        committee.many(1, INPUTS, count)


def test_a_soft_committee_has_outgoing_weights_of_one_that_stay():
    student, teacher = committee.students([3], INPUTS, UNITS, soft=True), committee.teachers([3], INPUTS, 2, 1.0)
    assert student.layers[1].weight.unique().tolist() == teacher.layers[1].weight.unique().tolist() == [1.0]
    plain, _ = pair([3])
    assert torch.equal(student.layers[0].weight, plain.layers[0].weight), "w starts as in any other student"
    committee.learn_(student, teacher, [3], [0.0], COUNT, LR, bar=False, soft=True)
    assert student.layers[1].weight.unique().tolist() == [1.0]
    w = committee.students([3], INPUTS, UNITS, soft=True).layers[0].weight[0].detach().double().numpy()
    w, w_star = w * math.sqrt(INPUTS), teacher.layers[0].weight[0].detach().double().numpy() * math.sqrt(INPUTS)
    erf = np.vectorize(math.erf)
    for x, _ in zip(*gathered(3, INPUTS, COUNT), strict=True):
        h = w @ x / math.sqrt(INPUTS)
        wrong = erf(h / math.sqrt(2)).sum() - erf(w_star @ x / math.sqrt(2 * INPUTS)).sum()
        w = w - LR / math.sqrt(INPUTS) * wrong * (math.sqrt(2 / math.pi) * np.exp(-h * h / 2))[:, None] * x
    np.testing.assert_allclose(student.layers[0].weight[0].detach() * math.sqrt(INPUTS), w, atol=2e-5)


def test_the_formula_of_random_edges_is_the_published_one():
    shares = [k / 500 for k in (83, 166, 250, 333, 417, 500)]
    told = [3.760, 2.578, 1.659, 0.951, 0.399, 0.0]  # printed by the study's program for two and six units
    assert [committee.random_edges(share) for share in shares] == pytest.approx(told, abs=5e-4)


@pytest.mark.parametrize("share, teachers, each, noise", [(0.2, 2, 3, 0.0), (0.5, 5, 4, 0.5)])
def test_the_formula_of_random_edges_is_what_they_leave_of_a_perfect_student(share, teachers, each, noise):
    inputs, tutor = 20_000, committee.teachers([1], 20_000, teachers, 4.0)
    student = committee.committee(1, inputs, teachers * each)
    kept = torch.rand(teachers * each, inputs, generator=torch.Generator().manual_seed(0)) < share
    with torch.no_grad():
        student.layers[0].weight[0] = tutor.layers[0].weight[0].repeat_interleave(each, 0) * kept
        student.layers[1].weight[0, 0] = 4.0 / each
    exact = committee.error(student, tutor, noise).item()
    assert committee.random_edges(share, teachers, each, 4.0, noise) == pytest.approx(exact, rel=0.02)
