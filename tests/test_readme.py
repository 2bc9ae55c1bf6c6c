"""What the README shows runs as it stands."""

import re
import subprocess
from pathlib import Path

import pytest
import torch

from lib import masks, methods, nets, plain, shrink, smaller
from tests.shown import CONTRIBUTING, FISHER

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text("utf-8")


def test_the_snippets_run(tmp_path, monkeypatch):
    """And the small network is one of the widths asked for, with the logits of the masked one."""
    monkeypatch.chdir(tmp_path)
    (snippet,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    found = {}
    exec(snippet, found)
    small, net, x = found["small"], found["net"], found["digits"].split("test")[0]
    assert [layer.out_features for layer in small.modules() if isinstance(layer, torch.nn.Linear)] == [20, 10, 10]
    masked = masks.apply_(net, masks.expand(found["units"], net))
    assert torch.allclose(small(x), masked(x)[0], atol=1e-5)
    assert torch.equal(found["plain"].load("small")(x), small(x))


def test_a_network_of_ones_own_becomes_smaller_as_shown(tmp_path, monkeypatch):
    """And computes what the module does without the weights of the units that went."""
    (snippet,) = re.findall(r"```python\n(.*?)```", (ROOT / "notebooks" / "README.md").read_text("utf-8"), re.DOTALL)
    torch.manual_seed(2)
    module = torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3)).double()
    found = {"module": module, "x": torch.randn(5, 6).double(), "y": torch.arange(5) % 3}
    monkeypatch.chdir(tmp_path)
    exec(snippet, {"methods": methods, "plain": plain, "smaller": smaller, "shrink": shrink, "torch": torch}, found)
    small, kept = found["small"], found["units"]["0"]
    assert small[0].out_features == small[2].in_features == int(kept.sum()) == 4
    hidden = found["x"] @ (module[0].weight * kept[:, None]).T + module[0].bias
    torch.testing.assert_close(small(found["x"]), module[2](hidden.relu()))
    assert torch.equal(torch.load("masks.pt")["0.weight"], found["masks"]["0.weight"])


def test_the_method_of_ones_own_is_that_of_contributing():
    (snippet,) = re.findall(r"```\n(@method.*?)```", README, re.DOTALL)
    assert FISHER.endswith(snippet)


def test_the_folders_of_ones_own_runs_are_not_committed():
    """CONTRIBUTING makes a first run there, and asks for `git add runs` further down."""
    (folders,) = re.findall(r"export PRUNING_RUNS=(\S+) PRUNING_FIGURES=(\S+)", CONTRIBUTING)
    for folder in folders:
        path = f"{folder}/phew_density/snip-1.json"
        assert subprocess.run(["git", "check-ignore", "-q", path], cwd=ROOT, check=False).returncode == 0, folder


def test_outputs_are_no_units_to_prune():
    net = nets.init_(nets.MLP([4, 6, 3], "no-WN"), [1])
    every = masks.top(nets.unit_norms(net), density=0.5)
    with pytest.raises(ValueError, match="layers.1 makes the outputs .* leave it out"):
        masks.expand(every, net)
    hidden = masks.expand({"layers.0": every["layers.0"]}, net)
    assert shrink.shrink(net, hidden)(torch.ones(1, 4)).shape == (1, 3)


def test_a_normalised_network_says_what_to_shrink_instead():
    net = nets.init_(nets.MLP([4, 6, 3], "EWN"), [1])
    units = masks.top({"layers.0": nets.unit_norms(net)["layers.0"]}, density=0.5)
    kept = masks.expand(units, net)
    with pytest.raises(ValueError, match=r"take nets.fold\(net\), a plain copy"):
        shrink.shrink(net, kept)
    folded = nets.fold(net)
    x = torch.randn(5, 4)
    assert torch.allclose(shrink.shrink(folded, kept)(x), masks.apply_(folded, kept)(x)[0], atol=1e-6)


@pytest.mark.parametrize("norm", ["no-WN", ["no-WN"]])
def test_one_text_is_one_type(norm):
    assert nets.runs(nets.MLP([2, 3, 1], norm)) == 1
    with pytest.raises(ValueError, match="norm is 'XWN'; allowed are no-WN, SWN, EWN. Did you mean"):
        nets.MLP([2, 3, 1], "XWN")
