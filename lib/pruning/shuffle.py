"""Shuffles: masks whose layers keep as many weights as before, but at other places."""

import torch

from lib import draws
from lib.errors import number, one_each
from lib.pruning import paths
from lib.pruning.masks import SLACK


def shuffled(hops, masks, seeds, width=1.0, as_published=False):
    """Return masks with the same number of kept weights in every layer of every run, at places drawn from its seed.

    hops: `nets.graph(net)`; masks: of all layers, see `paths.complete`. width, in [0, 1]: the share of the idle units
    of each node that may be used, beside those that a kept weight enters or leaves; at 1 all places of a layer have
    the same chance, at 0 weights are moved among the units that they had (arXiv 2010.11354). as_published: of each
    layer the first units are used, not those in use, as many as have a kept incoming weight and `width` of the others,
    and inputs are not restricted: weights then read units that say nothing.
    """
    number("width, the share of idle units that may be used,", width, "[0, 1]")
    runs = len(next(iter(masks.values())))
    one_each(runs, seeds=seeds)
    used, out = None if as_published else _used(hops, masks, width), {}
    for position, hop in enumerate(hop for hop in hops if hop.layer):
        mask = masks[f"{hop.layer}.weight"]
        if as_published:
            rows = mask.flatten(2).any(2)
            room = _widened(rows, width, first=True), rows.new_ones(runs, mask.shape[2])
        else:
            room = used[hop.target], paths.per_input(used[hop.source], mask)
        streams = [draws.generator(seed, "shuffle", position) for seed in seeds]
        drawn = [_scattered(*parts) for parts in zip(mask, *room, streams, strict=True)]
        out[f"{hop.layer}.weight"] = torch.stack(drawn)
    return out


def _used(hops, masks, width):
    """Return the units of every node that may be used, `{node: bool (R, C)}`: all inputs, and see `shuffled`."""
    sizes, runs = paths.widths(hops, masks), len(next(iter(masks.values())))
    device = next(iter(masks.values())).device
    touched = {node: torch.zeros(runs, size, dtype=torch.bool, device=device) for node, size in sizes.items()}
    touched[0].fill_(True)
    for hop in (hop for hop in hops if hop.layer):
        pairs = paths.joined(masks[f"{hop.layer}.weight"], sizes[hop.source])
        touched[hop.target] |= pairs.any(2)
        touched[hop.source] |= pairs.any(1)
    return {node: _widened(units, width) for node, units in touched.items()}


def _widened(units, width, first=False):
    """Return `units (R, C)` and `width` of the others, those that come first; `first`: as many units, but the first."""
    count = units.sum(1, keepdim=True)
    wanted = count + (width * (units.shape[1] - count).double() + SLACK).long()
    if first:
        return torch.arange(units.shape[1], device=units.device) < wanted
    return units | ((~units).cumsum(1) <= wanted - count)


def _scattered(mask, rows, columns, stream):
    """Return a mask `(O, I, *kernel)` of as many kept weights as `mask`, drawn among `rows (O,)` and `columns (I,)`."""
    rows, columns = rows.nonzero()[:, 0], columns.nonzero()[:, 0]
    cells, keep = mask[0, 0].numel(), int(mask.sum())
    places = stream.choice(len(rows) * len(columns) * cells, keep, replace=False, shuffle=False)
    places = torch.from_numpy(places).to(mask.device)
    row, column = rows[places // (len(columns) * cells)], columns[places // cells % len(columns)]
    out = torch.zeros_like(mask).flatten()
    out[(row * mask.shape[1] + column) * cells + places % cells] = True
    return out.view_as(mask)
