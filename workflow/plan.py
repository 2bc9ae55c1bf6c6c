"""What is to run: experiments.yaml, less the runs whose records exist.

Snakemake schedules, records decide. Everything here looks at records alone (their names and contents, never
the age of a file), so a fresh clone, a killed batch and a copied folder all plan the same.
"""

import difflib
import hashlib
import itertools
import math
import os
import re
from dataclasses import dataclass
from pathlib import Path

import yaml

from lib import disk, runs, store

ROOT = Path(__file__).resolve().parents[1]
ENDINGS = "png", "pdf"  # every figure is drawn as both
STACKABLE = "seed", "type"  # the parameters that a notebook takes several of at once
SHORT = 5  # minutes: below, a cluster takes longer to start a job than the job takes
REPORT = "report"  # the target that is no file of one name
KEYS = {"parameters", "grid", "stack", "threads", "minutes", "memory"}  # of one entry, explained in experiments.yaml


@dataclass(frozen=True)
class Execution:
    """One execution of a notebook: an experiment with these parameters, making one or more runs."""

    name: str  # also that of the executed notebook and of the stamp
    experiment: str
    parameters: dict
    threads: int | None  # None: all there are
    minutes: float
    memory: int  # MB
    gpu: int  # how many

    @property
    def stamp(self):
        """Return the name of the file that says how it went; the ending is that of a rule of workflow/Snakefile."""
        return f"{self.name}.{'short' if self.minutes < SHORT else 'run'}"

    @property
    def time_limit(self):
        """Return the minutes after which a cluster may end it: another machine may be slower, and parts differ."""
        return max(30, math.ceil(4 * self.minutes))

    def missing(self):
        """Return the (seed, type) pairs that have no record."""
        return runs.missing(self.experiment, self.parameters)


def expand(experiments, gpu=0):
    """Yield the executions that the entries of a profile ask for; ValueError where a key is unknown.

    gpu: how many GPUs an execution takes that does not say how many threads it needs.
    """
    for experiment, entries in experiments.items():
        entries = entries if isinstance(entries, list) else [entries]
        for number, entry in enumerate(entries, 1):
            if set(entry) - KEYS:
                raise ValueError(f"{experiment} has {sorted(set(entry) - KEYS)}; allowed: {sorted(KEYS)}")
            prefix = experiment if len(entries) == 1 else f"{experiment}.{number}"
            parts = list(_parts(entry))
            for label, parameters in parts:
                name = re.sub(r"[^\w.=-]+", "_", "-".join([prefix, *label]))
                minutes, threads = entry.get("minutes", 0) / len(parts), entry.get("threads")
                memory = 1000 * entry.get("memory", 2 if threads == 1 else 8)
                yield Execution(name, experiment, parameters, threads, minutes, memory, 0 if threads else gpu)


def _parts(entry):
    """Yield (label, parameters) of each execution of an entry: grid and what is not stacked, one by one."""
    together = entry.get("stack", STACKABLE)
    given = entry.get("parameters", {})
    single = {key: given[key] for key in STACKABLE if isinstance(given.get(key), list) and key not in together}
    varied = single | entry.get("grid", {})
    for values in itertools.product(*varied.values()):
        chosen = dict(zip(varied, values, strict=True))
        yield [f"{key}={value}" for key, value in chosen.items()], given | chosen


def executed(name):
    """Return where the notebook of an execution or a summary lies once it was executed."""
    return runs.folder() / "executed" / f"{name}.ipynb"


def nearest(target, known):
    """Return a sentence that names what is called most like `target`, or all notebooks where nothing is."""
    stems = [Path(path).stem for path in known]
    close = difflib.get_close_matches(Path(target).stem, stems, n=3)
    meant = [path for path, stem in zip(known, stems, strict=True) if stem in close]
    if meant:
        return f"Did you mean {' or '.join(meant[:3])}?"
    return f"It makes the figures of {', '.join(path for path in known if path.endswith('.ipynb'))}."


class Plan:
    """The executions and summaries of a profile, and which of them are due for `targets` (none: all)."""

    def __init__(self, profile, targets=()):
        everything = yaml.safe_load((ROOT / "workflow/experiments.yaml").read_text())
        if profile not in everything["profiles"]:
            raise ValueError(f"there is no profile {profile!r}, but there are {', '.join(everything['profiles'])}")
        chosen = everything["profiles"][profile]
        for kind, variable in (("runs", "PRUNING_RUNS"), ("figures", "PRUNING_FIGURES")):
            os.environ[variable] = os.path.expanduser(os.environ.get(variable) or chosen[kind])
        self.profile, self.machine = profile, chosen["machine"]
        self.report = disk.place(ROOT, "PRUNING_REPORT", chosen.get("report", "report")) / "index.html"
        self.reports = not targets or REPORT in targets
        self.executions = {one.name: one for one in expand(chosen["experiments"], chosen.get("gpu", 0))}
        self.summaries = {  # summary -> figure -> experiments; without the figures of other profiles
            summary: {figure: names for figure, names in figures.items() if set(names) & set(chosen["experiments"])}
            for summary, figures in everything["summaries"].items()
        }
        wanted = self._wanted(targets)
        self.due = [one for one in self.executions.values() if one.experiment in wanted and one.missing()]
        self.due_summaries = [
            name for name in self.summaries if name in wanted and (self.feeding(name) or self.outdated(name))
        ]

    def _wanted(self, targets):
        """Return the notebooks that `targets` need; a target is a figure's file, a notebook's, or the report."""
        needs = {f"notebooks/{one.experiment}.ipynb": {one.experiment} for one in self.executions.values()}
        for summary, figures in self.summaries.items():
            for figure, experiments in figures.items():
                needs |= {str(path): {summary, *experiments} for path in self._files(figure)}
                needs.setdefault(f"notebooks/{summary}.ipynb", set()).update([summary, *experiments])
        needs[REPORT] = set(self.summaries)
        targets = [os.path.relpath(ROOT / target, ROOT) for target in targets] or list(needs)
        for target in targets:
            if target not in needs:
                raise ValueError(f"{target} is not in profile {self.profile}. {nearest(target, needs)}")
        return set().union(*(needs[target] for target in targets))

    def _files(self, figure):
        return [Path(os.environ["PRUNING_FIGURES"]) / f"{figure}.{ending}" for ending in ENDINGS]

    def _records(self, experiments):
        return [path for name in sorted(experiments) for path in store.files(runs.folder() / name)]

    def feeding(self, summary):
        """Return the due executions whose records `summary` reads."""
        read = set().union(*self.summaries[summary].values())
        return [one for one in self.due if one.experiment in read]

    def outdated(self, summary):
        """Return whether `summary` would show something else than it last did, or something that it drew is lost."""
        last = self.seen(summary).read_text() if self.seen(summary).exists() else ""
        lost = self.reports and last and not executed(summary).exists()
        return bool(last != self.digest(summary) or self.undrawn(summary) or lost)

    def undrawn(self, summary):
        """Return the files of figures that are missing although there are records to draw them from."""
        figures = [figure for figure, names in self.summaries[summary].items() if self._records(names)]
        return [path for figure in figures for path in self._files(figure) if not (ROOT / path).exists()]

    def digest(self, summary):
        """Return a checksum of the names and contents of all records that `summary` reads; "" for none."""
        records = self._records(set().union(*self.summaries[summary].values()))
        parts = [f"{path.parent.name}/{path.name}".encode() + path.read_bytes() for path in records]
        return hashlib.sha256(b"\n".join(parts)).hexdigest() if parts else ""

    def seen(self, summary):
        """Return the file that keeps the digest of what `summary` last drew."""
        return runs.folder() / ".stamps" / f"{summary}.seen"

    def __str__(self):
        """Return what is due and about how long it takes, for a person about to wait for it."""
        minutes = sum(one.minutes for one in self.due)
        time = f"{max(minutes, 1):.0f} min" if minutes < 90 else f"{minutes / 60:.0f} h"
        runs_due = f"runs to make: {sum(len(one.missing()) for one in self.due)}"
        runs_due += f", in {len(self.due)} executions, about {time} on {self.machine}" if self.due else ""
        return f"profile {self.profile}: {runs_due}; summaries to draw: {len(self.due_summaries)}"
