"""The topology of a torch module: which units lead to which, found by running it once on tensors without data.

Every value carries, entry by entry, the number of the unit that the entry belongs to. What only moves entries (reshape,
permute, slice, pad) moves these numbers by the same function, so that nothing has to know which axis holds the units:
a unit of a linear layer may be a pixel of a channel after a view, and a channel several features after flattening.

Needs torch alone; see phew.py, which walks through what is found here.
"""

import inspect
import math

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map

try:
    from lib.pruning import hops as h
except ImportError:  # see phew.py
    import hops as h

# Functions and methods by name, without underscores around it. Those that leave every entry the unit that it was:
UNIT_WISE = set(
    """relu relu6 elu selu celu leaky_relu prelu rrelu gelu silu mish softplus softsign hardswish hardtanh hardsigmoid
    sigmoid logsigmoid tanh tanhshrink softshrink hardshrink threshold clamp clip erf exp abs absolute neg negative
    square sqrt pow sin cos sinc tan sinh cosh asinh atan expm1 log log1p log2 log10 round floor ceil softmax softmin
    log_softmax dropout dropout1d dropout2d dropout3d alpha_dropout feature_alpha_dropout feature_dropout batch_norm
    layer_norm group_norm instance_norm local_response_norm rms_norm normalize contiguous clone detach data float double
    half bfloat16 to type type_as cpu cuda requires_grad""".split()
)
SUMS = set("add radd iadd sub subtract rsub isub maximum minimum fmax fmin max min".split())
PRODUCTS = set("mul rmul imul multiply".split())
QUOTIENTS = set("div divide truediv itruediv true_divide".split())
MOVES = set(
    """view reshape flatten unflatten permute transpose swapaxes swapdims movedim moveaxis t T mT squeeze unsqueeze
    expand expand_as view_as reshape_as repeat repeat_interleave tile chunk split tensor_split unbind select narrow
    getitem index_select flip roll pad constant_pad_nd pixel_shuffle pixel_unshuffle channel_shuffle broadcast_to
    split_with_sizes ravel""".split()
)
JOINS = set("cat concat concatenate stack hstack vstack".split())
REDUCTIONS = set("mean sum amax amin max min var std logsumexp norm".split())
LAYERS = {f"conv{turned}{n}d" for turned in ("", "_transpose") for n in (1, 2, 3)} | {"linear"}
SHAPES = set("size shape dim ndim ndimension dtype device numel nelement len stride layout requires_grad".split())
VALUES = set("__bool__ __int__ __float__ __index__ __contains__ item tolist numpy".split())
SIDES = 32, 64, 128, 224, 256, 299, 512, 28, 8, 1  # of images, or numbers of tokens, tried where no example is given
BY_HAND = "; else write the hops by hand and call `masks`"
WAY_OUT = "Read are layers, sums, products, concatenations, pools, and what moves or works on single units" + BY_HAND


def topology(network, inputs=None):
    """Return the hops of a torch module, as read by running a copy of it on numbers of units in place of data.

    A layer leads from one group of units to another, what works on units one by one stays within a group, and a sum is
    one group, into which its terms' layers lead. `inputs`: an example, a batch as the network reads it, or a tuple of
    what it reads; its shape alone counts. Where it makes maps no larger than a kernel it decides which weights are of
    use. None: tried are images and rows of plausible sizes, larger where maps would be so small. Layers that share one
    weight have the name of the first. Raises ValueError at what joins units otherwise, by its name and where it stands.
    """
    reader = read(network, inputs)
    while inputs is None and reader.cramped and reader.borders < 2 and (larger := _larger(network, reader)):
        reader = larger
    if reader.cramped or reader.borders == 2:
        reader = read(network, reader.given, Pixels)
    hops = h.merged(reader.hops, reader.output)
    if idle := sorted({*reader.names.values()} - {hop.layer for hop in hops}):
        mode = "" if reader.network.training else " in eval() mode (in train() mode they may be)"
        raise ValueError(f"no output depends on the layers {idle}{mode}; walks need all: take out what has no use")
    return hops


def read(network, inputs=None, kind=None):
    """Return the `Reader`, or another kind of it, that watched a copy of the network work on such inputs."""
    network, kind = h.unwrapped(network), kind or Reader
    names = h.shared(network)
    if not names:
        raise ValueError(f"{type(network).__name__} has neither a convolution nor a linear layer to be pruned")
    return _searched(network, names, kind) if inputs is None else _read(network, names, kind, inputs)


# ---- running it


class Refused(ValueError):
    pass


def _searched(network, names, kind):
    """Return what was read with the first plausible example that the network takes."""
    first, reason = next(iter(h.weighted(network).values())), None
    for shape_of in h.plausible(first):
        low, high, sides = 0, None, [*SIDES]
        while sides:
            side = sides.pop(0)
            try:
                return _read(network, names, kind, h.blank((2, *shape_of(side)), next(network.parameters()).dtype))
            except Refused:
                raise
            except Exception as error:  # whatever an image of the wrong size leads to, a kernel larger than it, say
                reason, small = reason or error, getattr(error, "excess", -1) < 0
            low, high = (max(low, side), high) if small else (low, min(high or side, side))
            if high is not None:
                sides = [(low + high) // 2] if high - low > 1 else []
    told = f"{type(network).__name__} does not run on what was tried ({type(reason).__name__}: {reason})"
    raise ValueError(f"{told}; pass an example, inputs=x, or a tuple of all that it reads") from reason


def _larger(network, reader):
    """Return what is read of images of twice the sides, None where there are none that the network takes."""
    given = [h.blank((*x.shape[:2], *(2 * side for side in x.shape[2:])), x.dtype) for x in reader.given]
    try:
        return read(network, given) if max(given[0].shape[2:], default=math.inf) <= max(SIDES) else None
    except Exception:  # as above
        return None


@torch.no_grad()
def _read(network, names, kind, inputs):
    inputs = tuple(inputs) or (None,) if isinstance(inputs, tuple | list) else (inputs,)
    if odd := [type(x).__name__ for x in inputs if not (isinstance(x, torch.Tensor) and x.dim() and x.numel())]:
        raise ValueError(f"inputs have a part of type {odd[0]}, or an empty one; needed is an example, or all it reads")
    wanted = [p for p in inspect.signature(network.forward).parameters.values() if p.default is p.empty]
    wanted = sum(p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD) for p in wanted)
    inputs = inputs * wanted if len(inputs) == 1 and wanted else inputs
    copied, reader = _watched(network, names, kind)
    reader.given, reader.network = inputs, copied
    given = [reader.enter(h.blank(x.shape, x.dtype)) for x in inputs]
    with torch.random.fork_rng(devices=[]), reader:
        outputs = copied(*given)
    reader.leave(outputs)
    return reader


def _watched(network, names, kind):
    """Return a copy of the network, with its own buffers, which a forward pass may change, and what watches it."""
    memo = {}
    for module in network.modules():
        for tensor in (*vars(module).values(), *module._parameters.values()):
            if isinstance(tensor, torch.Tensor):
                memo[id(tensor)] = tensor
        memo |= {id(x): x.detach().clone() for x in module._buffers.values() if x is not None and id(x) not in memo}
    layers = h.weighted(network)
    weights = {id(layer._parameters.get("weight", layer)): names[name] for name, layer in layers.items()}
    copied, reader = h.copied(network, memo), kind(weights, names, next(iter(layers.values())))
    for name, module in copied.named_modules():
        module._compiled_call_impl = None
        module.register_forward_pre_hook(lambda *_, here=(name, module): reader.inside.append(here), prepend=True)
        module.register_forward_hook(lambda *_: reader.inside.pop() and None, always_call=True)
    return copied, reader


class Reader(TorchFunctionMode):
    """What watches a run: the hops, the number of units of every group, and where in the network the run is.

    A tensor that depends on the input has `units`: its group, and the number of the unit that each entry belongs to.
    borders: 1 once a map was padded, 2 once a layer then told a channel's pixels apart; cramped: then a map was no
    larger than a kernel. At the border not every cell of a kernel has something to read: `Pixels` have to be units.
    """

    pixels = False

    def __init__(self, weights, names, first):
        super().__init__()
        self.weights, self.names, self.first = weights, names, first
        self.hops, self.width, self.output, self.inside = [], [0], None, []
        self.borders, self.cramped, self.given, self.network = 0, False, (), None

    def enter(self, x):
        """Return an input whose channels are units, or its features, if that is what the first layer reads."""
        if isinstance(self.first, nn.Linear):
            axis = -1 if x.dim() == 2 or x.shape[-1] == self.first.in_features else None
        else:
            axis = 1 if x.dim() == len(self.first.kernel_size) + 2 else None
        axis = None if self.pixels else axis
        shape = [1, *x.shape[1:]] if axis is None else [1] * x.dim()
        shape[axis or 0] = x.shape[axis] if axis else 1
        numbers = torch.arange(math.prod(shape), dtype=torch.float64).view(shape) + self.width[0]
        self.width[0] += numbers.numel()
        x.units = 0, numbers.expand(x.shape)
        return x

    def leave(self, outputs):
        """Make what the network returned the last group."""
        found = [x.units for x in h.tensors(outputs) if hasattr(x, "units")]
        if not found:
            raise Refused("no output depends on the input in a way that could be read")
        groups = {group for group, _ in found}
        whole = len(h.used_of(*(numbers for _, numbers in found))) == self.width[found[0][0]]
        if len(groups) == 1 and whole and not groups & {0, *(hop.source for hop in self.hops)}:
            self.output = groups.pop()
        else:
            self.output, _ = self._side_by_side(found, always=True)

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs, name = kwargs or {}, h.name_of(func)
        known = [x for x in h.tensors((args, kwargs)) if hasattr(x, "units")]
        if not known or name in SHAPES or name.startswith(("is_", "new_")) or name.endswith("_like"):
            return func(*args, **kwargs)
        if name in MOVES and (known[1:] == [] or name[-3:] == "_as") and any(known[0] is x for x in args):
            return self.moved(func, name, args, kwargs, known[0])
        state = self._state(func, name, args, kwargs, known)
        if state is None or func.__name__ in VALUES or kwargs.get("out") is not None:
            what = "decides by values: it" if func.__name__ in VALUES else "joins units in a way that is not read: it"
            raise Refused(f"{self.where()} {what} calls {func.__name__}. {WAY_OUT}")
        in_place = func.__name__[-1] == "_" and func.__name__[:2] != "__" or func.__name__[:3] == "__i"
        found = args[0] if in_place else h.blank(state[1].shape, known[0].dtype)
        found.units = state if name in UNIT_WISE else (state[0], h.small_of(state[1]).expand(state[1].shape))
        if name in ("max", "min") and (len(args) > 1 and isinstance(args[1], int) or "dim" in kwargs):
            return getattr(torch.return_types, name)((found, h.blank(found.shape, torch.int64)))
        return found

    def _state(self, func, name, args, kwargs, known):
        """Return the group and the numbers of a result, having noted the hops into it; None if it cannot be read."""
        if name in LAYERS:
            return self._layer(func, args, kwargs)
        if name in JOINS:
            return self._joined(func, args, kwargs, known)
        if "_pool" in name and name[-1] == "d" or name in ("interpolate", "upsample"):
            return self._pooled(func, args, kwargs)
        if name == "glu":
            halves = self.moved(torch.chunk, "chunk", (known[0], 2, [*args, *kwargs.values(), -1][1]), {}, known[0])
            return self._combined(halves, halves[0].shape, True)
        if name in REDUCTIONS and len(known) == 1:
            return self._reduced(args, kwargs)
        if name in UNIT_WISE:
            return known[0].units
        if name in PRODUCTS or name in SUMS or name in QUOTIENTS and len(known) == 1 and known[0] is args[0]:
            shape = torch.broadcast_tensors(*(h.blank(x.shape, torch.bool) for x in h.tensors(args)))[0].shape
            return self._combined(known, shape, name in PRODUCTS)
        return None

    def where(self):
        return f"{type(self.inside[-1][1]).__name__} {self.inside[-1][0]!r}".removesuffix(" ''")

    def _new(self, width, *hops):
        """Return a new group of units; hops: `(layer, source, wiring)` of those that lead into it."""
        self.width.append(width)
        group = len(self.width) - 1
        self.hops += [h.Hop(layer, source, group, wiring._replace(width=width)) for layer, source, wiring in hops]
        return group

    def moved(self, func, name, args, kwargs, first):
        """Return what a function that moves entries makes of tensors, which it makes of their numbers."""
        if func.__name__.endswith("_") and not func.__name__.endswith("__"):
            raise Refused(f"{self.where()} calls {func.__name__}, in place; take {name} and its result")
        mode = args[2] if len(args) > 2 else kwargs.get("mode", "constant")
        if name == "constant_pad_nd" or name == "pad" and mode == "constant":
            numbers, border = h.framed(first.units[1], args[1] if len(args) > 1 else kwargs["pad"], self.pixels)
            self.borders = max(self.borders, border)
            return h.carrying(first, numbers)
        func = {"view": torch.Tensor.reshape, "view_as": torch.Tensor.reshape_as}.get(name, func)
        args, kwargs = tree_map(lambda x: x.units[1].contiguous() if hasattr(x, "units") else x, (args, kwargs))
        return tree_map(lambda numbers: h.carrying(first, numbers), func(*args, **kwargs))

    def _layer(self, func, args, kwargs):
        """Return the units of a layer, having noted its hop."""
        turned, last = "transpose" in func.__name__, ["dilation", "groups"]
        keys = ["input", "weight", "bias", "stride", "padding", *(["output_padding", *last[::-1]] if turned else last)]
        given = dict(zip(keys, args, strict=False)) | kwargs
        weight, groups, (path, module) = given["weight"], given.get("groups", 1), self.inside[-1]
        layer = self.weights.get(id(weight), self.names.get(path) if isinstance(module, h.WEIGHTED) else None)
        if layer is None or not hasattr(given["input"], "units"):
            raise Refused(f"{self.where()} calls {func.__name__} with a weight that is no layer's own. {WAY_OUT}")
        group, numbers = given["input"].units
        axis = -1 if weight.dim() == 2 else 1 - weight.dim()
        wanted = weight.shape[0] if turned else weight.shape[1] * groups
        if numbers.shape[axis] != wanted:
            error = RuntimeError(f"{self.where()} has {wanted} inputs, and gets {numbers.shape[axis]}")
            error.excess = numbers.shape[axis] - wanted if axis == -1 else -1  # by which another side is tried
            raise error
        if axis == -1:
            reads, out, places = h.rows_of(numbers, len(weight))
        else:
            units = weight.shape[1] * groups if turned else len(weight)
            reads, out, places = self._image(func, given, group, numbers, units)
        if self.borders and len(reads) > len(reads.unique()):
            self.borders = 2
        pairs = h.pairs_of(reads, self.width[group], axis == -1 and places is None)
        return self._new(
            int(h.small_of(out).max()) + 1, (layer, group, h.Wiring(pairs, None, groups, turned, places))
        ), out

    def _image(self, func, given, group, numbers, units):
        """Return what a convolution's inputs read, `(inputs,)`, its units' numbers, and its places: see `h.Wiring`."""
        filters = given["weight"].shape[2:]
        axes, turned = len(filters), "transpose" in func.__name__
        options = {key: given[key] for key in ("stride", "padding", "dilation", "output_padding") if key in given}
        one = numbers[0] if numbers.dim() > axes + 1 else numbers
        if h.small_of(numbers).shape[0] > 1 and one is not numbers:
            raise Refused(f"{self.where()} reads a batch whose examples are made of different units. {WAY_OUT}")
        sides, each = one.shape[1:], one.flatten(1)
        image = func(*(torch.ones(1, 1, *n, dtype=torch.float64) for n in (sides, filters)), **options).shape[2:]
        single = sides.numel() == filters.numel() == image.numel() == 1  # as of a linear layer
        plain = h.small_of(each).shape[1] == 1 and (single or not self.pixels)
        padding = options.get("padding", 0)
        if (each < 0).any() or (max(padding) if isinstance(padding, tuple) else padding) not in (0, "valid"):
            self.borders = max(self.borders, 1)
        extents = (torch.tensor(filters) - 1) * torch.tensor(options.get("dilation", 1)) + 1
        self.cramped |= bool(self.borders and ((torch.tensor(sides) <= extents) & (extents > 1)).any())
        if group == 0 and not plain and not self.pixels and not any(hop.source == 0 for hop in self.hops):
            each, plain = torch.arange(len(each), dtype=torch.float64)[:, None], True
            self.width[0] = len(each)  # a row of pixels that is made an image: its units are channels
        shape = *numbers.shape[: -axes - 1], units, *image
        split = turned and sides.numel() == 1 < image.numel()  # one pixel is made many: each is a unit
        if plain and not split:
            out = torch.arange(units, dtype=torch.float64).view(units, *[1] * axes)
            return each[:, 0], out.expand(shape), None
        out = torch.arange(units * image.numel(), dtype=torch.float64).view(units, *image)
        return each.flatten(), out.expand(shape), h.places_of(func, sides, filters, options)

    def _joined(self, func, args, kwargs, known):
        """Return what puts values, one behind the other, into one."""
        parts = args[0] if args else kwargs["tensors"]
        group, offset = self._side_by_side([x.units for x in known])
        numbers = [h.shifted(x, offset[x.units[0]] if hasattr(x, "units") else 0) for x in parts]
        return group, func(numbers, *args[1:], **{key: kwargs[key] for key in kwargs if key != "tensors"})

    def _side_by_side(self, found, always=False):
        """Return a group that has the units of all groups of `found`, and where those of each begin, `{group: at}`."""
        used = {}
        for group in dict.fromkeys(group for group, _ in found):
            used[group] = h.used_of(*(numbers for other, numbers in found if other == group))
        if len(used) == 1 and not always:
            return found[0][0], {found[0][0]: 0}
        at, offset = 0, {}
        for group in used:
            offset[group], at = at, at + self.width[group]
        hops = [(None, g, h.Wiring(torch.stack([units, units + offset[g]]))) for g, units in used.items()]
        return self._new(at, *hops), offset

    def _combined(self, known, shape, factor):
        """Return the sum, or the product, of values, entry by entry."""
        groups, numbers = [x.units[0] for x in known], [x.units[1].expand(shape) for x in known]
        alike = all(torch.equal(h.small_of(numbers[0]), h.small_of(other)) for other in numbers[1:])
        if alike and len(set(groups)) == 1:
            return groups[0], numbers[0]
        if alike:
            used, widths = h.used_of(numbers[0]), {self.width[group] for group in groups}
            pairs = None if widths == {len(used)} else torch.stack([used, used])
            wiring, out = [h.Wiring(pairs, factor=factor)] * len(groups), numbers[0]
            width = max(widths)
        else:
            rows, out = h.distinct_of(torch.stack([n.flatten() for n in numbers], 1), factor)
            width, out, new = len(rows), out.view(shape), torch.arange(len(rows))
            pairs = [torch.stack([row, new])[:, row >= 0] for row in rows.long().T]
            wiring = [h.Wiring(pair, factor=factor) for pair in pairs]
        return self._new(width, *[(None, g, w) for g, w in zip(groups, wiring, strict=True)]), out

    def _pooled(self, func, args, kwargs):
        """Return what a pool, or an interpolation, makes of the last axes: one position of several of a channel."""
        group, numbers = args[0].units
        axes = int(func.__name__[-2]) if "pool" in func.__name__ else numbers.dim() - 2
        lead, sides = numbers.dim() - axes, numbers.shape[-axes:]
        if h.small_of(numbers).shape[lead:].numel() == 1:
            image = func(torch.ones(1, 1, *sides), *args[1:], **kwargs).shape[2:]
            return group, numbers[(..., *[slice(1)] * axes)].expand(*numbers.shape[:lead], *image)
        for axis, side in enumerate(sides):
            line = torch.eye(side).view(side, 1, *(side if other == axis else 1 for other in range(axes)))
            made = func(line.expand(side, 1, *sides), *args[1:], **kwargs).movedim(axis + 2, 1).flatten(2).any(2)
            near = made.T.double().topk(int(made.sum(0).max()))  # for each line of the result, what it is made of
            rows = numbers.movedim(lead + axis, -1)[..., near.indices].masked_fill(near.values == 0, h.NO_UNIT)
            numbers = rows.movedim(-2, lead + axis)
        return self._mixed(group, numbers.flatten(lead + axes))

    def _reduced(self, args, kwargs):
        """Return what a mean, or another summary, makes of whole axes."""
        group, numbers = args[0].units
        axes = args[1] if len(args) > 1 else kwargs.get("dim", kwargs.get("axis"))
        axes = range(numbers.dim()) if axes is None or axes == () else axes
        axes = sorted(axis % numbers.dim() for axis in ([axes] if isinstance(axes, int) else axes))
        others = [axis for axis in range(numbers.dim()) if axis not in axes]
        group, out = self._mixed(group, numbers.permute(*others, *axes).flatten(len(others)))
        return group, out.view(numbers.sum(axes, keepdim=kwargs.get("keepdim", len(args) > 2 and args[2])).shape)

    def _mixed(self, group, rows):
        """Return the group and the numbers of entries each of which is made of a row, `(..., K)`, of others."""
        highest, lowest = rows.amax(-1), rows.masked_fill(rows < 0, math.inf).amin(-1)
        if bool(((highest == lowest) | (highest < 0)).all()):
            return group, highest
        distinct, out = h.distinct_of(rows.reshape(-1, rows.shape[-1]).sort(1).values, False)
        new = torch.arange(len(distinct))[:, None].expand_as(distinct)
        pairs = torch.stack([distinct.long().flatten(), new.flatten()])
        pairs = torch.unique(pairs[:, pairs[0] >= 0], dim=1)
        return self._new(len(distinct), (None, group, h.Wiring(pairs))), out.view(highest.shape)


class Pixels(Reader):
    """A reader to which every pixel of a channel of the input is a unit, and so every one behind it."""

    pixels = True
