"""Types of pruning at initialisation against the functions they are made of, literal loops, and each other."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from lib import draws, masks, methods, nets, phew, scores, sets
from lib.studies.phew import outcome, study
from lib.training.evaluate import evaluate
from lib.training.trainer import Trainer
from tests.shown import SHOWN

DIGITS = sets.load("digits32", train_examples=60, statistics="phew")
RULE = {"lr": 0.05, "batch": 20, "momentum": 0.9, "nesterov": True, "weight_decay": 1e-4, "bar": False}
SEEDS, DENSITIES = [1, 2], [0.3, 0.1]
KINDS = study.types()
UNTRAINED = [*(kind for kind in KINDS if kind not in ("dense", "magnitude_trained")), "fisher", "rows"]


pytestmark = pytest.mark.usefixtures("shared_runs")


def lab(**changes):
    """Return a lab of ResNet20 with 2, 4 and 8 filters: 4,350 weights."""
    shown = {"width": 2, "epochs": 1, "drops": (1,), "rule": RULE, "augment": False, "watch": 20, "rounds": 4}
    shown["examples_per_class"] = 4
    return study.lab(**{"data": DIGITS, "seeds": SEEDS, "prune_epochs": 1, **shown, **changes})


def exact(here):
    """Return the lab with float64 networks, so that literal loops can be followed."""
    train, test = (tuple(DIGITS.split(part)) for part in ("train", "test"))
    return replace(here, train=(train[0].double(), train[1]), test=(test[0].double()[:50], test[1][:50]), watch=0,
                   build=lambda *args, **options: study.build(*args, **options).double())  # fmt: skip


def kept(start):
    return torch.cat([mask.flatten(1) for mask in start.masks.values()], 1)


def rows(net, densities, x, y, seeds):
    """Units are drawn, and all their weights kept, until these are enough."""
    weights = nets.weights(net)
    sizes = np.repeat([w[0, 0].numel() for w in weights.values()], units := [w.shape[1] for w in weights.values()])
    orders = [draws.generator(seed, "rows").permutation(len(sizes)) for seed in seeds]
    before = torch.tensor(np.stack([(sizes[order].cumsum() - sizes[order])[order.argsort()] for order in orders]))
    found = [(before < masks.count(sizes.sum(), d)).split(units, 1) for d in densities]
    return [{name: part.view(*part.shape, *[1] * (w.dim() - 2)).expand(w.shape)
             for part, (name, w) in zip(parts, weights.items(), strict=True)} for parts in found]  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def others():
    """A score that CONTRIBUTING shows, and masks that are drawn."""
    with pytest.MonkeyPatch.context() as patch:
        for method in (SHOWN[0], methods.Method("rows", "weights", "nothing", True, 1, rows)):
            patch.setitem(methods.METHODS["weights"], method.name, method)
        yield


@pytest.fixture(scope="module")
def made():
    return {kind: study.prune(lab(), kind, DENSITIES) for kind in UNTRAINED}


# ---- masks


@pytest.mark.parametrize("kind", UNTRAINED)
def test_every_type_keeps_what_was_asked(made, kind):
    """What is drawn goes on until enough is kept, to the end of a walk or a unit; all others keep the exact count."""
    total, longest, method = kept(made[kind][0]).shape[1], 20, study.method_of(kind)[0]
    pieces = {"phew": longest * (9 if kind.startswith("kernel") else 1)}  # else no more than the largest unit
    unit = max(weight[0, 0].numel() for weight in nets.weights(made[kind][0].net).values())
    surplus = pieces.get(method.name, unit) if method.draws else 0
    if kind == "kernel_walk":  # the shortcuts are kept whole
        surplus += 2 * 4 + 4 * 8
    for density, start in zip(DENSITIES, made[kind], strict=True):
        for count in kept(start).sum(1).tolist():
            assert masks.count(total, density, "keep_floor") <= count <= masks.count(total, density) + surplus


@pytest.mark.parametrize("kind", UNTRAINED)
def test_a_run_does_not_depend_on_its_neighbours(kind):
    """Neither on other seeds nor, but for types that nest, on other densities."""
    (alone,) = study.prune(lab(seeds=[2]), kind, DENSITIES[1:])
    beside = study.prune(lab(seeds=[1, 2, 3]), kind, DENSITIES)[1]
    assert torch.equal(kept(alone)[0], kept(beside)[1])
    for name, weight in nets.weights(alone.net).items():
        assert torch.equal(weight[0], nets.weights(beside.net)[name][1])


@pytest.mark.parametrize("kind", ["phew_res", "inverse", "squared", "kernels", "snip", "random"])
def test_denser_masks_contain_sparser_ones(made, kind):
    dense, sparse = map(kept, made[kind])
    assert bool((dense | ~sparse).all())


def test_phew_draws_new_walks_for_every_density(made):
    dense, sparse = map(kept, made["phew"])
    assert not bool((dense | ~sparse).all())


def test_types_are_the_functions_that_they_name(made):
    here, net = lab(), lab().network()
    hops, weights = nets.graph(net), nets.weights(net)
    x, y = (torch.cat(parts, 1) for parts in here.examples())
    expected = {
        "phew_res": phew.masks(hops, weights, 0.1, SEEDS),
        "inverse": phew.masks(hops, weights, 0.1, SEEDS, invert=True),
        "uniform": phew.masks(hops, weights, 0.1, SEEDS, power=0),
        "synflow": methods.prune(net, "synflow", 0.1, rounds=4),
        "synflow_l2": methods.prune(net, "synflow_l2", 0.1, rounds=4),
        "snip": masks.top(scores.snip(net, x, y, SEEDS), 0.1, "global"),
        "magnitude_init": masks.top({k: w.abs() for k, w in weights.items()}, 0.1, "global"),
    }
    for kind, found in expected.items():
        assert torch.equal(kept(made[kind][1]), kept(study.Start(net, found))), kind


def test_as_published_is_the_published_way():
    here, net = lab(as_published=True), lab().network()
    found = {kind: study.prune(here, kind, [0.1])[0] for kind in ("phew_res", "synflow_l2", "random", "grasp")}
    expected = {
        "phew_res": phew.masks(nets.graph(net), nets.weights(net), 0.1, SEEDS, legacy_branch=True),
        "random": masks.top(scores.random(net, None, None, SEEDS), 0.1, "global", "percentile"),
        "grasp": masks.top(scores.grasp(net, *here.examples(), SEEDS, over="all"), 0.1, "global", "percentile"),
    }
    for kind, wanted in expected.items():
        assert torch.equal(kept(found[kind]), kept(study.Start(net, wanted))), kind
    total = kept(found["synflow_l2"]).shape[1]
    assert kept(found["synflow_l2"]).sum(1).tolist() == [total - 1 - int(0.9 * (total - 1))] * 2


def test_each_run_reads_examples_of_its_own_choice():
    x, y = lab(examples_per_class=3).examples()
    assert [part.shape for part in (x[0], y[0])] == [(2, 30, 3072), (2, 30)] and not torch.equal(x[0][0], x[0][1])
    assert torch.equal(lab(examples_per_class=3, seeds=[2]).examples()[0][0][0], x[0][1])
    inputs, labels = DIGITS.split("train")
    for image, label in zip(x[0][0], y[0][0], strict=True):
        assert bool(((inputs == image).all(1) & (labels == label)).any())
    moved, _ = lab(examples_per_class=3, augment=True).examples()
    assert moved[0].shape == x[0].shape and not torch.equal(moved[0], x[0])
    with pytest.raises(ValueError, match="70.*60 training images"):
        lab(examples_per_class=7).examples()


def test_shuffles_and_new_weights_keep_what_they_promise(made):
    plain, moved = made["synflow"][1], made["synflow_shuffled"][1]
    assert {k: m.flatten(1).sum(1).tolist() for k, m in plain.masks.items()} == {
        k: m.flatten(1).sum(1).tolist() for k, m in moved.masks.items()
    }
    assert not torch.equal(kept(plain), kept(moved))
    start = made["phew_res"][1]
    for kind in ("reinit", "evci", "liu"):
        other = made[kind][1]
        assert torch.equal(kept(other), kept(start))
        for name, weight in nets.weights(other.net).items():
            assert not bool((weight[start.masks[name]] == nets.weights(start.net)[name][start.masks[name]]).any())
    asked = study.prune(lab(), "random", [0.1], shuffle=0.5, reinit="evci")[0]
    assert bool((asked.net.stem.weight[~asked.masks["stem.weight"]] == 0).all())


# ---- magnitude, after training


def test_gradual_magnitude_is_the_cubic_schedule_by_hand():
    """One network at a time: sort all weights, zero the smallest, train an epoch; two epochs to the last density."""
    here = exact(lab(prune_epochs=2))
    starts = study.prune(here, "magnitude_trained", DENSITIES)
    for run, seed in enumerate(SEEDS):
        for density, start in zip(DENSITIES, starts, strict=True):
            net = nets.take(here.dense(here.epochs)[0], [run])
            trainer = Trainer(net, here.train, here.test, [seed], epoch=1, **RULE)
            for epoch in (1, 2):
                flat = np.concatenate([w.detach().numpy().ravel() for w in nets.weights(net).values()])
                keep = int(len(flat) * (1 - (1 - density) * (1 - (1 - epoch / 2) ** 3)) + 0.5 + 1e-9)
                least = np.sort(np.abs(flat))[-keep]
                trainer.prune({name: w.detach().abs() >= float(least) for name, w in nets.weights(net).items()})
                trainer.fit(1)
            found = torch.cat([mask[0].flatten() for mask in trainer.masks.values()])
            assert int(found.sum()) == keep and torch.equal(found, kept(start)[run])
            for name, weight in nets.weights(net).items():
                assert torch.allclose(weight[0], nets.weights(start.net)[name][run])
            assert start.epochs == 3


def test_without_pruning_epochs_magnitude_goes_at_once():
    here = lab(prune_epochs=0)
    (start,) = study.prune(here, "magnitude_trained", [0.1])
    dense, _ = here.dense(here.epochs)
    wanted = masks.top({k: w.detach().abs() for k, w in nets.weights(dense).items()}, 0.1, "global")
    assert torch.equal(kept(start), kept(study.Start(dense, wanted))) and start.epochs == 1


# ---- what is left, and what it learns


def test_sums_of_scores_in_and_out_by_a_loop_over_units():
    net = lab().network()
    found = {name: torch.rand(w.shape, dtype=torch.float64) for name, w in nets.weights(net).items()}
    into, out_of = outcome.balance(nets.graph(net), found)
    expected = []
    for block in range(
        9
    ):  # a block's first convolution leads to a node that its second leaves; no other is without shortcut
        first, second = (found[f"blocks.{block}.convs.{k}.weight"] for k in (0, 1))
        expected += [(first[1, unit].sum(), second[1, :, unit].sum()) for unit in range(first.shape[1])]
    assert torch.allclose(torch.stack([into[1], out_of[1]], 1), torch.tensor(expected))


@pytest.mark.parametrize(("kind", "conserved"), [("synflow", True), ("synflow_l2", True), ("magnitude_init", False)])
def test_flow_is_conserved_and_magnitude_is_not(kind, conserved):
    found = outcome.conservation(lab(), kind)
    assert np.allclose(found["score_in"], found["score_out"], rtol=1e-3) == conserved
    assert np.allclose(found["score_in"].mean(1), 1)


def test_types_without_scores_have_no_sums():
    assert outcome.conservation(lab(), "phew") == outcome.conservation(lab(), "random") == {}


def test_linear_layers_behind_pools_are_summed_by_channel():
    """The VGG for 64×64 flattens 2×2 pixels of each channel: four inputs in a row are one unit."""
    net = study.lab(sets.load("digits64", train_examples=10), [1], net="vgg11", width=2).network()
    found = {name: torch.rand(w.shape, dtype=torch.float64) for name, w in nets.weights(net).items()}
    into, out_of = outcome.balance(nets.graph(net), found)
    units = [layer.weight.shape[1] for layer in nets.layers(net).values()][:-1]
    assert into.shape == out_of.shape == (1, sum(units))
    last_conv = slice(sum(units[:7]), sum(units[:8]))
    by_hand = [found["hidden.0.weight"][0, :, 4 * unit : 4 * unit + 4].sum() for unit in range(units[7])]
    assert torch.allclose(out_of[0, last_conv], torch.stack(by_hand))


def test_training_under_masks_is_torchs_loop():
    """Two epochs of one network in float64: torch's SGD, gradients of pruned weights zeroed."""
    here = exact(lab(seeds=[2], epochs=2))
    starts = study.prune(here, "phew", DENSITIES)
    found = outcome.train(here, "phew", starts)
    assert found["test_accuracy"].shape == (1, 2) and found["watched_accuracy"].shape == (1, 2, 3)
    for k, start in enumerate(starts):
        net = masks.apply_(copy.deepcopy(start.net), start.masks)
        order = here.trainer(copy.deepcopy(start.net))
        sgd = torch.optim.SGD(net.parameters(), 0.05, 0.9, weight_decay=1e-4, nesterov=True)
        for epoch in range(2):
            order.epoch, sgd.param_groups[0]["lr"] = epoch, 0.05 * 0.1**epoch
            for at in order._orders()[0].split(20):
                sgd.zero_grad()
                cross_entropy(net(here.train[0][at])[0], DIGITS.train_y[at]).backward()
                for name, mask in start.masks.items():
                    net.get_parameter(name).grad[~mask] = 0
                sgd.step()
        tested = evaluate(net, *here.test, top5=True)
        assert np.isclose(found["test_loss"][0, k], tested.log_loss.exp().item())
        assert found["test_accuracy"][0, k] == tested.accuracy.item() == found["watched_accuracy"][0, k, -1]
        assert found["test_top5"][0, k] == tested.top5.item()


def test_stacks_of_any_size_train_the_same_networks():
    one, all_at_once = lab(stack=1), lab()
    starts = study.prune(one, "random", DENSITIES)
    found = [outcome.train(here, "random", starts) for here in (one, all_at_once)]
    assert np.allclose(found[0]["train_loss"], found[1]["train_loss"], rtol=0.02, equal_nan=True)


def test_the_dense_type_is_one_trained_network_for_all():
    found = outcome.train(lab(), "dense", study.prune(lab(), "dense", [1.0]))
    net, history = lab().dense(lab().epochs)
    assert np.array_equal(found["watched_accuracy"][:, 0], history["test_accuracy"])
    assert np.allclose(found["test_accuracy"][:, 0], evaluate(net, *lab().test).accuracy)


def test_what_is_measured_is_of_the_masks(made):
    found = outcome.measure(made["synflow"])
    for d, start in enumerate(made["synflow"]):
        for position, mask in enumerate(start.masks.values()):
            assert np.allclose(found["layer_sparsity"][:, d, position], 1 - mask.flatten(1).double().mean(1))
            assert found["active_units"][:, d, position].tolist() == mask.flatten(2).any(2).sum(1).tolist()
    assert bool((found["log_path_kernel"][:, 0] > found["log_path_kernel"][:, 1]).all())


def test_nothing_left_has_no_path_kernel():
    start = study.prune(lab(), "random", [0.1])[0]
    gone = study.Start(start.net, {name: torch.zeros_like(mask) for name, mask in start.masks.items()})
    assert np.isnan(outcome.measure([gone])["log_path_kernel"]).all()


def test_a_record_names_its_axes():
    found = {"test_accuracy": np.zeros((2, 3)), "layer_sparsity": np.zeros((2, 3, 22)), "score_in": np.zeros((2, 7)),
             "train_loss": np.zeros((2, 3, 5))}  # fmt: skip
    content = outcome.record(found, study.Start(lab().network(), {}), 1, "share", [0.1, 0.2, 0.3])
    assert content["scores"] == {"test_accuracy_last": 0} and content["cost"]["dense_parameters"] > 0
    assert {name: axes for name, (_, axes) in content["arrays"].items()} == {
        "test_accuracy": ("share",), "layer_sparsity": ("share", "layer"), "score_in": ("unit",),
        "train_loss": ("share", "epoch"),
    }  # fmt: skip
    assert content["axes"]["share"] == [0.1, 0.2, 0.3] and content["axes"]["layer"][0] == "stem"
    assert content["axes"]["epoch"] == [0, 1, 2, 3, 4]


# ---- names and errors


def test_published_names_are_told_what_they_are_called_here():
    check = study.only(study.types())
    assert "'inverse' of phew_density" in check(["Inverse_PHEW"])
    assert "'phew_res' of phew_density" in check(["phew", "PHEW_Res"])
    assert "'synflow_l2' of phew_width" in check(["SynFlowL2_Width"])
    assert "'synflow_l2'" in check(["synflow_l"]) and check(study.types()) is None
    assert "does nothing" in check(["IMAG"])


def test_bad_values_are_told():
    with pytest.raises(ValueError, match="allowed.*Did you mean 'snip'"):
        study.prune(lab(), "snib", [0.1])


def test_labs_take_the_parameters_that_a_notebook_has():
    parameters = {"net": "resnet32", "width": 3, "epochs": 4, "drops": [2], "augment": False, "rounds": 7, "lr": 0.2,
                  "momentum": 0.0, "nesterov": False, "weight_decay": 0.0, "bf16": False, "rule": "adam",
                  "batch_size": 9, "dataset": "digits32"}  # fmt: skip
    found = study.labs(DIGITS, parameters, [(1, "snip"), (2, "snip"), (2, "phew")])
    assert {kind: here.seeds for kind, here in found.items()} == {"snip": [1, 2], "phew": [2]}
    here = found["snip"]
    assert (here.net, here.width, here.rounds, here.examples_per_class) == ("resnet32", 3, 7, 10)
    assert here.rule == {"rule": "adam", "lr": 0.2, "batch": 9, "momentum": 0.0, "nesterov": False,
                         "weight_decay": 0.0, "bf16": False}  # fmt: skip
    assert study.labs(None, parameters, []) == {}
