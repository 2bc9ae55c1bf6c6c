"""One entrant in the arena: its masks, how good they leave the networks, and what training makes of them."""

import copy
import time

import numpy as np
import torch

from lib.networks import nets
from lib.pruning import anatomy, masks, methods, paths, reweight, shrink, shuffle
from lib.records import store
from lib.studies.arena import entrants
from lib.training.evaluate import evaluate_alone

MASKS, STAGES = ("own", "shuffled"), ("raw", "reweighted", "tuned")
BETAS = ("1/N", "10/N")  # candidates for how far the items of a DPP reach
AXES = {  # of the arrays of `fight`, behind the runs
    "accuracy": ("mask", "stage", "sparsity"), "held_out_accuracy": ("mask", "sparsity"),
    "passes": ("mask", "sparsity"), "layer_sparsity": ("sparsity", "layer"), "live_units": ("sparsity", "layer"),
    "layer_effective_sparsity": ("sparsity", "layer"),
}  # fmt: skip


def fight(lab, kind, sparsities):
    """Return what a record says of every run of a type, `{name: (R, ...)}` (see `AXES`), and the seconds a mask took.

    accuracy, on the test set, at once ("raw"), with what stays refitted, and after all training ("tuned"), nan where
    there is no such thing; held_out_accuracy, of the last, and passes, the one after which it was best there, counted
    from the first after pruning or, of what is pruned before, of all; and `anatomy.anatomy`.
    """
    entrant = entrants.get(kind)
    made = {"none": _none, "small": _small}.get(kind) or {"weights": _weights, "units": _units}[entrant.of]
    kept, cells, seconds = made(lab, entrant, list(sparsities))
    net = lab.network()
    each = [anatomy.anatomy(net, mask) for mask in kept]
    left = {name: np.stack([one[name] for one in each], 1) for name in each[0]}
    left["true_sparsity"] = left.pop("sparsity")
    shape = len(lab.seeds), len(MASKS), len(sparsities)
    found = {name: np.full(shape, np.nan) for name in (*STAGES, "held_out_accuracy", "passes")}
    for (mask, k), values in cells.items():
        for name in values.keys() & found.keys():
            found[name][:, mask, k] = values[name]
    return left | {"accuracy": np.stack([found.pop(stage) for stage in STAGES], 2)} | found, seconds


# ---- masks


def chosen(lab, net, found, densities):
    """Return the masks of an entrant at each density, `[{name: bool (R, ...)}]`: of its candidates the best held out.

    An untrained network says nothing of its masks: of that the last candidate counts.
    """
    x_y = _candidates(lab, net, methods.get(found.method, found.of))
    every = [methods.prune_each(net, found.method, densities, x, y, lab.seeds, found.of, **found.options | options)
             for x, y, options in (x_y[-1:] if found.when == "before" else x_y)]  # fmt: skip
    return every[0] if len(every) == 1 else [_best(lab, net, found.of, each) for each in zip(*every, strict=True)]


def _candidates(lab, net, method):
    """Return [(x, y, keywords)] for a method to choose from."""
    if method.needs == "examples":
        return [(*lab.examples(count), {}) for count in sorted(lab.p["score_examples"])]
    if method.needs == "moments":
        read, names = lab.moments(net), list(nets.layers(net))
        sent = dict(zip(names, list(read.values())[1:], strict=False))
        return [(read if method.of == "weights" else sent, None, {"beta": beta}) for beta in BETAS]
    if method.needs == "history":
        return [(methods.score(nets.fold(lab.network()), "magnitude", of="units"), None, {})]
    return [(None, None, {"rounds": lab.p["rounds"]} if method.rounds > 1 else {})]


def _best(lab, net, of, each):
    """Return of masks of one density, run by run, those that leave the most accurate network on the holdout."""
    stacks = (shrink.narrow(net, kept) if of == "units" else masks.apply_(copy.deepcopy(net), kept) for kept in each)
    best = torch.stack([evaluate_alone(stack, *lab.test).accuracy for stack in stacks]).argmax(0).tolist()
    return {name: torch.stack([each[k][name][run] for run, k in enumerate(best)]) for name in each[0]}


# ---- training


def trained(lab, stacks, start, epochs, raw=True):
    """Return [what became of each of the stacks, `{name: (R,)}`, with the masks under which they were trained].

    start: `(lab, stack, runs) -> Trainer` of a part of all of them, which has pruned what goes. After `epochs` more
    the best, on the holdout, of the states after each pass of the recovery counts, of equals the earlier. raw: the
    test set is looked at before these epochs too.
    """

    def train(lab, net, chosen):
        trainer = start(lab, net, chosen)
        found = {"raw": _tested(lab, trainer.net)} if raw else {}
        best, passes, held_out = _best_of_last(trainer, epochs, lab.p["recovery"])
        found |= {"passes": passes, "held_out_accuracy": held_out, "tuned": _tested(lab, best)}
        return found | {"masks": trainer.masks}

    return lab.grid(train, stacks)


def _begun(epoch=0, kept=None):
    """Return a `start` of `trained` for networks with `epoch` passes behind them, under the masks `kept` of all."""

    def start(lab, net, chosen):
        trainer = lab.trainer(net, epoch=epoch)
        trainer.prune(nets.take(kept or {}, chosen))
        return trainer

    return start


def _best_of_last(trainer, epochs, last):
    """Return (networks, passes, accuracies) of a trainer after `epochs` more: see `trained`."""
    trainer.fit(epochs - last)
    runs = len(trainer.seeds)
    net, best, passes = nets.take(trainer.net, list(range(runs))), np.full(runs, -1.0), np.zeros(runs)
    for number in range(epochs - last + 1, epochs + 1):
        accuracy = np.nan_to_num(trainer.fit(1).curve("test_accuracy")[:, -1])
        better = accuracy > best
        best, passes = np.where(better, accuracy, best), np.where(better, number, passes)
        for old, now in zip(net.state_dict().values(), trainer.net.state_dict().values(), strict=True):
            old[better] = now[better]
    return net, passes, best


def _tested(lab, net):
    return evaluate_alone(net, *lab.final).accuracy.cpu().numpy()


# ---- what enters: (lab, entrant, sparsities) -> (masks, what is known by (mask, sparsity), seconds that a mask took)


def _none(lab, found, sparsities):
    """Nothing is pruned, and training goes on as that of all others."""
    (said,) = trained(lab, [lab.dense()], _begun(lab.p["epochs"]), lab.p["recovery"])
    return [{}] * len(sparsities), {(0, k): said for k in range(len(sparsities))}, 0.0


def _small(lab, found, sparsities):
    """Networks of the widths that methods of units leave, from scratch, for as many epochs in all."""
    kept, cells, full = [], {}, entrants.network(lab.p, len(lab.seeds))
    for k, sparsity in enumerate(sparsities):
        left = shrink.first(full, entrants.widths(full, entrants.unit_density(full, sparsity)))
        (cells[0, k],) = trained(lab, [lab.network(left)], _begun(), lab.p["epochs"] + lab.p["recovery"], raw=False)
        kept.append(_between(full, left))
    return kept, cells, 0.0


def _units(lab, found, sparsities):
    """Units go after training; what stays is trained as the physically smaller stack, the same function."""
    net, began, cells = lab.dense(), time.perf_counter(), {}
    units = chosen(lab, net, found, [entrants.unit_density(net, sparsity) for sparsity in sparsities])
    seconds = (time.perf_counter() - began) / len(units) / len(lab.seeds)
    read = lab.moments(net) if lab.p["reweighting"] != "none" and isinstance(net, nets.MLP) else None
    for k, left in enumerate(units):
        (cells[0, k],) = trained(lab, [shrink.narrow(net, left)], _begun(lab.p["epochs"]), lab.p["recovery"])
        if read:
            cells[0, k]["reweighted"] = _tested(lab, shrink.narrow(_refitted(net, left, read), left))
    return [_between(net, left) for left in units], cells, seconds


@torch.no_grad()
def _between(net, units):
    """Return masks of the weights between the units of a stack that stay, `{name: bool (R, O, *F)}`."""
    ones = copy.deepcopy(net)
    for weight in nets.weights(ones).values():
        weight.fill_(1)
    wide = shrink.widen(shrink.narrow(ones, units), ones, units)
    return {name: weight.bool() for name, weight in nets.weights(wide).items()}


def _weights(lab, found, sparsities):
    """Weights go before training or after it, their masks shuffled within layers where that is asked for, or during."""
    if found.when == "during":
        return _gradual(lab, found, sparsities)
    before = found.when == "before"
    net = lab.network() if before else lab.dense()
    began = time.perf_counter()
    kept = chosen(lab, net, found, [1 - sparsity for sparsity in sparsities])
    seconds = (time.perf_counter() - began) / len(kept) / len(lab.seeds)
    kept = [paths.complete(mask, nets.weights(net)) for mask in kept]
    every = {(0, k): mask for k, mask in enumerate(kept)}
    every |= {(1, k): shuffle.shuffled(nets.graph(net), kept[k], lab.seeds)
              for k, sparsity in enumerate(sparsities) if sparsity in lab.p["shuffle_at"]}  # fmt: skip
    start = _begun(0 if before else lab.p["epochs"], nets.join(every.values()))
    said = trained(lab, [net] * len(every), start, lab.p["epochs"] * before + lab.p["recovery"], raw=not before)
    cells = dict(zip(every, said, strict=True))
    if not before and lab.p["reweighting"] == "all" and isinstance(net, nets.MLP):
        read = lab.moments(net)
        for k, mask in enumerate(kept):
            cells[0, k]["reweighted"] = _tested(lab, _refitted(net, mask, read))
    return kept, cells, seconds


def _gradual(lab, found, sparsities):
    """Weights go during training, ever more of them, see `Lab.gradual`; scores are of the network of that moment."""
    each = [sparsity for sparsity in sparsities for _ in lab.seeds]

    def start(lab, net, chosen):
        def masks_at(trainer, densities):
            *_, (x, y, options) = _candidates(lab, trainer.net, methods.get(found.method))
            return methods.prune(trainer.net, found.method, densities, x, y, lab.seeds,
                                 within=trainer.masks or None, **found.options | options)  # fmt: skip

        return lab.gradual(net, nets.take(each, chosen), lab.p["epochs"], masks_at, {"gradual": found.method})

    said = trained(lab, [lab.network()] * len(sparsities), start, lab.p["recovery"])
    return [one.pop("masks") for one in said], {(0, k): one for k, one in enumerate(said)}, 0.0


def _refitted(net, kept, read):
    """Return a copy of an MLP whose layers say, by least squares on what they `read`, what the whole ones said.

    kept: masks of weights, or of units. A constant joins where the layer has a bias.
    """
    net, layers = copy.deepcopy(net), nets.layers(net)
    for name, mask in kept.items():
        if mask.dim() == 2:
            after = reweight.next_layer(net, name)
            how = {"intercept": layers[after].bias is not None}
            reweight.units_(net, {name: mask}, nets.ACTIVATIONS[net.activation], read[after], **how)
        else:
            layer = name.removesuffix(".weight")
            reweight.edges_(net, {name: mask}, read[layer], layers[layer].bias is not None)
    return net


def record(lab, kind, found, seconds):
    """Return the scores, cost, arrays and axes of the first run, for `Run.save`; found, seconds: of `fight`."""
    net, one = lab.network(), entrants.get(kind)
    axes = {"sparsity": lab.p["sparsities"], "mask": MASKS, "stage": STAGES, "layer": list(nets.layers(net))}
    return {
        "scores": {"tuned_last": float(found["accuracy"][0, 0, -1, -1]), "of": one.of or "control", "when": one.when},
        "cost": {"mask_seconds": seconds, "dense_macs": nets.macs_per_run(net),
                 "dense_parameters": nets.parameters_per_run(net)},
        **store.of_run(found, 0, {name: AXES.get(name, ("sparsity",)) for name in found}, axes),
    }  # fmt: skip
