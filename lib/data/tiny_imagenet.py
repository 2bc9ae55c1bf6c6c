"""Tiny-ImageNet (Le & Yang 2015): 200 classes of 64×64 images, read from the archive as it is published.

100,000 training images, and 10,000 of validation, the test set of the pruning studies: test images have no labels.
"""

import io
import zipfile
from pathlib import Path, PurePosixPath

import numpy as np
import torch

FOLDER, ARCHIVE = "tiny-imagenet-200", "tiny-imagenet-200.zip"
URL = f"http://cs231n.stanford.edu/{ARCHIVE}"
MD5 = "90528d7ca1a48142e341f4ef8d21d0de"
SIDE = 64


class TinyImageNet:
    """One split, in the manner of torchvision's own data sets: `data` uint8 (N, 3, 64, 64), `targets` int64 (N,).

    The order is that of a folder per class, of classes by identifier and of files by name; a label is the place of
    its class. Nothing is unpacked: the archive stays under `root`, in a folder of its own.
    """

    def __init__(self, root, train=True, download=False):
        from torchvision.datasets.utils import download_url

        place = Path(root, FOLDER)
        if download and not (place / ARCHIVE).exists():
            download_url(URL, str(place), ARCHIVE, MD5)
        with zipfile.ZipFile(place / ARCHIVE) as archive:
            classes, members = _listed(archive)
            chosen = sorted(members if train else _validation(archive))
            self.targets = torch.tensor([classes[identifier] for identifier, _, _ in chosen])
            self.data = _decoded(archive, [member for _, _, member in chosen])


def _listed(archive):
    """Return `{class: label}` and the training images, `[(class, file, member)]`, of `train/CLASS/images/FILE`."""
    paths = [PurePosixPath(name) for name in archive.namelist() if name.endswith(".JPEG")]
    members = [(path.parts[2], path.name, str(path)) for path in paths if path.parts[1] == "train"]
    classes = sorted({identifier for identifier, _, _ in members})
    return {identifier: label for label, identifier in enumerate(classes)}, members


def _validation(archive):
    """Return the validation images, `[(class, file, member)]`, by the table of files and their classes."""
    rows = archive.read(f"{FOLDER}/val/val_annotations.txt").decode().splitlines()
    pairs = [row.split("\t")[:2] for row in rows if row]
    return [(identifier, file, f"{FOLDER}/val/images/{file}") for file, identifier in pairs]


def _decoded(archive, members):
    from PIL import Image

    images = np.empty((len(members), 3, SIDE, SIDE), np.uint8)
    for k, member in enumerate(members):
        with Image.open(io.BytesIO(archive.read(member))) as image:  # some are grey, and become three equal channels
            images[k] = np.asarray(image.convert("RGB")).transpose(2, 0, 1)
    return torch.from_numpy(images)
