"""R networks as one: layers whose every tensor has a leading run axis, and what is done to whole networks.

A stack is an ordinary `torch.nn.Module`. Weight normalisation is a code of each run, so EWN, SWN and
no-WN networks train in one stack, by one function; `fold` gives the plain network that masks act on.
"""

import copy
from contextlib import contextmanager

import torch
from torch import nn

from lib import kernels


def relu(z):
    """Return max(0, z); without gradients in place, which spares an evaluation a pass over its activations."""
    return torch.relu(z) if torch.is_grad_enabled() else z.relu_()


ACTIVATIONS = {"relu": relu, "relu2": lambda z: relu(z).square(), "none": lambda z: z}


class Layer(nn.Module):
    """R layers of one shape, the tensors that linear layers and convolutions have in common.

    weight (R, O, *F) is v where a run is normalised, the weights themselves elsewhere; scale (R, O) is s;
    norm (R,) holds the codes of `kernels.NORMS`; bias (R, O) or None. `positions`: how often a unit is
    evaluated on one example.
    """

    positions = 1

    def __init__(self, runs, units, fan_in, bias=True, norm=None):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(runs, units, *fan_in))
        self.scale = nn.Parameter(torch.zeros(runs, units))
        self.bias = nn.Parameter(torch.zeros(runs, units)) if bias else None
        codes = torch.tensor([kernels.NORMS[n] for n in norm or ["no-WN"] * runs], dtype=torch.int8)
        self.register_buffer("norm", codes)
        self.normalised = bool(codes.any())
        self.lr = None  # set by `sgd_in_backward`

    def forward(self, x):
        tensors = (x, self.weight, self.scale, self.bias, self.norm)
        if self.lr is None or not torch.is_grad_enabled():
            return self.plain(*tensors, normalised=self.normalised)
        return self.stepping(*tensors, self.lr, normalised=self.normalised)


class Linear(Layer):
    """R linear layers: `(R, N, I)` or, shared by all runs, `(N, I)` to `(R, N, O)`; weight (R, O, I)."""

    plain, stepping = staticmethod(kernels.linear), staticmethod(kernels.linear_sgd)

    def __init__(self, runs, inputs, units, bias=True, norm=None):
        super().__init__(runs, units, (inputs,), bias, norm)


class Conv2d(Layer):
    """R convolutions of stride 1 that keep height and width: `(R, N, C, H, W)`, or shared `(N, C, H, W)`.

    weight (R, O, C, side, side), with an odd side; the output is (R, N, O, H, W).
    """

    plain, stepping = staticmethod(kernels.conv2d), staticmethod(kernels.conv2d_sgd)

    def __init__(self, runs, inputs, units, side=3, bias=True, norm=None, positions=1):
        super().__init__(runs, units, (inputs, side, side), bias, norm)
        self.positions = positions


class MLP(nn.Module):
    """R fully connected networks: `(R, N, sizes[0])` or shared `(N, sizes[0])` to logits `(R, N, sizes[-1])`.

    `norm` names every run's type (EWN, SWN, no-WN); hidden layers follow it, the output layer only with
    `normalise_output`. `bias` is of the hidden layers, `output_bias` of the last.
    """

    def __init__(self, sizes, norm, activation="relu", bias=True, output_bias=False, normalise_output=False):
        super().__init__()
        _check_norm(norm)
        runs, last = len(norm), len(sizes) - 2
        last_norm = norm if normalise_output else ["no-WN"] * runs
        self.layers = nn.ModuleList(
            Linear(runs, i, o, *((output_bias, last_norm) if k == last else (bias, norm)))
            for k, (i, o) in enumerate(zip(sizes, sizes[1:], strict=False))
        )
        self.activation = activation

    def forward(self, x):
        act = ACTIVATIONS[self.activation]
        for layer in self.layers[:-1]:
            x = act(layer(x))
        return self.layers[-1](x)


def _check_norm(norm):
    unknown = set(norm) - set(kernels.NORMS)
    if unknown:
        raise ValueError(f"norm has {sorted(unknown)}; allowed are {list(kernels.NORMS)}")


class VGG(nn.Module):
    """R networks of 13 convolutions 3×3 in five blocks, and a linear layer without bias (VGG-16, arXiv 1409.1556).

    Pixels in a row, `(R, N, C·H·W)` or shared `(N, C·H·W)` as `Data.split` gives them, to logits
    `(R, N, classes)`. A block ends with a 2×2 max-pool. As in the EWN study (arXiv 2010.12909), `norm` is the
    type of all convolutions and not of the linear layer, and only the first convolution has a bias. `image` is
    (C, H, W); `width` the filters of the first block, 64 in the study.
    """

    BLOCKS = ((1, 1), (2, 2), (4, 4, 4), (8, 8, 8), (8, 8, 8))  # filters of each convolution, in `width`s

    def __init__(self, image, classes, norm, width=64):
        super().__init__()
        _check_norm(norm)
        (channels, height, side), smallest = image, 2 ** len(self.BLOCKS)
        if height != side or side < smallest:
            raise ValueError(f"images are {height}×{side}; VGG takes squares of {smallest}×{smallest} and more")
        runs, self.image, self.convs, self.ends = len(norm), tuple(image), nn.ModuleList(), []
        for block in self.BLOCKS:
            for units in (width * share for share in block):
                first = not self.convs
                self.convs.append(Conv2d(runs, channels, units, bias=first, norm=norm, positions=side**2))
                channels = units
            self.ends.append(len(self.convs) - 1)
            side //= 2
        self.output = Linear(runs, channels * side**2, classes, bias=False)

    def forward(self, x):
        x = x.unflatten(-1, self.image)
        if x.device.type == "cpu" and x.dim() == 4:  # a CPU convolves 1.1 to 1.3 times faster, narrow layers 1.7
            x = x.contiguous(memory_format=torch.channels_last)
        for k, conv in enumerate(self.convs):
            x = conv(x)
            # The study pools after the ReLU, which is the same function, and four times the work.
            x = torch.relu(kernels.max_pool(x, 2) if k in self.ends else x)
        return self.output(x.flatten(2))


def layers(net):
    """Return the weight layers by name, in the order of the forward pass."""
    return {name: module for name, module in net.named_modules() if isinstance(module, Layer)}


def weights(net):
    """Return the weight tensors by name, `{name: (R, O, *F)}`: the things that masks act on."""
    return {f"{name}.weight": layer.weight for name, layer in layers(net).items()}


def runs(net):
    """Return R, the number of networks in the stack."""
    return next(net.parameters()).shape[0]


def macs_per_run(net):
    """Return the multiplications of one example's pass through one network, biases and scales apart."""
    return sum(layer.weight[0].numel() * layer.positions for layer in layers(net).values())


def widest(net):
    """Return the most activations that one example has in a layer of one network."""
    return max(layer.scale.shape[1] * layer.positions for layer in layers(net).values())


def parameters_per_run(net):
    """Return how many numbers one network of the stack trains; a scale counts only where it is used."""
    unused = sum(layer.scale[0].numel() for layer in layers(net).values() if not layer.normalised)
    return sum(p[0].numel() for p in net.parameters()) - unused


def take(net, chosen):
    """Return the stack of the chosen runs; a slice shares memory with `net`, a list of indices copies."""
    tensors = [*net.parameters(), *net.buffers()]
    memo = {id(t): _like(t, t.detach()[chosen]) for t in tensors}
    other = copy.deepcopy(net, memo)
    for layer in layers(other).values():
        layer.normalised = bool(layer.norm.any())
    return other


def _like(old, new):
    return nn.Parameter(new, requires_grad=old.requires_grad) if isinstance(old, nn.Parameter) else new


def join(stacks):
    """Return one stack of all the runs of several stacks of the same layers, in order."""
    sizes = [runs(net) for net in stacks]
    joined = take(stacks[0], [0] * sum(sizes))
    states = [net.state_dict() for net in stacks]
    return load_(joined, {name: torch.cat([state[name] for state in states]) for name in states[0]})


def load_(net, tensors):
    """Set every tensor of the stack, weights and normalisation codes, from `{name: (R, ...)}`; return it."""
    net.load_state_dict(tensors)
    for layer in layers(net).values():
        layer.normalised = bool(layer.norm.any())
    return net


def unit_norms(net):
    """Return the norm of every unit's effective weights, `{layer: (R, O)}`; biases do not count."""
    with torch.no_grad():
        return {k: kernels.unit_norms(m.weight, m.scale, m.norm) for k, m in layers(net).items()}


def fold(net):
    """Return the plain-weight twin: the same function, every layer without normalisation."""
    twin = copy.deepcopy(net)
    with torch.no_grad():
        for layer in layers(twin).values():
            layer.weight.copy_(kernels.weight_norm(layer.weight, layer.scale, layer.norm))
            layer.scale.zero_()
            layer.norm.zero_()
            layer.normalised = False
    return twin


@contextmanager
def sgd_in_backward(net, lr):
    """Within the block, going backward takes the SGD step of rate `lr (R,)` in every layer, in place.

    No parameter gets a gradient and none is stored: for a wide layer that halves the memory traffic of a step.
    """
    found = list(layers(net).values())
    try:
        for layer in found:
            layer.lr = lr
        yield
    finally:
        for layer in found:
            layer.lr = None


@torch.no_grad()
def init_(net, seeds, scheme="torch_kaiming"):
    """Draw every run's weights from its seed; runs of one seed start at the same function, whatever their type.

    scheme: "torch_kaiming", Kaiming-normal by fan-in (He et al. 2015), drawn from torch's own stream just
    as a plain `torch.nn` script with `manual_seed(seed)` draws it, defaults first: published seeds
    start at their published function. "torch_kaiming_output_first", the same with the output layer's turn before the
    others', as in the EWN study's CIFAR networks. "torch_default", those defaults themselves, uniform within
    1/sqrt(fan-in) on both sides. Biases start at zero.
    """
    if scheme not in SCHEMES:
        raise ValueError(f"scheme is {scheme!r}; allowed are {list(SCHEMES)}")
    if len(seeds) != runs(net):
        raise ValueError(f"{len(seeds)} seeds for a stack of {runs(net)} runs; one per run is needed")
    drawn = {}
    for run, seed in enumerate(seeds):
        if seed not in drawn:
            drawn[seed] = SCHEMES[scheme](net, seed)
        for layer, start in zip(layers(net).values(), drawn[seed], strict=True):
            set_function_(layer, run, start.to(layer.weight))
    return net


def _torch_kaiming(net, seed, output_first=False):
    """Return the start of every layer as a script of torch modules draws it: all defaults, then Kaiming."""
    stream = torch.Generator().manual_seed(seed)
    starts = [torch.empty(start.shape) for start in torch_defaults(net, stream)]
    for start in starts[-1:] + starts[:-1] if output_first else starts:
        nn.init.kaiming_normal_(start, generator=stream)
    return starts


def _torch_kaiming_output_first(net, seed):
    return _torch_kaiming(net, seed, output_first=True)


def _torch_default(net, seed):
    return torch_defaults(net, torch.Generator().manual_seed(seed))


def torch_defaults(net, stream):
    """Return what torch's own layers draw for themselves, in the order of the forward pass."""
    starts = []
    for layer in layers(net).values():
        starts.append(nn.init.kaiming_uniform_(torch.empty(layer.weight.shape[1:]), a=5**0.5, generator=stream))
        if layer.bias is not None:
            torch.empty(len(starts[-1])).uniform_(generator=stream)
    return starts


SCHEMES = {
    "torch_kaiming": _torch_kaiming,
    "torch_kaiming_output_first": _torch_kaiming_output_first,
    "torch_default": _torch_default,
}


def set_function_(layer, run, start):
    """Give one run of a layer the effective weights `start (O, *F)`: v of unit length, s its norm or log norm."""
    code = int(layer.norm[run])
    size = kernels.lengths(start[None])[0]
    if layer.bias is not None:
        layer.bias[run].zero_()
    layer.scale[run].zero_()
    layer.weight[run].copy_(start)
    if code != kernels.NO_WN:
        layer.weight[run].div_(size.reshape(-1, *[1] * (start.dim() - 1)))
        layer.scale[run].copy_(size.log() if code == kernels.EWN else size)
