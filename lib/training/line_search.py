"""Full-batch descents of stacks of small networks: a step that grows as the loss falls, down to e^-300.

This is Algorithm A of arXiv 2010.12909 (lin-sep, XOR, simple-traj), and plain gradient descent beside it. The
networks have one hidden layer without bias and one output, so the gradient is written out by hand.

Inside this file the run axis is the LAST one. A toy has two inputs and twenty units: with the runs last, every
sum over inputs, units or examples adds long rows, 5 to 8 times faster on a CPU than sums of four numbers each.
"""

import copy
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from tqdm.auto import tqdm

from lib.errors import choice
from lib.kernels import twins
from lib.networks import nets

GROWTH = 1.1  # of the step where the loss fell; elsewhere it shrinks by as much
FIRST_STEP = 0.01
SMALLEST_STEP = 1e-30  # a run whose step has shrunk to this has stalled
ENDS = ("limit", "budget", "stalled")

# With a = -margin: the log of an example's loss, and the log of that loss's derivative by a.
LOSSES = {"logistic": (twins.log_softplus, torch.nn.functional.logsigmoid), "exponential": (lambda a: a, lambda a: a)}
ACTIVATIONS = {  # z -> (value, function that carries a gradient back through it)
    "none": lambda z: (z, lambda d: d),
    "relu": lambda z: (z.clamp_min(0), lambda d: torch.ops.aten.threshold_backward(d, z, 0)),
    "relu2": lambda z: ((h := z.clamp_min(0)).square(), lambda d: d * (2 * h)),
}


class Seen(NamedTuple):
    """The network at one point: log L (R,) float64, margins (N, R); by layer effective weights w and ∂ log L/∂w."""

    log_loss: torch.Tensor
    margins: torch.Tensor
    weights: list
    slopes: list


@dataclass
class State:
    """R descents between two attempts; every tensor ends in R, but for `x (N, I)` where all runs have the same.

    y (N, R) is ±1. theta: v (I, O, R) and s (O, R) of the hidden layer, and of the output; gradient: of log L by these,
    None for what is not trained. codes: by layer which runs are EWN, and which are normalised, or None where none is.
    `level` is the log-loss one step back: the loss is rescaled by it; log_loss and gradient are at theta. step is ρ;
    taken and rejected count the attempts.
    """

    activation: str
    loss: str
    trained: tuple
    x: torch.Tensor
    y: torch.Tensor
    codes: list
    theta: list
    run: torch.Tensor
    taken: torch.Tensor
    rejected: torch.Tensor
    level: torch.Tensor
    step: torch.Tensor
    exponent: torch.Tensor
    cap: torch.Tensor
    limit: torch.Tensor
    log_loss: torch.Tensor | None = None
    gradient: list | None = None

    def take(self, chosen):
        """Return the descents of the runs `chosen (K,)`, copied; what they share stays."""

        def pick(value):
            if isinstance(value, list):
                return [pick(part) for part in value]
            own = isinstance(value, torch.Tensor) and not (value is self.x and value.dim() == 2)
            return value.index_select(-1, chosen) if own else value

        return replace(self, **{name: pick(value) for name, value in vars(self).items()})


@dataclass
class Result:
    """Where R descents ended, and what was kept on the way.

    net: the stack one step past the last logged loss. steps, rejected (R,) int64; log_loss (R,) float64, the last
    logged; step (R,), the last ρ; end: per run "limit", "budget" or "stalled". at (T,): the steps looked at, before
    their update. history: name -> (R, T, ...), nan once a run has ended.
    """

    net: torch.nn.Module
    steps: torch.Tensor
    rejected: torch.Tensor
    log_loss: torch.Tensor
    step: torch.Tensor
    end: list
    at: np.ndarray
    history: dict

    def thinned(self, runs=slice(None), limit=200):
        """Return (steps, history) of some runs, at up to `limit` log-spaced steps until the last of them ended."""
        at = self.at[: np.searchsorted(self.at, int(self.steps[runs].max()))]
        chosen = np.unique(np.searchsorted(at, log_spaced(at[-1] + 1, limit)))
        return self.at[chosen], {name: values[runs][:, chosen] for name, values in self.history.items()}


def log_spaced(steps, points):
    """Return up to `points` of the steps 0 to steps - 1, log-spaced and with both ends."""
    return np.unique(np.geomspace(1, steps, points).round().astype(int) - 1)


@torch.no_grad()
def search(net, x, y, exponent, cap, limit, *, budget=100_000, loss="logistic", keep=(), points=400):
    """Return the `Result` of descending the summed loss of every run of `net`, each by its own line search.

    One attempt: with ℓ the log-loss one step back (0 at first), θ' = θ - ρ exp(ℓ / exponent) ∇(L / e^ℓ). Where the
    loss at θ' is larger, not finite, or vanishes beside the one at θ, the run stays at θ and ρ shrinks by 1.1;
    elsewhere it moves, and ρ grows by 1.1 unless it has reached `cap`, so it may end up to 1.1 times higher. A run
    ends when the loss that it left behind is below e^-limit. Runs do not wait for each other: while one tries
    again, the others take their next step.

    net: `nets.MLP` of one hidden layer and one output, without bias, which is left as it is; weights that require no
    gradient stay. x (N, I), or (R, N, I) by run; y (N,) or (R, N) of ±1. exponent (0: the rate is ρ), cap, limit: one
    number, or one per run. keep: which of "weights", "slopes" and "margins" go into the history beside the log-loss, at
    up to `points` log-spaced steps of the `budget`.
    """
    state = _start(net, x, y, loss, FIRST_STEP, exponent, cap, limit)
    result, slots = _empty_result(net, state, budget, keep, points)
    _record(result, slots, state, torch.ones_like(state.taken, dtype=torch.bool))
    with tqdm(total=len(state.run), unit="run", mininterval=1.0) as bar:
        while len(state.run):
            moved = _attempt(state)
            at_limit = moved & (state.level < -state.limit)
            why = torch.stack((at_limit, state.taken >= budget, state.step <= SMALLEST_STEP))  # as in ENDS
            over = why.any(0)
            _record(result, slots, state, moved & ~over)
            if bool(over.any()):
                _set_aside(result, state.take(over.nonzero()[:, 0]), why[:, over])
                state = state.take((~over).nonzero()[:, 0])
                bar.update(int(over.sum()))
    return result


def gradient_descent(net, x, y, rate, steps):
    """Return (at (T,), end-to-end weights (R, T, I), log-losses (R, T)) of plain gradient descent, rate constant.

    net: an `nets.MLP` of any depth without activation and bias, of which a copy takes `steps` steps on the summed
    logistic loss. It is one linear map, so it is asked for its end-to-end weights alone, and only they meet the
    examples x (R, N, I) or (N, I), y (R, N) or (N,) of ±1. Both histories are of log-spaced steps, before the update.
    """
    net = copy.deepcopy(net)
    weight = next(iter(nets.weights(net).values()))
    basis = torch.eye(weight.shape[2], dtype=weight.dtype, device=weight.device)
    rates = torch.full(weight.shape[:1], rate, dtype=weight.dtype, device=weight.device)
    signed = x * y[..., None]
    at = log_spaced(steps, 200)
    kept, rows = set(at.tolist()), []
    with nets.sgd_in_backward(net, rates):
        for step in range(steps):
            ends = net(basis)[..., 0]
            losses = torch.nn.functional.softplus(-(signed @ ends[..., None])[..., 0]).sum(1)
            losses.sum().backward()
            if step in kept:
                rows.append((ends.detach().clone(), losses.detach().double().log()))
    return at, torch.stack([e for e, _ in rows], 1), torch.stack([v for _, v in rows], 1)


# ---------------------------------------------------------------- the loss and its gradient, by hand


def look(state, theta):
    """Return what is `Seen` at `theta`, of f(x) = Σ_u c_u φ(w_u · x) and L = Σ_i loss(y_i f(x_i))."""
    w, c = (v if code is None else v * _gain(v, s, code) for v, s, code in _layers(theta, state.codes))
    hidden, back = ACTIVATIONS[state.activation](_product(state.x, w))
    log_value, log_slope = LOSSES[state.loss]
    margins = (hidden * c[:, 0]).sum(1) * state.y
    a = -margins.double()
    log_loss = log_value(a).logsumexp(0)
    delta = (log_slope(a) - log_loss).exp().to(w.dtype) * -state.y
    inner = back(delta[:, None] * c[:, 0])
    outer = (hidden * delta[:, None]).sum(0)[:, None] if state.trained[1] else None
    return Seen(log_loss, margins, [w, c], [_product_back(state.x, inner), outer])


def _layers(theta, codes):
    """Return (v, s, code) of both layers."""
    return zip(theta[::2], theta[1::2], codes, strict=True)


def _product(x, w):
    """Return Σ_i x_i w_i, (N, O, R): one wide product where the runs share x (N, I), else x is (N, I, R)."""
    if x.dim() == 2:
        return (x @ w.flatten(1)).unflatten(1, w.shape[1:])
    return (x[:, :, None] * w).sum(1)


def _product_back(x, delta):
    """Return Σ_n x_n delta_n, (I, O, R)."""
    if x.dim() == 2:
        return (x.t() @ delta.flatten(1)).unflatten(1, delta.shape[1:])
    return (x[:, :, None] * delta[:, None]).sum(0)


def _gain(v, s, code):
    """Return by what v becomes the effective weights, (O, R)."""
    ewn, on = code
    return torch.where(on, torch.where(ewn, s.exp(), s) / v.square().sum(0).sqrt(), 1.0)


def _gradient(state, theta, seen):
    """Return the gradient by `theta`, from G, the slopes by the effective weights w = g v.

    By v: g (G - v <v, G> / |v|²); by s: g <v, G> for EWN, <v, G> / |v| for SWN; without normalisation G and 0.
    """
    gradient = []
    for (v, s, code), slopes, trained in zip(_layers(theta, state.codes), seen.slopes, state.trained, strict=True):
        if not trained or code is None:
            gradient += [slopes if trained else None, None]
            continue
        (ewn, on), square, along, g = code, v.square().sum(0), (v * slopes).sum(0), _gain(v, s, code)
        by_s = torch.where(ewn, g * along, along / square.sqrt()) * on
        gradient += [g * (slopes - v * (along / square * on)), by_s]
    return gradient


# ---------------------------------------------------------------- one attempt


def _start(net, x, y, loss, *rules):
    """Return the descents before their first attempt; `rules`: step, exponent, cap, limit, numbers or one per run."""
    layers = list(nets.layers(net).values())
    choice("loss", loss, LOSSES)
    if len(layers) != 2 or layers[1].weight.shape[1] != 1 or any(m.bias is not None for m in layers):
        shapes = [tuple(m.weight.shape[1:]) for m in layers]
        raise ValueError(f"layers {shapes}: the line search takes one hidden layer and one output, without bias")
    runs, weight = nets.runs(net), layers[0].weight
    x, y = (torch.as_tensor(t, dtype=weight.dtype, device=weight.device) for t in (x, y))
    codes = [[m.norm == twins.EWN, m.norm != twins.NO_WN] if m.norm.any() else None for m in layers]
    theta = [_runs_last(t.detach()).contiguous() for m in layers for t in (m.weight, m.scale)]
    counts = torch.zeros(3, runs, dtype=torch.int64, device=weight.device)
    counts[0] = torch.arange(runs)
    full = [torch.as_tensor(v, dtype=torch.float64, device=weight.device).expand(runs).clone() for v in rules]
    state = State(
        net.activation, loss, tuple(m.weight.requires_grad for m in layers),
        x if x.dim() == 2 else x.permute(1, 2, 0).contiguous(), y.expand(runs, -1).t().contiguous(),
        codes, theta, *counts, torch.zeros_like(full[0]), *full,
    )  # fmt: skip
    seen = look(state, theta)
    return replace(state, log_loss=seen.log_loss, gradient=_gradient(state, theta, seen))


def _runs_last(tensor):
    """Return a tensor with its axes in reverse, so that (R, O, I) becomes (I, O, R), and back."""
    return tensor.permute(*reversed(range(tensor.dim())))


def _attempt(state):
    """Try one step for every run, take it where the loss fell, and return where it did, a bool (R,)."""
    power = torch.where(state.exponent == 0, 0, state.level / state.exponent)
    rate = (state.step * (power + state.log_loss - state.level).exp()).to(state.theta[0].dtype)
    trial = [p if by is None else p - rate * by for p, by in zip(state.theta, state.gradient, strict=True)]
    seen = look(state, trial)
    ratio = (seen.log_loss - state.log_loss).to(rate.dtype).exp()
    moved = seen.log_loss.isfinite() & (seen.log_loss <= state.log_loss) & (ratio > 0)
    new = [*trial, *_gradient(state, trial, seen), seen.log_loss, state.log_loss]
    if not bool(moved.all()):  # never by undoing a step
        old = [*state.theta, *state.gradient, state.log_loss, state.level]
        new = [a if a is None else torch.where(moved, a, b) for a, b in zip(new, old, strict=True)]
    state.theta, state.gradient, (state.log_loss, state.level) = new[:4], new[4:8], new[8:]
    grown = torch.where(state.step < state.cap, state.step * GROWTH, state.step)
    state.step = torch.where(moved, grown, state.step / GROWTH)
    state.taken, state.rejected = state.taken + moved, state.rejected + ~moved
    return moved


# ---------------------------------------------------------------- what is kept


def _empty_result(net, state, budget, keep, points):
    """Return (result, slots): `slots (budget + 1,)` says in which row of the history a step is kept, or -1."""
    at = log_spaced(budget, points)
    slots = torch.full((budget + 1,), -1)
    slots[torch.from_numpy(at)] = torch.arange(len(at))
    runs, wide = len(state.run), sum(m.weight[0].numel() for m in net.layers if m.weight.requires_grad)
    widths = {"weights": wide, "slopes": wide, "margins": len(state.y)}
    if unknown := set(keep) - set(widths):
        raise ValueError(f"keep has {sorted(unknown)}; allowed are {list(widths)}")
    history = {name: torch.full((runs, len(at), widths[name]), torch.nan) for name in keep}
    history["log_loss"] = torch.full((runs, len(at)), torch.nan, dtype=torch.float64)
    zeros = torch.zeros(2, runs, dtype=torch.int64)
    floats = torch.full((2, runs), torch.nan, dtype=torch.float64)
    return Result(copy.deepcopy(net), *zeros, *floats, [""] * runs, at, history), slots


def _record(result, slots, state, fresh):
    """Write the runs that are `fresh` at a step that is kept into the history."""
    due = (fresh & (slots[state.taken] >= 0)).nonzero()[:, 0]
    if not len(due):
        return
    where, wanted = (state.run[due], slots[state.taken[due]]), set(result.history) - {"log_loss"}
    result.history["log_loss"][where] = state.log_loss[due]
    if not wanted:
        return
    own = state.take(due)
    seen = look(own, own.theta)
    kept = {"margins": seen.margins.t()}
    for name, parts in (("weights", seen.weights), ("slopes", seen.slopes)):  # rows in the order of a layer's weight
        rows = [_runs_last(part).flatten(1) for part, trained in zip(parts, state.trained, strict=True) if trained]
        kept[name] = torch.cat(rows, 1)
    for name in wanted:
        result.history[name][where] = kept[name].float()


def _set_aside(result, state, why):
    """Note the ends of runs, and put their weights into the network."""
    run = state.run
    result.steps[run], result.rejected[run] = state.taken, state.rejected
    result.log_loss[run], result.step[run] = state.level, state.step
    for k, reason in zip(run.tolist(), why.to(torch.int8).argmax(0).tolist(), strict=True):
        result.end[k] = ENDS[reason]
    for layer, v, s in zip(result.net.layers, state.theta[::2], state.theta[1::2], strict=True):
        layer.weight[run], layer.scale[run] = _runs_last(v), s.t()
