"""DropConnect against masks that are really drawn, one per example, and against what must not change."""

import numpy as np
import pytest
import torch
from scipy import stats

from lib import chance, nets
from lib.networks.layers import DropConnect, Linear

INPUTS, UNITS, EXAMPLES = 400, 3, 8000


def layer(runs=1):
    made = Linear(runs, INPUTS, UNITS)
    with torch.no_grad():
        made.weight.copy_(torch.randn(made.weight.shape, generator=torch.Generator().manual_seed(1)))
        made.bias.copy_(torch.arange(runs * UNITS).view(runs, UNITS))
    return made


def started(runs=1, share=0.5, seeds=None):
    connect = DropConnect(runs, share)
    connect.start_(seeds or list(range(runs)), 0)
    return connect.train()


def test_normals_are_normal_and_no_two_steps_are_alike():
    keys, step = torch.tensor([5, 7]), torch.tensor([3, 3])
    drawn = chance.normals(keys, step, 50_000)
    assert drawn.dtype == torch.float32 and bool(drawn.isfinite().all())
    for own in drawn.numpy():
        assert stats.kstest(own, "norm").pvalue > 1e-3
    assert abs(np.corrcoef(drawn[0], drawn[1])[0, 1]) < 0.02
    assert abs(np.corrcoef(drawn[0, 1:], drawn[0, :-1])[0, 1]) < 0.02, "nor neighbours"
    assert torch.equal(chance.normals(keys[1:], step[1:], 50_000)[0], drawn[1]), "whatever else is in the stack"
    assert not torch.equal(chance.normals(keys, step + 1, 50_000), drawn)


@pytest.mark.parametrize("share", [0.2, 0.5])
def test_what_units_sum_up_is_distributed_as_with_masks(share):
    made, x = layer(), torch.randn(INPUTS, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        found = started(1, share)(made, x.expand(EXAMPLES, -1))[0].numpy()
    rng = np.random.default_rng(3)
    kept = rng.random((EXAMPLES, UNITS, INPUTS)) < 1 - share
    literal = (kept * made.weight[0].detach().numpy() / (1 - share)) @ x.numpy() + made.bias[0].detach().numpy()
    error = literal.std(0) / EXAMPLES**0.5
    assert (abs(found.mean(0) - literal.mean(0)) < 6 * error).all()
    assert found.std(0) == pytest.approx(literal.std(0), rel=0.05)
    for own, other in zip(found.T, literal.T, strict=True):
        near = pytest.approx(np.quantile(other, (0.05, 0.95)), abs=0.1 * float(other.std()))
        assert np.quantile(own, (0.05, 0.95)) == near


def test_gradients_are_those_of_what_was_drawn():
    made, connect = layer().double(), started()

    def called(weight, x):
        connect.step.zero_()
        return torch.func.functional_call(Called(made, connect), {"made.weight": weight}, (x,))

    x = torch.randn(4, INPUTS, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(called, (made.weight.detach().clone().requires_grad_(), x), atol=1e-4)


class Called(torch.nn.Module):
    def __init__(self, made, connect):
        super().__init__()
        self.made, self.connect = made, connect

    def forward(self, x):
        return self.connect(self.made, x)


def test_a_tested_network_has_all_its_weights_and_a_training_one_other_noise_at_every_step():
    net = nets.init_(nets.MLP([7, 5, 4], ["no-WN"] * 2, dropconnect=0.5), [1, 2])
    whole = nets.init_(nets.MLP([7, 5, 4], ["no-WN"] * 2), [1, 2])
    x = torch.randn(9, 7)
    assert torch.equal(net.eval()(x), whole(x))
    first, second = net.train()(x), net(x)
    assert not torch.equal(first, second) and not torch.equal(first, whole(x))
    alone = nets.init_(nets.MLP([7, 5, 4], ["no-WN"], dropconnect=0.5), [2])
    torch.testing.assert_close(alone(x)[0], first[1], msg="a run does not depend on its neighbours")
    assert set(net.state_dict()) - set(whole.state_dict()) == {"connect.key", "connect.step"}


def test_normalised_weights_are_refused():
    net = nets.init_(nets.MLP([7, 5, 4], ["EWN"], dropconnect=0.5), [1])
    with pytest.raises(ValueError, match="plain weights.*no-WN"):
        net(torch.randn(2, 7))
