"""Torch modules of one's own under every method: scores against plain torch, which units are hidden, and refusals."""

import copy
import warnings

import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import cross_entropy
from torch.nn.utils import parametrizations
from torchvision.ops import FrozenBatchNorm2d

from lib import convnets, likelihood, masks, methods, nets, shrink, smaller, units
from lib.errors import ParameterError
from tests.odd_networks import Lambda

X, Y = torch.randn(6, 3, 8, 8, generator=torch.Generator().manual_seed(1)).double(), torch.arange(6) % 4
ROWS = torch.randn(6, 8, generator=torch.Generator().manual_seed(2)).double()


class Net(nn.Module):
    """Parts by name, in the order in which they are registered, and what is made of them."""

    def __init__(self, forward, **parts):
        super().__init__()
        torch.manual_seed(0)
        self.made = forward
        for name, part in parts.items():
            self.add_module(name, part)
        self.double()

    def forward(self, x):
        return self.made(self, x)


def residual():
    """A residual network whose classifier is registered first."""
    conv = {name: nn.Conv2d(channels, 5, 3, padding=1) for name, channels in (("a", 3), ("b", 5), ("c", 5))}

    def forward(net, x):
        h = net.a(x).relu()
        return net.fc((h + net.c(net.b(h).relu())).relu().mean((2, 3)))

    return Net(forward, fc=nn.Linear(5, 4), **conv)


def heads(made=tuple):
    forward = lambda net, x: made([net.o(h := net.a(x).relu()), net.p(h)])  # noqa: E731
    return Net(forward, a=nn.Linear(8, 6), o=nn.Linear(6, 4), p=nn.Linear(6, 2))


def tied():
    net = Net(lambda net, x: net.o(net.b(net.a(x).relu()).relu()), a=nn.Linear(8, 8), b=nn.Linear(8, 8),
              o=nn.Linear(8, 4))  # fmt: skip
    net.b.weight = net.a.weight
    return net


CONVOLUTIONS = {
    "plain": lambda: nn.Conv2d(4, 6, 3, padding=1),
    "grouped": lambda: nn.Conv2d(4, 6, 3, stride=2, groups=2),
    "dilated": lambda: nn.Conv2d(4, 6, 3, dilation=2, padding=2),
    "same": lambda: nn.Conv2d(4, 6, (3, 5), padding="same"),
    "reflected": lambda: nn.Conv2d(4, 6, 3, padding=1, padding_mode="reflect"),
    "transposed": lambda: nn.ConvTranspose2d(4, 6, 2, stride=2, groups=2),
}
NORMS = {
    "batch": lambda: nn.BatchNorm2d(4),
    "not affine": lambda: nn.BatchNorm2d(4, affine=False),
    "not tracked": lambda: nn.BatchNorm2d(4, track_running_stats=False),
    "layer": lambda: nn.GroupNorm(1, 4),
}


@pytest.mark.parametrize(
    ("conv", "norm"), [*((conv, "batch") for conv in CONVOLUTIONS), *(("plain", n) for n in NORMS)]
)
def test_grasp_of_a_module_is_its_own_second_derivative(conv, norm):
    """In train() mode; no batch is moved, no statistic."""
    torch.manual_seed(0)
    body = [nn.Conv2d(3, 4, 3), NORMS[norm](), nn.Tanh(), CONVOLUTIONS[conv](), nn.AdaptiveAvgPool2d(2), nn.Flatten()]
    net = nn.Sequential(*body, nn.Linear(24, 5), nn.BatchNorm1d(5, affine=False), nn.Linear(5, 4)).double()
    before, weights = copy.deepcopy(net.state_dict()), {n: p for n, p in net.named_parameters() if p.dim() > 1}
    found = methods.prune(net, "grasp", 0.3, X, Y)
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
    slopes = torch.autograd.grad(cross_entropy(net(X) / 200, Y), list(weights.values()), create_graph=True)
    turned = torch.autograd.grad(sum(slope.square().sum() for slope in slopes) / 2, list(weights.values()))
    scores = {name: w * hg for (name, w), hg in zip(weights.items(), turned, strict=True)}
    least = (
        torch.cat([s.flatten() for s in scores.values()])
        .sort()
        .values[-masks.count(sum(map(torch.numel, scores.values())), 0.3)]
    )
    assert {name: mask.tolist() for name, mask in found.items()} == {
        name: (s >= least).tolist() for name, s in scores.items()
    }


OF_UNITS = [name for name in methods.names("units") if name not in ("contribution", "worst", "outgoing_l1")]


@pytest.mark.parametrize("name", OF_UNITS)
def test_units_of_outputs_are_no_units_to_prune(name):
    """Whatever is registered last: what makes an output, or a term or a part of one, keeps all it has."""
    assert set(methods.prune(residual(), name, 0.4, X, Y, [0], of="units")) == {"a", "b", "c"}
    assert list(methods.prune(tied(), name, 0.5, ROWS, Y, [0], of="units")) == ["a"]
    summed = Net(lambda net, x: net.a(x) + net.c(net.b(x).relu()), a=nn.Linear(8, 4), b=nn.Linear(8, 6),
                 c=nn.Linear(6, 4))  # fmt: skip
    assert list(methods.prune(summed, name, 0.5, ROWS, Y, [0], of="units")) == ["b"]
    if methods.get(name, "units").needs == "nothing":
        assert list(methods.prune(heads(), name, 0.5, seeds=[0], of="units")) == ["a"]


def test_units_whose_layers_are_named_are_those():
    net = residual()
    found = methods.prune(net, "magnitude", 0.4, of="units", layers=["b"])
    assert list(found) == ["b"] and int(found["b"].sum()) == 2
    small = shrink.shrink(net, smaller.rows(net, found), inputs=X)
    masked = copy.deepcopy(net)
    masked.b.weight.data *= found["b"][:, None, None, None]
    torch.testing.assert_close(small(X), masked(X))
    assert {tuple(p.shape) for p in small.parameters()} >= {(2, 5, 3, 3), (5, 2, 3, 3)}
    wrapped = nn.DataParallel(net)
    assert list(smaller.rows(wrapped, methods.prune(wrapped, "magnitude", 0.4, of="units", layers=["b"]))) == [
        "b.weight"
    ]


@pytest.mark.parametrize("norm", [nn.InstanceNorm2d, lambda n: nn.BatchNorm2d(n, affine=False)])
def test_a_normalisation_without_weights_knows_its_channels_when_some_are_gone(norm):
    """A call would warn otherwise, which is an error here."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 6, 3), norm(6), nn.ReLU(), nn.Flatten(), nn.Linear(216, 4)).double().eval()
    units = methods.prune(net, "magnitude", 0.5, of="units")
    small = shrink.shrink(net, smaller.rows(net, units), inputs=X)
    assert small[1].num_features == small[0].out_channels == 3 and small[4].in_features == 108
    masked = copy.deepcopy(net)
    masked[0].weight.data *= units["0"][:, None, None, None]
    torch.testing.assert_close(small(X), masked(X))
    assert not small[1]._forward_pre_hooks


def test_weights_that_are_shared_are_scored_once_and_stay_shared():
    net = tied()
    cross_entropy(net(ROWS), Y).backward()
    scores = methods.score(methods.modules.One(net, ROWS), "snip", methods.checks.examples(ROWS), Y)
    assert list(scores) == ["a.weight", "o.weight"]
    for name, score in scores.items():
        weight = net.get_parameter(name)
        torch.testing.assert_close(score[0], (weight * weight.grad).abs())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of units that stay, for being read twice
        small = shrink.shrink(net, methods.prune(net, "snip", 0.2, ROWS, Y), inputs=ROWS)
    assert small.b.weight is small.a.weight and len(list(small.parameters())) == len(list(net.parameters()))


def test_tensors_of_the_module_itself_count_in_its_scores():
    """Which are of no layer: a factor, and a buffer of terms."""
    net = Net(lambda net, x: net.o((net.a(x) * net.scale + net.shift).relu()), a=nn.Linear(8, 6), o=nn.Linear(6, 4))
    net.scale = nn.Parameter(torch.linspace(-1, 2, 6).double())
    net.register_buffer("shift", torch.linspace(1, -1, 6).double())
    cross_entropy(net(ROWS), Y).backward()
    scores = (net.a.weight * net.a.weight.grad).abs().sum(1)
    found = methods.prune(net, "taylor", 0.5, ROWS, Y, of="units")
    assert torch.equal(found["a"], scores >= scores.sort().values[3])
    assert list(methods.prune(net, "grasp", 0.5, ROWS, Y)) == ["a.weight", "o.weight"]
    flow = methods.score(methods.modules.One(net, ROWS, neutral=True), "synflow")
    a, o, scale = net.a.weight.detach().abs(), net.o.weight.detach().abs(), net.scale.detach().abs()
    torch.testing.assert_close(flow["o.weight"][0], o * (a.sum(1) * scale + net.shift).relu())


@pytest.mark.parametrize("name", ["module", "shape", "example", "odd", "runs", "norm", "power", "leaves", "powered"])
def test_parts_are_called_as_anybody_likes(name):
    net = Net(lambda net, x: net.o(getattr(net, name)(x).relu()), **{name: nn.Linear(8, 6)}, o=nn.Linear(6, 4))
    layer = getattr(net, name)
    cross_entropy(net(ROWS), Y).backward()
    scores = (layer.weight * layer.weight.grad).abs().sum(1)
    found = methods.prune(net, "taylor", 0.5, ROWS, Y, of="units")
    assert list(found) == [name] and torch.equal(found[name], scores >= scores.sort().values[3])
    assert list(methods.prune(net, "synflow", 0.5, ROWS)) == [f"{name}.weight", "o.weight"]


class Scaled(nn.Linear):
    """A layer with parts of its own, which are called as those of a stack's layer are."""

    def __init__(self, *sizes):
        super().__init__(*sizes)
        self.scale, self.norm = nn.Parameter(torch.full((sizes[1],), 0.5)), nn.BatchNorm1d(sizes[1])

    def forward(self, x):
        return self.norm(super().forward(x) * self.scale)


def test_layers_have_parts_of_their_own():
    net = Net(lambda net, x: net.o(net.a(x).relu()), a=Scaled(8, 6), o=nn.Linear(6, 4))
    cross_entropy(net(ROWS), Y).backward()
    for name, score in methods.score(net, "snip", ROWS, Y).items():
        torch.testing.assert_close(score, (net.get_parameter(name) * net.get_parameter(name).grad).abs())
    torch.testing.assert_close(methods.score(net, "magnitude", of="units")["a"], net.a.weight.detach().norm(dim=1))
    net.a.normalised = nn.Parameter(torch.ones(1))
    with pytest.raises(ParameterError, match=r"called \['normalised'\] has a name that a stack uses otherwise"):
        methods.prune(net, "magnitude", 0.5)


@pytest.mark.parametrize("name", ["snip", "hessian", "grasp"])
def test_a_weight_that_is_no_layers_alone_has_the_slopes_of_all_its_uses(name):
    """As of an output that is tied to the numbers that are looked up, which are registered first."""
    net = Net(lambda net, x: net.o(net.a(net.e(x).mean(1)).relu()), e=nn.Embedding(4, 8), a=nn.Linear(8, 8),
              o=nn.Linear(8, 4, bias=False))  # fmt: skip
    net.o.weight = net.e.weight
    x = torch.randint(4, (6, 5), generator=torch.Generator().manual_seed(0))
    if name == "hessian":
        each = [slopes_of(net, [net.a.weight, net.o.weight], x[[k]], Y[[k]]) for k in range(len(Y))]
        wanted = [w.detach() ** 2 * sum(slope**2 for slope in slopes) / len(Y)
                  for w, slopes in zip((net.a.weight, net.o.weight), zip(*each, strict=True), strict=True)]  # fmt: skip
    else:
        options = {"grasp": {"temperature": 200.0, "create_graph": True}}.get(name, {})
        wanted = slopes = slopes_of(net, [net.a.weight, net.o.weight], x, Y, **options)
        if name == "grasp":
            along = sum((slope * slope.detach()).sum() for slope in slopes)
            wanted = torch.autograd.grad(along, [net.a.weight, net.o.weight])
        wanted = [(w * slope).detach() for w, slope in zip((net.a.weight, net.o.weight), wanted, strict=True)]
    found = methods.score(net, name, x, Y)
    assert list(found) == ["a.weight", "o.weight"]
    for score, expected in zip(found.values(), wanted, strict=True):
        torch.testing.assert_close(score, expected.abs() if name == "snip" else expected)


def test_a_flow_goes_through_a_weight_that_the_module_names_first():
    net = Net(lambda net, x: net.o(net.a(x).relu()), a=nn.Linear(8, 6), o=nn.Linear(6, 4))
    wanted = methods.prune(net, "synflow", 0.3)
    weight, net.a._parameters["weight"] = net.a.weight, None
    other = Net(net.made, a=net.a, o=net.o)
    other.first = net.a.weight = weight
    assert next(iter(dict(other.named_parameters()))) == "first"
    found = methods.prune(other, "synflow", 0.3)
    assert all(torch.equal(found[name], mask) for name, mask in wanted.items())


FROZEN = {"weight": torch.tensor([1.0, 3, 0.5, 2]), "bias": torch.ones(4), "running_mean": torch.ones(4),
          "running_var": torch.full((4,), 9.0)}  # fmt: skip


@pytest.mark.parametrize("norm", ["tracked", "not tracked", "synchronised", "frozen"])
def test_a_flow_goes_through_every_kind_of_batch_normalisation(norm):
    """As if there were none, but for its ε."""
    made = {"tracked": nn.BatchNorm2d(4), "not tracked": nn.BatchNorm2d(4, track_running_stats=False),
            "synchronised": nn.SyncBatchNorm(4), "frozen": FrozenBatchNorm2d(4)}[norm]  # fmt: skip
    made.load_state_dict({name: FROZEN.get(name, tensor) for name, tensor in made.state_dict().items()})
    conv = {"a": nn.Conv2d(3, 4, 3), "n": made, "b": nn.Conv2d(4, 5, 3)}
    net = Net(lambda net, x: net.fc(net.b(net.n(net.a(x)).relu()).relu().mean((2, 3))), **conv, fc=nn.Linear(5, 4))
    found = methods.score(net, "synflow", X)
    net.n = nn.Identity()
    for name, score in methods.score(net, "synflow", X).items():
        torch.testing.assert_close(found[name], score, rtol=1e-4, atol=0)


READ = {  # the layer, what another linear one reads of it, and how much that is
    "permuted": (nn.Conv2d(3, 5, 3), lambda h: h.permute(0, 2, 3, 1).flatten(1), 180),
    "flattened": (nn.Conv2d(3, 5, 3), lambda h: h.flatten(1), 180),
    "a part": (nn.Conv2d(3, 5, 3), lambda h: h[:, 2:, 1:].flatten(1), 90),
    "tokens": (nn.Linear(8, 5), lambda h: h.flatten(1), 120),
    "tokens last": (nn.Linear(8, 5), lambda h: h.transpose(2, 3).flatten(1), 120),
}


@pytest.mark.parametrize("case", READ)
def test_what_reads_a_unit_reads_it_wherever_it_lies(case):
    """Where nothing but weights of one sign lies behind a unit, their sum is a slope."""
    layer, read, count = READ[case]
    net = Net(lambda net, x: net.o(read(net.a(x))), a=layer, o=nn.Linear(count, 4))
    with torch.no_grad():
        net.o.weight.abs_()
    sent = net.a(X).detach().requires_grad_()
    (slope,) = torch.autograd.grad(net.o(read(sent))[0].sum(), sent)
    slope = slope[0].movedim(-1 if isinstance(layer, nn.Linear) else 0, 0).flatten(1)
    torch.testing.assert_close(methods.score(net, "outgoing_l1", X, of="units")["a"], slope.sum(1))


def test_units_that_are_added_up_are_read_by_the_same():
    net = Net(lambda net, x: net.o((net.a(x) + net.b(x)).relu()), a=nn.Linear(8, 6), b=nn.Linear(8, 6),
              o=nn.Linear(6, 4))  # fmt: skip
    found = methods.score(net, "outgoing_l1", of="units")
    for name in "ab":
        torch.testing.assert_close(found[name], net.o.weight.detach().abs().sum(0))
    decoder = nn.Sequential(nn.Linear(8, 64), nn.Unflatten(1, (4, 4, 4)), nn.Conv2d(4, 3, 3), nn.Flatten())
    with pytest.raises(ValueError, match=r"a layer of weights \(3, 4, 3, 3\) reads pixels or tokens that are units"):
        methods.score(nn.Sequential(*decoder, nn.Linear(12, 4)).double(), "outgoing_l1", ROWS, of="units")


def test_diverse_edges_and_growth_of_a_module_are_those_of_a_stack():
    stack = nets.init_(nets.MLP([8, 6, 4], "no-WN"), [3])
    net = Net(lambda net, x: net.layers[1](net.layers[0](x).relu()),
              layers=nn.ModuleList([nn.Linear(8, 6), nn.Linear(6, 4)])).float()  # fmt: skip
    for name, weight in nets.weights(stack).items():
        net.get_parameter(name).data.copy_(weight[0])
    known = {"layers.0": likelihood.moments(ROWS)}
    found, wanted = (methods.prune(of, "dpp", 0.5, known, seeds=[7], beta="median") for of in (net, stack))
    assert torch.equal(found["layers.0.weight"], wanted["layers.0.weight"][0])
    before = {"layers.0": torch.linspace(0, 2, 6)}
    found, wanted = (methods.prune(of, "growth", 0.5, before, of="units") for of in (net, stack))
    assert torch.equal(found["layers.0"], wanted["layers.0"][0])


def test_a_module_whose_shape_nothing_tells_is_told_so():
    """Its first layer, as registered, is not what reads its input."""
    with pytest.raises(ParameterError, match=r"Net does not run on torch.float64 \(N, 5,\): .*Pass x"):
        methods.prune(residual(), "synflow", 0.5)
    with pytest.raises(ParameterError, match="snip needs examples: pass them as x"):
        methods.prune(residual(), "snip", 0.5)


def test_what_reads_a_unit_may_be_a_transposed_convolution():
    """Its weights (I, O, ...) have their inputs first, and its own units second."""
    net = Net(lambda net, x: net.o(net.b(net.a(x)[..., None]).flatten(1)),
              a=nn.Linear(8, 6), b=nn.ConvTranspose1d(6, 6, 2), o=nn.Linear(12, 4))  # fmt: skip
    found = methods.score(methods.modules.One(net, ROWS, wanted=["a"]), "outgoing_l1", of="units")
    torch.testing.assert_close(found["a"][0], net.b.weight.detach().abs().sum((1, 2)))
    scores = units.outgoing_l1(methods.modules.One(net, ROWS), None, None, None)
    torch.testing.assert_close(scores["b"][0], net.o.weight.detach().abs().view(4, 6, 2).sum((0, 2)))


@pytest.mark.filterwarnings("ignore:in float16")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("name", ["magnitude", "taylor", "fpgm", "outgoing_l1"])
def test_units_of_every_precision_have_scores(name, dtype):
    """Of numbers that all precisions hold, the scores are those of float64."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 4)).to(dtype).double()
    x = ROWS.to(dtype).double()
    wanted = methods.score(methods.modules.One(net, x), name, x, Y, of="units")["0"]
    found = methods.score(net.to(dtype), name, x.to(dtype), Y, of="units", layers=["0"])["0"]
    near = 4 * torch.finfo(dtype).eps
    torch.testing.assert_close(found.double(), wanted[0], rtol=near, atol=near)


class Attending(nn.Module):
    """Tokens that attend to each other, behind a layer that training alone reads, and a pass that is remembered."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        block = nn.TransformerEncoderLayer(8, 2, 12, dropout=0.0, batch_first=True)
        self.a, self.block, self.o, self.more = nn.Linear(6, 8), block, nn.Linear(8, 4), nn.Linear(8, 4)
        self.double()

    def forward(self, x):
        self.seen = self.block(self.a(x)).mean(1)
        return self.o(self.seen)


TOKENS = torch.randn(6, 5, 6, generator=torch.Generator().manual_seed(3)).double()


@pytest.mark.parametrize("name", ["magnitude", "snip", "grasp", "hessian"])
def test_attention_is_scored_as_torch_differentiates_it(name):
    """Also of a layer that nothing depends on, of a module that keeps a tensor of a pass, and in inference mode."""
    net = Attending()
    net(TOKENS)
    weights = {f"{key}.weight": layer.weight for key, layer in net.named_modules() if isinstance(layer, nn.Linear)}
    with pytest.warns(UserWarning) as told, torch.inference_mode():
        found = methods.prune(net, name, 0.4, TOKENS, Y)
    named = "block.self_attn.in_proj_weight are weights of no convolution and no linear layer"
    assert named in str(told[0].message) and "more.weight" not in str(told[0].message)
    with sdpa_kernel(SDPBackend.MATH):
        scores = LITERAL[name](net, list(weights.values()))
    least = (
        torch.cat([score.flatten() for score in scores]).sort().values[-masks.count(sum(map(torch.numel, scores)), 0.4)]
    )
    assert list(found) == list(weights)
    for key, score in zip(weights, scores, strict=True):
        close = (score - least).abs() <= 1e-9 * least.abs()
        assert torch.equal(found[key] | close, (score > least) | close), key


def slopes_of(net, weights, x, y, temperature=1.0, **options):
    found = torch.autograd.grad(cross_entropy(net(x) / temperature, y), weights, allow_unused=True, **options)
    return [torch.zeros_like(w) if slope is None else slope for w, slope in zip(weights, found, strict=True)]


def squares_of(net, weights):
    each = [slopes_of(net, weights, TOKENS[[k]], Y[[k]]) for k in range(len(Y))]
    return [w.detach() ** 2 * sum(slope[n] ** 2 for slope in each) for n, w in enumerate(weights)]


def turned_by(net, weights):
    slopes = slopes_of(net, weights, TOKENS, Y, 200.0, create_graph=True)
    along = sum((slope * slope.detach()).sum() for slope in slopes)
    found = torch.autograd.grad(along, weights, allow_unused=True)
    return [w.detach() * (0 if h is None else h) for w, h in zip(weights, found, strict=True)]


LITERAL = {
    "magnitude": lambda net, weights: [w.detach().abs() for w in weights],
    "snip": lambda net, weights: [
        (w * s).detach().abs() for w, s in zip(weights, slopes_of(net, weights, TOKENS, Y), strict=True)
    ],
    "grasp": turned_by,
    "hessian": squares_of,
}


def test_of_layers_that_are_named_no_other_weight_is_told():
    found = methods.prune(Attending(), "magnitude", 0.4, layers=["a", "o"])  # a warning is an error
    assert sum(int(mask.sum()) for mask in found.values()) == masks.count(80, 0.4)


def test_wanda_reads_what_layers_read_also_of_a_weight_that_stands_in_two_places():
    net = Net(lambda net, x: net.o(net.a(net.a(x).relu()).relu()), a=nn.Linear(8, 8), o=nn.Linear(8, 4))
    net.b = net.a
    once = net.a(ROWS).relu()
    read = {"a.weight": torch.cat([ROWS, once]), "o.weight": net.a(once).relu()}
    found = methods.score(net, "wanda", ROWS, Y)
    assert list(found) == list(read)
    for name, seen in read.items():
        torch.testing.assert_close(found[name], net.get_parameter(name).detach().abs() * seen.detach().norm(dim=0))


def recurrent():
    parts = {"a": nn.Linear(6, 5), "r": nn.LSTM(5, 4, batch_first=True), "o": nn.Linear(4, 4)}
    return Net(lambda net, x: net.o(net.r(net.a(x))[0][:, -1]), **parts)


def test_recurrence_stays_whole_and_is_told():
    net = recurrent()
    with pytest.warns(UserWarning, match=r"r.weight_ih_l0, r.weight_hh_l0 are weights of no convolution"):
        found = methods.prune(net, "magnitude", 0.4)
    least = torch.cat([net.a.weight.abs().flatten(), net.o.weight.abs().flatten()]).sort().values[-masks.count(46, 0.4)]
    assert torch.equal(found["a.weight"], net.a.weight.abs() >= least) and list(found) == ["a.weight", "o.weight"]


def linear(wrap):
    return nn.Sequential(wrap(nn.Linear(8, 5)), nn.ReLU(), nn.Linear(5, 4)).double()


REFUSED = {
    "two outputs": (lambda: heads(), "snip", "weights", "returns a tuple.*logits alone|returns a tuple; scores"),
    "named outputs": (lambda: heads(lambda outputs: {"o": outputs[0]}), "synflow", "weights", "returns a dict"),
    "a row for each token": (lambda: Net(lambda net, x: net.a(x[:, None]), a=nn.Linear(8, 4)), "snip", "weights",
                             r"logits are \(6, 1, 4\).*one row for each example"),
    "a computed weight": (lambda: linear(parametrizations.weight_norm), "magnitude", "weights",
                          r"\['0'\] compute their weights.*remove_parametrizations"),
    "a name of a stack": (lambda: Net(lambda net, x: net.o(net.image(x)), image=nn.Linear(8, 6), o=nn.Linear(6, 4)),
                          "magnitude", "weights", r"called \['image'\] has a name that a stack uses otherwise"),
    "a layer alone": (lambda: nn.Linear(8, 4).double(), "magnitude", "units", r"nn.Sequential\(layer\)"),
    "numbers looked up": (lambda: Net(lambda net, x: net.a(net.e(x.long()).mean(1)), e=nn.Embedding(9, 5),
                                      a=nn.Linear(5, 4)), "synflow", "weights", "e normalise.*look numbers up"),
    "a transposed convolution": (lambda: Net(lambda net, x: net.o(net.a(x[..., None, None]).flatten(1)),
                                             a=nn.ConvTranspose2d(8, 6, 2), o=nn.Linear(24, 4)), "magnitude", "units",
                                 r"a are transposed convolutions.*layers=\[...\]"),
    "what cannot be read": (lambda: nn.Sequential(nn.Linear(8, 5), Lambda(lambda net, x: x.cumsum(1)), nn.Linear(5, 4))
                            .double(), "magnitude", "units", r"calls cumsum.*layers=\[...\]"),
    "contributions": (lambda: linear(lambda layer: layer), "contribution", "units", "are of stacks.*take taylor"),
    "a softmax": (lambda: Net(lambda net, x: nn.functional.log_softmax(net.a(x), 1), a=nn.Linear(8, 4)), "synflow",
                  "weights", "Net calls log_softmax, which normalises each example.*returns logits"),
    "recurrence": (recurrent, "synflow", "weights", "r normalise.*attend or recur"),
    "attention": (lambda: Attending(), "synflow", "weights", "block.self_attn.*attend or recur"),
    "what attention reads": (lambda: Attending(), "wanda", "weights", "what block.self_attn.out_proj.weight read is"),
    "no second derivative": (lambda: linear(lambda layer: nn.Sequential(layer, nn.Hardsigmoid())), "grasp", "weights",
                             "no second derivative of hardsigmoid, which GraSP needs: take snip"),
    "a class too many": (lambda: nn.Sequential(nn.Linear(8, 5), nn.ReLU(), nn.Linear(5, 3)).double(), "snip", "weights",
                         "labels are 0 to 3; 3 logits have 0 to 2"),
    "sums that are read": (residual, "outgoing_l1", "units", "^Net has sums.*chains"),
    "groups that are read": (lambda: Net(lambda net, x: net.o(net.b(net.a(x)[..., None])[..., 0]), a=nn.Linear(8, 6),
                                         b=nn.Conv1d(6, 6, 1, groups=3), o=nn.Linear(6, 4)), "outgoing_l1", "units",
                             r"\['b'\] read in groups"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_a_module_cannot_be_asked_is_told_with_the_way_out(case):
    made, name, of, told = REFUSED[case]
    given = {"numbers looked up": ROWS.abs().clamp(0, 8), "sums that are read": X, "what attention reads": TOKENS}
    x = given.get(case, ROWS)
    with pytest.raises(ValueError, match=told):
        methods.prune(made(), name, 0.5, x, Y, of=of)


def test_transposed_convolutions_stay_whole_beside_others():
    net = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.ConvTranspose2d(6, 4, 2), nn.ReLU(), nn.Conv2d(4, 2, 1))
    with pytest.warns(UserWarning, match="^2 are transposed convolutions.*their units stay"):
        found = methods.prune(net, "magnitude", 0.5, torch.rand(2, 3, 6, 6), of="units")
    assert list(found) == ["0"] and int(found["0"].sum()) == 3
    for scope in ("unit", "four"):
        with pytest.raises(
            ParameterError, match=f"scope '{scope}' is of rows, which .* transposed convolutions 2: take"
        ):
            methods.prune(net, "magnitude", 0.5, scope=scope)
        assert list(methods.prune(net, "magnitude", 0.5, scope=scope, layers=["0"])) == ["0.weight"]


def test_layers_that_are_named_need_no_module_that_can_be_read():
    net = nn.Sequential(nn.Linear(8, 5), Lambda(lambda net, x: x.cumsum(1)), nn.Linear(5, 4)).double()
    found = methods.prune(net, "magnitude", 0.4, of="units", layers=["0"])
    norms = net[0].weight.norm(dim=1)
    assert torch.equal(found["0"], norms >= norms.sort().values[-2])
    with pytest.raises(ParameterError, match=r"no layers \['7'\].*'0', '2'"):
        methods.prune(net, "magnitude", 0.4, of="units", layers=["7"])


def test_the_hidden_layers_of_every_stack_are_all_but_the_last():
    """Whatever its parts are called: a VGG has a list of them that is called hidden."""
    nets_of = (nets.MLP([6, 5, 3], "no-WN"), convnets.build("vgg11", (3, 32, 32), 10, 1, width=2),
               convnets.build("resnet20", (3, 8, 8), 4, 1, width=2))  # fmt: skip
    for net in nets_of:
        nets.init_(net, [1])
        assert list(methods.prune(net, "magnitude", 0.5, of="units")) == list(nets.layers(net))[:-1]
