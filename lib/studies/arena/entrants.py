"""Who enters the arena: from the name of a type to a method, what it prunes, and when."""

from typing import NamedTuple

from lib.data.sets import SHAPES
from lib.errors import choice, distinct, listed
from lib.networks import convnets, nets
from lib.pruning import masks, methods, paths
from lib.training import optimizers

NETS = ("mlp", *convnets.RESNETS)
REWEIGHTING = ("none", "units", "all")
# type: (method of weights, its keywords), where a name of a method does not say it all. SNIP's score of a trained
# network is the first-order Taylor expansion of its loss.
VARIANTS = {"magnitude_layer": ("magnitude", {"scope": "layer"}), "taylor": ("snip", {"training": False}),
            "wanda_unit": ("wanda", {"scope": "unit"})}  # fmt: skip
CHAINS = ("contribution", "worst", "outgoing_l1", "dpp")  # methods that know no shortcuts
WHEN = {"": "after", "_init": "before", "_gradual": "during"}  # what the end of a type of weights says of training


class Entrant(NamedTuple):
    """A method by its name with keywords, or a control; of "weights", "units" or nothing; when: after, before, during.

    Of training: "after" it the network is pruned at once and trained on; "before" it, the untrained network is pruned
    and trained under its masks; "during" it ever more is pruned.
    """

    method: str
    of: str = ""
    when: str = "after"
    options: dict = {}


def entrants():
    """Return `{type: Entrant}`: the controls, every method there is, and what is made of those of weights.

    A method of units that has the name of a type of weights has "_units" behind its own.
    """
    weights = [(name, (name, {})) for name in methods.names("weights", ("nothing", "examples", "moments"))]
    found = [("none", Entrant("none")), ("small", Entrant("small", when="before"))]
    for kind, (name, options) in [*weights, *VARIANTS.items()]:
        rank = not methods.get(name).draws
        found += [(kind + end, Entrant(name, "weights", when, options)) for end, when in WHEN.items()
                  if when != "during" or rank]  # fmt: skip
    known = dict(found)
    found += [(f"{name}_units" if name in known else name, Entrant(name, "units"))
              for name in methods.names("units", methods.NEEDS)]  # fmt: skip
    return dict(zip(distinct(kind for kind, _ in found), (one for _, one in found), strict=True))


def get(kind):
    """Return the `Entrant` of a type; ParameterError if there is none."""
    known = entrants()
    return known[choice("type", kind, known)]


def network(p, runs=1):
    """Return the stack of a notebook's parameters `p`, without a start."""
    if p["net"] == "mlp":
        return nets.MLP(sizes(p), [p["norm"]] * runs)
    channels, side, classes, *_ = SHAPES[p["dataset"]]
    return convnets.build(p["net"], (channels, side, side), classes, runs, p["width"] or None)


def unit_density(net, sparsity):
    """Return the share of the hidden units, the same of each layer, that leaves about 1 - sparsity of all weights.

    Of k/n, with n the widest hidden layer, the one whose number of weights is nearest.
    """
    widest, weights = max(widths(net, 1).values()), _weights(net)
    goal = (1 - sparsity) * weights(1)
    return min((k / widest for k in range(1, widest + 1)), key=lambda share: abs(weights(share) - goal))


def widths(net, share):
    """Return how many units of the hidden layers are such a share of them, `{layer: units}`."""
    layers = nets.layers(net)
    return {name: masks.count(layers[name].weight.shape[1], share) for name in nets.hidden(net)}


def _weights(net):
    """Return the function of a share of the hidden units to the number of weights between them."""
    hops, weights = nets.graph(net), nets.weights(net)
    full, last = paths.widths(hops, weights), hops[-1].target
    pairs = {hop: weights[f"{hop.layer}.weight"][0].numel() // (full[hop.source] * full[hop.target])
             for hop in hops if hop.layer}  # fmt: skip

    def left(share):
        kept = {node: size if node in (0, last) else masks.count(size, share) for node, size in full.items()}
        return sum(each * kept[hop.source] * kept[hop.target] for hop, each in pairs.items())

    return left


# ---- what cannot be


def complaint(p):
    """Return what a notebook's parameters `p` ask for that cannot be, all taken together, or None."""
    return _of_network(p) or _of_images(p) or optimizers.complaint(p["rule"], p["momentum"], p["nesterov"])


def _of_network(p):
    each = {kind: get(kind) for kind in p["type"]}
    whole = [kind for kind, one in each.items() if one.of == "units" or kind == "small"]
    trained = [kind for kind, one in each.items() if one.when != "after"]
    chains = [kind for kind, one in each.items() if one.method in CHAINS]
    if p["net"] != "mlp" and (chains or p["norm"] != "no-WN" or p["level"]):
        return f"net = {p['net']!r}: {listed(chains)}, and a norm or a level of its training, are of net mlp alone"
    if trained and (p["level"] or p["norm"] != "no-WN"):
        return f"type = {listed(trained)}: what is trained under masks has neither a level nor weight normalisation"
    if odd := [share for share in p["shuffle_at"] if share not in p["sparsities"]]:
        return f"shuffle_at = {p['shuffle_at']}: {odd[0]} is none of the sparsities {p['sparsities']}; take of those"
    net = network(p) if whole else None
    for sparsity in p["sparsities"] if whole else ():
        left, full = (list(widths(net, share).values()) for share in (unit_density(net, sparsity), 1))
        if 0 in left:
            return f"sparsities = {p['sparsities']}: {sparsity} leaves {left} of {full} units; a layer needs one"
    return None


def sizes(p):
    """Return the sizes of the layers of the MLP of a notebook's parameters `p`."""
    channels, side, classes, *_ = SHAPES[p["dataset"]]
    return [channels * side**2, *p["hidden"], classes]


def _of_images(p):
    *_, classes, train, _ = SHAPES[p["dataset"]]
    there = train - p["holdout"]
    if there < max(p["train_examples"], classes):
        return f"holdout = {p['holdout']}: of {train} training images {there} are left to train on; take fewer"
    if max(p["score_examples"]) > (p["train_examples"] or there):
        return f"score_examples = {p['score_examples']}: there are {p['train_examples'] or there} images to train on"
    return None
