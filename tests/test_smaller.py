"""What a network becomes outside: its file, its ONNX, and the table of what both save; where onnx is installed."""

import builtins
import json

import pytest
import torch
from torch import nn

from lib import anatomy, convnets, masks, nets, plain, runs, shrink, smaller
from lib.errors import ParameterError
from tests.odd_networks import Lambda

X = torch.rand(5, 3 * 32 * 32, generator=torch.Generator().manual_seed(1))
NETWORKS = {
    "mlp": lambda: nets.MLP([3072, 100, 50, 10], ["no-WN"]),
    "vgg": lambda: convnets.VGG((3, 32, 32), 10, ["no-WN"], width=8),
    "resnet20": lambda: convnets.build("resnet20", (3, 32, 32), 10, 1, 10),
}


def pruned(net):
    """Return masks that drop 80 % of the units of every hidden layer, by weights, as they are drawn."""
    found, hops = {}, nets.graph(net)
    kept = {0: None, hops[-1].target: None}
    for hop in hops:
        if hop.layer:
            weight = net.get_submodule(hop.layer).weight
            if hop.target not in kept:
                order = torch.rand(weight.shape[1], generator=torch.Generator().manual_seed(7)).argsort()
                kept[hop.target] = order < max(weight.shape[1] // 5, 1)
            mask = torch.ones_like(weight, dtype=torch.bool)
            if kept[hop.target] is not None:
                mask &= kept[hop.target].view(1, -1, *[1] * (weight.dim() - 2))
            found[f"{hop.layer}.weight"] = mask
    return found


@pytest.mark.parametrize("name", NETWORKS)
def test_onnx_runtime_computes_what_torch_does(name, tmp_path):
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package)
    torch.manual_seed(0)
    net = nets.init_(NETWORKS[name](), [1]).eval()
    kept = pruned(net)
    found = smaller.table(net, kept, X, tmp_path, seconds=0.01)
    with torch.no_grad():
        logits = masks.apply_(net, kept)(X)[0]
        module = shrink.shrink(net, kept)
        again = smaller.runtime(tmp_path / "shrunk" / plain.ONNX)
        assert (again(X) - logits).abs().max() < 1e-5 and (again(X[:1]) - logits[:1]).abs().max() < 1e-5
        assert (module(X) - logits).abs().max() < 1e-5
    assert (found[["torch_apart", "onnx_apart"]] < 1e-5).all(axis=None)
    assert (found[["torch_ms", "onnx_ms"]] > 0).all(axis=None)
    for column in ("bytes", "onnx_bytes", "macs"):
        assert found[column]["shrunk"] < (0.35 if name == "mlp" else 0.2) * found[column]["full"], column
    assert found["macs"]["shrunk"] == plain.macs(module, 3072)


def test_a_stack_of_another_class_is_told_what_is_known(tmp_path):
    told = r"stacks of .*layers\.Linear are not known.*lib\.networks\.nets\.MLP, .*VGG, .*ResNet, and torch modules"
    with pytest.raises(ValueError, match=told):
        smaller.table(nets.Linear(1, 3, 2), {}, torch.rand(2, 3), tmp_path, onnx=False)


@pytest.mark.parametrize("run", [0, 1])
@pytest.mark.parametrize("name", ["mlp", "resnet"])
def test_sparsities_of_a_stack_are_those_of_its_anatomy(name, run, tmp_path):
    """Of masks of weights here and there, some of which lie on no path, and two runs that keep differently many."""
    if name == "mlp":
        net, x = nets.init_(nets.MLP([12, 9, 8, 4], ["no-WN"] * 2), [1, 2]), torch.rand(2, 12)
    else:
        net, x = nets.init_(convnets.build("resnet20", (3, 8, 8), 4, 2, 4), [1, 2]).eval(), torch.rand(2, 192)
    kept = masks.top({key: torch.rand_like(w) for key, w in nets.weights(net).items()}, [0.2, 0.1])
    found, left = smaller.table(net, kept, x, tmp_path, run, 0.001, onnx=False), anatomy.anatomy(net, kept)
    assert found["pruned"]["full"] == left["sparsity"][run] == pytest.approx(0.9 if run else 0.8, abs=0.02)
    assert found["pruned"]["shrunk"] == left["effective_sparsity"][run] > left["sparsity"][run]
    assert (left["effective_sparsity"][0] != left["effective_sparsity"][1]) and (found["torch_apart"] < 1e-5).all()


class Block(nn.Module):
    """A convolution beside a block of two, normalised, and a head."""

    def __init__(self):
        super().__init__()
        self.stem, self.a, self.b = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 6, 3, padding=1), nn.Conv2d(6, 8, 3, padding=1)
        self.norm, self.fc = nn.BatchNorm2d(8), nn.Linear(8, 4)

    def forward(self, x):
        x = self.norm(self.stem(x)).relu()
        return self.fc((x + self.b(self.a(x).relu())).mean((2, 3)))


def test_sparsities_of_a_module_are_counted_by_hand(tmp_path):
    """Half of the units inside lose their inputs, and one of the stream all it is made of: nothing else is masked."""
    torch.manual_seed(0)
    net, x = Block().train(), torch.rand(3, 3, 8, 8)
    kept = {
        f"{name}.weight": torch.ones_like(net.get_parameter(f"{name}.weight")).bool() for name in ("stem", "a", "b")
    }
    kept["a.weight"][:3], kept["stem.weight"][0], kept["b.weight"][0] = False, False, False
    found = smaller.table(net, kept, x, tmp_path, seconds=0.001, onnx=False)
    total = 8 * 27 + 6 * 72 + 8 * 54 + 32
    masked = 27 + 3 * 72 + 54
    assert found["pruned"]["full"] == pytest.approx(masked / total, abs=1e-12)
    assert found["pruned"]["shrunk"] == pytest.approx(1 - (7 * 27 + 3 * 63 + 7 * 27 + 28) / total, abs=1e-12)
    assert found["parameters"]["full"] == total + 8 + 6 + 8 + 16 + 4
    # A bias for each unit, two numbers for each normalised one, and what `b` adds at a border of three by three.
    assert found["parameters"]["shrunk"] == (7 * 27 + 3 * 63 + 7 * 27 + 28) + 7 + 3 + 7 + 14 + 4 + 7 * 9
    assert found["macs"]["full"] == 36 * (8 * 27 + 6 * 72 + 8 * 54) + 32
    assert found["macs"]["shrunk"] == 36 * (7 * 27 + 3 * 63 + 7 * 27) + 28
    assert found["bytes"]["shrunk"] < found["bytes"]["full"] and (found["torch_apart"] < 1e-5).all()
    with torch.no_grad():
        again = plain.load(tmp_path / "shrunk", Block())(x)
        assert (again - masks.apply_(net, kept).eval()(x)).abs().max() < 1e-5 and net.stem.out_channels == 8


def test_a_sequence_of_torchs_own_layers_is_a_module_too(tmp_path):
    net = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    kept = {"0.weight": (torch.arange(8) < 2)[:, None].expand(8, 6).clone()}
    found = smaller.table(nn.DataParallel(net), kept, torch.rand(4, 6), tmp_path, seconds=0.001, onnx=False)
    assert found["pruned"].tolist() == [36 / 72, 1 - (12 + 6) / 72] and found["macs"].tolist() == [72, 18]


def test_several_outputs_are_compared_one_by_one(tmp_path):
    net = Lambda(lambda s, x: {"o": s.b(s.a(x).relu()), "h": [s.c(x)]}, **{k: nn.Linear(6, 6) for k in "abc"})
    kept = {"a.weight": (torch.arange(6) < 2)[:, None].expand(6, 6).clone()}
    found = smaller.table(net, kept, torch.rand(4, 6), tmp_path, seconds=0.001, onnx=False)
    assert found["torch_apart"]["full"] == 0 and found["torch_apart"]["shrunk"] < 1e-6


def test_rows_of_units_go_on_speaking():
    net = nets.init_(convnets.VGG((3, 32, 32), 10, ["no-WN"] * 2, width=4), [1, 2])
    units = {"convs.1": torch.tensor([[True, False, True, False], [False, False, True, True]])}
    found = smaller.rows(net, units)
    assert list(found) == ["convs.1.weight"] and found["convs.1.weight"].shape == (2, 4, 4, 3, 3)
    assert torch.equal(found["convs.1.weight"].flatten(2).all(2), units["convs.1"])
    assert torch.equal(found["convs.1.weight"].flatten(2).any(2), units["convs.1"])


def test_the_notebook_prints_the_table(monkeypatch, tmp_path):
    monkeypatch.setenv("PRUNING_RUNS", str(tmp_path))
    cells = json.loads((runs.ROOT / "notebooks/explore_smaller.ipynb").read_text("utf-8"))["cells"]
    small = {"method": "contribution", "width": 4, "batch": 2, "seconds": 0.001}
    namespace = {}
    for cell in cells:
        if cell["cell_type"] == "code":
            exec("".join(cell["source"]), namespace)
            namespace |= small if "parameters" in cell["metadata"].get("tags", ()) else {}
    table = namespace["table"]
    assert list(table.columns) == ["bytes", "parameters", "pruned", "macs", "torch_ms", "torch_apart"]
    assert len(table) == 6 and (table["pruned"] < 1).all()
    full, shrunk = (table.xs(row, level=1) for row in ("full", "shrunk"))
    assert (shrunk["macs"] < 0.25 * full["macs"]).all() and (table["torch_apart"] < 1e-4).all()
    assert not list(tmp_path.iterdir())


def test_missing_packages_are_named(monkeypatch, tmp_path):
    real = builtins.__import__

    def none(name, *rest, **more):
        if name.startswith("onnx"):
            raise ImportError(name)
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", none)
    with pytest.raises(ParameterError, match="pip install onnx onnxscript onnxruntime"):
        plain.onnx(torch.nn.Linear(3, 2), tmp_path, 3)
    with pytest.raises(ParameterError, match="onnxruntime is not installed"):
        smaller.runtime(tmp_path / "network.onnx")
