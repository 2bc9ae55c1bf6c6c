"""Shrinking: a masked network made physically smaller, as a plain torch module or as a narrower stack.

`shrink` is for using a network: it takes any masks and returns torch modules with the same logits, without the units
that lie on no path. `narrow` is for training it: whole units leave a stack, which stays a stack; `widen` undoes it.
"""

import copy
from collections import Counter
from typing import NamedTuple

import torch
from torch import nn

from lib.errors import listed, number
from lib.kernels.twins import trailing
from lib.networks import convnets, nets, plain
from lib.pruning import paths
from lib.pruning.masks import apply_, assert_units, fitted
from lib.pruning.slices import TORCH_PRUNING, added, filled, sliced

ACTIVATIONS = {  # the modules that do what those of `nets` do
    "relu": [nn.ReLU],
    "relu2": [nn.ReLU, plain.Square],
    "sigmoid": [nn.Sigmoid],
    "erf": [plain.Erf],
    "none": [],
}


class Part(NamedTuple):
    """One hop of one network: weight (O, I, *F) and bias (O,), both None for an identity; float64, masked, BN folded.

    inside: the modules between the source and the layer; options: stride and padding of a convolution.
    """

    hop: nets.Hop
    weight: torch.Tensor | None
    bias: torch.Tensor | None
    inside: list
    options: dict


@torch.no_grad()
def shrink(net, masks=None, run=0, inputs=None):
    """Return one run of `net` under `masks` as a smaller `nn.Module`, with the same logits, to use and not to train.

    net: a stack of MLP, VGG or ResNet, or any torch module. A module is one network, whatever `run` is: a copy of it,
    of its own layers, is made smaller as `slices.sliced` says, also of `inputs`, which no stack needs. Of stacks:

    masks: `{name: bool}` of its parameters, with the axis of runs. What is returned takes `(N, pixels)` to
    `(N, classes)`. Units without a path of non-zero weights from the input and to the output go; the weights masked
    inside the others stay, as zeros. What the first kind still says, a constant, is folded into the biases of its
    readers, behind a padded convolution into a `plain.Offset`. Batch normalisation, which is taken in `eval()` mode,
    and dropout disappear. Layers that `masks` does not name are whole; zeros in the weights count as masked. ValueError
    for a normalised layer (`nets.fold` first), for a run that is not there, and for a stack of another class.
    """
    if not nets.layers(net, stack=False):
        return sliced(net, {} if masks is None else masks, inputs)
    parts = _parts(net, masks, run)
    hops = [part.hop for part in parts]
    live = paths.live(hops, {f"{part.hop.layer}.weight": (part.weight != 0)[None] for part in parts if part.hop.layer})
    reached, last = {node: units[0] for node, units in live.reached.items()}, hops[-1].target
    constants = _constants(net, parts, reached)
    if not reached[last].any():
        return filled(plain.Constant(len(reached[last])), values=constants[last]).to(next(net.parameters()))
    rows = {node: units[0] for node, units in live.units.items()}
    rows |= {node: torch.ones_like(rows[node]) for node in (0, last)}
    return _assembled(net, _ways(net, parts, rows, constants))


@torch.no_grad()
def unshrunk(net, masks=None, run=0):
    """Return one run of `net` under `masks` as an `nn.Module` of full size: what `shrink` returns, and nothing gone."""
    parts = _parts(net, masks, run)
    sizes = paths.widths([part.hop for part in parts], nets.weights(net))
    rows = {node: parts[0].weight.new_ones(size, dtype=torch.bool) for node, size in sizes.items()}
    return _assembled(net, _ways(net, parts, rows, _constants(net, parts, rows), whole=True))


# ---- one network of the stack as parts


def _parts(net, masks, run):
    """Return the `Part`s of one run, in the order of the forward pass."""
    if type(net) not in INSIDE:
        known = listed(f"{kind.__module__}.{kind.__name__}" for kind in INSIDE)
        told = f"stacks of {type(net).__module__}.{type(net).__name__} are not known to lib/pruning/shrink.py"
        raise ValueError(f"{told}; known are {known}, and torch modules that are no stacks. {TORCH_PRUNING}")
    inside, count, masks = INSIDE[type(net)](net), nets.runs(net), {} if masks is None else masks
    nets.assert_plain(net), fitted(net, masks)
    run = number("run", run, f"[0, {count})", whole=True)
    alone = apply_(nets.take(net, [run]), {name: mask[[run]] for name, mask in masks.items()}).double()
    return [_part(alone, hop, inside.get(hop.layer, [])) for hop in nets.graph(alone)]


def _part(alone, hop, inside):
    if hop.layer is None:
        return Part(hop, None, None, inside, {})
    layer = alone.get_submodule(hop.layer)
    weight, bias = layer.weight, layer.weight.new_zeros(layer.weight.shape[:2]) if layer.bias is None else layer.bias
    if hop.norm is not None:
        weight, bias = alone.get_submodule(hop.norm).folded(weight, bias)
    if not (weight.isfinite().all() and bias.isfinite().all()):
        raise ValueError(f"{hop.layer} has weights that are not finite, as of a run that diverged: nothing to shrink")
    return Part(hop, weight[0], bias[0], inside, layer.options)


def _inside_vgg(net):
    names = list(nets.layers(net))
    inside = {names[end + 1]: [nn.MaxPool2d(2)] for end in net.ends}
    inside[names[net.ends[-1] + 1]] = [nn.AvgPool2d(2) if net.average else nn.MaxPool2d(2), nn.Flatten()]
    return inside


INSIDE = {  # the modules between a node and the layer that reads it, `{layer: [modules]}`, where there are any
    nets.MLP: lambda net: {},
    convnets.VGG: _inside_vgg,
    convnets.ResNet: lambda net: {"output": [nn.AdaptiveAvgPool2d(1), nn.Flatten()]},
}


def _activation(net):
    """Return the modules of the activation, which has no parameters."""
    return [kind() for kind in ACTIVATIONS[getattr(net, "activation", "relu")]]


# ---- what does not depend on the input


def _constants(net, parts, reached):
    """Return what every node sums up from biases and from units that the input does not reach, `{node: (C, ...)}`.

    Those units are computed as the network would, those that it reaches are held at zero: so a node's sum is the
    constant that its reached units have to get, and makes the value of the others.
    """
    act, first = nn.Sequential(*_activation(net)), parts[0].weight
    start = first.new_zeros(1, *net.image) if hasattr(net, "image") else first.new_zeros(1, first.shape[1])
    sums, silent = {}, {0: start}
    for part in parts:
        source, target = part.hop.source, part.hop.target
        if source not in silent:
            value = act(sums[source])
            silent[source] = value * ~trailing(reached[source], value[0])
        x = nn.Sequential(*part.inside)(silent[source])
        if part.weight is not None:
            compute = nn.functional.linear if part.weight.dim() == 2 else nn.functional.conv2d
            x = compute(x, part.weight, part.bias, **part.options)
        sums[target] = sums.get(target, 0) + x
    return {node: value[0] for node, value in sums.items()}


# ---- the smaller modules


def _ways(net, parts, rows, constants, whole=False):
    """Return [(source, target, modules)] of the hops that are left, in order; `whole` leaves all of them untrimmed.

    rows: the units left of every node, `bool (C,)`. A node's constant goes into the first layer on a way to it; an
    identity takes it only where no layer is left.
    """
    leading = Counter(part.hop.target for part in parts)
    constants = {node: constant[rows[node]] for node, constant in constants.items()}
    like, ways = next(net.parameters()), {}
    for k in sorted(range(len(parts)), key=lambda k: parts[k].weight is None):
        part, source, target = parts[k], parts[k].hop.source, parts[k].hop.target
        if part.weight is None:
            modules = _identity(rows[source], rows[target], constants[target])
        else:
            modules = _layer(part, rows[source], rows[target], constants[target], leading[target] > 1, whole)
        if modules is not None:
            constants[target] = torch.zeros_like(constants[target])
            ways[k] = source, target, [module.to(like) for module in modules]
    return [ways[k] for k in sorted(ways)]


def _layer(part, sources, targets, constant, joint, whole):
    """Return the modules of a hop's layer without the units that it does not join, or None if it joins none.

    joint: other hops lead to the same node, so that units of the node may be left to them.
    """
    weight = part.weight[targets][:, paths.per_input(sources[None], part.weight[None])[0]]
    if not whole and not weight.any():
        return None
    pairs = paths.joined((weight != 0)[None], int(sources.sum()))[0]
    takes, puts = pairs.any(0), pairs.any(1) | constant.reshape(len(constant), -1).any(1)
    # Of the input nothing is taken out: copying the rest of it costs about as much as is saved.
    takes |= whole or part.hop.source == 0
    puts |= whole or not joint
    bias, border = added(constant[puts])
    weight = weight[puts][:, paths.per_input(takes[None], weight[None])[0]]
    inner = [*part.inside, *_torch_layer(weight, bias, part.options), *border]
    return [*_routes(takes, into=False), *inner, *_routes(puts, into=True)]


def _identity(sources, targets, constant):
    """Return the modules of an identity between the units left of two nodes, or None if they have none in common."""
    both = sources & targets
    if not both.any():
        return None
    _, border = added(constant, bias=False)
    return [*_routes(both[sources], into=False), *_routes(both[targets], into=True), *border]


def _routes(units, into):
    """Return the module that takes these channels, `bool (C,)`, of its input, or puts it `into` them; none for all."""
    if units.all():
        return []
    these = units.nonzero().flatten().tolist()
    every = range(len(these))
    return [plain.Route(every, these, len(units)) if into else plain.Route(these, every, len(these))]


def _torch_layer(weight, bias, options):
    """Return [torch's own layer], made on no device, for elsewhere its own start would be drawn, and lost.

    A pool of single pixels takes the steps of a convolution whose gradient would not be safe, see `twins.FEW`.
    """
    kind, filters = (nn.Linear, {}) if weight.dim() == 2 else (nn.Conv2d, {"kernel_size": tuple(weight.shape[2:])})
    empty = kind(*weight.shape[1::-1], bias=bias is not None, device="meta", **filters, **options)
    layer = filled(empty, weight=weight, bias=bias)
    if not plain.overruns(layer):
        return [layer]
    pool, layer.stride = nn.AvgPool2d(1, layer.stride), (1, 1)
    return [pool, layer]


def _assembled(net, ways):
    """Return one module of the ways: a sequence, where each begins at the end of the one before, or else a graph."""
    enter = [nn.Unflatten(1, net.image)] if hasattr(net, "image") else []
    ends = [0, *(target for _, target, _ in ways)]
    if any(source != end for (source, _, _), end in zip(ways, ends, strict=False)):
        hops, inner = [way[:2] for way in ways], [nn.Sequential(*modules) for _, _, modules in ways]
        activation = nn.Sequential(*_activation(net))
        return plain.laid_out(plain.Graph(hops, nn.Sequential(*enter), activation, *inner))
    steps = [*enter, *ways[0][2]]
    for _, _, modules in ways[1:]:
        steps += [*_activation(net), *modules]
    return plain.laid_out(nn.Sequential(*steps))


# ---- narrower stacks


def narrow(net, units):
    """Return the stack without the units that `units` drop: of the same class, to train, smaller and so faster.

    units: `{layer: bool (R, O)}` as of `masks.top`, the same count in every run of a layer; other layers keep
    all their units. The function is that of `net` under `masks.expand(units, ...)`: a dropped unit takes its row, its
    bias, its normalisation and its column along. ValueError for unequal counts, for a layer without a unit, for output
    units, for layers that lead to one node, or are joined by a shortcut, and keep different units, and for a layer with
    weight normalisation (`nets.fold` first).
    """
    nets.assert_plain(net)
    small = copy.deepcopy(net)
    with torch.no_grad():
        for key, index in _indexed(small, _kept(net, units)).items():
            module, name = small.get_submodule(key.rpartition(".")[0]), key.rpartition(".")[2]
            tensor = getattr(module, name)
            part = tensor[index].contiguous()
            setattr(module, name, nn.Parameter(part, tensor.requires_grad) if name in module._parameters else part)
    return small


def widen(small, net, units):
    """Return the stack of the size of `net` with the weights of `small`, which was `narrow(net, units)`, and zeros.

    Nothing is read from `net` but its shape. A dropped unit gets no weights, bias, factor or shift: it stays silent.
    """
    indices, full, tensors = _indexed(net, _kept(net, units)), copy.deepcopy(net), small.state_dict()
    with torch.no_grad():
        for key, tensor in full.state_dict().items():
            # A dropped unit's variance becomes one: nothing is divided by zero.
            tensor.fill_(key.endswith(".running_var"))
            tensor[indices.get(key, ...)] = tensors[key]
    return full


def first(net, widths):
    """Return units `{layer: bool (R, O)}` of which the first stay, as many of each layer as `widths {layer: count}`."""
    scales = {name: net.get_submodule(name).scale for name in widths}
    return {name: (torch.arange(scale.shape[1], device=scale.device) < widths[name]).expand(len(scale), -1)
            for name, scale in scales.items()}  # fmt: skip


def _kept(net, units):
    """Return which units every node keeps, `{node: bool (R, C)}`; ValueError where a stack cannot go without others."""
    hops, layers = nets.graph(net), nets.layers(net)
    assert_units(units, {f"{name}.weight": layer.weight for name, layer in layers.items()}, 2)
    sizes = paths.widths(hops, nets.weights(net))
    count, device = nets.runs(net), next(net.parameters()).device
    every = {node: torch.ones(count, size, dtype=torch.bool, device=device) for node, size in sizes.items()}
    kept = {0: every[0]}
    for hop in hops:
        here = kept[hop.source] if hop.layer is None else units.get(hop.layer, every[hop.target])
        if not torch.equal(kept.setdefault(hop.target, here), here):
            raise ValueError(f"{hop} brings other units to node {hop.target} than the hops before; keep the same ones")
        counts = here.sum(1).tolist()
        if min(counts) == 0 or min(counts) < max(counts):
            told = f"{hop.layer} keeps {counts} units in the runs; a stack needs equal counts above 0"
            raise ValueError(f"{told}: narrow the runs one by one (nets.take), or shrink them")
    if not here.all():
        raise ValueError(f"{hop.layer} makes the output, whose units all stay; drop units of hidden layers")
    return kept


def _indexed(net, kept):
    """Return `{name: index}` of the tensors that have units: `tensor[index]` is what is kept of them."""
    indices = {}
    for hop in (hop for hop in nets.graph(net) if hop.layer):
        units = _numbers(kept[hop.target])
        run = torch.arange(len(units), device=units.device)[:, None]
        for path in filter(None, (hop.layer, hop.norm)):
            module = net.get_submodule(path)
            tensors = (*module.named_parameters(path), *module.named_buffers(path))
            indices |= {name: (run, units) for name, tensor in tensors if tensor.dim() > 1}
        inputs = _numbers(paths.per_input(kept[hop.source], net.get_submodule(hop.layer).weight))
        indices[f"{hop.layer}.weight"] = run[:, :, None], units[:, :, None], inputs[:, None]
    return indices


def _numbers(kept):
    """Return the numbers of what every run keeps equally many of, `bool (R, C) -> int64 (R, keep)`."""
    return kept.nonzero()[:, 1].unflatten(0, (len(kept), -1))
