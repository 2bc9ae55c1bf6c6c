"""Full-batch descents of stacks of small networks: a step that grows as the loss falls, down to e^-300.

This is Algorithm A of arXiv 2010.12909 (lin-sep, XOR, simple-traj), and plain gradient descent beside it. The
networks have one hidden layer without bias and one output, so the gradient is written out by hand.

Inside this file the run axis is the LAST one. A toy has two inputs and twenty units: with the runs last, every
sum over inputs, units or examples adds long rows, 5 to 8 times faster on a CPU than sums of four numbers each.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from tqdm.auto import tqdm

from lib.kernels import twins
from lib.networks import nets

GROWTH = 1.1
FIRST_STEP = 0.01
SMALLEST_STEP = 1e-30  # a run whose step has shrunk to this has stalled
ENDS = ("limit", "budget", "stalled")

# With a = -margin: the log of an example's loss, and the log of that loss's derivative by a.
LOSSES = {
    "logistic": (twins.log_softplus, torch.nn.functional.logsigmoid),
    "exponential": (lambda a: a, lambda a: a),
}
ACTIVATIONS = {  # z -> (value, function that carries a gradient back through it)
    "none": lambda z: (z, lambda d: d),
    "relu": lambda z: (z.clamp_min(0), lambda d: torch.ops.aten.threshold_backward(d, z, 0)),
    "relu2": lambda z: ((h := z.clamp_min(0)).square(), lambda d: d * (2 * h)),
}


class Layer(NamedTuple):
    """One layer's v (I, O, R) and s (O, R), or the gradient of both; None where nothing is trained."""

    v: torch.Tensor | None
    s: torch.Tensor | None


class Codes(NamedTuple):
    """How the units of one layer are normalised: bools (R,), and two facts about the layer as a whole."""

    ewn: torch.Tensor
    on: torch.Tensor
    normalised: bool
    trained: bool


class Problem(NamedTuple):
    """What does not change along a descent: x (N, I), or (N, I, R) by run; y (N, R) of ±1; the two layers."""

    x: torch.Tensor
    y: torch.Tensor
    codes: tuple
    activation: str
    loss: str

    def take(self, chosen):
        """Return the problem of the runs `chosen (K,)`; what they share stays."""
        x = self.x if self.x.dim() == 2 else _pick(self.x, chosen)
        return self._replace(x=x, y=_pick(self.y, chosen), codes=_pick(self.codes, chosen))


class Seen(NamedTuple):
    """The network at one point: log L (R,) float64, margins (N, R); by layer effective weights w and ∂ log L/∂w."""

    log_loss: torch.Tensor
    margins: torch.Tensor
    weights: list
    slopes: list


@dataclass
class State:
    """R descents between two attempts; every tensor ends in R.

    `level` is the log-loss one step back: the loss is rescaled by it. log_loss and gradient (of log L) are at
    `theta`. step is ρ; taken and rejected count the attempts.
    """

    run: torch.Tensor
    problem: Problem
    theta: list
    log_loss: torch.Tensor
    gradient: list
    level: torch.Tensor
    step: torch.Tensor
    taken: torch.Tensor
    rejected: torch.Tensor
    exponent: torch.Tensor
    cap: torch.Tensor
    limit: torch.Tensor

    def take(self, chosen):
        """Return the descents of the runs `chosen (K,)`, copied."""
        own = {k: _pick(v, chosen) for k, v in vars(self).items() if k != "problem"}
        return State(problem=self.problem.take(chosen), **own)


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
        chosen = thin(self.at[: np.searchsorted(self.at, int(self.steps[runs].max()))], limit)
        return self.at[chosen], {name: values[runs][:, chosen] for name, values in self.history.items()}


def thin(at, limit):
    """Return up to `limit` positions in the steps `at`, log-spaced and with both ends."""
    return np.unique(np.searchsorted(at, log_spaced(at[-1] + 1, limit)))


def log_spaced(steps, points):
    """Return up to `points` of the steps 0 to steps - 1, log-spaced and with both ends."""
    return np.unique(np.geomspace(1, steps, points).round().astype(int) - 1)


@torch.no_grad()
def search(net, x, y, exponent, cap, limit, *, first=FIRST_STEP, budget=100_000, loss="logistic", keep=(), points=400):
    """Return the `Result` of descending the summed loss of every run of `net`, each by its own line search.

    One attempt: with ℓ the log-loss one step back (0 at first), θ' = θ - ρ exp(ℓ / exponent) ∇(L / e^ℓ). Where the
    loss at θ' is larger, not finite, or vanishes beside the one at θ, the run stays at θ and ρ shrinks by 1.1;
    elsewhere it moves, and ρ grows by 1.1 unless it has reached `cap`, so it may end up to 1.1 times higher. A run
    ends when the loss that it left behind is below e^-limit. Runs do not wait for each other: while one tries
    again, the others take their next step.

    net: `nets.MLP` of one hidden layer and one output, without bias; weights that require no gradient stay.
    x (N, I), or (R, N, I) by run; y (N,) or (R, N) of ±1. exponent (0: the rate is ρ), cap, limit: one number, or
    one per run. keep: which of "weights", "slopes" and "margins" go into the history beside the log-loss, at up to
    `points` log-spaced steps of the `budget`.
    """
    state = _start(net, x, y, loss, first, exponent, cap, limit)
    result, slots = _empty_result(net, state, budget, keep, points)
    _record(result, slots, state, torch.ones_like(state.taken, dtype=torch.bool))
    with tqdm(total=len(state.run), unit="run", mininterval=1.0) as bar:
        while len(state.run):
            moved = _attempt(state)
            why = _reasons_to_end(state, moved, budget)
            over = why.any(0)
            _record(result, slots, state, moved & ~over)
            if bool(over.any()):
                _set_aside(result, state.take(over.nonzero()[:, 0]), why[:, over])
                state = state.take((~over).nonzero()[:, 0])
                bar.update(int(over.sum()))
    return result


def gradient_descent(net, x, y, rate, steps, points=200):
    """Return (at (T,), end-to-end weights (R, T, I), log-losses (R, T)) of plain gradient descent, rate constant.

    net: an `nets.MLP` of any depth without activation and bias, taken in place through `steps` steps on the summed
    logistic loss. It is one linear map, so it is asked for its end-to-end weights alone, and only they meet the
    examples x (R, N, I) or (N, I), y (R, N) or (N,) of ±1. Both histories are of log-spaced steps, before the update.
    """
    weight = net.layers[0].weight
    basis = torch.eye(weight.shape[2], dtype=weight.dtype, device=weight.device)
    rates = torch.full(weight.shape[:1], rate, dtype=weight.dtype, device=weight.device)
    signed = x * y[..., None]
    at = log_spaced(steps, points)
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


def look(problem, theta):
    """Return what is `Seen` at `theta`, of f(x) = Σ_u c_u φ(w_u · x) and L = Σ_i loss(y_i f(x_i))."""
    w, c = (_effective(*pair) for pair in zip(theta, problem.codes, strict=True))
    hidden, back = ACTIVATIONS[problem.activation](_product(problem.x, w))
    log_value, log_slope = LOSSES[problem.loss]
    margins = (hidden * c[:, 0]).sum(1) * problem.y
    a = -margins.double()
    log_loss = log_value(a).logsumexp(0)
    delta = (log_slope(a) - log_loss).exp().to(w.dtype) * -problem.y
    inner = back(delta[:, None] * c[:, 0])
    outer = (hidden * delta[:, None]).sum(0)[:, None] if problem.codes[1].trained else None
    return Seen(log_loss, margins, [w, c], [_product_back(problem.x, inner), outer])


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


def _effective(layer, codes):
    """Return the effective weights of a layer, (I, O, R)."""
    return layer.v * _gain(layer, codes) if codes.normalised else layer.v


def _gain(layer, codes):
    size = torch.where(codes.ewn, layer.s.exp(), layer.s)
    return torch.where(codes.on, size / layer.v.square().sum(0).sqrt(), 1.0)


def pull_back(layer, codes, slopes):
    """Return the gradient by v and s, from G, the `slopes` by the effective weights w = g v.

    By v: g (G - v <v, G> / |v|²); by s: g <v, G> for EWN, <v, G> / |v| for SWN; without normalisation G and 0.
    """
    if not (codes.trained and codes.normalised):
        return Layer(slopes if codes.trained else None, None)
    square, along, g = layer.v.square().sum(0), (layer.v * slopes).sum(0), _gain(layer, codes)
    by_s = torch.where(codes.ewn, g * along, along / square.sqrt()) * codes.on
    return Layer(g * (slopes - layer.v * (along / square * codes.on)), by_s)


def _gradient(problem, theta, seen):
    return [pull_back(*parts) for parts in zip(theta, problem.codes, seen.slopes, strict=True)]


# ---------------------------------------------------------------- one attempt


def _start(net, x, y, loss, first, *rules):
    """Return the descents before their first attempt; `rules`: exponent, cap and limit, one number or one per run."""
    _check(net, loss)
    layers = list(net.layers)
    weight, runs = layers[0].weight, nets.runs(net)
    theta = [Layer(m.weight.detach().permute(2, 1, 0).contiguous(), m.scale.detach().t().contiguous()) for m in layers]
    x, y = (torch.as_tensor(t, dtype=weight.dtype, device=weight.device) for t in (x, y))
    x, y = x if x.dim() == 2 else x.permute(1, 2, 0).contiguous(), y.expand(runs, -1).t().contiguous()
    problem = Problem(x, y, tuple(_codes(m) for m in layers), net.activation, loss)
    seen = look(problem, theta)
    full = [torch.as_tensor(v, dtype=torch.float64, device=weight.device).expand(runs).clone() for v in (first, *rules)]
    counts = torch.zeros(3, runs, dtype=torch.int64, device=weight.device)
    counts[0] = torch.arange(runs)
    return State(
        counts[0], problem, theta, seen.log_loss, _gradient(problem, theta, seen), torch.zeros_like(full[0]),
        full[0], counts[1], counts[2], *full[1:],
    )  # fmt: skip


def _codes(layer):
    """Return the `Codes` of a layer of the network."""
    code = layer.norm
    return Codes(code == twins.EWN, code != twins.NO_WN, bool(code.any()), layer.weight.requires_grad)


def _check(net, loss):
    layers = list(net.layers)
    if loss not in LOSSES:
        raise ValueError(f"loss is {loss!r}; allowed are {list(LOSSES)}")
    if len(layers) != 2 or layers[1].weight.shape[1] != 1 or any(m.bias is not None for m in layers):
        shapes = [tuple(m.weight.shape[1:]) for m in layers]
        raise ValueError(f"layers {shapes}: the line search takes one hidden layer and one output, without bias")


def _attempt(state):
    """Try one step for every run, take it where the loss fell, and return where it did, a bool (R,)."""
    power = torch.where(state.exponent == 0, 0, state.level / state.exponent)
    rate = (state.step * (power + state.log_loss - state.level).exp()).to(state.theta[0].v.dtype)
    trial = [_moved(layer, by, rate) for layer, by in zip(state.theta, state.gradient, strict=True)]
    seen = look(state.problem, trial)
    ratio = (seen.log_loss - state.log_loss).to(rate.dtype).exp()
    moved = seen.log_loss.isfinite() & (seen.log_loss <= state.log_loss) & (ratio > 0)
    new = trial, _gradient(state.problem, trial, seen), seen.log_loss, state.log_loss
    old = state.theta, state.gradient, state.log_loss, state.level
    state.theta, state.gradient, state.log_loss, state.level = _choose(moved, new, old)
    grown = torch.where(state.step < state.cap, state.step * GROWTH, state.step)
    state.step = torch.where(moved, grown, state.step / GROWTH)
    state.taken, state.rejected = state.taken + moved, state.rejected + ~moved
    return moved


def _reasons_to_end(state, moved, budget):
    """Return which of `ENDS` hold for every run, bool (3, R)."""
    at_limit = moved & (state.level < -state.limit)
    return torch.stack((at_limit, state.taken >= budget, state.step <= SMALLEST_STEP))


def _moved(layer, gradient, rate):
    """Return a layer one step further; what has no gradient is the same tensor."""
    return Layer(*(p if by is None else p - rate * by for p, by in zip(layer, gradient, strict=True)))


def _choose(moved, new, old):
    """Return `new` for the runs that moved and `old` for the others, tensor by tensor; never by undoing a step."""
    if bool(moved.all()):
        return new
    return _map(lambda a, b: torch.where(moved, a, b), new, old)


def _pick(tree, chosen):
    return _map(lambda t: t.index_select(-1, chosen), tree)


def _map(function, *trees):
    """Return the tree of `function` of the tensors at each place of trees of tuples and lists; the rest stays."""
    first = trees[0]
    if isinstance(first, torch.Tensor):
        return function(*trees)
    if isinstance(first, tuple | list):
        parts = [_map(function, *parts) for parts in zip(*trees, strict=True)]
        return first._make(parts) if hasattr(first, "_make") else tuple(parts)
    return first


# ---------------------------------------------------------------- what is kept


def _empty_result(net, state, budget, keep, points):
    """Return (result, slots): `slots (budget + 1,)` says in which row of the history a step is kept, or -1."""
    at = log_spaced(budget, points)
    slots = torch.full((budget + 1,), -1)
    slots[torch.from_numpy(at)] = torch.arange(len(at))
    runs, trained = len(state.run), [layer for layer in net.layers if layer.weight.requires_grad]
    wide = sum(layer.weight[0].numel() for layer in trained)
    widths = {"weights": wide, "slopes": wide, "margins": len(state.problem.y)}
    unknown = set(keep) - set(widths)
    if unknown:
        raise ValueError(f"keep has {sorted(unknown)}; allowed are {list(widths)}")
    history = {name: torch.full((runs, len(at), widths[name]), torch.nan) for name in keep}
    history["log_loss"] = torch.full((runs, len(at)), torch.nan, dtype=torch.float64)
    zeros = torch.zeros(2, runs, dtype=torch.int64)
    floats = torch.full((2, runs), torch.nan, dtype=torch.float64)
    return Result(net, *zeros, *floats, [""] * runs, at, history), slots


def _record(result, slots, state, fresh):
    """Write the runs that are `fresh` at a step that is kept into the history."""
    due = (fresh & (slots[state.taken] >= 0)).nonzero()[:, 0]
    if not len(due):
        return
    where = state.run[due], slots[state.taken[due]]
    result.history["log_loss"][where] = state.log_loss[due]
    if len(result.history) == 1:
        return
    seen, codes = look(state.problem.take(due), _pick(state.theta, due)), state.problem.codes
    found = {"weights": seen.weights, "slopes": seen.slopes}
    kept = {name: torch.cat([_rows(t) for t, c in zip(found[name], codes, strict=True) if c.trained], 1)
            for name in found}  # fmt: skip
    kept["margins"] = seen.margins.t()
    for name in set(result.history) - {"log_loss"}:
        result.history[name][where] = kept[name].float()


def _rows(tensor):
    """Return `(I, O, R)` as rows `(R, O I)`, in the order of a layer's weight."""
    return tensor.permute(2, 1, 0).flatten(1)


def _set_aside(result, state, why):
    """Note the ends of runs, and put their weights into the network."""
    run = state.run
    result.steps[run], result.rejected[run] = state.taken, state.rejected
    result.log_loss[run], result.step[run] = state.level, state.step
    for k, reason in zip(run.tolist(), why.to(torch.int8).argmax(0).tolist(), strict=True):
        result.end[k] = ENDS[reason]
    for layer, theta in zip(result.net.layers, state.theta, strict=True):
        layer.weight[run], layer.scale[run] = theta.v.permute(2, 1, 0), theta.s.t()
