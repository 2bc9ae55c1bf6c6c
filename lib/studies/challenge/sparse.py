"""One masked network computed in several ways, and how long each takes: what sparsity buys, and what it does not.

dense            the masked weights as full matrices: the zeros are multiplied like everything else
csr              compressed rows: only kept weights are stored and multiplied; fully connected networks
block            compressed rows of square blocks: a block is stored whole if it keeps one weight. It pays only for
                 masks that keep whole blocks, `block_masks`, which are other masks than those of single weights
semi_structured  two of every four inputs, on the tensor cores of a GPU, in float16; for `two_of_four` masks only, and
                 layers that masks leave whole
shrunk           the units without a path are gone, the rest is full matrices; see `lib/pruning/shrink.py`
"""

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import nn

from lib.networks import convnets, nets, plain
from lib.pruning import masks, methods, selection, shrink
from lib.studies.challenge import modes

BLOCK = 8  # the fastest of 4, 8, 16, 32 and 64 for products of 1024×768 and 768×256, at 50 to 95 % sparsity on one core
SEMI_ALIGNMENT = 64  # rows and columns that torch's 2:4 products take, in float16, are multiples of 32 and 64

# Of notices that torch's sparse tensors may change: tests compare what is used of them with full matrices.
QUIET = partial(warnings.catch_warnings, action="ignore", category=UserWarning)


@dataclass(frozen=True)
class Form:
    """A network in one form: `compute(x)` of `x (N, inputs)` gives logits `(N, classes)`.

    macs: multiplications of one example's pass; bytes: what the weights take in memory, with their indices.
    """

    compute: Callable
    macs: int
    bytes: int


def _full(make, net, kept):
    """Return full matrices, of the network that `make` leaves."""
    module = make(net, kept)
    inputs = math.prod(net.image) if hasattr(net, "image") else net.layers[0].weight.shape[2]
    size = sum(tensor.numel() * tensor.element_size() for tensor in module.parameters())
    return Form(module, plain.macs(module, inputs), size)


# ---- forms whose weights stand on the left


class Transposed:
    """A fully connected network on activations `(units, N)` throughout: a sparse matrix multiplies from the left.

    convert: makes a matrix sparse. Its sides, and so every layer's units, are filled up with zeros to `multiple`s.
    """

    def __init__(self, modules, convert, multiple=1, dtype=None):
        self.layers, self.classes = [], [m for m in modules if isinstance(m, nn.Linear)][-1].out_features
        for module in modules:
            if not isinstance(module, nn.Linear):
                self.layers[-1][2].append(module)
                continue
            rows, columns = -module.out_features % multiple, -module.in_features % multiple
            weight = nn.functional.pad(module.weight.detach().to(dtype), (0, columns, 0, rows))
            bias = None if module.bias is None else nn.functional.pad(module.bias.detach().to(weight), (0, rows))
            self.layers.append((convert(weight), bias, []))
        self.inputs, self.dtype = self.layers[0][0].shape[1], weight.dtype

    def __call__(self, x):
        values = nn.functional.pad(x.to(self.dtype), (0, self.inputs - x.shape[1])).t()
        for weight, bias, activation in self.layers:
            values = _product(weight, values)
            values = values if bias is None else values + bias[:, None]
            for module in activation:
                values = module(values)
        return values[: self.classes].t().to(x.dtype)


def _product(weight, values):
    """Return weight @ values; for one example by a vector, which compressed rows take twice as fast."""
    if values.shape[1] == 1 and weight.layout in (torch.sparse_csr, torch.sparse_bsr):
        return (weight @ values[:, 0])[:, None]
    return weight @ values


def _matrices(net, kept, form):
    """Return the modules of a masked, fully connected network at full size."""
    modules = list(shrink.unshrunk(net, kept).children())
    if not all(isinstance(module, nn.Linear | nn.ReLU | plain.Square) for module in modules):
        raise ValueError(f"{form} takes fully connected networks, not a {type(net).__name__}; take dense or shrunk")
    return modules


def _rows(form, net, kept):
    """Return compressed rows, of square blocks if `form` is "block"."""
    side = BLOCK if form == "block" else 1
    network = Transposed(_matrices(net, kept, form), lambda weight: _compressed(weight, form, side), side)
    stored = [weight for weight, _, _ in network.layers]
    parts = [part for weight in stored for part in (weight.values(), weight.col_indices(), weight.crow_indices())]
    size = sum(part.numel() * part.element_size() for part in parts)
    return Form(network, sum(weight.values().numel() for weight in stored), size)


def _compressed(weight, form, side):
    """Return the matrix as compressed rows, of square blocks of this side if `form` is "block"; indices are int32."""
    checked = torch.sparse.check_sparse_tensor_invariants()
    with QUIET(), checked:
        rows = weight.to_sparse_bsr((side, side)) if form == "block" else weight.to_sparse_csr()
        # MKL works with int32, to which torch would convert int64 at every product: a third of the time of one example.
        indices = rows.crow_indices().int(), rows.col_indices().int()
        return torch.sparse_compressed_tensor(*indices, rows.values(), rows.shape, layout=rows.layout)


def _semi_structured(net, kept):
    device = next(net.parameters()).device
    if device.type != "cuda":
        raise ValueError(f"semi_structured runs on CUDA, and the network is on {device}; take {', '.join(ANYWHERE)}")
    modules = _matrices(net, kept, "semi_structured")
    for weight in (module.weight for module in modules if isinstance(module, nn.Linear)):
        if not (_has_two_of_four(weight) or weight.all()):
            told = 'masks that keep two of every four inputs (scope="four"), or all'
            raise ValueError(f"semi_structured takes {told}")
    network = Transposed(modules, _semi, SEMI_ALIGNMENT, torch.float16)
    halved = [type(weight) is not torch.Tensor for weight, _, _ in network.layers]
    sizes = [weight.shape.numel() for weight, _, _ in network.layers]
    count = sum(size // 2 if half else size for size, half in zip(sizes, halved, strict=True))
    # Two bytes a number in float16; two bits say which of the four inputs a kept one has.
    return Form(network, count, 2 * count + sum(size // 8 for size, half in zip(sizes, halved, strict=True) if half))


def _semi(weight):
    """Return the matrix as torch's 2:4 tensor; as it is, if it is a whole one."""
    if not _has_two_of_four(weight):
        return weight
    with QUIET():
        return torch.sparse.to_sparse_semi_structured(weight)


def _has_two_of_four(weight):
    return bool((selection.fours(weight[None] == 0).sum(-1) >= 2).all())


# name: (net, masks) -> `Form` of the first run, all with the same logits. ValueError for a form that cannot hold this
# network or these masks, and for "semi_structured" without CUDA.
FORMS = {
    "dense": partial(_full, shrink.unshrunk), "csr": partial(_rows, "csr"), "block": partial(_rows, "block"),
    "semi_structured": _semi_structured, "shrunk": partial(_full, shrink.shrink),
}  # fmt: skip
ANYWHERE = ("dense", "csr", "block", "shrunk")


# ---- masks that some forms need


def block_masks(weights, density, block=BLOCK):
    """Return masks `{name: bool (R, O, I)}` that keep whole square blocks, in every matrix those of the largest norm.

    weights: `{name: (R, O, I)}` of the layers to prune. Blocks at the lower and right edge may be cut off; they count
    like the others, so that the density is that of blocks.
    """
    scores = {name: _blocks(weight.detach(), block).norm(dim=(2, 4)) for name, weight in weights.items()}
    kept = masks.top(scores, density)
    full = {name: mask.repeat_interleave(block, 1).repeat_interleave(block, 2) for name, mask in kept.items()}
    return {name: mask[:, : weights[name].shape[1], : weights[name].shape[2]] for name, mask in full.items()}


def _blocks(weight, block):
    """Return `(R, rows of blocks, block, columns of blocks, block)`, filled up with zeros."""
    rows, columns = (-size % block for size in weight.shape[1:])
    return nn.functional.pad(weight, (0, columns, 0, rows)).unflatten(2, (-1, block)).unflatten(1, (-1, block))


# ---- what one form costs, over sparsities, kinds of masks and batch sizes

# What masks keep, or drop, as a whole. Two of four is a pattern of one sparsity, which tensor cores know.
WHOLE = ("weight", "neuron", "block", "two_of_four")
NETS = ("mlp", *convnets.NAMES)


def complaint(p):
    """Return what a notebook's parameters `p` ask for that cannot be, all taken together, or None."""
    if p["net"] != "mlp" and p["type"] != ["shrunk"]:
        return f"type = {p['type']} with net = {p['net']!r}: convolutions have no sparse form here, take type shrunk"
    return None


def network(data, p, seeds):
    """Return the stack that a notebook's parameters `p` name: an MLP trained as the challenge has it, or untrained."""
    if p["net"] != "mlp":
        net = convnets.build(p["net"], data.train_x.shape[1:], data.classes, len(seeds))
        return nets.init_(net, seeds, "phew").to(data.device)
    rule = {"rule": "adam", "lr": p["lr"], "batch": p["batch_size"]}
    recipe = modes.recipe(p["dataset"], p["train_examples"], rule)
    lab = modes.Lab(data.split("train"), data.split("test"), seeds, recipe, rule, hidden=p["hidden"])
    return lab.dense(p["epochs"])[0]


def masks_of(net, whole, sparsity):
    """Return masks of all layers but the last, `{weight: bool (R, O, I)}`, that drop weights, units or blocks whole."""
    weights = dict(list(nets.weights(net).items())[:-1])
    if whole == "block":
        return block_masks(weights, 1 - sparsity)
    if whole == "two_of_four":
        return masks.top({name: weight.detach().abs() for name, weight in weights.items()}, 0.5, "four")
    return modes.masks_of(net, whole, [1 - sparsity] * nets.runs(net))[0]


def _made(net, form, whole, sparsity):
    """Return one run of `net` in a form, behind masks of `masks_of`, or None where the form has no such masks."""
    if (whole == "two_of_four") != (form == "semi_structured") or (whole == "two_of_four" and sparsity != 0.5):
        return None
    if isinstance(net, nets.MLP):
        return FORMS[form](net, masks_of(net, whole, sparsity))
    if whole != "neuron":
        return None
    (units,) = methods.prune_each(net, "magnitude", [1 - sparsity], of="units")
    return FORMS[form](shrink.narrow(net, units), {})


def survey(net, form, sparsities, inputs, repeats=30, threads=1):
    """Return `{name: array}` of the first run of `net` in one of `FORMS`, nan where the form has no such thing.

    latency (whole, sparsity, batch, 3): median and quartiles in ms of one call; macs, bytes (whole, sparsity). inputs:
    one `(batch, pixels)` for each batch size. The pattern of two of four stands at the sparsity one half, and of
    convolutional networks only units go.
    """
    shape = len(WHOLE), len(sparsities)
    measured = {name: np.full(shape, np.nan) for name in ("macs", "bytes")}
    measured["latency"] = np.full((*shape, len(inputs), 3), np.nan)
    for w, whole in enumerate(WHOLE):
        for k, sparsity in enumerate(sparsities):
            if (made := _made(net, form, whole, sparsity)) is None:
                continue
            measured["macs"][w, k], measured["bytes"][w, k] = made.macs, made.bytes
            for b, x in enumerate(inputs):
                took = plain.latency(made.compute, x, repeats, threads)
                measured["latency"][w, k, b] = took.median, took.low, took.high
    return measured
