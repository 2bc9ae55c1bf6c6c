"""Figures: one style, one colour and a second cue for every type, bands that say what they are, saving.

The interval is computed apart from the drawing and is named in the caption: with up to five seeds every
seed is a thin line, the mean a thick one; with more, the mean and a 95 % band, Student's t below thirty seeds,
bootstrap from there on. Published values are hollow markers in front.
"""

import hashlib
import itertools
import sys
import warnings
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.collections import LineCollection
from matplotlib.lines import AxLine
from matplotlib.ticker import LogLocator, NullFormatter
from matplotlib_inline.config import InlineBackend

from lib.figures import evidence, looks
from lib.figures.legends import legend, seeds, told  # noqa: F401
from lib.figures.looks import BLACK, BLUE, COLOURS, CYAN, DASHES, GREEN, GREY, LOOKS, MARKERS, RED, WORDS, YELLOW  # noqa: F401
from lib.records.disk import assert_writable, place

ROOT = Path(__file__).resolve().parents[2]
NARROW, WIDE = 3.3, 6.8  # inches: one column of a page, two columns
FEW = 5  # up to so many seeds are drawn one by one


def style():
    """Set the repository's look for all figures of this kernel: 7 pt, thin frames, no top and right spines."""
    if "IPython" in sys.modules and (shell := sys.modules["IPython"].get_ipython()):
        # Two columns are as wide as a cell, and sharp. The warning is of how that class hears of a change.
        with warnings.catch_warnings(action="ignore", category=DeprecationWarning):
            InlineBackend.instance(parent=shell).figure_formats = {"retina"}
    mpl.rcParams.update(
        {
            "font.size": 7, "axes.titlesize": 7, "axes.labelsize": 7, "legend.fontsize": 6.5,
            "xtick.labelsize": 6.5, "ytick.labelsize": 6.5, "axes.spines.top": False, "axes.spines.right": False,
            "axes.linewidth": 0.6, "xtick.major.width": 0.6, "ytick.major.width": 0.6, "lines.linewidth": 1.4,
            "lines.markersize": 3, "axes.titlelocation": "left", "legend.frameon": False, "figure.dpi": 150,
            "savefig.dpi": 300, "figure.constrained_layout.use": True, "pdf.fonttype": 42,
        }
    )  # fmt: skip


def folder():
    """Return where figures are saved: `$PRUNING_FIGURES`, below the repository if relative, or `figures/`."""
    return place(ROOT, "PRUNING_FIGURES", "figures")


def save(figure, name):
    """Return the path of `name.png`, saved beside `name.pdf` in the figures folder, without dates inside.

    A figure without any data is not written, which is said, and one that is there stays: then None.
    """
    if not any(_has_data(axes) for axes in figure.axes):
        print(f"{name}: not drawn, no run has a record of it yet")
        plt.close(figure)
        return None
    looks.minus(figure)
    assert_writable(folder())
    figure.savefig(folder() / f"{name}.png")
    layout = figure.get_layout_engine()
    figure.set_layout_engine("none")  # laid out once for both files, which takes as long as to draw it
    figure.savefig(folder() / f"{name}.pdf", metadata={"CreationDate": None})
    figure.set_layout_engine(layout or "none")
    return folder() / f"{name}.png"


def _has_data(axes):
    """Return whether axes show anything but what needs no data: lines and bands across them, as `axhline` draws."""
    own = [
        artist
        for artist in (*axes.lines, *axes.patches)
        if all(artist.get_transform().contains_branch_seperately(axes.transData)) and not isinstance(artist, AxLine)
    ]
    areas = [area for area in axes.collections if not isinstance(area, LineCollection)]
    return bool(axes.images or areas or any(np.isfinite(artist.get_path().vertices).all(1).any() for artist in own))


def look(kind):
    """Return (label, colour, marker, dashes) of a type; the same in every figure of the repository.

    A type that is not in `LOOKS` gets a look that no type there has, by its name alone, whatever else is drawn.
    """
    if kind in LOOKS:
        return LOOKS[kind]
    taken = {tuple(own) for _, *own in LOOKS.values()}
    free = [own for own in itertools.product(COLOURS[:-1], MARKERS, DASHES) if own not in taken]
    number = int.from_bytes(hashlib.blake2b(kind.encode(), digest_size=8).digest())
    return kind.replace("_", " "), *free[number % len(free)]


def words(title):
    """Return a title in words: its first part, up to a comma, by `WORDS` where that is a raw name."""
    first, comma, rest = title.partition(",")
    return WORDS.get(first, first) + comma + rest


def ordered(kinds, known=LOOKS):
    """Return the different types in `kinds`, the known ones first and in their order, then the others by name."""
    different = set(kinds)
    return [kind for kind in known if kind in different] + sorted(different - set(known))


def spread(axes, table, x, y, kind, label=True, few=FEW, medians=False, **line):
    """Draw `y` against `x` of one type on `axes` from a tidy table with a row per x and seed; return the middle line.

    Up to `few` seeds: each thin, the mean thick. More: the mean and its 95 % band. medians: the median in place
    of the mean, and quartiles in place of the band, where a seed may run away.
    """
    name, colour, _, dashes = look(kind)
    wide = table.pivot(index="seed", columns=x, values=y)
    at, values = wide.columns.to_numpy(float), wide.to_numpy(float)
    line = {"color": colour, "linestyle": dashes} | line
    how = "one" if len(values) == 1 else "thin" if len(values) <= few else "quartiles" if medians else "band"
    seeds(axes, how, len(values))
    if how == "thin":
        axes.plot(at, values.T, **line | {"linewidth": 0.5, "alpha": 0.5})
    elif how != "one":
        band = np.quantile(values, (0.25, 0.75), axis=0) if medians else evidence.interval(values)
        axes.fill_between(at, *band, color=line["color"], alpha=0.2, linewidth=0)
    middle = np.median(values, axis=0) if medians else values.mean(axis=0)
    (drawn,) = axes.plot(at, middle, label=name if label else None, **line)
    return drawn


def published(axes, x, y, kind, error=None, label="published"):
    """Draw published values as hollow markers of the type's shape, with their spread where it is known."""
    _, colour, marker, _ = look(kind)
    label = label if np.size(x) else None
    axes.errorbar(x, y, yerr=error, fmt=marker, color=colour, markersize=3.2, markerfacecolor="white", zorder=3,
                  markeredgewidth=0.8, elinewidth=0.6, capsize=1.5, label=label)  # fmt: skip


def log_ticks(axes, which="y"):
    """Make the axis `which`, x or y, logarithmic, its ticks plain numbers."""
    axes.set(**{f"{which}scale": "log"})
    axis = {"x": axes.xaxis, "y": axes.yaxis}[which]
    low, high = sorted(axis.get_view_interval())
    near = (1, 1.5, 2, 3, 4, 5, 7) if high > 10**0.5 * low else (1, 1.5, 2, 2.5, 3, 3.5, 4, 4.5, 5, 6, 7, 8, 9)
    far = (1, 2, 5) if high < 1e4 * low else (1,)
    axis.set_major_locator(LogLocator(subs=near if 0 < low and high < 10 * low else far))
    axis.set_major_formatter(lambda x, _: np.format_float_positional(x, precision=10, trim="-"))
    axis.set_minor_formatter(NullFormatter())


def share_ticks(axes):
    """Make the x axis logarithmic, of shares that are kept, less and less to the right, its ticks in percent."""
    axes.set_xscale("log")
    decades = abs(np.diff(np.log10(axes.get_xlim())).item())
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if decades < 3 else (1,)))
    axes.xaxis.set_major_formatter(lambda share, _: f"{100 * share:g}")
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.xaxis.set_inverted(True)


def apart(axes, gains, x, look, shift=0.0):
    """Draw rows of `tables.paired`, mean and 95 % interval, against the column `x`, and the line of no difference.

    look: a type's, see `look`; shift: to the right, of what would hide behind another type.
    """
    label, colour, marker, dashes = look
    gains = gains.sort_values(x)
    bars = gains["mean"] - gains["low"], gains["high"] - gains["mean"]
    seeds(axes, "bars", *gains["n"])
    axes.errorbar(gains[x] + shift, gains["mean"], bars, fmt=marker, linestyle=dashes, color=colour, label=label,
                  markersize=2.5, linewidth=0.8)  # fmt: skip
    axes.axhline(0, color="black", linewidth=0.5)


def strip(axes, row, values, kind):
    """Draw one value per seed, sorted, as the markers of a type in row `row` of `axes`, and a bar at the median."""
    _, colour, marker, _ = look(kind)
    seeds(axes, "dots", len(values))
    heights = row + np.linspace(-0.3, 0.3, len(values))
    axes.plot(np.sort(values), heights, marker, color=colour, alpha=0.5, markeredgewidth=0)
    axes.plot([np.median(values)] * 2, [row - 0.4, row + 0.4], "-", color="black", linewidth=1)
