"""What is drawn, ranked or measured of a trained network has the same bits alone and in a stack of three.

Float32 products of a stack round otherwise than those of one run, which is enough for a draw to go another way.
"""

import numpy as np
import pytest
import torch

from lib import contribution, convnets, likelihood, methods, nets, reweight, sets, synflow
from lib.pruning.masks import top
from lib.studies.challenge import modes
from lib.studies.dpp import committee, committee_study, kinds
from lib.studies.dpp import study as dpp_study
from lib.studies.importance import vae, vae_study
from lib.training.evaluate import evaluate_alone
from tests.shown import SHOWN

SEEDS = [1, 2, 3]
DIGITS = sets.load("digits")
IMAGES, Y = (part[:257] for part in DIGITS.split("train"))
X = IMAGES.view(-1, 28, 28)[:, ::2, ::2].flatten(1).contiguous()  # every second pixel of every second line
OWN = torch.stack([X[k : k + 101] for k in range(3)])


def started(net, seeds):
    """Return the stack with weights and biases as a training may leave them, of each run's own seed."""
    nets.init_(net, seeds, "xavier_uniform")
    for run, seed in enumerate(seeds):
        stream = torch.Generator().manual_seed(seed)
        for layer in nets.layers(net).values():
            if layer.bias is not None:
                layer.bias.data[run] = torch.randn(layer.bias.shape[1], generator=stream)
    return net


def sigmoid(widths=(37,)):
    return started(nets.MLP([196, *widths, 10], ["no-WN"] * 3, "sigmoid", output_bias=True), SEEDS)


def relu():
    return started(nets.MLP([196, 50, 29, 10], ["no-WN"] * 3, bias=False), SEEDS)


def convolutions():
    return started(convnets.VGG((1, 28, 28), 10, ["no-WN"] * 3, 1, [(5,), (7,)], biases=True, batch_norm=True), SEEDS)


def autoencoder():
    return started(vae.VAE((1, 28, 28), 3, (41, 64), 20), SEEDS)


def students():
    return committee.students(SEEDS, 60, 6)


def made_by(method):
    """Scores, or masks of a method that draws."""

    def make(net, seeds):
        given = IMAGES if hasattr(net, "image") else X, Y, seeds
        return method.function(net, [0.1], *given)[0] if method.draws else method.function(net, *given)

    return make


def own_examples(method):
    def make(net, seeds):
        at = [SEEDS.index(seed) for seed in seeds]
        return method.function(net, [OWN[at]], [Y[None, :101].expand(len(at), -1)], seeds)

    return make


def annealed(kind):
    return lambda net, seeds: methods.prune(net, kind, 0.05, rounds=5, seeds=seeds)


def of_units(**options):
    return lambda net, seeds: contribution.contributing(net, X, None, None, **options)


def of_autoencoder(preactivation):
    def make(net, seeds):
        drawn = vae_study.noise(seeds, "latent of the score", 1, len(X), net.latent)
        how = {"noise": drawn, "preactivation": preactivation}
        return contribution.contributing(net, DIGITS.train_x[: len(X)].flatten(1), None, None, **how)

    return make


def dpp(kind, on="activation"):
    def make(net, seeds):
        found, edges = dpp_study.items(net, X, on), kind.endswith("edge")
        options = {"beta": "median"} if kind.startswith("dpp") else {}
        arrays = dpp_study.accuracies(kind, net, [20, 90] if edges else [5, 20], seeds, found, (X, Y), options)
        arrays["entries"] = dpp_study.entries(kind, net, found)
        return {name: torch.from_numpy(np.asarray(array)) for name, array in arrays.items()} | {
            "units": found.units.gram, "outputs": found.outputs.mean, "matrices": dpp_study.matrices(kind, net, found),
        }  # fmt: skip

    return make


def set_drawn(kind):
    def make(net, seeds):
        keep, options = ([60] if kind.endswith("edge") else [15]), {"beta": "median"} if kind.startswith("dpp") else {}
        ((mask, *_),) = dpp_study.pruned(kind, net, keep, seeds, dpp_study.items(net, X), options)
        return mask

    return make


def refitted(net, seeds):
    kept = top({"": nets.layers(net)["layers.0"].weight.detach().abs()}, 0.3, "unit")[""]
    weight, shift = reweight.refit(nets.layers(net)["layers.0"].weight.detach(), kept, likelihood.moments(X))
    return {"weight": weight, "shift": shift}


def student_errors(kind):
    def make(net, seeds):
        parts = []
        for run, seed in enumerate(seeds):
            mine, its = nets.take(net, [run]), committee.teachers([seed], 60)
            found = dpp_study.items(mine, committee.many(seed, 60, 500, "train")[0], "preactivation")
            keep = [12] if kind.endswith("edge") else [3]
            drawn = committee.many(seed, 60, 500)
            parts.append(committee_study.errors(kind, mine, its, keep, seed, 0.0, found, drawn, 3))
        return {name: torch.from_numpy(np.stack([part[name] for part in parts])) for name in parts[0]}

    return make


def order_of_units(net, seeds):
    return nets.weights(committee.matched(committee.normalised(net), committee.teachers(seeds, 60)))


def challenged(kind, scope):
    def make(net, seeds):
        lab = modes.Lab((X, Y), (X, Y), seeds, {"name": "x"}, hidden=(50, 29), scope=scope)
        kept, units = modes.chosen(lab, net, kind, 0.6)
        found = modes._pruned_at_once(lab, net, kept, units)
        return kept | {"accuracy": torch.from_numpy(found.test_accuracy)}

    return make


def ranked(kind):
    def make(net, seeds):
        return methods.score(net, kind, X, Y, seeds, of="units")

    return make


def by_norm(net, seeds):
    return {f"{name} {layer}": kept for name, found in norms(net).items() for layer, kept in found.items()}


def norms(net):
    found = nets.unit_norms(net)
    return {"norm": found, "kept": top(found, 0.4)}


def measured(net, seeds):
    return vars(evaluate_alone(net, X, Y, top5=True))


MADE = {
    **{f"{method.name} of {net.__name__}": (net, made_by(method))
       for method in [*map(methods.get, methods.names()), *SHOWN] for net in (sigmoid, convolutions)},
    **{f"{method.name}, own examples": (relu, own_examples(method))
       for method in [*map(methods.get, ("snip", "grasp")), *SHOWN]},
    **{f"annealed {kind}": (net, annealed(kind)) for kind in ("synflow", "synflow_l2") for net in (relu, convolutions)},
    **{f"contribution, {on}": (relu, of_units(on=on)) for on in contribution.ON},
    "largest contribution": (relu, of_units(average=0.5, maximum=0.5)),
    **{f"autoencoder, {before}": (autoencoder, of_autoencoder(before)) for before in (False, True)},
    **{kind: (sigmoid, dpp(kind)) for kind in kinds.KNOWN},
    **{f"{kind}, twenty units": (lambda: sigmoid((20,)), set_drawn(kind)) for kind in kinds.KNOWN},
    **{f"{kind}, two layers": (lambda: sigmoid((23, 19)), set_drawn(kind)) for kind in kinds.KNOWN},
    "dpp_node of preactivations": (sigmoid, dpp("dpp_node", "preactivation")),
    **{f"students, {kind}": (students, student_errors(kind)) for kind in kinds.KNOWN},
    "order of students' units": (students, order_of_units),
    "refit": (sigmoid, refitted),
    **{f"challenge, {kind} {scope}": (relu, challenged(kind, scope))
       for kind in modes.KINDS for scope in ("layer", "global")},
    **{f"while training, {kind}": (relu, ranked(kind)) for kind in methods.names("units")},
    "norms": (relu, by_norm),
    "norms of filters": (convolutions, by_norm),
    "accuracy": (sigmoid, measured),
    "path kernel": (convolutions, lambda net, seeds: {"trace": synflow.path_kernel(net, {})}),
}  # fmt: skip


@pytest.mark.parametrize("name", MADE)
def test_alone_is_as_in_a_stack(name):
    build, make = MADE[name]
    net = build()
    together = make(net, SEEDS)
    assert together
    for run, seed in enumerate(SEEDS):
        alone = make(nets.take(net, [run]), [seed])
        for part, value in together.items():
            assert torch.equal(value[[run]], alone[part]), part


def test_a_neighbour_that_overflows_changes_no_precision():
    """The flow of a stack is computed in float64 where float32 cannot hold it; of the others it could."""
    net = relu()
    net.layers[0].weight.data[2] *= 1e30
    together = synflow.synflow(net, None, None, None)
    alone = synflow.synflow(nets.take(net, [0]), None, None, None)
    assert all(torch.equal(together[name][[0]].to(value), value) for name, value in alone.items())
