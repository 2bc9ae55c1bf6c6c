"""What is explored: fully connected networks that runs have left, and two of digits that are trained in seconds."""

import math
import re
from dataclasses import dataclass
from pathlib import Path

import torch

from lib.data import sets
from lib.errors import RecordError, choice
from lib.kernels import twins
from lib.networks import convnets, nets
from lib.records import disk, runs
from lib.training import weights
from lib.training.evaluate import evaluate_alone
from lib.training.trainer import Trainer

DIGITS = "digits"  # what a network that is trained now is called, as its data set is, beside the files of the others
HIDDEN, FILTERS, EPOCHS = (100, 50), 8, 5  # units, and filters of the first layer of the one of convolutions
NOW = {
    DIGITS: lambda image, classes: nets.MLP([math.prod(image), *HIDDEN, classes], "no-WN"),
    "digits32": lambda image, classes: convnets.build("vgg11", image, classes, 1, FILTERS),
}
STYLES = {  # how folders of `runs.trained` are called behind the data set: (activation, statistics of the pixels)
    r"mlp\d+": ("relu", "ewn"),
    "challenge": ("relu", "ewn"),
    "importance": ("relu", "half"),
    "dpp": ("sigmoid", "ewn"),
}
SCORED = 1000  # training images that a score which needs examples is made of
APART = 0.002  # from the accuracy that the file of a network says: more than rounding does on any test set


@dataclass(frozen=True)
class Subject:
    """One trained network and the images it is asked about.

    net: a folded stack of one; train: `(x, y)` for scores; test: `(x, y)` to be answered, and pictures, the same images
    as bytes `(N, C, H, W)`; seed: of what methods draw.
    """

    name: str
    net: torch.nn.Module
    train: tuple
    test: tuple
    pictures: torch.Tensor
    seed: int


def networks():
    """Return `{label: path}` of the trained networks in the folder of runs that can be explored, sorted."""
    paths = {}
    for path in sorted((runs.folder() / "trained").glob("*/*/*.safetensors")):
        dataset, _, kind = path.parent.parent.name.partition("-")
        if dataset in sets.NAMES and _style(kind) and re.fullmatch(r"network|level-[\d.]+", path.stem):
            level = "" if path.stem == "network" else f", {path.stem}"
            paths[f"{path.parent.parent.name}, {path.parent.name}{level}"] = path
    return paths


def others():
    """Return the names of the folders of trained networks that cannot be explored: they are not fully connected."""
    folders = (path for path in sorted((runs.folder() / "trained").glob("*")) if path.is_dir())
    return [path.name for path in folders if not _style(path.name.partition("-")[2])]


def _style(kind):
    return next((style for pattern, style in STYLES.items() if re.fullmatch(pattern, kind)), None)


def subject(label, seed=1, examples=0):
    """Return the `Subject` called `label`: one of `NOW`, which is trained now, or one of `networks`.

    examples: test images that it is asked about, evenly spaced, 0 for all. ParameterError for another label;
    RecordError for a file whose network has another test accuracy here than where it was trained.
    """
    if label not in NOW:
        known = networks()
        return _from_file(known[choice("network", label, [*NOW, *known])], label, seed, examples)
    data = sets.load(label)
    net = nets.init_(NOW[label](tuple(data.train_x[0].shape), data.classes), [seed])
    trainer = Trainer(net, data.split("train"), data.split("test"), [seed], rule="adam", lr=0.001, batch=50, bar=False)
    return _of(label, trainer.fit(EPOCHS).net, data, "ewn", seed, examples)


def _from_file(path, label, seed, examples):
    tensors, arrays, meta = weights.load(path)
    name, folder = meta.get("holds", {}).get("name"), path.parent.parent.name
    disk.assert_holds(path, {"name": name}, {"name": folder}, "Put it back into its own folder, or explore another.")
    dataset, _, kind = folder.partition("-")
    activation, statistics = _style(kind)
    data, net = sets.load(dataset, statistics=statistics), _mlp(tensors, activation)
    seen = arrays.get("history/test_accuracy")
    if seen is None:  # of a descent, whose history is rows
        seen = arrays["history/0"][:, meta["history"].index("test_accuracy")]
    recorded, found = float(seen[-1]), float(evaluate_alone(net, *data.split("test")).accuracy)
    if abs(found - recorded) > APART:
        told = f"{path} says that its network has a test accuracy of {recorded:.4f}, here it has {found:.4f}: it read"
        raise RecordError(f"{told} other inputs, or is of another kind than {kind!r}. Explore one of another folder.")
    return _of(label, net, data, statistics, seed, examples)


def _mlp(tensors, activation):
    """Return the stack of fully connected layers that has these tensors."""
    names = sorted({name.rpartition(".")[0] for name in tensors if name.startswith("layers.")})
    shapes = [tensors[f"{name}.weight"].shape for name in names]
    types = {code: name for name, code in twins.NORMS.items()}
    first, last = ([types[int(code)] for code in tensors[f"{name}.norm"]] for name in (names[0], names[-1]))
    net = nets.MLP(
        [shapes[0][2], *(shape[1] for shape in shapes)], first, activation, f"{names[0]}.bias" in tensors,
        f"{names[-1]}.bias" in tensors, normalise_output=first == last,
    )  # fmt: skip
    return nets.load_(net, {name: tensor for name, tensor in tensors.items() if name.startswith("layers.")})


def _of(name, net, data, statistics, seed, examples):
    spaced = slice(None, None, max(1, len(data.test_y) // examples) if examples else 1)
    train = sets.load(data.name, train_examples=SCORED, statistics=statistics).split("train")
    x, y = data.split("test")
    return Subject(name, nets.fold(net).eval(), train, (x[spaced], y[spaced]), data.test_x[spaced], seed)


def saved_in(label, kind, method, sparsity, by_hand=False):
    """Return the folder, below that of the runs and ignored by git, of a network that is shrunk and saved."""
    name = f"{re.sub(r'[^A-Za-z0-9.=-]+', '_', label)}-{kind}-{method}-{sparsity:g}"
    return Path(runs.folder(), "explored", name + "-by-hand" * by_hand)
