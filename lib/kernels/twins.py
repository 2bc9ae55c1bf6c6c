"""The hot loops: weight normalisation, linear layers with their update, convolutions, the loss at e^-300.

Every tensor of a network has a leading run axis R; N is examples, I inputs, O units of a layer.
Weight normalisation (Salimans & Kingma 2016; exponential form arXiv 2010.12909) is a code per run:

    NO_WN  w_u = v_u            SWN  w_u = s_u v_u / |v_u|            EWN  w_u = exp(s_u) v_u / |v_u|

The normalised matrix of a linear layer is never built while training: the product with `v` is scaled afterwards,
and <v, gradient> comes from the activations, so a step costs what it costs without normalisation. A filter of a
convolution is small beside its activations, so there it is the filter that is scaled.
"""

import math

import torch

from lib.kernels import fused, small_images

NO_WN, SWN, EWN = 0, 1, 2
NORMS = {"no-WN": NO_WN, "SWN": SWN, "EWN": EWN}

# Below this a gradient entry is set to zero. It is far under the rounding of any weight that it would be
# added to, and the products built from it would be denormal numbers, which CPUs multiply many times slower.
NEGLIGIBLE = 1e-28
# From here on softplus(a) = exp(a) to the last bit of float64, so its logarithm is `a` itself.
FAR = -40.0
# Of a strided 1×1 filter on fewer channels than these, last in memory, oneDNN's gradient (jit_1x1:avx2, its issue 6035)
# overruns its memory on a CPU without AVX-512: it is wrong, never comes, or the process dies. So the pixels that such
# a filter reads are taken first, and convolved with stride 1. A step of ResNet20 with 2 to 6 filters takes 0.9 to 1.04
# of the time so; with this layer's images contiguous 1.05 to 1.07, with all few channels so 1.3 to 1.5. For 16 channels
# or more, where nothing is wrong, the strided layer alone is twice as fast.
FEW = 8
EPS = 1e-5  # beside a variance, in batch normalisations


def lengths(v):
    """Return the Euclidean length of every unit's weights, `(R, O, *F) -> (R, O)`."""
    return torch.linalg.vector_norm(v.flatten(2), dim=-1)


def unit_norms(v, s, norm):
    """Return the norm of every unit's effective weights, `(R, O)`: exp(s), |s| or |v| by the run's code."""
    code = norm[:, None]
    return torch.where(code == EWN, s.exp(), torch.where(code == SWN, s.abs(), lengths(v)))


def gain(length, s, norm):
    """Return the `(R, O)` factor g with w = g v of units, v of this length; exactly 1 where a run is not normalised."""
    code = norm[:, None]
    size = torch.where(code == EWN, s.exp(), s)
    return torch.where(code == NO_WN, torch.ones_like(size), size / length)


def weight_norm(v, s, norm):
    """Return the effective weights w of `v (R, O, *F)`, `s (R, O)` and the codes `norm (R,)`."""
    return v * trailing(gain(lengths(v), s, norm), v)


def trailing(values, like):
    """Return `values`, one of each run, unit or input, with as many axes as `like`, all of whose entries go with it."""
    return values.reshape(values.shape + (1,) * (like.dim() - values.dim()))


def product(x, v):
    """Return x vᵀ of every run, `(R, N, O)`; `x` is `(R, N, I)`, or `(N, I)` when all runs share it.

    A shared input makes ONE wide product: for small networks, hundreds of times cheaper than many.
    """
    if x.dim() == 2:
        runs, units, _ = v.shape
        return (x @ v.flatten(0, 1).t()).unflatten(1, (runs, units)).transpose(0, 1)
    return torch.bmm(x, v.transpose(1, 2))


def linear(x, v, s, bias, norm, normalised=True):
    """Return `(R, N, O)`, the layer's output x wᵀ + bias, differentiable as often as wanted.

    `normalised=False` promises that no run of the stack is normalised and saves the scaling.
    """
    out = product(x, v)
    if normalised:
        out = out * gain(lengths(v), s, norm)[:, None]
    return out if bias is None else out + bias[:, None]


@fused.twin("linear")
def layer(x, v, s, bias, norm, normalised, rectified):
    """Return (outputs, products x vᵀ, both `(R, N, O)`, gains, lengths of v, both `(R, O)`) of a linear layer.

    The arguments are those of `linear`; rectified: max(0, ·) of the outputs. Unless `normalised` all others are None.
    """
    a, g, length = product(x, v), None, None
    if normalised:
        length = lengths(v)
        g = gain(length, s, norm)
        out = a * g[:, None] if bias is None else torch.addcmul(bias[:, None], a, g[:, None])
    else:
        a, out = None, a if bias is None else a.add_(bias[:, None])
    return out.relu_() if rectified else out, a, g, length


@fused.twin("linear_step")
def layer_step_(delta, x, v, s, bias, norm, lr, a, g, length, rectified, wanted):
    """Step v, s and bias in place by `delta (R, N, O)`, the gradient of the outputs; return that of x if `wanted`.

    lr (R,); a, g, length: what `layer` returned beside the outputs; rectified: the outputs if they were, else None.
    """
    if rectified is not None:
        delta = torch.ops.aten.threshold_backward(delta, rectified, 0)
    factor = torch.ones_like(s) if g is None else g
    # The input's gradient needs the weights as they were, so it comes before the step.
    grad_x = torch.bmm(delta * factor[:, None], v) if wanted else None
    if bias is not None:
        bias.sub_(lr[:, None] * delta.sum(1))
    if g is not None:
        _normalised_step(v, s, norm, lr, g, length, (delta * a).sum(1))
    step = (delta * (factor * lr[:, None])[:, None]).transpose(1, 2)
    if x.dim() == 2:  # which the runs share: one wide product
        v.flatten(0, 1).addmm_(step.flatten(0, 1), x, alpha=-1)
    else:
        v.baddbmm_(step, x, alpha=-1)
    return grad_x


class _LinearSGD(torch.autograd.Function):
    """The linear layer whose backward pass takes the SGD step, so that no weight gradient is ever stored."""

    @staticmethod
    def forward(ctx, x, v, s, bias, norm, lr, normalised, rectified):
        out, *beside = layer(x, v, s, bias, norm, normalised, rectified)
        # The output only as autograd keeps it: a ring would hold every step's activations until the collector comes.
        ctx.save_for_backward(*[out] * rectified)
        ctx.layer = (x, v, s, bias, norm, lr, *beside)
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, delta):
        (rectified,) = ctx.saved_tensors or (None,)
        return layer_step_(delta, *ctx.layer, rectified, ctx.needs_input_grad[0]), *[None] * 7


def _normalised_step(v, s, norm, lr, g, length, along):
    """Step `s`, and apply to `v`, of these lengths, the part of its step that lies along `v` itself.

    `along` is <v, G> with G the gradient of the effective weights. The gradient of v is
    g (G - v <v, G> / |v|²); this adds the second term, a scaling of the row.
    """
    code, rate, square = norm[:, None], lr[:, None], length.square()
    slope = torch.where(code == EWN, g * along, along / square.sqrt())
    on = (code != NO_WN).to(v.dtype)
    s.sub_(rate * slope * on)
    v.mul_(trailing(1 + on * rate * g * along / square, v))


def linear_sgd(x, v, s, bias, norm, lr, normalised=True, rectified=False):
    """Return what `linear` returns; going backward takes the SGD step at once, with rate `lr (R,)`.

    The weights change in place and no parameter gets a gradient. Every output must take part in the loss.
    rectified: return max(0, ·) of it, which one kernel does together.
    """
    return _LinearSGD.apply(x, v, s, bias, norm, lr, normalised, rectified)


def overruns(channels, sides, stride, padding):
    """Return whether a CPU's gradient by filters of these sides, on so many channels, would not be safe: see `FEW`."""
    return channels < FEW and max(sides) == 1 < stride and not padding


def _spaced(x, w, stride, padding):
    """Return (x, stride) of an equal convolution whose gradient is safe."""
    if stride > 1 and x.device.type == "cpu" and overruns(w.shape[2], w.shape[3:], stride, padding):
        return x[..., ::stride, ::stride], 1
    return x, stride


def conv2d(x, v, s, bias, norm, normalised=True, stride=1, padding=None):
    """Return `(R, N, O, H', W')`, the layer's output x * w + bias, differentiable as often as wanted.

    `x` is `(R, N, I, H, W)`, or `(N, I, H, W)` when all runs share it: then it is ONE convolution with R·O filters.
    Otherwise runs are folded into the channels, with one group of them per run. `padding` by zeros on all sides; None
    is half a filter, which keeps height and width at stride 1. The normalised filter is built, which for a matrix it is
    not: a filter is used at every position of an image, so it is smaller than the activations that would be scaled
    instead, and those need not be kept twice.
    """
    w = weight_norm(v, s, norm) if normalised else v
    (x, stride), bias = _spaced(x, w, stride, padding), None if bias is None else bias.flatten()
    runs, padding = w.shape[0], [side // 2 if padding is None else padding for side in w.shape[3:]]
    if runs == 1 and x.shape[-1] * x.shape[-2] <= small_images.TINY and x.device.type == "cpu":
        out = small_images.convolved(_fold_runs(x), w[0], bias, stride, padding)
        if out is not None:
            return out[None]
    out = torch.conv2d(_fold_runs(x), w.flatten(0, 1), bias, stride, padding, groups=1 if x.dim() == 4 else runs)
    return _unfold_runs(out, runs)


def _fold_runs(x):
    """Return `(N, R·C, H, W)`; a copy of nothing between layers, since a convolution's output lies that way."""
    if x.dim() == 4:
        return x
    return x.squeeze(0) if x.shape[0] == 1 else x.transpose(0, 1).flatten(1, 2)  # half the views for a single run


def _unfold_runs(x, runs):
    """Return `(R, N, C, H, W)` of `x (N, R·C, H, W)`."""
    return x.unsqueeze(0) if runs == 1 else x.unflatten(1, (runs, -1)).transpose(0, 1)


def max_pool(x, side):
    """Return `(R, N, C, H // side, W // side)`, the largest value of every square of `x (R, N, C, H, W)`."""
    return _unfold_runs(torch.max_pool2d(_fold_runs(x), side), len(x))


def average_pool(x, side):
    """Return `(R, N, C, H // side, W // side)`, the mean of every square of `x (R, N, C, H, W)`."""
    return _unfold_runs(torch.nn.functional.avg_pool2d(_fold_runs(x), side), len(x))


def batch_norm(x, weight, bias, mean, variance, training, beside=None, rectified=False):
    """Return x `(R, N, C, H, W)` normalised per run and channel, then times `weight (R, C)` plus `bias (R, C)`.

    Batch normalisation (Ioffe & Szegedy, arXiv 1502.03167), runs folded into the channels. While `training` by the
    statistics of the batch, which move `mean` and `variance` (R, C), in place, by a tenth; else by those two.
    beside: None, or like x, what is added; rectified: return max(0, ·). Both in place, for two fifths of the time.
    """
    flat, folded = [t.view(-1) for t in (mean, variance, weight, bias)], _fold_runs(x)
    if len(folded) == 1:  # the strides of one image can be such that torch (2.15, CPU) computes a wrong gradient
        folded = folded.contiguous()
    out = torch.nn.functional.batch_norm(folded, *flat, training, eps=EPS)
    if beside is not None:
        out.add_(_fold_runs(beside))
    return _unfold_runs(out.relu_() if rectified else out, len(weight))


def log_losses(logits, y):
    """Return every example's log of its cross-entropy, `(R, N, C), (R, N) or (N,) -> (R, N)`.

    With a = log Σ_{j≠y} exp(z_j - z_y) the cross-entropy is softplus(a); its logarithm is a itself when
    the margin is large, so nothing underflows however small the loss (arXiv 2010.12909, appendix).
    """
    return log_softplus(_log_odds(logits, y)[0])


def _log_odds(logits, y):
    """Return a `(R, N)` and the margins z_j - z_y `(R, N, C)`, -inf at the true class."""
    index = y.expand(logits.shape[:2]).unsqueeze(-1)
    margins = (logits - logits.gather(2, index)).scatter(2, index, -math.inf)
    return margins.logsumexp(2), margins


def log_softplus(a):
    """Return log softplus(a) of any shape: the log of a logistic loss whose margin is -a."""
    return torch.where(a < FAR, a, torch.nn.functional.softplus(a.clamp_min(FAR)).log())


@fused.twin("log_loss", far=FAR, negligible=NEGLIGIBLE)
def log_loss_and_gradient(logits, y):
    """Return (log of the mean cross-entropy (R,), its gradient (R, N, C)) of `logits (R, N, C)`, y (R, N) or (N,)."""
    a, margins = _log_odds(logits, y)
    total = log_softplus(a).logsumexp(1)
    # softplus'(a) = sigmoid(a), over the sum of all softplus: every example's pull, in log space
    share = (torch.nn.functional.logsigmoid(a) - total[:, None]).exp()[:, :, None]
    gradient = share * (margins - a[:, :, None]).exp()
    gradient = gradient.scatter(2, y.expand(a.shape).unsqueeze(-1), -share)
    return total - math.log(logits.shape[1]), torch.nn.functional.hardshrink(gradient, NEGLIGIBLE)


class _LogLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx, logits, y):
        loss, gradient = log_loss_and_gradient(logits, y)
        ctx.save_for_backward(gradient)
        return loss

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, upstream):
        (gradient,) = ctx.saved_tensors
        return upstream.to(gradient.dtype)[:, None, None] * gradient, None


def log_loss(logits, y):
    """Return the log of the mean cross-entropy of every run, `(R,)`, with its gradient.

    The gradient of the loss rescaled by e^-ℓ is exp(log_loss - ℓ) times this one: it stays of order one.
    """
    return _LogLoss.apply(logits, y)
