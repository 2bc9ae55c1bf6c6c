"""The report: one page with everything in it, that asks for nothing beside it; in a browser: tests/test_browser.py."""

import base64
import dataclasses
import io
import re
import shutil
import warnings
from types import SimpleNamespace

import matplotlib.pyplot as plt
import nbformat
import numpy as np
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from PIL import Image

from lib import runs
from workflow import batch, report
from workflow.plan import executed

SOURCE = r"""<(?:script|img|link|iframe)[^>]*?\b(?:src|href)=["'](?!data:|#)[\w/.]"""
STYLE = r"""@import|\bimport\(["']|url\(["' ]*(?!data:|#)[\w/.]"""
LOADED = re.compile(f"{SOURCE}|{STYLE}")


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """A report of two summaries, of which one ended in an error, a gallery of one part, and the records of one toy."""
    root = tmp_path_factory.mktemp("report")
    shutil.copytree(runs.ROOT / "runs/xor", root / "runs/xor")
    plan = SimpleNamespace(
        summaries=["summary_one", "summary_two", "summary_three"], profile="cpu", report=root / "index.html",
        executions={"xor": SimpleNamespace(experiment="xor")},
    )  # fmt: skip
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("error")
        patch.setenv("PRUNING_RUNS", str(root / "runs"))
        patch.setenv("PRUNING_FIGURES", str(root / "figures"))
        _fill(root)
        assert report.write(plan) == root / "index.html"
    return (root / "index.html").read_text("utf-8")


def _fill(root):
    (root / "figures").mkdir()
    plt.figure().savefig(root / "figures/curve.png")
    plt.close("all")
    (root / "figures/one.md").write_text("## What one says\n\n**Is it?** Yes.\n\n![curve](curve.png)\n*A caption.*\n")
    drawn = io.BytesIO()
    plt.figure().savefig(drawn)
    plt.close("all")
    outputs = [
        new_output("stream", name="stderr", text="a progress bar"),
        new_output("stream", name="stdout", text="three runs"),
        new_output("display_data", {"text/markdown": "## the part again"}),
    ]
    cells = [new_markdown_cell("# How one was found\n\nWith $a_k < 1$:\n\n$$\\frac{a}{b} = \\lVert w \\rVert$$")]
    cells += [new_code_cell("secret = code", outputs=outputs), new_code_cell("silent = 1")]
    executed("summary_one").parent.mkdir(parents=True)
    nbformat.write(new_notebook(cells=cells), executed("summary_one"))
    failed = [new_code_cell("x", outputs=[new_output("error", ename="RecordError", evalue="none", traceback=[])])]
    nbformat.write(new_notebook(cells=failed), executed("summary_two"))


def test_nothing_is_loaded_from_elsewhere(page):
    assert LOADED.findall(page) == []
    assert "cdnjs" not in page and "unpkg.com" not in page.replace("www.unpkg.com/dt_for_itables/", "")


def test_the_tests_see_what_is_loaded():
    for seen in ('<script src="https://a/b.js">', "<img src='x.png'>", "@import 'x'", "url(https://x)", "import('x')"):
        assert LOADED.search(seen), seen
    assert not LOADED.search('<img src="data:image/png;base64,x"><a href="https://arxiv.org">url(data:x)')


def test_the_gallery_comes_first_with_its_figures(page):
    assert (
        page.index("What one says</a>")
        < page.index('id="one"')
        < page.index('id="summary_one"')
        < page.index('id="records"')
    )
    assert re.search(r'<img[^>]*src="data:[^>]*alt="curve"|alt="curve"[^>]*src="data:', page)


def test_figures_lose_no_pixel_and_get_smaller(page):
    figure = io.BytesIO()
    plt.figure().savefig(figure)
    plt.close("all")
    (packed,) = re.findall('src="data:image/webp;base64,([^"]*)"', page)
    packed = base64.b64decode(packed)
    found, expected = (np.asarray(Image.open(io.BytesIO(one)).convert("RGBA")) for one in (packed, figure.getvalue()))
    assert np.array_equal(found, expected) and len(packed) < len(figure.getvalue()) and "image/png" not in page


def test_summaries_are_there_without_code_and_noise(page):
    assert "How one was found" in page and "three runs" in page
    for left_out in ("a progress bar", "secret = code", "silent = 1", "the part again"):
        assert left_out not in page
    assert re.search("Not here, because [^<]*: summary_two, summary_three", page)


def test_equations_are_drawn_by_the_browser_itself(page):
    assert page.count("<math") == 2 and 'display="block"' in page and "<mfrac>" in page and "\\frac" not in page


def test_all_records_are_in_the_table(page, monkeypatch):
    found = runs.records("xor")
    assert len(found) == len(re.findall(r'\[\\"xor\\", ', page)) > 0
    scores = found[0].scores
    name = next(name for name, value in scores.items() if isinstance(value, float))
    assert f"{name} {scores[name]:.4g}" in page


def test_a_run_without_seconds_of_training_has_those_of_its_execution():
    given = {"started": "2026-01-01T10:00:00+00:00", "finished": "2026-01-01T10:01:30+00:00", "seconds": None}
    record = runs.records("xor")[0]
    assert report._row(dataclasses.replace(record, provenance=given))[-2:] == [90.0, "2026-01-01"]
    assert report._row(dataclasses.replace(record, provenance=given | {"seconds": 7.04}))[-2] == 7.0


@pytest.mark.parametrize("path", sorted((runs.ROOT / "notebooks").glob("*.ipynb")), ids=lambda path: path.stem)
def test_every_equation_of_a_notebook_becomes_mathml(path):
    """Without a command that was not understood, which would stand there as text."""
    renderer = report._Renderer(escape=False)
    for cell in nbformat.read(path, as_version=4).cells:
        if cell.cell_type == "markdown":
            made = report.MarkdownWithMath(renderer=renderer).render(cell.source)
            for equation in re.findall("<math.*?</math>", made, re.DOTALL):
                assert "\\" not in equation and "merror" not in equation, equation


def test_a_report_that_cannot_be_written_is_told_in_a_sentence(tmp_path, monkeypatch):
    for name in ("RUNS", "FIGURES"):
        monkeypatch.setenv(f"PRUNING_{name}", str(tmp_path))
    monkeypatch.setenv("PRUNING_REPORT", "/dev/null/nowhere")
    with pytest.raises(SystemExit, match="no report was written: .*/dev/null/nowhere.*PRUNING_REPORT=FOLDER"):
        batch.reported("quick", "report")
