"""Which units of a torch module go together, if they go, and which tensors then lose an entry along which axis.

What watched the module run on numbers of units (topology.py) knows of every function which units it was given and what
it made of them. Together go the terms of a sum, or of a product, a part of a concatenation and the whole, and the
inputs and the units of one group of a convolution. What has an entry for each unit is its layer, the layers that read
it, batch normalisations, and a factor or a term for each channel.
"""

from typing import NamedTuple

import numpy as np
import torch
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch.utils._pytree import tree_map

from lib.pruning import hops as h
from lib.pruning import topology

ACROSS = set("layer_norm group_norm local_response_norm rms_norm normalize softmax log_softmax softmin".split())
PER_CHANNEL = set("batch_norm instance_norm prelu".split())  # have a parameter for each channel


class Event(NamedTuple):
    """A call of a function: what it was given, and what it made, see `_still`."""

    func: object
    name: str
    args: tuple
    kwargs: dict
    made: list
    path: str
    where: str


class Cut(NamedTuple):
    """A tensor of the module, by name, that has a unit at each index of an axis, `(n,)`, or none, -1."""

    tensor: str
    axis: int
    units: torch.Tensor


class Layer(NamedTuple):
    """A call of a layer: the unit of each input `(I,)` and of each row `(O,)`; None where there are several at one."""

    hop: h.Hop
    inputs: torch.Tensor | None
    units: torch.Tensor | None


class Recorder(topology.Reader):
    """A reader that keeps every call; in whole, `{group: where}`, each as one unit, what those made that are not read.

    held: numbers of what they were given; stay: [(group, units, why)] of them, and of units with constants among them.
    """

    def __init__(self, *watched):
        super().__init__(*watched)
        self.events, self.whole, self.held, self.stay = [], {}, set(), []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        given, kwargs = tree_map(_still, (args, kwargs or {})), kwargs or {}
        known = _known(given)
        if known and h.name_of(func) in topology.UNIT_WISE and all(x.units[0] in self.whole for x in known):
            return self._whole(func, args, kwargs)  # which says of what type it is
        try:
            found = super().__torch_function__(func, types, args, kwargs)
        except topology.Refused:
            if func.__name__ in topology.VALUES or "out" in kwargs:
                raise
            return self._whole(func, args, kwargs)
        made = [_still(x) for x in _known(found)]
        if made and known:
            where = f"{self.where()} calls {func.__name__}"
            self.events.append(Event(func, h.name_of(func), *given, made, self.inside[-1][0], where))
        return found

    def _whole(self, func, args, kwargs):
        """Return what a function that is not read makes: one unit, which all that it was given leads to."""
        units = [(x.units[0], h.used_of(x.units[1]) * torch.tensor([[1], [0]])) for x in _known((args, kwargs))]
        group, name = self._new(1, *((None, source, h.Wiring(pairs)) for source, pairs in units)), func.__name__
        self.whole[group] = where = f"is not read: {self.where()} calls {name}"
        self.stay.append((group, torch.zeros(1, dtype=torch.int64), f"they lead to what {where}"))
        self.held |= {id(x) for x in h.tensors((args, kwargs))}
        plain = tree_map(lambda x: x.clone() if hasattr(x, "units") else x, (args, kwargs))  # it may write into them
        made = func(*plain[0], **plain[1])
        if name == "__setitem__" or name[-1] == "_" != name[-2] or name[:3] == "__i":
            made = args[0]
        for x in h.tensors(made):
            x.units = group, torch.zeros((), dtype=torch.float64).expand(x.shape)
        return made

    def _joined(self, func, args, kwargs, known):
        """Return what puts values behind each other, where what is constant at some places of a unit belongs to it."""
        group, numbers = super()._joined(func, args, kwargs, known)
        small = h.small_of(numbers)
        for axis in range(small.dim()) if (small < 0).any() else ():
            highest = small.amax(axis, keepdim=True).expand_as(small)
            if small.shape[axis] > 1 and ((small == highest) | (small < 0)).all():
                self.stay.append((group, h.used_of(highest), f"{self.where()} calls {func.__name__} with constants"))
                return group, highest.expand(numbers.shape)
        return group, numbers


def _still(x):
    """Return what has the units that a tensor has now, where it has some, whatever is written into it later."""
    if not hasattr(x, "units"):
        return x
    still = h.blank(x.shape, x.dtype)
    still.units = x.units
    return still


def _known(values):
    return [x for x in h.tensors(values) if hasattr(x, "units")]


class Coupled:
    """What goes together in a module as it works on such inputs. Units of all groups are counted through.

    cuts, layers: see there; calls: `{name: [Layer]}`, those of the layers that may be cut; stays: `bool (U,)`, units
    that never go, those of the input and of the output among them, and why, `{unit: what keeps it}`, where it is no
    matter of course.
    """

    def __init__(self, module, inputs=None):
        self.reader = topology.read(module, inputs, Recorder)
        self.starts = torch.tensor([0, *self.reader.width]).cumsum(0)
        self.count, self.cuts, self.layers, self.joined = int(self.starts[-1]), [], [], []
        self.calls, self.shared = {}, set()
        self.names = {id(tensor): name for name, tensor in module.named_parameters()}
        self.names |= {id(tensor): name for name, tensor in self.reader.network.named_buffers()}
        self.stays, self.why = torch.zeros(self.count, dtype=torch.bool), {}
        for group in (0, self.reader.output):
            self.keep(self._all(group))
        for group, units, why in self.reader.stay:
            self.keep(units + self.starts[group], why)
        layers = iter(hop for hop in self.reader.hops if hop.layer is not None)
        for event in self.reader.events:
            self._note(event, layers)
        self._join_shared()
        self.joined += [self._pairs(hop) for hop in self.reader.hops if hop.layer is None]
        a, b = torch.cat([torch.zeros(2, 0, dtype=torch.int64), *self.joined], 1).numpy()
        graph = coo_array((np.ones(len(a), dtype=np.int8), (a, b)), shape=(self.count, self.count))
        self.sets = torch.from_numpy(connected_components(graph, directed=False)[1]).long()

    def keep(self, units, why=None):
        """Let units stay."""
        self.stays[units] = True
        if why is not None:
            self.why |= dict.fromkeys(units.tolist(), why)

    def gone(self, dead):
        """Return which units go, `bool (U,)`, of those that are dead: where all that go together may."""
        left = torch.zeros(self.count, dtype=torch.int64).index_add_(0, self.sets, (~dead | self.stays).long())
        return left[self.sets] == 0

    def every(self, x):
        """Return the units that occur in a tensor; those of the input, which all stay, are one."""
        group, numbers = x.units
        return h.used_of(numbers) + self.starts[group] if group else torch.zeros(1, dtype=torch.int64)

    def touched(self, event):
        """Return the units that occur in what a function was given, or made."""
        given = _known((event.args, event.kwargs))
        return torch.cat([self.every(x) for x in (*given, *event.made)]).unique()

    def along(self, x, axis):
        """Return the unit of each index of an axis, `(n,)`, -1 where it has none; None where one has several."""
        group, numbers = x.units
        if group == 0:
            return torch.zeros(x.shape[axis], dtype=torch.int64)
        lines = h.small_of(numbers).movedim(axis, 0).flatten(1)
        highest = lines.amax(1, keepdim=True)
        if not ((lines == highest) | (lines < 0)).all():
            return None
        units = highest[:, 0].long().expand(x.shape[axis])
        return torch.where(units < 0, units, units + self.starts[group])

    def _all(self, group):
        return torch.arange(*self.starts[group : group + 2])

    # ---- what was seen

    def _note(self, event, layers):
        others = [x for x in h.tensors((event.args, event.kwargs)) if not hasattr(x, "units")]
        if event.name in topology.LAYERS:
            self._note_layer(event, next(layers))
        elif event.name in ACROSS:
            self.keep(self.every(event.made[0]), f"{event.where}, over all of them")
        elif event.name in PER_CHANNEL:
            for tensor in others:
                self._note_cut(tensor, 0, event, 1)
        elif event.name not in topology.MOVES | topology.JOINS | {"to", "type_as"}:
            for tensor in others:
                for axis in range(tensor.dim()):
                    self._note_cut(tensor, axis, event, axis - tensor.dim())

    def _note_cut(self, tensor, axis, event, across):
        """Note that a tensor has a unit at each index of an axis, if it has more than one there."""
        (made, *_), name = event.made, self.names.get(id(tensor))
        if tensor.shape[axis] > 1 and h.small_of(made.units[1]).shape[across] > 1:
            units = self.along(made, across)
            if units is None or name is None:
                self.keep(self.every(made), f"{event.where} with a tensor that is no parameter of theirs")
            else:
                self.cuts.append(Cut(name, axis, units))

    def _note_layer(self, event, hop):
        weight = event.kwargs.get("weight", event.args[1] if len(event.args) > 1 else None)
        given, made = event.args[0] if event.args else event.kwargs["input"], event.made[0]
        axis, name = (-1 if weight.dim() == 2 else 1 - weight.dim()), self.names.get(id(weight), "")
        layer = Layer(hop, self.along(given, axis), self.along(made, axis))
        odd = hop.wiring.transposed and hop.wiring.groups > 1 or name != f"{event.path}.weight"
        if odd or layer.inputs is None or layer.units is None:
            layer = layer._replace(inputs=None)
            self.shared.add(name)
            what = "has places that are units of their own, or a weight that is not its own"
            self.keep(torch.cat([self.every(given), self.every(made)]), f"{event.where}: it {what}")
        else:
            self._note_axes(layer, event.where)
            self.calls.setdefault(hop.layer, []).append(layer)
        self.layers.append(layer)

    def _note_axes(self, layer, where):
        name, rows, groups = layer.hop.layer, int(layer.hop.wiring.transposed), layer.hop.wiring.groups
        self.cuts.append(Cut(f"{name}.weight", rows, layer.units))
        if f"{name}.bias" in self.names.values():
            self.cuts.append(Cut(f"{name}.bias", 0, layer.units))
        if groups == 1:
            self.cuts.append(Cut(f"{name}.weight", 1 - rows, layer.inputs))
            return
        every = torch.cat([layer.inputs.view(groups, -1), layer.units.view(groups, -1)], 1)
        self.keep(every[(every < 0).any(1)].clamp(0).flatten(), f"{where} in groups with inputs that are none")
        first = every.amax(1, keepdim=True).expand_as(every)
        self.joined.append(torch.stack([every, first]).flatten(1)[:, every.flatten() >= 0])

    def _pairs(self, hop):
        """Return the units that an identity makes one, `(2, E)`."""
        if hop.wiring.pairs is None:
            return torch.stack([self._all(hop.source), self._all(hop.target)])
        return hop.wiring.pairs + self.starts[[hop.source, hop.target]][:, None]

    def _join_shared(self):
        """Join the units at one place of a tensor that is used twice; what has places of its own stays."""
        first = {}
        for cut in self.cuts:
            pairs = torch.stack([cut.units, first.setdefault((cut.tensor, cut.axis), cut).units])
            both = (pairs >= 0).all(0) & (cut.tensor not in self.shared)
            self.joined.append(pairs[:, both])
            self.keep(pairs[:, ~both][pairs[:, ~both] >= 0], f"{cut.tensor} is used twice")
        self.cuts = list(first.values())

    # ---- what is on a path, and what can go

    def paths(self, kept):
        """Return which units the input reaches, and which lead to the output, `bool (U,)`: by weights `{layer: bool}`.

        kept: `(O, I / groups)`, which pairs have a weight. What is added or multiplied reaches, if one of both does.
        """
        reached, leads = torch.zeros(2, self.count, dtype=torch.bool)
        reached[self._all(0)] = leads[self._all(self.reader.output)] = True
        layers = iter(self.layers)
        ways = [self._way(hop, None if hop.layer is None else next(layers), kept) for hop in self.reader.hops]
        for here, there, pairs in ways:
            reached[there[_across(pairs, reached[here])]] = True
        for here, there, pairs in reversed(ways):
            leads[here[_across(None if pairs is None else pairs.mT, leads[there])]] = True
        return reached, leads

    def _way(self, hop, layer, kept):
        """Return the units where a hop starts and ends, and which pairs it joins, by group; None: each its own."""
        if layer is None:
            return *self._pairs(hop), None
        if layer.inputs is None:
            here, there = self._all(hop.source), self._all(hop.target)
            return here, there, torch.ones(1, 1, 1, dtype=torch.bool).expand(1, len(there), len(here))
        return layer.inputs, layer.units, kept[hop.layer].unflatten(0, (hop.wiring.groups, -1))

    def fits(self, event, gone):
        """Return whether a call would make of what is left what is left of what it made."""
        made = [self._left(x, gone) for x in event.made]
        given = [self._left(x, gone) for x in _known((event.args, event.kwargs))]
        if any(numbers is None for numbers in (*made, *given)):
            return False
        if event.name in topology.MOVES:
            return self._moves(event, gone, made)
        if event.name in topology.LAYERS | topology.JOINS or len(given) == 1:
            return True
        try:
            return torch.broadcast_shapes(*(numbers.shape for numbers in given)) == made[0].shape
        except RuntimeError:
            return False

    def _moves(self, event, gone, made):
        """Return whether what moves entries moves those that are left to where they are in what it made."""
        left = lambda x: h.carrying(x, self._left(x, gone)) if hasattr(x, "units") else x  # noqa: E731
        args, kwargs = tree_map(left, (event.args, event.kwargs))
        try:
            found = h.tensors(self.reader.moved(event.func, event.name, args, kwargs, _known((args, kwargs))[0]))
        except (RuntimeError, IndexError, ValueError):
            return False
        return all(
            x.shape == numbers.shape and torch.equal(x.units[1], numbers)
            for x, numbers in zip(found, made, strict=True)
        )

    def _left(self, x, gone):
        """Return the numbers of what is left of a tensor, without what is gone; None if that is no line of an axis."""
        group, numbers = x.units
        if group == 0:
            return numbers
        small = h.small_of(numbers)
        drops = gone[small.long().clamp(0) + self.starts[group]] & (small >= 0)
        stays = (small >= 0) & ~drops
        if not drops.any():
            return numbers
        for axis in range(small.dim()) if stays.any() else ():
            dropped, kept = (x.movedim(axis, 0).flatten(1).any(1) for x in (drops, stays))
            if not (dropped & kept).any():
                left = small.index_select(axis, (~dropped).nonzero()[:, 0])
                shape = [*x.shape]
                shape[axis] = left.shape[axis]
                return left.expand(shape)
        return None


def _across(pairs, here):
    """Return what is led to from some of the inputs, `bool (O,)`, through pairs `(groups, O, I)`."""
    if pairs is None:
        return here
    return (pairs & here.view(len(pairs), 1, -1)).any(2).flatten()
