"""Teacher and student: committees of erf units that learn from each other one sample at a time, many in one stack.

A committee says φ(x) = Σ_k v_k erf(w_k·x / √2). With inputs x ~ N(0, 1) of I entries its local fields w_k·x are
Gaussian, so that the mean squared error between two committees is a function of a few order parameters alone
(Saad & Solla 1995; Goldt et al., arXiv 1906.08632): Q = w wᵀ of the student, T = w* w*ᵀ of the teacher, R = w w*ᵀ.
Those papers write x / √I where the weights here are already divided by √I; nothing else differs.
"""

import copy
import math
from typing import NamedTuple

import numpy as np
import torch
from scipy.special import erf
from tqdm.auto import tqdm

from lib import draws
from lib.errors import one_each
from lib.kernels import twins
from lib.networks import nets

LAYER = "layers.0"  # of the local fields, the one that is pruned
DRAWN = 500  # samples that are drawn with one key
BLOCK = 25  # samples whose inner products are computed at once; 16 and 64 are slower
FIELDS_AT_ONCE = 2**23  # activations of one pass through pruned committees, 32 MiB


class Overlaps(NamedTuple):
    """The order parameters, all float64: student (R, K, K), cross (R, K, M), teacher (R, M, M)."""

    student: torch.Tensor
    cross: torch.Tensor
    teacher: torch.Tensor


def committee(runs, inputs, units):
    """Return R committees of `units` erf units over `inputs` entries, their weights not yet set."""
    return nets.MLP([inputs, units, 1], ["no-WN"] * runs, "erf", bias=False)


def _drawn(seeds, inputs, units, purpose, output):
    """Return committees with standard normal weights over √I; `output (units,)` of a generator makes v."""
    net = committee(len(seeds), inputs, units)
    first, last = nets.layers(net).values()
    with torch.no_grad():
        for run, seed in enumerate(seeds):
            stream = draws.generator(seed, purpose)
            first.weight[run] = torch.from_numpy(stream.standard_normal((units, inputs)) / math.sqrt(inputs))
            last.weight[run, 0] = torch.as_tensor(output(stream))
    return net


def teachers(seeds, inputs=500, units=2, v_star=4.0):
    """Return one teacher per seed: normal weights of unit variance over √I, every v equal to `v_star`."""
    return _drawn(seeds, inputs, units, "teacher", lambda stream: np.full(units, v_star))


def students(seeds, inputs=500, units=6, soft=False):
    """Return one student per seed as it starts: standard normal v, all 1 of a soft committee, and w as in a teacher."""
    output = (lambda stream: np.ones(units)) if soft else (lambda stream: stream.standard_normal(units))
    return _drawn(seeds, inputs, units, "student", output)


def samples(seed, inputs, block, purpose="train"):
    """Return x (DRAWN, I) and standard normal noise (DRAWN,), both float32: block `block` of a run's fresh samples.

    From torch's generator, which draws normals three times faster than NumPy's: at 400 million a run that decides.
    """
    key = int(draws.generator(seed, f"committee {purpose}", block).integers(2**63))
    drawn = torch.randn(DRAWN, inputs + 1, generator=torch.Generator().manual_seed(key))
    return drawn[:, :-1], drawn[:, -1]


def count_complaint(count):
    """Return what is wrong with a number of samples, or None."""
    return None if count >= DRAWN and count % DRAWN == 0 else f"samples come in multiples of {DRAWN}"


def many(seed, inputs, count, purpose="test"):
    """Return the first `count` samples of a run, x (count, I) and noise (count,); "train" are those learned from."""
    if complaint := count_complaint(count):
        raise ValueError(f"count is {count}: {complaint}")
    parts = zip(*(samples(seed, inputs, block, purpose) for block in range(count // DRAWN)), strict=True)
    return tuple(torch.cat(part) for part in parts)


# -------------------------------------------------------------------------------------------------- learning


@torch.no_grad()
def learn_(net, teacher, seeds, noise, count=800_000, lr=0.5, bar=True, soft=False):
    """Train the students `net` in place by online SGD; return their history.

    Sample after sample, each seen once, with error Δ = φ(x) - y and label y = φ*(x) + σ ε,

        w_k ← w_k - lr/I Δ v_k g'(w_k·x) x,      v_k ← v_k - lr/I Δ g(w_k·x),      g(h) = erf(h / √2)

    which is the published scaling for weights that are divided by √I. noise: σ, one number per run; seeds: one per run;
    runs of one seed see the same inputs. soft: v stays, as in a soft committee (Saad & Solla 1995). `count` is a
    multiple of `DRAWN`. On the CPU: a step is too small to pay elsewhere. History: samples (T,), error (R, T), closed
    form, at about 60 times, equally far apart in log.
    """
    one_each(nets.runs(net), teachers=range(nets.runs(teacher)), seeds=seeds, noise=noise)
    if count_complaint(count) or not lr > 0:
        raise ValueError(f"count is {count}, lr {lr}; allowed are multiples of {DRAWN} and rates above 0")
    inputs, blocks = nets.layers(net)[LAYER].weight.shape[2], count // DRAWN
    marks = {0, blocks, *np.geomspace(1, blocks, 60).astype(int).tolist()}
    distinct = list(dict.fromkeys(seeds))
    which = torch.tensor([distinct.index(seed) for seed in seeds])
    sigma, at, errors = torch.tensor(noise, dtype=torch.float32), [], []
    state = _State(net, lr, soft)
    for block in tqdm(range(blocks + 1), desc="learning", unit_scale=DRAWN, unit=" samples", disable=not bar):
        if block in marks:
            state.write_(net)
            at, errors = [*at, block * DRAWN], [*errors, error(net, teacher, noise)]
        if block < blocks:
            drawn = [samples(seed, inputs, block) for seed in distinct]
            x, epsilon = (torch.stack(parts) for parts in zip(*drawn, strict=True))
            for part in (slice(k, k + BLOCK) for k in range(0, DRAWN, BLOCK)):
                shown = x[which, part]
                state.learn(shown, _answers(teacher, shown) + sigma[:, None] * epsilon[which, part])
    return {"samples": np.array(at), "error": torch.stack(errors, 1).numpy()}


def _answers(net, x):
    return net(x)[:, :, 0]


class _State:
    """The weights of students while they learn, float64: w (R, K, I), and v (K, R), runs last as NumPy wants them.

    A block's inputs enter by their inner products alone: after the steps s < t of the block, each of which moved w by
    -lr/I c_s x_s, the field of sample t is w·x_t - lr/I Σ_s c_s x_s·x_t, with w as it was before the block. So all work
    on I numbers is matrix products, and only what has K goes step by step. That is exact.
    """

    def __init__(self, net, lr, soft=False):
        first, last = (layer.weight.double() for layer in nets.layers(net).values())
        self.w, self.v = first, last[:, 0].t().numpy().copy()
        self.rate = lr / first.shape[2]
        self.output_rate = 0.0 if soft else self.rate

    def write_(self, net):
        first, last = nets.layers(net).values()
        first.weight.copy_(self.w)
        last.weight[:, 0].copy_(torch.from_numpy(self.v).t())

    def learn(self, x, y):
        """Take one step for each sample of `x (R, B, I)` with labels `y (R, B)`, one after the other."""
        # Fields over √2 throughout: then g(h) is erf of them and g'(h) is √(2/π) exp(-their square).
        fields = torch.bmm(x, self.w.to(x.dtype).mT).permute(1, 2, 0).double().numpy() * math.sqrt(0.5)
        products = torch.bmm(x, x.mT).permute(1, 2, 0).double().numpy() * (self.rate / math.sqrt(math.pi))
        steps, labels = np.empty_like(fields), y.t().double().numpy()
        for t in range(len(fields)):
            h = fields[t]
            g = erf(h)
            wrong = np.einsum("kr,kr->r", self.v, g) - labels[t]
            np.multiply(self.v * wrong, np.exp(-h * h), out=steps[t])
            self.v -= g * (self.output_rate * wrong)
            fields[t + 1 :] -= products[t + 1 :, t, None] * steps[t]
        moves = torch.from_numpy(steps).permute(2, 1, 0).to(x.dtype)
        self.w -= (self.rate * math.sqrt(2 / math.pi)) * torch.bmm(moves, x)


# -------------------------------------------------------------------------------------------------- what they know


@torch.no_grad()
def overlaps(net, teacher):
    """Return the `Overlaps` of R students with their teachers; a single teacher serves all students."""
    w, w_star = (nets.layers(n)[LAYER].weight.double() for n in (net, teacher))
    return Overlaps(w @ w.mT, w @ w_star.mT, w_star @ w_star.mT)


@torch.no_grad()
def error(net, teacher, noise=0.0):
    """Return half the mean squared error of each student on fresh samples, `(R,) float64`, in closed form.

    E g(a) g(b) = (2/π) asin(C_ab / √((1 + C_aa)(1 + C_bb))) for jointly Gaussian a and b of covariance C (Saad & Solla
    1995), here for all pairs of units in both committees, whose joint v are (v, -v*). Half the label's variance is
    added. noise: σ, one for all, or one per run.
    """
    order, runs = overlaps(net, teacher), nets.runs(net)
    v, v_star = (n.layers[1].weight[:, 0].double() for n in (net, teacher))
    both = torch.cat([v, -v_star.expand(runs, -1)], 1)
    upper = torch.cat([order.student, order.cross], 2)
    covariance = torch.cat([upper, torch.cat([order.cross.mT, order.teacher.expand(runs, -1, -1)], 2)], 1)
    lengths = 1 + covariance.diagonal(dim1=1, dim2=2)
    angles = (covariance / (lengths[:, :, None] * lengths[:, None, :]).sqrt()).asin()
    sigma = torch.as_tensor(noise, dtype=torch.float64)
    return torch.einsum("rj,rk,rjk->r", both, both, angles) / math.pi + sigma.square() / 2


def random_edges(share, teachers=2, each=3, v_star=4.0, noise=0.0):
    """Return the `error` that a share of random edges leaves of a perfect student, of infinitely many inputs.

    Perfect: `each` of its units are copies of one of the `teachers` units, with v* / each as their v. A kept share c of
    the edges, other ones for every unit, makes Q_kk = c, Q_kl = c² between copies, and R = c (Acharyya et al.).
    """
    own, other = math.asin(share / (1 + share)), math.asin(share**2 / (1 + share))
    student = other + (own - other) / each
    cross, teacher = math.asin(share / math.sqrt(2 * (1 + share))), math.pi / 6
    return teachers * v_star**2 * (student + teacher - 2 * cross) / math.pi + noise**2 / 2


@torch.no_grad()
def simulated(net, teacher, x, epsilon, noise=0.0):
    """Return half the mean squared error and its standard error, two `(R,) float64`, on `x (N, I)`, `epsilon (N,)`.

    All students answer the same fresh samples (`many`), labelled by the single `teacher` with noise σ.
    """
    first = nets.layers(net)[LAYER].weight
    size = max(1, FIELDS_AT_ONCE // first[..., 0].numel())
    total = squares = 0.0
    for part, its in zip(x.split(size), epsilon.split(size), strict=True):
        losses = (_answers(net, part) - _answers(teacher, part) - noise * its).double().square() / 2
        total, squares = total + losses.sum(1), squares + losses.square().sum(1)
    mean = total / len(x)
    return mean, ((squares / len(x) - mean.square()) / (len(x) - 1)).sqrt()


def normalised(net):
    """Return the committees with every w_k of length 1, as the study prunes them; v stays."""
    other = copy.deepcopy(net)
    weight = nets.layers(other)[LAYER].weight
    with torch.no_grad():
        weight /= twins.lengths(weight)[:, :, None]
    return other


def matched(net, teacher):
    """Return the committees with units in the order of their teachers': by the teacher unit that each overlaps most.

    Units of one teacher unit stand by falling overlap. The same function: only the numbering changes.
    """
    cross = overlaps(net, teacher).cross.abs()
    best = cross.max(2)
    other = copy.deepcopy(net)
    first, last = nets.layers(other).values()
    with torch.no_grad():
        for run, (whose, size) in enumerate(zip(best.indices, best.values, strict=True)):
            order = np.lexsort((-size.numpy(), whose.numpy()))
            first.weight[run], last.weight[run] = first.weight[run, order], last.weight[run][:, order]
    return other
