"""The types of the DPP study: which edges into a layer, or which of its units, stay (Acharyya, Zhang et al.).

A type is a method of `methods` and what it prunes: "dpp_edge" is "dpp" of weights, "random_node" "random" of units.

Every type keeps the same integer number, so that only the choice differs; `budget` makes edges and units comparable.
"""

from typing import NamedTuple

from lib import draws
from lib.errors import choice, listed, number, one_each
from lib.networks import nets
from lib.pruning import masks, methods, reweight

OF = {"edge": "weights", "node": "units"}  # what the last word of a type says is pruned
KNOWN = ("dpp_node", "dpp_edge", "random_node", "random_edge", "outgoing_l1_node", "magnitude_edge")  # of the study
WEIGHTING = ("raw", "reweighted")
RULES = ("exact", "bernoulli", "half")


class Budget(NamedTuple):
    """Units kept, or edges kept by each unit."""

    units: int
    edges: int


def budget(widths, units=None, density=None, rounding="floor"):
    """Return the `Budget` at which pruned units and pruned edges leave nearly the same number of weights.

    widths: (I, O, P), a layer of I inputs and O units and the P outputs of the next; n units leave n (I + P)
    weights, e edges per unit O e + O P. Give `units` n, and e follows, rounded by "floor", as for two layers, or
    by "half_up", as in the teacher–student study; or give `density`, the share of inputs that a unit keeps: then
    e = ceil(density I) and n is rounded down from floor(density I) edges, as for three layers.
    """
    inputs, outputs, after = widths
    if (units is None) == (density is None) or rounding not in ("floor", "half_up"):
        told = f"units is {units}, density {density}, rounding {rounding!r}; allowed are one of units and density"
        raise ValueError(f'{told}, and the rounding "floor" or "half_up"')
    if units is not None:
        # Integers only: twice the numerator over twice the denominator, plus one half where it is wanted.
        twice, below = 2 * (units * (inputs + after) - outputs * after), 2 * outputs
        edges = (twice + (outputs if rounding == "half_up" else 0)) // below
    else:
        edges = masks.count(inputs, density, "prune_floor")
        units = outputs * (masks.count(inputs, density, "keep_floor") + after) // (inputs + after)
    if not (1 <= units <= outputs and 1 <= edges <= inputs):
        told = f"{units} units are as many weights as {edges} edges per unit; allowed are 1 to {outputs} units and"
        raise ValueError(f"{told} 1 to {inputs} edges: at this budget one of the two is impossible")
    return Budget(units, edges)


def of_edges(kind):
    """Return whether a type prunes edges, and not units."""
    return _parts(kind)[1] == "weights"


def keeps(kind, p, budgets):
    """Return the integers that a type keeps, edges of each unit or units: keep of a notebook's parameters `p`.

    budgets: a function of p that returns the `Budget`s of the study, which 0 stands for.
    """
    if p["keep"] != [0]:
        return p["keep"]
    return [each.edges if of_edges(kind) else each.units for each in budgets(p)]


def complaint(p, widths, budgets):
    """Return what is wrong with `keep` of a notebook's parameters `p`, or None.

    widths: (I, O, P), as of `budget`; budgets: as of `keeps`; few units have none.
    """
    for kind in p["type"]:
        most = widths[0] if of_edges(kind) else widths[1]
        way = f"give different numbers from 1 to {most}, or more units than {widths[1]} for the budgets of the study"
        try:
            found = keeps(kind, p, budgets) or ["none"]
        except ValueError as error:
            return f"keep = {p['keep']} takes the budgets of the study, and {error}; {way}"
        if len(set(found)) < len(found) or not all(k in range(1, most + 1) for k in found):
            return f"keep = {p['keep']}: {kind} would keep {listed(found)} of {most}; {way}"
    return None


def types():
    """Return the types that there are: the study's, and every method that can keep a number of edges or of units."""
    others = [f"{name}_{word}" for word, of in OF.items()
              for name in [*methods.names(of, ["nothing"], draws=False), *methods.names(of, ["moments"])]]  # fmt: skip
    return list(dict.fromkeys([*KNOWN, *others]))


def _parts(kind):
    """Return (method, "weights" or "units") of a type; ParameterError where it is none."""
    name, _, word = choice("kind", kind, types()).rpartition("_")
    return name, OF[word]


def masks_of(kind, net, layer, keeps, seeds, moments=None, rule="exact", **options):
    """Return what stays of a layer, `{keep: {"<layer>.weight": bool (R, O, I)}}`, of units `{keep: {layer: (R, O)}}`.

    kind: a type; of edges each unit of the layer keeps `keep` of its inputs, else the layer keeps `keep` of its units.
    keeps: integers; seeds: one per run; moments: of what a DPP draws from. rule: of random types, "exact", or
    "bernoulli", which keeps each with probability keep / total, and "half" with 1/2 whatever `keep`, as published
    programs do. options: keywords of the method. Pruning, with or without a refit, is `reweight`.
    """
    name, of = _parts(kind)
    if rule not in RULES or (rule != "exact" and not kind.startswith("random")):
        raise ValueError(f"rule is {rule!r} for {kind}; allowed are {RULES}, all but the first for random types alone")
    one_each(nets.runs(net), seeds=seeds)
    weight = reweight.plain_layer(net, layer).weight
    total, part = (weight.shape[2], f"{layer}.weight") if of == "weights" else (weight.shape[1], layer)
    for keep in keeps:
        number("keep", keep, f"[1, {total}]", whole=True)
    if name == "random":  # one stream for each type and layer, so that masks of several keeps are nested
        options |= {"keys": {part: (f"{kind} {layer}",)}, "draw": draws.uniform}
    if rule != "exact":
        score = methods.score(net, name, seeds=seeds, of=of, **options)[part]
        return {keep: {part: score < (0.5 if rule == "half" else keep / total)} for keep in keeps}
    x = None if moments is None else {layer: moments}
    if not methods.get(name, of).draws:
        options |= {"layers": [layer], "scope": "unit" if of == "weights" else "layer"}
    made = methods.prune_each(net, name, [keep / total for keep in keeps], x, None, seeds, of, **options)
    return dict(zip(keeps, made, strict=True))
