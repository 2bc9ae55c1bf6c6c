"""Likelihood matrices of edges and nodes, all from one Gram matrix of the inputs in float64.

A determinantal point process over items with vectors a_i (one entry per example) draws diverse sets by
L_ij = exp(-beta |a_i - a_j|²) + ridge [i = j]. The items are the nodes of a layer (DIVNET, Mariet & Sra,
arXiv 1511.05077), or the edges into one unit h, a_i = w_hi x_i (Acharyya, Zhang et al.). Distances need inner products
alone, so G = Σ x xᵀ over the examples serves every unit: <a_i, a_j> = w_hi w_hj G_ij, and W G Wᵀ for the nodes.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch

from lib.errors import ParameterError, choice, number
from lib.kernels import twins
from lib.networks import nets
from lib.pruning.checks import assert_tensors

RIDGE = 0.01  # what the study adds to the diagonal
EXAMPLES_AT_ONCE = 4096
ITEMS = ("preactivation", "activation")
FORMS = ("rbf", "linear")


class Moments(NamedTuple):
    """What least squares and distances need to know of some variables: gram (..., I, I), mean (..., I), examples."""

    gram: torch.Tensor
    mean: torch.Tensor
    examples: int

    def of_runs(self, runs):
        """Return those of each of so many runs, `[(I, I), ...]`: its own, or these where all share them."""
        if self.gram.dim() == 2:
            return [self] * runs
        return [Moments(gram, mean, self.examples) for gram, mean in zip(self.gram, self.mean, strict=True)]


def assert_fitting(x, net, of):
    """Raise ParameterError for what is no `Moments`, by layer, of the inputs of a stack's layers, or of their units."""
    layers = nets.layers(net)
    for name, known in (x or {None: None}).items():
        runs, units, inputs = layers[choice("a layer of moments", name, layers)].weight.shape[:3]
        fitting = [(inputs, inputs), (runs, inputs, inputs)] if of == "weights" else [(runs, units, units)]
        found = tuple(known.gram.shape) if isinstance(known, Moments) else f"a {type(known).__name__}"
        if found not in fitting:
            told = f"the moments of {name} are {found}; needed are likelihood.Moments"
            raise ParameterError(f"{told} whose gram is {' or '.join(map(str, fitting))}")


@torch.no_grad()
def moments(x, transform=None):
    """Return the float64 `Moments` of `x (N, I)` or `(R, N, I)`, or of what `transform` makes of its parts.

    Here as in the next two functions each run is summed alone: stacked products round otherwise, by some 1e-6, and a
    draw from matrices that differ so goes another way.
    """
    assert_tensors(x)
    if x.dim() == 3 and len(x) > 1:
        return joined(moments(x[[run]], transform) for run in range(len(x)))
    gram = total = 0.0
    for part in x.split(EXAMPLES_AT_ONCE, dim=-2):
        part = (part if transform is None else transform(part)).double()
        gram, total = gram + part.mT @ part, total + part.sum(-2)
    return Moments(gram, total / x.shape[-2], x.shape[-2])


@torch.no_grad()
def unit_moments(x, weight, bias, activation):
    """Return the `Moments` (R, O, O) of activation(x wᵀ + bias), the units of a linear layer `weight (R, O, I)`.

    As in DIVNET and as the network computes them; `x` is (N, I), shared, or (R, N, I). Of x wᵀ alone, as Acharyya,
    Zhang et al. published it, they are `projected`.
    """

    def of(run):
        shift = 0 if bias is None else bias[[run], None]
        own = x[[run]] if x.dim() == 3 else x
        return moments(own, lambda part: activation(twins.product(part, weight[[run]]) + shift))

    return joined(map(of, range(len(weight))))


@torch.no_grad()
def projected(inputs, weight):
    """Return the `Moments` of x wᵀ from those of x: for `weight (..., O, I)`, no example is looked at again."""
    if weight.dim() == 3 and len(weight) > 1:
        return joined(projected(own, weight[[run]]) for run, own in enumerate(inputs.of_runs(len(weight))))
    w = weight.double()
    return Moments(w @ inputs.gram @ w.mT, (w @ inputs.mean[..., None])[..., 0], inputs.examples)


def joined(parts):
    """Return the `Moments` of all runs from those of each, which have a leading axis of one."""
    grams, means, counts = zip(*parts, strict=True)
    return Moments(torch.cat(grams), torch.cat(means), counts[0])


def likelihood(gram, examples, beta="10/N", ridge=RIDGE, form="rbf"):
    """Return the likelihood matrices `(..., M, M)` of items whose inner products are `gram (..., M, M)`.

    form: "rbf", exp(-beta |a_i - a_j|²) + ridge I; "linear", <a_i, a_j> / examples with neither beta nor ridge, the
    matrices of the teacher–student study. beta: a number; a text such as "10/N", N the examples; or "median", one
    over the median squared distance of each matrix, so that its exponents are of order one.
    """
    if choice("form", form, FORMS) == "linear":
        return gram / examples
    squares = gram.diagonal(dim1=-2, dim2=-1)
    # Rounding can leave a distance slightly below zero; two equal items are at distance 0.
    distances = (squares[..., :, None] + squares[..., None, :]).sub_(gram, alpha=2).clamp_(min=0)
    matrices = distances.mul_(_bandwidth(beta, examples, distances)).neg_().exp_()
    matrices.diagonal(dim1=-2, dim2=-1).add_(number("ridge", ridge, "[0, inf)"))
    return matrices


def _bandwidth(beta, examples, distances):
    """Return beta as a number, or as one number per matrix `(..., 1, 1)`."""
    if beta == "median":
        middle = _pairs(distances).median(-1).values
        if not (middle > 0).all():
            raise ValueError('beta is "median", but half of the items of a matrix are equal; give beta as a number')
        return (1 / middle)[..., None, None]
    try:
        value = float(beta.removesuffix("/N")) / examples if str(beta).endswith("/N") else float(beta)
    except (TypeError, ValueError):
        value = -1.0
    if not value > 0:
        raise ValueError(f'beta is {beta!r}; allowed are a number above 0, a text such as "10/N", and "median"')
    return value


def _pairs(matrices):
    """Return the entries above the diagonal, `(..., M, M) -> (..., M (M - 1) / 2)`."""
    above = torch.ones(matrices.shape[-2:], dtype=torch.bool, device=matrices.device).triu_(1)
    return matrices[..., above]


@dataclass(frozen=True)
class Edges:
    """The likelihood matrices of the edges into every unit of `weight (O, I)`, `(O, I, I)`, built when sliced.

    All at once would be 2.4 GB for a layer of 784 to 500. `moments` are those of the layer's inputs; the other
    fields are those of `likelihood`. One matrix per unit: `Edges(...)[3:5]` are those of units 3 and 4.
    """

    moments: Moments
    weight: torch.Tensor
    beta: float | str = "10/N"
    ridge: float = RIDGE
    form: str = "rbf"

    def __post_init__(self):
        inputs = self.weight.shape[-1]
        if self.weight.dim() != 2 or self.moments.gram.shape != (inputs, inputs):
            told = f"weight is {tuple(self.weight.shape)}, gram {tuple(self.moments.gram.shape)}; allowed are (O, I)"
            raise ValueError(f"{told} and (I, I): one run at a time, with the moments of the inputs of this layer")

    @property
    def shape(self):
        return torch.Size([*self.weight.shape, self.weight.shape[1]])

    @property
    def device(self):
        return self.moments.gram.device

    @torch.no_grad()
    def __getitem__(self, units):
        w = self.weight[units].double()
        gram = (w[:, :, None] * w[:, None, :]).mul_(self.moments.gram)
        return likelihood(gram, self.moments.examples, self.beta, self.ridge, self.form)


def quantiles(matrices, at=(0.0, 0.01, 0.5, 0.99, 1.0)):
    """Return the quantiles of the off-diagonal entries of every matrix, `(M, N, N) -> (M, len(at))`.

    The first thing to look at: all near 0, and the draws are uniform; all near 1, and the items are the same.
    """
    entries = (_pairs(matrices[unit : unit + 1])[0] for unit in range(matrices.shape[0]))
    levels = torch.tensor(at, dtype=torch.float64, device=matrices.device)
    return torch.stack([torch.quantile(row.double(), levels) for row in entries])
