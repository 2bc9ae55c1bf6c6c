"""What legends say: the types once and in one order, and what is drawn of how many seeds."""

import weakref

from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from lib.figures.looks import LOOKS

BANDS = {  # what is drawn of several seeds, in the words of legends; see `seeds`
    "one": "one seed", "thin": "thin: {} seeds, thick: their mean", "mean": "mean of {} seeds",
    "band": "band: 95 % interval of the mean, {} seeds", "quartiles": "line: median, band: quartiles, {} seeds",
    "bars": "bars: 95 % interval of the mean, {} seeds", "dots": "a marker a seed ({}), bar: median",
}  # fmt: skip
LINE, FULL = 9, 120  # letters: a legend's line before a label, a row of a legend
LABELS = tuple(label for label, *_ in LOOKS.values())  # in the order of legends
_SEEDS = weakref.WeakKeyDictionary()  # of axes: {of `BANDS`: numbers of seeds}


def seeds(axes, how, *counts):
    """Note that `axes` show so many seeds, `how` of `BANDS`; the legend of the figure says it. Of none nothing is."""
    if counts:
        _SEEDS.setdefault(axes, {}).setdefault(how, set()).update(map(int, counts))


def told(place):
    """Return what is drawn of how many seeds on axes, or on those of a figure, in words; nothing if nobody noted it."""
    found = {}
    for axes in place.axes if isinstance(place, Figure) else [place]:
        for how, counts in _SEEDS.get(axes, {}).items():
            found.setdefault(how, set()).update(counts)
    many = {how: f"{min(n)}" + f" to {max(n)}" * (min(n) < max(n)) for how, n in found.items()}
    return "; ".join(said.format(many[how]) for how, said in BANDS.items() if how in many)


def legend(place, known=LABELS, **options):
    """Write the labels of a figure, or of axes, each once, those in `known` first and in that order, seeds above them.

    Published values of all types have one entry, the last. Seeds: see `told`; of a figure alone.
    """
    shown = {}
    for axes in place.axes if isinstance(place, Figure) else [place]:
        shown |= {label: handle for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
                  if label not in shown}  # fmt: skip
    shown = {label: shown[label] for label in sorted(shown, key=[*known, *shown].index)}
    if shown.pop("published", None):
        shown["published"] = Line2D([], [], color="black", marker="o", markerfacecolor="white", linestyle="none")
    if isinstance(place, Figure):
        rows = max(1, round(sum(len(label) + LINE for label in shown) / FULL + 0.5))
        options = {"ncols": -(-len(shown) // rows), "title": told(place), "title_fontsize": 6.5} | options
        options = {"loc": "outside lower center"} | options
    place.legend(shown.values(), shown, **options)
