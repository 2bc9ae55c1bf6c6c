"""Files that survive being killed: locks that die with their owner, writes that happen wholly or not."""

import hashlib
import json
import os
import socket
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import numpy as np
import safetensors
import safetensors.numpy
from filelock import FileLock, Timeout

from lib.errors import RecordError, instance, listed, unwritable

# ---- places


def place(root: Path, variable: str, otherwise: str) -> Path:
    """Return the folder that an environment variable names, `~` expanded, below `root` if relative; else another."""
    return root / Path(os.environ.get(variable) or otherwise).expanduser()


# ---- locks


_locks: dict[tuple[int, Path], FileLock] = {}  # one object per file and process: that makes it re-entrant


def acquire(path: Path) -> None:
    """Return nothing, once this process holds the lock of `path`, however long another one keeps it.

    The operating system frees the lock when its owner dies. Acquiring twice in one process is allowed and
    needs two releases. After a second of waiting, one printed line says who is at work.
    """
    path = Path(path).absolute()
    lock = _lock(path)
    if lock.is_locked:
        lock.acquire()
        return
    try:
        (path.parent / ".locks").mkdir(parents=True, exist_ok=True)
        _wait(lock, path)
        # A file of its own: opening a lock file may empty it, so it cannot hold the name of its owner.
        notebook = os.environ.get("JPY_SESSION_NAME")  # from Jupyter, which shows a person no process's number
        of = f" ({notebook})" if notebook else ""
        _owner_file(path).write_text(f"process {os.getpid()} on {socket.gethostname()}{of}", "utf-8")
    except OSError as error:
        lock.release()
        raise unwritable(path.parent, error) from error


def release(path: Path) -> None:
    """Return nothing; undo one `acquire` of `path`."""
    _lock(Path(path).absolute()).release()
    if not all(_at_work(folder) for _, folder in _saved):
        discard()


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
        who = (owner.read_text("utf-8") if owner.exists() else "") or "another process"
        print(f"waiting for {path.name}: {who} has it until it saves it or is shut down", flush=True)
        lock.acquire()


# ---- files that are not needed for ever


_spent: list[tuple[Path, Path]] = []  # a file and a folder: what came of it is still to be saved there
_saved: list[tuple[Path, Path]] = []  # some of it is


def spend(files: list[Path], folder: Path) -> None:
    """Return nothing; files go once this process has saved what came of them: now, if it saves nothing in `folder`.

    There, whoever computes a record holds a lock until it is saved. Of several that came before the first was saved the
    last may still fail: so files go with the last lock, or when more comes that is to be saved.
    """
    _spent.extend((file, folder) for file in files)
    if not _at_work(folder):
        saved(), discard()


def saved() -> None:
    """Return nothing; note that a record was saved."""
    _saved.extend(_spent)
    _spent.clear()


def discard() -> None:
    """Return nothing; delete what `spend` was told of before a record was saved."""
    while _saved:
        _saved.pop()[0].unlink(missing_ok=True)


def _at_work(folder: Path) -> bool:
    """Return whether this process holds a lock below `folder`."""
    own = (lock for (process, path), lock in _locks.items() if process == os.getpid() and path.is_relative_to(folder))
    return any(lock.is_locked for lock in own)


# ---- atomic files


INTENT = ".saving-"  # begins the name of a list of files that are moved into place together


def assert_writable(folder) -> Path:
    """Return `folder`, there and with ~ expanded; RecordError unless it takes a file of 1 MiB: nothing less tells.

    The file has no name where the system can do without, so nothing stays behind.
    """
    folder = Path(instance("folder is", folder, str | os.PathLike, "the path of a folder")).expanduser()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as probe:
            probe.write(bytes(2**20))
            probe.flush()
            os.fsync(probe.fileno())
    except OSError as error:
        raise unwritable(folder, error) from error
    return folder


@contextmanager
def writing(path: Path, *temporary: Path) -> Iterator[None]:
    """Return a context in which an OSError becomes the RecordError that names `path`, and `temporary` files go.

    Else a full disk would keep them, and stay full. They go too where the RecordError of one of several is passed on.
    """
    try:
        yield
    except (OSError, RecordError) as error:
        for file in temporary:
            with suppress(OSError):
                file.unlink()
        if isinstance(error, RecordError):
            raise
        raise unwritable(path, error) from error


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


def replace(path: Path, data: bytes) -> None:
    """Return nothing; `path` holds `data` from one instant to the next. Killed or out of room before: what it held."""
    with writing(path, new(path)):
        put(new(path), data)
        move(new(path), path)


@contextmanager
def together(targets: list[Path], folder: Path) -> Iterator[None]:
    """Return a context in which every target is written as `<target>.new`; at its end all are there or, killed, none.

    A list of them in `folder`, there from one instant to the next, is what decides: `recover` makes the moves that a
    killed process left. Use it under the locks of the targets.
    """
    names = [os.path.relpath(target, folder) for target in targets]
    intent = folder / _intent(names)
    with ExitStack() as held:
        with writing(targets[0], new(intent), *map(new, targets)):
            yield
            held.enter_context(lock(intent))
            put(new(intent), json.dumps(names).encode())
            for place in {target.parent for target in targets}:
                sync(place)
            move(new(intent), intent)
        _finish(intent)


def recover(folder: Path) -> None:
    """Return nothing; make the moves in `folder` that a process left which was killed at the end of `together`."""
    for intent in sorted(Path(folder).glob(INTENT + 16 * "[0-9a-f]")):
        with lock(intent):  # a living one is at it itself
            if intent.exists():
                _finish(intent)


def _intent(names: list[str]) -> str:
    return f"{INTENT}{hashlib.sha256(repr(names).encode()).hexdigest()[:16]}"


def _finish(intent: Path) -> None:
    try:
        names = json.loads(intent.read_bytes())
    except (OSError, ValueError):
        names = None
    if intent.name != _intent(names):
        raise RecordError(f"{intent} is damaged: it does not list what a killed process was saving. Delete it.")
    targets = [intent.parent / name for name in names]
    with writing(targets[0]):  # what is not moved stays: the list stands, and who comes next goes on
        for target in targets:
            if new(target).exists():
                os.replace(new(target), target)
        for place in {target.parent for target in targets}:
            if place.exists():  # else somebody deleted it since, with all that was moved there
                sync(place)
        intent.unlink()


def new(path: Path) -> Path:
    """Return where what is to become `path` is written first."""
    return path.with_name(path.name + ".new")


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


def save_tensors(
    path: Path, tensors: dict[str, np.ndarray], meta: dict, later: bool = False, packed: bool = False
) -> None:
    """Return nothing, once the tensors and `meta` (as json, in the header) are on disk: a safetensors file.

    With them goes a digest of both, which `load_tensors` checks. What the file holds (seed, type, recipe, level)
    belongs into `meta`, to be compared by `assert_holds`. Atomic: killed at any instant, `path` is what it was or
    what it was to be. later: it waits beside `path` for `together`. packed: see `_packed`.
    """
    path = Path(path)
    # safetensors copies memory as it lies, and would store a transposed array untransposed
    tensors = {name: np.asarray(value, order="C") for name, value in tensors.items()}
    if packed:
        tensors, meta = _packed(tensors, meta)
    text = render(meta).decode()
    data = safetensors.numpy.save(tensors, metadata={"meta": text, "digest": _digest(tensors, text)})
    with lock(path), writing(path, new(path)):
        put(new(path), data)
        if not later:
            move(new(path), path)


def load_tensors(path: Path) -> tuple[dict[str, np.ndarray], dict]:
    """Return the tensors and `meta` of a file written by `save_tensors`; RecordError unless both are as written."""
    try:
        with safetensors.safe_open(path, framework="np") as file:
            header = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}
        if header.keys() != {"meta", "digest"}:
            raise ValueError("a digest of its content and what it holds are to stand in its header")
        if header["digest"] != _digest(tensors, header["meta"]):
            raise ValueError("its content is not what its digest says")
        return _unpacked(tensors, json.loads(header["meta"]))
    except FileNotFoundError:
        raise RecordError(f"there are no weights at {path}.") from None
    except (safetensors.SafetensorError, LookupError, TypeError, ValueError, OSError) as error:
        told = f"{path} does not hold the weights of a run ({type(error).__name__}: {error}): truncated, altered, or"
        way_out = "Restore it from a copy, or delete it to make it again."
        raise RecordError(f"{told} written by another program or an earlier version. {way_out}") from error


def _packed(tensors: dict[str, np.ndarray], meta: dict) -> tuple[dict[str, np.ndarray], dict]:
    """Return tensors and `meta` with what is mostly zero as the rest and a bit for each place, where that is less."""
    shapes, made = {}, dict(tensors)
    for name, tensor in tensors.items():
        if tensor.dtype.kind in "fiu":
            there = tensor.reshape(-1).view(f"u{tensor.itemsize}") != 0  # of the bits, so that -0.0 comes back
            rest, bits = tensor.reshape(-1)[there], np.packbits(there)
            less = rest.nbytes + bits.nbytes + 512 < tensor.nbytes  # with their names, shapes, and a little
            if less and f"{name} bits" not in tensors:
                made |= {name: rest, f"{name} bits": bits}
                shapes[name] = tensor.shape
    return made, meta | {"packed": shapes}


def _unpacked(tensors: dict[str, np.ndarray], meta: dict) -> tuple[dict[str, np.ndarray], dict]:
    """Return the tensors and `meta` that `_packed` was given."""
    for name, shape in meta.pop("packed", {}).items():
        whole = np.zeros(shape, tensors[name].dtype)
        there = np.unpackbits(tensors.pop(f"{name} bits"), count=whole.size).astype(bool)
        whole.reshape(-1)[there] = tensors[name]
        tensors[name] = whole
    return tensors, meta


def _digest(tensors: dict[str, np.ndarray], meta: str) -> str:
    """Return a checksum of all that a file holds: every tensor's name, type, shape and bytes, and its `meta`."""
    found = hashlib.sha256(meta.encode())
    for name, tensor in sorted(tensors.items()):
        found.update(f"\n{json.dumps(name)} {tensor.dtype.str} {tensor.shape}\n".encode())
        found.update(np.ascontiguousarray(tensor).reshape(-1).view(np.uint8))
    return found.hexdigest()


def assert_holds(path: Path, found: dict, asked: dict, way_out: str) -> None:
    """Return nothing; RecordError unless what a file says that it holds is what was asked for.

    found: from the file's `meta`, such as {"type": "EWN", "seed": 21, "level": -10}; asked: the same of what is wanted.
    An entry that only one of them has is a difference too. way_out: a sentence that says what to do.
    """
    asked = json.loads(render(asked))  # as it would come back from a file: lists for tuples
    nothing = object()
    differ = [name for name in {**asked, **found} if found.get(name, nothing) != asked.get(name, nothing)]
    if differ:
        holds, wanted = (
            listed(f"{name} {entries[name]!r}" if name in entries else f"no {name}" for name in differ)
            for entries in (found, asked)
        )
        raise RecordError(f"{path} holds {holds}; asked for is {wanted}. {way_out}")
