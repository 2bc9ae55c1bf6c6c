"""R networks as one: stacks of `layers`, whose every tensor has a leading run axis, and what is done to them.

A stack is an ordinary `torch.nn.Module`. Weight normalisation is a code of each run, so EWN, SWN and
no-WN networks train in one stack, by one function; `fold` gives the plain network that masks act on.
"""

import copy
from collections.abc import Iterable
from contextlib import ExitStack, contextmanager
from dataclasses import fields, is_dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from torch import nn

from lib import draws
from lib.errors import ParameterError, choice, instance, listed, number, one_each
from lib.kernels import twins
from lib.networks import inits
from lib.networks.layers import BatchNorm, DropConnect, Dropout, Layer, Linear

COMPUTING = "activation", "chance"  # attributes of a stack's parts that no tensor holds


def relu(z):
    """Return max(0, z); without gradients in place, which spares an evaluation a pass over its activations."""
    return torch.relu(z) if torch.is_grad_enabled() else z.relu_()


class Hop(NamedTuple):
    """One way from a node of a network to another; a node is a group of units, or of channels.

    layer: the name of the weight layer on the way, None for an identity shortcut, which joins unit i to unit i;
    norm: the name of the batch normalisation behind the layer, if there is one.
    """

    layer: str | None
    source: int
    target: int
    norm: str | None = None


def chain(names, norms=None):
    """Return the hops of layers one behind the other, the batch normalisations `norms` (or None) behind them."""
    norms = norms or [None] * len(names)
    return [Hop(name, k, k + 1, norm) for k, (name, norm) in enumerate(zip(names, norms, strict=True))]


def graph(net):
    """Return the hops of `net` in the order of the forward pass, each node's last incoming one before it is left.

    Node 0 is the input, the last node the output. A node's value is the activation of the sum of what its incoming
    hops bring; the output has no activation. Pools and flattening are inside a hop: a linear layer of I inputs behind
    a node of C channels has I/C inputs for every channel, channel after channel.
    """
    return layers(net) and net.graph()


ACTIVATIONS = {
    "relu": relu,
    "relu2": lambda z: relu(z).square(),
    "sigmoid": torch.sigmoid,
    "erf": lambda z: torch.erf(z * 0.5**0.5),  # of committee machines
    "none": lambda z: z,
}


class MLP(nn.Module):
    """R fully connected networks: `(R, N, sizes[0])` or shared `(N, sizes[0])` to logits `(R, N, sizes[-1])`.

    `norm` names every run's type (EWN, SWN, no-WN), one text that of one run; hidden layers follow it, the output layer
    only with `normalise_output`. `bias` is of the hidden layers, `output_bias` of the last. `dropout` is the chance at
    which, while training, a hidden unit is dropped, `dropconnect` that of a weight of the first layer.
    """

    def __init__(self, sizes, norm, activation="relu", bias=True, output_bias=False, normalise_output=False,
                 dropout=0.0, dropconnect=0.0):  # fmt: skip
        super().__init__()
        if activation not in [*ACTIVATIONS] or not hasattr(sizes, "__len__") or len(sizes) < 2:
            told = f"sizes {sizes!r}, activation {activation!r}; needed are two sizes or more, and"
            raise ValueError(f"{told} one of {list(ACTIVATIONS)}")
        norm = types(norm)
        runs, last = len(norm), len(sizes) - 2
        last_norm = norm if normalise_output else ["no-WN"] * runs
        self.layers = nn.ModuleList(
            Linear(runs, i, o, *((output_bias, last_norm) if k == last else (bias, norm)))
            for k, (i, o) in enumerate(zip(sizes, sizes[1:], strict=False))
        )
        self.drops = nn.ModuleList(Dropout(runs, dropout) for _ in self.layers[:-1] if dropout)
        self.connect = DropConnect(runs, dropconnect) if dropconnect else None
        self.activation = activation

    def forward(self, x):
        act, rectified = ACTIVATIONS[self.activation], self.activation == "relu" and self.layers[-1].steps
        for k, layer in enumerate(self.layers[:-1]):
            if self.connect and k == 0:
                x = act(self.connect(layer, x))
            else:
                x = layer(x, rectified=True) if rectified else act(layer(x))
            x = self.drops[k](x) if self.drops else x
        return self.layers[-1](x)

    def graph(self):
        return chain(list(layers(self)))


def types(norm):
    """Return a type for every run as a list; ParameterError for an unknown one."""
    several = isinstance(norm, Iterable) and not isinstance(norm, str)
    return [choice("norm", kind, twins.NORMS) for kind in (norm if several else [norm])]


def pixels(x, image):
    """Return `x (..., C·H·W)` as images `(..., C, H, W)`, laid out for the fastest convolution."""
    x = x.unflatten(-1, image)
    if x.device.type == "cpu" and x.dim() == 4:  # a CPU convolves 1.1 to 1.3 times faster, narrow layers 1.7
        return x.contiguous(memory_format=torch.channels_last)
    return x


def layers(net, stack=True):
    """Return the weight layers by name, in the order of the forward pass: the door to all that takes stacks.

    ParameterError for what is no stack; where none is needed, `stack` False, a torch module may come too, and has none.
    """
    modules = instance("net is", net, nn.Module, "a network itself, a stack or a torch module").named_modules()
    found = {name: module for name, module in modules if isinstance(module, Layer)}
    if stack and not found:
        how = "methods.prune and shrink.shrink take it, its accuracy is (module(x).argmax(1) == y).float().mean()"
        raise ParameterError(f"{type(net).__name__} is no stack of networks, as nets.MLP makes one; {how}")
    return found


def weights(net):
    """Return the weight tensors by name, `{name: (R, O, *F)}`: what masks act on, a tensor of two layers once."""
    first = {}
    for name, layer in layers(net).items():
        first.setdefault(id(layer.weight), (f"{name}.weight", layer.weight))
    return dict(first.values())


def hidden(net):
    """Return the names of the layers whose units may be pruned: all but the last, or what a network itself says."""
    return net.hidden_layers() if hasattr(net, "hidden_layers") else list(layers(net))[:-1]


def runs(net):
    """Return R, the number of networks in the stack."""
    return next(iter(layers(net).values())).weight.shape[0]


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


def take(of, chosen):
    """Return the stack of the chosen runs, or of one run; a slice shares memory with `of`, a list of indices copies.

    So too of all else whose first axis is that of runs: tensors, arrays, lists, and dicts and data classes of such.
    """
    if isinstance(of, dict):
        return {name: take(part, chosen) for name, part in of.items()}
    if is_dataclass(of):
        return replace(of, **take(_parts(of), chosen))
    if isinstance(of, list):
        return [copy.copy(of[run]) for run in chosen]
    if not isinstance(of, nn.Module):
        return of[chosen]
    chosen = [chosen] if isinstance(chosen, int | np.integer) else chosen
    memo = {id(p): nn.Parameter(p.detach()[chosen], p.requires_grad) for p in of.parameters()}
    memo |= {id(buffer): buffer[chosen] for buffer in of.buffers()}
    return _coded(copy.deepcopy(of, memo))


def apart(net):
    """Return an iterator over the runs of a stack as stacks of one, the only run of a stack as it is.

    A product of a stack may round otherwise than the same product of one run, by the number of its neighbours. What is
    drawn, ranked or measured of trained networks is therefore made of one run after the other.
    """
    return iter([net]) if runs(net) == 1 else (take(net, [run]) for run in range(runs(net)))


def of_runs(net, examples, axes):
    """Return what each run of `net` reads of `examples`, or of a list of batches: its own where they have `axes` axes.

    The first of these is that of runs, and stays, of length one; None, and what has other axes, all runs share.
    ValueError for the examples of another number of runs.
    """
    count = runs(net)
    if isinstance(examples, list | tuple):
        batches = [of_runs(net, batch, axes) for batch in examples]
        return [[batch[run] for batch in batches] for run in range(count)]
    if examples is None or examples.dim() != axes:
        return [examples] * count
    if len(examples) != count:
        raise ValueError(f"{len(examples)} sets of examples for a stack of {count} runs; needed is one each, or one")
    return [examples] if count == 1 else [examples[[run]] for run in range(count)]


def _parts(of):
    """Return what a data class is made of by name."""
    return {field.name: getattr(of, field.name) for field in fields(of) if field.init}


def join(parts):
    """Return one stack of all runs of stacks of one kind, in order, of all that `take` takes; ValueError for others."""
    parts = list(parts)
    first = parts[0]
    if isinstance(first, dict):
        if odd := [sorted(part) for part in parts if part.keys() != first.keys()]:
            raise ValueError(f"what has other parts cannot join: {odd[0]} beside {sorted(first)}")
        return {name: join(part[name] for part in parts) for name in first}
    if is_dataclass(first):
        return replace(first, **join(map(_parts, parts)))
    if isinstance(first, list):
        return sum(parts, [])
    if not isinstance(first, nn.Module):
        return torch.cat(parts) if isinstance(first, torch.Tensor) else np.concatenate(parts)
    own = [[(k, v) for part in net.modules() for k, v in vars(part).items() if k in COMPUTING] for net in parts]
    if odd := [other for other in own if other != own[0]]:
        raise ValueError(f"stacks that compute differently cannot join: {odd[0]} beside {own[0]}")
    return load_(take(first, [0] * sum(map(runs, parts))), join(net.state_dict() for net in parts))


def load_(net, tensors):
    """Set every tensor of the stack, weights and normalisation codes, from `{name: (R, ...)}`; return it."""
    net.load_state_dict(tensors)
    return _coded(net)


def _coded(net):
    """Return the stack, whose layers know whether any of their runs is normalised."""
    for layer in layers(net, stack=False).values():
        layer.normalised = bool(layer.norm.any())
    return net


@torch.no_grad()
def unit_norms(net):
    """Return the norm of every unit's effective weights, `{layer: (R, O)}`; biases do not count."""
    size, plain = twins.unit_norms, twins.lengths
    return {k: size(m.weight, m.scale, m.norm) if m.normalised else plain(m.weight) for k, m in layers(net).items()}


def fold(net):
    """Return the plain-weight twin: the same function, every layer without normalisation."""
    twin = copy.deepcopy(net)
    with torch.no_grad():
        for layer in layers(twin).values():
            layer.weight.copy_(twins.weight_norm(layer.weight, layer.scale, layer.norm))
            layer.scale.zero_()
            layer.norm.zero_()
            layer.normalised = False
    return twin


@contextmanager
def mode(net, training):
    """Within the block the network is in `train()` or in `eval()` mode; the latter drops nothing, and moves no mean."""
    with ExitStack() as held:
        for part in net.modules():
            held.callback(setattr, part, "training", part.training)
        held.callback(net.train, net.training)  # before these: it may have more than its parts in this mode
        net.train(training)
        yield


def assert_plain(net):
    """Return nothing; ValueError where weights are normalised: masks and scores are of plain ones."""
    if odd := [name for name, layer in layers(net).items() if layer.normalised]:
        told = f"{listed(odd)}: normalised; masks and scores are of plain weights: take nets.fold(net), a plain copy"
        raise ValueError(told)


@contextmanager
def sgd_in_backward(net, lr):
    """Within the block, going backward takes the SGD step of rate `lr (R,)` in every layer, in place.

    No parameter keeps a gradient, and those of linear layers get none: for a wide one that halves the memory traffic of
    a step. Raises ValueError for a network with batch normalisation, whose parameters it could not train.
    """
    if layers(net) and any(isinstance(module, BatchNorm) for module in net.modules()):
        raise ValueError("a network with batch normalisation takes no step in its backward pass: use an optimizer")

    @torch.no_grad()
    def step(parameter):
        parameter.sub_(twins.trailing(lr, parameter) * parameter.grad)
        parameter.grad = None

    with ExitStack() as held:
        for layer in layers(net).values():
            if isinstance(layer, Linear):
                layer.lr = lr
                held.callback(setattr, layer, "lr", None)
            else:
                for parameter in layer.parameters():
                    held.enter_context(parameter.register_post_accumulate_grad_hook(step))
        yield


@torch.no_grad()
def init_(net, seeds, scheme="torch_kaiming"):
    """Draw every run's weights from its seed; runs of one seed start at the same function, whatever their type.

    scheme: "torch_kaiming", Kaiming-normal by fan-in (He et al. 2015), drawn from torch's own stream just
    as a plain `torch.nn` script with `manual_seed(seed)` draws it, defaults first: published seeds
    start at their published function. "torch_kaiming_output_first", the same with the output layer's turn before the
    others', as in the EWN study's CIFAR networks. "torch_default", those defaults themselves, uniform within
    1/sqrt(fan-in) on both sides. "xavier_uniform", "standard_normal"; and, for `convnets.build`,
    "phew", "phew_normal" and "phew_xavier", the PHEW study's start of each family and two ablations (`inits.FAMILIES`).
    Biases start at zero (but for the linear layer of its wider ResNets), batch normalisations as the identity.
    """
    own, family = list(layers(net).values()), getattr(net, "family", None)
    one_each(runs(net), seeds=seeds)
    seeds = [number("seed", seed, draws.SEEDS, whole=True) for seed in seeds]
    drawn = {seed: inits.starts(own, seed, scheme, family) for seed in dict.fromkeys(seeds)}
    for run, seed in enumerate(seeds):
        for layer, (weight, bias) in zip(own, drawn[seed], strict=True):
            set_function_(layer, run, weight.to(layer.weight), bias)
    _start_others(net, seeds)
    return net


def _start_others(net, seeds):
    for position, module in enumerate(m for m in net.modules() if isinstance(m, BatchNorm | Dropout)):
        module.start_(seeds, position)


@torch.no_grad()
def reinit_(net, masks, seeds, scheme="evci"):
    """Draw the weights that `masks` keep anew, from a stream of each run's seed that `init_` does not use.

    Normal, of variance 2 / fan-in, where only weights that are kept count: of a unit ("evci", arXiv 2010.03533) or of
    a layer's average unit ("liu", arXiv 1810.05270); "evci_fan_out" and "liu_fan_out", see `inits.SPARSE`. Pruned
    weights are zero, biases too; batch normalisations are the identity. Raises ValueError for normalised weights.
    """
    one_each(runs(net), seeds=seeds)
    assert_plain(net)
    if odd := [name for name, w in weights(net).items() if name not in masks or masks[name].shape != w.shape]:
        raise ValueError(f"masks lack {listed(odd)}, or have another shape; needed are those of all weights, by name")
    for run, seed in enumerate(seeds):
        kept = [masks[name][run].cpu() for name in weights(net)]
        for layer, start in zip(layers(net).values(), inits.sparse_starts(kept, seed, scheme), strict=True):
            set_function_(layer, run, start.to(layer.weight))
    _start_others(net, seeds)
    return net


def set_function_(layer, run, start, bias=None):
    """Give one run of a layer the effective weights `start (O, *F)`: v of unit length, s its norm or log norm.

    `bias (O,)`, or None for zeros.
    """
    code = int(layer.norm[run])
    size = twins.lengths(start[None])[0]
    if layer.bias is not None:
        layer.bias[run] = 0 if bias is None else bias.to(layer.bias)
    layer.scale[run].zero_()
    layer.weight[run].copy_(start)
    if code != twins.NO_WN:
        layer.weight[run].div_(twins.trailing(size, start))
        layer.scale[run].copy_(size.log() if code == twins.EWN else size)
