"""What a run is called: the parameters a notebook declares, the values it was given, the name they make.

A name lists the scientific parameters that differ from the notebook's defaults, so that a person can read it
and no two runs share it. The only files looked at are the notebook and the defaults beside it.
"""

import ast
import hashlib
import json
import math
import re
from collections.abc import Callable, Sequence, Set
from contextlib import suppress
from pathlib import Path
from urllib.parse import quote

from lib.errors import ParameterError, hint, listed

# How a run is computed, not what: these change no result, so they enter no name and are not compared.
OPERATIONAL = frozenset({"device", "force", "stack"})

LONGEST = 180  # characters of a name; file systems end at 255 bytes, and endings and locks need some of them

SEEDS = 2**64  # torch's generators take no larger ones
MOST_SEEDS = 100_000  # of one sweep, which is one stack

Pair = tuple[int | str, str]


# ---- what the notebook declares


def declared(notebook: Path) -> dict:
    """Return the parameters of a notebook as name -> default, in the order of its parameters cell.

    A default is what `defaults.json` beside the notebook says: whoever edits the cell, saved or not, runs with other
    values, which get another name, and no name gets another meaning. Only what the file lacks is taken from the cell.
    """
    cell, fixed = in_cell(notebook), frozen(notebook)
    for name in {"seed", "type"} - cell.keys():
        raise ParameterError(f"{notebook.name} declares no {name!r}; every experiment has one.")
    return {name: fixed.get(name, value) for name, value in cell.items()}


def frozen(notebook: Path) -> dict:
    """Return the defaults of a notebook that names are made by; none where they are not written down yet."""
    path = notebook.with_name("defaults.json")
    return _json(path).get(notebook.stem, {}) if path.exists() else {}


def in_cell(notebook: Path) -> dict:
    """Return the parameters cell of a notebook as it is on disk, name -> literal."""
    cells = [cell for cell in code_cells(notebook) if is_parameters(cell)]
    if len(cells) != 1:
        raise ParameterError(f"{notebook.name} has {len(cells)} cells tagged 'parameters'; papermill needs one.")
    defaults = {}
    for statement in ast.parse(source(cells[0])).body:
        name, value = _literal(statement, notebook)
        _value(name, value, value)  # of a kind that papermill can pass
        defaults[name] = value
    return defaults


def code_cells(notebook: Path) -> list[dict]:
    """Return the code cells of a notebook as it is on disk."""
    if not notebook.exists():
        known = sorted(path.stem for path in notebook.parent.glob("*.ipynb"))
        told = f"there is no notebook {notebook}.{hint(notebook.stem, known)} There are: {listed(known)}."
        raise ParameterError(told)
    return [cell for cell in _json(notebook)["cells"] if cell["cell_type"] == "code"]


def _json(path: Path) -> dict:
    try:
        return json.loads(path.read_text("utf-8"))
    except ValueError as error:
        told = f"{path} is no JSON ({error}): truncated, or merged half way. Put it back as it was (git restore)."
        raise ParameterError(told) from error


def is_parameters(cell: dict) -> bool:
    """Return whether this is the cell that papermill overrides."""
    return "parameters" in cell["metadata"].get("tags", [])


def source(cell: dict) -> str:
    """Return the text of a cell; a notebook stores it as one text or as lines."""
    return "".join(cell["source"])


def _literal(statement: ast.stmt, notebook: Path) -> tuple[str, object]:
    """Return the name and value of `name = literal` or `name: kind = literal`."""
    targets = statement.targets if isinstance(statement, ast.Assign) else [getattr(statement, "target", None)]
    if len(targets) == 1 and isinstance(targets[0], ast.Name):
        with suppress(ValueError):  # not a literal: the message below holds for it too
            return targets[0].id, ast.literal_eval(statement.value)
    told = f"the parameters cell of {notebook.name} holds `{ast.unparse(statement)}`; only lines such as"
    raise ParameterError(f"{told} `levels: list = [-10]` may stand there: papermill injects values after that cell.")


# ---- what it was given


def _kind(value) -> str:
    """Return which kind of scalar a value is, 'bool', 'int', 'float' or 'str', or what else it is."""
    for kind in (bool, int, float, str):  # bool first: it is an int to Python
        if isinstance(value, kind):
            return kind.__name__ if kind is not float or math.isfinite(value) else "float that is not finite"
    return type(value).__name__


def said(name: str, value) -> str:
    """Return "name = value" for a message, of a long value its beginning and its end."""
    text = repr(value)
    return f"{name} = {text if len(text) <= LONGEST else f'{text[: LONGEST // 2]} … {text[-20:]}'}"


def checked(values: dict, defaults: dict) -> dict:
    """Return every declared parameter in its canonical form: `values` where given, else the default.

    seed and type become lists (a sweep's seed a text, "0..99") where there are types, a scalar for a list parameter a
    list of one, an int for a float a float.
    """
    reject_unknown(values, defaults)
    values, runs = {**defaults, **values}, "type" in defaults
    return {name: _value(name, values[name], defaults[name], runs) for name in defaults}


def _value(name: str, value, default, runs: bool = True):
    """Return `value` in the kind of its `default`, runs: seed and type as lists; ParameterError for another kind."""
    if runs and name in ("seed", "type"):
        return _seeds(value, default) if name == "seed" else _types(value, default)
    if not isinstance(default, list):
        return _scalar(name, value, [default])
    values = many(value)
    if not values:
        raise ParameterError(f"{name} = []: the list needs at least one value.")
    return [_scalar(name, item, default, ", or a list of such") for item in values]


def _scalar(name: str, value, examples: list, more: str = ""):
    """Return `value` if it is of the kind of one of the `examples`; an int becomes a float where those go, -0.0 0.0.

    more: what is allowed besides one value, in words.
    """
    kind, kinds = _kind(value), {*map(_kind, examples)} & {"bool", "int", "float", "str"}
    if kind == "int" and "float" in kinds and value.bit_length() < 1024:  # what a float can be
        return float(value)
    if kind not in kinds:
        raw = f" With papermill, `-r {name} {value}` passes a text." if kinds == {"str"} else as_list(name, value)
        raw = f" With papermill, `-p {name} True` or `-p {name} False`." if kinds == {"bool"} else raw
        allowed = f"{name} is of kind {' or '.join(sorted(kinds))}, such as {examples[0]!r}{more or ', one value'}"
        raise ParameterError(f"{said(name, value)} is of kind {kind}; {allowed}.{raw}")
    return float(value) + 0.0 if kind == "float" else value


def as_list(name: str, value) -> str:
    """Return " With papermill, …" if a value is the text of a list, which -p does not read as one; else ""."""
    given = isinstance(value, str) and value.startswith("[")
    return f" With papermill, a list goes by -y: -y '{{{name}: {value}}}'." if given else ""


def many(value) -> list:
    """Return a list of values, whether given one or several."""
    return list(value) if isinstance(value, list | tuple) else [value]


def _types(value, default=None) -> list[str]:
    """Return the types as a list of distinct texts."""
    types = many(value)
    if not types or not all(isinstance(type, str) and type for type in types):
        raise ParameterError(f"{said('type', value)}: it is a text, or a list of them; the default is {default!r}.")
    reject_repeated("type", types)
    return types


def _seeds(value, default=0) -> list[int] | str:
    """Return the seeds as a list of distinct integers >= 0, or the text "first..last" of a sweep.

    A notebook whose default seed is a text like "0..99" is a sweep: it saves all its seeds in one record.
    """
    if isinstance(default, str):
        return _sweep(value, default)
    seeds = many(value)
    if not seeds or any(isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < SEEDS for seed in seeds):
        told = f"{said('seed', value)}: it is an integer >= 0 and below 2^64, or a list of them; the default is"
        raise ParameterError(f"{told} {default!r}.{as_list('seed', value)}")
    reject_repeated("seed", seeds)
    return seeds


def _sweep(value, default: str) -> str:
    """Return a sweep's seeds as "first..last"; one integer is a sweep of one."""
    match = re.fullmatch(r"(\d+)(?:\.\.(\d+))?", str(value), re.ASCII)
    first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
    if first > last or last >= SEEDS or last - first >= MOST_SEEDS:
        told = f"{said('seed', value)}: this notebook sweeps over consecutive seeds below 2^64, at most {MOST_SEEDS}"
        raise ParameterError(f"{told} of them, first..last such as {default!r}.")
    return f"{first}..{last}"


def counted_out(seeds: list[int] | str) -> list[int]:
    """Return the seeds one by one: "0..2" is [0, 1, 2]."""
    if isinstance(seeds, str):
        first, last = map(int, seeds.split(".."))
        return list(range(first, last + 1))
    return seeds


def reject_repeated(name: str, values: list) -> None:
    repeated = [value for index, value in enumerate(values) if value in values[:index]]
    if repeated:
        raise ParameterError(f"{said(name, values)}: {repeated[0]!r} stands there twice; every value goes once.")


def reject_unknown(names, defaults: dict) -> None:
    """Return nothing; ParameterError for the first name that is not declared."""
    for name in names:
        if name not in defaults:
            told = f"there is no parameter {name!r}.{hint(name, defaults)} The parameters are: {listed(defaults)}."
            raise ParameterError(told)


def reject_unallowed(parameters: dict, allowed: dict[str, Sequence | Callable]) -> None:
    """Return nothing; ParameterError for the first value that is no choice, or whose check objects."""
    reject_unknown(allowed, parameters)
    for name, choices in allowed.items():
        if callable(choices):
            message = choices(parameters[name])
            if message is not None:
                raise ParameterError(f"{said(name, parameters[name])}: {message}")
            continue
        choices = [choices] if isinstance(choices, str) else choices  # else "E" would be a choice of "EWN"
        for value in many(parameters[name]):
            if value not in choices:
                way = as_list(name, value) or hint(value, choices)
                raise ParameterError(f"{said(name, value)} is not a choice.{way} Allowed: {listed(choices)}.")


def given(namespace: dict, defaults: dict) -> list[str]:
    """Return the names that papermill injected into this kernel, and those that a person wrote among the parameters.

    papermill only warns of a name that the notebook does not declare, Python takes any. The last cell of each sort in
    IPython's history counts, by the comment it begins with or the annotation of a parameter: other variables of a
    person at work are never taken for one, nor what papermill injects on its own account (`--inject-paths`).
    """
    history = namespace.get("In", [])
    injected = [source for source in history if source.startswith("# Parameters\n")][-1:]
    written = [re.findall(r"^(\w+) *: *\w+ *=", source, re.M) for source in history]
    names = [re.findall(r"^(?!PAPERMILL_)(\w+) = ", source, re.M) for source in injected]
    return sum(names + [cell for cell in written if defaults.keys() & cell][-1:], [])


# ---- what that is called


def pairs(parameters: dict) -> list[Pair]:
    """Return the (seed, type) of every record that these parameters ask for: for each seed, each type."""
    return [(seed, type) for seed in many(parameters["seed"]) for type in many(parameters["type"])]


def record_name(type: str, seed: int | str, parameters: dict, defaults: dict) -> str:
    """Return what a record is called, such as "EWN-9192" or "EWN-9192;dataset=digits;levels=-10,-20".

    The suffix lists the scientific parameters that differ from `defaults`, sorted. Different runs have
    different names, and every name is a safe file name (see `name_of`).
    """
    values = scientific(checked(without(parameters, {"seed", "type"}), defaults))
    return name_of(type, seed, {name: value for name, value in values.items() if value != defaults[name]})


def scientific(parameters: dict) -> dict:
    """Return the parameters that can change a result, those beside seed and type."""
    return without(parameters, OPERATIONAL | {"seed", "type"})


def without(entries: dict, names: Set[str]) -> dict:
    """Return the entries but those of these names."""
    return {name: value for name, value in entries.items() if name not in names}


def name_of(type: str, seed: int | str, values: dict) -> str:
    """Return "type-seed;name=value;…"; texts are percent-encoded, so no separator of names or paths gets in.

    A name longer than 180 characters keeps its beginning and ends with "#" and a checksum of the whole.
    """
    for key, value, check in (("type", type, _types), ("seed", seed, _seeds)):
        if check(value, default=value) not in (value, [value]) or isinstance(value, list | tuple):
            raise ParameterError(f"{key} = {value!r}: a record has one type, and one seed or first..last.")
    suffix = "".join(f";{quote(name, safe='')}={text(name, values[name])}" for name in sorted(values))
    name = visible(f"{text('type', type)}-{seed}{suffix}")
    if len(name) > LONGEST:
        name = f"{name[: LONGEST - 20]}#{hashlib.sha256(name.encode()).hexdigest()[:16]}"
    return name


def visible(name: str) -> str:
    """Return a file name that no system hides or takes for a folder above."""
    return "%2E" + name[1:] if name.startswith(".") else name


def text(name: str, value) -> str:
    """Return a parameter's value as it stands in a name: floats by repr, lists joined by commas."""
    if isinstance(value, list | tuple):
        return ",".join(text(name, item) for item in value)
    kind = _kind(_scalar(name, value, [value]))
    return quote(value, safe="+") if kind == "str" else repr(float(value)) if kind == "float" else str(value)
