"""Recorded steps: on a CPU they are calls; the order of warming up, recording and replaying on a stand-in for CUDA."""

import contextlib
from types import SimpleNamespace

import pytest
import torch

from lib import capture, nets, optimizers
from lib.training.trainer import Trainer

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def test_who_is_recorded(monkeypatch):
    monkeypatch.delenv(capture.VARIABLE, raising=False)
    monkeypatch.setitem(capture.MEASURED, "fit", None)
    assert not capture.wanted("fit", CUDA), "unmeasured"
    monkeypatch.setitem(capture.MEASURED, "fit", "2x on a GPU")
    assert capture.wanted("fit", CUDA) and not capture.wanted("fit", CPU)
    monkeypatch.setenv(capture.VARIABLE, "0")
    assert not capture.wanted("fit", CUDA)
    monkeypatch.setenv(capture.VARIABLE, "1")
    assert capture.wanted("descend", CUDA) and not capture.wanted("descend", CPU)
    monkeypatch.setenv(capture.VARIABLE, "yes")
    with pytest.raises(ValueError, match="'yes'; allowed are 1"):
        capture.wanted("fit", CUDA)


def test_an_unrecorded_step_is_its_function():
    given = torch.ones(2)
    assert capture.Step(lambda x: x, False)(given) is given


class Device:
    """Stands in for CUDA: while a graph is recorded nothing is computed, and a replay calls the function again."""

    def __init__(self, monkeypatch, error=None):
        self.recording, self.replays, self.error = False, 0, error
        stream = SimpleNamespace(wait_stream=lambda other: None)
        for name, value in {
            "Stream": lambda device: stream, "current_stream": lambda: stream,
            "stream": lambda stream: contextlib.nullcontext(),
            "CUDAGraph": lambda: SimpleNamespace(replay=self.replay), "graph": self.graph,
        }.items():  # fmt: skip
            monkeypatch.setattr(torch.cuda, name, value)
        self.total, self.out, self.seen = torch.zeros(()), torch.zeros(()), []
        self.step = capture.Step(self.add, True)

    @contextlib.contextmanager
    def graph(self, graph, stream):
        self.recording = True
        try:
            yield
        finally:
            self.recording = False

    def replay(self):
        self.replays += 1
        self.add(*self.step.inputs)

    def add(self, x):
        if self.recording:
            if self.error:
                raise self.error
            return self.out
        self.seen.append(x.data_ptr())
        self.total += x.sum()
        return self.out.copy_(self.total)


def test_steps_are_taken_then_recorded_then_replayed_on_one_memory(monkeypatch):
    device = Device(monkeypatch)
    expected = 0.0
    for k in range(10):
        last = k % 5 == 4  # a shorter batch ends every pass
        given = torch.full((3 if last else 4, 2), float(k + 1))
        expected += float(given.sum())
        assert float(device.step(given)) == expected
        if k >= 4 and not last:
            assert device.seen[-1] == device.step.inputs[0].data_ptr() != given.data_ptr()
    assert device.replays == 10 - 2 - capture.WARM_UP and len(device.seen) == 10


def test_what_cannot_be_recorded_is_called_and_said(monkeypatch):
    device = Device(monkeypatch, RuntimeError("operation not permitted when stream is capturing"))
    given = torch.ones(2)
    for _ in range(capture.WARM_UP):
        device.step(given)
    with pytest.warns(capture.CaptureWarning, match="not permitted"):
        assert float(device.step(given)) == 8.0
    assert float(device.step(given)) == 10.0 and device.replays == 0
    device = Device(monkeypatch, torch.OutOfMemoryError("CUDA out of memory"))
    for _ in range(capture.WARM_UP):
        device.step(given)
    with pytest.raises(torch.OutOfMemoryError):  # a smaller stack is the answer
        device.step(given)


GENERATOR = torch.Generator().manual_seed(0)
X, Y = torch.randn(50, 6, generator=GENERATOR), torch.randint(3, (50,), generator=GENERATOR)
MASK = {"layers.0.weight": torch.rand(2, 7, 6, generator=GENERATOR) < 0.5}


def trained(rule="sgd", **options):
    net = nets.init_(nets.MLP([6, 7, 3], ["no-WN"] * 2), [1, 2])
    trainer = Trainer(net, (X, Y), (X, Y), [1, 2], rule, 0.05, 16, drops=(2,), bar=False, **options).fit(1)
    trainer.prune(MASK)
    trainer.fit(2)
    return trainer


@pytest.mark.parametrize("rule", optimizers.RULES)
def test_a_training_to_be_recorded_is_the_same_on_a_cpu(rule, monkeypatch):
    plain = trained(rule)
    monkeypatch.setenv(capture.VARIABLE, "1")
    again = trained(rule)
    for p, q in zip(plain.net.parameters(), again.net.parameters(), strict=True):
        assert torch.equal(p, q)


def test_a_rate_that_a_recording_reads_is_set_in_place():
    p = torch.nn.Parameter(torch.ones(2, 3))
    for rule in optimizers.RULES:
        optimizer = optimizers.make(rule, [p], 0.1, {"momentum": 0.0, "nesterov": False, "weight_decay": 0.0}, True)
        rate = optimizer.param_groups[0]["lr"]
        optimizers.set_rate(optimizer, 0.25)
        assert optimizer.param_groups[0]["lr"] is rate and float(rate) == 0.25
