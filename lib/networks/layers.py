"""The layers of stacked networks: modules whose every tensor has a leading run axis R."""

import torch
from torch import nn

from lib import draws
from lib.errors import number
from lib.kernels import chance, twins


class Layer(nn.Module):
    """R layers of one shape, the tensors that linear layers and convolutions have in common.

    weight (R, O, *F) is v where a run is normalised, the weights themselves elsewhere; scale (R, O) is s;
    norm (R,) holds the codes of `twins.NORMS`; bias (R, O) or None. `positions`: uses of a unit in an example.
    """

    positions = 1
    options = {}  # of the kernel

    def __init__(self, runs, units, fan_in, bias=True, norm=None):
        super().__init__()
        shape = runs, units, *fan_in
        shape = [number(f"a side of weights {shape}", side, "[1, 2^31)", whole=True) for side in shape]
        self.weight = nn.Parameter(torch.empty(shape))
        self.scale = nn.Parameter(torch.zeros(runs, units))
        self.bias = nn.Parameter(torch.zeros(runs, units)) if bias else None
        codes = torch.tensor([twins.NORMS[n] for n in norm or ["no-WN"] * runs], dtype=torch.int8)
        self.register_buffer("norm", codes)
        self.normalised = bool(codes.any())

    def forward(self, x):
        tensors = x, self.weight, self.scale, self.bias, self.norm
        return self.function(*tensors, self.normalised, **self.options)


class Linear(Layer):
    """R linear layers: `(R, N, I)` or, shared by all runs, `(N, I)` to `(R, N, O)`; weight (R, O, I)."""

    function = staticmethod(twins.linear)
    lr = None  # set by `nets.sgd_in_backward`

    def __init__(self, runs, inputs, units, bias=True, norm=None):
        super().__init__(runs, units, (inputs,), bias, norm)

    def forward(self, x, rectified=False):
        """Return the layer's output; rectified: max(0, ·) of it, in the same kernel, where the layer `steps`."""
        if not self.steps:
            return super().forward(x)
        return twins.linear_sgd(x, self.weight, self.scale, self.bias, self.norm, self.lr, self.normalised, rectified)

    @property
    def steps(self):
        """Whether going backward takes a step, see `nets.sgd_in_backward`."""
        return self.lr is not None and torch.is_grad_enabled()


class Conv2d(Layer):
    """R convolutions: `(R, N, C, H, W)`, or shared `(N, C, H, W)`, to `(R, N, O, H', W')`.

    weight (R, O, C, side, side); `padding` by zeros, None for half a filter: odd ones keep sizes at stride 1.
    """

    function = staticmethod(twins.conv2d)

    def __init__(self, runs, inputs, units, side=3, bias=True, norm=None, positions=1, stride=1, padding=None):
        super().__init__(runs, units, (inputs, side, side), bias, norm)
        self.positions = positions
        self.options = {"stride": stride, "padding": side // 2 if padding is None else padding}


class BatchNorm(nn.Module):
    """R batch normalisations of the channels of `(R, N, C, H, W)`; every tensor is (R, C). See `twins.batch_norm`.

    Statistics of the batch in `train()` mode, which move the running ones; those in `eval()` mode.
    """

    def __init__(self, runs, channels):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(runs, channels)), nn.Parameter(torch.zeros(runs, channels))
        self.register_buffer("running_mean", torch.zeros(runs, channels))
        self.register_buffer("running_var", torch.ones(runs, channels))

    def forward(self, x, beside=None, rectified=False):
        """Return x normalised, plus `beside` if it is given, and max(0, ·) of that if `rectified`."""
        tensors = x, self.weight, self.bias, self.running_mean, self.running_var
        return twins.batch_norm(*tensors, self.training, beside=beside, rectified=rectified)

    def folded(self, weight, bias):
        """Return weight (R, C, *F) and bias (R, C) that do alone what `weight` and `bias`, or None, did before this."""
        scale = self.weight / (self.running_var + twins.EPS).sqrt()
        shift = self.bias - self.running_mean * scale
        return weight * twins.trailing(scale, weight), shift if bias is None else shift.addcmul_(bias, scale)

    def start_(self, seeds, position):
        for tensor, value in ((self.weight, 1), (self.bias, 0), (self.running_mean, 0), (self.running_var, 1)):
            tensor.fill_(value)


class Absorbed(nn.Module):
    """What stays of batch normalisations that are in the weights of the layer before."""

    def forward(self, x, beside=None, rectified=False):
        x = x if beside is None else x + beside
        return torch.relu(x) if rectified else x


class Dropout(nn.Module):
    """R dropouts (Srivastava et al. 2014): in `train()` mode an activation becomes 0 with `chance`, or grows in turn.

    key, step: int64 (R,), which decide what is drawn, whatever else is in the stack; each pass is one step.
    """

    def __init__(self, runs, chance=0.5):
        super().__init__()
        self.chance = number("the chance of a dropout", chance, "[0, 1)")
        self.register_buffer("key", torch.zeros(runs, dtype=torch.int64))
        self.register_buffer("step", torch.zeros(runs, dtype=torch.int64))

    def forward(self, x):
        if not self.training:
            return x
        kept = chance.coins(self.key, self.step, x[0].numel(), 1 - self.chance).view_as(x)
        self.step += 1
        return x * kept / (1 - self.chance)

    def start_(self, seeds, position):
        keys = [draws.generator(seed, "dropout", position).integers(2**63) for seed in seeds]
        self.key.copy_(torch.tensor(keys))
        self.step.zero_()


class DropConnect(Dropout):
    """R DropConnects (Wan et al. 2013) of a layer: in `train()` mode a weight is 0 with `chance`, or grows in turn.

    Every example has weights of its own. What a unit sums up is drawn as such a sum of many inputs is: normal, with the
    mean W x + b and the variance chance / (1 - chance) W² x² (Wang & Manning 2013), so that no masks are made.
    """

    def forward(self, layer, x):
        if not self.training:
            return layer(x)
        if layer.normalised or layer.steps:
            raise ValueError("DropConnect drops plain weights that an optimizer trains: take no-WN and a Trainer")
        mean, square = layer(x), layer.weight.square()
        spread = twins.linear(x.square(), square, layer.scale, None, layer.norm, normalised=False).clamp_min(1e-12)
        noise = chance.normals(self.key, self.step, mean[0].numel()).view_as(mean).to(mean.dtype)
        self.step += 1
        return mean + (spread * (self.chance / (1 - self.chance))).sqrt() * noise
