"""The training notebooks at the smallest size: run in forked children, and compared with an uninterrupted run.

A child is forked from a process that has imported everything, so that a try costs what it computes. What an
uninterrupted run leaves is the expectation: all numbers of each record, bit for bit, but those that are seconds.
"""

import functools
import importlib
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from filelock import FileLock, Timeout
from trials import Child, Steps, kind_of

from lib import descend, disk, parameters, provenance, runs, sets, store, trainer
from lib.errors import RecordError

TIMES = re.compile("seconds|latency")  # in the names of numbers that are measured, and differ each time
PASSING = ("checkpoint of a descent", "state of a training", "list of a stack")  # files that go when all is done
DIGITS = {"dataset": "digits", "seed": [1, 2]}
CONVOLUTIONS = {
    "dataset": "digits32", "seed": [1, 2], "net": "vgg11_bn", "width": 2, "batch_size": 20, "epochs": 2, "drops": [1],
    "augment": False, "rounds": 3,
}  # fmt: skip
NOTEBOOKS = {
    "lin_sep": {"seed": "0..2", "limit": 10.0, "steps": 300},
    "simple_traj": {"seed": "0..2", "limit": 5.0, "steps": 100},
    "xor": {"seed": "0..2", "limit": 5.0, "steps": 200},
    "conv_rate": {"seed": "0..1", "steps": 50},
    "mnist_prune": DIGITS | {"type": ["EWN", "no-WN"], "width": 16, "batch_size": 20, "levels": [-1, -2],
                             "sparsities": [0.0, 0.5]},
    "cifar_prune": {"dataset": "digits32", "type": ["EWN", "no-WN"], "width": 4, "batch_size": 5, "train_examples": 10,
                    "levels": [-1], "sparsities": [0.0, 0.5], "stack": 0},
    "weight_vs_neuron": DIGITS | {"type": ["weight", "small"], "mode": "finetune", "hidden": [20, 10], "epochs": 2,
                                  "retrain_epochs": 2, "batch_size": 20, "sparsities": [0.0, 0.5]},
    "sparse_speed": {"dataset": "digits", "type": ["dense", "csr"], "hidden": [20, 10], "epochs": 2, "batch_size": 20,
                     "repeats": 1, "sparsities": [0.5], "batches": [4]},
    "dpp_prune": DIGITS | {"type": ["dpp_node", "magnitude_edge"], "hidden": [8], "keep": [3], "epochs": 3,
                           "batch_size": 20},
    "dpp_teacher_student": {"seed": [1, 2], "type": ["dpp_node", "random_edge"], "noise": [0.0], "inputs": 20,
                            "samples": 1000, "examples": 500, "tests": 500, "sets": 2},
    "phew_density": CONVOLUTIONS | {"type": ["dense", "phew", "evci_random"], "densities": [0.3, 0.05]},
    "phew_width": CONVOLUTIONS | {"type": ["synflow", "synflow_l2"], "density": 0.05, "shares": [0.0, 0.5]},
    "train_time_prune": DIGITS | {"type": ["none", "contribution", "small"], "epochs": 4, "initial": 2, "increment": 1,
                                  "batch_size": 20},
    "arena": DIGITS | {"type": ["none", "small", "lamp", "magnitude_gradual", "taylor_units"], "hidden": [20],
                       "sparsities": [0.5], "shuffle_at": [0.5], "epochs": 2, "recovery": 1, "batch_size": 20,
                       "holdout": 10, "train_examples": 30, "score_examples": [10]},
    "vae_prune": DIGITS | {"type": ["none", "contribution"], "hidden": [16, 20], "latent": 4, "epochs": 3, "initial": 1,
                           "increment": 1, "batch_size": 20},
}  # fmt: skip


def prepare(train_images=40, test_images=20):
    """Make the digits few, have state kept after every epoch, and import and find out before what children need."""
    rooms = (path.relative_to(runs.ROOT).with_suffix("").parts for path in (runs.ROOT / "lib").rglob("[a-z]*.py"))
    ours = {".".join(room) for room in rooms} - {"lib.kernels.triton_kernels"}
    for module in ("matplotlib.pyplot", "pandas", "torch._dynamo", *sorted(ours)):
        importlib.import_module(module)  # torch's optimizers import torch._dynamo, which takes seconds
    counts, digits = (train_images, test_images), sets.READERS["digits"]
    for name in ("digits", "digits32"):
        sets.READERS[name] = lambda *of: tuple((x[:n], y[:n]) for (x, y), n in zip(digits(*of), counts, strict=True))
        sets.load(name)
    origin = provenance.origin(runs.ROOT)
    provenance.origin, provenance._checksum = lambda root: origin, functools.cache(provenance._checksum)
    *others, _ = trainer.Trainer.__init__.__defaults__
    trainer.Trainer.__init__.__defaults__ = (*others, 0.0)
    descend.descend.__kwdefaults__["checkpoint"] = 0.0


class Notebook:
    """A training notebook with small parameters: what it saves, how long it takes, and by which steps on the disk."""

    def __init__(self, name, values, folder):
        cells = parameters.code_cells(runs.ROOT / "notebooks" / f"{name}.ipynb")
        texts = [parameters.source(cell) for cell in cells]
        last = max(k for k, text in enumerate(texts) if "run.save(" in text)  # the others look at what there is
        self.name, self.values = name, values
        self.cells = [compile(text, f"{name}, cell {k}", "exec") for k, text in enumerate(texts[: last + 1])]
        provenance.code(runs.ROOT / "notebooks" / f"{name}.ipynb")  # known before, in every child
        began = time.monotonic()
        answer = Child(self.run, folder).end()
        self.seconds, self.folder = time.monotonic() - began, Path(folder)
        if "done" not in answer:
            raise RuntimeError(f"{name} does not run uninterrupted: {answer}")
        self.pairs, self.steps = answer["done"]["todo"], answer["done"]["steps"]
        self.expected = {path.name: numbers(store.read(path)) for path in store.files(self.folder / name)}

    def run(self, folder, at=None, fault=None, **values):
        """Return what was to do and the steps taken; for a child, as it changes the process. at, fault: of `Steps`."""
        os.environ["PRUNING_RUNS"] = str(folder)
        steps, namespace = Steps(folder, at, fault), {"display": lambda *_: None}
        for number, cell in enumerate(self.cells):
            exec(cell, namespace)
            if number == 0:
                namespace.update(self.values | values)
        return {"todo": namespace["run"].todo, "steps": steps.taken}

    def look(self, folder, done=False):
        """Return (what is wrong in a folder where nobody is at work, the largest difference from the expectation)."""
        wrong = [f"{path.name} is held by the dead" for path in Path(folder).rglob("*.lock") if held(path)]
        for path in Path(folder).rglob("*.safetensors"):
            wrong += complaint(disk.load_tensors, path)
        paths = store.files(Path(folder, self.name))
        wrong += [text for path in paths for text in complaint(store.read, path)]
        apart = [difference(numbers(store.read(path)), self.expected[path.name]) for path in paths if not wrong]
        if done:
            wrong += [f"{name} is not there" for name in self.expected.keys() - {path.name for path in paths}]
            left = [path.name for path in Path(folder).rglob("*") if path.suffix == ".new" or kind_of(path) in PASSING]
            wrong += [f"{name} stays behind" for name in left if not name.endswith((".lock", ".owner"))]
        return wrong, max(apart, default=0.0)

    def finish(self, folder, **values):
        """Return what `look` does, after a run that nothing interrupts."""
        answer = Child(lambda: self.run(folder, **values)).end()
        wrong, apart = self.look(folder, done=True)
        return ([] if "done" in answer else [f"the next run fails: {answer}"]) + wrong, apart


class Batch(Notebook):
    """A notebook as `run_all.sh --quick` runs it, with Snakemake and a kernel: `call` is an execution of all that."""

    def __init__(self, name, folder):
        self.name, self.folder, began = name, folder, time.monotonic()
        if self.call(folder).wait():
            raise RuntimeError(f"./run_all.sh --quick notebooks/{name}.ipynb fails")
        self.seconds = time.monotonic() - began
        self.expected = {path.name: numbers(store.read(path)) for path in store.files(folder / name)}

    def call(self, folder):
        """Return the started process, in a session of its own as in a terminal of its own."""
        places = {"PRUNING_RUNS": str(folder), "PRUNING_FIGURES": str(folder / "figures"), "PRUNING_VENV": sys.prefix}
        command = [runs.ROOT / "run_all.sh", "--quick", "--cores", "1", f"notebooks/{self.name}.ipynb"]
        nowhere = dict.fromkeys(("stdout", "stderr"), subprocess.DEVNULL)
        return subprocess.Popen(command, env=os.environ | places, start_new_session=True, **nowhere)

    def finish(self, folder):
        status = self.call(folder).wait()
        wrong, apart = self.look(folder, done=True)
        return wrong + ([f"the next call ends with {status}"] if status else []), apart


# ---- comparing


def held(path):
    try:
        with FileLock(path, timeout=0):
            return False
    except Timeout:
        return True


def complaint(read, path):
    """Return the error of reading a file, as a list of none or one."""
    try:
        read(path)
    except RecordError as error:
        return [str(error)]
    return []


def numbers(record):
    """Return all that a record says, `{name: array or text}`, but seconds and where it comes from."""
    of_record = {
        "type": record.type,
        "seed": record.seed,
        "parameters": parameters.scientific(record.parameters),
        "axes": record.axes,
    }
    found = {name: json.dumps(value) for name, value in of_record.items()} | record.scores | record.cost
    found |= {f"array {name}": record.array(name)[0] for name in record.arrays}
    return {name: value for name, value in found.items() if not TIMES.search(name)}


def difference(found, expected):
    """Return 0.0 if every bit is the same, else the largest difference, infinite where things cannot be compared."""
    if found.keys() != expected.keys():
        return np.inf
    largest = 0.0
    for name, value in expected.items():
        a, b = np.asarray(found[name]), np.asarray(value)
        if a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes():
            continue
        if a.dtype.kind not in "fiub" or a.shape != b.shape or (np.isnan(a) != np.isnan(b)).any():
            return np.inf
        largest = max(largest, np.nanmax(np.abs(a.astype(float) - b)))
    return float(largest)
