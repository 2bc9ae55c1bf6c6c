"""What every test runs under, and every process that a test starts: no window for figures, one thread."""

import gc
import os

import pytest

# Before anything imports matplotlib or torch.
os.environ["MPLBACKEND"] = "Agg"
# The products are tiny, so that a second thread gains nothing; and where another program has the second core, the
# threads wait for each other at every product: a suite of minutes then takes an hour.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# While everything is imported nothing is garbage, and afterwards what was imported need not be looked through again:
# a full collection takes half a second of every process's time otherwise.
gc.disable()


# What takes longest, by processor time or waiting, comes first, so that no process is left with it at the end.
FIRST = "workflow", "faults", "gallery", "descend", "setup", "fused", "summaries", "screening", "explorer", "door"


def pytest_collection_modifyitems(items):
    """Put the files of `FIRST` before the others."""
    places = {f"test_{name}": place for place, name in enumerate(FIRST)}
    items.sort(key=lambda item: places.get(item.path.stem, len(FIRST)))


def pytest_collection_finish():
    """Leave what is there before the first test out of every later collection."""
    gc.freeze()
    gc.enable()


def _seed():
    """Seed what draws without a generator of its own; torch's begins with another seed in every process."""
    import torch

    torch.manual_seed(0)


def pytest_collectstart():
    """Seed what a module draws as it is imported, so that all processes have the same of it, each time."""
    _seed()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup():
    """Seed what a test draws, so that none depends on which ones ran before it."""
    _seed()


@pytest.fixture(scope="module")
def shared_runs(tmp_path_factory):
    """Return the folder of runs that the tests of a module share, with the networks trained once, as notebooks do."""
    folder = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PRUNING_RUNS", str(folder))
        yield folder


@pytest.fixture
def axes():
    """Return axes of a figure, which is closed after the test."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots()
    yield axes
    plt.close(figure)
