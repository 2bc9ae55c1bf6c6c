"""Scores of weights against plain torch modules, differences of gradients, and what a flow must conserve."""

from functools import partial

import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.nn.functional import cross_entropy

from lib import convnets, methods, nets, scores, synflow
from tests.shown import SHOWN

X, Y = torch.randn(12, 3 * 8 * 8, generator=torch.Generator().manual_seed(1)).double(), torch.arange(12) % 4
KNOWN = {known.name: known for known in [*map(methods.get, methods.names(draws=False)), SHOWN[0]]}
SCORES = {name: known.function for name, known in KNOWN.items()}
EXACT = {"rtol": 1e-9, "atol": 1e-12}


def mlp(runs=1, sizes=(6, 5, 4, 3), bias=False):
    return nets.init_(nets.MLP(list(sizes), ["no-WN"] * runs, bias=bias), list(range(runs))).double()


def conv(runs=1, name="resnet20", side=8, width=2, classes=4):
    net = convnets.build(name, (3, side, side), classes, runs, width)
    return nets.init_(net, list(range(runs)), "phew").double()


def twin(net, run=0):
    """Return one run of a VGG with batch normalisation as plain torch modules, in train mode, and its weights."""
    modules = []
    for k, (layer, norm) in enumerate(zip(net.convs, net.norms, strict=True)):
        plain = nn.Conv2d(*layer.weight.shape[2:0:-1], 3, padding=1)
        modules += [plain, nn.BatchNorm2d(layer.weight.shape[1]), nn.ReLU()]
        plain.weight.data, plain.bias.data = layer.weight[run].detach().clone(), layer.bias[run].detach().clone()
        modules[-2].weight.data, modules[-2].bias.data = norm.weight[run].data.clone(), norm.bias[run].data.clone()
        if k in net.ends:
            modules.append(nn.AvgPool2d(2) if k == net.ends[-1] else nn.MaxPool2d(2))
    last = nn.Linear(net.output.weight.shape[2], net.output.weight.shape[1])
    last.weight.data, last.bias.data = net.output.weight[run].detach().clone(), net.output.bias[run].detach().clone()
    plain = nn.Sequential(nn.Unflatten(1, net.image), *modules, nn.Flatten(), last).double()
    return plain, [p for p in plain.parameters() if p.dim() > 1]


def vgg(runs=1):
    net = conv(runs, "vgg11_bn", 32, 2)
    with torch.no_grad():
        for module in net.norms:
            module.weight.uniform_(0.5, 1.5, generator=torch.Generator().manual_seed(2))
            module.bias.uniform_(-0.5, 0.5, generator=torch.Generator().manual_seed(3))
        net.output.weight.mul_(30)
    return net


def images(n, seed=4):
    return torch.randn(n, 3 * 32 * 32, generator=torch.Generator().manual_seed(seed)).double(), torch.arange(n) % 4


def plain_gradient(plain, batches, wanted, temperature=1.0):
    """Return the gradient of the summed losses, parameter by parameter, by the plain `backward`."""
    plain.zero_grad()
    for x, y in batches:
        cross_entropy(plain(x) / temperature, y).backward()
    return [p.grad.clone() for p in wanted]


@pytest.mark.parametrize("training", [True, False])
def test_snip_is_that_of_plain_modules(training):
    net, batches = vgg(2), [images(7), images(5, 5), images(1, 6)]
    found = scores.snip(net, *map(list, zip(*batches, strict=True)), [0, 1], training=training)
    for run in range(2):
        plain, weights = twin(net, run)
        gradients = plain_gradient(plain.train(training), batches, weights)
        for score, w, g in zip(found.values(), weights, gradients, strict=True):
            torch.testing.assert_close(score[run], (w * g).detach().abs(), **EXACT)


def test_wanda_is_the_size_of_a_weight_times_the_norm_of_what_it_reads():
    """Of filters by `unfold`, with stride, padding and groups; of a stack by its linear layers, each on its own."""
    parts = nn.Conv2d(3, 4, 3, 2, 1), nn.Conv2d(4, 6, (3, 1), groups=2)
    net = nn.Sequential(nn.Unflatten(1, (3, 8, 8)), parts[0], nn.ReLU(True), parts[1], nn.ReLU(True), nn.Flatten(),
                        nn.Linear(48, 4)).double()  # fmt: skip
    found = methods.score(net, "wanda", [X[:5], X[5:]], [Y[:5], Y[5:]])
    x = X.view(-1, 3, 8, 8)
    for name, part, read in (("1", parts[0], x), ("3", parts[1], parts[0](x).relu())):
        patches = nn.functional.unfold(read, part.kernel_size, stride=part.stride, padding=part.padding)
        norms = patches.norm(dim=(0, 2)).view(part.groups, 1, *part.weight.shape[1:])
        wanted = part.weight.unflatten(0, (part.groups, -1)).abs() * norms
        torch.testing.assert_close(found[f"{name}.weight"], wanted.flatten(0, 1).detach(), **EXACT)
    stack = mlp(2)
    found, read = scores.wanda(stack, X[:, :6], Y % 3, None), X[:, :6].expand(2, -1, -1)
    for name, layer in nets.layers(stack).items():
        torch.testing.assert_close(found[f"{name}.weight"], layer.weight.abs() * read.norm(dim=1)[:, None], **EXACT)
        read = layer(read).relu()


@pytest.mark.parametrize("over", ["weights", "all"])
@pytest.mark.parametrize("count", [1, 2])
def test_grasp_is_the_change_of_the_gradient_along_itself(over, count):
    """H g is (gradient at θ + εg - gradient at θ - εg) / 2ε, of a smooth network: no ReLU or pool changes its side."""
    net, batches, temperature = vgg(), [images(6), images(4, 5)][:count], 3.0
    found = scores.grasp(net, *map(list, zip(*batches, strict=True)), [0], temperature, over)
    plain, weights = twin(net)
    moved = weights if over == "weights" else list(plain.parameters())
    g = plain_gradient(plain, batches, moved, temperature)
    sides, step = [], 1e-6
    for sign in (1, -2):
        for p, slope in zip(moved, g, strict=True):
            p.data.add_(slope, alpha=sign * step)
        sides.append(plain_gradient(plain, batches, weights, temperature))
    for score, w, before, up, down in zip(found.values(), nets.weights(net).values(), weights, *sides, strict=True):
        expected = w[0].detach() * (up - down) / (2 * step)
        assert before.shape == score.shape[1:] and float(expected.abs().max()) > 1e-8
        torch.testing.assert_close(score[0], expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))


def test_grasp_of_one_batch_or_of_its_halves_is_the_same_in_eval_mode():
    """The mean of a batch is half the sum of the means of its halves, so w·Hg is a quarter."""
    net, (x, y) = vgg(), images(8)
    whole = scores.grasp(net, x, y, [0], training=False)
    halves = scores.grasp(net, list(x.split(4)), list(y.split(4)), [0], training=False)
    for name in whole:
        torch.testing.assert_close(4 * whole[name], halves[name], rtol=1e-6, atol=1e-15)


def test_over_all_is_not_over_weights():
    net, (x, y) = vgg(), images(6)
    a, b = (scores.grasp(net, x, y, [0], over=over)["output.weight"] for over in ("weights", "all"))
    assert not torch.allclose(a, b, rtol=1e-3)


DATA = {name: (X, Y) if known.needs == "examples" else None for name, known in KNOWN.items()}


@pytest.mark.parametrize("kind", SCORES)
def test_every_weight_has_a_score(kind):
    net, (x, y) = conv(3), DATA[kind] or (None, None)
    found = SCORES[kind](net, x, y, [5, 6, 7])
    assert list(found) == list(nets.weights(net))
    for name, weight in nets.weights(net).items():
        assert found[name].shape == weight.shape and not found[name].requires_grad


def test_runs_may_have_examples_of_their_own():
    net, own = conv(2), torch.stack([X, X.flip(0)])
    labels = torch.stack([Y, Y.flip(0)])
    both = scores.snip(net, own, labels, [0, 1])
    second = scores.snip(nets.take(net, [1]), X.flip(0), Y.flip(0), [1])
    for name in both:
        torch.testing.assert_close(both[name][1], second[name][0], rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("name, side", [("resnet20", 8), ("vgg11_bn", 64)])
@pytest.mark.parametrize("kind", SCORES)
def test_scoring_leaves_no_trace(kind, name, side):
    net = conv(1, name, side, 1).train()
    net.get_submodule("output").eval()
    before = {key: value.clone() for key, value in net.state_dict().items()}
    x = torch.randn(4, 3 * side * side, dtype=torch.float64)
    with torch.no_grad():
        SCORES[kind](net, x, Y[:4], [0])
    assert net.training and all(torch.equal(before[key], value) for key, value in net.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in net.parameters())


def test_random_scores_come_from_seed_and_layer():
    net = mlp(2)
    same, other = (scores.random(net, None, None, seeds) for seeds in ([4, 4], [4, 5]))
    for name in same:
        assert torch.equal(same[name][0], same[name][1]) and torch.equal(same[name][0], other[name][0])
        assert not torch.equal(other[name][0], other[name][1])
        assert 0 <= float(other[name].min()) and float(other[name].max()) < 1
    assert not torch.equal(same["layers.1.weight"][0, :3, :4], same["layers.2.weight"][0, :3, :4])


def paths_through(net, power):
    """Return, weight by weight, the sum over all paths through it of the product of |w|^power: a literal loop."""
    weights = [w[0].detach().abs().pow(power) for w in nets.weights(net).values()]
    out = [torch.zeros_like(w) for w in weights]
    sizes = [weights[0].shape[1], *(len(w) for w in weights)]
    for way in torch.cartesian_prod(*(torch.arange(size) for size in sizes)).tolist():
        flow = 1.0
        for w, i, o in zip(weights, way, way[1:], strict=False):
            flow *= float(w[o, i])
        for total, i, o in zip(out, way, way[1:], strict=False):
            total[o, i] += flow
    return out


@pytest.mark.parametrize("kind, power", [(synflow.synflow, 1), (synflow.synflow_l2, 2)])
def test_a_flow_is_the_sum_over_paths(kind, power):
    net = mlp()
    for score, expected in zip(kind(net, None, None, None).values(), paths_through(net, power), strict=True):
        torch.testing.assert_close(score[0], expected, **EXACT)


def test_the_code_of_synflow_l2_multiplies_by_the_weight_itself():
    net = mlp()
    paper, code = (synflow.synflow_l2(net, None, None, None, power=power) for power in (2, 1))
    for name, w in nets.weights(net).items():
        torch.testing.assert_close(paper[name], code[name] * w.detach().abs(), **EXACT)


@pytest.mark.parametrize("kind", ["vgg13", "vgg11_bn", "vgg19_bn"])
@pytest.mark.parametrize("score, power", [(synflow.synflow, 1), (synflow.synflow_l2, 2)])
def test_layers_and_units_conserve_the_flow(kind, score, power):
    """Without biases, and with batch normalisations as the identity but for 1 / sqrt(1 + 1e-5)."""
    net = conv(2, kind, 32, 2)
    total, found = synflow.flow(net, power)[0], list(score(net, None, None, None).values())
    for layer in found:
        torch.testing.assert_close(layer.flatten(1).sum(1), total, rtol=1e-5, atol=0)
    for layer, following in zip(found, found[1:], strict=False):
        into = layer.flatten(2).sum(2)
        out = following.flatten(3).sum(3).sum(1) if following.dim() > 3 else following.sum(1)
        torch.testing.assert_close(into, out, rtol=1e-5, atol=0)


@pytest.mark.parametrize("name, side", [("vgg11_bn", 32), ("vgg13_bn", 64), ("resnet20", 8)])
@pytest.mark.parametrize("runs", [1, 2])
def test_a_flow_has_the_slope_of_its_sum(name, side, runs):
    """Against central differences; one image through torch's batch normalisation can have a wrong gradient."""
    net, g, step = conv(runs, name, side, 2), torch.Generator().manual_seed(7), 1e-5
    total, slopes, _ = synflow.flow(net)
    for key, weight in nets.weights(net).items():
        at = (runs - 1, *(int(torch.randint(size, (1,), generator=g)) for size in weight.shape[1:]))
        w, values = weight[at].item(), []
        with torch.no_grad():
            for sign in (1, -1):
                weight[at] = abs(w) * (1 + sign * step)
                values.append(synflow.flow(net)[0][at[0]].item())
            weight[at] = w
        score = float(slopes[key][at]) * abs(w)
        assert abs((values[0] - values[1]) / (2 * step) - score) < 1e-9 * float(total[at[0]])


def test_a_single_image_has_its_gradient():
    """In the order of memory that a shared image gets, and that a batch of one must not keep (see `synflow._ones`)."""
    net, (x, y) = vgg(), images(1)
    plain, weights = twin(net)
    gradients = plain_gradient(plain.eval(), [(x, y)], weights)
    found = scores.snip(net, x, y, [0], training=False)
    for score, w, slope in zip(found.values(), weights, gradients, strict=True):
        torch.testing.assert_close(score[0], (w * slope).detach().abs(), **EXACT)


def test_a_residual_stream_carries_what_goes_around_a_layer():
    """At each block the two branches together carry R: what is missing in the layers went through the identity."""
    net = conv(1, "resnet20", 8, 2)
    total, found = synflow.flow(net)[0], synflow.synflow(net, None, None, None)
    for name in ("stem.weight", "output.weight"):
        torch.testing.assert_close(found[name].flatten(1).sum(1), total, rtol=1e-5, atol=0)
    sums = {name: float(score.sum() / total) for name, score in found.items()}
    assert abs(sums["blocks.3.convs.1.weight"] + sums["blocks.3.shortcut.weight"] - 1) < 1e-4
    assert sums["blocks.0.convs.0.weight"] < 0.9999


def sized(factor):
    """Return an MLP of five layers in float32 whose weights are scaled by `factor`, R thus by its fifth power."""
    net = mlp(2, (6, 5, 5, 5, 5, 3)).float()
    with torch.no_grad():
        for weight in nets.weights(net).values():
            weight.mul_(factor)
    return net


@pytest.mark.parametrize("factor", [1e8, 1e-8])
def test_a_flow_that_float32_cannot_hold_is_computed_in_float64(factor):
    """R is 1e40, or 1e-40 and rounded to a few bits in float32; the scores are those of the plain network, scaled."""
    found, plain = (synflow.synflow(sized(f), None, None, None) for f in (factor, 1.0))
    for name in plain:
        assert found[name].dtype == torch.float64 and plain[name].dtype == torch.float32
        torch.testing.assert_close(found[name] / factor**5, plain[name].double(), rtol=1e-5, atol=0)


def test_a_deep_residual_network_has_a_finite_flow():
    net = nets.init_(convnets.build("resnet32", (3, 8, 8), 4, 1, 32), [0], "phew")
    total, slopes, _ = synflow.flow(net)
    assert total.dtype == torch.float64 and float(total) > torch.finfo(torch.float32).max
    assert all(bool(slope.isfinite().all()) for slope in slopes.values())


def test_the_flow_is_that_of_the_powered_network():
    net = conv(1, "vgg13", 32, 1).eval()
    powered = {name: p.detach().square() for name, p in net.named_parameters()}
    ones = torch.ones(1, 3 * 32 * 32, dtype=torch.float64)
    found = synflow.flow(net, 2)
    assert torch.equal(found.total, functional_call(net, powered, (ones,)).sum((1, 2)))
    assert all(torch.equal(w, powered[name]) and not w.requires_grad for name, w in found.weights.items())


def test_what_does_not_fit_is_an_error():
    net = mlp(2)
    for kind in (scores.snip, scores.grasp):
        with pytest.raises(ValueError, match="examples"):
            kind(net, None, None, [0, 1])
        for nothing in (([], []), (X[:0, :6], Y[:0]), ([X[:, :6], X[:0, :6]], [Y % 3, Y[:0]])):
            with pytest.raises(ValueError, match="no example"):
                kind(net, *nothing, [0, 1])
        with pytest.raises(ValueError, match="3 sets of examples for a stack of 2"):
            kind(net, X[None, :, :6].expand(3, -1, -1), Y % 3, [0, 1])
    with pytest.raises(ValueError, match="'biases'.*all"):
        scores.grasp(net, X[:, :6], Y % 3, [0, 1], over="biases")
    with pytest.raises(ValueError, match="1 seeds for a stack of 2"):
        scores.random(net, None, None, [0])
    ewn = nets.init_(nets.MLP([6, 5, 3], ["EWN"]), [0])
    for kind in SCORES.values():
        with pytest.raises(ValueError, match="fold"):
            kind(ewn, X[:, :6].float(), Y % 3, [0])


def test_keywords_are_bound_by_partial():
    net = mlp()
    bound = partial(synflow.synflow_l2, power=1)
    assert bound(net, None, None, None).keys() == nets.weights(net).keys()
