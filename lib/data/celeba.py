"""CelebA (Liu et al., arXiv 1411.7766): aligned photographs of faces, made 64×64, in its own training and test parts.

162,770 training and 19,962 test images. Their shape is not kept: 178×218 pixels become a square. Decoding takes
minutes, so what comes of it lies beside the data from then on, as bytes that are mapped and not read.
"""

import hashlib
import os
import zipfile
from pathlib import Path

import numpy as np
import torch
from tqdm.auto import tqdm

from lib.errors import DataError
from lib.records import disk

FOLDER, SIDE = "celeba", 64
IMAGES, ARCHIVE, TABLE = "img_align_celeba", "img_align_celeba.zip", "list_eval_partition.txt"
PARTS = {"train": "0", "test": "2"}  # as the table calls them; 1 is validation
DIGEST = 64  # characters at the end of a file of decoded images, behind the array


class CelebA:
    """One part, in the manner of torchvision's data sets: `data` uint8 (N, 3, 64, 64), `targets` zeros, int64 (N,).

    All images are of one class: who they show is not asked. The files are torchvision's own, under `root` in
    `celeba`; to download them it needs the package gdown. Read from the archive if it is there, whose checksum is
    published, else from the folder that it unpacks to. RuntimeError or OSError where files are missing or damaged.
    """

    def __init__(self, root, train=True, download=False):
        part = "train" if train else "test"
        kept = _kept(root, part)
        self.data = _mapped(kept) if kept.exists() else _decoded(root, part, download, kept)
        self.targets = torch.zeros(len(self.data), dtype=torch.int64)


def decoded(root):
    """Return whether the images of both parts were decoded before."""
    return all(_kept(root, part).exists() for part in PARTS)


def _kept(root, part):
    return Path(root, FOLDER, f"{part}_{SIDE}.npy")


def _mapped(path):
    data = np.memmap(path, np.uint8, "r") if path.stat().st_size else b""
    if hashlib.sha256(data[:-DIGEST]).hexdigest().encode() != bytes(data[-DIGEST:]):
        told = f"{path} is damaged: it does not end with its digest. Delete it to have its images decoded again."
        raise DataError(told)
    return torch.from_numpy(np.load(path, mmap_mode="c"))


def _decoded(root, part, download, kept):
    """Return the images of a part; they are in the file `kept` from then on, where its folder can be written."""
    from torchvision import datasets

    place = Path(root, FOLDER)
    if not (place / TABLE).exists() or not ((place / ARCHIVE).exists() or (place / IMAGES).exists()):
        datasets.CelebA(str(root), download=download)
    rows = (row.split() for row in (place / TABLE).read_text("utf-8").splitlines())
    names = [name for name, code in rows if code == PARTS[part]]
    images = (_image(file) for file in tqdm(_files(place, names), f"decoding CelebA, {part}", len(names), unit="image"))
    if not os.access(place, os.W_OK):
        return torch.from_numpy(np.stack(list(images)))
    temporary = kept.with_name(f"{kept.name}.new")  # one name, so that a killed process leaves one file at most
    with disk.lock(kept), disk.writing(kept, temporary):
        _write(temporary, images, len(names))
        disk.move(temporary, kept)
    return _mapped(kept)


def _write(path, images, count):
    """Write images as an array and a digest, once they are on the disk; they are never in memory together."""
    with open(path, "w+b") as file:
        header = {"descr": "|u1", "fortran_order": False, "shape": (count, 3, SIDE, SIDE)}
        np.lib.format.write_array_header_1_0(file, header)
        file.seek(0)
        found = hashlib.sha256(file.read())
        for image in images:
            found.update(image.tobytes())
            file.write(image.tobytes())
        file.write(found.hexdigest().encode())
        file.flush()
        os.fsync(file.fileno())


def _files(place, names):
    """Yield the images of these names, as files to be decoded."""
    if not (place / ARCHIVE).exists():
        yield from (place / IMAGES / name for name in names)
        return
    with zipfile.ZipFile(place / ARCHIVE) as archive:
        for name in names:
            with archive.open(f"{IMAGES}/{name}") as file:
                yield file


def _image(file):
    from PIL import Image

    with Image.open(file) as image:
        small = image.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BILINEAR)
    return np.asarray(small).transpose(2, 0, 1)
