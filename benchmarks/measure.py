"""What the benchmarks share: the clock, the machine and its measured ceiling, the table that is printed and saved.

A benchmark times things in turn, in rounds, within one process: `Report.add` prints a line for each of them, with its
ratio to a named baseline, taken round by round so that what slows the machine slows both; `Report.close` prints the one
ratio that the benchmark is about. With PRUNING_BENCHMARKS set to a folder it also saves all of it there as JSON.
A benchmark of several tables, one a process, lists them: `PIECES = ("one", "two")`; its argument chooses among them.
"""

import functools
import gc
import json
import os
import platform
import statistics
import sys
import time
from pathlib import Path

import torch

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
FOLDER = "PRUNING_BENCHMARKS"
COLUMNS = ("what", "n", "median", "least", "most", "unit", "baseline", "ratio", "share_of_ceiling")
SIDE = 2048  # of the matrices whose product measures the ceiling
STAND_IN = os.environ.get("PRUNING_CARD") == "stand-in"  # for a card, see gpu.sh, whose times say nothing
NOT_HERE = 77  # the exit status of a benchmark that this machine is not made for, as test programs have it


def sized(usual, small):
    """Return what a benchmark works on: the usual, or on a stand-in something that goes the same ways soon."""
    return small if STAND_IN else usual


def need_cuda(name):
    """End the process with the status `NOT_HERE`, and say why, where torch sees no CUDA GPU."""
    if DEVICE != "cuda":
        print(f"{name}: needs a CUDA GPU, and torch sees none here")
        sys.exit(NOT_HERE)


def seconds(function, *arguments, clock=time.perf_counter):
    """Return the time of a call by a clock, the wall's unless told, without Python's search for garbage."""
    return timed(function, *arguments, clock=clock)[0]


def timed(function, *arguments, clock=time.perf_counter):
    """Return (`seconds` of a call, until the device is done; its result)."""
    gc.collect()
    gc.disable()
    _wait()
    began = clock()
    try:
        result = function(*arguments)
        _wait()
        return clock() - began, result
    finally:
        gc.enable()


def _wait():
    if DEVICE == "cuda":
        torch.cuda.synchronize()


def on_threads(count, function, *arguments):
    """Return the result of a call for which torch has so many threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        return function(*arguments)
    finally:
        torch.set_num_threads(before)


def machine():
    """Return what the times depend on: processor or GPU, threads, versions."""
    return {
        "device": torch.cuda.get_device_name() if DEVICE == "cuda" else _processor(), "isa": _instructions(),
        "threads": torch.get_num_threads(), "cores": os.cpu_count(), "torch": torch.__version__,
        "python": platform.python_version(), "date": time.strftime("%Y-%m-%d"),
    }  # fmt: skip


def _instructions():
    """Return the vector instructions that torch uses, and oneDNN where it is bound to fewer."""
    bound = os.environ.get("ONEDNN_MAX_CPU_ISA")
    return torch.backends.cpu.get_cpu_capability() + (f", oneDNN {bound}" if bound else "")


def _processor():
    info = Path("/proc/cpuinfo")
    names = [line for line in info.read_text().splitlines() if line.startswith("model name")] if info.exists() else []
    return names[0].split(":")[1].strip() if names else platform.processor() or platform.machine()


@functools.cache
def ceiling(threads):
    """Return the most float32 operations a second that products of large matrices reach here, with so many threads."""
    a = torch.randn(SIDE, SIDE, device=DEVICE)
    return 2 * SIDE**3 / min(seconds(torch.mm, a, a) for _ in range(6))


def held():
    """Return the most MiB of memory that this process, and not the one that started it, has held (Linux)."""
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) / 1024


def peak():
    """Return the most GiB held so far: of the GPU where there is one, else of this process."""
    return torch.cuda.max_memory_allocated() / 2**30 if DEVICE == "cuda" else held() / 1024


class Report:
    """The table of one benchmark. name: of its file; about: a sentence on what is timed."""

    def __init__(self, name, about):
        self.name, self.about, self.rows, self.times = name, about, [], {}
        where = machine()
        of = f"{where['device']}, {where['isa']}, {where['threads']} threads, torch {where['torch']}"
        print(f"{of}\n{about}; median (range)")

    def add(self, what, times, baseline="", unit="s", flops=0):
        """Print and keep one line; return how many times longer the baseline takes, or None without a baseline.

        times: one per round, the ratio the median over rounds, or of medians where the numbers of rounds differ;
        baseline: `what` of an earlier line; flops: float32 operations of one time, of which the share of the
        machine's ceiling is told (times must be seconds).
        """
        self.times[what] = times
        middle, share, ratio = statistics.median(times), None, None
        if baseline:
            ratio = _ratio(self.times[baseline], times)
        if flops:
            share = flops / middle / ceiling(torch.get_num_threads())
        row = (what, len(times), middle, min(times), max(times), unit, baseline, ratio, share)
        self.rows.append(dict(zip(COLUMNS, row, strict=True)))
        print(f"{what:44}  {line(self.rows[-1])}", flush=True)
        self._save(None)
        return ratio

    def close(self, ratio, digits=1, unit="x"):
        """Print the ratio that the benchmark is about as its last line, and save the table where that is asked for.

        unit: what stands behind the number, where it is not how many times longer something takes.
        """
        self._save(ratio, unit)
        print(f"{self.name}: {ratio:.{digits}f}{unit}")

    def _save(self, ratio, unit="x"):
        """Save the table as far as it is, its ratio None before `close`: what is cut has what it measured."""
        folder = os.environ.get(FOLDER)
        if folder:
            content = {"name": self.name, "about": self.about, "ratio": ratio, "unit": unit, "peak_gib": peak()}
            text = json.dumps(content | {"machine": machine(), "rows": self.rows}, indent=1)
            Path(folder, "part").write_text(text + "\n", "utf-8")
            Path(folder, "part").replace(Path(folder, f"{self.name}.json"))


def _ratio(theirs, ours):
    if len(theirs) != len(ours):
        return statistics.median(theirs) / statistics.median(ours)
    return statistics.median(b / t for b, t in zip(theirs, ours, strict=True))


def line(row):
    """Return a row of a table as text: median, range, number of rounds, ratio and share."""
    text = f"{row['median']:9.4g} {row['unit']}  ({row['least']:.4g} to {row['most']:.4g}, n = {row['n']})"
    text += f"  {row['ratio']:.4g}x of {row['baseline']}" if row["baseline"] else ""
    return text + (f"  {100 * row['share_of_ceiling']:.0f} % of the ceiling" if row["share_of_ceiling"] else "")
