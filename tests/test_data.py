"""Data sets: what is loaded, what is refused, and that nothing is replaced in silence."""

import gzip
import hashlib
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from lib import data, draws

REAL = Path(data.ROOT, os.environ.get("PRUNING_DATA", "data"))
needs_mnist = pytest.mark.skipif(
    not (REAL / "MNIST" / "raw" / "train-images-idx3-ubyte.gz").exists(), reason="no MNIST in $PRUNING_DATA"
)


def idx(array):
    """Return an array of bytes as an idx file."""
    sizes = b"".join(n.to_bytes(4, "big") for n in array.shape)
    return bytes([0, 0, 8, array.ndim]) + sizes + array.astype(np.uint8).tobytes()


@pytest.fixture
def small_mnist(tmp_path, monkeypatch):
    """A data folder with a small MNIST in torchvision's layout, its checksums known to torchvision."""
    from torchvision import datasets

    rng = np.random.default_rng(0)
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    arrays = {
        "train-images-idx3-ubyte.gz": rng.integers(256, size=(30, 28, 28)),
        "train-labels-idx1-ubyte.gz": np.arange(30) % 10,
        "t10k-images-idx3-ubyte.gz": rng.integers(256, size=(20, 28, 28)),
        "t10k-labels-idx1-ubyte.gz": np.arange(20) % 10,
    }
    for file, array in arrays.items():
        (raw / file).write_bytes(gzip.compress(idx(array), mtime=0))
    resources = [(file, hashlib.md5((raw / file).read_bytes()).hexdigest()) for file in arrays]
    monkeypatch.setattr(datasets.MNIST, "resources", resources)
    monkeypatch.setenv("PRUNING_DATA", str(tmp_path))
    data._decoded.cache_clear()
    yield raw, arrays
    data._decoded.cache_clear()


def test_archives_are_read_where_they_lie(small_mnist):
    raw, arrays = small_mnist
    found = data.load("mnist")
    assert torch.equal(found.train_x[:, 0], torch.from_numpy(arrays["train-images-idx3-ubyte.gz"]).to(torch.uint8))
    assert found.test_y.tolist() == (np.arange(20) % 10).tolist()
    assert sorted(p.name for p in raw.iterdir()) == sorted(arrays), "the data folder is left as it was"


def test_decompressed_files_are_read_by_torchvision(small_mnist):
    raw, arrays = small_mnist
    for file, array in arrays.items():
        (raw / file.removesuffix(".gz")).write_bytes(idx(array))
        (raw / file).unlink()
    assert data.load("mnist").test_x.shape == (20, 1, 28, 28)


def test_a_truncated_archive_is_an_error_that_names_it(small_mnist):
    raw, _ = small_mnist
    path = raw / "t10k-images-idx3-ubyte.gz"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(data.DataError, match=r"t10k-images-idx3-ubyte\.gz is damaged.*again.*digits"):
        data.load("mnist")


def test_a_missing_archive_is_an_error_that_names_it(small_mnist):
    raw, _ = small_mnist
    (raw / "train-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(data.DataError, match=r"train-labels-idx1-ubyte\.gz.*no file"):
        data.load("mnist")


def test_no_data_and_no_network_is_an_error_with_the_way_out(tmp_path, monkeypatch):
    from torchvision import datasets

    def no_network(*arguments, **keywords):
        raise RuntimeError("Error downloading train-images-idx3-ubyte.gz: no route to host")

    monkeypatch.setattr(datasets.mnist, "download_and_extract_archive", no_network)
    monkeypatch.setenv("PRUNING_DATA", str(tmp_path / "nowhere"))
    with pytest.raises(data.DataError, match=r"(?s)nowhere.*train-images.*PRUNING_DATA.*digits"):
        data.load("mnist")


def test_an_unknown_name_lists_the_known():
    with pytest.raises(data.DataError, match="'mnst'.*mnist, fashion_mnist, digits"):
        data.load("mnst")


def test_digits_are_split_within_each_class():
    found = data.load("digits")
    assert found.train_x.shape[1:] == (1, 28, 28) and found.train_x.dtype == torch.uint8
    assert len(found.train_y) + len(found.test_y) == 1797
    for label in range(10):
        share = float((found.test_y == label).sum() / ((found.test_y == label).sum() + (found.train_y == label).sum()))
        assert abs(share - 0.2) < 0.01
    assert found.train_x.max() == 255 and found.train_x.min() == 0


def test_pixels_are_standardised():
    x, y = data.load("digits").split("train")
    assert x.shape == (len(y), 784) and x.dtype == torch.float32
    assert abs(x.mean().item()) < 1e-5 and abs(x.std(correction=0).item() - 1) < 1e-5


def test_the_holdout_is_stratified_fixed_and_leaves_the_test_set():
    whole, cut, again = data.load("digits"), data.load("digits", holdout=200), data.load("digits", holdout=200)
    assert len(cut.valid_y) == 200 and len(cut.train_y) == len(whole.train_y) - 200
    assert torch.equal(cut.valid_x, again.valid_x) and torch.equal(cut.test_x, whole.test_x)
    counts = torch.bincount(cut.valid_y, minlength=10)
    assert counts.max() - counts.min() <= 2
    images = {x.numpy().tobytes() for x in torch.cat([cut.train_x, cut.valid_x])}
    assert images == {x.numpy().tobytes() for x in whole.train_x}


@pytest.mark.parametrize("holdout", [-1, 1442, 10**6])
def test_an_impossible_holdout_is_an_error(holdout):
    with pytest.raises(data.DataError, match="holdout"):
        data.load("digits", holdout=holdout)


def test_the_checksum_is_of_what_was_loaded(small_mnist):
    raw, arrays = small_mnist
    first = data.load("mnist").checksum
    changed = arrays["train-labels-idx1-ubyte.gz"].copy()
    changed[0] += 1
    for file, array in (arrays | {"train-labels-idx1-ubyte.gz": changed}).items():
        (raw / file.removesuffix(".gz")).write_bytes(idx(array))
        (raw / file).unlink()
    data._decoded.cache_clear()
    assert data.load("mnist").checksum != first


@needs_mnist
def test_mnist_is_mnist():
    data._decoded.cache_clear()
    found = data.load("mnist")
    assert found.train_x.shape == (60_000, 1, 28, 28) and found.test_x.shape == (10_000, 1, 28, 28)
    assert found.train_y[:5].tolist() == [5, 0, 4, 1, 9] and found.test_y[:5].tolist() == [7, 2, 1, 0, 4]
    mean, std = data._statistics(found.train_x)
    assert abs(mean - found.mean[0]) < 1e-4 and abs(std - found.std[0]) < 1e-4


def test_a_draw_is_decided_by_its_key_alone():
    first = draws.permutation(3, "order", 7, 50)
    draws.generator(3, "other").normal(size=1000)
    assert np.array_equal(first, draws.permutation(3, "order", 7, 50))
    assert sorted(first) == list(range(50))
    others = [draws.permutation(*key, 50) for key in ((4, "order", 7), (3, "order", 8), (3, "init", 7))]
    assert not any(np.array_equal(first, other) for other in others)


def test_draws_stay_what_they_are():
    """A change here changes every result: these numbers may only be edited with all records made again."""
    assert draws.permutation(9192, "order", 0, 10).tolist() == [1, 0, 9, 3, 5, 4, 8, 6, 2, 7]
    assert np.allclose(draws.generator(1, "noise", 2).random(2), [0.6707938403213999, 0.5535728600886245])
