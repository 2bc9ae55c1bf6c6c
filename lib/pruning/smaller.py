"""Smaller for real: a network before and after shrinking, as files, and as torch and ONNX Runtime run them."""

import statistics
import timeit
from pathlib import Path

import torch

from lib.errors import ParameterError
from lib.networks import plain
from lib.pruning import shrink
from lib.pruning.hops import unwrapped
from lib.pruning.masks import trailing


@torch.no_grad()
def table(net, masks, x, folder, run=0, seconds=0.2, onnx=True):
    """Return what shrinking one run of `net` under `masks` saves: a data frame with the rows "full" and "shrunk".

    bytes, onnx_bytes: of the files in `folder/full` and `folder/shrunk`, both read back before they are run; macs: the
    multiplications of one example; torch_ms, onnx_ms: the median of `seconds` of passes of `x (N, I)` through each, on
    the CPU, with torch's number of threads; torch_apart, onnx_apart: the largest difference of a logit from those of
    the full network in torch. Without `onnx` the columns of ONNX are left out; with it a ParameterError where onnx,
    onnxscript or onnxruntime is not installed.
    """
    import pandas as pd

    x, found, expected = x.cpu(), {}, None
    for name, made in (("full", shrink.unshrunk), ("shrunk", shrink.shrink)):
        file = plain.save(made(net, masks, run), Path(folder) / name)
        module = plain.load(file.parent).eval()
        forms, expected = {"torch": module}, module(x) if expected is None else expected
        found[name] = {"bytes": file.stat().st_size, "macs": plain.macs(module, x.shape[1])}
        if onnx:
            exported = plain.onnx(plain.load(file.parent), file.parent, x.shape[1])
            forms["onnx"], found[name]["onnx_bytes"] = runtime(exported), exported.stat().st_size
        for form, function in forms.items():
            found[name][f"{form}_ms"] = 1000 * _median(function, x, seconds)
            found[name][f"{form}_apart"] = float((function(x) - expected).abs().max())
    return pd.DataFrame.from_dict(found, orient="index")


def _median(function, x, seconds):
    """Return the median of the seconds of passes that together take so long, of at least three."""
    calls = timeit.Timer(lambda: function(x))
    once = min(calls.repeat(2, 1))
    return statistics.median(calls.repeat(max(3, int(seconds / once)), 1))


def rows(net, units):
    """Return masks `{name: bool}` without the weights of units that `units` drop.

    units: `{layer: bool (R, O)}` of a stack, `{layer: bool (O,)}` of a torch module, as `methods.prune` makes them.
    Biases and normalisations go on speaking for a unit, unlike under `masks.expand`: `shrink` folds what they say.
    """
    found, net = {}, unwrapped(net)
    for layer, mask in units.items():
        weight = net.get_submodule(layer).weight
        found[f"{layer}.weight"] = trailing(mask, weight).expand_as(weight).clone()
    return found


def runtime(path):
    """Return the function of tensors `(N, I)` to logits that ONNX Runtime makes of a file of `plain.onnx`, on a CPU."""
    try:
        import onnxruntime
    except ImportError as error:
        raise ParameterError("onnxruntime is not installed: pip install onnxruntime") from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return lambda x: torch.from_numpy(session.run(None, {"x": x.numpy()})[0])
