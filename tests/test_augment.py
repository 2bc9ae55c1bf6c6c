"""Crops, flips and standardisation against loops over images and torchvision; Tiny-ImageNet from a small archive."""

import hashlib
import io
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision import datasets, transforms
from torchvision.transforms import functional

from lib import images, sets, tiny_imagenet
from lib.errors import DataError, ParameterError


def bytes_of(shape, seed=0):
    return torch.randint(256, shape, generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


def literal(image, row, column, flip, pad):
    """Return one image `(C, H, W)` cropped and flipped, pixel by pixel."""
    channels, height, width = image.shape
    out = torch.zeros_like(image)
    for c in range(channels):
        for h in range(height):
            for w in range(width):
                y, x = h + row - pad, (width - 1 - w if flip else w) + column - pad
                if 0 <= y < height and 0 <= x < width:
                    out[c, h, w] = image[c, y, x]
    return out


@pytest.mark.parametrize("shape,pad", [((6, 3, 5, 7), 2), ((4, 1, 1, 1), 1), ((3, 2, 4, 4), 0)])
def test_crop_and_flip_are_those_of_a_loop(shape, pad, monkeypatch):
    monkeypatch.setattr(images, "PAD", pad)
    x, g = bytes_of(shape), torch.Generator().manual_seed(1)
    index = torch.randint(shape[0], (40,), generator=g)
    shift, flip = torch.randint(2 * pad + 1, (40, 2), generator=g), torch.rand(40, generator=g) < 0.5
    found = images.crop_flip(x, index, shift, flip)
    rows = zip(index.tolist(), shift.tolist(), flip.tolist(), strict=True)
    assert torch.equal(found, torch.stack([literal(x[i], *at, mirrored, pad) for i, at, mirrored in rows]))
    again = images.crop_flip(x, index.view(4, 10), shift.view(4, 10, 2), flip.view(4, 10))
    assert torch.equal(again.flatten(0, 1), found)


def test_crop_flip_and_standardise_are_torchvisions():
    """The published order: crop from a black frame of 4, flip, numbers in [0, 1], mean and deviation of the study."""
    found = sets.load("digits32", statistics="phew")
    mean, std = sets.STATISTICS["phew"]["cifar10"]
    shift, flip = images.moves(3, 5, 64)
    ours = images.standardise(images.crop_flip(found.train_x, torch.arange(64), shift, flip), mean, std)
    finish = transforms.Normalize(mean, std)
    for k, (row, column) in enumerate(shift.tolist()):
        image = functional.pad(functional.to_pil_image(found.train_x[k]), 4)
        image = functional.crop(image, row, column, 32, 32)
        image = functional.hflip(image) if flip[k] else image
        torch.testing.assert_close(ours[k], finish(functional.to_tensor(image)).flatten())


def test_moves_are_uniform_and_keyed():
    shift, flip = images.moves(0, 0, 81_000)
    counts = torch.bincount(9 * shift[:, 0] + shift[:, 1], minlength=81)
    assert len(counts) == 81 and abs(counts - 1000).max() < 4.5 * 1000**0.5
    assert abs(flip.double().mean() - 0.5) < 4 * 0.5 / 81_000**0.5
    assert torch.equal(shift, images.moves(0, 0, 81_000)[0])
    assert not torch.equal(shift, images.moves(0, 1, 81_000)[0]) and not torch.equal(
        shift, images.moves(1, 0, 81_000)[0]
    )


@pytest.fixture(scope="module")
def digits():
    return sets.load("digits32", train_examples=50)


def test_an_image_that_does_not_move_is_that_of_the_whole_set(digits, monkeypatch):
    monkeypatch.setattr(images, "PAD", 0)
    _, flip = images.moves(1, 0, 50)
    index = (~flip).nonzero()[:, 0].flip(0)
    assert len(index) > 9
    assert torch.equal(images.Augmented(digits, [1])(0, index), digits.split("train")[0][index])


def test_a_run_sees_the_same_in_any_stack_and_any_batch(digits):
    index = torch.tensor([[4, 49, 0], [7, 7, 2], [0, 4, 9]])
    together = images.Augmented(digits, [1, 2, 1])(3, index)
    assert together.shape == (3, 3, 3 * 32 * 32) and together.dtype == torch.float32
    for r, seed in enumerate([1, 2, 1]):
        assert torch.equal(images.Augmented(digits, [seed])(3, index[r]), together[r])
    assert torch.equal(together[0, 0], together[2, 1]) and torch.equal(together[0, 2], together[2, 0])
    shared = images.Augmented(digits, [1, 2])(3, index[0])
    assert torch.equal(shared[0], together[0]) and not torch.equal(shared[1], together[0])
    assert images.Augmented(digits, [1, 1])(3, index[0]).shape == (3, 3072), "one batch for all"


def test_epochs_differ_and_come_back(digits):
    augmented, index = images.Augmented(digits, [1]), torch.arange(20)
    first, second = augmented(0, index), augmented(1, index)
    assert not torch.equal(first, second) and torch.equal(augmented(0, index), first)


# -------------------------------------------------------------------------------------------- statistics


def test_a_study_standardises_in_its_own_way():
    plain, phew = sets.load("digits64"), sets.load("digits64", statistics="phew")
    assert phew.mean == plain.mean and phew.test_x.shape[1:] == (3, 64, 64), "the digits' own where a study has none"
    assert sets.STATISTICS["phew"]["cifar10"] == ((0.491, 0.482, 0.447), (0.247, 0.243, 0.262))
    with pytest.raises(ParameterError, match="'phw'; allowed are ewn, phew"):
        sets.load("digits", statistics="phw")


@pytest.mark.parametrize("name", ["digits", "digits32", "digits64"])
def test_halves_scale_from_minus_one_to_one(name):
    x, _ = sets.load(name, statistics="half").split("train")
    assert (x.min(), x.max()) == (-1, 1)


def test_real_statistics_are_what_the_study_says():
    """Its figures for CIFAR-10 are those of the training images, rounded."""
    if not (sets._folder() / "cifar-10-batches-py").exists():
        pytest.skip("no CIFAR-10 in $PRUNING_DATA")
    found = sets.load("cifar10", statistics="phew")
    for ours, published in zip(sets._statistics(found.train_x[:5000]), (found.mean, found.std), strict=True):
        assert np.allclose(ours, published, atol=0.005)
    assert sets.load("cifar10").mean == (0.5, 0.5, 0.5)
    sets._decoded.cache_clear()


# ------------------------------------------------------------------------------------------ Tiny-ImageNet

CLASSES = ["n02124075", "n01443537", "n07749582"]  # as the archive lists them, not in order


def jpeg(rng, grey=False):
    from PIL import Image

    pixels = rng.integers(256, size=(64, 64) if grey else (64, 64, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "JPEG")
    return stream.getvalue()


def small_archive(path):
    """Write an archive of 4 training images a class and 7 of validation, one of them grey, in the published layout."""
    rng, top = np.random.default_rng(0), tiny_imagenet.FOLDER
    lines = [f"val_{k}.JPEG\t{CLASSES[k * 2 % 3]}\t0\t32\t44\t62\n" for k in (3, 10, 2, 1, 0, 4, 5)]
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"{top}/wnids.txt", "\n".join(CLASSES))
        for name in CLASSES:
            archive.writestr(f"{top}/train/{name}/{name}_boxes.txt", "")
            for k in (0, 10, 2, 1):
                archive.writestr(f"{top}/train/{name}/images/{name}_{k}.JPEG", jpeg(rng, grey=k == 2))
        for line in lines:
            archive.writestr(f"{top}/val/images/{line.split()[0]}", jpeg(rng))
        archive.writestr(f"{top}/val/val_annotations.txt", "".join(lines))
        archive.writestr(f"{top}/test/images/test_0.JPEG", jpeg(rng))


@pytest.fixture
def small_tiny(tmp_path, monkeypatch):
    """A data folder with a small Tiny-ImageNet whose checksum is known."""
    place = tmp_path / tiny_imagenet.FOLDER
    place.mkdir()
    small_archive(place / tiny_imagenet.ARCHIVE)
    monkeypatch.setattr(sets, "MD5", hashlib.md5((place / tiny_imagenet.ARCHIVE).read_bytes()).hexdigest())
    monkeypatch.setenv("PRUNING_DATA", str(tmp_path))
    sets._decoded.cache_clear()
    yield place
    sets._decoded.cache_clear()


def refoldered(place, scratch):
    """Return both splits as the study reads them: unpacked, validation images moved to a folder per class."""
    with zipfile.ZipFile(place / tiny_imagenet.ARCHIVE) as archive:
        archive.extractall(scratch)
    top = scratch / tiny_imagenet.FOLDER
    for line in (top / "val" / "val_annotations.txt").read_text().splitlines():
        file, name = line.split("\t")[:2]
        (top / "val" / name).mkdir(exist_ok=True)
        (top / "val" / "images" / file).rename(top / "val" / name / file)
    (top / "val" / "val_annotations.txt").unlink()
    (top / "val" / "images").rmdir()
    return [datasets.ImageFolder(str(top / part), transforms.PILToTensor()) for part in ("train", "val")]


def test_tiny_imagenet_is_what_a_folder_per_class_has(small_tiny, tmp_path):
    found = sets.load("tiny_imagenet")
    for part, (x, y) in zip(
        refoldered(small_tiny, tmp_path / "unpacked"),
        ((found.train_x, found.train_y), (found.test_x, found.test_y)),
        strict=True,
    ):
        assert torch.equal(x, torch.stack([image for image, _ in part])) and y.tolist() == part.targets
    assert found.classes == 3 and found.train_x.shape == (12, 3, 64, 64) and len(found.test_y) == 7
    assert found.mean == (0.480, 0.448, 0.397) and sorted(small_tiny.iterdir()) == [small_tiny / tiny_imagenet.ARCHIVE]


def test_a_damaged_archive_is_an_error_that_names_it(small_tiny):
    path = small_tiny / tiny_imagenet.ARCHIVE
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(DataError, match=r"tiny-imagenet-200\.zip is damaged.*again.*digits64"):
        sets.load("tiny_imagenet")


@pytest.mark.parametrize("unpacked", [False, True])
def test_the_archive_is_downloaded_where_it_is_missing(small_tiny, tmp_path, monkeypatch, unpacked):
    """Elsewhere first, also where somebody has unpacked it."""
    images = tmp_path / "new" / tiny_imagenet.FOLDER / "train"
    if unpacked:
        images.mkdir(parents=True)
    content, asked = (small_tiny / tiny_imagenet.ARCHIVE).read_bytes(), []

    def download(url, root, filename, md5):
        asked.append((url, md5))
        Path(root).mkdir()
        Path(root, filename).write_bytes(content)

    monkeypatch.setattr(datasets.utils, "download_url", download)
    monkeypatch.setenv("PRUNING_DATA", str(tmp_path / "new"))
    assert len(sets.load("tiny_imagenet").train_y) == 12 and images.exists() == unpacked
    assert asked == [("http://cs231n.stanford.edu/tiny-imagenet-200.zip", "90528d7ca1a48142e341f4ef8d21d0de")]


def test_no_archive_and_no_network_is_an_error_with_the_way_out(tmp_path, monkeypatch):
    def no_network(*arguments):
        raise OSError("no route to host")

    monkeypatch.setattr(datasets.utils, "download_url", no_network)
    monkeypatch.setenv("PRUNING_DATA", str(tmp_path / "nowhere"))
    sets._decoded.cache_clear()
    with pytest.raises(DataError, match=r"(?s)nowhere.*no route.*tiny-imagenet-200\.zip into.*PRUNING_DATA.*digits64"):
        sets.load("tiny_imagenet")
