"""What a campaign of faults is made with: forked children, a disk that fails at a chosen step, a table."""

import builtins
import errno
import io
import json
import os
import re
import select
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

os.environ |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MPLBACKEND": "Agg"}  # threads do not live in forks
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import measure  # noqa: E402

from lib.errors import Told  # noqa: E402

HANGS = 300.0  # seconds after which a child is taken to hang
FILES = {  # kinds of files, by their names
    "lock": r"\.(lock|owner)$",
    "json": r"\.json(\.new)?$",
    "npz": r"\.npz(\.new)?$",
    "level": r"^level-",
    "checkpoint of a descent": r"^towards-",
    "state of a training": r"training[-=]",
    "trained network": r"^network\.",
    "list of a stack": r"^\.saving-",
}


def kind_of(path):
    """Return which of `FILES` a file is, or "folder"."""
    name = os.path.basename(str(path))
    return next((kind for kind, pattern in FILES.items() if re.search(pattern, name)), "folder")


# ---- children


class Child:
    """A forked process at work on `work(*arguments)`; what that returns, or why it does not, comes through a pipe."""

    def __init__(self, work, *arguments):
        self.pipe, there = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            try:
                self._work(there, work, arguments)
            finally:
                os._exit(1)
        os.close(there)

    def _work(self, there, work, arguments):
        for stream in (1, 2):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            answer = {"done": work(*arguments)}
        except BaseException as error:  # a killed one says nothing, everything else is told
            answer = {"error": f"{type(error).__name__}: {error}", "told": isinstance(error, Told)}
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
        os.write(there, json.dumps(answer).encode())

    def end(self, sent=None, limit=HANGS):
        """Return {"done": …}, {"error": …, "told": …} or, of one that was killed, {}; sent: a signal to send first."""
        if sent:
            os.kill(self.pid, sent)
        text, until = b"", time.monotonic() + limit
        while select.select([self.pipe], [], [], max(0.0, until - time.monotonic()))[0]:
            more = os.read(self.pipe, 2**16)
            text += more
            if not more:
                break
        else:
            os.kill(self.pid, signal.SIGKILL)
            text = json.dumps({"error": f"it hung for {limit} s", "told": False}).encode()
        os.close(self.pipe)
        os.waitpid(self.pid, 0)
        return json.loads(text or "{}")


# ---- steps on the disk


def die():
    """End this process as a power cut of its own would."""
    os.kill(os.getpid(), signal.SIGKILL)


def full():
    """Raise what a full disk raises."""
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


class Steps:
    """The calls by which this process changes what is below a folder, in order; from the `at`-th on, they fail.

    Each is "write json", "fsync json", "replace json" and so on. A write that fails is half done. Installed for good:
    in a child.
    """

    def __init__(self, folder, at=None, fault=None):
        self.folder, self.at, self.fault, self.taken, self.last = str(folder), at, fault, [], ""
        for name in ("fsync", "replace", "mkdir", "open"):
            setattr(os, name, self._call(name, getattr(os, name)))
        self._open = io.open
        builtins.open = io.open = self._file

    def step(self, what, path, half=None):
        """Count one call, or let it fail."""
        self.last = str(path)
        if self.last.startswith(self.folder):
            self.taken.append(f"{what} {kind_of(path)}")
            if self.at is not None and len(self.taken) > self.at:
                if half:
                    half()
                self.fault()

    def _call(self, name, action):
        def act(*given, **options):
            # A folder that is there and a file that is there need no room.
            old = name == "mkdir" and os.path.exists(given[0])
            old = old or (name == "open" and (not given[1] & os.O_CREAT or os.path.exists(given[0])))
            if not old:
                self.step(name, {"fsync": self.last, "replace": given[-1]}.get(name, given[0]))
            return action(*given, **options)

        return act

    def _file(self, path, mode="r", *more, **options):
        if isinstance(path, int) or mode.startswith("r"):
            return self._open(path, mode, *more, **options)
        if not os.path.exists(path):
            self.step("open", path)
        return Written(self._open(path, mode, *more, **options), path, self.step)


class Written:
    """A file whose every writing is a step."""

    def __init__(self, file, path, step):
        self.file, self.path, self.step = file, path, step

    def write(self, content):
        def half():
            self.file.write(content[: len(content) // 2])
            self.file.flush()

        self.step("write", self.path, half)
        return self.file.write(content)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.file.close()

    def __getattr__(self, name):
        return getattr(self.file, name)


# ---- the system


def mount(folder, options):
    """Return whether a disk in memory is mounted at a folder: root may."""
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    return shutil.which("mount") and subprocess.run(command, capture_output=True, check=False).returncode == 0


def flip_bit(path, rng):
    """Flip one bit of a file; of a link, of a copy in its place."""
    content = bytearray(path.read_bytes())
    content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    path.unlink()
    path.write_bytes(content)


def processes_of(folder):
    """Return the processes that know a folder from their environment; none where the system does not tell."""
    return [path for path in Path("/proc").glob("[0-9]*/environ") if mentions(path, folder)]


def mentions(path, folder):
    try:
        return f"PRUNING_RUNS={folder}".encode() in path.read_bytes().split(b"\0") and int(path.parts[2]) != os.getpid()
    except OSError:  # it has ended meanwhile, or is somebody else's
        return False


# ---- the table

COUNTS = ("tried", "survived", "lost", "silent")


@dataclass
class Row:
    """One kind of fault in the table."""

    what: str
    tried: int = 0
    survived: int = 0
    lost: int = 0
    silent: int = 0
    apart: float = 0.0
    wrong: list = field(default_factory=list)

    def add(self, lost, silent=(), apart=0.0, of=""):
        """Count one try: `lost` and `silent` say what is wrong."""
        lost = [*lost, *([f"a difference of {apart}"] if apart else [])]
        self.tried += 1
        self.survived += not lost and not silent
        self.lost += bool(lost)
        self.silent += bool(silent)
        self.apart = max(self.apart, apart)
        self.wrong += [f"{self.what}, {of}: {text}" for text in (*lost, *silent)]

    def join(self, other):
        """Count the tries of another row too."""
        for name in (*COUNTS, "wrong"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.apart = max(self.apart, other.apart)


HEAD = """# Faults

Written by `python benchmarks/faults.py`. Each fault was tried on {notebooks} training notebooks at the smallest size,
whose state is kept after every epoch, and each try ended with a run that nothing interrupts. *Survived*: whatever was
there was whole and as an uninterrupted run leaves it, no lock was held by the dead, and the last run ended with the
expected records and nothing beside them. *Lost*: anything else. *Silent*: not told, or not with the file and the way
out, where a process lived to tell. *Difference*: the largest of any score or array from the uninterrupted run; 0 is bit
for bit. {device}, torch {torch}, {date}.

| fault | tried | survived | lost | silent | difference |
|---|---|---|---|---|---|
"""


def page(rows, notebooks):
    """Return the table as Markdown; notebooks: how many."""
    lines = [f"| {r.what} | {r.tried} | {r.survived} | {r.lost} | {r.silent} | {r.apart:.3g} |" for r in rows]
    return HEAD.format(notebooks=notebooks, **measure.machine()) + "\n".join(lines) + "\n"
