"""Which implementation of a hot function runs: its twin in plain torch, or a Triton kernel that does it in one launch.

A function marked `@twin("name")` is the twin; `lib.kernels` has the list. Its kernel takes over on CUDA where
`MEASURED` has a text: the number by which it beats the twin, eager and compiled. Where it has None the kernel is
unmeasured and must be asked for, by the environment variable PRUNING_KERNELS=triton; "twin" turns all kernels off.
Tensors on a CPU, and types other than float32 and float64, are always the twin's, except that Triton's interpreter
(TRITON_INTERPRET=1, for tests) runs kernels on a CPU when they are asked for. Triton need not be installed.
`python benchmarks/kernels.py` measures. How the kernels fill a GPU is in `triton_kernels`.
"""

import functools
import importlib.util
import os

import torch

from lib.errors import choice

MEASURED = {  # name -> by what it beats its twin and on which GPU; None: unmeasured, so the twin is the default
    "log_loss": None,  # for training: the margin log-loss with its gradient
    "accept": None,  # for pruning: which candidates of a block join the sets of a k-DPP
    "linear": None,  # for descents: product, gain, bias and ReLU of a layer, v read once
    "linear_step": None,  # for descents: the layer's way back with its step, no gradient of v stored
}
CHOICES = ("measured", "triton", "twin")
VARIABLE = "PRUNING_KERNELS"
EXAMPLES = 128  # of a tile of the log-loss: a usual batch
# Examples, units and inputs of a tile of the linear layer; with three stages it takes a third more registers.
# Of its products sums are fused, as cuBLAS has them: Triton 3.9 asks to be told, for 3.10 is to have another default.
LINEAR = {"TN": 64, "TO": 32, "TI": 32, "num_warps": 8, "num_stages": 2, "enable_fp_fusion": True}
DEPTH = 16  # of them are summed at a time: with more, the operands of a product do not fit into the registers
SPAN = 256  # inputs that a program steps the weights of
LAUNCH = {"enable_fp_fusion": False}  # every operation is rounded as torch rounds it, whatever Triton's own default


def picks(name, tensor):
    """Return whether the Triton kernel `name` is to work on `tensor`. ImportError if it must and Triton is missing."""
    asked = choice(f"${VARIABLE}", os.environ.get(VARIABLE, "measured"), CHOICES)
    here = tensor.is_cuda or asked == "triton" and interpreted()
    wanted = asked == "triton" or asked == "measured" and MEASURED[name] is not None
    if not (here and wanted and tensor.dtype in (torch.float32, torch.float64)):
        return False
    if asked == "triton" and not installed():
        raise ImportError(f"the kernel {name} is asked for (by ${VARIABLE}), but Triton is not installed")
    return installed()


def installed():
    """Return whether Triton can be imported."""
    return importlib.util.find_spec("triton") is not None


def interpreted():
    """Return whether kernels run in Triton's interpreter, which must be so before Triton is imported."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def twin(name, **constants):
    """Return a decorator: the function that is its argument serves, unless `picks` takes the kernel of this name.

    Both have the same arguments, the first a tensor, and the same result; `constants` go to the kernel beside them.
    The twin alone is the `__wrapped__` of what is returned.
    """

    def mark(function):
        @functools.wraps(function)
        def chosen(*arguments, **options):
            if picks(name, arguments[0]):
                with torch.cuda.device_of(arguments[0]):  # Triton launches on the current device
                    return LAUNCHERS[name](*arguments, **options, **constants)
            return function(*arguments, **options)

        chosen.kernel = name
        return chosen

    return mark


def _kernels():
    from lib.kernels import triton_kernels

    return triton_kernels


def _tile(number, least=16):
    """Return the power of two that holds `number` entries, as the sides of tiles must be."""
    return max(least, 1 << (number - 1).bit_length())


def _log_loss(logits, y, far, negligible):
    """Return (log-losses (R,), gradient (R, N, C)) of logits (R, N, C) and labels (R, N) or (N,); grid (R,)."""
    runs, examples, classes = logits.shape
    y = y.expand(runs, examples)
    loss, gradient = logits.new_empty(runs), torch.empty_like(logits, memory_format=torch.contiguous_format)
    _kernels().log_loss[(runs,)](
        logits, y, loss, gradient, *logits.stride(), *y.stride(), examples, classes, FAR=far, NEGLIGIBLE=negligible,
        N=min(EXAMPLES, _tile(examples)), C=_tile(classes, 2), num_warps=8, **LAUNCH,
    )  # fmt: skip
    return loss, gradient


def _changed_in_place(**tensors):
    for what, tensor in tensors.items():
        if tensor is not None and not tensor.is_contiguous():
            raise ValueError(f"the {what} of shape {tuple(tensor.shape)} is changed in place and must be contiguous")


def _accept(products, coins, left):
    """Return (taken (M, b), root (M, b, b)) of products (M, b, b), coins (M, b), left (M,); grid (M,)."""
    rows, count = coins.shape
    products, taken = products.contiguous(), torch.empty(coins.shape, dtype=torch.bool, device=coins.device)
    root = torch.empty_like(products)
    _kernels().accept[(rows,)](
        products, coins.contiguous(), left.long().contiguous(), taken.view(torch.uint8), root, count,
        B=_tile(count), num_warps=8, **LAUNCH,
    )  # fmt: skip
    return taken, root


def _linear(x, v, s, bias, norm, normalised, rectified):
    """Return (out, products (R, N, O), gains, lengths (R, O)) of x (R, N, I) or (N, I) and v (R, O, I)."""
    (runs, units, inputs), examples = v.shape, x.shape[-2]
    _changed_in_place(weight=v, scale=s, bias=bias)  # on the way back
    out, beside = v.new_empty(runs, examples, units), [None] * 3
    if normalised:
        beside = [torch.empty_like(out), torch.empty_like(s), torch.empty_like(s)]
    tile, x = LINEAR | {"TI": DEPTH}, x.contiguous()
    _kernels().linear[(-(-units // tile["TO"]), -(-examples // tile["TN"]), runs)](
        x, v, s, bias, norm, out, *beside, _by_run(x), examples, inputs, units,
        NORMALISED=normalised, BIASED=bias is not None, RELU=rectified, **tile,
    )  # fmt: skip
    return out, *beside


def _linear_step(delta, x, v, s, bias, norm, lr, products, gains, lengths, rectified, wanted):
    """Step v, s and bias in place; return the gradient of x (R, N, I) if `wanted`, made before the step."""
    (runs, units, inputs), examples, slope = v.shape, x.shape[-2], None
    _changed_in_place(weight=v, scale=s, bias=bias)
    delta, x = delta.contiguous(), x.contiguous()
    sizes, chosen = (examples, inputs, units), {"NORMALISED": gains is not None, "RELU": rectified is not None}
    if wanted:
        slope = v.new_empty(runs, examples, inputs)
        grid = -(-inputs // LINEAR["TI"]), -(-examples // LINEAR["TN"]), runs
        _kernels().linear_back[grid](delta, v, gains, rectified, slope, *sizes, **chosen, **LINEAR | {"TO": DEPTH})
    _kernels().linear_step[(-(-units // LINEAR["TO"]), -(-inputs // SPAN), runs)](
        delta, x, v, s, bias, norm, lr.contiguous(), products, gains, lengths, rectified, _by_run(x), *sizes,
        BIASED=bias is not None, SPAN=SPAN, **chosen, **LINEAR | {"TN": DEPTH},
    )  # fmt: skip
    return slope


def _by_run(x):
    """Return how far apart the inputs of two runs are, 0 where all share x `(N, I)`."""
    return x.stride(0) if x.dim() == 3 else 0


LAUNCHERS = {"log_loss": _log_loss, "accept": _accept, "linear": _linear, "linear_step": _linear_step}
