"""Which classifiers of torchvision are read, and which are refused by which sentence, as a table in Markdown.

    python -m workflow.classifiers > notebooks/classifiers.md       # or a few, by name

That of what is read no kept weight is dead at 98 %, and that what is shrunk computes the same, is checked by
`./run_tests.sh -m classifiers`.
"""

import sys
import warnings

import torch
from torchvision import models

from lib import topology
from lib.pruning.hops import weighted

HEAD = """# Classifiers of torchvision

Made by `python -m workflow.classifiers`. *read*: PHEW walks them, and `shrink.shrink` takes units out. Others PHEW
refuses by the sentence that stands here, and `shrink.shrink` takes out units that attention does not join. Weights are
those of convolutions and linear layers, in millions.

| classifier | layers | weights | |
| --- | --- | --- | --- |"""


def made(name):
    """Return a classifier without memory for its weights, where its constructor does not compute with tensors."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=FutureWarning)  # of how two of them will be initialised
        try:
            with torch.device("meta"):
                return models.get_model(name)
        except NotImplementedError:
            return models.get_model(name)


def row(name):
    """Return a line of the table."""
    network = made(name)
    layers = weighted(network).values()
    try:
        topology.topology(network)
        told = "read"
    except ValueError as error:
        told = str(error).partition(". ")[0]
    return f"| {name} | {len(layers)} | {sum(layer.weight.numel() for layer in layers) / 1e6:.1f} | {told} |"


if __name__ == "__main__":
    print(HEAD)
    for name in sys.argv[1:] or models.list_models(module=models):
        print(row(name), flush=True)
