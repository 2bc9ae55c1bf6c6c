"""Files that survive being killed: locks that die with their owner, writes that happen wholly or not."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import safetensors
import safetensors.numpy
from filelock import FileLock, Timeout

from lib.errors import RecordError, unwritable

# ---- locks


_locks: dict[tuple[int, Path], FileLock] = {}  # one object per file and process: that makes it re-entrant


def acquire(path: Path) -> None:
    """Return nothing, once this process holds the lock of `path`, however long another one keeps it.

    The operating system frees the lock when its owner dies. Acquiring twice in one process is allowed and
    needs two releases. After a second of waiting, one printed line says who is at work.
    """
    path = Path(path).absolute()
    try:
        (path.parent / ".locks").mkdir(parents=True, exist_ok=True)
        lock = _lock(path)
        if lock.is_locked:
            lock.acquire()
            return
        _wait(lock, path)
        # A file of its own: opening a lock file may empty it, so it cannot hold the name of its owner.
        _owner_file(path).write_text(f"process {os.getpid()} on {socket.gethostname()}")
    except OSError as error:
        raise unwritable(path.parent, error) from error


def release(path: Path) -> None:
    """Return nothing; undo one `acquire` of `path`."""
    _lock(Path(path).absolute()).release()


@contextmanager
def lock(path: Path) -> Iterator[None]:
    """Return a context in which this process alone holds `path`: `with lock(path): ...`, see `acquire`."""
    acquire(path)
    try:
        yield
    finally:
        release(path)


def _lock(path: Path) -> FileLock:
    """Return this process's one lock object for an absolute path; after a fork the child has its own."""
    key = (os.getpid(), path)
    if key not in _locks:
        _locks[key] = FileLock(path.parent / ".locks" / f"{path.name}.lock", thread_local=False)
    return _locks[key]


def _owner_file(path: Path) -> Path:
    return path.parent / ".locks" / f"{path.name}.owner"


def _wait(lock: FileLock, path: Path) -> None:
    """Return nothing once `lock` is held; print who holds it if that takes longer than saving a record."""
    try:
        lock.acquire(timeout=1, poll_interval=0.005)
    except Timeout:
        owner = _owner_file(path)
        who = (owner.read_text() if owner.exists() else "") or "another process"
        print(f"waiting for {path.name}: {who} is at work on it", flush=True)
        lock.acquire()


# ---- atomic files


def assert_writable(folder: Path) -> None:
    """Return nothing; RecordError unless a file can really be made in `folder`: permissions do not tell."""
    probe = folder / f".probe-{os.getpid()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.write_bytes(b"")
        probe.unlink()
    except OSError as error:
        raise unwritable(folder, error) from error


def put(path: Path, data: bytes) -> None:
    """Return nothing, once `data` is on the disk and not only in its cache."""
    with open(path, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def sync(folder: Path) -> None:
    """Return nothing, once new names in `folder` are on the disk: else a rename is lost with the power."""
    if os.name == "nt":  # Windows opens no folders, and needs none of this
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def move(source: Path, target: Path) -> None:
    """Return nothing; `target` is `source` from one instant to the next, and stays so."""
    os.replace(source, target)
    sync(target.parent)


def render(document: dict) -> bytes:
    """Return the json of a record, one field a line, so that a person and git can compare two of them."""
    lines = []
    for name, value in document.items():
        try:
            lines.append(f" {json.dumps(name)}: {json.dumps(value, allow_nan=False)}")
        except (TypeError, ValueError) as error:
            raise RecordError(f"{name} = {value!r} cannot be kept in a record: {error}.") from error
    return ("{\n" + ",\n".join(lines) + "\n}\n").encode()


# ---- weights


def save_tensors(path: Path, tensors: dict[str, np.ndarray], meta: dict) -> None:
    """Return nothing, once the tensors and `meta` (as json, in the header) are on disk: a safetensors file.

    Atomic: killed at any instant, `path` is what it was or what it was to be.
    """
    path = Path(path)
    # safetensors copies memory as it lies, and would store a transposed array untransposed
    tensors = {name: np.asarray(value, order="C") for name, value in tensors.items()}
    data = safetensors.numpy.save(tensors, metadata={"meta": render(meta).decode()})
    with lock(path):
        temporary = path.with_name(path.name + ".new")
        put(temporary, data)
        move(temporary, path)


def load_tensors(path: Path) -> tuple[dict[str, np.ndarray], dict]:
    """Return the tensors and `meta` of a file written by `save_tensors`; RecordError if it is not whole."""
    try:
        with safetensors.safe_open(path, framework="np") as file:
            meta = json.loads((file.metadata() or {})["meta"])
            return {name: file.get_tensor(name) for name in file.keys()}, meta
    except FileNotFoundError:
        raise RecordError(f"there are no weights at {path}.") from None
    except (safetensors.SafetensorError, KeyError, ValueError, OSError) as error:
        raise RecordError(
            f"{path} does not hold the weights of a run ({type(error).__name__}: {error}): truncated, "
            f"altered, or written by another program. Delete it to train again."
        ) from error
