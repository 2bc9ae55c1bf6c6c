"""The EWN study's claim: verdicts from hand-made accuracies, and a figure without published values."""

from types import SimpleNamespace

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from lib import drawing, runs
from lib.studies.ewn import figures

LEVELS = [-10, -50, -100, -300]


def made(gain, seeds=6):
    """Accuracies of three types: EWN is ahead of no-WN by `gain(level)` and a little noise, and of SWN by 30."""
    rng = np.random.default_rng(0)
    rows = []
    for seed in range(seeds):
        for level in LEVELS:
            for share in figures.SHARES:
                base = 60 + rng.normal()
                for kind, more in (("no-WN", 0), ("EWN", gain(level) + 0.1 * rng.normal()), ("SWN", gain(level) - 30)):
                    rows.append((kind, seed, level, share, base + more))
    return pd.DataFrame(rows, columns=["type", "seed", "level", "sparsity", "accuracy"])


def verdict(frame, second="no-WN"):
    found = figures.verdicts(frame)
    assert len(found) == 2 * len(figures.SHARES)
    (row,) = found[(found["than"] == second) & (found["sparsity"] == 0.9)].to_dict("records")
    return row


def test_ahead_since_the_level_at_which_the_sign_turned():
    row = verdict(made(lambda level: 5 if level <= -100 else -5))
    assert (row["verdict"], row["since"], row["n"], row["level"]) == ("confirmed", -100, 6, -300)
    assert row["mean"] == pytest.approx(5, abs=0.2) and row["low"] < row["mean"] < row["high"]
    assert row["p"] == pytest.approx(2 / 2**6), "all six of one sign"
    assert verdict(made(lambda level: 5 if level <= -100 else -5), "SWN")["verdict"] == "confirmed"


def test_a_level_that_few_seeds_reached_decides_nothing():
    frame = made(lambda level: 5 if level == -300 else -5)
    row = verdict(frame[(frame["level"] > -300) | (frame["seed"] < 2)])
    assert (row["level"], row["n"], row["verdict"]) == (-100, 6, "refuted") and np.isnan(row["since"])
    assert figures.deepest(frame) == -300 and figures.deepest(frame[frame["seed"] < 2]) == -300
    assert figures.deepest(frame[(frame["level"] > -100) | (frame["type"] == "EWN")]) == -50


def test_behind_and_a_lead_that_was_lost():
    row = verdict(made(lambda level: 5 if level == -50 else -5))
    assert row["verdict"] == "refuted" and np.isnan(row["since"])


@pytest.mark.parametrize("seeds, gain", [(5, 5), (3, 5), (6, 0)])
def test_too_few_seeds_or_no_difference_is_undecided(seeds, gain):
    assert verdict(made(lambda level: gain, seeds))["verdict"] == "undecided"


@pytest.mark.parametrize("main", [True, False])
def test_at_the_first_level_the_claim_is_that_ewn_is_behind(main):
    """As the study has it, but where the verdict stands on that level, whose question is whether EWN is ahead."""
    frame = made(lambda level: 5 if level < -10 else -5).assign(criterion="norm")
    found = {one["text"]: one for one in figures.claims(frame, "all images", main)}
    assert all(one["verdict"] == "confirmed" for text, one in found.items() if "no-WN" in text)
    behind = found["Log-loss −10, 90 % pruned by norm: no-WN is ahead of EWN"]
    assert behind["mean"] == pytest.approx(5, abs=0.2) and not behind["main"]
    assert found["Log-loss −300, 90 % pruned by norm: EWN is ahead of no-WN"]["main"] == main
    alone = figures.claims(frame[frame["level"] == -10], "all images", main)
    assert all(("is ahead of EWN" in one["text"]) != main for one in alone)
    assert {one["verdict"] for one in alone if "no-WN" in one["text"]} == {"refuted" if main else "confirmed"}


def test_the_figure_has_every_share_and_what_was_published():
    frame = made(lambda level: 1)
    told = frame[(frame["seed"] < 3) & (frame["level"] != -50)]
    figure = figures.depth(frame, told)
    assert len(figure.axes) == 2 * len(figures.SHARES)
    assert labels(figure) == ["EWN", "SWN", "no-WN", "published"]
    assert labels(figures.depth(frame, told[:0])) == ["EWN", "SWN", "no-WN"]
    gains = figure.axes[len(figures.SHARES)].containers
    assert [bar.lines[0].get_xdata().tolist() for bar in gains] == [[10, 50, 100, 300]] * 2
    assert gains[0].lines[0].get_ydata() == pytest.approx([1] * 4, abs=0.2)
    plt.close("all")


def test_norms_one_epoch_late_change_what_loops_over_the_records_find(monkeypatch):
    monkeypatch.delenv("PRUNING_RUNS", raising=False)
    seeds = [9192, 3576, 2356]
    group = {"type": "no-WN", "dataset": "mnist", "train_examples": 0, "width": 1024, "stale_norms": False}
    (said,) = figures.stale(group)  # whatever others of these seeds there are, which went further
    moved = []
    for seed in seeds:
        late, own = (
            runs.read(runs.ROOT / "runs/mnist_prune" / f"no-WN-{seed}{end}.json").array("pruned_accuracy")[0]
            for end in (";stale_norms=True", "")
        )
        moved += [abs(100 * float(a) - 100 * float(b)) for a, b in zip(late.ravel(), own.ravel(), strict=True)]
    assert f"at most {np.percentile(moved, 95):.2f} points" in said and f"more than {max(moved):.2f} " in said
    assert said.endswith("(no-WN, n = 3).")
    assert figures.stale(group | {"width": 7}) == []


def test_the_pace_is_the_mean_of_those_that_came_there(monkeypatch):
    def record(kind, seed, images, **at):
        levels = {float(name): epoch for name, epoch in at.items()}
        parameters = {"train_examples": images, "levels": list(levels)}
        scores = {f"epoch_at_{level:g}": epoch for level, epoch in levels.items()}
        return SimpleNamespace(type=kind, seed=seed, parameters=parameters, scores=scores)

    there = {
        5: [record("EWN", 1, 5, **{"-1": 1000, "-2": None}), record("EWN", 2, 5, **{"-1": 3001, "-2": None}),
            record("no-WN", 1, 5, **{"-1": 10}), record("no-WN", 1, 5, **{"-1": 10, "-2": 20}),
            record("no-WN", 2, 5, **{"-1": 20, "-2": None})],
        0: [record("EWN", 1, 0, **{"-1": 7})],
    }  # fmt: skip
    monkeypatch.setattr(figures.runs, "records", lambda experiment, train_examples: there[train_examples])
    assert figures.pace([{"train_examples": 5}, {"train_examples": 0}]).splitlines()[2:] == [
        "| all images | −1 |  | 7 |",
        "| 5 images | −1 | 15 | 2,000 |",
        "| 5 images | −2 | 20 (1 of 2) | none |",
    ]


def labels(figure):
    return [text.get_text() for text in figure.legends[0].get_texts()]


@pytest.mark.parametrize("seeds, bands", [(3, 0), (6, 1)])
def test_what_is_left_has_a_column_for_each_part_and_gains_by_seed(seeds, bands):
    drawing.style()
    frame = made(lambda level: 2, seeds).query("level == -300")
    figure = figures.left({"whole": (frame, frame[:0]), "a part": (frame.assign(accuracy=50.0), frame)})
    assert [axes.get_title("left") for axes in figure.axes] == ["whole", "a part", "", ""]
    errors, gains = figure.axes[0], figure.axes[2]
    assert errors.get_yscale() == "log" and len(errors.collections) == 3 * bands
    (ahead,) = [line for line in gains.lines if line.get_linewidth() > 1 and line.get_color() == drawing.GREEN]
    np.testing.assert_allclose(ahead.get_data(), [[50, 80, 90, 95], [2] * 4], atol=0.2)
    plt.close("all")


@pytest.mark.parametrize("name, said", [("norm", "norm"), ("since_init", "growth since the start"),
                                        ("since_-100", "growth since −100")])  # fmt: skip
def test_criteria_have_words(name, said):
    assert figures.words(name) == said


def test_hours_of_training_beside_those_that_were_logged(monkeypatch):
    def records(_, train_examples):
        kinds = {0: {"no-WN": [3600, 7200], "EWN": [360]}, 5000: {"EWN": [18000, 1800]}}[train_examples]
        level = [-10] if train_examples == 0 else [-10, -300]
        return [SimpleNamespace(type=kind, parameters={"levels": level}, provenance={"seconds": seconds},
                                scores={f"epoch_at_{level[-1]}": None if seconds == 18000 else 9.0})
                for kind, own in kinds.items() for seconds in own]  # fmt: skip

    monkeypatch.setattr(runs, "records", records)
    told = pd.DataFrame({"type": ["EWN"] * 3, "level": [-10, -10, -300], "value": [30, 60, 1200]})
    took = figures.hours([{"train_examples": 5000}, {"train_examples": 0}], told)
    found = figures.hours_table(took).splitlines()
    assert found[0] == "| trained on | down to | no-WN | EWN |"
    assert found[2:] == ["| all images | −10 | 1.5 | 0.1 *0.75* |", "| all images | −300 |  | *20* |",
                         "| 5,000 images | −300 or 10,000 epochs |  | 2.8 |"]  # fmt: skip
    assert figures.hours_table(took[took["whose"] == "ours"]).splitlines()[2] == "| all images | −10 | 1.5 | 0.1 |"
    frame = made(lambda level: 5 if level == -100 else 2).assign(criterion="norm")
    claims = figures.claims(frame[frame["level"] > -300], "5,000 images", True)
    began = frame.query("level == -10 and sparsity == 0.5").pivot(index="seed", columns="type", values="accuracy")
    began = (began["EWN"] - began["no-WN"]).mean()
    begun, *spent = figures.aside(claims, took).split(");")
    assert begun.startswith(f"; at log-loss −10: {began:.2f} (")
    assert spent == [" 0.5 to 5 core-hours each, to −300 or 10,000 epochs"
                     " (the study's hours, all images, if logged in minutes: 20 to 20)"]  # fmt: skip
    assert figures.aside(claims, took[took["whose"] == "ours"]).count(";") == 1
    assert figures.aside([], took) == figures.aside(figures.claims(frame[frame["level"] == -10], "7", True), took) == ""


def test_levels_that_few_reached_are_told():
    frame = made(lambda level: 1)
    gone = (frame["level"] == -300) & (frame["seed"] > 1) & (frame["type"] == "EWN")
    (said,) = figures.not_reached(frame[~gone], "7 images")
    assert said.endswith("accepted epochs: to −300 by 2 of 6 EWN, 6 of 6 SWN, 6 of 6 no-WN.") and "7 images" in said
    assert figures.not_reached(frame, "7 images") == figures.not_reached(made(lambda level: 1, 3), "7 images") == []
