"""What a run is called, whether it is done, and how its results are saved and read back.

    run = open_run("mnist_prune", globals(), type=["EWN", "SWN", "no-WN"])   # in the notebook, cell 2
    for seed, type in run.todo: ...                                          # what no record holds yet
    run.save(type=type, seed=seed, scores={"accuracy": 0.98})                # one record per (seed, type)
    table("mnist_prune"), curves("mnist_prune", "accuracy")                  # in the summary

A run is identified by its notebook, type, seed, and the scientific parameters that differ from the notebook's
defaults. How the files survive being killed is in `lib/records/store.py`. torch is never imported here: the
workflow asks `missing` for thousands of runs before it starts anything.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from lib.errors import ParameterError, RecordError, hint, listed
from lib.records import parameters as naming
from lib.records import provenance
from lib.records import store as storage
from lib.records.disk import acquire, assert_writable, place, recover, release
from lib.records.parameters import Pair, pairs, record_name, scientific, without
from lib.records.ranges import reject_outside
from lib.records.store import Record, read

if TYPE_CHECKING:
    import pandas as pd

ROOT = Path(__file__).resolve().parents[2]


def folder() -> Path:
    """Return where records live: $PRUNING_RUNS (below the repository if relative), or `runs/`."""
    return place(ROOT, "PRUNING_RUNS", "runs")


def declared(experiment: str) -> dict:
    """Return the parameters of `notebooks/<experiment>.ipynb` as name -> default, in order: see `parameters`."""
    return naming.declared(_notebook(experiment))


def _notebook(experiment: str) -> Path:
    return ROOT / "notebooks" / f"{experiment}.ipynb"


def trained(recipe: dict) -> Path:
    """Return the folder of one trained network: `trained/<name>/<type>-<seed>;key=value…`.

    The recipe is everything that training depends on and nothing else: keys name (such as "mnist-mlp1024"),
    type, seed, and all others by their own names. A descent keeps one file per level there.
    """
    lacks = [key for key in ("name", "type", "seed") if key not in recipe]
    if lacks:
        raise ParameterError(f"recipe = {recipe!r} lacks {listed(lacks)}; it needs name, type and seed.")
    name = naming.name_of(recipe["type"], recipe["seed"], without(recipe, {"name", "type", "seed"}))
    return folder() / "trained" / naming.visible(naming.text("name", recipe["name"])) / name


# ---- opening runs


def missing(experiment: str, parameters: dict) -> list[Pair]:
    """Return the (seed, type) pairs that have no finished record; `parameters` are the overrides alone.

    A record that cannot be read, or that was made under other defaults, counts as missing: `open_run` says why.
    """
    defaults = declared(experiment)
    values = naming.checked(parameters, defaults)
    recover(folder() / experiment)
    if values.get("force"):
        return pairs(values)

    def finished(pair: Pair) -> bool:
        path = _path(experiment, pair, values, defaults)
        try:
            return path.exists() and not _changed_defaults(read(path), values)
        except RecordError:
            return False

    return [pair for pair in pairs(values) if not finished(pair)]


def _path(experiment: str, pair: Pair, parameters: dict, defaults: dict) -> Path:
    seed, type = pair
    return folder() / experiment / f"{record_name(type, seed, parameters, defaults)}.json"


def _changed_defaults(record: Record, parameters: dict) -> list[str]:
    """Return "name was …, is …" for every scientific parameter whose value is not the record's.

    Their names being equal, a default changed in between. What only one of them knows, `edited` reports.
    """
    return [
        f"{name} was {record.parameters[name]!r}, is {value!r}"
        for name, value in scientific(parameters).items()
        if name in record.parameters and record.parameters[name] != value
    ]


def open_run(experiment: str, namespace: dict, *together: Callable, **allowed: Sequence | Callable) -> Run:
    """Return the run that a notebook's parameters describe; call it with the notebook's `globals()`.

    allowed: parameter -> the permitted values (each element of a list must be one), or a function of the
    value (seed, type and list parameters as lists) that returns None or what is wrong with it; numbers have ranges
    besides (`lib/records/ranges.py`). together: such functions of all parameters at once.

    Prints which records are already done, waits for those that another process is computing, and leaves in
    `todo` the (seed, type) pairs that remain: all of them with force=True. Before any training comes the
    ParameterError of an unknown or invalid parameter, and the RecordError of a record made under other
    defaults or of a folder that cannot be written.
    """
    defaults = declared(experiment)
    parameters = _parameters(experiment, namespace, defaults, allowed)
    for check in together:
        if message := check(parameters):
            raise ParameterError(message)
    return Run(experiment, parameters, defaults)


def settle(notebook: str, namespace: dict, **allowed: Sequence | Callable) -> None:
    """Return nothing; check the parameters of a notebook that makes no record, a summary or an explorer.

    As `open_run` does, with the notebook's `globals()`, in which they get their canonical form: a list for a list.
    """
    namespace |= _parameters(notebook, namespace, naming.in_cell(_notebook(notebook)), allowed)


def _parameters(notebook: str, namespace: dict, defaults: dict, allowed: dict) -> dict:
    """Return the parameters in `namespace` in canonical form; ParameterError for an unknown or invalid one."""
    naming.reject_unknown(naming.given(namespace, defaults), defaults)
    absent = [name for name in defaults if name not in namespace]
    if absent:
        raise ParameterError(f"no value for {listed(absent)}: run the parameters cell, which has a line for each.")
    parameters = naming.checked({name: namespace[name] for name in defaults}, defaults)
    reject_outside(notebook, parameters)
    naming.reject_unallowed(parameters, allowed)
    return parameters


# experiment -> the records that this process has locked to compute. Kept beside the runs because a person
# runs a cell again: the new Run then finds the locks of the old one.
_claims: dict[str, set[Path]] = {}


def _hold(experiment: str, wanted: set[Path]) -> None:
    """Return nothing, once this process holds the locks of `wanted` and of no other of its records."""
    held = _claims.setdefault(experiment, set())
    # Everybody locks in one order, so no two processes wait for each other: a new one means all again.
    for path in held - wanted if wanted <= held else set(held):
        _drop(experiment, path)
    for path in sorted(wanted - held):
        acquire(path)
        held.add(path)


def _drop(experiment: str, path: Path) -> None:
    """Return nothing; let others compute the record, if this process held it."""
    if path in _claims.get(experiment, ()):
        _claims[experiment].remove(path)
        release(path)


class Run:
    """One execution of an experiment notebook: its parameters, what remains to be computed, where results go.

    experiment, parameters (all, canonical), types and seeds (lists; a sweep's seeds counted out), todo and
    done ((seed, type) pairs as they were when the run was opened).
    """

    def __init__(self, experiment: str, parameters: dict, defaults: dict):
        self.experiment = experiment
        self.parameters = parameters
        self.types: list[str] = parameters["type"]
        self.seeds: list[int] = naming.counted_out(parameters["seed"])
        self._defaults = defaults
        self._waiting: dict[Pair, tuple] = {}  # what `save` was given of stacks of which more is to come
        self._started, self._since = _now(), time.monotonic()
        self._origin = provenance.origin(ROOT)  # as it is now: files may be edited while the run computes
        self._code = provenance.code(_notebook(experiment))
        self._claim()

    def path(self, type: str, seed: int | str) -> Path:
        """Return the json of one record of this run, there or not."""
        return _path(self.experiment, (seed, type), self.parameters, self._defaults)

    def records(self) -> list[Record]:
        """Return the finished records of this run, read back from disk, in the order of its pairs."""
        if self._waiting:
            names = listed(path.stem for path, _, _ in self._waiting.values())
            raise RecordError(f"{names} wait for the others that they say they were trained with: save those too.")
        paths = [self.path(type, seed) for seed, type in pairs(self.parameters)]
        return [read(path) for path in paths if path.exists()]

    def save(
        self, *, type, seed, scores, arrays=None, axes=None, cost=None, data=None, seconds=None, device=None,
        stacked_with=None,
    ) -> Path:  # fmt: skip
        """Return the path of the record of one (seed, type) of `todo`, saved whole or not at all.

        scores, cost: name -> a finite number, a text, or None for missing; nan of a score says that the run diverged,
        and the record says so: the score is missing, and `diverged` is True. arrays: name -> (array, ("axis", ...)),
        nan allowed. axes: axis -> its coordinates. data: checksum of the data. seconds: what training took; without it,
        since the run was opened or what was saved before. stacked_with: what trained in the same stack, "type-seed" or,
        of a sweep, "type"; the record waits until those of them that are to be computed are there too, and all are
        saved together: killed in between, the rest would be trained again with fewer neighbours, and round otherwise. A
        sweep saves with seed="first..last" (a pair of `todo`), and its arrays have an axis called seed.
        """
        if (seed, type) not in self.todo:
            told = f"({seed!r}, {type!r}) is not to be computed; loop over run.todo: {self.todo}."
            raise RecordError(f"{told} It is done, or was made before open_run was run again: run all cells below it.")
        seconds = time.monotonic() - self._since if seconds is None else seconds
        device = device or self.parameters.get("device")
        code = {**provenance.code(_notebook(self.experiment)), **self._code}  # with what was imported since
        how = {"code": code, "data": data, "seconds": seconds, "device": device and str(device)}
        how["stacked_with"] = stacked_with
        content, npz = self._content(scores, cost, arrays, axes)
        document = {
            "experiment": self.experiment, "type": type, "seed": seed,
            "parameters": without(self.parameters, {"seed", "type"}), **content,
            "provenance": {"started": self._started, "finished": _now(), **self._origin, **how},
        }  # fmt: skip
        path = self.path(type, seed)
        self._waiting[seed, type] = path, document, npz
        stack = {pair for pair in self.todo if {f"{pair[1]}-{pair[0]}", pair[1]} & set(stacked_with or ())}
        stack |= {(seed, type)}
        if stack <= self._waiting.keys():
            storage.write([self._waiting[pair] for pair in stack])
            self._since = time.monotonic()
            for pair in stack:
                _drop(self.experiment, _work(self._waiting.pop(pair)[0]))
        return path

    def _content(self, scores, cost, arrays, axes) -> tuple[dict, bytes]:
        """Return the checked fields of a record and its npz; RecordError if two would be one table column."""
        scores, cost = storage.plain("score", scores), storage.plain("cost", cost)
        axes = storage.coordinates(axes)
        npz, array_axes = storage.pack(arrays, axes)
        columns = [*self.parameters, *scores, *cost]
        twice = [name for name in columns if columns.count(name) > 1]
        twice += [name for name in array_axes if name in self.parameters or name in axes]
        if twice:
            raise RecordError(f"{twice[0]!r} names two things in this record: call one of them otherwise.")
        return {"scores": scores, "cost": cost, "axes": axes, "arrays": array_axes}, npz

    def _claim(self) -> None:
        """Return nothing; fill `done` and `todo`, and lock what is to be computed."""
        for _ in range(2):  # again: another process may have made some while this one waited
            found = self._finished()
            self.done = [(record.seed, record.type) for record in found]
            self.todo = [pair for pair in pairs(self.parameters) if pair not in self.done]
            if self.todo:
                assert_writable(folder() / self.experiment)
            _hold(self.experiment, {_work(self.path(type, seed)) for seed, type in self.todo})
        if found:
            self._report(found)

    def _finished(self) -> list[Record]:
        """Return the records that stand; none with force. RecordError if a default changed since."""
        recover(folder() / self.experiment)  # forced too: what was left there may not come over a new record later
        found = [] if self.parameters.get("force") else self.records()
        for record in found:
            if changed := _changed_defaults(record, self.parameters):
                said = f"{record.path.name} was made under other defaults: {'; '.join(changed)}."
                way_out = _again(record.path in provenance.kept(ROOT, record.path.parent))
                raise RecordError(f"{said} Put notebooks/defaults.json back as it was, or: {way_out}.")
        return found

    def _report(self, found: list[Record]) -> None:
        """Return nothing; print one line per finished record, and what was edited since it was made."""
        kept = provenance.kept(ROOT, folder() / self.experiment)
        texts = provenance.texts(_notebook(self.experiment))
        since = provenance.edited_since_commit(ROOT, _notebook(self.experiment), texts) if kept else []
        for record in found:
            edited = since if record.path in kept else provenance.edited(record.provenance["code"], texts)
            made = record.provenance.get("commit") if record.path in kept else None
            note = f" (of commit {made[:7]})" if made else ""
            note = f" (made by an earlier {listed(edited)}; {_again(record.path in kept)})" if edited else note
            print(f"already done: {record.name}{note}")


def _work(path: Path) -> Path:
    """Return what is locked while a record is computed, hours perhaps; writing it has a lock of its own."""
    return path.with_suffix("")


def _again(kept: bool) -> str:
    """Return how a run is made again; a record that git keeps is not to be replaced by the way."""
    return "PRUNING_RUNS=FOLDER makes it elsewhere" if kept else "force = True (-p force True) makes it again"


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


# ---- reading back


def records(experiment: str, **where) -> list[Record]:
    """Return the finished records of an experiment by type and seed; RecordError if any of them is broken.

    `where` keeps those whose type, seed or parameter has this value, or one of a list of values. A parameter that came
    after a record was made has its default there, as the record's name says.
    """
    place = folder() / str(experiment)
    if not experiment or not place.exists():
        naming.code_cells(_notebook(experiment))  # not run yet is no error; a misspelt name is
    recover(place)
    known = scientific(naming.frozen(_notebook(experiment)))
    found = [read(path) for path in storage.files(place)]
    found = [replace(record, parameters=known | record.parameters) for record in found]
    found.sort(key=lambda record: (record.type, int(str(record.seed).split("..")[0]), record.name))
    return storage.select(found, where)


def table(experiment: str, **where) -> pd.DataFrame:
    """Return one row per run: type, seed, every parameter, every score, every cost entry.

    A score that only some records have is missing (nan) in the others. Without records the table is empty.
    where: see `records`; RecordError for a value that no record has.
    """
    return storage.table(filtered(experiment, where))


def curves(experiment: str, name: str, **where) -> pd.DataFrame:
    """Return the array `name` of every run, one row per element: see `curves` in `lib/records/store.py`.

    RecordError if a run has no such array; leave those runs out by `where` (see `table`).
    """
    return storage.curves(filtered(experiment, where), name)


def filtered(experiment: str, where: dict) -> list[Record]:
    """Return what `records` does; RecordError for a value that no record has, which says what values there are."""
    found = records(experiment, **where)
    if not found:
        storage.assert_values(records(experiment), where)
    return found


def published(study: str) -> pd.DataFrame:
    """Return what a study printed, `runs/published/<study>.csv`: facts, whatever $PRUNING_RUNS is."""
    import pandas as pd

    path = ROOT / "runs" / "published" / f"{study}.csv"
    if not path.exists():
        known = sorted(path.stem for path in path.parent.glob("*.csv"))
        raise RecordError(f"there is no {path}.{hint(study, known)} There are: {listed(known)}.")
    return pd.read_csv(path)
