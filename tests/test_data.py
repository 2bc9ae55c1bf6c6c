"""Data sets: what is loaded, what is refused, and that nothing is replaced in silence."""

import gzip
import hashlib
import http.server
import multiprocessing
import os
import pickle
import shutil
import tarfile
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from flips import refused

from lib import draws, sets
from lib.errors import ParameterError

REAL = Path(sets.ROOT, os.environ.get("PRUNING_DATA", "data"))
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
    sets._decoded.cache_clear()
    yield raw, arrays
    sets._decoded.cache_clear()


def test_archives_are_read_where_they_lie(small_mnist):
    raw, arrays = small_mnist
    found = sets.load("mnist")
    assert torch.equal(found.train_x[:, 0], torch.from_numpy(arrays["train-images-idx3-ubyte.gz"]).to(torch.uint8))
    assert found.test_y.tolist() == (np.arange(20) % 10).tolist()
    assert sorted(p.name for p in raw.iterdir()) == sorted(arrays), "the data folder is left as it was"


@pytest.fixture
def unpacked(small_mnist, monkeypatch):
    """The same without its archives: their contents by path."""
    raw, arrays = small_mnist
    files = {raw / file.removesuffix(".gz"): idx(array) for file, array in arrays.items()}
    for path, content in files.items():
        path.write_bytes(content)
        path.with_name(f"{path.name}.gz").unlink()
    sums = {path.name: hashlib.md5(content).hexdigest() for path, content in files.items()}
    monkeypatch.setitem(sets.UNPACKED, "mnist", sums)
    return files


def read():
    return sets._decoded.__wrapped__("mnist", os.environ["PRUNING_DATA"])


def test_unpacked_files_are_read_without_their_archives(small_mnist, unpacked):
    _, arrays = small_mnist
    found = sets.load("mnist")
    assert np.array_equal(found.train_x[:, 0].numpy(), arrays["train-images-idx3-ubyte.gz"])
    assert found.test_y.tolist() == arrays["t10k-labels-idx1-ubyte.gz"].tolist()


def test_flipped_bits_are_errors(small_mnist):
    raw, arrays = small_mnist
    for file in arrays:
        refused(raw / file, read, sets.DataError)


def test_flipped_bits_of_unpacked_files_are_errors(unpacked):
    for path in unpacked:
        refused(path, read, sets.DataError)


def test_training_and_test_images_that_were_swapped_are_an_error(unpacked):
    for part in ("images-idx3-ubyte", "labels-idx1-ubyte"):
        train, test = (path for path in unpacked if path.name.endswith(part))
        train.write_bytes(unpacked[test]), test.write_bytes(unpacked[train])
        with pytest.raises(sets.DataError, match=rf"train-{part} is damaged.*Delete the folder"):
            read()
        train.write_bytes(unpacked[train]), test.write_bytes(unpacked[test])
    read()


def test_what_old_versions_of_torchvision_left_is_not_believed(small_mnist):
    raw, _ = small_mnist
    processed = raw.with_name("processed")
    processed.mkdir()
    for file in ("training.pt", "test.pt"):
        torch.save((torch.zeros(5, 28, 28, dtype=torch.uint8), torch.zeros(5)), processed / file)
    assert len(sets.load("mnist").train_y) == 30
    for path in raw.iterdir():
        path.unlink()
    with pytest.raises(sets.DataError, match="train-images-idx3-ubyte.*no file"):
        read()


@needs_mnist
def test_the_checksums_of_unpacked_files_are_those_of_the_published_archives():
    for name, folder in (("mnist", "MNIST"), ("fashion_mnist", "FashionMNIST")):
        for file, md5 in sets.UNPACKED[name].items():
            archive = REAL / folder / "raw" / f"{file}.gz"
            assert not archive.exists() or hashlib.md5(gzip.decompress(archive.read_bytes())).hexdigest() == md5


def test_a_truncated_archive_is_an_error_that_names_it(small_mnist):
    raw, _ = small_mnist
    path = raw / "t10k-images-idx3-ubyte.gz"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(sets.DataError, match=r"t10k-images-idx3-ubyte\.gz is damaged.*again.*digits"):
        sets.load("mnist")


def test_a_missing_archive_is_an_error_that_names_it(small_mnist):
    raw, _ = small_mnist
    (raw / "train-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(sets.DataError, match=r"train-labels-idx1-ubyte\.gz.*no file"):
        sets.load("mnist")


def test_no_data_and_no_network_is_an_error_with_the_way_out(tmp_path, monkeypatch):
    from torchvision import datasets

    def no_network(*arguments, **keywords):
        raise RuntimeError("Error downloading train-images-idx3-ubyte.gz: no route to host")

    monkeypatch.setattr(datasets.mnist, "download_and_extract_archive", no_network)
    monkeypatch.setenv("PRUNING_DATA", str(tmp_path / "nowhere"))
    with pytest.raises(sets.DataError, match=r"(?s)nowhere.*train-images.*PRUNING_DATA.*digits"):
        sets.load("mnist")


@pytest.mark.parametrize("name", ["mnist", "cifar10"])
def test_a_data_folder_that_cannot_be_made_has_the_way_out_of_data_alone(name, tmp_path, monkeypatch):
    """Not that of records, whose lock is taken for the download too."""
    (tmp_path / "file").touch()
    monkeypatch.setenv("PRUNING_DATA", str(tmp_path / "file" / "data"))
    with pytest.raises(sets.DataError, match=r"(?s)Not a directory.*PRUNING_DATA.*digits") as told:
        sets.load(name)
    assert "record" not in str(told.value) and "PRUNING_RUNS" not in str(told.value)


def test_a_folder_in_the_place_of_a_file_is_told(small_mnist):
    """As some programs unpack an archive of one file."""
    raw, arrays = small_mnist
    for file in arrays:
        (raw / file).unlink()
        (raw / file.removesuffix(".gz")).mkdir()
    with pytest.raises(sets.DataError, match="images-idx3-ubyte is damaged: its MD5 is no file.*Delete the folder"):
        sets.load("mnist")


@pytest.fixture
def mirror(small_mnist, tmp_path, monkeypatch):
    """A slow server of the small MNIST and an empty data folder: (resources, what was asked for, folder)."""
    from torchvision import datasets

    raw, _ = small_mnist
    asked, contents, folder = [], {path.name: path.read_bytes() for path in raw.iterdir()}, tmp_path / "elsewhere"

    class Slow(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200), self.end_headers()
            if "Method" in self.headers:  # torchvision, which looks for a redirection and does not read on
                return
            asked.append(self.path)
            content = contents[self.path.strip("/")]
            for half in (content[: len(content) // 2], content[len(content) // 2 :]):
                self.wfile.write(half), self.wfile.flush(), time.sleep(0.2)

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Slow)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(datasets.MNIST, "mirrors", [f"http://127.0.0.1:{server.server_port}/"])
    monkeypatch.setenv("PRUNING_DATA", str(folder))
    yield datasets.MNIST.resources, asked, folder
    server.shutdown(), server.server_close()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")  # of threads, of which the children have none
@pytest.mark.parametrize("left", [None, ".DS_Store"])
def test_two_processes_that_miss_the_same_data_download_them_once(mirror, left):
    """left: what lies in the folder of the data, which is there."""
    resources, asked, folder = mirror
    raw = folder / "MNIST" / "raw"
    if left:
        raw.mkdir(parents=True), (raw / left).write_bytes(b"left")
    fork = multiprocessing.get_context("fork")
    told = fork.SimpleQueue()
    both = [fork.Process(target=lambda: told.put(sets.load("mnist").checksum)) for _ in range(2)]
    [process.start() for process in both], [process.join(120) for process in both]
    assert [process.exitcode for process in both] == [0, 0]
    assert {told.get() for _ in both} == {sets.load("mnist").checksum} and len(asked) == len(resources)
    assert not left or (raw / left).read_bytes() == b"left"


def test_a_download_that_was_stopped_leaves_no_half(mirror, monkeypatch):
    """Stopped by hand, and killed, which leaves what it had where nobody takes it for data."""
    from torchvision.datasets import mnist

    *_, folder = mirror

    def stopped(url, download_root, **_):
        Path(download_root, "train-images-idx3-ubyte").write_bytes(b"half")
        raise KeyboardInterrupt

    for _ in range(2):  # as long as there is no folder, and where an empty one is
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(mnist, "download_and_extract_archive", stopped)
            sets.load("mnist")
        assert not list(folder.rglob("*-ubyte*"))
        (folder / "MNIST" / "raw").mkdir(exist_ok=True)
    left = folder / "MNIST" / "raw.new" / "MNIST" / "raw"
    left.mkdir(parents=True), (left / "train-images-idx3-ubyte").write_bytes(b"half")
    assert len(sets.load("mnist").train_y) == 30 and not left.exists()


def test_a_data_set_of_ones_own_is_three_entries(monkeypatch):
    """As CONTRIBUTING says; a reader of floats, which would be divided by 255 once more, is refused."""
    x, y = torch.arange(2 * 3 * 8 * 8, dtype=torch.uint8).view(2, 3, 8, 8), torch.tensor([1, 0])
    monkeypatch.setattr(sets, "NAMES", (*sets.NAMES, "mine"))
    monkeypatch.setitem(sets.SHAPES, "mine", (3, 8, 2, 2, 2))
    monkeypatch.setitem(sets.READERS, "mine", lambda name, folder: ((x, y), (x, y)))
    found, labels = sets.load("mine").split("train")
    plain = x.double() / 255
    mean, std = (getattr(plain, what)(dim=(0, 2, 3), keepdim=True) for what in ("mean", "std"))
    std = std * (1 - 1 / (2 * 64)) ** 0.5
    torch.testing.assert_close(found.double(), ((plain - mean) / std).flatten(1), rtol=1e-5, atol=1e-6)
    assert torch.equal(labels, y)
    for images, told in ((x / 255, r"torch.float32 \(2, 3, 8, 8\)"), (x[:, :1], r"\(2, 1, 8, 8\)")):
        monkeypatch.setitem(sets.READERS, "mine", lambda name, folder, images=images: ((images, y), (images, y)))
        sets._decoded.cache_clear()
        with pytest.raises(
            sets.DataError, match=rf"reader of mine returned x .*{told}.*wanted are bytes \(N, 3, 8, 8\)"
        ):
            sets.load("mine")


def test_an_unknown_name_lists_the_known():
    with pytest.raises(ParameterError, match="'mnst'.*mnist, fashion_mnist, digits"):
        sets.load("mnst")


@pytest.mark.parametrize("device", ["cudda", "gpu"])
def test_an_unknown_device_lists_the_known(device):
    with pytest.raises(sets.DataError, match=f"{device}.*auto, cpu, cuda"):
        sets.load("digits", device)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is CUDA here")
def test_cuda_that_is_not_there_is_an_error():
    with pytest.raises(sets.DataError, match="no CUDA here; take cpu or auto"):
        sets.load("digits", "cuda")


def test_digits_are_split_within_each_class():
    found = sets.load("digits")
    assert found.train_x.shape[1:] == (1, 28, 28) and found.train_x.dtype == torch.uint8
    assert len(found.train_y) + len(found.test_y) == 1797
    for label in range(10):
        share = float((found.test_y == label).sum() / ((found.test_y == label).sum() + (found.train_y == label).sum()))
        assert abs(share - 0.2) < 0.01
    assert found.train_x.max() == 255 and found.train_x.min() == 0


def test_the_holdout_is_stratified_fixed_and_leaves_the_test_set():
    whole, cut, again = sets.load("digits"), sets.load("digits", holdout=200), sets.load("digits", holdout=200)
    assert len(cut.test_y) == 200 and len(cut.train_y) == len(whole.train_y) - 200
    assert torch.equal(cut.test_x, again.test_x) and torch.equal(cut.train_x, again.train_x)
    counts = torch.bincount(cut.test_y, minlength=10)
    assert counts.max() - counts.min() <= 2
    joined = torch.cat([cut.train_x, cut.test_x]).flatten(1)
    rows = [sorted(map(bytes, x.flatten(1).numpy())) for x in (whole.train_x, joined)]
    assert rows[0] == rows[1], "the two parts are the training images, each once"
    few = sets.load("digits", holdout=200, train_examples=50)
    assert len(few.train_y) == 50 and torch.equal(few.test_x, cut.test_x)
    n = len(whole.train_y)
    with pytest.raises(sets.DataError, match=f"holdout is {n}; allowed is 0 to {n - 1}"):
        sets.load("digits", holdout=n)


def test_pixels_are_standardised():
    x, y = sets.load("digits").split("train")
    assert x.shape == (len(y), 784) and x.dtype == torch.float32
    assert abs(x.mean().item()) < 1e-5 and abs(x.std(correction=0).item() - 1) < 1e-5


def test_the_checksum_is_of_what_was_loaded(small_mnist, unpacked, monkeypatch):
    """Not of the files that it came from: packed again, they change nothing; one label does."""
    raw, _ = small_mnist
    first, path = read().checksum, raw / "train-labels-idx1-ubyte"
    monkeypatch.setattr("torchvision.datasets.MNIST.resources", resources := [])
    for file, content in unpacked.items():
        archive = file.with_name(f"{file.name}.gz")
        archive.write_bytes(gzip.compress(content, 1, mtime=0))
        resources.append((archive.name, hashlib.md5(archive.read_bytes()).hexdigest()))
    assert read().checksum == first
    changed = unpacked[path][:-1] + b"\5"
    for file in raw.glob("*.gz"):
        file.unlink()
    path.write_bytes(changed)
    monkeypatch.setitem(sets.UNPACKED["mnist"], path.name, hashlib.md5(changed).hexdigest())
    assert read().checksum != first


@needs_mnist
def test_mnist_is_mnist():
    sets._decoded.cache_clear()
    found = sets.load("mnist")
    assert found.train_x.shape == (60_000, 1, 28, 28) and found.test_x.shape == (10_000, 1, 28, 28)
    assert found.train_y[:5].tolist() == [5, 0, 4, 1, 9] and found.test_y[:5].tolist() == [7, 2, 1, 0, 4]
    mean, std = sets._statistics(found.train_x)
    assert abs(mean[0] - found.mean[0]) < 1e-4 and abs(std[0] - found.std[0]) < 1e-4


# ---------------------------------------------------------------------------------------------------- CIFAR


def cifar_batch(key, labels, rng):
    """Return the bytes of one CIFAR batch: a pickled dictionary, the three planes of an image in a row."""
    images = rng.integers(256, size=(len(labels), 3072), dtype=np.uint8)
    return images, pickle.dumps({"data": images, key: [int(label) for label in labels], "filenames": []})


@pytest.fixture(params=["cifar10", "cifar100"])
def small_cifar(request, tmp_path, monkeypatch):
    """A data folder with a small CIFAR-10 or -100 in torchvision's layout, its checksums known to torchvision."""
    from torchvision import datasets

    cls = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}[request.param]
    classes, rng = int(request.param.removeprefix("cifar")), np.random.default_rng(0)
    key = "labels" if classes == 10 else "fine_labels"
    place, images, published = tmp_path / cls.base_folder, [], {}
    place.mkdir()
    for file, _ in [*cls.train_list, *cls.test_list]:
        pixels, content = cifar_batch(key, np.arange(classes), rng)
        images.append(pixels)
        (place / file).write_bytes(content)
    (place / cls.meta["filename"]).write_bytes(pickle.dumps({cls.meta["key"]: [str(k) for k in range(classes)]}))
    for path in place.iterdir():
        published[path.name] = hashlib.md5(path.read_bytes()).hexdigest()
    for part in ("train_list", "test_list"):
        monkeypatch.setattr(cls, part, [[file, published[file]] for file, _ in getattr(cls, part)])
    monkeypatch.setattr(cls, "meta", cls.meta | {"md5": published[cls.meta["filename"]]})
    monkeypatch.setenv("PRUNING_DATA", str(tmp_path))
    sets._decoded.cache_clear()
    yield request.param, place, images
    sets._decoded.cache_clear()


def test_cifar_is_read_in_torchvisions_layout(small_cifar):
    name, _, images = small_cifar
    found, classes = sets.load(name), len(images[0])
    assert found.train_x.shape == (classes * (len(images) - 1), 3, 32, 32) and found.train_x.dtype == torch.uint8
    assert np.array_equal(found.train_x[:classes].flatten(1).numpy(), images[0]), "red, green and blue planes"
    assert np.array_equal(found.test_x.flatten(1).numpy(), images[-1])
    assert found.classes == classes and found.test_y.tolist() == list(range(classes))
    x, _ = found.split("test")
    assert torch.equal(x, (torch.from_numpy(images[-1]).float() / 255 - 0.5) / 0.5)


@pytest.mark.parametrize("damage", [lambda path: path.write_bytes(path.read_bytes()[:-9]), Path.unlink])
def test_a_damaged_or_missing_batch_is_an_error_that_names_it(small_cifar, damage):
    name, place, _ = small_cifar
    file = "data_batch_3" if name == "cifar10" else "train"
    damage(place / file)
    with pytest.raises(sets.DataError, match=rf"{file} is damaged.*again.*digits32"):
        sets.load(name)


@pytest.mark.parametrize("empty", [False, True])
def test_an_archive_that_lies_there_is_unpacked_and_not_downloaded(small_cifar, monkeypatch, empty):
    """Whether what it unpacks to has no folder, or an empty one."""
    from torchvision import datasets

    name, place, images = small_cifar
    cls = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}[name]
    archive = place.with_name(cls.filename)
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(place, place.name)
    shutil.rmtree(place)
    if empty:
        place.mkdir()
    monkeypatch.setattr(cls, "tgz_md5", hashlib.md5(archive.read_bytes()).hexdigest())
    monkeypatch.setattr(cls, "url", "http://127.0.0.1:9/nobody")
    assert np.array_equal(sets.load(name).test_x.flatten(1).numpy(), images[-1])
    assert archive.exists() and not list(place.parent.glob("*.new"))


def test_flipped_bits_of_every_batch_are_errors(small_cifar):
    name, place, _ = small_cifar
    for path in sorted(place.iterdir()):
        refused(path, lambda: sets._decoded.__wrapped__(name, str(place.parent)), sets.DataError)


def test_no_cifar_and_no_network_is_an_error_with_the_way_out(small_cifar, tmp_path, monkeypatch):
    from torchvision import datasets

    def no_network(*arguments, **keywords):
        raise OSError("no route to host")

    name, _, _ = small_cifar
    monkeypatch.setattr(datasets.cifar, "download_and_extract_archive", no_network)
    monkeypatch.setenv("PRUNING_DATA", str(tmp_path / "nowhere"))
    with pytest.raises(sets.DataError, match=r"(?s)nowhere.*no route.*cifar-10.*PRUNING_DATA.*digits32"):
        sets.load(name)


needs_cifar = pytest.mark.skipif(not (REAL / "cifar-10-batches-py").exists(), reason="no CIFAR-10 in $PRUNING_DATA")


@needs_cifar
def test_cifar10_is_cifar10():
    sets._decoded.cache_clear()
    found = sets.load("cifar10")
    assert found.train_x.shape == (50_000, 3, 32, 32) and found.test_x.shape == (10_000, 3, 32, 32)
    assert found.train_y[:5].tolist() == [6, 9, 9, 4, 1] and found.test_y[:5].tolist() == [3, 8, 8, 0, 6]
    assert found.checksum == "9048fcbac9c08a64"
    sets._decoded.cache_clear()


def test_digits_come_in_the_shape_of_cifar():
    found = sets.load("digits32")
    assert found.train_x.shape == (1442, 3, 32, 32)
    assert torch.equal(found.train_x[:, 0], found.train_x[:, 2])
    assert torch.equal(found.train_y, sets.load("digits").train_y)


# ------------------------------------------------------------------------------------------------- a subset


def test_a_subset_is_stratified_fixed_and_nested():
    whole, small, large = (sets.load("digits", train_examples=n) for n in (0, 100, 300))
    assert len(whole.train_y) == 1442 and len(small.train_y) == 100 and len(large.train_y) == 300
    counts = torch.bincount(small.train_y, minlength=10)
    assert counts.max() - counts.min() <= 2
    images = [{x.numpy().tobytes() for x in found.train_x} for found in (small, large, whole)]
    assert images[0] < images[1] < images[2]
    assert torch.equal(small.train_x, sets.load("digits", train_examples=100).train_x)
    assert torch.equal(small.test_x, whole.test_x)


@pytest.mark.parametrize("count", [-1, 1443, True, 10.0])
def test_an_impossible_subset_is_an_error(count):
    with pytest.raises(sets.DataError, match="train_examples.*1442"):
        sets.load("digits", train_examples=count)


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
