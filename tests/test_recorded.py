"""Every step that may be recorded as a CUDA graph goes through a recording, which `card` refuses where a GPU would.

A descent, a training by each rule, masked, in bfloat16, alone and in a stack; scores of importance, walks, and a block
of a k-DPP. What is replayed is compared with what a CPU computes, and no step may hold more memory than the last one.
"""

import itertools

import card
import pytest
import torch

from lib import capture, contribution, convnets, dpp, draws, nets, passes, phew, scores, synflow
from lib.studies.importance import vae, vae_study
from lib.training.trainer import Trainer

TYPES = ["EWN", "SWN", "no-WN"]
GENERATOR = torch.Generator().manual_seed(0)
X, Y = torch.randn(64, 12, generator=GENERATOR), torch.randint(3, (64,), generator=GENERATOR)
IMAGES = torch.randn(32, 3 * 8 * 8, generator=GENERATOR)


@pytest.fixture(autouse=True)
def gpu(monkeypatch):
    monkeypatch.setenv(capture.VARIABLE, "1")
    with card.Card(2**26) as found:
        yield found


def assert_same_sizes(held):
    """No step holds more than the one before, once steps are recorded."""
    assert len(set(held[-3:])) == 1, held


def test_a_step_that_keeps_something_is_seen():
    kept, held = [], []
    for _ in range(4):
        kept.append(torch.ones(3, device="cuda"))
        held.append(torch.cuda.memory_allocated())
    with pytest.raises(AssertionError):
        assert_same_sizes(held)


# ---- descents


def descent(kind):
    if kind == "mlp":
        return nets.MLP([12, 7, 3], TYPES), X
    return convnets.VGG((3, 8, 8), 3, TYPES, width=2, blocks=((1,), (2,))), IMAGES


@pytest.mark.parametrize("kind", ["mlp", "vgg"])
def test_a_step_of_a_descent(kind, gpu):
    found = []
    for device in ("cpu", "cuda"):
        net, x = descent(kind)
        steps = passes.Steps(nets.init_(net, [1, 2, 3]).to(device))
        x, y, none, held = x.to(device), Y[: len(x)].to(device), torch.zeros(3, device=device), []
        order = torch.arange(len(x)).expand(3, -1)
        for _ in range(5):
            steps.epoch(x, y, order, none + 0.01, none, 16)
            held.append(torch.cuda.memory_allocated())
        found.append([p.detach().cpu() for p in steps.net.parameters()])
    assert steps.take.graph is not None and gpu.replays == 5 * (len(x) // 16) - capture.WARM_UP
    assert_same_sizes(held)
    for mine, expected in zip(*reversed(found), strict=True):
        torch.testing.assert_close(mine, expected, rtol=1e-4, atol=1e-5)


# ---- trainings


NESTEROV = {"momentum": 0.9, "nesterov": True, "weight_decay": 1e-3}
CASES = {
    "sgd": {}, "momentum": NESTEROV, "adam": {"rule": "adam"}, "rms": {"rule": "rms", "momentum": 0.9},
    "masked": {"prune": True}, "masked adam": {"prune": True, "rule": "adam"},
    "masked rms": {"prune": True, "rule": "rms"}, "masked momentum": {"prune": True} | NESTEROV,
    "alone": {"runs": 1}, "dropout": {"dropout": 0.5}, "bfloat16": {"bf16": True},
    "resnet": {"net": "resnet20", "momentum": 0.9}, "resnet, bfloat16": {"net": "resnet20", "bf16": True, "runs": 1},
}  # fmt: skip


def trained(device, runs=2, net="mlp", prune=False, dropout=0.0, rule="sgd", **options):
    """Return (a trainer after four passes of two steps, the bytes held after each)."""
    if net == "mlp":
        made, x = nets.MLP([12, 7, 3], ["no-WN"] * runs, dropout=dropout), X
    else:
        made, x = convnets.build(net, (3, 8, 8), 3, runs, width=2), IMAGES
    made, seeds = nets.init_(made, list(range(runs))).to(device), list(range(runs))
    data = x.to(device), Y[: len(x)].to(device)
    trainer = Trainer(made, data, data, seeds, rule, 0.01, len(x) // 2, bar=False, **options)
    if prune:
        weights = nets.weights(made)
        trainer.prune({name: w.detach().abs() > w.detach().abs().mean() for name, w in weights.items()})
    held = []
    for _ in range(4):
        trainer.fit(1)
        held.append(torch.cuda.memory_allocated())
    return trainer, held


@pytest.mark.parametrize("case", CASES)
def test_a_step_of_a_training(case, gpu, monkeypatch):
    there, held = trained("cuda", **CASES[case])
    monkeypatch.setenv(capture.VARIABLE, "0")
    here, _ = trained("cuda" if "bf16" in CASES[case] else "cpu", **CASES[case])
    assert there.step.graph is not None and gpu.replays == 8 - capture.WARM_UP
    assert_same_sizes(held)
    for mine, expected in zip(there.net.parameters(), here.net.parameters(), strict=True):
        torch.testing.assert_close(mine.detach().cpu(), expected.detach().cpu(), rtol=1e-3, atol=1e-5)


def test_a_step_of_an_autoencoder(gpu):
    net = nets.init_(vae.VAE((1, 8, 8), 2, hidden=(6, 5), latent=3), [1, 2]).to("cuda")
    images = (torch.rand(16, 64, generator=GENERATOR) * 255).to(torch.uint8).to("cuda")
    x, noise = vae.numbers(images)[:4], torch.randn(2, 4, 3).to("cuda")

    def learn(x, noise):
        logits, mean, log_variance = net(x, noise)
        reconstruction, divergence = vae.losses(logits, mean, log_variance, x)
        (reconstruction + divergence).sum().backward()
        return reconstruction.detach().sum(1)

    step = capture.Step(learn, True)
    for _ in range(capture.WARM_UP + 2):
        found = step(x, noise)
    assert step.graph is not None and found.cpu().isfinite().all() and vae_study.CHUNK["cuda"]


# ---- scores, walks, draws


def recorded(function, *inputs):
    """Return what a function gives on the card, recorded and replayed."""
    graph = torch.cuda.CUDAGraph()
    function(*inputs)
    with torch.cuda.graph(graph):
        found = function(*inputs)
    graph.replay()
    return found


def lenet(device):
    net = convnets.VGG((3, 8, 8), 3, ["no-WN"], width=2, blocks=((1,), (2,)), biases=True)
    return nets.init_(net, [1]).to(device)


SCORES = {
    "snip": lambda net, x, y: scores.snip(net, x, y, None),
    "grasp": lambda net, x, y: scores.grasp(net, x, y, None),
    "synflow": lambda net, x, y: synflow.flow(net, 1, torch.float32).slopes,
    "synflow_l2": lambda net, x, y: synflow.flow(net, 2, torch.float32).slopes,
    "magnitude": lambda net, x, y: scores.magnitude(net, x, y, None),
    "contribution": lambda net, x, y: {
        "": contribution.Sums(net.output.weight, maximum=True).add(x[None, :, :16].abs()).score(1, 1)
    },
}  # fmt: skip


@pytest.mark.parametrize("name", SCORES)
def test_a_score(name):
    expected = SCORES[name](lenet("cpu"), IMAGES, Y[:32])
    found = recorded(SCORES[name], lenet("cuda"), IMAGES.to("cuda"), Y[:32].to("cuda"))
    for what, score in expected.items():
        torch.testing.assert_close(found[what].cpu(), score.detach(), rtol=1e-3, atol=1e-6)


def walks(net, device, **options):
    return phew.Walks(
        nets.graph(net), {name: w.detach()[0].to(device) for name, w in nets.weights(net).items()}, 1, **options
    )


@pytest.mark.parametrize("options", [{}, {"kernels": True}, {"power": 2}, {"invert": True}])
def test_a_batch_of_walks(options):
    net, results = lenet("cpu"), []
    for device in ("cpu", "cuda"):
        found = walks(net, device, **options)
        first = torch.full((found.total,), phew.NEVER, dtype=torch.int32, device=device)
        if device == "cpu":
            results.append((found._gain(first, 0, 100), first))
        else:
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                gain = found._gain(first, 0, 100)
            graph.replay()
            results.append((gain.cpu(), first.cpu()))
    for expected, mine in zip(*results, strict=True):
        assert torch.equal(mine, expected)


def test_walks_wait_at_forks_alone(gpu):
    """Who goes which way at a fork is a shape that depends on data; how often that is, the network decides."""
    net = nets.init_(convnets.build("resnet20", (3, 8, 8), 3, 1, width=2), [1])
    found = walks(net, "cuda")
    forks = sum(len(branches) for plan in found.plans for branches, every, _ in plan.values() if not every)
    for count in (64, 640):
        first = torch.full((found.total,), phew.NEVER, dtype=torch.int32, device="cuda")
        before = gpu.waits
        found._gain(first, 0, count)
        assert gpu.waits - before == forks


def accepted(products, coins, left):
    """`dpp.accept` without a look at the host, as its kernel is."""
    root, taken, bars = torch.zeros_like(products), [], coins * products.diagonal(dim1=1, dim2=2)
    for i in range(coins.shape[1]):
        column = products[:, i:, i] - (root[:, i:, :i] @ root[:, i, :i, None])[:, :, 0]
        takes = (column[:, 0] > bars[:, i]) & (left > 0)
        left, pivot = left - takes.long(), torch.where(takes, column[:, 0], 1)
        root[:, i:, i] = column * (takes / pivot.sqrt())[:, None]
        taken.append(takes)
    return torch.stack(taken, 1), root


def test_a_block_of_a_draw_waits_twice(gpu, monkeypatch):
    """For the coins, which come from the host, and to know whether it was the last and how wide the next step is."""
    monkeypatch.setattr(dpp, "accept", accepted)
    monkeypatch.setattr(dpp, "BLOCK", 4)
    vectors, proposed, results = torch.linalg.qr(torch.randn(2, 20, 20, dtype=torch.float64))[0], [], []
    propose = dpp._propose
    monkeypatch.setattr(dpp, "_propose", lambda *given: (proposed.append(gpu.waits), propose(*given))[1])
    for device in ("cpu", "cuda"):
        assert gpu.waits == 0, "of a CPU nothing is waited for"
        factor = vectors[:, :, :9].contiguous().to(device)
        room = [torch.empty(2, 20, width, dtype=torch.float64, device=device) for width in (9, 20)]
        proposed.clear()
        results.append(dpp._eliminate(factor, *room, [draws.generator(seed, "dpp") for seed in (1, 2)]).cpu())
    assert torch.equal(*results) and results[0].sum(1).tolist() == [9, 9]
    assert len(proposed) > 2 and {after - before for before, after in itertools.pairwise(proposed)} == {2}
