"""Data that lives on the device: real data sets by name, as bytes, checked, with torchvision's own layout.

They are looked for under `$PRUNING_DATA` (default `data/`), downloaded by torchvision when missing, and
never replaced by something else in silence. `digits` comes with scikit-learn and needs no download.
"""

import functools
import hashlib
import os
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from lib import draws
from lib.errors import Told

ROOT = Path(__file__).resolve().parents[1]
NAMES = ("mnist", "fashion_mnist", "digits")
STATISTICS = {"mnist": (0.1307, 0.3081), "fashion_mnist": (0.2860, 0.3530)}
SIDE = 28  # digits are resized to MNIST's side, so that one network serves all three
TEST_EVERY = 5  # one digit in five is test, counted within each class


class DataError(Told, RuntimeError):
    """A data set that is missing, damaged or unknown; the message says the way out."""


@dataclass(frozen=True)
class Data:
    """One data set on one device; images are uint8 `(N, C, H, W)`, labels int64 `(N,)`.

    The validation split is cut from the training set (`load(..., holdout=)`) and is empty without it.
    """

    name: str
    train_x: torch.Tensor
    train_y: torch.Tensor
    valid_x: torch.Tensor
    valid_y: torch.Tensor
    test_x: torch.Tensor
    test_y: torch.Tensor
    classes: int
    mean: tuple
    std: tuple
    checksum: str

    @property
    def device(self):
        return self.train_x.device

    def split(self, part):
        """Return (x, y) of "train", "valid" or "test": x float32 `(N, C·H·W)`, scaled to [0, 1] and standardised."""
        x, y = getattr(self, f"{part}_x"), getattr(self, f"{part}_y")
        shape = (1, -1, 1, 1)
        mean = torch.tensor(self.mean, device=x.device).reshape(shape)
        std = torch.tensor(self.std, device=x.device).reshape(shape)
        return x.float().div_(255).sub_(mean).div_(std).flatten(1), y


def load(name, device="cpu", holdout=0):
    """Return the `Data` called `name` on `device`; `holdout` training images become the validation split.

    device: "cpu", "cuda", "cuda:1", …, or "auto", which takes CUDA where there is one.
    The holdout is a fixed stratified choice, the same in every run. Whatever chooses (a criterion, a
    stopping time) chooses on it, never on the test set. Raises DataError, which says what is wrong with which file.
    """
    if name not in NAMES:
        raise DataError(f"dataset is {name!r}; allowed are {', '.join(NAMES)}")
    data = _decoded(name, str(_folder()))
    if holdout:
        data = _hold_out(data, holdout)
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    tensors = {k: v.to(device) for k, v in vars(data).items() if isinstance(v, torch.Tensor)}
    return replace(data, **tensors)


def _folder():
    return Path(ROOT, os.environ.get("PRUNING_DATA", "data"))


@functools.lru_cache(maxsize=2)
def _decoded(name, folder):
    train, test = _digits() if name == "digits" else _mnist_like(name, Path(folder))
    mean, std = STATISTICS.get(name) or _statistics(train[0])
    return Data(
        name,
        *train,
        train[0][:0],
        train[1][:0],
        *test,
        classes=int(train[1].max()) + 1,
        mean=(mean,),
        std=(std,),
        checksum=_checksum(*train, *test),
    )


def _statistics(x):
    pixels = x.double() / 255
    return pixels.mean().item(), pixels.std(correction=0).item()


def _checksum(*tensors):
    """Return the digest of what was loaded, which is what a record must name, not the file it came from."""
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(np.ascontiguousarray(tensor.numpy()))
    return digest.hexdigest()[:16]


def _hold_out(data, holdout):
    n = len(data.train_y)
    if not 0 < holdout < n:
        raise DataError(f"holdout is {holdout}; allowed is 0 (none) to {n - 1}, {data.name} has {n} training images")
    order = draws.generator(0, "holdout").permutation(n)
    ranked = order[np.argsort(_rank_in_class(data.train_y.numpy()[order]), kind="stable")]
    valid, train = (torch.from_numpy(np.sort(part)) for part in (ranked[:holdout], ranked[holdout:]))
    x, y = data.train_x, data.train_y
    return replace(data, train_x=x[train], train_y=y[train], valid_x=x[valid], valid_y=y[valid])


def _rank_in_class(labels):
    """Return for every example how many of its class, in proportion to the class, come before it."""
    rank = np.empty(len(labels))
    for label in np.unique(labels):
        where = np.flatnonzero(labels == label)
        rank[where] = np.arange(len(where)) / len(where)
    return rank


def _digits():
    """Return scikit-learn's 1,797 handwritten digits at 28×28, split within each class by position."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    x = torch.from_numpy(images).reshape(-1, 1, 8, 8) / 16 * 255
    x = torch.nn.functional.interpolate(x, size=(SIDE, SIDE), mode="bilinear").round().to(torch.uint8)
    y = torch.from_numpy(labels).long()
    position = torch.zeros_like(y)
    for label in range(10):
        where = y == label
        position[where] = torch.arange(int(where.sum()))
    test = position % TEST_EVERY == TEST_EVERY - 1
    return (x[~test], y[~test]), (x[test], y[test])


def _mnist_like(name, folder):
    """Return ((x, y), (x, y)) of MNIST or FashionMNIST: from the .gz files if they are there, else by torchvision."""
    from torchvision import datasets

    cls = {"mnist": datasets.MNIST, "fashion_mnist": datasets.FashionMNIST}[name]
    raw = folder / cls.__name__ / "raw"
    archives = {file: raw / file for file, _ in cls.resources}
    if not any(path.exists() for path in archives.values()):
        return _by_torchvision(cls, folder)
    _verify(cls, archives)
    with tempfile.TemporaryDirectory() as scratch:
        return tuple(_unpack(archives, prefix, Path(scratch)) for prefix in ("train", "t10k"))


def _verify(cls, archives):
    from torchvision.datasets.utils import calculate_md5

    for file, md5 in cls.resources:
        path = archives[file]
        found = calculate_md5(path) if path.exists() else "no file"
        if found != md5:
            raise DataError(
                f"{path} is damaged: its MD5 is {found}, torchvision publishes {md5}. Delete the folder"
                f" {path.parent} to have it downloaded again, or use -p dataset digits, which needs no file."
            )


def _unpack(archives, prefix, scratch):
    """Return (x, y) of one split; torchvision unpacks and reads, in a scratch folder: the data's may be read-only."""
    from torchvision.datasets.mnist import read_image_file, read_label_file
    from torchvision.datasets.utils import extract_archive

    found = {}
    for part, read in (("images-idx3", read_image_file), ("labels-idx1", read_label_file)):
        file = f"{prefix}-{part}-ubyte"
        extract_archive(str(archives[f"{file}.gz"]), str(scratch))
        found[part] = read(str(scratch / file))
    return found["images-idx3"][:, None].contiguous(), found["labels-idx1"].long()


def _by_torchvision(cls, folder):
    try:
        parts = [cls(str(folder), train=train, download=True) for train in (True, False)]
    except (OSError, RuntimeError) as error:
        raise DataError(
            f"{cls.__name__} is not under {folder} and could not be downloaded there ({error}). Put"
            f" {', '.join(file for file, _ in cls.resources)} into {folder / cls.__name__ / 'raw'}, or name"
            " the folder that has it in PRUNING_DATA, or use -p dataset digits, which needs no file."
        ) from error
    return tuple((part.data[:, None].contiguous(), part.targets.long()) for part in parts)
