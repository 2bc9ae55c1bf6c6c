"""R convolutional variational autoencoders as one stack, whose hidden fully connected units can be taken away.

A variational autoencoder (Kingma & Welling, arXiv 1312.6114) codes an image x as a normal distribution of few latent
numbers, with mean μ and variance σ², and decodes a draw z = μ + σ ε of it. It is trained on what an image then costs,

    - log p(x | z) + KL(N(μ, σ²) | N(0, 1)),   KL = ½ Σ (μ² + σ² - 1 - log σ²),

the first term being the binary cross-entropy of all pixels in [0, 1].
"""

from contextlib import ExitStack

import torch
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits, conv_transpose2d

from lib.kernels import twins
from lib.networks import nets
from lib.networks.layers import Conv2d, Layer, Linear
from lib.pruning import contribution, units

FILTERS = (32, 64)  # of the two convolutions; the deconvolutions have them in reverse
SIDE, STRIDE, PADDING = 4, 2, 1  # of their filters, with which a convolution halves height and width
HIDDEN, LATENT = (2048, 4096), 100
CHUNK = 1000  # images that are looked at together


def deconvolve(x, v, s, bias, norm, normalised=True):
    """Return `(R, N, O, H', W')`, the transposed convolution of every run's `x (R, N, I, H, W)`; bias (R, O) or None.

    The filters v are (R, O, I, h, w), a row per unit as in all layers, where torch has (I, O, h, w). Runs are folded
    into the channels, with one group of them per run.
    """
    w = twins.weight_norm(v, s, norm) if normalised else v
    folded = x.transpose(0, 1).flatten(1, 2)
    if x.device.type == "cpu" and len(w) == 1:  # a CPU is faster so, 1.9 times on 64 channels of 7×7
        folded = folded.contiguous(memory_format=torch.channels_last)
    bias = None if bias is None else bias.flatten()
    out = conv_transpose2d(folded, w.transpose(1, 2).flatten(0, 1), bias, STRIDE, PADDING, groups=len(w))
    return out.unflatten(1, w.shape[:2]).transpose(0, 1)


class Deconv2d(Layer):
    """R transposed convolutions: `(R, N, C, H, W)` to `(R, N, O, 2H, 2W)`; weight (R, O, C, 4, 4)."""

    function = staticmethod(deconvolve)

    def __init__(self, runs, inputs, units, positions=1):
        super().__init__(runs, units, (inputs, SIDE, SIDE))
        self.positions = positions


class VAE(nn.Module):
    """R autoencoders of images: pixels `(N, C·H·W)`, shared by the runs, or `(R, N, C·H·W)`, to their distributions.

    Two convolutions that each halve the image, hidden fully connected layers of `hidden` units, μ and log σ² of
    `latent` numbers, and back through the same layers in reverse, all with ReLU. Fully connected layers, μ and log σ²
    too, have no biases, the others do. For 64×64 and in colour this is the network of the study of neural
    importance-based pruning. ValueError for an image whose sides are not equal multiples of 4.
    """

    def __init__(self, image, runs=1, hidden=HIDDEN, latent=LATENT):
        super().__init__()
        channels, height, side = self.image = tuple(image)
        if height != side or side % STRIDE ** len(FILTERS):
            raise ValueError(f"images are {height}×{side}; the autoencoder takes squares whose side is a multiple of 4")
        small = side // 4
        first, second = FILTERS
        self.features, self.latent = (second, small, small), latent
        flat = second * small**2
        self.convs = nn.ModuleList([_conv(runs, channels, first, side // 2), _conv(runs, first, second, small)])
        self.encoder = _linears(runs, [flat, *hidden])
        self.mean = Linear(runs, hidden[-1], latent, bias=False)
        self.log_variance = Linear(runs, hidden[-1], latent, bias=False)
        self.decoder = _linears(runs, [latent, *reversed(hidden), flat])
        self.deconvs = nn.ModuleList(
            [Deconv2d(runs, second, first, (side // 2) ** 2), Deconv2d(runs, first, channels, side**2)]
        )

    def forward(self, x, noise):
        """Return (logits of the pixels, μ, log σ²), `(R, N, C·H·W)` and twice `(R, N, latent)`; noise: ε, as μ."""
        mean, log_variance = self.encode(x)
        return self.decode(mean + noise * (log_variance / 2).exp()), mean, log_variance

    def encode(self, x):
        """Return (μ, log σ²) of images, twice `(R, N, latent)`."""
        x = nets.pixels(x, self.image)
        for conv in self.convs:
            x = torch.relu(conv(x))
        x = x.flatten(2)
        for layer in self.encoder:
            x = torch.relu(layer(x))
        return self.mean(x), self.log_variance(x)

    def decode(self, z):
        """Return the logits `(R, N, C·H·W)` of the pixels of latent numbers `z (R, N, latent)`."""
        for layer in self.decoder:
            z = torch.relu(layer(z))
        first, second = self.deconvs
        return second(torch.relu(first(z.unflatten(2, self.features)))).flatten(2)

    def graph(self):
        """Return the hops from the image to what the deconvolutions read, whose units all stay.

        The latent numbers are a node with two incoming hops, though z is not their sum: both have its units.
        """
        last = len(self.convs) + len(self.encoder)
        hops = nets.chain(list(nets.layers(self))[:last])
        hops += [nets.Hop("mean", last, last + 1), nets.Hop("log_variance", last, last + 1)]
        return hops + [nets.Hop(f"decoder.{k}", last + 1 + k, last + 2 + k) for k in range(len(self.decoder))]

    @torch.no_grad()
    def contributions(self, images, noise, preactivation=False):
        """Return the contribution scores of the hidden fully connected units, `{layer: (R, O)}`; see `contribution`.

        images: bytes `(N, C·H·W)`, which the mean is over; noise: ε, `(R, N, latent)`. μ and log σ² are one layer
        behind the last of the encoder. preactivation: score by what the units sum up, before ReLU, as the published
        program does.
        """
        read_by = readers(self)
        weights = {layer: [self.get_submodule(name).weight for name in names] for layer, names in read_by.items()}
        sums = {layer: contribution.Sums(torch.cat(parts, 1)) for layer, parts in weights.items()}

        def note(layer):
            return lambda _, __, output: sums[layer].add(output if preactivation else torch.relu(output)) and None

        with ExitStack() as hooks:
            for layer in read_by:
                hooks.enter_context(self.get_submodule(layer).register_forward_hook(note(layer)))
            for part, draw in zip(images.split(CHUNK), noise.split(CHUNK, 1), strict=True):
                mean, log_variance = self.encode(numbers(part))
                z = mean + draw * (log_variance / 2).exp()
                for layer in self.decoder[:-1]:
                    z = torch.relu(layer(z))
        return {layer: own.score() for layer, own in sums.items()}


def _conv(runs, inputs, units, side):
    return Conv2d(runs, inputs, units, SIDE, positions=side**2, stride=STRIDE, padding=PADDING)


def _linears(runs, sizes):
    return nn.ModuleList(Linear(runs, i, o, bias=False) for i, o in zip(sizes, sizes[1:], strict=False))


def numbers(images):
    """Return float32 pixels in [0, 1] of bytes."""
    return images.float().div_(255)


def losses(logits, mean, log_variance, x):
    """Return what images cost, (reconstruction, KL), twice `(R, N)` in nats; x: pixels in [0, 1], `(N, P)` or of runs.

    The cross-entropy is computed from the logits: no pixel of the sigmoid is 0 or 1, where its logarithm would end.
    """
    logits, mean, log_variance = (part.to(x.dtype) for part in (logits, mean, log_variance))
    pixels = binary_cross_entropy_with_logits(logits, x.expand_as(logits), reduction="none")
    return pixels.sum(2), (mean.square() + log_variance.exp() - 1 - log_variance).sum(2) / 2


# ---- hidden fully connected units


def readers(net):
    """Return `{layer: [the layers that read its units]}` of the hidden fully connected layers, in forward order."""
    found = units.readers(net).items()
    return {layer: [hop.layer for hop in hops] for layer, hops in found if layer.startswith(("encoder", "decoder"))}


def hidden_widths(net):
    """Return the number of units of every hidden fully connected layer, `{layer: count}`."""
    return {layer: net.get_submodule(layer).weight.shape[1] for layer in readers(net)}
