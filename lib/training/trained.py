"""Trained networks as files of their own: trained once, then taken by every pruning method and summary that asks."""

import hashlib
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import torch

from lib.networks import nets
from lib.records import disk, runs

FILE = "network.safetensors"
KIND = {"kind": "trained network"}  # stands with the recipe in each file, so that no other file passes for one
_NAME = "training-{}.safetensors"


def obtain(start, recipes, train):
    """Return (the trained stack, its history {column: (R, T)}): read from the runs' folders, the missing ones trained.

    start: the stack before training; recipes: one per run, which names its folder (`runs.trained`) and stands in its
    file, to be compared; train: `(stack, [run, …], path) -> Trainer` of the runs that no file has yet, in one stack;
    path: for the state of this training (`Trainer.fit`), in the folder of the first of them, which goes when all are
    saved. All are saved together as soon as training is over: killed in between, the rest would be trained again with
    fewer neighbours, and round otherwise. Two processes that want one network: the second waits for it, and reads.
    """
    paths = [runs.trained(recipe) / FILE for recipe in recipes]
    different, count = len(set(paths)), nets.runs(start)
    if not different == len(paths) == count:
        raise ValueError(f"{different} different recipes for a stack of {count}; one per run is needed")
    for place in {path.parent.parent for path in paths}:
        disk.recover(place)
    with ExitStack() as held:
        for path in sorted(path for path in paths if not path.exists()):
            path.parent.mkdir(parents=True, exist_ok=True)
            held.enter_context(runs.lock(path))
        missing = [run for run, path in enumerate(paths) if not path.exists()]
        if missing:
            trainer = train(nets.take(start, missing), missing, _state(paths[run] for run in missing))
            _save_together([paths[run] for run in missing], trainer, [recipes[run] for run in missing])
    for path in paths:  # what was killed there, after its network was saved or in another stack, nobody takes up again
        for state in path.parent.glob(_NAME.format("*") + "*"):
            state.unlink(missing_ok=True)
    found = [load(path, start, recipe) for path, recipe in zip(paths, recipes, strict=True)]
    histories = [history for _, history in found]
    lengths = {str(path): len(next(iter(h.values()), ())) for path, h in zip(paths, histories, strict=True)}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"these networks were trained for different times: {lengths}; delete those to be made again")
    return nets.join([net for net, _ in found]), {name: np.stack([h[name] for h in histories]) for name in histories[0]}


def _state(paths):
    """Return where a training of these networks keeps its state: beside the first, under a name that all decide."""
    paths = list(paths)
    members = "\n".join(path.parent.name for path in paths)
    return paths[0].with_name(_NAME.format(hashlib.blake2b(members.encode(), digest_size=8).hexdigest()))


def _save_together(paths, trainer, recipes):
    """Write what was trained, one file a run: all of them or, killed or out of room before, none."""
    columns = {name: trainer.curve(name) for name in trainer.history}
    with disk.writing(paths[0], *map(disk.new, paths)):
        for run, (path, recipe) in enumerate(zip(paths, recipes, strict=True)):
            history = {name: column[run] for name, column in columns.items()}
            save(path, nets.take(trainer.net, [run]), history, recipe, later=True)
    disk.commit(paths, paths[0].parent.parent)


def save(path, net, history, recipe, later=False):
    """Write a stack, columns `{name: (T,)}` of its history, and its recipe to one safetensors file, wholly or not.

    later: it waits beside `path` for `disk.commit`.
    """
    arrays = {f"net/{name}": tensor.detach().cpu().numpy() for name, tensor in net.state_dict().items()}
    arrays |= {f"history/{name}": np.asarray(v, float) for name, v in history.items()}
    disk.save_tensors(Path(path), arrays, {"holds": KIND | recipe}, later)


def load(path, like, recipe, any_seed=False):
    """Return (the stack in `path`, its history), on the device of `like`, whose layers it must have.

    RecordError for a file that was not made by this recipe, whatever its seed if `any_seed`.
    """
    arrays, meta = disk.load_tensors(Path(path))
    _assert_made_by(path, meta.get("holds", {}), {**KIND, **recipe}, any_seed)
    tensors = {k.removeprefix("net/"): torch.from_numpy(v) for k, v in arrays.items() if k.startswith("net/")}
    shapes = {name: tuple(tensor.shape[1:]) for name, tensor in like.state_dict().items()}
    found = {name: tuple(tensor.shape[1:]) for name, tensor in tensors.items()}
    if found != shapes:
        raise ValueError(f"{path} holds {found}; this network has {shapes}. Take another file, or delete it.")
    net = nets.load_(nets.take(like, [0] * len(next(iter(tensors.values())))), tensors)
    return net, {k.removeprefix("history/"): v for k, v in arrays.items() if k.startswith("history/")}


def _assert_made_by(path, found, asked, any_seed):
    """Raise RecordError unless the file holds a trained network and, what is only then of interest, of this recipe."""
    way_out = "Name the parameters that it was trained with, or another file; delete it to have it trained again."
    kind = {"kind": found.get("kind", "something else")}
    disk.assert_holds(path, kind, KIND, way_out)
    asked = asked | {"seed": found.get("seed")} if any_seed else asked
    disk.assert_holds(path, found, asked, way_out)
