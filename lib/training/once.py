"""Trained networks as files of their own: trained once, then taken by every pruning method and summary that asks."""

from contextlib import ExitStack

import numpy as np

from lib.networks import nets
from lib.records import disk, runs
from lib.training import checkpoint, stacking, weights

FILE = "network.safetensors"
KIND = {"kind": "trained network"}  # stands with the recipe in each file, so that no other file passes for one


def obtain(start, recipes, train, most=0):
    """Return (the trained stack, its history {column: (R, T)}): read from the runs' folders, the missing ones trained.

    start: the stack before training; recipes: one per run, which names its folder (`runs.trained`) and stands in its
    file, to be compared; train: `(stack, [run, …], states) -> (trained stack, its history)` of runs that no file has
    yet, in stacks of at most `most`, 0 for all; states: for `Trainer.fit`, in the folder of the first of them, and gone
    when they are saved. A stack is saved together as soon as its training is over: killed in between, the rest would be
    trained again with fewer neighbours, and round otherwise. Who wants what another process trains waits, and reads.
    """
    paths = [runs.trained(recipe) / FILE for recipe in recipes]
    different, count = len(set(paths)), nets.runs(start)
    if not different == len(paths) == count:
        raise ValueError(f"{different} different recipes for a stack of {count}; one per run is needed")

    def work(missing):
        of = [paths[run] for run in missing]
        net, history = train(nets.take(start, missing), missing, checkpoint.States(of[0].parent))
        with disk.together(of, of[0].parent.parent):
            for k, run in enumerate(missing):
                own = {name: column[k] for name, column in history.items()}
                save(paths[run], nets.take(net, [k]), own, recipes[run], later=True)

    with ExitStack() as held:
        for path in sorted(path for path in paths if not path.exists()):
            held.enter_context(disk.lock(path))
        for place in {path.parent.parent for path in paths}:  # now, because who was waited for may have been killed
            disk.recover(place)
        stacking.split(work, [run for run, path in enumerate(paths) if not path.exists()], most)
    for path in paths:  # of this training, and of what was killed there in another stack: nobody takes them up again
        for state in (*path.parent.glob(checkpoint.FILES), *path.parent.glob(f"{checkpoint.FILES}.new")):
            state.unlink(missing_ok=True)
    return _read(paths, recipes, start)


def _read(paths, recipes, like):
    """Return (stack, history) of files of one network each."""
    found = [load(path, like, recipe) for path, recipe in zip(paths, recipes, strict=True)]
    networks, histories = zip(*found, strict=True)
    lengths = {str(path): len(next(iter(h.values()), ())) for path, h in zip(paths, histories, strict=True)}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"these networks were trained for different times: {lengths}; delete those to be made again")
    return nets.join(networks), nets.join({name: column[None] for name, column in h.items()} for h in histories)


def save(path, net, history, recipe, later=False):
    """Write a stack, columns `{name: (T,)}` of its history, and its recipe as one file: see `weights.save`."""
    arrays = {f"history/{name}": np.asarray(v, float) for name, v in history.items()}
    weights.save(path, net, arrays, {"holds": KIND | recipe}, later)


def load(path, like, recipe, any_seed=False):
    """Return (the stack in `path`, its history), on the device of `like`, whose layers it must have.

    RecordError for a file that was not made by this recipe, whatever its seed if `any_seed`.
    """
    way_out = "Name the parameters that it was trained with, or another file; delete it to have it trained again."
    tensors, arrays, _ = weights.load(path, KIND | recipe, way_out, ["seed"] * any_seed)
    return weights.stack(tensors, like, path), weights.under("history/", arrays)
