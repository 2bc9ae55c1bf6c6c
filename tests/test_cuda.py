"""The same results on CUDA as on the CPU; these tests skip, and say so, where there is no GPU."""

import dataclasses

import pytest
import torch

from lib import data, descent, evaluate, kernels, nets, train

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU here: the CUDA paths are not tested")
TYPES = ["EWN", "SWN", "no-WN"]


def digits(device):
    whole = data.load("digits", device)
    return dataclasses.replace(whole, train_x=whole.train_x[:200], train_y=whole.train_y[:200])


def begin(device, dtype):
    few = digits(device)
    sets = tuple((few.split(part)[0].to(dtype), few.split(part)[1]) for part in ("train", "test"))
    net = nets.init_(nets.MLP([784, 37, 10], TYPES), [1, 2, 3]).to(device, dtype)
    return train.start(net, [1, 2, 3], sets), sets


def test_a_descent_is_the_same_in_float64():
    (here, sets), (there, cuda_sets) = begin("cpu", torch.float64), begin("cuda", torch.float64)
    for _ in range(20):
        train.attempt(here, sets, ["order"] * 3, 32)
        train.attempt(there, cuda_sets, ["order"] * 3, 32)
        torch.testing.assert_close(there.log_loss.cpu(), here.log_loss, rtol=1e-8, atol=1e-8)
    assert torch.equal(there.epoch, here.epoch)


def test_the_first_attempts_agree_in_float32():
    """With TF32 the log-loss would be off by a thousandth after one epoch already."""
    (here, sets), (there, cuda_sets) = begin("cpu", torch.float32), begin("cuda", torch.float32)
    for _ in range(3):
        train.attempt(here, sets, ["order"] * 3, 32)
        train.attempt(there, cuda_sets, ["order"] * 3, 32)
    torch.testing.assert_close(there.log_loss.cpu(), here.log_loss, rtol=1e-4, atol=1e-4)


def test_a_stack_is_saved_and_goes_on(tmp_path):
    folders = [tmp_path / kind for kind in TYPES]
    keywords = {"folders": folders, "batch": 32, "checkpoint": 0.0}
    net = nets.init_(nets.MLP([784, 37, 10], TYPES), [1, 2, 3]).to("cuda")
    train.descend(nets.take(net, slice(0, 3)), digits("cuda"), [1, 2, 3], [-1], **keywords)
    reached, _ = train.descend(net, digits("cuda"), [1, 2, 3], [-1, -2], **keywords)
    assert all(float(found[-2].log_loss) < -2 for found in reached)
    again, _ = descent.load(descent.level_path(folders[0], -2), nets.MLP([784, 37, 10], ["EWN"]).to("cuda"))
    assert again.net.layers[0].weight.is_cuda


def test_pruning_and_evaluating_agree():
    net = nets.init_(nets.MLP([784, 37, 10], TYPES), [1, 2, 3])
    score = {"layers.0": torch.rand(3, 37)}
    results = []
    for device in ("cpu", "cuda"):
        x, y = digits(device).split("test")
        moved = {layer: s.to(device) for layer, s in score.items()}
        results.append(evaluate.pruned_accuracy(net.to(device), x, y, moved, [0.0, 0.5]).cpu())
    assert (results[0] - results[1]).abs().max() < 0.01  # an example or two on the boundary


def test_the_loss_at_e_to_the_minus_300():
    logits = torch.zeros(1, 4, 3, device="cuda")
    logits[0, :, 0] = 300.0
    loss = kernels.log_loss(logits.requires_grad_(), torch.zeros(4, dtype=torch.int64, device="cuda"))
    loss.sum().backward()
    assert abs(loss.item() + 300 - torch.tensor(2.0).log()) < 1e-3 and logits.grad.isfinite().all()
