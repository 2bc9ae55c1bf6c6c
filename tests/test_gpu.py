"""`benchmarks/gpu.sh` in a folder of its own, with programs that answer for Python: order, time, what is kept."""

import importlib
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml
from test_door import opened

ROOT = Path(__file__).resolve().parents[1]
PYTHON = """#!/usr/bin/env bash
echo "python $*" >>calls
case "$*" in
*get_device_name*) cat card ;;
*requirements.txt*) ;;
*pytest*) echo "tests/test_cuda.py::a[b, c] PASSED [ 1%]"; echo "3 passed"; exec sleep "$(cat tests-take)" ;;
*all.py*) echo "== ${*: -1}"; [ "${*: -1}" != dpp-fails ] ;;
esac
"""
RUNS = {"bin/papermill": "papermill", "run_all.sh": "all"}


@pytest.fixture
def folder(tmp_path):
    """A repository of stand-ins in which all programs end at once."""
    for name in ("benchmarks", "lib", "tests", "bin", "workflow/bin"):
        (tmp_path / name).mkdir(parents=True)
    shutil.copy(ROOT / "benchmarks" / "gpu.sh", tmp_path / "benchmarks")
    texts = {"env.sh": "PATH=$PWD/bin:$PATH", "card": "NVIDIA-H100-80GB", "tests-take": "0", "bin/python": PYTHON}
    texts |= {name: f'#!/bin/sh\necho "{word} $*" >>calls\n' for name, word in RUNS.items()}
    for name, text in texts.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    return tmp_path


def call(folder, *given, **more):
    done = subprocess.run(["bash", "benchmarks/gpu.sh", *given], cwd=folder, capture_output=True, text=True,
                          env=os.environ | {"PYTHONPATH": ""} | more)  # fmt: skip
    return done, (folder / "calls").read_text().splitlines()


def test_tests_come_first_then_tables_then_runs_and_results_bear_the_cards_name(folder):
    done, calls = call(folder)
    assert done.returncode == 0, done.stderr
    order = [kind for line in calls for kind in ("pytest", "all.py", "papermill", "all notebooks") if kind in line]
    assert order == ["pytest"] + ["all.py"] * 11 + ["papermill"] * 24 + ["all notebooks"] * 3
    tables = [line.split()[-1] for line in calls if "all.py" in line]
    assert tables[:2] == ["kernels", "captured_steps"], "what decides defaults"
    kept = {path.name: path.read_text() for path in (folder / "benchmarks" / "results").iterdir()}
    assert set(kept) == {f"NVIDIA-H100-80GB-{part}.txt" for part in ("tests", "tables", "runs")}
    assert kept["NVIDIA-H100-80GB-tables.txt"].split() == [word for name in tables for word in ("==", name)]
    assert "3 passed" in kept["NVIDIA-H100-80GB-tests.txt"] and kept["NVIDIA-H100-80GB-runs.txt"].count("done:") == 27
    assert "3 passed" in done.stdout and "== kernels" in done.stdout, "each part prints as it goes"
    assert_opened(calls)


def assert_opened(calls):
    """Every run that papermill is given is one that its notebook opens."""
    given = [re.fullmatch(r"papermill notebooks/(.*)\.ipynb -y (.*)", line) for line in calls if "papermill" in line]
    for experiment, parameters in {match.groups() for match in given}:
        assert opened(experiment, **yaml.safe_load(parameters))["run"].todo


def test_a_stand_in_is_given_all_of_it_at_small_size(folder):
    done, calls = call(folder, "runs", PRUNING_CARD="stand-in")
    assert done.returncode == 0, done.stderr
    made = [line for line in calls if line.startswith("papermill")]
    assert len(made) == 8 and all("dataset: digits" in line for line in made)
    assert_opened(calls)
    assert [line for line in calls if line.startswith("all")] == [
        f"all --quick notebooks/{name}.ipynb" for name in ("weight_vs_neuron", "train_time_prune", "mnist_prune")
    ]


def test_tests_that_came_to_their_end_are_not_run_again_until_a_file_changes(folder):
    call(folder, "tests")
    _, calls = call(folder, "tests")
    assert sum("pytest" in line for line in calls) == 1
    (folder / "lib" / "new.py").write_text("x = 1")
    _, calls = call(folder, "tests")
    assert sum("pytest" in line for line in calls) == 2


def test_what_is_cut_is_gone_on_with(folder):
    """Six seconds are all there is, the tests take them, and the next call takes them up again."""
    (folder / "tests-take").write_text("100")
    script = folder / "benchmarks" / "gpu.sh"
    script.write_text(script.read_text().replace("end=$((60 * minutes))", "end=6"))
    done, calls = call(folder)
    assert done.returncode == 1 and not any("papermill" in line for line in calls)
    text = (folder / "benchmarks" / "results" / "NVIDIA-H100-80GB-tests.txt").read_text()
    assert "3 passed" in text and "status 124" in text
    (folder / "tests-take").write_text("0")
    done, calls = call(folder)
    first, second = (line for line in calls if "pytest" in line)
    assert second == f"{first} --deselect=tests/test_cuda.py::a[b, c]", "what passed is not asked again"


def test_what_the_machine_lacks_is_told_first_and_the_tables_then_have_all_the_time(folder):
    text = PYTHON.replace("*requirements.txt*) ;;", '*requirements.txt*) echo "papermill " ;;')
    (folder / "bin/python").write_text(text.replace("*pytest*)", '*sets.load*) echo "no mnist" ;;\n*pytest*)'))
    script = folder / "benchmarks" / "gpu.sh"
    script.write_text(script.read_text().replace("SECONDS * 3", "end * 3"))  # two thirds of the time are over
    done, calls = call(folder)
    assert done.returncode == 1 and done.stderr.index("the runs need papermill") < done.stderr.index("no mnist")
    assert sum("all.py" in line for line in calls) == 11 and not any("papermill" in line for line in calls)


def test_where_only_python3_has_torch_that_is_taken(folder):
    (folder / "env.sh").write_text("PATH=$PWD/bin:$PATH; false")
    (folder / "bin/python").rename(folder / "bin/python3")
    (folder / "bin/python").write_text("#!/bin/sh\nexit 1\n")
    (folder / "bin/python").chmod(0o755)
    done, calls = call(folder, "tests")
    assert done.returncode == 0 and "3 passed" in done.stdout and "as it is" in done.stderr
    assert any("pytest" in line for line in calls)


def test_without_a_card_and_for_an_unknown_part_it_says_what_to_do(folder):
    (folder / "card").write_text("")
    done, _ = call(folder)
    assert done.returncode == 1 and "torch sees no CUDA GPU here" in done.stderr
    done, _ = call(folder, "test")
    assert done.returncode == 2 and "allowed are tests, tables, runs and all" in done.stderr


def test_its_tables_exist(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    names = importlib.import_module("all").names()
    text = (ROOT / "benchmarks" / "gpu.sh").read_text()
    asked = re.search(r"for table in (.*?); do", text.replace("\\\n", " "), re.DOTALL)[1].split()
    pieces = [name for word in asked for name in expanded(word)]
    assert set(pieces) <= set(names) and len(pieces) == 11


def expanded(word):
    """Return what bash makes of a word with braces."""
    found = re.fullmatch(r"(.*)\{(.*)\}", word)
    return [found[1] + end for end in found[2].split(",")] if found else [word]
