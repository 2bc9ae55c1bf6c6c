"""Any torch module as a stack of one, so that methods made for stacks prune it too."""

from functools import partial
from operator import itemgetter

import torch
from torch import nn
from torch.func import functional_call
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map_only

from lib.errors import ParameterError, hint, listed
from lib.networks import nets
from lib.networks.layers import Layer
from lib.pruning import checks, coupled, hops, topology
from lib.pruning.masks import COMPUTED, computed

NO_SUMS = (
    nn.LayerNorm, nn.RMSNorm, nn.GroupNorm, nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d,
    nn.LocalResponseNorm, nn.Embedding, nn.EmbeddingBag, nn.MultiheadAttention, nn.RNNBase, nn.RNNCellBase,
)  # fmt: skip
# Functions that do what those do of the above that normalise: modules call them too, whatever class they are of.
NORMALISING = set(
    """layer_norm rms_norm group_norm instance_norm local_response_norm normalize softmax log_softmax softmin
    scaled_dot_product_attention""".split()
)
NEUTRAL = {"bias": 0, "weight": 1, "running_mean": 0, "running_var": 1}  # of batch normalisations
TRANSPOSED = nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d


class Shell(nn.Module):
    """The tensors of a part of a module, with a leading axis, and its forward hooks; nothing is computed here."""

    def __init__(self, own):
        nn.Module.__init__(self)
        self.__dict__["_own"] = own  # which computes

    def register_forward_pre_hook(self, hook, **how):
        return self._own.register_forward_pre_hook(self._led(hook), **how)

    def register_forward_hook(self, hook, **how):
        return self._own.register_forward_hook(self._led(hook), **how)

    def _led(self, hook):
        """Return a hook of a part of a stack as one of what computes, whose tensors have no run axis."""
        led = partial(tree_map_only, torch.Tensor, itemgetter(None))
        return lambda _, *seen: tree_map_only(torch.Tensor, itemgetter(0), hook(self, *led(seen)))


class Weighted(Shell, Layer):
    """A layer's shell."""

    normalised = False

    def __init__(self, own):
        super().__init__(own)
        # turned: a transposed convolution, whose weights are (1, I, O, ...)
        self.groups, self.turned = getattr(own, "groups", 1), isinstance(own, TRANSPOSED)


class One(nn.Module):
    """A stack of one run that computes what `module` does: a copy of it, whose tensors have a leading run axis here.

    Its layers are the convolutions and linear layers of the module; its examples are flattened, as those of all stacks.
    x: examples as the module reads them, `(N, ...)`, or a list of such batches; None where nothing is to be computed,
    or where the first layer is linear. neutral: biases are zero and batch normalisations change nothing, as what reads
    no data wants it; `_odd` names what has no sum over paths nevertheless. wanted: the layers whose units may go, None
    for all that make no output. ParameterError for a module without any layer, and for weights that are no parameters.
    """

    def __init__(self, module, x=None, neutral=False, wanted=None):
        super().__init__()
        module, self._wanted = hops.unwrapped(module), wanted
        layers = _prunable(module)
        checks.assert_tensors(x)
        batch, first = x[0] if isinstance(x, list | tuple) else x, next(iter(layers.values()))
        shape = (first.in_features,) if isinstance(first, nn.Linear) else None
        self._shape, self._example = shape if batch is None else tuple(batch.shape[1:]), batch
        self.__dict__["_own"] = hops.copied(module)  # no child: its parameters are not those of the stack
        self._odd = _neutralised(self._own) if neutral else []
        _shell_(self, self._own, {})
        first, tensors = {}, _named(self)
        for name in (*nets.weights(self), *tensors):  # a tensor that a layer shares with others is that of the layer
            first.setdefault(id(tensors[name]), name)
        self._first = {name: first[id(tensor)] for name, tensor in tensors.items()}
        self.train(module.training)

    @property
    def image(self):
        """Return the shape of one example; ParameterError where nothing says it."""
        if self._shape is None:
            raise ParameterError("the first layer is a convolution: pass x, examples whose shape says what it reads")
        return self._shape

    def graph(self):
        return topology.topology(self._own, self._example)

    def hidden_layers(self):
        """Return the names of the layers whose units may go; ParameterError where the module cannot be read."""
        known, found = list(nets.layers(self)), self._hidden() if self._wanted is None else list(self._wanted)
        if odd := [name for name in found if name not in known]:
            raise ParameterError(f"there are no layers {odd}; there are {known}.{hint(odd[0], known)}")
        if odd := [name for name in found if isinstance(self._own.get_submodule(name), TRANSPOSED)]:
            told = f"{listed(odd)} are transposed convolutions, whose weights (I, O, ...) have no row for a unit"
            if self._wanted is not None or len(odd) == len(found):
                raise ParameterError(f"{told}: say whose units may go without them, layers=[...]")
            checks.warn(f"{told}: their units stay")
        self._wanted = [name for name in found if name not in odd]  # so that this is read, and told, once
        return self._wanted

    def _hidden(self):
        """Return the names of the layers whose units are no outputs, also not as terms or parts of one."""
        try:
            reader = topology.read(self._own, self._example, coupled.Recorder)
        except (RuntimeError, IndexError, ValueError, TypeError) as error:
            raise ParameterError(f"{error}. Or say which layers' units may go, layers=[...]") from error
        outputs = {reader.output, *reader.whole}
        for hop in reversed(reader.hops):
            outputs |= {hop.source} if hop.layer is None and hop.target in outputs else set()
        made = {hop.layer for hop in reader.hops if hop.target in outputs}
        found = [name for name in dict.fromkeys(hop.layer for hop in reader.hops) if name and name not in made]
        if reader.whole and not found:
            told = f"{type(self._own).__name__} has no hidden units to prune: its layers make outputs, or lead to what"
            raise ParameterError(f"{told} {next(iter(reader.whole.values()))}; or say which may go, layers=[...]")
        return found

    def train(self, mode=True):
        self._own.train(mode)
        return super().train(mode)

    def forward(self, x):
        """Return the logits `(1, N, classes)` of `x (N, I)` or `(1, N, I)`; ParameterError if there are several."""
        own, x = _named(self), x.flatten(0, -2).unflatten(1, self.image)
        tensors = {name: own[first][0] for name, first in self._first.items()}
        try:  # what it draws, as its dropouts do, comes from one fixed seed, and torch's own stream stays as it was
            with torch.random.fork_rng([x.device] if x.is_cuda else []):
                stream = torch.cuda.default_generators[x.device.index] if x.is_cuda else torch.default_generator
                stream.manual_seed(0)
                logits = functional_call(self._own, tensors, (x,), tie_weights=False)
        except (RuntimeError, IndexError, ValueError, TypeError) as error:
            told = f"{type(self._own).__name__} does not run on {x.dtype} (N, {str(self.image)[1:]}: {error}"
            raise ParameterError(f"{told}. Pass x, examples whose shape and type are what it reads") from error
        if not isinstance(logits, torch.Tensor):
            told = f"{type(self._own).__name__} returns a {type(logits).__name__}"
            raise ParameterError(f"{told}; scores of examples are of logits: pass a module that returns them alone")
        if torch.is_grad_enabled() and not logits.requires_grad and any(x.requires_grad for x in tensors.values()):
            raise ParameterError(f"{type(self._own).__name__} returns what has no gradient: no_grad or detach is in it")
        return logits[None]


def opened(net, method, x, y, seeds, layers):
    """Return `net` as a stack, a torch module as `One`, what the method reads of x and y, and the seeds of its runs."""
    stack = nets.layers(net, stack=False)
    if not stack:
        net = One(net, x if method.needs in ("nothing", "examples") else None, method.needs == "nothing", layers)
        seeds = [0] if seeds is None else seeds
    if method.needs == "nothing":
        return net, None, None, seeds
    if method.needs == "examples":
        if torch.float16 in {p.dtype for p in net.parameters()}:
            told = "in float16 squares and slopes may be 0, or infinite: pass a copy in float32"
            checks.warn(f"{told}, copy.deepcopy(net).float(), which has masks like these")
        x = x if stack else checks.examples(x, y)
        for batch in (x if isinstance(x, list | tuple) else [x]) if stack else ():
            checks.assert_rows(net, batch)
    return net, x, y, seeds


def told(made, module=None):
    """Return masks, having warned of the parts, weights or layers, of which they keep nothing.

    module: whose weights they are all of, but for those of other kinds than layers, of which is warned too.
    """
    if module is not None and (other := _unmasked(hops.unwrapped(module))):
        told = f"{listed(other)} are weights of no convolution and no linear layer: they stay whole, and density"
        checks.warn(f"{told} does not count them. Or say what is pruned, layers=[...]")
    if empty := list(dict.fromkeys(part for kept in made for part, mask in kept.items() if not mask.any())):
        checks.warn(f"nothing is kept of {listed(empty)}: no input is seen behind it")
    return made


def _unmasked(module):
    """Return the names of tensors that multiply what flows and are no layer's, as of attention and recurrence."""
    layers = (part for part in module.modules() if isinstance(part, (*hops.WEIGHTED, nn.Embedding, nn.EmbeddingBag)))
    known = {id(p) for part in layers for p in part.parameters(recurse=False)}
    own = ((name, p) for name, p in module.named_parameters() if id(p) not in known)
    return [name for name, p in own if sum(side > 1 for side in p.shape) > 1]


def _prunable(module):
    """Return its convolutions and linear layers by name; ParameterError if there are none, or one cannot be pruned."""
    layers = hops.weighted(module)
    if not layers:
        raise ParameterError(f"{type(module).__name__} has neither a convolution nor a linear layer to be pruned")
    if "" in layers:
        raise ParameterError("a layer alone is the module itself, which has no name: pass nn.Sequential(layer)")
    if odd := [name for name, p in module.named_parameters() if p.is_meta or not p.is_floating_point()]:
        raise ParameterError(f"parameters {odd} hold no real numbers to rank; load those of the device meta")
    if odd := computed(module):
        raise ParameterError(f"layers {odd} {COMPUTED}")
    return layers


def assert_flows(net, x):
    """Raise ParameterError for a module whose sum over paths has no meaning, see `synflow.flow`, of inputs `x`."""
    if not isinstance(net, One):
        return
    if odd := net._odd:
        told = "normalise each example, look numbers up, attend or recur"
        raise ParameterError(f"{listed(odd)} {told}, so that the module is no sum over paths")
    with _Called() as called, nets.mode(net, False):
        net(x)
    if odd := sorted(called.names & NORMALISING):
        told = f"{type(net._own).__name__} calls {listed(odd)}, which normalises each example"
        raise ParameterError(f"{told}, so that it is no sum over paths: pass a module that returns logits")


class _Called(TorchFunctionMode):
    """What notes the names of the functions that are called."""

    def __enter__(self):
        self.names = set()
        return super().__enter__()

    def __torch_function__(self, func, types, args=(), kwargs=None):
        self.names.add(hops.name_of(func))
        return func(*args, **(kwargs or {}))


def _named(net):
    """Return `{name: tensor}` of all places of parameters and buffers, of which several may hold one tensor."""
    own = ((path, part._parameters | part._buffers) for path, part in net.named_modules())
    return {f"{path}.{name}".lstrip("."): x for path, held in own for name, x in held.items() if x is not None}


def _shelled(module, known):
    """Return modules like this one that hold its tensors with a leading axis; what it shares stays shared."""
    if module not in known:
        shell = (Weighted if isinstance(module, hops.WEIGHTED) else Shell)(module)
        known[module] = _shell_(shell, module, known)
    return known[module]


def _shell_(shell, module, known):
    """Put the tensors and parts of a module into an empty one; ParameterError for names that it has."""
    if odd := [name for name in (*module._modules, *module._parameters, *module._buffers) if hasattr(shell, name)]:
        raise ParameterError(f"what is called {odd} has a name that a stack uses otherwise: call it otherwise")
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
    """Take out, in place, what is neither weight nor activation; return the names of what can't be taken out."""
    like = next(module.parameters())
    for part in module.modules():
        norm = "running_mean" in part._buffers  # a batch normalisation of any kind
        if norm and part.running_mean is None:  # it would take the statistics of batches in eval() mode too
            part.running_mean, part.running_var = like.new_empty(2, part.num_features)
        own = part._parameters | part._buffers
        for name, value in NEUTRAL.items() if norm else [("bias", 0)]:
            if own.get(name) is not None:
                own[name].fill_(value)
    return [name for name, part in module.named_modules() if isinstance(part, NO_SUMS)]
