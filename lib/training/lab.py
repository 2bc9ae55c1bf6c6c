"""The frame of a study: what all of its types share, networks that are trained once, and trainings in parts."""

from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

from lib.networks import nets
from lib.records import disk, runs
from lib.training import checkpoint, once, stacking
from lib.training.trainer import BATCH, Trainer


@dataclass
class Lab:
    """Data as `(x, y)`, one seed per run, and how networks are made and trained; a study adds its own numbers.

    recipe: names the folders of trained networks (`runs.trained`), which are kept and taken again; rule: keywords of
    `Trainer`; build: `(lab, ...) -> networks as they start`, one per seed of the lab; watch: test examples looked at
    after every epoch, 0 for all; stack: runs trained together, 0 for as many as do best; states: for `Trainer.fit`, of
    trainings that go on after a kill: see `keeping`.
    """

    train: tuple
    test: tuple
    seeds: list
    recipe: dict
    rule: dict = field(default_factory=dict)
    build: Callable | None = None
    watch: int = 0
    stack: int = 0
    states: checkpoint.States | None = None

    def network(self, *args, **options):
        """Return the networks as they start, one per seed, on the device of the data; arguments: of `build`."""
        return self.build(self, *args, **options).to(self.train[0].device)

    def trainer(self, net, **options):
        """Return a `Trainer` of a stack of these seeds, by the rule and other `options`."""
        watched = tuple(part[: self.watch or None] for part in self.test)
        return Trainer(net, self.train, watched, self.seeds, **self.rule | options)

    def of(self, chosen):
        """Return the lab of the runs in the list `chosen`."""
        return replace(self, seeds=[self.seeds[run] for run in chosen])

    def dense(self, epochs, net=None, **recipe):
        """Return (networks trained for `epochs`, their history), trained now or some time before.

        net: as they start, `network()` if None; recipe: what else they depend on that the recipe of the lab lacks.
        """
        start = self.network() if net is None else net
        shared = self.recipe | {"type": "dense", "epochs": epochs} | recipe

        def train(net, missing, states):
            trainer = self.of(missing).trainer(net).fit(epochs, states)
            return trainer.net, trainer.curves()

        return once.obtain(start, [shared | {"seed": seed} for seed in self.seeds], train, self.together(start))

    def together(self, net):
        """Return how many runs of `net` are trained together."""
        return stacking.width(net, self.rule.get("batch", BATCH), self.stack)

    def split(self, work, net):
        """Return what `work(lab, stack, runs)` gives of consecutive runs of `net`, copied, in one: see `nets.join`.

        As many at a time as are trained together.
        """
        runs = list(range(nets.runs(net)))
        parts = stacking.split(lambda own: work(self.of(own), nets.take(net, own), own), runs, self.together(net))
        return nets.join(found for _, found in parts)

    def grid(self, work, stacks):
        """Return [what `split` gives of each of `stacks`], one run per seed in each, which are trained together."""
        runs, grid = len(self.seeds), replace(self, seeds=list(self.seeds) * len(stacks))
        whole = grid.split(work, nets.join(stacks))
        return [nets.take(whole, list(range(k * runs, (k + 1) * runs))) for k in range(len(stacks))]

    def gradual(self, net, sparsities, epochs, masks_at, of, **options):
        """Return a `Trainer` that trained `net` for `epochs` while ever more of it was pruned (arXiv 1710.01878).

        Before epoch e of E the sparsity is raised to s (1 - (1 - e/E)³), with s the final one, of `sparsities`, one per
        run; without epochs all is pruned at once. masks_at: `(trainer, densities) -> masks`; of: as of `rounds`.
        """
        trainer = self.trainer(net, **options)
        for number in trainer.rounds([min(epochs, 1)] * max(epochs, 1), self.states, of):
            share = 1 - (1 - (number + 1) / epochs) ** 3 if epochs else 1
            trainer.prune(masks_at(trainer, [1 - sparsity * share for sparsity in sparsities]))
        return trainer

    @contextmanager
    def keeping(self):
        """Return a context of this lab whose trainings go on where they were killed; their files go with the record."""
        disk.discard()
        states = checkpoint.States(runs.trained(self.recipe | {"type": "states", "seed": 0}).parent)
        yield replace(self, states=states)
        disk.spend(states.paths, runs.folder())
