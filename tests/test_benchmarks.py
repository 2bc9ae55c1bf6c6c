"""The benchmarks' table: ratios by rounds, files that name the machine, failures that are told."""

import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[1] / "benchmarks"


@pytest.fixture
def modules(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    # `all` would shadow nothing, but is no name to leave in a table that all tests share.
    found = importlib.import_module("measure"), importlib.import_module("all")
    yield found
    for name in ("measure", "all"):
        del sys.modules[name]


def filled(measure, folder, monkeypatch):
    monkeypatch.setenv(measure.FOLDER, str(folder))
    report = measure.Report("hare", "a race")
    assert report.add("tortoise", [2.0, 9.0, 4.0], flops=measure.ceiling(1) * 1.0) is None
    ratio = report.add("hare", [1.0, 3.0, 1.0], "tortoise")
    report.close(ratio)
    return json.loads((folder / "hare.json").read_text())


def test_a_ratio_is_the_median_of_the_ratios_of_the_rounds(modules, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(modules[0], "ceiling", lambda threads: 5.0)
    table = filled(modules[0], tmp_path, monkeypatch)
    assert table["ratio"] == 3.0  # 2, 3 and 4, where the medians 4 and 1 would give 4
    assert [row["ratio"] for row in table["rows"]] == [None, 3.0]
    assert table["rows"][0]["share_of_ceiling"] == pytest.approx(5.0 / 4 / 5)
    assert capsys.readouterr().out.splitlines()[-1] == "hare: 3.0x"


def test_the_page_has_every_row_and_names_the_machine(modules, tmp_path, monkeypatch):
    monkeypatch.setattr(modules[0], "ceiling", lambda threads: 5.0)
    table = filled(modules[0], tmp_path, monkeypatch)
    page = modules[1].text({"hare": table})
    assert "## hare: 3×" in page and modules[0].machine()["device"] in page
    assert "| hare | 1 s | 1 s | 3 s | 3 | tortoise | 3× |  |" in page
    assert "| tortoise | 4 s | 2 s | 9 s | 3 |  |  | 25 % |" in page


def test_nothing_is_saved_unasked(modules, tmp_path, monkeypatch):
    monkeypatch.delenv(modules[0].FOLDER, raising=False)
    monkeypatch.chdir(tmp_path)
    modules[0].Report("hare", "a race").close(1.0)
    assert not list(tmp_path.iterdir())


def test_a_benchmark_that_fails_is_told_and_the_others_are_kept(modules, tmp_path, monkeypatch):
    everything = modules[1]
    (tmp_path / "good.py").write_text(
        f"import sys; sys.path.insert(0, {str(FOLDER)!r})\nimport measure\nmeasure.Report('good', 'x').close(2.0)\n"
    )
    (tmp_path / "bad.py").write_text("raise SystemExit(3)\n")
    monkeypatch.setattr(everything, "HERE", tmp_path)
    with pytest.raises(SystemExit, match="failed: bad"):
        everything.main([])
    (saved,) = (tmp_path / "results").glob("*.json")
    assert list(json.loads(saved.read_text())) == ["good"]
    with pytest.raises(SystemExit, match="no benchmark is called worse; there are bad, good"):
        everything.main(["worse"])


def test_every_benchmark_says_how_it_is_run():
    for path in FOLDER.glob("*.py"):
        if path.stem != "measure":
            assert f"Run: python benchmarks/{path.name}" in path.read_text("utf-8"), path.name


def test_a_benchmark_runs_to_its_last_line(tmp_path):
    done = subprocess.run(
        [sys.executable, str(FOLDER / "toy_stack.py"), "1", "2"],
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
    )
    assert done.stdout.splitlines()[-1].startswith("toy_stack: ")
