"""The state of a `Trainer` between two epochs as one file, from which a training that was killed goes on.

All that is drawn is keyed by the epoch (`draws`), so that weights, what the optimizer remembers and a few counts are
the whole state: on a CPU the continued training ends bit for bit where the uninterrupted one does. Masks and data are
not in the file. Who goes on brings them again, and `identity` says whether they are the same.
"""

import copy
import hashlib
import json
from pathlib import Path

import numpy as np
import torch

from lib.errors import RecordError, listed
from lib.networks import nets
from lib.records import runs

FORMAT = 1  # of the files; one more when they change
ROWS = 1000  # examples by whose inputs two data sets are told apart, spread evenly; and by the labels of all
RULE = ("rule", "lr", "batch", "drop", "shuffle", "bf16", "epoch", "steps")  # attributes of a `Trainer`


def identity(trainer):
    """Return what tells this training from any other, `{name: value}`, fit for json: all that is ahead depends on it.

    Numbers, seeds, and checksums of the networks as they are now, of their masks, of what the optimizers remember, of
    the data, and of the inputs of the next step, which tell what `batches` does to the data.
    """
    memory = {f"{key}/{name}": p for key, stack in trainer.memory().items() for name, p in stack.named_parameters()}
    return {
        "class": type(trainer).__name__,
        "seeds": [int(seed) for seed in trainer.seeds],
        **{name: getattr(trainer, name) for name in RULE},
        **trainer.options,
        "drops": list(trainer.drops),
        "networks": _checksum(trainer.net.state_dict()),
        "masks": _checksum(trainer.masks),
        "memory": _checksum(memory),
        "train": _checksum(_sample(*trainer.train)),
        "test": _checksum(_sample(*trainer.test)),
        "inputs": _checksum(dict(enumerate(trainer.next_inputs()))),
    }


def digest(of):
    """Return 16 characters that stand for an `identity`, to be used in a name."""
    return hashlib.blake2b(json.dumps(of, sort_keys=True).encode(), digest_size=8).hexdigest()


def _sample(x, y):
    return {"x": x[..., :: max(1, x.shape[-2] // ROWS), :], "y": y}


def _checksum(tensors):
    found = hashlib.blake2b(digest_size=8)
    for name, tensor in tensors.items():
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        found.update(np.ascontiguousarray(tensor.detach().cpu().numpy()))
    return found.hexdigest()


def save(trainer, path, of):
    """Write the state of a trainer to one safetensors file, wholly or not at all; of: its `identity` at the start."""
    tensors = {f"net/{name}": tensor for name, tensor in trainer.net.state_dict().items()}
    for key, stack in trainer.memory().items():
        tensors |= {f"memory/{key}/{name}": p for name, p in stack.named_parameters()}
    arrays = {name: tensor.detach().cpu().numpy() for name, tensor in tensors.items()}
    arrays |= {f"history/{name}": np.stack(rows) for name, rows in trainer.history.items()}
    counts = {"epoch": trainer.epoch, "steps": trainer.steps, "seconds": trainer.seconds}
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    runs.save_tensors(
        Path(path), arrays, {"holds": {"kind": "state of a training"}, "format": FORMAT, "of": of, **counts}
    )


def restore(trainer, path, of, until):
    """Return whether there was a file at `path`, and the trainer is now in the state that it holds.

    of: the `identity` of the trainer; until: the epoch that it is to reach. RecordError, and the file stays as it is,
    if it holds another training or a later epoch, was written by another version of this program, or is damaged.
    """
    if not Path(path).exists():
        return False
    arrays, meta = runs.load_tensors(Path(path))
    complaint = _complaint(meta, of, until) or _misfit(trainer, arrays, meta)
    if complaint:
        raise RecordError(f"{path} {complaint}")
    nets.load_(trainer.net, _under("net/", arrays))
    trainer.resume(trainer.net, _memory(trainer.net, arrays), meta["steps"])
    trainer.epoch, trainer.steps, trainer.seconds = (meta[name] for name in ("epoch", "steps", "seconds"))
    trainer.history = {name: list(arrays[f"history/{name}"]) for name in trainer.columns}
    return True


def _complaint(meta, of, until):
    """Return why the state in a file is none to go on from, or None."""
    if meta.get("format") != FORMAT:
        found = f"format {meta['format']}" if "format" in meta else "no state of a training"
        return (
            f"holds {found}; this version of the program goes on from format {FORMAT}. Give another file, finish the"
            f" training by the version that wrote it, or delete it to train from the start."
        )
    there = meta["of"]
    differ = [name for name in [*of, *(there.keys() - of.keys())] if of.get(name) != there.get(name)]
    if differ:
        return (
            f"holds the state of another training, with other {listed(differ)}. Give another file, or delete this one"
            f" to train from the start."
        )
    if meta["epoch"] > until:
        return (
            f"holds the state after epoch {meta['epoch']}; this training ends with epoch {until}. Train at least as"
            f" long, give another file, or delete this one to train from the start."
        )
    return None


def _misfit(trainer, arrays, meta):
    """Return which arrays of a file are not those of this training, or None."""
    keys = {name.split("/")[1] for name in arrays if name.startswith("memory/")}
    shapes = {f"net/{name}": tuple(tensor.shape) for name, tensor in trainer.net.state_dict().items()}
    for name, p in trainer.net.named_parameters():
        shapes |= {f"memory/{key}/{name}": tuple(p.shape) for key in keys}
    for name, rows in trainer.history.items():
        shapes[f"history/{name}"] = len(rows) + meta["epoch"] - trainer.epoch, len(trainer.seeds)
    found = {name: array.shape for name, array in arrays.items()}
    wrong = sorted(name for name in shapes | found if found.get(name) != shapes.get(name))
    return f"was altered in {listed(wrong)}. Delete it to train from the start." if wrong else None


def _memory(net, arrays):
    """Return what the optimizers remembered, stacks like `net` as `Trainer.memory` returns them."""
    found = {}
    for key in dict.fromkeys(name.split("/")[1] for name in arrays if name.startswith("memory/")):
        found[key] = copy.deepcopy(net).requires_grad_(False)
        for name, tensor in _under(f"memory/{key}/", arrays).items():
            found[key].get_parameter(name).copy_(tensor)
    return found


def _under(prefix, arrays):
    found = {name: array for name, array in arrays.items() if name.startswith(prefix)}
    return {name.removeprefix(prefix): torch.from_numpy(array) for name, array in found.items()}
