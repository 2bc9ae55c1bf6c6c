"""Both cores at work on many small matrices: one matrix per thread, not all threads on each matrix."""

from concurrent.futures import ThreadPoolExecutor

import torch
from threadpoolctl import threadpool_limits


def each(function, items, device="cpu"):
    """Return `[function(item) for item in items]`, worked on by as many one-thread workers as torch has threads.

    LAPACK gains little from a second thread on a matrix of several hundred rows, and everything from a second
    matrix; torch holds no lock while it computes. On an accelerator, and with one thread, it is a plain loop.
    """
    items, threads = list(items), torch.get_num_threads()
    if threads == 1 or len(items) < 2 or torch.device(device).type != "cpu":
        return [function(item) for item in items]
    try:
        # NumPy's linear algebra has threads of its own, and no other way to say how many.
        with (
            threadpool_limits(1),
            ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool,
        ):
            return list(pool.map(function, items))
    finally:
        # The linear algebra library has one number of threads for the whole process, and the workers changed it.
        torch.set_num_threads(threads)


def slices(total, size):
    """Return the slices of at most `size` that cover `range(total)`, in order."""
    return [slice(start, min(start + size, total)) for start in range(0, total, size)]
