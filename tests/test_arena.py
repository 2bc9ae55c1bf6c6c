"""The arena against literal loops: who enters, when it is pruned, what chooses, and what is looked at."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch

from lib import masks, methods, nets, parameters, plain, runs, sets, shrink
from lib.errors import ParameterError
from lib.studies.arena import bout, entrants, ring
from lib.training.evaluate import evaluate
from lib.training.trainer import Trainer

SMALL = {
    "dataset": "digits", "hidden": [24], "sparsities": [0.5, 0.9], "shuffle_at": [0.9], "epochs": 2, "recovery": 2,
    "batch_size": 32, "holdout": 100, "train_examples": 300, "score_examples": [20, 60], "rounds": 3,
    "type": "magnitude",
}  # fmt: skip
HELD, FINAL = sets.load("digits", holdout=100, train_examples=300), sets.load("digits").split("test")
TRAIN, HOLDOUT = HELD.split("train"), HELD.split("test")

pytestmark = pytest.mark.usefixtures("shared_runs")


def lab(seeds=(1, 2), **changes):
    return ring.lab(HELD, FINAL, parameters.checked(SMALL | changes, runs.declared("arena")), seeds)


def fought(kind, here=None, sparsities=(0.5, 0.9)):
    return bout.fight(here or lab(), kind, sparsities)[0]


def literal(start, kept, epoch, epochs):
    """Return (test accuracy, pass, held-out accuracy) of networks trained under masks, the best of the last two."""
    rule = {"rule": "adam", "lr": 0.001, "batch": 32, "bar": False}
    trainer = Trainer(copy.deepcopy(start), TRAIN, HOLDOUT, [1, 2], epoch=epoch, **rule)
    trainer.prune(kept)
    states = []
    for number in range(1, epochs + 1):
        trainer.fit(1)
        held_out, test = (evaluate(trainer.net, *part).accuracy.numpy() for part in (HOLDOUT, FINAL))
        states.append((held_out, test, np.full(2, number)))
    held_out, test, passes = (np.stack(column[-2:]) for column in zip(*states, strict=True))
    best = held_out.argmax(0), [0, 1]
    return test[best], passes[best], held_out[best]


def largest(net, keep):
    """Return masks of the `keep` largest weights of all layers of each run, by a sort."""
    every = torch.cat([weight.abs().flatten(1) for weight in nets.weights(net).values()], 1)
    least = every.sort(1).values[:, -keep]
    return {name: weight.abs() >= least[:, None, None] for name, weight in nets.weights(net).items()}


@pytest.mark.parametrize("kind, epoch, epochs", [("magnitude", 2, 2), ("magnitude_init", 0, 4)])
def test_a_method_of_weights_by_a_literal_loop(kind, epoch, epochs):
    here, found = lab(), fought(kind)
    start = here.dense() if epoch else here.network()
    kept = largest(start, masks.count(784 * 24 + 240, 0.1))
    for name, expected in zip(
        ("tuned", "passes", "held_out_accuracy"), literal(start, kept, epoch, epochs), strict=True
    ):
        now = found["accuracy"][:, 0, 2, 1] if name == "tuned" else found[name][:, 0, 1]
        np.testing.assert_allclose(now, expected, err_msg=name)
    raw = evaluate(masks.apply_(copy.deepcopy(start), kept), *FINAL).accuracy.numpy()
    np.testing.assert_equal(found["accuracy"][:, 0, 0, 1], raw if epoch else [np.nan, np.nan])
    np.testing.assert_allclose(found["true_sparsity"], [[0.5, 0.9]] * 2, atol=1e-4)


def test_only_masks_that_were_asked_for_are_shuffled():
    found = fought("lamp")
    assert np.isnan(found["accuracy"][:, 1, :, 0]).all() and not np.isnan(found["accuracy"][:, 1, 2, 1]).any()
    assert (found["accuracy"][:, 1, 0, 1] < found["accuracy"][:, 0, 0, 1]).all(), "it is another mask"


def test_units_leave_as_many_weights_and_are_trained_small():
    here, found = lab(), fought("outgoing_l1")
    net = here.dense()
    score = nets.layers(net)["layers.1"].weight.abs().sum(1)
    kept = masks.expand({"layers.0": score >= score.sort(1).values[:, [-12]]}, net)
    raw = evaluate(masks.apply_(copy.deepcopy(net), kept), *FINAL).accuracy.numpy()
    np.testing.assert_allclose(found["accuracy"][:, 0, 0, 0], raw)
    np.testing.assert_allclose(found["accuracy"][:, 0, 2, 0], literal(net, kept, 2, 2)[0], atol=0.01)
    assert found["true_sparsity"].tolist() == [[0.5, 1 - 2 / 24]] * 2
    assert found["live_units"][:, :, 0].tolist() == [[12, 2]] * 2


def test_refitted_units_are_the_least_squares_solution():
    here = lab()
    net, x = here.dense().double(), TRAIN[0].double()
    kept = {"layers.0": torch.arange(24).expand(2, -1) % 3 == 0}
    read = replace(here, train=(x, here.train[1])).moments(net)
    found = nets.layers(bout._refitted(net, kept, read))["layers.1"].weight
    for run in range(2):
        first, second = (layer.weight[run] for layer in nets.layers(net).values())
        hidden = torch.relu(x @ first.T + nets.layers(net)["layers.0"].bias[run]).detach()
        expected, *_ = np.linalg.lstsq(hidden[:, ::3].numpy(), (hidden @ second.T).detach().numpy(), rcond=None)
        fit, best = (hidden[:, ::3].numpy() @ part for part in (found[run, :, ::3].detach().numpy().T, expected))
        np.testing.assert_allclose(fit, best, atol=1e-6)


def test_the_controls():
    none, small = fought("none"), fought("small")
    dense = lab().dense()
    raw = evaluate(dense, *FINAL).accuracy.numpy()
    np.testing.assert_allclose(none["accuracy"][:, 0, 0], np.stack([raw, raw], 1))
    np.testing.assert_allclose(none["accuracy"][:, 0, 2, 0], literal(dense, {}, 2, 2)[0])
    alone = nets.init_(nets.MLP([784, 2, 10], ["no-WN"] * 2), [1, 2])
    assert alone.layers[0].weight.shape == (2, 2, 784)
    np.testing.assert_allclose(small["accuracy"][:, 0, 2, 1], literal(alone, {}, 0, 4)[0])
    assert small["true_sparsity"].tolist() == [[0.5, 1 - 2 / 24]] * 2 and not none["true_sparsity"].any()


RESIDUAL = {"dataset": "digits32", "net": "resnet20", "width": 4, "epochs": 1, "recovery": 1, "shuffle_at": [0.8],
            "sparsities": [0.8]}  # fmt: skip


@pytest.fixture(scope="module")
def residual(shared_runs):
    held = sets.load("digits32", holdout=50, train_examples=60, statistics="phew")
    p = parameters.checked(SMALL | RESIDUAL | {"holdout": 50, "train_examples": 60}, runs.declared("arena"))
    return ring.lab(held, sets.load("digits32", statistics="phew").split("test"), p, [1, 2])


def together():
    """Return the layers of a ResNet20 whose units are added up, stage by stage, and those inside the blocks."""
    ends = [[f"blocks.{3 * stage + k}.convs.1" for k in range(3)] for stage in range(3)]
    first = ["stem", "blocks.3.shortcut", "blocks.6.shortcut"]
    return [[name, *own] for name, own in zip(first, ends, strict=True)] + [[f"blocks.{k}.convs.0"] for k in range(9)]


def test_units_of_a_residual_network_go_together(residual):
    net = residual.dense()
    units = methods.prune(net, "magnitude", entrants.unit_density(net, 0.8), of="units")
    for names in together():
        score = sum(net.get_submodule(name).weight.flatten(2).norm(dim=2) for name in names)
        keep = round(score.shape[1] * 7 / 16)
        expected = score >= score.sort(1).values[:, [-keep]]
        assert all(torch.equal(units[name], expected) for name in names)
    small, masked, x = shrink.narrow(net, units), copy.deepcopy(net), residual.test[0][:20]
    norms = {hop.norm: hop.layer for hop in nets.graph(net) if hop.norm}
    for norm, layer in norms.items():  # what a unit sends is its factor and its shift
        for tensor in masked.get_submodule(norm).parameters():
            tensor.data.masked_fill_(~units[layer], 0)
    torch.testing.assert_close(small.eval()(x), masked.eval()(x), rtol=1e-4, atol=1e-4)
    found = fought("magnitude_units", residual, [0.8])
    assert found["macs"].tolist() == [[plain.macs(shrink.shrink(small), x.shape[1])]] * 2
    weights = [sum(part[0].numel() for part in nets.weights(one).values()) for one in (small, net)]
    np.testing.assert_allclose(found["true_sparsity"], 1 - weights[0] / weights[1])
    np.testing.assert_allclose(found["accuracy"][:, 0, 0, 0], evaluate(masked, *residual.final).accuracy)
    assert np.isnan(found["accuracy"][:, 0, 1]).all(), "who is read by shortcuts is not refitted"


def test_the_small_residual_network_has_the_widths_of_the_pruned_ones(residual):
    small, pruned = (fought(kind, residual, [0.8]) for kind in ("small", "random_units"))
    for name in ("macs", "true_sparsity", "live_units"):
        np.testing.assert_array_equal(small[name], pruned[name])
    widths = small["live_units"][0, 0].tolist()
    assert widths == [2] * 7 + [4] * 7 + [7] * 7 + [10]
    full = residual.network()
    again = residual.network(shrink.first(full, dict(zip(nets.hidden(full), widths, strict=False))))
    start = again.get_submodule("blocks.8.convs.1").weight.detach()
    assert float(start.std()) == pytest.approx((2 / (7 * 9)) ** 0.5, rel=0.1), "by its own fan-in"


def test_the_share_of_units_of_a_residual_network_by_building_every_one(residual):
    net, sizes = entrants.network(residual.p), {}
    for k in range(4, 17):
        small = shrink.narrow(net, shrink.first(net, entrants.widths(net, k / 16)))
        sizes[k / 16] = sum(weight.numel() for weight in nets.weights(small).values())
    for sparsity in (0.3, 0.5, 0.8):
        share = entrants.unit_density(net, sparsity)
        goal = (1 - sparsity) * sizes[1.0]
        assert abs(sizes[share] - goal) == min(abs(size - goal) for size in sizes.values())


def test_gradual_masks_end_where_they_should():
    found = fought("magnitude_gradual")
    np.testing.assert_allclose(found["true_sparsity"], [[0.5, 0.9]] * 2, atol=1e-4)
    assert not np.isnan(found["accuracy"][:, 0, [0, 2]]).any()


@pytest.mark.parametrize("kind", ["taylor", "hessian", "dpp_units", "growth", "synflow_init"])
def test_every_kind_of_need_is_met(kind):
    found = fought(kind)
    assert not np.isnan(found["accuracy"][:, 0, 2]).any() and (found["effective_sparsity"] < 1).all()


def test_the_holdout_chooses_masks_run_by_run():
    here = lab()
    net = here.dense()
    good, bad = (methods.prune(net, name, 0.3, seeds=[1, 2]) for name in ("magnitude", "random"))
    mixed = {name: torch.stack([good[name][0], bad[name][1]]) for name in good}
    other = {name: torch.stack([bad[name][0], good[name][1]]) for name in good}
    found = bout._best(here, net, "weights", [mixed, other])
    assert all(torch.equal(found[name], good[name]) for name in good)


def test_what_chooses_was_never_trained_on_and_what_tests_never_chose():
    here = lab()
    rows = {part: {row.numpy().tobytes() for row in x} for part, (x, _) in
            {"train": here.train, "holdout": here.test, "test": here.final}.items()}  # fmt: skip
    assert len(here.test[1]) == 100 and len(here.train[1]) == 300
    assert not rows["train"] & rows["holdout"] and not rows["holdout"] & rows["test"]


def test_an_mlp_that_was_trained_on_moved_images_is_another():
    """And what its layers send on is measured on images as they are, whatever form they are trained in."""
    here, moved = lab(), lab(augment=True)
    assert {**here.recipe, "augment": True} == moved.recipe
    net = here.network()
    for name, found in here.moments(net).items():
        assert torch.equal(found.gram, moved.moments(net)[name].gram)


def test_descents_are_networks_too(tmp_path, monkeypatch):
    monkeypatch.setenv("PRUNING_RUNS", str(tmp_path))
    here = lab(level=-1.0, norm="EWN")
    net = here.dense()
    assert not any(layer.normalised for layer in nets.layers(net).values())
    assert (evaluate(net, *here.train).log_loss < -1).all()
    assert len(list(tmp_path.rglob("level-1.safetensors"))) == 2
    before = nets.fold(here.network())
    assert not torch.equal(net.layers[0].weight, before.layers[0].weight)


# ---- who enters


def test_a_strangers_ten_lines_enter():
    @methods.method("mine_alone")
    def mine(net, x, y, seeds):
        return {name: weight.detach().abs() for name, weight in nets.weights(net).items()}

    try:
        assert entrants.get("mine_alone") == entrants.Entrant("mine_alone", "weights")
        assert entrants.get("mine_alone_init").when == "before"
        np.testing.assert_array_equal(fought("mine_alone")["accuracy"], fought("magnitude")["accuracy"])
    finally:
        del methods.METHODS["weights"]["mine_alone"]


def test_names():
    known = entrants.entrants()
    assert known["magnitude_units"] == entrants.Entrant("magnitude", "units")
    assert known["fpgm"].of == "units" and known["taylor"] == entrants.Entrant(
        "snip", "weights", "after", {"training": False}
    )
    assert "phew_gradual" not in known and known["phew_init"].when == "before"
    with pytest.raises(ParameterError, match="'lampp'.*Did you mean 'lamp'"):
        entrants.get("lampp")


def test_unit_density_by_a_loop():
    net = nets.MLP([784, 100, 60, 10], ["no-WN"])
    for sparsity in (0.0, 0.5, 0.9, 0.98):
        left = entrants.widths(net, entrants.unit_density(net, sparsity)).values()
        goal, total = (1 - sparsity) * (78400 + 6000 + 600), lambda a, b: 784 * a + a * b + 10 * b
        each = [(masks.count(100, k / 100), masks.count(60, k / 100)) for k in range(1, 101)]
        assert abs(total(*left) - goal) == min(abs(total(*pair) - goal) for pair in each)
