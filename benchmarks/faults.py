"""What is lost when processes are killed, disks are full, bits flip and several processes meet: a table of faults.

Each is tried on the training notebooks at the smallest size, in a folder of its own. After each, whatever is there must
be whole and as an uninterrupted run left it, no lock held by the dead, and the next run must end with the expected
records and nothing beside them: else the try is lost. A fault that is not told, with the file and the way out, where
the process lives to tell it, is silent. A difference is the largest of any number from the uninterrupted run.
Written to `results/faults.md`, unless KINDs are named. Run: python benchmarks/faults.py [--small] [KIND ...]
"""

import argparse
import gzip
import os
import random
import re
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))
# First, for it says how many threads there are to be.
from trials import COUNTS, Child, Row, die, flip_bit, full, kind_of, mount, page, processes_of  # noqa: E402, I001
from smallest import NOTEBOOKS, PASSING, Batch, Notebook, prepare  # noqa: E402

from lib import disk, plain, sets, store  # noqa: E402

READERS = {  # notebook -> kinds of files that it reads, records apart, when it runs again
    "mnist_prune": ["json", "npz", "level", "checkpoint of a descent"],
    "dpp_prune": ["state of a training"],
    "dpp_teacher_student": ["trained network"],
}
WAY_OUT = re.compile(r"[Dd]elete|Restore|force True|Make room|Put ")
SHARED = Path("/dev/shm")  # in memory, so that a slow disk does not hold up what is not about disks


class Campaign:
    """All that is tried, on some notebooks: `often` each, at `kinds` kinds of steps, with `bits` flipped in a file."""

    def __init__(self, folder, notebooks, often, kinds, bits):
        self.folder, self.often, self.kinds, self.bits = Path(folder), often, kinds, bits
        self.rng, self.rows, self.count = random.Random(0), {}, 0
        self.notebooks = [Notebook(name, NOTEBOOKS[name], self.fresh()) for name in notebooks]

    def fresh(self):
        """Return a new folder."""
        self.count += 1
        return self.folder / str(self.count)

    def row(self, what):
        return self.rows.setdefault(what, Row(what))

    def settle(self, notebook, folder, row, lost=(), silent=()):
        """Count a try after the next run has come to its end; the folder goes."""
        wrong, apart = notebook.finish(folder)
        row.add([*lost, *wrong], silent, apart, notebook.name)
        shutil.rmtree(folder)

    # ---- kills

    def kills(self):
        """Kill at random moments, the same work again until one run is let through; then while records are replaced."""
        for notebook in self.notebooks:
            self.at_random(notebook, signal.SIGKILL, self.row("killed at a random moment"), self.fresh(), self.often)
            row, fewer = self.row("interrupted at a random moment"), max(1, self.often // 2)
            self.at_random(notebook, signal.SIGINT, row, self.fresh(), fewer)
            folder = shutil.copytree(notebook.folder, self.fresh())
            row = self.row("killed while its records are replaced")
            self.at_random(notebook, signal.SIGKILL, row, folder, fewer, force=True)

    def at_random(self, notebook, sent, row, folder, often, **values):
        begun, there = row.tried, len(notebook.expected) if values else 0
        while row.tried < begun + often:
            child = Child(lambda folder=folder: notebook.run(folder, **values))
            time.sleep(self.rng.uniform(0, notebook.seconds))
            answer = child.end(sent)
            wrong, apart = notebook.look(folder)
            if len(store.files(folder / notebook.name)) < there:
                wrong += ["a record is gone that was there"]
            if "error" in answer and "KeyboardInterrupt" not in answer["error"]:
                wrong += [f"another error: {answer}"]
            if "done" in answer or self.rng.random() < 0.3 or wrong or row.tried == begun + often - 1:
                of_all, furthest = notebook.finish(folder, **values)
                wrong, apart = wrong + of_all, max(apart, furthest)
                shutil.rmtree(folder)
                folder = shutil.copytree(notebook.folder, self.fresh()) if values else self.fresh()
            if "done" not in answer or wrong or apart:
                row.add(wrong, (), apart, notebook.name)

    def steps(self):
        """Kill at each kind of step by which each notebook changes the disk, writes half done."""
        for notebook, folder, answer in self.at_steps(die):
            wrong = notebook.look(folder)[0] + ([f"not killed: {answer}"] if answer else [])
            self.settle(notebook, folder, self.row("killed at each kind of step of writing"), wrong)

    def at_steps(self, fault):
        """Yield (notebook, folder, answer) of runs that met a fault at their steps, those of `each_step`."""
        for notebook, at in self.each_step():
            folder = self.fresh()
            answer = Child(notebook.run, folder, at, fault).end()
            if not never_met(answer, at):
                yield notebook, folder, answer

    def each_step(self):
        """Yield every notebook with one of the steps of each kind, or of `kinds` kinds."""
        for notebook in self.notebooks:
            labels = list(dict.fromkeys(notebook.steps))
            for label in self.rng.sample(labels, min(self.kinds, len(labels))):
                yield notebook, self.rng.choice([k for k, step in enumerate(notebook.steps) if step == label])

    # ---- full disks

    def disks(self):
        """Let the disk be full from each kind of step on; then a real one, of every size, where this may be mounted."""
        for notebook, folder, answer in self.at_steps(full):
            wrong, row = notebook.look(folder)[0], self.row("disk full at each kind of step of writing")
            self.settle(notebook, folder, row, wrong, untold(answer, folder) + half_written(folder))
        for notebook in self.notebooks:
            for _ in range(max(1, self.often // 2)):
                self.small_disk(notebook, self.row("disk of limited size, in memory"))

    def small_disk(self, notebook, row):
        folder, needed = self.fresh(), sum(path.stat().st_size for path in notebook.folder.rglob("*"))
        folder.mkdir()
        size = self.rng.choice([0, 2**20]) + self.rng.randrange(needed)  # a save wants 1 MiB to be free
        if mount(folder, f"size={4096 + size}"):
            try:
                answer = Child(notebook.run, folder).end()
                wrong, _ = notebook.look(folder)
                silent = [] if "done" in answer else untold(answer, folder) + half_written(folder)
                mount(folder, "remount,size=1g")
                found, apart = notebook.finish(folder)
            finally:
                subprocess.run(["umount", folder], check=True)
            row.add(wrong + found, silent, apart, notebook.name)

    # ---- flipped bits

    def flips(self):
        """Flip single bits in every kind of file; the notebook that reads it must refuse, and so must `load`."""
        for notebook in self.notebooks:
            for kind in READERS.get(notebook.name, ()):
                folder = self.fresh()
                if kind in PASSING:
                    last = max(k for k, step in enumerate(notebook.steps) if step == f"write {kind}")
                    Child(notebook.run, folder, last, die).end()
                else:
                    shutil.copytree(notebook.folder, folder)
                if kind not in ("json", "npz"):
                    shutil.rmtree(folder / notebook.name, ignore_errors=True)
                self.flip(kind, folder, notebook.run)

    def flip(self, kind, source, read, paths=None):
        """Flip one bit of a file of this kind after the other, each in a copy of the folder."""
        row = self.row(f"flipped bit: {kind}")
        paths = paths or [p for p in sorted(source.rglob("*")) if kind_of(p) == kind and p.suffix != ".new"]
        for _ in range(self.bits):
            folder = shutil.copytree(source, self.fresh(), symlinks=True)
            path = folder / self.rng.choice(paths).relative_to(source)
            before = records_of(folder)
            flip_bit(path, self.rng)
            answer = Child(read, folder).end()
            lost = ["a record was made of it"] if records_of(folder) != before else []
            row.add(lost, untold(answer, path.name.removesuffix(path.suffix)), of=path.name)
            shutil.rmtree(folder)

    def others(self):
        """Flip single bits in what no notebook reads here: plain modules, and the real data where they are."""
        folder = self.fresh()
        plain.save(plain.nn.Sequential(plain.nn.Linear(5, 4), plain.nn.ReLU(), plain.nn.Linear(4, 3)), folder)
        self.flip("network as plain modules", folder, load_plain, [folder / plain.FILE])
        places = (("mnist", "MNIST/raw/*.gz"), ("mnist", "MNIST/raw/*-ubyte"), ("cifar10", "cifar-10*/*"))
        for name, pattern in places if self.bits > 1 else ():  # reading them takes seconds
            source = self.fresh()
            for path in sorted(sets._folder().glob(pattern.replace("-ubyte", ".gz"))):
                place = source / path.relative_to(sets._folder())
                place.parent.mkdir(parents=True, exist_ok=True)
                if pattern.endswith("-ubyte"):
                    place.with_suffix("").write_bytes(gzip.decompress(path.read_bytes()))
                elif path.suffix != ".html":
                    place.symlink_to(path)
            if source.exists():
                paths = sorted(path for path in source.rglob("*") if path.is_file())
                self.flip(f"data, {pattern}", source, lambda folder, name=name: load_data(folder, name), paths)

    # ---- several processes

    def processes(self):
        """Start one run in two to four processes at once, and again while one of them is killed."""
        for notebook in self.notebooks:
            for count in (2, 3, 4)[: self.often]:
                self.together(notebook, count, self.row("2 to 4 processes on one run"))
                self.together(notebook, count, self.row("2 to 4 processes on one run, one of them killed"), True)

    def together(self, notebook, count, row, kill=False):
        folder = self.fresh()
        children = [Child(notebook.run, folder) for _ in range(count)]
        if kill:
            time.sleep(self.rng.uniform(0, notebook.seconds))
            children.pop(self.rng.randrange(count)).end(signal.SIGKILL)
        answers = [child.end() for child in children]
        wrong = [str(answer) for answer in answers if "done" not in answer]
        made = sorted(str(pair) for answer in answers if "done" in answer for pair in answer["done"]["todo"])
        if not kill and made != sorted(map(str, notebook.pairs)):
            wrong += [f"computed were {made}"]
        self.settle(notebook, folder, row, wrong)

    # ---- signals

    def signals(self):
        """End `run_all.sh --quick` of a toy as a scheduler, a person and a closed terminal do: nothing goes on."""
        batch = Batch("xor", self.fresh())
        for sent, to in ((signal.SIGTERM, os.kill), (signal.SIGINT, os.killpg), (signal.SIGHUP, os.killpg)):
            for _ in range(max(1, self.often // 4)):
                folder, row = self.fresh(), self.row(f"run_all.sh gets {sent.name}")
                called = batch.call(folder)
                time.sleep(self.rng.uniform(0, batch.seconds))
                to(called.pid, sent)
                called.wait()
                wrong = [f"{path.parts[2]} goes on" for path in processes_of(folder)]
                wrong += batch.look(folder)[0]
                self.settle(batch, folder, row, wrong)


def records_of(folder):
    """Return the jsons in a folder."""
    return sorted(path for path in folder.rglob("*.json"))


def never_met(answer, at):
    """Return whether a run ended before its `at`-th step: who else holds a lock, and is written down, varies by one."""
    return len(answer.get("done", {}).get("steps", [None] * (at + 1))) <= at


def untold(answer, name):
    """Return why an answer is no error that names a file and the way out, as a list of none or one."""
    text = answer.get("error", f"no error: {answer}"[:200])
    good = answer.get("told") and str(name) in text and WAY_OUT.search(text)
    return [] if good else [f"{name}: {text}"]


def half_written(folder):
    """Return what keeps space on a full disk for nothing; what waits for the last moves of a whole save does not."""
    if any(path.suffix != ".new" for path in folder.rglob(".saving-*") if path.parent.name != ".locks"):
        return []
    return [f"{path} stays on a full disk" for path in folder.rglob("*.new")]


def load_plain(folder):
    return plain.parameters(plain.load(folder))


def load_data(folder, name):
    os.environ["PRUNING_DATA"] = str(folder)
    return sets.load(name).checksum


def rows_of(folder, names, kinds, amounts):
    """Return the rows of what was tried on some notebooks, as dictionaries; for a child."""
    campaign = Campaign(folder, names, *amounts)
    for kind in kinds:
        getattr(campaign, kind)()
    return [vars(row) for row in campaign.rows.values()]


def all_rows(folder, jobs, amounts):
    """Yield the rows of the jobs `(names, kinds)` done so far and how many notebooks; all cores are at work."""
    running, rows, notebooks, waiting = [], {}, 0, list(enumerate(jobs))
    while waiting or running:
        while waiting and len(running) < CORES:
            number, job = waiting.pop(0)
            running.append((Child(rows_of, Path(folder, f"job-{number}"), *job, amounts), len(job[0])))
        (ready, *_), _, _ = select.select([child.pipe for child, _ in running], [], [])
        (one,) = [pair for pair in running if pair[0].pipe == ready]
        running.remove(one)
        answer = one[0].end()
        for row in (Row(**each) for each in answer.get("done") or sys.exit(str(answer))):
            rows.setdefault(row.what, Row(row.what)).join(row)
        notebooks += one[1]
        yield list(rows.values()), notebooks


KINDS = ("kills", "steps", "disks", "flips", "processes")  # on each notebook
ONCE = ("others", "signals")
# On fewer images at a time, and wider, the levels are there after half as many attempts, each of which is kept.
SMALL = {"dpp_teacher_student": {}, "mnist_prune": {"batch_size": 5, "width": 32}}
CORES = os.cpu_count()


def main(given):
    parser = argparse.ArgumentParser()
    parser.add_argument("kinds", nargs="*", metavar="KIND", help=f"of {', '.join(KINDS + ONCE)}")
    parser.add_argument("--small", action="store_true", help="some tries of each in seconds")
    asked = parser.parse_args(given)
    prepare()
    if asked.small:
        NOTEBOOKS.update((name, NOTEBOOKS[name] | values) for name, values in SMALL.items())
    kinds = asked.kinds or (KINDS + ONCE[:1] if asked.small else KINDS + ONCE)
    names = tuple(SMALL if asked.small else NOTEBOOKS)
    jobs = [([], [kind]) for kind in ONCE if kind in kinds]
    jobs += [([name], [kind for kind in KINDS if kind in kinds]) for name in names if set(kinds) & set(KINDS)]
    with tempfile.TemporaryDirectory(dir=SHARED if SHARED.exists() else None) as folder:
        for rows, count in all_rows(folder, jobs, (1, 2, 1) if asked.small else (4, 12, 30)):
            text = page(rows, count)
            if not (asked.kinds or asked.small):
                disk.put(HERE / "results" / "faults.md", text.encode())
    print(*(wrong for row in rows for wrong in row.wrong), sep="\n", file=sys.stderr)
    print(text)
    tried, survived, lost, silent = (sum(getattr(row, name) for row in rows) for name in COUNTS)
    print(f"faults: {tried} tried, {survived} survived, {lost} lost, {silent} silent")
    return int(survived < tried)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
