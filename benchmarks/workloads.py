"""Trainings that several benchmarks time: each is made here, once, and is ready for its first step.

They need the data sets MNIST and CIFAR-10; other names and sizes serve tests. `COMPILED` seconds are what torch.compile
has before a benchmark goes on without it.
"""

import os
import signal
import time
from contextlib import contextmanager

import torch
from measure import DEVICE, sized

from lib import descend, nets, passes, sets
from lib.studies.challenge import modes
from lib.studies.ewn import toys
from lib.studies.phew import study

MNIST, CIFAR = sized(("mnist", "cifar10"), ("digits", "digits32"))
# Of the descents, the challenge, and ResNets, 0 for the published.
UNITS, HIDDEN, FILTERS = sized((1024, modes.HIDDEN, 0), (16, (8,), 2))
SCHEDULE = {"lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 1e-4, "batch": sized(128, 4), "bar": False}
ADAM = {"rule": "adam", "lr": 0.001, "batch": sized(256, 4), "bar": False}
TYPES = ("EWN", "SWN", "no-WN")
COMPILED = 180
# In this process: what is given up then stops, and nothing goes on beside what is timed.
os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")


def mnist_whole(examples=0):
    """Return (train, test), pairs of images and labels of MNIST on the device, of so many for training, 0 for all."""
    real = sets.load(MNIST, DEVICE, train_examples=examples)
    return real.split("train"), real.split("test")


def mnist_sets(examples=0):
    """Return the same with one test image."""
    train_set, test = mnist_whole(examples)
    return train_set, tuple(part[:1] for part in test)


def kinds(runs):
    """Return one type per run, in turn."""
    return [TYPES[run % len(TYPES)] for run in range(runs)]


def mnist_steps(runs, examples=0):
    """Return (`passes.Steps` of MNIST descents, a call that takes one pass of them, how many steps it has)."""
    (x, y), _ = mnist_sets(examples)
    return _steps([x.shape[1], UNITS, 10], runs, x, y, torch.arange(len(y)), 128)


def xor_steps(runs, count):
    """Return the same of networks of 20 units on the four points of XOR, all of them in each of `count` steps."""
    x, y = (tensor.float().to(DEVICE) for tensor in toys.xor())
    return _steps([2, 20, 2], runs, x, (y > 0).long(), torch.arange(4).repeat(count), 4)


def _steps(sizes, runs, x, y, order, batch):
    net = nets.init_(nets.MLP(sizes, kinds(runs)), list(range(runs))).to(DEVICE)
    steps, none = passes.Steps(net), torch.zeros(runs, device=DEVICE)

    def one_pass():
        with descend.full_precision():
            steps.epoch(x, y, order.expand(runs, -1), none + descend.FIRST_STEP, none, batch)

    return steps, one_pass, -(-len(order) // batch)


def challenge_trainer(seeds, examples=0):
    """Return a `Trainer` of networks as the pruning challenge has it."""
    lab = modes.Lab(*mnist_sets(examples), list(seeds), {}, ADAM, hidden=HIDDEN)
    return lab.trainer(lab.network())


def cifar_trainer(name, seeds, images=0, augment=False, **rule):
    """Return a `Trainer` of networks of CIFAR-10 by the schedule of the PHEW study; it looks at one test image."""
    real = sets.load(CIFAR, DEVICE, train_examples=images, statistics="phew")
    lab = study.lab(real, list(seeds), net=name, width=FILTERS, augment=augment, watch=1, rule=SCHEDULE | rule)
    return lab.trainer(lab.network())


def compiled(made, work):
    """Return why the steps of `made`, a `Trainer` or `passes.Steps`, cannot be compiled, or "" once they are.

    work: a call that takes some of them, none of which was taken before; it is called once here.
    """
    if isinstance(made, passes.Steps):
        made.take = torch.compile(made.take.function, dynamic=False)
    else:
        made._learn = torch.compile(made._learn, dynamic=False)
    began = time.monotonic()
    try:
        with _within(COMPILED):
            work()
    except Exception as error:  # whatever a compiler on this machine lacks
        if time.monotonic() - began >= COMPILED:
            return f"it took more than {COMPILED} s"
        return (str(error).strip() or repr(error)).splitlines()[0]
    return ""


@contextmanager
def _within(limit):
    """Raise TimeoutError in the block, which runs in the main thread, once it has taken so many seconds."""

    def stop(*_):
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, limit)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def apart(net, other):
    """Return the largest difference of a parameter between two networks."""
    pairs = zip(net.parameters(), other.parameters(), strict=True)
    return max(float((p - q).detach().abs().max()) for p, q in pairs)
