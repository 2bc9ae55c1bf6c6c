"""What a method is given and what it makes, looked at: examples, labels, scores, masks; and warnings about them."""

import itertools
import math
import os
import sys
import warnings

import torch

from lib.errors import ParameterError, choice, hint, listed
from lib.networks import nets
from lib.pruning.masks import SCOPES, assert_like, assert_units, each

# folders that no warning names
INSIDE = tuple(os.path.join(folder, "") for folder in (os.path.dirname(__file__), *torch.__path__))


def labels(net, x, y, classes=True, bytes=False):
    """Return the labels `y`, whole numbers of any kind, as int64.

    ValueError for examples that a stack does not read, and labels that are not theirs, or no `classes`.
    """
    assert_tensors(x, y), assert_rows(net, x, bytes)
    if y.dim() > 1 or x.shape[-2] != len(y) or y.is_floating_point() or y.is_complex() or y.dtype == torch.bool:
        told = f"{x.shape[-2]} examples with labels {tuple(y.shape)}, {y.dtype}"
        raise ValueError(f"{told}; needed is a class of each, (N,) torch.int64")
    y, count = y.long(), [*nets.weights(net).values()][-1].shape[1]  # torch has no least of uint16, uint32
    if classes and not 0 <= int(y.min()) <= int(y.max()) < count:
        raise ValueError(f"labels are {int(y.min())} to {int(y.max())}; {count} logits have 0 to {count - 1}")
    return y


def assert_rows(net, x, bytes=True):
    """Raise ParameterError for examples that a stack does not read; bytes: which are numbers later, as of images."""
    own = next(iter(nets.weights(net).values()))
    inputs = math.prod(net.image) if hasattr(net, "image") else own.shape[-1]
    shared = x.dim() < 3 or x.dim() == 3 and len(x) == len(own)
    if not shared or x.shape[-1:] != (inputs,) or x.dtype not in (own.dtype, torch.uint8 if bytes else own.dtype):
        told = f"x is {x.dtype} of shape {tuple(x.shape)}; needed for a stack are {own.dtype}"
        raise ParameterError(f"{told}, rows (N, {inputs}), of images x.flatten(1), or (R, N, {inputs})")


def assert_scope(net, of, scope, layers=None):
    """Raise ParameterError for a scope that there is not, or not of what these layers have."""
    choice("scope", scope, SCOPES[: 2 if of == "units" else None])
    turned = [name for name, layer in nets.layers(net).items() if getattr(layer, "turned", False)]
    if scope in SCOPES[2:] and (odd := [name for name in turned if layers is None or name in layers]):
        told = f"scope {scope!r} is of rows, which are inputs in the transposed convolutions {listed(odd)}"
        raise ParameterError(f"{told}: take {listed(SCOPES[:2])}, or say which layers are pruned without them")


def assert_scores(made, net, of="weights", where=""):
    """Raise ParameterError for what is no scores, by name, of weights or units of a stack."""
    if not isinstance(made, dict) or not made and of == "weights":
        raise ParameterError(f"scores are a {type(made).__name__}, or none; needed are tensors by name, of {of}")
    shapes = {name: tuple(weight.shape) for name, weight in nets.weights(net).items()}
    if of == "units":
        shapes = {name: (len(part.weight), _units(part)) for name, part in nets.layers(net).items()}
    device = next(net.parameters()).device
    for name, score in made.items():
        if name not in shapes:
            raise ParameterError(f"a score is of {name!r}; allowed{where} are {listed(shapes)}.{hint(name, shapes)}")
        if not isinstance(score, torch.Tensor) or score.shape != shapes[name]:
            told = f"the score of {name} is a {type(score).__name__} {tuple(getattr(score, 'shape', ()))}"
            raise ParameterError(f"{told}; needed is a Tensor {shapes[name]}, of which runs are the first axis")
        if score.is_complex() or score.layout != torch.strided or score.device != device:
            told = f"the score of {name} is {score.dtype}, {score.layout}, on {score.device}"
            raise ParameterError(f"{told}; needed are real numbers, torch.strided, on {device}")


def assert_drawn(made, net, name, of, densities):
    """Return masks that a method draws; ParameterError or ValueError where they are not one dict for each density."""
    found = len(made) if isinstance(made, list) else f"a {type(made).__name__}"
    if found != len(densities):
        raise ParameterError(f"{name} draws {found}; needed is a list of masks, one for each density: {len(densities)}")
    for kept in made:
        assert_like(kept, nets.weights(net)) if of == "weights" else assert_units(kept, nets.weights(net), 2)
    return made


def _units(layer):
    return layer.weight.shape[2] * layer.groups if getattr(layer, "turned", False) else layer.weight.shape[1]


def examples(x, y=None):
    """Return examples `(N, ...)`, or batches of them, as `One` reads them, `(N, I)`; ParameterError for odd labels."""
    for labels in y if isinstance(y, list | tuple) else [y]:
        if labels is not None and labels.dim() != 1:
            told = f"y has shape {tuple(labels.shape)}; needed are classes (N,), such as y.squeeze(1) of a column"
            raise ParameterError(f"{told}, or y.argmax(1) of rows that say one class each")
    return [part.flatten(1) for part in x] if isinstance(x, list | tuple) else x.flatten(1)


def assert_tensors(x, y=None):
    """Raise ParameterError for examples that are neither a tensor nor a list of them, and for labels y likewise."""
    for what, given, axes in (("x", x, 2), ("y", y, 1)):
        batches = given if isinstance(given, list | tuple) else [] if given is None else [given]
        odd = [type(batch).__name__ for batch in batches if not isinstance(batch, torch.Tensor)]
        if odd or given is not None and not batches:
            told = f"{what} is a {odd[0] if odd else 'list of none'}, or has one; needed is a tensor, or a list of them"
            raise ParameterError(f"{told}: of a loader x, y = map(list, zip(*loader)), of an array torch.from_numpy(x)")
        if odd := [tuple(one.shape) for one in batches if one.dim() < axes or not one.numel()]:
            told = f"{what} has shape {odd[0]}; needed are examples along an axis of their own, (N, ...)"
            raise ParameterError(f"{told}, of which there is one at least")


def named(layers):
    """Return the names of layers that may be pruned as a list, or None for all; ParameterError for a list of none."""
    layers = [layers] if isinstance(layers, str) else layers
    if layers is not None and not (hasattr(layers, "__len__") and len(layers)):
        raise ParameterError(f"layers is {layers!r}; needed is a list of names, or None for all")
    return layers


def warn(told):
    """Warn at the line that called this folder, however many of its functions and of torch's lie between."""
    level, frame = 1, sys._getframe()
    while frame.f_back and frame.f_code.co_filename.startswith(INSIDE):
        level, frame = level + 1, frame.f_back
    warnings.warn(told, stacklevel=level)


def some(made, densities):
    """Return masks `made` of densities, `[{name: bool (R, O, *F)}]`; ParameterError where a run keeps nothing.

    Warns where nothing is pruned at a density below one.
    """
    for density, kept in zip(densities, made, strict=True):
        count = sum(mask[0].numel() for mask in kept.values())
        left = sum(mask.flatten(1).sum(1) for mask in kept.values())
        if not left.all():
            raise ParameterError(f"density {density} of {count} keeps none; scope='global' one at {1 / count:.3g}")
        if (left == count).all() and not isinstance(density, dict) and max(each(density, len(left))) < 1:
            told = f"nothing is pruned: density {density} of {count} keeps all"
            warn(f"{told}; one less is a density of {1 - 1 / count:.6g}")
    return made


def blank(scores, kept, scope, within=None):
    """Return how many entries stay whose score is 0, where they are most of what stays, and others of that score go.

    Of what shares a count, and lies within masks: then places decide what the scores do not.
    """
    count, groups = 0, [list(kept)] if scope == "global" else [[name] for name in kept]
    for group, run in itertools.product(groups, range(len(next(iter(kept.values()))))):
        each = [(scores[name][run], kept[name][run], within[name][run] if within else True) for name in group]
        stay = sum(int(mask.count_nonzero()) for _, mask, _ in each)
        if 2 * sum(score.numel() - int(score.count_nonzero()) for score, *_ in each) > stay:  # else there is no need
            zero = [(score == 0) & room for score, _, room in each]
            none = sum(int((zeros & mask).count_nonzero()) for zeros, (_, mask, _) in zip(zero, each, strict=True))
            count += none if 2 * none > stay and sum(int(zeros.count_nonzero()) for zeros in zero) > none else 0
    return count


def warn_of_blanks(counts):
    """Warn of entries that stay though their score is 0, the most of the counts: see `blank`."""
    if any(counts):
        told = f"{max(counts)} that stay, most of all, have a score of 0, as others that go: their places alone decide"
        warn(f"{told}. Take another method, or another density")
