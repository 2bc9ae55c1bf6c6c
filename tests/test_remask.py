"""Masks made anew in every forward pass, against literal formulas of the straight-through gradient."""

import copy

import pytest
import torch

from lib import masks, nets, remask

FIRST = ["layers.0", "layers.1"]
X = torch.randn(20, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
Y = torch.randint(3, (20,), generator=torch.Generator().manual_seed(2))


def stack(runs=3):
    """Networks of 6-9-7-3 units with biases of all layers, none of them zero."""
    net = nets.init_(nets.MLP([6, 9, 7, 3], ["no-WN"] * runs, output_bias=True), range(runs)).double()
    rng = torch.Generator().manual_seed(0)
    for layer in net.layers:
        layer.bias.data.copy_(torch.randn(layer.bias.shape, generator=rng))
    return net


def loss(logits):
    return torch.nn.functional.cross_entropy(logits.transpose(1, 2), Y.expand(len(logits), -1), reduction="sum")


def literal(net, run, kept):
    """Return (logits, {name: gradient}) of one run, by the gradient of the loss in the masked tensors W∘M."""
    tensors = {name: p[run].detach() * (kept[name][run] if name in kept else 1) for name, p in net.named_parameters()}
    tensors = {name: t.requires_grad_() for name, t in tensors.items() if not name.endswith("scale")}
    h = X
    for k in range(3):
        h = h @ tensors[f"layers.{k}.weight"].T + tensors[f"layers.{k}.bias"]
        h = torch.relu(h) if k < 2 else h
    gradients = torch.autograd.grad(loss(h[None]), list(tensors.values()))
    return h, dict(zip(tensors, gradients, strict=True))


def same_as_literal(behind, kept):
    """Check the logits and the gradients of every run."""
    behind.zero_grad()
    logits = behind(X)
    loss(logits).backward()
    parameters = dict(behind.net.named_parameters())
    for run in range(nets.runs(behind)):
        expected, gradients = literal(behind.net, run, kept)
        torch.testing.assert_close(logits[run], expected, rtol=1e-12, atol=1e-12)
        for name, gradient in gradients.items():
            torch.testing.assert_close(parameters[name].grad[run], gradient, rtol=1e-12, atol=1e-12, msg=name)


def smallest(net, density, run):
    """Return the masks of one run's weights by sorting, `{name: bool}`."""
    kept = {}
    for name in FIRST:
        w = net.get_submodule(name).weight[run].detach().abs()
        order, keep = w.flatten().argsort(stable=True), masks.count(w.numel(), density)
        kept[f"{name}.weight"] = torch.zeros(w.numel(), dtype=torch.bool).index_fill_(0, order[-keep:], True).view_as(w)
    return kept


# ---- weights


def test_the_gradient_goes_straight_through():
    behind, density = remask.RemaskedWeights(stack(), [0.3, 0.5, 0.9], FIRST), [0.3, 0.5, 0.9]
    each = [smallest(behind.net, d, run) for run, d in enumerate(density)]
    kept = {name: torch.stack([one[name] for one in each]) for name in each[0]}
    assert all(torch.equal(mask, kept[name]) for name, mask in behind.masks().items())
    same_as_literal(behind, kept)
    gone = ~kept["layers.0.weight"]
    assert (behind.net.layers[0].weight.grad[gone] != 0).double().mean() > 0.5, "what is pruned is trained"


def test_steps_train_the_dense_weights_and_the_pruned_come_back():
    """W ← W - lr · dL/d(W∘M), with M made anew for every step."""
    net = stack(1)
    behind, twin, lr = remask.RemaskedWeights(net, [0.4], FIRST), copy.deepcopy(net), 0.02
    start = {name: mask.clone() for name, mask in behind.masks().items()}
    back = 0
    for _ in range(10):
        kept = {name: mask[None] for name, mask in smallest(twin, 0.4, 0).items()}
        back += sum(int((kept[name] & ~start[name]).sum()) for name in kept)
        _, gradients = literal(twin, 0, kept)
        for name, gradient in gradients.items():
            dict(twin.named_parameters())[name].data[0] -= lr * gradient
        behind.zero_grad()
        loss(behind(X)).backward()
        for p in behind.parameters():
            p.data -= 0 if p.grad is None else lr * p.grad
    assert back > 0
    for a, b in zip(net.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-11)


def test_global_masks_are_of_all_pruned_layers_together():
    behind = remask.RemaskedWeights(stack(), [0.2, 0.5, 0.8], FIRST, "global")
    kept = behind.masks()
    for run, density in enumerate(behind.density.tolist()):
        joined = torch.cat([behind.net.get_submodule(name).weight[run].detach().abs().flatten() for name in FIRST])
        mine = torch.cat([kept[f"{name}.weight"][run].flatten() for name in FIRST])
        assert int(mine.sum()) == masks.count(len(joined), density)
        assert joined[mine].min() > joined[~mine].max()
    same_as_literal(behind, kept)


def test_nothing_pruned_is_the_network_itself():
    net = stack()
    for kind in (remask.RemaskedWeights, remask.RemaskedUnits):
        torch.testing.assert_close(kind(net, [1.0] * 3, FIRST)(X), net(X), rtol=0, atol=0)


# ---- units


def test_units_kept_are_those_of_the_largest_rows():
    behind = remask.RemaskedUnits(stack(), [0.5] * 3, FIRST)
    for name, kept in behind.units().items():
        norms = behind.net.get_submodule(name).weight.detach().square().sum(2)
        for run in range(3):
            keep = masks.count(norms.shape[1], 0.5)
            assert sorted(norms[run].topk(keep).indices.tolist()) == kept[run].nonzero()[:, 0].tolist()


@pytest.mark.parametrize("density", [[0.6] * 3, [0.05] * 3, [0.3, 0.6, 0.9], [1.0] * 3])
@pytest.mark.parametrize("scope", ["layer", "global"])
def test_only_the_units_that_act_are_multiplied_and_nothing_changes(density, scope):
    """Logits and gradients are those of the masked network, biases included; 0.05 leaves some layers without a unit."""
    behind = remask.RemaskedUnits(stack(), density, FIRST, scope)
    kept = behind.masks()
    assert torch.equal(kept["layers.0.bias"], behind.units()["layers.0"])
    same_as_literal(behind, kept)
    sizes = {len(t[0]) for name, t in behind._tensors().items() if name == "layers.0.weight"}
    assert (sizes == {9}) == (len(set(density)) > 1 or density[0] == 1 or scope == "global"), "compact where it can be"


@pytest.mark.parametrize("kind", [remask.RemaskedWeights, remask.RemaskedUnits])
@pytest.mark.parametrize("density", [[0.6] * 3, [0.3, 0.6, 0.9]])
def test_a_run_knows_nothing_of_its_neighbours(kind, density):
    behind = kind(stack(), density, FIRST)
    for run in range(3):
        alone = nets.take(behind, [run])
        assert alone.density.tolist() == [density[run]]
        torch.testing.assert_close(alone(X)[0], behind(X)[run], rtol=1e-12, atol=1e-12)


def test_a_pruned_unit_comes_back_when_a_kept_one_becomes_smaller():
    behind = remask.RemaskedUnits(stack(1), [0.5], FIRST)
    before = behind.units()["layers.0"][0]
    kept, gone = before.nonzero()[0, 0], (~before).nonzero()[:, 0]
    loss(behind(X)).backward()
    assert not behind.net.layers[0].weight.grad[0, gone].any()
    with torch.no_grad():
        behind.net.layers[0].weight[0, kept] *= 1e-3
    after = behind.units()["layers.0"][0]
    assert not after[kept] and after.sum() == before.sum() and after[gone].sum() == 1


# ---- when masks are made


@pytest.mark.parametrize("kind", [remask.RemaskedWeights, remask.RemaskedUnits])
def test_evaluation_holds_the_masks_and_training_makes_them_anew(kind):
    behind = kind(stack(), [0.5] * 3, FIRST)
    calls, make = [], behind.units if kind is remask.RemaskedUnits else behind.masks
    name = "units" if kind is remask.RemaskedUnits else "masks"
    setattr(behind, name, lambda: calls.append(1) or make())
    for _ in range(3):
        behind(X)
    assert len(calls) == 3
    behind.eval()
    held = [behind(X) for _ in range(3)]
    assert len(calls) == 4 and torch.equal(held[0], held[2])
    assert not behind.held["layers.0.weight"].requires_grad, "the masks are held, not a history of how they were made"
    with torch.no_grad():
        for p in behind.net.parameters():
            p.mul_(torch.rand(p.shape, generator=torch.Generator().manual_seed(3)))
    behind.eval()
    changed = behind(X)
    assert len(calls) == 5 and not torch.equal(changed, held[0])
    torch.testing.assert_close(behind.train()(X), changed, rtol=0, atol=0)
    assert len(calls) == 6


@pytest.mark.parametrize("kind", [remask.RemaskedWeights, remask.RemaskedUnits])
def test_a_copy_of_other_runs_makes_masks_of_its_own(kind):
    behind = kind(stack(), [0.5] * 3, FIRST).eval()
    whole = behind(X)
    torch.testing.assert_close(nets.take(behind, [2, 0])(X), whole[[2, 0]], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(copy.deepcopy(behind)(X), whole, rtol=0, atol=0)


def test_a_slice_trains_the_weights_of_the_whole():
    behind = remask.RemaskedWeights(stack(), [0.5] * 3, FIRST)
    part = nets.take(behind, slice(1, 2))
    before = behind(X)
    with torch.no_grad():
        part.net.layers[0].weight.mul_(2)
    after = behind(X)
    assert torch.equal(after[0], before[0]) and not torch.equal(after[1], before[1])


def test_normalised_weights_are_an_error():
    net = nets.init_(nets.MLP([6, 9, 7, 3], ["EWN", "no-WN"]), [1, 2])
    with pytest.raises(ValueError, match="fold"):
        remask.RemaskedWeights(net, [0.5] * 2, FIRST)
