"""What is left of pruned networks: sparsity counted three ways, dead units, and what pruning does to the outputs."""

import torch

from lib import nets, paths


def anatomy(net, masks):
    """Return what is left of every run of a chain of layers under `masks`, `{name: float64 array}`.

    sparsity (R,): of all weights, those of layers that are never pruned included; effective_sparsity: counting as
    pruned what lies on no path from input to output; parameters: weights kept; macs: multiplications of one example
    through the network without its dead units, and no smaller for the zeros inside it. By layer, (R, layers):
    layer_sparsity, layer_effective_sparsity, live_units.
    """
    hops = nets.graph(net)
    kept = paths.complete(masks, nets.weights(net))
    live = paths.live(hops, kept)
    units = torch.stack([live.units(node).sum(1) for node in range(len(hops) + 1)], 1)
    total = torch.tensor([mask[0].numel() for mask in kept.values()], dtype=torch.float64, device=units.device)
    left, on_path = (
        torch.stack([mask.flatten(1).sum(1) for mask in found.values()], 1).double() for found in (kept, live.masks)
    )
    found = {
        "sparsity": 1 - left.sum(1) / total.sum(), "effective_sparsity": 1 - on_path.sum(1) / total.sum(),
        "parameters": left.sum(1), "macs": (units[:, 1:] * units[:, :-1]).sum(1),
        "layer_sparsity": 1 - left / total, "layer_effective_sparsity": 1 - on_path / total, "live_units": units[:, 1:],
    }  # fmt: skip
    return {name: tensor.double().cpu().numpy() for name, tensor in found.items()}


@torch.no_grad()
def perturbation(net, masks, x):
    """Return what `masks` take from each layer of an MLP, and what that does to its outputs, `{name: float64 array}`.

    mass (R, layers): the share of the layer's squared weights that is pruned. error (R, layers): the relative change
    ‖(W - W∘M) h‖ / ‖W h‖ of its outputs before activation, with h what the whole network feeds to it for inputs
    `x (N, I)`; if what is pruned pulled in independent directions, error² would be mass. output_error (R,): the
    relative change of the logits when all layers are pruned at once.
    """
    mass, error, act, pruned = [], [], nets.ACTIVATIONS[net.activation], x
    for name, layer in nets.layers(net).items():
        w = layer.weight
        gone = w.masked_fill(masks[f"{name}.weight"], 0) if f"{name}.weight" in masks else torch.zeros_like(w)
        mass.append(_size(gone).square() / _size(w).square())
        whole = layer(x)
        error.append(_size(whole - _without(layer, gone, x)) / _size(whole))
        last = _without(layer, gone, pruned)
        x, pruned = act(whole.clone()), act(last.clone())
    output_error = _size(last - whole) / _size(whole)
    found = {"mass": torch.stack(mass, 1), "error": torch.stack(error, 1), "output_error": output_error}
    return {name: tensor.cpu().numpy() for name, tensor in found.items()}


def _without(layer, gone, x):
    """Return the layer's output for `x` without the part `gone (R, O, I)` of its weights."""
    return layer(x) - x @ gone.transpose(1, 2)


def _size(tensor):
    return tensor.flatten(1).double().norm(dim=1)
