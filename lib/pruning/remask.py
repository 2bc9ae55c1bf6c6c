"""Stacks whose masks are made anew in every forward pass, while the dense weights behind them are trained.

The question of the pruning challenge is what a network attains *while* it is pruned: weights or units are taken
away from the first step on, chosen afresh at every step. The gradient of the pruned network goes to the dense
weights as if no mask had been there (straight-through, Bengio et al. 2013, arXiv 1308.3432), so that what was
pruned can come back. (A weight that is pruned for good is the smallest there is, so pruning for good from the first
step on is plain training under the masks of the initialisation.)
"""

import torch
from torch import nn
from torch.func import functional_call

from lib.networks import nets
from lib.pruning import masks, methods


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx, weight, mask):
        return torch.where(mask, weight, 0.0)  # a quarter of the time of a product with booleans

    @staticmethod
    def backward(ctx, gradient):
        return gradient, None


class Remasked(nn.Module):
    """A stack behind masks of its own weights: the same logits as the masked stack, gradients for the dense one.

    In training every forward pass makes the masks again; after `eval()` the first one makes them, without gradients,
    and they are held until the next `eval()` or `train()`. density: one number per run; layers: the names of those that
    are pruned, the others stay whole; scope: see `masks.top`. Raises ValueError for normalised weights.
    """

    def __init__(self, net, density, layers, scope="layer"):
        super().__init__()
        nets.assert_plain(net)
        self.net, self.names, self.scope, self.held = net, list(layers), scope, None
        self.register_buffer("density", torch.tensor(density, dtype=torch.float64))

    def train(self, training=True):
        self.held = None
        return super().train(training)

    def __getstate__(self):
        return {**super().__getstate__(), "held": None}  # a copy may be of other runs

    def forward(self, x):
        if self.training:
            return functional_call(self.net, self._tensors(), (x,))
        if self.held is None:
            with torch.no_grad():
                self.held = self._tensors()
        return functional_call(self.net, self.held, (x,))

    def _largest(self, of):
        """Return masks of what has the largest magnitude; of few they keep none, which is no error in a step."""
        how = {"layers": self.names, "scope": self.scope}
        return methods.prune_each(self.net, "magnitude", [self.density], of=of, **how)[0]

    def _behind(self, kept):
        """Return the parameters that masks name, zero where these prune, which their gradients do not notice."""
        return {name: _StraightThrough.apply(self.net.get_parameter(name), mask) for name, mask in kept.items()}


class RemaskedWeights(Remasked):
    """A stack of which, in every layer of every run, only the weights of largest magnitude act."""

    def masks(self):
        """Return the masks of this moment, `{weight: bool (R, O, *F)}`."""
        return self._largest("weights")

    def _tensors(self):
        return self._behind(self.masks())


class RemaskedUnits(Remasked):
    """A stack of ReLU MLPs of which only the units with the largest norm act, `layers` being the first ones.

    Where all runs keep equally many, only the rows and columns that act are multiplied. That is the masked network
    exactly, gradient included: a pruned unit's output is relu(0), whose slope is zero, so neither its row nor its
    column gets any. So it does not grow: it comes back only where one that is kept becomes smaller than it.
    """

    def units(self):
        """Return the units kept at this moment, `{layer: bool (R, O)}`."""
        return self._largest("units")

    def masks(self):
        """Return the masks of this moment, `{parameter: bool (R, O, I)}`."""
        return masks.expand(self.units(), self.net)

    def _tensors(self):
        units, tensors, before = self.units(), {}, None
        if any(len(set(kept.sum(1).tolist())) > 1 for kept in units.values()):
            return self._behind(masks.expand(units, self.net))
        for name, layer in nets.layers(self.net).items():
            rows = units.get(name)
            tensors[f"{name}.weight"] = _picked(layer.weight, rows, before)
            if layer.bias is not None:
                tensors[f"{name}.bias"] = _picked(layer.bias[:, :, None], rows, None)[:, :, 0]
            before = rows
        return tensors


def _picked(weight, rows, columns):
    """Return the kept rows and columns of `weight (R, O, I)`, every run keeping equally many."""
    picked = []
    for run, matrix in enumerate(weight):
        if rows is not None:
            matrix = matrix.index_select(0, rows[run].nonzero()[:, 0])
        if columns is not None:
            matrix = matrix.index_select(1, columns[run].nonzero()[:, 0])
        picked.append(matrix)
    return torch.stack(picked) if len(picked) > 1 else picked[0][None]
