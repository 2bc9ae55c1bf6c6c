"""Smaller for real: a network before and after shrinking, as files, and as torch and ONNX Runtime run them."""

from pathlib import Path

import torch

from lib.errors import ParameterError, instance
from lib.kernels.twins import trailing
from lib.networks import nets, plain
from lib.networks.layers import Layer
from lib.pruning import checks, hops, modules, shrink
from lib.pruning.masks import apply_, assert_named, assert_units


@torch.no_grad()
def table(net, masks, x, folder, run=0, seconds=0.2, onnx=True):
    """Return what shrinking `net` under `masks` saves: a data frame with the rows "full" and "shrunk".

    net: one run of a stack, of x `(N, I)`, or a torch module, of x as it reads it, in ONNX its first output. bytes,
    onnx_bytes: of the files in `folder/full` and `folder/shrunk`, both read back before they are run; parameters: how
    many there are; pruned: the share of the full network's weights that are zero or gone, in "full" the true sparsity,
    in "shrunk" the effective one, but for units on no path that stay, of which `shrink` warns; macs: multiplications of
    one example; torch_ms, onnx_ms: the median of about `seconds` of passes of x, on the CPU, with torch's number of
    threads; torch_apart, onnx_apart: the largest difference of an output from the full network's in torch. Without
    `onnx` its columns are left out; with it a ParameterError where onnx, onnxscript or onnxruntime is not installed.
    ValueError for a stack of another class than MLP, VGG and ResNet, and for what `shrink` cannot read.
    """
    import pandas as pd

    instance("x is", x, torch.Tensor, "a batch of examples (N, ...), of an array torch.from_numpy(x)")
    x, saved, expected, total = x.cpu(), {}, None, None
    own = None if nets.layers(net, stack=False) else hops.unwrapped(net)
    own is None and checks.assert_rows(net, x, bytes=False)
    full = shrink.unshrunk(net, masks, run) if own is None else apply_(hops.copied(own), masks)
    for name, made in (("full", full), ("shrunk", shrink.shrink(net, masks, run, x))):
        file = plain.save(made, Path(folder) / name)
        module = plain.load(file.parent, own).eval()
        forms, expected = {"torch": module}, hops.tensors(module(x)) if expected is None else expected
        layers = hops.weighted(module)
        weights = [hops.weight_of(layers[first]) for first in {*hops.shared(module).values()}]
        left, total = sum(int(w.count_nonzero()) for w in weights), total or sum(map(torch.numel, weights))
        saved[name] = {"bytes": file.stat().st_size, "parameters": plain.parameters(module)}
        saved[name] |= {"pruned": 1 - left / total, "macs": plain.macs(module, x)}
        if onnx:
            exported = plain.onnx(module, file.parent, x)
            forms["onnx"], saved[name]["onnx_bytes"] = runtime(exported), exported.stat().st_size
        for form, function in forms.items():
            once = plain.latency(function, x, 2, None).median
            passes = max(3, int(1000 * seconds / once))
            saved[name][f"{form}_ms"] = plain.latency(function, x, passes, None).median
            pairs = zip(hops.tensors(function(x)), expected, strict=False)
            saved[name][f"{form}_apart"] = max(float((one - other).abs().max()) for one, other in pairs)
    return pd.DataFrame.from_dict(saved, orient="index")


def rows(net, units):
    """Return masks `{name: bool}` without the weights of units that `units` drop.

    units: `{layer: bool (R, O)}` of a stack, `{layer: bool (O,)}` of a torch module, as `methods.prune` makes them.
    Biases and normalisations go on speaking for a unit, unlike under `masks.expand`: `shrink` folds what they say.
    """
    net, layers = hops.unwrapped(net), (Layer, *hops.WEIGHTED)
    if odd := [layer for layer in assert_named(units) if layer.endswith(".weight")]:
        raise ValueError(f"{odd[0]} is a mask of weights, which shrink takes itself; rows makes masks of units' masks")
    own = ((name, part) for name, part in net.named_modules() if isinstance(part, layers))
    weights = {f"{name}.weight": part.weight for name, part in own if not isinstance(part, modules.TRANSPOSED)}
    assert_units(units, weights, 2 if nets.layers(net, stack=False) else 1)
    found = {f"{layer}.weight": mask for layer, mask in units.items()}
    return {name: trailing(mask, weights[name]).expand_as(weights[name]).clone() for name, mask in found.items()}


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
