"""The Triton kernels against their twins, forward and backward, on odd shapes: interpreted, and on CUDA where it is.

Triton decides at its import whether it interprets, so on a CPU the tests of kernels run in a process of their own,
which `test_the_kernels_in_the_interpreter` starts; in this one they skip.
"""

import importlib.util
import math
import os
import re
import subprocess
import sys
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
from packaging.version import Version

import lib
from lib import capture, dpp, fused, twins

INTERPRETED, CUDA = os.environ.get("TRITON_INTERPRET") == "1", torch.cuda.is_available()
DEVICE = "cpu" if INTERPRETED else "cuda"
TRITON = importlib.util.find_spec("triton") is not None


def before(package, version):
    """Return whether a package is there, and older than a version."""
    there = importlib.util.find_spec(package) is not None
    return there and Version(importlib.import_module(package).__version__) < Version(version)


# What Triton's interpreter asked of NumPy until 3.6, which torch 2.11 has, NumPy refuses from 2.4 on.
BROKEN = before("triton", "3.7") and not before("numpy", "2.4")
kernel = pytest.mark.skipif(
    not (INTERPRETED or CUDA and TRITON), reason="no CUDA GPU with Triton here; the interpreter's process tests kernels"
)
SHAPES = [(1, 1, 2), (3, 37, 10), (2, 130, 3), (1, 300, 37)]  # (R, N, C): less than a tile, more than one, odd


@pytest.mark.skipif(INTERPRETED, reason="this is that process")
@pytest.mark.skipif(not TRITON, reason="Triton is not installed: its kernels are not tested")
@pytest.mark.skipif(BROKEN, reason="Triton 3.6 interprets with NumPy before 2.4 alone: kernels are not tested")
def test_the_kernels_in_the_interpreter():
    root = Path(__file__).resolve().parents[1]
    files = str(Path(__file__)), f"{Path(__file__).with_name('test_card.py')}::test_a_kernel_runs_on_it"
    old = "ignore:Conversion of an array with ndim > 0 to a scalar:DeprecationWarning"  # before NumPy refuses
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-W", old, *files]
    done = subprocess.run(command, cwd=root, env=os.environ | {"TRITON_INTERPRET": "1"}, capture_output=True, text=True)
    assert done.returncode == 0 and " passed" in done.stdout, done.stdout + done.stderr


ARCHITECTURES = (80, 90, 100)
SIZES = ["run_x", "examples", "inputs", "units"]
LAYER = {"NORMALISED": True, "RELU": True}


def _types(number, *names, **others):
    return dict.fromkeys(names, f"*{number}") | others


COMPILED = {  # kernel: (types of what varies, constants and options as launched, registers a thread, shared bytes)
    "log_loss": (
        _types("fp32", "logits", "loss", "gradient", labels="*i64")
        | dict.fromkeys(["run_z", "example_z", "run_y", "examples", "classes"], "i32"),
        {"class_z": 1, "example_y": 1, "FAR": -40.0, "NEGLIGIBLE": 1e-28, "N": 128, "C": 16, "num_warps": 8}
        | fused.LAUNCH, 48, 64,
    ),
    "accept": (
        _types("fp64", "products", "coins", "root", left="*i64", taken="*u8", count="i32"),
        {"B": 64, "num_warps": 8} | fused.LAUNCH, 255, 1024,
    ),
    "linear": (
        _types("fp32", "x", "v", "scale", "bias", "out", "products", "gains", "lengths", norm="*i8")
        | dict.fromkeys(SIZES, "i32"),
        LAYER | {"BIASED": True} | fused.LINEAR | {"TI": fused.DEPTH}, 80, 16384,
    ),
    "linear_back": (
        _types("fp32", "delta", "v", "gains", "out", "slope") | dict.fromkeys(SIZES[1:], "i32"),
        LAYER | fused.LINEAR | {"TO": fused.DEPTH}, 80, 16384,
    ),
    "linear_step": (
        _types("fp32", "delta", "x", "v", "scale", "bias", "lr", "products", "gains", "lengths", "out", norm="*i8")
        | dict.fromkeys(SIZES, "i32"),
        LAYER | {"BIASED": True, "SPAN": fused.SPAN} | fused.LINEAR | {"TN": fused.DEPTH}, 80, 16384,
    ),
}  # fmt: skip


@pytest.mark.skipif(INTERPRETED, reason="the compiler is for the other process")
@pytest.mark.skipif(not TRITON, reason="Triton is not installed: its kernels are not compiled")
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("name", COMPILED)
def test_a_kernel_compiles_for_a_gpu_that_need_not_be_here(name, architecture, tmp_path, monkeypatch, capsys):
    """The interpreter takes what the compiler refuses: types that change in a loop, sizes of one as constants."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    monkeypatch.setenv("TRITON_DUMP_PTXAS_LOG", "1")
    from triton import compile
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from lib import triton_kernels

    (types, constants, registers, shared), kernel = COMPILED[name], getattr(triton_kernels, name)
    options = {key: value for key, value in constants.items() if key not in kernel.arg_names}
    fixed = {(kernel.arg_names.index(key),): value for key, value in constants.items() if key in kernel.arg_names}
    signature = {argument: types.get(argument, "constexpr") for argument in kernel.arg_names}
    built = compile(ASTSource(kernel, signature, fixed), GPUTarget("cuda", architecture, 32), options)
    said = capsys.readouterr().out
    used, spilled = (re.findall(pattern, said) for pattern in (r"Used (\d+) registers", r"(\d+) bytes spill"))
    with capsys.disabled():
        print(f"\n{name}, sm_{architecture}: {used[0]} registers of each thread, {built.metadata.shared} bytes shared")
    assert f".target sm_{architecture}" in built.asm["ptx"] and built.asm["cubin"]
    assert int(used[0]) <= registers and built.metadata.shared <= shared and set(spilled) == {"0"}


@pytest.mark.skipif(not TRITON, reason="Triton is not installed")
def test_every_kernel_is_compiled():
    from lib import triton_kernels

    source = Path(triton_kernels.__file__).read_text("utf-8")
    assert re.findall(r"@triton.jit\ndef ([a-z]\w*)", source) == list(COMPILED)


def both(function, *arguments):
    """Return what the kernel gives and what the twin gives."""
    with patch.dict(os.environ, PRUNING_KERNELS="triton"):
        mine = function(*arguments)
    with patch.dict(os.environ, PRUNING_KERNELS="twin"):
        return mine, function(*arguments)


def logits(shape, dtype=torch.float64, seed=0, scale=3.0):
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(shape, generator=generator, dtype=torch.float64) * scale
    y = torch.randint(shape[2], shape[:2], generator=generator)
    return z.to(DEVICE, dtype), y.to(DEVICE)


# ---- the margin log-loss


@kernel
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("shape", SHAPES)
def test_log_loss_is_its_twin(shape, dtype):
    z, y = logits(shape, dtype)
    (loss, gradient), (expected, slope) = both(twins.log_loss_and_gradient, z, y)
    near = {"rtol": 1e-11, "atol": 1e-13} if dtype == torch.float64 else {"rtol": 2e-5, "atol": 2e-6}
    torch.testing.assert_close(loss, expected, **near)
    torch.testing.assert_close(gradient, slope, **near)


@kernel
def test_log_loss_has_the_gradient_of_autograd():
    z, y = logits((2, 3, 3))
    z.requires_grad_()
    with patch.dict(os.environ, PRUNING_KERNELS="triton"):
        assert torch.autograd.gradcheck(lambda z: twins.log_loss(z, y), z)
        (mine,) = torch.autograd.grad((twins.log_loss(z, y) * torch.tensor([2.0, -1.0], device=DEVICE)).sum(), z)
    losses = torch.nn.functional.cross_entropy(z.transpose(1, 2), y, reduction="none").mean(1).log()
    (torchs,) = torch.autograd.grad(2 * losses[0] - losses[1], z)
    torch.testing.assert_close(mine, torchs)


@kernel
def test_log_loss_takes_any_strides_and_shared_labels():
    z, y = logits((3, 7, 4))
    turned = z.permute(1, 0, 2).contiguous().transpose(0, 1)
    halved = torch.stack([z, z], 3)[..., 0]
    for strided in (turned, halved, z[:1].expand(3, -1, -1)):
        assert not strided.is_contiguous()
        (loss, gradient), (expected, slope) = both(twins.log_loss_and_gradient, strided, y[0])
        torch.testing.assert_close(loss, expected), torch.testing.assert_close(gradient, slope)


@kernel
def test_log_loss_from_e_to_the_minus_300_to_e_to_the_90():
    """Float32 margins of both signs, at which every direct formula under- or overflows; one lost example rules all."""
    z = torch.zeros(4, 3, 3, device=DEVICE)
    z[0, :, 0], z[1, :, 0], z[2, :, 0], z[3, :2, 0], z[3, 2, 1] = 300.0, -90.0, 45.0, 300.0, 80.0
    z[0, :, 2] = -80.0
    y = torch.zeros(3, dtype=torch.int64, device=DEVICE)
    (loss, gradient), (expected, slope) = both(twins.log_loss_and_gradient, z, y)
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(gradient, slope, rtol=2e-5, atol=1e-27)
    assert loss[0] < -299 and gradient[0, :, 0].sum() == pytest.approx(-1, rel=1e-4)
    assert bool((gradient[0, :, 2] == 0).all()), "what is negligible is exactly zero"


@kernel
@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of NumPy, which the interpreter computes with
def test_log_loss_does_not_hide_what_is_no_number():
    z, y = logits((3, 5, 4), torch.float32)
    z[0, 2, 1], z[1, 3, y[1, 3]] = torch.nan, torch.inf
    (loss, gradient), (expected, slope) = both(twins.log_loss_and_gradient, z, y)
    assert loss[0].isnan() and gradient[0, 2].isnan().any()
    assert torch.equal(loss.isfinite(), expected.isfinite()) and loss[2].isfinite()
    torch.testing.assert_close(gradient[2], slope[2], rtol=2e-5, atol=2e-6)


# ---- the linear layer of a descent

LAYERS = [  # (runs, examples, inputs, units): less than a tile, more than one in each direction, odd
    (["EWN"], 1, 1, 37), (["no-WN"], 5, 3, 1), (["EWN", "SWN", "no-WN"], 19, 37, 10), (["SWN"], 70, 300, 37),
]  # fmt: skip


def linear(types, examples, inputs, units, bias=True, shared=False, dtype=torch.float64):
    """Return (x, v, s, bias, codes, rates, gradient of the outputs), lengths far from one, a sign change in s."""
    generator, runs = torch.Generator().manual_seed(0), len(types)
    shapes = ((1 if shared else runs, examples, inputs), (runs, units, inputs), (runs, units), (runs, units))
    x, v, s, b = (torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes)
    delta = torch.randn(runs, examples, units, generator=generator, dtype=torch.float64)
    tensors = [x[0] if shared else x, 3 * v, s, b, torch.linspace(0.01, 0.03, runs, dtype=torch.float64), delta]
    x, v, s, b, lr, delta = (tensor.to(DEVICE, dtype) for tensor in tensors)
    codes = torch.tensor([twins.NORMS[kind] for kind in types], dtype=torch.int8, device=DEVICE)
    return x, v, s, b if bias else None, codes, lr, delta


def stepped(choice, given, rectified, wanted=True):
    """Return all that a pass there and back gives and changes."""
    x, v, s, b, codes, lr, delta = (t if t is None else t.clone() for t in given)
    with patch.dict(os.environ, PRUNING_KERNELS=choice):
        out, *beside = twins.layer(x, v, s, b, codes, bool(codes.any()), rectified)
        back = twins.layer_step_(delta, x, v, s, b, codes, lr, *beside, out if rectified else None, wanted)
    return [tensor for tensor in (out, *beside, back, v, s, b) if tensor is not None]


@kernel
@pytest.mark.parametrize("bias, shared, rectified", [(True, False, True), (False, True, False), (True, True, True)])
@pytest.mark.parametrize("shape", LAYERS)
def test_the_linear_layer_and_its_step_are_their_twins(shape, bias, shared, rectified):
    for dtype in (torch.float64, torch.float32):
        given = linear(*shape, bias, shared, dtype)
        near = {"rtol": 1e-10, "atol": 1e-11} if dtype == torch.float64 else {"rtol": 2e-4, "atol": 2e-4}
        for mine, expected in zip(*(stepped(choice, given, rectified) for choice in ("triton", "twin")), strict=True):
            torch.testing.assert_close(mine, expected, **near)


@kernel
@pytest.mark.parametrize("types", [["EWN", "SWN", "no-WN"], ["no-WN"]])
def test_the_kernels_take_a_step_of_sgd_on_the_normalised_weights(types):
    """Against autograd through plain torch, with the weights as they are defined."""
    x, v, s, b, codes, lr, delta = linear(types, 7, 37, 5)
    leaves = [tensor.clone().requires_grad_() for tensor in (x, v, s, b)]
    w = twins.weight_norm(leaves[1], leaves[2], codes)
    expected = torch.relu(torch.einsum("rni,roi->rno", leaves[0], w) + leaves[3][:, None])
    slopes = torch.autograd.grad((expected * delta).sum(), leaves, allow_unused=True)
    found = [tensor.clone().requires_grad_() for tensor in (x, v, s, b)]
    with patch.dict(os.environ, PRUNING_KERNELS="triton"):
        out = twins.linear_sgd(*found, codes, lr, bool(codes.any()), True)
        (out * delta).sum().backward()
    torch.testing.assert_close(out, expected)
    torch.testing.assert_close(found[0].grad, slopes[0])
    for new, old, slope in zip(found[1:], leaves[1:], slopes[1:], strict=True):
        rate = lr.reshape(-1, *[1] * (old.dim() - 1))
        torch.testing.assert_close(new.detach(), (old if slope is None else old - rate * slope).detach())


@kernel
def test_the_linear_layer_takes_any_strides_and_hides_no_nan():
    x, v, s, b, codes, lr, delta = linear(["EWN", "SWN"], 5, 7, 3)
    turned = [x.mT.contiguous().mT, v, s, b, codes, lr.expand(2), delta.mT.contiguous().mT]
    for mine, expected in zip(
        stepped("triton", turned, True), stepped("twin", (x, v, s, b, codes, lr, delta), True), strict=True
    ):
        torch.testing.assert_close(mine, expected)
    x[0, 1, 2] = torch.nan
    out = stepped("triton", (x, v, s, b, codes, lr, delta), True)[0]
    assert out[0, 1].isnan().all() and out[1].isfinite().all() and out[0, 0].isfinite().all()
    turned = v.mT.contiguous().mT
    with pytest.raises(ValueError, match="contiguous"):
        fused.LAUNCHERS["linear"](x, turned, s, b, codes, True, True)
    with pytest.raises(ValueError, match="contiguous"):
        fused.LAUNCHERS["linear_step"](delta, x, turned, s, b, codes, lr, *[None] * 4, False)


# ---- candidates of a k-DPP


def candidates(rows, count, seed=0):
    """Return products of `count` candidates `(rows, b, b)`, the last a copy of the first, coins, and how many may."""
    generator = torch.Generator().manual_seed(seed)
    vectors = torch.randn(rows, count, count + 2, generator=generator, dtype=torch.float64)
    vectors[:, -1] = vectors[:, 0] if count > 1 else vectors[:, -1]
    coins = torch.rand(rows, count, generator=generator, dtype=torch.float64)
    left = torch.arange(rows) % (count + 1) + 1
    return (vectors @ vectors.mT).to(DEVICE), coins.to(DEVICE), left.to(DEVICE)


@kernel
@pytest.mark.parametrize("rows, count", [(1, 1), (3, 2), (2, 37)])
def test_candidates_are_taken_as_by_the_twin(rows, count):
    products, coins, left = candidates(rows, count)
    taken, root = fused.LAUNCHERS["accept"](products, coins, left)
    with patch.dict(os.environ, PRUNING_KERNELS="twin"):
        expected, factor = dpp.accept(products, coins, left)
    assert torch.equal(taken, expected) and bool((taken.sum(1) <= left).all()) and bool(taken[:, 0].all())
    torch.testing.assert_close(root, factor, rtol=1e-9, atol=1e-11)
    inner = root * taken[:, :, None]
    torch.testing.assert_close(inner @ inner.mT, products * taken[:, :, None] * taken[:, None], rtol=1e-9, atol=1e-9)
    assert count < 3 or bool((~taken).any()), "some are refused"


@kernel
def test_candidates_come_in_any_strides():
    products, coins, left = candidates(3, 7)
    taken, root = fused.LAUNCHERS["accept"](products, coins, left)
    turned = fused.LAUNCHERS["accept"](products.mT, coins.mT.contiguous().mT, left.int())
    assert torch.equal(turned[0], taken)
    torch.testing.assert_close(turned[1], root)


# ---- who serves


def test_kernels_do_not_serve_a_cpu_unless_interpreted(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setitem(fused.MEASURED, "log_loss", "2x on a GPU")
    for choice in fused.CHOICES:
        with patch.dict(os.environ, PRUNING_KERNELS=choice):
            assert not fused.picks("log_loss", torch.zeros(1))


class OnCuda(torch.Tensor):
    """A tensor that says it is on a GPU."""

    is_cuda = True


def test_an_unmeasured_kernel_must_be_asked_for(monkeypatch):
    monkeypatch.delenv(fused.VARIABLE, raising=False)
    monkeypatch.setattr(fused, "installed", lambda: True)
    tensor = torch.zeros(1).as_subclass(OnCuda)
    monkeypatch.setitem(fused.MEASURED, "accept", None)
    assert not fused.picks("accept", tensor)
    monkeypatch.setitem(fused.MEASURED, "accept", "2x on a GPU")
    assert fused.picks("accept", tensor) and not fused.picks("accept", tensor.to(torch.bfloat16))
    monkeypatch.setenv(fused.VARIABLE, "twin")
    assert not fused.picks("accept", tensor)
    with patch.dict(os.environ, PRUNING_KERNELS="triton"):
        assert fused.picks("log_loss", tensor)
    monkeypatch.setenv(fused.VARIABLE, "fast")
    with pytest.raises(ValueError, match="fast"):
        fused.picks("accept", tensor)


def test_a_kernel_asked_for_without_triton_is_an_error(monkeypatch):
    monkeypatch.setattr(fused, "installed", lambda: False)
    monkeypatch.setitem(fused.MEASURED, "accept", "2x on a GPU")
    tensor = torch.zeros(1).as_subclass(OnCuda)
    assert not fused.picks("accept", tensor)
    with patch.dict(os.environ, PRUNING_KERNELS="triton"), pytest.raises(ImportError, match="Triton is not installed"):
        fused.picks("accept", tensor)


def test_the_library_works_where_triton_cannot_be_imported(monkeypatch):
    monkeypatch.setitem(sys.modules, "triton", None)
    assert not fused.installed()
    loss = twins.log_loss(torch.zeros(1, 2, 4), torch.tensor([0, 1]))
    assert float(loss) == pytest.approx(math.log(math.log(4)), abs=1e-6)
    sources = {path.name: path.read_text("utf-8") for path in Path(fused.__file__).parents[1].rglob("*.py")}
    assert [name for name, text in sources.items() if "import triton\n" in text] == ["triton_kernels.py"]
    assert [name for name, text in sources.items() if "import triton_kernels" in text] == ["fused.py"]
    assert "\n    from lib.kernels import triton_kernels" in sources["fused.py"], "only when a kernel is asked for"


def test_every_kernel_has_a_launcher():
    assert set(fused.MEASURED) == set(fused.LAUNCHERS)


def test_the_screen_says_which_kernel_there_is_its_twin_and_its_state():
    screen = lib.kernels.__doc__
    rows = re.findall(r"^    (\w+(?: recorded)?) +(\w+)\.(\w+) +(\S.*)$", screen, re.MULTILINE)
    said = {name: state for name, *_, state in rows}
    states = fused.MEASURED | {f"{loop} recorded": measured for loop, measured in capture.MEASURED.items()}
    assert said == {name: measured or "unmeasured" for name, measured in states.items()}
    for name, module, twin, _ in rows:
        assert getattr(getattr(lib, module), twin).kernel == name if name in fused.MEASURED else True
    marked = [getattr(getattr(lib, module), twin) for name, module, twin, _ in rows]
    assert all(callable(function) for function in marked) and len(screen.splitlines()) < 40, "one screen"
