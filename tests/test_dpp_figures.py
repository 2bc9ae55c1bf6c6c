"""The panels of the DPP study, by what they draw and count, on small tables made by hand."""

from types import SimpleNamespace

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from lib import drawing, runs
from lib.studies.dpp import figures

NONE = pd.DataFrame(columns=["type", "kept", "budget", "error"])


def rows(**errors):
    """Return rows of two budgets and three seeds; `errors` are a type's error, to which seeds add little."""
    return pd.DataFrame(
        [
            {"type": kind, "seed": seed, "weighting": weighting, "kept": kept, "left": 10.0 * kept,
             "error": (error + 0.01 * seed**2) / (2 if weighting == "reweighted" else 1)}
            for kind, error in errors.items() for seed in range(3) for kept in (1, 2)
            for weighting in ("raw", "reweighted")
        ]
    )  # fmt: skip


def lines(axes):
    """Return the labelled lines of a panel as {label: (x, y)}."""
    return {line.get_label(): line.get_data() for line in axes.get_lines() if not line.get_label().startswith("_")}


def of(hidden, dropout=0.0, dropconnect=0.0):
    return {"dataset": "mnist", "hidden": hidden, "dropout": dropout, "dropconnect": dropconnect}


def test_ways_to_train_are_told_apart_and_depths_never_mixed():
    made = [SimpleNamespace(parameters=of(hidden)) for hidden in ([500], [10], [500, 500], [500])]
    found = figures.ways(made)
    assert list(found) == ["plain", "dropout", "dropconnect", "deep"]
    assert [way["hidden"] for way in found.values()] == [[[10], [500]]] * 3 + [[[500, 500]]]
    assert [(way["dropout"], way["dropconnect"]) for way in found.values()] == [(0, 0), (0.5, 0), (0, 0.5), (0, 0)]
    assert figures.ways(made[:1])["deep"]["hidden"] == [], "no record has no layers"


def test_published_errors_are_of_the_same_network_and_training():
    """Values typed from the study's tables, in %."""
    deep = figures.published(of([500, 500])).query("type == 'dpp_edge' and weighting == 'raw'")
    assert deep.set_index("kept")["error"].round(1).loc[[79, 392, 706]].tolist() == [63.7, 6.3, 3.8]
    flat = figures.published(of([500])).query("type == 'dpp_node' and weighting == 'raw'")
    assert flat.set_index("kept")["error"].round(1).loc[[25, 50]].tolist() == [84.3, 76.8]
    assert figures.published(of([500], dropconnect=0.5)).empty and figures.published(of([400])).empty
    assert figures.published(of([500]) | {"dataset": "digits"}).empty


def test_errors_are_means_with_published_values_where_we_have_the_number(axes):
    facts = pd.DataFrame({"type": ["dpp_edge", "dpp_edge", "random_edge"], "kept": [2, 9, 2], "error": [7.0, 8.0, 9.0]})
    mine = rows(dpp_edge=3.0, magnitude_edge=2.0).query("weighting == 'raw'")
    figures.errors(axes, mine, facts)
    drawn = lines(axes)
    assert set(drawn) == {"DPP edge", "magnitude edge"}
    np.testing.assert_allclose(drawn["DPP edge"], [[10, 20], [3 + 0.05 / 3] * 2])
    told = [bar.lines[0].get_xydata().tolist() for bar in axes.containers]
    assert told == [[[20 + 10 / 60, 7.0]]]  # a sixtieth of the width to the right
    assert axes.get_yscale() == "log"


def test_differences_and_claims_are_paired_by_seed():
    frame = rows(dpp_edge=3.0, random_edge=4.0, magnitude_edge=1.0)
    figure, panels = plt.subplots(1, 4)
    figures.differences(panels, frame)
    plt.close(figure)
    assert [len(axes.containers) for axes in panels] == [2, 2, 2, 2]
    raw, main = frame.query("weighting == 'raw'"), [("dpp_edge", "random_edge", 10)]
    said = figures.claims(raw, "left", "error", "Raw, {:g} left", main)
    table = {one["text"]: one for one in said if one["n"]}
    more = table["Raw, 10 left: DPP edge errs less than random edge"]
    less = table["Raw, 20 left: DPP edge errs less than magnitude edge"]
    assert more["mean"] == pytest.approx(1) and more["main"] and more["low"] > 0
    assert less["mean"] < 0 and not less["main"] and less["high"] < 0
    assert len(table) == 4
    both = rows(dpp_edge=3.0, dpp_node=5.0).query("weighting == 'raw'")
    said = figures.claims(both, "left", "error", "{:g} thousand", pairs=figures.ACROSS)
    assert [one["text"] for one in said] == [f"{left} thousand: DPP edge errs less than DPP node" for left in (10, 20)]
    assert all(one["mean"] == pytest.approx(2) for one in said)


def test_entries_are_a_line_for_each_quantile(axes):
    looks = pd.DataFrame([(seed, width, quantile, 10 * width + quantile + seed)
                          for seed in (1, 3) for width in (0.1, 1.0) for quantile in (0.01, 0.5)],
                         columns=["seed", "bandwidth", "quantile", "entries"])  # fmt: skip
    figures.entries(axes, looks, 0.3)
    np.testing.assert_allclose(lines(axes)["50 %"], [[0.1, 1.0], [3.5, 12.5]])


def test_diversity_tells_other_betas_apart(axes):
    sets = pd.DataFrame([("dpp_node", beta, kept, seed, -kept - seed, 5.0) for beta in (0.0, 0.3) for kept in (1, 2)
                         for seed in (0, 1)], columns=["type", "beta", "kept", "seed", "log_det", "error"])  # fmt: skip
    figures.diversity(axes, sets, ["dpp_node"], 0.3)
    assert axes.get_legend().get_title().get_text() == "mean of 2 seeds"
    assert set(lines(axes)) == {"DPP node", "DPP node, β by the median"}
    np.testing.assert_allclose(lines(axes)["DPP node"], [[-1.5, -2.5], [5, 5]])


def taught():
    frame = [("dpp_edge", "raw", seed, 0.0, budget, mask, 1.0 / budget, 1.0 / budget + 0.02 * far, 0.02)
             for (seed, far) in ((1, 0.5), (2, -2.5)) for budget in (1, 2) for mask in (0, 1)]  # fmt: skip
    names = ["type", "weighting", "seed", "sigma", "budget", "set", "error", "simulated", "deviation"]
    return pd.DataFrame(frame, columns=names)


def test_students_are_lines_of_the_closed_form_and_dots_of_the_simulation(axes):
    figures.students(axes, taught(), NONE)
    np.testing.assert_allclose(lines(axes)["DPP edge"], [[1, 2], [1, 0.5]])
    marked = [
        line.get_ydata() for line in axes.get_lines() if line.get_marker() == "o" and line.get_linestyle() == "None"
    ]
    np.testing.assert_allclose(marked[0], [0.98, 0.48])


@pytest.mark.parametrize("students, soft, drawn", [(6, False, 1), (5, False, 0), (6, True, 0)])
def test_the_formula_is_of_perfect_students_with_equal_copies(axes, students, soft, drawn):
    own = pd.DataFrame({"type": "random_edge", "budget": [1, 2, 1], "kept": [83, 166, 83]})
    setting = {"students": students, "teachers": 2, "inputs": 500, "v_star": 4.0, "soft": soft}
    figures.formula(axes, own, setting, 0.0)
    assert len(axes.lines) == drawn
    for line in axes.lines:
        np.testing.assert_allclose(line.get_data(), [[1, 2], [3.760, 2.578]], atol=1e-3)


def test_agreement_counts_standard_errors():
    found = figures.agreement(taught()).loc[("dpp_edge", "raw")]
    np.testing.assert_allclose(
        found[["largest", "means", "within 1", "within 2", "within 3"]].astype(float), [2.5, 4, 0.5, 0.5, 1]
    )


def test_heat_maps_show_sizes_without_signs(axes):
    image = figures.heat(axes, np.array([[-1.0, 0.5]]), "Q")
    assert image.get_array().tolist() == [[1.0, 0.5]] and image.get_clim() == (0, 1.5)


def test_every_type_has_a_look_of_its_own():
    kinds = [kind for family in figures.FAMILIES.values() for kind in family]
    assert len({drawing.look(kind)[1:] for kind in kinds}) == 6


def test_students_of_every_kind_have_their_own_runs_and_published_values():
    """The committed ones: numbers of published values counted in the study's tables."""
    found = figures.taught(runs.records("dpp_teacher_student"))
    assert [len(told) for *_, told in found.values()] == [60, 0, 14]
    for said, (p, rows, _) in found.items():
        assert said.startswith("soft committees" if p["soft"] else "students")
        assert f"{p['students']} units, taught by {p['teachers']}" in said
        assert rows["budget"].max() == p["students"] - 1
    first = next(iter(found.values()))[1]
    assert figures.cases(first) == [(0, 0.0, "raw"), (0, 0.25, "raw"), (1, 0.0, "raw"), (0, 0.0, "reweighted")]
    assert figures.taught([]) == {}


def test_claims_about_students_are_at_a_third_and_two():
    assert figures.thirds(6) == [2, 4] and figures.thirds(20) == [7, 13]


def test_how_alike_items_are_where_they_were_drawn():
    rows = [(seed, kind, width, level, level / (1 + 50 * width) * (kind == "dpp_edge")) for seed in range(3)
            for kind in ("dpp_edge", "dpp_node") for width in (0.01, 0.1, 1.0) for level in (0.5, 0.99)]  # fmt: skip
    rows = pd.DataFrame(rows, columns=["seed", "type", "bandwidth", "quantile", "entries"])
    (said,) = figures.alike(rows, 0.3)
    assert said.startswith("99 % of the similarities at β = 0.1 are of two edges at most 0.165, of two nodes at most")
    assert figures.alike(rows, 0.001) == figures.alike(rows[:0], 0.3) == []
