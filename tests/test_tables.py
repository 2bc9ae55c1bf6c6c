"""Tables for summaries, against small ones made by hand."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from lib import runs, store, tables


def record(type, seed, missed=(), **parameters):
    levels = parameters.get("levels", [])
    fields = {
        "scores": {f"log_loss_at_{level:g}": None if level in missed else level for level in levels},
        "cost": {},
        "axes": {},
        "arrays": {},
        "provenance": {},
        "_npz": b"",
        "path": None,
        "name": "",
    }
    return store.Record(experiment="x", type=type, seed=seed, parameters=parameters, **fields)


def test_the_largest_group_is_of_runs_that_differ_in_seed_and_type_alone(monkeypatch):
    found = [
        record("EWN", 1, width=1024, levels=[-10], device="cpu"),
        record("SWN", 2, width=1024, levels=[-10, -100], device="cuda"),
        record("EWN", 1, width=64, levels=[-10], device="cpu"),
    ]
    monkeypatch.setattr(runs, "records", lambda experiment, **where: found)
    assert tables.largest_group("x", free=["levels"]) == {"width": 1024}
    monkeypatch.setattr(runs, "records", lambda experiment, **where: [])
    with pytest.raises(runs.RecordError, match="run_all"):
        tables.largest_group("x")


@pytest.mark.parametrize("seeds, widths", [(6, [64, 2]), (5, [2])])
def test_the_deep_groups_are_those_that_can_decide(monkeypatch, seeds, widths):
    """Six pairs at -100, in records of two depths, before nine at -10, and one at -300 not at all."""
    found = [record(kind, 1, width=8, levels=[-10, -300]) for kind in ("EWN", "no-WN")]
    for seed in range(seeds):
        deeper = [-10, -100, -200] if seed == 2 else [-10, -100]
        found += [record(kind, seed, width=64, levels=deeper) for kind in ("EWN", "no-WN")]
    found += [record("EWN", seed, width=4, levels=[-10, -400]) for seed in range(9)]
    found += [
        record(kind, seed, missed=[-400], width=16, levels=[-400]) for seed in range(9) for kind in ("EWN", "SWN")
    ]
    found += [record(kind, seed, width=2, levels=[-10]) for seed in range(9) for kind in ("EWN", "no-WN")]
    monkeypatch.setattr(runs, "records", lambda experiment, **where: found)
    assert tables.deep_groups("x") == [{"width": width} for width in widths]
    pairs = [record("EWN", 1, width=1, levels=[-300]), *(one for one in found if one.parameters["width"] == 8)]
    monkeypatch.setattr(runs, "records", lambda experiment, **where: pairs)
    assert tables.deep_groups("x") == [{"width": 8}], "where nothing can decide, the deepest"


def test_of_a_run_at_two_depths_the_deeper_stays():
    rows = [("EWN", 1, "-10", 0), ("EWN", 1, "-10,-100", 1), ("EWN", 1, "-10,-100", 2), ("EWN", 2, "-10", 3)]
    frame = pd.DataFrame(rows, columns=["type", "seed", "levels", "value"])
    assert tables.deepest(frame)["value"].tolist() == [1, 2, 3]
    without = frame.drop(columns="levels")
    assert tables.deepest(without) is without


def test_ours_and_published_side_by_side():
    ours = pd.DataFrame({"type": ["a", "a", "b"], "seed": [1, 2, 1], "accuracy": [0.9, 0.8, 0.5]})
    facts = pd.DataFrame({"type": ["a", "a", "c"], "seed": [1, 2, 1], "accuracy": [0.7, 0.9, 0.1]})
    found = tables.beside(ours, facts, ["type"], "accuracy")
    assert found.index.tolist() == ["a", "b"], "what we do not have is no row"
    assert np.allclose(found.loc["a"], [0.85, 0.05, 2, 0.8, 0.1, 2, 0.5])
    assert np.isnan(found.loc["b", "published"])


def test_resampling_interpolates_and_never_extrapolates():
    frame = pd.DataFrame({"type": "a", "seed": 1, "x": [2.0, 0.0], "y": [4.0, 0.0]})
    found = tables.resample(frame, "x", "y", [-1, 0, 0.5, 2, 3])["y"]
    assert np.allclose(found, [np.nan, 0, 1, 4, np.nan], equal_nan=True)


def test_of_the_sweeps_of_a_type_the_one_with_most_seeds_is_taken(monkeypatch):
    found = [record("no-WN", "0..1"), record("EWN", "0..0"), record("EWN", "0..2"), record("EWN", "5..6")]
    for one, seeds in zip(found, ([0, 1], [0], [0, 1, 2], [5, 6]), strict=True):
        object.__setattr__(one, "axes", {"seed": seeds})
    monkeypatch.setattr(runs, "records", lambda experiment, **where: found)
    sweeps = tables.sweeps("x")
    assert {kind: one.seed for kind, one in sweeps.items()} == {"EWN": "0..2", "no-WN": "0..1"}
    assert list(sweeps) == ["EWN", "no-WN"], "in the order of the types' looks"


def test_pairs_are_compared_within_a_seed():
    rows = [("a", 1, 5, 3.0), ("a", 2, 5, 4.0), ("a", 3, 5, 9.0), ("b", 1, 5, 1.0), ("b", 2, 5, 1.0), ("a", 1, 7, 2.0),
            ("b", 1, 7, 5.0)]  # fmt: skip
    frame = pd.DataFrame(rows, columns=["type", "seed", "left", "error"])
    found = tables.paired(frame, [("a", "b"), ("a", "c")], ["left"], "error")
    assert found[["first", "second", "left", "mean", "n"]].to_numpy().tolist() == [
        ["a", "b", 5, 2.5, 2],
        ["a", "b", 7, -3.0, 1],
    ]
    half = 12.706204736 * np.std([2, 3], ddof=1) / np.sqrt(2)  # t of one degree of freedom
    assert np.allclose(found.loc[0, ["low", "high"]].astype(float), [2.5 - half, 2.5 + half])
    assert np.isnan(found.loc[1, ["low", "high"]].astype(float)).all()


def test_gains_keep_every_seed():
    rows = [("a", 1, 5, 3.0), ("a", 2, 5, 4.0), ("b", 1, 5, 1.0), ("b", 2, 5, 1.0), ("b", 3, 5, 1.0)]
    found = tables.gains(pd.DataFrame(rows, columns=["type", "seed", "left", "error"]), "a", "b", ["left"], "error")
    assert found[["left", "seed", "gain"]].to_numpy().tolist() == [[5, 1, 2], [5, 2, 3]]


def test_arrays_are_joined_by_what_they_share(monkeypatch):
    made = {"error": pd.DataFrame({"type": "a", "seed": [1, 1], "kept": [3, 4], "error": [0.5, 0.25]}),
            "left": pd.DataFrame({"type": "a", "seed": [1, 1], "kept": [4, 3], "left": [40, 30]})}  # fmt: skip
    monkeypatch.setattr(runs, "curves", lambda experiment, name, **where: made[name])
    monkeypatch.setattr(runs, "records", lambda experiment, **where: [record("a", 1, beta=0.3, kept=7)])
    found = tables.joined("x", ["error", "left"], ["beta", "kept"])
    assert found[["kept", "error", "left", "beta"]].to_numpy().tolist() == [[3, 0.5, 30, 0.3], [4, 0.25, 40, 0.3]]


def test_a_parameter_that_is_gone_tells_no_records_apart(monkeypatch):
    made = [SimpleNamespace(parameters={"width": 3, "own_order": False}), SimpleNamespace(parameters={"width": 3})]
    made += [SimpleNamespace(parameters={"width": 4})]
    monkeypatch.setattr(tables.runs, "filtered", lambda experiment, where: made)
    assert tables.largest_group("any") == {"width": 3}
