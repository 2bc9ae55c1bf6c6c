"""Training of stacks of networks: the log-loss descent, down to a loss of e^-300, and its resumable state."""

import time
from contextlib import contextmanager

import torch
from tqdm.auto import tqdm

from lib import capture, draws, kernels, nets, stacking
from lib.descent import Descent, Journal, join
from lib.evaluate import evaluate

GROWTH = 1.1  # of the step after an accepted epoch; a rejected one shrinks it by as much
FIRST_STEP = 0.01
SMALLEST_STEP = 1e-30  # a run whose step has shrunk to this has stalled
LOOK_EVERY = 32  # batches between two looks at whether the loss is still a number


def descend(
    net, data, seeds, levels, *, folders=None, streams=None, batch=128, max_epochs=10_000, checkpoint=60.0, stack=0
):
    """Return (levels reached, ends): per run `{level: Descent}` of the levels of log-loss that it reached, and its end.

    Mini-batch SGD on the loss rescaled by e^-ℓ, with ℓ the log-loss at the start of the epoch. An epoch
    that leaves the training loss larger, or not a number, is undone and tried again with another order and a
    step smaller by 1.1; an accepted one lets the step grow by 1.1 (arXiv 2010.12909, Algorithm B). So ℓ never
    rises, and the step on the true loss is ρ/e^ℓ.

    net: a fresh stack of R runs on the device of `data`; levels: negative log-losses, each below the one before;
    folders: one per run, where its levels are kept and where it goes on from; streams: names of the random
    streams that order the examples (default: runs of one seed share theirs). A run that stalls, or takes
    more than `max_epochs`, misses its remaining levels. `checkpoint`: seconds between two. `stack`: runs trained
    together, 0 for as many as memory allows; fewer, with a warning, where it does not suffice.
    """
    _check(net, seeds, levels, folders)
    streams, levels = streams or ["order"] * len(seeds), [float(level) for level in levels]

    def work(runs):
        part = slice(runs[0], runs[-1] + 1)
        journal = Journal(folders and folders[part], levels, checkpoint)
        return _descend(nets.take(net, part), data, seeds[part], journal, streams[part], batch, max_epochs)

    parts = stacking.split(work, range(len(seeds)), stack or stacking.width(net, batch))
    return tuple([run for _, found in parts for run in found[k]] for k in (0, 1))


def _descend(net, data, seeds, journal, streams, batch, max_epochs):
    """Return what `descend` does, of runs that are trained as one stack."""
    levels = journal.levels
    sets = data.split("train"), data.split("test")
    with journal.held(), full_precision(), _bar(levels, len(seeds)) as bar:
        reached, live, state = _resume(net, seeds, sets, journal)
        ends = [found[min(found)] if found else None for found in reached]
        while live:
            attempt(state, sets, [streams[run] for run in live], batch)
            _note_levels(state, live, reached, journal)
            live, state = _set_aside(state, live, reached, ends, levels, max_epochs)
            _show(bar, levels, ends, live, state)
            journal.keep(live, state)
    return reached, ends


def _resume(net, seeds, sets, journal):
    """Return (levels reached by every run, runs still to do, their descents): by the checkpoint, or else the levels."""
    reached, checkpoint = journal.reached(net), journal.stack(net)
    if checkpoint is not None:
        live, state = checkpoint
        for k, run in enumerate(live):  # levels later than the checkpoint are reached again, with the same stack
            reached[run] = {v: d for v, d in reached[run].items() if d.epoch[0] <= state.epoch[k]}
        return reached, live, state
    live = [run for run, found in enumerate(reached) if len(found) < len(journal.levels)]
    kept = {run: journal.deepest(run, net) for run in live}
    fresh = [run for run in live if kept[run] is None]
    if fresh:
        begun = start(nets.take(net, fresh), [seeds[run] for run in fresh], sets)
        kept |= {run: begun.take([k]) for k, run in enumerate(fresh)}
    state = join([kept[run] for run in live]) if live else None
    return reached, live, state


def levels_complaint(levels):
    """Return what is wrong with a list of levels, or None."""
    if not levels or any(later >= level for level, later in zip([0, *levels], levels, strict=False)):
        return "levels are log-losses, each negative and below the one before, such as [-10, -100]"
    return None


def _check(net, seeds, levels, folders):
    if levels_complaint(levels):
        raise ValueError(f"levels = {levels}: {levels_complaint(levels)}")
    for name, listed in (("seeds", seeds), ("folders", folders)):
        if listed is not None and len(listed) != nets.runs(net):
            raise ValueError(f"{len(listed)} {name} for a stack of {nets.runs(net)} runs; one per run is needed")
    if folders and len(set(map(str, folders))) != len(folders):
        raise ValueError(f"folders = {[str(f) for f in folders]}: two runs would share one; each needs its own")


@contextmanager
def full_precision():
    """Return a context of exact float32 products: TF32 is off by 0.15 of log-loss at logits of several hundred."""
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False  # of convolutions, where it is on by default
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]


# ---------------------------------------------------------------- one attempt


def start(net, seeds, sets):
    """Return the descents before their first attempt, row 0 of the history written."""
    first = evaluate(net, *sets[0])
    norms, none = nets.unit_norms(net), torch.zeros(len(seeds), dtype=torch.int64)
    state = Descent(
        net, list(seeds), first.log_loss, torch.full_like(first.log_loss, FIRST_STEP), none.double(), none, none,
        norms, norms, [[] for _ in seeds],
    )  # fmt: skip
    _write_history(state, list(range(len(seeds))), first.accuracy, sets[1])
    return state


def attempt(state, sets, streams, batch):
    """Try one epoch for every run; accept it where the training loss fell, undo it elsewhere."""
    began = time.perf_counter()
    x, y = sets[0]
    before = {k: v.detach().clone() for k, v in state.net.named_parameters()}
    norms = nets.unit_norms(state.net)
    orders = _orders(state, streams, len(y))
    log_loss, accuracy = torch.empty_like(state.log_loss), torch.empty_like(state.log_loss)
    for part in stacking.parts(state.net):
        if part.start not in state.steps:
            state.steps[part.start] = Steps(nets.take(state.net, part))
        steps, level = state.steps[part.start], state.log_loss[part]
        steps.epoch(x, y, orders[part], state.step[part], level, batch)
        result = evaluate(steps.net, x, y, bound=level)
        log_loss[part] = result.log_loss if result.complete else torch.inf
        accuracy[part] = result.accuracy
    accepted = (log_loss <= state.log_loss) & (log_loss > -torch.inf)
    _undo(state.net, before, ~accepted)
    _advance(state, accepted, log_loss, norms)
    state.seconds = state.seconds + (time.perf_counter() - began) / len(state.seeds)
    _write_history(state, accepted.nonzero()[:, 0].tolist(), accuracy, sets[1])


def _orders(state, streams, n):
    """Return every run's order of the examples `(R, n)`, drawn once for the runs that share a stream."""
    drawn = {}
    for key in zip(state.seeds, streams, state.attempt.tolist(), strict=True):
        if key not in drawn:
            drawn[key] = torch.from_numpy(draws.permutation(*key, n))
    return torch.stack([drawn[k] for k in zip(state.seeds, streams, state.attempt.tolist(), strict=True)])


class Steps:
    """Passes of SGD steps on e^-level · loss through one stack, whose tensors stay where they are."""

    def __init__(self, net):
        self.net, first = net, next(net.parameters())
        self.rate = torch.empty(nets.runs(net), dtype=first.dtype, device=first.device)
        self.level = torch.empty_like(self.rate, dtype=torch.float64)
        self.take = capture.Step(self._take, capture.wanted("descend", first.device))

    def epoch(self, x, y, orders, rate, level, batch):
        """Take one pass with rates and levels (R,), examples in the `orders (R, N)`.

        On a CPU it gives up once no run has a finite loss, which none gets back; a GPU would have to be waited for.
        """
        self.rate.copy_(rate), self.level.copy_(level)
        shared = bool((orders == orders[:1]).all())
        index = (orders[0] if shared else orders).to(x.device)
        with nets.sgd_in_backward(self.net, self.rate):
            for k, at in enumerate(index.split(batch, -1)):
                rescaled = self.take(x[at], y[at])
                if x.device.type == "cpu" and k % LOOK_EVERY == 0 and not bool(rescaled.isfinite().any()):
                    return

    def _take(self, x, y):
        rescaled = (kernels.log_loss(self.net(x), y).double() - self.level).exp()
        rescaled.sum().backward()
        return rescaled.detach()


@torch.no_grad()
def _undo(net, before, rejected):
    for name, p in net.named_parameters():
        p.copy_(torch.where(rejected.reshape(-1, *[1] * (p.dim() - 1)), before[name], p))


def _advance(state, accepted, log_loss, norms):
    state.log_loss = torch.where(accepted, log_loss, state.log_loss)
    state.step = torch.where(accepted, state.step * GROWTH, state.step / GROWTH)
    state.epoch, state.attempt = state.epoch + accepted.cpu(), state.attempt + 1
    state.norms_before = {k: torch.where(accepted[:, None], norms[k], old) for k, old in state.norms_before.items()}


def _write_history(state, accepted, train_accuracy, test_set):
    """Append a row for every run in the list `accepted`."""
    if not accepted:
        return
    test = evaluate(nets.take(state.net, accepted), *test_set)
    before = (state.epoch, state.attempt, state.log_loss, state.step, train_accuracy)
    before, tested = (
        torch.stack([vector.double().cpu() for vector in vectors], 1).tolist()
        for vectors in (before, (test.accuracy, test.log_loss, test.log_loss_of_batches))
    )
    for k, run in enumerate(accepted):
        state.history[run].append((*before[run], *tested[k], float(state.seconds[run])))


def _note_levels(state, live, reached, journal):
    """Keep every run that is below its next level; one level at most per accepted epoch, as published."""
    losses = state.log_loss.tolist()
    for k, run in enumerate(live):
        left = [level for level in journal.levels if level not in reached[run]]
        if left and losses[k] < left[0] and state.epoch[k] > _last_epoch(reached[run]):
            reached[run][left[0]] = state.take([k])
            journal.write_level(run, left[0], reached[run][left[0]])


def _last_epoch(found):
    return max((int(d.epoch[0]) for d in found.values()), default=0)


def _set_aside(state, live, reached, ends, levels, max_epochs):
    """Return (runs, their descents) still to do; note the ends of those with all levels, stalled, or out of epochs."""
    steps = state.step.tolist()
    over = [
        len(reached[run]) == len(levels) or steps[k] <= SMALLEST_STEP or state.epoch[k] >= max_epochs
        for k, run in enumerate(live)
    ]
    if not any(over):
        return live, state
    for k, run in enumerate(live):
        if over[k]:
            ends[run] = state.take([k])
    stay = [k for k in range(len(live)) if not over[k]]
    return [live[k] for k in stay], (state.take(stay) if stay else None)


def _bar(levels, count):
    return tqdm(total=round(-levels[-1] * count), unit="nat", desc="descending", mininterval=1.0)


def _show(bar, levels, ends, live, state):
    """Show how much of the summed log-loss is behind us, and how many attempts it took."""
    going = [] if state is None else state.log_loss.tolist()
    over = [float(end.log_loss[0]) for run, end in enumerate(ends) if end is not None and run not in live]
    behind = sum(min(max(-loss, 0), -levels[-1]) for loss in [*going, *over])
    if going:
        bar.set_postfix(attempts=int(state.attempt.max()), highest=f"{max(going):.2f}", refresh=False)
    bar.update(round(behind) - bar.n)
