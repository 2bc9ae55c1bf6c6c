"""The claims and panels of the challenge, on small tables made by hand."""

import numpy as np
import pandas as pd
import pytest

from lib import drawing
from lib.studies.challenge import figures


def ends(**accuracies):
    """Return rows of four seeds, the whole network at 98; `accuracies` at 90 % sparsity, to which seeds add little."""
    rows = [(kind, seed, asked, value + 0.01 * seed) for kind, at in accuracies.items() for seed in range(4)
            for asked, value in ((0.0, 98.0), (0.9, at))]  # fmt: skip
    frame = pd.DataFrame(rows, columns=["type", "seed", "asked", "accuracy"])
    return frame.assign(kept=1 - frame["asked"], error=100 - frame["accuracy"])


def told(claims):
    return {one["text"]: one["mean"] for one in claims if one["n"]}


def test_a_mode_is_compared_type_by_type_and_with_the_whole_network():
    found = told(figures.compared("finetune", ends(weight=97.9, neuron=97.0, small=96.0)))
    assert found == pytest.approx({
        "Fine-tuned at 90 %: weights are above neurons": 0.9,
        "Fine-tuned at 90 %: neurons are above trained small": 1.0,
        "Fine-tuned at 90 %: weights are within half a point of the whole network": -0.1,
        "Fine-tuned at 90 %: neurons are within half a point of the whole network": -1.0,
    })  # fmt: skip
    (back,) = (one for one in figures.compared("finetune", ends(weight=97.9)) if one["n"] and "whole" in one["text"])
    assert back["verdict"] == "undecided", "four seeds decide nothing"
    assert len(told(figures.compared("posthoc", ends(weight=90.0, neuron=80.0)))) == 1


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
    assert found == pytest.approx([30, 100 * (0.2**0.5 - 0.3), 50, 0.5, 77 - 70])
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


def test_neurons_are_timed_against_the_fastest_form_of_weights():
    took = {("dense", "weight"): 6.0, ("csr", "weight"): 4.0, ("shrunk", "neuron"): 2.0, ("csr", "neuron"): 1.0}
    rows = [(form, whole, seed, batch, 0.8, quantile, value + seed / 100)
            for (form, whole), value in took.items() for seed in range(6) for batch in (1, 256)
            for quantile in ("median", "low")]  # fmt: skip
    columns = ["type", "whole", "seed", "batch", "asked", "quantile", "latency"]
    one, many = figures.faster(pd.DataFrame(rows, columns=columns))
    assert one["mean"] == pytest.approx(np.mean([(4 + s / 100) / (2 + s / 100) for s in range(6)]))
    assert one["verdict"] == "confirmed" and one["main"] and not many["main"] and "256 images" in many["text"]
    blocks = [("block", "block", *row[2:-1], row[-1] - 1) for row in rows if row[:2] == ("csr", "weight")]
    one, _ = figures.faster(pd.DataFrame([*rows, *blocks], columns=columns))
    assert one["mean"] == pytest.approx(np.mean([(3 + s / 100) / (2 + s / 100) for s in range(6)])), "blocks too"
    (alone, _) = figures.faster(pd.DataFrame([row for row in rows if row[2] == 0], columns=columns))
    assert alone["verdict"] == "undecided" and alone["mean"] == 2, "one seed decides nothing"


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
