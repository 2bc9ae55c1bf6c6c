"""The six types against the rules as published, and the budgets against the published tables."""

import numpy as np
import pytest
import torch

from lib import dpp, likelihood, nets
from lib.studies.dpp import kinds, study


def network(runs=3, sizes=(20, 12, 4)):
    return nets.init_(nets.MLP(list(sizes), ["no-WN"] * runs), list(range(runs)))


def inputs(examples=200, size=20):
    return torch.from_numpy(np.random.default_rng(0).normal(size=(examples, size))).float()


# -------------------------------------------------------------------------------------------------- budgets


def test_budgets_of_two_layers():
    table = {50: 69, 75: 109, 100: 148, 150: 228, 200: 307, 250: 387, 300: 466, 350: 545, 400: 625}
    assert {n: kinds.budget((784, 500, 10), units=n).edges for n in table} == table


@pytest.mark.parametrize(
    "widths, edges, units",
    [
        ((784, 500, 500), (79, 157, 236, 314, 392, 471, 549, 628, 706), (225, 255, 286, 316, 347, 377, 408, 438, 469)),
        (
            (3072, 1000, 1000),
            (308, 615, 922, 1229, 1536, 1844, 2151, 2458, 2765),
            (320, 396, 471, 547, 622, 698, 773, 848, 924),
        ),
    ],
)
def test_budgets_of_three_layers(widths, edges, units):
    found = [kinds.budget(widths, density=tenths / 10) for tenths in range(1, 10)]
    assert tuple(b.edges for b in found) == edges and tuple(b.units for b in found) == units


@pytest.mark.parametrize("inputs, edges", [(500, [83, 166, 250, 333, 417]), (100, [16, 33, 50, 66, 83])])
def test_budgets_of_teacher_and_student(inputs, edges):
    students = 6
    assert [kinds.budget((inputs, students, 1), units=n, rounding="half_up").edges for n in range(1, 6)] == edges


def test_a_budget_leaves_about_as_many_weights_of_units_as_of_edges():
    units, edges = kinds.budget((784, 500, 10), units=250)
    assert units == 250 and 0 <= units * (784 + 10) - 500 * (edges + 10) < 500, "less than one edge of each unit"
    assert kinds.budget((784, 500, 500), density=1.0) == (500, 784)


@pytest.mark.parametrize(
    "keywords, message",
    [
        ({}, "one of units and density"),
        ({"units": 3, "density": 0.5}, "one of units and density"),
        ({"units": 100, "rounding": "up"}, "'up'.*half_up"),
        ({"units": 5}, "5 units are as many weights as -3 edges"),
        ({"units": 501}, "1 to 500 units"),
        ({"density": 1.5}, "density"),
    ],
)
def test_an_impossible_budget_is_an_error(keywords, message):
    with pytest.raises(ValueError, match=message):
        kinds.budget((784, 500, 10), **keywords)


# ----------------------------------------------------------------------------------------------------- types


EDGES = [kind for kind in kinds.KNOWN if kinds.of_edges(kind)]
UNITS = [*(kind for kind in kinds.KNOWN if not kinds.of_edges(kind)), "magnitude_node"]


def likeness(kind):
    return {"beta": "median"} if kind.startswith("dpp") else {}


@pytest.mark.parametrize("kind", EDGES)
def test_every_unit_keeps_as_many_edges_in_every_run(kind):
    net, keeps = network(), [1, 7, 20]
    found = kinds.masks_of(kind, net, "layers.0", keeps, [5, 6, 7], likelihood.moments(inputs()))
    assert list(found) == keeps
    for keep, masks in found.items():
        assert list(masks) == ["layers.0.weight"] and masks["layers.0.weight"].shape == (3, 12, 20)
        assert (masks["layers.0.weight"].sum(-1) == keep).all()


@pytest.mark.parametrize("kind", UNITS)
def test_every_run_keeps_as_many_units(kind):
    net, keeps = network(), [1, 5, 12]
    found = likelihood.unit_moments(inputs(), net.layers[0].weight, net.layers[0].bias, torch.relu)
    for keep, masks in kinds.masks_of(kind, net, "layers.0", keeps, [5, 6, 7], found, **likeness(kind)).items():
        assert masks["layers.0"].shape == (3, 12) and (masks["layers.0"].sum(-1) == keep).all()


def test_magnitude_and_outgoing_l1_are_the_published_rules():
    net = network()
    edges = kinds.masks_of("magnitude_edge", net, "layers.0", [8], [0] * 3)[8]["layers.0.weight"]
    units = kinds.masks_of("outgoing_l1_node", net, "layers.0", [5], [0] * 3)[5]["layers.0"]
    signed = kinds.masks_of("outgoing_l1_node", net, "layers.0", [5], [0] * 3, signed=True)[5]["layers.0"]
    first, second = (layer.weight.detach().numpy() for layer in net.layers)
    for run in range(3):
        for unit in range(12):
            dropped = np.argpartition(np.abs(first[run, unit]), 12)[:12]
            assert set(np.flatnonzero(~edges[run, unit].numpy())) == set(dropped)
        for chosen, score in ((units, np.abs(second[run]).sum(0)), (signed, second[run].sum(0))):
            assert set(np.flatnonzero(chosen[run].numpy())) == set(np.argsort(score)[-5:])
    assert not torch.equal(units, signed)


def test_random_arms_are_uniform_and_nested():
    net = nets.init_(nets.MLP([20, 400, 4], ["no-WN"]), [0])
    found = kinds.masks_of("random_edge", net, "layers.0", [5, 10], [3])
    few, many = (found[keep]["layers.0.weight"][0] for keep in (5, 10))
    assert (few <= many).all() and (few.double().mean(0) - 0.25).abs().max() < 0.1


def test_published_random_arms_do_not_keep_the_number_asked_for():
    net = nets.init_(nets.MLP([200, 300, 4], ["no-WN"]), [0])
    half, share = (
        kinds.masks_of("random_edge", net, "layers.0", [20], [3], rule=rule)[20]["layers.0.weight"].double().mean()
        for rule in ("half", "bernoulli")
    )
    assert abs(half - 0.5) < 0.01 and abs(share - 0.1) < 0.005
    counts = {
        int(kinds.masks_of("random_node", net, "layers.0", [100], [s], rule="bernoulli")[100]["layers.0"].sum())
        for s in range(10)
    }
    assert len(counts) > 3 and abs(np.mean(list(counts)) - 100) < 20


def test_copies_of_one_network_share_their_eigenpairs(monkeypatch):
    net, asked, solve = nets.take(network(2), [0, 1, 0, 0]), [], np.linalg.eigh
    monkeypatch.setattr(np.linalg, "eigh", lambda matrices: asked.extend(matrices) or solve(matrices))
    found = likelihood.moments(inputs())
    masks = kinds.masks_of("dpp_edge", net, "layers.0", [3, 9], [1, 2, 3, 1], found, beta=0.01)
    assert len(asked) == 2 * 12
    chosen = masks[9]["layers.0.weight"]
    assert torch.equal(chosen[0], chosen[3]) and not torch.equal(chosen[0], chosen[2])
    expected = dpp.sample(
        likelihood.Edges(found, net.layers[0].weight[1].detach(), 0.01), 9, [2], purpose="dpp_edge layers.0"
    )
    assert torch.equal(chosen[1], expected[0])


def test_every_run_may_have_inputs_of_its_own():
    net, x = nets.take(network(1), [0, 0]), torch.stack([inputs(), inputs().flip(1)])
    both = kinds.masks_of("dpp_edge", net, "layers.0", [6], [1, 1], likelihood.moments(x), beta="median")[6]
    for run in range(2):
        found = likelihood.moments(x[run])
        alone = kinds.masks_of("dpp_edge", nets.take(net, [run]), "layers.0", [6], [1], found, beta="median")[6]
        assert torch.equal(both["layers.0.weight"][run], alone["layers.0.weight"][0])
    assert not torch.equal(*both["layers.0.weight"])


def test_dead_inputs_are_kept_less_often_by_the_dpp():
    """Constant inputs are copies of each other, so a diverse set holds few of them; random sets do not know."""
    x = inputs(500)
    x[:, :10] = -0.4
    net, found = network(1, (20, 60, 4)), likelihood.moments(x)
    dead = {
        kind: kinds.masks_of(kind, net, "layers.0", [8], [0], found, **likeness(kind))[8]["layers.0.weight"][
            ..., :10
        ].sum()
        for kind in ("dpp_edge", "random_edge")
    }
    assert dead["dpp_edge"] < 0.7 * dead["random_edge"]


@pytest.mark.parametrize(
    "kind, keywords, message",
    [
        ("dpp_nodes", {}, "'dpp_nodes'; allowed are .*dpp_edge.* Did you mean 'dpp_node'"),
        ("dpp_edge", {}, "dpp needs moments"),
        ("random_edge", {"seeds": [1]}, "1 seeds for a stack of 3 runs"),
        ("random_edge", {"rule": "coin"}, "'coin'.*bernoulli"),
        ("magnitude_edge", {"rule": "half"}, "random types alone"),
        ("random_edge", {"bta": 0.3}, r"no keywords \['bta'\]; it has keys, draw"),
        ("dpp_edge", {"bta": 0.3, "moments": likelihood.moments(torch.eye(20))}, r"no keywords \['bta'\].*beta"),
        ("random_edge", {"keeps": [21]}, r"keep is 21; allowed are whole numbers in \[1, 20\]"),
        ("random_edge", {"layer": "layers.7"}, r"the linear layer is 'layers\.7'; allowed are"),
    ],
)
def test_errors_at_the_door(kind, keywords, message):
    arguments = {"layer": "layers.0", "keeps": [3], "seeds": [1, 2, 3]} | keywords
    with pytest.raises(ValueError, match=message):
        kinds.masks_of(kind, network(), **arguments)


@pytest.mark.parametrize(
    ("units", "keep", "said"),
    [
        (5, [0], "keep = [0] takes the budgets of the study, and 0 units are as many weights as -10 edges per unit"),
        (10, [3, 3], "keep = [3, 3]: dpp_node would keep 3, 3 of 10; give different numbers from 1 to 10"),
        (10, [], "keep = []: dpp_node would keep none of 10"),
    ],
)
def test_what_cannot_be_kept_is_refused_with_the_reason(units, keep, said):
    asked = {"dataset": "digits", "hidden": [units], "keep": keep, "type": ["dpp_node"]}
    assert kinds.complaint(asked, study.widths(asked), study.budgets).startswith(said)
