"""Which examples an attempt of a descent needs, by the log-losses that were measured last.

Deep down, the mean loss is that of a few: an example whose log-loss lies T nats below the mean's log ℓ has e^-T of a
mean example's pull. What lies beyond the rounding of the precision changes no weight, and need not be trained on; what
lies further still changes no log-loss that decides, and need not be measured each time. A loss may come back, so both
bounds leave room for it, and `measure` says when that was not enough: who asked then takes the attempt again, whole.
"""

import math
from typing import NamedTuple

import torch

from lib.kernels import twins
from lib.networks import nets
from lib.training import evaluate

# Nats beyond the rounding unit eps of the precision, whose log is -16 in float32 and -36 in float64: nearer than
# -log eps nobody may be left out. Within RISE of that an example is trained on, so that one left out may rise by as
# much in one attempt (6 nats were the most seen, of any example, in descents of MNIST). Within ROOM it is measured in
# every accepted attempt: what is left adds e^-(16 + ROOM) of the loss, below 1e-9 even if it has risen by RISE.
RISE, ROOM = 4.0, 14.0


class Measured(NamedTuple):
    """What a pass says of R runs: log-losses (R, N) of the examples, (R,) of the mean.

    losses: of what was not looked at they are as before; right (R,): the share of examples whose class has the largest
    logit; moved (R,): the most by which a loss that was looked at rose towards the mean's, 0 where all were; complete:
    the pass was not broken off; returned: an example that was left out of the training came so near that it counts.
    """

    losses: torch.Tensor
    log_loss: torch.Tensor
    right: torch.Tensor
    moved: torch.Tensor
    complete: bool
    returned: bool


def rounding(dtype):
    """Return how many nats below the mean's log an example's loss is lost in rounding: 16 in float32, 36 in float64."""
    return -math.log(torch.finfo(dtype).eps)


def counted(losses, level, dtype):
    """Return which examples are trained on, bool `(R, N)`: within rounding and RISE of the log-losses `level (R,)`."""
    return losses > (level - rounding(dtype) - RISE)[:, None]


@torch.no_grad()
def measure(steps, x, y, losses, level, trained, moved, goals):
    """Return the `Measured` of a stack after an attempt that began at `level (R,)`, `losses (R, N)` measured before.

    steps: what takes its passes (`passes.make`); trained: bool (R, N), what was trained on. The examples with the
    largest losses come first, and the pass is broken off as soon as every run is certainly not below its level: all
    terms are positive, so a partial sum decides. Then the nearest of those left out are looked at. A pass that is not
    broken off takes all within ROOM; and what is beyond too, where that may have come near since all were looked at,
    others having moved by `moved (R,)`, or where a run is below its `goals (R,)`, so that its level will be kept.
    """
    hardness = (losses - level[:, None]).amax(0)
    order, near = hardness.argsort(descending=True, stable=True), int(trained.any(0).sum())
    depth = rounding(next(steps.net.parameters()).dtype)
    needed = max(near, int((hardness > -depth - ROOM).sum()))
    look, limit = _Look(steps, x, y, losses), level - depth
    with nets.mode(steps.net, training=False):
        complete = look.at(order[:needed], level)
        if not complete:  # what is far less than the loss rose by has not decided that it did
            limit = torch.maximum(limit, level + (look.total - level).nan_to_num(nan=torch.inf).log() - RISE)
            look.at(order[near : near + look.size])
        moved = moved + ((look.losses - losses).amax(1) + level - look.log_loss()).clamp_min(0)
        if complete and bool(((moved > ROOM) | (look.log_loss() < goals)).any()):
            look.at(order[needed:])
    if look.seen == len(order):
        moved = torch.zeros_like(moved)
    returned = bool(((look.losses > limit[:, None]) & ~trained).any())
    right = (look.right + len(y) - look.seen) / len(y)  # far below the mean's log is far above one half
    return Measured(look.losses, look.log_loss(), right, moved, complete, returned)


class _Look:
    """A pass that can be broken off and gone on with."""

    def __init__(self, steps, x, y, losses):
        self.steps, self.x, self.y, self.losses = steps, x, y, losses.clone()
        self.size = evaluate.chunk(steps.net)
        self.total, self.right, self.seen = torch.full_like(losses[:, 0], -math.inf), 0, 0

    def at(self, order, level=None):
        """Look at the examples `order`; return False as soon as no run's mean loss is below `level (R,)`, if given."""
        for part in order.split(self.size):
            logits, y = self.steps.logits(self.x, part), self.y[part]
            losses = twins.log_losses(logits, y).double()
            self.losses[:, part] = losses
            self.right, self.seen = self.right + (logits.argmax(2) == y).sum(1).double(), self.seen + len(part)
            self.total = torch.logaddexp(self.total, losses.logsumexp(1) - math.log(len(self.y)))
            # `not <` instead of `>=`: a run whose loss is no longer a number is lost too.
            if level is not None and bool((~(self.total < level)).all()):
                return False
        return True

    def log_loss(self):
        """Return the log of the mean loss by all that is known, `(R,)`."""
        return self.losses.logsumexp(1) - math.log(self.losses.shape[1])
