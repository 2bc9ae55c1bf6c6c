"""Masks as files: by name, one bit a weight, without pickle. They are of a stack, or of any torch module."""

from pathlib import Path

import numpy as np
import torch

from lib.errors import RecordError, listed
from lib.pruning.masks import assert_named
from lib.records import disk

FORMAT = 1


def save(masks, path):
    """Return the file that holds masks `{name: bool}`, once it is on disk: safetensors, eight entries a byte.

    ValueError for what is no mask, and for lists of them.
    """
    assert_named(masks)
    if odd := [name for name, mask in masks.items() if getattr(mask, "dtype", None) != torch.bool]:
        raise ValueError(f"{listed(odd)} is no bool tensor; a mask is True where a weight is kept")
    path = Path(path).expanduser()
    disk.assert_writable(path.parent)
    bits = {name: np.packbits(mask.detach().cpu().numpy()) for name, mask in masks.items()}
    shapes = {name: list(mask.shape) for name, mask in masks.items()}
    disk.save_tensors(path, bits, {"holds": {"kind": "masks"}, "format": FORMAT, "shapes": shapes})
    return path


def load(path):
    """Return the masks that `save` kept, `{name: bool}`, on the CPU; RecordError if the file is not whole, or none."""
    path = Path(path).expanduser()
    bits, meta = disk.load_tensors(path)
    wanted = {"kind": "masks", "format": FORMAT}
    disk.assert_holds(path, {**meta.get("holds", {}), "format": meta.get("format")}, wanted, "Take a file of masks.")
    shapes = {name: tuple(shape) for name, shape in meta["shapes"].items()}
    sizes = {name: int(np.prod(shape)) for name, shape in shapes.items()}
    if any(len(bits.get(name, ())) != -(-size // 8) for name, size in sizes.items()):
        raise RecordError(f"{path} holds masks of other sizes than it says. Restore it from a copy, or make it again.")
    whole = {name: np.unpackbits(bits[name], count=size).astype(bool) for name, size in sizes.items()}
    return {name: torch.from_numpy(whole[name]).view(shape) for name, shape in shapes.items()}
