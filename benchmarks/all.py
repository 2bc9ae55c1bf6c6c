"""All benchmarks, or those named, each in a process of its own; their tables in `results/`, one file a machine.

A benchmark that fails is listed at the end, and the file keeps what it had of it, or else what was measured before;
so is one that needs another machine.
A benchmark of several tables is named piece by piece, as `whole_tables.masks`; `page` names what README.md tells,
but for `deep_descent`, which begins with descents of an hour.
With --new a table is not made again that this machine made with the files that lib/ and benchmarks/ hold now, and what
failed with them is not tried again: so a run in pieces, each killed after some minutes, comes to its end. --limit ends
a benchmark after so many seconds.
What README.md claims is written from the file, and its figure drawn.
Nothing else should run meanwhile. Run: python benchmarks/all.py [--new] [--limit SECONDS] [NAME ...]
"""

import argparse
import ast
import hashlib
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]
import measure  # noqa: E402
import page  # noqa: E402

from lib import disk  # noqa: E402

NOT_BENCHMARKS = (
    "all",
    "measure",
    "workloads",
    "faults",
    "trials",
    "smallest",
    "page",
)  # faults.py makes a table of its own
ELSEWHERE = "needs a CUDA GPU"


def names():
    """Return the names of all tables: of a benchmark, or of each of its pieces."""
    found = sorted(path for path in HERE.glob("[!.]*.py") if path.stem not in NOT_BENCHMARKS)
    return [f"{path.stem}{piece}" for path in found for piece in _pieces(path)]


def _pieces(path):
    """Return what the names of a file's tables end with, from its line `PIECES = (...)`, or nothing of one table."""
    for statement in ast.parse(path.read_text("utf-8")).body:
        if isinstance(statement, ast.Assign) and ast.unparse(statement.targets[0]) == "PIECES":
            return [f".{piece}" for piece in ast.literal_eval(statement.value)]
    return [""]


def code():
    """Return a checksum of all files that a time depends on."""
    files = sorted([*HERE.glob("[!.]*.py"), *(HERE.parent / "lib").rglob("[!.]*.py")])
    return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()[:16]


def run(name, limit=None):
    """Return (the table of one benchmark, or None, why it is not whole or there is none); what it prints is printed."""
    stem, _, piece = name.partition(".")
    command = [sys.executable, str(HERE / f"{stem}.py"), *([piece] if piece else [])]
    with tempfile.TemporaryDirectory() as folder:
        saved = Path(folder, f"{name}.json")
        try:
            status = subprocess.run(command, env=os.environ | {measure.FOLDER: folder}, timeout=limit).returncode
            reason = f"ended with status {status}" if status else "" if saved.exists() else "saved no table"
        except subprocess.TimeoutExpired:
            status, reason = None, f"took more than {limit:g} s"
        if status == measure.NOT_HERE:
            return None, ELSEWHERE
        table = json.loads(saved.read_text("utf-8")) | {"code": code()} if saved.exists() else None
        return table, reason


# ---- the page

HEAD = """# Benchmarks

Written by `python benchmarks/all.py`. Ratios are of times measured in turn in one process, taken round by round; the
ceiling is the best float32 matrix product of the same process.
"""
COLUMNS = ("what", "median", "least", "most", "n", "baseline", "ratio", "of the ceiling")


def text(tables):
    """Return the tables `{name: table}` as Markdown."""
    return "\n".join([HEAD, *(_section(name, table) for name, table in sorted(tables.items()))])


def _section(name, table):
    where = table["machine"]
    isa = f" ({where['isa']})" if "isa" in where else ""
    about = (
        f"{table['about']}. {where['device']}{isa}, {where['threads']} of {where['cores']} cores,"
        f" torch {where['torch']}, {where['date']}; peak memory {table['peak_gib']:.2f} GiB."
    )
    rows = [COLUMNS, ["---"] * len(COLUMNS), *map(_row, table["rows"])]
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    unit = table.get("unit", "x")
    ratio = "not whole" if table["ratio"] is None else f"{table['ratio']:.3g}{'×' if unit == 'x' else unit}"
    return "\n".join([f"## {name}: {ratio}", "", about, "", *lines, ""])


def _row(row):
    numbers = [f"{row[key]:.4g} {row['unit']}" for key in ("median", "least", "most")]
    ratio = f"{row['ratio']:.3g}×" if row["baseline"] else ""
    share = f"{100 * row['share_of_ceiling']:.0f} %" if row["share_of_ceiling"] else ""
    return [row["what"], *numbers, str(row["n"]), row["baseline"], ratio, share]


class Results:
    """The tables of this machine, in `results/`: as JSON, as Markdown, and what came to nothing, with the reason."""

    def __init__(self):
        stem = HERE / "results" / re.sub(r"\W+", "-", measure.machine()["device"])
        self.kept, self.shown, self.without = (Path(f"{stem}{end}") for end in (".json", ".md", "-without.txt"))
        self.kept.parent.mkdir(exist_ok=True)
        self.tables = json.loads(self.kept.read_text("utf-8")) if self.kept.exists() else {}
        lines = self.without.read_text("utf-8").splitlines() if self.without.exists() else []
        self.reasons = dict(line.split(": ", 1) for line in lines)

    def known(self, name):
        """Return whether the present files were tried before on this machine."""
        return code() in (self.tables.get(name, {}).get("code"), self.reasons.get(name, "").rpartition(", code ")[2])

    def put(self, name, table, reason):
        """Keep a table, and why it is not whole or there is none; one that is not whole replaces no other."""
        self.reasons.pop(name, None)
        if reason:
            self.reasons[name] = f"{reason}, code {code()}"
        if table and not (reason and name in self.tables):
            self.tables[name] = table
            disk.put(self.kept, (json.dumps(self.tables, indent=1) + "\n").encode())
            disk.put(self.shown, text(self.tables).encode())
            if measure.DEVICE == "cpu":  # of which the page tells
                page.write(self.tables, self.kept.parent)
        lines = [f"{name}: {reason}\n" for name, reason in sorted(self.reasons.items())]
        disk.put(self.without, "".join(lines).encode())


def main(given):
    parser = argparse.ArgumentParser()
    parser.add_argument("names", nargs="*")
    parser.add_argument("--new", action="store_true")
    parser.add_argument("--limit", type=float)
    asked = parser.parse_args(given)
    unknown = sorted({*asked.names} - {*names(), "page"})
    if unknown:
        sys.exit(f"no benchmark is called {', '.join(unknown)}; there are page, {', '.join(names())}")
    told = [*page.PIECES, *dict.fromkeys(name for name, *_ in page.OTHERS if name != "deep_descent")]  # takes an hour
    results, without = Results(), {}
    for name in [piece for given in asked.names or names() for piece in (told if given == "page" else [given])]:
        if asked.new and results.known(name):
            continue
        print(f"== {name}", flush=True)
        table, reason = run(name, asked.limit)
        results.put(name, table, reason)
        without |= {name: reason} if reason else {}
    print(f"written: {results.shown}")
    for name in (name for name, reason in without.items() if reason == ELSEWHERE):
        print(f"{name} {ELSEWHERE}")
    failed = [f"{name} ({reason})" for name, reason in without.items() if reason != ELSEWHERE]
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main(sys.argv[1:])
