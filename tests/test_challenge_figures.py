"""The claims and panels of the challenge, on small tables made by hand."""

import numpy as np
import pandas as pd
import pytest

from lib import drawing, runs
from lib.studies.challenge import figures


def ends(**accuracies):
    """Return rows of four seeds, the whole network at 98; `accuracies` at 90 % sparsity, to which seeds add little.

    A hundredth of all weights is left by weights then, a tenth by neurons.
    """
    rows = [(kind, seed, asked, value + 0.01 * seed) for kind, at in accuracies.items() for seed in range(4)
            for asked, value in ((0.0, 98.0), (0.9, at))]  # fmt: skip
    frame = pd.DataFrame(rows, columns=["type", "seed", "asked", "accuracy"])
    left = np.where(frame["asked"] == 0, 1, np.where(frame["type"] == "weight", 0.01, 0.1))
    return frame.assign(kept=1 - frame["asked"], error=100 - frame["accuracy"], left=left)


def told(claims):
    return {one["text"]: one["mean"] for one in claims if one["n"]}


def test_a_mode_is_compared_type_by_type_and_with_the_whole_network():
    found = told(figures.compared("finetune", ends(weight=97.9, neuron=97.0, small=96.0)))
    here, few = "Fine-tuned at 90 %, 90.0 % of all weights gone", "Fine-tuned at 90 %, 99.0 % of all weights gone"
    assert found == pytest.approx({
        "Fine-tuned, 90.0 % of all weights gone: weights (interpolated) are above neurons": (98 + 97.9) / 2 - 97,
        f"{here}: neurons are above trained small": 1.0,
        f"{few}: weights are within half a point of the whole network": -0.1,
        f"{here}: neurons are within half a point of the whole network": -1.0,
    })  # fmt: skip
    (back,) = (one for one in figures.compared("finetune", ends(weight=97.9)) if one["n"] and "whole" in one["text"])
    assert back["verdict"] == "undecided", "four seeds decide nothing"
    assert len(told(figures.compared("posthoc", ends(weight=90.0, neuron=80.0)))) == 1


def test_while_training_weights_and_neurons_are_compared_as_asked_too():
    """As the challenge does it, with what is gone in truth."""
    found = told(figures.compared("during", ends(weight=90.0, neuron=80.0)))
    said = "weights (99.0 % of all weights gone) are above neurons (90.0 % of all weights gone)"
    assert found.pop(f"Pruned while training at 90 %, as asked: {said}") == pytest.approx(10)
    assert [text.split(":")[0] for text in found] == ["Pruned while training, 90.0 % of all weights gone"]


def test_weights_are_matched_with_what_neurons_leave_on_the_line_through_their_runs():
    """Over powers of two, by hand; seed 2 has no neuron, and where neurons leave less than weights nothing is known."""
    rows = [("weight", 1, 0.5, 2**-1, 96.0), ("weight", 1, 0.9, 2**-4, 90.0), ("weight", 2, 0.5, 2**-1, 50.0),
            ("neuron", 1, 0.5, 2**-2, 80.0), ("neuron", 1, 0.9, 2**-5, 20.0), ("neuron", 3, 0.5, 2**-2, 70.0),
            ("small", 1, 0.5, 2**-2, 97.0)]  # fmt: skip
    found = figures.matched(pd.DataFrame(rows, columns=["type", "seed", "asked", "left", "accuracy"]))
    assert found.query("type == 'weight'").to_numpy().tolist() == [["weight", 1, 0.5, 0.25, pytest.approx(94)]]
    assert found.query("type == 'neuron'")["accuracy"].tolist() == [80, 20, 70]


def test_ends_know_what_is_left_in_truth(monkeypatch):
    base = pd.DataFrame({"type": "neuron", "seed": 1, "asked": [0.8, 0.8], "epoch": [0, 1]})
    made = {"test_accuracy": base.assign(test_accuracy=[0.1, 0.4]),
            "sparsity": base.query("epoch == 0").drop(columns="epoch").assign(sparsity=0.9)}  # fmt: skip
    monkeypatch.setattr(runs, "curves", lambda experiment, name, **where: made[name])
    (row,) = figures.ends("any", "test_accuracy").to_dict("records")
    assert (row["accuracy"], row["asked"], row["left"], row["kept"]) == pytest.approx((40, 0.8, 0.1, 0.2))


def test_the_errors_of_what_is_kept_fall_to_the_left(axes):
    figures.errors(axes, ends(weight=90.0, small=97.0))
    drawn = {line.get_label(): line.get_data() for line in axes.lines if not line.get_label().startswith("_")}
    np.testing.assert_allclose(drawn["weights"], [[0.1, 1], [100 - 90.015, 100 - 98.015]])
    assert set(drawn) == {"weights", "trained small", "chance"}
    assert axes.get_xscale() == axes.get_yscale() == "log" and axes.xaxis_inverted()
    axes.set_xlim(1, 0.01)
    assert axes.xaxis.get_major_formatter()(0.05) == "5"


def test_shares_that_differ_by_seed_are_drawn_at_their_mean(axes):
    rows = ends(weight=90.0)
    figures.errors(axes, rows.assign(left=rows["kept"] + 0.001 * rows["seed"]), "left")
    (line,) = [line for line in axes.lines if line.get_label() == "weights"]
    np.testing.assert_allclose(line.get_xdata(), [0.1015, 1.0015])


def test_the_hypotheses_are_numbers_that_can_refute_them():
    layers = [(kind, seed, 0.8, layer, mass, mass**0.5, error) for kind, mass, error in
              (("weight", 0.2, 0.3), ("neuron", 0.7, 0.8)) for seed in range(4) for layer in (0, 1)]  # fmt: skip
    changes = pd.DataFrame(layers, columns=["type", "seed", "asked", "layer", "mass", "root", "error"])
    gone = pd.DataFrame([("weight", seed, 0.95, 0.5) for seed in range(4)], columns=["type", "seed", "asked", "dead"])
    once, again = ends(weight=90.0, neuron=20.0), ends(weight=98.0, neuron=97.0)
    found = list(told(figures.hypotheses(changes, gone, once, again)).values())
    assert found == pytest.approx([30, 100 * (0.2**0.5 - 0.3), 50, 0.5, 97 - (98 + 90) / 2])
    assert len(figures.hypotheses(changes, gone, once, ())) == 4
    assert len(figures.hypotheses(changes, gone, once[once["asked"] != 0.9], again)) == 4, "nobody ran its share"


def test_a_pass_is_a_median_with_quartiles_of_every_form(axes):
    rows = [(form, whole, 1, 0.5, quantile, value) for form, whole in figures.FORMS
            for quantile, value in (("median", 2.0), ("low", 1.5), ("high", 4.0))]  # fmt: skip
    figures.speed(axes, pd.DataFrame(rows, columns=["type", "whole", "batch", "asked", "quantile", "latency"]), 1)
    assert [bar.get_label() for bar in axes.containers] == [label for label, *_ in figures.FORMS.values()]
    ((low, high),) = (segment[:, 1] for segment in axes.containers[0].lines[2][0].get_segments())
    assert (low, high) == (1.5, 4.0)
    assert len({tuple(look) for _, *look in figures.FORMS.values()}) == len(figures.FORMS)


def test_neurons_are_timed_against_the_fastest_form_of_as_many_weights():
    """Where the neurons leave ten of a hundred multiplications, halfway from twenty to five in powers of two."""
    took = {("shrunk", "weight", 0.8): (100, 6.0), ("csr", "weight", 0.8): (20, 4.0), ("csr", "weight", 0.95): (5, 2.0),
            ("shrunk", "neuron", 0.8): (10, 2.0), ("csr", "neuron", 0.8): (10, 1.0)}  # fmt: skip
    rows = [(form, whole, seed, batch, asked, quantile, macs, value + seed / 100)
            for (form, whole, asked), (macs, value) in took.items() for seed in range(6) for batch in (1, 256)
            for quantile in ("median", "low")]  # fmt: skip
    columns = ["type", "whole", "seed", "batch", "asked", "quantile", "macs", "latency"]
    one, many = figures.faster(pd.DataFrame(rows, columns=columns))
    assert one["mean"] == pytest.approx(np.mean([(3 + s / 100) / (2 + s / 100) for s in range(6)]))
    assert one["text"].startswith("90.0 % of all weights gone, 1 image: neurons are faster")
    assert one["verdict"] == "confirmed" and one["main"] and not many["main"] and "256 images" in many["text"]
    blocks = [("block", "block", *row[2:-1], row[-1] - 1) for row in rows if row[:2] == ("csr", "weight")]
    one, _ = figures.faster(pd.DataFrame([*rows, *blocks], columns=columns))
    assert one["mean"] == pytest.approx(np.mean([(2 + s / 100) / (2 + s / 100) for s in range(6)])), "blocks too"
    (alone, _) = figures.faster(pd.DataFrame([row for row in rows if row[2] == 0], columns=columns))
    assert alone["verdict"] == "undecided" and alone["mean"] == 1.5, "one seed decides nothing"


def test_what_was_published_has_the_densities_beyond_the_challenge():
    facts = figures.facts().query("type == 'weight' and split == 'test'")
    assert facts["kept"].min() == pytest.approx(1e-4) and (facts["epochs"] == 20).sum() == 5
    assert drawing.words("train, once") == "training images, once"


def test_forms_that_were_not_measured_have_no_line(axes):
    """Of a latency there are quantiles; of a form that nobody measured there are none."""
    form, whole = next(iter(figures.FORMS))
    rows = [(form, whole, 1, 0.8, quantile, value) for quantile, value in (("low", 1), ("median", 2), ("high", 4))]
    figures.speed(axes, pd.DataFrame(rows, columns=["type", "whole", "batch", "asked", "quantile", "latency"]), 1)
    (drawn,) = axes.containers
    assert drawn.lines[0].get_ydata().tolist() == [2] and drawn.get_label() == figures.FORMS[form, whole][0]


@pytest.mark.parametrize("mode, said", [
    ("posthoc", "7 epochs"), ("finetune", "7 + 3 epochs"), ("rewind", "3 epochs, masks of networks after 7"),
])  # fmt: skip
def test_epochs_are_those_before_pruning_and_after_it(mode, said):
    assert figures.epochs({"mode": mode, "epochs": 7, "retrain_epochs": 3}) == said
