"""Stacked networks against plain torch modules, and the operations on whole stacks."""

import copy
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from torch import nn

from lib import nets, twins

TYPES = ["EWN", "SWN", "no-WN"]


def stack(types=TYPES, seeds=None, sizes=(7, 37, 4), **options):
    net = nets.MLP(list(sizes), types, **options)
    return nets.init_(net, seeds or list(range(len(types))))


def plain(net, run):
    """Return one run of a folded, ReLU, hidden-bias stack as torch modules."""
    modules = []
    for layer in net.layers:
        out, inputs = layer.weight.shape[1:]
        linear = nn.Linear(inputs, out, bias=layer.bias is not None)
        linear.weight.data = layer.weight[run].detach().clone()
        if layer.bias is not None:
            linear.bias.data = layer.bias[run].detach().clone()
        modules += [linear, nn.ReLU()]
    return nn.Sequential(*modules[:-1])


def test_the_types_are_one_function_at_the_start():
    net = stack(TYPES, [5, 5, 5], sizes=(784, 1024, 10))
    logits = net(torch.randn(20, 784))
    assert (logits - logits[2:]).abs().max() < 1e-5


def test_fold_is_the_same_function_without_normalisation():
    net = stack().double()
    with torch.no_grad():
        for p in net.parameters():
            p.add_(torch.randn_like(p))
    folded, x = nets.fold(net), torch.randn(11, 7, dtype=torch.float64)
    torch.testing.assert_close(folded(x), net(x), rtol=1e-12, atol=1e-12)
    assert not any(layer.normalised for layer in nets.layers(folded).values())
    expected = torch.stack([plain(folded, r)(x) for r in range(3)])
    torch.testing.assert_close(folded(x), expected, rtol=1e-12, atol=1e-12)


def test_init_draws_what_a_script_of_torch_modules_draws():
    """The published starts: all modules made under manual_seed, then Kaiming-normal, layer by layer."""
    with torch.random.fork_rng():
        torch.manual_seed(9192)
        hidden, out = nn.Linear(7, 37), nn.Linear(37, 4, bias=False)
        nn.init.kaiming_normal_(hidden.weight)
        nn.init.kaiming_normal_(out.weight)
    net = stack(["no-WN"], [9192])
    assert torch.equal(net.layers[0].weight[0], hidden.weight)
    assert torch.equal(net.layers[1].weight[0], out.weight)
    assert not net.layers[0].bias.any()


def test_init_does_not_touch_the_global_generator():
    before = torch.random.get_rng_state()
    stack()
    assert torch.equal(before, torch.random.get_rng_state())


def test_a_run_starts_the_same_in_any_stack():
    alone, third = stack(["SWN"], [8]), stack(["EWN", "no-WN", "SWN"], [1, 2, 8])
    for name, tensor in alone.state_dict().items():
        assert torch.equal(tensor[0], third.state_dict()[name][2])


def test_a_slice_shares_memory_and_a_list_copies():
    net = stack()
    view, copied = nets.take(net, slice(1, 2)), nets.take(net, [1])
    with torch.no_grad():
        net.layers[0].weight.add_(1)
    assert torch.equal(view.layers[0].weight, net.layers[0].weight[1:2])
    assert not torch.equal(copied.layers[0].weight, net.layers[0].weight[1:2])
    assert [nets.take(net, [k]).layers[0].normalised for k in range(3)] == [True, True, False]


def test_join_undoes_take():
    net = stack()
    again = nets.join([nets.take(net, [0, 1]), nets.take(net, [2])])
    for name, tensor in net.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name])


def test_unit_norms_are_those_of_the_folded_weights():
    net = stack()
    folded = {k: w.norm(dim=-1) for k, w in nets.weights(nets.fold(net)).items()}
    for layer, norms in nets.unit_norms(net).items():
        torch.testing.assert_close(norms, folded[f"{layer}.weight"])


def test_parameters_and_macs_are_the_published_counts():
    plain_one, normalised = (nets.MLP([784, 1024, 10], [kind]) for kind in ("no-WN", "EWN"))
    assert nets.parameters_per_run(plain_one) == 814_080
    assert nets.parameters_per_run(normalised) == 814_080 + 1024
    assert nets.macs_per_run(normalised) == 784 * 1024 + 1024 * 10


@pytest.mark.parametrize("kind", TYPES)
def test_steps_in_the_backward_pass_are_torchs_sgd(kind):
    """Twenty steps on a whole network, float64, beside torch.optim.SGD on the same parameters."""
    fused = stack([kind, kind], sizes=(7, 11, 6, 4)).double()
    reference = copy.deepcopy(fused)
    optimizer = torch.optim.SGD(reference.parameters(), lr=0.05)
    g = torch.Generator().manual_seed(0)
    for _ in range(20):
        x, y = torch.randn(2, 13, 7, generator=g, dtype=torch.float64), torch.randint(4, (2, 13), generator=g)
        with nets.sgd_in_backward(fused, torch.full((2,), 0.05, dtype=torch.float64)):
            twins.log_loss(fused(x), y).sum().backward()
        optimizer.zero_grad()
        twins.log_loss(reference(x), y).sum().backward()
        optimizer.step()
    for name, p in reference.named_parameters():
        torch.testing.assert_close(dict(fused.named_parameters())[name], p, rtol=1e-9, atol=1e-11)
    assert all(layer.lr is None for layer in nets.layers(fused).values())


@pytest.mark.parametrize("name, module", [("sigmoid", nn.Sigmoid()), ("erf", lambda z: torch.special.erf(z / 2**0.5))])
def test_activations_of_the_dpp_study(name, module):
    net = stack(["no-WN"] * 2, activation=name, output_bias=True)
    x = torch.randn(11, 7)
    for run in range(2):
        first, last = plain(net, run)[::2]
        torch.testing.assert_close(net(x)[run], last(module(first(x))))


def test_dropout_is_of_hidden_units_and_only_while_training():
    net, whole = stack(["no-WN"] * 2, dropout=0.25), stack(["no-WN"] * 2)
    x = torch.randn(200, 7)
    assert not torch.allclose(net(x), whole(x))
    hidden = net.drops[0](torch.ones(2, 400, 37))
    assert hidden.unique().tolist() == pytest.approx([0, 1 / 0.75])
    assert abs((hidden == 0).double().mean() - 0.25) < 0.02
    torch.testing.assert_close(net.eval()(x), whole(x))
    assert len(stack(sizes=(7, 9, 9, 4), dropout=0.5).drops) == 2 and len(whole.drops) == 0


def test_unknown_names_are_errors_that_name_the_allowed():
    with pytest.raises(ValueError, match="XWN.*no-WN"):
        nets.MLP([2, 3, 1], ["XWN"])
    with pytest.raises(ValueError, match="torch_kaiming"):
        nets.init_(nets.MLP([2, 3, 1], ["EWN"]), [0], scheme="xavier")
    with pytest.raises(ValueError, match="2 seeds for a stack of 1"):
        nets.init_(nets.MLP([2, 3, 1], ["EWN"]), [0, 1])


@dataclass
class Whole:
    """What has runs first, in all forms that there are."""

    net: torch.nn.Module
    masks: dict
    curve: np.ndarray
    told: list
    spare: object = field(default=None, init=False)


@pytest.mark.parametrize("run", [1, np.int64(1)])
def test_one_run_is_taken_as_a_stack_of_one(run):
    net, x = nets.init_(nets.MLP([4, 3, 2], ["EWN", "no-WN"]), [1, 2]), torch.ones(5, 4)
    one = nets.take(net, run)
    assert nets.runs(one) == 1 and not one.layers[0].normalised
    assert torch.equal(one(x), nets.take(net, [1])(x)) and torch.allclose(one(x)[0], net(x)[1])


def test_what_has_runs_first_is_taken_and_joined_like_a_stack():
    net = nets.init_(nets.MLP([2, 3, 1], ["EWN", "SWN", "no-WN"]), [1, 2, 3])
    whole = Whole(net, {"w": torch.arange(6).view(3, 2)}, np.arange(3.0), [[1], [2], [3]])
    whole.spare = "of this one alone"
    one, two = nets.take(whole, [2]), nets.take(whole, [0, 1])
    two.told[0].append(4)
    assert whole.told[0] == [1] and one.spare is None, "a list is copied, run by run"
    again = nets.join([two, one])
    assert again.told == [[1, 4], [2], [3]] and again.curve.tolist() == [0, 1, 2]
    assert torch.equal(again.masks["w"], whole.masks["w"])
    for name, tensor in net.state_dict().items():
        assert torch.equal(again.net.state_dict()[name], tensor)
    assert [layer.normalised for layer in nets.layers(nets.take(net, [2])).values()] == [False, False]
    assert nets.take({}, [0]) == nets.join([{}, {}]) == {}
