"""Some faults of each kind on two notebooks, of which nothing is lost; `benchmarks/faults.py` is the whole campaign."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

FOLDER = Path(__file__).resolve().parents[1] / "benchmarks"
pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")

# In one process, as most of the time is what it imports: the small campaign, then one of a library that is broken.
CAMPAIGNS = """import json, sys
import faults
from pathlib import Path
from lib import disk

print("status", faults.main(["--small"]))
notebook = "dpp_teacher_student"
campaign = faults.Campaign(Path(sys.argv[1]), [notebook], 1, 1, 8)
(notebook,) = campaign.notebooks
write = lambda: iter([(notebook, notebook.steps.index("write trained network"))])
spared = ("flipped bit: network as plain modules", "disk of limited size, in memory")
campaign.each_step, campaign.small_disk = write, lambda *given: None

def counted(kind, module, name, broken):
    whole = getattr(module, name)
    setattr(module, name, broken)
    campaign.rows.clear()
    getattr(campaign, kind)()
    setattr(module, name, whole)
    print(kind, *((row.tried, row.lost, row.silent) for row in campaign.rows.values() if row.what not in spared))

def believe(path):
    with disk.safetensors.safe_open(path, framework="np") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, json.loads(file.metadata()["meta"])

counted("steps", disk, "new", lambda path: path)  # written where it stands
counted("disks", disk, "writing", lambda path, *others: open("/dev/null"))  # the error as it comes, what is left stays
counted("flips", disk, "load_tensors", believe)
notebook.expected = {name: {**of, "array error": of["array error"] + 1e-7} for name, of in notebook.expected.items()}
counted("processes", disk, "new", disk.new)
"""


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """Return the ended process of the campaigns."""
    command = [sys.executable, "-c", CAMPAIGNS, tmp_path_factory.mktemp("broken")]
    environment = os.environ | {"PYTHONPATH": str(FOLDER)}
    return subprocess.run(command, capture_output=True, text=True, timeout=600, env=environment)


def test_nothing_is_lost(done):
    lines = done.stdout.split("status ")[0].splitlines()
    tried, survived, lost, silent = map(int, re.findall(r"\d+", lines[-1]))
    assert lines[-1] == f"faults: {tried} tried, {survived} survived, 0 lost, 0 silent", done.stderr
    assert tried == survived >= 25 and "\nstatus 0\n" in done.stdout
    rows = [line for line in lines if line.startswith("| ")]
    assert all("| 0 |" in row for row in rows[2:]), "no difference"


def test_the_campaign_sees_what_is_lost(done):
    """A library that writes in place, tells no full disk, compares no digest; and a difference in the last bit."""
    assert done.returncode == 0, done.stderr
    steps, disks, flips, processes = done.stdout.splitlines()[-4:]
    assert steps == "steps (1, 1, 0)" and processes == "processes (1, 1, 0) (1, 1, 0)"
    assert disks == "disks (1, 0, 1)"
    tried, _, silent = map(int, re.findall(r"\d+", flips))
    assert silent > tried / 2, "what is in the header is noticed without a digest"


def test_one_bit_is_a_difference():
    sys.path.insert(0, str(FOLDER))
    from smallest import difference

    whole = {"a": np.array([1.0, np.nan]), "n": 3, "text": "x", "none": None}
    assert difference(dict(whole), whole) == 0.0
    assert difference(whole | {"a": np.array([1.0 + 2**-52, np.nan])}, whole) == 2**-52
    for other in ({"a": np.array([np.nan, 1.0])}, {"text": "y"}, {"n": None}, {"more": 1}, {"a": np.ones(3)}):
        assert difference(whole | other, whole) == np.inf
