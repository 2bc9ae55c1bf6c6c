"""How a parameter travels: from a notebook's cell to what it decides, through at most six rooms of the library."""

import inspect
from pathlib import Path

import pytest
import torch

import lib
from lib import inits, masks, nets, runs, sets
from lib.studies.importance import study as importance

LIB, MOST = Path(lib.__file__).parent, 6
SEED = 918_273


@pytest.fixture
def opened(tmp_path, monkeypatch):
    """Return what opens a run of a notebook with its defaults and some changes, its records in an empty folder."""
    monkeypatch.setenv("PRUNING_RUNS", str(tmp_path))
    return lambda name, **changes: runs.open_run(name, runs.declared(name) | changes)


@pytest.fixture
def stops(monkeypatch):
    """Return what makes a list of the rooms on the way to the first call of a function, its own the last."""

    def watch(module, name):
        found, function = [], getattr(module, name)

        def watched(*arguments, **options):
            paths = [Path(frame.filename) for frame in reversed(inspect.stack(0))] if not found else []
            paths = [path for path in (*paths, Path(module.__file__)) if path.is_relative_to(LIB)]
            found.extend(dict.fromkeys(path.relative_to(LIB).with_suffix("").as_posix() for path in paths))
            monkeypatch.undo()
            return function(*arguments, **options)

        monkeypatch.setattr(module, name, watched)
        return found

    return watch


def test_the_walk_of_a_seed_from_mnist_prune_to_weights(opened, stops):
    run, way = opened("mnist_prune", seed=SEED, width=8), stops(inits, "starts")
    net = nets.MLP([784, run.parameters["width"], 10], norm=[kind for _, kind in run.todo])
    nets.init_(net, [seed for seed, _ in run.todo])
    assert ["records/runs", *way] == ["records/runs", "networks/nets", "networks/inits"]
    torch.manual_seed(SEED)
    hidden, _ = torch.nn.Linear(784, 8), torch.nn.Linear(8, 10, bias=False)
    torch.nn.init.kaiming_normal_(hidden.weight)
    torch.testing.assert_close(nets.fold(net).layers[0].weight[0], hidden.weight.detach(), rtol=1e-5, atol=1e-6)


def test_the_walk_of_a_type_from_train_time_prune_to_a_mask(opened, stops):
    given = {"dataset": "digits", "epochs": 1, "initial": 0, "increment": 1, "hidden": [8, 5], "batch_size": 50}
    run = opened("train_time_prune", type="worst", train_examples=50, **given)
    study = importance.study(sets.load("digits", train_examples=50, statistics="half"), run.parameters)
    way = stops(masks, "top")
    found = study.run(SEED, [kind for _, kind in run.todo])
    frame = ["training/lab", "training/stacking"]  # of all studies: a grid of types, in as many parts as do best
    assert way == ["studies/importance/study", *frame, "pruning/methods", "pruning/masks"]
    assert len(["records/runs", *way]) <= MOST
    assert [int(kept.sum()) for kept in found["worst"].kept.values()] == [7, 4], "and the mask is there"
