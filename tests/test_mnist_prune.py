"""The main experiment as its users run it: the notebook itself, by papermill, on digits.

The first run is a process of its own, from another folder, as JupyterLab starts its kernels; the later ones, which are
to find what it left, are the cells one after the other.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import pytest

from lib import runs
from tests.test_summaries import summarised

ROOT = Path(__file__).resolve().parents[1]
SMALL = {"seed": [1, 2], "type": ["EWN", "no-WN"], "dataset": "digits", "width": 16, "batch_size": 64, "levels": [-1]}


def execute(folder):
    """Run the notebook with runs and figures under `folder`; return what its cells printed."""
    out = folder / "executed.ipynb"
    command = [sys.executable, "-m", "papermill", "--no-progress-bar", ROOT / "notebooks/mnist_prune.ipynb", out]
    environment = {"PRUNING_RUNS": str(folder / "runs"), "PRUNING_FIGURES": str(folder / "figures")}
    done = subprocess.run(
        [*map(str, command), "-y", json.dumps(SMALL)],
        cwd=ROOT / "notebooks",
        env={**os.environ, **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=180,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    cells = json.loads(out.read_text())["cells"]
    outputs = [output for cell in cells for output in cell.get("outputs", [])]
    return "".join("".join(output.get("text", [])) for output in outputs if output["output_type"] == "stream")


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    folder = tmp_path_factory.mktemp("laboratory")
    printed = execute(folder)
    return folder, printed


@pytest.fixture
def found(first, monkeypatch):
    monkeypatch.setenv("PRUNING_RUNS", str(first[0] / "runs"))
    monkeypatch.setenv("PRUNING_FIGURES", str(first[0] / "figures"))
    yield first[0]
    plt.close("all")


def test_every_seed_and_type_has_a_record(first, found):
    assert "4 networks" in first[1]
    table = runs.table("mnist_prune")
    assert sorted(zip(table["type"], table["seed"], strict=True)) == [
        ("EWN", 1), ("EWN", 2), ("no-WN", 1), ("no-WN", 2),
    ]  # fmt: skip
    assert (table["test_accuracy_at_-1"] > 0.5).all() and (table["log_loss_at_-1"] < -1).all()


def test_nothing_pruned_is_the_dense_accuracy(found):
    curve = runs.curves("mnist_prune", "pruned_accuracy")
    dense = runs.table("mnist_prune").set_index(["type", "seed"])["test_accuracy_at_-1"]
    whole = curve[curve["sparsity"] == 0].groupby(["type", "seed"])["pruned_accuracy"]
    assert (whole.max() - dense).abs().max() < 1e-6 and (whole.min() - dense).abs().max() < 1e-6
    assert set(curve["criterion"]) == {"norm", "since_init"} and len(curve) == 4 * 2 * 20


def test_the_record_says_where_it_comes_from(found):
    record = runs.records("mnist_prune", type="EWN", seed=1)[0]
    assert record.provenance["data"] and record.provenance["seconds"] > 0 and record.provenance["device"] == "cpu"
    assert record.provenance["stacked_with"] == ["EWN-1", "no-WN-1", "EWN-2", "no-WN-2"]
    assert record.provenance["versions"]["torch"] and "lib/training/descend.py" in record.provenance["code"]
    assert record.cost == {"parameters": 784 * 16 + 16 + 16 + 160, "macs": 784 * 16 + 160}


def test_the_same_again_says_so_and_changes_nothing(found):
    before = {path: path.stat().st_mtime_ns for path in (found / "runs" / "mnist_prune").glob("*.*")}
    printed = summarised("mnist_prune", **SMALL)
    assert printed.count("already done") == 4 and "networks" not in printed
    assert before == {path: path.stat().st_mtime_ns for path in before}


def test_another_sparsity_trains_nothing(found):
    weights = {path: path.stat().st_mtime_ns for path in (found / "runs" / "trained").rglob("*.safetensors")}
    assert len(weights) == 4
    summarised("mnist_prune", **SMALL | {"sparsities": [0.0, 0.7], "type": "EWN", "seed": 1})
    assert weights == {path: path.stat().st_mtime_ns for path in (found / "runs" / "trained").rglob("*.safetensors")}
    record = runs.records("mnist_prune", sparsities=[[0.0, 0.7]])
    assert len(record) == 1


def test_the_summary_draws_what_there_is(found):
    printed = summarised("summary_ewn")
    assert "EWN-1, EWN-2, no-WN-1, no-WN-2" in printed
    assert len(list((found / "figures").glob("mnist_prune_*.png"))) == 4
