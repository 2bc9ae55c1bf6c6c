"""The panels of the train-time pruning summary: every row and every line by hand, from small records."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from lib import drawing, runs
from lib.studies.importance import figures

NAME = "train_time_prune"
T = 12.7062  # the 97.5 % quantile of Student's t of two seeds, whose standard error is half their distance
TESTED = {  # type -> seed -> test accuracy in % after epochs 0 to 5
    "contribution": {1: [10, 40, 48, 58, 66, 78], 2: [10, 44, 54, 60, 70, 88], 4: [10, 30, 42, 50, 62, 74]},
    "none": {1: [10, 40, 50, 60, 70, 80], 2: [10, 44, 54, 64, 74, 84], 3: [10, 20, 30, 40, 50, 60]},
    "worst": {1: [10, 42, 45, 55, 65, 75]},
    "small": {1: [10, 30, 40, 50, 60, 76], 2: [10, 32, 42, 52, 62, 80]},
}
GAPS = {"none": 8, "contribution": 5, "worst": 5, "small": 5}  # points that the training accuracy is higher
LEFT = {  # type -> seed -> test accuracy in % right after units went, which they do after epochs 1 and 3
    "contribution": {1: [30, 50], 2: [38, 40], 4: [22, 45]},
    "none": {seed: [accuracy[1], accuracy[3]] for seed, accuracy in TESTED["none"].items()},
    "worst": {1: [12, 35]},
    "small": {1: [np.nan] * 2, 2: [np.nan] * 2},
}
WIDTHS = {"none": [[6, 4], [6, 4]], "small": [[3, 2], [3, 2]]}  # of two layers by round, others below


def content(kind, seed):
    accuracy = np.array(TESTED[kind][seed]) / 100
    arrays = {
        "test_accuracy": (accuracy, ("epoch",)), "train_accuracy": (accuracy + GAPS[kind] / 100, ("epoch",)),
        "prune_epoch": ([1, 3], ("round",)), "after_prune_accuracy": (np.array(LEFT[kind][seed]) / 100, ("round",)),
        "start_widths": ([6, 4], ("layer",)), "widths": (WIDTHS.get(kind, [[5, 3], [3, 2]]), ("round", "layer")),
    }  # fmt: skip
    return {"arrays": arrays, "axes": {"epoch": range(6), "round": [1, 2], "layer": ["layers.0", "layers.1"]}}


def save(experiment, kind, seeds, content, **parameters):
    """Save a record for every seed, with `content(kind, seed)` and the notebook's defaults but for `parameters`."""
    run = runs.open_run(experiment, runs.declared(experiment) | {"type": kind, "seed": seeds} | parameters)
    for seed, _ in run.todo:
        run.save(type=kind, seed=seed, **{"scores": {}} | content(kind, seed))


@pytest.fixture(scope="module")
def records(shared_runs):
    for kind, seeds in TESTED.items():
        save(NAME, kind, list(seeds), content)
    return figures.groups(NAME, ["mnist"], "increment")["mnist, 2 rounds"]


@pytest.fixture(scope="module")
def rounds(records):
    return figures.rounds(records)


@pytest.fixture
def axes():
    drawing.style()
    figure, axes = plt.subplots()
    yield axes
    plt.close(figure)


def lines(axes):
    """Return the labelled lines of a panel as {label: (x, y)}, in the order in which they were drawn."""
    return {line.get_label(): line.get_data() for line in axes.get_lines() if not line.get_label().startswith("_")}


def thin(axes):
    """Return the (x, y) of all other lines, as lists of numbers."""
    others = [line for line in axes.get_lines() if line.get_label().startswith("_")]
    return [[part.round(3).tolist() for part in line.get_data(orig=False)] for line in others]


def bars(axes):
    """Return the markers with intervals as {label: (x, y, [(low, high), ...])}, the intervals where there are any."""
    found = {}
    for container in axes.containers:
        line, _, (drawn,) = container.lines
        ends = [tuple(segment[:, 1]) for segment in drawn.get_segments() if len(segment)]
        found[container.get_label()] = (*line.get_data(orig=False), ends)
    return found


def frames_match(found, expected):
    pd.testing.assert_frame_equal(found, expected, check_dtype=False, check_like=True, rtol=1e-5)


# ---- which records


def numbered(count):
    """Return the content of records that have nothing but so many rounds."""
    arrays, axes = {"prune_epoch": (range(count), ("round",))}, {"round": range(1, count + 1)}
    return lambda kind, seed: {"arrays": arrays, "axes": axes}


def test_groups_are_the_largest_by_data_set_and_rounds(shared_runs):
    for kind, seeds in {"worst": [2], "small": [2], "none": [10, 2], "contribution": [2]}.items():
        save(NAME, kind, seeds, numbered(2), dataset="digits", increment=10)
    save(NAME, "contribution", [1, 3], numbered(2), dataset="digits", increment=10, lr=0.5)  # fewer, and found first
    save(NAME, "none", [2], numbered(1), dataset="digits", increment=20)
    save(NAME, "none", [2], numbered(10), dataset="digits", increment=5)
    save(NAME, "random", [2], numbered(2), dataset="fashion_mnist")
    found = figures.groups(NAME, ["fashion_mnist", "cifar10", "digits"], "increment")
    assert list(found) == ["fashion_mnist, 2 rounds", "digits, 1 round", "digits, 2 rounds", "digits, 10 rounds"]
    members = [(record.type, record.seed) for record in found["digits, 2 rounds"]]
    assert members == [("none", 2), ("none", 10), ("contribution", 2), ("worst", 2), ("small", 2)]
    assert [record.parameters["increment"] for record in found["digits, 1 round"]] == [20]
    assert {record.parameters["lr"] for record in found["digits, 2 rounds"]} == {0.1}


def test_values_with_the_same_number_of_rounds_are_told_apart(shared_runs):
    for increment in (9, 10):
        save(NAME, "random", [2], numbered(2), dataset="digits32", increment=increment)
    found = figures.groups(NAME, ["digits32"], "increment")
    assert list(found) == ["digits32, 2 rounds, increment 9", "digits32, 2 rounds, increment 10"]
    assert [records[0].parameters["increment"] for records in found.values()] == [9, 10]


# ---- rows


def test_curves_have_what_a_pruning_left_just_behind_its_epoch(records):
    found = figures.curves(records)
    first = found.query("type == 'contribution' and seed == 1").reset_index(drop=True)
    expected = {"epoch": [0, 1, 1.01, 2, 3, 3.01, 4, 5], "accuracy": [10, 40, 30, 48, 58, 50, 66, 78]}
    frames_match(first, pd.DataFrame({"type": "contribution", "seed": 1, **expected}))
    never = found.query("type == 'small' and seed == 2")
    assert never["epoch"].tolist() == [0, 1, 2, 3, 4, 5], "the control was never pruned"
    np.testing.assert_allclose(never["accuracy"], TESTED["small"][2], rtol=1e-6)
    assert list(dict.fromkeys(found["type"])) == ["none", "contribution", "worst", "small"]


@pytest.mark.parametrize(
    "kind, seed, rows",
    [
        ("contribution", 1, [(0, 1, 45, 40, np.nan, np.nan, 0, 6, 4), (1, 3, 63, 58, 40, 30, 20, 5, 3),
                             (2, 5, 83, 78, 58, 50, 50, 3, 2)]),
        ("none", 2, [(0, 1, 52, 44, np.nan, np.nan, 0, 6, 4), (1, 3, 72, 64, 44, 44, 0, 6, 4),
                     (2, 5, 92, 84, 64, 64, 0, 6, 4)]),
    ],
)  # fmt: skip
def test_rounds_end_where_the_next_pruning_is_or_with_training(rounds, kind, seed, rows):
    names = ["round", "epoch", "train", "test", "before", "after", "pruned", "layers.0", "layers.1"]
    found = rounds[(rounds["type"] == kind) & (rounds["seed"] == seed)].reset_index(drop=True)
    frames_match(found, pd.DataFrame(rows, columns=names).assign(type=kind, seed=seed))


def test_the_control_is_narrow_in_its_last_round(rounds):
    control = rounds.query("type == 'small' and seed == 1 and round == 2")
    assert control[["epoch", "pruned", "layers.0", "layers.1"]].values.tolist() == [[5, 50, 3, 2]]


COST = pd.DataFrame(  # of contribution seed 4 has no partner, and of none seed 3
    [
        ("contribution", 1, 0, 0, 0, 2, 0),
        ("contribution", 3, -3, -3 - T, -3 + T, 2, 20),  # 58 - 60 and 60 - 64
        ("contribution", 5, 1, 1 - 3 * T, 1 + 3 * T, 2, 50),  # 78 - 80 and 88 - 84
        ("worst", 1, 2, np.nan, np.nan, 1, 0),
        ("worst", 3, -5, np.nan, np.nan, 1, 20),
        ("worst", 5, -5, np.nan, np.nan, 1, 50),
    ],
    columns=["first", "epoch", "mean", "low", "high", "n", "pruned"],
).assign(second="none")


def test_the_cost_of_pruning_is_paired_by_seed_and_epoch(rounds):
    found = figures.against_unpruned(rounds)
    frames_match(found[list(COST)], COST)
    alone = figures.against_unpruned(rounds[rounds["type"] != "none"])
    assert len(alone) == 0, "with nothing to compare with there is no row"


# ---- panels


def test_training_is_a_type_before_what_is_not_pruned_and_a_tick_for_each_event(axes, records):
    figures.training(axes, figures.curves(records[::-1]), "contribution", [1, 3])
    assert list(lines(axes)) == ["not pruned", "a tenth of the units goes"], "the title says the type"
    (own,) = (line for line in axes.get_lines() if line.get_linewidth() == 1.2)
    mean = [[0, 1, 1.01, 2, 3, 3.01, 4, 5], [10, 38, 30, 48, 56, 45, 66, 80]]
    np.testing.assert_allclose(own.get_data(), mean, rtol=1e-6)
    assert len(thin(axes)) == 3 + 3 + 1, "the seeds where there are several, and the mean of the type"
    assert [line.get_xdata() for line in axes.lines[-2:]] == [[1, 1], [3, 3]]
    figures.training(axes, figures.curves(records), "nobody ran it", [1])
    assert not axes.axison, "an empty panel is none"


def test_the_control_is_a_marker_with_quartiles_among_medians(axes, rounds):
    figures.kept(axes, rounds, "test")
    drawn = lines(axes)
    assert list(drawn) == ["contribution", "worst first"], "no line of what loses no units"
    np.testing.assert_allclose(drawn["contribution"], [[0, 20, 50], [40, 58, 78]], rtol=1e-6)
    np.testing.assert_allclose(drawn["worst first"], [[0, 20, 50], [42, 55, 75]], rtol=1e-6)
    assert [[0, 20, 50], [44, 60, 88]] in thin(axes), "a thin line is a seed"
    (control,) = bars(axes).items()
    assert control[0] == "trained small"
    x, y, ((low, high),) = control[1]
    np.testing.assert_allclose([*x, *y, low, high], [50, 78, 77, 79], rtol=1e-5)
    _, colour, marker, _ = drawing.look("small")
    line = axes.containers[0].lines[0]
    assert (line.get_color(), line.get_marker(), line.get_linestyle()) == (colour, marker, "None")


def test_a_control_of_one_seed_has_no_interval(axes, rounds):
    figures.kept(axes, rounds.query("type == 'small' and seed == 1"), "train")
    assert not lines(axes)
    x, y, ((low, high),) = bars(axes)["trained small"]
    np.testing.assert_allclose([*x, *y, low, high], [50, 81, 81, 81], rtol=1e-6)


def test_of_rounds_that_leave_the_same_widths_the_last_is_shown(axes, rounds):
    mine = rounds[rounds["type"] == "worst"]
    figures.kept(axes, mine.assign(pruned=mine["pruned"].round().replace(50, 20)), "train")
    np.testing.assert_allclose(lines(axes)["worst first"], [[0, 20], [47, 80]], rtol=1e-6)


def test_without_a_control_there_is_no_marker(axes, rounds):
    figures.kept(axes, rounds[rounds["type"] == "worst"], "train")
    np.testing.assert_allclose(lines(axes)["worst first"], [[0, 20, 50], [47, 60, 80]], rtol=1e-6)
    assert len(lines(axes)) == 1 and not bars(axes)


def test_differences_are_means_with_intervals_about_zero(axes):
    figures.differences(axes, COST)
    drawn = bars(axes)
    assert list(drawn) == ["contribution", "worst first"]
    x, y, ends = drawn["contribution"]
    np.testing.assert_allclose([x, y], [[0, 20, 50], [0, -3, 1]])
    np.testing.assert_allclose(ends, [(0, 0), (-3 - T, -3 + T), (1 - 3 * T, 1 + 3 * T)])
    np.testing.assert_allclose(drawn["worst first"][:2], [[0, 20, 50], [2, -5, -5]])
    assert not drawn["worst first"][2], "one seed has no interval"
    looks = [(line.get_color(), line.get_marker(), line.get_linestyle()) for line, _, _ in axes.containers]
    assert looks == [drawing.look(kind)[1:] for kind in ("contribution", "worst")]
    assert thin(axes)[-1] == [[0, 1], [0, 0]], "the line of no difference"


@pytest.mark.parametrize(
    "value, contribution, seed, worst",
    [("after", [-8, -11], [-6, -20], [-30, -20]), ("test", [18, 24], [16, 28], [13, 20])],
)
def test_recovery_is_the_change_from_before_a_pruning(axes, rounds, value, contribution, seed, worst):
    figures.recovery(axes, rounds, value)
    drawn = lines(axes)
    assert list(drawn) == ["contribution", "worst first"], "neither what is not pruned nor the control"
    np.testing.assert_allclose(drawn["contribution"], [[1, 2], contribution], rtol=1e-5)
    np.testing.assert_allclose(drawn["worst first"], [[1, 2], worst], rtol=1e-5)
    assert [[1, 2], seed] in thin(axes) and [[0, 1], [0, 0]] in thin(axes)


def test_where_nothing_is_pruned_yet_there_is_nothing_to_recover_from(axes, rounds):
    figures.recovery(axes, rounds[rounds["type"].isin(figures.CONTROLS)], "after")
    (level,) = axes.lines
    assert list(level.get_ydata()) == [0, 0] and not axes.collections


# ---- autoencoders

NATS = {  # type -> seed -> reconstruction of the test images after epochs 0 to 5; their KL is a tenth
    "none": {1: [900, 300, 200, 150, 120, 110]},
    "contribution": {1: [900, 300, 210, 160, 130, 120], 2: [800, 280, 190, 140, 110, 100]},
}


def loop(kind, seed):
    nats = np.array(NATS[kind][seed])
    arrays = {"test_reconstruction": (nats, ("epoch",)), "test_kl": (nats / 10, ("epoch",))}
    arrays["round_epoch"] = [0.0, 2.0, 4.0], ("round",)
    return {"arrays": arrays, "axes": {"epoch": range(6), "round": range(3)}}


def count(parameters, record):
    """Return 3, 2 and 1 million parameters, for "none" a million more, if the latent space has 100 numbers."""
    return np.array([3, 2, 1]) * 1e4 * parameters["latent"] + 1e6 * (record.type == "none")


@pytest.fixture(scope="module")
def loops(shared_runs):
    for kind, seeds in NATS.items():
        save("vae_prune", kind, list(seeds), loop, dataset="digits")
    return figures.groups("vae_prune", ["digits"], "epochs")["digits, 2 rounds"]


def test_what_autoencoders_have_left_when_a_round_ends(loops):
    expected = pd.DataFrame(
        [
            ("none", 1, 0, 2, 4, 200, 20), ("none", 1, 1, 4, 3, 120, 12), ("none", 1, 2, 5, 2, 110, 11),
            ("contribution", 1, 0, 2, 3, 210, 21), ("contribution", 1, 1, 4, 2, 130, 13),
            ("contribution", 1, 2, 5, 1, 120, 12), ("contribution", 2, 0, 2, 3, 190, 19),
            ("contribution", 2, 1, 4, 2, 110, 11), ("contribution", 2, 2, 5, 1, 100, 10),
        ],
        columns=["type", "seed", "round", "epoch", "parameters", "reconstruction", "kl"],
    )  # fmt: skip
    frames_match(figures.autoencoders(loops, count), expected)


def test_losses_are_differences_over_the_parameters_that_are_left(axes, loops):
    figures.left_over(axes, figures.autoencoders(loops, count), "reconstruction")
    drawn = lines(axes)
    assert list(drawn) == ["contribution"], "what is not pruned is the line at zero"
    np.testing.assert_allclose(drawn["contribution"], [[1, 2, 3], [10, 10, 10]])
    assert [[0, 1], [0, 0]] in thin(axes) and len(thin(axes)) == 1, "the second seed has no partner"
    assert axes.get_lines()[0].get_marker() == drawing.look("contribution")[2]


def test_a_picture_has_a_title_and_no_ticks(axes):
    image = np.arange(24.0).reshape(2, 4, 3) / 24
    figures.picture(axes, image, "contribution, seed 1")
    np.testing.assert_array_equal(axes.images[0].get_array(), image)
    assert axes.get_title("left") == "contribution, seed 1"
    assert len(axes.get_xticks()) == len(axes.get_yticks()) == 0
    figures.picture(axes, image, "", ["image", "end"])
    assert [label.get_text() for label in axes.get_yticklabels()] == ["image", "end"]
    assert axes.get_yticks().tolist() == [0.5, 1.5], "in the middle of each half of two rows of pixels"
