"""The DPP study of trained networks: six types at equal budgets, raw and reweighted (Acharyya, Zhang et al.).

Only the first layer is pruned: its edges, or its units. A set of pruned networks is a stack, one run per set drawn.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch

from lib.data.sets import SHAPES
from lib.errors import choice
from lib.networks import nets
from lib.pruning import likelihood, masks, reweight
from lib.pruning.likelihood import Moments
from lib.studies.dpp import kinds
from lib.training import lab as frame
from lib.training import once
from lib.training.evaluate import evaluate_alone

LAYER = "layers.0"
BETAS = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)  # at which the likelihood matrices are looked at
LEVELS = (0.01, 0.5, 0.99)  # the quantiles of their entries
OWN = ("hidden", "dropout", "dropconnect", "epochs")  # parameters of a `Lab`, beside its data and its rule
SEEN_UNITS = 5  # whose edges stand for those of all units, where every unit has a matrix of its own
YARDSTICK = "median"  # the beta by which sets are called diverse, whatever beta drew them


# ---- networks


def build(lab):
    """Return sigmoid networks as they start, one per seed: Xavier-uniform, biases zero."""
    sizes = [lab.train[0].shape[-1], *lab.hidden, int(lab.train[1].max()) + 1]
    dropped = {"dropout": lab.dropout, "dropconnect": lab.dropconnect}
    net = nets.MLP(sizes, ["no-WN"] * len(lab.seeds), "sigmoid", output_bias=True, **dropped)
    return nets.init_(net, lab.seeds, "xavier_uniform")


@dataclass(kw_only=True)
class Lab(frame.Lab):
    """What all types share: see `frame.Lab`. hidden: units of the hidden layers; dropout: of them.

    dropconnect: of the weights of the first layer, instead or besides.
    """

    build: Callable = build
    hidden: tuple = (500,)
    dropout: float = 0.0
    dropconnect: float = 0.0
    epochs: int = 40

    def dense(self, weights=""):
        """Return the trained networks: trained now or some time before, or copies of what the file `weights` holds."""
        of = {"hidden": list(self.hidden), "dropout": self.dropout}
        of |= {"dropconnect": self.dropconnect} if self.dropconnect else {}
        if weights:
            recipe = self.recipe | {"type": "dense", "epochs": self.epochs} | of
            return from_file(weights, self.network(), recipe)
        return super().dense(self.epochs, **of)[0]


def from_file(path, net, recipe):
    """Return `net` with every run's weights from one file: ours (.safetensors), or a state dict of linear layers.

    Ours says by which recipe it was made, which must be this one, of any seed. Of the other kind are the study's
    checkpoints, w1.weight, w1.bias and so on: a matrix and a bias per layer, in forward order.
    """
    path = Path(path).expanduser()
    if path.suffix == ".safetensors":
        trained, _ = once.load(path, net, recipe, any_seed=True)
        return nets.take(trained, [0] * nets.runs(net))
    state = list(torch.load(path, map_location="cpu", weights_only=True).items())
    wanted = [tensor for layer in nets.layers(net).values() for tensor in (layer.weight, layer.bias)]
    shapes = [tuple(tensor.shape[1:]) for tensor in wanted]
    if [tuple(value.shape) for _, value in state] != shapes:
        held = [(name, tuple(value.shape)) for name, value in state]
        raise ValueError(f"{path} holds {held}; this network has {shapes}: set hidden to the widths of the file")
    with torch.no_grad():
        for tensor, (_, value) in zip(wanted, state, strict=True):
            tensor.copy_(value.expand_as(tensor))
    return net


# ---- budgets


def budgets(p):
    """Return the study's budgets, at which edges and units leave as many weights, for a notebook's parameters `p`.

    Units from 10 to 80 % for one hidden layer, edges from 10 to 90 % for more.
    """
    own = widths(p)
    if len(p["hidden"]) == 1:
        return [kinds.budget(own, units=round(own[1] * tenths / 10)) for tenths in range(1, 9)]
    return [kinds.budget(own, density=tenths / 10) for tenths in range(1, 10)]


def widths(p):
    """Return (I, O, P): inputs and units of the first layer, and the units that they lead to."""
    channels, side, classes, *_ = SHAPES[p["dataset"]]
    return channels * side**2, *[*p["hidden"], classes][:2]


def complaint(p):
    """Return what a notebook's parameters `p` want to keep that cannot be kept, or None."""
    return kinds.complaint(p, widths(p), budgets)


# ---- pruning


class Items(NamedTuple):
    """What is known of a layer on the training inputs: of its inputs, of its units as items of a DPP, and as inputs.

    inputs: `Moments` (I, I); units, outputs: (R, O, O), what dpp_node draws from, and the next layer is refitted to.
    """

    inputs: Moments
    units: Moments
    outputs: Moments

    def of(self, chosen):
        """Return the items of the runs in the list `chosen`, which may repeat."""
        both = (own._replace(gram=own.gram[chosen], mean=own.mean[chosen]) for own in (self.units, self.outputs))
        return Items(self.inputs, *both)


def items(net, x, on="activation", as_published=False):
    """Return the `Items` of the first layer of `net` on the inputs `x (N, I)`.

    on: what stands for a node, its "activation" (DIVNET, arXiv 1511.05077), or its "preactivation" without the bias,
    as in the study. as_published: also the activations that the next layer is refitted to lack the bias.
    """
    layer, inputs = nets.layers(net)[LAYER], likelihood.moments(x)
    bias = None if as_published else layer.bias
    outputs = likelihood.unit_moments(x, layer.weight, bias, nets.ACTIVATIONS[net.activation])
    if choice("on", on, likelihood.ITEMS) == "activation":
        return Items(inputs, outputs, outputs)
    return Items(inputs, likelihood.projected(inputs, layer.weight), outputs)


def pruned(kind, net, keep, seeds, items, options=None, intercept=True, as_published=False, refit=True):
    """Yield (masks, raw, reweighted) for every number in the list `keep`: masks and stacks, pruned by one type.

    options: keywords of `kinds.masks_of`; items: the `Items`; seeds: one per run. intercept: see
    `reweight`; as_published: units keep speaking through their biases. Without `refit` there is no last stack.
    """
    drawn_from = items.inputs if kinds.of_edges(kind) else items.units
    act = nets.ACTIVATIONS[net.activation]
    for mask in kinds.masks_of(kind, net, LAYER, keep, seeds, drawn_from, **(options or {})).values():
        raw, again = copy.deepcopy(net), copy.deepcopy(net) if refit else None
        if kinds.of_edges(kind):
            masks.apply_(raw, mask)
            again = again and reweight.edges_(again, mask, items.inputs, intercept)
        else:
            reweight.units_(raw, mask, act, as_published=as_published)
            again = again and reweight.units_(again, mask, act, items.outputs, intercept, as_published)
        yield mask, raw, *([again] if refit else [])


def accuracies(kind, net, keep, seeds, items, test, options=None, as_published=False, refit=True):
    """Return what a type leaves of every run, `{name: array}`: one entry per number in the list `keep`.

    accuracy (R, 2, K), raw and reweighted, on `test`, or (R, 1, K) without `refit`; log_det (R, K): see `diversity`;
    left (R, K): weights of the first two layers. as_published: no intercepts, units stay, random edges at one half.
    """
    options = (options or {}) | ({"rule": "half"} if as_published and kind == "random_edge" else {})
    yardstick, columns = matrices(kind, net, items), []
    (_, units, inputs), (_, after, _) = (layer.weight.shape for layer in list(nets.layers(net).values())[:2])
    for mask, *stacks in pruned(kind, net, keep, seeds, items, options, not as_published, as_published, refit):
        (chosen,) = mask.values()
        accuracy = torch.stack([evaluate_alone(stack, *test).accuracy for stack in stacks], 1)
        counts = chosen.flatten(1).sum(1)
        left = counts * (inputs + after) if chosen.dim() == 2 else counts + units * after
        columns.append((accuracy, diversity(yardstick, chosen), left))
    arrays = (torch.stack(column, -1).cpu().numpy() for column in zip(*columns, strict=True))
    return dict(zip(("accuracy", "log_det", "left"), arrays, strict=True))


# ---- diversity


def matrices(kind, net, items, beta=YARDSTICK):
    """Return likelihood matrices (R, M, N, N): those of the edges into the first units, or the one of the units."""
    if kinds.of_edges(kind):
        weight = nets.layers(net)[LAYER].weight.detach()
        return torch.stack([likelihood.Edges(items.inputs, own, beta)[:SEEN_UNITS] for own in weight])
    return likelihood.likelihood(items.units.gram, items.units.examples, beta)[:, None]


def diversity(each, kept):
    """Return log det L_S per item of the sets S, `(R,) float64`, a mean over the matrices `each (R, M, N, N)`.

    kept: bool (R, N), or (R, O, N) with M of the O units looked at. log 1.01 says that the items of a set have nothing
    in common, log 0.01 that they are copies: what is drawn to be diverse should have more than what is drawn at random.
    """
    kept = kept[:, None] if kept.dim() == 2 else kept[:, : each.shape[1]]
    determinants = [
        torch.linalg.slogdet(matrix[chosen][:, chosen]).logabsdet / chosen.sum()
        for own, sets in zip(each, kept, strict=True)
        for matrix, chosen in zip(own, sets, strict=True)
    ]
    return torch.stack(determinants).view(kept.shape[:2]).mean(1)


def entries(kind, net, items, betas=BETAS):
    """Return the quantiles `LEVELS` of the off-diagonal entries of L at every beta, `(R, betas, levels)`.

    Of edges, a mean over the first units.
    """
    each = [[likelihood.quantiles(own, LEVELS).mean(0) for own in matrices(kind, net, items, beta)] for beta in betas]
    return torch.stack([torch.stack(row) for row in each], 1).cpu().numpy()
