"""Plain modules as files: what is saved loads to the same function, or saving refuses and names what it cannot keep."""

import copy
import inspect
from collections import OrderedDict
from contextlib import nullcontext
from functools import partial

import numpy as np
import pytest
import torch
from flips import refused
from torch import nn
from torch.nn.utils.prune import random_unstructured

from lib import disk, plain, shrink
from lib.errors import ParameterError
from tests.odd_networks import Lambda, conv
from tests.test_slices import CLASSIFIERS, classifier, filled, rows

IMAGE = torch.randn(2, 4, 9, 9, generator=torch.Generator().manual_seed(0))
OPTIONS = {  # values of every option, the first the one that stands beside the others'
    nn.Linear: {"in_features": [9], "out_features": [5, 1], "bias": [True, False]},
    nn.Conv2d: {
        "in_channels": [4], "out_channels": [4, 8], "kernel_size": [3, (1, 3)], "stride": [1, (2, 1)],
        "padding": [1, 0, "same", "valid", (1, 0)], "dilation": [1, 2, (1, 2)], "groups": [1, 2, 4],
        "bias": [True, False], "padding_mode": ["zeros", "reflect", "replicate", "circular"],
    },
    nn.MaxPool2d: {
        "kernel_size": [2, (2, 3)], "stride": [None, 1, (2, 1)], "padding": [0, 1], "dilation": [1, 2],
        "return_indices": [False, True], "ceil_mode": [False, True],
    },
    nn.AvgPool2d: {
        "kernel_size": [2, [2, 3]], "stride": [None, 1], "padding": [1, 0, (1, 0)], "ceil_mode": [False, True],
        "count_include_pad": [True, False], "divisor_override": [None, 3],
    },
    nn.AdaptiveAvgPool2d: {"output_size": [1, 3, (None, 2)]},
    nn.Unflatten: {"dim": [1, -3], "unflattened_size": [(2, 2), [1, 2, 2], torch.Size([4, 1])]},
    nn.Flatten: {"start_dim": [1, 0, 2], "end_dim": [-1, 2]},
    nn.ReLU: {"inplace": [False, True]},
    nn.Sigmoid: {},
    plain.Square: {},
    plain.Erf: {},
    plain.Offset: {"channels": [4], "rows": [[0] * 4 + [1] * 5], "columns": [[0, 1, 2, 2, 2, 2, 2, 3, 4]]},
    plain.Route: {"take": [[3, 0], [2]], "put": [[1, 4], [0]], "width": [5]},
    plain.Constant: {"classes": [7]},
}  # fmt: skip
CASES = [
    (kind, {name: values[0] for name, values in options.items()} | {name: value})
    for kind, options in OPTIONS.items()
    for name, values in (options or {None: [None]}).items()
    for value in values
]


def made(kind, options):
    """Return the module, with weights of its own, and an input."""
    options = {name: value for name, value in options.items() if name}
    if kind is plain.Route:
        count = min(len(options["take"]), len(options["put"]))
        options |= {name: options[name][:count] for name in ("take", "put")}
    module = kind(**options)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(generator=torch.Generator().manual_seed(1))
    return module, IMAGE.clone()


def same(module, x, folder):
    """Assert that the module comes back from a file as the same function; return it."""
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    expected, again = module(x.clone()), plain.load(plain.save(module, folder).parent)
    found = again(x.clone())
    # With AVX2 the same weights were seen to round otherwise by 1.5e-6; another option makes more of a difference.
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert {name: (t.dtype, t.shape) for name, t in again.state_dict().items()} == {
        name: (t.dtype, t.shape) for name, t in before.items()
    }
    return again


@pytest.mark.parametrize("kind, options", CASES)
def test_every_option_of_every_kind_comes_back(kind, options, tmp_path):
    module, x = made(kind, options)
    again = same(module, x, tmp_path)
    for name in OPTIONS[kind].keys() - {"bias"}:
        value = getattr(module, name)
        assert getattr(again, name) in ([value, tuple(value)] if isinstance(value, list | tuple) else [value]), name


def test_no_option_is_left_out_of_these_tests():
    """Not one that a later torch adds, either."""
    for kind in plain.KINDS:
        if kind not in (nn.Sequential, plain.Graph):
            named = inspect.Parameter.POSITIONAL_OR_KEYWORD
            arguments = {name for name, of in inspect.signature(kind).parameters.items() if of.kind is named}
            assert arguments - plain.NOT_OPTIONS == set(OPTIONS[kind])


def test_options_together_come_back(tmp_path):
    convolution = nn.Conv2d(4, 8, 3, (2, 1), 2, 2, 4, False, "reflect")
    pool = nn.AvgPool2d(2, 2, 1, ceil_mode=True, count_include_pad=False, divisor_override=3)
    assert same(nn.Sequential(convolution, pool, nn.Flatten()), IMAGE, tmp_path)[0].padding_mode == "reflect"


def test_parts_keep_their_names(tmp_path):
    module = nn.Sequential()
    module.add_module("first", nn.Linear(9, 3))
    module.add_module("inner", nn.Sequential(nn.ReLU(), nn.Sequential()))
    again = same(module, IMAGE, tmp_path)
    assert [name for name, _ in again.named_modules()] == ["", "first", "inner", "inner.0", "inner.1"]


def test_shared_parts_stay_shared(tmp_path):
    twice, act = nn.Linear(9, 9), nn.ReLU()
    block = nn.Sequential(twice, act)
    again = same(nn.Sequential(block, nn.Sequential(twice, act), block, nn.Linear(9, 9)), IMAGE, tmp_path)
    assert again[0] is again[2] and again[0][0] is again[1][0] and again[0][1] is again[1][1]
    assert again[3] is not again[0][0] and plain.parameters(again) == 2 * 90
    ways = [nn.Linear(9, 4), *[nn.Linear(4, 4)] * 2]
    graph = plain.Graph([(0, 1), (1, 2), (1, 2)], nn.Sequential(), act, *ways)
    again = same(graph, IMAGE, tmp_path)
    assert again.ways[1] is again.ways[2] is not again.ways[0]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_every_precision_comes_back(dtype, tmp_path):
    module = nn.Sequential(nn.Linear(9, 3), nn.Sigmoid()).to(dtype)
    again = same(module, IMAGE.to(dtype), tmp_path)
    assert torch.equal(again[0].weight, module[0].weight)
    refused(tmp_path / plain.FILE, lambda: plain.load(tmp_path))


class Masked(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.last = nn.Conv2d(4, 64, 3), nn.Linear(64, 5000, dtype=torch.bfloat16)
        (
            self.register_buffer("count", torch.tensor(3)),
            self.register_buffer("codes", torch.zeros(3000, dtype=torch.uint8)),
        )


@pytest.mark.parametrize("packed", [False, True])
def test_a_masked_module_takes_the_room_of_what_is_left(packed, tmp_path):
    net = Masked()
    net.conv.to(memory_format=torch.channels_last)
    for weight in (net.conv.weight, net.last.weight):
        weight.data[torch.rand(weight.shape) < 0.95] = 0
    net.last.weight.data[0, 0], net.conv.weight.data[0, 0, 0, 0], net.codes[7] = -0.0, torch.nan, 200
    whole = sum(tensor.nbytes for tensor in net.state_dict().values())
    size = plain.save(net, tmp_path, packed=packed).stat().st_size
    assert size < (0.05 + 1 / 16) * whole + 16_000 if packed else size > whole, "a bit of the 16 of a number"
    found = plain.load(tmp_path, Masked()).state_dict()
    for name, tensor in net.state_dict().items():
        assert found[name].dtype == tensor.dtype and found[name].stride() == tensor.stride()
        assert np.array_equal(*(t.contiguous().view(torch.uint8).numpy() for t in (found[name][None], tensor[None])))


def test_a_home_is_found(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert plain.save(nn.ReLU(), "~/small") == tmp_path / "small" / plain.FILE
    assert type(plain.load("~/small")) is nn.ReLU


class Doubled(nn.Linear):
    def forward(self, x):
        return 2 * super().forward(x)


def gated(x, hidden):
    return 4 * hidden * (x + hidden)


@pytest.mark.parametrize(
    ("module", "shape", "count"),
    [
        (nn.LSTM(6, 7, num_layers=2, bidirectional=True, batch_first=True), (5, 6),
         5 * 2 * (gated(6, 7) + gated(14, 7))),
        (nn.GRU(6, 7, batch_first=True), (5, 6), 5 * 3 * 7 * (6 + 7)),
        (nn.TransformerEncoderLayer(8, 2, 12, batch_first=True), (5, 8), 5 * 8 * (3 * 8 + 8 + 2 * 12) + 2 * 5 * 5 * 8),
        (nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.BatchNorm2d(4)), (3, 6, 6),
         4 * 27 * 16),
        (nn.ConvTranspose2d(3, 4, 2, 2), (3, 5, 5), 25 * 3 * 4 * 4),
    ], ids=["lstm", "gru", "attention", "normalised", "transposed"],
)  # fmt: skip
@pytest.mark.parametrize("trained", [True, False])
def test_multiplications_are_those_counted_by_hand(module, shape, count, trained):
    """Whatever torch calls for it on a CPU, of frozen weights too; the module is left as it was."""
    module = module.requires_grad_(trained).train()
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    assert plain.macs(module, shape) == count
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())
    assert all(part.training for part in module.modules()) and torch.backends.mha.get_fastpath_enabled()


def test_multiplications_of_what_looks_numbers_up_are_of_an_example():
    module = nn.Sequential(nn.Embedding(9, 4), nn.Flatten(), nn.Linear(20, 3))
    assert plain.macs(module, torch.zeros(7, 5, dtype=torch.int64)) == 60


def test_what_has_no_parameters_multiplies_nothing():
    assert plain.macs(nn.ReLU(), 3) == 0


def test_recurrence_on_cuda_is_counted_from_the_shapes_of_its_weights():
    """What torch's counter passes on, without a GPU: two layers in both directions, of which biases do not count."""
    net = nn.LSTM(6, 7, num_layers=2, bidirectional=True)
    shapes = [weight.shape for weight in net._flat_weights]
    counted = plain.UNCOUNTED[torch.ops.aten._cudnn_rnn](torch.Size([5, 3, 6]), shapes, 4, None, torch.Size([4, 3, 7]))
    assert counted // 2 == 3 * 5 * 2 * (gated(6, 7) + gated(14, 7))


def hooked():
    module = nn.Sequential(nn.Linear(9, 9))
    module[0].register_forward_hook(lambda part, given, found: 2 * found)
    return module


def own_forward():
    module = nn.Sequential(nn.ReLU())
    module[0].forward = lambda x: x
    return module


def tied():
    module = nn.Sequential(nn.Linear(9, 9), nn.Linear(9, 9))
    module[1].weight = module[0].weight
    return module


def changed():
    module = nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect")
    module.padding = (2, 2)  # while what is padded was decided before
    return module


def added():
    module = nn.Linear(9, 9)
    module.register_buffer("scale", torch.ones(1))
    return module


def resized():
    module = nn.Linear(9, 9)
    module.weight = nn.Parameter(torch.ones(4, 9))
    return module


@pytest.mark.parametrize(
    "module, told",
    [
        (random_unstructured(nn.Linear(9, 9), "weight", 0.5), "'' of module is Linear with _forward_pre_hooks; a file"),
        (hooked(), "'0' of module is Linear with _forward_hooks; a file keeps.* Linear$"),
        (own_forward(), "'0' of module is ReLU with forward; a file keeps"),
        (changed(), "'_reversed_padding_repeated_twice' of module is .1, 1, 1, 1.; .* .2, 2, 2, 2.$"),
        (tied(), r"'1.weight' of module is 0.weight \(9, 9\); a file keeps, but of a class of your own, 1.weight"),
        (added(), r"'scale' of module is scale \(1,\); a file keeps"),
        (resized(), r"'weight' of module is weight \(4, 9\); a file keeps.* weight \(9, 9\)"),
        (nn.Linear(9, 9, dtype=torch.complex64), "weight is torch.complex64 on cpu, which a file cannot keep"),
        (nn.Linear(9, 9, device="meta"), "weight is torch.float32 on meta, which a file cannot keep"),
    ],
)  # fmt: skip
def test_what_a_file_cannot_keep_is_refused_by_name(module, told, tmp_path):
    with pytest.raises(ValueError, match=told):
        plain.save(module, tmp_path / "small")
    assert not (tmp_path / "small").exists()


# --- of a class of one's own -----------------------------------------------------------------------------------------


class Joined(nn.Module):
    """Normalisations, a concatenation, a projection beside a block, and buffers with a number for each channel."""

    def __init__(self, width=8):
        super().__init__()
        self.a, self.b = conv(3, width), nn.Conv2d(3, width, 3, padding=1, bias=False)
        self.n, self.m, self.act = nn.BatchNorm2d(width), nn.BatchNorm2d(width, affine=False), nn.PReLU(width)
        self.inner, self.outer, self.by = conv(2 * width, width), conv(width, 6), nn.Conv2d(2 * width, 6, 1)
        self.fc = nn.Linear(6, 4, bias=False)
        self.register_buffer("shift", torch.linspace(-1, 1, width).view(-1, 1, 1), persistent=False)

    def forward(self, x):
        h = torch.cat([self.act(self.n(self.a(x))), self.m(self.b(x)) + self.shift], 1)
        return self.fc((self.outer(self.inner(h).relu()) + self.by(h)).relu().mean((2, 3)))


def twice():
    """A module in two places, and a weight of two others."""
    parts = {"a": nn.Linear(6, 8), "t": nn.Linear(8, 8), "u": nn.Linear(8, 8), "b": nn.Linear(8, 8)}
    net = Lambda(lambda s, x: s.out(s.b(s.again(s.u(s.t(s.a(x).relu()))))), **parts, out=nn.Linear(8, 3))
    net.u.weight, net.again = net.t.weight, net.a[0] if isinstance(net.a, nn.Sequential) else net.t
    return net


def padded():
    return Lambda(lambda s, x: s.b(s.a(x).relu()).mean((2, 3)), a=conv(3, 8), b=nn.Conv2d(8, 5, 3, 2, 1, bias=False))


def biased():
    return Lambda(lambda s, x: s.b(s.a(x).relu()), a=nn.Linear(6, 8), b=nn.Linear(8, 3, bias=False))


def narrow():
    return pytest.importorskip("torchvision.models").mobilenet_v2(num_classes=10, width_mult=0.25)


OWN = {  # (full size, shape, last layer, kinds that are there in the small one)
    "joined": (Joined, (3, 8, 8), "fc", {nn.BatchNorm2d}),
    "border": (padded, (3, 8, 8), "b", {plain.Offset, nn.Sequential}),
    "new bias": (biased, (6,), "b", {nn.Linear}),
    "twice": (twice, (6,), "out", {nn.Linear}),
    "mobilenet_v2": (narrow, (3, 32, 32), CLASSIFIERS["mobilenet_v2"], {plain.Offset}),
    "resnet18": (lambda: classifier("resnet18")[0], (3, 32, 32), CLASSIFIERS["resnet18"], {plain.Offset}),
}


def own(name):
    """Return a small network of one's own, one of full size that has other weights, and an input."""
    make, shape, last, kinds = OWN[name]
    network, fresh, x = filled(make()), make().train(), torch.rand(2, *shape)
    with pytest.warns() if name == "twice" else nullcontext():
        small = shrink.shrink(network, rows(network, 0.5, last), inputs=x)
    assert kinds <= {type(part) for part in small.modules()}
    for tensor in fresh.state_dict().values():
        tensor.fill_(3)
    return small, fresh, x


@pytest.mark.parametrize("kind", [nn.BatchNorm1d, lambda n: nn.ModuleList([nn.Linear(n, n)])])
def test_a_part_by_the_name_of_a_graphs_ways_is_known_by_its_class(kind, tmp_path):
    module = nn.Sequential(OrderedDict(a=nn.Linear(4, 5), ways=kind(5)))
    folder = plain.save(module, tmp_path).parent
    with pytest.raises(ParameterError, match="needs a fresh Sequential"):
        plain.load(folder)
    again = plain.load(folder, copy.deepcopy(module)).state_dict()
    assert all(torch.equal(again[key], tensor) for key, tensor in module.state_dict().items())


@pytest.mark.parametrize("name", OWN)
def test_what_shrinking_made_of_ones_own_class_comes_back(name, tmp_path):
    """Bit for bit, from a fresh instance, which stays as it is; a module that is whole, too."""
    small, fresh, x = own(name)
    before, shape = str(fresh), {key: (tensor.shape, float(tensor.sum())) for key, tensor in fresh.state_dict().items()}
    again = plain.load(plain.save(small, tmp_path).parent, fresh)
    with torch.no_grad():
        assert torch.equal(again(x), small(x))
    assert type(again) is type(small) and str(again) == str(small) != before and not again.training
    assert list(again.state_dict()) == list(small.state_dict())
    assert all(torch.equal(*both) for both in zip(again.buffers(), small.buffers(), strict=True))
    assert plain.parameters(again) == plain.parameters(small) != plain.parameters(fresh) or name == "twice"
    assert fresh.training and str(fresh) == before
    assert shape == {key: (tensor.shape, float(tensor.sum())) for key, tensor in fresh.state_dict().items()}
    again(x).sum().backward()
    whole = plain.load(plain.save(fresh, tmp_path).parent, copy.deepcopy(fresh).eval())
    assert whole.training and str(whole) == before
    assert all(
        torch.equal(*both) for both in zip(whole.state_dict().values(), fresh.state_dict().values(), strict=True)
    )


def test_what_was_shrunk_twice_comes_back(tmp_path):
    small, fresh, x = own("border")
    kept = {"a.weight": torch.ones_like(small.a.weight, dtype=torch.bool)}
    kept["a.weight"][0] = False
    small = shrink.shrink(small, kept, inputs=x)
    assert isinstance(small.b[0][1], plain.Offset) and isinstance(small.b[1], plain.Offset)
    again = plain.load(plain.save(small, tmp_path).parent, fresh)
    assert torch.equal(again(x), small(x)) and str(again) == str(small)


def test_what_is_shared_stays_shared(tmp_path):
    small, fresh, _ = own("twice")
    again = plain.load(plain.save(small, tmp_path).parent, fresh)
    assert again.again is again.t and again.u.weight is again.t.weight is not again.b.weight
    assert len(disk.load_tensors(tmp_path / plain.FILE)[0]) == len(list(small.parameters()))
    fresh.u.weight = nn.Parameter(fresh.u.weight.detach().clone())
    with pytest.raises(ParameterError, match=r"'u.weight' of module is u.weight \(8, 8\); .* has t.weight \(8, 8\)"):
        plain.load(tmp_path, fresh)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_every_precision_of_ones_own_comes_back(dtype, tmp_path):
    """The running statistics' too, and memory in which channels are last."""
    small = nn.Sequential(nn.Conv2d(3, 1, 3, 2, 3), nn.BatchNorm2d(1), nn.Conv2d(1, 4, 1)).to(dtype).eval()
    fresh, small = copy.deepcopy(small).float(), plain.laid_out(small)
    again = plain.load(plain.save(small, tmp_path).parent, fresh)
    assert str(again) == str(small)
    for one, other in zip(again.state_dict().values(), small.state_dict().values(), strict=True):
        assert torch.equal(one, other) and one.dtype == other.dtype and one.stride() == other.stride()


def test_pools_that_files_once_had_come_back(tmp_path):
    """Files laid out before pools were put where layers are made: a pool of single pixels, then steps of one."""
    fresh, x = nn.Sequential(nn.Conv2d(2, 4, 1, 2), nn.Softmax(1)), torch.rand(2, 2, 5, 5)
    kept = nn.Sequential(nn.AvgPool2d(1, (2, 2)), copy.deepcopy(fresh[0]), nn.Softmax(1))
    kept[1].stride = (1, 1)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(plain, "Offset", nn.AvgPool2d)  # what is noted as put in
        path = plain.save(kept, tmp_path)
    again = plain.load(path.parent, fresh)
    assert str(again) == str(kept) and torch.equal(again(x), kept(x))


def test_what_is_not_in_the_sizes_is_that_of_the_saved(tmp_path):
    """Numbers that were changed since, and tensors, by themselves, in what holds several, or where there was None."""
    module = kept_beside(gain=3, sides=[1, 2], shift=torch.ones(9), parts=[torch.ones(2), {"a": torch.ones(3)}], of=X)
    fresh = kept_beside(gain=2, sides=[0], shift=torch.zeros(2), parts=[torch.zeros(2), {"a": torch.zeros(1)}], of=None)
    again = plain.load(plain.save(module, tmp_path).parent, fresh)
    assert (again.gain, again.sides) == (3, [1, 2])
    assert torch.equal(again.shift, torch.ones(9)) and torch.equal(again.of, X)
    assert torch.equal(again.parts[0], torch.ones(2)) and torch.equal(again.parts[1]["a"], torch.ones(3))
    assert torch.equal(again(IMAGE), module(IMAGE)) and len(fresh.shift) == 2


X = torch.tensor([1.0, 2.0], dtype=torch.bfloat16)


def kept_beside(**attributes):
    module = Doubled(9, 9)
    vars(module).update(attributes)
    return module


BESIDE = {  # (of what is saved, of the fresh instance, told)
    "infinite": (-torch.inf, 0.0, "'kept' of module is 0.0; .* has -inf$"),
    "none": (None, 0.0, "'kept' of module is 0.0; .* has None$"),
    "a partial": (partial(torch.add, 1), partial(torch.add, 2), r"'kept\[1\]\[0\]' of module is 2; .* has 1$"),
    "another list": ([torch.ones(1)] * 2, [torch.ones(1)], "'kept' of module is list of 1; .* has list of 2$"),
    "a list of none": ([None, torch.ones(1)], [None, None], r"'kept\[1\]' of module is None; .* has tensor$"),
    "in a list": ([1, [2.5]], [1, [3.5]], r"'kept\[1\]\[0\]' of module is 3.5; .* has 2.5$"),
    "in a dict": ({"a": [1]}, {"a": [2]}, r"'kept\[a\]\[0\]' of module is 2; .* has 1$"),
}


@pytest.mark.parametrize("case", BESIDE)
def test_what_no_file_restores_is_compared(case, tmp_path):
    saved, fresh, told = BESIDE[case]
    plain.save(kept_beside(kept=saved), tmp_path)
    assert plain.load(tmp_path, kept_beside(kept=saved))
    with pytest.raises(ParameterError, match=told):
        plain.load(tmp_path, kept_beside(kept=fresh))


@pytest.mark.parametrize(("filled", "empty"), [({"out": torch.ones(2)}, {}), ([torch.ones(2), [1.0]], [])])
def test_what_was_put_into_what_a_fresh_one_has_empty_is_a_warning(filled, empty, tmp_path):
    """As what a hook notes of a pass: the weights are not to be lost for it, nor it to be lost without a word."""
    saved = kept_beside(kept=filled)
    plain.save(saved, tmp_path)
    with pytest.warns(UserWarning, match="had put into kept is not in this one") as told:
        again = plain.load(tmp_path, kept_beside(kept=empty))
    assert told[0].filename == __file__
    assert torch.equal(again(IMAGE), saved(IMAGE)) and again.kept == empty


@pytest.mark.parametrize("hidden", [False, True])
@pytest.mark.filterwarnings("ignore:Sparse")
def test_what_is_sparse_is_refused_before_anything_is_written(hidden, tmp_path):
    module = Doubled(9, 9)
    register = partial(setattr, module) if hidden else module.register_buffer
    register("kept", torch.eye(3).to_sparse_csr())
    with pytest.raises(ValueError, match="kept is torch.float32 on cpu, which a file cannot keep: torch.sparse_csr"):
        plain.save(module, tmp_path / "small")
    assert not (tmp_path / "small").exists()


@pytest.mark.parametrize("repeats", [0, -1, 0.5, None])
def test_times_are_of_one_call_at_least(repeats):
    with pytest.raises(ParameterError, match="repeats is"):
        plain.latency(torch.relu, torch.zeros(1), repeats)


@pytest.mark.parametrize("inputs", [torch.tensor(9.0), torch.zeros(0, 9)])
def test_an_example_has_an_axis_and_entries(inputs):
    with pytest.raises(ParameterError, match="inputs are a Tensor; needed is the length of an example"):
        plain.macs(nn.Linear(9, 9), inputs)


class Other(Joined):
    pass


def without():
    fresh = Joined()
    del fresh.by
    return fresh


def another():
    fresh = Joined()
    fresh.act = nn.ReLU()
    return fresh


@pytest.mark.parametrize(
    ("fresh", "told"),
    [
        (lambda: None, r"module is a NoneType; .*network.safetensors needs a fresh Joined\(...\) in full size"),
        (Other, "module is a Other; .* needs a fresh Joined"),
        (lambda: Joined, "module is a type; .* needs a fresh Joined"),
        (without, "'by' of module is None; .*has Conv2d$"),
        (another, "'act' of module is ReLU; .*has PReLU$"),
        (lambda: hook(Joined()), "'fc' of module is Linear with _forward_hooks; .*has Linear$"),
    ], ids=["none", "other", "a class", "without", "another", "hooked"],
)  # fmt: skip
def test_what_is_no_fresh_instance_is_told(fresh, told, tmp_path):
    plain.save(own("joined")[0], tmp_path)
    with pytest.raises(ParameterError, match=told):
        plain.load(tmp_path, fresh())


def hook(module):
    module.fc.register_forward_hook(lambda part, given, found: 2 * found)
    return module
