"""Kill a descent at random moments until it is done, and compare its end with the uninterrupted one.

    python tests/kill_descent.py FOLDER [KILLS]

Each child trains a small stack with a checkpoint after every attempt, and is killed outright. Children are forked,
so that none has to import torch again. After KILLS kills one is let through. Exit status 0 if every level of every
run equals the uninterrupted one bit for bit, and no half-written file was ever believed.
"""

import dataclasses
import os
import random
import signal
import sys
import time
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # a child of a process that has threads could hang
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch  # noqa: E402

from lib import data, descent, nets, train  # noqa: E402

KINDS, SEEDS, LEVELS = ["EWN", "SWN", "no-WN"], [1, 1, 2], [-2, -4, -12]


def descend(folders):
    torch.set_num_threads(1)
    whole = data.load("digits")
    few = dataclasses.replace(whole, **{k: getattr(whole, k)[:100] for k in ("train_x", "train_y", "test_x", "test_y")})
    net = nets.init_(nets.MLP([784, 24, 10], KINDS), SEEDS)
    return train.descend(net, few, SEEDS, LEVELS, folders=folders, batch=16, checkpoint=0.0)[0]


def child(folders):
    """Fork a process that trains; return its number."""
    pid = os.fork()
    if pid == 0:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # its progress bar
        descend(folders)
        os._exit(0)
    return pid


def same(expected, found):
    state, other = expected.net.state_dict(), found.net.state_dict()
    rows = [[row[:-1] for row in d.history[0]] for d in (expected, found)]
    return rows[0] == rows[1] and all(torch.equal(tensor, other[name]) for name, tensor in state.items())


def contents(folder):
    """Return the files that the killed descent has left so far, with the times of their last change."""
    return {path: path.stat().st_mtime_ns for path in Path(folder).rglob("*.safetensors") if "whole" not in path.parts}


def main(folder, kills):
    folders = [Path(folder, f"{kind}-{seed}") for kind, seed in zip(KINDS, SEEDS, strict=True)]
    data.load("digits")  # here, so that no child spends its short life on it
    began = time.monotonic()
    pid = child([Path(folder, "whole", f.name) for f in folders])
    os.waitpid(pid, 0)
    length, rng = time.monotonic() - began, random.Random(0)
    at_work = 0
    for _ in range(kills):
        before = contents(folder)
        pid = child(folders)
        time.sleep(rng.uniform(0, 2 * length / kills))
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        at_work += contents(folder) != before
    os.waitpid(child(folders), 0)
    like = nets.MLP([784, 24, 10], ["EWN"])
    for f in folders:
        for level in LEVELS:
            paths = descent.level_path(Path(folder, "whole", f.name), level), descent.level_path(f, level)
            if not same(*(descent.load(path, like)[0] for path in paths)):
                sys.exit(f"{f.name} at {level} differs from the uninterrupted descent")
    print(f"{kills} kills of a descent of {length:.1f} s, {at_work} after it had got further: levels equal bit for bit")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 30)
