"""Scores of weights: one number per weight, larger = kept. A score is made here, a mask in `masks`: see `methods`.

Gradients of several batches are summed. The network must be folded, and is left as it was, gradients, running
statistics and mode included. Of three ResNet20 on one CPU thread SNIP takes 1.4 s and GraSP 5 s, as in one pass.
"""

from contextlib import ExitStack, nullcontext
from functools import partial

import numpy as np
import torch
from torch.func import functional_call
from torch.nn.functional import cross_entropy

from lib import draws
from lib.errors import ParameterError, choice, listed, one_each
from lib.kernels import curvature
from lib.networks import nets
from lib.pruning.methods import method


@method("magnitude")
def magnitude(net, x, y, seeds):
    """Return the absolute value of every weight, `{name: (R, O, *F)}`."""
    return {name: weight.abs() for name, weight in plain(net).items()}


@method("lamp")
def lamp(net, x, y, seeds):
    """Return w² over the sum of all v² of its layer that are no smaller, `{name: (R, O, *F)} float64`.

    LAMP (Lee et al., arXiv 2010.07611): of all layers together, those stay whose loss would change a layer most.
    """
    scores = {}
    for name, weight in plain(net).items():
        squares, order = weight.double().flatten(1).square().sort(dim=1, stable=True)
        rest = squares.flip(1).cumsum(1).flip(1).clamp_min(torch.finfo(torch.float64).tiny)
        scores[name] = torch.empty_like(squares).scatter_(1, order, squares / rest).view_as(weight)
    return scores


@method("random")
def random(net, x, y, seeds, keys=None, draw=draws.uniform32):
    """Return numbers drawn for every weight from its run's seed, `{name: (R, O, *F)}`; keys, draw: see `drawn`."""
    weights = plain(net)
    return drawn(weights, seeds, keys or {name: ("random_score", k) for k, name in enumerate(weights)}, draw)


def drawn(like, seeds, keys, draw):
    """Return numbers drawn for every entry of tensors `{name: (R, ...)}` of which `keys` has the name.

    keys: `{name: (purpose, *position)}` of each draw, see `draws.generator`; draw: `(generator, shape)` to numbers.
    """
    if like:
        one_each(len(next(iter(like.values()))), seeds=seeds)
    shapes = {name: tuple(like[name].shape[1:]) for name in keys}
    made = {name: np.stack([draw(draws.generator(seed, *keys[name]), shape) for seed in seeds])
            for name, shape in shapes.items()}  # fmt: skip
    return {name: torch.from_numpy(numbers).to(like[name].device) for name, numbers in made.items()}


@method("snip", needs="examples")
def snip(net, x, y, seeds, training=True):
    """Return |w · dL/dw| of every weight, `{name: (R, O, *F)}`: SNIP (Lee, Ajanthan & Torr, arXiv 1810.02340).

    L is the mean cross-entropy of a batch, summed over batches. training: in `train()` mode, else in `eval()` mode.
    """
    gradient, weights = slopes(net, x, y, training), nets.weights(net)
    return {name: (slope * weights[name].detach()).abs() for name, slope in gradient.items()}


def slopes(net, x, y, training=True):
    """Return dL/dw of every weight, `{name: (R, O, *F)}`, as of `snip`; the network is left as it was."""
    weights, total = plain(net), None
    with nets.mode(net, training):
        tensors = _buffers(net)
        for batch in _batches(x, y):
            total = _added(total, _slopes(net, weights, tensors, batch))
    return dict(zip(weights, total, strict=True))


@method("hessian", needs="examples")
def hessian(net, x, y, seeds):
    """Return w² · (dL/dw)², its mean over examples, of every weight, `{name: (R, O, *F)}`.

    Optimal Brain Damage (LeCun, Denker & Solla 1989) with the diagonal of the empirical Fisher matrix for that of the
    Hessian. L is the cross-entropy of one example, in `eval()` mode. 1,000 examples of an MLP take some seconds.
    """
    batches, total = _batches(x, y), None
    for images, labels in batches:
        for k in range(labels.shape[-1]):
            squares = [slope.square_() for slope in slopes(net, images[..., [k], :], labels[..., [k]], False).values()]
            total = squares if total is None else [a.add_(b) for a, b in zip(total, squares, strict=True)]
    count = sum(labels.shape[-1] for _, labels in batches)
    return {name: w.square() * part / count for (name, w), part in zip(plain(net).items(), total, strict=True)}


@method("wanda", needs="examples")
def wanda(net, x, y, seeds):
    """Return |w| times the norm, over examples, of what it reads, of every weight, `{name: (R, O, *F)}`.

    Wanda (Sun et al., arXiv 2306.11695), which compares the weights of one unit: scope="unit". In `eval()` mode; a
    filter reads at many places. ParameterError for layers that another part computes, as attention does.
    """
    weights, names = plain(net), {id(weight): name for name, weight in nets.weights(net).items()}
    squares = {name: torch.zeros_like(weight) for name, weight in weights.items()}

    def add(name, layer, read):  # by `forward`: a call would come back here. Each weight's slope is what it reads
        sums = layer.forward(read[0].detach().square()).sum()
        squares[name] += torch.autograd.grad(sums, layer.weight)[0]

    with ExitStack() as hooks:
        for layer in nets.layers(net).values():
            called = getattr(layer, "_own", layer)
            hooks.enter_context(called.register_forward_pre_hook(partial(add, names[id(layer.weight)])))
        found = slopes(net, x, y, training=False)
    if odd := [name for name, slope in found.items() if slope.any() and not squares[name].any()]:
        raise ParameterError(f"what {listed(odd)} read is not seen: their layers are not called. Take snip instead")
    return {name: weight.abs() * squares[name].sqrt() for name, weight in weights.items()}


@method("grasp", needs="examples")
@torch.enable_grad()
def grasp(net, x, y, seeds, temperature=200.0, over="weights", training=True):
    """Return w · Hg of every weight, `{name: (R, O, *F)}`: GraSP (Wang, Zhang & Grosse, arXiv 2002.07376).

    What raises the norm of the gradient most stays. H is the Hessian of L, see `snip`, with logits divided by
    `temperature`, and g its gradient. over: what g consists of, "weights", or "all" parameters, biases and batch
    normalisations included, as in the PHEW study (arXiv 2010.11354).
    """
    choice("over", over, ("weights", "all"))
    weights, batches, g, turned = plain(net), _batches(x, y), None, None
    known = weights.keys() | {name.removesuffix("weight") + "scale" for name in weights}  # of folded nets: not used
    leaves = weights | {k: p.detach() for k, p in net.named_parameters() if over == "all" and k not in known}
    with nets.mode(net, training):
        tensors = _buffers(net)
        for batch in batches if len(batches) > 1 else ():  # of one batch, the second pass knows g itself
            g = _added(g, _slopes(net, leaves, tensors, batch, temperature))
        tensors = _buffers(net)  # a dropout draws again what it drew for g
        for batch in batches:
            slopes = _slopes(net, leaves, tensors, batch, temperature, graph=True)
            fixed = [slope.detach() for slope in slopes] if g is None else g
            along = sum((slope * other).sum() for slope, other in zip(slopes, fixed, strict=True))
            turned = _added(turned, curvature.again(along, list(weights.values())))
    return {name: w.detach() * hg for (name, w), hg in zip(weights.items(), turned, strict=True)}


def plain(net):
    """Return the weights as leaves of their own, `{name: (R, O, *F)}`; ValueError where they are normalised."""
    nets.assert_plain(net)
    return {name: weight.detach() for name, weight in nets.weights(net).items()}


def _buffers(net):
    """Return a copy of every buffer: batch statistics move, and dropouts count, there and not in the network."""
    return {name: buffer.clone() for name, buffer in net.named_buffers()}


def _batches(x, y):
    """Return the batches `[(x, y)]`, of one or of lists of them; ValueError where there are none."""
    if x is None or y is None:
        raise ValueError("this score is made from examples: x and y are needed, or two lists of batches")
    several = isinstance(x, list | tuple)
    if several != isinstance(y, list | tuple) or several and len(x) != len(y):
        counts = [f"{len(part)} batches" if isinstance(part, list | tuple) else "one tensor" for part in (x, y)]
        raise ValueError(f"x is {counts[0]}, y is {counts[1]}; needed are two tensors, or as many batches of both")
    batches = list(zip(x, y, strict=True)) if several else [(x, y)]
    if not batches or not all(len(labels.flatten()) for _, labels in batches):
        raise ValueError("there is no example, or a batch of none; this score is made from some, ten of every class")
    for images, labels in batches:
        if labels.dtype != torch.int64 or labels.shape[-1] != images.shape[-2]:
            told = f"labels are {labels.dtype} {tuple(labels.shape)} for {images.shape[-2]} examples"
            raise ValueError(f"{told}; needed are classes, torch.int64, one for each")
    return batches


def _added(total, parts):
    return [part.detach() for part in parts] if total is None else [a + b for a, b in zip(total, parts, strict=True)]


@torch.enable_grad()
def _slopes(net, leaves, tensors, batch, temperature=1.0, graph=False):
    """Return the gradients of the mean cross-entropy of a batch `(x, y)`, summed over runs, by `leaves`.

    `tensors` stand for the network's buffers. `graph`: the gradients can be differentiated again.
    """
    x, y = batch
    if x.shape[:-1] == (1,):  # see `synflow._ones`
        x = x.expand(nets.runs(net), 1, -1)
    leaves = {name: leaf.requires_grad_() for name, leaf in leaves.items()}
    with curvature.fast() if graph else nullcontext():
        # No two names share a tensor: those of `leaves` and of the copied buffers stand for all of the network's own.
        logits = functional_call(net, {**leaves, **tensors}, (x,), tie_weights=False) / temperature
        if logits.dim() != 3:
            raise ValueError(f"logits are {tuple(logits.shape[1:])}; a score of labels is of one row for each example")
        losses = _losses(logits, y.expand(logits.shape[:2]))
        # Of what no logit depends on, a layer for training alone, slopes are zero.
        return torch.autograd.grad(losses.sum(), list(leaves.values()), create_graph=graph, materialize_grads=True)


def _losses(logits, y):
    """Return the mean loss of each run; ValueError for labels that no logit has, of which torch takes -100 for none."""
    try:
        none = torch.iinfo(torch.int64).min
        return cross_entropy(logits.transpose(1, 2), y, reduction="none", ignore_index=none).mean(1)
    except IndexError as error:  # of a CPU: to look before would make a GPU wait
        found = f"labels are {int(y.min())} to {int(y.max())}; {logits.shape[2]} logits have 0 to {logits.shape[2] - 1}"
        raise ValueError(found) from error
