"""The toy problems of the EWN study (arXiv 2010.12909): their points, and the special starts of their networks.

Points come from numpy's legacy generator, so the published seed gives the published points; other seeds are
drawn by the same recipe. Labels are ±1.
"""

from typing import NamedTuple

import numpy as np
import torch

from lib.kernels import twins
from lib.networks import inits, nets


class Points(NamedTuple):
    """Examples x (R, N, 2) and labels y (R, N) of ±1 by run, float64, to train and to test on."""

    train_x: torch.Tensor
    train_y: torch.Tensor
    test_x: torch.Tensor
    test_y: torch.Tensor


def xor():
    """Return the four points of XOR, `x (4, 2)` and `y (4,)`: -1 where both coordinates have one sign."""
    x = torch.tensor([[1.0, 1.0], [-1.0, -1.0], [1.0, -1.0], [-1.0, 1.0]], dtype=torch.float64)
    return x, -x.prod(1)


def lin_sep(seeds):
    """Return the `Points` of the linearly separable toy: two training points of each class, fifty to test.

    Class -1 lies in a square in the upper right, class +1 in its mirror image; both squares are drawn too. The
    first training point of +1 is (-1, 1), outside its square.
    """
    return _stack([_squares(np.random.RandomState(seed), 51, 2) for seed in seeds])


def clusters(seeds):
    """Return (`Points`, targets (R, 2)) of the convergence-rate toy: ten training points of each class.

    The best separating direction is (-1, 0). `targets` are the end-to-end weights at which every depth starts.
    """
    drawn = [np.random.RandomState(seed) for seed in seeds]
    points = _stack([_squares(stream, 59, 10, (1.5, 2.0)) for stream in drawn])
    return points, torch.from_numpy(np.stack([stream.normal(size=2) for stream in drawn]))


def _squares(stream, drawn, trained, sides=None):
    """Return one seed's (train_x, train_y, test_x, test_y): points of two squares behind (1, 1) and (-1, 1)."""
    low, high = sides or (stream.uniform(1, 1.5), stream.uniform(1.5, 2))
    right = np.vstack([[1.0, 1.0], stream.uniform(low, high, (drawn, 2))])
    left = np.vstack([[-1.0, 1.0], stream.uniform(-low, -high, (drawn, 2))])
    halves = slice(trained), slice(trained, None)
    parts = [(np.vstack([right[half], left[half]]), len(right[half])) for half in halves]
    return [array for x, half in parts for array in (x, np.repeat([-1.0, 1.0], half))]


def _stack(seeds):
    """Return `Points` from one list of arrays per seed; the study rounds its points to float32."""
    return Points(*(torch.from_numpy(np.stack(part).astype(np.float32)).double() for part in zip(*seeds, strict=True)))


@torch.no_grad()
def fix_output_(net, values):
    """Set the output weights of every run to `values (O,)` and train them no more; return the network."""
    layer = net.layers[-1]
    layer.weight.copy_(torch.as_tensor(values, dtype=layer.weight.dtype))
    layer.weight.requires_grad_(False)
    layer.scale.requires_grad_(False)
    return net


@torch.no_grad()
def old_stream_(deep, seeds, epochs):
    """Draw the starts of networks of depths 1, 2, … as the study's script did; return nothing.

    A quirk: one stream per seed serves all depths, one after the other, and between two of them the data loaders of
    `epochs` epochs draw from it too: a base seed and an order of 20 and of 100 examples each. A normalised run
    also draws, in vain, one epoch and its own start. So deeper starts depend on how long the shallower nets trained.
    """
    for run, seed in enumerate(seeds):
        stream = torch.Generator().manual_seed(seed)
        for net in deep:
            for layer, (start, _) in zip(net.layers, inits.torch_defaults(net.layers, stream), strict=True):
                nets.set_function_(layer, run, start.to(layer.weight))
            if net.layers[0].norm[run] != twins.NO_WN:
                _loader(stream, 20)
                for layer in net.layers:
                    torch.randn(layer.weight.shape[1:], generator=stream)
            for _ in range(epochs):
                _loader(stream, 20)
                _loader(stream, 100)


def _loader(stream, examples):
    """Draw what an iteration over a shuffled DataLoader drew up to torch 1.7."""
    torch.empty((), dtype=torch.int64).random_(generator=stream)
    torch.randperm(examples, generator=stream)


@torch.no_grad()
def start_at_(net, targets, raw_length=False):
    """Give linear networks of any depth the end-to-end weights `targets (R, I)`, by their last layer; return them.

    The last layer becomes targets · pinv(all maps before it), so depths start at one function. Where it is
    normalised its v has unit length; `raw_length=True` is the published quirk that leaves v as it is, which makes
    its direction learn 1/|v|² times as fast.
    """
    plain, last = nets.fold(net), net.layers[-1]
    before = torch.eye(targets.shape[1], dtype=last.weight.dtype).expand(len(targets), -1, -1)
    for layer in plain.layers[:-1]:
        before = layer.weight @ before
    final = targets.to(before)[:, None] @ torch.linalg.pinv(before)
    set_(last, final, raw_length)
    return net


@torch.no_grad()
def set_(layer, weights, raw_length=False):
    """Give a layer effective weights (R, O, I): s takes their lengths, v has unit length unless `raw_length`."""
    size, code = twins.lengths(weights), layer.norm[:, None]
    layer.scale.copy_(torch.where(code == twins.EWN, size.log(), torch.where(code == twins.SWN, size, 0)))
    unit = (code != twins.NO_WN) & (not raw_length)
    layer.weight.copy_(weights / torch.where(unit, size, 1)[:, :, None])


def by_unit(flat, sizes):
    """Return the weights of every unit, a list of (..., fan-in), from `flat (..., P)` of layers of these sizes."""
    return np.split(flat, np.cumsum(np.repeat(sizes[:-1], sizes[1:]))[:-1], axis=-1)


def unit_norms(flat, sizes):
    """Return the norm of every unit's weights, (..., units), from `flat (..., P)` of layers of these sizes."""
    return np.stack([np.linalg.norm(unit, axis=-1) for unit in by_unit(flat, sizes)], -1)


def unit_cosines(flat, other, sizes):
    """Return the cosine between every unit's part of two arrays (..., P), (..., units); 0 where one vanishes."""
    pairs = zip(by_unit(flat, sizes), by_unit(other, sizes), strict=True)
    products = np.stack([(a * b).sum(-1) for a, b in pairs], -1)
    lengths = unit_norms(flat, sizes) * unit_norms(other, sizes)
    return np.divide(products, lengths, out=np.zeros_like(products), where=lengths > 0)


def slope(x, y, kept=None):
    """Return the slope of the least-squares line through points (..., K), over the last axis; `kept` picks points.

    nan where there is none: through one point, or several at the same x.
    """
    kept = np.ones(np.shape(x)) if kept is None else kept.astype(float)
    x, y = (v - (kept * v).sum(-1, keepdims=True) / kept.sum(-1, keepdims=True) for v in (np.asarray(x), np.asarray(y)))
    spread = (kept * x * x).sum(-1)
    return np.divide((kept * x * y).sum(-1), spread, out=np.full_like(spread, np.nan), where=spread > 0)


def top_share(norms, count=4):
    """Return the share of the squared norm that lies in the `count` largest units, `norms (..., U)`."""
    squares = np.sort(np.square(norms), -1)
    return squares[..., -count:].sum(-1) / squares.sum(-1)


def last_rows(history):
    """Return every array's last row that is no nan, run by run: `{name: (R, T, ...)} -> {name: (R, ...)}`."""
    written = np.isfinite(history["log_loss"]).sum(1)
    return {name: values[np.arange(len(values)), written - 1] for name, values in history.items()}


def alignment(weights, slopes, margins, sizes, active):
    """Return (name -> (R,), name -> (R, units)): how far networks of one hidden layer and one output have converged.

    weights, slopes (R, P): effective weights and the gradient by them; margins (R, N). A hidden unit is active if its
    norm is above `active` of the largest; the output unit is. margin: the smallest over |W|^3; relation: slope of
    log gradient norm against log norm over the active units; cosine: of weight and gradient, the largest of them.
    """
    norms, gradients = unit_norms(weights, sizes), unit_norms(slopes, sizes)
    hidden = norms[:, : sizes[1]]
    on = np.concatenate([hidden > active * hidden.max(1, keepdims=True), norms[:, sizes[1] :] > 0], 1)
    logs = (np.log(np.maximum(lengths, np.finfo(np.float32).tiny)) for lengths in (norms, gradients))  # units may die
    by_run = {
        "margin": margins.min(1) / np.square(weights).sum(1) ** 1.5,
        "active_units": on[:, : sizes[1]].sum(1),
        "relation": slope(*logs, on),
        "cosine": np.where(on, unit_cosines(weights, slopes, sizes), -1).max(1),
    }
    return by_run, {"unit_norm": norms, "unit_gradient": gradients, "unit_active": on}


def settling(weights, slopes, margins, sizes, active):
    """Return what should settle along one run's descent, name -> (T, lines), of the units `active` (units,).

    weights, slopes (T, P): effective weights and the gradient by them; margins (T, N). The loss vector has unit length;
    the margin is the smallest over |W|^3. Of the active units' weights together, the cosine with what they end as; of
    the whole gradient, that with the direction of largest margin at the end, which the last gradient is opposite to.
    """
    losses = np.exp(margins.min(1, keepdims=True) - margins)
    vector = np.concatenate([unit for unit, on in zip(by_unit(weights, sizes), active, strict=True) if on], 1)
    return {
        "loss vector": losses / np.linalg.norm(losses, axis=1, keepdims=True),
        "cos(weight, gradient)": unit_cosines(weights, slopes, sizes)[:, active],
        "cos(gradient, limit)": -unit_cosines(slopes, slopes[-1:], [slopes.shape[1], 1]),  # as if of one unit
        "cos(weights, end)": unit_cosines(vector, vector[-1:], [vector.shape[1], 1]),
        "normalised margin": (margins.min(1) / np.square(weights).sum(1) ** 1.5)[:, None],
        "unit norms": unit_norms(weights, sizes),
    }


def only(count, said):
    """Return a check of a list: what is wrong with it, or None if it has `count` numbers; said: which."""
    return lambda values: None if len(values) == count else f"it takes {count} numbers, {said}."
