"""Hops: what leads from units to units in a network, and how a walk takes one. Needs torch alone; see phew.py.

A network is a list of hops between groups of units, in forward order; group 0 is the input, the last one the output.
"""

import copy
import math
from collections import OrderedDict
from typing import NamedTuple

import torch
from torch import nn
from torch.nn.parameter import is_lazy
from torch.utils._pytree import tree_leaves

WEIGHTED = (
    nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d
)  # fmt: skip
NO_UNIT = -1.0  # the number of a constant; numbers are floats, because not everything moves integers
TRACE = 1e-300  # added to every preference: nothing beside a weight, and it makes a row of zeros uniform
EVEN = 1e-5  # keeps an inverted preference within a kernel finite, as published


class Wiring(NamedTuple):
    """How a hop joins units to units, where it is not one to one.

    pairs: int64 `(2, E)`, units of the source, and which inputs of a layer, or units of the target, each becomes.
    width: units of the target. groups, transposed: of a convolution; weights are `(I, O / groups, ...)` if transposed.
    places: of a layer that works at places which are units of their own (pixels that a linear layer made, tokens):
    `(cells, P)`, where each cell of its kernel takes each place, and `(cells, Q)`, from where, or -1. An input is then
    numbered input · P + place. factor: a unit of the target is a product, which lives only where all its factors do.
    """

    pairs: torch.Tensor | None = None
    width: int | None = None
    groups: int = 1
    transposed: bool = False
    places: tuple | None = None
    factor: bool = False


class Hop(NamedTuple):
    """A weight layer, or None for an identity, between groups of units: 0 is the input, the last one the output."""

    layer: str | None
    source: int
    target: int
    wiring: Wiring = Wiring()


def unwrapped(network):
    """Return the module inside of (Distributed)DataParallel and torch.compile; ValueError for what cannot be read."""
    if not isinstance(network, nn.Module):
        raise ValueError(f"the network is a {type(network).__name__}; needed is a network itself, a torch module")
    wrappers = nn.DataParallel, nn.parallel.DistributedDataParallel
    while inner := getattr(network, "_orig_mod", None) or (network.module if isinstance(network, wrappers) else None):
        network = inner
    if scripts := [name for name, part in network.named_modules() if isinstance(part, torch.jit.ScriptModule)]:
        name = scripts[0] or type(network).__name__
        raise ValueError(f"{name} is a script, which cannot be read; pass the module that it was made from")
    if odd := [n for n, p in network.named_parameters() if is_lazy(p) or p.is_complex() or p.layout != torch.strided]:
        told = "run a lazy module once; take to_dense() of sparse ones; rank complex ones, masks.top(scores, density)"
        raise ValueError(f"parameters {odd} hold no real numbers in dense form: {told}")
    return network


def copied(network, memo=None):
    """Return a deep copy of a network; of a tensor that it keeps from a pass, which torch does not copy, its values."""
    parts = [vars(part) for part in network.modules()]
    kept = {id(x): x.detach().clone() for part in parts for x in tensors(part) if not x.is_leaf}
    # Every module has eight empty tables, of hooks, whose copies would take most of the time.
    empty = {id(x): OrderedDict() for part in parts for x in part.values() if type(x) is OrderedDict and not x}
    try:
        return copy.deepcopy(network, kept | empty | (memo or {}))
    except (TypeError, RuntimeError) as error:  # of what else it holds: a lock, a logger, a loader
        raise ValueError(f"{type(network).__name__} holds what cannot be copied, take it out: {error}") from error


def weighted(network):
    """Return the convolutions and linear layers by name, in the order in which they are registered."""
    layers = {name: module for name, module in unwrapped(network).named_modules() if isinstance(module, WEIGHTED)}
    if odd := [name for name, part in layers.items() if 0 in getattr(part._parameters.get("weight"), "shape", ())]:
        raise ValueError(f"layers {odd} have no weights, as one of their sides is 0: take them out of the network")
    return layers


def weight_of(layer):
    """Return the weight of a layer; one that is computed, by a copy, for doing so may move what it is computed from."""
    plain = "weight" in layer._parameters or "weight" in vars(layer)
    return (layer if plain else copied(layer).eval()).weight.detach()


def shared(network):
    """Return `{name: name}` of all layers: which is the first, itself or another, that has the same weight."""
    first, layers = {}, weighted(network)
    return {name: first.setdefault(id(layer._parameters.get("weight", layer)), name) for name, layer in layers.items()}


def pairs_of(reads, width, features):
    """Return the pairs of `Wiring` for a layer whose inputs read these units; None for all of them in order.

    features: each unit may be several inputs in a row, as a channel is after flattening.
    """
    count = len(reads)
    each = count // width if features and width and count % width == 0 else 1
    if count == width * each and torch.equal(reads, torch.arange(count, dtype=torch.float64).div(each).floor()):
        return None
    return torch.stack([reads, torch.arange(count, dtype=torch.float64)])[:, reads >= 0].long()


def rows_of(numbers, units):
    """Return of a linear layer what its inputs read, its units' numbers, and its places: rows of different units."""
    rows = numbers.reshape(-1, numbers.shape[-1])
    if torch.equal(rows, rows[:1].expand_as(rows)):
        rows, place = rows[:1], torch.zeros(len(rows))
    else:
        rows, place = torch.unique(rows, dim=0, return_inverse=True)
    count, there = len(rows), torch.arange(len(rows))[None]
    out = torch.arange(units, dtype=torch.float64) * count + place[:, None]
    return rows.T.flatten(), out.view(*numbers.shape[:-1], units), (there, there) if count > 1 else None


def places_of(func, sides, filters, options):
    """Return `Wiring.places` of a convolution, from what it makes of numbered pixels with one cell at a time."""
    cells, pixels = filters.numel(), torch.arange(1.0, sides.numel() + 1, dtype=torch.float64).view(1, 1, *sides)
    single = torch.eye(cells, dtype=torch.float64).view(1, cells, *filters)
    single = single if "transpose" in func.__name__ else single.transpose(0, 1)
    origin = func(pixels, single, **options).flatten(2)[0].round().long() - 1
    goal = torch.full((cells, sides.numel() + 1), -1)
    goal.scatter_(1, origin % (sides.numel() + 1), torch.arange(origin.shape[1]).expand_as(origin))
    return goal[:, :-1].contiguous(), origin


def plausible(first):
    """Return functions from a side to the shape of an example, of what a network with this first layer may read."""
    if isinstance(first, nn.Linear):
        return (lambda side: (first.in_features,)), (lambda side: (side, first.in_features))
    channels, axes = first.in_channels, len(first.kernel_size)
    return (lambda side: (channels, *[side] * axes)), (lambda side: (channels * side**axes,))


def blank(shape, dtype):
    """Return a tensor of this shape that takes no memory: what is computed with it is never looked at."""
    return torch.zeros((), dtype=dtype).expand(shape)


def tensors(values):
    """Return the tensors among values, however they are nested."""
    if isinstance(values, torch.Tensor):
        return [values]
    if type(values) in (tuple, list, dict, OrderedDict):  # here, for torch's own function takes ten times as long
        return [x for part in (values.values() if isinstance(values, dict) else values) for x in tensors(part)]
    plain = isinstance(values, bool | int | float | str | None)
    return [] if plain else [x for x in tree_leaves(values) if isinstance(x, torch.Tensor)]


def name_of(func):
    """Return what a function of torch is called, without underscores around it; of a property its own name."""
    name = getattr(func, "__name__", str(func))
    return (func.__self__.__name__ if name == "__get__" else name).strip("_")


def carrying(like, numbers):
    """Return a blank of the type of `like`, whose entries belong to units of its group."""
    tensor = blank(numbers.shape, like.dtype)
    tensor.units = like.units[0], small_of(numbers).expand(numbers.shape)
    return tensor


def small_of(numbers):
    """Return numbers with one entry along every axis along which they do not change."""
    for axis, side in enumerate(numbers.shape):
        first = numbers.narrow(axis, 0, min(side, 1))
        if numbers.stride(axis) == 0 or torch.equal(first.expand_as(numbers), numbers):
            numbers = first
    return numbers


def framed(numbers, pad, split):
    """Return numbers in a frame of constants, `pad` as of `nn.functional.pad`, and 1 if it borders on a map, else 0.

    A frame has no units. But that around a map, whose units do not change along an axis, is the border of its channels,
    as a padded convolution has it; not so if places are `split`, units of their own.
    """
    few = small_of(numbers).shape
    pad = torch.tensor([*pad, *[0] * (2 * numbers.dim() - len(pad))]).view(-1, 2).flip(0)
    shape = [side + int(ends.sum()) for side, ends in zip(numbers.shape, pad, strict=True)]
    map_axes = [axis for axis, side in enumerate(numbers.shape) if side > 1 == few[axis] and not split]
    borders = int((pad[map_axes] > 0).any())
    for axis in map_axes:
        numbers, pad[axis] = numbers.narrow(axis, 0, 1), 0
    return nn.functional.pad(numbers, pad.flip(0).flatten().tolist(), value=NO_UNIT).expand(shape), borders


def shifted(x, offset):
    """Return the numbers of a part of a group, which begins at `offset`; those of constants are none."""
    numbers = x.units[1] if hasattr(x, "units") else torch.full((), NO_UNIT, dtype=torch.float64).expand(x.shape)
    small = small_of(numbers)
    return torch.where(small < 0, small, small + offset).expand(numbers.shape)


def used_of(*numbers):
    """Return the units that occur in `numbers`, in order."""
    units = torch.cat([small_of(n).flatten() for n in numbers]).unique().long()
    return units[units >= 0]


def distinct_of(rows, every):
    """Return the distinct ones among rows `(M, K)`, and which of them each is, `(M,)`.

    A row that has no units is no unit; so is one that lacks any of them, if `every` is needed.
    """
    distinct, which = torch.unique(rows, dim=0, return_inverse=True)
    some = (distinct >= 0).all(1) if every else (distinct >= 0).any(1)
    number = torch.where(some, some.cumsum(0) - 1.0, NO_UNIT)
    return distinct[some], number[which]


def merged(hops, output):
    """Return the hops that lead to the output, groups numbered in forward order.

    Every term that leads only into a sum is made part of it.
    """
    while idle := {hop.target for hop in hops} - {hop.source for hop in hops} - {output}:
        hops = [hop for hop in hops if hop.target not in idle]
    products = {hop.target for hop in hops if hop.wiring.factor}
    for group in sorted({hop.source for hop in hops} - {0, output} - products):
        (name, _, into, wiring), *more = [hop for hop in hops if hop.source == group]
        if name is None and not more and wiring.pairs is None and not wiring.factor:
            others = [hop for hop in hops if hop.source != group]
            hops = [hop._replace(target=into) if hop.target == group else hop for hop in others]
    number = {group: n for n, group in enumerate(sorted({0, *(hop.target for hop in hops)} - {output}))}
    number[output] = len(number)
    return [hop._replace(source=number[hop.source], target=number[hop.target]) for hop in hops]


def read_by(hop, weights):
    """Return how many units of the input a hop reads, 0 for an identity of all there are."""
    if hop.wiring.pairs is not None:
        return int(hop.wiring.pairs[0].max()) + 1
    places = 1 if hop.wiring.places is None else hop.wiring.places[0].shape[1]
    return 0 if hop.layer is None else weights[f"{hop.layer}.weight"].shape[1] * hop.wiring.groups * places


def turned(weight, wiring):
    """Return weights `(O, I / groups, ...)` of a transposed convolution, which stores inputs first; or the inverse."""
    return weight.unflatten(0, (wiring.groups, -1)).transpose(1, 2).flatten(0, 1) if wiring.transposed else weight


class Step:
    """One hop of one run as walks see it: of a layer a table for each direction, and its place among all weights.

    A unit of the source is one input, or several, or none; a layer leads from its inputs to its units.
    """

    def __init__(self, hop, weights, width):
        weight, wiring, self.width = weights.get(f"{hop.layer}.weight"), hop.wiring, width[hop.source]
        self.device, self.name = next(iter(weights.values())).device, hop.layer
        self.start, self.placed = 0, wiring.places is not None
        self.pairs = None if wiring.pairs is None else wiring.pairs.to(self.device)
        if weight is None:
            self.size, self.inputs = 0, width[hop.target]
            return
        (units, self.fan_in), self.size = weight.shape[:2], weight.numel()
        self.kernels = weight.reshape(units * self.fan_in, -1)
        self.cells = self.kernels.shape[1]
        places = wiring.places or [torch.zeros(1, 1, dtype=torch.int64)] * 2
        self.goal, self.origin = (table.to(self.device) for table in places)
        self.inputs = self.fan_in if weight.dim() == 2 and not self.placed else self.width
        if self.pairs is None and self.inputs > self.width:  # the features of a channel, one behind the other
            features = torch.arange(self.inputs, device=self.device)
            self.pairs = torch.stack([features // (self.inputs // self.width), features])
        if self.pairs is not None:
            self.inputs = wiring.groups * self.fan_in * self.goal.shape[1]
        self.groups = self.inputs // self.goal.shape[1] // self.fan_in
        self.units = units // self.groups

    def across(self, units, back):
        """Return the units, `bool`, that these lead to, or those that lead to these, if all weights are kept."""
        units = units if back else self._inputs(units)
        if self.size:
            table, count = (self.goal, self.fan_in) if back else (self.origin, self.units)
            some = units.view(self.groups, -1, (self.origin if back else self.goal).shape[1]).any(1)
            led = torch.cat([some, torch.zeros_like(some[:, :1])], 1)[:, table].any(1)  # -1, nowhere, is the last
            units = led[:, None].expand(-1, count, -1).flatten()
        if back and self.pairs is not None:
            return _marked(self.pairs[0][units[self.pairs[1]]], self.width)
        return units

    def _inputs(self, units):
        """Return which inputs are among these units."""
        return units if self.pairs is None else _marked(self.pairs[1][units[self.pairs[0]]], self.inputs)

    def settle(self, sources, targets, preference, whole):
        """Make the tables, whose ways lead between live units alone."""
        inputs = self._inputs(sources)
        if self.size:
            ends = self._settle_places(inputs, targets) if self.placed else (inputs, targets)
            self._weigh(*ends, *preference, whole)
            targets = inputs
        if self.pairs is not None:
            pairs = self.pairs[:, sources[self.pairs[0]] & targets[self.pairs[1]]]
            self.ways = [_listed(*pairs, self.width), _listed(*pairs.flip(0), self.inputs)]

    def _settle_places(self, inputs, units):
        """Take out the places where nothing is alive; return which inputs and units are, at any place."""
        inputs, units = inputs.view(-1, self.goal.shape[1]), units.view(-1, self.origin.shape[1])
        for live in (inputs, units):
            if not torch.equal(live, live.any(1, keepdim=True) & live.any(0)):
                raise ValueError(f"some places of some units of {self.name}, but not of all, lead nowhere: not read")
        here, there = inputs.any(0), units.any(0)
        self.goal = self.goal.where(here & there[self.goal], -1)
        self.origin = self.origin.where(there & here[self.origin], -1)
        return inputs.any(1), units.any(1)

    def _weigh(self, inputs, units, power, invert, whole):
        self.power, self.invert, self.taken = power, invert, self.cells if whole else 1  # weights that a step takes
        liking = self.kernels.abs().double().pow_(power)
        if self.cells > 1:  # a product with ones is many times faster than a sum over so few
            liking = liking @ liking.new_ones(self.cells)
        if not math.isfinite(float(liking.sum())):
            raise ValueError(f"a weight of {self.name}, or its power {power}, is not finite; walks cannot weigh it")
        liking = liking.add_(TRACE).reciprocal_() if invert else liking.add_(TRACE)
        liking = liking.view(self.groups, self.units, self.fan_in)
        ahead = _of_live(liking, units.view(self.groups, -1, 1), 1)
        ahead = ahead.squeeze(0).mT.clone(memory_format=torch.contiguous_format)  # of two axes a fast copy
        self.tables = _table(ahead), _table(_of_live(liking, inputs.view(self.groups, 1, -1), 2))

    def step(self, unit, back, draw, second):
        """Return the next units `(S,)` of the walks at `unit` `(S,)`, and the weights they take `(S, 1 or kernel)`."""
        if not self.size:
            return (unit if self.pairs is None else _pick(self.ways[back], unit, second)[0]), None
        if not back and self.pairs is not None:  # the published rule: any of a channel's features, whatever its weights
            unit, second = _pick(self.ways[0], unit, second)
        tables = (self.origin, self.goal) if back else (self.goal, self.origin)
        if self.placed:
            unit, place = unit // tables[0].shape[1], unit % tables[0].shape[1]
        if back:
            kernel = torch.searchsorted(self.tables[1], unit + draw, right=True)
            there = kernel % self.fan_in + (unit // self.units * self.fan_in if self.groups > 1 else 0)
        else:
            there = torch.searchsorted(self.tables[0], unit + draw, right=True) % self.units
            if self.groups > 1:
                there, unit = there + unit // self.fan_in * self.units, unit % self.fan_in
            kernel = there * self.fan_in + unit
        cell = 0
        if self.cells > 1 and (self.taken == 1 or self.placed):
            cell = self._cell(kernel, second, tables[0][:, place].T >= 0 if self.placed else None)
        if self.placed:
            there = there * tables[1].shape[1] + tables[0][cell, place]
        if back and self.pairs is not None:
            there, _ = _pick(self.ways[1], there, second)
        if self.taken > 1:
            return there, self.start + kernel[:, None] * self.cells + torch.arange(self.cells, device=kernel.device)
        return there, self.start + kernel * self.cells + cell

    def _cell(self, kernel, second, possible):
        """Return the cell of its kernel that each walk takes, among those that lead somewhere, `(S, cells)`."""
        liking = self.kernels.index_select(0, kernel).abs().double().pow_(self.power)
        liking = liking.add_(EVEN).reciprocal_() if self.invert else liking.add_(TRACE)
        sums = (liking if possible is None else liking.where(possible, 0)).cumsum(1)
        return (sums <= second[:, None] * sums[:, -1:]).sum(1)


def wired(hops):
    """Return the hops of any network, such as `nets.graph` has them, as `Hop`s."""
    return [Hop(*hop[:3], getattr(hop, "wiring", Wiring())) for hop in hops]


def _marked(units, count):
    """Return `bool (count,)`, true at `units`."""
    return torch.zeros(count, dtype=torch.bool, device=units.device).index_fill_(0, units, True)


def _of_live(liking, live, axis):
    """Return the preferences without those for what is not alive; a row where nothing is alive is never entered."""
    return liking if live.all() else liking.where(live | ~live.any(axis, keepdim=True), 0)


def _listed(here, there, count):
    """Return, for every unit, where it leads, one unit behind the other, where these begin, and how many they are."""
    counts = torch.bincount(here, minlength=count)
    return there[here.argsort(stable=True)], counts.cumsum(0) - counts, counts


def _pick(listed, unit, draw):
    """Return where each unit leads, any of its ways, and what is left of the draw, again uniform in (0, 1)."""
    there, begin, counts = listed
    at = draw * counts[unit]
    return there[begin[unit] + at.long()], at.frac()


def _table(liking):
    """Return all rows' cumulative distributions in one, `(..., width) -> (numel,)`, in place: row r from r to r + 1.

    The choice of row r by a uniform u is the first entry above r + u: one binary search serves all walks.
    """
    sums = liking.view(-1, liking.shape[-1]).cumsum_(1)
    sums /= sums[:, -1:].clone()
    return sums.add_(torch.arange(len(sums), device=sums.device)[:, None]).flatten()
