"""Which kept weights of a masked network the output depends on, by autograd, whatever the network is made of."""

import copy

import torch
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

SATURATING = set("sigmoid hardsigmoid tanh hardtanh relu6 hardswish silu gelu elu selu leaky_relu softmax".split())
NORMS = set("batch_norm layer_norm group_norm instance_norm local_response_norm".split())


class Neutral(TorchFunctionMode):
    """Activations that saturate are ReLU, norms do nothing, dropout keeps everything."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        name = getattr(func, "__name__", "").strip("_")
        if name in SATURATING:
            return F.relu(args[0])
        if name in NORMS or "dropout" in name:
            return args[0]
        return func(*args, **(kwargs or {}))


def dead(network, masks, *shapes):
    """Return how many kept weights have no gradient of the summed outputs, when all weights are masks / √fan-in."""
    network = copy.deepcopy(network).double()
    layers = dict.fromkeys(
        module for module in network.modules() if hasattr(module, "weight") and module.weight.dim() > 1
    )
    assert len(layers) == len(masks)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if name.endswith("bias"):
                parameter.zero_()
        for layer, mask in zip(layers, masks, strict=True):
            layer.weight.copy_(mask.double() / mask[0].numel() ** 0.5)
    generator = torch.Generator().manual_seed(0)
    with Neutral():
        inputs = [torch.rand(2, *shape, generator=generator, dtype=torch.float64) + 0.5 for shape in shapes]
        leaves(network(*inputs)).backward()
    pairs = {layer.weight: mask for layer, mask in zip(layers, masks, strict=True)}  # a shared weight once
    return sum(int(((weight.grad == 0) & mask.bool()).sum()) for weight, mask in pairs.items())


def leaves(outputs):
    """Return the sum of everything that a network returned."""
    if isinstance(outputs, torch.Tensor):
        return outputs.sum()
    outputs = outputs.values() if isinstance(outputs, dict) else outputs
    return sum(leaves(output) for output in outputs if output is not None)
