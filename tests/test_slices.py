"""Torch modules of any kind are shrunk to the same outputs, as Torch-Pruning does it and beyond that."""

import copy
import warnings

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

from lib import methods, plain, shrink, smaller
from lib.pruning.hops import unwrapped, weighted
from lib.pruning.masks import apply_
from tests.odd_networks import READ, Lambda, act, conv, head

with warnings.catch_warnings():  # of what torch has deprecated
    warnings.simplefilter("ignore")
    import torch_pruning


def filled(network):
    """Return a network whose every tensor is random, normalisations included, in eval() mode."""
    generator = torch.Generator().manual_seed(0)
    for name, tensor in network.state_dict().items():
        if "running_var" in name or tensor.dim() == 1 and name.endswith("weight"):
            tensor.uniform_(0.5, 1.5, generator=generator)
        elif tensor.is_floating_point():
            tensor.normal_(0, (2 / max(tensor[0].numel(), 9)) ** 0.5, generator=generator)
    return network.eval()


def rows(network, density, last):
    """Return masks that drop random rows of all layers but the last, whose biases and normalisations go on speaking."""
    generator, found = torch.Generator().manual_seed(2), {}
    for name, layer in weighted(network).items():
        kept = torch.rand(len(layer.weight), generator=generator) < (1 if name == last else density)
        found[f"{name}.weight"] = kept.view(-1, *[1] * (layer.weight.dim() - 1)).expand_as(layer.weight).clone()
    return found


def scattered(network, density):
    generator = torch.Generator().manual_seed(2)
    parameters = network.named_parameters()
    return {name: torch.rand(p.shape, generator=generator) < density for name, p in parameters if p.dim() > 1}


@torch.no_grad()
def outputs(network, x):
    found = network(x)
    return found if isinstance(found, torch.Tensor) else torch.cat([part.flatten() for part in found.values()])


def shrunk(network, masks, x):
    """Return the module without what is on no path, having compared outputs; and what it warns of."""
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        small = shrink.shrink(network, masks, inputs=x)
    expected = outputs(apply_(copy.deepcopy(unwrapped(network)), masks), x)
    torch.testing.assert_close(outputs(small, x), expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))
    return small, " ".join(str(one.message) for one in told)


# --- torchvision -----------------------------------------------------------------------------------------------------


def classifier(name):
    models = pytest.importorskip("torchvision.models")
    with torch.device("meta"):
        if name == "densenet":
            network = models.DenseNet(8, (2, 3), 16, num_classes=10)
        else:
            network = models.get_model(name, num_classes=10)
        if name == "vgg11_bn":  # a hundredth of the memory of the full one
            network.classifier[0], network.classifier[3] = nn.Linear(25088, 64), nn.Linear(64, 64)
            network.classifier[6] = nn.Linear(64, 10)
    return filled(network.to_empty(device="cpu")), torch.rand(2, 3, 32, 32)


CLASSIFIERS = {
    "resnet18": "fc", "vgg11_bn": "classifier.6", "mobilenet_v2": "classifier.1", "densenet121": "classifier",
    "densenet": "classifier",
}  # fmt: skip


def by_torch_pruning(network, x, last):
    """Return the network without half of each group of channels, by Torch-Pruning, and masks that silence these."""
    pruned, masks = copy.deepcopy(network), {}
    names = {module: name for name, module in pruned.named_modules()}
    graph = torch_pruning.DependencyGraph().build_dependency(pruned, x)
    kinds, ignored, roots = [nn.Conv2d, nn.Linear], [pruned.get_submodule(last)], []
    for group in graph.get_all_groups(ignored_layers=ignored, root_module_types=kinds):
        part, handler = group[0][0].target.module, group[0][0].handler
        roots.append((part, handler, list(range(0, graph.get_out_channels(part), 2))))
    for root in roots:
        for dependency, places in graph.get_pruning_group(*root):
            kind = dependency.handler.__name__
            if "out_channels" in kind and dependency.target.module in names:
                name = names[dependency.target.module]
                for of, parameter in network.get_submodule(name).named_parameters():
                    masks.setdefault(f"{name}.{of}", torch.ones_like(parameter, dtype=torch.bool))[places] = False
    for root in roots:
        graph.get_pruning_group(*root).prune()
    return pruned, masks


@pytest.mark.parametrize("name", [name for name in CLASSIFIERS if name != "densenet121"])
def test_classifiers_become_what_torch_pruning_makes_of_them(name):
    network, x = classifier(name)
    theirs, masks = by_torch_pruning(network, x, CLASSIFIERS[name])
    small, told = shrunk(network, masks, x)
    assert told == ""
    shapes, expected = ({key: v.shape for key, v in one.state_dict().items()} for one in (small, theirs))
    assert shapes == expected
    torch.testing.assert_close(outputs(small, x), outputs(theirs, x), rtol=1e-4, atol=1e-5)
    for part, other in zip(small.modules(), theirs.modules(), strict=True):
        for size in ("in_channels", "out_channels", "groups", "in_features", "out_features", "num_features"):
            assert getattr(part, size, None) == getattr(other, size, None)
    assert plain.parameters(small) < 0.4 * plain.parameters(network)


@pytest.mark.parametrize("name", [name for name in CLASSIFIERS if name != "densenet"])
def test_units_that_go_on_speaking_are_told_to_their_readers(name):
    """Rows are masked, and shifts of normalisations are not."""
    network, x = classifier(name)
    masks = rows(network, 0.5, CLASSIFIERS[name])
    small, told = shrunk(network, masks, x)
    assert told == "" and plain.parameters(small) < 0.5 * plain.parameters(network)
    if name == "vgg11_bn":
        kept = {layer: int(mask.flatten(1).any(1).sum()) for layer, mask in masks.items()}
        found = weighted(small).values()
        assert [len(layer.weight) for layer in found] == list(kept.values())


# --- every kind ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", READ)
def test_every_kind_of_network_keeps_its_outputs(name):
    make, shape = READ[name]
    for density in (0.3, 0.05):
        network = filled(make().double())
        small, _ = shrunk(network, scattered(unwrapped(network), density), torch.rand(2, *shape).double())
        assert plain.parameters(small) <= plain.parameters(network)


def residual():
    body = Lambda(lambda s, x: torch.relu(x + s.b(torch.relu(s.a(x)))), a=conv(8, 8), b=conv(8, 8))
    return head(8, conv(3, 8), body)


FIRST, EVEN = slice(0, 4), slice(0, None, 2)
SMALLER = {  # (network, rows masked by layer, rows that are left of each layer)
    "chain": (lambda: head(6, conv(3, 8), nn.BatchNorm2d(8), nn.ReLU(), conv(8, 6)), {"0": EVEN}, [4, 6, 4]),
    "depthwise": (
        lambda: head(6, conv(3, 8), nn.PReLU(8), conv(8, 8, groups=8), conv(8, 6)), {"0": EVEN}, [4, 4, 6, 4]
    ),
    "a group of two": (
        lambda: head(6, conv(3, 8), nn.Sigmoid(), conv(8, 8, groups=2), conv(8, 6)), {"0": FIRST}, [4, 4, 6, 4]
    ),
    "half a group": (lambda: head(6, conv(3, 8), conv(8, 8, groups=2), conv(8, 6)), {"0": EVEN}, [8, 8, 6, 4]),
    "transposed": (lambda: head(5, nn.ConvTranspose2d(3, 8, 3), nn.ReLU(), conv(8, 5)), {"0": EVEN}, [4, 5, 4]),
    "factors and terms": (READ["scaled"][0], {"conv": EVEN}, [3, 4]),
    "one term of a sum": (residual, {"1.b": EVEN}, [8, 8, 8, 4]),
    "inside of a block": (residual, {"1.a": EVEN}, [8, 4, 8, 4]),
    "all terms of a sum": (residual, {"0": EVEN, "1.b": EVEN}, [4, 8, 4, 4]),
    "in a frame": (
        lambda: head(6, nn.ZeroPad2d(1), nn.Conv2d(3, 8, 3), nn.ZeroPad2d(1), conv(8, 6)), {"1": EVEN}, [4, 6, 4]
    ),
    "said to a transposed": (
        lambda: head(5, conv(3, 8), nn.ReLU(), nn.ConvTranspose2d(8, 6, 2, 2), conv(6, 5)), {"0": EVEN}, [4, 6, 5, 4]
    ),
    "parts side by side": (READ["inception"][0], {"a": FIRST, "b.1": EVEN}, [1, 3, 3, 2, 4]),
}  # fmt: skip


@pytest.mark.parametrize("name", SMALLER)
def test_units_without_weights_go_with_all_that_is_theirs(name):
    make, dropped, expected = SMALLER[name]
    network, masks = filled(make().double()), {}
    for layer, places in dropped.items():
        masks[f"{layer}.weight"] = torch.ones_like(weighted(network)[layer].weight, dtype=torch.bool)
        turned = isinstance(weighted(network)[layer], nn.ConvTranspose2d)
        masks[f"{layer}.weight"][(slice(None), places) if turned else places] = False
    small, told = shrunk(network, masks, torch.rand(2, 3, 8, 8).double())
    found = [getattr(part, "out_channels", getattr(part, "out_features", 0)) for part in weighted(small).values()]
    whole = name in ("half a group", "one term of a sum")
    assert ("4, because they go only with others that stay" in told if whole else told == "") and found == expected
    assert whole or plain.parameters(small) < plain.parameters(network)


SHARED = {  # (network, shape, rows masked, rows that are left of each layer)
    "siamese": (READ["siamese"][0], (12,), {"branch.0.0": EVEN, "branch.1": FIRST}, [4, 3, 2]),
    "recurrent": (READ["recurrent"][0], (6,), {"enter": EVEN, "cell": EVEN}, [4, 4, 3]),
    "a unit of one of both": (READ["recurrent"][0], (6,), {"enter": EVEN, "cell": FIRST}, [6, 6, 3]),
}


@pytest.mark.parametrize("name", SHARED)
def test_units_of_a_layer_that_is_called_twice_go_where_they_may_in_both(name):
    make, shape, dropped, expected = SHARED[name]
    network, masks = filled(make().double()), {}
    for layer, places in dropped.items():
        for of, tensor in weighted(network)[layer].named_parameters():
            masks[f"{layer}.{of}"] = torch.ones_like(tensor, dtype=torch.bool)
            masks[f"{layer}.{of}"][places] = False
    small, told = shrunk(network, masks, torch.rand(2, *shape).double())
    assert told == "" and [part.out_features for part in weighted(small).values()] == expected


def test_units_of_a_module_go_by_the_method_that_ranks_them():
    network, x = filled(residual().double()), torch.rand(2, 3, 8, 8).double()
    units = methods.prune(network, "magnitude", 0.25, of="units")
    small, told = shrunk(network, smaller.rows(network, units), x)
    stream, inside = int((units["0"] | units["1.b"]).sum()), int(units["1.a"].sum())
    assert told == "" and inside == 2
    assert [len(layer.weight) for layer in weighted(small).values()] == [stream, inside, stream, 4]


def test_a_network_without_a_path_says_its_constant():
    network = filled(nn.Sequential(act(nn.Linear(5, 6)), act(nn.Linear(6, 7)), nn.Linear(7, 3)).double())
    small, told = shrunk(network, {"1.0.weight": torch.zeros(7, 6, dtype=torch.bool)}, torch.rand(4, 5).double())
    assert told == "" and [part.out_features for part in weighted(small).values()] == [1, 1, 3]


def test_what_is_said_at_a_border_stands_behind_the_convolution():
    network = filled(head(5, act(conv(3, 6)), conv(6, 5)).double())
    small, _ = shrunk(network, rows(network, 0.5, "4"), torch.rand(2, 3, 8, 8).double())
    border = small.get_submodule("1.1")
    assert isinstance(border, plain.Offset) and border.values.shape[1:] == (3, 3)
    flat = filled(head(5, act(nn.Conv2d(3, 6, 3)), nn.Conv2d(6, 5, 3)).double())
    small, _ = shrunk(flat, rows(flat, 0.5, "4"), torch.rand(2, 3, 8, 8).double())
    assert not any(isinstance(part, plain.Offset) for part in small.modules())


def test_the_module_given_stays_what_it_is():
    network = filled(head(6, conv(3, 8), nn.BatchNorm2d(8), nn.ReLU(), conv(8, 6))).train()
    before, random = copy.deepcopy(network.state_dict()), torch.get_rng_state()
    small = shrink.shrink(nn.DataParallel(network), rows(network, 0.5, "5"))
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert network.training and not small.training and torch.equal(torch.get_rng_state(), random)
    assert {tensor.dtype for tensor in small.parameters()} == {torch.float32}


CASTS = {
    "bytes": lambda s, x: s.b(s.a(x.float() / 255).relu()),
    "single": lambda s, x: s.b(s.a(x / 255).relu().to(torch.float32)),
    "another's": lambda s, x: s.b(s.a(x / 255).relu().float().type_as(s.b.weight)),
}


@pytest.mark.parametrize("cast", CASTS)
def test_code_that_asks_for_a_precision_gets_it(cast):
    network = filled(Lambda(CASTS[cast], a=nn.Linear(6, 8), b=nn.Linear(8, 3)))
    mask = (torch.arange(8) % 2 == 0)[:, None].expand(8, 6).clone()
    x = torch.arange(24, dtype=torch.uint8).view(4, 6)
    small, told = shrunk(network, {"a.weight": mask}, x)
    assert told == "" and small.a.out_features == small.b.in_features == 4
    torch.testing.assert_close(small(x), apply_(copy.deepcopy(network), {"a.weight": mask})(x))


def test_every_tensor_keeps_its_precision():
    """Also what is new, a bias or a border, which has that of its layer."""
    mixed = lambda s, x: s.b(s.n(s.a(x.half()).float()).relu().double())  # noqa: E731
    network = filled(Lambda(mixed, a=conv(3, 6), n=nn.BatchNorm2d(6), b=nn.Conv2d(6, 5, 3, padding=1, bias=False)))
    network.a.half(), network.b.double(), network.n.bias.data.fill_(2)
    network.register_buffer("more", torch.ones(1).double())
    x = torch.rand(2, 3, 8, 8)
    small, _ = shrunk(network, rows(network, 0.5, "b"), x)
    types = {name: tensor.dtype for name, tensor in small.state_dict().items() if tensor.is_floating_point()}
    assert isinstance(small.b[1], plain.Offset) and small.a.out_channels < 6 and small(x).dtype == torch.float64
    assert types == {name: {"a": torch.float16, "n": torch.float32}.get(name[0], torch.float64) for name in types}


# --- what stays, and why ---------------------------------------------------------------------------------------------


STAYS = {
    "a norm": (
        lambda: head(8, conv(3, 8), nn.GroupNorm(2, 8)), "0", "GroupNorm '1' calls group_norm, over all of them"
    ),
    "a view": (
        lambda: nn.Sequential(conv(3, 8), nn.Unflatten(1, (2, 4)), nn.Flatten(), nn.Linear(512, 4)),
        "0", "Unflatten '1' calls unflatten, which counts on their number",
    ),
    "a chunk": (READ["shuffled"][0], "stem", "calls chunk, which counts on their number"),
    "a tensor": (
        lambda: Lambda(lambda s, x: s.b(s.a(x) * torch.arange(8.0).view(8, 1, 1)), a=conv(3, 8), b=conv(8, 3)),
        "a", "calls mul with a tensor that is no parameter of theirs",
    ),
    "another constant": (
        lambda: Lambda(lambda s, x: s.b(s.a(x)) + s.b(2 * s.a(x)), a=conv(3, 8), b=conv(8, 3)),
        "a", "a constant, read by 'b', is another in another call",
    ),
    "a constant along a line": (
        lambda: Lambda(lambda s, x: s.b(s.a(x.flatten(2))), a=nn.Conv1d(3, 8, 3), b=nn.Conv1d(8, 4, 3, padding=1)),
        "a", "a constant, read by 'b', is not everywhere the same",
    ),
    "a group": (
        lambda: nn.Sequential(conv(3, 8), nn.ReLU(), nn.Conv2d(8, 4, 3, groups=2)), "0", "4, because they go only with"
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", STAYS)
def test_what_cannot_go_stays_and_is_told(name):
    make, layer, why = STAYS[name]
    network = filled(make())
    mask = torch.ones_like(weighted(network)[layer].weight, dtype=torch.bool)
    mask[1::2] = False
    small, told = shrunk(network, {f"{layer}.weight": mask}, torch.rand(2, 3, 8, 8))
    assert why in told and "torch_pruning.DependencyGraph()" in told
    assert plain.parameters(small) == plain.parameters(network)


class Counting(nn.Module):
    """What counts channels apart from torch."""

    def __init__(self):
        super().__init__()
        self.a, self.b = conv(3, 8), conv(8, 4)

    def forward(self, x):
        y = self.a(x)
        return self.b(y) * y.shape[1]


class Refusing(Counting):
    def forward(self, x):
        y = self.a(x)
        assert y.shape[1] == 8, "eight are wanted"
        return self.b(y)


@pytest.mark.parametrize(
    ("kind", "told"), [(Counting, "computes otherwise"), (Refusing, "does not run.*eight are wanted")]
)
def test_code_that_counts_units_is_refused(kind, told):
    network = filled(kind())
    with pytest.raises(ValueError, match=f"(?s){kind.__name__} {told}.*torch_pruning.DependencyGraph"):
        shrink.shrink(network, rows(network, 0.5, "b"), inputs=torch.rand(2, 3, 8, 8))
    with pytest.raises(ValueError, match="the mask of c.weight"):
        shrink.shrink(network, {"c.weight": torch.ones(3, dtype=torch.bool)}, inputs=torch.rand(2, 3, 8, 8))


def test_a_weight_of_two_layers_stays_one():
    """Cut in the one and whole in the other it would be two, larger than before."""
    network = filled(READ["tied"][0]())
    mask = torch.ones_like(network[0].weight, dtype=torch.bool)
    mask[::2] = False
    small, told = shrunk(network, {"0.weight": mask}, torch.rand(2, 4))
    assert small[2].weight is small[4].weight and "2.weight is used twice" in told
    assert plain.parameters(small) == plain.parameters(network)


@pytest.mark.parametrize("first", [torch.sqrt, torch.log])
def test_functions_of_images_alone_are_read(first):
    """Of numbers below zero they make none, which would become the biases of what reads them."""
    network = filled(Lambda(lambda s, x: s.b(s.a(first(x)).sigmoid()), a=conv(3, 8), b=conv(8, 4)))
    mask = (torch.arange(8) % 2 == 0).view(8, 1, 1, 1).expand(8, 3, 3, 3).clone()
    small, told = shrunk(network, {"a.weight": mask}, torch.rand(2, 3, 8, 8))
    assert small.a.out_channels == 4 and told == ""


def remembering(s, x):
    h = torch.zeros(len(x), 8)
    for _ in range(2):
        h = (s.a(x) + s.r(h)).relu()
    return s.b(h)


def test_what_is_remembered_begins_with_zeros_of_the_same_precision():
    network = filled(Lambda(remembering, a=nn.Linear(6, 8), r=nn.Linear(8, 8), b=nn.Linear(8, 3)))
    mask = (torch.arange(8) % 2 == 0)[:, None]
    small, _ = shrunk(network, {"a.weight": mask.expand(8, 6), "r.weight": mask.expand(8, 8)}, torch.randn(4, 6))
    assert isinstance(small, Lambda)


def test_weights_that_are_computed_stay_and_are_told():
    network = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    prune.ln_structured(network[0], "weight", 0.5, 2, 0)
    with pytest.warns(UserWarning, match=r"layers \['0'\] stay whole: they compute their weights.*prune.remove"):
        shrink.shrink(network, inputs=torch.rand(2, 6))
    prune.remove(network[0], "weight")
    assert shrunk(network, {}, torch.rand(2, 6))[0][2].in_features == 4


def helped(s, x):
    y = s.a(x).relu()
    return (s.out(y), s.aux(y)) if s.training else s.out(y)


def test_what_training_alone_uses_is_told():
    """As the second heads of GoogLeNet, which are not there when the module is read in eval() mode."""
    network = filled(Lambda(helped, a=nn.Linear(6, 8), out=nn.Linear(8, 3), aux=nn.Linear(8, 3)))
    mask = (torch.arange(8) % 2 == 0)[:, None].expand(8, 6).clone()
    small, told = shrunk(network, {"a.weight": mask}, torch.rand(2, 6))
    assert "aux make no output in eval() mode and stay whole" in told
    assert small.a.out_features == small.out.in_features == 4 and small.aux.in_features == 8
    _, told = shrunk(network, {}, torch.rand(2, 6))
    assert told == ""


# --- what is not read ------------------------------------------------------------------------------------------------


class Tokens(nn.Module):
    """A transformer of images: a token is put before the others, and attention joins them."""

    def __init__(self):
        super().__init__()
        self.p, self.first, self.places = conv(3, 8, 4, 0, stride=4), *map(nn.Parameter, torch.zeros(2, 1, 5, 8))
        self.n, self.m = nn.LayerNorm(8), nn.LayerNorm(8)
        self.qkv, self.a, self.b, self.c, self.o = (nn.Linear(*n) for n in ((8, 24), (8, 8), (8, 12), (12, 8), (8, 3)))

    def forward(self, x):
        x = self.p(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.first[:, :1].expand(len(x), -1, -1), x], 1) + self.places
        q, k, v = self.qkv(self.n(x)).reshape(len(x), 5, 3, 2, 4).permute(2, 0, 3, 1, 4).unbind(0)
        x = x + self.a(nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(len(x), 5, 8))
        return self.o((x + self.c(self.b(self.m(x)).relu()))[:, 0])


def last(s, x):
    """Tokens are looked up, and the last one that is not 0 is found by what it is."""
    made, there = s.o(s.b(s.a(s.e(x)).relu()).relu()), (x != 0).to(torch.int32) * torch.arange(x.shape[1])
    return made[torch.arange(len(x)), there.argmax(1)]


def written(s, x):
    there = torch.zeros(len(x), 5)
    there[:, 1:4] = s.a(x)
    return s.o(s.c(s.b(there.cumsum(1)).relu()))


def recurrent(s, x):
    return s.o(s.a(s.r(s.b(x).relu())[0][:, -1]).relu())


UNREAD = {
    "attention": (Tokens, torch.rand(2, 3, 8, 8), {"b": 12}),
    "torch's attention": (lambda: nn.Sequential(
        nn.TransformerEncoderLayer(8, 2, 12, batch_first=True), nn.Flatten(), nn.Linear(24, 6), nn.Linear(6, 3)),
        torch.rand(2, 3, 8), {"0.linear1": 12, "2": 6}),
    "what is looked up": (lambda: Lambda(last, e=nn.Embedding(9, 4), a=nn.Linear(4, 10), b=nn.Linear(10, 8),
                                         o=nn.Linear(8, 3)), torch.randint(1, 9, (2, 5)), {"a": 10, "b": 8}),
    "what is written": (lambda: Lambda(written, a=nn.Linear(4, 3), b=nn.Linear(5, 6), c=nn.Linear(6, 8),
                                       o=nn.Linear(8, 3)), torch.rand(2, 4), {"b": 6, "c": 8}),
    "recurrence": (lambda: Lambda(recurrent, r=nn.GRU(6, 4, batch_first=True), a=nn.Linear(4, 8), b=nn.Linear(3, 6),
                                  o=nn.Linear(8, 2)), torch.rand(2, 5, 3), {"a": 8}),
    "an angle": (lambda: Lambda(lambda s, x, y: torch.cosine_similarity(s.b(s.a(x).relu()), s.b(s.a(y).relu())),
                                a=nn.Linear(4, 8), b=nn.Linear(8, 3)), (torch.rand(2, 4), torch.rand(2, 4)), {"a": 8}),
}  # fmt: skip


@pytest.mark.parametrize("case", UNREAD)
def test_units_go_beside_what_is_not_read(case):
    """What that makes, and what it is given, stays whole."""
    made, x, goes = UNREAD[case]
    network, inputs = filled(made()), x if isinstance(x, tuple) else (x,)
    masks = rows(network, 0.5, None)
    with warnings.catch_warnings(record=True) as told, torch.no_grad():
        warnings.simplefilter("always")
        small = shrink.shrink(network, masks, inputs=x)
        torch.testing.assert_close(small(*inputs), apply_(copy.deepcopy(network), masks).eval()(*inputs))
    assert all("units on no path stay" in str(one.message) and "no output" not in str(one.message) for one in told)
    full, left = ({name: part.out_features for name, part in weighted(n).items() if isinstance(part, nn.Linear)}
                  for n in (network, small))  # fmt: skip
    assert {name: full[name] for name in full if left[name] < full[name]} == goes
    if len(inputs) == 1:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            assert goes.keys() <= methods.prune(network, "magnitude", 0.5, x, of="units").keys()


def test_what_is_decided_by_values_is_refused_all_the_same():
    network = Lambda(
        lambda s, x: s.b(s.a(x).relu() if s.a(x).mean() > 0 else s.a(x)), a=nn.Linear(4, 6), b=nn.Linear(6, 2)
    )
    with pytest.raises(ValueError, match="Lambda decides by values: it calls __bool__.*torch_pruning"):
        shrink.shrink(network, {}, inputs=torch.rand(2, 4))
    with pytest.raises(ValueError, match="Lambda cannot be watched as it reads such inputs: .*4 inputs, and gets 5"):
        shrink.shrink(network, {}, inputs=torch.rand(2, 5))


def remembered(s, x):
    """What a pass makes once, and keeps, as of places that attention compares."""
    s.kept.setdefault("a", s.a.weight.sum(1))
    return s.b(s.a(x) + s.kept["a"][None, :1])


def test_nothing_stays_of_what_a_pass_remembers():
    network = filled(Lambda(remembered, a=nn.Linear(4, 6), b=nn.Linear(6, 2), kept={}))
    small, _ = shrunk(network, {}, torch.rand(2, 4))
    assert small(torch.rand(2, 4)).dtype == small.kept["a"].dtype == torch.float32
    assert network.kept == {}
