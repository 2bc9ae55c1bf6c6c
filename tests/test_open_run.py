"""What `open_run` lets in, what it refuses, and who may compute a record: one process at a time."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy
import pytest
from filelock import FileLock, Timeout

import lib.draws  # noqa: F401  (a module that can change a number)
import lib.records.runs as runs
from lib.records import disk
from lib.records.parameters import checked
from lib.records.runs import ParameterError, RecordError

HOME = Path(runs.__file__).resolve().parents[2]
PARAMETERS = 'seed: int = 1\ntype: str = "EWN"\ndataset: str = "mnist"\nlevels: list = [-10]\nlr: float = 0.1\n'
PARAMETERS += "epochs: int = 5\nbias: bool = True\nforce: bool = False\n"
DEFAULTS = {
    "seed": 1,
    "type": "EWN",
    "dataset": "mnist",
    "levels": [-10],
    "lr": 0.1,
    "epochs": 5,
    "bias": True,
}
DEFAULTS |= {"force": False}
TYPES = ["EWN", "SWN", "no-WN"]


def write_notebook(root: Path, *cells: str, parameters: str = PARAMETERS) -> Path:
    """Return the path of `toy`, written with this parameters cell and these code cells."""
    sources = [(parameters, ["parameters"]), *((cell, []) for cell in cells)]
    code = [
        {
            "cell_type": "code",
            "metadata": {"tags": tags},
            "source": source,
            "outputs": [],
            "execution_count": None,
        }
        for source, tags in sources
    ]
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    path = root / "notebooks" / "toy.ipynb"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({"cells": code, "metadata": kernel, "nbformat": 4, "nbformat_minor": 4}))
    return path


@pytest.fixture
def root(tmp_path, monkeypatch):
    """Return an empty repository with one notebook, `toy`."""
    monkeypatch.setattr(runs, "ROOT", tmp_path)
    monkeypatch.delenv("PRUNING_RUNS", raising=False)
    write_notebook(tmp_path, "a = 1", "b = 2")
    return tmp_path


def opened(**parameters):
    """Return `toy` opened as its notebook would, with these parameters injected."""
    return runs.open_run("toy", {**DEFAULTS, **parameters}, type=TYPES, dataset=("mnist", "digits"))


def save_all(run) -> None:
    for seed, type in run.todo:
        run.save(type=type, seed=seed, scores={"accuracy": 0.5})


# ---- parameters


def test_a_run_knows_its_pairs_and_parameters(root):
    assert repr(opened(lr=numpy.float64(2)).parameters["lr"]) == "2.0"
    assert repr(checked({"lr": -0.0}, DEFAULTS)["lr"]) == "0.0", "one value has one name"
    run = opened(seed=[3, 1], type=["SWN", "EWN"], levels=-20, lr=1)
    assert (run.seeds, run.types, run.experiment) == ([3, 1], ["SWN", "EWN"], "toy")
    assert run.todo == [(3, "SWN"), (3, "EWN"), (1, "SWN"), (1, "EWN")] and run.done == []
    assert run.parameters["levels"] == [-20] and repr(run.parameters["lr"]) == "1.0"
    assert run.path("SWN", 3) == root / "runs/toy/SWN-3;levels=-20;lr=1.0.json"


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"type": "XWN"}, "type = 'XWN' is not a choice. Did you mean .* Allowed: EWN, SWN, no-WN"),
        ({"type": ["EWN", "no-wn"]}, "'no-wn' is not a choice. Did you mean 'no-WN'"),
        (
            {"dataset": "mnst"},
            "dataset = 'mnst' is not a choice. Did you mean 'mnist'?.* Allowed: mnist, digits",
        ),
        ({"type": 3}, "type = 3"),
        ({"type": []}, r"type = \[\]"),
        ({"type": ["EWN", "EWN"]}, "'EWN' stands there twice"),
        ({"seed": -1}, "seed = -1: it is an integer >= 0"),
        ({"seed": 1.0}, "seed = 1.0"),
        ({"seed": True}, "seed = True"),
        ({"seed": "0..3"}, "seed = '0..3'"),
        ({"seed": [1, 2, 1]}, "1 stands there twice"),
        ({"seed": []}, r"seed = \[\]"),
        ({"levels": []}, "at least one value"),
        ({"levels": [-10.5]}, "levels = -10.5 is of kind float; levels is of kind int, such as -10, or a list of such"),
        (
            {"levels": [[-10]]},
            r"levels = \[-10\] is of kind list; levels is of kind int, such as -10, or a list of such",
        ),
        ({"levels": [None]}, "levels = None is of kind NoneType; levels is of kind int, such as -10, or a list"),
        ({"levels": [float("nan")]}, "levels = nan is of kind float that is not finite; levels is of kind int"),
        ({"levels": list(range(-999, 0)) + ["x"]}, "levels = 'x' is of kind str"),
        ({"seed": [1] * 9999}, r"^seed = \[1, 1, .{60,90} … .{20}: 1 stands there twice"),
        ({"lr": 10**999}, "^lr = 10{89} … 0{20} is of kind int; lr is of kind float, such as 0.1, one value"),
        ({"lr": {"a": 1}}, "lr = .* is of kind dict; lr is of kind float, such as 0.1, one value"),
        ({"epochs": numpy.int64(3)}, "epochs is of kind int, such as 5"),
        ({"lr": 10**400}, "is of kind int; lr is of kind float"),
        ({"lr": "fast"}, "lr = 'fast' is of kind str; lr is of kind float"),
        ({"lr": float("nan")}, "finite"),
        ({"lr": None}, "lr = None"),
        ({"epochs": 1.5}, "epochs is of kind int"),
        ({"epochs": True}, "epochs = True is of kind bool"),
        ({"epochs": [1, 2]}, r"epochs = \[1, 2\] is of kind list; epochs is of kind int, such as 5, one value"),
        ({"bias": 1}, "bias is of kind bool, such as True"),
        ({"dataset": 10}, "`-r dataset 10` passes a text"),
    ],
)
def test_a_wrong_value_is_refused_with_what_is_allowed(root, parameters, message):
    with pytest.raises(ParameterError, match=message):
        opened(**parameters)
    assert not (root / "runs").exists()


def test_a_check_may_be_a_function(root):
    def falling(levels):
        return None if levels == sorted(levels, reverse=True) else "levels fall, such as -10, -100"

    assert runs.open_run("toy", {**DEFAULTS, "levels": [-1, -2]}, levels=falling).todo
    with pytest.raises(ParameterError, match=r"levels = \[-2, -1\]: levels fall"):
        runs.open_run("toy", {**DEFAULTS, "levels": [-2, -1]}, levels=falling)
    with pytest.raises(ParameterError, match="no parameter 'level'"):
        runs.open_run("toy", DEFAULTS, level=falling)
    with pytest.raises(ParameterError, match="Allowed: SWN"):
        runs.open_run("toy", DEFAULTS, type="SWN")


def test_a_parameter_without_a_value_is_named(root):
    with pytest.raises(ParameterError, match="no value for epochs: run the parameters cell, which has a line for each"):
        runs.open_run("toy", {name: value for name, value in DEFAULTS.items() if name != "epochs"})


def test_a_name_mistyped_in_the_parameters_cell_is_refused(root):
    """What it was to be has its old value in a kernel that ran the cell before, and would be run with that."""
    mistyped = PARAMETERS.replace("epochs: int = 5", "epoch: int = 7")
    with pytest.raises(ParameterError, match="no parameter 'epoch'. Did you mean 'epochs'"):
        opened(epoch=7, In=["", PARAMETERS, mistyped, "note: str = 'of a person'"])
    assert opened(epoch=7, In=["", mistyped, PARAMETERS, "note: str = 'of a person'"]).todo == [(1, "EWN")]


def test_only_what_papermill_injected_counts_as_a_parameter(root):
    history = ["", PARAMETERS, "# Parameters\nseed = 3\nepoch = 7\n", "x = 1"]
    with pytest.raises(ParameterError, match="'epoch'. Did you mean 'epochs'.*parameters are: seed, type, dataset"):
        opened(seed=3, epoch=7, In=history)
    assert opened(seed=3, epoch=7, In=["", PARAMETERS, "epoch = 7"]).todo == [(3, "EWN")]
    assert opened(seed=3, In=["", PARAMETERS, "# Parameters\nseed = 3\n", "epoch = 7"]).todo == [(3, "EWN")]


def test_a_notebook_shows_the_message_and_no_stack_of_calls():
    assert RecordError("so it is")._render_traceback_() == ["RecordError: so it is"]
    assert ParameterError("no")._render_traceback_() == ["ParameterError: no"]


# ---- papermill


SAVING = """import sys, pathlib
sys.path.insert(0, {home!r})
import lib.draws  # noqa: F401  (a module that can change a number)
import lib.records.runs as runs
runs.ROOT = pathlib.Path({root!r})
run = runs.open_run("toy", globals(), type=["EWN", "SWN"])
for s, t in run.todo:
    run.save(type=t, seed=s, scores={{"accuracy": 0.5}})"""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("-p sed 3", "ParameterError: there is no parameter 'sed'. Did you mean 'seed'?"),
        ("-p seed 3 -p type SWN", ""),
    ],
)
def test_papermill_with_a_mistyped_parameter_fails(root, arguments, message):
    notebook = write_notebook(root, SAVING.format(home=str(HOME), root=str(root)))
    command = [sys.executable, "-m", "papermill", str(notebook), str(root / "out.ipynb"), *arguments.split()]
    answer = subprocess.run([*command, "-p", "levels", "-20"], capture_output=True, text=True, timeout=120)
    assert (answer.returncode != 0) == bool(message), answer.stderr
    assert message in answer.stderr
    saved = [path.name for path in root.glob("runs/toy/*.json")]
    assert saved == ([] if message else ["SWN-3;levels=-20.json"])


# ---- records that exist already


def test_finished_records_are_not_made_again_unless_forced(root, capsys):
    save_all(opened(type="SWN"))
    run = opened(type=["EWN", "SWN"])
    assert run.done == [(1, "SWN")] and run.todo == [(1, "EWN")]
    assert capsys.readouterr().out == "already done: SWN-1\n"
    assert [record.name for record in run.records()] == ["SWN-1"]
    forced = opened(type=["EWN", "SWN"], force=True)
    assert forced.todo == [(1, "EWN"), (1, "SWN")] and capsys.readouterr().out == ""
    forced.save(type="SWN", seed=1, scores={"accuracy": 0.75})
    assert runs.read(forced.path("SWN", 1)).scores == {"accuracy": 0.75}


def test_a_changed_default_never_passes_for_the_old_result(root):
    save_all(opened())
    write_notebook(root, parameters=PARAMETERS.replace("0.1", "0.2"))
    with pytest.raises(RecordError, match="EWN-1.json was made under other defaults: lr was 0.1, is 0.2.*force"):
        opened(lr=0.2)
    assert opened(lr=0.2, force=True).todo == [(1, "EWN")]
    assert opened(lr=0.1).todo == [(1, "EWN")]  # which is another name by now


def test_a_new_parameter_leaves_old_records_done(root):
    save_all(opened())
    write_notebook(root, "a = 1", "b = 2", parameters=PARAMETERS + "as_published: bool = False\n")
    assert opened(as_published=False).todo == []


def test_an_edited_cell_or_module_is_told(root, capsys, monkeypatch):
    save_all(opened())
    write_notebook(root, "a = 1", "b = 3", parameters="# a comment\n" + PARAMETERS)
    assert opened().todo == []
    note = "already done: EWN-1 (made by an earlier code cell 3; force = True (-p force True) makes it again)\n"
    assert capsys.readouterr().out == note
    (root / "edited.py").write_text("another text")
    monkeypatch.setattr(sys.modules["lib.draws"], "__file__", str(root / "edited.py"))
    write_notebook(root, "a = 1", "b = 2", "c = 3")
    assert opened().todo == []
    assert "made by an earlier lib/draws.py, code cell 4;" in capsys.readouterr().out


def test_a_broken_record_stops_the_run_until_forced(root):
    save_all(opened())
    path = opened(force=True).path("EWN", 1)
    path.with_name("EWN-1.npz").write_bytes(b"")
    with pytest.raises(RecordError, match="EWN-1.npz is missing, truncated or altered.*git restore.*delete both"):
        opened()
    save_all(opened(force=True))
    assert opened().done == [(1, "EWN")]


def test_a_folder_that_cannot_be_written_stops_the_run_at_once(root, monkeypatch):
    (root / "file").write_text("")
    monkeypatch.setenv("PRUNING_RUNS", "file/runs")
    with pytest.raises(RecordError, match=f"cannot write {re.escape(str(root / 'file/runs/toy'))}.*PRUNING_RUNS"):
        opened()


def test_finished_records_open_where_nothing_can_be_written(root, monkeypatch):
    save_all(opened())
    monkeypatch.setattr(runs, "assert_writable", None)
    monkeypatch.setattr(runs, "acquire", None)
    assert opened().done == [(1, "EWN")]


# ---- locks


def is_free(path: Path) -> bool:
    """Return whether another process could compute the record `path` now."""
    try:
        with FileLock(path.parent / ".locks" / f"{path.name}.lock", blocking=False):
            return True
    except Timeout:
        return False


def test_a_cell_run_again_finds_its_own_locks(root):
    first = opened(type=["EWN", "SWN"])
    ewn, swn = root / "runs/toy/EWN-1", root / "runs/toy/SWN-1"
    assert not is_free(ewn) and not is_free(swn)
    again = opened(type=["EWN", "SWN"])
    again.save(type="EWN", seed=1, scores={})
    assert is_free(ewn) and not is_free(swn)
    first.save(type="SWN", seed=1, scores={})
    assert is_free(swn)


def test_other_parameters_free_what_is_no_longer_computed(root):
    opened(type=["EWN", "SWN"])
    opened(type=["no-WN", "SWN"])
    assert is_free(root / "runs/toy/EWN-1") and not is_free(root / "runs/toy/SWN-1")
    opened(type="SWN", force=True)
    assert is_free(root / "runs/toy/no-WN-1") and not is_free(root / "runs/toy/SWN-1")


def test_everybody_locks_in_one_order(root, monkeypatch):
    order = []
    monkeypatch.setattr(runs, "_claims", {})
    monkeypatch.setattr(runs, "acquire", lambda path: order.append(path.name))
    monkeypatch.setattr(runs, "release", lambda path: None)
    opened(seed=[5, 3, 4], type=["SWN", "no-WN", "EWN"])
    expected = ["EWN-3", "EWN-4", "EWN-5", "SWN-3", "SWN-4", "SWN-5", "no-WN-3", "no-WN-4", "no-WN-5"]
    assert order == expected


def test_a_lock_is_re_entrant(tmp_path):
    with disk.lock(tmp_path / "w"), disk.lock(tmp_path / "w"):
        assert not is_free(tmp_path / "w")
    assert is_free(tmp_path / "w")


OTHER = """import sys, pathlib
sys.path.insert(0, {home!r})
import lib.draws  # noqa: F401  (a module that can change a number)
import lib.records.runs as runs
runs.ROOT = pathlib.Path({root!r})
run = runs.open_run("toy", {defaults!r})
print("todo", run.todo, flush=True)
sys.stdin.readline()
for seed, type in run.todo:
    run.save(type=type, seed=seed, scores={{}})"""


@pytest.fixture
def other(root):
    """Return a function that starts another process, which opens `toy`, waits for a line, and saves."""
    script = OTHER.format(home=str(HOME), root=str(root), defaults=DEFAULTS)
    started = []

    def start():
        process = subprocess.Popen(
            [sys.executable, "-W", "error", "-c", script],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("notebook", ["", "notebooks/Übung.ipynb"])
def test_of_two_processes_on_one_record_the_second_waits_and_finds_it_done(other, monkeypatch, notebook):
    monkeypatch.setenv("JPY_SESSION_NAME", notebook)
    first = other()
    assert first.stdout.readline() == "todo [(1, 'EWN')]\n"
    second = other()
    of = re.escape(f" ({notebook})" if notebook else "")
    said = rf"waiting for EWN-1: process {first.pid} on \S+{of} has it until it saves it or is shut down\n"
    assert re.fullmatch(said, second.stdout.readline())
    first.communicate("save\n", timeout=20)
    assert second.communicate("\n", timeout=20)[0] == "already done: EWN-1\ntodo []\n"


@pytest.mark.skipif(os.name == "nt", reason="SIGKILL")
def test_a_lock_dies_with_its_owner(other):
    first = other()
    assert first.stdout.readline() == "todo [(1, 'EWN')]\n"
    second = other()
    assert second.stdout.readline().startswith("waiting for EWN-1")
    os.kill(first.pid, signal.SIGKILL)
    assert second.stdout.readline() == "todo [(1, 'EWN')]\n"


def test_the_library_of_records_starts_without_torch_and_pandas():
    script = "import sys, lib.records.runs; print([m for m in ('torch', 'pandas', 'matplotlib') if m in sys.modules])"
    start = time.perf_counter()
    answer = subprocess.run([sys.executable, "-c", script], cwd=HOME, capture_output=True, text=True, check=True)
    assert answer.stdout == "[]\n", time.perf_counter() - start
