"""The kernels against torch's autograd, literal formulas and float64."""

import math

import pytest
import torch

from lib import small_images, twins

TYPES = ["no-WN", "SWN", "EWN"]
CODES = torch.tensor([twins.NORMS[t] for t in TYPES], dtype=torch.int8)


def layer(runs=3, inputs=5, units=37, bias=True, seed=0):
    """Return v, s, bias in float64 with lengths far from one and a sign change in s."""
    g = torch.Generator().manual_seed(seed)
    v = torch.randn(runs, units, inputs, generator=g, dtype=torch.float64) * 3
    s = torch.randn(runs, units, generator=g, dtype=torch.float64)
    return v, s, torch.randn(runs, units, generator=g, dtype=torch.float64) if bias else None


def literal_weights(v, s, norm):
    """Return the effective weights unit by unit, as the definition says."""
    w = torch.empty_like(v)
    for r in range(v.shape[0]):
        for u in range(v.shape[1]):
            length = math.sqrt(sum(float(a) ** 2 for a in v[r, u].flatten()))
            factor = {0: 1.0, 1: float(s[r, u]) / length, 2: math.exp(float(s[r, u])) / length}[int(norm[r])]
            w[r, u] = factor * v[r, u]
    return w


@pytest.mark.parametrize("shape", [(5,), (2, 3, 3)])
def test_weight_norm_is_the_definition(shape):
    v = torch.randn(3, 7, *shape, dtype=torch.float64)
    s = torch.randn(3, 7, dtype=torch.float64)
    torch.testing.assert_close(twins.weight_norm(v, s, CODES), literal_weights(v, s, CODES), rtol=1e-12, atol=0)
    norms = twins.unit_norms(v, s, CODES)
    torch.testing.assert_close(norms, literal_weights(v, s, CODES).flatten(2).norm(dim=-1), rtol=1e-12, atol=0)


def test_gradients_obey_the_published_identities():
    """EWN: ds = <W, G>, dv = exp(s)/|v| (I - v̂v̂ᵀ) G; SWN: ds = <v̂, G>, dv = s/|v| (I - v̂v̂ᵀ) G."""
    v, s, _ = layer()
    v.requires_grad_(), s.requires_grad_()
    w = twins.weight_norm(v, s, CODES)
    g = torch.randn_like(w)
    dv, ds = torch.autograd.grad(w, (v, s), g)
    length = v.norm(dim=-1, keepdim=True)
    unit = v / length
    tangent = g - unit * (unit * g).sum(-1, keepdim=True)
    factor = torch.stack([s[1], s[2].exp()])[:, :, None] / length[1:]
    torch.testing.assert_close(dv[0], g[0])
    torch.testing.assert_close(dv[1:], factor * tangent[1:])
    torch.testing.assert_close(ds[0], torch.zeros_like(ds[0]))
    torch.testing.assert_close(ds[1], (unit * g).sum(-1)[1])
    torch.testing.assert_close(ds[2], (w * g).sum(-1)[2])


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_linear_is_a_loop_of_torch_layers(shared, bias):
    v, s, b = layer(bias=bias)
    x = torch.randn(11, 5, dtype=torch.float64) if shared else torch.randn(3, 11, 5, dtype=torch.float64)
    out = twins.linear(x, v, s, b, CODES)
    w = literal_weights(v, s, CODES)
    for r in range(3):
        mine = x if shared else x[r]
        torch.testing.assert_close(out[r], torch.nn.functional.linear(mine, w[r], b[r] if bias else None))


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("types", [TYPES, ["no-WN"], ["EWN"], ["SWN", "EWN"], ["no-WN"] * 2])
def test_the_step_in_the_backward_pass_is_a_step_of_sgd(types, shared, bias):
    runs, units = len(types), 37
    norm = torch.tensor([twins.NORMS[t] for t in types], dtype=torch.int8)
    lr = torch.linspace(0.1, 0.3, runs, dtype=torch.float64)
    v, s, b = layer(runs, 5, units, bias)
    x = torch.randn(*(() if shared else (runs,)), 11, 5, dtype=torch.float64, requires_grad=not shared)
    target = torch.randn(runs, 11, units, dtype=torch.float64)

    leaves = [t.clone().requires_grad_() for t in (v, s, b) if t is not None]
    given = dict(zip(("v", "s", "bias"), leaves, strict=False)) | ({} if bias else {"bias": None})
    loss = (twins.linear(x, norm=norm, **given) * target).sin().sum()
    grads = torch.autograd.grad(loss, [*leaves, *([] if shared else [x])])
    expected = [p.detach() - lr.reshape(-1, *[1] * (p.dim() - 1)) * g for p, g in zip(leaves, grads, strict=False)]

    stepped = [t.clone().requires_grad_() for t in (v, s, b) if t is not None]
    given = dict(zip(("v", "s", "bias"), stepped, strict=False)) | ({} if bias else {"bias": None})
    out = twins.linear_sgd(x, norm=norm, lr=lr, normalised=bool(norm.any()), **given)
    (out * target).sin().sum().backward()
    for new, wanted in zip(stepped, expected, strict=True):
        torch.testing.assert_close(new.detach(), wanted, rtol=1e-11, atol=1e-12)
        assert new.grad is None
    if not shared:
        torch.testing.assert_close(x.grad, grads[-1], rtol=1e-11, atol=1e-12)


def test_small_steps_never_shorten_v():
    """The gradient of v is orthogonal to v, so |v| can only grow."""
    v, s, b = layer(2)
    norm = torch.tensor([1, 2], dtype=torch.int8)
    v.requires_grad_()
    lengths = [twins.lengths(v.detach())]
    for _ in range(5):
        out = twins.linear_sgd(torch.randn(9, 5, dtype=torch.float64), v, s, b, norm, torch.full((2,), 1e-3), True)
        out.tanh().sum().backward()
        lengths.append(twins.lengths(v.detach()))
    assert all(bool((b >= a - 1e-12).all()) for a, b in zip(lengths, lengths[1:], strict=False))


def test_log_losses_are_the_log_of_torchs_cross_entropy():
    logits = torch.randn(3, 37, 10, dtype=torch.float64) * 5
    y = torch.randint(10, (37,))
    expected = torch.stack([torch.nn.functional.cross_entropy(z, y, reduction="none").log() for z in logits])
    torch.testing.assert_close(twins.log_losses(logits, y), expected, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(twins.log_loss(logits, y), expected.exp().mean(1).log(), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("runs, n, classes", [(1, 1, 2), (3, 37, 10), (2, 5, 3)])
def test_log_loss_has_torchs_gradient(runs, n, classes):
    logits = (torch.randn(runs, n, classes, dtype=torch.float64) * 3).requires_grad_()
    y = torch.randint(classes, (runs, n))
    (mine,) = torch.autograd.grad(twins.log_loss(logits, y).sum(), logits)
    losses = torch.nn.functional.cross_entropy(logits.transpose(1, 2), y, reduction="none").mean(1)
    (torchs,) = torch.autograd.grad(losses.log().sum(), logits)
    torch.testing.assert_close(mine, torchs, rtol=1e-9, atol=1e-12)


def test_a_loss_of_e_to_the_minus_300_in_float32():
    """Margins of 300 underflow any direct formula; the log-loss is minus the margin, its gradient one."""
    logits = torch.zeros(1, 4, 3)
    logits[0, :, 0] = 300.0
    logits[0, :, 2] = -50.0
    logits.requires_grad_()
    y = torch.zeros(4, dtype=torch.int64)
    loss = twins.log_loss(logits, y)
    assert abs(loss.item() + 300) < 1e-4
    loss.sum().backward()
    torch.testing.assert_close(logits.grad[0, :, 0], torch.full((4,), -0.25))
    torch.testing.assert_close(logits.grad[0, :, 1], torch.full((4,), 0.25))
    assert bool((logits.grad[0, :, 2] < 1e-20).all())


def test_a_lost_example_does_not_make_the_gradient_overflow():
    """One example of loss 80 among examples of loss e^-300: it takes the whole gradient, and all is finite."""
    logits = torch.zeros(1, 3, 2)
    logits[0, :2, 0], logits[0, 2, 1] = 300.0, 80.0
    logits.requires_grad_()
    loss = twins.log_loss(logits, torch.zeros(3, dtype=torch.int64))
    loss.sum().backward()
    assert math.isclose(loss.item(), math.log(80 / 3), rel_tol=1e-6)
    assert bool(logits.grad.isfinite().all())
    torch.testing.assert_close(logits.grad[0, 2], torch.tensor([-1 / 80, 1 / 80]))


def test_what_is_set_to_zero_in_a_gradient_is_negligible():
    """Entries under 1e-28 are cut to keep denormal numbers out of the products; nothing larger changes."""
    logits = torch.tensor([[[60.0, 0.0], [10.0, 0.0], [0.0, 0.0]]], requires_grad=True)
    twins.log_loss(logits, torch.zeros(3, dtype=torch.int64)).sum().backward()
    wide = logits.detach().double().requires_grad_()
    torch.nn.functional.cross_entropy(wide[0], torch.zeros(3, dtype=torch.int64)).log().backward()
    # Column 1 alone: at the true class float64 itself rounds softmax - 1 to nothing.
    torch.testing.assert_close(logits.grad[..., 1].double(), wide.grad[..., 1], rtol=1e-5, atol=1e-27)


@pytest.mark.parametrize("examples", [small_images.MANY - 1, small_images.MANY])
@pytest.mark.parametrize("biased", [True, False])
def test_images_of_four_places_are_convolved_as_torch_does(examples, biased):
    """Values, gradients and second derivatives."""
    g, shapes = torch.Generator().manual_seed(0), [(1, examples, 5, 2, 2), (1, 7, 5, 3, 3), (1, 7)]
    x, w, bias = (torch.randn(shape, generator=g, dtype=torch.float64, requires_grad=True) for shape in shapes)
    leaves, found = [x, w, *[bias] * biased], []
    for out in (
        twins.conv2d(x, w, None, bias if biased else None, None, False),
        torch.nn.functional.conv2d(x[0], w[0], bias[0] if biased else None, padding=1)[None],
    ):
        slopes = torch.autograd.grad(out.sin().sum(), leaves, create_graph=True)
        along = sum(slope.square().sum() for slope in slopes)
        found.append([out, *slopes, *torch.autograd.grad(along, leaves)])
    torch.testing.assert_close(*found, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("training", [True, False])
def test_the_gradient_of_batch_norm_on_one_image_of_odd_strides(training):
    """Torch's own gradient is wrong there: strides of a channels-last image whose first axis has lost its own."""
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(1, 3, 4, 4, generator=generator).contiguous(memory_format=torch.channels_last)
    odd = image.as_strided(image.shape, (3, 1, 12, 3)).requires_grad_()
    plain = image.detach().contiguous().requires_grad_()
    numbers = torch.linspace(1, 2, 3)[None], torch.zeros(1, 3)
    pull = torch.arange(48.0).reshape(1, 3, 4, 4).sin()
    for x in (odd, plain):
        out = twins.batch_norm(x[None], *numbers, torch.zeros(1, 3), torch.ones(1, 3), training)
        out[0].backward(pull)
    assert torch.allclose(odd.grad, plain.grad, atol=1e-6)
