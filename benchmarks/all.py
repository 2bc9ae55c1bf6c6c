"""All benchmarks, or those named, each in a process of its own; their tables in `results/`, one file a machine.

A benchmark that fails is listed at the end, and the file keeps what it had of it. Nothing else should run meanwhile.
Run: python benchmarks/all.py [NAME ...]
"""

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

from lib import disk  # noqa: E402

NOT_BENCHMARKS = ("all", "measure")


def names():
    """Return the names of all benchmarks."""
    return sorted(path.stem for path in HERE.glob("*.py") if path.stem not in NOT_BENCHMARKS)


def run(name):
    """Return the table of one benchmark, or None where it fails; what it prints is printed."""
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run([sys.executable, str(HERE / f"{name}.py")], env=os.environ | {measure.FOLDER: folder})
        saved = Path(folder, f"{name}.json")
        return json.loads(saved.read_text("utf-8")) if done.returncode == 0 and saved.exists() else None


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
    about = (
        f"{table['about']}. {where['device']}, {where['threads']} of {where['cores']} cores, torch {where['torch']},"
        f" {where['date']}; peak memory {table['peak_gib']:.2f} GiB."
    )
    rows = [COLUMNS, ["---"] * len(COLUMNS), *map(_row, table["rows"])]
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([f"## {name}: {table['ratio']:.3g}×", "", about, "", *lines, ""])


def _row(row):
    numbers = [f"{row[key]:.4g} {row['unit']}" for key in ("median", "least", "most")]
    ratio = f"{row['ratio']:.3g}×" if row["baseline"] else ""
    share = f"{100 * row['share_of_ceiling']:.0f} %" if row["share_of_ceiling"] else ""
    return [row["what"], *numbers, str(row["n"]), row["baseline"], ratio, share]


def main(chosen):
    unknown = sorted(set(chosen) - set(names()))
    if unknown:
        sys.exit(f"no benchmark is called {', '.join(unknown)}; there are {', '.join(names())}")
    stem = re.sub(r"\W+", "-", measure.machine()["device"])
    kept, shown, failed = HERE / "results" / f"{stem}.json", HERE / "results" / f"{stem}.md", []
    kept.parent.mkdir(exist_ok=True)
    tables = json.loads(kept.read_text("utf-8")) if kept.exists() else {}
    for name in chosen or names():
        print(f"== {name}", flush=True)
        found = run(name)
        if found is None:
            failed.append(name)
            continue
        tables[name] = found
        disk.put(kept, (json.dumps(tables, indent=1) + "\n").encode())
        disk.put(shown, text(tables).encode())
    print(f"written: {shown}")
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main(sys.argv[1:])
