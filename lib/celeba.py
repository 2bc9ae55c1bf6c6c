"""CelebA (Liu et al., arXiv 1411.7766): aligned photographs of faces, made 64×64, in its own training and test parts.

162,770 training and 19,962 test images. Their shape is not kept: 178×218 pixels become a square. Decoding takes
minutes, so what comes of it lies beside the data from then on, as bytes that are mapped and not read.
"""

import os
from pathlib import Path

import numpy as np
import torch
from tqdm.auto import tqdm

from lib import disk

FOLDER, SIDE = "celeba", 64


class CelebA:
    """One part, in the manner of torchvision's data sets: `data` uint8 (N, 3, 64, 64), `targets` zeros, int64 (N,).

    All images are of one class: who they show is not asked. The files are torchvision's own, under `root` in
    `celeba`; to download them it needs the package gdown. RuntimeError or OSError where they are missing or damaged.
    """

    def __init__(self, root, train=True, download=False):
        part = "train" if train else "test"
        kept = Path(root, FOLDER, f"{part}_{SIDE}.npy")
        self.data = _mapped(kept) if kept.exists() else _decoded(root, part, download, kept)
        self.targets = torch.zeros(len(self.data), dtype=torch.int64)


def _mapped(path):
    return torch.from_numpy(np.load(path, mmap_mode="c"))


def _decoded(root, part, download, kept):
    """Return the images of a part; they are in the file `kept` from then on, where its folder can be written."""
    from torchvision import datasets

    archive = Path(root, FOLDER, "img_align_celeba.zip")
    if archive.exists() and not archive.with_suffix("").exists():  # torchvision would ask for gdown to unpack it
        datasets.utils.extract_archive(str(archive))
    found = datasets.CelebA(str(root), part, target_type="identity", download=download)
    paths = [Path(root, FOLDER, "img_align_celeba", name) for name in found.filename]
    images = (_image(path) for path in tqdm(paths, desc=f"decoding CelebA, {part}", unit="image"))
    shape = len(paths), 3, SIDE, SIDE
    if not os.access(kept.parent, os.W_OK):
        return torch.from_numpy(np.stack(list(images)))
    temporary = kept.with_name(f"{kept.name}.new")  # one name, so that a killed process leaves one file at most
    with disk.lock(kept), disk.writing(kept, temporary):
        with open(temporary, "wb") as file:
            header = {"descr": "|u1", "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(file, header)
            for image in images:
                file.write(image.tobytes())
            file.flush()
            os.fsync(file.fileno())
        disk.move(temporary, kept)
    return _mapped(kept)


def _image(path):
    from PIL import Image

    with Image.open(path) as image:
        small = image.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BILINEAR)
    return np.asarray(small).transpose(2, 0, 1)
