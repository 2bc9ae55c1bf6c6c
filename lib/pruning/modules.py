"""Any torch module as a stack of one, so that methods made for stacks prune it too."""

import copy

import torch
from torch import nn
from torch.func import functional_call

from lib.errors import ParameterError, listed
from lib.networks.layers import Layer
from lib.pruning import hops, topology

BATCH_NORMS = nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d
OTHER_NORMS = nn.LayerNorm, nn.GroupNorm, nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d, nn.LocalResponseNorm


class Weighted(Layer):
    """The tensors of a layer of a module, with a leading axis; nothing is computed here."""

    def __init__(self, weight):
        nn.Module.__init__(self)
        self.scale, self.normalised = weight.new_zeros(1, len(weight)), False
        self.norm = torch.zeros(1, dtype=torch.int8)


class One(nn.Module):
    """A stack of one run that computes what `module` does: a copy of it, whose tensors have a leading run axis here.

    Its layers are the convolutions and linear layers of the module; its examples are flattened, as those of all stacks.
    x: examples as the module reads them, `(N, ...)`, or a list of such batches; None where nothing is to be computed,
    or where the first layer is linear. neutral: biases are zero and batch normalisations change nothing, as what reads
    no data wants it; `odd` names the normalisations that cannot be taken out so. ParameterError for a module without
    any layer, and for weights that are no parameters.
    """

    def __init__(self, module, x=None, neutral=False):
        super().__init__()
        module = hops.unwrapped(module)
        layers = hops.weighted(module)
        if odd := [name for name, part in layers.items() if not name or "weight" not in part._parameters]:
            raise ParameterError(f"layers {odd} are the module itself, or have a weight that is no parameter")
        if not layers:
            raise ParameterError(f"{type(module).__name__} has neither a convolution nor a linear layer to be pruned")
        batch, first = x[0] if isinstance(x, list | tuple) else x, next(iter(layers.values()))
        shape = (first.in_features,) if isinstance(first, nn.Linear) else None
        self.shape, self.example = shape if batch is None else tuple(batch.shape[1:]), batch
        self.__dict__["module"] = copy.deepcopy(module)  # no child: its parameters are not those of the stack
        self.odd = _neutralised(self.module) if neutral else []
        for name, part in _shelled(self.module, {}).named_children():
            self.add_module(name, part)
        self.train(module.training)

    @property
    def image(self):
        """Return the shape of one example; ParameterError where nothing says it."""
        if self.shape is None:
            raise ParameterError("the first layer is a convolution: pass x, examples whose shape says what it reads")
        return self.shape

    def graph(self):
        return topology.topology(self.module, self.example)

    def train(self, mode=True):
        self.module.train(mode)
        return super().train(mode)

    def forward(self, x):
        """Return the logits `(1, N, classes)` of `x (N, I)` or `(1, N, I)`."""
        tensors = {name: tensor[0] for name, tensor in (*self.named_parameters(), *self.named_buffers())}
        x = x.flatten(0, -2).unflatten(1, self.image)
        return functional_call(self.module, tensors, (x,))[None]


def examples(x):
    """Return examples `(N, ...)`, or batches of them, as `One` reads them, `(N, I)`."""
    return [part.flatten(1) for part in x] if isinstance(x, list | tuple) else x.flatten(1)


def assert_flows(net):
    """Raise ParameterError for a module whose sum over paths has no meaning: see `synflow.flow`."""
    if odd := getattr(net, "odd", []):
        raise ParameterError(f"{listed(odd)} normalise each example, so that the module is no sum over paths")


def _shelled(module, known):
    """Return modules like this one that hold its tensors with a leading axis; what it shares stays shared."""
    if module in known:
        return known[module]
    shell = known[module] = Weighted(module.weight) if isinstance(module, hops.WEIGHTED) else nn.Module()
    for name, tensor in module._parameters.items():
        if tensor is not None and tensor not in known:
            known[tensor] = nn.Parameter(tensor.detach()[None])
        shell.register_parameter(name, known.get(tensor))
    for name, tensor in module._buffers.items():
        shell.register_buffer(name, None if tensor is None else tensor[None])
    for name, child in module._modules.items():
        shell.add_module(name, None if child is None else _shelled(child, known))
    return shell


@torch.no_grad()
def _neutralised(module):
    """Take out, in place, what is neither weight nor activation; return the names of normalisations that stay."""
    for part in module.modules():
        if isinstance(part, BATCH_NORMS):
            part.reset_parameters()
        elif getattr(part, "bias", None) is not None:
            part.bias.zero_()
    return [name for name, part in module.named_modules() if isinstance(part, OTHER_NORMS)]
