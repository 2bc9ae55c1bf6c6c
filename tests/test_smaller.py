"""What a network becomes outside: its file, its ONNX, and the table of what both save; where onnx is installed."""

import builtins
import json

import pytest
import torch

from lib import convnets, masks, nets, plain, runs, shrink, smaller
from lib.errors import ParameterError

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


class ResNet(torch.nn.Sequential):
    """A module that is called as one of the stacks, and is none."""


@pytest.mark.parametrize("kind", [ResNet, torch.nn.Sequential])
def test_a_module_that_is_no_stack_is_told_what_is(kind, tmp_path):
    told = (
        rf"stacks of .*\.{kind.__name__} are not known.*lib\.networks\.nets\.MLP, .*VGG, .*ResNet\. Of any torch module"
    )
    with pytest.raises(ValueError, match=told):
        smaller.table(kind(torch.nn.Linear(3, 2)), {}, torch.rand(2, 3), tmp_path, onnx=False)


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
    assert list(table.columns) == ["bytes", "macs", "torch_ms", "torch_apart"] and len(table) == 6
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
