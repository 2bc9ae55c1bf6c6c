"""The arena: what all entrants share, networks that are trained once, one schedule, a holdout that chooses.

Whatever is chosen, which examples a score reads, how far the items of a DPP reach, after which pass training ends, is
chosen by images that were held out of training. The test set is looked at once, when all of that is over.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from lib import draws
from lib.data import images
from lib.data.sets import Data
from lib.errors import RecordError
from lib.networks import nets
from lib.pruning import likelihood, shrink
from lib.records import runs
from lib.studies.arena import entrants
from lib.training import descend
from lib.training import lab as frame


def build(lab, units=None):
    """Return the networks as they start, one per seed: narrow ones, of the `units` that masks keep, if given."""
    net = entrants.network(lab.p, len(lab.seeds))
    net = net if units is None else shrink.narrow(net, units)
    return nets.init_(net, lab.seeds, "torch_kaiming" if lab.p["net"] == "mlp" else "phew")


@dataclass(kw_only=True)
class Lab(frame.Lab):
    """What all entrants share, see `frame.Lab`; its test set, and that of `data`, is the holdout; `final` the test set.

    p: the parameters of the notebook, where they are explained.
    """

    build: Callable = build
    data: Data
    final: tuple
    p: dict

    def trainer(self, net, epoch=0):
        """Return a `Trainer` of a stack that has `epoch` passes behind it: the order and the rate of all entrants."""
        batches = images.Augmented(self.data, self.seeds) if self.p["augment"] else None
        return super().trainer(net, epoch=epoch, batches=batches)

    def dense(self):
        """Return the plain twins of the trained networks, trained now or some time before."""
        return nets.fold(self._descended() if self.p["level"] else super().dense(self.p["epochs"])[0])

    def _descended(self):
        """Return the networks at the log-loss `level`; RecordError for one that did not get there."""
        start, level = self.network(), self.p["level"]
        recipes = [self.recipe | {"type": self.p["norm"], "seed": seed} for seed in self.seeds]
        reached, _ = descend.descend(start, self.data, self.seeds, [level], folders=[*map(runs.trained, recipes)],
                                   recipes=recipes, batch=self.rule["batch"], stack=self.stack)  # fmt: skip
        if lost := [seed for seed, found in zip(self.seeds, reached, strict=True) if level not in found]:
            raise RecordError(f"seeds {lost} did not reach a log-loss of {level}; ask for a higher level.")
        return nets.join([found[level].net for found in reached])

    def examples(self, count):
        """Return (x, y), `(R, count, I)` and `(R, count)`: training images of each run's own choice, as they are."""
        chosen = [draws.permutation(seed, "examples", 0, len(self.data.train_y))[:count] for seed in self.seeds]
        index = torch.from_numpy(np.stack(chosen)).to(self.data.device)
        return images.standardise(self.data.train_x[index], self.data.mean, self.data.std), self.data.train_y[index]

    def moments(self, net):
        """Return the `Moments` of what every layer of an MLP reads on the training images, `{layer: (R, I, I)}`."""
        names = list(nets.layers(net))
        images = self.data.split("train")[0] if self.p["augment"] else self.train[0]
        each = [[likelihood.moments(images, lambda part, k=k, alone=alone: _sent(alone, part, k))
                 for k in range(len(names))] for alone in nets.apart(net)]  # fmt: skip
        return {name: likelihood.joined(parts) for name, *parts in zip(names, *each, strict=True)}


def _sent(net, x, count):
    """Return what the first `count` layers of one MLP send to the next, `(1, N, units)`."""
    x = x[None] if x.dim() == 2 else x
    for layer in list(nets.layers(net).values())[:count]:
        x = nets.ACTIVATIONS[net.activation](layer(x))
    return x


def lab(data, final, p, seeds):
    """Return the `Lab` of these seeds on a `Data` with a holdout, and the test set `final`, from parameters `p`."""
    rule = {name: p[name] for name in ("rule", "lr", "momentum", "nesterov", "weight_decay", "bf16")}
    rule |= {"batch": p["batch_size"], "drops": [drop for drop in p["drops"] if drop]}
    recipe = {"name": f"{data.name}-arena", **{name: p[name] for name in ("net", "holdout", "train_examples")}}
    recipe |= {"hidden": p["hidden"]} if p["net"] == "mlp" else {"width": p["width"]}
    recipe |= {"augment": p["augment"]} if p["augment"] or p["net"] != "mlp" else {}  # older names of MLPs lack it
    recipe |= {"batch": p["batch_size"]} if p["level"] else {"norm": p["norm"]} | rule
    # Augmented batches are made of bytes: a standardised copy of all images would lie there unused.
    train = (data.train_x.flatten(1), data.train_y) if p["augment"] else data.split("train")
    return Lab(train, data.split("test"), list(seeds), recipe, rule | {"bar": False}, stack=p["stack"], data=data,
               final=final, p=p)  # fmt: skip
