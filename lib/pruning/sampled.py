"""Masks that are drawn and not ranked: PHEW's walks, and the diverse sets of determinantal point processes."""

import torch

from lib import draws
from lib.errors import number
from lib.networks import nets
from lib.pruning import dpp, likelihood, masks, phew, reweight
from lib.pruning.methods import method


@method("phew", draws=True)
def walked(net, densities, x, y, seeds, nested=False, **options):
    """Return PHEW's masks (arXiv 2010.11354): a series of walks for every density, or `nested` one for all of them.

    options: of `phew.masks` and `phew.Walks`.
    """
    hops, weights = nets.graph(net), nets.weights(net)
    densities = [number("density, kept / total,", density, "(0, 1]") for density in densities]
    if nested:
        return phew.masks(hops, weights, densities, seeds, **options)
    series = [[derived(seed, "walks", round(d * 1e9)) for seed in seeds] for d in densities]
    return [phew.masks(hops, weights, d, own, **options) for d, own in zip(densities, series, strict=True)]


def derived(seed, purpose, *position):
    """Return a seed that `seed` decides, of a purpose and position of its own."""
    return int(draws.generator(seed, purpose, *position).integers(2**62))


@method("dpp", of="weights", needs="moments", draws=True)
def edges(net, densities, x, y, seeds, sampler="exact", beta="10/N", ridge=likelihood.RIDGE, form="rbf"):
    """Return masks of the edges into each unit, of the layers of `x`, `{layer: Moments of its inputs}`: k-DPPs.

    Each unit keeps the same share of its inputs; all densities, and runs of equal weights, share the eigenpairs.
    beta, ridge, form: of `likelihood.likelihood`; sampler: see `dpp.sample`.
    """
    drawn = {}
    for layer, known in x.items():
        weight = reweight.plain_layer(net, layer).weight.detach()
        inputs = known.of_runs(len(seeds))
        groups = _alike(weight, [own.gram for own in inputs])
        matrices = {run: likelihood.Edges(inputs[run], weight[run], beta, ridge, form) for run in groups}
        drawn[f"{layer}.weight"] = _draw(matrices, groups, seeds, densities, sampler, f"dpp_edge {layer}")
    return [{name: sets[k] for name, sets in drawn.items()} for k in range(len(densities))]


@method("dpp", of="units", needs="moments", draws=True)
def units(net, densities, x, y, seeds, sampler="exact", beta="10/N", ridge=likelihood.RIDGE, form="rbf"):
    """Return masks of the units of the layers of `x`, `{layer: Moments (R, O, O) of its units}`; as `edges`."""
    drawn = {}
    for layer, known in x.items():
        groups = _alike(known.gram)
        of = known.examples, beta, ridge, form
        matrices = {run: likelihood.likelihood(known.gram[[run]], *of) for run in groups}
        drawn[layer] = _draw(matrices, groups, seeds, densities, sampler, f"dpp_node {layer}")[:, :, 0]
    return [{name: sets[k] for name, sets in drawn.items()} for k in range(len(densities))]


def _alike(*origins):
    """Return the runs that are equal in each of `origins (R, ...)`, copies of one network, `{the first: [all]}`."""
    groups = {}
    for run in range(len(origins[0])):
        first = next((other for other in groups if all(torch.equal(o[other], o[run]) for o in origins)), run)
        groups.setdefault(first, []).append(run)
    return groups


def _draw(matrices, alike, seeds, densities, sampler, purpose):
    """Return the sets `bool (K, R, M, N)` from the `matrices` of the first run of each group in `alike`."""
    keeps = [masks.count(matrices[0].shape[-1], density) for density in densities]
    drawn = [dpp.sample(matrices[k], keeps, [seeds[run] for run in alike[k]], sampler, purpose) for k in alike]
    order = torch.tensor([run for group in alike.values() for run in group]).argsort()
    return torch.cat(drawn, dim=1)[:, order]
