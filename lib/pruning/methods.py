"""Methods: which weights, or units, of networks stay. Each is one function, registered where it is written.

    @method("fisher", of="weights", needs="examples")
    def fisher(net, x, y, seeds): ...          # in any file of this folder

    prune(net, "fisher", 0.1, x, y)            # masks of a stack, or of any torch module

A method returns scores, larger = kept, of every run: `{name: (R, O, *F)}` over `nets.weights(net)`, or of units
`{layer: (R, O)}`. One that `draws` returns masks, a list of one for each of `densities`, and is called as
`(net, densities, x, y, seeds)`. What x is follows from what a method needs:

nothing    None, and y is too
examples   inputs as the network reads them, `(N, C·H·W)`, or `(R, N, C·H·W)` of each run's own, with labels y `(N,)` or
           `(R, N)`, or two lists of such batches
moments    `{layer: likelihood.Moments}` of what is to be drawn: the layer's inputs, or its units
history    what the units were ranked by earlier, `{layer: (R, O)}`
"""

import functools
import importlib
import inspect
from collections.abc import Callable
from pathlib import Path
from types import FunctionType
from typing import NamedTuple

import torch

from lib.errors import ParameterError, choice, flags, hint, instance, listed, one_each
from lib.networks import nets
from lib.pruning import anneal, checks, hops, likelihood, masks, modules, paths

NEEDS = ("nothing", "examples", "moments", "history")
SCOPES = {"weights": "global", "units": "layer"}  # of what is pruned: what shares one count, if nothing else is said
CALLED = {False: "(net, x, y, seeds)", True: "(net, densities, x, y, seeds)"}  # how a method is, if it draws or not
METHODS = {of: {} for of in SCOPES}  # {"weights": {name: Method}, …} of the files imported; see `names` and `get`


class Method(NamedTuple):
    """A function that decides what stays, and what is known of it: see `method`."""

    name: str
    of: str
    needs: str
    draws: bool
    rounds: int
    function: Callable


def method(name, of="weights", needs="nothing", draws=False, rounds=1):
    """Return a decorator that makes a function the method of this name; one that scores by examples does `run_by_run`.

    of, needs, draws: see above; rounds: in how many `anneal` reaches a density, if nothing else is said. ParameterError
    for other values, for a name that another function has, and for what cannot be called as a method is.
    """
    choice("of", of, SCOPES), choice("needs", needs, NEEDS)
    if not (isinstance(name, str) and name.isidentifier()):
        raise ParameterError(f'a method is called {name!r}; needed are letters, digits and _, as in @method("mine")')

    def register(function):
        instance(f"{name} is", function, FunctionType, f"a function {CALLED[draws]}")
        own = inspect.signature(function)
        try:
            own.bind(*CALLED[draws].split(", "))
        except TypeError as error:
            raise ParameterError(f"{name} has {own}; it is called with {CALLED[draws]}: {error}") from error
        if needs == "examples" and not draws:
            function = run_by_run(function, of)
        made = Method(name, of, needs, draws, rounds, function)
        other = METHODS[of].get(name, made).function
        if (other.__module__, other.__qualname__) != (function.__module__, function.__qualname__):
            raise ParameterError(f"{other.__module__} has a method of {of} called {name!r}; take another name")
        METHODS[of][name] = made  # a cell may be run again
        return function

    return register


def run_by_run(score, of="weights"):
    """Return a score as made of each run alone, so that no mask depends on a neighbour's rounding.

    What runs have of their own is cut: x and y, and keywords that are tensors (R, N, ...) of three axes.
    """

    @functools.wraps(score)
    def made(net, x, y, seeds, *more, **options):
        parts = []
        cut = {key: nets.of_runs(net, value, 3) for key, value in options.items() if isinstance(value, torch.Tensor)}
        for run, mine in enumerate(anneal.of_each(net, x, y, seeds)):
            parts.append(score(*mine, *more, **options | {key: own[run] for key, own in cut.items()}))
            nets.runs(net) == 1 or checks.assert_scores(parts[-1], mine[0], of)  # of one, who calls this looks
        return nets.join(parts)

    return made


@functools.cache
def _load():
    for stem in sorted(path.stem for path in Path(__file__).parent.glob("*.py") if "." not in path.stem):  # no backup
        importlib.import_module(f"lib.pruning.{stem}")
    for of, known in METHODS.items():  # in one order, whichever of them had been imported before
        METHODS[of] = dict(sorted(known.items(), key=lambda item: item[1].function.__module__))


def names(of="weights", needs=("nothing", "examples"), draws=True):
    """Return the names of the methods of weights, or of units, that need no more; draws: of those too that draw."""
    _load()
    return [name for name, known in METHODS[of].items() if known.needs in needs and draws >= known.draws]


def get(name, of="weights"):
    """Return the `Method` of this name; ParameterError if there is none."""
    _load(), choice("of", of, SCOPES)
    if name not in [*METHODS[of]]:
        other = "".join(f" There is one of {kind}: pass of={kind!r}." for kind in METHODS if name in [*METHODS[kind]])
        known = f"allowed are {listed(METHODS[of])}.{other or hint(name, METHODS[of])}"
        raise ParameterError(f"no method of {of} is called {name!r}; {known}")
    return METHODS[of][name]


def prune(net, name, density, x=None, y=None, seeds=None, **how):
    """Return masks of `net` by the method called `name`: see `prune_each`, which makes those of several densities.

    A stack stays what it is whatever the method does. ParameterError where a run of it is left with nothing.
    """
    stack = nets.layers(net, stack=False)
    made = prune_each(hops.copied(net) if stack else net, name, [density], x, y, seeds, **how)
    return checks.some(made, [density])[0] if stack else made[0]


@torch.inference_mode(False)  # of gradients, whatever the caller's mode
def prune_each(
    net, name, densities, x=None, y=None, seeds=None, of="weights", layers=None, scope=None, rounding="nearest",
    rounds=None, within=None, least=None, **options,
):  # fmt: skip
    """Return masks for each of the densities, `[{name: bool (R, O, *F)}]`, or of units `[{layer: bool (R, O)}]`.

    net: a folded stack, which is left as it is, or a torch module, whose masks have the names and shapes of its
    parameters: see `modules.One`. A density is one number, one per run, or `{layer: either}` of units. x, y: as the
    method needs them; seeds: one per run, of those that draw. layers: what is pruned, None for all that the method
    knows. Of scores alone: scope, rounding, within, masks whose weights alone may stay, and least, the share of every
    layer that stays, see `masks.top`; rounds, see `anneal`, without least. Units of a stack that are added up go
    together, see `paths.joint`. options: keywords of the method. ParameterError for an unknown method, for one that
    lacks its x, and where nothing is left of a module, of which a layer that keeps nothing is a warning.
    """
    chosen, layers = get(name, of), checks.named(layers)
    if isinstance(densities, str | dict) or not hasattr(densities, "__len__") or getattr(densities, "shape", 0) == ():
        raise ParameterError(f"densities is {densities!r}; needed is a list of them, and by `prune` one")
    _assert_given(chosen, x, y, options)
    stack, x, y, seeds = modules.opened(net, chosen, x, y, seeds, layers)
    if chosen.needs == "moments":
        likelihood.assert_fitting(x, stack, of)
    if within is not None and stack is not net:
        within = {part: mask[None] for part, mask in masks.assert_named(within).items()}
    made = _masks(chosen, stack, densities, x, y, seeds, layers, scope, rounding, rounds, within, least, **options)
    if stack is net:
        return made
    whole = net if of == "weights" and layers is None else None
    return [nets.take(kept, 0) for kept in modules.told(checks.some(made, densities), whole)]


def _masks(chosen, net, densities, x, y, seeds, layers, scope, rounding, rounds, within, least, **options):
    """Return what `prune_each` does, of a stack."""
    name, of = chosen.name, chosen.of
    if chosen.draws:
        one_each(nets.runs(net), seeds=seeds)
        given = {"layers": layers, "scope": scope, "within": within, "least": least}
        if odd := [what for what, value in given.items() if value]:
            raise ParameterError(f"{name} draws masks of all layers at once, and takes no {listed(odd)}: leave it out")
        made = chosen.function(net, densities, x, y, seeds, **options)
        return checks.assert_drawn(made, net, name, of, densities)
    scope, rounds = scope or SCOPES[of], chosen.rounds if rounds is None else rounds
    checks.assert_scope(net, of, scope, layers)
    score = functools.partial(_scored, chosen, layers=layers, **options)
    if rounds != 1:
        if least is not None or scope == "four" or any(isinstance(density, dict) for density in densities):
            told = 'least, scope="four", or a density for each layer,'
            raise ParameterError(f"{told} goes with one round, and {name} has {rounds}: pass rounds=1")
        score = functools.partial(chosen.function, **options) if layers is None else score
        return anneal.anneal(score, net, densities, rounds, scope, rounding, x, y, seeds, within=within)
    made = score(net, x, y, seeds)
    if of == "units" and not isinstance(net, modules.One):
        made = paths.joint(nets.graph(net), made)
    every = [_kept(made, density, scope, rounding, within, least) for density in densities]
    checks.warn_of_blanks([checks.blank(made, kept, scope, within) for kept in every])
    return every


@torch.inference_mode(False)
def score(net, name, x=None, y=None, seeds=None, of="weights", layers=None, **options):
    """Return what a method ranks by, `{name: (R, O, *F)}`, of units `{layer: (R, O)}`, of a module without R."""
    chosen, layers = get(name, of), checks.named(layers)
    _assert_given(chosen, x, y, options)
    stack, x, y, seeds = modules.opened(net, chosen, x, y, seeds, layers)
    made = _scored(chosen, stack, x, y, seeds, layers, **options)
    return made if stack is net else nets.take(made, 0)


def _assert_given(chosen, x, y, options):
    """Raise ParameterError for x, y and keywords that are not what a method needs."""
    if chosen.needs != "nothing" and x is None:
        raise ParameterError(f"{chosen.name} needs {chosen.needs}: pass them as x, see lib/pruning/methods.py")
    if chosen.needs == "examples":
        checks.assert_tensors(x, y)
    elif chosen.needs != "nothing":
        instance("x is", x, dict, f"a dict by layers, of {chosen.needs}, see lib/pruning/methods.py")
    own = inspect.signature(chosen.function).parameters
    if odd := [key for key in options if key not in own and "options" not in own]:
        has = listed([*own][5 if chosen.draws else 4 :])
        raise ParameterError(f"{chosen.name} has no keywords {odd}; it has {has}.{hint(odd[0], own)}")
    flags({key: parameter.default for key, parameter in own.items()}, options)


def _scored(chosen, net, x, y, seeds, layers=None, **options):
    """Return the scores of `layers`, or of all."""
    made = chosen.function(net, x, y, seeds, **options)
    checks.assert_scores(made, net, chosen.of)
    hidden = nets.hidden(net) if chosen.of == "units" else made
    own = {name.removesuffix(".weight"): name for name in made if layers or name in hidden}
    if not own:
        kind = type(getattr(net, "_own", net)).__name__
        none = f"{kind} has no hidden units to prune: all its layers make outputs"
        some = f"{chosen.name} has no score of a hidden layer of {kind}; needed are some of {listed(hidden)}, by name"
        raise ParameterError(f"{some}. Hooks run on parts that are called: see CONTRIBUTING.md" if hidden else none)
    if layers is None:
        return {name: made[name] for name in own.values()}
    return {own[choice("a layer", layer, own)]: made[own[layer]] for layer in layers}


def _kept(made, density, *how):
    """Return the masks of one density from scores."""
    if isinstance(density, dict):
        if odd := sorted(made.keys() ^ density.keys()):
            told = f"density says {listed(density)}, scores are of {listed(made)}: {odd} stand in one only"
            raise ParameterError(told)
        parts = (_kept({k: part}, density[k], *how) for k, part in made.items())
        return {name: mask for part in parts for name, mask in part.items()}
    return masks.top(made, density, *how)
