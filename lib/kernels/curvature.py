"""Second derivatives of convolutions and batch normalisations, made of the fast kernels of the first.

PyTorch differentiates a gradient of theirs again by convolutions whose filters are as large as an image, group after
group, and by some twenty passes over all activations. Here the product with a Hessian takes three times the
convolutions of a gradient, and no more; of ResNet20 on one CPU thread GraSP takes 0.55 of the time so.
"""

import re
from contextlib import contextmanager

import torch
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

from lib.errors import ParameterError


@contextmanager
def fast():
    """Within the block, convolutions and batch normalisations of batches have gradients that are fast to differentiate.

    `with fast(): slopes = torch.autograd.grad(loss, leaves, create_graph=True)`, where the loss is made in the block.
    """
    with sdpa_kernel(SDPBackend.MATH), _Fast():  # the fast kernels of attention have no second derivative
        yield


class _Fast(TorchFunctionMode):
    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function is torch.conv2d:
            return _convolved(*args, **(kwargs or {}))
        if function is functional.batch_norm:
            return _normalised(*args, **(kwargs or {}))
        return function(*args, **(kwargs or {}))


def again(along, leaves):
    """Return gradients of what is made of gradients, by `leaves`; ParameterError where torch has none."""
    try:
        return torch.autograd.grad(along, leaves, materialize_grads=True)
    except RuntimeError as error:
        if odd := re.search(r"derivative for aten::(\w+) is not implemented", str(error)):
            told = f"torch has no second derivative of {odd[1].removesuffix('_backward')}, which GraSP needs"
            raise ParameterError(f"{told}: take snip, or another module in its place") from error
        raise


def _convolved(input, weight, bias=None, stride=1, padding=0, dilation=1, groups=1):  # noqa: A002, torch's own names
    if input.dim() != 4 or isinstance(padding, str):
        return torch.conv2d(input, weight, bias, stride, padding, dilation, groups)
    options = _pair(stride), _pair(padding), _pair(dilation), False, (0, 0), groups
    out = _Convolution.apply(input, weight, options)
    return out if bias is None else out + bias[:, None, None]


def _pair(n):
    return (n, n) if isinstance(n, int) else tuple(n)


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, w, options):
        ctx.save_for_backward(x, w)
        ctx.options = options
        return torch.ops.aten.convolution(x, w, None, *options)

    @staticmethod
    def backward(ctx, delta):
        return *_ConvolutionSlopes.apply(delta, *ctx.saved_tensors, ctx.options, ctx.needs_input_grad[0]), None


class _ConvolutionSlopes(torch.autograd.Function):
    """(gradient by x or None, by w) of a convolution from that of its output; linear in each of delta, x and w."""

    @staticmethod
    def forward(ctx, delta, x, w, options, of_x):
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(delta, x, w)
        ctx.options = options
        return _slopes(delta, x, w, options, (of_x, True))

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, along_x, along_w):
        (delta, x, w), options, ahead = ctx.saved_tensors, ctx.options, torch.ops.aten.convolution
        by_delta = by_x = by_w = None
        if along_x is not None:
            by_delta, by_w = ahead(along_x, w, None, *options), _slopes(delta, along_x, w, options, (False, True))[1]
        if along_w is not None:
            more = ahead(x, along_w, None, *options)
            by_delta = more if by_delta is None else by_delta.add_(more)
            by_x = _slopes(delta, x, along_w, options, (ctx.needs_input_grad[1], False))[0]
        return by_delta, by_x, by_w, None, None


def _slopes(delta, x, w, options, wanted):
    return torch.ops.aten.convolution_backward(delta, x, w, None, *options, (*wanted, False))[:2]


def _normalised(
    input, running_mean, running_var, weight=None, bias=None, training=False, momentum=0.1, eps=1e-5,  # noqa: A002
):  # fmt: skip
    if not training or input.dim() != 4 or weight is None or bias is None:
        return functional.batch_norm(input, running_mean, running_var, weight, bias, training, momentum, eps)
    return _BatchNorm.apply(input, weight, bias, running_mean, running_var, momentum, eps)


class _BatchNorm(torch.autograd.Function):
    """Batch normalisation y = weight · x̂ + bias, x̂ = (x - mean) · inverse, by the statistics of the batch."""

    @staticmethod
    def forward(ctx, x, weight, bias, running_mean, running_var, momentum, eps):
        y, *statistics = torch.native_batch_norm(x, weight, bias, running_mean, running_var, True, momentum, eps)
        ctx.save_for_backward(x, weight, *statistics)
        return y

    @staticmethod
    def backward(ctx, delta):
        return *_BatchNormSlopes.apply(delta, *ctx.saved_tensors), None, None, None, None


class _BatchNormSlopes(torch.autograd.Function):
    """Gradients of a batch normalisation by x, weight and bias from that of its output.

    With the mean over a channel written ⟨·⟩ they are weight · P(delta), Σ delta · x̂ and Σ delta, where
    P(d) = inverse · (d - ⟨d⟩ - x̂ ⟨d · x̂⟩): a projection, and so its own transpose.
    """

    @staticmethod
    def forward(ctx, delta, x, weight, mean, inverse):
        ctx.set_materialize_grads(False)
        projected, by_weight, by_bias = _projected(delta, x, mean, inverse)
        ctx.save_for_backward(delta, x, weight, mean, inverse, projected, by_weight)
        return projected * _wide(weight), by_weight, by_bias

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, along_x, along_weight, along_bias):
        delta, x, weight, mean, inverse, projected, dotted = ctx.saved_tensors
        count = x.numel() / len(mean)
        zero = torch.zeros_like(mean)
        a = zero if along_weight is None else along_weight
        b = zero if along_bias is None else along_bias
        if along_x is None:
            along_x = torch.zeros_like(x)
        turned, along, _ = _projected(along_x, x, mean, inverse)
        by_weight = (along_x * projected).sum((0, 2, 3))
        by_delta = turned * _wide(weight)
        if along_weight is not None or along_bias is not None:
            by_delta.addcmul_(x, _wide(a * inverse)).add_(_wide(b - a * inverse * mean))
        # x̂ in both sums over x̂ of P, and the inverse standard deviation, move with x.
        drift = -(inverse**2) * weight * by_weight / count
        by_x = torch.addcmul(_wide(-drift * mean), x, _wide(drift))
        by_x.addcmul_(turned, _wide(-weight * inverse * dotted / count))
        by_x.addcmul_(projected, _wide(a - weight * inverse * along / count))
        return by_delta, by_x, by_weight, None, None


def _projected(d, x, mean, inverse):
    """Return (P(d), Σ d · x̂, Σ d), which is a batch normalisation's gradient where its weight is one."""
    one = torch.ones_like(mean)
    return torch.ops.aten.native_batch_norm_backward(d, x, one, None, None, mean, inverse, True, 0.0, [True] * 3)


def _wide(channels):
    return channels[:, None, None]
