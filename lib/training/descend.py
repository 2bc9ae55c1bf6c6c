"""The log-loss descent of stacks of networks, down to a loss of e^-300: epochs that are undone unless the loss fell."""

import time
from contextlib import ExitStack, contextmanager

import torch
from tqdm.auto import tqdm

from lib import draws
from lib.errors import ParameterError, one_each
from lib.networks import nets
from lib.training import descent, passes, screening, stacking
from lib.training.descent import Descent, Journal, looked_at
from lib.training.evaluate import evaluate
from lib.training.line_search import FIRST_STEP, GROWTH, SMALLEST_STEP


def descend(
    net, data, seeds, levels, *, folders=None, recipes=None, batch=128, max_epochs=10_000,
    checkpoint=60.0, stack=0, trained=False,
):  # fmt: skip
    """Return (levels reached, ends): per run `{level: Descent}` of the levels of log-loss that it reached, and its end.

    Mini-batch SGD on the loss rescaled by e^-ℓ, with ℓ the log-loss at the start of the epoch. An epoch
    that does not lower the training loss, or makes it no number, is undone and tried again with another order and a
    step smaller by 1.1; an accepted one lets the step grow by 1.1 (arXiv 2010.12909, Algorithm B). So ℓ never
    rises, and the step on the true loss is ρ/e^ℓ.

    net: a fresh stack of R runs on the device of `data`; levels: negative log-losses, each below the one before;
    folders: one per run, where its levels are kept and where it goes on from; recipes: what each run is, as for
    `runs.trained`, which its files say and are compared with; trained: nothing is to be trained, all levels are there.
    Runs of one seed see the examples in one order. A run that stalls, or takes more than `max_epochs`, misses its
    remaining levels. `checkpoint`: seconds between two. `stack`: runs trained together, 0 for as many as memory allows;
    fewer, with a warning, where it does not suffice.
    RecordError for a file that holds something else, or is not there though `trained`.
    """
    _check(net, seeds, levels, folders, trained)
    levels = [float(level) for level in levels]
    recipes = recipes or [descent.recipe(net, run, seed) for run, seed in enumerate(seeds)]

    def work(runs):
        part = slice(runs[0], runs[-1] + 1)
        journal = Journal(folders and folders[part], recipes[part], levels, checkpoint)
        return _descend(nets.take(net, part), data, seeds[part], journal, batch, max_epochs)

    parts = stacking.split(work, range(len(seeds)), stacking.width(net, batch, stack, "descent"))
    return tuple(nets.join(found[k] for _, found in parts) for k in (0, 1))


def _descend(net, data, seeds, journal, batch, max_epochs):
    """Return what `descend` does, of runs that are trained as one stack."""
    levels = journal.levels
    sets, total = (data.split("train"), data.split("test")), round(-levels[-1] * len(seeds))
    bar = tqdm(total=total, unit="nat", desc="descending", mininterval=1.0)
    with journal.held(), full_precision(), bar:
        reached, live, state = _resume(net, seeds, sets, journal)
        ends = [found[min(found)] if found else None for found in reached]
        live, state = _set_aside(state, live, reached, ends, levels, max_epochs, sets[1])  # which ended before
        while live:
            ahead = [[level for level in levels if level not in reached[run]] for run in live]
            goals = state.log_loss.new_tensor([left[0] if left else -torch.inf for left in ahead])
            attempt(state, sets, batch, goals)
            below = _note_levels(state, live, reached, goals, sets[1])
            left = _set_aside(state, live, reached, ends, levels, max_epochs, sets[1])
            journal.keep(live, state, goals.tolist(), below, at_once=below or len(left[0]) < len(live))
            live, state = left
            _show(bar, levels, ends, live, state)
    return reached, ends


def _resume(net, seeds, sets, journal):
    """Return (levels reached by every run, runs still to do, their descents): each as far as it is, or as it starts."""
    reached = journal.reached(net)
    live = [run for run, found in enumerate(reached) if len(found) < len(journal.levels)]
    kept = {run: journal.furthest(run, net) for run in live}
    fresh = [run for run in live if kept[run] is None]
    if fresh:
        begun = start(nets.take(net, fresh), [seeds[run] for run in fresh], sets)
        kept |= {run: nets.take(begun, [k]) for k, run in enumerate(fresh)}
    state = nets.join(kept[run] for run in live) if live else None
    return reached, live, state


def levels_complaint(levels):
    """Return what is wrong with a list of levels, or None."""
    told = [float(f"{v:g}") if isinstance(v, int | float) else 0 for v in levels]  # as in names of files and scores
    if not levels or any(later >= level for level, later in zip([0, *told], told, strict=False)):
        return "levels are log-losses, each negative and below the one before in six digits, such as [-10, -100]"
    return None


def _check(net, seeds, levels, folders, trained):
    if wrong := levels_complaint(levels):
        raise ValueError(f"levels = {levels}: {wrong}")
    one_each(nets.runs(net), seeds=seeds, **({} if folders is None else {"folders": folders}))
    if folders and len(set(map(str, folders))) != len(folders):
        raise ParameterError(f"folders = {[*map(str, folders)]}: two runs share one; name one each, or take one run")
    if trained:
        descent.assert_trained(folders, levels)


@contextmanager
def full_precision():
    """Return a context of exact float32 products: TF32 is off by 0.15 of log-loss at logits of several hundred."""
    with ExitStack() as held:
        held.callback(torch.set_float32_matmul_precision, torch.get_float32_matmul_precision())
        held.callback(setattr, torch.backends.cudnn, "allow_tf32", torch.backends.cudnn.allow_tf32)
        torch.set_float32_matmul_precision("highest")
        torch.backends.cudnn.allow_tf32 = False  # of convolutions, where it is on by default
        yield


# ---------------------------------------------------------------- one attempt


def start(net, seeds, sets):
    """Return the descents before their first attempt, row 0 of the history written."""
    (x, y), norms, runs = sets[0], nets.unit_norms(net), len(seeds)
    nothing = torch.zeros(runs, len(y), dtype=torch.float64, device=x.device)
    above, all_of_them = torch.full_like(nothing[:, 0], torch.inf), torch.ones_like(nothing, dtype=torch.bool)
    first = screening.measure(passes.make(net), x, y, nothing, above, all_of_them, nothing[:, 0], -above)
    none = torch.zeros(runs, dtype=torch.int64)
    state = Descent(
        net, list(seeds), first.log_loss, torch.full_like(first.log_loss, FIRST_STEP), none.double(), none, none,
        first.right, first.losses, torch.zeros_like(first.log_loss), norms, norms, [[] for _ in seeds],
    )  # fmt: skip
    write_history(state, range(runs), sets[1])
    return state


def attempt(state, sets, batch, goals=None, screened=True):
    """Try one epoch for every run; accept it where the training loss fell, undo it elsewhere.

    goals (R,): a run that comes below its goal is measured whole; screened: leave out what `screening` says is lost in
    rounding. The history gets a row of every run whose accepted epoch is one that is looked at.
    """
    began = time.perf_counter()
    goals = torch.full_like(state.log_loss, -torch.inf) if goals is None else goals
    before = {k: v.detach().clone() for k, v in state.net.named_parameters()}
    norms = nets.unit_norms(state.net)
    orders = torch.from_numpy(draws.orders(state.seeds, state.attempt.tolist(), len(sets[0][1])))
    measured = _try(state, sets[0], orders, batch, goals, before, screened)
    # Not <=: a loss that stays what it is would be accepted for ever.
    accepted = (measured.log_loss < state.log_loss) & (measured.log_loss > -torch.inf) & measured.complete
    _undo(state.net, before, ~accepted)
    state.log_loss = torch.where(accepted, measured.log_loss, state.log_loss)
    state.step = torch.where(accepted, state.step * GROWTH, state.step / GROWTH)
    state.epoch, state.attempt = state.epoch + accepted.cpu(), state.attempt + 1
    state.norms_before = {k: torch.where(accepted[:, None], norms[k], old) for k, old in state.norms_before.items()}
    state.losses = torch.where(accepted[:, None], measured.losses, state.losses)
    state.train_accuracy = torch.where(accepted, measured.right, state.train_accuracy)
    state.moved = torch.where(accepted, measured.moved, state.moved)
    state.seconds = state.seconds + (time.perf_counter() - began) / len(state.seeds)
    seen = [run for run in accepted.nonzero()[:, 0].tolist() if looked_at(int(state.epoch[run]))]
    write_history(state, seen, sets[1])


def _try(state, train_set, orders, batch, goals, before, screened):
    """Take an epoch of every run; return what `screening.measure` says of it.

    Where an example that was left out came back, the epoch is undone and taken again with all of them.
    """
    state.steps = state.steps or passes.make(state.net)
    trained = screening.counted(state.losses, state.log_loss, next(state.net.parameters()).dtype)
    trained = trained if screened else torch.ones_like(trained)
    counted = None if bool(trained.all()) else trained
    state.steps.epoch(*train_set, orders, state.step, state.log_loss, batch, counted)
    measured = screening.measure(state.steps, *train_set, state.losses, state.log_loss, trained, state.moved, goals)
    if not measured.returned:
        return measured
    _undo(state.net, before, torch.ones_like(state.log_loss, dtype=torch.bool))
    return _try(state, train_set, orders, batch, goals, before, screened=False)


@torch.no_grad()
def _undo(net, before, rejected):
    for name, p in net.named_parameters():
        p.copy_(torch.where(rejected.reshape(-1, *[1] * (p.dim() - 1)), before[name], p))


def write_history(state, chosen, test_set):
    """Append a row for every run in the list `chosen` that has none of its present epoch."""
    chosen = [run for run in chosen if not state.history[run] or state.last(run)["epoch"] < int(state.epoch[run])]
    if not chosen:
        return
    test = evaluate(nets.take(state.net, chosen), *test_set)
    before = (state.epoch, state.attempt, state.log_loss, state.step, state.train_accuracy)
    before, tested = (
        torch.stack([vector.double().cpu() for vector in vectors], 1).tolist()
        for vectors in (before, (test.accuracy, test.log_loss))
    )
    for k, run in enumerate(chosen):
        state.history[run].append((*before[run], *tested[k], float(state.seconds[run])))


def _note_levels(state, live, reached, goals, test_set):
    """Return the places in `live` of runs that are at their goals; one level at most per accepted epoch, as published.

    Their states are noted in `reached`.
    """
    below, goals = (state.log_loss < goals).tolist(), goals.tolist()
    # Of the levels before the goal: later ones may be there too, where this one was asked for after them.
    last = [max((int(found.epoch[0]) for level, found in reached[run].items() if level > goal), default=0)
            for run, goal in zip(live, goals, strict=True)]  # fmt: skip
    below = [k for k in range(len(live)) if below[k] and state.epoch[k] > last[k]]
    write_history(state, below, test_set)
    for k in below:
        reached[live[k]][goals[k]] = nets.take(state, [k])
    return below


def _set_aside(state, live, reached, ends, levels, max_epochs, test_set):
    """Return (runs, their descents) still to do; note the ends of those with all levels, stalled, or out of epochs."""
    steps = state.step.tolist() if live else []
    over = [
        len(reached[run]) == len(levels) or steps[k] <= SMALLEST_STEP or state.epoch[k] >= max_epochs
        for k, run in enumerate(live)
    ]
    if not any(over):
        return live, state
    write_history(state, [k for k in range(len(live)) if over[k]], test_set)
    for k, run in enumerate(live):
        if over[k]:  # a level that was there before may be further than the last that was missing
            known = [nets.take(state, [k]), *reached[run].values()]
            ends[run] = max(known, key=lambda found: int(found.epoch[0]))
    stay = [k for k in range(len(live)) if not over[k]]
    return nets.take(live, stay), (nets.take(state, stay) if stay else None)


def _show(bar, levels, ends, live, state):
    """Show how much of the summed log-loss is behind us, and how many attempts it took."""
    going = [] if state is None else state.log_loss.tolist()
    over = [float(end.log_loss[0]) for run, end in enumerate(ends) if end is not None and run not in live]
    behind = sum(min(max(-loss, 0), -levels[-1]) for loss in [*going, *over])
    if going:
        bar.set_postfix(attempts=int(state.attempt.max()), highest=f"{max(going):.2f}", refresh=False)
    bar.update(round(behind) - bar.n)
