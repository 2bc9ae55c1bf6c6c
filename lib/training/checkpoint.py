"""The state of a `Trainer` between two epochs as one file, from which a training that was killed goes on.

All that is drawn is keyed by the epoch (`draws`), so that weights, masks, what the optimizer remembers and a few counts
are the whole state: on a CPU the continued training ends bit for bit where the uninterrupted one does. Data are not in
the file. Its name is a digest of all that the training depends on, so that a state is either there or not.
"""

import hashlib
import json
import time
from pathlib import Path

import numpy as np
import torch

from lib.networks import nets
from lib.pruning import shrink
from lib.training import weights

FORMAT = 2  # of the files; one more when they change
ROWS = 1000  # examples by whose inputs two data sets are told apart, spread evenly; and by the labels of all
RULE = ("rule", "lr", "batch", "drop", "shuffle", "bf16", "epoch", "steps")  # attributes of a `Trainer`
COUNTS = ("epoch", "steps", "seconds")  # likewise, that go into the file
KIND = "state of a training"
FILES = f"training-{16 * '[0-9a-f]'}.safetensors"  # what `States` calls its files


def identity(trainer):
    """Return what tells this training from any other, `{name: value}`, fit for json: all that is ahead depends on it.

    Numbers, seeds, and checksums of the networks as they are now, of their masks, of what the optimizer remembers, of
    the data, and of the inputs of the next step, which tell what `batches` does to the data.
    """
    memory = {f"{key}/{name}": p for key, stack in trainer.memory().items() for name, p in stack.named_parameters()}
    return {
        "format": FORMAT,
        "objective": type(trainer.objective).__name__,
        "seeds": [int(seed) for seed in trainer.seeds],
        **{name: getattr(trainer, name) for name in RULE},
        **trainer.options,
        "drops": list(trainer.drops),
        "networks": _checksum(trainer.net.state_dict()),
        "masks": _checksum(trainer.masks),
        "memory": _checksum(memory),
        "train": _checksum(_sample(*trainer.train)),
        "test": _checksum(_sample(*trainer.test)),
        "inputs": _checksum({"": trainer.next_inputs()}),
    }


def digest(of):
    """Return 16 characters that stand for what is fit for json, such as an `identity`, to be used in a name."""
    return hashlib.blake2b(json.dumps(of, sort_keys=True).encode(), digest_size=8).hexdigest()


def _sample(x, y):
    return {"x": x[..., :: max(1, x.shape[-2] // ROWS), :], "y": y}


def _checksum(tensors):
    found = hashlib.blake2b(digest_size=8)
    for name, tensor in tensors.items():
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        found.update(np.ascontiguousarray(tensor.detach().cpu().numpy()))
    return found.hexdigest()


class States:
    """Where trainings that belong together keep their states: in `folder`, by names that tell each from all others."""

    def __init__(self, folder):
        self.folder, self.paths, self.began = Path(folder), [], time.monotonic()
        self.written = self.began

    def keeper(self, trainer, of):
        """Return what writes the state of a trainer that begins `of`, fit for json; where it has a file, that is read.

        To be called after every epoch, `over` after the last of all rounds: it writes where that is due.
        """
        name = digest([identity(trainer), of])
        path, holds = self.folder / f"training-{name}.safetensors", {"kind": KIND, "digest": name}
        self.paths.append(path)
        if path.exists():
            _restore(trainer, path, holds)

        def keep(over):
            now = time.monotonic()
            if now - (self.began if over else self.written) >= trainer.every:
                self.written = now
                save(trainer, path, holds)

        return keep


def save(trainer, path, holds):
    """Write the state of a trainer as one file, see `weights.save`."""
    arrays = {f"masks/{name}": mask for name, mask in trainer.masks.items()}
    for key, stack in trainer.memory().items():
        arrays |= {f"memory/{key}/{name}": p for name, p in stack.named_parameters()}
    for kind, columns in (("history", trainer.history), ("notes", trainer.notes)):
        arrays |= {f"{kind}/{name}": np.stack(rows) for name, rows in columns.items()}
    counts = {name: getattr(trainer, name) for name in COUNTS}
    weights.save(path, trainer.net, arrays, {"holds": holds, "names": list(arrays), **counts})


def _restore(trainer, path, holds):
    """Take what `save` wrote."""
    tensors, arrays, meta = weights.load(path, holds, "Delete it to train from the start.")
    arrays = {name: arrays[name] for name in meta["names"]}  # the order of masks is that of layers
    net = trainer.net
    widths = {name: tensors[f"{name}.weight"].shape[1] for name in nets.layers(net)}
    fewer = {name: width for name, width in widths.items() if width < net.get_submodule(name).weight.shape[1]}
    net = nets.load_(shrink.narrow(net, shrink.first(net, fewer)) if fewer else net, tensors)  # narrowed since it began
    kept = weights.under("memory/", arrays)
    keys = dict.fromkeys(name.split("/")[0] for name in kept)
    memory = {key: weights.shaped(net, weights.under(f"{key}/", kept)) for key in keys}
    trainer.resume(net, memory, meta["steps"])
    device = next(net.parameters()).device
    trainer.masks = {k: torch.from_numpy(v).to(device) for k, v in weights.under("masks/", arrays).items()}
    trainer.epoch, trainer.steps, trainer.seconds = (meta[name] for name in COUNTS)
    both = (weights.under(kind, arrays) for kind in ("history/", "notes/"))
    trainer.history, trainer.notes = ({name: list(rows) for name, rows in of.items()} for of in both)
