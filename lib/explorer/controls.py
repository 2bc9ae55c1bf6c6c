"""The explorer in a notebook: what is chosen and moved by a person, and what then is drawn anew.

    explorer = controls.Explorer("digits", of="units", first="contribution", second="random")
    explorer.show()

The figure and the table of numbers are plain outputs, drawn anew in their place, so that an executed notebook, a saved
one and exported HTML show them as they last were; the controls need a kernel.
"""

import base64
import html
import itertools
import os

import ipywidgets as widgets
import numpy as np
import pandas as pd
import torch
from IPython.display import HTML, DisplayHandle, Image, display

from lib.errors import ParameterError, choice, listed, number
from lib.explorer import board, subjects
from lib.explorer import sweep as of
from lib.figures import gallery
from lib.networks import nets, plain
from lib.pruning import methods, shrink

KINDS = ("units", "weights")
NEEDS = ("nothing", "examples")  # of methods that can be explored
FALLBACK = {"units": ("contribution", "random"), "weights": ("magnitude", "random")}
SHOWN, ACROSS = 40, 10  # units of the first layer that can be clicked at
SIDE = 56  # CSS pixels of one
FAINT = 0.2  # of its colour is left to one that is gone
_numbers = itertools.count()  # of explorers, so that two in one page do not share their looks


class Explorer:
    """A trained network, two methods and a slider. `show` displays it; `cuts` is what it shows now.

    network: a name in `subjects.NOW` or a label of `subjects.networks()`; of: "units" or "weights"; first, second:
    methods of those; sparsity: the share to be pruned at first; seed: of what is drawn, and of the network trained now;
    examples: test images that are answered, 0 for all. ParameterError for what there is not. It writes no record.
    """

    def __init__(
        self, network=subjects.DIGITS, of="units", first="contribution", second="random", sparsity=0.5, seed=1,
        examples=2000,
    ):  # fmt: skip
        choice("of", of, KINDS)
        for name in (first, second):
            if methods.get(name, of).needs not in NEEDS:
                told = f"{name} needs {methods.get(name, of).needs}; allowed are {listed(explorable(of))}"
                raise ParameterError(told)
        number("sparsity", sparsity, "[0, 1)")
        self.seed, self.examples, self.by_hand = seed, examples, {}
        self._subjects, self._sweeps, self._class, self._quiet = {}, {}, f"explorer-{next(_numbers)}", False
        self.shown = network, of, first, second
        self._make(network, of, first, second, sparsity)

    # ---- the controls

    def _make(self, network, kind, first, second, sparsity):
        wide = widgets.Layout(width="auto")  # all there is but its margins
        known = [*subjects.NOW, *subjects.networks()]
        self.network = widgets.Dropdown(options=known, description="network", layout=wide)
        beside = widgets.Layout(width="auto", flex="1 1 240px")  # or one below the other, where a window is narrow
        self.kind = widgets.Dropdown(options=KINDS, value=kind, description="prune", layout=beside)
        self.first, self.second = (
            widgets.Dropdown(options=explorable(kind), value=name, description=word, layout=beside)
            for word, name in (("method", first), ("beside", second))
        )
        nearest = min(of.STOPS, key=lambda stop: abs(stop - sparsity))
        stops = [(gallery.percent(stop), stop) for stop in of.STOPS]
        self.slider = widgets.SelectionSlider(options=stops, value=nearest, description="sparsity", layout=wide)
        self.status, self.places = widgets.HTML(), (DisplayHandle(), DisplayHandle())
        self.bar = widgets.IntProgress(max=len(of.STOPS) - 1, layout=widgets.Layout(width="auto", height="6px"))
        side = f"{SIDE}px"
        self.units = [widgets.Button(layout=widgets.Layout(width=side, height=side)) for _ in range(SHOWN)]
        columns = widgets.Layout(grid_template_columns=f"repeat({ACROSS}, {SIDE + 4}px)")
        self.grid, self.looks = widgets.GridBox(layout=columns), widgets.HTML()
        self.back = widgets.Button(description="Undo all clicks")
        self.save = widgets.Button(description="Shrink and save", tooltip="what the first method leaves, as shown")
        self.saved = widgets.HTML()
        if network not in known:
            subjects.subject(network)  # which says what there is
        self.network.value = network
        self._listen()

    def _listen(self):
        for control in (self.network, self.first, self.second):
            control.observe(lambda change: self._told(self.status, self._prepare), "value")
        self.kind.observe(lambda change: self._told(self.status, self._other_kind), "value")
        self.slider.observe(lambda change: self._told(self.status, self.draw), "value")
        for place, button in enumerate(self.units):
            button.add_class(self._class).add_class(f"{self._class}-{place}")
            button.on_click(lambda _, place=place: self._told(self.saved, self._click, place))
        self.back.on_click(lambda _: self._told(self.saved, self._undo))
        self.save.on_click(lambda _: self._told(self.saved, self._save))

    def _told(self, where, action, *arguments):
        """Do what a control asks for; whatever goes wrong is said beside it, since errors of a callback go unseen."""
        if self._quiet:
            return
        where.value = ""
        try:
            action(*arguments)
        except (Exception, KeyboardInterrupt) as error:  # an interrupt of the kernel goes unseen as well
            self._choose(*self.shown)  # so that what was not reached can be chosen again
            self.slider.disabled, self.bar.value = False, 0
            where.value = f"<b>{html.escape(f'{type(error).__name__}: {error}'.removesuffix(': '))}</b>"

    def _other_kind(self):
        names = explorable(self.kind.value)
        chosen = zip((self.first.value, self.second.value), FALLBACK[self.kind.value], strict=True)
        self._choose(self.network.value, self.kind.value, *(one if one in names else other for one, other in chosen))
        self._prepare()

    def _choose(self, network, kind, *names):
        self._quiet, self.network.value, self.kind.value = True, network, kind
        for control, name in zip((self.first, self.second), names, strict=True):
            control.options, control.value = explorable(kind), name
        self._quiet = False

    # ---- what is shown

    def _prepare(self):
        """Compute what the slider moves over, if that was not done before, and draw; until then it does not move."""
        label, kind, self.slider.disabled = self.network.value, self.kind.value, True
        if label not in self._subjects:
            self.status.value = f"{html.escape(label)}: one moment …"
            self._subjects[label] = subjects.subject(label, self.seed, self.examples)
        subject = self._subjects[label]
        sweeps = [self._sweep(subject, name, kind) for name in (self.first.value, self.second.value)]
        self.board, self.subject, self.sweeps = board.Board(subject, sweeps), subject, sweeps
        self.shown = label, kind, *(one.method for one in sweeps)
        self.ranked, self.by_hand = ranked(subject.net), {}
        self.grid.children = self.units[: len(self.ranked)]
        self.draw()
        self.slider.disabled, self.status.value = False, ""

    def _sweep(self, subject, name, kind):
        if (key := (subject.name, name, kind)) not in self._sweeps:
            self.status.value = f"{name}: one moment …"
            self._sweeps[key] = of.sweep(subject, name, kind, of.STOPS, self._progress)
        return self._sweeps[key]

    def _progress(self, stops):
        for self.bar.value, stop in enumerate(stops):
            yield stop
        self.bar.value = 0

    def draw(self):
        """Draw what is shown now, in the places where it was displayed."""
        self.cuts = [one.at(self.slider.value) for one in self.sweeps]
        if self.by_hand:
            self.cuts = [of.changed(self.subject, cut, self.by_hand) for cut in self.cuts]
        self.looks.value = f"<style>{self._style()}</style>"
        for place, content in zip(self.places, self.contents(), strict=True):
            place.update(content)

    def contents(self):
        """Return the table of numbers and the figure, to be displayed."""
        numbers = table(self.subject, self.sweeps, self.cuts)
        return HTML(numbers.to_html()), Image(self.board.png(self.cuts), alt="two pruned networks side by side")

    def show(self):
        """Compute, and display the controls, the table, the figure, and the units to be clicked at; returns nothing."""
        choices = widgets.HBox([self.kind, self.first, self.second], layout=widgets.Layout(flex_flow="row wrap"))
        rows = [self.network, choices, self.slider, self.bar, self.status]
        _display(widgets.VBox(rows), "<p><i>The controls need a kernel.</i></p>")
        self._prepare()
        for place, content in zip(self.places, self.contents(), strict=True):
            place.display(content)
        said = widgets.HTML("Units of the first layer, from the largest: a click takes one out, or brings it back.")
        _display(
            widgets.VBox([said, self.looks, self.grid, widgets.HBox([self.back, self.save]), self.saved]),
            self._picture(),
        )

    # ---- units

    def _click(self, place):
        unit = int(self.ranked[place])
        self.by_hand[unit] = not bool(of.there(self.subject.net, self.cuts[0].masks)[unit])
        self.draw()

    def _undo(self):
        self.by_hand = {}
        self.draw()

    def _sheet(self, kept):
        """Return the PNG of the units, in base64: what is pruned is white, a unit that is gone as a whole is faint."""
        masks = kept, of.whole(self.subject.net)
        left, everything = (of.images(self.subject, each, self.ranked) for each in masks)
        there = of.there(self.subject.net, kept)[self.ranked, None, None, None]
        weights = torch.where(there, left, FAINT * everything)
        return base64.b64encode(board.encoded(board.sheet(weights, ACROSS, everything))).decode()

    def _style(self):
        """Return the looks of the units: their weights as they are left, a ring around those clicked at."""
        rows = -(-len(self.ranked) // ACROSS)
        image = f"url(data:image/png;base64,{self._sheet(self.cuts[0].masks)})"
        rules = [f".{self._class}{{background-image:{image};background-size:{ACROSS * 100}% {rows * 100}%;"
                 "image-rendering:pixelated;padding:0}"]  # fmt: skip
        for place, unit in enumerate(self.ranked.tolist()):
            x, y = 100 * (place % ACROSS) / (ACROSS - 1), 100 * (place // ACROSS) / max(rows - 1, 1)
            ring = "outline:2px solid #EE6677!important;" if unit in self.by_hand else ""
            rules.append(f".{self._class}.{self._class}-{place}{{background-position:{x:.3f}% {y:.3f}%;{ring}}}")
        return "".join(rules)

    def _picture(self):
        told = f"{self.sweeps[0].method}, {gallery.percent(self.cuts[0].asked)} of the {self.sweeps[0].of} pruned"
        left = of.images(self.subject, self.cuts[0].masks, self.ranked)
        image = base64.b64encode(board.encoded(board.sheet(left, ACROSS))).decode()
        style = f"width:{ACROSS * SIDE}px;max-width:100%;image-rendering:pixelated"
        return (
            f"<p>What is left of the first layer ({html.escape(told)}), units from the largest:</p>"
            f'<img alt="units of the first layer" src="data:image/png;base64,{image}" style="{style}">'
        )

    # ---- a smaller network

    def _save(self):
        cut, one = self.cuts[0], self.sweeps[0]
        place = subjects.saved_in(self.subject.name, one.of, one.method, cut.asked, bool(self.by_hand))
        path = plain.save(cut.small, place)
        whole = one.cuts[0]
        before, after = plain.parameters(shrink.unshrunk(self.subject.net)), plain.parameters(cut.small)
        size = f"{path.stat().st_size:,} bytes, {after:,} of {before:,} parameters"
        time = f"{cut.milliseconds:.3g} ms for {of.BATCH} images, the whole network {whole.milliseconds:.3g} ms"
        self.saved.value = f"<code>{html.escape(str(path))}</code>: {size}; {time}"


def explorable(kind):
    """Return the names of the methods of "units" or "weights" that can be explored: they need images, or nothing."""
    return sorted(methods.names(kind, NEEDS))


def ranked(net):
    """Return units of the first layer `(n,)`, from the largest norm to the smallest, evenly spaced if they are many."""
    norms = next(iter(nets.unit_norms(net).values()))[0]
    order = norms.argsort(descending=True, stable=True)
    return order[np.linspace(0, len(order) - 1, min(SHOWN, len(order))).round().astype(int)]


def table(subject, sweeps, cuts):
    """Return the numbers of the whole network, and of what each method leaves, as a table with a column each."""
    whole = sweeps[0].cuts[0]
    named = [("whole", whole)] + [(one.method, cut) for one, cut in zip(sweeps, cuts, strict=True)]
    columns = [_column(subject, cut, whole) for _, cut in named]
    return pd.DataFrame(columns, index=[name for name, _ in named]).T


def _column(subject, cut, whole):
    y, live = subject.test[1], cut.left["live_units"].astype(int)
    before, after = whole.answers == y, cut.answers == y
    return {
        "sparsity, asked": gallery.percent(cut.asked, 1),
        "sparsity, true": gallery.percent(cut.left["sparsity"], 1),
        "sparsity, effective": gallery.percent(cut.left["effective_sparsity"], 1),
        "test accuracy": gallery.percent(of.accuracy(cut, y), 1),
        "right before, wrong now": int((before & ~after).sum()),
        "wrong before, right now": int((~before & after).sum()),
        "multiplications": f"{int(cut.left['macs']):,} ({gallery.percent(cut.left['macs'] / whole.left['macs'], 1)})",
        f"ms for {min(of.BATCH, len(y))} images, shrunk": f"{cut.milliseconds:.3g}",
        "live units by layer": ", ".join(map(str, live)),
    }


def _display(widget, instead):
    """Display a widget; where there is no kernel, HTML stands `instead` of it, and where nobody sits before it.

    In an executed notebook is what its widgets were, by which an exported page asks the net for a script to draw them:
    so under the launcher of papermill, which sets PRUNING_STILL, there are none.
    """
    live = {} if os.environ.get("PRUNING_STILL") else widget._repr_mimebundle_()
    display({**live, "text/html": instead}, raw=True)
