"""JupyterLab and the report in a browser, as a person uses them: only on request, `./run_tests.sh -m browser`.

It needs Chromium (Debian: apt install chromium) and its client (pip install playwright); without them it is skipped.
Screenshots are left in the folder that the environment variable PRUNING_SCREENSHOTS names, if it does.
"""

import importlib.util
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path
from urllib.request import urlopen

import pytest
from test_report import page  # noqa: F401  (a fixture)

from lib import runs

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
LACKS = [
    what
    for what, there in (("Chromium", CHROMIUM), ("playwright", importlib.util.find_spec("playwright")))
    if not there
]
pytestmark = [pytest.mark.browser, pytest.mark.skipif(bool(LACKS), reason=f"{' and '.join(LACKS)} not installed")]
NAME = "EWN-9192;dataset=digits;levels=-1;width=16"
FIGURE = ".jp-RenderedImage img"  # JupyterLab leaves out the text that stands for an image
PATIENCE = 240_000  # ms: a kernel that imports torch beside other work
SMALL = {'"mnist"': '"digits"', "width: int = 1024": "width: int = 16", "list = [-10]": "list = [-1]"}


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as client:
        yield client.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])


@pytest.fixture
def tab(browser):
    """A tab that keeps in `wrong` what its console complains of, and in `asked` what it loads from elsewhere."""
    found = browser.new_page(viewport={"width": 1400, "height": 1000})
    found.set_default_timeout(PATIENCE)
    found.wrong, found.asked = [], []
    found.on("console", lambda said: found.wrong.append(said.text) if said.type == "error" else None)
    found.on("pageerror", lambda error: found.wrong.append(str(error)))
    found.on("request", lambda one: found.asked.append(one.url))
    yield found
    found.close()


def keep(tab, name):
    if folder := os.environ.get("PRUNING_SCREENSHOTS"):
        tab.screenshot(path=Path(folder, f"{name}.png"))


def test_the_report_has_every_image_and_no_complaint(tab, page, tmp_path):  # noqa: F811
    (tmp_path / "index.html").write_text(page, "utf-8")
    tab.goto(f"file://{tmp_path}/index.html")
    tab.wait_for_selector("#all_records_wrapper")
    assert tab.evaluate("[...document.images].map(image => image.complete && image.naturalWidth > 0)") == [True]
    assert tab.evaluate(
        "[...document.querySelectorAll('math')].map(one => one.getBoundingClientRect().height > 5)"
    ) == [
        True,
        True,
    ]
    assert tab.evaluate("all_records.scrollWidth <= document.querySelector('main').clientWidth")
    before = tab.locator("#all_records tbody tr").count()
    tab.locator("input[type=search]").fill("SWN")
    tab.wait_for_function(f"document.querySelectorAll('#all_records tbody tr').length < {before}")
    assert "SWN" in tab.locator("#all_records tbody").inner_text()
    keep(tab, "report")
    assert tab.wrong == [] and [url for url in tab.asked if not url.startswith(("file:", "data:", "blob:"))] == []


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """JupyterLab over a copy of the notebooks, small ones on digits, and of the library: its address and folder."""
    root, port = tmp_path_factory.mktemp("lab"), free_port()
    for folder in ("lib", "notebooks"):
        shutil.copytree(runs.ROOT / folder, root / folder, ignore=shutil.ignore_patterns("__pycache__"))
    notebook = root / "notebooks/mnist_prune.ipynb"
    text = notebook.read_text("utf-8")
    for old, new in SMALL.items():
        old, new = (each.replace('"', '\\"') for each in (old, new))
        assert text.count(old) >= 1, old
        text = text.replace(old, new, 1)
    notebook.write_text(text, "utf-8")
    command = [sys.executable, "-m", "jupyter", "lab", "--no-browser", "--allow-root", f"--port={port}"]
    command += ["--IdentityProvider.token=", "--ServerApp.open_browser=False", "--ServerApp.port_retries=0"]
    home = {"HOME": str(root), "JUPYTER_CONFIG_DIR": str(root / "config"), "OMP_NUM_THREADS": "1"}
    outside = {
        key: value for key, value in os.environ.items() if key not in ("PRUNING_RUNS", "PRUNING_FIGURES", "MPLBACKEND")
    }
    server = subprocess.Popen(
        command, cwd=root, env=outside | home, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        wait_for(port, server)
        yield f"http://localhost:{port}/lab/tree/notebooks", root
    finally:
        server.terminate()
        server.wait(30)


def free_port():
    with socket.socket() as one:
        one.bind(("localhost", 0))
        return one.getsockname()[1]


def wait_for(port, server):
    limit = time.monotonic() + PATIENCE / 1000
    while server.poll() is None and time.monotonic() < limit:
        try:
            return urlopen(f"http://localhost:{port}/api", timeout=5)
        except OSError:
            time.sleep(0.5)
    raise AssertionError("JupyterLab did not start")


def run_all(tab, address):
    """Open a notebook and, once its kernel has started, run all of its cells by the menu."""
    tab.goto(address)
    tab.locator(".jp-NotebookPanel .jp-CodeCell").first.wait_for()
    tab.locator("#jp-main-statusbar", has_text="Idle").wait_for()  # before that the menu runs nothing
    tab.locator("#jp-MainMenu >> text=Run").first.click()
    tab.locator(".lm-Menu-itemLabel", has_text=re.compile("^Run All Cells$")).click()


def errors(tab):
    """Return what cells complained of."""
    return tab.locator("[data-mime-type$='jupyter.error'], [data-mime-type$='stderr']").all_inner_texts()


def test_mnist_prune_runs_by_run_all(tab, lab):
    address, root = lab
    run_all(tab, f"{address}/mnist_prune.ipynb?reset")
    tab.locator(".jp-RenderedImage img, [data-mime-type$='jupyter.error']").first.wait_for()
    tab.locator(".jp-NotebookPanel .jp-Cell").last.scroll_into_view_if_needed()
    keep(tab, "mnist_prune")
    assert errors(tab) == []
    assert [path.stem for path in root.glob("runs/mnist_prune/*.json")] == [NAME]


def test_the_explorers_slider_changes_the_numbers(tab, lab):
    address, root = lab
    run_all(tab, f"{address}/explore.ipynb?reset")
    figure = tab.locator(FIGURE)
    figure.scroll_into_view_if_needed()
    tab.locator("button[class*='explorer-']").first.wait_for()
    keep(tab, "explore")
    assert figure.bounding_box()["width"] > 0.9 * tab.locator(".jp-OutputArea-output").first.bounding_box()["width"]
    before, drawn = cell(tab, "sparsity, true"), figure.get_attribute("src")
    slider = tab.locator(".widget-hslider [role=slider], .widget-slider .noUi-handle").first
    slider.scroll_into_view_if_needed()
    slider.focus()
    for _ in range(4):
        slider.press("ArrowRight")
    tab.wait_for_function("([img, old]) => document.querySelector(img).src !== old", arg=[FIGURE, drawn])
    tab.wait_for_timeout(3000)
    keep(tab, "explore_moved")
    assert cell(tab, "sparsity, asked")[1] == "70.0 %" and cell(tab, "sparsity, true") != before
    unit, drawn = tab.locator("button[class*='explorer-']").first, figure.get_attribute("src")
    unit.scroll_into_view_if_needed()
    unit.click()
    tab.wait_for_function("([img, old]) => document.querySelector(img).src !== old", arg=[FIGURE, drawn])
    keep(tab, "explore_clicked")
    assert "rgb(238, 102, 119) solid 2px" in unit.evaluate("one => getComputedStyle(one).outline")
    assert errors(tab) == [] and not list(root.glob("runs/explore*"))


def cell(tab, name):
    """Return the numbers of a row of the explorer's table."""
    row = tab.locator("tr", has=tab.locator("th", has_text=name)).first
    return row.locator("td").all_inner_texts()
