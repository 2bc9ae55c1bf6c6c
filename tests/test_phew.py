"""PHEW against walks drawn one after another, exact probabilities, hand-drawn graphs and published numbers."""

import copy
import functools
import hashlib
import math
import os
import shutil
import statistics
import subprocess
import sys
import warnings
from collections import OrderedDict, defaultdict, namedtuple

import pytest
import torch
from torch import nn

from benchmarks import masks as literal
from lib import hops, phew, topology

BITS = 2**64 - 1
# A right chi-square exceeds this once in a million; seeds are fixed, so that a test that passes always passes.
RARE = statistics.NormalDist().inv_cdf(1 - 1e-6)


class Bottleneck(nn.Module):
    """1×1, 3×3, 1×1 beside a projection or an identity, with functions, a sum in place and the shortcut first."""

    def __init__(self, inputs, narrow, units):
        super().__init__()
        self.project = nn.Conv2d(inputs, units, 1) if inputs != units else nn.Identity()
        self.a, self.b = nn.Conv2d(inputs, narrow, 1), nn.Conv2d(narrow, narrow, 3, padding=1)
        self.c, self.norm = nn.Conv2d(narrow, units, 1), nn.BatchNorm2d(units)

    def forward(self, x):
        shortcut = self.project(x)
        y = torch.relu(self.b(nn.functional.relu(self.a(x), inplace=True)))
        y = self.norm(self.c(y))
        y += shortcut
        return nn.functional.relu(y)


class Bottlenecks(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.one, self.two = nn.Conv2d(3, 6, 3), Bottleneck(6, 4, 10), Bottleneck(10, 4, 10)
        self.head = nn.Linear(10, 5)

    def forward(self, x):
        x = self.two(self.one(self.stem(x)))
        x = nn.functional.avg_pool2d(x, x.size()[3])
        return self.head(x.view(x.size(0), -1))


def chain(*modules, seed=0):
    return literal.start(nn.Sequential(*modules), seed)


def mlp(*sizes, seed=0):
    layers = [nn.Linear(i, o) for i, o in zip(sizes, sizes[1:], strict=False)]
    return chain(*[module for layer in layers for module in (layer, nn.ReLU())][:-1], seed=seed)


def small_vgg():
    convs = [nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 8, (2, 3)), nn.BatchNorm2d(8), nn.ReLU(), nn.AvgPool2d(2)]
    return chain(*convs, nn.Flatten(), nn.Linear(8 * 4, 12), nn.ReLU(), nn.Dropout(), nn.Linear(12, 5))


def grouped():
    convs = [nn.Conv2d(3, 8, 3), nn.ReLU6(), nn.Conv2d(8, 8, 3, groups=8), nn.Conv2d(8, 6, 1, groups=2)]
    return chain(*convs, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4))


NETWORKS = {
    "resnet20": (lambda: literal.resnet20(1), (3, 32, 32)),
    "bottlenecks": (lambda: literal.start(Bottlenecks(), 1), (3, 8, 8)),
    "vgg": (small_vgg, (3, 8, 9)),
    "grouped": (grouped, (3, 8, 8)),
    "mlp": (lambda: mlp(6, 20, 15, 4), (6,)),
}


def weights_of(network):
    return {f"{name}.weight": module.weight.detach() for name, module in hops.weighted(network).items()}


def walks_of(network, seed=0, **options):
    return phew.Walks(phew.topology(network), weights_of(network), seed, **options)


def quiet(network, percentage, **options):
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*keep no weight")
        return phew.phew_masks(network, percentage, verbose=False, **options)[0]


def kept(masks):
    return sum(int(mask.sum()) for mask in masks)


# --- masks are those of walks drawn one after another --------------------------------------------------------------


def mixed(x):
    """Return SplitMix64's mixer of an integer, in Python's own arithmetic."""
    x &= BITS
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 & BITS
    x = (x ^ x >> 27) * 0x94D049BB133111EB & BITS
    return x ^ x >> 31


def pair(seed, walk, number):
    """Return the two draws of a walk for a hop or fork."""
    key = int.from_bytes(hashlib.blake2b(f"{seed}/phew".encode(), digest_size=8).digest(), "little")
    bits = mixed(mixed(walk * 0x9E3779B97F4A7C15 + key) + number * 0x9E3779B97F4A7C15)
    return ((bits >> 32) + 0.5) / 2**32, ((bits & 2**32 - 1) + 0.5) / 2**32


def draws_of(network, seed, legacy=False):
    """Return the draws that `phew` uses, as `literal.one_by_one` asks for them."""
    read = phew.topology(network)
    numbers = [next(n for n, hop in enumerate(read) if hop.layer == name) for name in hops.weighted(network)]

    def draw(t, k):
        if k >= 0:
            return pair(seed, t, numbers[k])
        hop = read[numbers[~k]]
        fork = hop.target if t % 2 else hop.source
        if legacy and t % 2 == 0:
            fork = next(before.source for before in read if before.target == hop.source and before.layer)
        return pair(seed, t, -1 - fork)

    return draw


def places(masks):
    return {
        (k, *place) for k, mask in enumerate(masks) for place in mask.reshape(*mask.shape[:2], -1).nonzero().tolist()
    }


@pytest.mark.parametrize(("legacy", "seed"), [(False, 3), (True, 3), (False, -(10**20))])
def test_a_residual_network_keeps_what_walks_one_after_another_keep(legacy, seed):
    network, target = literal.resnet20(3), int((1 - 97 / 100) * 270_896)
    masks = quiet(network, 97, seed=seed, legacy_branch=legacy)
    found, walks = literal.one_by_one(literal.layers(network), target, draws_of(network, seed, legacy), legacy)
    assert places(masks) == found
    _, count = walks_of(network, seed, legacy_branch=legacy).until(target)
    assert int(torch.searchsorted(count, target)) == walks


def test_a_chain_keeps_what_walks_one_after_another_keep():
    network = mlp(7, 9, 8, 4)
    found, _ = literal.one_by_one(literal.layers(network), int(0.4 * 167), draws_of(network, 5))
    assert places(quiet(network, 60, seed=5)) == found


def test_published_walks_need_as_many_walks_as_the_legacy_branch():
    network = literal.resnet20(0)
    literal.np.random.seed(0)
    literal.random.seed(0)
    _, biases, walks = literal.published(literal.layers(network), 5417)
    assert abs(walks - 318.4) < 6  # the mean of `legacy_branch` over seeds, and five times its spread
    assert biases[0].all()


# --- numbers of the paper's code -----------------------------------------------------------------------------------


@functools.cache
def over_seeds(legacy):
    """Return the mean number of walks, and the mean density of every layer, of ten ResNet20 at a sparsity of 95 %."""
    walks, densities = [], []
    for seed in range(10):
        found = walks_of(literal.resnet20(seed), seed, legacy_branch=legacy)
        target = int(0.05 * found.total)
        first, count = found.until(target)
        walks.append(int(torch.searchsorted(count, target)))
        parts = found.by_layer(first < walks[-1]).values()
        densities.append([float(part.double().mean()) for part in parts])
    return statistics.mean(walks), torch.tensor(densities).mean(0)


def test_the_legacy_branch_needs_887_walks_and_thins_two_layers():
    walks, density = over_seeds(legacy=True)
    assert abs(walks - 887) <= 6
    assert density[6] < 0.85 * density[1:6].min()
    assert density[13] < 0.80 * density[10:13].min()


def test_the_right_branch_thins_no_layer_and_takes_a_shortcut_as_often():
    _, density = over_seeds(legacy=False)
    _, legacy = over_seeds(legacy=True)
    assert abs(density[6] / density[1:6].mean() - 1) < 0.03
    assert abs(density[13] / density[10:13].mean() - 1) < 0.03
    assert (density[[9, 16]] / legacy[[9, 16]] - 1).abs().max() < 0.04


# --- probabilities -------------------------------------------------------------------------------------------------


def chances(weight, unit, back, power=1, invert=False):
    """Return the probability of every weight to be taken from `unit`, in two stages and by loops."""
    size = weight.double().abs().reshape(*weight.shape[:2], -1) ** power
    out, result = size.shape[0 if not back else 1], torch.zeros_like(size)
    at = [(unit, other) if back else (other, unit) for other in range(out)]
    total = sum(float(size[o, i].sum()) ** (-1 if invert else 1) for o, i in at)
    for o, i in at:
        cells = 1 / (size[o, i] + 1e-5) if invert else size[o, i]
        result[o, i] = float(size[o, i].sum()) ** (-1 if invert else 1) / total * cells / cells.sum()
    return result


def too_far(counts, probabilities):
    """Return whether counts lie farther from their probabilities than once in a million (Wilson & Hilferty 1931)."""
    counts, expected = counts.flatten().double(), counts.sum() * probabilities.flatten()
    assert not counts[expected == 0].any()
    counts, expected = counts[expected > 0], expected[expected > 0]
    assert expected.min() > 5
    square, dof = float(((counts - expected) ** 2 / expected).sum()), len(counts) - 1
    return square > dof * (1 - 2 / (9 * dof) + RARE * math.sqrt(2 / (9 * dof))) ** 3


@pytest.mark.parametrize("options", [{}, {"power": 2}, {"power": 0}, {"invert": True}, {"power": 2, "invert": True}])
def test_every_weight_is_taken_as_often_as_its_share_says(options):
    network = chain(nn.Conv2d(3, 5, (2, 3)))
    network[0].weight.data += 0.3 * network[0].weight.data.sign()
    taken, walks = walks_of(network, **options).take(0, 120_000)
    for back in (False, True):
        for unit in range(5 if back else 3):
            mine = (walks % 2 == back) & (walks // 2 % (5 if back else 3) == unit)
            counts = torch.bincount(taken[mine], minlength=90)
            assert not too_far(counts, chances(network[0].weight.detach(), unit, back, **options))
            if not options:
                assert too_far(counts, chances(network[0].weight.detach(), unit, back, power=1.2))


def test_the_steps_of_a_walk_are_independent():
    network = mlp(2, 4, 3, 2)
    sizes = [weight.double().abs() for weight in weights_of(network).values()]
    a, b, c = (size / size.sum(0) for size in sizes)
    paths = torch.einsum("ji,kj,lk->ijkl", a, b, c) / 2
    taken, walks = walks_of(network).take(0, 200_000)
    taken = taken[walks % 2 == 0].view(3, -1)  # of a chain the forward steps come layer by layer
    i, j = taken[0] % 2, taken[0] // 2
    k, last = (taken[1] - 8) // 4, (taken[2] - 20) // 3
    assert not too_far(torch.bincount(((i * 4 + j) * 3 + k) * 2 + last, minlength=48), paths)


def test_walks_leave_a_channel_by_any_of_its_features():
    network = chain(nn.Conv2d(2, 3, 1), nn.Flatten(), nn.Linear(12, 4))
    network[2].weight.data[:, ::4] *= 5  # a feature of large weights is not taken more often
    found = walks_of(network)
    taken, walks = found.take(0, 100_000)
    last = taken[(taken >= 6) & (walks % 2 == 0)] - 6
    counts = torch.bincount(last % 12, minlength=12)
    first = torch.bincount(taken[(taken < 6) & (walks % 2 == 0)] // 2, minlength=3)
    assert not too_far(counts.view(3, 4).sum(0), torch.full((4,), 0.25))
    assert torch.equal(counts.view(3, 4).sum(1), first)


def test_zeros_are_never_taken_but_where_nothing_else_is():
    network = chain(nn.Conv2d(3, 4, 2), nn.Conv2d(4, 2, 2))
    weight = network[0].weight.data
    weight[:, 1] = 0  # input unit 1 has zeros alone
    weight[0, 0], weight[1, 0, 0, 0], weight[3] = 0, 0, 0
    taken, walks = walks_of(network).take(0, 40_000)
    for back in (False, True):
        counts = torch.bincount(taken[(walks % 2 == back) & (taken < 48)], minlength=48).view(4, 3, 4)
        if not back:
            assert not too_far(counts[:, 1], torch.full((16,), 1 / 16))
            counts[:, 1] = 0
        if back:
            counts[3] = 0  # a unit whose incoming weights are zeros alone
        assert not counts[weight.flatten(2) == 0].any()


def test_a_fork_is_a_fair_coin_and_first_units_take_turns():
    network = literal.resnet20(0)
    found = walks_of(network)
    taken, walks = found.take(0, 20_000)
    for back in (0, 1):
        counts = found.by_layer(torch.bincount(taken[walks % 2 == back], minlength=found.total))
        for name in ("6.shortcut.0", "9.shortcut.0"):
            assert abs(int(counts[name].sum()) - 5_000) < 5 * 50
            assert int(counts[name].sum() + counts[name.replace("shortcut.0", "conv2")].sum()) == 10_000
    firsts = torch.bincount(taken[(walks % 2 == 0) & (taken < 432)] // 9 % 3)
    lasts = torch.bincount((taken[(walks % 2 == 1) & (taken >= 270_256)] - 270_256) // 64)
    assert len(firsts) == 3 and firsts.max() - firsts.min() <= 1
    assert len(lasts) == 10 and lasts.max() - lasts.min() <= 1


# --- walks are paths ------------------------------------------------------------------------------------------------


def broken(network, **options):
    """Return how many of 400 walks are no path of the network, from an input unit to an output unit."""
    hops, found = phew.topology(network), walks_of(network, **options)
    steps = {}
    for weight, walk in zip(*(x.tolist() for x in found.take(0, 400)), strict=True):
        steps.setdefault(walk, []).append(weight)
    return sum(not _is_path(sorted(weights), hops, found) for weights in steps.values())


def _is_path(weights, hops, found):
    group, unit = 0, None
    ends, bounds = [hop for hop in hops if hop.layer], []
    for hop in ends:
        bounds.append((bounds[-1] if bounds else 0) + found.layers[hop.layer].kernels.numel())
    for weight in weights:
        k = next(k for k, bound in enumerate(bounds) if weight < bound)
        layer = found.layers[ends[k].layer]
        kernel = (weight - (bounds[k] - layer.kernels.numel())) // layer.cells
        out, source = kernel // layer.fan_in, kernel % layer.fan_in
        source = (source + out // layer.units * layer.fan_in) // max(1, layer.inputs // layer.width)
        if ends[k].source != group or unit not in (None, source):
            return False
        group, unit = ends[k].target, out
    return group == max(hop.target for hop in hops)


@pytest.mark.parametrize("name", NETWORKS)
def test_every_walk_is_a_path_from_input_to_output(name):
    assert broken(NETWORKS[name][0]()) == 0


def test_with_the_legacy_branch_walks_break():
    assert 50 < broken(literal.resnet20(0), legacy_branch=True) < 150  # 3/4 of the forward half, at two forks


def dead(network, masks, image):
    """Return how many kept weights the output does not depend on, by autograd on a network whose weights are masks."""
    network = copy.deepcopy(network).double().eval()
    for module, mask in zip(hops.weighted(network).values(), masks, strict=True):
        module.weight.data.copy_(mask)
        if module.bias is not None:
            module.bias.data.zero_()
    network(torch.ones(1, *image, dtype=torch.float64)).sum().backward()
    found = zip(hops.weighted(network).values(), masks, strict=True)
    return sum(int(((module.weight.grad == 0) & mask.bool()).sum()) for module, mask in found)


@pytest.mark.parametrize("name", NETWORKS)
def test_every_kept_weight_is_alive(name):
    network, image = NETWORKS[name][0](), NETWORKS[name][1]
    masks = quiet(network, 80)
    assert dead(network, masks, image) == 0
    scattered = [(torch.rand(mask.shape, generator=torch.Generator().manual_seed(0)) < 0.05).float() for mask in masks]
    assert dead(network, scattered, image) > 0


# --- how many are kept -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("percentage", [0, 37.3, 90, 97])
def test_the_target_is_reached_and_passed_by_less_than_a_walk(name, percentage):
    network = NETWORKS[name][0]()
    masks = quiet(network, percentage)
    target = int((1 - percentage / 100) * sum(mask.numel() for mask in masks))
    assert target <= kept(masks) < target + len(masks)


def test_denser_masks_contain_sparser_ones_and_each_is_its_own_cut():
    network, levels = literal.resnet20(2), [0.02, 0.3, 1.0, 0.05]
    hops, weights = phew.topology(network), {name: weight[None] for name, weight in weights_of(network).items()}
    nested = phew.masks(hops, weights, levels, [7])
    for level, masks in zip(levels, nested, strict=True):
        alone = phew.masks(hops, weights, level, [7])
        assert all(torch.equal(alone[name], masks[name]) for name in weights)
    for sparse, dense in ((0, 3), (3, 1), (1, 2)):
        assert all((nested[dense][name] | ~nested[sparse][name]).all() for name in weights)
    assert all(mask.all() for mask in nested[2].values())


def test_draws_made_together_are_those_made_one_by_one(monkeypatch):
    network = Bottlenecks()
    hops, weights = phew.topology(network), weights_of(network)
    together = phew.Walks(hops, weights, 5).take(3, 300)
    monkeypatch.setattr(phew, "AT_ONCE", 0)
    alone = phew.Walks(hops, weights, 5).take(3, 300)
    assert all(map(torch.equal, together, alone)) and len(together[0]) > 1000


def test_tensors_are_found_in_whatever_holds_them():
    a, b, c, d, e = torch.arange(5.0).unbind()
    Pair = namedtuple("Pair", "one other")  # noqa: N806, a class
    nested = ([a, None, 1], {"x": (b, "text")}, Pair(c, 2.0), OrderedDict(z=[d]), defaultdict(list, y=[e]), nn.ReLU())
    assert [float(x) for x in hops.tensors(nested)] == [0, 1, 2, 3, 4]


def test_a_mask_depends_on_its_seed_and_neither_on_the_batch_nor_on_neighbours(monkeypatch):
    stacked = {name: torch.stack([w, w.flip(0), 2 * w]) for name, w in weights_of(small_vgg()).items()}
    hops, seeds = phew.topology(small_vgg()), [11, 12, 11]
    masks = phew.masks(hops, stacked, 0.3, seeds)
    with monkeypatch.context() as patched:
        for batch in (7, 100):
            patched.setattr(phew, "BATCH", batch)
            small = phew.masks(hops, stacked, 0.3, seeds)
            assert all(torch.equal(small[name], masks[name]) for name in masks)
    for run, seed in enumerate(seeds):
        alone = phew.masks(hops, {name: w[run : run + 1] for name, w in stacked.items()}, 0.3, [seed])
        assert all(torch.equal(alone[name][0], masks[name][run]) for name in masks)
    assert all(torch.equal(mask[0], mask[2]) for mask in masks.values())  # a factor is no preference
    assert not torch.equal(masks["0.weight"][0], masks["0.weight"][1])
    other = phew.masks(hops, stacked, 0.3, [13, 12, 11])
    assert not all(torch.equal(other[name][0], masks[name][0]) for name in masks)


# --- kernels -------------------------------------------------------------------------------------------------------


def test_whole_kernels_are_kept():
    network = literal.resnet20(0)
    masks = phew.phew_masks(network, 95, False, True)[0]
    assert all((mask.flatten(2).amin(2) == mask.flatten(2).amax(2)).all() for mask in masks[:-1])
    assert 13_544 <= kept(masks) < 13_544 + 22 * 9
    one = quiet(network, 99.97, kernel_conserved=True)  # the first walk alone, hardly more
    assert kept(one) % 9 == int(sum(mask.sum() for mask in one if mask.dim() == 2 or mask.shape[-1] == 1)) % 9


@pytest.mark.parametrize("name", ["resnet20", "bottlenecks"])
def test_kernel_walks_keep_shortcuts_whole_and_never_walk_them(name):
    network = NETWORKS[name][0]()
    masks = dict(zip(hops.weighted(network), quiet(network, 80, kernel_walk=True), strict=True))
    shortcuts = {layer for layer in masks if "shortcut" in layer or "project" in layer}
    assert shortcuts and all(masks[layer].all() for layer in shortcuts)
    assert not any(mask.all() for layer, mask in masks.items() if layer not in shortcuts and mask.numel() > 500)
    assert all((m.flatten(2).amin(2) == m.flatten(2).amax(2)).all() for m in masks.values() if m.dim() > 2)
    found = walks_of(network, kernel_walk=True)
    counts = found.by_layer(torch.bincount(found.take(0, 100)[0], minlength=found.total))
    crossed = {layer: int(count.sum()) // found.layers[layer].cells for layer, count in counts.items()}
    assert crossed == {layer: 0 if layer in shortcuts else 100 for layer in crossed}
    total = sum(mask.numel() for mask in masks.values())
    assert int(0.2 * total) <= kept(masks.values()) < int(0.2 * total) + 9 * len(masks)


# --- what users hold -------------------------------------------------------------------------------------------------


def test_phew_masks_returns_lists_of_floats_in_order_and_leaves_the_network_alone(capsys):
    network = literal.start(Bottlenecks(), 0).to(torch.float64)
    before = copy.deepcopy(network.state_dict())
    masks, biases = phew.phew_masks(network, 90)
    layers = [module for module in network.modules() if isinstance(module, (nn.Conv2d, nn.Linear))]
    assert [mask.shape for mask in masks] == [layer.weight.shape for layer in layers]
    assert all(mask.dtype == torch.float64 and set(mask.unique().tolist()) <= {0, 1} for mask in masks)
    for mask, bias in zip(masks, biases, strict=True):
        assert bias.tolist() == [float(row.any()) for row in mask]
    assert not all(bias.all() for bias in biases)
    assert all(torch.equal(network.state_dict()[name], value) for name, value in before.items())
    assert f"keeps {kept(masks)} of {sum(mask.numel() for mask in masks)} weights" in capsys.readouterr().out
    phew.phew_masks(network, 90, verbose=False)
    assert capsys.readouterr().out == ""


ALONE = """
import sys, warnings
warnings.simplefilter("error")
import phew
assert phew.__file__.startswith(sys.argv[1]) and not any(name == "lib" or name[:4] == "lib." for name in sys.modules)
import torch
from torch import nn
from torchvision.models import resnet18, vgg11_bn
with torch.device("meta"):
    vgg = vgg11_bn()
vgg.classifier[0] = nn.Linear(25088, 64)  # a hundredth of the memory of the full ones
vgg.classifier[3], vgg.classifier[6] = nn.Linear(64, 64), nn.Linear(64, 10)
vgg.to_empty(device="cpu")
for parameter in vgg.parameters():
    nn.init.normal_(parameter)
for network, total in ((resnet18(), 11_678_912), (vgg, 10_828_096)):
    masks, biases = phew.phew_masks(network, 98)
    kept = sum(int(mask.sum()) for mask in masks)
    assert sum(mask.numel() for mask in masks) == total
    assert 0 <= kept - int((1 - 98 / 100) * total) < len(masks) == len(biases)
"""


def test_the_file_alone_masks_the_networks_of_torchvision(tmp_path):
    pytest.importorskip("torchvision")
    for file in (phew, hops, topology):
        shutil.copy(file.__file__, tmp_path)
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [sys.executable, "-c", ALONE, str(tmp_path)]
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 2


# --- reading a network ---------------------------------------------------------------------------------------------


def test_a_residual_network_is_read_as_drawn_by_hand():
    hops = [hop[:3] for hop in phew.topology(literal.resnet20(0))]
    assert hops[:4] == [("0", 0, 1), ("3.conv1", 1, 2), ("3.conv2", 2, 3), (None, 1, 3)]
    assert hops[9:14] == [
        (None, 5, 7), ("6.conv1", 7, 8), ("6.conv2", 8, 9), ("6.shortcut.0", 7, 9), ("7.conv1", 9, 10),
    ]  # fmt: skip
    assert hops[-3:] == [("11.conv2", 18, 19), (None, 17, 19), ("14", 19, 20)]
    assert len(hops) == 22 + 7


def test_bottlenecks_are_read_as_drawn_by_hand():
    assert [hop[:3] for hop in phew.topology(Bottlenecks())] == [
        ("stem", 0, 1),
        ("one.project", 1, 4), ("one.a", 1, 2), ("one.b", 2, 3), ("one.c", 3, 4),
        ("two.a", 4, 5), ("two.b", 5, 6), ("two.c", 6, 7), (None, 4, 7),
        ("head", 7, 8),
    ]  # fmt: skip


def test_hops_may_be_of_any_kind_and_an_identity_is_taken_where_nothing_else_leads_on():
    hop = namedtuple("hop", "layer source target norm")
    hops = [hop("a", 0, 1, "bn"), hop(None, 1, 2, None), hop("b", 2, 3, None), hop(None, 1, 3, None)]
    weights = {"a.weight": torch.rand(1, 4, 3) + 0.1, "b.weight": torch.rand(1, 4, 4) + 0.1}
    masks = phew.masks(hops, weights, 0.5, [0])
    assert sum(int(mask.sum()) for mask in masks.values()) in (14, 15)
    found = phew.Walks(hops, {name: weight[0] for name, weight in weights.items()}, 0)
    counts = found.by_layer(torch.bincount(found.take(0, 1000)[0], minlength=28))
    assert int(counts["a"].sum()) == 1000  # group 1 goes on by identities alone, and every walk begins with a
    assert 400 < int(counts["b"].sum()) < 1000


# --- errors ----------------------------------------------------------------------------------------------------------


def test_wrong_arguments_are_named():
    network = mlp(3, 4, 2)
    hops, weights = phew.topology(network), {name: w[None] for name, w in weights_of(network).items()}
    for percentage in (-1, 100, 950):
        with pytest.raises(ValueError, match=f"prune_percentage is {percentage}; allowed is 0 <= "):
            phew.phew_masks(network, percentage)
    for density in (0, 1.5, [0.5, -0.1]):
        with pytest.raises(ValueError, match="density is .* allowed is 0 < density <= 1"):
            phew.masks(hops, weights, density, [0])
    for seeds in ([0, 1], 1):
        with pytest.raises(ValueError, match=r"seeds is .*1.* for a stack of 1 runs; needed .* \[1\]"):
            phew.masks(hops, weights, 0.5, seeds)
    with pytest.raises(TypeError, match="colour"):
        phew.phew_masks(network, 50, colour="red")
    weights["0.weight"][0, 1, 1] = math.nan
    with pytest.raises(ValueError, match="a weight of 0, or its power 1, is not finite"):
        phew.masks(hops, weights, 0.5, [0])


def test_a_density_out_of_reach_is_an_error_and_not_an_endless_search():
    network = mlp(4, 6, 3)
    network[0].weight.data[:, :2] *= torch.tensor([1.0, 0, 0, 0, 0, 0])[:, None]
    with pytest.raises(ValueError, match="found no new one.*Take a density below"):
        phew.phew_masks(network, 2)
    assert kept(quiet(network, 2, power=0)) >= int(0.98 * 42)


@pytest.mark.parametrize(
    ("hops", "shapes", "message"),
    [
        ([("a", 0, 1)], {"a": (4, 3), "b": (2, 4)}, "'b.weight'.* not in both"),
        ([("a", 0, 1), ("b", 2, 3)], {"a": (4, 3), "b": (2, 4)}, "b starts at group 2"),
        ([("a", 0, 1), ("b", 1, 2)], {"a": (4, 3), "b": (2, 5)}, "b has 5 inputs per unit, behind a group of 4 units"),
        ([("a", 0, 1), ("b", 0, 1)], {"a": (4, 3), "b": (2, 3)}, "b adds 2 units to the 4 of group 1"),
        ([("a", 0, 1), ("b", 0, 2)], {"a": (4, 3), "b": (2, 3)}, r"end in the groups \[1, 2\]"),
    ],
)
def test_hops_that_do_not_fit_are_named(hops, shapes, message):
    weights = {f"{name}.weight": torch.ones(1, *shape) for name, shape in shapes.items()}
    with pytest.raises(ValueError, match=message):
        phew.masks(hops, weights, 0.5, [0])


def test_the_legacy_branch_is_refused_where_it_makes_no_sense():
    with pytest.raises(ValueError, match="legacy_branch needs one layer before one.project"):
        phew.phew_masks(Bottlenecks(), 50, legacy_branch=True)
