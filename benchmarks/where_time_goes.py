"""Where the time of a notebook goes: by its cells, by kinds of torch operators, by functions.

The cells of mnist_prune, phew_density and dpp_prune run in this process, with the small parameters of `SMALL`, records
and networks in a temporary folder. Three times each, so that nothing distorts another thing's shares: timed alone, with
all threads; under torch's profiler; under cProfile. The last two have one thread, so that shares of time add up.
A share is of the time of its own pass. A GPU's kernels run beside Python, so that they have shares of their own; there
cProfile does not see backward passes, which have a thread of their own. MNIST and CIFAR-10 are needed, and papermill.
Run: python benchmarks/where_time_goes.py [NOTEBOOK]
"""

import cProfile
import os
import re
import sys
import tempfile
import time
from pathlib import Path
from unittest import mock

import matplotlib
import numpy as np
from torch.profiler import DeviceType, ProfilerActivity, profile, record_function

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(Path(__file__).resolve().parent), str(ROOT)]
from measure import DEVICE, Report, on_threads, timed  # noqa: E402

PIECES = ("mnist_prune", "phew_density", "dpp_prune")
TRAINING = {"train_examples": 2000, "epochs": 2, "drops": [1], "watch": 200}
SMALL = {
    "mnist_prune": {"seed": 9192, "type": "SWN", "levels": [-2]},
    "phew_density": {"seed": 1, "type": "phew", "densities": [0.02]} | TRAINING,
    "dpp_prune": {"seed": 1, "type": ["dpp_edge", "dpp_node"], "keep": [100, 400], "epochs": 5},
}
KINDS = {  # of operators, what their names match; the first kind that does
    "products and convolutions": r"(mm|bmm|addmm|baddbmm|mv|addmv|dot|ger)$|.*conv(?!ert)",
    "linear algebra": r"_?(linalg_(?!vector_norm)|cholesky|triangular|lu_|lstsq|svd|geqrf|orgqr|ormqr)",
    "sorting, top-k": r"(sort|argsort|topk|kthvalue|median|quantile|searchsorted|randperm)$|_?unique",
    "gathers, scatters": r"_?(index|gather|scatter|take|masked_select|masked_scatter|nonzero|embedding)",
    "optimizers": r"_fused_|_foreach_",
    "batch norms, pools": r".*(batch_norm|_pool)",
    "reductions, softmax": r"_?(sum|mean|var|std|max|min|amax|amin|argmax|argmin|all|any|prod|norm|linalg_vector_norm"
    r"|log_?softmax|softmax|logsumexp|nll_loss|cum\w+|count_nonzero|equal)(_.*)?$",
    "copies, allocations": r"_?(copy|clone|to|contiguous|cat|stack|empty|zeros?|ones|full|fill|new_\w+|resize|pad"
    r"|constant_pad|repeat|flip|local_scalar|set|arange)(_.*)?$",
    "views": r"_?(unsafe_view|view|reshape|transpose|t|permute|expand|as_strided|slice|select|(un)?flatten|detach|alias"
    r"|(un)?squeeze|narrow|split|chunk|unbind|diagonal|unfold|movedim|lift_fresh)(_.*)?$",
    "elementwise and others": r"",
}
ALL = "all kernels, copies and fills"
CLOSING, SHOWN = "products and convolutions", 10


def cells(name):
    """Return [(title, code)] of the code cells of a notebook with its small parameters."""
    try:
        from papermill.iorw import load_notebook_node
        from papermill.parameterize import parameterize_notebook
    except ImportError:
        sys.exit("where_time_goes: needs papermill, which is not installed: pip install -r requirements.txt")
    notebook = load_notebook_node(str(ROOT / "notebooks" / f"{name}.ipynb"))
    title, found = "the title", []
    for cell in parameterize_notebook(notebook, SMALL[name]).cells:
        if cell.cell_type == "code":
            found.append((title, cell.source))
        elif cell.source.startswith("## "):
            title = cell.source.splitlines()[0].removeprefix("## ")
    return found


def execute(found):
    """Return the seconds of every cell, each with the drawing of its figures; run in a fresh folder for records."""
    space, times = {"__name__": "__main__", "display": str, "In": [source for _, source in found]}, []
    with tempfile.TemporaryDirectory() as folder, mock.patch.dict(os.environ, {"PRUNING_RUNS": folder}):
        for number, (_, source) in enumerate(found, 1):
            began = time.perf_counter()
            exec(compile(source, f"<cell {number}>", "exec"), space)
            draw()
            times.append(time.perf_counter() - began)
    return times


def draw():
    """Draw the figures that a cell made, as a notebook would, and forget them."""
    plt = sys.modules.get("matplotlib.pyplot")  # whose import is a cost of the cell that imports it
    for number in plt.get_fignums() if plt else ():
        plt.figure(number).canvas.draw()
        plt.close(number)


def by_operators(found):
    """Return ({what: share of the time in torch operators of a kind}, the same of their kernels on the GPU)."""
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if DEVICE == "cuda" else [])]
    told = {"activities": activities, "acc_events": True}
    with profile(**told) as seen, mock.patch("numpy.linalg.eigh", marked(np.linalg.eigh)):
        wall, _ = timed(execute, found)
    here, there = dict.fromkeys(KINDS, 0.0), dict.fromkeys([*KINDS, ALL], 0.0)
    for event in seen.key_averages():
        if event.device_type == DeviceType.CPU and re.match("aten::|numpy::", event.key):
            kind = kind_of(event.key.partition("::")[2])
            here[kind] += event.self_cpu_time_total / 1e6 / wall
            there[kind] += event.self_device_time_total / 1e6 / wall
        elif event.device_type == DeviceType.CUDA and not event.is_user_annotation:
            there[ALL] += event.self_device_time_total / 1e6 / wall
    return here, there


def marked(function):
    """Return a function of NumPy that the profiler sees as an operator: `lib.pruning.dpp` uses one of them on a CPU."""
    return record_function(f"numpy::linalg_{function.__name__}")(function)


def kind_of(operator):
    return next(kind for kind, pattern in KINDS.items() if re.match(pattern, operator))


def by_functions(found):
    """Return {what: share} of the functions with most time of their own, and of those of lib with their callees."""
    watched = cProfile.Profile(builtins=False)  # what is not Python counts for the function that calls it
    wall, _ = timed(watched.runcall, execute, found)
    seen = watched.getstats()
    own = sorted(seen, key=lambda entry: -entry.inlinetime)[:SHOWN]
    inside = [entry for entry in seen if where(entry.code).startswith("lib/")]
    whole = sorted(inside, key=lambda entry: -entry.totaltime)[:SHOWN]
    shares = {f"{where(entry.code)}, own": entry.inlinetime / wall for entry in own}
    return shares | {f"{where(entry.code)}, in all": entry.totaltime / wall for entry in whole}


def where(code):
    """Return a function's place, such as "lib/training/descend.py attempt"; its line would not outlive an edit."""
    path = Path(code.co_filename)
    return f"{path.relative_to(ROOT) if path.is_relative_to(ROOT) else Path(*path.parts[-2:])} {code.co_qualname}"


def main(name):
    found = cells(name)
    parameters = ", ".join(f"{key} = {value}" for key, value in SMALL[name].items())
    report = Report(f"where_time_goes.{name}", f"the notebook {name}, {parameters}")
    wall, times = timed(execute, found)
    report.add("the whole notebook", [wall])
    for number, ((title, _), seconds) in enumerate(zip(found, times, strict=True), 1):
        report.add(f"code cell {number}, {title}", [100 * seconds / wall], unit="%")
    here, there = on_threads(1, by_operators, found)
    shares = here | {"outside of operators: Python, files, figures": 1 - sum(here.values())}
    shares |= {f"GPU: {kind}": share for kind, share in there.items() if share} | on_threads(1, by_functions, found)
    for what, share in shares.items():
        report.add(what, [100 * share], unit="%")
    report.close(100 * (there if DEVICE == "cuda" else here)[CLOSING], 0, f" % in {CLOSING}")


if __name__ == "__main__":
    matplotlib.use("Agg")
    for chosen in sys.argv[1:] or PIECES:
        main(chosen)
