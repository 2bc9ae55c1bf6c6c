"""Compare the gradients of all small convolutions that the notebooks can ask for with torch's in float64.

    python tests/small_convolutions.py

A process of its own, because a fault in a library's kernel may end it, or never end, which a limit on its processor
time does. Each case is printed before it is computed, so that the last line names the one at fault. Exit status 0 if
all agree; the others are printed again.
"""

import copy
import itertools
import os
import resource
import sys
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch  # noqa: E402
from torch import nn  # noqa: E402
from torch.nn.functional import conv_transpose2d  # noqa: E402

from lib import curvature, plain, twins  # noqa: E402
from lib.studies.importance import vae  # noqa: E402

CHANNELS, EXAMPLES, SIDE = range(1, 17), 6, 16
CLOSE = 1e-4  # of the largest entry, in float32
SECONDS = 60  # of processor time, seven times what all cases take


def grads(out, leaves, along):
    return torch.autograd.grad(out, leaves, along.to(out.dtype))


def wide(*tensors):
    """Return the tensors as leaves in float64, contiguous: what torch computes without oneDNN."""
    return [tensor.detach().double().contiguous().requires_grad_() for tensor in tensors]


def leaves(runs, shared, last, filters, side=SIDE):
    """Return images `(N, C, H, W)` or of each run, with the channels last in memory or not, and filters."""
    count = filters[1] * (1 if shared else runs)
    folded = torch.randn(EXAMPLES, count, side, side)
    folded = folded.contiguous(memory_format=torch.channels_last) if last else folded
    x = folded if shared else folded.unflatten(1, (runs, -1)).transpose(0, 1)
    return x.requires_grad_(), torch.randn(runs, *filters).requires_grad_()


def convolution(inputs, side, stride, runs, shared, last):
    """Yield (found, expected) of a stack's outputs, gradients, step and second derivatives."""
    x, w = leaves(runs, shared, last, (2 * inputs, inputs, side, side))
    scale, codes = torch.zeros(w.shape[:2]), torch.zeros(runs, dtype=torch.int8)
    wide_x, wide_w = wide(x, w)
    expected = [torch.conv2d(wide_x if shared else wide_x[r], wide_w[r], None, stride, side // 2) for r in range(runs)]
    expected = torch.stack(expected)
    along = torch.randn(expected.shape)
    slopes = torch.autograd.grad(expected, (wide_x, wide_w), along.double(), create_graph=True)
    curved = torch.autograd.grad(slopes[1].square().sum(), (wide_x,))[0]

    found = twins.conv2d(x, w, scale, None, codes, False, stride)
    yield found, expected
    yield from zip(grads(found, (x, w), along), slopes, strict=True)
    with curvature.fast():
        out = twins.conv2d(x, w, scale, None, codes, False, stride)
        by_w = torch.autograd.grad(out, w, along, create_graph=True)[0]
        yield torch.autograd.grad(by_w.square().sum(), x)[0], curved


def deconvolution(inputs, runs):
    """Yield (found, expected) of the autoencoder's transposed convolution to as many units, and to one."""
    for units in (inputs, 1):
        x, w = leaves(runs, False, True, (units, inputs, 4, 4))
        wide_x, wide_w = wide(x, w)
        pairs = zip(wide_x, wide_w.transpose(1, 2), strict=True)
        expected = torch.stack([conv_transpose2d(a, b, None, vae.STRIDE, vae.PADDING) for a, b in pairs])
        found = vae.deconvolve(x, w, None, None, None, False)
        along = torch.randn(found.shape)
        yield found, expected
        yield from zip(grads(found, (x, w), along), grads(expected, (wide_x, wide_w), along), strict=True)


def module(inputs, side, stride):
    """Yield (found, expected) of plain modules, as shrinking leaves them."""
    first, second = nn.Conv2d(3, inputs, 3, padding=1), nn.Conv2d(inputs, 2 * inputs, side, stride, side // 2)
    modules = nn.Sequential(first, second)
    twin, small = copy.deepcopy(modules).double(), plain.laid_out(modules)
    x = torch.randn(EXAMPLES, 3, SIDE, SIDE)
    found, expected = small(x), twin(x.double())
    along = torch.randn(found.shape)
    yield found, expected
    tensors = list(small.parameters()), list(twin.parameters())
    yield from zip(grads(found, tensors[0], along), grads(expected, tensors[1], along), strict=True)


def cases():
    for inputs, side, stride, runs, shared, last in itertools.product(CHANNELS, (1, 3), (1, 2), (1, 3), *[(0, 1)] * 2):
        yield convolution, dict(inputs=inputs, side=side, stride=stride, runs=runs, shared=shared, last=last)
    for inputs, runs in itertools.product(CHANNELS, (1, 3)):
        yield deconvolution, dict(inputs=inputs, runs=runs)
    for inputs, side, stride in itertools.product(CHANNELS, (1, 3), (1, 2)):
        yield module, dict(inputs=inputs, side=side, stride=stride)


def error(pairs):
    """Return by how much of its largest entry a tensor is off, at most over (found, expected)."""
    return max(float(((found - right).abs().max() / right.abs().max()).detach()) for found, right in pairs)


def main():
    resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))
    torch.manual_seed(0)
    wrong = []
    for function, case in cases():
        name = f"{function.__name__} {case}"
        print(name, flush=True)
        off = error(function(**case))
        if not off < CLOSE:
            wrong.append(f"{name}: off by {off:.2g} of its largest entry")
    sys.exit("\n".join(wrong) or None)


if __name__ == "__main__":
    main()
