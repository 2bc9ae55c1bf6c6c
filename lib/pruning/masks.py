"""Masks: which weights stay. True = kept, same key and shape as the weight; they only ever meet plain weights."""

import numpy as np
import torch

from lib.errors import choice, hint, instance, listed, number
from lib.kernels.twins import trailing
from lib.pruning import selection
from lib.pruning.hops import unwrapped, weighted

SCOPES = ("layer", "global", "unit", "four")
# Products such as 0.05 * 1020 carry a rounding error of a few 1e-15; it must not decide a count.
SLACK = 1e-9
ROUNDINGS = {  # how many of n items are kept at a density: see `count`
    "nearest": lambda n, density: int(n * density + 0.5 + SLACK),
    "prune_floor": lambda n, density: n - int(n * (1 - density) + SLACK),
    "keep_floor": lambda n, density: int(n * density + SLACK),
    "percentile": lambda n, density: max(0, n - 1 - int((n - 1) * (1 - density) + SLACK)),
}
COMPUTED = (
    "compute their weights, so that no mask stays: first torch.nn.utils.parametrize.remove_parametrizations(layer, "
    '"weight"), of the older kind remove_weight_norm, remove_spectral_norm or prune.remove'
)


def count(n, density, rounding="nearest"):
    """Return how many of `n` items are kept at `density` in (0, 1], at least 0 and at most n.

    rounding: "nearest" (halves up); "prune_floor", floor((1 - density) n) are pruned, as the EWN study
    does; "keep_floor", floor(density n) are kept; "percentile", those above the percentile 100 (1 - density) of n
    different scores, interpolated as NumPy does it: one fewer than all at density 1 (the PHEW study, arXiv 2010.11354).
    """
    return ROUNDINGS[choice("rounding", rounding, ROUNDINGS)](n, number("density, kept / total,", density, "(0, 1]"))


def top(scores, density, scope="layer", rounding="nearest", within=None, least=None):
    """Return masks `{name: bool (R, O, *F)}` that keep the highest scores of every run, exactly `count` of them.

    scores: `{name: (R, O, *F)}`. scope: what shares one count, "layer" each tensor, "global" all of them together,
    "unit" each row, "four" each `selection.fours` of it, at 0.5 the 2:4 of tensor cores. density: one number, or
    one per run, of all weights. within: masks whose weights alone may stay, so that what is pruned there never comes
    back; ValueError where more are to be kept than they keep. least: the share of every tensor, and so at least one of
    its entries, that stays however low it scores; ValueError where these are more than are to be kept. Among equal
    scores the earlier entry goes first, so a result depends on no sorting.
    """
    if scores == {}:  # of the units of a network without a hidden layer
        return {}
    scores = scores if least is None else _raised(scores, least, density, rounding, within)
    named = assert_named(scores, "score").items()  # a module's are (O, I) or (O, I, h, w): units would pass for runs
    if odd := [name for name, s in named if s.dim() < 2 or len(s) > 1 and s.dim() in (2 * name.endswith(".weight"), 4)]:
        raise ValueError(f"scores of {listed(odd)} have no runs as first axis: of a torch module pass score[None]")
    rows = _sharing(scores, scope)
    places = [None] * len(rows) if within is None else _sharing(inside(within, scores), scope)
    return _parted([_top(*both, density, rounding) for both in zip(rows, places, strict=True)], scores, scope)


def inside(within, scores):
    """Return the masks `within` of what has scores; ValueError where there are none."""
    if odd := [name for name in scores if name not in instance("within is", within, dict, "masks by name")]:
        raise ValueError(f"within has no masks of {listed(odd)}; it has those of {listed(within)}")
    assert_like(within := {name: within[name] for name in scores}, scores)
    return within


def _raised(scores, least, density, rounding, within):
    """Return scores of which the highest of every tensor, the share `least` of it, are above all others."""
    floor = top(scores, least, "layer", "prune_floor", within)
    total, stay = sum(part[0].numel() for part in floor.values()), sum(int(part[0].sum()) for part in floor.values())
    keep = min(count(total, d, rounding) for d in each(density, len(next(iter(floor.values())))))
    if stay > keep:
        told = f"least = {least} of every tensor are {stay} entries, where density keeps {keep} of {total}"
        raise ValueError(f"{told}; take a lower one, or a higher density")
    return {name: score.double().masked_fill(floor[name], 1e300) for name, score in scores.items()}


def _sharing(tensors, scope):
    """Return tensors whose last axis is what shares one count: `(R, n)`, `(R, O, n)` of units, or `fours`."""
    if choice("scope", scope, SCOPES[: 2 if any(t.dim() == 2 for t in tensors.values()) else None]) == "four":
        return [selection.fours(tensor) for tensor in tensors.values()]
    rows = [tensor.flatten(2 if scope == "unit" else 1) for tensor in tensors.values()]
    return [torch.cat(rows, 1)] if scope == "global" else rows


def _parted(kept, scores, scope):
    """Return masks `{name: bool (R, O, *F)}` of what `_sharing` had joined."""
    if scope == "global":
        kept = kept[0].split([score[0].numel() for score in scores.values()], 1)
    if scope == "four":
        kept = [selection.unfolded(part, score) for part, score in zip(kept, scores.values(), strict=True)]
    return {name: part.reshape(score.shape) for (name, score), part in zip(scores.items(), kept, strict=True)}


def each(density, runs):
    """Return the densities of all runs, from one number or one per run."""
    each = [density] * runs if np.ndim(density) == 0 else list(density)
    if len(each) != runs:
        raise ValueError(f"{len(each)} densities for a stack of {runs} runs; give one number, or one per run")
    return each


def _top(score, inside, density, rounding):
    """Return the mask of the highest entries along the last axis, of those inside if given; a density as of `top`."""
    keeps = [count(score.shape[-1], d, rounding) for d in each(density, len(score))]
    if inside is not None:
        for keep, most in zip(keeps, inside.sum(-1).view(len(inside), -1).amin(1).tolist(), strict=True):
            assert_left(keep, most)
        score = score if score.is_floating_point() else score.double()
        score = score.masked_fill(~inside, torch.finfo(score.dtype).min)
    if len(set(keeps)) == 1:
        return selection.highest(score, keeps[0])
    return torch.stack([selection.highest(own, keep) for own, keep in zip(score, keeps, strict=True)])


def assert_left(keep, most):
    """Raise ValueError where more are to be kept than are left."""
    if keep > most:
        raise ValueError(f"{keep} weights are to be kept, of which only {most} are left; take a lower density")


def expand(units, net):
    """Return masks `{name: bool like the parameter}` from unit masks: a pruned unit loses row, bias and column.

    Without the bias a "removed" unit would go on sending relu(bias). `units` maps a layer's name to `bool (R, O)`;
    `net` is a chain of layers, weights (R, O, I) or filters (R, O, I, h, w). Layers that `units` does not name keep all
    their units. ValueError for batch normalisation, whose shift would speak on: `shrink.narrow` takes it along.
    """
    parameters = dict(unwrapped(net).named_parameters())
    weights = {name: p for name, p in parameters.items() if name.endswith(".weight")}
    if any(weight.dim() < 3 for weight in weights.values()):
        raise ValueError("expand takes stacks without batch normalisation: else shrink.narrow, of modules smaller.rows")
    assert_units(units, weights, 2)
    masks, before = {}, None
    for name, weight in weights.items():
        layer = name.removesuffix(".weight")
        kept, masks[name] = units.get(layer), torch.ones_like(weight, dtype=torch.bool)
        if before is not None:
            # A linear layer behind a convolution has one input for every position of every filter.
            inputs = before.repeat_interleave(weight.shape[2] // before.shape[1], dim=1)
            masks[name] &= trailing(inputs[:, None], weight)
        if kept is not None:
            masks[name] &= trailing(kept, weight)
            if f"{layer}.bias" in parameters:
                masks[f"{layer}.bias"] = kept
        before = kept
    if kept is not None and not kept.all():
        raise ValueError(f"{layer} makes the outputs of the network, no units to prune: leave it out of `units`")
    return masks


def assert_units(units, weights, axes):
    """Raise ValueError for masks of units that have not so many first axes of `weights {layer + ".weight": …}`."""
    for layer, mask in assert_named(units).items():
        weight = weights.get(f"{layer}.weight")
        if weight is None:
            known = [name.removesuffix(".weight") for name in weights]
            raise ValueError(f"no layer is called {layer!r}; the network has {known}.{hint(layer, known)}")
        if mask.dtype != torch.bool or mask.shape != weight.shape[:axes]:
            told = f"the units of {layer} are {mask.dtype} {tuple(mask.shape)}"
            raise ValueError(f"{told}; they must be torch.bool {tuple(weight.shape[:axes])}")


def assert_named(masks, what="mask"):
    """Return masks, or scores; ValueError where they are no dict of tensors, as those of `phew.phew_masks`."""
    kind = "bool tensor" if what == "mask" else "tensor"
    how = "methods.prune(net, …) makes one; phew_masks has those of hops.weighted(net), in order"
    instance(f"{what}s are", masks, dict, f"a dict by the names of parameters, or of layers: {how}")
    for name, mask in masks.items():
        instance(f"the {what} of {name} is", mask, torch.Tensor, f"a {kind}, of an array torch.from_numpy({what})")
    return masks


def assert_like(masks, tensors):
    """Raise ValueError for a mask that is not bool, or has not the shape of the tensor of its name."""
    for name, mask in assert_named(masks).items():
        if name not in tensors and f"{name}.weight" in tensors:
            how = "masks.expand(masks, net), of a torch module smaller.rows(net, masks)"
            raise ValueError(f"{name} is a layer, and so these are masks of units; those of weights are made by {how}")
        like = tensors.get(name)
        if like is None or (mask.dtype, mask.shape) != (torch.bool, like.shape):
            wanted = f"one of {listed(tensors)}.{hint(name, tensors)}" if like is None else f"bool {tuple(like.shape)}"
            raise ValueError(f"the mask of {name} is {mask.dtype} {tuple(mask.shape)}; it must be {wanted}")


def computed(net):
    """Return the names of the convolutions and linear layers of a torch module whose weights are no parameters."""
    return [name for name, layer in weighted(net).items() if "weight" not in layer._parameters]


def fitted(net, masks):
    """Return the parameters of a folded stack, or of any torch module, by name; ValueError for masks that misfit."""
    net = unwrapped(net)
    parameters = dict(net.named_parameters(remove_duplicate=False))
    if odd := [name for name in computed(net) if f"{name}.weight" in assert_named(masks)]:
        raise ValueError(f"layers {odd} {COMPUTED}")
    assert_like(masks, parameters)
    for name in masks:
        if getattr(net.get_submodule(name.rpartition(".")[0]), "normalised", False):
            raise ValueError(f"{name} is normalised; masks act on plain weights: take nets.fold(net), a plain copy")
    return parameters


@torch.no_grad()
def apply_(net, masks):
    """Zero, in place, everything that `masks` prune, in a folded stack or any torch module; see `fitted`."""
    parameters = fitted(net, masks)
    for name, mask in masks.items():
        parameters[name].masked_fill_(~mask.to(parameters[name].device), 0)
    return net


def hold_(net, masks, optimizer):
    """Return the handle of what zeroes, now and after every step of `optimizer`, all that `masks` prune; see `apply_`.

    Without, momentum and Adam's moments bring back what was pruned. `handle.remove()` ends it. Of a `Trainer` its own
    `prune` does so. ValueError for a mask of what the optimizer does not train, or the net does not have.
    """
    instance("optimizer is", optimizer, torch.optim.Optimizer, "one of torch.optim")
    mine = {id(p) for group in optimizer.param_groups for p in group["params"]}
    parameters = fitted(net, masks)
    if odd := [name for name in masks if parameters[name].requires_grad and id(parameters[name]) not in mine]:
        raise ValueError(f"{listed(odd)} are no parameters of this optimizer: make it of net.parameters()")
    apply_(net, masks)
    return optimizer.register_step_post_hook(lambda *_: apply_(net, masks) and None)
