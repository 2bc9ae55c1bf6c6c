"""No result is typed by hand: README, gallery and its parts are what the summaries make of the committed records."""

import re
import shutil
import subprocess
from pathlib import Path

import matplotlib.pyplot as plt
import pytest
from matplotlib.figure import Figure

from lib import gallery
from tests.test_summaries import SUMMARIES, summarised
from workflow.plan import Plan

ROOT = gallery.README.parent
RESULTS = re.compile(r"<!-- results of [\w ]+ -->\n.*?<!-- end -->", re.DOTALL)


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """Return a folder of links to the records that git keeps."""
    if not (ROOT / ".git").exists() or shutil.which("git") is None:
        pytest.skip("without git nobody knows which records are committed")
    found = subprocess.run(["git", "ls-files", "-z", "runs"], cwd=ROOT, capture_output=True, check=True).stdout
    folder = tmp_path_factory.mktemp("committed")
    for name in found.decode().split("\0"):
        if name and (ROOT / name).exists():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).symlink_to(ROOT / name)
    return folder / "runs"


@pytest.fixture
def committed(kept, monkeypatch, tmp_path):
    """The records that git keeps, and figures that are drawn but not painted."""
    monkeypatch.setenv("PRUNING_RUNS", str(kept))
    monkeypatch.setenv("PRUNING_FIGURES", str(tmp_path / "figures"))
    monkeypatch.setattr(Figure, "savefig", lambda figure, path, **_: Path(path).touch())
    yield tmp_path / "figures"
    plt.close("all")


@pytest.mark.parametrize("summary", SUMMARIES)
def test_a_part_of_the_gallery_is_what_its_summary_makes_of_the_records(summary, committed):
    study = summary.removeprefix("summary_")
    summarised(summary)
    made = (committed / f"{study}.md").read_text("utf-8")
    assert made == (ROOT / f"figures/{study}.md").read_text("utf-8"), f"papermill notebooks/{summary}.ipynb writes it"
    drawn = {path.stem for path in committed.glob("*.png")}
    assert set(re.findall(r"!\[(\w+)\]\(\1\.png\)", made)) == drawn, "the gallery shows every figure, once"


def test_the_cpu_profile_lists_what_has_a_record_and_nothing_else(committed):
    plan = Plan("cpu")
    assert [f"{one.experiment}: {one.missing()}" for one in plan.due] == []


@pytest.mark.parametrize("path, told", [(gallery.GALLERY, gallery.section), (gallery.README, gallery.rows)])
def test_the_gallery_and_the_readme_hold_the_parts(path, told):
    text = path.read_text("utf-8")
    assert RESULTS.search(text) and gallery.included(text, told) == text, "python -m lib.figures.gallery puts them in"


@pytest.mark.parametrize("path", [gallery.GALLERY, gallery.README])
def test_there_is_no_result_outside_of_the_markers(path):
    """A percentage, a mean with its spread, an effect with its interval."""
    assert re.findall(r".*(?:\d ?%|± ?\d|\d to \d|n = \d).*", RESULTS.sub("", path.read_text("utf-8"))) == []


def test_every_summary_has_a_place_and_no_figure_is_left_over():
    text = gallery.GALLERY.read_text("utf-8")
    shown = set(re.findall(r"\]\((\w+)\.png\)", text))
    assert set(re.findall(r'<a id="(\w+)">', text)) == {"cost", *(name.removeprefix("summary_") for name in SUMMARIES)}
    assert shown == {path.stem for path in gallery.GALLERY.parent.glob("*.png")}
    assert shown == {path.stem for path in gallery.GALLERY.parent.glob("*.pdf")}
    assert shown - {"cost_of_runs"} <= set().union(*SUMMARIES.values()), "`./run_all.sh figures/NAME.png` makes it"


def test_the_readme_is_one_screen():
    text = gallery.README.read_text("utf-8")
    assert len(text.splitlines()) <= 90 and len(text.encode()) <= 6 * 1024
