"""A stack as a file: its tensors, other arrays, and what it is; of trained networks, descents and trainings on the way.

Tensors of the networks are `net/<name>` in the file, arrays have names of their own, such as `history/<column>`.
"""

import copy
from pathlib import Path

import torch

from lib.networks import nets
from lib.records import disk


def save(path, net, arrays, meta, later=False):
    """Return nothing, once a stack, tensors or arrays by name, and `meta` are one file: see `disk.save_tensors`.

    What it holds stands in `meta["holds"]`, which `load` compares. later: it waits beside `path` for `disk.together`.
    """
    tensors = {f"net/{name}": tensor for name, tensor in net.state_dict().items()} | arrays
    found = {k: v.detach().cpu().numpy() if isinstance(v, torch.Tensor) else v for k, v in tensors.items()}
    disk.save_tensors(Path(path), found, meta, later)


def load(path, holds=None, way_out="", optional=()):
    """Return (the tensors of the networks, the other arrays, meta), both by name, of a file written by `save`.

    RecordError unless it holds `holds`, where that is given; entries named in `optional` may be anything there.
    """
    arrays, meta = disk.load_tensors(Path(path))
    if holds is not None:
        there = meta.get("holds", {})
        disk.assert_holds(path, there, holds | {name: there.get(name) for name in optional}, way_out)
    tensors = {name: torch.from_numpy(value) for name, value in under("net/", arrays).items()}
    return tensors, {name: value for name, value in arrays.items() if not name.startswith("net/")}, meta


def under(prefix, arrays):
    """Return the arrays whose names begin with `prefix`, by the rest of their names."""
    return {name.removeprefix(prefix): value for name, value in arrays.items() if name.startswith(prefix)}


def shaped(net, tensors):
    """Return a stack shaped as `net`, not to train, of these parameters by name, of zeros where there is none."""
    made = copy.deepcopy(net).requires_grad_(False)
    for name, parameter in made.named_parameters():
        parameter.copy_(torch.as_tensor(tensors[name])) if name in tensors else parameter.zero_()
    return made


def stack(tensors, like, path):
    """Return the stack of these tensors, which the file `path` holds, on the device of `like`, with its layers.

    ValueError if those have other shapes.
    """
    shapes = {name: tuple(tensor.shape[1:]) for name, tensor in like.state_dict().items()}
    found = {name: tuple(tensor.shape[1:]) for name, tensor in tensors.items()}
    if found != shapes:
        raise ValueError(f"{path} holds {found}; this network has {shapes}. Take another file, or delete it.")
    return nets.load_(nets.take(like, [0] * len(next(iter(tensors.values())))), tensors)
