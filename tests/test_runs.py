"""What runs are called, and that a record read back is the record that was saved, or an error."""

import hashlib
import json
import os
import runpy
import string
from pathlib import Path

import numpy as np
import pytest
import scipy
from hypothesis import given
from hypothesis import strategies as st

import lib.records.runs as runs
from lib import disk, drawing, draws, sets, tables
from lib import store as storage
from lib.records.runs import ParameterError, RecordError
from workflow.plan import Plan

DEFAULTS = {
    "seed": 9192, "type": "EWN", "dataset": "mnist", "levels": [-10, -100], "cutoffs": [0.1, 0.5], "lr": 0.1,
    "epochs": 5, "bias": True, "weights": "", "device": "auto", "force": False, "stack": 0,
}  # fmt: skip


def write_notebook(root: Path, experiment: str, parameters: dict, *cells: str) -> None:
    """Write a notebook whose parameters cell holds `parameters` and whose other code cells are `cells`."""
    lines = "\n".join(f"{name}: {type(value).__name__} = {value!r}  # a unit" for name, value in parameters.items())
    code = [{"cell_type": "code", "metadata": {"tags": ["parameters"]}, "source": lines}]
    code += [{"cell_type": "code", "metadata": {}, "source": cell} for cell in cells]
    for cell in code:
        cell |= {"execution_count": None, "outputs": []}
    text = {"cell_type": "markdown", "metadata": {}, "source": "# A toy"}
    (root / "notebooks").mkdir(exist_ok=True)
    notebook = {"cells": [text, *code], "metadata": {}, "nbformat": 4, "nbformat_minor": 4}
    (root / "notebooks" / f"{experiment}.ipynb").write_text(json.dumps(notebook))


@pytest.fixture
def root(tmp_path, monkeypatch):
    """Return an empty repository with one notebook, `toy`."""
    monkeypatch.setattr(runs, "ROOT", tmp_path)
    monkeypatch.delenv("PRUNING_RUNS", raising=False)
    write_notebook(tmp_path, "toy", DEFAULTS)
    return tmp_path


def saved(seed=3, type="EWN", parameters=None, **content):
    """Return the path of a saved record of `toy`."""
    run = runs.open_run("toy", {**DEFAULTS, "seed": seed, "type": type, **(parameters or {})})
    return run.save(type=type, seed=seed, **{"scores": {"accuracy": 0.5}, **content})


# ---- names


@pytest.mark.parametrize(
    ("type", "seed", "parameters", "name"),
    [
        ("EWN", 9192, {}, "EWN-9192"),
        ("no-WN", 0, {"dataset": "mnist"}, "no-WN-0"),
        ("EWN", 9192, {"levels": [-10, -20], "dataset": "digits"}, "EWN-9192;dataset=digits;levels=-10,-20"),
        ("EWN", 1, {"levels": -10}, "EWN-1;levels=-10"),
        ("EWN", 1, {"levels": [-10, -100]}, "EWN-1"),
        ("EWN", 1, {"device": "cuda", "force": True, "stack": 4}, "EWN-1"),
        ("EWN", 1, {"lr": 1}, "EWN-1;lr=1.0"),
        ("EWN", 1, {"lr": 1e-5}, "EWN-1;lr=1e-05"),
        ("EWN", 1, {"cutoffs": [0, 0.25]}, "EWN-1;cutoffs=0.0,0.25"),
        ("EWN", 1, {"bias": False, "epochs": 10}, "EWN-1;bias=False;epochs=10"),
        ("EWN", 1, {"weights": "a/b c;d=e,f.pt"}, "EWN-1;weights=a%2Fb%20c%3Bd%3De%2Cf.pt"),
        ("EWN", 1, {"weights": "../../etc"}, "EWN-1;weights=..%2F..%2Fetc"),
        ("../up", 1, {}, "%2E.%2Fup-1"),
        ("EWN", "0..99", {}, "EWN-0..99"),
    ],
)
def test_names_stay_what_they_are(type, seed, parameters, name):
    assert runs.record_name(type, seed, parameters, DEFAULTS) == name


def test_a_long_name_keeps_its_beginning_and_ends_with_a_checksum():
    names = [runs.record_name("EWN", 1, {"levels": list(range(100, last))}, DEFAULTS) for last in (190, 191)]
    assert all(name.startswith("EWN-1;levels=100,101,102,") and len(name) == 177 for name in names)
    assert names[0] != names[1]


nasty = st.text(alphabet=";=,-.%/\\#~0a é\n", max_size=4)
identities = st.tuples(
    nasty.filter(bool),
    st.integers(0, 3),
    st.fixed_dictionaries(
        {},
        optional={
            "dataset": nasty,
            "weights": nasty,
            "levels": st.lists(st.integers(-2, 2), min_size=1, max_size=3),
            "lr": st.floats(allow_nan=False, allow_infinity=False),
            "bias": st.booleans(),
        },
    ),
)


@given(identities, identities)
def test_different_runs_have_different_names(one, other):
    same = (*one[:2], {**DEFAULTS, **one[2]}) == (*other[:2], {**DEFAULTS, **other[2]})
    assert (runs.record_name(*one, DEFAULTS) == runs.record_name(*other, DEFAULTS)) <= same


@given(st.text(min_size=1, max_size=99), st.text(max_size=99), st.lists(st.integers(), min_size=1, max_size=9))
def test_every_name_is_a_safe_file_name(type, weights, levels):
    name = runs.record_name(type, 1, {"weights": weights, "levels": levels}, DEFAULTS)
    assert set(name) <= set(string.ascii_letters + string.digits + "-_.~+%;=,#")
    assert len(name) <= 180 and not name.startswith(".")


@pytest.mark.parametrize(("type", "seed"), [(["EWN"], 1), ("EWN", [1]), ("", 1), ("EWN", -1), ("EWN", "9..1")])
def test_a_name_is_of_one_type_and_one_seed(type, seed):
    with pytest.raises(ParameterError):
        runs.record_name(type, seed, {}, DEFAULTS)


def test_a_trained_network_is_named_by_its_recipe(root):
    recipe = {"name": "mnist-mlp-1024", "type": "EWN", "seed": 9192, "lr": 0.1, "level": -10}
    expected = root / "runs/trained/mnist-mlp-1024/EWN-9192;level=-10;lr=0.1"
    assert runs.trained(recipe) == expected
    assert runs.trained({"name": "..", "type": "EWN", "seed": 1}).parent == root / "runs/trained/%2E."
    with pytest.raises(ParameterError, match="lacks seed"):
        runs.trained({"name": "x", "type": "EWN"})


# ---- parameters


def test_declared_reads_the_parameters_cell_in_order(root):
    assert list(runs.declared("toy").items()) == list(DEFAULTS.items())


def test_a_misspelt_notebook_is_named_with_its_likely_meaning(root):
    with pytest.raises(ParameterError, match="no notebook .*Did you mean 'toy'"):
        runs.declared("toi")
    with pytest.raises(ParameterError, match="Did you mean 'toy'"):
        runs.table("toi")


@pytest.mark.parametrize("line", ["lr = 1 / 3", "import os", "lr: float", "a = b = 1", "lr = None", "levels = []"])
def test_a_parameters_cell_holds_literals_only(root, line):
    write_notebook(root, "odd", {"seed": 1, "type": "EWN"})
    path = root / "notebooks/odd.ipynb"
    path.write_text(path.read_text().replace("seed: int", f"{line}\\nseed: int"))
    with pytest.raises(ParameterError):
        runs.declared("odd")


def test_files_of_parameters_that_are_no_json_are_named(root):
    """Empty, or with the marks of a merge that nobody ended."""
    for name in ("toy.ipynb", "defaults.json"):
        file = root / "notebooks" / name
        before = file.read_text() if file.exists() else None
        for text in ("", "<<<<<<< HEAD\n{}\n=======\n{}\n"):
            file.write_text(text)
            with pytest.raises(ParameterError, match=f"{name} is no JSON .*git restore"):
                runs.declared("toy")
        file.write_text(before) if before else file.unlink()
    assert runs.declared("toy") == DEFAULTS


def test_a_notebook_without_tag_or_without_seed_is_refused(root):
    write_notebook(root, "odd", {"type": "EWN"})
    with pytest.raises(ParameterError, match="declares no 'seed'"):
        runs.declared("odd")
    path = root / "notebooks/odd.ipynb"
    path.write_text(path.read_text().replace('"parameters"', '"other"'))
    with pytest.raises(ParameterError, match="0 cells tagged"):
        runs.declared("odd")


def test_pairs_go_seed_by_seed():
    assert runs.pairs({"seed": 1, "type": "EWN"}) == [(1, "EWN")]
    assert runs.pairs({"seed": [2, 1], "type": ["a", "b"]}) == [(2, "a"), (2, "b"), (1, "a"), (1, "b")]


def test_the_folder_is_that_of_the_environment(root, monkeypatch):
    assert runs.folder() == root / "runs"
    monkeypatch.setenv("PRUNING_RUNS", "runs/quick")
    assert runs.folder() == root / "runs/quick"
    monkeypatch.setenv("PRUNING_RUNS", "/elsewhere")
    assert runs.folder() == Path("/elsewhere")


# ---- missing


def test_missing_lists_what_has_no_record(root):
    want = {"seed": [3, 4], "type": ["EWN", "SWN"]}
    assert runs.missing("toy", want) == [(3, "EWN"), (3, "SWN"), (4, "EWN"), (4, "SWN")]
    saved(seed=3, type="SWN")
    assert runs.missing("toy", want) == [(3, "EWN"), (4, "EWN"), (4, "SWN")]
    assert runs.missing("toy", {"seed": 3, "type": "SWN"}) == []
    assert runs.missing("toy", {"seed": 3, "type": "SWN", "lr": 0.2}) == [(3, "SWN")]
    assert runs.missing("toy", {"seed": 3, "type": "SWN", "force": True}) == [(3, "SWN")]
    with pytest.raises(ParameterError, match="'epoch'. Did you mean 'epochs'"):
        runs.missing("toy", {"epoch": 3})


def test_a_broken_record_and_one_of_other_defaults_are_missing(root):
    path = saved()
    write_notebook(root, "toy", {**DEFAULTS, "lr": 0.2})
    assert runs.missing("toy", {"seed": 3}) == [(3, "EWN")]
    write_notebook(root, "toy", DEFAULTS)
    assert runs.missing("toy", {"seed": 3}) == []
    path.write_text(path.read_text()[:-5])
    assert runs.missing("toy", {"seed": 3}) == [(3, "EWN")]


# ---- save and read back


def test_a_record_comes_back_as_it_was_saved(root):
    loss = np.array([[1.5, np.nan, -np.inf], [0.1, 2.0, 1e-30]])
    kept = np.array([True, False])
    path = saved(
        scores={"accuracy": np.float32(0.5), "collapsed": None, "note": "fine", "n": 3},
        cost={"macs": np.int64(10**12), "density": 0.5},
        arrays={"loss": (loss, ("density", "step")), "kept": (kept, ["density"]), "one": (np.int16(7), ())},
        axes={"density": [1.0, 0.5], "step": np.array([0, 10, 100])},
        data={"mnist": "abc"}, seconds=1.5, device="cpu", stacked_with=["EWN-3", "SWN-3"],
    )  # fmt: skip
    assert path == root / "runs/toy/EWN-3.json"
    record = runs.read(path)
    assert (record.experiment, record.type, record.seed, record.name) == ("toy", "EWN", 3, "EWN-3")
    assert record.parameters == {k: v for k, v in DEFAULTS.items() if k not in ("seed", "type")}
    assert record.scores == {"accuracy": 0.5, "collapsed": None, "note": "fine", "n": 3}
    assert record.cost == {"macs": 10**12, "density": 0.5}
    assert record.axes == {"density": [1.0, 0.5], "step": [0, 10, 100]}
    values, axes = record.array("loss")
    assert axes == ("density", "step") and values.dtype == np.float32
    np.testing.assert_array_equal(values, loss.astype(np.float32))
    assert record.array("kept")[0].dtype == bool and record.array("kept")[0].tolist() == [True, False]
    assert record.array("one")[0].dtype == np.int16 and record.array("one")[0].shape == ()
    with pytest.raises(RecordError, match="no array 'accuracy'; it has loss, kept, one"):
        record.array("accuracy")


def test_the_records_of_a_stack_are_saved_together(root, monkeypatch):
    """Killed before the last of them, none is there, and all are trained again, each with the neighbours it had."""
    run = runs.open_run("toy", {**DEFAULTS, "seed": [1, 2, 3]})
    together = ["EWN-1", "EWN-2"]
    first = run.save(type="EWN", seed=1, scores={"a": 1}, stacked_with=together)
    assert not first.exists() and runs.missing("toy", {"seed": [1, 2, 3]}) == run.todo
    with pytest.raises(RecordError, match="EWN-1 wait for the others"):
        run.records()
    third = run.save(type="EWN", seed=3, scores={"a": 3}, stacked_with=["EWN-3"])
    assert third.exists() and not first.exists()
    second = run.save(type="EWN", seed=2, scores={"a": 2}, stacked_with=together)
    assert first.exists() and second.exists()
    assert [record.scores["a"] for record in run.records()] == [1, 2, 3]
    again = runs.open_run("toy", {**DEFAULTS, "seed": [2, 4]})  # 2 is there: only 4 is waited for
    assert again.save(type="EWN", seed=4, scores={}, stacked_with=["EWN-2", "EWN-4"]).exists()


@pytest.mark.parametrize("look", [lambda: runs.open_run("toy", {**DEFAULTS, "seed": [1, 2]}).records(),
                                  lambda: runs.records("toy")])  # fmt: skip
def test_whoever_looks_first_ends_what_was_killed(root, monkeypatch, look):
    run = runs.open_run("toy", {**DEFAULTS, "seed": [1, 2]})
    run.save(type="EWN", seed=1, scores={"a": 1}, stacked_with=["EWN-1", "EWN-2"])
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(disk, "_finish", lambda intent: (_ for _ in ()).throw(KeyboardInterrupt))
        run.save(type="EWN", seed=2, scores={"a": 2}, stacked_with=["EWN-1", "EWN-2"])
    assert not list(root.glob("runs/toy/*.json"))
    assert [record.scores["a"] for record in look()] == [1, 2]
    assert runs.missing("toy", {"seed": [1, 2]}) == []


def test_a_forced_run_first_ends_what_a_killed_process_left(root, monkeypatch):
    """Left for later, its moves could come over parts of the new record."""
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(disk, "_finish", lambda intent: (_ for _ in ()).throw(KeyboardInterrupt))
        runs.open_run("toy", DEFAULTS).save(type="EWN", seed=DEFAULTS["seed"], scores={"a": 1})
    assert list(root.glob("runs/toy/.saving-*"))
    runs._claims.clear()
    run = runs.open_run("toy", DEFAULTS | {"force": True})
    assert len(run.todo) == 1 and not list(root.glob("runs/toy/.saving-*"))


def test_what_another_saved_before_it_was_killed_is_not_made_again(root, monkeypatch):
    """Killed while it was waited for, between the list of what is to be moved and the moves."""
    other = runs.open_run("toy", DEFAULTS)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(disk, "_finish", lambda intent: (_ for _ in ()).throw(KeyboardInterrupt))
        other.save(type="EWN", seed=DEFAULTS["seed"], scores={"a": 1})
    (intent,) = root.glob("runs/toy/.saving-*")
    hidden = intent.rename(root / "not yet")
    acquire = runs.acquire
    monkeypatch.setattr(runs, "acquire", lambda path: (acquire(path), hidden.exists() and hidden.rename(intent)))
    runs._claims.clear()
    run = runs.open_run("toy", DEFAULTS)
    assert run.todo == [] and run.records()[0].scores["a"] == 1


def test_provenance_says_where_a_result_comes_from(root, monkeypatch):
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    write_notebook(root, "toy", DEFAULTS, "train()")
    (root / "workflow").mkdir()
    (root / "workflow/tested.txt").write_text("numpy==1\n")
    assert draws.generator(1, "noise")  # a module that decides numbers is imported
    provenance = runs.read(saved(seconds=2.5, data="sha")).provenance
    versions = provenance["versions"]
    assert versions["numpy"] == np.__version__ and versions["scipy"] == scipy.__version__
    assert {"torch", "torchvision", "pandas", "scikit-learn", "pillow"} <= {
        name for name, one in versions.items() if one
    }
    assert provenance["tested"] == hashlib.sha256(b"numpy==1\n").hexdigest()[:16]
    assert provenance["instructions"]["onednn"] == "AVX2"
    assert 0 <= runs.read(saved(seed=4)).provenance["seconds"] < 60, "since the run was opened"
    assert provenance["seconds"] == 2.5 and provenance["data"] == "sha" and provenance["device"] == "auto"
    assert provenance["commit"] is None  # this root is no git repository
    assert {"lib/draws.py", "code cell 2"} <= set(provenance["code"])
    assert not {"lib/records/runs.py", "lib/records/store.py"} & set(provenance["code"]), "they change no number"
    assert "code cell 1" not in provenance["code"]  # the parameters are compared by value
    assert provenance["started"] <= provenance["finished"]


def test_a_tensor_is_stored_like_an_array(root):
    torch = pytest.importorskip("torch")
    tensor = torch.tensor([1.0, 2.0], dtype=torch.float64, requires_grad=True)
    path = saved(scores={"loss": tensor.sum().detach()}, arrays={"w": (tensor, ["i"])}, axes={"i": [0, 1]})
    assert runs.read(path).array("w")[0].tolist() == [1.0, 2.0]
    assert runs.read(path).scores == {"loss": 3.0}


def test_a_score_that_is_no_number_is_missing_and_the_record_says_why(root):
    record = runs.read(saved(scores={"loss": np.float32("nan"), "accuracy": np.array(0.5), "steps": 3}))
    assert record.scores == {"loss": None, "diverged": True, "accuracy": 0.5, "steps": 3}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"cost": {"loss": float("nan")}}, "cost 'loss' is nan"),
        ({"scores": {"loss": np.float32("inf")}}, "score 'loss' is inf"),
        ({"scores": {"loss": [1, 2]}}, "score 'loss' is"),
        ({"cost": {"macs": np.ones(2)}}, "cost 'macs' is"),
        ({"scores": {"lr": 1.0}}, "'lr' names two things"),
        ({"scores": {"macs": 1}, "cost": {"macs": 1}}, "'macs' names two things"),
        ({"arrays": {"i": (np.ones(2), ["i"])}, "axes": {"i": [0, 1]}}, "'i' names two things"),
        ({"arrays": {"a": (np.ones(3), ["i"])}, "axes": {"i": [0, 1]}}, r"shape \(3,\)"),
        ({"arrays": {"a": (np.ones((2, 2)), ["i", "i"])}, "axes": {"i": [0, 1]}}, "shape"),
        ({"arrays": {"a": (np.ones(2), ["j"])}, "axes": {"i": [0, 1]}}, "axis 'j'; the axes are i"),
        ({"axes": {"i": [0, 1]}}, "no array has the axes i"),
        ({"arrays": {"a": (np.ones(2), ["i"])}, "axes": {"i": [1, 1]}}, "only once"),
        ({"arrays": {"a": (np.ones(2), ["i"])}, "axes": {"i": [1, float("nan")]}}, "finite"),
        ({"arrays": {"a": (np.array(["x"]), ["i"])}, "axes": {"i": [0]}}, "of kind <U1"),
        ({"arrays": {"a": (np.array([{}]), ["i"])}, "axes": {"i": [0]}}, "of kind object"),
        ({"arrays": {"a": (np.array([1e300]), ["i"])}, "axes": {"i": [0]}}, "beyond float32"),
        ({"arrays": {"file": (np.ones(1), ["i"])}, "axes": {"i": [0]}}, "cannot be called 'file'"),
        ({"data": {"a": object()}}, "provenance"),
    ],
)
def test_what_cannot_be_told_is_not_saved(root, content, message):
    with pytest.raises(RecordError, match=message):
        saved(**content)
    assert runs.missing("toy", {"seed": 3}) == [(3, "EWN")]


def test_only_what_was_to_be_computed_can_be_saved(root):
    saved()
    run = runs.open_run("toy", {**DEFAULTS, "seed": 3})
    with pytest.raises(RecordError, match="not to be computed"):
        run.save(type="EWN", seed=3, scores={})


def test_a_sweep_is_one_record_with_a_seed_axis(root):
    write_notebook(root, "sweep", {"seed": "0..3", "type": ["EWN", "SWN"]})
    run = runs.open_run("sweep", {"seed": "0..3", "type": ["EWN", "SWN"]})
    assert run.todo == [("0..3", "EWN"), ("0..3", "SWN")] and run.seeds == [0, 1, 2, 3]
    for seed, type in run.todo:
        run.save(
            type=type,
            seed=seed,
            scores={},
            arrays={"steps": (np.arange(4), ["seed"])},
            axes={"seed": run.seeds},
        )
    frame = runs.curves("sweep", "steps")
    assert frame.columns.tolist() == ["type", "seed", "steps"]
    assert frame.seed.tolist() == [0, 1, 2, 3] * 2
    assert runs.table("sweep").seed.tolist() == ["0..3", "0..3"]
    assert runs.missing("sweep", {"seed": "0..3"}) == []
    assert runs.missing("sweep", {"seed": 5, "type": "SWN"}) == [("5..5", "SWN")]
    with pytest.raises(ParameterError, match="first..last"):
        runs.missing("sweep", {"seed": [1, 2]})


def test_the_arrays_of_one_run_get_their_axes():
    found = {"curve": np.arange(12).reshape(2, 3, 2), "last": np.array([5, 6]), "by_step": np.arange(4).reshape(2, 2)}
    axes = {"curve": ("layer", "step"), "last": (), "by_step": ("step",)}
    content = storage.of_run(found, 1, axes, {"layer": ["a", "b", "c"], "unused": [1]})
    assert content["axes"] == {"layer": ["a", "b", "c"], "step": [0, 1]}
    assert {name: (values.tolist(), own) for name, (values, own) in content["arrays"].items()} == {
        "curve": ([[6, 7], [8, 9], [10, 11]], ("layer", "step")), "last": (6, ()), "by_step": ([2, 3], ("step",)),
    }  # fmt: skip
    with pytest.raises(ValueError, match="zip"):
        storage.of_run({"curve": found["curve"]}, 0, {"curve": ("layer",)}, {})


# ---- truncated, altered, renamed


def full(path: Path):
    """Return everything a record holds, comparable."""
    record = runs.read(path)
    return record.scores, record.parameters, record.axes, record.array("a")[0].tolist(), record.provenance


@pytest.fixture
def path(root):
    return saved(arrays={"a": (np.arange(5.0), ["i"])}, axes={"i": list("abcde")})


def places(data):
    """Return every seventh place of a file, and all of the last hundred."""
    return sorted({*range(0, len(data), 7), *range(max(0, len(data) - 100), len(data))})


@pytest.mark.parametrize("ending", [".json", ".npz"])
def test_no_truncated_file_is_ever_believed(path, ending):
    whole = full(path)
    file = path.with_name("EWN-3" + ending)
    data = file.read_bytes()
    for cut in places(data):
        file.write_bytes(data[:cut])
        try:
            assert full(path) == whole and data[cut:] == b"\n"  # without its last line end a json is still whole
        except RecordError as error:
            assert "EWN-3" in str(error) and "run it again" in str(error)


def test_no_altered_npz_is_ever_believed(path):
    npz = path.with_name("EWN-3.npz")
    data = npz.read_bytes()
    for place in places(data):
        npz.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
        with pytest.raises(RecordError, match="truncated or altered"):
            runs.read(path)
    npz.unlink()
    with pytest.raises(RecordError, match="missing, truncated or altered"):
        runs.records("toy")


def test_a_missing_field_is_named(path):
    document = json.loads(path.read_text())
    for field in document.keys():
        path.write_text(json.dumps({key: value for key, value in document.items() if key != field}))
        with pytest.raises(RecordError, match=f"missing fields: {field};"):
            runs.read(path)
    path.write_text("[]")
    with pytest.raises(RecordError, match="missing fields"):
        runs.table("toy")


def test_a_duplicate_is_an_error(path):
    for ending in (".json", ".npz"):
        (path.parent / f"EWN-3 (copy){ending}").write_bytes(path.with_name(f"EWN-3{ending}").read_bytes())
    with pytest.raises(RecordError, match="duplicate copy of 'EWN-3'"):
        runs.table("toy")


def test_a_copy_in_the_folder_of_another_experiment_is_an_error(path):
    there = path.parent.with_name("other")
    path.parent.rename(there)
    with pytest.raises(RecordError, match="copy of 'EWN-3' of 'toy'.*run it again"):
        runs.read(there / path.name)


def rewrite(path, **changes):
    """Write a record anew, with other fields."""
    document = {key: value for key, value in json.loads(path.read_text()).items() if key != "digest"}
    path.write_bytes(storage._sealed(disk.render(document | changes)))


@pytest.mark.parametrize("long", [False, True])
def test_a_name_is_compared_with_what_the_record_holds(root, long):
    """Of a name that is too long to be a whole one, its beginning is."""
    given = {"dataset": "a;b=c%é", "epochs": 7, "levels": list(range(-9, -99 if long else -12, -1))}
    path = saved(3, "no-WN", given)
    assert runs.read(path).parameters["epochs"] == 7 and ("#" in path.name) == long
    parameters = {**DEFAULTS, **given}
    del parameters["seed"], parameters["type"]
    for changes in (
        {"seed": 4}, {"type": "SWN"}, {"type": None}, {"parameters": parameters | {"epochs": 8}},
        {"parameters": parameters | {"levels": [-9, -11]}}, {"parameters": {"epochs": 7}},
    ):  # fmt: skip
        rewrite(path, **{"parameters": parameters, "seed": 3, "type": "no-WN"} | changes)
        with pytest.raises(RecordError, match="its name is not that of its type, seed and parameters.*run it again"):
            runs.read(path)


def test_line_ends_of_windows_change_no_record(path):
    whole = full(path)
    path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    assert full(path) == whole


def test_hidden_files_are_no_records(path):
    for name in ("._EWN-3.json", ".EWN-4.json"):
        path.with_name(name).write_bytes(b"\0\5\x16\7")  # as macOS leaves them on other file systems
    path.with_name(".#EWN-3.json").symlink_to("somebody@somewhere.7")  # as Emacs does, to nowhere
    assert [record.name for record in runs.records("toy")] == ["EWN-3"] and len(runs.table("toy")) == 1


def test_folders_are_no_records(path):
    path.with_name("old.json").mkdir()
    assert [record.name for record in runs.records("toy")] == ["EWN-3"]
    for ending in (".npz", ".json"):
        path.with_name(f"EWN-3{ending}").unlink(), path.with_name(f"EWN-3{ending}").mkdir()
        with pytest.raises(RecordError, match="EWN-3.json cannot be read.*run it again"):
            runs.read(path)


def test_a_record_that_is_not_there_is_said_so(root):
    with pytest.raises(RecordError, match="there is no record"):
        runs.read(root / "runs/toy/EWN-3.json")


# ---- table and curves


def test_the_table_has_one_row_per_run(root):
    saved(3, scores={"accuracy": 0.5, "units": 7}, cost={"macs": 10})
    saved(4, scores={"accuracy": None, "units": 8}, cost={"macs": 10})
    saved(3, "SWN", {"levels": [-20], "lr": 0.2}, scores={"accuracy": 0.25, "units": 9}, cost={"macs": 10})
    frame = runs.table("toy")
    assert frame[["type", "seed"]].values.tolist() == [["EWN", 3], ["EWN", 4], ["SWN", 3]]
    assert frame.levels.tolist() == ["-10,-100", "-10,-100", "-20"] and frame.lr.tolist() == [0.1, 0.1, 0.2]
    assert frame.accuracy.isna().tolist() == [False, True, False] and frame.units.tolist() == [7, 8, 9]
    assert {"macs", "device", "epochs", "dataset"} <= set(frame.columns)
    assert runs.table("toy", type="EWN", seed=[4, 5]).units.tolist() == [8]
    assert runs.table("toy", levels=[-20]).units.tolist() == [9]
    with pytest.raises(RecordError, match="'data'. Did you mean 'dataset'"):
        runs.table("toy", data="mnist")


def test_a_filter_that_no_record_has_says_what_there_is(root):
    for seed, type in ((3, "EWN"), (4, "SWN")):
        saved(seed, type, arrays={"loss": (np.ones(1), ["i"])}, axes={"i": [0]})
    for where, told in (
        ({"type": "ewn"}, r"type = 'ewn'\. Did you mean 'EWN'\? There are: 'EWN', 'SWN'"),
        ({"levels": -10}, r"levels = -10\. There are: \[-10, -100\]"),
        ({"seed": [5, 6]}, r"seed = \[5, 6\]\. There are: 3, 4"),
        ({"type": "EWN", "lr": 0.2}, r"lr = 0\.2\. There are: 0\.1"),
    ):
        for read in (runs.table, tables.largest_group, lambda *given, **where: runs.curves(*given, "loss", **where)):
            with pytest.raises(RecordError, match=told):
                read("toy", **where)
        assert runs.records("toy", **where) == []
    assert runs.table("toy", type="EWN", seed=4).empty, "each is there, but not together"


def test_no_records_are_an_empty_table(root):
    assert runs.records("toy") == [] and runs.table("toy").empty
    assert runs.curves("toy", "loss").columns.tolist() == ["type", "seed", "loss"]


def test_curves_have_one_row_per_element(root):
    values = np.array([[1.0, 2.0, 3.0], [4.0, np.nan, 6.0]])
    axes = {"density": [1.0, 0.5], "layer": ["a", "b", "c"]}
    saved(3, arrays={"loss": (values, ("density", "layer"))}, axes=axes)
    saved(3, "SWN", {"lr": 0.2, "device": "cuda"}, arrays={"loss": (values.T, ("layer", "density"))}, axes=axes)
    frame = runs.curves("toy", "loss")
    assert frame.columns.tolist() == [
        "type",
        "seed",
        "lr",
        "density",
        "layer",
        "loss",
    ]  # device changes nothing
    assert len(frame) == 12
    for type in ("EWN", "SWN"):
        for i, density in enumerate(axes["density"]):
            for j, layer in enumerate(axes["layer"]):
                row = frame[(frame.type == type) & (frame.density == density) & (frame.layer == layer)]
                np.testing.assert_array_equal(row.loss.to_numpy(), values[i, j])
    assert runs.curves("toy", "loss", type="EWN").columns.tolist() == [
        "type",
        "seed",
        "density",
        "layer",
        "loss",
    ]


def test_a_parameter_that_came_or_went_with_an_edit_makes_no_column(root):
    loss = {"arrays": {"loss": (np.array([1.0, 2.0]), ("epoch",))}, "axes": {"epoch": [1, 2]}}
    write_notebook(root, "toy", {**DEFAULTS, "gone": False})
    saved(3, parameters={"gone": False}, **loss)
    write_notebook(root, "toy", DEFAULTS)
    saved(4, **loss)
    frame = runs.curves("toy", "loss")
    assert frame.columns.tolist() == ["type", "seed", "epoch", "loss"]
    assert frame.dropna()["seed"].tolist() == [3, 3, 4, 4], "or who drops rows with a gap drops runs"


def test_a_run_without_the_array_is_an_error_not_a_gap(root):
    saved(3, arrays={"loss": (np.ones(1), ["i"])}, axes={"i": [0]})
    saved(4)
    with pytest.raises(RecordError, match="1 of 2 records have no array 'loss', such as EWN-4. There"):
        runs.curves("toy", "loss")
    with pytest.raises(RecordError, match="Did you mean 'loss'"):
        runs.curves("toy", "los", seed=3)
    with pytest.raises(ParameterError, match=r"name is a list; needed is the name of one array; tables\.joined"):
        runs.curves("toy", ["loss"])
    assert len(runs.curves("toy", "loss", seed=3)) == 1


def test_published_facts_lie_beside_the_runs(root, monkeypatch):
    (root / "runs/published").mkdir(parents=True)
    (root / "runs/published/ewn.csv").write_text("type,accuracy\nEWN,0.98\n")
    monkeypatch.setenv("PRUNING_RUNS", "runs/quick")
    assert runs.published("ewn").accuracy.tolist() == [0.98]
    with pytest.raises(RecordError, match="There are: ewn"):
        runs.published("phew")


# ---- weights


def test_weights_come_back_as_they_were(tmp_path):
    tensors = {
        "w": np.arange(6, dtype=np.float32).reshape(2, 3).T,  # not contiguous
        "mask": np.array([True, False]),
        "step": np.array(7, dtype=np.int64),
        "nan": np.array([np.nan]),
    }
    disk.save_tensors(tmp_path / "a" / "w;lr=0.1", tensors, {"level": -10.0, "path": [1, 2]})
    back, meta = disk.load_tensors(tmp_path / "a" / "w;lr=0.1")
    assert meta == {"level": -10.0, "path": [1, 2]} and back.keys() == tensors.keys()
    for name, value in tensors.items():
        assert back[name].dtype == value.dtype
        np.testing.assert_array_equal(back[name], value)
    assert [file.name for file in (tmp_path / "a").iterdir() if file.is_file()] == ["w;lr=0.1"]


def test_broken_weights_are_never_loaded(tmp_path):
    path = tmp_path / "w.safetensors"
    disk.save_tensors(path, {"w": np.arange(4.0)}, {"level": -10})
    data = path.read_bytes()
    for cut in places(data):
        path.write_bytes(data[:cut])
        with pytest.raises(RecordError, match="does not hold the weights"):
            disk.load_tensors(path)
    with pytest.raises(RecordError, match="no weights at"):
        disk.load_tensors(tmp_path / "other.safetensors")
    with pytest.raises(RecordError, match="level"):
        disk.save_tensors(path, {}, {"level": float("nan")})


def test_a_home_is_a_home(monkeypatch, tmp_path):
    """Not a folder called ~ in the repository, which somebody then would remove by its name."""
    monkeypatch.setenv("HOME", str(tmp_path))
    launcher = runpy.run_path(str(runs.ROOT / "workflow/bin/papermill"))["_runs"]
    places = {
        "PRUNING_RUNS": [("runs", runs.folder), ("runs", launcher)],
        "PRUNING_FIGURES": [("figures", drawing.folder)],
        "PRUNING_DATA": [("data", sets._folder)],
    }
    for variable, folders in places.items():
        for name, folder in folders:
            for text, path in (("~/mine", tmp_path / "mine"), ("mine", runs.ROOT / "mine"), ("", runs.ROOT / name)):
                monkeypatch.setenv(variable, text)
                assert folder() == path, (variable, text)
        monkeypatch.setenv(variable, "~/mine")
    plan = Plan("quick", ["notebooks/xor.ipynb"])
    assert os.environ["PRUNING_RUNS"] == str(tmp_path / "mine") and plan.due, "the plan of an empty folder"
