"""A full disk at every write, for records, weights and locks: a message that names the file, and no space kept."""

import errno
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest

import lib.records.disk as disk
import lib.records.store as records
from lib import gallery
from lib.records.store import RecordError

ROOT = Path(__file__).resolve().parents[1]
REST = {"experiment": "toy", "type": "EWN", "seed": 1, "parameters": {}, "cost": {}, "provenance": {}}


def save_record(folder, value):
    """Save a record in which everything says `value`."""
    axes = {"i": list(range(50))}
    npz, arrays = records.pack({"a": (np.full(50, value), ["i"])}, axes)
    document = {**REST, "scores": {"value": value}, "axes": axes, "arrays": arrays}
    records.write([(folder / "toy/EWN-1.json", document, npz)])


def record_value(folder):
    record = records.read(folder / "toy/EWN-1.json")
    assert record.array("a")[0].tolist() == [record.scores["value"]] * 50
    return record.scores["value"]


def save_weights(folder, value):
    disk.save_tensors(folder / "toy/network.safetensors", {"w": np.full(1000, value)}, {"value": value})


def weights_value(folder):
    tensors, meta = disk.load_tensors(folder / "toy/network.safetensors")
    assert tensors["w"].tolist() == [meta["value"]] * 1000
    return meta["value"]


KINDS = {"record": (save_record, record_value), "weights": (save_weights, weights_value)}


class Full:
    """A disk that is full from the `step`-th action on: writing, flushing to the disk, renaming, syncing a folder."""

    def __init__(self, monkeypatch, step):
        self.count, self.step = 0, step
        for name in "fsync", "replace":
            monkeypatch.setattr(os, name, self.failing(getattr(os, name)))
        monkeypatch.setattr(disk, "open", self.open, raising=False)

    def failing(self, action):
        def act(*arguments):
            self.count += 1
            if self.count >= self.step:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return action(*arguments)

        return act

    def open(self, path, mode):
        """Return a file of which half is written before there is no room."""
        file = open(path, mode, buffering=0)
        write, fails = file.write, self.failing(lambda: None)

        class File:
            def __enter__(self):
                return self

            def __exit__(self, *error):
                file.close()

            def write(self, data):
                write(data[: len(data) // 2])
                fails()
                write(data[len(data) // 2 :])

            flush, fileno = file.flush, file.fileno

        return File()


@pytest.mark.parametrize("kind", KINDS)
def test_every_step_of_a_save_can_find_the_disk_full(tmp_path, monkeypatch, kind):
    save, value = KINDS[kind]
    (tmp_path / "toy").mkdir()
    steps = {"record": 12, "weights": 4}[kind]
    for old in (None, 1):
        for step in range(1, steps + 2):
            shutil.rmtree(tmp_path / "toy")
            (tmp_path / "toy").mkdir()
            if old:
                save(tmp_path, old)
            with monkeypatch.context() as patch:
                full = Full(patch, step)
                if step == steps + 1:
                    save(tmp_path, 2)
                    assert full.count == steps, "these are all there are"
                    continue
                with pytest.raises(RecordError) as told:
                    save(tmp_path, 2)
            file = "EWN-1.npz" if kind == "record" else "network.safetensors"
            assert str(tmp_path / "toy" / file) in str(told.value) and "No space left" in str(told.value)
            assert "Make room there" in str(told.value) and "PRUNING_RUNS" in str(told.value)
            decided = any((tmp_path / "toy").glob(f"{disk.INTENT}*"))
            assert decided or not any((tmp_path / "toy").glob("*.new"))
            if old:
                assert value(tmp_path) in (1, 2)
            save(tmp_path, 3)
            assert value(tmp_path) == 3


def test_a_full_disk_is_seen_before_anything_is_computed(tmp_path):
    """The probe writes for real: here against a limit of the system on the size of files, in a process of its own."""
    code = "import resource, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
    code += "resource.setrlimit(resource.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY))\n"
    code += f"from pathlib import Path; from lib import disk; disk.assert_writable(Path({str(tmp_path)!r}))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert f"cannot write {tmp_path} (File too large)" in done.stderr
    assert list(tmp_path.iterdir()) == []
    disk.assert_writable(tmp_path)
    assert list(tmp_path.iterdir()) == [], "no litter"


def test_a_lock_whose_owner_cannot_be_written_is_free_again(tmp_path, monkeypatch):
    def full(*arguments):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", full)
        with pytest.raises(RecordError, match="No space left.*Make room there"):
            disk.acquire(tmp_path / "x")
    assert not disk._lock(tmp_path / "x").is_locked
    with disk.lock(tmp_path / "x"):
        pass


@pytest.fixture
def small_disk():
    """A real file system of 1 MiB."""
    folder = Path(tempfile.mkdtemp(prefix="small-disk-"))
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder]
    if not shutil.which("mount") or subprocess.run(command, capture_output=True, check=False).returncode:
        folder.rmdir()
        pytest.skip("a small file system cannot be mounted here: that takes root on Linux")
    yield folder
    subprocess.run(["umount", folder], check=True)
    folder.rmdir()


@pytest.mark.parametrize("kind", KINDS)
def test_a_disk_that_is_really_full(small_disk, kind):
    save, value = KINDS[kind]
    (small_disk / "toy").mkdir()
    save(small_disk, 1)
    with pytest.raises(RecordError, match="No space left.*Make room"):
        disk.save_tensors(small_disk / "toy/large.safetensors", {"w": np.zeros(2**18)}, {})
    assert not list(small_disk.rglob("*.new")), "what did not fit keeps no space"
    with pytest.raises(RecordError, match="cannot write .*toy .No space left.*Make room"):
        disk.assert_writable(small_disk / "toy")
    assert value(small_disk) == 1
    save(small_disk, 2)
    assert value(small_disk) == 2


def test_a_part_of_the_gallery_that_finds_the_disk_full_stays_what_it_was(tmp_path, monkeypatch):
    path = tmp_path / "toy.md"
    gallery._put(path, "old")
    for step in range(1, 5):
        with monkeypatch.context() as patch, pytest.raises(RecordError, match=r"toy\.md .No space left"):
            Full(patch, step)
            gallery._put(path, "new")
        assert path.read_text() == ("old" if step < 4 else "new") and list(tmp_path.iterdir()) == [path]


def test_a_stack_that_finds_the_disk_full_leaves_all_its_files_or_none_and_no_half(tmp_path, monkeypatch):
    paths = [tmp_path / str(k) / "network.safetensors" for k in range(2)]

    def save(value):
        with disk.together(paths, tmp_path):
            for path in paths:
                disk.save_tensors(path, {"w": np.full(9, value)}, {}, later=True)

    for path in paths:
        path.parent.mkdir()
    save(0)
    for step in range(1, 100):
        with monkeypatch.context() as patch:
            full = Full(patch, step)
            try:
                save(step)
                break
            except RecordError as error:
                assert "No space left" in str(error) and "Make room there" in str(error)
        decided = any(tmp_path.glob(f"{disk.INTENT}*"))
        assert decided or not any(tmp_path.rglob("*.new")), step
        disk.recover(tmp_path)
        values = {float(disk.load_tensors(path)[0]["w"][0]) for path in paths}
        assert len(values) == 1 and values <= {step, 0}, step
        save(0)
    assert full.count == step - 1 == 14, "these are all there are"
