"""What is left of pruned networks: sparsity counted three ways, dead units, and what pruning does to the outputs."""

import copy

import torch

from lib.errors import instance
from lib.networks import nets
from lib.pruning import paths
from lib.pruning.masks import apply_


def anatomy(net, masks):
    """Return what is left of every run of a network under `masks`, `{name: float64 array}`.

    sparsity (R,): of all weights, those of layers that are never pruned included; effective_sparsity: counting as
    pruned what lies on no path from input to output; parameters: weights kept; macs: multiplications of one example
    through the network without its dead units, and no smaller for the zeros inside it. By layer, (R, layers):
    layer_sparsity, layer_effective_sparsity, and live_units, of the group of units that the layer leads to.
    """
    hops = nets.graph(net)
    kept = paths.complete(masks, nets.weights(net))
    live = paths.live(hops, kept)
    units = {node: units.sum(1) for node, units in live.units.items()}
    total = torch.tensor([mask[0].numel() for mask in kept.values()], dtype=torch.float64, device=units[0].device)
    each = (kept, live.masks)
    left, on_path = (torch.stack([mask.flatten(1).sum(1) for mask in of.values()], 1).double() for of in each)
    macs = 0  # between the live units of all layers
    for hop in (hop for hop in hops if hop.layer):
        layer = net.get_submodule(hop.layer)
        pairs = live.units[hop.source].shape[1] * live.units[hop.target].shape[1]
        # A pair of units has as many as the filter has entries, or as a flattened channel has pixels.
        macs += units[hop.source] * units[hop.target] * (layer.weight[0].numel() // pairs * layer.positions)
    found = {
        "sparsity": 1 - left.sum(1) / total.sum(), "effective_sparsity": 1 - on_path.sum(1) / total.sum(),
        "parameters": left.sum(1), "macs": macs,
        "layer_sparsity": 1 - left / total, "layer_effective_sparsity": 1 - on_path / total,
        "live_units": torch.stack([units[hop.target] for hop in hops if hop.layer], 1),
    }  # fmt: skip
    return {name: tensor.double().cpu().numpy() for name, tensor in found.items()}


@torch.no_grad()
def perturbation(net, masks, x):
    """Return what `masks` take from each layer of an MLP, and what that does to its outputs, `{name: float64 array}`.

    mass (R, layers): the share of the layer's squared weights that is pruned. error (R, layers): the relative change
    ‖(W - W∘M) h‖ / ‖W h‖ of its outputs before activation (biases join both, where there are any), with h what the
    whole network feeds to it for inputs `x (N, I)`; if what is pruned pulled in independent directions, error² would be
    mass. output_error (R,): the relative change of the logits when all layers are pruned at once. ValueError for
    normalised weights, and for another network.
    """
    instance("net is", net, nets.MLP, "nets.MLP, whose layers stand one behind the other with nothing between")
    net, act = copy.deepcopy(net).eval(), nets.ACTIVATIONS[net.activation]
    pruned = apply_(copy.deepcopy(net), masks)
    logits, mass, error = net(x), [], []
    output_error = _size(pruned(x) - logits) / _size(logits)
    for layer, left in zip(nets.layers(net).values(), nets.layers(pruned).values(), strict=True):
        mass.append(_size(layer.weight - left.weight).square() / _size(layer.weight).square())
        whole = layer(x)
        error.append(_size(whole - left(x)) / _size(whole))
        x = act(whole)
    taken = {"mass": torch.stack(mass, 1), "error": torch.stack(error, 1), "output_error": output_error}
    return {name: tensor.cpu().numpy() for name, tensor in taken.items()}


def _size(tensor):
    return tensor.flatten(1).double().norm(dim=1)
