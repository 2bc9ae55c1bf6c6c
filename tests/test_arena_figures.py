"""The arena's summary: its leaderboard by plain loops over files, its panels and sentences from hand-made records."""

import json
import math
import re
from collections import defaultdict
from dataclasses import replace
from statistics import mean, pstdev

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import scipy
from scipy import stats

from lib import drawing, parameters, provenance, runs
from lib.studies.arena import bout, figures, standings, words
from tests.test_importance_figures import bars, lines, save
from tests.test_summaries import summarised

KEPT = sorted(path for path in provenance.kept(runs.ROOT, runs.ROOT / "runs/arena") if path.suffix == ".json")
SPARSITIES, SEEDS = [0.8, 0.9, 0.95], range(1, 9)
HOLLOW = "masks shuffled"
KINDS = {  # type -> test error in % at 80 %, what it is of, when, live hidden units
    "none": (3, "control", "after", [1024] * 3),
    "small": (6, "control", "before", [205, 102, 51]),
    "random_units": (7, "units", "after", [205, 102, 51]),
    "contribution": (5.9, "units", "after", [205, 102, 51]),
    "magnitude_units": (5.6, "units", "after", [205, 102, 51]),
    "magnitude": (3.5, "weights", "after", [1000, 900, 700]),
    "lamp": (3.55, "weights", "after", [1000, 900, 700]),
    "random": (9, "weights", "after", [1024] * 3),
    "snip_init": (4.5, "weights", "before", [900, 700, 500]),
    "magnitude_init": (5.2, "weights", "before", [900, 700, 500]),
    "synflow_init": (4.8, "weights", "before", [900, 700, 500]),
    "magnitude_gradual": (4.2, "weights", "during", [900, 700, 500]),
}


def content(kind, seed):
    """Return what a record holds: errors that grow with sparsity, and differ by seed and by type."""
    error, of, when, live = KINDS[kind]
    number = list(KINDS).index(kind)
    draw = np.random.default_rng([seed, number])
    accuracy = np.full((2, 3, 3), np.nan)
    accuracy[0, 2] = 1 - (error * np.array([1, 1.2, 1.5]) + 0.3 * np.sin(seed) + 0.1 * draw.normal(size=3)) / 100
    accuracy[0, 0] = accuracy[0, 2] - 0.1 if when == "after" else np.nan
    accuracy[1, 2, 2] = accuracy[0, 2, 2] - 0.002 * (kind != "lamp") + 0.002 * draw.normal()
    if of != "weights" or when == "during":
        accuracy[1] = np.nan
    true = np.zeros(3) if kind == "none" else np.array(SPARSITIES)
    arrays = {"accuracy": accuracy, "held_out_accuracy": accuracy[:, 2] + 0.001 * draw.normal(size=(2, 3)),
              "live_units": np.stack([live, [10] * 3], 1), "macs": 794.0 * np.array(live), "true_sparsity": true,
              "effective_sparsity": true}  # fmt: skip
    return {
        "arrays": {name: (values, bout.AXES.get(name, ("sparsity",))) for name, values in arrays.items()},
        "axes": {"sparsity": SPARSITIES, "mask": list(bout.MASKS), "stage": list(bout.STAGES),
                 "layer": ["layers.0", "layers.1"]},
        "scores": {"of": of, "when": when}, "cost": {"mask_seconds": 0.25, "dense_macs": 794 * 1024},
    }  # fmt: skip


def measured(kind, seed):
    """Return a record of `sparse_speed`: a millisecond is a million multiplications, of many images ten thousand."""
    macs = np.tile(794.0 * np.array([1024, 512, 102, 16]), (4, 1))
    took = np.stack([macs / 1e6, macs / 1e4], -1)[..., None] * [1.0, 0.9, 1.1]
    shape = ("whole", "asked", "batch", "quantile")
    axes = {"whole": ["weight", "neuron", "block", "two_of_four"], "asked": [0.0, 0.5, 0.9, 0.98], "batch": [1, 256],
            "quantile": ["median", "low", "high"]}  # fmt: skip
    return {"arrays": {"macs": (macs, shape[:2]), "latency": (took, shape)}, "axes": axes}


@pytest.fixture(scope="module")
def records(shared_runs):
    for kind in KINDS:
        save("arena", kind, list(SEEDS)[: 6 if kind == "synflow_init" else None], content, sparsities=SPARSITIES)
    save("arena", "growth", [1, 2], lambda kind, seed: content("contribution", seed + 50), sparsities=SPARSITIES)
    save("arena", "lamp", [1, 2], content, sparsities=SPARSITIES, epochs=5)
    for kind in ("none", "random_units", "magnitude_units", "lamp"):
        save("arena", kind, list(SEEDS)[:6], content, net="resnet20", dataset="cifar10", sparsities=SPARSITIES)
    save("sparse_speed", "shrunk", [1], measured, hidden=[1024], sparsities=[0.0, 0.5, 0.9, 0.98])
    save("sparse_speed", "shrunk", [1], measured, hidden=[512], sparsities=[0.0, 0.5, 0.9, 0.98])
    save("sparse_speed", "shrunk", [1], measured, net="resnet20", sparsities=[0.0, 0.5, 0.9, 0.98])
    return standings.groups()["MNIST, MLP 1024"]


@pytest.fixture(scope="module")
def frame(records):
    return standings.whole(standings.rows(records))[0]


@pytest.fixture(scope="module")
def here(frame):
    return frame[frame["sparsity"] == 0.95]


@pytest.fixture(scope="module")
def table(here):
    return standings.ladder(here)[0]


@pytest.fixture
def axes():
    drawing.style()
    figure, axes = plt.subplots()
    yield axes
    plt.close("all")


# ---- the leaderboard by plain loops


def literal(paths, dataset):
    """Return {type: (rank, tuned, sd, own - shuffled, won, tied, lost)} of the MLP 1024 at 95 %, from files alone."""
    groups = defaultdict(dict)
    for path in sorted(paths):
        document = json.loads(path.read_text("utf-8"))
        p = document["parameters"]
        if (p["net"], p["dataset"], p["hidden"], p["level"]) != ("mlp", dataset, [1024], 0.0):
            continue
        with np.load(path.with_name(f"{path.name.removesuffix('.json')}.npz")) as arrays:
            own, shuffled = arrays["accuracy"][:, 2, document["axes"]["sparsity"].index(0.95)]
        setting = json.dumps(parameters.scientific(p), sort_keys=True)
        groups[setting][document["type"], document["seed"]] = 100 * float(own), 100 * float(shuffled)
    found = max(groups.values(), key=len)
    seeds = {kind: sorted(seed for other, seed in found if other == kind) for kind, _ in found}
    seeds = {kind: own for kind, own in seeds.items() if len(own) >= 6}
    whole = [kind for kind in seeds if len(seeds[kind]) == max(map(len, seeds.values()))]
    level = {seed: mean(found[kind, seed][0] for kind in whole) for seed in seeds[whole[0]]}
    means = {kind: mean(level.values()) + mean(found[kind, seed][0] - level[seed] for seed in own)
             for kind, own in seeds.items()}  # fmt: skip
    lines = {}
    for kind, own in seeds.items():
        rank = 1 + sum(other > means[kind] + 1e-9 for other in means.values())
        fate = {1: 0, 0: 0, -1: 0}
        for other in set(seeds) - {kind}:
            pairs = [(found[kind, seed][0], found[other, seed][0]) for seed in own if seed in seeds[other]]
            found_t = stats.ttest_rel(*zip(*pairs, strict=True))
            low, high = found_t.confidence_interval()
            clear = (len(pairs) > 12 and found_t.pvalue < 0.01) or by_flips([one - two for one, two in pairs]) <= 0.05
            fate[1 if clear and low > 0 else -1 if clear and high < 0 else 0] += 1
        spread, gap = pstdev(found[kind, seed][0] for seed in own), mean(one - two for one, two in map(found.get, [
            (kind, seed) for seed in own]))  # fmt: skip
        lines[kind] = rank, means[kind], spread, gap, *fate.values()
    return lines


def by_flips(apart):
    """Return the share of all flips of signs whose sum is as far from zero."""
    sums = np.zeros(1)
    for one in apart:
        sums = np.concatenate([sums + one, sums - one])
    return (np.abs(sums) >= abs(sum(apart)) - 1e-9).mean()


def told(part, title):
    """Return what a part of the gallery says of a network, {type as it is called: the cells of its row}."""
    (board,) = re.findall(rf"\b{title}, 95 % pruned: accuracies[^\n]*\n\n((?:\|[^\n]*\n)+)", part)
    rows = [[cell.strip() for cell in line.strip("| ").split("|")] for line in board.strip().split("\n")[2:]]
    return {row[1]: row for row in rows}


MADE, FASHION = ("mnist", "MNIST, MLP 1024"), ("fashion_mnist", "FashionMNIST, MLP 1024")


@pytest.mark.parametrize("where, dataset, title", [("made", *MADE), ("kept", *MADE), ("kept", *FASHION)])
def test_the_leaderboard_is_that_of_plain_loops(where, dataset, title, records, monkeypatch, tmp_path):
    """Of records made here, and of those that git keeps, beside the part of the gallery that it keeps."""
    if where == "made":
        monkeypatch.setenv("PRUNING_FIGURES", str(tmp_path))
        monkeypatch.setattr(plt.Figure, "savefig", lambda figure, path, **_: path.touch())
        summarised("summary_arena")
        paths, part = (runs.folder() / "arena").glob("*.json"), (tmp_path / "arena.md").read_text("utf-8")
    else:
        part = (runs.ROOT / "figures/arena.md").read_text("utf-8")
        paths = [path for path in KEPT if json.loads(path.read_text("utf-8"))["parameters"]["dataset"] == dataset]
        if not paths:
            assert title.replace(",", "") in part.split("Not run")[1].splitlines()[0]
            pytest.skip("git keeps no record of it")
    found, lines = told(part, title), literal(paths, dataset)
    assert set(found) == {figures.label(kind) for kind in lines}
    for kind, (rank, middle, spread, gap, *fate) in lines.items():
        row = [cell.replace("−", "-") for cell in found[figures.label(kind)]]
        assert float(row[0].split(" (")[0]) == rank and row[7] == " / ".join(map(str, fate)), kind
        assert [float(cell) for cell in row[5].split(" ± ")] == pytest.approx([middle, spread], abs=0.0051)
        assert row[6] == "" if math.isnan(gap) else float(row[6]) == pytest.approx(gap, abs=0.0051)


# ---- rows


def test_a_group_is_the_largest_set_of_comparable_records(records):
    assert len(records) == 8 * len(KINDS) and {record.parameters["epochs"] for record in records} == {3}
    assert list(standings.groups()) == ["MNIST, MLP 1024", "CIFAR-10, ResNet20"]


def test_only_types_with_six_seeds_are_ranked(records, frame, table):
    kept, few = standings.whole(standings.rows(records))
    assert few == {"growth": 2} and set(kept["type"]) == set(KINDS)
    assert table["n"].to_dict() == {kind: 6 if kind == "synflow_init" else 8 for kind in KINDS}
    fewer, few = standings.whole(kept[kept["seed"] < 4])
    assert few == {} and len(fewer) == 3 * 3 * len(KINDS), "where nobody has six, all that the others have"


def test_seeds_that_one_type_alone_has_are_not_ranked(frame):
    extra = frame[(frame["type"] == "lamp") & (frame["seed"] < 3)].assign(type="random_init")
    own = pd.concat([extra.assign(seed=extra["seed"] + shift) for shift in (100, 102, 104)])
    kept, few = standings.whole(pd.concat([frame, own]))
    assert few == {"random_init": 6} and sorted(kept["seed"].unique()) == list(SEEDS)


def test_rows_by_hand(frame):
    one = frame.query("type == 'magnitude' and seed == 3 and sparsity == 0.95").iloc[0]
    accuracy = 100 * content("magnitude", 3)["arrays"]["accuracy"][0][:, :, 2]
    expected = [accuracy[0, 0], accuracy[0, 2], accuracy[1, 2], 100 - accuracy[0, 2], 95, 100 * 700 / 1024]
    np.testing.assert_allclose(one[["raw", "tuned", "shuffled", "error", "true", "macs"]].astype(float), expected, 1e-5)
    assert one["work"] == 784 * 700 + 700 * 10 and one["family"] == "after" and np.isnan(one["reweighted"])
    families = frame.groupby("type")["family"].first().to_dict()
    assert families["small"] == families["none"] == "control" and families["random_units"] == "units"
    assert families["snip_init"] == "before" and families["magnitude_gradual"] == "during"


def test_a_ghost_is_the_rank_of_shuffled_masks_among_the_others(table, here):
    means = here.groupby("type")[["tuned", "shuffled"]].mean()
    others = means["tuned"].drop("magnitude")
    assert table["ghost"]["magnitude"] == 1 + (others > means["shuffled"]["magnitude"]).sum()
    assert np.isnan(table["ghost"]["small"]) and table.index[0] == "none" and table.index[-1] == "random"


@pytest.mark.parametrize(
    "kind, label",
    [("magnitude_init", "magnitude at start"), ("magnitude_gradual", "magnitude gradually"),
     ("taylor_units", "Taylor units"), ("magnitude_layer", "magnitude by layer"), ("mine", "mine")],
)  # fmt: skip
def test_what_types_are_called(kind, label):
    assert figures.label(kind) == label


def test_no_two_types_of_a_family_look_alike():
    from lib.studies.arena import entrants

    looks = defaultdict(list)
    for kind, one in entrants.entrants().items():
        looks[one.of, one.when].append(figures.look(kind)[1:])
    assert all(len(set(each)) == len(each) for each in looks.values())
    assert len({figures.label(kind) for kind in entrants.entrants()}) == len(entrants.entrants())


# ---- panels


def test_the_ranking_has_a_row_for_every_type(axes, table):
    figures.ranking(axes, table)
    order = [kind for family in figures.FAMILIES for kind in table.index[table["family"] == family]]
    few = {"synflow_init": " (n = 6)"}
    names = [text.get_text() for text in axes.get_yticklabels()]
    assert names == [figures.label(kind) + few.get(kind, "") for kind in order]
    heights = dict(zip(order, axes.get_yticks(), strict=True))
    errors = {text.get_position()[1]: text.get_text() for text in axes.texts}
    for family, (said, *_) in figures.FAMILIES.items():
        own = table[table["family"] == family]
        x, y, ends = bars(axes)[said]
        np.testing.assert_allclose(x, own["rank"])
        assert list(y) == [heights[kind] for kind in own.index] and errors[y[0] - 1] == said
        assert [errors[row] for row in y] == [f"{error:.2f}" for error in own["error"]]


def test_the_best_is_on_top_in_the_middle_of_its_interval(axes, here, table):
    figures.order(axes, here, table)
    assert [text.get_text() for text in axes.get_yticklabels()] == [figures.label(kind) for kind in table.index]
    assert axes.yaxis.get_inverted() and len(axes.patches) == table.index.isin(standings.FREE).sum()
    spans = {line.get_ydata()[0]: line.get_xdata() for line in axes.lines if len(line.get_xdata()) == 2}
    means = {line.get_ydata()[0]: line.get_xdata()[0] for line in axes.lines if len(line.get_xdata()) == 1}
    for row, (kind, one) in enumerate(table.iterrows()):
        own = here.loc[here["type"] == kind, "tuned"]
        half = scipy.stats.sem(own) * scipy.stats.t.ppf(0.975, len(own) - 1)
        assert means[row] == one["error"]
        np.testing.assert_allclose(spans[row], [one["error"] - half, one["error"] + half])


def test_errors_stand_beside_the_controls_in_every_panel(axes, frame):
    figures.errors(axes, frame, figures.of_families(frame, ["after"]))
    drawn = lines(axes)
    assert set(drawn) == {"not pruned", "trained small", "magnitude", "LAMP", "random", HOLLOW}
    means = frame[frame["type"] == "lamp"].groupby("sparsity")["error"].mean()
    np.testing.assert_allclose(drawn["LAMP"], [[0.05, 0.1, 0.2], means.to_numpy()[::-1]])
    assert axes.get_xscale() == axes.get_yscale() == "log" and axes.xaxis.get_inverted()


def test_a_score_has_a_line_for_every_moment(axes, frame):
    kinds = standings.moments(frame)
    assert kinds == {"magnitude": {"after": "magnitude", "during": "magnitude_gradual", "before": "magnitude_init"}}
    figures.errors(axes, frame, figures.of_moments(kinds["magnitude"]))
    drawn = lines(axes)
    whens = {f"weights, {when} training" for when in standings.ENDS}
    assert set(drawn) == {"not pruned", "trained small", HOLLOW} | whens
    means = frame[frame["type"] == "magnitude_init"].groupby("sparsity")["error"].mean()
    np.testing.assert_allclose(drawn["weights, before training"], [[0.05, 0.1, 0.2], means.to_numpy()[::-1]])
    assert standings.moments(frame.replace("snip_init", "taylor_gradual").replace("magnitude", "taylor")) == {
        "magnitude": {"during": "magnitude_gradual", "before": "magnitude_init"},
    }, "by one score, at another moment: not by another score"


def test_the_matrix_is_red_below_and_blue_above(axes, here, table):
    decided = figures.matrix(axes, standings.ladder(here)[1])
    shown = np.asarray(axes.images[0].get_array())
    assert (shown == -shown.T).all() and (shown[0, 1:] == 1).all() and (shown[-1, :-1] == -1).all()
    assert decided == (shown == 1).sum() == table["wins"].sum()


def test_milliseconds_lie_between_measured_ones(records):
    measured = standings.speeds(records)
    assert measured.groupby("batch").size().to_dict() == {1: 4, 256: 4}, "of another network there is nothing to take"
    residual = standings.groups()["CIFAR-10, ResNet20"]
    assert len(standings.speeds(residual)) == 8, "hidden says nothing of a residual network"
    assert standings.rows(residual)["work"].equals(standings.rows(residual)["macs"] / 100 * 794 * 1024)
    found = standings.timed(
        pd.DataFrame({"work": [794 * 1024, 794 * 300, 794, 0, np.nan]}), measured.query("batch == 1")
    )
    np.testing.assert_allclose(found["ms"], [0.794 * 1.024, 0.794 * 0.3, np.nan, np.nan, np.nan])
    assert standings.timed(found, measured[:0])["ms"].isna().all()


def test_the_front_is_what_nothing_is_cheaper_and_better_than(axes):
    found = pd.DataFrame({"type": list("abcdef"), "family": "units", "sparsity": 0.9, "ms": [1, 2, 2, 3, np.nan, 0],
                          "error": [5.0, 4, 3, 3, 1, 90]})  # fmt: skip
    best = figures.front(axes, found, "ms")
    assert list(best["type"]) == ["a", "c"]
    front = "nothing is both cheaper and better than, from cheap to good: a at 90 %, c at 90 %."
    assert words.cheapest("X", {"work": best}) == f"**X**:\n\n- By work {front}\n- By milliseconds: not measured."
    other = best[1:].assign(type="none")
    assert words.cheapest("X", {"work": best, "time": other, "size": best}) == (
        f"**X**:\n\n- By work, by size {front}\n"
        "- By time nothing is both cheaper and better than, from cheap to good: not pruned."
    )


# ---- words


def test_winners_are_chosen_on_the_holdout_and_controls_win_nothing(table, here):
    held_out = here.groupby("type")["held_out"].mean()
    assert standings.winners(table) == {
        "units": "magnitude_units", "after": held_out[["magnitude", "lamp"]].idxmax(), "during": "magnitude_gradual",
        "before": "snip_init",
    }  # fmt: skip


def test_claims_are_of_winners_against_what_costs_nothing(here, table):
    found = words.claims("X", here, table, True)
    said = {one["text"]: one for one in found}
    one = said["X: magnitude units, the best on the holdout, is above random units"]
    assert one["main"] and one["verdict"] == "confirmed" and one["n"] == 8
    own = {name: here[here["type"] == name].set_index("seed")["tuned"] for name in ("magnitude_units", "random_units")}
    assert one["mean"] == pytest.approx((own["magnitude_units"] - own["random_units"]).mean())
    assert {text for text in said if "shuffled" in text} == {
        f"X: {kind} is above its own masks, shuffled"
        for kind in ("magnitude", "LAMP", "SNIP at start", "magnitude at start", "SynFlow at start")
    }
    two = said["X: magnitude before training is above magnitude after it"]
    own = [here[here["type"] == name].set_index("seed")["tuned"] for name in ("magnitude_init", "magnitude")]
    assert two["verdict"] == "refuted" and two["mean"] == pytest.approx((own[0] - own[1]).mean())
    assert not any(one["main"] for one in words.claims("X", here, table, False))


def test_a_reading_names_ties_and_controls_that_win(here):
    said = words.reading("X", here, *standings.ladder(here))
    assert said.startswith("**X**, n = 6 to 8:\n\n- Of 66 pairs ") and "alike, about 3 would be by chance." in said
    assert "Pruned during training instead of after it, by the same score: worse for magnitude." in said
    assert "Pruned during training instead of before it, by the same score: better for magnitude." in said
    assert "The control random is below every method." in said
    assert "correlate by 1.00 (Spearman)" in said
    worse = here.assign(tuned=here["tuned"].where(here["type"] != "small", 99.0 + here["seed"] / 100))
    assert "The control trained small is above magnitude, LAMP" in words.reading("X", worse, *standings.ladder(worse))
    assert "No path" not in said
    cut = here.assign(effective=here["effective"].where((here["type"] != "lamp") | (here["seed"] < 3), 100.0))
    assert "that training mends nothing: LAMP (6 of 8)." in words.reading("X", cut, *standings.ladder(cut))


def test_moments_are_compared_by_paired_intervals(frame):
    *_, first, second, third = words.by_moment(frame).splitlines()
    wide = frame[frame["sparsity"] == 0.9].pivot(index="seed", columns="type", values="tuned")
    gain = wide["magnitude_gradual"] - wide["magnitude"]
    low, high = stats.ttest_1samp(gain, 0).confidence_interval()
    cell = f"**{gain.mean():.2f}** ({low:.2f} to {high:.2f})".replace("-", "−")
    assert first.split(" | ")[1] == "during − after" and first.split(" | ")[3] == cell and first.endswith("| 8 |")
    assert "before − after" in second and "during − before" in third
    few = words.by_moment(frame[frame["seed"] < 4])
    assert "**" not in few and few.endswith("| 3 |"), "three seeds decide nothing"
    assert words.by_moment(frame[frame["family"] != "after"].query("type != 'magnitude_init'")) is None


def test_how_networks_were_trained_is_said(records):
    p = records[0].parameters
    assert words.trained({"X": records, "Y": records}) == (
        f"How networks were trained:\n\n- for {p['epochs']} epochs, then pruned, then for {p['recovery']} epochs, on"
        f" {p['train_examples']:,} images: X; Y."
    )
    late = [replace(records[0], parameters=p | {"drops": [4, 6]})]
    assert words.trained({"Z": late}).endswith(" images, at a tenth of the rate after each of epochs 4 and 6: Z.")


def test_panels_fill_the_shortest_column_in_order():
    figure, panels = figures.panels([3, 2, 1, 2], 2)
    figure.canvas.draw()
    left = [axes.get_position().x0 for axes in panels]
    assert left[0] == left[3] < left[1] == left[2], "3 | 2, then 1 below the 2, then 2 below the 3"
    _, flat = figures.grid(4, 1.0)
    assert len(flat) == 4 and sum(axes.axison for axes in flat[0].figure.axes) == 4


def test_networks_agree_by_the_rank_correlation_of_their_types(table):
    other = table.assign(tuned=-table["tuned"]).drop(index="none")
    found = words.agreement({"A": table, "B": table[:5], "C": other}).split("\n")
    assert found == [
        "|  | network | 1 | 2 |",
        "| --- | --- | --- | --- |",
        "| 1 | A |  |  |",
        "| 2 | B |  |  |",
        f"| 3 | C | −1.00 ({len(KINDS) - 1}) |  |",
    ]
    assert words.agreement({"A": table}) is words.agreement({"A": table, "B": table[:5]}) is None


def test_the_labels_of_rows_stand_apart():
    drawing.style()
    figure, panels = plt.subplots(2, 4, figsize=(drawing.WIDE, 2 * 1.75 + 0.3))
    for row in panels:
        row[0].set(xlabel="weights that stay (%)", title="SNIP")
        figures.label_errors(row[0], "FashionMNIST, MLP 1000-1000-500-200")
    figure.canvas.draw()
    above, below = (row[0].yaxis.label.get_window_extent() for row in panels)
    assert above.y0 > below.y1
    plt.close(figure)
