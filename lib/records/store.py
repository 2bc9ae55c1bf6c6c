"""What a record is: its two files, what may stand in them, and many of them as one table.

A record is two files: `<name>.json` (parameters, scores, provenance) and `<name>.npz` (arrays). The json is
moved into place last and carries the checksum of the npz and a digest of its own text, so **a record exists if and
only if its json does**, and what disagrees is never believed. All files of a record, and of all records of a stack,
are there together or not at all (`disk.together`): who finds some of them moved makes the other moves.

Nothing here knows of notebooks: see `lib/records/runs.py`. pandas is imported where it is needed: slowly.
"""

from __future__ import annotations

import functools
import hashlib
import io
import json
import math
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote

import numpy as np

from lib.errors import ParameterError, RecordError, hint, instance, listed
from lib.records.disk import lock, new, put, recover, render, saved, together
from lib.records.parameters import many, name_of, scientific, text

if TYPE_CHECKING:
    import pandas as pd

FIELDS = "name experiment type seed parameters scores cost axes arrays npz provenance".split()
DIGEST = b',\n "digest": '  # what the last line of a json begins with, and the end of the one before


# ---- reading and writing


@dataclass(frozen=True)
class Record:
    """One run as it was saved; `parameters` are those beside type and seed, `arrays` are name -> axes."""

    path: Path
    name: str
    experiment: str
    type: str
    seed: int | str
    parameters: dict
    scores: dict
    cost: dict
    axes: dict[str, list]
    arrays: dict[str, list[str]]
    provenance: dict = field(repr=False)
    _npz: bytes = field(repr=False)

    def array(self, name: str) -> tuple[np.ndarray, tuple[str, ...]]:
        """Return an array and the names of its axes, whose coordinates are in `axes`."""
        if name not in self.arrays:
            raise RecordError(f"{self.path} has no array {name!r}; it has {listed(self.arrays)}.")
        return self._stored[name], tuple(self.arrays[name])

    @functools.cached_property
    def _stored(self):
        return np.load(io.BytesIO(self._npz), allow_pickle=False)


def read(path: Path) -> Record:
    """Return the record at `<name>.json`, its two files checked against each other.

    RecordError if there is no record, or if either file was truncated, altered or renamed.
    """
    path = Path(path)
    record = _load(path)
    if record is None:  # caught between the moves of a save, or of a save that was killed there
        with lock(path):
            recover(path.parent)
            record = _load(path)
    if record is None:
        raise _broken(path, f"{path.with_suffix('.npz').name} is missing, truncated or altered")
    return record


def _load(path: Path) -> Record | None:
    """Return the record, or None if the npz is not the one that the json describes."""
    document = _document(path)
    npz = path.with_suffix(".npz")
    data = npz.read_bytes() if npz.is_file() else b""
    if _sha256(data) != document.pop("npz"):
        return None
    return Record(path=path, _npz=data, **document)


def _document(path: Path) -> dict:
    """Return the fields of a record's json; RecordError unless it is whole and lies under its own name."""
    try:
        data = path.read_bytes()
        document = json.loads(data)
    except FileNotFoundError:
        raise RecordError(f"there is no record {path}.") from None
    except (OSError, ValueError) as error:
        raise _broken(path, f"it is no file, or one that is truncated or altered ({error})") from error
    fields, known = set(document) if isinstance(document, dict) else set(), {*FIELDS, "digest"}
    if fields != known:
        lacks, extra = sorted(known - fields), sorted(fields - known)
        raise _broken(path, f"missing fields: {listed(lacks)}; unknown fields: {listed(extra)}")
    data = data.replace(b"\r\n", b"\n")  # as git may have it on Windows
    if data != _sealed(data.rpartition(DIGEST)[0] + b"\n}\n"):
        raise _broken(path, "the file is altered: its content is not what its digest says")
    del document["digest"]
    if (document["name"], document["experiment"]) != (path.stem, path.parent.name):
        raise _broken(path, f"it is a renamed or duplicate copy of {document['name']!r} of {document['experiment']!r}")
    if not _named_by(document):
        raise _broken(path, "its name is not that of its type, seed and parameters")
    return document


def _sealed(json_text: bytes) -> bytes:
    """Return the json of a record, as `render` made it, with a digest of all its other lines as its last."""
    lines = json_text.removesuffix(b"\n}\n")
    return lines + DIGEST + f'"{_sha256(lines)}"\n}}\n'.encode()


def _named_by(document: dict) -> bool:
    """Return whether a record's name says its type, its seed, and the values of the parameters that it lists."""
    name, cut, _ = document["name"].partition("#")  # of a long name only the beginning is there to be compared
    listed_ones = [unquote(part.partition("=")[0]) for part in name.split(";")[1:] if "=" in part]
    try:
        values = {key: document["parameters"][key] for key in listed_ones}
        expected = name_of(document["type"], document["seed"], values).partition("#")[0]
    except (KeyError, TypeError, ParameterError):
        return False
    return name.startswith(expected) or expected.startswith(name) if cut else name == expected


def _broken(path: Path, reason: str) -> RecordError:
    restore = "Restore the .json and the .npz together (git restore, where git keeps them)"
    return RecordError(f"the record {path} cannot be read: {reason}. {restore}, or delete both and run it again.")


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def write(records: list[tuple[Path, dict, bytes]]) -> None:
    """Return nothing, once all records `(path, document, npz)` of one folder are on disk; killed before: none of them.

    What they replace stands until then.
    """
    records = sorted(records, key=lambda record: record[0])  # everybody locks in one order
    files = [path.with_suffix(ending) for path, _, _ in records for ending in (".npz", ".json")]
    with ExitStack() as held:
        for path, _, _ in records:
            held.enter_context(lock(path))
        recover(files[0].parent)  # or what is left to be moved there would be overwritten here
        with together(files, files[0].parent):
            for path, document, npz in records:
                put(new(path.with_suffix(".npz")), npz)
                whole = {**document, "name": path.stem, "npz": _sha256(npz)}
                put(new(path), _sealed(render({field: whole[field] for field in FIELDS})))
    saved()


def files(place: Path) -> list[Path]:
    """Return the jsons of the records in a folder, sorted; folders and hidden files, a Mac's `._x.json`, are none."""
    return sorted(path for path in place.glob("[!.]*.json") if path.is_file())


# ---- what may be put into a record


def plain(what: str, entries: dict | None) -> dict:
    """Return scores or costs as numbers, texts and None; `what` is how errors call them.

    Numbers are finite: json has no nan, and None says "missing" without pretending to be a number. Of a score nan says
    that the run diverged: it is missing, and a score `diverged`, True, says why.
    """
    result = {}
    for name, value in (entries or {}).items():
        value = value.item() if getattr(value, "ndim", None) == 0 else value
        if not (value is None or isinstance(value, int | float | str)):
            raise RecordError(f"{what} {name!r} is {value!r}: it takes one number, a text, or None for missing.")
        if what == "score" and isinstance(value, float) and math.isnan(value):
            value = None
            result["diverged"] = True
        if isinstance(value, float) and not math.isfinite(value):
            raise RecordError(f"{what} {name!r} is {value}: it takes a finite number, or None for missing.")
        result[str(name)] = value
    return result


def coordinates(axes: dict | None) -> dict[str, list]:
    """Return the axes with their coordinates as lists of finite numbers or of texts, each coordinate once."""
    result = {}
    for axis, values in (axes or {}).items():
        values = np.asarray(values).tolist()
        texts = [isinstance(value, str) for value in values]
        if not (all(texts) or (not any(texts) and np.all(np.isfinite(np.asarray(values, dtype=float))))):
            raise RecordError(f"axis {axis!r} is {values!r}: its coordinates are finite numbers, or all texts.")
        if len(set(values)) != len(values):
            raise RecordError(f"axis {axis!r} is {values!r}: every coordinate may stand there only once.")
        result[str(axis)] = values
    return result


def of_run(found: dict, run: int, axes: dict, coordinates: dict) -> dict:
    """Return the arrays and axes of one run, as keywords of `Run.save`, of `found`, name -> (R, ...).

    axes: name -> what the axes behind that of the runs are called; coordinates: of axes, the others count from 0.
    """
    arrays = {name: (values[run], axes[name]) for name, values in found.items()}
    sizes = {axis: size for values, own in arrays.values() for axis, size in zip(own, values.shape, strict=True)}
    return {"arrays": arrays, "axes": {axis: list(coordinates.get(axis, range(n))) for axis, n in sizes.items()}}


def pack(arrays: dict | None, axes: dict[str, list]) -> tuple[bytes, dict[str, list[str]]]:
    """Return the npz and the axis names of each array; floats become float32, integers and bools stay.

    arrays: name -> (array, ("axis", ...)). RecordError for other shapes, and an axis without use.
    """
    stored, names = {}, {}
    for name, (value, array_axes) in (arrays or {}).items():
        # np.savez takes its own arguments by name from the same call, so an array cannot be called that
        if not str(name).isidentifier() or name in ("file", "allow_pickle"):
            raise RecordError(f"an array cannot be called {name!r}: take a plain name such as 'accuracy'.")
        stored[name], names[name] = _number_array(name, value), list(array_axes)
        unknown = [axis for axis in array_axes if axis not in axes]
        if unknown:
            raise RecordError(f"array {name!r} has an axis {unknown[0]!r}; the axes are {listed(axes)}.")
        shape = tuple(len(axes[axis]) for axis in array_axes)
        if len(set(array_axes)) != len(names[name]) or stored[name].shape != shape:
            raise RecordError(f"array {name!r} has shape {stored[name].shape}; axes {names[name]} make it {shape}.")
    unused = sorted(set(axes) - {axis for array_axes in names.values() for axis in array_axes})
    if unused:
        raise RecordError(f"no array has the axes {listed(unused)}: misspelt, or not needed.")
    buffer = io.BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, **stored)
    return buffer.getvalue(), names


def _number_array(name: str, value) -> np.ndarray:
    """Return a numpy array as it will be stored; tensors are welcome, texts, objects and overflow are not."""
    array = np.asarray(value.detach().cpu() if hasattr(value, "detach") else value)
    if array.dtype.kind in "iub":
        return array
    if array.dtype.kind != "f":
        raise RecordError(f"array {name!r} is of kind {array.dtype}: floats, integers and bools can be stored.")
    with np.errstate(over="ignore"):
        short = array.astype(np.float32)
    if np.any(np.isinf(short) & np.isfinite(array)):
        raise RecordError(f"array {name!r} reaches {np.nanmax(np.abs(array))}, beyond float32: store its logarithm.")
    return short


# ---- many records as one table


def select(records: list[Record], where: dict) -> list[Record]:
    """Return the records whose type, seed or parameter has this value, or one of a list of values."""
    known = dict.fromkeys(key for record in records for key in _identity(record))
    for key in where:
        if records and key not in known:
            raise RecordError(f"no record has {key!r}.{hint(key, known)} They have: {listed(known)}.")
    each = {key: (wanted, *many(wanted)) for key, wanted in where.items()}
    return [record for record in records if all(_identity(record).get(key) in each[key] for key in where)]


def assert_values(records: list[Record], where: dict) -> None:
    """Return nothing; RecordError for the first filter of `where` whose value, or list of them, no record has."""
    for key, wanted in where.items():
        there = [_identity(record).get(key) for record in records]
        if there and not any(value in (wanted, *many(wanted)) for value in there):
            known = sorted({repr(value) for value in there})
            told = f"no record has {key} = {wanted!r}.{hint(wanted, [v for v in there if isinstance(v, str)])}"
            raise RecordError(f"{told} There are: {listed(known)}.")


def _identity(record: Record) -> dict:
    return {"type": record.type, "seed": record.seed, **record.parameters}


def _columns(record: Record) -> dict:
    """Return what identifies a record, fit for a table: a list as in a name, "-10,-20", to be compared."""
    identity = _identity(record)
    return {key: text(key, value) if isinstance(value, list) else value for key, value in identity.items()}


def table(records: list[Record]) -> pd.DataFrame:
    """Return one row per record: type, seed, every parameter, every score, every cost entry."""
    import pandas as pd

    rows = [{**_columns(record), **record.scores, **record.cost} for record in records]
    return pd.DataFrame(rows) if rows else pd.DataFrame(columns=["type", "seed"])


def curves(records: list[Record], name: str) -> pd.DataFrame:
    """Return the array `name` of every record, one row per element; RecordError if one has no such array.

    Columns: type, seed, the scientific parameters that vary, the axes' coordinates, `name`. An axis called
    like one of the others takes its place (seed in a sweep).
    """
    import pandas as pd

    instance("name is", name, str, "the name of one array; tables.joined takes a list of them")
    lacking = [record.name for record in records if name not in record.arrays]
    if lacking:
        known = dict.fromkeys(key for record in records for key in record.arrays)
        meant = "" if name in known else hint(name, known)
        told = f"{len(lacking)} of {len(records)} records have no array {name!r}, such as {lacking[0]}.{meant}"
        raise RecordError(f"{told} There are: {listed(known)}. Leave runs out by a filter such as type='EWN'.")
    identities, frames = [_columns(record) for record in records], []
    settings = scientific(pd.DataFrame(identities))  # that some lack a parameter, which came or went, is no value of it
    varying = ["type", "seed", *(key for key, found in settings.items() if found.nunique() > 1)]
    for record, identity in zip(records, identities, strict=True):
        values, axes = record.array(name)
        indices = np.indices(values.shape).reshape(values.ndim, values.size)
        along = {axis: np.asarray(record.axes[axis])[index] for axis, index in zip(axes, indices, strict=True)}
        columns = {key: identity.get(key) for key in varying} | along | {name: values.ravel()}
        frames.append(pd.DataFrame(columns, index=range(values.size)))
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=["type", "seed", name])
