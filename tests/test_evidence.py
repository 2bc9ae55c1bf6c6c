"""Verdicts against enumerations, SciPy's tests and hand-made numbers; what is written against texts by hand."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from lib import drawing, evidence, gallery


@pytest.mark.parametrize(
    "apart", [[0.3, -0.1, 0.8, 0.5, 0.2, 0.7], [0.1, -0.3, 0.2], [-2.0], [0.0, 0.0], [1, -1, 1, 1, 0.5]]
)
def test_the_sign_flip_test_is_the_enumeration_of_all_flips(apart):
    flips = np.array(np.meshgrid(*[[-1, 1]] * len(apart))).reshape(len(apart), -1).T
    expected = (np.abs(flips @ apart) >= abs(sum(apart)) - 1e-12).mean()
    assert evidence.sign_flip(apart) == expected


def test_the_sign_flip_test_counts_equal_sums_of_float32_accuracies_as_equal():
    right = np.array([[340, 339], [332, 331], [338, 341], [335, 334], [340, 339], [336, 338]])  # of 355 images
    accuracies = (right / 355).astype(np.float32).astype(float)
    assert evidence.sign_flip(100 * np.diff(accuracies)[:, 0]) == evidence.sign_flip(np.diff(right)[:, 0]) == 1


@pytest.mark.parametrize("n", [7, 12])
def test_the_sign_flip_test_is_scipys(n):
    apart = np.random.default_rng(n).normal(0.4, 1, n).round(1)  # rounded: with ties
    found = stats.permutation_test((apart,), np.mean, permutation_type="samples", n_resamples=np.inf)
    assert evidence.sign_flip(apart) == pytest.approx(found.pvalue, abs=1e-12)


def test_of_many_differences_flips_are_drawn():
    apart = np.random.default_rng(0).normal(0.2, 1, evidence.EXACT_TO + 1)
    drawn, exact = evidence.sign_flip(apart), evidence.sign_flip(apart[:-1])
    assert drawn == evidence.sign_flip(apart) and abs(drawn - exact) < 0.2


def test_a_verdict_needs_six_seeds_an_interval_and_a_small_p():
    five = np.array([5.0, 5.1, 4.9, 5.2, 5.0])
    assert evidence.judged(five)["verdict"] == "undecided" and evidence.judged(five)["low"] > 4
    six = np.append(five, 5.1)
    found = evidence.judged(six)
    assert (found["verdict"], found["n"], found["p"]) == ("confirmed", 6, pytest.approx(2 / 2**6))
    low, high = stats.ttest_1samp(six, 0).confidence_interval()
    assert (found["low"], found["high"]) == pytest.approx((low, high))
    assert evidence.judged(-six)["verdict"] == evidence.judged(six, than=6)["verdict"] == "refuted"
    assert evidence.judged(six - 5)["verdict"] == "undecided"
    outlier = np.array([0.1, 0.1, 0.1, 0.1, 0.1, 0.1, -3.0])
    assert evidence.judged(outlier)["verdict"] == "undecided"


def test_what_would_decide_is_the_first_number_of_seeds_whose_interval_is_clear():
    few = np.array([1.0, -0.4, 1.3, 0.2])
    enough = int(evidence.judged(few)["enough"])
    for n, decided in ((enough - 1, False), (enough, True)):
        low, _ = stats.t.interval(0.95, n - 1, few.mean(), np.std(few, ddof=1) / np.sqrt(n))
        assert (low > 0) == decided
    assert evidence.judged(few, than=few.mean())["enough"] == np.inf
    assert evidence.judged(np.array([5.0, 5.1]))["enough"] == evidence.NEEDED == evidence.judged(few[:1])["enough"]
    decided = np.arange(1.0, 9.0)
    assert evidence.judged(decided)["enough"] == 8 == evidence.judged(-decided)["enough"]


@pytest.mark.parametrize("right, of", [(42, 100), (58, 100), (3, 5)])
def test_so_it_is_for_shares(right, of):
    n = int(evidence.counted([True] * right + [False] * (of - right))["enough"])
    for many, decided in ((n - 1, False), (n, True)):
        found = stats.binomtest(round(many * max(right, of - right) / of), many).proportion_ci()
        assert (found.low > 0.5) == decided
    assert evidence.counted([True, False])["enough"] == np.inf
    assert evidence.counted([])["n"] == 0 and evidence.counted([])["verdict"] == "undecided"


@pytest.mark.parametrize("n", [0, 1])
def test_no_pair_and_one_pair_decide_nothing(n):
    found = evidence.judged(np.full(n, 2.0))
    assert found["verdict"] == "undecided" and found["n"] == n and np.isnan([found["low"], found["p"]]).all()


def test_pairs_are_seeds_that_both_types_have():
    frame = pd.DataFrame({"type": ["a", "a", "b", "b"], "seed": [1, 2, 2, 3], "value": [1.0, 5.0, 2.0, 9.0]})
    assert evidence.apart(frame, "a", "b", "value").tolist() == [3.0]
    assert evidence.apart(frame, "a", "c", "value").size == 0


def test_most_seeds_is_a_coin_that_is_not_fair():
    assert evidence.counted([True] * 6)["verdict"] == "confirmed"
    assert evidence.counted([True] * 5)["verdict"] == "undecided"
    assert evidence.counted([False] * 90 + [True] * 10)["verdict"] == "refuted"
    found = evidence.counted([True] * 93 + [False] * 7)
    assert found["low"] == pytest.approx(stats.beta.ppf(0.025, 93, 8))


def test_ranks_are_of_means_and_their_interval_of_seeds_drawn_again():
    values = np.array([[5.0, 1.0, 3.0, 3.0], [4.0, 2.0, 9.0, 3.0], [6.0, 0.0, 3.0, 3.0]])
    rank, low, high = evidence.ranks(values)
    assert rank.tolist() == [1.5, 4, 1.5, 3], "equal means share their ranks"
    rng, found = np.random.default_rng(1), []
    for _ in range(4000):
        drawn = rng.integers(3, size=3)
        means = [sum(column[k] for k in drawn) for column in values.T]
        found.append([1 + sum(b > a for b in means) + (sum(b == a for b in means) - 1) / 2 for a in means])
    expected = np.quantile(found, (0.025, 0.975), axis=0, method="nearest")
    assert low.tolist() == expected[0].tolist() and high.tolist() == expected[1].tolist()
    assert (low[1], high[1]) == (4, 4), "who is last in every draw"


def test_a_column_that_lacks_seeds_is_placed_by_those_that_it_has():
    """On an easy seed anything is good: the third column is 1 below the mean of the first two, and ranked there."""
    values = np.array([[5.0, 7.0, np.nan], [1.0, 3.0, np.nan], [9.0, 11.0, 9.0], [9.5, 11.5, 9.5]])
    assert evidence.means(values).tolist() == [6.125, 8.125, pytest.approx(6.125)]
    values[:, 2] -= 0.5
    rank, low, high = evidence.ranks(values)
    assert rank.tolist() == low.tolist() == high.tolist() == [2, 1, 3], "in every draw it has a seed"
    whole = np.random.default_rng(3).normal(size=(7, 4))
    assert evidence.means(whole).tolist() == whole.mean(0).tolist()
    outcome = evidence.duels(np.where(np.arange(7)[:, None] * [0, 0, 0, 1] < 2, whole + [0, 0, 9, 18], np.nan))
    assert outcome[2, 0] == 1 and not outcome[3].any(), "of two seeds nothing is decided"


@pytest.mark.parametrize("n, decided", [(8, True), (5, False)])
def test_a_duel_is_won_as_a_claim_is(n, decided):
    draws = np.random.default_rng(2)
    values = draws.normal(size=(n, 1)) * 10 + np.array([0.0, 3.0, 0.1]) + draws.normal(size=(n, 3))
    outcome = evidence.duels(values)
    for i in range(3):
        for j in set(range(3)) - {i}:
            low, high = stats.ttest_rel(values[:, i], values[:, j]).confidence_interval()
            assert outcome[i, j] == (int(low > 0) - int(high < 0) if decided else 0)
    assert outcome[1, 0] == decided and outcome[0, 2] == 0
    spoilt = np.array([1.0, 1.1, 0.9, 1.2, 1.0, -0.02])[:, None] * [
        1,
        0,
    ]  # its interval is clear of zero, its signs are not
    assert stats.ttest_1samp(spoilt[:, 0], 0).confidence_interval().low > 0 and not evidence.duels(spoilt).any()


@pytest.mark.parametrize("value, text", [(-0.004, "0.00"), (-1.25, "−1.25"), (3, "3.00"), (0.846, "0.85")])
def test_numbers(value, text):
    assert gallery.number(value) == text


@pytest.mark.parametrize(
    "verdicts, text",
    [(("confirmed", "confirmed"), "Yes"), (("refuted",), "No"), (("confirmed", "undecided"), "Partly"),
     (("confirmed", "refuted"), "Partly"), (("undecided",), "Undecided"),
     (("refuted", "undecided"), "Not confirmed")],
)  # fmt: skip
def test_the_answer_is_what_the_main_claims_say(verdicts, text):
    assert gallery.answer([{"verdict": one} for one in verdicts]) == text


def test_a_part_says_verdicts_figures_and_what_is_missing(monkeypatch, tmp_path):
    (tmp_path / "notebooks").mkdir()
    monkeypatch.chdir(tmp_path / "notebooks")
    tmp_path /= "tmp figures"
    monkeypatch.setenv("PRUNING_FIGURES", str(tmp_path))
    tmp_path.mkdir()
    (tmp_path / "key.png").touch()
    claims = [gallery.claim("more is better", np.arange(1.0, 7.0), main=True), gallery.claim("none", np.ones(2))]
    empty = gallery.claim("nobody ran it", np.empty(0), main=True)
    figures = {"key": "Shown.", "lost": "Not."}
    part = gallery.write("made", "A title", "Is it so?", [*claims, empty], figures, missing="a")
    shown, part = part, (tmp_path / "made.md").read_text("utf-8")
    assert shown == part.replace("](key.png)", "](../tmp%20figures/key.png)"), "a notebook finds its figures"
    low, high = stats.ttest_1samp(np.arange(1.0, 7.0), 0).confidence_interval()
    assert "**Is it so?** Yes. more is better: 3.50 points" in part and f"({low:.2f} to {high:.2f}), n = 6\n" in part
    assert "| more is better | 3.50 points (1.54 to 5.46) | 6 | 0.031 | confirmed |  |" in part
    assert "| none | 1.00 points (1.00 to 1.00) | 2 | 0.500 | undecided | 6 |" in part
    assert "Claims: 2. Confirmed: 1. Refuted: 0. Undecided: 1, of which 1 have fewer than 6 seeds." in part
    counted = gallery.section({"made": part}).splitlines()[2]
    assert counted == "| [A title](#made) | 2 | 1 | 0 | 1 | 1 |"
    assert "![key](key.png)\n*Shown.*" in part and "lost" not in part and "nobody" not in part
    assert gallery.rows({"made": part}).splitlines()[2].startswith("| Is it so? | Yes | more is better: 3.50 points")
    assert gallery.write("made", "A title", "Is it so?", [empty], {}) is None, "a part that is there stays"
    assert part == (tmp_path / "made.md").read_text("utf-8")


def test_beside_the_answer_stands_what_came_out_otherwise():
    """Refuted before undecided, and what both begin with once; nothing where all main claims came out alike."""
    more, less, none = np.arange(1.0, 7.0), -np.arange(1.0, 7.0), np.array([1.0, -1, 2, -2, 3, -3])
    claims = [gallery.claim(f"A: {name}", gains, main=True) for name, gains in (("x", none), ("y", more), ("z", less))]
    assert gallery.against(claims) == ". But refuted: z: −3.50 points"
    assert gallery.against(claims[:2]) == ". But undecided: x: 0.00 points"
    shares = [gallery.claim(f"On 1,000, {n} % gone: x", gains, main=True) for n, gains in ((90, more), (50, none))]
    assert gallery.against(shares) == ". But undecided: 50 % gone: x: 0.00 points"
    assert gallery.against([*claims[1:2], gallery.claim("other", less)]) == "", "of the main claims alone"


def test_a_mean_that_few_seeds_decide_has_its_median_beside_it():
    """Of four seeds three are below, and one far above; of a cost below half a point one is far below."""
    claims = [gallery.claim("more", [-1.0, -2.0, -0.5, 9.0]), gallery.claim("cheap", [-0.2, -9.0, 0.1], -0.5, " nats"),
              gallery.claim("clear", [1.0, 2.0, 9.0]), gallery.claim("less", [-1.0, -0.8, -0.7], -0.5),
              gallery.share("often", [True, True, False]), gallery.claim("nobody ran it", [])]  # fmt: skip
    (said,) = gallery.torn(claims)
    assert said.splitlines()[2:] == [
        "- more: mean 1.38, median −0.75 points, true of 1 of 4 seeds",
        "- cheap: mean −3.03, median −0.20 nats, true of 2 of 3 seeds",
    ]
    assert gallery.torn(claims[2:]) == []


def test_a_study_without_records_says_so(monkeypatch, tmp_path):
    monkeypatch.setenv("PRUNING_FIGURES", str(tmp_path))
    assert gallery.write("made", "A title", "Is it so?", [gallery.claim("nobody ran it", np.empty(0))], {}) is None
    part = (tmp_path / "made.md").read_text("utf-8")
    assert part == "## A title\n\n**Is it so?** Not run. `./run_all.sh` makes its records.\n"
    assert gallery.rows({"made": part}).splitlines()[2].startswith("| Is it so? | Not run | `./run_all.sh` makes")
    assert len(gallery.section({"made": part}).split("|\n")) == 3 and part in gallery.section({"made": part})


def test_where_figures_are_drawn_and_nothing_can_be_compared_nothing_is_claimed(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("PRUNING_FIGURES", str(tmp_path))
    (tmp_path / "key.png").touch()
    assert gallery.write("made", "A title", "Is it so?", [], {"key": "Shown."}) is None
    assert capsys.readouterr().out == "made: nothing is claimed\n"
    part = (tmp_path / "made.md").read_text("utf-8")
    assert "**Is it so?** Nothing is claimed. " in part and "Not run" not in part
    assert gallery.rows({"made": part}).splitlines()[2].startswith("| Is it so? | Nothing is claimed | Its figures")


def test_only_what_stands_between_the_markers_is_replaced(monkeypatch, tmp_path):
    monkeypatch.setattr(gallery, "GALLERY", tmp_path / "README.md")
    (tmp_path / "made.md").write_text("new\n")
    text = "before\n<!-- results of made lost -->\nold\n<!-- end -->\nafter"
    expected = text.replace("old", "new, of made")

    def told(parts):
        return "".join(f"{part.strip()}, of {study}" for study, part in parts.items())

    assert gallery.included(text, told) == gallery.included(expected, told) == expected


def test_a_grid_has_ours_and_the_published_in_italics():
    index = pd.MultiIndex.from_tuples([(5, "EWN"), (5, "SWN"), (9, "EWN")], names=["kept", "type"])
    table = pd.DataFrame({"ours": [1, 2, 3.0], "ours sd": [0.1, 0.2, 0.0], "ours n": [2, 2, 1]}, index)
    table["published"] = [np.nan, 2.5, np.nan]
    assert gallery.grid(table, "kept", digits=1).splitlines()[2:] == [
        "| 5 | 1.0 ± 0.1 | 2.0 ± 0.2 *2.5* |",
        "| 9 | 3.0 |  |",
    ]
    assert drawing.look("EWN")[0] in gallery.grid(table, "kept").splitlines()[0]
