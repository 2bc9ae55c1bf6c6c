"""Plain torch modules: what one network of a stack becomes when it leaves the stack, and how that is kept in a file.

A chain of layers is an `nn.Sequential` of torch's own modules; `Graph` and the few others here are for what
torch.nn has no module for. All are traced by torch.fx and by torch.export, and pickled by torch.save.
"""

import copy
import inspect
import logging
import math
import warnings
from collections import OrderedDict
from functools import partial
from os import PathLike
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from lib.errors import ParameterError, RecordError, instance, listed, number
from lib.kernels import twins
from lib.networks import nets
from lib.records import disk

FILE, ONNX, LAST = "network.safetensors", "network.onnx", torch.channels_last
FORMAT = 2


class Square(nn.Module):
    """The square of every entry."""

    def forward(self, x):
        return x.square()


class Erf(nn.Module):
    """The activation of committee machines, erf(x / √2) of every entry."""

    def forward(self, x):
        return torch.erf(x * 0.5**0.5)


class Offset(nn.Module):
    """`x (N, C, H, W)` plus one constant image.

    What a padded convolution makes of a constant channel is constant but for the border, so equal rows and equal
    columns are stored once: rows (H,) and columns (W,) say which of `values (C, h, w)` is where.
    """

    def __init__(self, channels, rows, columns):
        super().__init__()
        self.channels, self.rows, self.columns = channels, list(rows), list(columns)
        self.values = nn.Parameter(torch.zeros(channels, max(rows) + 1, max(columns) + 1))
        self.register_buffer("row", torch.tensor(self.rows), persistent=False)
        self.register_buffer("column", torch.tensor(self.columns), persistent=False)

    def forward(self, x):
        return x + self.values[:, self.row][:, :, self.column]


class Route(nn.Module):
    """`x (N, C, ...)` to `(N, width, ...)`: channel put[k] is x's channel take[k], all others are zero."""

    def __init__(self, take, put, width):
        super().__init__()
        self.take, self.put, self.width = list(take), list(put), width
        self.register_buffer("source", torch.tensor(self.take), persistent=False)
        self.register_buffer("target", torch.tensor(self.put), persistent=False)

    def forward(self, x):
        chosen = x.index_select(1, self.source)
        if self.put == list(range(self.width)):
            return chosen
        # Not new_zeros: a tracer cannot unpack the shape.
        none = torch.zeros_like(x[:, :1]).repeat_interleave(self.width, 1)
        return none.index_copy(1, self.target, chosen)


class Constant(nn.Module):
    """Logits `(N, classes)` that are the same for every `x (N, ...)`: what is left of a network without a path."""

    def __init__(self, classes):
        super().__init__()
        self.classes = classes
        self.values = nn.Parameter(torch.zeros(classes))

    def forward(self, x):
        return self.values.expand(x.shape[0], -1)


class Graph(nn.Module):
    """A network with parallel ways: a node is the activation of the sum of its ways, the last one without activation.

    hops: the (source, target) of each of `ways`, in the order of the forward pass; node 0 is what `enter` makes of x.
    """

    def __init__(self, hops, enter, activation, *ways):
        super().__init__()
        self.hops = [tuple(hop) for hop in hops]
        targets = [target for _, target in self.hops]
        # After its last hop a node is complete and gets its activation; the output has none.
        self.completes = [target not in targets[k + 1 :] and target != targets[-1] for k, target in enumerate(targets)]
        self.enter, self.activation, self.ways = enter, activation, nn.ModuleList(ways)

    def forward(self, x):
        nodes = {0: self.enter(x)}
        for (source, target), completes, way in zip(self.hops, self.completes, self.ways, strict=True):
            y = way(nodes[source])
            y = nodes[target] + y if target in nodes else y
            nodes[target] = self.activation(y) if completes else y
        return y


KINDS = (nn.Linear, nn.Conv2d, nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.Unflatten, nn.Flatten, nn.ReLU,
         nn.Sigmoid, nn.Sequential, Square, Erf, Offset, Route, Constant, Graph)  # fmt: skip
LAYERS, SEVERAL = (nn.Linear, nn.Conv2d), (list, tuple, torch.Size)
NAMES = {kind.__name__: kind for kind in KINDS}
NOT_OPTIONS = {"device", "dtype", "enter", "activation"}  # of constructors: where tensors lie, and other modules
NUMPY = {torch.double, torch.float, torch.half, torch.long, torch.int, torch.short, torch.int8, torch.uint8, torch.bool}


def laid_out(module):
    """Return the module, the channels of its filters last in memory if it is on the CPU and its gradients are safe.

    Its convolutions follow. ResNet20 on one core: 1.7 times faster, and 2.5 times with an eighth of the inner filters.
    """
    unsafe = any(t.device.type != "cpu" for t in _asserted(module).parameters()) or any(map(overruns, module.modules()))
    return module if unsafe else module.to(memory_format=LAST)


def overruns(part):
    """Return whether a part is a convolution whose gradient with channels last would not be safe: see `twins.FEW`."""
    if not isinstance(part, nn.Conv2d):
        return False
    padding = 0 if part.padding == "valid" else max(part.padding)
    return twins.overruns(part.in_channels // part.groups, part.kernel_size, max(part.stride), padding)


def describe(module, numbers=None):
    """Return what `build` makes the module from, weights apart: `[kind, options, {name: part}]`, fit for json.

    A part that stands there again is the number of the first, in the order in which `build` makes them.
    """
    numbers = {} if numbers is None else numbers
    if module in numbers:
        return numbers[module]
    parts = module._modules
    if type(module) is Graph:
        parts = {"enter": module.enter, "activation": module.activation, **module.ways._modules}
    arguments = inspect.getfullargspec(type(module).__init__).args[1:]  # attributes all: so none can be forgotten
    options = {name: getattr(module, name) for name in arguments if name not in NOT_OPTIONS}
    options |= {"bias": module.bias is not None} if isinstance(module, LAYERS) else {}
    layout = [type(module).__name__, options, {name: describe(part, numbers) for name, part in parts.items()}]
    numbers[module] = len(numbers)
    return layout


def build(description, made=None):
    """Return the module that `describe` described; its weights are still to be loaded."""
    made = [] if made is None else made
    if isinstance(description, int):
        return made[description]
    name, options, parts = description
    kind, parts = NAMES[name], OrderedDict((key, build(part, made)) for key, part in parts.items())
    options = {key: _tuples(value) for key, value in options.items()}
    if kind in LAYERS:
        options["device"] = "meta"  # elsewhere torch's own start would be drawn, and lost
    modules = [parts] if kind is nn.Sequential else parts.values()
    made.append(kind(options["hops"], *modules) if kind is Graph else kind(*modules, **options))
    return made[-1]


def _tuples(value):
    return tuple(map(_tuples, value)) if isinstance(value, list | tuple) else value


def _state(module):
    """Return what a module of any class is, fit for json, and its tensors, shared ones once, by their first names.

    said: of parts the class and hooks, of tensors the first name and the shape; own: simple attributes; told: others,
    entry by entry; put: offsets, as slicing puts them behind layers; last: strides where channels are last.
    """
    said, own, told, first, tensors, too = ({} for _ in range(6))
    for path, part in (parts := dict(module.named_modules(remove_duplicate=False))).items():
        hooks = [key for key, value in vars(part).items() if "hook" in key and value or key == "forward"]
        said[path] = " with ".join([type(part).__name__, *hooks])
        for key, value in (vars(part) | part._parameters | part._buffers).items():
            name, values = f"{path}.{key}".lstrip("."), value if type(value) in SEVERAL else [value]
            if isinstance(value, torch.Tensor) and key not in vars(part):
                said[name] = f"{first.setdefault(id(value), name)} {tuple(value.shape)}"
                tensors.setdefault(first[id(value)], value)
            elif all(type(v) in (bool, int, str) or type(v) is float and math.isfinite(v) for v in values):
                own[name] = value
            elif key in vars(part) and (key[0] != "_" or isinstance(value, torch.Tensor)):
                for entry, leaf in _entries(name, value):  # but of tensors what a pass left, and what is said
                    if not isinstance(leaf, torch.Tensor) or leaf.is_complex():
                        told[entry] = str(leaf)
                    elif leaf.is_leaf and not isinstance(leaf, nn.Parameter):
                        too[entry], told[entry] = leaf, "tensor"
    put = {path: describe(part) for path, part in parts.items() if type(part) is Offset}
    last = {name: t.stride() for name, t in tensors.items() if t.dim() == 4 and t.is_contiguous(memory_format=LAST)}
    return {"said": said, "own": own, "told": told, "put": put, "last": last}, tensors | too


def _entries(name, value):
    """Yield (name, value) of what is in an attribute, however nested; of functions and objects what they are called."""
    inside = [value.func, value.args, value.keywords] if isinstance(value, partial) else value
    if type(inside) in (list, tuple, dict):
        yield name, f"{type(value).__name__} of {len(inside)}"
        for key, part in inside.items() if type(inside) is dict else enumerate(inside):
            yield from _entries(f"{name}[{key}]", part)
    else:
        simple = isinstance(value, torch.Tensor | bool | int | float | complex | str | bytes | None)
        yield name, value if simple else getattr(value, "__name__", type(value).__name__)


def _assert_alike(found, wanted, needed):
    """Raise ParameterError where a module is not what it is to be, by what `_state` returns of both."""
    here, there = ({**state.get("told", {}), **state["said"], **state["own"]} for state in (found, wanted))
    told = wanted.get("told", {})
    put = {name for name in told if here.get(name) in ([], "dict of 0") and told[name] != here[name]}
    if put:  # such as outputs that a hook noted
        warnings.warn(f"what the saved module had put into {listed(put)} is not in this one", stacklevel=4)
    for name in {**there, **found["said"]}:  # of what dicts had, files of old have lists
        old = type(told.get(name)) is list or name in told and (name.split("[")[0] not in here.keys() - put)
        if not old and _tuples(here.get(name)) != _tuples(there.get(name)) and not name.endswith("training"):
            raise ParameterError(f"{name!r} of module is {here.get(name)}; {needed} {there.get(name)}")


def _changed(fresh, state, tensors, path):
    """Return a copy of a fresh module of any class that is what `_state` says; ParameterError for another one."""
    if type(fresh).__name__ != (kind := state["said"][""].split()[0]):
        raise ParameterError(f"module is a {type(fresh).__name__}; {path} needs a fresh {kind}(...) in full size")
    work = copy.deepcopy(fresh).cpu()
    for name in sorted(state["put"], key=len):  # of what was shrunk twice one stands within another
        (layer, _, place), parts = name.rpartition("."), dict(work.named_modules(remove_duplicate=False))
        made, there = build(state["put"][name]), parts.get(layer)
        if isinstance(made, Offset) and isinstance(there, nn.Conv2d | nn.ConvTranspose2d):
            work.set_submodule(layer, nn.Sequential(there, made))
        elif type(there) is nn.Sequential and type(parts.get(name)) is nn.Conv2d:
            there.insert(int(place), made)  # a pool, of files as they once were
    parts = {name: vars(part) for name, part in work.named_modules(remove_duplicate=False)}
    for name, value in (state["own"] | tensors).items():
        above, _, key = name.rpartition(".")
        if above in parts and (name in state["own"] or parts[above].get(key, 0) is None):
            parts[above][key] = value if isinstance(parts[above].get(key), list) else _tuples(value)
        elif above in parts and parts[above]["_parameters"].get(key, key) is None:
            parts[above]["_parameters"][key] = nn.Parameter(torch.empty(0))  # a bias that slicing added
    for name, tensor in _state(work)[1].items():
        like = tensors.get(name, tensor.data)
        tensor.data = like.new_empty_strided(like.shape, state["last"].get(name, like.stride())).copy_(like)
    _assert_alike(_state(work)[0], state, f"a fresh instance of what {path} holds has")
    return work


def _array(name, tensor):
    """Return a tensor as NumPy has it, bfloat16 as integers of the same bits."""
    if tensor.is_meta or tensor.layout != torch.strided or tensor.dtype not in {torch.bfloat16, *NUMPY}:
        raise ValueError(f"{name} is {tensor.dtype} on {tensor.device}, which a file cannot keep: {tensor.layout}")
    tensor = tensor.detach().cpu()
    return (tensor.view(torch.int16) if tensor.dtype == torch.bfloat16 else tensor).numpy()


def save(module, folder, packed=False):
    """Return the file that holds the module, once it is on disk: its layout as json in the header, and its weights.

    One safetensors file, `network.safetensors` in `folder`, written atomically. packed: what is mostly zero as the rest
    and a bit for each place, which `load` alone reads. What is saved loads to the same function: ValueError for a
    module of `KINDS` alone that has anything beside their constructors' options and tensors, such as hooks.
    """
    ways = {part.ways for part in _asserted(module).modules() if type(part) is Graph}
    if all(type(part) in KINDS or part in ways for part in module.modules()):
        description, tensors = describe(module), module.state_dict()
        _assert_alike(_state(module)[0], _state(build(description))[0], "a file keeps, but of a class of your own,")
    else:
        description, tensors = _state(module)
    short = [name for name, tensor in tensors.items() if tensor.dtype == torch.bfloat16]
    arrays = {name: _array(name, tensor) for name, tensor in tensors.items()}
    path = disk.assert_writable(folder) / FILE
    meta = {"holds": {"kind": "plain module"}, "format": FORMAT, "bfloat16": short, "module": description}
    disk.save_tensors(path, arrays, meta, packed=packed)
    return path


def load(folder, module=None):
    """Return the module that `save` kept in `folder`, on the CPU; RecordError if it is not there or not whole.

    module: where not all parts are of `KINDS`, a fresh instance of its class, in full size, as its constructor makes
    it, which stays as it is; ParameterError if it is missing, or of another class or structure.
    """
    path = Path(instance("folder is", folder, str | PathLike, "the path of a folder")).expanduser() / FILE
    arrays, meta = disk.load_tensors(path)
    tensors = {name: torch.tensor(array) for name, array in arrays.items()}
    try:
        if meta["format"] != FORMAT:
            raise ValueError(f"format {meta['format']}, this program reads {FORMAT}")
        tensors |= {name: tensors[name].view(torch.bfloat16) for name in meta["bfloat16"]}
        layout, whole = meta["module"], None
        if isinstance(layout, list):
            whole = build(layout)
            whole.load_state_dict(tensors, assign=True)
    except (LookupError, TypeError, ValueError, RuntimeError) as error:
        told = f"{path} does not hold a network that this program wrote ({type(error).__name__}: {error})"
        raise RecordError(f"{told}. Delete it, and shrink and save the network again.") from error
    return _changed(module, layout, tensors, path) if whole is None else laid_out(whole)


@torch.no_grad()
def onnx(module, folder, inputs):
    """Return the file `network.onnx` in `folder`: the module as ONNX, of x `(N, inputs)` for any N, in eval() mode.

    inputs: as of `macs`. ParameterError where onnx and onnxscript, which torch needs for it, are not installed.
    """
    try:
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ParameterError("ONNX needs onnx and onnxscript: pip install onnx onnxscript onnxruntime") from error
    path = disk.assert_writable(folder) / ONNX
    twin = copy.deepcopy(_asserted(module)).cpu().eval()
    x = _zeros(twin, 2, inputs)
    names = {"input_names": ["x"], "output_names": ["logits"], "dynamic_shapes": ({0: torch.export.Dim("N")},)}
    torch.onnx.export(twin, (x,), disk.new(path), dynamo=True, external_data=False, verbose=False, **names)
    disk.move(disk.new(path), path)
    return path


def parameters(module):
    """Return how many numbers the module stores."""
    return sum(tensor.numel() for tensor in _asserted(module).parameters())


def _asserted(module):
    """Return the module; ParameterError for what is none, such as weights alone."""
    return instance("module is", module, nn.Module, "a torch module itself")


@torch.enable_grad()  # without, the counter fails on a module of parameters alone
def macs(module, inputs):
    """Return the multiplications of one example's pass through the module, in eval() mode.

    Of products of matrices and convolutions, those of attention and recurrence included. inputs: the example's length,
    or its shape, or a batch `(N, ...)` of examples, as of a module that looks numbers up.
    """
    x, fast = _zeros(_asserted(module), 1, inputs), torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # one call that the counter does not know
    try:  # the counter counts additions too, as many
        with nets.mode(module, False), FlopCounterMode(display=False, custom_mapping=UNCOUNTED) as counter:
            module(x)
    except RuntimeError as error:
        told = f"{type(module).__name__} does not run on examples of the shape {tuple(x.shape[1:])}: {error}"
        raise ParameterError(f"{told}. Pass inputs as it reads them, the shape of one or a batch") from error
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
    return counter.get_total_flops() // 2


# What torch calls and its counter does not know: an RNN on CUDA; one layer and direction, and attention, on a CPU.
UNCOUNTED = {
    torch.ops.aten._cudnn_rnn: lambda x, own, *_, **_o: 2 * x[0] * x[1] * sum(math.prod(w) for w in own if len(w) == 2),
    torch.ops.aten.mkldnn_rnn_layer: lambda x, a, b, *_, **_o: 2 * x[0] * x[1] * (math.prod(a) + math.prod(b)),
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: lambda q, k, v, *_, **options: sdpa_flop_count(q, k, v),
}


def _zeros(module, count, inputs):
    if isinstance(inputs, torch.Tensor) and inputs.dim() and inputs.numel():
        return inputs[:1].expand(count, *inputs.shape[1:])
    needed = "the length of an example, its shape, or a batch of examples"
    shape = (inputs,) if isinstance(inputs, int) else instance("inputs are", inputs, tuple | list, needed)
    sides = (number("a side of inputs", side, "[1, 2^31)", whole=True) for side in shape)
    return next(module.parameters(), torch.empty(0)).new_zeros(count, *sides)


class Latency(NamedTuple):
    """Milliseconds of one call: the median and the quartiles of `count` calls."""

    median: float
    low: float
    high: float
    count: int


@torch.inference_mode()
def latency(function, x, repeats=50, threads=1):
    """Return the `Latency` of `function(x)`, warm, on `threads` CPU threads (None: as they are set).

    By torch's own timer, which on CUDA waits at each call until the device is done, and calls twice before it times.
    """
    number("repeats", repeats, "[1, inf)", whole=True)
    before = (compiler := logging.getLogger("torch.utils.cpp_extension")).level
    compiler.setLevel(logging.ERROR)  # it warns of a missing GPU when it is imported
    from torch.utils.benchmark import Timer  # which brings torch's compiler of extensions: not for all who import this

    compiler.setLevel(before)
    timer = Timer("function(x)", globals={"function": function, "x": x}, num_threads=threads or torch.get_num_threads())
    times = torch.tensor([timer.timeit(1).mean for _ in range(repeats)], dtype=torch.float64)
    low, median, high = (1000 * times.quantile(torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64))).tolist()
    return Latency(median, low, high, repeats)
