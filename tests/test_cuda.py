"""The same results on CUDA as on the CPU: on a GPU, or where there is none on a stand-in, `card`."""

import contextlib
import dataclasses

import card
import pytest
import torch

from lib import capture, descend, descent, images, nets, passes, stacking, twins
from lib import sets as data
from lib.studies.ewn import study as ewn
from lib.training.trainer import Trainer

TYPES = ["EWN", "SWN", "no-WN"]


@pytest.fixture(autouse=True)
def gpu():
    """A GPU: the one that is here, then None, or the stand-in."""
    with contextlib.nullcontext() if torch.cuda.is_available() else card.Card(2**26) as found:
        yield found


def digits(device, count=200):
    whole = data.load("digits", device)
    return dataclasses.replace(whole, train_x=whole.train_x[:count], train_y=whole.train_y[:count])


def begin(device, dtype):
    few = digits(device)
    sets = tuple((few.split(part)[0].to(dtype), few.split(part)[1]) for part in ("train", "test"))
    net = nets.init_(nets.MLP([784, 37, 10], TYPES), [1, 2, 3]).to(device, dtype)
    return descend.start(net, [1, 2, 3], sets), sets


def test_a_descent_is_the_same_in_float64():
    (here, sets), (there, cuda_sets) = begin("cpu", torch.float64), begin("cuda", torch.float64)
    for _ in range(8):
        descend.attempt(here, sets, 32)
        descend.attempt(there, cuda_sets, 32)
        torch.testing.assert_close(there.log_loss.cpu(), here.log_loss, rtol=1e-8, atol=1e-8)
    assert torch.equal(there.epoch, here.epoch)


def test_the_first_attempts_agree_in_float32():
    """With TF32 the log-loss would be off by a thousandth after one epoch already."""
    (here, sets), (there, cuda_sets) = begin("cpu", torch.float32), begin("cuda", torch.float32)
    for _ in range(3):
        descend.attempt(here, sets, 32)
        descend.attempt(there, cuda_sets, 32)
    torch.testing.assert_close(there.log_loss.cpu(), here.log_loss, rtol=1e-4, atol=1e-4)


def test_a_stack_is_saved_and_goes_on(tmp_path):
    folders = [tmp_path / kind for kind in TYPES]
    keywords = {"folders": folders, "batch": 32, "checkpoint": 0.0}
    net = nets.init_(nets.MLP([784, 37, 10], TYPES), [1, 2, 3]).to("cuda")
    few = digits("cuda", 40)
    descend.descend(nets.take(net, slice(0, 3)), few, [1, 2, 3], [-0.1], **keywords)
    reached, _ = descend.descend(net, few, [1, 2, 3], [-0.1, -0.3], **keywords)
    assert all(float(found[-0.3].log_loss) < -0.3 for found in reached)
    again, _ = descent.load(descent.level_path(folders[0], -0.3), nets.MLP([784, 37, 10], ["EWN"]).to("cuda"))
    assert again.net.layers[0].weight.is_cuda


def test_pruning_and_evaluating_agree():
    net = nets.init_(nets.MLP([784, 37, 10], TYPES), [1, 2, 3])
    score = {"layers.0": torch.rand(3, 37)}
    results = []
    for device in ("cpu", "cuda"):
        x, y = digits(device).split("test")
        moved = {layer: s.to(device) for layer, s in score.items()}
        results.append(ewn.pruned_accuracy(net.to(device), x, y, moved, [0.0, 0.5]).cpu())
    assert (results[0] - results[1]).abs().max() < 0.01  # an example or two on the boundary


def test_the_loss_at_e_to_the_minus_300():
    logits = torch.zeros(1, 4, 3, device="cuda")
    logits[0, :, 0] = 300.0
    loss = twins.log_loss(logits.requires_grad_(), torch.zeros(4, dtype=torch.int64, device="cuda"))
    loss.sum().backward()
    assert abs(loss.item() + 300 - torch.tensor(2.0).log()) < 1e-3 and logits.grad.isfinite().all()


# ---- recorded steps


def trained(rule, monkeypatch, recorded, epochs=4, **options):
    """A stack after `epochs` passes of ten steps and a shorter one, pruned after half of them, on CUDA."""
    monkeypatch.setenv(capture.VARIABLE, "1" if recorded else "0")
    sets = [digits("cuda").split(part) for part in ("train", "test")]
    net = nets.init_(nets.MLP([784, 37, 10], ["no-WN"] * 3, dropout=0.5), [1, 2, 3]).to("cuda")
    trainer = Trainer(net, *sets, [1, 2, 3], rule, 0.01, 19, drops=(1, 3), bar=False, **options)
    trainer.fit(epochs // 2)
    weight = net.layers[0].weight
    trainer.prune({"layers.0.weight": weight.detach().abs() > weight.detach().abs().median()})
    trainer.fit(epochs - epochs // 2)
    return trainer, trainer.step.graph is not None


@pytest.mark.parametrize(
    "rule, options", [("sgd", {}), ("sgd", {"momentum": 0.9, "nesterov": True}), ("adam", {}), ("rms", {})]
)
def test_recorded_steps_of_fit_are_the_ordinary_ones(rule, options, monkeypatch):
    plain, launched = trained(rule, monkeypatch, False, **options)
    again, recorded = trained(rule, monkeypatch, True, **options)
    assert recorded and not launched
    for p, q in zip(plain.net.parameters(), again.net.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-3, atol=1e-4)
    zeros = again.net.layers[0].weight == 0
    assert zeros.float().mean() > 0.45
    assert abs(plain.curve("train_loss") - again.curve("train_loss"))[:, 1:].max() < 1e-3


def test_recorded_steps_of_a_descent_are_the_ordinary_ones(monkeypatch):
    states = []
    for choice in ("0", "1"):
        monkeypatch.setenv(capture.VARIABLE, choice)
        state, sets = begin("cuda", torch.float64)
        for _ in range(4):
            descend.attempt(state, sets, 32)
        states.append(state)
    torch.testing.assert_close(states[0].log_loss, states[1].log_loss, rtol=1e-9, atol=1e-9)
    assert states[1].steps.take.graph is not None and states[0].steps.take.graph is None


@pytest.mark.filterwarnings("ignore:Synchronization debug mode")
def test_nothing_waits_for_the_gpu_within_a_pass():
    """Torch raises here at every copy to the host and every wait, once the data and the orders are on the device."""
    state, (train_set, _) = begin("cuda", torch.float32)
    steps = passes.Steps(state.net)
    index = torch.arange(32, device="cuda")
    with nets.sgd_in_backward(steps.net, steps.rate):
        steps.take(train_set[0][index], train_set[1][index])
        torch.cuda.set_sync_debug_mode("error")
        try:
            steps.take(train_set[0][index], train_set[1][index])
        finally:
            torch.cuda.set_sync_debug_mode("default")


@pytest.mark.filterwarnings("ignore:Synchronization debug mode")
def test_a_pass_of_augmented_images_does_not_wait_for_the_gpu():
    few = data.load("digits32", "cuda")
    images_of = images.Augmented(few, [1, 2])
    index = torch.arange(16, device="cuda")
    first = images_of(0, index)
    torch.cuda.set_sync_debug_mode("error")
    try:
        assert images_of(0, index).shape == first.shape
    finally:
        torch.cuda.set_sync_debug_mode("default")


# ---- memory


def test_a_stack_that_does_not_fit_goes_on_in_parts():
    net = nets.init_(nets.MLP([784, 37, 10], TYPES), [1, 2, 3]).to("cuda")
    assert stacking.fits(net, 128) == 3 and stacking.fits(net, 128, free=1) == 1
    width = torch.cuda.mem_get_info()[1] // 4 // 2  # half of the memory in a float for each of two

    def work(part):
        return float(torch.ones(len(part), width, device="cuda").sum(1)[0])

    with pytest.warns(stacking.MemoryWarning, match="no memory for"):
        assert [len(part) for part, _ in stacking.split(work, range(4))] == [1] * 4


def test_convolutions_of_a_descent_keep_float32():
    """TF32 keeps ten bits of a factor: a product of thousands then differs in the third digit."""
    x, w = (torch.randn(1, 64, 33, 33).cuda(), torch.randn(1, 64, 64, 3, 3).cuda())
    expected = twins.conv2d(x.double(), w.double(), None, None, None, False)
    with descend.full_precision():
        found = twins.conv2d(x, w, None, None, None, False)
        torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-3)
