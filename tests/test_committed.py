"""The committed records and the profile that made them: all that it lists is there, and nothing else is."""

import subprocess
from pathlib import Path

import pandas as pd
import pytest
import yaml

from lib import runs
from lib.records import parameters
from workflow import plan

ENTRIES = yaml.safe_load((plan.ROOT / "workflow/experiments.yaml").read_text())["profiles"]["cpu"]["experiments"]


def listed(execution):
    """Return the names of the records that an execution makes."""
    defaults = runs.declared(execution.experiment)
    given = parameters.checked(execution.parameters, defaults)
    pairs = parameters.pairs(given)
    return {parameters.record_name(type, seed, given, defaults) for seed, type in pairs}


def committed(experiment):
    call = ["git", "ls-files", "-z", f"runs/{experiment}"]
    found = subprocess.run(call, cwd=plan.ROOT, capture_output=True, text=True)
    if found.returncode:
        pytest.skip("without git nobody knows which records are committed")
    return {Path(path).stem for path in found.stdout.split("\0") if path.endswith(".json")}


@pytest.mark.parametrize("experiment", ENTRIES)
def test_what_is_committed_is_what_the_profile_lists(experiment):
    made = map(listed, plan.expand({experiment: ENTRIES[experiment]}))
    assert committed(experiment) == set().union(*made)


@pytest.mark.parametrize("path", sorted((plan.ROOT / "runs/published").glob("*.csv")), ids=lambda path: path.stem)
def test_nothing_published_is_told_twice(path):
    table = pd.read_csv(path)
    about = table.columns.difference(["error", "value", "accuracy"])
    assert len(table) and not table.duplicated(list(about)).any()
