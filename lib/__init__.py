"""The pruning laboratory's library: a folder is a floor, and imports only go down.

draws, workers, errors   every random stream; both cores at work; what goes wrong, told with the way out
kernels/     the hot loops: twins in plain torch, their Triton kernels, and which of both runs: help(lib.kernels)
records/     what a run is called, leaves behind and survives; parameters, provenance, files
data/        data sets on the device            figures/   one look per type, tidy tables
networks/    R networks as one: layers, starts, architectures
pruning/     which weights or units stay: scores, walks, determinants; masks, and what is left of a network
training/    what changes weights over time: trainers, descents, line searches; evaluation, trained networks
explorer/    what one moves in a notebook: a trained network, two methods, a slider
studies/     ewn, challenge, phew, dpp, importance: what knows a paper; arena: all their methods on the same networks

Knows a paper: its study. Changes weights over time: training. Decides what stays: pruning. Is a network: networks.
Knows no network: the ground, all above it in this list. Studies never import each other (tests/test_floors.py).
Notebooks, tests and benchmarks take modules below the studies by name alone: `from lib import nets, runs`.
"""

import importlib
from pathlib import Path


def __getattr__(name):
    """Return the module `name` from its folder; none of those below the studies is called as another one."""
    for path in Path(__file__).parent.glob(f"*/{name}.py"):
        return importlib.import_module(f"lib.{path.parent.name}.{name}")
    raise AttributeError(f"module 'lib' has no attribute {name!r}")
