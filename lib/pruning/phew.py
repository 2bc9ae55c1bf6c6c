"""PHEW: which weights of an untrained network to keep, by biased random walks and without data (arXiv 2010.11354).

A forward walk draws its way from an input unit to the output, a reverse walk from an output unit to the input; every
step takes a weight with a probability in proportion to its magnitude, and every weight taken is kept. Walks alternate
and go on until enough weights are kept. They never look at what is kept already, so they are independent of each other:
here many are drawn at once, every weight remembers the first walk that took it, and "until enough" is a cut through
these numbers, at the walk at which drawing one after another would stop.

This file, hops.py and topology.py, which reads networks, need torch alone: copy the three into one folder, and
`weight_masks, bias_masks = phew_masks(network, 95)` prunes any network.
"""

import hashlib
import math
import numbers
import warnings

import torch

try:
    from lib.pruning.hops import Step, Wiring, read_by, shared, turned, weight_of, weighted, wired
    from lib.pruning.topology import topology
except ImportError:  # the three files were copied
    from hops import Step, Wiring, read_by, shared, turned, weight_of, weighted, wired
    from topology import topology

BATCH = 2**16  # walks drawn at once, which no mask depends on; so many without one new weight are an error
AT_ONCE = 2**20  # draws made together, 8 MiB: a walk's hops are some tens, and calls take longer than so few numbers
NEVER = 2**31 - 1  # the "first walk" of a weight that no walk took
# SplitMix64 (Steele, Lea & Flood 2014) in signed integers: its increment, and its mixer's shifts and factors.
GOLDEN = 0x9E3779B97F4A7C15 - 2**64
MIXER = ((30, 0xBF58476D1CE4E5B9 - 2**64), (27, 0x94D049BB133111EB - 2**64), (31, 1))


def phew_masks(network, prune_percentage, verbose=True, kernel_conserved=False, *, seed=0, inputs=None, **options):
    """Return (weight_masks, bias_masks), float 0/1 tensors for every convolution and linear layer, as registered.

    `network` is a torch module, read by `topology` (which says what `inputs` is) and left as it is. A weight mask has
    shape, type and device of its weights; a bias mask `(O,)`, on the CPU, is 1 where a unit keeps an incoming weight.
    Of the N weights `prune_percentage`, in [0, 100), go: walks end when int((1 - prune_percentage / 100) · N) are kept,
    so that a few more may stay. Layers that share a weight count once and have one mask. `kernel_conserved` keeps whole
    kernels. `options`: see `masks`. Warns of layers that keep no weight, and of a percentage that may be a share.
    """
    percentage = _number("prune_percentage", prune_percentage)
    if not 0 <= percentage < 100:
        raise ValueError(f"prune_percentage is {prune_percentage}; allowed is 0 <= prune_percentage < 100")
    if 0 < percentage < 1:
        told = f"prune_percentage {percentage} prunes {percentage} % of the weights, not {percentage:.1%}"
        warnings.warn(told, stacklevel=2)
    hops, layers, first = topology(network, inputs), weighted(network), shared(network)
    weights = {f"{name}.weight": weight_of(layers[name])[None] for name in dict.fromkeys(first.values())}
    kept = masks(hops, weights, 1 - percentage / 100, [seed], kernels=kernel_conserved, **options)
    if verbose:
        stay, total = (sum(int(count(mask)) for mask in kept.values()) for count in (torch.count_nonzero, torch.numel))
        print(f"PHEW keeps {stay} of {total} weights, a sparsity of {1 - stay / total:.4f}")
    if empty := [name for name, mask in kept.items() if not mask.any()]:
        warnings.warn(f"{empty} keep no weight: at {percentage} % walks go around them", stacklevel=2)
    each, wiring = [kept[f"{name}.weight"][0] for name in first.values()], {hop.layer: hop.wiring for hop in hops}
    units = [turned(mask, wiring[name]).flatten(1).any(1) for mask, name in zip(each, first.values(), strict=True)]
    dtypes = [weights[f"{name}.weight"].dtype for name in first.values()]
    return [mask.to(dtype) for mask, dtype in zip(each, dtypes, strict=True)], [unit.float().cpu() for unit in units]


@torch.no_grad()
def masks(hops, weights, density, seeds, **options):
    """Return `{name: bool like the weight}` of a stack of runs; for a list of densities a list of such masks.

    `hops` in forward order, as of `topology`; `weights` `{layer + ".weight": (R, O, I, *kernel)}`; a seed per run. Kept
    are int(density · N) weights of all layers together, and what the last walk takes beyond that. Masks of several
    densities come from one series of walks, so that a denser one contains a sparser one. `options`: see `Walks`.
    """
    several = isinstance(density, list | tuple)
    levels = [_number("density", level) for level in (density if several else [density])]
    runs = len(next(iter(weights.values())))
    if not all(0 < level <= 1 for level in levels):
        raise ValueError(f"density is {density}; allowed is 0 < density <= 1 (density = kept / total)")
    if not hasattr(seeds, "__len__") or len(seeds) != runs:
        raise ValueError(f"seeds is {seeds!r} for a stack of {runs} runs; needed is a list of one per run, such as [1]")
    out = [{name: torch.empty_like(weight, dtype=torch.bool) for name, weight in weights.items()} for _ in levels]
    for run, seed in enumerate(seeds):
        walks = Walks(hops, {name: weight[run] for name, weight in weights.items()}, seed, **options)
        targets = [int(level * walks.total) for level in levels]
        if 0 in targets:
            least = f"the least is 1, a density of {1 / walks.total:.3g}, or of {100 - 100 / walks.total:.8g} % pruned"
            raise ValueError(f"density {min(levels):.3g} leaves 0 of {walks.total} weights; {least}")
        first, kept = walks.until(max((target for target in targets if target < walks.total), default=0))
        for level, target in zip(out, targets, strict=True):
            last = int(torch.searchsorted(kept, target)) - 1 if target < walks.total else NEVER  # all, found or not
            for name, part in walks.by_layer(first <= last).items():
                mask, wiring = level[f"{name}.weight"][run], walks.wiring[name]
                mask.copy_(turned(part.view(turned(mask, wiring).shape), wiring))
    return out if several else out[0]


def _number(name, value):
    """Return a number as a float; ValueError that names it if it is something else, such as a text."""
    if isinstance(value, numbers.Real) or isinstance(value, torch.Tensor) and value.dim() == 0:
        return float(value)
    raise ValueError(f"{name} is {value!r}; wanted is a number")


class Walks:
    """All walks of one run: walk number t is the same whenever, and beside whichever others, it is drawn.

    power: the preference for a weight is |w|^power; 1 is PHEW, 2 PHEW2, 0 a uniform walk. invert: units are preferred
    by its inverse (Inverse PHEW). kernels: a step takes the whole kernel. kernel_walk: so it does, and projection
    shortcuts are kept whole instead of being walked (Kernel PHEW). legacy_branch: forward walks decide on a projection
    shortcut one layer early, at the last layer of the block before, as published. Even walks go forward, odd ones back;
    both take their first units in turn. At a fork all branches of weights are as likely; identities are a last resort.
    A unit that is a product lives by all its factors: there a walk splits, and goes back through each.
    """

    def __init__(
        self, hops, weights, seed, *, power=1, invert=False, kernels=False, kernel_walk=False, legacy_branch=False
    ):
        _number("power", power)
        if not isinstance(seed, int) and not hasattr(seed, "__index__"):
            raise ValueError(f"seed is {seed!r}; wanted is a whole number")
        self.hops = wired(hops)
        self.wiring = {hop.layer: hop.wiring for hop in self.hops}
        weights = {
            name: turned(weight.detach(), self.wiring.get(name.removesuffix(".weight"), Wiring()))
            for name, weight in weights.items()
        }
        self.device, self.whole = next(iter(weights.values())).device, kernels or kernel_walk
        width, shortcuts = widths(self.hops, weights), _shortcuts(self.hops, weights)
        self.steps, self.layers, self.total = [Step(hop, weights, width) for hop in self.hops], {}, 0
        first = torch.ones(width[0], dtype=torch.bool, device=self.device)
        _, live, came, leads = alive(self.hops, [step.across for step in self.steps], first)
        for hop, step in zip(self.hops, self.steps, strict=True):
            step.settle(live[hop.source], live[hop.target], (power, invert), self.whole)
            if step.size:
                first = self.layers.setdefault(hop.layer, step)  # a weight used again has one place among all
                step.start = self.total if first is step else first.start
                self.total += step.size if first is step else 0
        avoided = shortcuts if kernel_walk else set()
        early = _early(self.hops, shortcuts, width) if legacy_branch else {}
        self.plans = _plan(self.hops, False, avoided, early, leads), _plan(self.hops, True, avoided, {}, came)
        self.numbers = [_numbers(plan, self.device) for plan in self.plans]
        self.ends = [(group, live[group].nonzero()[:, 0]) for group in (0, max(width))]
        if not len(self.ends[0][1]):
            raise ValueError("no path leads from the input to the output")
        walked = {name for plan in self.plans for branches, *_ in plan.values() for _, name, _ in branches}
        self.full = avoided - walked
        key = hashlib.blake2b(f"{int(seed)}/phew".encode(), digest_size=8).digest()
        self.key = int.from_bytes(key, "little", signed=True)

    def by_layer(self, values):
        """Return the parts of a tensor `(N,)`, one value for every weight of the network, by layer in forward order."""
        return dict(zip(self.layers, values.split([layer.size for layer in self.layers.values()]), strict=True))

    def take(self, start, stop):
        """Return the weights that the walks `start` to `stop` - 1 take, counted through all layers, and each's walk."""
        sides = [torch.arange(start + (start + back) % 2, stop, 2, device=self.device) for back in (0, 1)]
        steps = [step for back, walks in enumerate(sides) for step in self._walk(walks, back)]
        taken, walks = map(torch.cat, zip(*steps, strict=True))
        names = [hop.layer for hop in self.hops if hop.layer is not None]
        if len(names) > len(self.layers) or any(hop.wiring.factor for hop in self.hops):
            both = torch.unique(walks * self.total + taken)  # of a walk that split, or met a shared weight twice
            taken, walks = both % self.total, both // self.total
        return taken, walks

    def _walk(self, walks, back, arrived=None):
        """Return [(weights, walks)] of all forward, or all reverse, walks given, layer by layer.

        arrived: where they are, `{group: [(which of them, their units)]}`, if not at an end of the network.
        """
        mixed, (start, units), (row, keys) = _mixed(walks * GOLDEN + self.key), self.ends[back], self.numbers[back]
        every_draw = _draws(mixed, keys) if len(mixed) * len(keys) <= AT_ONCE else None

        def drawn(number, on):
            at = row[number]
            return _draws(mixed[on], keys[at]) if every_draw is None else every_draw[:, at, on]

        if arrived is None:
            arrived = {start: [(torch.arange(len(walks), device=self.device), units[walks // 2 % len(units)])]}
        steps, owed = [], {}
        for group, (branches, every, ways) in self.plans[back].items():
            parts = arrived.pop(group, None)
            if parts is None:
                continue
            here, unit = parts[0] if len(parts) == 1 else map(torch.cat, zip(*parts, strict=True))
            fork = None if every else _fork(len(branches), ways, unit, drawn(-1 - group, here)[0])
            for branch, (number, name, there) in enumerate(branches):
                mine = slice(None) if fork is None else (fork == branch).nonzero()[:, 0]
                on, at = here[mine], unit[mine]
                if not len(on):
                    continue
                draws = drawn(number, on)
                at, taken = self.steps[number].step(at, back, *draws)
                if name is not None:
                    taken_by = walks[on] if taken.dim() == 1 else walks[on, None].expand_as(taken)
                    steps.append((taken.flatten(), taken_by.flatten()))
                arrived.setdefault(there, []).append((on, at))
                for other in [] if back else self._factors_beside(number):
                    unit_of = self.steps[other].step(at, True, *draws)[0]
                    owed.setdefault(self.hops[other].source, []).append((on, unit_of))
        return steps + (self._walk(walks, True, owed) if owed else [])

    def _factors_beside(self, number):
        """Return the numbers of the hops that bring the other factors of the product that this hop brings one of."""
        target = self.hops[number].target
        beside = [k for k, hop in enumerate(self.hops) if hop.target == target and k != number]
        return beside if self.hops[number].wiring.factor else []

    def until(self, goal):
        """Return every weight's first walk `(N,)`, `NEVER` if none, and the number `(T + 1,)` kept by 0 to T walks.

        Walks are drawn until `goal` weights are kept, and maybe some more.
        """
        first = torch.full((self.total,), NEVER, dtype=torch.int32, device=self.device)
        gains, kept, done, idle = [torch.zeros(1, dtype=torch.int64, device=self.device)], 0, 0, 0
        wanted = self._expected(goal)
        while kept < goal:
            count = min(BATCH, max(wanted - done, 16))
            gains.append(self._gain(first, done, count))
            new, recent = int(gains[-1].sum()), float(gains[-1][count // 2 :].double().mean())
            kept, done, idle = kept + new, done + count, 0 if new else idle + count
            if idle >= BATCH or done + BATCH >= NEVER:
                found = f"{kept} of {goal} weights, after which {idle} walks found no new one: the rest are nearly zero"
                way_out = f"Take a density below {kept / self.total:.4f}, or power=0"
                raise ValueError(f"walks found {found}, or on no path. {way_out}")
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
        sides = [_shares(plan, start) for plan, (start, _) in zip(self.plans, self.ends, strict=True)]
        each = torch.tensor([x.taken * sum(q.get(name, 0) for q in sides) / 2 for name, x in self.layers.items()])
        size = torch.tensor([float(layer.size) for layer in self.layers.values()])
        walks = target / float(each.sum()) * torch.logspace(0, 4, 400)
        kept = size * (1 - torch.special.erfcx(math.pi**0.5 / 2 * walks[:, None] * each / size))
        return math.ceil(walks[min(int((kept.sum(1) < target).sum()), len(walks) - 1)])


def widths(hops, weights):
    """Return the units of every group, `{group: units}`; raise ValueError where hops and weights do not fit."""
    if odd := {f"{hop.layer}.weight" for hop in hops if hop.layer is not None} ^ set(weights):
        raise ValueError(f"{sorted(odd)} is in the hops or in the weights, but not in both")
    width = {0: max((read_by(hop, weights) for hop in hops if hop.source == 0), default=0)}
    for name, source, target, wiring in hops:
        if source not in width:
            raise ValueError(f"{name or 'an identity'} starts at group {source}, to which no hop before it leads")
        units = width[source] if wiring.width is None else wiring.width
        if wiring.width is None and name is not None:
            (out, inputs), conv = weights[f"{name}.weight"].shape[:2], weights[f"{name}.weight"].dim() > 2
            if units % inputs or out % (units // inputs) if conv else inputs % units:
                raise ValueError(f"{name} has {inputs} inputs per unit, behind a group of {units} units")
            units = out
        if width.setdefault(target, units) != units:
            raise ValueError(f"{name or 'an identity'} adds {units} units to the {width[target]} of group {target}")
    if (ends := set(width) - {hop.source for hop in hops}) != {max(width)}:
        raise ValueError(f"walks would end in the groups {sorted(ends)}; the output, {max(width)}, is the only end")
    return width


def alive(hops, across, first):
    """Return which units the input reaches, and which lie on a path, both `{group: bool}`, and of every hop two more.

    Those are the units that it leads to, and those that it leads on. first: `bool`, the units of the input; across: for
    every hop a function `(units, back)` that says to which others units lead, or, going back, which lead to them.
    """
    reached, came, leads = {0: first}, [], [None] * len(hops)
    for hop, lead in zip(hops, across, strict=True):
        came.append(lead(reached[hop.source], False))
        before = reached.get(hop.target, came[-1])
        reached[hop.target] = before & came[-1] if hop.wiring.factor else before | came[-1]
    last = max(reached)
    live = {group: torch.zeros_like(here) for group, here in reached.items()} | {last: reached[last]}
    for number, hop in reversed([*enumerate(hops)]):
        leads[number] = across[number](live[hop.target], True) & reached[hop.source]
        live[hop.source] = live[hop.source] | leads[number]
    return reached, live, came, leads


def _numbers(plan, device):
    """Return the numbers of a plan's draws, `{number: row}`, and their keys `(rows, 1)`: see `_draws`."""
    forks = [-1 - group for group, (_, every, _) in plan.items() if not every]
    numbers = forks + [number for branches, *_ in plan.values() for number, *_ in branches]
    keys = [(number * GOLDEN + 2**63) % 2**64 - 2**63 for number in numbers]
    return {number: row for row, number in enumerate(numbers)}, torch.tensor(keys, device=device)[:, None]


def _draws(mixed, keys):
    """Return two uniform draws `(2, [numbers,] walks)` in (0, 1) of the numbers whose keys these are.

    Number h is that of hop h, -1 - v that of the fork at group v. They depend on seed, walk and number alone, by
    SplitMix64's mixer of the walk (`mixed`) and then of the number. The two are one hash, 32 bits each: few enough for
    a row number up to 2^19 plus a draw to be exact, and never 0 or 1.
    """
    bits = _mixed(mixed + keys)
    return (torch.stack([bits >> 32, bits]) & 2**32 - 1).double().add_(0.5).mul_(2.0**-32)


def _mixed(x):
    """Return every 64-bit integer mixed; `>>` copies the sign, which the mask takes away."""
    for shift, factor in MIXER:
        x = (x ^ (x >> shift & (1 << 64 - shift) - 1)) * factor
    return x


def _plan(hops, back, avoided, early, open_to):
    """Return `{group: ([(hop number, layer, next group)], every, ways)}`: where walks may go, in their order.

    every: all branches are taken; else ways `(branches, units)`, or None for all, says which are open to which unit.
    """
    plan = {}
    for number, (name, source, target, _) in sorted(enumerate(hops), reverse=back):
        here, there = (target, source) if back else (early.get(name, source), target)
        plan.setdefault(here, []).append((number, name, there))
    for here, branches in plan.items():
        if back and hops[branches[0][0]].wiring.factor:
            plan[here] = branches, True, None
            continue
        branches.sort()
        weighted = torch.tensor([[name is not None] for _, name, _ in branches])
        walked = weighted & ~torch.tensor([[name in avoided] for _, name, _ in branches])
        open_ways = torch.stack([open_to[number] for number, *_ in branches])
        ways = torch.zeros_like(open_ways)
        for wanted in (walked, weighted, torch.ones_like(weighted)):
            ways |= open_ways & wanted.to(open_ways.device) & ~ways.any(0)
        used = ways.any(1)
        branches = [branch for branch, use in zip(branches, used.tolist(), strict=True) if use]
        plan[here] = branches, len(branches) == 1, None if ways[used].all() else ways[used]
    return plan


def _fork(count, ways, unit, draw):
    """Return which of `count` branches each walk takes, all that are open to its unit with the same chance."""
    if ways is None:
        return (draw * count).long()
    ways = ways[:, unit]
    return (ways.cumsum(0) <= (draw * ways.sum(0)).long()).sum(0)


def _shortcuts(hops, weights):
    """Return the projection shortcuts: layers of 1×1 kernels that bridge several layers."""
    depth = {0: 0}
    for name, source, target, _ in hops:
        depth[target] = max(depth.get(target, 0), depth[source] + (name is not None))
    bridges = [hop.layer for hop in hops if hop.layer is not None and depth[hop.target] > depth[hop.source] + 1]
    return {name for name in bridges if weights[f"{name}.weight"][0, 0].numel() == 1}


def _early(hops, shortcuts, width):
    """Return `{shortcut: group}`, where published forward walks decide on it: before the layer before."""
    early = {}
    for name, group, *_ in (hop for hop in hops if hop.layer in shortcuts):
        before = [hop.source for hop in hops if hop.target == group and hop.layer is not None]
        if [width[source] for source in before] != [width[group]]:
            raise ValueError(f"legacy_branch needs one layer before {name}, of as many inputs as units; leave it out")
        early[name] = before[0]
    return early


def _shares(plan, start):
    """Return the share of the walks that take each layer, `{layer: probability}`."""
    present, shares = {start: 1.0}, {}
    for group, (branches, every, _) in plan.items():
        for _, name, there in branches:
            share = present.get(group, 0.0) / (1 if every else len(branches))
            shares[name] = shares.get(name, 0.0) + share
            present[there] = present.get(there, 0.0) + share
    return shares
