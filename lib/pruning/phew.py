"""PHEW: which weights of an untrained network to keep, by biased random walks and without data (arXiv 2010.11354).

A forward walk draws its way from an input unit to the output, a reverse walk from an output unit to the input; every
step takes a weight with a probability in proportion to its magnitude, and every weight taken is kept. Walks alternate
and go on until enough weights are kept. They never look at what is kept already, so they are independent of each other:
here many are drawn at once, every weight remembers the first walk that took it, and "until enough" is a cut through
these numbers, at the walk at which drawing one after another would stop.

This file needs torch alone: copy it, and `weight_masks, bias_masks = phew_masks(network, 95)` prunes any network.
"""

import hashlib
import math
from typing import NamedTuple

import torch
from torch import fx, nn

BATCH = 2**16  # walks drawn at once, which no mask depends on; so many without one new weight are an error
NEVER = 2**31 - 1  # the "first walk" of a weight that no walk took
TRACE = 1e-300  # added to every preference: nothing beside a weight, and it makes a row of zeros uniform
EVEN = 1e-5  # keeps an inverted preference within a kernel finite, as published
# SplitMix64 (Steele, Lea & Flood 2014) in signed integers: its increment, and its mixer's shifts and factors.
GOLDEN = 0x9E3779B97F4A7C15 - 2**64
MIXER = ((30, 0xBF58476D1CE4E5B9 - 2**64), (27, 0x94D049BB133111EB - 2**64), (31, 1))

WEIGHTED = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
# What leaves every unit a unit: pools, the classes of these parts of torch.nn, functions and methods of these names.
UNIT_WISE_PARTS = set("activation batchnorm dropout flatten instancenorm linear normalization pooling".split())
UNIT_WISE = """relu relu_ relu6 leaky_relu elu selu gelu silu mish softplus hardswish hardtanh sigmoid tanh clamp square
    dropout dropout2d batch_norm flatten view reshape mean squeeze contiguous softmax log_softmax""".split()
SUMS, SIZES = ["add", "add_", "iadd"], ["size", "getattr", "dim"]
WAY_OUT = "Walks pass layers, sums, pools and what works on single units; else write the hops by hand and call `masks`"


class Hop(NamedTuple):
    """A weight layer, or None for an identity, between groups of units: 0 is the input, the last one the output."""

    layer: str | None
    source: int
    target: int


def phew_masks(network, prune_percentage, verbose=True, kernel_conserved=False, *, seed=0, **options):
    """Return (weight_masks, bias_masks), float 0/1 tensors for every convolution and linear layer, as registered.

    `network` is a torch module, read by `topology` and left as it is. A weight mask has shape, type and device of its
    weights; a bias mask `(O,)`, on the CPU, is 1 where a unit keeps an incoming weight. Of the N weights
    `prune_percentage`, in [0, 100), go: walks end when int((1 - prune_percentage / 100) · N) are kept, so that a few
    more may stay. `kernel_conserved` keeps whole kernels. `options`: see `masks`.
    """
    if not 0 <= prune_percentage < 100:
        raise ValueError(f"prune_percentage is {prune_percentage}; allowed is 0 <= prune_percentage < 100")
    weights = {f"{name}.weight": layer.weight.detach()[None] for name, layer in _layers(network).items()}
    kept = masks(topology(network), weights, 1 - prune_percentage / 100, [seed], kernels=kernel_conserved, **options)
    weight_masks = [kept[name][0].to(weight.dtype) for name, weight in weights.items()]
    if verbose:
        stay, total = (sum(int(count(mask)) for mask in weight_masks) for count in (torch.count_nonzero, torch.numel))
        print(f"PHEW keeps {stay} of {total} weights, a sparsity of {1 - stay / total:.4f}")
    return weight_masks, [kept[name][0].flatten(1).any(1).float().cpu() for name in weights]


@torch.no_grad()
def masks(hops, weights, density, seeds, *, exact=False, batch=BATCH, **options):
    """Return `{name: bool like the weight}` of a stack of runs; for a list of densities a list of such masks.

    `hops` in forward order, as of `topology`; `weights` `{layer + ".weight": (R, O, I, *kernel)}`; a seed per run. Kept
    are int(density · N) weights of all layers together, and what the last walk takes beyond that; `exact` drops this
    surplus, the weights that it took last. Masks of several densities come from one series of walks, so that a denser
    one contains a sparser one. `batch` is how many walks are drawn at once. `options`: see `Walks`.
    """
    several = isinstance(density, list | tuple)
    levels, runs = [float(d) for d in (density if several else [density])], len(next(iter(weights.values())))
    if not all(0 < level <= 1 for level in levels):
        raise ValueError(f"density is {density}; allowed is 0 < density <= 1 (density = kept / total)")
    if len(seeds) != runs:
        raise ValueError(f"{len(seeds)} seeds for a stack of {runs} runs; one per run is needed")
    out = [{name: torch.empty_like(weight, dtype=torch.bool) for name, weight in weights.items()} for _ in levels]
    for run, seed in enumerate(seeds):
        walks = Walks(hops, {name: weight[run] for name, weight in weights.items()}, seed, **options)
        if exact and walks.whole:
            raise ValueError("exact trims single weights, but whole kernels are to be kept; leave out one of the two")
        targets = [int(level * walks.total) for level in levels]
        first, kept = walks.until(max((target for target in targets if target < walks.total), default=0), batch)
        for level, target in zip(out, targets, strict=True):
            for name, part in walks.by_layer(_taken(first, kept, target, exact)).items():
                level[f"{name}.weight"][run] = part.view_as(level[f"{name}.weight"][run])
    return out if several else out[0]


class Walks:
    """All walks of one run: walk number t is the same whenever, and beside whichever others, it is drawn.

    power: the preference for a weight is |w|^power; 1 is PHEW, 2 PHEW2, 0 a uniform walk. invert: units are preferred
    by its inverse (Inverse PHEW). kernels: a step takes the whole kernel. kernel_walk: so it does, and projection
    shortcuts are kept whole instead of being walked (Kernel PHEW). legacy_branch: forward walks decide on a projection
    shortcut one layer early, at the last layer of the block before, as published. Even walks go forward, odd ones back;
    both take their first units in turn. At a fork all branches of weights are as likely; identities are a last resort.
    """

    def __init__(
        self, hops, weights, seed, *, power=1, invert=False, kernels=False, kernel_walk=False, legacy_branch=False
    ):
        hops = [Hop(hop.layer, hop.source, hop.target) for hop in hops]
        self.width, shortcuts = _widths(hops, weights), _shortcuts(hops, weights)
        avoided = shortcuts if kernel_walk else set()
        early = _early(hops, shortcuts, self.width) if legacy_branch else {}
        self.plans = _plan(hops, False, avoided, early), _plan(hops, True, avoided, {})
        walked = {name for plan in self.plans for branches in plan.values() for _, name, _ in branches}
        self.full, self.starts, self.whole = avoided - walked, (0, max(self.width)), kernels or kernel_walk
        self.layers, self.total, self.device = {}, 0, next(iter(weights.values())).device
        for name, source, _ in (hop for hop in hops if hop.layer is not None):
            weight = weights[f"{name}.weight"].detach()
            self.layers[name] = _Layer(name, weight, self.width[source], (power, invert), self.whole, self.total)
            self.total += weight.numel()
        key = hashlib.blake2b(f"{int(seed)}/phew".encode(), digest_size=8).digest()
        self.key = int.from_bytes(key, "little", signed=True)

    def by_layer(self, values):
        """Return the parts of a tensor `(N,)`, one value for every weight of the network, by layer in forward order."""
        return dict(zip(self.layers, values.split([x.kernels.numel() for x in self.layers.values()]), strict=True))

    def take(self, start, stop):
        """Return the weights that the walks `start` to `stop` - 1 take, counted through all layers, and each's walk."""
        sides = [torch.arange(start + (start + back) % 2, stop, 2, device=self.device) for back in (0, 1)]
        steps = [step for back, walks in enumerate(sides) for step in self._walk(walks, back)]
        return tuple(map(torch.cat, zip(*steps, strict=True)))

    def _walk(self, walks, back):
        """Return [(weights, walks)] of all forward, or all reverse, walks given, layer by layer."""
        plan, start = self.plans[back], self.starts[back]
        draws = _draws(self.key, walks, plan)
        unit, everyone = (walks // 2) % self.width[start], torch.arange(len(walks), device=self.device)
        steps, arrived = [], {start: [everyone]}
        for group, branches in plan.items():
            parts = arrived.pop(group, [everyone[:0]])
            here = parts[0] if len(parts) == 1 else torch.cat(parts)
            fork = (draws[-1 - group][0][here] * len(branches)).long() if len(branches) > 1 else None
            for branch, (number, name, there) in enumerate(branches):
                on = here if fork is None else here[fork == branch]
                arrived.setdefault(there, []).append(on)
                if name is not None and len(on):
                    on = slice(None) if len(on) == len(walks) else on  # a view, not a gather
                    unit[on], taken = self.layers[name].step(unit[on], back, *(draw[on] for draw in draws[number]))
                    taken_by = walks[on] if taken.dim() == 1 else walks[on, None].expand_as(taken)
                    steps.append((taken.flatten(), taken_by.flatten()))
        return steps

    def until(self, goal, batch=BATCH):
        """Return every weight's first walk `(N,)`, `NEVER` if none, and the number `(T + 1,)` kept by 0 to T walks.

        Walks are drawn until `goal` weights are kept, and maybe some more.
        """
        first = torch.full((self.total,), NEVER, dtype=torch.int32, device=self.device)
        gains, kept, done, idle = [torch.zeros(1, dtype=torch.int64, device=self.device)], 0, 0, 0
        wanted = self._expected(goal)
        while kept < goal:
            count = min(batch, max(wanted - done, 16))
            gains.append(self._gain(first, done, count))
            new, recent = int(gains[-1].sum()), float(gains[-1][count // 2 :].double().mean())
            kept, done, idle = kept + new, done + count, 0 if new else idle + count
            if idle >= BATCH or done + batch >= NEVER:
                found = f"{kept} of {goal} weights, after which {idle} walks found no new one: the rest are nearly zero"
                raise ValueError(f"walks found {found}. Take a density below {kept / self.total:.4f}, or power=0")
            wanted = max(wanted, done + math.ceil(1.1 * (goal - kept) / max(recent, goal / NEVER)))
        return first, torch.cat(gains).cumsum(0).cpu()

    def _gain(self, first, done, count):
        """Return the number of new weights `(count,)` of each walk from `done` on, having put them into `first`."""
        taken, walks = self.take(done, done + count)
        first.scatter_reduce_(0, taken, walks.int(), "amin")
        gain = walks.new_zeros(count).scatter_add_(0, walks - done, (first[taken] == walks).long())
        for name in self.full if done == 0 else ():
            gain[0] += self.by_layer(first)[name].zero_().numel()
        return gain

    def _expected(self, target):
        """Return about how many walks keep `target` weights, were the weights Gaussian and all units met equally often.

        A weight w of a layer of n, of which a walk takes q on average, escapes T walks with probability
        exp(-T q |w| / (n E|w|)); the mean of this over a Gaussian w is erfcx(√π/2 · T q / n).
        """
        sides = [_shares(plan, start) for plan, start in zip(self.plans, self.starts, strict=True)]
        each = torch.tensor([x.taken * sum(q.get(name, 0) for q in sides) / 2 for name, x in self.layers.items()])
        size = torch.tensor([float(layer.kernels.numel()) for layer in self.layers.values()])
        walks = target / float(each.sum()) * torch.logspace(0, 4, 400)
        kept = size * (1 - torch.special.erfcx(math.pi**0.5 / 2 * walks[:, None] * each / size))
        return math.ceil(walks[min(int((kept.sum(1) < target).sum()), len(walks) - 1)])


def _taken(first, kept, target, exact):
    """Return which weights `(N,)` are taken by the walk that reaches `target`, less its last ones if `exact`."""
    last = int(torch.searchsorted(kept, target)) - 1 if target < len(first) else NEVER  # all, whatever walks find
    taken = first <= last
    if exact and last < NEVER:
        newest, surplus = (first == last).nonzero()[:, 0], int(kept[last + 1]) - target
        taken[newest[:surplus] if last % 2 else newest[len(newest) - surplus :]] = False
    return taken


class _Layer:
    """One weight layer of one run as walks see it: a table for each direction, and its place among all weights."""

    def __init__(self, name, weight, inputs, preference, whole, start):
        units, self.fan_in = weight.shape[:2]
        self.features, groups = (self.fan_in // inputs, 1) if weight.dim() == 2 else (1, inputs // self.fan_in)
        self.units, self.groups, self.start = units // groups, groups, start
        self.kernels, (self.power, self.invert) = weight.reshape(units * self.fan_in, -1), preference
        self.cells = self.kernels.shape[1]
        self.taken = self.cells if whole else 1  # weights that a step takes
        liking = self.kernels.abs().double().pow_(self.power)
        if self.cells > 1:  # a product with ones is many times faster than a sum over so few
            liking = liking @ liking.new_ones(self.cells)
        if not math.isfinite(float(liking.sum())):
            raise ValueError(f"a weight of {name}, or its power {self.power}, is not finite; walks cannot weigh it")
        liking = liking.add_(TRACE).reciprocal_() if self.invert else liking.add_(TRACE)
        liking = liking.view(groups, self.units, self.fan_in).squeeze(0)  # of two axes a transpose is a fast copy
        self.tables = _table(liking.mT.clone(memory_format=torch.contiguous_format)), _table(liking)

    def step(self, unit, back, draw, second):
        """Return the next units `(S,)` of the walks at `unit` `(S,)`, and the weights they take `(S, 1 or kernel)`."""
        if back:
            kernel = torch.searchsorted(self.tables[1], unit + draw, right=True)
            there = kernel % self.fan_in + (unit // self.units * self.fan_in if self.groups > 1 else 0)
            there = there // self.features if self.features > 1 else there
        else:
            if self.features > 1:  # the published rule: any of the channel's features, whatever its weights
                unit = unit * self.features + (second * self.features).long()
            there = torch.searchsorted(self.tables[0], unit + draw, right=True) % self.units
            if self.groups > 1:
                there, unit = there + unit // self.fan_in * self.units, unit % self.fan_in
            kernel = there * self.fan_in + unit
        if self.taken > 1:
            return there, self.start + kernel[:, None] * self.cells + torch.arange(self.cells, device=kernel.device)
        if self.cells > 1:
            liking = self.kernels.index_select(0, kernel).abs().double().pow_(self.power)
            sums = (liking.add_(EVEN).reciprocal_() if self.invert else liking.add_(TRACE)).cumsum(1)
            kernel = kernel * self.cells + (sums <= second[:, None] * sums[:, -1:]).sum(1)
        return there, kernel + self.start


def _table(liking):
    """Return all rows' cumulative distributions in one, `(..., width) -> (numel,)`, in place: row r from r to r + 1.

    The choice of row r by a uniform u is the first entry above r + u: one binary search serves all walks.
    """
    sums = liking.view(-1, liking.shape[-1]).cumsum_(1)
    sums /= sums[:, -1:].clone()
    return sums.add_(torch.arange(len(sums), device=sums.device)[:, None]).flatten()


def _draws(key, walks, plan):
    """Return uniform draws by number, pairs of `(walks,)` in (0, 1): those of hop h are called h, of a fork v -1 - v.

    They depend on seed, walk and number alone, by SplitMix64's mixer of the walk and then of the number. A pair is
    one hash, 32 bits each: few enough for a row number up to 2^19 plus a draw to be exact, and never 0 or 1.
    """
    forks = [-1 - group for group, branches in plan.items() if len(branches) > 1]
    numbers = forks + [branch[0] for branches in plan.values() for branch in branches]
    own = _mixed(walks * GOLDEN + key)  # to which signed products are added by themselves: no table is copied to a GPU
    mixed = _mixed(torch.stack([own + ((n * GOLDEN + 2**63) % 2**64 - 2**63) for n in numbers]))
    pair = (((bits & 2**32 - 1).double() + 0.5).mul_(2.0**-32) for bits in (mixed >> 32, mixed))
    return dict(zip(numbers, zip(*pair, strict=True), strict=True))


def _mixed(x):
    """Return every 64-bit integer mixed; `>>` copies the sign, which the mask takes away."""
    for shift, factor in MIXER:
        x = (x ^ (x >> shift & (1 << 64 - shift) - 1)) * factor
    return x


def _plan(hops, back, avoided, early):
    """Return `{group: [(hop number, layer, next group)]}`: where walks may go, groups in the order of the walk."""
    plan = {}
    for number, (name, source, target) in sorted(enumerate(hops), reverse=back):
        here, there = (target, source) if back else (early.get(name, source), target)
        plan.setdefault(here, []).append((number, name, there))
    for here, branches in plan.items():
        weighted = [branch for branch in sorted(branches) if branch[1] is not None]
        plan[here] = [branch for branch in weighted if branch[1] not in avoided] or weighted or branches
    return plan


def _shortcuts(hops, weights):
    """Return the projection shortcuts: layers of 1×1 kernels that bridge several layers."""
    depth = {0: 0}
    for name, source, target in hops:
        depth[target] = max(depth.get(target, 0), depth[source] + (name is not None))
    bridges = [hop.layer for hop in hops if hop.layer is not None and depth[hop.target] > depth[hop.source] + 1]
    return {name for name in bridges if weights[f"{name}.weight"][0, 0].numel() == 1}


def _early(hops, shortcuts, width):
    """Return `{shortcut: group}`, where published forward walks decide on it: before the layer before."""
    early = {}
    for name, group, _ in (hop for hop in hops if hop.layer in shortcuts):
        before = [source for layer, source, target in hops if target == group and layer is not None]
        if [width[source] for source in before] != [width[group]]:
            raise ValueError(f"legacy_branch needs one layer before {name}, of as many inputs as units; leave it out")
        early[name] = before[0]
    return early


def _shares(plan, start):
    """Return the share of the walks that take each layer, `{layer: probability}`."""
    present, shares = {start: 1.0}, {}
    for group, branches in plan.items():
        for _, name, there in branches:
            shares[name] = present.get(group, 0.0) / len(branches)
            present[there] = present.get(there, 0.0) + shares[name]
    return shares


def _widths(hops, weights):
    """Return the units of every group, `{group: units}`; raise ValueError where hops and weights do not fit."""
    if odd := {f"{hop.layer}.weight" for hop in hops if hop.layer is not None} ^ set(weights):
        raise ValueError(f"{sorted(odd)} is in the hops or in the weights, but not in both")
    width = {0: next(weights[f"{name}.weight"].shape[1] for name, source, _ in hops if name and source == 0)}
    for name, source, target in hops:
        if source not in width:
            raise ValueError(f"{name or 'an identity'} starts at group {source}, to which no hop before it leads")
        units = width[source]
        if name is not None:
            (out, inputs), conv = weights[f"{name}.weight"].shape[:2], weights[f"{name}.weight"].dim() > 2
            if units % inputs or out % (units // inputs) if conv else inputs % units:
                raise ValueError(f"{name} has {inputs} inputs per unit, behind a group of {units} units")
            units = out
        if width.setdefault(target, units) != units:
            raise ValueError(f"{name or 'an identity'} adds {units} units to the {width[target]} of group {target}")
    if (ends := set(width) - {hop.source for hop in hops}) != {max(width)}:
        raise ValueError(f"walks would end in the groups {sorted(ends)}; the output, {max(width)}, is the only end")
    return width


def topology(network):
    """Return the hops of a torch module, read by `torch.fx` without running it.

    A layer leads from one group of units to another, what works on units one by one stays within a group, and a sum is
    one group, into which its terms' layers lead. Raises ValueError at anything else.
    """
    try:
        nodes = _Tracer(autowrap_modules=()).trace(network).nodes
    except Exception as reason:  # a forward pass may raise anything on symbolic input
        raise ValueError(f"torch.fx cannot trace {type(network).__name__}: {reason}. {WAY_OUT}") from reason
    groups, hops = {}, []
    for node in nodes:
        sources = sorted({groups[x] for x in node.all_input_nodes} - {None})
        groups[node] = _group(node, sources, network, hops, not groups)
    if odd := [name for name in _layers(network) if sum(hop.layer == name for hop in hops) != 1]:
        raise ValueError(f"layers {odd} are used never or more than once; walks need every layer once. {WAY_OUT}")
    return _merged(hops, groups[node])


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m, module_qualified_name):
        return isinstance(m, WEIGHTED) or _unit_wise(m) or super().is_leaf_module(m, module_qualified_name)


def _unit_wise(module):
    """Return whether a module, or what it is derived from, leaves every unit a unit."""
    parts = {kind.__module__.removeprefix("torch.nn.modules.") for kind in type(module).__mro__}
    return bool(parts & UNIT_WISE_PARTS) and not isinstance(module, (nn.MultiheadAttention, nn.Bilinear, nn.Unflatten))


def _layers(network):
    """Return the convolutions and linear layers by name, in the order in which they are registered."""
    return {name: module for name, module in network.named_modules() if isinstance(module, WEIGHTED)}


def _group(node, sources, network, hops, first):
    """Return the group that a traced value belongs to, None for sizes and parameters; append the hops into it."""
    name = node.target if isinstance(node.target, str) else node.target.__name__
    module = network.get_submodule(name) if node.op == "call_module" else None
    word, new = "" if module else name, max((hop.target for hop in hops), default=0) + 1
    if node.op == "placeholder" and first:
        return 0
    if word in SIZES or not sources and (node.args or node.op == "get_attr") and node.op != "output":
        return None
    if isinstance(module, WEIGHTED) and not (sources == [0] and getattr(module, "groups", 1) > 1):
        hops.append(Hop(name, sources[0], new))
        return new
    if len(sources) == 1 and (node.op == "output" or word in UNIT_WISE + SUMS or "_pool" in word or _unit_wise(module)):
        return sources[0]
    if len(sources) > 1 and word in SUMS:
        hops += [Hop(None, source, new) for source in sources]
        return new
    raise ValueError(f"walks cannot pass {node.op} {name!r} ({node.name}). {WAY_OUT}")


def _merged(hops, output):
    """Return the hops with every term that leads only into a sum made part of it, groups numbered in forward order."""
    for group in sorted({hop.source for hop in hops} - {0, output}):
        (name, _, into), *more = [hop for hop in hops if hop.source == group]
        if name is None and not more:
            others = [hop for hop in hops if hop.source != group]
            hops = [hop._replace(target=into) if hop.target == group else hop for hop in others]
    number = {group: n for n, group in enumerate(sorted({0, *(hop.target for hop in hops)} - {output}))}
    number[output] = len(number)
    return [Hop(name, number[source], number[target]) for name, source, target in hops]
