"""Each Triton kernel beside its twin in torch, eager and compiled by torch.compile; the numbers of `fused.MEASURED`.

On a GPU the last line is the least by which a kernel beats the faster of its twins, and a line for `MEASURED` is
printed for each kernel that does. Kernels need a GPU: on a CPU only the twins are timed, eager beside compiled. Where a
kernel fails, that is told, and the others are measured.
Run: python benchmarks/kernels.py [rounds]
"""

import math
import os
import sys
import traceback
from pathlib import Path
from unittest.mock import patch

import torch

sys.path[:0] = [str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parents[1])]
from measure import DEVICE, STAND_IN, Report, machine, seconds, sized  # noqa: E402

from lib import dpp, fused, twins  # noqa: E402

# Of one time, so that the clock and the wait for the GPU do not count; fewer of what takes long, as a twin on the host.
CALLS, SPAN = {"cuda": sized(200, 1), "cpu": 5}[DEVICE], 0.05  # seconds
MATRICES = sized(500, 1)
LINEAR = sized((9, 128, 784, 1024), (3, 5, 37, 20))  # runs, examples, inputs, units


def log_loss():
    """Nine runs, a batch of 128, ten classes: a step of the MNIST descent."""
    z, y = torch.randn(9, 128, 10, device=DEVICE) * 5, torch.randint(10, (9, 128), device=DEVICE)
    return twins.log_loss_and_gradient, (z, y), True


def accept():
    """Blocks of 64 candidates of 500 units' likelihood matrices; the twin runs on the CPU and cannot be compiled."""
    found = torch.randn(MATRICES, 64, 300, dtype=torch.float64, device=DEVICE)
    coins = torch.rand(MATRICES, 64, dtype=torch.float64, device=DEVICE)
    left = torch.full((MATRICES,), 40, device=DEVICE)
    return dpp.accept, (found @ found.mT, coins, left), False


def linear():
    """The hidden layer of nine MNIST descents, a type after the other, on a batch of 128."""
    runs, examples, inputs, units = LINEAR
    shapes = (runs, examples, inputs), (runs, units, inputs), (runs, units), (runs, units)
    x, v, s, bias = (torch.randn(shape, device=DEVICE) for shape in shapes)
    codes = torch.arange(runs, dtype=torch.int8, device=DEVICE) % 3
    return twins.layer, (x, v, s, bias, codes, True, True), True


def linear_step():
    """The same layer's way back, with the gradient of its inputs; the rate is zero, so that all calls do the same."""
    _, (x, v, s, bias, codes, *_), _ = linear()
    with patch.dict(os.environ, PRUNING_KERNELS="twin"):
        out, *beside = twins.layer(x, v, s, bias, codes, True, True)
    return twins.layer_step_, (out, x, v, s, bias, codes, torch.zeros_like(s[:, 0]), *beside, out, True), True


CASES = {"log_loss": log_loss, "accept": accept, "linear": linear, "linear_step": linear_step}


def many(function, arguments, calls):
    for _ in range(calls):
        function(*arguments)


def calls_of(function, arguments):
    """Return how many calls make one time: about `SPAN` seconds of them, and at most `CALLS`."""
    return max(1, min(CALLS, int(SPAN / seconds(function, *arguments))))


def ways(name):
    """Return ({what: function}, arguments) of one kernel: its twins and, on a GPU, the kernel itself."""
    function, arguments, compiled = CASES[name]()
    twin = getattr(function, "__wrapped__", function)
    found = {f"{name}, twin, eager": twin}
    if compiled and not STAND_IN:
        found[f"{name}, twin, compiled"] = torch.compile(twin, dynamic=False)
    if DEVICE == "cuda":
        found[f"{name}, kernel"] = lambda *given: fused.LAUNCHERS[name](*given, **constants(name))
    return found, arguments


def constants(name):
    return {"far": twins.FAR, "negligible": twins.NEGLIGIBLE} if name == "log_loss" else {}


def measure(report, name, rounds):
    """Add the lines of one kernel; return the least ratio of those before its last line to that one."""
    found, arguments = ways(name)
    for what, function in list(found.items()):
        try:
            function(*arguments)  # compiles
        except Exception as error:  # whatever a compiler on this machine lacks
            if not what.endswith("compiled"):
                raise
            print(f"no row of {what}: {(str(error).strip() or repr(error)).splitlines()[0]}")
            del found[what]
    times, calls = {what: [] for what in found}, {what: calls_of(f, arguments) for what, f in found.items()}
    for _ in range(rounds):
        for what, function in found.items():
            times[what].append(1e6 * seconds(many, function, arguments, calls[what]) / calls[what])
    for what, column in times.items():
        report.add(what, column, unit="µs")
    *before, last = times
    return min(report.add(f"{last}, again", times[last], what, "µs") for what in before)


def main(rounds):
    report = Report("kernels", f"one call, of at most {CALLS} in a row, on {DEVICE}")
    if DEVICE == "cpu":
        print("no CUDA GPU: the Triton kernels are not timed, only their twins, the compiled beside the eager")
    ratios, failed = {}, []
    for name in CASES if DEVICE == "cuda" else [name for name in CASES if name != "accept"]:
        try:
            ratios[name] = measure(report, name, rounds)
        except Exception:
            traceback.print_exc()
            failed.append(name)
            continue
        if DEVICE == "cuda" and ratios[name] > 1:
            print(f'fused.MEASURED["{name}"] = "{ratios[name]:.2f}x of its faster twin on {machine()["device"]}"')
    report.close(min(ratios.values(), default=math.nan), 2)
    if failed:
        sys.exit(f"kernels: failed are {', '.join(failed)}")


if __name__ == "__main__":
    with torch.no_grad(), patch.dict(os.environ, PRUNING_KERNELS="twin"):
        main(int(sys.argv[1]) if sys.argv[1:] else sized(7, 1))
