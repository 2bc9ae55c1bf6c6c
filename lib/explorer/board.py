"""The explorer's figure: two methods side by side at one sparsity, drawn so that it follows a slider.

What a slider does not move, curves and frames, is drawn once; the rest is drawn over a copy of that, which takes a
tenth of the time of a whole figure.
"""

import functools
import io

import numpy as np
from matplotlib import colormaps
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import PathPatch
from matplotlib.path import Path
from matplotlib.textpath import TextPath
from matplotlib.transforms import Affine2D
from PIL import Image

from lib.explorer import sweep as of
from lib.figures import drawing
from lib.networks import nets

SIZE, DPI = (drawing.WIDE, 4.5), 200  # inches; about 1,360 pixels: as wide as a cell, and sharp there
ACROSS, DOWN = 4, 3  # thumbnails of digits that flip
GAP, BESIDE = 10, 2  # pixels under a thumbnail, for its answers, and at its right
GONE = "#E4E4E4"  # of scores that are pruned


class Board:
    """Two `Sweep`s of one `Subject` as a figure: `png(cuts)` is it at one `Cut` of each."""

    def __init__(self, subject, sweeps):
        self.subject, self.sweeps = subject, sweeps
        self.classes = sweeps[0].cuts[0].logits.shape[1]
        self.figure = Figure(figsize=SIZE, dpi=DPI)
        self.canvas, self.moving = FigureCanvasAgg(self.figure), []
        grid = self.figure.add_gridspec(4, 4, height_ratios=[1, 1, 1, 1.1])
        self._curves(self.figure.add_subplot(grid[:2, :2]))
        self._densities(self.figure.add_subplot(grid[:2, 2]))
        self.bars = [self._scores(self.figure.add_subplot(grid[k, 3]), one) for k, one in enumerate(sweeps)]
        self.tables = [self._confusion(self.figure.add_subplot(grid[2:, k]), one) for k, one in enumerate(sweeps)]
        self.tiles = [self._tile(self.figure.add_subplot(grid[2:, 2 + k])) for k in range(len(sweeps))]
        for artist in self.moving:
            artist.set_animated(True)
        self.canvas.draw()
        self.still = self.canvas.copy_from_bbox(self.figure.bbox)

    def png(self, cuts):
        """Return the figure at the `Cut`s of both methods, as the bytes of a PNG."""
        self._move(cuts)
        self.canvas.restore_region(self.still)
        for artist in self.moving:
            artist.axes.draw_artist(artist)
        return encoded(np.asarray(self.canvas.buffer_rgba())[..., :3])

    # ---- what stands still

    def _curves(self, axes):
        self.dots, y = [], self.subject.test[1]
        for one in self.sweeps:
            label, colour, marker, dashes = drawing.look(one.method)
            at, values = zip(*((cut.asked, 100 * of.accuracy(cut, y)) for cut in one.cuts), strict=True)
            axes.plot(at, values, dashes, color=colour, label=label)
            self.dots += axes.plot([0], [0], marker, color=colour, markersize=6, markeredgecolor="white")
        (self.line,) = axes.plot([0, 0], [0, 100], color="black", linewidth=0.5)
        self.moving += [self.line, *self.dots]
        axes.set(xlabel=f"share of {self.sweeps[0].of} to prune", ylabel="test accuracy (%)", ylim=(0, 101),
                 title=f"Accuracy of {len(y):,} test images")  # fmt: skip
        axes.legend(loc="lower left")

    def _densities(self, axes):
        names, self.rows = list(nets.layers(self.subject.net)), []
        at = np.arange(len(names))
        for k, one in enumerate(self.sweeps):
            bars = axes.barh(at + 0.4 * k - 0.2, np.ones(len(names)), 0.36, color=drawing.look(one.method)[1])
            self.rows.append(list(bars))
            self.moving += bars
        axes.set(yticks=at, yticklabels=names, xlim=(0, 1), title="Density by layer", xlabel="weights kept (share)")
        axes.invert_yaxis()

    def _scores(self, axes, one):
        label, colour, *_ = drawing.look(one.method)
        axes.set(yticks=[], title=f"Scores, {label}" + (f", {one.rounds} rounds" if one.rounds > 1 else ""))
        if one.scores is None:
            axes.set(xticks=[])
            axes.text(0.5, 0.5, "draws masks,\nhas no scores", ha="center", va="center", transform=axes.transAxes)
            return None
        bars = of.histogram(one.scores)
        axes.stairs(bars.counts, bars.edges, fill=True, color=colour)
        gone = axes.stairs(bars.counts, bars.edges, fill=True, color=GONE)
        shared = 1 if one.of == "weights" else len(bars.values)
        lines = [axes.plot([0, 0], [0, bars.counts.max()], color="black", linewidth=0.7)[0] for _ in range(shared)]
        axes.set(ylim=(0, None), xlabel="log₁₀ of the score" if bars.log else "score")
        self.moving += [gone, *(lines if one.rounds == 1 else [])]
        return bars, gone, lines

    def _confusion(self, axes, one):
        count, at = self.classes, np.arange(self.classes)
        picture = axes.imshow(np.zeros((count, count)), cmap="Greys", vmin=0, vmax=1.6)
        numbers = [axes.add_patch(PathPatch(_joined([]), color=shade, linewidth=0)) for shade in ("black", "white")]
        axes.set(xticks=at, yticks=at, xlabel="answer", ylabel="class", title=f"Answers, {drawing.look(one.method)[0]}")
        axes.tick_params(length=0, labelsize=5)
        self.moving += [picture, *numbers]
        return picture, numbers

    def _tile(self, axes):
        height, width = self.subject.pictures.shape[2] + GAP, self.subject.pictures.shape[3] + BESIDE
        blank = np.full((DOWN * height, ACROSS * width, 3), 255, np.uint8)
        picture, title = axes.imshow(blank), axes.text(0, 1.02, "", transform=axes.transAxes)
        places = [divmod(k, ACROSS) for k in range(ACROSS * DOWN)]
        below = [((column + 0.5) * width - BESIDE / 2, (row + 1) * height - 2) for row, column in places]
        words = [axes.text(x, y, "", ha="center", va="bottom", fontsize=5) for x, y in below]
        axes.set_axis_off()
        self.moving += [picture, title, *words]
        return picture, title, words

    # ---- what moves

    def _move(self, cuts):
        y = self.subject.test[1]
        self.line.set_xdata([cuts[0].asked] * 2)
        for k, (one, cut) in enumerate(zip(self.sweeps, cuts, strict=True)):
            self.dots[k].set_data([cut.asked], [100 * of.accuracy(cut, y)])
            for bar, sparsity in zip(self.rows[k], cut.left["layer_sparsity"], strict=True):
                bar.set_width(1 - sparsity)
            self._move_scores(self.bars[k], cut, one.of)
            self._move_confusion(*self.tables[k], of.confusion(cut.answers, y, self.classes))
            self._move_tile(*self.tiles[k], one, cut)

    def _move_scores(self, bars, cut, kind):
        if bars is None:
            return
        histogram, gone, lines = bars
        counts, lowest = of.below(histogram, cut.masks, kind)
        gone.set_data(counts)
        for line, at in zip(lines, [*lowest, *[np.nan] * len(lines)], strict=False):
            line.set_xdata([at, at])

    def _move_confusion(self, picture, numbers, counts):
        shares = counts / counts.sum(1, keepdims=True).clip(1)
        picture.set_data(shares**0.5)  # so that a hundredth can be seen
        for number, places in zip(numbers, ((counts > 0) & (shares <= 0.4), shares > 0.4), strict=True):
            number.set_path(_joined([_word(str(counts[j, k]), k, j) for j, k in np.argwhere(places)]))

    def _move_tile(self, picture, title, words, one, cut):
        before, after, y = one.cuts[0].answers, cut.answers, self.subject.test[1]
        moved = of.flips(before, after, y)
        lost = int(((before == y) & (after != y)).sum())
        title.set_text(f"{len(moved)} flip, {lost} were right")
        picture.set_data(tile(self.subject.pictures[moved[: ACROSS * DOWN]]))
        for k, word in enumerate(words):
            told = f"{before[moved[k]]} → {after[moved[k]]}" if k < len(moved) else ""
            right = k < len(moved) and after[moved[k]] == y[moved[k]]
            word.set(text=told, color=drawing.GREEN if right else "black")


@functools.cache
def _word(text, x, y):
    """Return the outlines of a text in the middle of a place of a table, whose rows go down, a third as high."""
    path = TextPath((0, 0), text, size=1)
    (left, low), (right, high) = path.get_extents().get_points()
    middle = Affine2D().translate(-(left + right) / 2, -(low + high) / 2)
    return path.transformed(middle.scale(0.45, -0.45).translate(x, y))


def _joined(words):
    """Return outlines as one path: a hundred texts would take most of the time of a figure."""
    return Path.make_compound_path(*words) if words else Path(np.empty((0, 2)))


def tile(pictures):
    """Return pictures, bytes `(n, C, H, W)`, in rows as one, `(H', W', 3)` bytes; white where there is none."""
    channels, height, width = pictures.shape[1:]
    sheet = np.full((DOWN, height + GAP, ACROSS, width + BESIDE, 3), 255, np.uint8)
    for k, one in enumerate(pictures.numpy()):
        sheet[k // ACROSS, :height, k % ACROSS, :width] = one.transpose(1, 2, 0)
    return sheet.reshape(DOWN * (height + GAP), -1, 3)


def sheet(images, across, beside=None):
    """Return images of weights `(n, C, H, W)` as one, `(H', W', 3)` bytes: red pulls up, blue down, white is none.

    beside: images whose largest value has the full colour, where that is not the largest of these.
    """
    flat, largest = images.mean(1).numpy(), (images if beside is None else beside).mean(1).abs().max().item()
    count, height, width = flat.shape
    shades = colormaps["RdBu_r"](0.5 + 0.5 * flat / max(largest, 1e-12), bytes=True)[..., :3]
    full = np.full((-(-count // across) * across, height, width, 3), 255, np.uint8)
    full[:count] = shades
    return full.reshape(-1, across, height, width, 3).swapaxes(1, 2).reshape(-1, across * width, 3)


def encoded(pixels):
    """Return the bytes of a PNG of pixels `(H, W, 3)`, packed as fast as they can be."""
    stream = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(stream, "png", compress_level=1)
    return stream.getvalue()
