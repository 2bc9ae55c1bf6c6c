"""The stand-in for a card answers as torch would: it computes, refuses what a GPU refuses, records and replays."""

import copy
import math
import os
from unittest.mock import patch

import card
import pytest
import torch

from lib import capture, fused, twins
from lib.networks import plain

REFUSED = {  # what a step may not do: a function of a step's input that does it
    "item": lambda x: x * x.sum().item(),
    "bool": lambda x: x if bool((x > 0).all()) else -x,
    "float": lambda x: x * float(x[0]),
    "nonzero": lambda x: x.nonzero(),
    "boolean indexing": lambda x: x[x > 0],
    "assignment by a mask": lambda x: x.index_put((x > 0,), torch.zeros((), device="cuda")),
    "masked_select": lambda x: x.masked_select(x > 0),
    "unique": lambda x: x.unique(),
    "bincount": lambda x: x.long().bincount(),
    "repetition by numbers on the card": lambda x: x.repeat_interleave(x.long()),
    "a copy to the host": lambda x: x.cpu().sum(),
    "a list": lambda x: x.tolist(),
    "a copy from the host": lambda x: x + torch.ones(4).to("cuda"),
    "a number from the host": lambda x: x * torch.tensor(2.0, device="cuda"),
    "an index in a list": lambda x: x[[0, 2]],
    "an index on the host": lambda x: x[torch.arange(2)],
    "a scalar on the host": lambda x: x * torch.tensor(2.0),
    "two devices": lambda x: x + torch.ones(4),
    "a factorisation that is checked": lambda x: torch.linalg.inv(x.reshape(2, 2)),
}


@pytest.fixture(autouse=True)
def gpu():
    with card.Card(2**24) as found:
        yield found


def numbers():
    return torch.tensor([1.0, 0.0, 2.0, 3.0], device="cuda")


@pytest.mark.parametrize("what", REFUSED)
def test_a_bad_step_is_refused(what):
    with pytest.raises(RuntimeError), torch.cuda.graph(torch.cuda.CUDAGraph()):
        REFUSED[what](numbers())
    step = capture.Step(REFUSED[what], True)
    with pytest.warns(capture.CaptureWarning) if what != "two devices" else pytest.raises(RuntimeError):
        for _ in range(capture.WARM_UP + 1):
            step(numbers())


@pytest.mark.parametrize("what", sorted(set(REFUSED) - {"two devices", "a scalar on the host"}))
def test_what_waits_is_refused_where_waiting_is(what):
    given = numbers()
    torch.cuda.set_sync_debug_mode("error")
    with pytest.raises(RuntimeError, match="waits"):
        REFUSED[what](given)


def test_a_replay_computes_on_the_memory_of_the_recording(gpu):
    total = torch.zeros(4, device="cuda")

    def add(x):
        total.add_(x)
        return total * 2, x.view(2, 2).t()

    step = capture.Step(add, True)
    for k in range(6):
        before, given = total.cpu(), torch.full((4,), float(k), device="cuda")
        double, turned = step(given)
        torch.testing.assert_close(total.cpu(), before + k)
        torch.testing.assert_close(double.cpu(), 2 * total.cpu())
        torch.testing.assert_close(turned.cpu(), torch.full((2, 2), float(k)))
    assert gpu.replays == 6 - capture.WARM_UP and gpu.recorded == 2, "a view is no work"


def test_nothing_is_computed_while_a_graph_is_recorded():
    x, graph = numbers(), torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = x.add_(1) * 3
    assert x.cpu().tolist() == [1, 0, 2, 3] and y.cpu().isnan().all()
    graph.replay()
    assert x.cpu().tolist() == [2, 1, 3, 4] and y.cpu().tolist() == [6, 3, 9, 12]


def test_what_is_replaced_after_a_recording_is_not_seen():
    """As on a GPU, and the reason for a new `Step` after pruning: a recording has addresses."""
    held = {"mask": torch.ones(4, device="cuda")}
    step = capture.Step(lambda x: x * held["mask"], True)
    for _ in range(capture.WARM_UP + 1):
        step(numbers())
    held["mask"] = torch.zeros(4, device="cuda")
    assert step(numbers()).cpu().tolist() == [1, 0, 2, 3]


def test_it_answers_as_a_gpu_does():
    x = numbers()
    assert torch.cuda.is_available() and x.is_cuda and x.device == torch.device("cuda", 0) and x.to("cuda") is x
    assert x.new_zeros(2).is_cuda and torch.empty_like(x).is_cuda and not x.cpu().is_cuda
    assert x[[3, 2]].cpu().tolist() == [3, 2] and float(x.sum()) == 6
    with pytest.raises(TypeError, match="numpy"):
        x.numpy()
    for mixed in (lambda: x + torch.ones(4), lambda: torch.cat([x, torch.ones(1)]), lambda: torch.ones(4)[x.long()]):
        with pytest.raises(RuntimeError, match="same device"):
            mixed()
    with pytest.raises(torch.OutOfMemoryError):
        torch.ones(2**23, device="cuda")
    held = torch.cuda.memory_allocated()
    more = [torch.ones(1000, device="cuda") for _ in range(3)]
    assert torch.cuda.memory_allocated() - held == 12_000
    del more
    assert torch.cuda.memory_allocated() == held


def test_torch_times_and_steps_there():
    """By what asks for an accelerator, not for CUDA: torch's timer, and its optimizers while a graph is recorded."""
    assert plain.latency(torch.relu, numbers(), 2).count == 2
    p = torch.nn.Parameter(numbers())
    p.grad = numbers()
    with pytest.raises(RuntimeError, match="capturable is False"), torch.cuda.graph(torch.cuda.CUDAGraph()):
        torch.optim.Adam([p]).step()


@pytest.mark.skipif(not fused.interpreted() or not fused.installed(), reason="needs Triton's interpreter")
def test_a_kernel_runs_on_it():
    found = []
    for choice in ("twin", "triton"):
        with patch.dict(os.environ, PRUNING_KERNELS=choice):
            alike, first = torch.zeros(1, 1, 2, device="cuda"), torch.zeros(1, dtype=torch.int64, device="cuda")
            loss, slope = twins.log_loss_and_gradient(alike, first)
            found.append([*loss.exp().tolist(), *slope.flatten().tolist()])
    assert found == [pytest.approx([math.log(2), -0.5 / math.log(2), 0.5 / math.log(2)])] * 2


def test_gradients_and_modules_are_on_the_card():
    net = torch.nn.Linear(4, 2).to("cuda")
    other, x = copy.deepcopy(net), numbers()[None]
    assert all(isinstance(p, torch.nn.Parameter) and p.is_cuda for p in other.parameters())
    with torch.autocast("cuda", torch.bfloat16):
        out = net(x)
    assert out.dtype == torch.bfloat16
    net(x).sum().backward()
    assert net.weight.grad.cpu().tolist() == [[1, 0, 2, 3]] * 2 and other.weight.grad is None


def test_nothing_is_left_of_it(gpu):
    gpu.__exit__(None, None, None)
    try:
        assert not torch.cuda.is_available() and torch.ones(2).device.type == "cpu"
        assert torch.nn.Linear(2, 2).to(torch.float64).weight.dtype == torch.float64
    finally:
        gpu.__enter__()
