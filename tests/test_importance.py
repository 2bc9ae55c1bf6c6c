"""Pruning while training: the published sequences of widths, and runs followed by a literal loop in float64."""

from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy, relu

from lib import contribution, draws, masks, nets, parameters, runs, shrink, store
from lib import sets as data
from lib.errors import ParameterError
from lib.studies.importance import study as importance
from lib.studies.importance.study import Schedule
from tests.test_summaries import summarised

DIGITS = data.load("digits", statistics="half")
COLOUR = data.load("digits32", statistics="half")
ALL = ["none", "contribution", "worst", "random", "magnitude", "small"]
PRUNING = ["contribution", "worst", "random", "magnitude"]


pytestmark = pytest.mark.usefixtures("shared_runs")


def exact(*args):
    """Return float64 networks, so that a literal loop can be followed."""
    return importance.build(*args).double()


def sets(real, n=200):
    return [(x[:count].double(), y[:count]) for count, (x, y) in ((n, real.split("train")), (50, real.split("test")))]


def study(real=DIGITS, hidden=(20, 12), schedule=None, n=200, **changes):
    train, test = sets(real, n)
    rule = {"rule": "sgd", "lr": 0.1, "batch": 40, "bar": False} | changes.pop("rule", {})
    recipe = {"name": f"{real.name}-importance", **{k: v for k, v in rule.items() if k != "bar"}}
    schedule = schedule or Schedule(6, 2, 2)
    image = tuple(real.train_x.shape[1:])
    return importance.Study(train, test, [3], recipe, rule, build=exact, image=image, classes=10,
                            hidden=hidden, schedule=schedule, **changes)  # fmt: skip


def test_filters_that_are_pruned_are_told_from_units_of_as_many_widths():
    real, declared = data.load("digits32", train_examples=50), runs.declared("train_time_prune")
    one, other = (
        importance.study(real, parameters.checked({"dataset": "digits32"} | changes, declared))
        for changes in ({"channels": True, "hidden": [8, 4]}, {"hidden": [16, 32, 8, 4]})
    )
    assert one.start_widths == other.start_widths and one.recipe != other.recipe


# ---- the schedule


@pytest.mark.parametrize(
    "start, widths",
    [
        (50, [45, 40, 36, 32, 28, 25, 22]),
        (30, [27, 24, 21, 18, 16, 14, 12]),
        (256, [230, 207, 186, 167, 150]),
        (128, [115, 103, 92, 82, 73]),
        (4096, [3686, 3317]),
        (2, [1, 1]),
    ],
)
def test_the_published_widths(start, widths):
    found = [row[0] for row in Schedule().widths([start])]
    assert found[: len(widths) + 1] == [start, *widths]


@pytest.mark.parametrize("start", range(1, 300))
def test_keeps_what_the_rule_of_ranks_keeps(start):
    """Rank r of 1 … n goes if r > max(1, 0.9 n), which integers decide here: 10 r > 9 n."""
    assert Schedule().keep(start) == sum(rank <= 1 or 10 * rank <= 9 * start for rank in range(1, start + 1))


@pytest.mark.parametrize(
    "numbers, overshoot, rounds, total",
    [
        ((100, 30, 10), False, [10] * 7, 100),
        ((100, 30, 8), False, [8] * 8 + [6], 100),
        ((100, 30, 15), False, [15, 15, 15, 15, 10], 100),
        ((100, 30, 15), True, [15] * 5, 105),
        ((100, 100, 10), False, [], 100),
        ((5, 0, 2), False, [2, 2, 1], 5),
    ],
)
def test_rounds(numbers, overshoot, rounds, total):
    schedule = Schedule(*numbers, overshoot=overshoot)
    assert (schedule.rounds, schedule.total) == (rounds, total)


def test_a_layer_never_has_fewer_units_than_the_minimum():
    assert [row[0] for row in Schedule(minimum=20).widths([30])] == [30, 27, 24, 21, 20, 20, 20, 20]
    assert Schedule(minimum=20).keep(15) == 15
    assert Schedule(fraction=0.99).keep(30) == 1


@pytest.mark.parametrize("changes", [{"initial": 101}, {"initial": -1}, {"increment": 0}, {"minimum": 0},
                                     {"fraction": 1.0}, {"fraction": -0.1}, {"epochs": 0, "initial": 0}])  # fmt: skip
def test_what_makes_no_schedule_is_refused(changes):
    with pytest.raises(ParameterError, match="allowed"):
        Schedule(**changes)


# ---- one run against a literal loop


def literal_scores(ws, x, kind, seed, number):
    """Return what ranks the units of both hidden layers, larger stays, of units that are left."""
    first = relu(x @ ws[0].T)
    inputs, found = [first, relu(first @ ws[1].T)], []
    for k in range(2):
        if kind == "random":
            score = torch.from_numpy(draws.generator(seed, "random_units", number, k).random(len(ws[k])))
        elif kind == "magnitude":
            score = ws[k].norm(dim=1)
        else:
            parts = ws[k + 1].abs()[None] * inputs[k].abs()[:, None]
            shares = parts / parts.sum(2, keepdim=True)
            score = shares.nan_to_num(0).mean((0, 1)) * (1 if kind == "contribution" else -1)
        found.append(score)
    return found


def literal_run(here, seed, kind):
    """Return (weights, units left, test accuracies right after each pruning) of a run trained by hand."""
    ws = [layer.weight[0].detach().clone() for layer in replace(here, seeds=[seed]).network().layers]
    (x, y), (test_x, test_y), epoch, after = here.train, here.test, 0, []
    left = [torch.ones(len(w), dtype=torch.bool) for w in ws[:2]]

    def train(epochs):
        nonlocal epoch
        for _ in range(epochs):
            for at in torch.from_numpy(draws.permutation(seed, "order", epoch, len(y))).split(40):
                leaves = [w.requires_grad_() for w in ws]
                logits = relu(relu(x[at] @ leaves[0].T) @ leaves[1].T) @ leaves[2].T
                gradients = torch.autograd.grad(cross_entropy(logits, y[at]), leaves)
                ws[:] = [w.detach() - 0.1 * g for w, g in zip(ws, gradients, strict=True)]
                clear()
            epoch += 1

    def clear():
        for k in range(2):
            ws[k][~left[k]] = 0
            ws[k + 1][:, ~left[k]] = 0

    train(2)
    for number in range(2):
        scores = literal_scores(ws, x, kind, seed, number)
        for k, score in enumerate(scores):
            ranked = sorted(left[k].nonzero().flatten().tolist(), key=lambda u: (-score[u], -u))  # silent units tie
            left[k][ranked[max(1, int(0.9 * len(ranked) + 1e-9)) :]] = False
        clear()
        after.append((relu(relu(test_x @ ws[0].T) @ ws[1].T) @ ws[2].T).argmax(1).eq(test_y).double().mean().item())
        train(2)
    return ws, left, after


@pytest.fixture(scope="module")
def outcomes():
    here = study()
    return here, here.run(3, ALL)


@pytest.mark.parametrize("kind", PRUNING)
def test_is_the_literal_loop(outcomes, kind):
    """So sharing the first epochs, and a stack of six, are the same as each run alone from the beginning."""
    here, found = outcomes
    ws, left, after = literal_run(here, 3, kind)
    outcome = found[kind]
    for k, name in enumerate(outcome.kept):
        assert torch.equal(outcome.kept[name][0], left[k])
    for layer, w in zip(outcome.net.layers, ws, strict=True):
        torch.testing.assert_close(layer.weight[0].detach(), w, rtol=1e-8, atol=1e-10)
    np.testing.assert_allclose(outcome.after_accuracy[0], after)
    assert outcome.widths.tolist() == [[[18, 10], [16, 9]]]


def test_none_is_plain_training(outcomes):
    here, found = outcomes
    trainer = here.trainer(here.network()).fit(6)
    for name in importance.CURVES:
        np.testing.assert_allclose(found["none"].history[name][0], trainer.curve(name)[0], rtol=1e-8)
    assert found["none"].history["epoch"][0].tolist() == list(range(7))
    assert (np.diff(found["none"].history["seconds"][0]) > 0).all()
    np.testing.assert_array_equal(found["none"].after_accuracy[0], trainer.curve("test_accuracy")[0, [2, 4]])


def test_small_is_the_remaining_architecture_from_scratch(outcomes):
    here, found = outcomes
    trainer = here.trainer(here.network((16, 9))).fit(6)
    assert [layer.weight.shape[1] for layer in found["small"].net.layers] == [16, 9, 10]
    np.testing.assert_allclose(found["small"].history["test_loss"][0], trainer.curve("test_loss")[0], rtol=1e-8)
    assert np.isnan(found["small"].after_accuracy).all()


def test_worst_takes_what_contributes_most():
    here = study()
    net, _ = here.dense(2)
    scores = contribution.of_units(net, here.train[0])
    outcome = study(schedule=Schedule(3, 2, 1)).run(3, ["worst"])["worst"]
    for name, score in scores.items():
        gone = (~outcome.kept[name][0]).nonzero().flatten()
        assert set(gone.tolist()) == set(score[0].topk(len(gone)).indices.tolist())


def test_a_run_does_not_depend_on_its_neighbours(outcomes):
    here, found = outcomes
    alone = study(stack=1).run(3, ["random", "magnitude"])
    for kind, outcome in alone.items():
        assert outcome.stacked == [[kind]]
        np.testing.assert_allclose(outcome.history["train_loss"][0], found[kind].history["train_loss"][0], rtol=1e-8)


def test_the_first_epochs_are_trained_once(monkeypatch, outcomes):
    here, _ = outcomes
    trained_epochs, epoch = [], importance.Trainer._epoch
    monkeypatch.setattr(importance.Trainer, "_epoch", lambda self: trained_epochs.append(self.epoch) or epoch(self))
    here.run(3, ["contribution", "none", "small"])
    assert trained_epochs == [2, 3, 4, 5]


@pytest.mark.parametrize("kind", PRUNING)
def test_the_smaller_network_has_the_same_logits(outcomes, kind):
    here, found = outcomes
    outcome, x = found[kind], here.test[0]
    kept = masks.expand(outcome.kept, outcome.net)
    logits = outcome.net(x)[0]
    torch.testing.assert_close(shrink.shrink(outcome.net, kept)(x), logits)
    narrow = shrink.narrow(outcome.net, outcome.kept)
    torch.testing.assert_close(narrow(x)[0], logits)
    assert importance.left(here, outcome)["parameters"] == 784 * 16 + 16 * 9 + 9 * 10 == nets.parameters_per_run(narrow)


def test_nothing_goes_where_no_epoch_is_left():
    """(100, 100, 10) never prunes, here in small: every type is the plain network."""
    here = study(schedule=Schedule(2, 2, 1))
    found = here.run(3, ["none", "contribution", "small"])
    losses = [outcome.history["test_loss"][0] for outcome in found.values()]
    assert all(np.array_equal(losses[0], loss) for loss in losses[1:])
    assert found["contribution"].kept["layers.0"].all() and found["contribution"].widths.shape == (1, 0, 2)
    for outcome in found.values():  # a record can hold axes without an entry
        content = importance.record(here, outcome)
        assert store.pack(content["arrays"], content["axes"])[1]["widths"] == ["round", "layer"]


# ---- keywords


def test_momentum_of_units_that_stay_is_kept_and_of_others_is_zero(monkeypatch):
    seen = []
    prune = importance.Trainer.prune

    def watched(self, kept):
        before = self.optimizer.state[self.net.layers[0].weight]["momentum_buffer"].clone()
        prune(self, kept)
        seen.append((before, self.optimizer.state[self.net.layers[0].weight]["momentum_buffer"].clone(), kept))

    monkeypatch.setattr(importance.Trainer, "prune", watched)
    study(rule={"momentum": 0.9, "lr": 0.01}).run(3, ["magnitude", "none"])
    assert len(seen) == 2
    for before, after, kept in seen:
        mask = kept["layers.0.weight"]
        assert torch.equal(after, before * mask) and before[mask].any() and not mask.all()


def test_with_momentum_the_first_epochs_are_trained_with_the_others():
    """A state that is not in a file: trained straight through, none is plain training."""
    here = study(rule={"momentum": 0.9, "lr": 0.01})
    found, trainer = here.run(3, ["none", "random"]), here.trainer(here.network()).fit(6)
    np.testing.assert_allclose(found["none"].history["train_loss"][0], trainer.curve("train_loss")[0], rtol=1e-8)
    fresh = study(rule={"momentum": 0.9, "lr": 0.01}, reset_optimizer=True).run(3, ["random"])["random"]
    losses = fresh.history["train_loss"][0], found["random"].history["train_loss"][0]
    np.testing.assert_allclose(losses[0][:3], losses[1][:3], rtol=1e-8)
    assert abs(losses[0][3] - losses[1][3]) > 1e-3


def test_the_last_batch_alone(monkeypatch):
    seen = []
    of_units = contribution.of_units
    monkeypatch.setattr(contribution, "of_units", lambda net, x, **a: seen.append(x) or of_units(net, x, **a))
    here = study(score_examples="last_batch", n=190)
    here.run(3, ["contribution"])
    for x, epoch in zip(seen, (1, 3), strict=True):
        assert torch.equal(x, here.train[0][draws.permutation(3, "order", epoch, 190)[160:]])


def test_as_published_overshoots_and_takes_preactivations_of_the_last_batch():
    p = {"as_published": True, "hidden": [0], "epochs": 100, "initial": 30, "increment": 15, "fraction": 0.1,
         "minimum": 1, "rule": "sgd", "lr": 0.1, "momentum": 0.0, "batch_size": 0, "dataset": "digits",
         "train_examples": 0, "channels": False, "on": "activation", "average": 1.0, "maximum": 0.0,
         "score_examples": "all", "reset_optimizer": False, "stack": 0}  # fmt: skip
    found = importance.study(DIGITS, p)
    assert found.schedule.total == 105 and len(found.schedule.rounds) == 5
    assert (found.on, found.score_examples, found.reset_optimizer) == ("preactivation", "last_batch", True)
    assert (found.hidden, found.rule["batch"]) == ((50, 30), 5000)
    colour = importance.study(COLOUR, p | {"as_published": False})
    assert (colour.hidden, colour.rule["batch"], colour.schedule.total) == ((256, 128), 128, 100)
    net = replace(colour, seeds=[0]).network()
    assert nets.parameters_per_run(net) == (3 * 9 + 1) * 16 + (16 * 9 + 1) * 32 + 2048 * 256 + 256 * 128 + 128 * 10
    assert "widths are 1 or more" in importance.complaint(p | {"hidden": [50, 0]})


def test_filters_go_too():
    here = study(COLOUR, (12, 10), Schedule(3, 1, 1), n=40, channels=True)
    found = here.run(1, ["contribution", "small"])
    for kind, outcome in found.items():
        assert outcome.widths[0].tolist() == [[12, 25, 9, 8] if kind == "small" else [14, 28, 10, 9], [12, 25, 9, 8]]
    outcome = found["contribution"]
    logits = outcome.net(here.test[0])[0]
    torch.testing.assert_close(shrink.narrow(outcome.net, outcome.kept)(here.test[0])[0], logits)
    assert [layer.weight.shape[1] for layer in nets.layers(found["small"].net).values()] == [12, 25, 9, 8, 10]
    record = importance.record(here, outcome)
    assert record["axes"]["layer"] == ["convs.0", "convs.1", "hidden.0", "hidden.1"]
    assert record["cost"]["units_left"] == 54 and record["cost"]["dense_units"] == 70


def test_a_convolutional_network_alone_is_the_one_in_a_stack():
    here = study(COLOUR, (12, 10), Schedule(2, 1, 1), n=40)
    together = here.run(1, ["contribution", "random"])
    alone = study(COLOUR, (12, 10), Schedule(2, 1, 1), n=40, stack=1).run(1, ["contribution"])["contribution"]
    torch.testing.assert_close(alone.net.hidden[0].weight, together["contribution"].net.hidden[0].weight)
    assert list(alone.kept) == ["hidden.0", "hidden.1"]


def test_unknown_types_are_refused():
    with pytest.raises(ParameterError, match="worse.*allowed"):
        study().run(1, ["worse"])


# ---- the notebook


def test_the_notebook_saves_a_record_of_each_type(tmp_path, monkeypatch):
    p = {"type": ALL, "dataset": "digits", "device": "cpu", "batch_size": 100, "epochs": 3, "initial": 1,
         "increment": 1}  # fmt: skip
    monkeypatch.setenv("PRUNING_RUNS", str(tmp_path))
    summarised("train_time_prune", **p)
    plt.close("all")
    table = runs.table("train_time_prune")
    assert sorted(table["type"]) == sorted(ALL)
    assert table["units_left"].tolist() == [{"none": 80}.get(kind, 64) for kind in table["type"]]
    assert len(runs.curves("train_time_prune", "test_accuracy")) == 6 * 4
