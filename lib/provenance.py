"""Where a result comes from: the commit, the versions, the machine, and the code that ran, by checksums."""

from __future__ import annotations

import hashlib
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path

from lib.parameters import code_cells, is_parameters, source

COMPUTING = "numpy", "torch", "torchvision", "triton", "scipy", "pandas", "scikit-learn", "pillow", "dppy"


def origin(root: Path) -> dict:
    """Return where a result comes from: commit, versions of what computes, machine. None where unknown."""
    torch = sys.modules.get("torch")  # never imported for this: the workflow must start at once
    status = _git(root, "status", "--porcelain", "--", "lib", "notebooks")
    return {
        "commit": _git(root, "rev-parse", "HEAD"),
        "dirty": None if status is None else bool(status),
        "versions": _versions(torch),
        "tested": _tested(root),
        "platform": platform.platform(),
        "cpu": _cpu(),
        "gpu": torch.cuda.get_device_name() if torch and torch.cuda.is_available() else None,
    }


def _versions(torch) -> dict[str, str | None]:
    """Return the version of Python and of every package that computes; None for one that is not installed.

    Read from what is installed, because importing takes seconds; torch, once imported, says its build too.
    """
    found = {"python": platform.python_version()}
    for name in COMPUTING:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = None
    return found | ({"torch": str(torch.__version__)} if torch else {})


def _tested(root: Path) -> str | None:
    """Return the checksum of the file of tested versions, whether or not they are what is installed."""
    file = root / "workflow" / "tested.txt"
    return _checksum(file.read_text("utf-8")) if file.exists() else None


def _git(root: Path, *arguments: str) -> str | None:
    """Return what git answers, or None if there is no git, no repository or no commit yet."""
    try:
        answer = subprocess.run(
            ["git", "-C", str(root), *arguments], capture_output=True, text=True, timeout=20, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout.strip()


def _cpu() -> str:
    """Return the name of the processor; Linux tells it only in a file."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or platform.machine()


def code(notebook: Path) -> dict[str, str]:
    """Return a checksum of each imported module of lib and of each code cell but the parameters cell."""
    modules = sorted(name for name in sys.modules if name.startswith("lib."))
    checksums = {key: _module(key) for key in (f"{name.replace('.', '/')}.py" for name in modules)}
    for number, cell in enumerate(code_cells(notebook), start=1):
        if not is_parameters(cell):
            checksums[f"code cell {number}"] = _checksum(source(cell))
    return checksums


def _checksum(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _module(key: str) -> str | None:
    """Return the checksum of a module such as "lib/train.py", imported or not; None if there is none."""
    module = sys.modules.get(key.removesuffix(".py").replace("/", "."))
    file = Path(getattr(module, "__file__", None) or Path(__file__).with_name(Path(key).name))
    return _checksum(file.read_text("utf-8")) if file.exists() else None


def edited(stored: dict[str, str], now: dict[str, str]) -> list[str]:
    """Return which files and cells are not what they were; both as `code` returned them."""
    added = [key for key in now if key not in stored and not key.startswith("lib/")]
    # A module that only this process imported is no edit; one that was imported late may not be there yet.
    current = {key: now.get(key) or _module(key) for key in [*stored, *added]}
    return [key for key, checksum in current.items() if stored.get(key) != checksum]
