"""Not one flipped bit passes: in no kind of file that is read back, and each error names the file and the way out."""

import json

import numpy as np
import pytest
import safetensors.numpy
import torch
from flips import refused

from lib import checkpoint, descend, descent, disk, nets, once, runs, store
from lib.errors import RecordError
from lib.training.trainer import Trainer

# ---- records


@pytest.mark.parametrize("ending", [".json", ".npz"])
def test_flipped_bits_of_a_record_are_errors(tmp_path, ending):
    document = {
        "experiment": tmp_path.name, "type": "EWN", "seed": 1, "parameters": {"lr": 0.1, "levels": [-10.0]},
        "scores": {"accuracy": 0.123456789}, "cost": {}, "axes": {"i": [0.1, 2e-30]}, "provenance": {"commit": "0af"},
    }  # fmt: skip
    npz, axes = store.pack({"a": (np.ones(2), ["i"])}, document["axes"])
    path = tmp_path / "EWN-1;lr=0.1.json"
    store.write([(path, document | {"arrays": axes}, npz)])
    file = path.with_name(path.name.replace(".json", ending))
    refused(file, lambda: store.read(path), named=path, way_out="delete both and run it again")


def test_every_record_of_the_repository_has_a_digest():
    found = [path for place in (runs.ROOT / "runs").glob("*/") for path in store.files(place)]
    assert found and [path for path in found if '\n "digest": "' not in path.read_text("utf-8")] == []


# ---- weights


def test_flipped_bits_of_a_file_of_weights_are_errors(tmp_path):
    """In the length, in the header with its meta, and in the tensors."""
    path = tmp_path / "w.safetensors"
    tensors = {"net/w": np.arange(3, dtype=np.float32), "history/é": np.ones((1, 2)), "mask": np.array([True])}
    disk.save_tensors(path, tensors, {"seed": 1, "level": -10})
    refused(path, lambda: disk.load_tensors(path))


def test_weights_without_a_digest_are_refused(tmp_path):
    path = tmp_path / "w.safetensors"
    for header in (None, {"meta": "{}"}, {"meta": "{}", "digest": "0" * 64}):
        path.write_bytes(safetensors.numpy.save({"w": np.ones(3)}, header))
        with pytest.raises(RecordError, match=r"w\.safetensors does not hold .* digest.*delete it to make it again"):
            disk.load_tensors(path)


def test_what_a_file_holds_is_compared_with_what_was_asked(tmp_path):
    held = {"type": "EWN", "seed": 21, "level": -10, "widths": [3, 4]}
    disk.assert_holds(tmp_path, json.loads(json.dumps(held)), held | {"widths": (3, 4)}, "")
    other = {"type": "SWN", "seed": 99, "widths": [3, 4], "batch": 8}
    with pytest.raises(RecordError) as found:
        disk.assert_holds(tmp_path / "level-10.safetensors", held, other, "Give the folder of this run.")
    assert str(found.value) == (
        f"{tmp_path / 'level-10.safetensors'} holds type 'EWN', seed 21, no batch, level -10; asked for is "
        "type 'SWN', seed 99, batch 8, no level. Give the folder of this run."
    )


def test_flipped_bits_of_a_network_of_a_state_and_of_a_level_are_errors(tmp_path):
    """All are read by `load_tensors`, and by nothing else."""
    net = nets.init_(nets.MLP([3, 4, 2], ["EWN"]), [1])
    examples = torch.rand(6, 3), torch.arange(6) % 2
    trainer = Trainer(net, examples, examples, [1], bar=False, every=0)
    states, recipe = checkpoint.States(tmp_path), {"name": "toy", "type": "EWN", "seed": 1}
    network, level = (tmp_path / f"{name}.safetensors" for name in ("network", "level-1"))
    states.keeper(trainer, {})(over=True)
    refused(states.paths[0], lambda: states.keeper(trainer, {}))
    once.save(network, net, {"epoch": [0.0, 1.0]}, recipe)
    refused(network, lambda: once.load(network, net, recipe))
    descent.save(level, descend.start(net, [1], [trainer.train, trainer.test]))
    refused(level, lambda: descent.load(level, net))
