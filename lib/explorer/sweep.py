"""What one method leaves of one network at every place of a slider: what is drawn, computed before it moves.

No drawing and no controls: a `Sweep` is the work of seconds; a `Cut`, what is shown at one place, lies there.
"""

from dataclasses import dataclass

import numpy as np
import torch

from lib.networks import nets, plain
from lib.pruning import anatomy, masks, methods, paths, shrink

STOPS = (*(k / 20 for k in range(20)), 0.97, 0.99)  # shares to be pruned
ROUNDS = 20  # at most, of methods that go round after round; the studies take a hundred
BINS = 40  # of a histogram of scores
BATCH, PASSES = 256, 3  # images of a timed pass, and how many of these: what else runs here slows some


@dataclass(frozen=True)
class Cut:
    """A network at one sparsity. asked: the share to be pruned; masks: of weights and biases, see `masks.apply_`.

    logits (N, classes); left: what `anatomy` says of the one run; small: what `shrink` makes of it; milliseconds: on
    one thread, the lower quartile of passes of `BATCH` images through that.
    """

    asked: float
    masks: dict
    logits: torch.Tensor
    left: dict
    small: torch.nn.Module
    milliseconds: float

    @property
    def answers(self):
        """Return the class that the network answers to each image, `(N,)`."""
        return self.logits.argmax(1)


@dataclass(frozen=True)
class Sweep:
    """One method at all stops. scores: what it ranks by, `{name: (1, ...)}`; None of one that draws masks.

    rounds: in how many the masks were made; of more than one, `scores` are those of the whole network.
    """

    method: str
    of: str
    scores: dict | None
    rounds: int
    cuts: tuple

    def at(self, asked):
        """Return the `Cut` of the stop nearest to a sparsity."""
        return min(self.cuts, key=lambda cut: abs(cut.asked - asked))


def sweep(subject, name, of, stops=STOPS, bar=iter):
    """Return the `Sweep` of the method called `name`, of "weights" or "units", over the network of a `Subject`.

    stops: sparsities, rising, the first 0, where all is kept; bar: wraps what is gone through, to show how far it is.
    """
    method, net = methods.get(name, of), subject.net
    x, y = subject.train if method.needs == "examples" else (None, None)
    rounds = 1 if method.draws else min(method.rounds, ROUNDS)
    given = {"x": x, "y": y, "seeds": [subject.seed], "of": of, "rounds": rounds}
    densities = [1 - stop for stop in stops[1:]]
    if rounds > 1:
        made = (methods.prune(net, name, density, **given) for density in densities)
    else:
        made = methods.prune_each(net, name, densities, **given)
    scores = None if method.draws else methods.score(net, name, x, y, [subject.seed], of)
    cuts = [cut(subject, 0.0, whole(net))]
    made = (kept if of == "weights" else masks.expand(kept, net) for kept in made)
    cuts += [cut(subject, stop, kept) for stop, kept in bar(zip(stops[1:], made, strict=True))]
    return Sweep(name, of, scores, rounds, tuple(cuts))


def whole(net):
    """Return the masks that keep every weight, `{name: bool (1, O, *F)}`."""
    return paths.complete({}, nets.weights(net))


@torch.no_grad()
def cut(subject, asked, kept):
    """Return the `Cut` of a `Subject` under masks."""
    net, batches = subject.net, subject.test[0].split(BATCH)
    left = {name: values[0] for name, values in anatomy.anatomy(net, kept).items()}
    small = shrink.shrink(net, kept)
    logits = torch.cat([small(batch) for batch in batches])
    return Cut(asked, kept, logits, left, small, plain.latency(small, batches[0], PASSES).low)


def changed(subject, shown, units):
    """Return a `Cut` in which units of the first layer are as `units {unit: whether it is there}` says, by hand.

    One that goes loses its weights, its bias, and what reads it; one that comes back gets them again, what reads it
    where the reading unit has any weight.
    """
    first, second = list(nets.layers(subject.net))[:2]
    kept = {name: mask.clone() for name, mask in {**whole(subject.net), **shown.masks}.items()}
    bias = getattr(subject.net.get_submodule(first), "bias", None)
    if bias is not None:
        kept.setdefault(f"{first}.bias", torch.ones_like(bias, dtype=torch.bool))
    reads = kept[f"{second}.weight"].any(2)
    for unit, there in units.items():
        kept[f"{first}.weight"][:, unit] = there
        kept[f"{second}.weight"][:, :, unit] = reads & there
        if bias is not None:
            kept[f"{first}.bias"][:, unit] = there
    return cut(subject, shown.asked, kept)


# ---- what is read off


def accuracy(shown, y):
    """Return the share of images whose class a `Cut` answers."""
    return float((shown.answers == y).double().mean())


def confusion(answers, y, classes):
    """Return how many images of each class (rows) are answered by each class, `(classes, classes)`."""
    return torch.bincount(y * classes + answers, minlength=classes**2).view(classes, classes).numpy()


def flips(before, after, y):
    """Return which images' answers changed, `(n,)`: first those that were right, then those that are, then the rest."""
    moved = (before != after).nonzero()[:, 0]
    rank = torch.where(before[moved] == y[moved], 0, torch.where(after[moved] == y[moved], 1, 2))
    return moved[rank.argsort(stable=True)]


def there(net, kept):
    """Return which units of the first layer have a weight left, `bool (O,)`."""
    return kept[f"{next(iter(nets.layers(net)))}.weight"][0].flatten(1).any(1)


def images(subject, kept, units):
    """Return what is left of `units (n,)` of the first layer, as images `(n, C, H, W)`: pruned weights are zero.

    H and W are those of a picture, or of a filter.
    """
    name = f"{next(iter(nets.layers(subject.net)))}.weight"
    weight = nets.weights(subject.net)[name].detach()[0, units]
    left = weight * kept[name][0, units]
    return left if left.dim() == 4 else left.unflatten(1, subject.pictures.shape[1:])


@dataclass(frozen=True)
class Histogram:
    """Scores in bins. edges (BINS + 1,); counts (BINS,), of all; values `{name: (n,)}`, and bins, in which each is.

    log: edges and values are decimal logarithms.
    """

    edges: np.ndarray
    counts: np.ndarray
    values: dict
    bins: dict
    log: bool


def histogram(scores):
    """Return the `Histogram` of scores `{name: (1, ...)}`; of their logarithms where none is negative."""
    flat = {name: score[0].flatten().double().numpy() for name, score in scores.items()}
    everything = np.concatenate(list(flat.values()))
    log = bool((everything >= 0).all() and everything.any())
    if log:
        least = everything[everything > 0].min()
        flat = {name: np.log10(np.maximum(values, least)) for name, values in flat.items()}
        everything = np.log10(np.maximum(everything, least))
    low, high = np.quantile(everything, (0.001, 0.999))  # a few far out would leave the rest one bin
    edges = np.linspace(low, high if high > low else low + 1, BINS + 1)
    flat = {name: values.clip(edges[0], edges[-1]) for name, values in flat.items()}
    bins = {name: np.searchsorted(edges[1:-1], values, "right") for name, values in flat.items()}
    return Histogram(edges, _counted(bins.values()), flat, bins, log)


def _counted(bins):
    return sum(np.bincount(each, minlength=BINS) for each in bins)


def below(bars, kept, of):
    """Return (counts of the pruned scores in the bins of a `Histogram`, the lowest score that stays of each count).

    kept: masks of weights and biases. A count is shared by all weights, or by the units of a layer.
    """
    if of == "weights":
        stays = {name: kept[name][0].flatten().numpy() for name in bars.values}
    else:
        stays = {layer: kept[f"{layer}.weight"][0].flatten(1).any(1).numpy() for layer in bars.values}
    counts = _counted(bars.bins[name][~mask] for name, mask in stays.items())
    lowest = [bars.values[name][mask].min() for name, mask in stays.items() if mask.any()]
    return counts, lowest if of == "units" else [min(lowest)] if lowest else []
