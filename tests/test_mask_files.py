"""Masks come back from files by name, bit for bit, and act on any torch module."""

import pytest
import torch
from torch import nn

from lib import mask_files, methods, plain
from lib.errors import RecordError
from lib.pruning.masks import apply_


def module():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 5, 3), nn.ReLU(), nn.Flatten(), nn.Linear(45, 7))


def test_masks_come_back_bit_for_bit(tmp_path):
    masks = {
        "a.weight": torch.rand(2, 5, 3, 3) < 0.3,
        "b": torch.zeros(0, 4, dtype=torch.bool),
        "c": torch.tensor(True),
    }
    masks["transposed"] = (torch.rand(7, 9) < 0.5).T
    path = mask_files.save(masks, tmp_path / "new" / "masks.safetensors")
    again = mask_files.load(path)
    assert again.keys() == masks.keys()
    assert all(torch.equal(again[name], mask) and again[name].dtype == torch.bool for name, mask in masks.items())


def test_a_weight_takes_a_bit(tmp_path):
    path = mask_files.save({"w": torch.rand(1000, 800) < 0.5}, tmp_path / "masks.safetensors")
    assert path.stat().st_size < 800_000 / 8 + 1000


def test_a_pruned_module_is_pruned_again_by_its_file(tmp_path):
    network, twin = module(), module()
    masks = methods.prune(network, "phew", 0.2)
    apply_(network, masks)
    apply_(nn.DataParallel(twin), mask_files.load(mask_files.save(masks, tmp_path / "masks")))
    assert all(torch.equal(a, b) for a, b in zip(network.parameters(), twin.parameters(), strict=True))
    for name, mask in masks.items():
        assert torch.equal(twin.get_parameter(name) != 0, mask)


def test_a_shared_weight_is_masked_under_either_name():
    network = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    network[1].weight = network[0].weight
    apply_(network, {"1.weight": torch.eye(4, dtype=torch.bool)})
    assert int((network[0].weight != 0).sum()) == 4


def test_what_is_no_mask_of_the_module_is_told_and_changes_nothing(tmp_path):
    network = module()
    before = [parameter.clone() for parameter in network.parameters()]
    good = torch.zeros(5, 3, 3, 3, dtype=torch.bool)
    for wrong, told in (
        ({"0.wieght": good}, "the mask of 0.wieght is .*; it must be one of 0.weight, 0.bias, 3.weight, 3.bias"),
        ({"3.weight": good}, r"the mask of 3.weight is torch.bool \(5, 3, 3, 3\); it must be bool \(7, 45\)"),
        ({"0.bias": torch.ones(5)}, r"the mask of 0.bias is torch.float32 \(5,\)"),
    ):
        with pytest.raises(ValueError, match=told):
            apply_(network, {"0.weight": good} | wrong)
    assert all(torch.equal(a, b) for a, b in zip(network.parameters(), before, strict=True))
    with pytest.raises(ValueError, match="a is no bool tensor"):
        mask_files.save({"a": torch.ones(3)}, tmp_path / "masks")


def test_other_files_are_no_masks(tmp_path):
    with pytest.raises(RecordError, match="holds kind 'plain module'.*asked for is kind 'masks'"):
        mask_files.load(plain.save(nn.Linear(3, 2), tmp_path))
    path = mask_files.save({"w": torch.rand(100) < 0.5}, tmp_path / "masks")
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(RecordError, match="its content is not what its digest says"):
        mask_files.load(path)
