"""Plain torch modules: what one network of a stack becomes when it leaves the stack, and how that is kept in a file.

A chain of layers is an `nn.Sequential` of torch's own modules; `Graph` and the few others here are for what
torch.nn has no module for. All are traced by torch.fx and by torch.export, and pickled by torch.save.
"""

from pathlib import Path

import torch
from torch import nn

from lib import disk
from lib.errors import RecordError

FILE = "network.safetensors"
FORMAT = 1


class Square(nn.Module):
    """The square of every entry."""

    def forward(self, x):
        return x.square()


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


# What makes each kind of module again: attributes that are its constructor's arguments.
KINDS = {
    nn.Linear: ("in_features", "out_features"),
    nn.Conv2d: ("in_channels", "out_channels", "kernel_size", "stride", "padding"),
    nn.MaxPool2d: ("kernel_size",),
    nn.AvgPool2d: ("kernel_size",),
    nn.AdaptiveAvgPool2d: ("output_size",),
    nn.Unflatten: ("dim", "unflattened_size"),
    nn.Flatten: (),
    nn.ReLU: (),
    nn.Sequential: (),
    Square: (),
    Offset: ("channels", "rows", "columns"),
    Route: ("take", "put", "width"),
    Constant: ("classes",),
    Graph: ("hops",),
}
LAYERS = (nn.Linear, nn.Conv2d)
NAMES = {kind.__name__: kind for kind in KINDS}


def layer(kind, inputs, units, bias, **options):
    """Return an `nn.Linear` or `nn.Conv2d` on no device, to be filled: torch's own start would be drawn, and lost."""
    return kind(inputs, units, bias=bias, device="meta", **options)


def laid_out(module):
    """Return the module, its filters with the channels last in memory if they are on the CPU.

    Its convolutions follow. ResNet20 on one core: 1.7 times faster, and 2.5 times with an eighth of the inner filters.
    """
    on_cpu = all(tensor.device.type == "cpu" for tensor in module.parameters())
    return module.to(memory_format=torch.channels_last) if on_cpu else module


def describe(module):
    """Return what `build` makes the module from, weights apart: `[kind, arguments, [children]]`, fit for json."""
    kind = type(module)
    if kind not in KINDS:
        raise ValueError(f"{kind.__name__} cannot be kept in a file; what can is {sorted(NAMES)}")
    options = {name: getattr(module, name) for name in KINDS[kind]}
    if kind in LAYERS:
        options["bias"] = module.bias is not None
    children = [module.enter, module.activation, *module.ways] if kind is Graph else module._modules.values()
    return [kind.__name__, options, [describe(child) for child in children]]


def build(description):
    """Return the module that `describe` described; its weights are still to be loaded."""
    name, options, children = description
    kind, children = NAMES[name], [build(child) for child in children]
    options = {key: tuple(value) if isinstance(value, list) else value for key, value in options.items()}
    if kind is Graph:
        return Graph(options["hops"], *children)
    if kind in LAYERS:
        inputs, units = (options[name] for name in KINDS[kind][:2])
        return layer(kind, inputs, units, **{key: options[key] for key in (*KINDS[kind][2:], "bias")})
    return kind(*children) if kind is nn.Sequential else kind(**options)


def save(module, folder):
    """Return the file that holds the module, once it is on disk: its layout as json in the header, and its weights.

    One safetensors file, `network.safetensors` in `folder`, written atomically: layout and weights cannot disagree.
    ValueError for a module that is not made of the kinds in `KINDS`.
    """
    folder = Path(folder)
    meta = {"format": FORMAT, "module": describe(module)}
    disk.assert_writable(folder)
    tensors = {name: tensor.detach().cpu().numpy() for name, tensor in module.state_dict().items()}
    disk.save_tensors(folder / FILE, tensors, meta)
    return folder / FILE


def load(folder):
    """Return the module that `save` kept in `folder`, on the CPU; RecordError if it is not there or not whole."""
    path = Path(folder) / FILE
    arrays, meta = disk.load_tensors(path)
    tensors = {name: torch.from_numpy(array.copy()) for name, array in arrays.items()}
    try:
        if meta["format"] != FORMAT:
            raise ValueError(f"format {meta['format']}, this program reads {FORMAT}")
        module = build(meta["module"])
        module.load_state_dict(tensors, assign=True)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise RecordError(
            f"{path} does not hold a network that this program wrote ({type(error).__name__}: {error}). "
            f"Delete it, and shrink and save the network again."
        ) from error
    return laid_out(module)


def parameters(module):
    """Return how many numbers the module stores."""
    return sum(tensor.numel() for tensor in module.parameters())


@torch.no_grad()
def macs(module, inputs):
    """Return the multiplications of one example's pass through the module's layers; `inputs` is its row's length."""
    counts, handles = [], []

    def count(part, _, output):
        counts.append(part.weight.numel() * output[0, 0].numel())

    for part in module.modules():
        if isinstance(part, LAYERS):
            handles.append(part.register_forward_hook(count))
    try:
        tensor = next(module.parameters())
        module(torch.zeros(1, inputs, dtype=tensor.dtype, device=tensor.device))
    finally:
        for handle in handles:
            handle.remove()
    return sum(counts)
