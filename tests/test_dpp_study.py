"""What the DPP study does with a network, against NumPy on the same weights, and against its published tables."""

import math

import numpy as np
import pytest
import torch

from lib import nets, once, runs, sets
from lib.errors import RecordError
from lib.studies.dpp import committee, committee_study, kinds, study

DIGITS = sets.load("digits")
# Every second pixel of every second line: 196 inputs.
TRAIN, TEST = (
    (x[:n].view(-1, 28, 28)[:, ::2, ::2].flatten(1).contiguous(), y[:n])
    for n, (x, y) in ((400, DIGITS.split("train")), (200, DIGITS.split("test")))
)
SEEDS, HIDDEN, KEEP = [1, 2], 20, {"edge": [40, 196], "node": [8, 20]}
MEDIAN = {"beta": "median"}


pytestmark = pytest.mark.usefixtures("shared_runs")


def lab(**changes):
    rule = {"lr": 0.1, "momentum": 0.9, "batch": 50, "shuffle": False, "bar": False}
    return study.Lab(**{"train": TRAIN, "test": TEST, "seeds": SEEDS, "recipe": {"name": "digits-dpp"},
                        "hidden": (HIDDEN,), "epochs": 5, "rule": rule} | changes)  # fmt: skip


@pytest.fixture(scope="module")
def net():
    return lab().dense()


@pytest.fixture(scope="module")
def found(net):
    return study.items(net, TRAIN[0])


def keep_of(kind):
    return KEEP[kind.rpartition("_")[2]]


def options_of(kind):
    return MEDIAN if kind.startswith("dpp") else {}


def arrays_of(net, run):
    """Return (W1, b1, W2, b2) of one run, float64 arrays."""
    return [t[run].detach().double().numpy() for layer in net.layers for t in (layer.weight, layer.bias)]


def outputs(w1, b1, w2, b2, x):
    return 1 / (1 + np.exp(-(x.double().numpy() @ w1.T + b1))) @ w2.T + b2


def accuracy(parts, split):
    return (outputs(*parts, split[0]).argmax(1) == split[1].numpy()).mean()


# -------------------------------------------------------------------------------------------------- networks


def test_the_network_is_two_xavier_matrices_and_a_sigmoid():
    start = lab().network()
    w1, b1, w2, b2 = arrays_of(start, 0)
    assert w1.shape == (20, 196) and not b1.any() and not b2.any()
    for w in (w1, w2):
        assert 0.9 < np.abs(w).max() / np.sqrt(6 / sum(w.shape)) <= 1
    np.testing.assert_allclose(start(TEST[0])[0].detach(), outputs(w1, b1, w2, b2, TEST[0]), atol=1e-4)


def test_networks_learn_and_are_trained_once(net, monkeypatch):
    for run in range(2):
        assert accuracy(arrays_of(net, run), TEST) > 0.8
    monkeypatch.setattr(study.frame, "Trainer", None)
    again = lab().dense()
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), again.parameters(), strict=True))


def test_networks_with_dropout_are_others():
    dropped = lab(dropout=0.5, epochs=1).dense()
    plain = lab(epochs=1).dense()
    assert len(dropped.drops) == 1 and len(plain.drops) == 0
    assert not torch.allclose(dropped.layers[0].weight, plain.layers[0].weight)


def test_networks_with_dropconnect_are_others_and_have_their_own_file():
    dropped, plain = lab(dropconnect=0.5, epochs=1).dense(), lab(epochs=1).dense()
    assert dropped.connect.chance == 0.5 and plain.connect is None
    assert not torch.allclose(dropped.layers[0].weight, plain.layers[0].weight)
    files = {path.parent.name for path in runs.folder().glob("trained/*/*/*") if "epochs=1;" in path.parent.name}
    assert len({name for name in files if "dropconnect=0.5" in name}) == 2, "one for each seed"
    assert any("dropconnect" not in name for name in files), "names of others are as they were"


def test_weights_come_from_the_studys_checkpoints(tmp_path):
    torch.manual_seed(0)
    layers = {"w1": torch.nn.Linear(196, 20), "w2": torch.nn.Linear(20, 10)}
    torch.save(torch.nn.ModuleDict(layers).state_dict(), tmp_path / "mnist.pt")
    taken = lab().dense(tmp_path / "mnist.pt")
    expected = layers["w2"](torch.sigmoid(layers["w1"](TEST[0])))
    for run in range(2):
        torch.testing.assert_close(taken(TEST[0])[run], expected, atol=1e-4, rtol=1e-4)
    with pytest.raises(ValueError, match="set hidden"):
        lab(hidden=(30,)).dense(tmp_path / "mnist.pt")


def test_weights_come_from_our_own_files(net, tmp_path):
    recipe = lab().recipe | {"type": "dense", "hidden": [HIDDEN], "dropout": 0.0, "epochs": lab().epochs}
    once.save(tmp_path / "own.safetensors", nets.take(net, [1]), {}, recipe | {"seed": 77})
    taken = lab().dense(tmp_path / "own.safetensors")
    assert all(torch.equal(t[0], t[1]) for t in taken.parameters())
    assert torch.equal(taken.layers[0].weight[0], net.layers[0].weight[1])
    with pytest.raises(
        RecordError, match=rf"own\.safetensors holds epochs {lab().epochs}; asked for is epochs 99\. Name"
    ):
        lab(epochs=99).dense(tmp_path / "own.safetensors")


# -------------------------------------------------------------------------------------------------- budgets


MNIST = {"dataset": "mnist", "hidden": [500], "keep": [0]}


def test_the_budgets_of_one_hidden_layer():
    assert kinds.keeps("dpp_node", MNIST, study.budgets) == [50, 100, 150, 200, 250, 300, 350, 400]
    assert kinds.keeps("dpp_edge", MNIST, study.budgets) == [69, 148, 228, 307, 387, 466, 545, 625]
    assert kinds.keeps("dpp_edge", MNIST | {"keep": [69]}, study.budgets) == [69]


def test_the_budgets_of_two_hidden_layers():
    p = MNIST | {"hidden": [500, 500]}
    assert kinds.keeps("magnitude_edge", p, study.budgets) == [79, 157, 236, 314, 392, 471, 549, 628, 706]
    assert kinds.keeps("random_node", p, study.budgets) == [225, 255, 286, 316, 347, 377, 408, 438, 469]


# -------------------------------------------------------------------------------------------------- pruning


@pytest.mark.parametrize("kind", kinds.KNOWN)
def test_every_type_keeps_its_number_and_everything_changes_nothing(kind, net, found):
    keep = keep_of(kind)
    parts = list(study.pruned(kind, net, keep, SEEDS, found, options_of(kind)))
    for number, (mask, *stacks) in zip(keep, parts, strict=True):
        (kept,) = mask.values()
        assert (kept.sum(-1) == number).all()
        for stack in stacks:
            zero = stack.layers[0].weight == 0
            assert zero[~kept].all()
    for stack in parts[-1][1:]:
        torch.testing.assert_close(stack(TEST[0]), net(TEST[0]), atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("kind", kinds.KNOWN)
def test_reweighting_brings_the_outputs_of_the_training_set_nearer(kind, net, found):
    _, raw, again = next(study.pruned(kind, net, keep_of(kind), SEEDS, found, options_of(kind)))
    far, near = ((stack(TRAIN[0]) - net(TRAIN[0])).square().mean((1, 2)) for stack in (raw, again))
    assert (near < 0.9 * far).all()


def test_the_accuracy_of_magnitude_is_that_of_sorting_by_hand(net, found):
    got = study.accuracies("magnitude_edge", net, [40], SEEDS, found, TEST)
    assert got["accuracy"].shape == (2, 2, 1)
    for run in range(2):
        w1, b1, w2, b2 = arrays_of(net, run)
        mask = np.zeros_like(w1, bool)
        np.put_along_axis(mask, np.argsort(-np.abs(w1), axis=1)[:, :40], True, axis=1)
        assert got["accuracy"][run, 0, 0] == accuracy((w1 * mask, b1, w2, b2), TEST)
        x = TRAIN[0].double().numpy()
        for unit, kept in enumerate(mask):  # with an intercept, which moves the bias
            left, right = np.c_[x[:, kept], np.ones(len(x))], x[:, ~kept] @ w1[unit, ~kept]
            change = np.linalg.lstsq(left, right, rcond=1e-9)[0]
            w1[unit, kept] += change[:-1]
            b1[unit] += change[-1]
        by_hand = accuracy((w1 * mask, b1, w2, b2), TEST)
        assert abs(got["accuracy"][run, 1, 0] - by_hand) <= 1 / len(TEST[1])


def test_the_accuracy_of_outgoing_l1_is_that_of_removing_units_by_hand(net, found):
    got = study.accuracies("outgoing_l1_node", net, [8], SEEDS, found, TEST, refit=False)
    assert got["accuracy"].shape == (2, 1, 1)
    for run in range(2):
        w1, b1, w2, b2 = arrays_of(net, run)
        gone = np.argsort(-np.abs(w2).sum(0))[8:]
        w1[gone] = 0  # they go on saying sigmoid(b1), as in the published program
        assert got["accuracy"][run, 0, 0] == accuracy((w1, b1, w2, b2), TEST)


def test_as_published_units_speak_on_through_their_biases(net, found):
    published = study.accuracies("outgoing_l1_node", net, [8], SEEDS, found, TEST, as_published=True)
    ours = study.accuracies("outgoing_l1_node", net, [8], SEEDS, found, TEST)
    np.testing.assert_array_equal(published["accuracy"][:, 0], ours["accuracy"][:, 0])
    mask, raw, again = next(study.pruned("outgoing_l1_node", net, [8], SEEDS, found, None, False, True))
    assert torch.equal(raw.layers[1].weight, net.layers[1].weight) and torch.equal(
        again.layers[1].bias, net.layers[1].bias
    )


def test_as_published_random_edges_are_half_of_them_whatever_is_asked(net, found):
    got = study.accuracies("random_edge", net, [10, 150], SEEDS, found, TEST, as_published=True, refit=False)
    assert (np.abs(got["left"] / (20 * 196) - 0.5) < 0.05).all()


@pytest.mark.parametrize("kind, left", [("random_edge", 20 * 40 + 20 * 10), ("random_node", 8 * 196 + 8 * 10)])
def test_what_is_left_is_counted_in_both_layers(kind, left, net, found):
    got = study.accuracies(kind, net, keep_of(kind)[:1], SEEDS, found, TEST, refit=False)
    assert got["left"].tolist() == [[left], [left]]


def test_published_items_are_fields_without_the_bias(net):
    x = TRAIN[0].double().numpy()
    found = study.items(net, TRAIN[0], "preactivation", as_published=True)
    for run in range(2):
        w1, *_ = arrays_of(net, run)
        fields = x @ w1.T
        np.testing.assert_allclose(found.units.gram[run], fields.T @ fields, rtol=1e-4, atol=1e-3)
        said = 1 / (1 + np.exp(-fields))
        np.testing.assert_allclose(found.outputs.gram[run], said.T @ said, rtol=1e-5)
    with pytest.raises(ValueError, match="'bias'; allowed are"):
        study.items(net, TRAIN[0], "bias")


# -------------------------------------------------------------------------------------------------- diversity


def test_diversity_is_the_log_determinant_per_item():
    rng = np.random.default_rng(0)
    parts = rng.normal(size=(2, 3, 6, 6))
    each = parts @ parts.swapaxes(2, 3) + np.eye(6)
    kept = rng.random((2, 5, 6)) < 0.6
    kept[..., 0] = True
    expected = [
        np.mean([np.linalg.slogdet(each[r, m][np.ix_(kept[r, m], kept[r, m])])[1] / kept[r, m].sum() for m in range(3)])
        for r in range(2)
    ]
    found = study.diversity(torch.from_numpy(each), torch.from_numpy(kept))
    np.testing.assert_allclose(found, expected)
    alone = study.diversity(1.01 * torch.eye(6).expand(2, 1, 6, 6), torch.from_numpy(kept[:, 0]))
    np.testing.assert_allclose(alone, np.log(1.01), rtol=1e-5)


def test_the_entries_of_the_matrices_are_those_of_brute_force(net, found):
    got = study.entries("dpp_edge", net, found, (1e-3, "median"))
    assert got.shape == (2, 2, 3)
    w1, *_ = arrays_of(net, 1)
    middle = []
    for row in w1[: study.SEEN_UNITS]:
        vectors = TRAIN[0].double().numpy() * row
        squares = (vectors**2).sum(0)
        distances = np.maximum(squares[:, None] + squares - 2 * vectors.T @ vectors, 0)
        middle.append(np.quantile(np.exp(-1e-3 * distances[np.triu_indices(196, 1)]), study.LEVELS))
    np.testing.assert_allclose(got[1, 0], np.mean(middle, 0), atol=1e-6)
    np.testing.assert_allclose(got[:, 1, 1], np.exp(-1), atol=0.01)
    nodes = study.entries("random_node", net, found)
    assert nodes.shape == (2, len(study.BETAS), 3) and (np.diff(nodes[:, :, 1]) <= 0).all()


def test_diverse_edges_are_more_diverse_than_random_ones(net, found):
    diverse, random = (
        study.accuracies(kind, net, [40], SEEDS, found, TEST, options_of(kind), refit=False)["log_det"]
        for kind in ("dpp_edge", "random_edge")
    )
    assert (diverse > random + 0.05).all()


# -------------------------------------------------------------------------------------------------- students

INPUTS, UNITS = 30, 4


@pytest.fixture(scope="module")
def taught():
    return committee_study.students([1, 2], [0.0, 0.25], INPUTS, UNITS, 2, 4.0, 20_000, 0.5)


@pytest.fixture(scope="module")
def pupil(taught):
    """Return (student, teacher, items, tests) of seed 1 with noise."""
    student, teacher, _ = taught
    student, teacher = nets.take(student, [1]), nets.take(teacher, [1])
    x, _ = committee.many(1, INPUTS, 5000, "train")
    return student, teacher, study.items(student, x, "preactivation"), committee.many(1, INPUTS, 5000)


def test_students_learn_and_are_taught_once(taught, monkeypatch):
    student, teacher, history = taught
    assert nets.runs(student) == 4 and (history["error"][:, -1] < history["error"][:, 0] / 3).all()
    np.testing.assert_allclose(history["error"][:, -1], committee.error(student, teacher, [0.0, 0.25] * 2))
    monkeypatch.setattr(committee, "learn_", None)
    again, _, _ = committee_study.students([2], [0.25], INPUTS, UNITS, 2, 4.0, 20_000, 0.5)
    assert torch.equal(again.layers[0].weight[0], student.layers[0].weight[3])


def test_the_budgets_of_a_student():
    p = {"inputs": 500, "students": 6, "keep": [0]}
    assert kinds.keeps("dpp_node", p, committee_study.budgets) == [1, 2, 3, 4, 5]
    assert kinds.keeps("dpp_edge", p, committee_study.budgets) == [83, 166, 250, 333, 417]
    assert kinds.keeps("dpp_edge", p | {"keep": [100]}, committee_study.budgets) == [100]


def prune(kind, pupil, **options):
    student, teacher, found, tests = pupil
    keep = kinds.keeps(kind, {"inputs": INPUTS, "students": UNITS, "keep": [0]}, committee_study.budgets)
    return committee_study.errors(kind, student, teacher, keep, 1, 0.25, found, tests, **options)


@pytest.mark.parametrize("kind", kinds.KNOWN)
def test_errors_are_those_of_the_simulation(kind, pupil):
    got = prune(kind, pupil, sets=3)
    drawn = 3 if kind in committee_study.DRAWN_AT_RANDOM else 1
    assert got["error"].shape == got["simulated"].shape == got["deviation"].shape == (2, 3, drawn)
    assert got["student"].shape == (3, UNITS, UNITS) and got["cross"].shape == (3, UNITS, 2)
    assert (np.abs(got["error"] - got["simulated"]) < 4.5 * got["deviation"]).all()
    assert (np.diff(got["error"].mean(2)) < 0).all(), "the more is kept the smaller the error"
    assert (got["error"][1] < 1.05 * got["error"][0]).all(), "reweighting must not hurt but by its sample"


def test_sets_are_of_their_own_seeds(pupil):
    three, two = prune("random_edge", pupil, sets=3), prune("random_edge", pupil, sets=2)
    np.testing.assert_allclose(three["error"][:, :, :2], two["error"], rtol=1e-5)
    assert (np.abs(np.diff(three["error"][0])) > 1e-6).all()


def test_reweighted_units_are_refitted_on_their_activations(pupil):
    student, teacher, _, _ = pupil
    w, v = (layer.weight[0].detach().double().numpy() for layer in student.layers)
    x, _ = committee.many(1, INPUTS, 5000, "train")
    said = np.vectorize(math.erf)(x.double().numpy() @ w.T / np.sqrt(2))
    kept = np.sort(np.argsort(-np.abs(v[0]))[:2])
    other = committee.committee(1, INPUTS, 2)
    with torch.no_grad():
        other.layers[0].weight[0] = torch.from_numpy(w[kept])
        other.layers[1].weight[0, 0] = torch.from_numpy(np.linalg.lstsq(said[:, kept], said @ v[0], rcond=None)[0])
    got = prune("outgoing_l1_node", pupil)["error"][1, 1, 0]
    np.testing.assert_allclose(got, committee.error(other, teacher, 0.25)[0], rtol=1e-4)


def test_as_published_signs_count_and_edges_are_tossed(pupil):
    student, *rest = pupil
    flipped = nets.take(student, [0])
    with torch.no_grad():  # the same function, with the sign of one unit in v and in w turned
        best = int(student.layers[1].weight[0, 0].abs().argmax())
        turned = -student.layers[1].weight[0, 0, best].abs() / student.layers[1].weight[0, 0, best]
        flipped.layers[1].weight[0, 0, best] *= turned
        flipped.layers[0].weight[0, best] *= turned
    signed = prune("outgoing_l1_node", (flipped, *rest), as_published=True)["error"]
    ours = prune("outgoing_l1_node", (flipped, *rest))["error"]
    assert signed[0, 0, 0] != ours[0, 0, 0]
    tossed = prune("random_edge", pupil, sets=2, as_published=True)
    assert not np.allclose(tossed["error"], prune("random_edge", pupil, sets=2)["error"])


def test_wrong_calls_are_errors(pupil):
    with pytest.raises(ValueError, match="sets is 0; allowed are 1 to 1000"):
        prune("dpp_edge", pupil, sets=0)
    with pytest.raises(ValueError, match="dpp_nodes.*allowed"):
        kinds.masks_of("dpp_nodes", pupil[0], "layers.0", [1], [1])
