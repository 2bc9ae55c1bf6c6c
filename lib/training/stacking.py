"""How much of a stack is trained together: all of it, what memory allows, or one run at a time where that is faster."""

import gc
import warnings

import torch

from lib.networks import nets

# Weights of a run above which a CPU trains one by one: it streams large stacks through memory and gains nothing. Of
# four MNIST networks together each takes 0.5 to 0.6 of the time alone with 51,000 weights, 0.5 to 0.8 with 102,000 to
# 408,000 (one and two threads), and more than alone with 2.4 million. Of the VGG, forward and backward on one core, a
# run in a stack of three costs 0.7 of the time alone with 4 filters in the first block (58,000 weights), 1.0 with 8,
# 1.3 with 16; of nine 0.8, 1.6, 1.6. A descent of one ReLU network is written out (`passes`), which a stack forgoes: of
# four with 103,000 or 204,000 weights each takes 0.84 to 1.05 of the time alone on one thread, less on two.
TOO_LARGE_TO_STACK = {"dense": 500_000, "convolutions": 100_000, "descent": 250_000}
# An estimate of what training holds: of every parameter itself, its state before an epoch, two moments, a gradient and
# what is being saved; of every activation its value before and after the rate of a layer, and the gradients of both.
COPIES, TRACES = 6, 4
SHARE = 0.8  # of the free memory; the rest is for evaluation and for what fragmentation wastes


class MemoryWarning(UserWarning):
    """A stack did not fit into memory and goes on in smaller parts."""


def bytes_per_run(net, batch):
    """Return about how many bytes the training of one run of `net` holds, by batches of `batch` examples."""
    parameters = sum(p[0].numel() * p.element_size() for p in net.parameters())
    units = sum(layer.scale.shape[1] * layer.positions for layer in nets.layers(net).values())
    return COPIES * parameters + TRACES * batch * units * next(net.parameters()).element_size()


def width(net, batch, most=0, kind="dense"):
    """Return how many runs of `net` are trained together: one where a CPU does better so, else what memory allows.

    most: at most so many, 0 for no bound; kind: how networks without convolutions are trained, "descent" or "dense".
    """
    flat = all(layer.weight.dim() == 3 for layer in nets.layers(net).values())
    large = nets.parameters_per_run(net) > TOO_LARGE_TO_STACK[kind if flat else "convolutions"]
    best = 1 if large and next(net.parameters()).device.type == "cpu" else fits(net, batch)
    return min(most, best) if most else best


def fits(net, batch, free=None):
    """Return how many runs of `net` memory takes together, at least one and at most all of them.

    free: bytes; None is what the GPU of `net` has left, and no bound on a CPU.
    """
    device, runs = next(net.parameters()).device, nets.runs(net)
    if free is None:
        if device.type != "cuda":
            return runs
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        free = torch.cuda.mem_get_info(device)[0] + unused
    return max(1, min(runs, int(SHARE * free / bytes_per_run(net, batch))))


def split(work, items, most=0):
    """Return [(part, work(part))] of consecutive parts of the sequence `items`, `most` at a time, 0 for all.

    Where memory does not suffice for a part, a `MemoryWarning` says so and halves follow, down to one item, whose
    error is raised. What a part gives must not depend on what else is in it.
    """
    most, done, results = most or max(len(items), 1), 0, []
    while done < len(items):
        part = items[done : done + most]
        try:
            results.append((part, work(part)))
            done += len(part)
            continue
        except (torch.OutOfMemoryError, MemoryError) as error:
            if len(part) == 1:
                raise
            most, said = -(-len(part) // 2), str(error).strip().split(". ")[0]
        # Here, and not above, the error is gone, and with it what its frames held.
        told = f"no memory for {len(part)} runs at once ({said}): {most} go on together"
        warnings.warn(told, MemoryWarning, stacklevel=2)
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    return results
