"""The table of torchvision's classifiers; of all of them, and with their weights, on request: -m classifiers."""

import re
import warnings

import pytest
import torch
from torch import nn

from lib import phew, runs, shrink
from lib.pruning.masks import apply_
from tests.oracle import dead

classifiers = pytest.importorskip("workflow.classifiers")
TABLE = (runs.ROOT / "notebooks/classifiers.md").read_text("utf-8").splitlines()
ROWS = {line.split()[1]: line for line in TABLE if re.match(r"\| \w+ \| \d", line)}
LARGE = 60  # million weights, with which the check of all paths takes too much memory


@pytest.mark.parametrize("name", ["alexnet", "googlenet", "shufflenet_v2_x0_5", "vit_b_16"])
def test_the_table_says_what_is_found(name):
    assert classifiers.row(name) == ROWS[name]


def test_attention_alone_is_refused():
    assert len(ROWS) >= 80 and "\n".join(TABLE).startswith(classifiers.HEAD)
    refused = {name: line for name, line in ROWS.items() if not line.endswith("| read |")}
    assert {name.partition("_")[0] for name in refused} == {"vit", "swin", "maxvit"}
    assert all("joins units in a way that is not read: it calls" in line for line in refused.values())


@pytest.mark.classifiers
@pytest.mark.parametrize("name", ROWS)
def test_every_classifier_is_as_the_table_says(name):
    """And of those that are read no kept weight is dead, and what is shrunk computes the same."""
    assert classifiers.row(name) == ROWS[name]
    if not ROWS[name].endswith("| read |") or float(ROWS[name].split("|")[3]) > LARGE:
        return
    network = classifiers.made(name).to_empty(device="cpu")
    for tensor in network.state_dict().values():
        tensor.fill_(1)
    for layer in [part for part in network.modules() if isinstance(part, nn.Linear | nn.Conv2d)]:
        nn.init.normal_(layer.weight, std=layer.weight[0].numel() ** -0.5)
    side = 299 if name == "inception_v3" else 224
    x = torch.rand(2, 3, side, side)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*(keep no weight|on no path stay|make no output in eval)")
        masks = phew.phew_masks(network, 98, verbose=False, inputs=x)[0]
        assert dead(network, masks, (3, side, side)) == 0
        names = phew.weighted(network)
        kept = {f"{layer}.weight": mask.bool() for layer, mask in zip(names, masks, strict=True)}
        small = shrink.shrink(network, kept, inputs=x)
    with torch.no_grad():
        torch.testing.assert_close(small(x), apply_(network, kept).eval()(x), rtol=1e-3, atol=1e-4)
