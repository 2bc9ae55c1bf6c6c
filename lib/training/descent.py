"""The state of log-loss descents between two attempts, and how it survives being killed.

Each level that a run reaches is an artefact of that run, `level-10.safetensors` in its own folder: prune from
it, or go on from it to a further level. Between levels a run keeps where it is, `towards-100.safetensors`, from which
it goes on in whatever stack. What a stack keeps at one time is there together or not at all, so that a killed stack
goes on with the members that it had and, on a CPU, ends bit for bit where the uninterrupted one does.
"""

import math
import re
import time
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from lib.errors import RecordError, listed
from lib.kernels import twins
from lib.networks import nets
from lib.records import disk
from lib.training import weights
from lib.training.line_search import log_spaced

# One row of a descent's history per accepted epoch that is looked at (`looked_at`), row 0 before the first.
HISTORY = (
    "epoch",  # accepted so far
    "attempt",  # made so far, rejected ones included
    "log_loss",  # of the training set
    "step",  # the rate that the next attempt will use
    "train_accuracy",
    "test_accuracy",
    "test_log_loss",
    "seconds",  # of all attempts so far, a stack's time shared among its runs
)
VECTORS = ("log_loss", "step", "seconds", "epoch", "attempt", "train_accuracy", "losses", "moved")
ON_DEVICE = ("log_loss", "step", "train_accuracy", "losses", "moved")
NORMS = ("norms_start", "norms_before")
EACH, SPACING = 50, 1.03  # the first epochs are looked at one by one, later ones by this ratio


def looked_at(epoch):
    """Return whether the test set is looked at after so many accepted epochs; a look may cost as much as an epoch."""
    spaced = math.floor(math.log(max(epoch, 1), SPACING)) > math.floor(math.log(max(epoch - 1, 1), SPACING))
    return epoch <= EACH or spaced


@dataclass
class Descent:
    """R descents between two attempts: everything that the next attempt depends on, and what was seen so far.

    log_loss, step, seconds, train_accuracy (R,) float64; epoch, attempt (R,) int64. losses (R, N) float64: the log-loss
    of every training example when it was last measured; moved (R,): see `screening.measure`. norms_start,
    norms_before: unit norms `{layer: (R, O)}` at the initialisation and at the start of the last accepted epoch (the
    EWN study ranks by the latter). history: per run, a list of rows of `HISTORY`.
    """

    net: torch.nn.Module
    seeds: list
    log_loss: torch.Tensor
    step: torch.Tensor
    seconds: torch.Tensor
    epoch: torch.Tensor
    attempt: torch.Tensor
    train_accuracy: torch.Tensor
    losses: torch.Tensor
    moved: torch.Tensor
    norms_start: dict
    norms_before: dict
    history: list = field(default_factory=list)
    steps: object = field(default=None, init=False, repr=False)  # of `passes`, how `net` is trained; never saved

    def last(self, run=0):
        """Return the last row of a run's history by name."""
        return dict(zip(HISTORY, self.history[run][-1], strict=True))

    def thinned(self, keep=(), limit=200):
        """Return the history of the first run, `{name: (T,)}`: epochs in `keep`, and up to `limit` log-spaced ones."""
        rows = np.array(self.history[0])
        chosen = log_spaced(len(rows), limit) if len(rows) > limit else np.arange(len(rows))
        chosen = np.unique([*chosen, *np.flatnonzero(np.isin(rows[:, 0], list(keep)))])
        return dict(zip(HISTORY, rows[chosen].T, strict=True))


def save(path, descent, meta=None, later=False):
    """Write descents as one file, see `weights.save`; float64 stays float64, so that nothing drifts."""
    arrays = {k: getattr(descent, k) for k in VECTORS}
    arrays |= {f"{k}/{layer}": v for k in NORMS for layer, v in getattr(descent, k).items()}
    arrays |= {f"history/{k}": np.array(rows) for k, rows in enumerate(descent.history)}
    weights.save(path, descent.net, arrays, {"seeds": descent.seeds, "history": list(HISTORY), **(meta or {})}, later)


def load(path, like, holds=None, way_out=""):
    """Return (the descents in `path`, its meta), on the device of the network `like`, whose layers they have.

    holds, way_out: as for `weights.load`.
    """
    tensors, arrays, meta = weights.load(path, holds, way_out)
    net, device = weights.stack(tensors, like, path), next(like.parameters()).device
    tensors = {k: torch.from_numpy(v).to(device if k in ON_DEVICE else "cpu") for k, v in arrays.items()}
    norms = {kind: {k: v.to(device) for k, v in weights.under(f"{kind}/", tensors).items()} for kind in NORMS}
    columns = [meta["history"].index(name) for name in HISTORY]  # files may have more
    history = [[*map(tuple, arrays[f"history/{k}"][:, columns].tolist())] for k in range(len(meta["seeds"]))]
    return Descent(net, meta["seeds"], **{k: tensors[k] for k in VECTORS}, **norms, history=history), meta


def recipe(net, run, seed):
    """Return what is known of a run of a fresh stack without being told, `{"type", "seed"}`."""
    names = {code: name for name, code in twins.NORMS.items()}
    return {"type": names[int(next(iter(nets.layers(net).values())).norm[run])], "seed": int(seed)}


def level_path(folder, level, kind="level"):
    """Return where a run keeps its state at a level, `level-10.safetensors` in its folder; "towards": on its way."""
    return Path(folder, f"{kind}{level:g}.safetensors")


def _levels(folder, kind):
    """Return the levels of the files of `level_path`; what a person copied there under another name is none of them."""
    found = (path.stem.removeprefix(kind) for path in folder.glob(f"{kind}-*.safetensors"))
    numbers = (text for text in found if re.fullmatch(r"-\d+(\.\d+)?(e[+-]\d+)?", text))
    return [float(text) for text in numbers if f"{float(text):g}" == text]


def assert_trained(folders, levels):
    """Return nothing; RecordError unless every folder has a state at every level."""
    for folder in folders:
        lacks = [level for level in levels if not level_path(folder, level).exists()]
        if lacks:
            there = sorted(path.name for path in Path(folder).glob("level-*.safetensors"))
            told = f"{folder} has no {listed(level_path(folder, level).name for level in lacks)}; there is"
            raise RecordError(f"{told} {listed(there)}. Name a folder of trained levels, or none, to train.")


class Journal:
    """What descents leave on disk, each run in a folder of its own: its levels, and where it is on its way to the next.

    folders: one per run, or None, then nothing is kept. recipes: what each run is, `{"type", "seed", ...}`; it stands
    in every file and is compared. A run that ended above a level that it was to reach stays on its way to it.
    """

    def __init__(self, folders, recipes, levels, seconds):
        self.folders = [Path(f) for f in folders] if folders else None
        self.recipes, self.levels, self.seconds, self.saved_at = recipes, levels, seconds, time.monotonic()

    def reached(self, like):
        """Return `[{level: Descent}]`, what every run has reached before."""
        found = [{} for _ in self.recipes]
        for run, folder in enumerate(self.folders or []):
            there = [level for level in self.levels if level_path(folder, level).exists()]
            found[run] = {level: self._state(run, level, like) for level in there}
        return found

    def _state(self, run, level, like, kind="level"):
        """Return the state of a run at a level, or "towards" it; RecordError if its file holds anything else."""
        way_out = "Put the right file there, or delete it and train again."
        return load(level_path(self.folders[run], level, kind), like, self.recipes[run] | {kind: level}, way_out)[0]

    def furthest(self, run, like):
        """Return the furthest state of a run from which its first missing level is ahead; None if there is none.

        Whatever level it was reached at or kept for serves, unless its epoch took it below the missing one already.
        """
        if not self.folders:
            return None
        level, towards = (_levels(self.folders[run], kind) for kind in ("level", "towards"))
        ahead = next(asked for asked in self.levels if asked not in level)
        states = {at: self._state(run, at, like) for at in level if at >= ahead}
        usable = [state for at, state in states.items() if at in self.levels or state.log_loss[0] >= ahead]
        epochs = [int(state.epoch[0]) for state in usable]  # of these one may be below it: one level a time is noted
        on_the_way = [self._state(run, at, like, "towards") for at in towards]
        usable += [s for s in on_the_way if s.log_loss[0] >= ahead or int(s.epoch[0]) in epochs]
        return max(usable, key=lambda state: int(state.attempt[0]), default=None)

    def keep(self, live, state, goals, below, at_once):
        """Write all runs together, `at_once` or where the last time is `seconds` ago.

        goals: the level that each was on its way to; below: the places in `live` of those that are there now.
        """
        if not self.folders or not (at_once or time.monotonic() - self.saved_at >= self.seconds):
            return
        kinds = ["level" if k in below else "towards" for k in range(len(live))]
        paths = [level_path(self.folders[run], *to) for run, *to in zip(live, goals, kinds, strict=True)]
        with disk.together(paths, self.folders[0].parent):
            for k, (run, path) in enumerate(zip(live, paths, strict=True)):
                holds = self.recipes[run] | {kinds[k]: goals[k]}
                save(path, nets.take(state, [k]), {"holds": holds}, later=True)
        self._tidy()
        self.saved_at = time.monotonic()

    def _tidy(self):
        """Return nothing; delete what was kept on the way to levels that were reached."""
        for folder in self.folders:
            for level in self.levels:
                if level_path(folder, level).exists():
                    level_path(folder, level, "towards").unlink(missing_ok=True)

    @contextmanager
    def held(self):
        """Within the block no other process trains any of these runs, in whatever stack and to whatever levels.

        Where nothing is left to train nothing is written, and the folders may be somebody else's.
        """
        asked = [(folder, level) for folder in self.folders or [] for level in self.levels]
        if all(level_path(*at).exists() and not level_path(*at, "towards").exists() for at in asked):
            yield
            return
        with ExitStack() as held:
            for folder in sorted(self.folders):  # everybody locks in one order
                held.enter_context(disk.lock(folder))
            for place in {folder.parent for folder in self.folders}:  # who was waited for may have been killed
                disk.recover(place)
            self._tidy()
            yield
