"""Any torch module made smaller: what lies on no path is sliced out of its own layers, which go on doing what they do.

It goes in the sets of `coupled.py`. What it still says, a constant, is folded into the biases of the layers that read
it, and behind a padded convolution into a `plain.Offset`, which stands behind the convolution in a sequence.
"""

import warnings
from collections import Counter
from contextlib import ExitStack, suppress

import torch
from torch import nn
from torch.func import functional_call
from torch.overrides import TorchFunctionMode

from lib.errors import listed
from lib.networks import plain
from lib.pruning import hops as h
from lib.pruning import paths, topology
from lib.pruning.checks import assert_tensors
from lib.pruning.coupled import Coupled
from lib.pruning.masks import COMPUTED, apply_, computed

# Two numbers computed in float64 by differently ordered sums: apart by less than this share, they are one number.
ROUNDING = 1e-13
CLOSE = 1e-9  # the share of the largest output by which outputs in float64 may be apart
CASTS = set("to type type_as float half bfloat16".split())
CALL = "torch_pruning.DependencyGraph().build_dependency(module, x)"
TORCH_PRUNING = f"Torch-Pruning takes units out of other kinds of modules: {CALL}"


@torch.no_grad()
def sliced(module, masks, inputs=None):
    """Return a copy of a torch module, in eval() mode, without the units that lie on no path of non-zero weights.

    masks: `{name: bool}` of any of its parameters, from units by `smaller.rows`. inputs: an example, or a tuple of all
    that it reads, as for `topology.topology`; the copy reads what has this shape. Convolutions, linear layers, batch
    normalisations and factors or terms for each channel get narrower, in sums, products and concatenations alike; the
    weights that are masked inside stay, as zeros. A layer keeps at least one unit. Warns where units on no path stay,
    and says what normalises over them, needs their number or is not read, and of layers that training alone uses,
    which stay whole. ValueError for what decides by values, or would compute otherwise: Torch-Pruning may then.
    """
    isinstance(inputs, torch.Tensor) and assert_tensors(inputs)
    work = h.copied(h.unwrapped(module)).eval()
    try:
        coupled = Coupled(work, inputs)
    except topology.Refused as error:
        raise ValueError(f"{str(error).removesuffix(topology.BY_HAND)}. {TORCH_PRUNING}") from error
    except (RuntimeError, IndexError, TypeError) as error:
        raise ValueError(f"{type(work).__name__} cannot be watched as it reads such inputs: {error}") from error
    types = {(part, name): tensor.dtype for part, name, tensor in _tensors(work)}
    apply_(work, masks).double()
    x = [_example(one).to(next(work.parameters()).device) for one in coupled.reader.given]
    if odd := computed(work):
        warnings.warn(f"layers {odd} stay whole: they {COMPUTED}", stacklevel=3)
    outputs, read = _watched(work, coupled, x)
    reached, leads = coupled.paths(_pairs(work, coupled))
    dead = ~(reached & leads)
    gone, constants = _settled(work, coupled, dead, reached, read)
    _tell(coupled, dead & ~gone, not gone.any())
    _tell_idle(work, coupled, gone)
    larger = _larger(work, x) if inputs is None and constants and all(map(_even, constants.values())) else []
    _cut(work, coupled, gone)
    for name, constant in constants.items():
        _add(work, name, constant)
    _assert_same(outputs, work, x, TORCH_PRUNING)
    for outputs, x in larger:
        _assert_same(outputs, work, x, "What they say depends on the size of images: pass one of yours, inputs=x")
    kind = next(iter(types.values()))
    for part, name, tensor in _tensors(work):  # what is new is of the type of what stands before it, its layer's weight
        kind = types.get((part, name), kind)
        tensor.data = tensor.data.to(kind)
    return work


def _tensors(work):
    """Return (module, name, tensor) of all parameters and buffers that are floating-point numbers."""
    own = ((part, {**part._parameters, **part._buffers}) for part in work.modules())
    every = ((part, name, tensor) for part, tensors in own for name, tensor in tensors.items())
    return [each for each in every if each[2] is not None and each[2].is_floating_point()]


class _Doubled(TorchFunctionMode):
    """Within the block, what is made floating-point numbers, of none, is float64, as the module is: zeros, say."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        found = func(*args, **(kwargs or {}))
        if not isinstance(found, torch.Tensor) or not found.is_floating_point():
            return found
        if h.name_of(func) in CASTS:
            return args[0].to(found.device, torch.float64)
        return found if any(x.is_floating_point() for x in h.tensors((args, kwargs))) else found.double()


def _example(like):
    """Return numbers in (0, 1) of the shape of an example, none like its neighbour; whole numbers as they are."""
    made = torch.arange(like.numel(), dtype=torch.float64).sin().view(like.shape) * 0.45 + 0.5
    return made if like.is_floating_point() else like


def _watched(work, coupled, x):
    """Return what a module returns, and what its layers read meanwhile, `{layer: [(N, ...) of each call]}`."""
    read = {layer.hop.layer: [] for layer in coupled.layers}
    with ExitStack() as hooks:
        for name, each in read.items():
            keep = lambda part, given, each=each: each.append(given[0])  # noqa: E731
            hooks.enter_context(work.get_submodule(name).register_forward_pre_hook(keep))
        outputs = _run(work, x, "in float64")
    given, made = h.tensors(read), h.tensors(outputs)
    if not all(each.isfinite().all() for each in given) or any(each.isnan().any() for each in made):
        told = "makes numbers that are not finite of an example between 0 and 1"
        raise ValueError(f"{type(work).__name__}, so masked, {told}: look at its weights")
    return outputs, read


def _run(work, x, how):
    """Return what a module makes of examples in float64; ValueError, which says how it does not run."""
    fresh = h.copied(work, {id(p): p for p in work.parameters()})  # so that nothing stays of what a pass puts into it
    try:
        with _Doubled():
            return fresh(*x)
    except Exception as error:  # whatever code may do that counts on sizes, or on a type
        raise ValueError(f"{type(work).__name__} does not run {how}: {error}. {TORCH_PRUNING}") from error


def _pairs(work, coupled):
    """Return which inputs of a layer have a weight to which of its units, `{layer: bool (O, I / groups)}`."""
    pairs = {}
    for name, (layer, *_) in coupled.calls.items():
        weight = h.turned(work.get_parameter(f"{name}.weight"), layer.hop.wiring)
        pairs[name] = paths.joined((weight != 0)[None], weight.shape[1])[0].cpu()
    return pairs


def _settled(work, coupled, dead, reached, read):
    """Return which units go, `bool (U,)`, and the constants `{layer: (O, ...)}` that they leave to what reads them."""
    while True:
        gone, before, constants = coupled.gone(dead), int(coupled.stays.sum()), {}
        for cut in coupled.cuts:
            if _of(gone, cut.units).all():
                coupled.keep(cut.units[:1])
        events = coupled.reader.events if before == int(coupled.stays.sum()) else ()
        for event in [event for event in events if not coupled.fits(event, gone)]:
            units = coupled.touched(event)
            coupled.keep(units[gone[units]], f"{event.where}, which counts on their number")
        for layers in coupled.calls.values() if before == int(coupled.stays.sum()) else ():
            constants |= _constants(work, coupled, layers, gone, reached, read)
        if before == int(coupled.stays.sum()):
            return gone, constants


def _constants(work, coupled, layers, gone, reached, read):
    """Return the constant that units leave to a layer, `{layer: (O, ...)}`, `layers` being its calls; or let them stay.

    It is one for all calls, and one for all places where no `plain.Offset` can stand.
    """
    name, silent = layers[0].hop.layer, [_of(gone & ~reached, layer.inputs) for layer in layers]
    if not torch.stack(silent).any():
        return {}
    part, left = work.get_submodule(name), ~gone[layers[0].units]
    constant, *more = (_constant(part, *each)[left] for each in zip(silent, read[name], strict=False))
    if len(layers) != len(read[name]) or not all(_alike(constant, other) for other in more):
        why = "is another in another call"
    elif not isinstance(part, nn.Conv2d | nn.ConvTranspose2d) and not _even(constant):
        why = "is not everywhere the same"
    else:
        return {name: constant} if constant.any() else {}
    for layer, says in zip(layers, silent, strict=True):
        coupled.keep(layer.inputs[says], f"a constant, read by {name!r}, {why}")
    return {}


def _alike(one, other):
    """Return whether two constants are one, but for rounding."""
    if one.shape != other.shape:
        return not (one.any() or other.any())
    return bool(((one - other).abs() <= ROUNDING * one.abs().max()).all())


def _of(which, units):
    """Return what is said of the unit of each index `(n,)`; where there is none, no."""
    return which[units.clamp(0)] & (units >= 0)


def _constant(part, silent, x):
    """Return what a layer makes of these inputs, `bool (I,)`, alone, without its bias, `(O, ...)`."""
    axis = -1 if isinstance(part, nn.Linear) else 1 - part.weight.dim()
    alone = x[:1] * silent.to(x).view(-1, *[1] * (-axis - 1))
    bias = {} if part.bias is None else {"bias": torch.zeros_like(part.bias)}
    return functional_call(part, bias, (alone,)).movedim(axis, 0)[:, 0]


def _tell(coupled, left, whole):
    """Warn of units on no path that stay, and say why; of those that go only with others where all is left whole."""
    why = {int(coupled.sets[unit]): reason for unit, reason in coupled.why.items()}
    alone = ["they go only with others that stay, in a sum or a group"] * int((left & ~coupled.stays).sum())
    told = Counter([why[unit] for unit in coupled.sets[left].tolist() if unit in why] or alone * whole)
    if told:
        reasons = "; ".join(f"{count}, because {reason}" for reason, count in told.most_common(3))
        warnings.warn(f"{sum(told.values())} units on no path stay: {reasons}. {TORCH_PRUNING}", stacklevel=6)


def _tell_idle(work, coupled, gone):
    """Warn of layers that nothing depends on in eval() mode, where units of others go."""
    used, names, held = {layer.hop.layer for layer in coupled.layers}, h.shared(work), coupled.reader.held
    used |= {name for name, part in h.weighted(work).items() if id(part._parameters.get("weight")) in held}
    idle = [name for name, first in names.items() if not {name, first} & used]
    if idle and gone.any():
        told = f"{listed(idle)} make no output in eval() mode and stay whole"
        warnings.warn(f"{told}: in train() mode they may read units that are gone, take them out", stacklevel=6)


def _cut(work, coupled, gone):
    """Take out of the tensors, in place, what belongs to units that are gone, and let layers say how many are left."""
    for cut in coupled.cuts:
        path, _, name = cut.tensor.rpartition(".")
        part, left = work.get_submodule(path), ~_of(gone, cut.units)
        if left.all():
            continue  # a new parameter would part what is shared
        tensor = getattr(part, name)
        less = tensor.index_select(cut.axis, left.nonzero()[:, 0].to(tensor.device))
        setattr(part, name, nn.Parameter(less, tensor.requires_grad) if name in part._parameters else less)
        for size in ("num_features", "num_parameters"):
            if hasattr(part, size):
                setattr(part, size, len(less))
    for name, (layer, *_) in coupled.calls.items():
        part, wiring = work.get_submodule(name), layer.hop.wiring
        units, inputs = h.turned(part.weight, wiring).shape[:2]
        if isinstance(part, nn.Linear):
            part.out_features, part.in_features = units, inputs
        else:
            groups = int((~gone[layer.units]).view(wiring.groups, -1).any(1).sum())
            part.out_channels, part.in_channels, part.groups = units, inputs * groups, groups


def _add(work, name, constant):
    """Let a layer add a constant `(O, ...)` to what it makes."""
    part = work.get_submodule(name)
    bias, border = added(constant)
    if bias is not None:
        part.bias = nn.Parameter(bias if part.bias is None else part.bias + bias, part.weight.requires_grad)
    if border:
        above, _, last = name.rpartition(".")
        setattr(work.get_submodule(above), last, nn.Sequential(part, *border))


def _larger(work, x):
    """Return [(outputs, examples)] of images of twice the sides, nothing where the module takes none."""
    large = [_example(one.new_empty(*one.shape[:2], *(2 * side for side in one.shape[2:]))).to(one) for one in x]
    with suppress(ValueError):
        return [(_run(work, large, "on them"), large)]
    return []


def _assert_same(outputs, work, x, way_out):
    """Raise ValueError, with a way out, if a module does not return what it did before it was cut."""
    with ExitStack() as hooks:
        for part in work.modules():
            if hasattr(part, "num_features") and not part.state_dict():
                hook = part.register_forward_pre_hook(lambda own, given, part=part: _recount(own, part, given))
                hooks.enter_context(hook)
        again = _run(work, x, "without units on no path")
    for before, after in zip(h.tensors(outputs), h.tensors(again), strict=True):
        if before.shape != after.shape or (before - after).abs().max() > CLOSE * before.abs().max().clamp(1e-30):
            raise ValueError(f"{type(work).__name__} computes otherwise without units on no path. {way_out}")


def _recount(copied, part, given):
    """Let a normalisation without tensors, of which nothing was cut, say how many channels it is given."""
    copied.num_features = part.num_features = given[0].shape[1]


# ---- constants


def _even(constant):
    """Return whether what is added to a unit `(C, ...)` is the same everywhere."""
    flat = constant.reshape(len(constant), -1)
    return _alike(flat, flat[:, :1].expand_as(flat))


def added(constant, bias=True):
    """Return the bias `(C,)`, or None, and the modules that together add a constant `(C,)` or `(C, H, W)`."""
    if not constant.any():
        return None, []
    slack = ROUNDING * constant.abs().max()
    if bias and _even(constant):
        return constant.reshape(len(constant), -1)[:, 0], []
    rows, columns = _numbered(constant.transpose(0, 1), slack), _numbered(constant.permute(2, 0, 1), slack)
    down, along = ([codes.index(code) for code in range(max(codes) + 1)] for codes in (rows, columns))
    values = constant[:, down][:, :, along]
    return None, [filled(plain.Offset(len(constant), rows, columns), values=values)]


def _numbered(lines, slack):
    """Return for every line which of the different ones it is, numbered as they come."""
    different, numbers = [], []
    for line in lines:
        equal = (k for k, other in enumerate(different) if (line - other).abs().max() <= slack)
        numbers.append(next(equal, len(different)))
        if numbers[-1] == len(different):
            different.append(line)
    return numbers


def filled(module, **tensors):
    """Return the module with these tensors as its parameters."""
    for name, tensor in tensors.items():
        setattr(module, name, None if tensor is None else nn.Parameter(tensor.clone()))
    return module
