"""The panels of PHEW's summary, on small tables and records made by hand."""

import numpy as np
import pandas as pd
import pytest

from lib import drawing, gallery, runs, tables
from lib.studies.phew import figures, study


def test_the_parts_of_a_network_hold_all_its_weights():
    parts = figures.parts("resnet20", "cifar10", 0)
    assert list(dict.fromkeys(parts["part"])) == [
        "stem", "16 filters", "32 filters", "shortcuts", "64 filters", "output"
    ]  # fmt: skip
    assert parts["weights"].sum() == 270_896 and len(parts) == 22
    assert parts.groupby("part")["weights"].sum()["shortcuts"] == 16 * 32 + 32 * 64


@pytest.fixture
def curves(monkeypatch):
    """Two layers of one part, of 10 and 30 weights, and what is left of them."""
    base = pd.DataFrame({"type": "phew", "seed": 1, "density": 0.5, "layer": ["a", "b"]})
    made = {"layer_sparsity": base.assign(layer_sparsity=[0.0, 0.9]), "active_units": base.assign(active_units=[2, 1])}
    units = pd.DataFrame({"type": "synflow", "seed": 1, "unit": [0, 1, 2]})
    made |= {"score_in": units.assign(score_in=[1.0, 2.0, 0.0]), "score_out": units.assign(score_out=[10.0, 2.0, 1.0])}
    monkeypatch.setattr(runs, "curves", lambda experiment, name, **where: made[name])


def test_what_is_left_of_a_part_is_weighted_by_its_layers(curves):
    layers = pd.DataFrame({"layer": ["a", "b"], "part": "both", "units": [2, 6], "weights": [10, 30]})
    (row,) = figures.left(layers).to_dict("records")
    assert row["weights"] == pytest.approx(13 / 40) and row["units"] == pytest.approx(3 / 8)


def test_the_first_of_a_pair_has_more():
    rows = pd.DataFrame([(kind, seed, value + seed) for kind, value in (("phew", 3.0), ("synflow", 1.0))
                         for seed in range(6)], columns=["type", "seed", "units"])  # fmt: skip
    pairs = [("phew", "synflow"), ("synflow", "phew"), ("phew", "snip")]
    one, other, none = gallery.ahead(rows, pairs, "units", "{} is wider than {}", pairs[:1], " units")
    assert one["text"] == "PHEW is wider than SynFlow" and one["effect"].startswith("2.00 units") and one["main"]
    assert (one["verdict"], other["verdict"], none["n"], other["main"]) == ("confirmed", "refuted", 0, False)


def test_a_score_is_conserved_where_as_much_comes_out_as_goes_in(curves):
    found = figures.conserved("any", ("synflow",))
    assert found["synflow"] == pytest.approx([1, 0]), "what is zero on a side has no ratio"


def test_a_bar_of_nothing_is_a_nought(axes):
    rows = pd.DataFrame({"type": ["phew", "phew", "snip"], "part": ["x", "x", "x"], "weights": [0.2, 0.4, 0.0]})
    rows["seed"] = [1, 2, 1]
    figures.bars(axes, rows, "weights", ["x"], ["phew", "snip"])
    assert [bar.get_height() for bar in axes.patches] == pytest.approx([0.3, 0])
    (nought,) = axes.texts
    assert nought.get_text() == "0" and nought.get_position()[0] == pytest.approx(0.2)


def test_rows_of_strips_and_differences_are_the_same(axes):
    rows = pd.DataFrame({"type": ["phew", "snip", "snip"], "accuracy": [50.0, 40.0, 44.0]})
    figures.strips(axes, {"as is": rows}, ["phew", "snip"])
    assert [text.get_text() for text in axes.get_yticklabels()] == ["PHEW", "SNIP"]
    columns = ["first", "second", "mean", "low", "high", "n"]
    gains = pd.DataFrame([("phew", "snip", 8.0, 5.0, 11.0, 6)], columns=columns)
    strips = axes.figure.add_axes((0, 0, 1, 1))
    strips.set_ylim(-1.5, 0.5)
    figures.behind(axes, gains, ["phew", "snip"], strips)
    (bar,) = axes.containers
    assert bar.lines[0].get_xydata().tolist() == [[8.0, -1.0]]
    assert bar.lines[2][0].get_segments()[0][:, 0].tolist() == [5.0, 11.0]
    titles = [axes.get_title(side) for side in ("left", "center")]  # which of them is a matter of style
    assert axes.get_ylim() == (-1.5, 0.5) and "right of the line PHEW is better" in titles


def test_a_conserved_score_is_a_bar_and_no_area(axes):
    figures.ratios(axes, {"synflow": np.zeros(9), "snip": np.linspace(-1, 1, 99)})
    assert len(axes.patches) == 1 and [label.get_text() for label in axes.get_yticklabels()] == ["SynFlow", "SNIP"]


class Masks:
    """A record of masks alone: one run of two densities or three, and how many of four layers each of them empties."""

    def __init__(self, type, seed, empty, density=(0.1, 0.01, 0.001), rounds=100):
        self.type, self.seed, self.axes = type, seed, {"density": list(density)}
        self.parameters = {"rounds": rounds, "width": 0}
        self.sparsity = np.array([[[1.0] * n + [0.5] * (4 - n) for n in empty]])

    def array(self, name):
        return self.sparsity


def test_the_lowest_density_that_lasts_lies_above_all_that_empty_a_layer():
    made = [Masks("synflow", 1, (0, 0, 0)), Masks("synflow", 2, (0, 0, 1)), Masks("snip", 1, (0, 2, 0))]
    made += [Masks("snip", 2, (1, 4, 4)), Masks("synflow", 1, (4, 4, 4), rounds=1)]
    rows = figures.emptied(made)
    assert rows["empty"].tolist() == [0, 0, 0, 0, 0, 1, 0, 2, 0, 1, 4, 4, 4, 4, 4]
    lasts = figures.lasting(rows)
    assert lasts.xs(100, level="rounds").tolist() == [0.1, np.inf, 0.001, 0.01], "of types and seeds in order"
    assert lasts.xs(1, level="rounds").tolist() == [np.inf]
    assert figures.densities(lasts.loc["snip"]) == ("0.1", "0.1 to none")
    (claim,) = figures.outlasts(lasts, "synflow", ("snip", "grasp"))
    assert claim["mean"] == 1 and claim["n"] == 2 and claim["verdict"] == "undecided"
    assert "SynFlow" in claim["text"] and "than SNIP" in claim["text"]


def test_a_type_is_compared_with_itself_changed_seed_by_seed(axes):
    own = pd.DataFrame({"type": ["phew", "phew", "snip"], "seed": [1, 2, 1], "accuracy": [50.0, 52.0, 40.0]})
    moved = pd.DataFrame({"type": ["phew", "phew"], "seed": [2, 1], "accuracy": [45.0, 41.0]})
    (claim,) = figures.changes({"as is": own, "shuffled": moved}, "Density 0.1")
    assert claim["mean"] == pytest.approx((9 + 7) / 2) and claim["n"] == 2
    assert claim["text"] == "Density 0.1: PHEW is above itself with its masks shuffled"
    figures.strips(axes, {"as is": own, "shuffled": moved}, ["phew"])
    assert [line.get_xdata().tolist() for line in axes.lines[::2]] == [[50.0, 52.0], [41.0, 45.0]]
    assert [text.get_text() for text in axes.get_yticklabels()] == ["PHEW", "PHEW, masks shuffled"]


def test_an_ablation_is_compared_with_the_walks_that_it_changes_in_one_thing():
    """`inverse` walks serve all densities as `phew_res` does; random masks with new weights are no walks."""
    kinds = ["phew", "synflow", "synflow_l2", "phew_res", "inverse", "evci_random", "magnitude_trained", "random"]
    said = figures.pairs(kinds)
    assert ("phew_res", "inverse") in said and ("phew", "inverse") not in said
    assert ("phew", "evci_random") in said and ("magnitude_trained", "phew") in said
    assert {*figures.MAIN, *figures.OTHERS} <= set(said) and len(said) == len(set(said)) == 9
    assert figures.pairs(["phew", "inverse"]) == []


def test_runs_of_other_densities_are_points_of_one_curve(monkeypatch):
    rows = [("phew", 1, "[0.1]", 0.1, 0.6), ("phew", 1, "[0.1, 0.02]", 0.1, 0.6), ("phew", 1, "[0.1, 0.02]", 0.02, 0.5)]
    frame = pd.DataFrame(rows, columns=["type", "seed", "densities", "density", "test_accuracy"])
    monkeypatch.setattr(runs, "curves", lambda experiment, name, **where: frame)
    assert figures.points("test_accuracy").to_numpy().tolist() == [["phew", 1, 0.1, 0.6], ["phew", 1, 0.02, 0.5]]


SETTING = {"net": "resnet20", "dataset": "cifar10", "train_examples": 8000, "epochs": 7, "prune_epochs": 4}


def test_what_was_trained_for_longer_is_said_in_its_claim_and_beside_its_number():
    """Trained, pruned in four epochs, and trained again as long as all others are."""
    rows = pd.DataFrame([(kind, seed, 0.1, value + seed) for kind, value in (("phew", 1.0), ("magnitude_trained", 9.0))
                         for seed in range(6)], columns=["type", "seed", "density", "accuracy"])  # fmt: skip
    (claim,) = figures.ranked(rows, SETTING)
    assert claim["text"] == "Density 0.1: magnitude, trained (18 epochs in all) is above PHEW (7 epochs)"
    assert claim["mean"] == 8 and claim["verdict"] == "confirmed"
    said = "ResNet20, CIFAR-10, 8,000 images, 7 epochs of 160 published"
    assert figures.conditions(SETTING) == figures.conditions(SETTING, ["dense", "phew"]) == said
    assert figures.conditions(SETTING, ["phew", "magnitude_trained"]) == f"{said} (magnitude, trained: 18 in all)"


def test_what_phew_is_not_ahead_of_is_one_sentence():
    above, level, below = np.arange(1.0, 7.0), np.array([-1.0, 1.0] * 3), -np.arange(1.0, 7.0)
    made = {"0.1: PHEW is above random": level, "0.1: PHEW is above SNIP": below, "0.1: PHEW is above SynFlow": above,
            "0.1: SynFlow shuffled is above PHEW": above, "0.1: SynFlow-L2 shuffled is above PHEW": level,
            "0.1: PHEW is above itself with its masks shuffled": below, "0.1: PHEW, nested is above uniform": level,
            "0.1: magnitude, trained (18 epochs in all) is above PHEW (7 epochs)": above,
            "0.1: PHEW is above GraSP": []}  # fmt: skip
    (said,) = figures.exceptions([gallery.claim(text, gains) for text, gains in made.items()])
    first, *others = said.removesuffix(".").split("; ")
    assert first.startswith("PHEW is not ahead of everything. 0.1: PHEW is above random: 0.00 points (")
    assert [one.split(":")[1].strip() for one in others] == ["PHEW is above SNIP", "SynFlow shuffled is above PHEW"]
    assert [one.rsplit(", ", 1)[1] for one in (first, *others)] == ["undecided", "refuted", "confirmed"]
    assert figures.exceptions([gallery.claim("0.1: PHEW is above SynFlow", above)]) == []


def test_the_verdict_stands_on_the_lowest_density_with_seeds_enough():
    """Eight seeds at 0.1 and six at 0.02 are enough both; one at 0.01 is not, and dense networks are at none."""
    given = {0.1: 8, 0.02: 6, 0.01: 1}
    rows = pd.DataFrame([(kind, seed, density, density + (kind == "phew") + seed / 100) for density, n in given.items()
                         for kind in ("phew", "synflow", "snip") for seed in range(n)]
                        + [("dense", seed, 1.0, 2.0) for seed in range(9)],
                        columns=["type", "seed", "density", "accuracy"])  # fmt: skip
    assert figures.lowest(rows) == 0.02
    assert figures.lowest(rows.query("density == 1")) == 1.0
    said = {claim["text"]: claim for claim in figures.ranked(rows, SETTING)}
    assert list(said) == [
        "Density 0.01: PHEW is above SynFlow",
        "Density 0.02: PHEW is above SynFlow", "Density 0.02: PHEW is above SNIP",
        "Density 0.1: PHEW is above SynFlow"
    ]  # fmt: skip
    assert [text for text, claim in said.items() if claim["main"]] == ["Density 0.02: PHEW is above SynFlow"]
    assert said["Density 0.1: PHEW is above SynFlow"]["n"] == 8


def test_a_curve_is_of_seeds_that_were_run_at_all_its_densities(axes):
    rows = [("phew", 1, 0.1), ("phew", 1, 0.02), ("phew", 2, 0.02), ("snip", 1, 0.02), ("dense", 1, 1.0)]
    frame = pd.DataFrame(rows, columns=["type", "seed", "density"]).assign(accuracy=[60.0, 50.0, 40.0, 45.0, 70.0])
    curve = figures.curved(frame)
    assert curve[["type", "seed"]].drop_duplicates().to_numpy().tolist() == [["phew", 1]] and len(curve) == 2
    figures.against_density(axes, curve, "accuracy")
    assert axes.lines[-1].get_ydata().tolist() == [50, 60]
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["0.02", "0.1"]


def test_no_two_types_have_one_colour_and_marker():
    """In the scatter of a figure there are no lines to tell them apart by."""
    looks = [drawing.look(kind)[1:3] for kind in study.types() if kind in drawing.LOOKS]
    assert len(looks) == len(set(looks)) > 20


def test_a_wider_shuffle_is_compared_with_the_narrowest_and_with_none(axes):
    shares = [("synflow", seed, share, 50 + 10 * share + seed) for seed in range(6) for share in (0.3, 0.5, 1.0)]
    rows = pd.DataFrame(shares, columns=["type", "seed", "share", "accuracy"])
    own = pd.DataFrame({"type": ["synflow"] * 6 + ["phew"] * 6, "seed": [*range(6)] * 2})
    own["accuracy"] = 40.0 + 5 * (own["type"] == "phew")
    none, least, *phew = figures.widened(rows, own, "Here")
    assert none["text"] == "Here: SynFlow shuffled among 100 % of its idle units is above itself"
    assert none["mean"] == pytest.approx(20 + 2.5) and least["mean"] == pytest.approx(7) and least["n"] == 6
    assert least["text"] == "Here: SynFlow shuffled among 100 % of its idle units is above the same among 30 %"
    assert [claim["mean"] for claim in phew] == pytest.approx([60 + 2.5 - 45, 53 + 2.5 - 45])
    assert phew[1]["text"] == "Here: SynFlow shuffled among 30 % of its idle units is above PHEW"
    assert [claim["n"] for claim in figures.widened(rows.query("share == 1"), own[:0], "Here")] == [0, 0]
    figures.levels(axes, own, ["synflow", "synflow_l2"])
    assert [line.get_ydata() for line in axes.lines] == [[40, 40]]
    assert [text.get_text() for text in axes.texts] == ["SynFlow, not shuffled"]


def test_more_methods_than_fit_side_by_side_have_a_row_each():
    """Two densities, of which nobody has both; hand-drawn."""
    kinds = ["dense", "phew", *(f"kind {k}" for k in range(gallery.COLUMNS - 2))]
    rows = pd.DataFrame({"density": [0.1, *[0.02] * (len(kinds) - 1)], "type": kinds, "seed": 1, "accuracy": 50.0})
    side = gallery.grid(tables.beside(rows, rows[:0], ["density", "type"], "accuracy"), "density").splitlines()
    assert side[0].startswith("| density | dense | PHEW | kind 0 |") and len(side) == 4
    assert side[2].startswith("| 0.02 |  | 50.00 |") and side[3].startswith("| 0.1 | 50.00 |  |")
    rows = pd.concat([rows, rows[:1].assign(type="one more")])
    below = gallery.grid(tables.beside(rows, rows[:0], ["density", "type"], "accuracy"), "density").splitlines()
    assert below[0] == "|  | density 0.02 | density 0.1 |" and len(below) == 2 + len(kinds) + 1
    assert below[2:4] == ["| dense |  | 50.00 |", "| PHEW | 50.00 |  |"]
