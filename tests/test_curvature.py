"""Second derivatives by `curvature.fast` against those that torch makes itself, and against differences."""

from contextlib import nullcontext

import pytest
import torch
from torch.nn import functional

from lib import convnets, curvature, nets


def drawn(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def twice(block, function, leaves, wanted, weights):
    """Return the gradient by `leaves` of a weighted sum of squared gradients by `wanted`, of all of it in a block."""
    with block:
        out = function()
        loss = (out.sin() * drawn(*out.shape, seed=9)).sum()
        slopes = torch.autograd.grad(loss, wanted, create_graph=True)
        along = sum(weight * slope.square().sum() for weight, slope in zip(weights, slopes, strict=True))
        return out, slopes, torch.autograd.grad(along, leaves)


def compare(function, leaves, wanted):
    fast, plain = (twice(b, function, leaves, wanted, (1.0, 0.3, 0.7, 2.0)[: len(wanted)]) for b in blocks())
    assert type(fast[1][0].grad_fn) is not type(plain[1][0].grad_fn), "the block changed nothing"
    for found, expected in zip((fast[0], *fast[1], *fast[2]), (plain[0], *plain[1], *plain[2]), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-10)
        assert float(expected.detach().abs().max()) > 1e-6


def blocks():
    return curvature.fast(), nullcontext()


@pytest.mark.parametrize("groups, stride, side", [(1, 1, 3), (1, 2, 3), (1, 2, 1), (2, 1, 3), (2, 2, 3)])
@pytest.mark.parametrize("of_x", [True, False])
@pytest.mark.parametrize("biased", [True, False])
def test_a_convolution(groups, stride, side, of_x, biased):
    x, w = drawn(3, 4, 7, 7).requires_grad_(of_x), drawn(6, 4 // groups, side, side, seed=1).requires_grad_()
    bias = drawn(6, seed=2).requires_grad_() if biased else None
    leaves = [leaf for leaf in (w, x, bias) if leaf is not None and leaf.requires_grad]
    padding = [side // 2] * 2
    compare(lambda: torch.conv2d(x, w, bias, stride, padding, groups=groups), leaves, leaves)


def test_a_convolution_of_which_only_the_image_matters():
    x, w = drawn(2, 3, 5, 5).requires_grad_(), drawn(4, 3, 3, 3, seed=1).requires_grad_()
    compare(lambda: torch.conv2d(x, w, None, 1, 1), [x, w], [x])


@pytest.mark.parametrize("wanted", [(0,), (1,), (2,), (0, 1), (0, 1, 2)])
def test_a_batch_normalisation(wanted):
    """One channel has weight zero, which no formula may divide by."""
    x, weight = drawn(5, 3, 4, 4).requires_grad_(), torch.tensor([1.5, 0.0, -0.7], dtype=torch.float64)
    leaves = [x, weight.requires_grad_(), drawn(3, seed=3).requires_grad_()]
    zero, one = torch.zeros(3, dtype=torch.float64), torch.ones(3, dtype=torch.float64)
    function = lambda: functional.batch_norm(x, zero.clone(), one.clone(), *leaves[1:], True)  # noqa: E731
    compare(function, leaves[:2], [leaves[k] for k in wanted])


def test_running_statistics_move_and_rest_as_ever():
    x, moved = drawn(5, 3, 4, 4), []
    for block in blocks():
        tensors = [torch.zeros(3, dtype=torch.float64), torch.ones(3, dtype=torch.float64)]
        with block:
            functional.batch_norm(x, *tensors, training=True, weight=torch.ones_like(tensors[0]), momentum=0.2)
            out = functional.batch_norm(x, *tensors, training=False)
        moved.append((*tensors, out))
    for found, expected in zip(*moved, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("name, side", [("resnet20", 8), ("vgg11_bn", 32)])
@pytest.mark.parametrize("runs", [1, 2])
def test_the_product_with_a_hessian(name, side, runs):
    net = nets.init_(convnets.build(name, (3, side, side), 4, runs, 2), list(range(runs)), "phew").double()
    x, leaves = drawn(6, 3 * side * side), list(nets.weights(net).values())
    found = [twice(block, lambda: net(x), leaves, leaves, [1.0] * len(leaves))[2] for block in blocks()]
    for fast, plain in zip(*found, strict=True):
        torch.testing.assert_close(fast, plain, rtol=1e-8, atol=1e-9 * float(plain.abs().max()))
