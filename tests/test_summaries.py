"""Every summary with no record at all, and with one of an odd shape: it says what is missing, and blanks no figure."""

import contextlib
import io
import json
import warnings

import matplotlib.pyplot as plt
import numpy as np
import pytest
import yaml

from lib import drawing, runs
from lib.errors import ParameterError, RecordError
from tests.test_door import opened

ROOT = runs.ROOT
SUMMARIES = yaml.safe_load((ROOT / "workflow/experiments.yaml").read_text())["summaries"]


@pytest.fixture(autouse=True)
def elsewhere(monkeypatch, tmp_path):
    monkeypatch.setenv("PRUNING_RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("PRUNING_FIGURES", str(tmp_path / "figures"))
    yield tmp_path
    plt.close("all")


def summarised(name, **given):
    """Return what a summary, or another notebook with the parameters `given`, says: its cells, one after the other."""
    cells = json.loads((ROOT / f"notebooks/{name}.ipynb").read_text("utf-8"))["cells"]
    said, namespace = io.StringIO(), {"display": print}
    with contextlib.redirect_stdout(said), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "No artists with labels")  # a legend of nothing
        for cell in cells:
            if cell["cell_type"] == "code":
                exec("".join(cell["source"]), namespace)
                namespace |= given if "parameters" in cell["metadata"].get("tags", ()) else {}
    return said.getvalue()


@pytest.mark.parametrize("name", SUMMARIES)
def test_without_any_record_a_summary_says_so_and_nothing_is_blanked(name, elsewhere):
    """Those of one experiment alone end in the error that says how its records are made; the others in words."""
    there = {elsewhere / "figures" / f"{figure}.{ending}" for figure in SUMMARIES[name] for ending in ("png", "pdf")}
    there.add(elsewhere / "figures" / f"{name.removeprefix('summary_')}.md")
    (elsewhere / "figures").mkdir()
    for path in there:
        path.write_text("a good one")
    experiments = {experiment for names in SUMMARIES[name].values() for experiment in names}
    if len(experiments) == 1:
        with pytest.raises(RecordError, match=f"no run of {experiments.pop()} .*run_all.sh makes them"):
            summarised(name)
    else:
        assert "missing" in summarised(name)
    assert set((elsewhere / "figures").iterdir()) == there
    assert all(path.read_text() == "a good one" for path in there)


@pytest.mark.parametrize(
    ("summary", "figure", "name", "given"),
    [
        ("summary_ewn_toys", "xor", "xor", {"type": "EWN", "seed": "0..2", "steps": 100}),
        ("summary_ewn_toys", "lin_sep_convergence", "lin_sep", {"type": "SWN", "seed": "0..2", "steps": 100}),
        ("summary_ewn_toys", "xor", "xor", {"type": "EWN", "seed": "1", "steps": 100}),
        ("summary_ewn_toys", "conv_rate", "conv_rate", {"type": "SWN", "seed": "1", "steps": 50}),
        (
            "summary_challenge", "challenge_speed", "sparse_speed",
            {"type": "csr", "hidden": [20, 10], "epochs": 1, "repeats": 1, "sparsities": [0.5], "batches": [4],
             "dataset": "digits", "train_examples": 100, "device": "cpu"},
        ),
        (
            "summary_arena", "arena_ranking", "arena",
            {"type": "lamp", "hidden": [20], "sparsities": [0.5], "shuffle_at": [0.5], "epochs": 1, "recovery": 1,
             "dataset": "digits", "holdout": 50, "train_examples": 100, "score_examples": [10], "device": "cpu"},
        ),
        (
            "summary_phew", "phew_accuracy", "phew_density",
            {"type": "dense", "net": "vgg11_bn", "width": 2, "dataset": "digits32", "train_examples": 40, "epochs": 1,
             "batch_size": 20, "drops": [1], "augment": False, "watch": 20, "densities": [0.3], "device": "cpu"},
        ),
        (
            "summary_challenge", "challenge_modes", "weight_vs_neuron",
            {"type": "lamp_weight", "hidden": [20, 10], "epochs": 1, "sparsities": [0.0, 0.5], "dataset": "digits",
             "train_examples": 100, "device": "cpu"},
        ),
        (
            "summary_dpp", "dpp_error", "dpp_prune",
            {"type": "lamp_edge", "hidden": [20], "keep": [3, 5], "dataset": "digits", "device": "cpu"},
        ),
        ("summary_dpp", "dpp_students", "dpp_teacher_student", {"students": 5, "inputs": 20, "samples": 500,
                                                                "tests": 500, "examples": 500, "sets": 1}),
    ],
)  # fmt: skip
def test_one_type_alone_is_drawn(elsewhere, summary, figure, name, given):
    """Whatever it would have been compared with, a number of students that was never published among them."""
    summarised(name, **given)
    assert "missing" in summarised(summary) and (elsewhere / "figures" / f"{figure}.png").exists()


def test_of_ones_own_method_alone_nothing_is_said_about_phew(elsewhere):
    """What can be compared with nothing has figures, no panel for the difference, and no claim."""
    summarised("phew_density", type="magnitude_init", net="vgg11_bn", width=2, dataset="digits32", train_examples=40,
               epochs=1, batch_size=20, drops=[1], augment=False, watch=20, densities=[0.3], device="cpu")  # fmt: skip
    summarised("summary_phew")
    titles = [axes.get_title("left") for number in plt.get_fignums() for axes in plt.figure(number).axes]
    assert "VGG11, digits of 32 pixels, 30 % of the weights kept; dense: all" in titles
    assert not [title for title in titles if "PHEW" in title]
    assert "learn better than SynFlow's?** Nothing is claimed. " in (elsewhere / "figures/phew.md").read_text("utf-8")


def test_a_run_without_any_round_breaks_no_summary(elsewhere):
    given = {"dataset": "digits", "train_examples": 10, "epochs": 1, "initial": 1, "type": "contribution"}
    run = opened("train_time_prune", **given)["run"]
    run.save(
        seed=1, type="contribution", scores={}, axes={"epoch": [0, 1], "layer": ["layers.0"], "round": []},
        arrays={"test_accuracy": (np.zeros(2), ("epoch",)), "start_widths": (np.ones(1), ("layer",)),
                "widths": (np.zeros((0, 1)), ("round", "layer"))},
    )  # fmt: skip
    assert "missing" in summarised("summary_importance")
    (part,) = (elsewhere / "figures").iterdir()
    assert part.name == "importance.md" and "Not run." in part.read_text("utf-8")


def test_of_a_network_that_nobody_pruned_no_training_is_drawn(elsewhere):
    summarised("train_time_prune", dataset="digits", type="none", train_examples=100, epochs=2, initial=1, increment=1)
    assert "missing" in summarised("summary_importance") and not list(elsewhere.glob("figures/*training*"))


def test_a_blank_figure_is_not_saved(elsewhere, capsys):
    figure, (left, right) = plt.subplots(1, 2)
    left.axhline(1)
    left.axvline(2)
    left.axhspan(1, 2)
    right.axline((0, 0), (1, 1))
    right.vlines([1, 2], 0, 1)
    right.plot([], [])
    right.plot([1, 2], [np.nan, np.nan])
    assert drawing.save(figure, "blank") is None and not (elsewhere / "figures").exists()
    assert "blank: not drawn" in capsys.readouterr().out


@pytest.mark.parametrize("draw", ["plot", "scatter", "bar", "errorbar", "fill_between"])
def test_a_figure_of_one_point_is_saved(elsewhere, draw):
    figure, axes = plt.subplots()
    getattr(axes, draw)([1], [2])
    assert drawing.save(figure, "one").exists() and (elsewhere / "figures/one.pdf").exists()


CHOSEN = [name for name in SUMMARIES if "dataset" in runs.naming.in_cell(ROOT / f"notebooks/{name}.ipynb")]


@pytest.mark.parametrize("name", CHOSEN)
def test_data_that_nobody_knows_are_refused_before_anything_is_drawn(name, elsewhere):
    with pytest.raises(ParameterError, match="dataset = 'minst'.*mean 'mnist'"):
        summarised(name, dataset="minst")
    assert not (elsewhere / "figures").exists()


def test_a_network_without_records_is_told_where_others_have_some(elsewhere):
    given = {"net": "vgg11", "dataset": "digits32", "width": 4, "train_examples": 50, "batch_size": 25, "epochs": 2,
             "densities": [0.5], "type": "random", "seed": 1, "drops": [1], "device": "cpu"}  # fmt: skip
    summarised("phew_density", **given)
    with pytest.raises(RecordError, match="no record has net = 'resnet20'.*There are: 'vgg11'"):
        summarised("summary_phew", net="resnet20")
    with pytest.raises(ParameterError, match="net = 'resnet2' is not a choice"):
        summarised("summary_phew", net="resnet2")
    with pytest.raises(ParameterError, match="datasets.*'minst'"):
        summarised("summary_importance", datasets=["minst"])
