"""CelebA: what is read, in a small folder in torchvision's layout, and what is said where files are missing."""

import hashlib
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from flips import refused
from PIL import Image

from lib import celeba, sets

PARTITION = [0, 0, 0, 1, 2, 2]  # as published: 0 is training, 1 validation, 2 test


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Return (the folder, its images by name): six small photographs and the tables that torchvision asks for."""
    from torchvision import datasets

    place = tmp_path / "celeba"
    (place / "img_align_celeba").mkdir(parents=True)
    rng, images = np.random.default_rng(0), {}
    for k in range(len(PARTITION)):
        name = f"{k + 1:06}.jpg"
        colours = rng.integers(256, size=(11, 9, 3), dtype=np.uint8)
        images[name] = Image.fromarray(colours).resize((90, 110), Image.Resampling.BICUBIC)
        images[name].save(place / "img_align_celeba" / name, quality=95)
    tables = {
        "list_attr_celeba.txt": f"{len(images)}\n Smiling\n" + "".join(f"{name} -1\n" for name in images),
        "identity_CelebA.txt": "".join(f"{name} 7\n" for name in images),
        "list_bbox_celeba.txt": f"{len(images)}\nimage_id x\n" + "".join(f"{name} 1\n" for name in images),
        "list_landmarks_align_celeba.txt": f"{len(images)}\nx\n" + "".join(f"{name} 1\n" for name in images),
        "list_eval_partition.txt": "".join(f"{name} {p}\n" for name, p in zip(images, PARTITION, strict=True)),
    }
    for name, text in tables.items():
        (place / name).write_text(text)
    sums = [("", hashlib.md5(text.encode()).hexdigest(), name) for name, text in tables.items()]
    monkeypatch.setattr(datasets.CelebA, "file_list", [("", "0", "img_align_celeba.zip"), *sums])
    monkeypatch.setenv("PRUNING_DATA", str(tmp_path))
    sets._decoded.cache_clear()
    yield place, images
    sets._decoded.cache_clear()


def test_its_parts_are_squares_of_bytes(folder):
    place, images = folder
    found = sets.load("celeba")
    assert found.train_x.shape == (3, 3, 64, 64) and found.test_x.shape == (2, 3, 64, 64)
    assert found.train_x.dtype == torch.uint8 and found.classes == 1 and not found.test_y.any()
    for ours, name in zip(
        [*found.train_x, *found.test_x], [n for n, p in zip(images, PARTITION, strict=True) if p != 1], strict=True
    ):
        with Image.open(place / "img_align_celeba" / name) as image:
            expected = torch.nn.functional.interpolate(
                torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].double(),
                (64, 64),
                mode="bilinear",
                antialias=True,
            )[0]
        assert (ours.double() - expected).abs().max() <= 1, "bytes, rounded twice"
    assert torch.equal(found.split("train")[0], found.train_x.flatten(1) / 255), "pixels stay in [0, 1]"


def test_it_is_decoded_once(folder):
    place, images = folder
    before = sets.load("celeba")
    for name in images:
        (place / "img_align_celeba" / name).unlink()
    sets._decoded.cache_clear()
    again = sets.load("celeba")
    assert torch.equal(again.train_x, before.train_x) and again.checksum == before.checksum
    assert sorted(path.name for path in place.glob("*_64*")) == ["test_64.npy", "train_64.npy"], "nothing half-written"


def test_writing_into_the_images_leaves_the_file_alone(folder):
    first = celeba.CelebA(folder[0].parent)
    first.data.zero_()
    assert celeba.CelebA(folder[0].parent).data.any()


def test_a_folder_that_cannot_be_written_is_read_all_the_same(folder, monkeypatch):
    place, _ = folder
    monkeypatch.setattr(celeba.os, "access", lambda path, mode: not (mode == os.W_OK and path == place))
    read = celeba.CelebA(place.parent).data
    assert not (place / "train_64.npy").exists()
    monkeypatch.undo()
    assert torch.equal(celeba.CelebA(place.parent).data, read)


@pytest.fixture
def archive(folder, monkeypatch):
    """Return the archive of the images, its checksum known to torchvision, and nothing is unpacked."""
    from torchvision import datasets

    place, _ = folder
    path = Path(shutil.make_archive(place / "img_align_celeba", "zip", place, "img_align_celeba"))
    shutil.rmtree(place / "img_align_celeba")
    published = [("", hashlib.md5(path.read_bytes()).hexdigest(), path.name), *datasets.CelebA.file_list[1:]]
    monkeypatch.setattr(datasets.CelebA, "file_list", published)
    return path


def test_the_archive_is_read_where_it_lies(folder, archive):
    assert sets.load("celeba").train_x.shape == (3, 3, 64, 64)
    assert not (folder[0] / "img_align_celeba").exists()


@pytest.mark.parametrize("file", ["img_align_celeba.zip", "list_eval_partition.txt"])
def test_flipped_bits_of_what_has_a_published_checksum_are_errors(folder, archive, file, monkeypatch):
    monkeypatch.setattr(celeba.os, "access", lambda path, mode: False)  # so that nothing is decoded once for all
    refused(archive.with_name(file), lambda: sets._decoded.__wrapped__("celeba", str(folder[0].parent)), sets.DataError)


def test_flipped_bits_of_decoded_images_are_errors(folder):
    sets.load("celeba")
    for part in ("train", "test"):
        path = folder[0] / f"{part}_64.npy"
        refused(path, lambda: sets._decoded.__wrapped__("celeba", str(folder[0].parent)), sets.DataError)
        for size in (9, 0):
            with path.open("r+b") as file:
                file.truncate(size)
            with pytest.raises(sets.DataError, match=f"{path.name} is damaged.*Delete it"):
                celeba.CelebA(folder[0].parent, part == "train")
        path.unlink()


def test_a_missing_table_is_an_error_that_names_it(folder, monkeypatch):
    place, _ = folder
    (place / "list_eval_partition.txt").unlink()

    def offline(*args):
        raise RuntimeError("'gdown' is required. You can install it with 'pip install gdown'.")

    monkeypatch.setattr("torchvision.datasets.celeba.download_file_from_google_drive", offline)
    with pytest.raises(sets.DataError, match=r"pip install gdown.*list_eval_partition\.txt into .*celeba.*digits"):
        sets.load("celeba")


def test_a_damaged_image_is_an_error_that_names_it(folder):
    place, _ = folder
    (place / "img_align_celeba" / "000002.jpg").write_bytes(b"no photograph")
    with pytest.raises(sets.DataError, match=r"000002\.jpg"):
        sets.load("celeba")
    assert not (place / "train_64.npy").exists()


def test_it_is_no_data_set_for_classifiers():
    assert "celeba" not in sets.NAMES
