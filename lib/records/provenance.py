"""Where a result comes from: the commit, the versions, the machine, and the code that ran, by checksums."""

import functools
import hashlib
import io
import json
import os
import platform
import re
import subprocess
import sys
import tokenize
from importlib import metadata
from pathlib import Path

from lib.records.parameters import code_cells, is_parameters, source

COMPUTING = "numpy", "torch", "torchvision", "triton", "scipy", "pandas", "scikit-learn", "pillow", "dppy"
# What finds, keeps, names and shows results, and cannot change a number of one.
APART = re.compile(r"lib/(errors|figures/\w+|records/\w+|studies/\w+/(figures|names|standings|words))\.py")
MARKS = {tokenize.NEWLINE: "\n", tokenize.INDENT: " ", tokenize.DEDENT: "\b", tokenize.COMMENT: "", tokenize.NL: ""}


def origin(root: Path) -> dict:
    """Return where a result comes from: commit, versions of what computes, machine. None where unknown."""
    torch = sys.modules.get("torch")  # never imported for this: the workflow must start at once
    status = _git(root, "status", "--porcelain", "--", "lib", "notebooks")
    tested = root / "workflow" / "tested.txt"
    return {
        "commit": _git(root, "rev-parse", "HEAD"),
        "dirty": None if status is None else bool(status),
        "versions": _versions(torch),
        "tested": _sha256(tested.read_text("utf-8")) if tested.exists() else None,  # installed or not
        "platform": platform.platform(),
        "cpu": _cpu(),
        # Which the processor has for torch, and which oneDNN is limited to, None for no limit: processors of one name
        # differ in it, and so do the last bits of what they compute.
        "instructions": {
            "torch": torch.backends.cpu.get_cpu_capability() if torch else None,
            "onednn": os.environ.get("ONEDNN_MAX_CPU_ISA") or os.environ.get("DNNL_MAX_CPU_ISA"),
        },
        "gpu": torch.cuda.get_device_name() if torch and torch.cuda.is_available() else None,
    }


@functools.cache  # each is read from a file
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


def _git(root: Path, *arguments: str) -> str | None:
    """Return what git answers, or None if there is no git, no repository or no commit yet."""
    try:
        command = ["git", "-C", str(root), *arguments]
        answer = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout.strip()


@functools.cache
def _cpu() -> str:
    """Return the name of the processor; Linux tells it only in a file."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or platform.machine()


def code(notebook: Path) -> dict[str, str]:
    """Return a checksum of each imported module of lib that can change a number, and of each code cell likewise."""
    return {key: _checksum(text) for key, text in texts(notebook).items()}


def texts(notebook: Path) -> dict[str, str]:
    """Return the sources of the imported modules of lib that can change a number, and of the notebook's code cells."""
    modules = [name for name, m in sys.modules.items() if name.startswith("lib.") and not hasattr(m, "__path__")]
    keys = sorted(f"{name.replace('.', '/')}.py" for name in modules)
    found = {key: _module(key) for key in keys if not APART.fullmatch(key)}
    return {key: text for key, text in found.items() if text is not None} | _cells(code_cells(notebook))


def _cells(cells: list[dict]) -> dict[str, str]:
    """Return the sources of code cells by their number, without the parameters, which a record keeps as values."""
    return {f"code cell {n}": source(cell) for n, cell in enumerate(cells, start=1) if not is_parameters(cell)}


def _module(key: str) -> str | None:
    """Return the source of a module such as "lib/training/descend.py", imported or not; None if there is none."""
    module = sys.modules.get(key.removesuffix(".py").replace("/", "."))
    file = Path(getattr(module, "__file__", None) or Path(__file__).parents[2] / key)
    return file.read_text("utf-8") if file.exists() else None


@functools.lru_cache(maxsize=256)
def _checksum(text: str) -> str:
    """Return a checksum of what a source does: comments, docstrings and layout change nothing."""
    try:
        tokens = list(tokenize.generate_tokens(io.StringIO(text).readline))
    except (tokenize.TokenError, SyntaxError):  # a cell that does not run either
        tokens = [tokenize.TokenInfo(tokenize.NAME, text, (1, 0), (1, 0), "")] * 2
    found, start, told = [], True, False
    for token, after in zip(tokens, tokens[1:], strict=False):
        docstring = token.type == tokenize.STRING and start and after.type in MARKS
        if not docstring and not (told and token.type == tokenize.NEWLINE):
            found.append(MARKS.get(token.type, token.string))
        start, told = token.type in MARKS and (start or token.type == tokenize.NEWLINE), docstring
    # From Python 3.12 on an f-string is several tokens, of which doubled braces are single.
    return "~" + _sha256("".join(found).replace("{{", "{").replace("}}", "}"))


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def edited(stored: dict[str, str], now: dict[str, str]) -> list[str]:
    """Return which files and cells do something else than when `code` returned `stored`; now: `texts`.

    The checksums of older records are of whole texts, without "~".
    """
    added = [key for key in now if key not in stored and not key.startswith("lib/")]
    # A module that only this process imported is no edit; one that was imported late may not be there yet.
    current = {key: now.get(key) or _module(key) for key in [*stored, *added] if not APART.fullmatch(key)}
    return [
        key for key, text in current.items() if text is None or stored.get(key) not in (_checksum(text), _sha256(text))
    ]


# ---- what git says


def kept(root: Path, folder: Path) -> set[Path]:
    """Return the files of a folder that git keeps and nobody changed since; none without git."""
    asked = ("ls-files",), ("diff", "--relative", "--name-only", "HEAD")
    tracked, changed = (_git(root, *command, "-z", "--", str(folder)) for command in asked)
    names = set((tracked or "").split("\0")) - set((changed or "").split("\0"))
    return {root / name for name in names if name} if changed is not None else set()


def edited_since_commit(root: Path, notebook: Path, now: dict[str, str]) -> list[str]:
    """Return which files and cells do something else than in the last commit: nothing in a fresh clone.

    For records that git keeps. That they belong to the code beside them is the repository's word; the code that made
    them may since have been moved, renamed or rearranged. now: `texts`.
    """
    changed = (_git(root, "diff", "--relative", "--name-only", "HEAD", "--", "lib", "notebooks") or "").splitlines()
    name = f"notebooks/{notebook.name}"
    before = {key: _git(root, "show", f"HEAD:./{key}") for key in {*changed} & {*now, name}}
    committed = {key: before.get(key, text) or "" for key, text in now.items()}
    if name in before:
        cells = json.loads(before[name] or '{"cells": []}')["cells"]
        committed = {key: text for key, text in committed.items() if key.startswith("lib/")}
        committed |= _cells([cell for cell in cells if cell["cell_type"] == "code"])
    return edited({key: _checksum(text) for key, text in committed.items()}, now)
