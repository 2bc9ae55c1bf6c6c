"""Smaller for real: a network before and after shrinking, as files, and as torch and ONNX Runtime run them."""

from pathlib import Path

import torch

from lib.errors import ParameterError
from lib.networks import plain
from lib.pruning import shrink


@torch.no_grad()
def table(net, masks, x, folder, run=0, seconds=0.2):
    """Return what shrinking one run of `net` under `masks` saves: a data frame with the rows "full" and "shrunk".

    bytes, onnx_bytes: of the files in `folder/full` and `folder/shrunk`, both read back before they are run; macs: the
    multiplications of one example; torch_ms, onnx_ms: the median of `seconds` of passes of `x (N, I)` through each, on
    the CPU, with torch's number of threads; torch_apart, onnx_apart: the largest difference of a logit from those of
    the full network in torch. ParameterError where onnx, onnxscript or onnxruntime is not installed.
    """
    import pandas as pd
    from torch.utils.benchmark import Timer  # which brings torch's compiler of extensions: not for all who import this

    x, rows, expected = x.cpu(), {}, None
    for name, made in (("full", shrink.unshrunk), ("shrunk", shrink.shrink)):
        file = plain.save(made(net, masks, run), Path(folder) / name)
        module, exported = plain.load(file.parent), plain.onnx(plain.load(file.parent), file.parent, x.shape[1])
        forms = {"torch": module.eval(), "onnx": runtime(exported)}
        expected = module(x) if expected is None else expected
        rows[name] = {
            "bytes": file.stat().st_size,
            "onnx_bytes": exported.stat().st_size,
            "macs": plain.macs(module, x.shape[1]),
        }
        for form, function in forms.items():
            timer = Timer("function(x)", globals={"function": function, "x": x}, num_threads=torch.get_num_threads())
            rows[name][f"{form}_ms"] = 1e3 * timer.blocked_autorange(min_run_time=seconds).median
            rows[name][f"{form}_apart"] = float((function(x) - expected).abs().max())
    return pd.DataFrame.from_dict(rows, orient="index")


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
