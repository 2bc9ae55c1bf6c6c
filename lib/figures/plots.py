"""The frame of most panels: a line of every type, and what was published in front of it."""

from lib.figures import drawing


def lines(axes, rows, x, y, known=drawing.LOOKS, facts=None, **line):
    """Draw `y` against `x` of every type as `drawing.spread` does, by its keywords, with the markers of the type.

    rows: a tidy table with a row per type, seed and x; known: types in the order of drawing, see `drawing.ordered`.
    facts: published values in the same columns, drawn as means, with standard deviations where they are of seeds.
    """
    told = rows[:0] if facts is None else facts
    for kind in drawing.ordered([*rows["type"], *told["type"]], known):
        _, _, marker, _ = drawing.look(kind)
        if len(own := rows[rows["type"] == kind]):
            drawing.spread(axes, own, x, y, kind, **{"marker": marker} | line)
        if len(own := told[told["type"] == kind]):
            groups = own.groupby(x)[y]
            spread = groups.std(ddof=0) if groups.size().max() > 1 else None
            drawing.published(axes, groups.mean().index, groups.mean(), kind, error=spread)
