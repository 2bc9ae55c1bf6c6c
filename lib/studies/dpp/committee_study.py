"""What the DPP study asks of students: how much they lose to each type, in closed form and simulated (see `committee`).

Every student is pruned many times, by sets of their own seeds, so that the error of a type is a mean over sets.
"""

import numpy as np
import torch

from lib.networks import nets
from lib.studies.dpp import committee, kinds, study
from lib.training import once

DRAWN_AT_RANDOM = ("dpp_node", "dpp_edge", "random_node", "random_edge")
MOST_SETS = 1000  # of one student: set m of seed s is drawn by the seed 1000 s + m


def students(seeds, noise, inputs, units, teacher_units, v_star, count, lr, soft=False):
    """Return (students, teachers, history): one run for each seed and noise level, those of a seed together.

    Trained now or some time before (`once.obtain`); the history has the columns samples and error, (R, T).
    """
    pairs = [(seed, sigma) for seed in seeds for sigma in noise]
    own, sigmas = [seed for seed, _ in pairs], [sigma for _, sigma in pairs]
    teacher = committee.teachers(own, inputs, teacher_units, v_star)

    def learn(net, missing, _):  # no `Trainer`, so it keeps no state on the way
        taught = [own[run] for run in missing], [sigmas[run] for run in missing]
        history = committee.learn_(net, nets.take(teacher, missing), *taught, count, lr, soft=soft)
        return net, history | {"samples": np.broadcast_to(history["samples"], history["error"].shape)}

    recipe = {"name": "committee", "type": "dense", "inputs": inputs, "units": units, "teacher": teacher_units,
              "v_star": v_star, "count": count, "lr": lr}  # fmt: skip
    recipe |= {"soft": True} if soft else {}
    recipes = [recipe | {"seed": seed, "noise": sigma} for seed, sigma in pairs]
    student, history = once.obtain(committee.students(own, inputs, units, soft), recipes, learn)
    return student, teacher, history


def budgets(p):
    """Return the budgets of one unit to all but one, at which edges and units leave as many weights."""
    widths = p["inputs"], p["students"], 1
    return [kinds.budget(widths, units=k, rounding="half_up") for k in range(1, p["students"])]


def complaint(p):
    """Return what a notebook's parameters `p` want to keep that cannot be kept, or None."""
    return kinds.complaint(p, (p["inputs"], p["students"], 1), budgets)


def errors(kind, student, teacher, keep, seed, noise, items, tests, sets=10, as_published=False):
    """Return what a type does to one student, `{name: array}`: one entry per number in the list `keep`.

    error (2, K, S): half the mean squared error in closed form, raw and reweighted, of each of the `sets` drawn (one,
    where nothing is drawn); simulated and deviation (2, K, S): the same on `tests`, samples as of `committee.many`, and
    its standard error; student (K, units, units) and cross (K, units, teacher units): mean |Q| and |R| over the sets,
    raw. items: of `study.items`, on the "preactivation": a node is its local field, as in the study. as_published:
    edges at random with probability keep / I, and units by the sum of their outgoing weights with their signs.
    """
    if not 1 <= sets <= MOST_SETS:
        raise ValueError(f"sets is {sets}; allowed are 1 to {MOST_SETS}")
    sets = sets if kind in DRAWN_AT_RANDOM else 1
    copies = nets.take(student, [0] * sets)
    options = {"form": "linear"} if kind.startswith("dpp") else {}
    if as_published:
        options |= {"random_edge": {"rule": "bernoulli"}, "outgoing_l1_node": {"signed": True}}.get(kind, {})
    seeds = [MOST_SETS * seed + number for number in range(sets)]
    rows = []
    for _, *stacks in study.pruned(kind, copies, keep, seeds, items.of([0] * sets), options, intercept=False):
        exact = [committee.error(stack, teacher, noise) for stack in stacks]
        drawn = [committee.simulated(stack, teacher, *tests, noise) for stack in stacks]
        order = committee.overlaps(stacks[0], teacher)
        rows.append([torch.stack(exact), *map(torch.stack, zip(*drawn, strict=True)),
                     order.student.abs().mean(0), order.cross.abs().mean(0)])  # fmt: skip
    arrays = [torch.stack(column).numpy() for column in zip(*rows, strict=True)]
    arrays[:3] = [array.swapaxes(0, 1) for array in arrays[:3]]
    return dict(zip(("error", "simulated", "deviation", "student", "cross"), arrays, strict=True))
