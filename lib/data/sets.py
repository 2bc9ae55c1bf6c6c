"""Data that lives on the device: real data sets by name, as bytes, checked, with torchvision's own layout.

They are looked for under `$PRUNING_DATA` (default `data/`), downloaded by torchvision when missing, and
never replaced by something else in silence. `digits`, and `digits32` and `digits64` in the shapes of CIFAR and
Tiny-ImageNet, come with scikit-learn and need no download.
"""

import functools
import hashlib
import shutil
import tempfile
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from lib import draws
from lib.data import celeba, images
from lib.data.tiny_imagenet import ARCHIVE, FOLDER, MD5, TinyImageNet
from lib.errors import DataError, RecordError, choice
from lib.records import disk

ROOT = Path(__file__).resolve().parents[2]
_folder = functools.partial(disk.place, ROOT, "PRUNING_DATA", "data")
NAMES = ("mnist", "fashion_mnist", "digits", "cifar10", "cifar100", "digits32", "tiny_imagenet", "digits64")
UNLABELLED = ("celeba",)  # all of one class, for networks that do not classify
# (channels, side, classes, training images, test images), known before anything is read; digits have the shapes of
# other data, so that their networks serve digits too
SHAPES = {
    "mnist": (1, 28, 10, 60_000, 10_000), "fashion_mnist": (1, 28, 10, 60_000, 10_000),
    "cifar10": (3, 32, 10, 50_000, 10_000), "cifar100": (3, 32, 100, 50_000, 10_000),
    "tiny_imagenet": (3, 64, 200, 100_000, 10_000), "celeba": (3, 64, 1, 162_770, 19_962),
    "digits": (1, 28, 10, 1442, 355), "digits32": (3, 32, 10, 1442, 355), "digits64": (3, 64, 10, 1442, 355),
}  # fmt: skip
# mean and standard deviation of every channel, as the studies have them; data that a study does not have keep those
# of the EWN study's table, or their own
TINY = ((0.480, 0.448, 0.397), (0.276, 0.269, 0.282))
STATISTICS = {
    "ewn": {
        "mnist": ((0.1307,), (0.3081,)),
        "fashion_mnist": ((0.2860,), (0.3530,)),
        "cifar10": ((0.5,) * 3, (0.5,) * 3),
        "cifar100": ((0.5,) * 3, (0.5,) * 3),
        "tiny_imagenet": TINY,
        "celeba": ((0.0,) * 3, (1.0,) * 3),
    },
    "phew": {
        "mnist": ((0.1307,), (0.3081,)),
        "cifar10": ((0.491, 0.482, 0.447), (0.247, 0.243, 0.262)),
        "cifar100": ((0.507, 0.487, 0.441), (0.267, 0.256, 0.276)),
        "tiny_imagenet": TINY,
    },
    "half": {name: ((0.5,) * channels,) * 2 for name, (channels, *_) in SHAPES.items()},
}
# MD5 of what the published archives unpack to: torchvision has those of the archives alone
UNPACKED = {
    "mnist": {
        "train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
        "train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
        "t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
        "t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
    },
    "fashion_mnist": {
        "train-images-idx3-ubyte": "f4a8712d7a061bf5bd6d2ca38dc4d50a",
        "train-labels-idx1-ubyte": "9018921c3c673c538a1fc5bad174d6f9",
        "t10k-images-idx3-ubyte": "8181f5470baa50b63fa0f6fddb340f0a",
        "t10k-labels-idx1-ubyte": "15d484375f8d13e6eb1aabb0c3f46965",
    },
}
WITHOUT_FILES = "-p dataset digits, digits32 (in place of CIFAR) or digits64 (of Tiny-ImageNet), which need no file"
TEST_EVERY = 5  # one digit in five is test, counted within each class


@dataclass(frozen=True)
class Data:
    """One data set on one device; images are uint8 `(N, C, H, W)`, labels int64 `(N,)`."""

    name: str
    train_x: torch.Tensor
    train_y: torch.Tensor
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
        """Return (x, y) of "train" or "test": x float32 `(N, C·H·W)`, scaled to [0, 1] and standardised."""
        if part not in ("train", "test"):
            raise DataError(f"part is {part!r}; allowed are train and test, which load(…, holdout=N) takes from train")
        x, y = getattr(self, f"{part}_x"), getattr(self, f"{part}_y")
        return images.standardise(x, self.mean, self.std), y


def load(name, device="cpu", train_examples=0, statistics="ewn", holdout=0):
    """Return the `Data` called `name` on `device`: "cpu", "cuda", "cuda:1", …, or "auto", CUDA where there is one.

    `train_examples` keeps as many training images, 0 all of them: a fixed choice with all classes in proportion, the
    same in every run, and a larger one contains the smaller. `statistics`: the study
    whose means and deviations standardise the pixels, "ewn" (arXiv 2010.12909) or "phew" (arXiv 2010.11354), or "half",
    which scales them to [-1, 1]. holdout: so many training images, chosen likewise, stand in the place of the test set
    and are not among the others: what is chosen, a criterion or when to stop, is chosen by them. Raises ParameterError
    for another name, else DataError, which says what is wrong with which file.
    """
    choice("dataset", name, NAMES + UNLABELLED)
    choice("statistics", statistics, STATISTICS)
    data = _decoded(name, str(_folder()))
    mean, std = STATISTICS[statistics].get(name, (data.mean, data.std))
    data = replace(data, mean=mean, std=std)
    if holdout:
        held, x, y = _stratified(data, "holdout", holdout, "holdout", len(data.train_y) - 1), data.train_x, data.train_y
        data = replace(data, train_x=x[~held], train_y=y[~held], test_x=x[held], test_y=y[held])
    if train_examples:
        kept = _stratified(data, "subset", train_examples, "train_examples", len(data.train_y))
        data = replace(data, train_x=data.train_x[kept], train_y=data.train_y[kept])
    device = _device(device)
    tensors = {k: v.to(device) for k, v in vars(data).items() if isinstance(v, torch.Tensor)}
    return replace(data, **tensors)


def complaint(p):
    """Return what no data set of a notebook's parameters `p` can give, or None: more images than it has."""
    _, _, classes, train, test = SHAPES[p["dataset"]]
    if p["train_examples"] and not classes <= p["train_examples"] <= train:
        told = f"train_examples = {p['train_examples']}: {p['dataset']} has {classes} to {train} training images"
        return f"{told} to choose from, one of each class at least; 0 takes all"
    if max(p.get("batches", [0])) > test:
        return f"batches = {p['batches']}: {p['dataset']} has {test} test images"
    return None


def _device(name):
    name = str(name)  # of a torch.device
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise DataError(f"device is {name!r}, but torch {torch.__version__} sees no CUDA here; take cpu or auto")
    try:
        return torch.device(name)
    except RuntimeError:
        raise DataError(f"device is {name!r}; allowed are auto, cpu, cuda, or cuda:1 and so on") from None


@functools.lru_cache(maxsize=2)
def _decoded(name, folder):
    train, test = READERS[name](name, Path(folder))
    for x, y in (train, test):
        found, (channels, side, *_) = (x.dtype, *x.shape[1:], y.dtype, len(x)), SHAPES[name]
        if found != (torch.uint8, channels, side, side, torch.int64, len(y)):
            told = f"the reader of {name} returned x {x.dtype} {tuple(x.shape)}, y {y.dtype} {tuple(y.shape)}"
            raise DataError(f"{told}; wanted are bytes (N, {channels}, {side}, {side}) and torch.int64 (N,)")
    mean, std = STATISTICS["ewn"].get(name) or _statistics(train[0])
    return Data(name, *train, *test, int(train[1].max()) + 1, mean, std, _checksum(*train, *test))


def _statistics(x):
    """Return the means and the standard deviations of the channels of `x (N, C, H, W)`, as tuples of C."""
    channels = [channel.double() / 255 for channel in x.transpose(0, 1)]
    return tuple(c.mean().item() for c in channels), tuple(c.std(correction=0).item() for c in channels)


def _checksum(*tensors):
    """Return the digest of what was loaded, which is what a record must name, not the file it came from."""
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(np.ascontiguousarray(tensor.numpy()))
    return digest.hexdigest()[:16]


def _stratified(data, purpose, count, what, most):
    """Return which `count` training examples are chosen, `bool (N,)`, all classes in proportion; at `most` so many."""
    if isinstance(count, bool) or not isinstance(count, int | np.integer) or not 0 < count <= most:
        told = f"{what} is {count!r}; allowed is 0 to {most}, of the {len(data.train_y)} training images of {data.name}"
        raise DataError(told)
    order = draws.generator(0, purpose).permutation(len(data.train_y))
    labels = data.train_y.numpy()[order]
    rank = _before(labels) / np.bincount(labels)[labels]
    chosen = torch.zeros(len(order), dtype=torch.bool)
    chosen[torch.from_numpy(order[np.argsort(rank, kind="stable")][:count])] = True
    return chosen


def _before(labels):
    """Return for every example how many of its class come before it, int64 (N,)."""
    import pandas as pd

    return pd.Series(labels).groupby(labels).cumcount().to_numpy()


def _digits(name, folder):
    """Return scikit-learn's 1,797 handwritten digits, resized, in equal channels, split in each class by position."""
    from sklearn.datasets import load_digits

    channels, side, *_ = SHAPES[name]
    images, labels = load_digits(return_X_y=True)
    x = torch.from_numpy(images).reshape(-1, 1, 8, 8) / 16 * 255
    x = torch.nn.functional.interpolate(x, size=(side, side), mode="bilinear").round().to(torch.uint8)
    x = x.repeat(1, channels, 1, 1)
    y = torch.from_numpy(labels).long()
    test = torch.from_numpy(_before(labels) % TEST_EVERY == TEST_EVERY - 1)
    return (x[~test], y[~test]), (x[test], y[test])


def _mnist_like(name, folder):
    """Return ((x, y), (x, y)) of MNIST or FashionMNIST: from the .gz files if any is there, else from the unpacked."""
    from torchvision import datasets
    from torchvision.datasets.utils import extract_archive

    cls = {"mnist": datasets.MNIST, "fashion_mnist": datasets.FashionMNIST}[name]
    raw, archives, unpacked = folder / cls.__name__ / "raw", dict(cls.resources), UNPACKED[name]
    if not any((raw / file).exists() for file in [*archives, *unpacked]):
        _by_torchvision(cls, folder, [raw / file for file in archives])
    if not any((raw / file).exists() for file in archives):
        _verify(unpacked, raw)
        return _idx(raw)
    _verify(archives, raw)
    with tempfile.TemporaryDirectory() as scratch:  # the folder of the data may be read-only
        for file in archives:
            extract_archive(str(raw / file), scratch)
        return _idx(Path(scratch))


def _verify(published, folder):
    """Raise DataError for the first file of `{file: MD5}` that is not in `folder` as published."""
    from torchvision.datasets.utils import calculate_md5

    for file, md5 in published.items():
        path = folder / file
        found = calculate_md5(path) if path.is_file() else "no file"
        if found != md5:
            told = f"{path} is damaged: its MD5 is {found}, the published one is {md5}. Delete the folder {path.parent}"
            raise DataError(f"{told} to have it downloaded again, or use {WITHOUT_FILES}.")


def _idx(folder):
    """Return ((x, y), (x, y)) of the unpacked files in a folder, read by torchvision."""
    from torchvision.datasets.mnist import read_image_file, read_label_file

    images = (read_image_file(str(folder / f"{prefix}-images-idx3-ubyte")) for prefix in ("train", "t10k"))
    labels = (read_label_file(str(folder / f"{prefix}-labels-idx1-ubyte")) for prefix in ("train", "t10k"))
    return tuple((x[:, None].contiguous(), y.long()) for x, y in zip(images, labels, strict=True))


def _by_torchvision(cls, folder, paths, there=False):
    """Return a class's training and test sets, downloaded if not `there`; `paths` are what it needs."""
    try:
        if not there and not any(path.exists() for path in paths):
            _download(cls, folder, paths)
        return [cls(str(folder), train=train, download=True) for train in (True, False)]
    except DataError:
        raise
    except (OSError, RuntimeError) as error:
        why = error.__cause__ if isinstance(error, RecordError) else error  # whose way out is for records
        raise DataError(
            f"{cls.__name__} is not under {folder} and could not be downloaded there ({why}). Put"
            f" {', '.join(path.name for path in paths)} into {paths[0].parent}, or name"
            f" the folder that has it in PRUNING_DATA, or use {WITHOUT_FILES}."
        ) from error


def _download(cls, folder, paths):
    """Return nothing, once what `cls` keeps below `folder`, in that of `paths`, is there from one instant to the next.

    It comes by one process, and elsewhere first: a second would take the first one's half for damaged, and so would
    all who come after one that was killed. Where the folder holds something else, that stays, and each file comes so.
    """
    place = paths[0].parent
    with disk.lock(place):
        scratch, packed = disk.new(place), getattr(cls, "filename", "")
        if any(path.exists() for path in paths):  # by who had the lock before
            return
        try:
            shutil.rmtree(scratch, ignore_errors=True)  # of one that was killed
            scratch.mkdir(parents=True)
            if packed and (folder / packed).exists():
                shutil.copy(folder / packed, scratch)
            cls(str(scratch), train=False, download=True)
            found = scratch / place.relative_to(folder)
            with suppress(OSError):
                place.rmdir()  # if it is empty
            for source in sorted(found.iterdir()) if place.exists() else [found]:
                disk.move(source, place / source.relative_to(found))
        finally:
            shutil.rmtree(scratch, ignore_errors=True)


def _cifar(name, folder):
    """Return ((x, y), (x, y)) of CIFAR-10 or CIFAR-100 with its 100 fine classes, read by torchvision's own classes."""
    from torchvision import datasets

    cls = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}[name]
    place = folder / cls.base_folder
    published = dict([*cls.train_list, *cls.test_list, (cls.meta["filename"], cls.meta["md5"])])
    if any((place / file).exists() for file in published):  # else torchvision would silently download over the damaged
        _verify(published, place)
    parts = _by_torchvision(cls, folder, [place / file for file in published])
    return tuple((torch.from_numpy(part.data).permute(0, 3, 1, 2).contiguous(), torch.tensor(part.targets))
                 for part in parts)  # fmt: skip


def _tiny_imagenet(name, folder):
    """Return ((x, y), (x, y)) of Tiny-ImageNet, whose published validation images are the test set."""
    place = folder / FOLDER
    if (place / ARCHIVE).exists():
        _verify({ARCHIVE: MD5}, place)
    parts = _by_torchvision(TinyImageNet, folder, [place / ARCHIVE])
    return tuple((part.data, part.targets) for part in parts)


def _celeba(name, folder):
    """Return ((x, y), (x, y)) of CelebA, see `lib/data/celeba.py`."""
    from torchvision import datasets

    published = {file: md5 for _, md5, file in datasets.CelebA.file_list}
    paths = [folder / celeba.FOLDER / file for file in published]
    if not celeba.decoded(folder):  # else the decoded images are looked at instead, which have a digest of their own
        _verify({path.name: published[path.name] for path in paths if path.exists()}, folder / celeba.FOLDER)
    there = celeba.decoded(folder) or (folder / celeba.FOLDER / celeba.IMAGES).exists()
    parts = _by_torchvision(celeba.CelebA, folder, paths, there)
    return tuple((part.data, part.targets) for part in parts)


# name: what returns its training and its test images (x, y) as of `Data`, from its name and the folder of all data
READERS = {
    "mnist": _mnist_like, "fashion_mnist": _mnist_like, "cifar10": _cifar, "cifar100": _cifar,
    "tiny_imagenet": _tiny_imagenet, "celeba": _celeba, "digits": _digits, "digits32": _digits, "digits64": _digits,
}  # fmt: skip
