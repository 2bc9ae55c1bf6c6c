"""The six arms of the DPP study: which edges into a layer, or which of its units, stay (Acharyya, Zhang et al.).

Every arm keeps the same integer number, so that only the choice differs; `budget` makes edges and units comparable.
"""

from typing import NamedTuple

import torch

from lib import draws
from lib.networks import nets
from lib.pruning import dpp, likelihood, masks, reweight

EDGE_ARMS = ("dpp_edge", "random_edge", "magnitude_edge")
UNIT_ARMS = ("dpp_node", "random_node", "outgoing_l1_node")
RULES = ("exact", "bernoulli", "half")
LIKENESS = ("beta", "ridge", "form")


class Budget(NamedTuple):
    """Units kept, edges kept by each unit, and how many weights of both layers either of them leaves."""

    units: int
    edges: int
    unit_weights: int
    edge_weights: int


def budget(widths, units=None, density=None, rounding="floor"):
    """Return the `Budget` at which pruned units and pruned edges leave nearly the same number of weights.

    widths: (I, O, P), a layer of I inputs and O units and the P outputs of the next; n units leave n (I + P)
    weights, e edges per unit O e + O P. Give `units` n, and e follows, rounded by "floor", as for two layers, or
    by "half_up", as in the teacher–student study; or give `density`, the share of inputs that a unit keeps: then
    e = ceil(density I) and n is rounded down from floor(density I) edges, as for three layers.
    """
    inputs, outputs, after = widths
    if (units is None) == (density is None) or rounding not in ("floor", "half_up"):
        raise ValueError(
            f"units is {units}, density {density}, rounding {rounding!r}; allowed are one of units and density,"
            ' and the rounding "floor" or "half_up"'
        )
    if units is not None:
        # Integers only: twice the numerator over twice the denominator, plus one half where it is wanted.
        twice, below = 2 * (units * (inputs + after) - outputs * after), 2 * outputs
        edges = (twice + (outputs if rounding == "half_up" else 0)) // below
    else:
        edges = masks.count(inputs, density, "prune_floor")
        units = outputs * (masks.count(inputs, density, "keep_floor") + after) // (inputs + after)
    if not (1 <= units <= outputs and 1 <= edges <= inputs):
        raise ValueError(
            f"{units} units are as many weights as {edges} edges per unit; allowed are 1 to {outputs} units and"
            f" 1 to {inputs} edges: at this budget one of the two is impossible"
        )
    return Budget(units, edges, units * (inputs + after), outputs * (edges + after))


def edge_masks(kind, net, layer, keeps, seeds, found=None, rule="exact", sampler="exact", **likeness):
    """Return `{keep: {"<layer>.weight": bool (R, O, I)}}`: each unit of the layer keeps `keep` of its inputs.

    kind: "dpp_edge", a k-DPP of each unit, from `found`, the `Moments` of the layer's inputs, with the beta, ridge and
    form of `likelihood.likelihood` as keywords; all keeps, and runs of equal weights, share the eigenpairs.
    "random_edge", uniform; rule "bernoulli" keeps each edge with probability keep / I, and "half" with 1/2 whatever
    `keep`, as two of the published programs do. "magnitude_edge", the largest |w| of each unit. keeps: integers;
    seeds: one per run.
    """
    weight = _weight(kind, EDGE_ARMS, net, layer, seeds, rule, found, likeness)
    if kind == "dpp_edge":
        inputs = [found] * len(seeds) if found.gram.dim() == 2 else found.of_runs()
        alike = _alike(weight, *([] if found.gram.dim() == 2 else [found.gram]))
        edges = {run: likelihood.Edges(inputs[run], weight[run], **likeness) for run, *_ in alike}
        drawn = _draw(edges, alike, seeds, keeps, sampler, f"{kind} {layer}")
        return {keep: {f"{layer}.weight": drawn[k]} for k, keep in enumerate(keeps)}
    score = _uniform(weight, seeds, f"{kind} {layer}") if kind == "random_edge" else weight.abs()
    return {keep: {f"{layer}.weight": _kept(score, keep, rule)} for keep in keeps}


def unit_masks(kind, net, layer, keeps, seeds, found=None, rule="exact", signed=False, sampler="exact", **likeness):
    """Return `{keep: {layer: bool (R, O)}}`: the layer keeps `keep` of its units.

    kind: "dpp_node", a k-DPP from `found`, the `Moments` (R, O, O) of the units (`likelihood.unit_moments`); the
    rest is as for edges. "random_node", uniform, or by the rule "bernoulli" with probability keep / O, as one
    published program does. "outgoing_l1_node", the largest sums of |w| to the next layer; `signed`, as published for
    teacher and student, sums w itself. Pruning, with or without a refit, is `reweight.units_`.
    """
    weight = _weight(kind, UNIT_ARMS, net, layer, seeds, rule, found, likeness)
    if kind == "dpp_node":
        alike = _alike(found.gram)
        units = {run: likelihood.likelihood(found.gram[[run]], found.examples, **likeness) for run, *_ in alike}
        drawn = _draw(units, alike, seeds, keeps, sampler, f"{kind} {layer}")
        return {keep: {layer: drawn[k][:, 0]} for k, keep in enumerate(keeps)}
    if kind == "random_node":
        score = _uniform(weight[:, :, 0], seeds, f"{kind} {layer}")
    else:
        after = nets.layers(net)[reweight.next_layer(net, layer)].weight.detach()
        score = (after if signed else after.abs()).sum(1)
    return {keep: {layer: _kept(score, keep, rule)} for keep in keeps}


def _weight(kind, kinds, net, layer, seeds, rule, found, likeness):
    """Return the weights (R, O, I) of the layer, after a look at what was asked for."""
    if kind not in kinds:
        raise ValueError(f"kind is {kind!r}; allowed are {kinds}")
    if rule not in RULES or (rule != "exact" and not kind.startswith("random")):
        raise ValueError(f"rule is {rule!r} for {kind}; allowed are {RULES}, all but the first for random arms alone")
    if kind.startswith("dpp") and found is None:
        raise ValueError(f"{kind} needs the moments of its items: pass found=likelihood.moments(x), or unit_moments")
    if set(likeness) - set(LIKENESS):
        raise ValueError(
            f"unknown keywords {sorted(set(likeness) - set(LIKENESS))}; of the likelihood allowed are {LIKENESS}"
        )
    if len(seeds) != nets.runs(net):
        raise ValueError(f"{len(seeds)} seeds for a stack of {nets.runs(net)} runs; one per run is needed")
    return reweight.plain_layer(net, layer).weight.detach()


def _alike(*origins):
    """Return the groups of runs, as lists, that are equal in each of `origins (R, ...)`: copies of one network."""
    groups = []
    for run in range(len(origins[0])):
        equal = [group for group in groups if all(torch.equal(o[group[0]], o[run]) for o in origins)]
        if equal:
            equal[0].append(run)
        else:
            groups.append([run])
    return groups


def _draw(matrices, alike, seeds, keeps, sampler, purpose):
    """Return the sets `bool (K, R, M, N)` from the `matrices` of the first run of each group in `alike`."""
    drawn = [dpp.sample(matrices[g[0]], list(keeps), [seeds[r] for r in g], sampler, purpose) for g in alike]
    order = torch.tensor([run for group in alike for run in group]).argsort()
    return torch.cat(drawn, dim=1)[:, order]


def _uniform(like, seeds, purpose):
    """Return a number from [0, 1) for each entry of `like (R, ...)`; masks of several keeps from it are nested."""
    scores = [torch.from_numpy(draws.generator(seed, purpose).random(like.shape[1:])) for seed in seeds]
    return torch.stack(scores).to(like.device)


def _kept(score, keep, rule):
    """Return the mask of what is kept along the last axis."""
    total = score.shape[-1]
    if not 1 <= keep <= total:
        raise ValueError(f"keep is {keep}; allowed is 1 to {total}")
    if rule == "exact":
        return masks.top_units({"": score}, keep / total)[""]
    return score < (0.5 if rule == "half" else keep / total)
