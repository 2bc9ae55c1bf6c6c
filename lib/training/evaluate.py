"""How good a stack of networks is: log-loss and accuracy of every run, in passes of a bounded size."""

import math
from dataclasses import dataclass

import torch

from lib.kernels import twins
from lib.networks import nets
from lib.pruning import checks

# Examples of one run that go through at once, at the most.
CHUNK = {"cpu": 1000, "cuda": 20_000}
# A CPU is fastest where a linear layer's activations stay in the cache of a core, 512 KiB of one run: of 1,024 units,
# 128 examples at once go through twice as fast as 1,000.
CACHE = 2**17
# A convolution has many more activations than inputs: no more of them in a layer than this, 32 MiB of one run, and
# 1 GiB of all runs. (On one core, 16 to 256 images of the 64-filter VGG at once are equally fast within a tenth.)
ACTIVATIONS = {"cpu": 2**23, "cuda": 2**28}


@dataclass
class Evaluation:
    """What one pass over N examples says of R runs; each tensor is (R,) float64.

    log_loss: the natural log of the mean cross-entropy; accuracy in [0, 1]; top5: the share of examples whose class is
    among the five largest logits, nan unless asked for. Both are nan where the loss is, though the argmax is class 0.
    """

    log_loss: torch.Tensor
    accuracy: torch.Tensor
    top5: torch.Tensor


@torch.no_grad()
def evaluate(net, x, y, top5=False):
    """Return the `Evaluation` of every run of `net` on `x (N, I)`, or `(R, N, I)` of its own, and `y (N,)`.

    The pass is made in `eval()` mode. top5: count that too. ValueError for what it does not read, and for no class.
    """
    y = checks.labels(net, x, y)
    size, n, losses, correct = chunk(net), len(y), [], 0
    among5 = torch.full_like(y[:1], 0 if top5 else math.nan, dtype=torch.float64).expand(nets.runs(net))
    with nets.mode(net, training=False):
        for start in range(0, n, size):
            part = slice(start, start + size)
            logits = net(x[..., part, :])
            losses.append(twins.log_losses(logits, y[part]).double())
            correct = correct + (logits.argmax(2) == y[part]).sum(1)
            among5 = among5 + _among(logits, y[part], 5) if top5 else among5
    total = torch.cat(losses, 1).logsumexp(1) - math.log(n)
    shares = ((count.double() / n).masked_fill(total.isnan(), math.nan) for count in (correct, among5))
    return Evaluation(total, *shares)


def evaluate_alone(net, x, y, top5=False):
    """Return the `Evaluation` of every run, made of one after the other: of what no neighbour can round otherwise.

    For what is said of trained networks; while they train, `evaluate` shares a pass. x: `(N, I)`.
    """
    return nets.join(evaluate(alone, x, y, top5) for alone in nets.apart(net))


def _among(logits, y, most):
    """Return how many examples have the logit of their class among the `most` largest, `(R,)`; a NaN is above all.

    Of equal logits the first counts as larger, as for `argmax`: a constant output is no answer to most examples.
    """
    own = logits.gather(2, y.expand(logits.shape[:2])[..., None])
    before = torch.arange(logits.shape[2], device=y.device) < y[:, None]
    return ((~(logits <= own) | (logits == own) & before).sum(2) < most).sum(1)


def chunk(net, device=""):
    """Return how many examples of every run go through at once, on the device of `net` or a `device` by name."""
    device = device or next(iter(nets.weights(net).values())).device.type
    if device != "cpu":  # a GPU's memory is the bound, a CPU's cache is a run's
        return max(1, min(CHUNK["cuda"], ACTIVATIONS["cuda"] // (nets.widest(net) * nets.runs(net))))
    linear = [layer.scale.shape[1] for layer in nets.layers(net).values() if layer.positions == 1]
    return max(1, min(CHUNK["cpu"], ACTIVATIONS["cpu"] // nets.widest(net), CACHE // max(linear, default=1)))
