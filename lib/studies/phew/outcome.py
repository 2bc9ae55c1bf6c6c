"""What pruning at initialisation leaves of networks, and what they learn: all that a record holds."""

import numpy as np
import torch

from lib.networks import nets
from lib.pruning import anatomy, methods, paths, synflow
from lib.records import store
from lib.records.parameters import without
from lib.studies.phew import study
from lib.training.evaluate import evaluate_alone

# The axis of each array of `measure`, `conservation` and `train`, behind that of the densities.
AXES = {
    "layer_sparsity": "layer", "layer_effective_sparsity": "layer", "live_units": "layer", "active_units": "layer",
    "score_in": "unit", "score_out": "unit", "train_loss": "epoch", "train_accuracy": "epoch",
    "watched_accuracy": "epoch",
}  # fmt: skip


def measure(starts):
    """Return what is left of every run and density, `{name: (R, D, ...)}`: `anatomy.anatomy`, and two more.

    active_units, by layer, those that keep an incoming weight, on a live path or not; log_path_kernel, the natural log
    of the trace of the path kernel at the start of training, nan where nothing is left of it.
    """
    each = []
    for start in starts:
        left = anatomy.anatomy(start.net, start.masks)
        left["active_units"] = torch.stack([m.flatten(2).any(2).sum(1) for m in start.masks.values()], 1).cpu().numpy()
        trace = synflow.path_kernel(start.net, start.masks).cpu().numpy()
        left["log_path_kernel"] = np.log(np.where(trace > 0, trace, np.nan))
        each.append(left)
    return {name: np.stack([left[name] for left in each], 1) for name in each[0]}


def conservation(lab, kind):
    """Return score_in and score_out, `{name: (R, units)}`: sums of a type's scores over weights into and out of a unit.

    Of the dense network, and of hidden units without an identity shortcut, whose flow passes no weight; in shares of
    the mean of the first. A score is conserved where both are equal (arXiv 2006.05467). {} for types without scores.
    """
    method, options = study.method_of(kind)
    if method is None or method.draws or method.name == "random":
        return {}
    net = lab.network()
    x, y, options = study.given(lab, method, without(options, study.AROUND))
    scores = methods.score(net, method.name, x, y, lab.seeds, **options)
    into, out_of = balance(nets.graph(net), {name: score.double() for name, score in scores.items()})
    scale = into.mean(1, keepdim=True)
    return {"score_in": (into / scale).cpu().numpy(), "score_out": (out_of / scale).cpu().numpy()}


def balance(hops, scores):
    """Return the sums of `scores` `{name: (R, O, I, *F)}` into, and out of, units: see `conservation`."""
    sizes = paths.widths(hops, scores)
    through = {node for hop in hops if hop.layer is None for node in (hop.source, hop.target)}
    chosen = [node for node in sizes if node not in through and 0 < node < max(sizes)]
    into, out_of = (dict.fromkeys(chosen, 0) for _ in range(2))
    for hop in (hop for hop in hops if hop.layer):
        score = scores[f"{hop.layer}.weight"]
        if hop.target in into:
            into[hop.target] = into[hop.target] + score.flatten(2).sum(2)
        if hop.source in out_of:
            by_input = score.sum(1).flatten(2).sum(2) if score.dim() > 3 else score.sum(1)
            out_of[hop.source] = out_of[hop.source] + by_input.unflatten(1, (sizes[hop.source], -1)).sum(2)
    return tuple(torch.cat([side[node] for node in chosen], 1) for side in (into, out_of))


def train(lab, kind, starts):
    """Return what training under the masks of `starts` gave, `{name: (R, D) or, by epoch, (R, D, T)}`.

    test_accuracy, test_top5, test_loss: of all test images after the last epoch; by epoch, entry 0 before the first:
    train_loss and train_accuracy, counted over the epoch while weights change, and watched_accuracy, of the watched
    test images. seconds: of one run's training. Killed and called again, it goes on where it was.
    """
    each = [_tested(lab, *lab.dense(lab.epochs))] if kind == "dense" else _under_masks(lab, starts)
    return {name: np.stack([one[name] for one in each], 1) for name in each[0]}


def _under_masks(lab, starts):
    """Return what is said of each of the starts after training, `[{name: (R, ...)}]`."""
    kept = nets.join(start.masks for start in starts)

    def train(lab, net, chosen):
        trainer = lab.trainer(net, starts[0].epochs)
        trainer.prune(nets.take(kept, chosen))
        trainer.fit(lab.epochs, lab.states)
        return _tested(lab, net, trainer.curves())

    with lab.keeping() as lab:
        return lab.grid(train, [start.net for start in starts])


def _tested(lab, net, history):
    tested = evaluate_alone(net, *lab.test, top5=True)
    loss, accuracy, top5 = (tensor.cpu().numpy() for tensor in (tested.log_loss, tested.accuracy, tested.top5))
    return {
        "test_accuracy": accuracy, "test_top5": top5, "test_loss": np.exp(loss), "seconds": history["seconds"][:, -1],
        "train_loss": history["train_loss"], "train_accuracy": history["train_accuracy"],
        "watched_accuracy": history["test_accuracy"],
    }  # fmt: skip


def record(arrays, start, run, along, at):
    """Return the scores, cost, arrays and axes of one run's record, for `Run.save`.

    arrays: with the runs first, see `AXES`; start: the first of its `Start`s; along, at: what the axis behind the runs
    is called, and its coordinates. Scores are accuracies at the last of these, none where nothing was trained; cost is
    the seconds of one mask, and what the dense network has.
    """
    axes = {name: (along, AXES[name])[-(values.ndim - 1) :] if name in AXES else (along,)
            for name, values in arrays.items()}  # fmt: skip
    whole = {"dense_macs": nets.macs_per_run(start.net), "dense_parameters": nets.parameters_per_run(start.net)}
    return {
        "scores": {f"{name}_last": arrays[name][run, -1] for name in ("test_accuracy", "test_top5") if name in arrays},
        "cost": {"mask_seconds": start.seconds, **whole},
        **store.of_run(arrays, run, axes, {"layer": list(nets.layers(start.net)), along: at}),
    }
