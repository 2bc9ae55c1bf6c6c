"""Who enters the arena: from the name of a type to a method, what it prunes, and when."""

from typing import NamedTuple

from lib.data.sets import SHAPES
from lib.errors import ParameterError, hint, listed
from lib.networks import convnets
from lib.pruning import masks, methods
from lib.training import optimizers

NETS = ("mlp", *convnets.RESNETS)
REWEIGHTING = ("none", "units", "all")
# type: (method of weights, its keywords), where a name of a method does not say it all. SNIP's score of a trained
# network is the first-order Taylor expansion of its loss.
VARIANTS = {"magnitude_layer": ("magnitude", {"scope": "layer"}), "taylor": ("snip", {"training": False})}
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
    weights = {name: (name, {}) for name in methods.names("weights", ("nothing", "examples", "moments"))} | VARIANTS
    found = {"none": Entrant("none"), "small": Entrant("small", when="before")}
    for kind, (name, options) in weights.items():
        rank = not methods.get(name).draws
        found |= {kind + end: Entrant(name, "weights", when, options) for end, when in WHEN.items()
                  if when != "during" or rank}  # fmt: skip
    for name in methods.names("units", methods.NEEDS):
        found[f"{name}_units" if name in found else name] = Entrant(name, "units")
    return found


def get(kind):
    """Return the `Entrant` of a type; ParameterError if there is none."""
    known = entrants()
    if kind not in known:
        raise ParameterError(f"type is {kind!r}; allowed are {listed(known)}.{hint(kind, known)}")
    return known[kind]


def unit_density(sizes, sparsity):
    """Return the share of the hidden units, the same of each layer, that leaves about 1 - sparsity of all weights.

    sizes: of the layers of an MLP, from its inputs to its outputs. Of k/n, with n the widest hidden layer, the one
    whose number of weights is nearest.
    """
    widest, goal = max(sizes[1:-1]), (1 - sparsity) * _weights(sizes, 1)
    return min((k / widest for k in range(1, widest + 1)), key=lambda share: abs(_weights(sizes, share) - goal))


def widths(sizes, sparsity):
    """Return the widths of the hidden layers at `unit_density`."""
    share = unit_density(sizes, sparsity)
    return [masks.count(size, share) for size in sizes[1:-1]]


def _weights(sizes, share):
    left = [sizes[0], *(masks.count(size, share) for size in sizes[1:-1]), sizes[-1]]
    return sum(before * after for before, after in zip(left, left[1:], strict=False))


# ---- what cannot be


def complaint(p):
    """Return what a notebook's parameters `p` ask for that cannot be, all taken together, or None."""
    return _of_network(p) or _of_images(p) or optimizers.complaint(p["rule"], p["momentum"], p["nesterov"])


def _of_network(p):
    each = {kind: get(kind) for kind in p["type"]}
    whole = [kind for kind, one in each.items() if one.of == "units" or kind == "small"]
    trained = [kind for kind, one in each.items() if one.when != "after"]
    if p["net"] != "mlp" and (whole or p["norm"] != "no-WN" or p["level"]):
        return f"net = {p['net']!r}: {listed(whole)}, and a norm or a level of its training, are of net mlp alone"
    if trained and (p["level"] or p["norm"] != "no-WN"):
        return f"type = {listed(trained)}: what is trained under masks has neither a level nor weight normalisation"
    if odd := [share for share in p["shuffle_at"] if share not in p["sparsities"]]:
        return f"shuffle_at = {p['shuffle_at']}: {odd[0]} is none of the sparsities {p['sparsities']}"
    for sparsity in p["sparsities"] if whole else ():
        if 0 in (left := widths(sizes(p), sparsity)):
            return f"sparsities = {p['sparsities']}: {sparsity} leaves {left} of {p['hidden']} units; a layer needs one"
    return None


def sizes(p):
    """Return the sizes of the layers of the MLP of a notebook's parameters `p`."""
    channels, side, classes, *_ = SHAPES[p["dataset"]]
    return [channels * side**2, *p["hidden"], classes]


def _of_images(p):
    *_, classes, train, _ = SHAPES[p["dataset"]]
    there = train - p["holdout"]
    if there < max(p["train_examples"], classes):
        return f"holdout = {p['holdout']}: of {train} training images {there} are left to train on, which is too few"
    if max(p["score_examples"]) > (p["train_examples"] or there):
        return f"score_examples = {p['score_examples']}: there are {p['train_examples'] or there} images to train on"
    return None
