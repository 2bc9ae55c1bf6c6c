"""Annealing: masks by scores that are made again, round after round, of what is left of the network."""

import copy
import functools

import numpy as np
import torch

from lib import workers
from lib.errors import choice, number, one_each
from lib.networks import nets
from lib.pruning import checks, masks, selection


def anneal(
    score, net, densities, rounds=100, scope="global", rounding="nearest", x=None, y=None, seeds=None, within=None,
):  # fmt: skip
    """Return masks `{name: bool (R, O, *F)}` for each of the densities, reached in rounds that each score what is left.

    Of every run by itself; on a CPU each core makes some. score: one of `scores`, or a `functools.partial` of it for
    its keywords; x, y, seeds: for it. A density is one number, or one per run: after round e of E it is density^(e/E);
    what is pruned stays pruned, and each time exactly `masks.count` weights are kept. SynFlow takes 100 rounds, so that
    no layer is emptied before the others (arXiv 2006.05467); one round prunes at once. scope, rounding, within: see
    `masks.top`. `net` is left as it is. What has a `form` scores the copy that this makes, alike and faster.
    """
    number("rounds", rounds, "[1, 2^31)", whole=True)
    choice("scope", scope, masks.SCOPES[:3])
    own = enumerate(of_each(net, x, y, seeds))
    own = [(*mine, None if within is None else nets.take(masks.assert_named(within), [run])) for run, mine in own]
    jobs = [(*run, goal) for d in densities for run, goal in zip(own, masks.each(d, len(own)), strict=True)]
    device, plan = next(net.parameters()).device, (rounds, scope, rounding)
    every = workers.each(lambda job: _annealed(score, *job, *plan), jobs, device)
    checks.warn_of_blanks([blank for _, blank in every])
    made = [kept for kept, _ in every]
    return [nets.join(made[k : k + len(own)]) for k in range(0, len(jobs), len(own))]


def of_each(net, x, y, seeds):
    """Return an iterator over (network, x, y, seeds) of every run; ValueError for another number of seeds."""
    if seeds is not None:
        one_each(nets.runs(net), seeds=seeds)
    seeds = [None] * nets.runs(net) if seeds is None else [[seed] for seed in seeds]
    return zip(nets.apart(net), nets.of_runs(net, x, 3), nets.of_runs(net, y, 2), seeds, strict=True)


def _annealed(score, net, x, y, seeds, within, goal, rounds, scope, rounding):
    """Return the masks `{name: bool (1, O, *F)}` of one run, and how many the last scores do not tell apart."""
    left = _form(score)(net)
    weights = {name: left.get_parameter(name) for name in nets.weights(left)}
    for name in weights.keys() & (within or {}):
        weights[name].data.masked_fill_(~within[name], 0)
    for e in range(1, rounds + 1):
        scores = score(left, x, y, seeds)
        if e == 1:
            checks.assert_scores(scores, left, where=" in rounds, which are of weights,")
            survivors = _Survivors({name: weights[name] for name in scores}, scope)
            if within is not None:
                survivors.only(masks.inside(within, scores), goal, rounding)
        survivors.keep(scores, goal ** (e / rounds), rounding)
    return (kept := survivors.masks()), checks.blank(scores, kept, scope)


def _form(score):
    """Return what makes the copy of a network that many rounds score, in `eval()` mode, else each would switch it."""
    if isinstance(score, functools.partial):
        return functools.partial(_form(score.func), **score.keywords)
    return getattr(score, "form", lambda net, **options: copy.deepcopy(net).eval())


class _Survivors:
    """The places of the weights that are left in a network of one run, whose others are zero.

    Few are left after some rounds, so what a round takes falls with them, but for its scores.
    """

    @torch.no_grad()
    def __init__(self, weights, scope):
        self.weights, self.joined = weights, torch.cat([w.flatten() for w in weights.values()])
        for w, part in zip(weights.values(), self._parts(self.joined), strict=True):
            w.data = part
        sizes = {"global": [len(self.joined)], "layer": [w.numel() for w in weights.values()]}
        self.sizes = sizes.get(scope) or [w[0, 0].numel() for w in weights.values() for _ in w[0]]
        # Half the memory of the usual type, which is what a round of a large network waits for.
        kind = torch.int32 if len(self.joined) < 2**31 else torch.int64
        places = torch.arange(len(self.joined), dtype=kind, device=self.joined.device)
        self.left, self.room = places.split(self.sizes), self.joined.new_empty(len(self.joined))

    def _parts(self, joined):
        """Return views like the weights of a row of all."""
        parts = joined.split([w.numel() for w in self.weights.values()])
        return [part.view_as(w) for part, w in zip(parts, self.weights.values(), strict=True)]

    def only(self, within, density, rounding):
        """Leave what lies inside of masks; ValueError where that is less than `density` of all."""
        inside = torch.cat([within[name].flatten() for name in self.weights])
        self.left = [_only(places, inside[places.long()]) for places in self.left]
        for size, places in zip(self.sizes, self.left, strict=True):
            masks.assert_left(masks.count(size, density, rounding), len(places))

    @torch.no_grad()
    def keep(self, scores, density, rounding):
        """Zero all but the highest scores of what is left, so many as `density` of all."""
        parts, left = [part.flatten() for part in scores.values()], []
        score = torch.cat(parts, out=self.room if parts[0].dtype == self.room.dtype else None)
        for size, places in zip(self.sizes, self.left, strict=True):
            entries = score if len(places) == len(score) else score.index_select(0, places)
            stay = selection.highest(entries, min(masks.count(size, density, rounding), len(places)))
            self.joined.index_fill_(0, places[(~stay).nonzero()[:, 0]].long(), 0)
            left.append(_only(places, stay))
        self.left = left

    def masks(self):
        """Return the masks of what is left, `{name: bool (1, O, *F)}`."""
        kept = torch.zeros(len(self.joined), dtype=torch.bool, device=self.joined.device)
        kept.index_fill_(0, torch.cat(self.left).long(), True)
        return dict(zip(self.weights, self._parts(kept), strict=True))


def _only(entries, inside):
    """Return the entries `(n,)` that lie inside, a mask."""
    if entries.device.type != "cpu":
        return entries[inside]
    # NumPy's compress takes an eighth of the time of torch's indexing, a quarter of a million entries measured.
    return torch.from_numpy(np.compress(inside.numpy(), entries.numpy()))
