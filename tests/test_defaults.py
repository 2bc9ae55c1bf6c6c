"""What a record's name means hangs on no edit of a notebook, and what cannot change a number makes no record stale."""

import json
import shutil
import subprocess

import pytest

import lib.draws  # noqa: F401  (a module that can change a number)
from lib import parameters, provenance, runs, store, tables
from lib.errors import RecordError
from tests.test_open_run import DEFAULTS, PARAMETERS, opened, save_all, write_notebook
from workflow.freeze import experiments, freeze

NOTEBOOKS = runs.ROOT / "notebooks"
EXPERIMENTS = experiments(NOTEBOOKS)
DECLARED = {path.stem: runs.declared(path.stem) for path in EXPERIMENTS}


@pytest.fixture
def root(tmp_path, monkeypatch):
    """Return a repository in git with one notebook, `toy`, whose defaults are frozen."""
    monkeypatch.setattr(runs, "ROOT", tmp_path)
    monkeypatch.delenv("PRUNING_RUNS", raising=False)
    write_notebook(tmp_path, "a = 1", "b = 2")
    freeze(tmp_path / "notebooks")
    (tmp_path / "lib").mkdir()
    shutil.copy(NOTEBOOKS.parent / "lib/draws.py", tmp_path / "lib")
    git(tmp_path, "init", "-q")
    commit(tmp_path)
    return tmp_path


def git(root, *arguments):
    subprocess.run(["git", "-C", root, *arguments], check=True, capture_output=True)


def commit(root):
    git(root, "add", "-A")
    git(root, "-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "all")


@pytest.mark.parametrize("notebook", EXPERIMENTS, ids=lambda path: path.stem)
def test_the_cells_have_the_frozen_defaults(notebook):
    """Where they differ: put the cell back, or for something new run `python -m workflow.freeze`."""
    assert parameters.frozen(notebook) == parameters.in_cell(notebook)


def test_freezing_adds_and_changes_nothing(root):
    write_notebook(root, parameters=PARAMETERS.replace("0.1", "0.2") + "extra: int = 3\n")
    path = freeze(root / "notebooks")
    assert json.loads(path.read_text()) == {"toy": DEFAULTS | {"extra": 3}}


@pytest.mark.parametrize("saved", [True, False])
def test_an_edited_cell_gives_another_name(root, saved):
    """Whether or not JupyterLab has saved the file; and with papermill, whose values come after the cell's."""
    save_all(opened())
    if saved:
        write_notebook(root, "a = 1", "b = 2", parameters=PARAMETERS.replace("epochs: int = 5", "epochs: int = 3"))
    run = opened(epochs=3)
    assert run.todo == [(1, "EWN")] and run.path("EWN", 1).name == "EWN-1;epochs=3.json"
    assert opened(epochs=5).done == [(1, "EWN")], "what the name without epochs has always meant"
    assert runs.missing("toy", {}) == [] and runs.missing("toy", {"epochs": 3}) == [(1, "EWN")]


def test_a_parameter_that_came_later_has_its_default_in_older_records(root):
    save_all(opened())
    write_notebook(root, "a = 1", "b = 2", parameters=PARAMETERS + "extra: int = 3\n")
    freeze(root / "notebooks")
    for seed, extra in ((2, 3), (3, 4)):
        save_all(runs.open_run("toy", DEFAULTS | {"seed": seed, "extra": extra}, type=["EWN"], dataset=["mnist"]))
    assert [record.seed for record in runs.records("toy", extra=3)] == [1, 2]
    assert [record.seed for record in runs.records("toy", extra=4)] == [3]
    assert tables.largest_group("toy")["extra"] == 3, "the first two are of one group"


def test_an_edited_kind_is_refused(root):
    write_notebook(root, parameters=PARAMETERS.replace("epochs: int = 5", 'epochs: str = "many"'))
    with pytest.raises(runs.ParameterError, match="epochs = 'many' is of kind str; epochs is of kind int"):
        opened(epochs="many")


def test_a_record_that_git_keeps_is_never_to_be_forced(root, capsys):
    save_all(opened())
    commit(root)
    write_notebook(root, "a = 1", "b = 3")
    assert opened().done == [(1, "EWN")]
    note = "already done: EWN-1 (made by an earlier code cell 3; PRUNING_RUNS=FOLDER makes it elsewhere)\n"
    assert capsys.readouterr().out == note
    defaults = root / "notebooks/defaults.json"
    defaults.write_text(defaults.read_text().replace("0.1", "0.2"))
    with pytest.raises(RecordError, match="lr was 0.1, is 0.2. Put notebooks/defaults.json back") as error:
        opened(lr=0.2)
    assert "force" not in str(error.value) and "PRUNING_RUNS" in str(error.value)


def test_a_clone_calls_nothing_stale(root, capsys, monkeypatch):
    """Its records are of other code than lies beside them, by their checksums; that is the repository's own affair."""
    save_all(opened())
    made = subprocess.run(["git", "-C", root, "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout
    write_notebook(root, "a = 1", "b = 3", "c = 4")
    commit(root)
    assert opened().done == [(1, "EWN")]
    assert capsys.readouterr().out == f"already done: EWN-1 (of commit {made[:7]})\n"
    file = root / "lib/draws.py"
    monkeypatch.setattr("lib.draws.__file__", str(file))
    file.write_text("# a comment\n" + file.read_text())
    opened()
    assert capsys.readouterr().out == f"already done: EWN-1 (of commit {made[:7]})\n"
    file.write_text(file.read_text() + "\nKEY_BYTES = 8\n")
    opened()
    assert "made by an earlier lib/draws.py; PRUNING_RUNS" in capsys.readouterr().out


def test_what_cannot_change_a_number_is_not_compared(root):
    assert not {key for key in provenance.texts(root / "notebooks/toy.ipynb") if provenance.APART.fullmatch(key)}
    assert provenance.edited({"lib/figures/drawing.py": "0" * 16, "lib/records/store.py": "1" * 16}, {}) == []


SOURCE = '''
"""What it is."""
import os


def area(r):
    """Return it."""
    text = f"{r} {{x}}"  # a reason
    return ("doc",
            3.14 * r)
'''


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("# a reason", ""),
        ("# a reason", "# another"),
        ('"""What it is."""\n', ""),
        ('    """Return it."""\n', ""),
        ("Return it.", "Return that."),
        ("import os\n\n\n", "import os\n"),
        ('"doc",\n            3.14', '"doc", 3.14'),
    ],
)
def test_comments_docstrings_and_layout_are_no_edit(old, new):
    edited = SOURCE.replace(old, new)
    assert edited != SOURCE and provenance._checksum(edited) == provenance._checksum(SOURCE)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"doc"', '"dog"'),
        ("3.14", "3.2"),
        ("    return", "        return"),
        ("{r} ", "{r}"),
        ("import os", "import sys"),
    ],
)
def test_what_does_something_is_an_edit(old, new):
    assert provenance._checksum(SOURCE.replace(old, new)) != provenance._checksum(SOURCE)


def test_a_cell_that_is_no_python_has_a_checksum_too():
    assert provenance._checksum("f(") != provenance._checksum("f((")
    assert provenance._checksum("%matplotlib inline") == provenance._checksum("%matplotlib inline")


def test_no_committed_record_is_orphaned():
    """Its name is what its notebook makes of its parameters, whatever was taken out since."""
    folders = [folder for folder in sorted((runs.ROOT / "runs").glob("*/")) if folder.name in DECLARED]
    found = [json.loads(path.read_text("utf-8")) for folder in folders for path in store.files(folder)]
    assert len(found) > 700
    for document in found:
        defaults = DECLARED[document["experiment"]]
        known = {name: value for name, value in document["parameters"].items() if name in defaults}
        assert runs.record_name(document["type"], document["seed"], known, defaults) == document["name"]
