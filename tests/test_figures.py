"""What figures must show: the right interval, one look per type, nothing of the day in the file."""

import base64
import io

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from IPython.core.interactiveshell import InteractiveShell
from matplotlib_inline.backend_inline import configure_inline_support
from matplotlib_inline.config import InlineBackend
from PIL import Image
from scipy import stats

from lib import convnets, drawing, errors, evidence, plots, sets, twins
from lib.studies.ewn import figures as ewn


def seeds(n):
    rng = np.random.default_rng(0)
    return pd.DataFrame([{"seed": s, "x": x, "y": rng.normal()} for s in range(n) for x in (0, 1, 2)])


def test_below_thirty_seeds_the_interval_is_students():
    values = np.random.default_rng(1).normal(size=(29, 3))
    for k in range(3):
        expected = stats.ttest_1samp(values[:, k], 0).confidence_interval()
        assert np.allclose([side[k] for side in evidence.interval(values)], expected)


def test_from_thirty_seeds_on_the_interval_is_the_bootstraps():
    values = np.random.default_rng(1).normal(size=(40, 2))
    low, high = evidence.interval(values)
    assert np.allclose((low, high), stats.ttest_1samp(values, 0).confidence_interval(), atol=0.05)
    skewed = np.random.default_rng(1).exponential(size=2000)[:, None]
    middle, (low, high) = skewed.mean(), evidence.interval(skewed)
    assert high[0] - middle > middle - low[0], "accelerated: a skewed mean has its longer side where its tail is"


def test_what_is_all_alike_is_its_own_interval():
    values = np.column_stack([np.full(40, 2.0), np.arange(40.0)])
    (low, other_low), (high, other_high) = evidence.interval(values)
    assert low == high == 2 and other_low < 19.5 < other_high
    assert evidence.interval(np.full(40, True)) == (1, 1)


def test_up_to_five_seeds_each_is_a_line_and_the_mean_a_thick_one(axes):
    drawn = drawing.spread(axes, seeds(3), "x", "y", "EWN")
    assert len(axes.lines) == 4 and not axes.collections
    assert np.allclose(drawn.get_ydata(), seeds(3).groupby("x")["y"].mean())
    assert all(line.get_linewidth() < drawn.get_linewidth() for line in axes.lines[:-1])


def test_more_seeds_are_a_mean_and_a_band(axes):
    drawing.spread(axes, seeds(8), "x", "y", "SWN")
    assert len(axes.lines) == 1 and len(axes.collections) == 1


def test_in_a_notebook_figures_are_as_wide_as_a_cell_and_sharp():
    """By what a kernel does at its first figure, and without a trace in the files that are saved."""
    shell = InteractiveShell.instance()
    try:
        drawing.style()
        configure_inline_support(shell, "module://matplotlib_inline.backend_inline")
        figure, _ = plt.subplots(figsize=(drawing.WIDE, 2))
        shown, about = shell.display_formatter.format(figure)
        plt.close(figure)
    finally:
        InteractiveShell.clear_instance()
        InlineBackend.clear_instance()
    pixels = Image.open(io.BytesIO(base64.b64decode(shown["image/png"]))).size[0]
    assert 980 <= about["image/png"]["width"] <= 1040 and pixels == 2 * about["image/png"]["width"]


def saved(folder, dots):
    """Return the bytes of a figure's two files, drawn on a screen of so many dots an inch."""
    figure, axes = plt.subplots(figsize=(drawing.WIDE, 2), dpi=dots)
    axes.plot([0, 1], [0, 1], label="a line")
    axes.set(xlabel="across", title="a figure")
    axes.legend()
    path = drawing.save(figure, folder)
    plt.close(figure)
    return path.read_bytes(), path.with_suffix(".pdf").read_bytes()


def test_the_screen_changes_no_saved_figure(tmp_path, monkeypatch):
    monkeypatch.setenv("PRUNING_FIGURES", str(tmp_path))
    drawing.style()
    assert saved("one", 110) == saved("two", 150)


def test_a_folder_of_figures_that_is_none_is_told_in_a_sentence(tmp_path, monkeypatch, axes):
    monkeypatch.setenv("PRUNING_FIGURES", str(tmp_path / "file"))
    (tmp_path / "file").touch(), axes.plot([1, 2])
    with pytest.raises(errors.RecordError, match=r"cannot write .*file \(File exists\).*take a folder of yours"):
        drawing.save(axes.figure, "any")


def test_types_are_told_apart_by_more_than_colour():
    looks = [drawing.look(kind) for kind in twins.NORMS]
    for cue in range(4):
        assert len({look[cue] for look in looks}) == len(looks)


def test_a_type_without_a_look_gets_a_free_one_by_its_name_alone():
    assert drawing.look("fisher") == ("fisher", "#EE6677", "h", "-.")
    assert drawing.look("wide_first") == ("wide first", "#4477AA", "*", "--")
    taken = {look[1:] for look in drawing.LOOKS.values()}
    assert not {drawing.look(f"kind {k}")[1:] for k in range(99)} & taken


def test_known_types_come_first_and_the_others_by_name():
    assert drawing.ordered(["zeta", "snip", "alpha", "phew", "snip"]) == ["phew", "snip", "alpha", "zeta"]
    assert drawing.ordered(["a", "small", "none"], ("none", "small")) == ["none", "small", "a"]


def test_medians_have_quartiles(axes):
    drawn = drawing.spread(axes, seeds(8), "x", "y", "EWN", medians=True)
    assert np.allclose(drawn.get_ydata(), seeds(8).groupby("x")["y"].median())
    (band,) = axes.collections
    assert band.get_paths()[0].vertices[:, 1].max() == pytest.approx(seeds(8).groupby("x")["y"].quantile(0.75).max())


def test_every_label_is_written_once_and_published_values_have_one(axes):
    for kind in ("EWN", "SWN"):
        drawing.spread(axes, seeds(2), "x", "y", kind)
        drawing.published(axes, [0.0], [1.0], kind)
    drawing.published(axes, [], [], "no-WN", label="nobody published it")
    twin = axes.figure.add_subplot(2, 1, 2)
    drawing.spread(twin, seeds(2), "x", "y", "EWN")
    drawing.legend(axes.figure)
    (found,) = axes.figure.legends
    assert [text.get_text() for text in found.get_texts()] == ["EWN", "SWN", "published"]
    drawing.legend(twin)
    assert [text.get_text() for text in twin.get_legend().get_texts()] == ["EWN"]


def test_a_legend_keeps_the_order_of_looks_and_says_what_is_drawn_of_how_many_seeds(axes):
    for kind, n in (("no-WN", 8), ("EWN", 7), ("SWN", 3)):
        drawing.spread(axes, seeds(n), "x", "y", kind)
    drawing.legend(axes.figure)
    (found,) = axes.figure.legends
    assert [text.get_text() for text in found.get_texts()] == ["EWN", "SWN", "no-WN"]
    said = "thin: 3 seeds, thick: their mean; band: 95 % interval of the mean, 7 to 8 seeds"
    assert found.get_title().get_text() == said == drawing.told(axes)
    drawing.seeds(axes, "bars")
    assert drawing.told(axes) == said, "no pair, no bar"
    drawing.legend(axes.figure, known=("SWN",), title="mine")
    assert [text.get_text() for text in axes.figure.legends[1].get_texts()] == ["SWN", "no-WN", "EWN"]


TICKS = {(0.5, 60): [0.5, 1, 2, 5, 10, 20, 50], (2.0, 7.0): [2, 3, 4, 5, 7], (50, 90): [50, 60, 70, 80, 90]}
TICKS |= {(5e-5, 2.0): [1e-4, 1e-3, 1e-2, 0.1, 1], (0.005, 2.0): [0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2]}


@pytest.mark.parametrize("ends, ticks", TICKS.items())
def test_a_logarithmic_axis_has_more_numbers_within_a_decade(ends, ticks, axes):
    axes.set_ylim(*ends)
    drawing.log_ticks(axes)
    shown = [tick for tick in axes.get_yticks() if ends[0] <= tick <= ends[1]]
    assert np.allclose(shown, ticks)


def test_differences_have_intervals_and_a_line_of_none(axes):
    found = pd.DataFrame({"left": [2, 1], "mean": [5.0, 3.0], "low": [4.0, 1.0], "high": [6.0, 5.0], "n": 8})
    drawing.apart(axes, found, "left", drawing.look("EWN"), shift=0.5)
    (bars,) = axes.containers
    assert bars.lines[0].get_xydata().tolist() == [[1.5, 3.0], [2.5, 5.0]]
    assert [segment[:, 1].tolist() for segment in bars.lines[2][0].get_segments()] == [[1, 5], [4, 6]]
    assert axes.lines[-1].get_ydata() == [0, 0]


def test_raw_names_become_words():
    assert drawing.words("fashion_mnist, 7 rounds") == "FashionMNIST, 7 rounds"
    assert drawing.words("somewhere") == "somewhere"
    assert [name for name in (*sets.NAMES, *convnets.NAMES) if drawing.words(name) == name] == ["digits"]


def test_published_values_stand_in_front_of_ours(axes):
    facts = pd.DataFrame({"type": "EWN", "x": [0, 0, 1], "y": [1.0, 3.0, 5.0]})
    plots.lines(axes, seeds(3).assign(type="EWN"), "x", "y", ["EWN"], facts)
    (container,) = axes.containers
    assert container.lines[0].get_ydata().tolist() == [2.0, 5.0]
    (mean,) = [line for line in axes.lines if line.get_label() == "EWN"]
    assert container.lines[0].get_zorder() > mean.get_zorder()


def test_labels_at_line_ends_do_not_touch(axes):
    lines = [axes.plot([0, 1], [0, y], label=str(y))[0] for y in (1.0, 1.001, 5.0)]
    ewn.end_labels(axes, lines, gap=0.05)
    heights = sorted(text.xy[1] for text in axes.texts)
    assert len(heights) == 3 and min(np.diff(heights)) >= 0.05 - 1e-9


def test_a_saved_figure_is_the_same_tomorrow(axes, tmp_path, monkeypatch):
    monkeypatch.setenv("PRUNING_FIGURES", str(tmp_path))
    axes.plot([1, 2])
    first = {}
    for _ in range(2):
        drawing.save(axes.figure, "a")
        now = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
        assert sorted(now) == ["a.pdf", "a.png"] and (not first or now == first)
        first = now


def test_a_strip_shows_every_seed_sorted_and_the_median(axes):
    drawing.strip(axes, 2, [3.0, 1.0, 2.0], "SWN")
    seeds_drawn, bar = axes.lines
    assert seeds_drawn.get_xdata().tolist() == [1, 2, 3] and np.isclose(np.mean(seeds_drawn.get_ydata()), 2)
    assert list(bar.get_xdata()) == [2, 2]


def test_numbers_below_zero_have_a_minus_sign(tmp_path, monkeypatch):
    """In titles, legends and axes; not hyphens of words, and not mathematics, which has its own."""
    monkeypatch.setenv("PRUNING_FIGURES", str(tmp_path))
    figure, axes = plt.subplots()
    axes.plot([1, 2], label="fit, -0.84")
    axes.set(title="no-WN to -5, SynFlow-2", xlabel="$e^{-200}$, -7")
    axes.legend()
    drawing.save(figure, "signs")
    found = axes.get_title(loc="left"), axes.get_title(), axes.get_xlabel(), axes.get_legend().texts[0].get_text()
    assert "".join(found[:2]) == "no-WN to −5, SynFlow-2" and found[2:] == ("$e^{-200}$, −7", "fit, −0.84")
