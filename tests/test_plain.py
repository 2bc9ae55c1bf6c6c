"""Plain modules as files: what is saved loads to the same function, or saving refuses and names what it cannot keep."""

import inspect

import pytest
import torch
from flips import refused
from torch import nn
from torch.nn.utils.prune import random_unstructured

from lib import plain

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
        (nn.Sequential(nn.Softmax(1)), "Softmax cannot be kept in a file; what can is .*Linear"),
        (nn.Sequential(Doubled(9, 9)), "Doubled cannot be kept"),
        (nn.utils.parametrizations.weight_norm(nn.Linear(9, 9)), "ParametrizedLinear cannot be kept"),
        (random_unstructured(nn.Linear(9, 9), "weight", 0.5), "Linear '' has its own _forward_pre_hooks"),
        (hooked(), "Linear '0' has its own _forward_hooks"),
        (own_forward(), "ReLU '0' has its own forward"),
        (changed(), "Conv2d '' has its own _reversed_padding_repeated_twice"),
        (tied(), "two of its modules share a parameter"),
        (added(), "scale: a file cannot keep tensors that are not those"),
        (resized(), "weight: a file cannot keep tensors that are not those"),
        (nn.Linear(9, 9, dtype=torch.complex64), "weight is torch.complex64 on cpu, which a file cannot keep"),
        (nn.Linear(9, 9, device="meta"), "weight is torch.float32 on meta, which a file cannot keep"),
    ],
)  # fmt: skip
def test_what_a_file_cannot_keep_is_refused_by_name(module, told, tmp_path):
    with pytest.raises(ValueError, match=told):
        plain.save(module, tmp_path / "small")
    assert not (tmp_path / "small").exists()
