"""run_all.sh on a small repository of its own: Snakemake schedules, records decide."""

import importlib.util
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import nbformat
import papermill
import psutil
import pytest
import yaml
from nbclient.exceptions import DeadKernelError

ROOT = Path(__file__).resolve().parents[1]
TOY = [
    'seed: int = 1  # any\ntype: str = "good"  # good or bad\nforce: bool = False  # operational',
    'import sys; sys.path[:0] = [".", ".."]\nimport os, time\nfrom lib.records.runs import open_run\n'
    'run = open_run("NAME", globals())',
    "for seed, type in run.todo:\n"
    '    time.sleep(float(os.environ.get("TOY_SECONDS", 0)) if seed == 2 else 0)\n'
    '    assert type != "bad", "a bad one"\n'
    '    run.save(type=type, seed=seed, scores={"threads": int(os.environ["OMP_NUM_THREADS"])})',
]
SUMMARY = [
    "width: float = 3.3  # inches",
    'import sys; sys.path[:0] = [".", ".."]\nimport os\nfrom lib.records.runs import ROOT, records\n'
    'folder = ROOT / os.environ["PRUNING_FIGURES"]\nfolder.mkdir(parents=True, exist_ok=True)',
    'for end in ("png", "pdf"):\n    (folder / f"toy.{end}").write_text(f"{len(records(\'toy\'))} runs")',
]
EXPERIMENTS = """
profiles:
  quick:
    {runs: runs/quick, figures: figures/quick, report: report/quick, machine: any, experiments: {
      toy: {parameters: {seed: [1, 2], type: [good, bad]}, stack: [seed], threads: 1, minutes: 4}}}
  cpu:
    {runs: runs, figures: figures, machine: any, experiments: {
      toy: {parameters: {seed: [1, 2]}, stack: [], threads: 1, minutes: 4}}}
  full:
    {runs: runs, figures: figures, machine: a fast one, experiments: {
      toy: {parameters: {seed: [1, 2]}, stack: [], minutes: 300},
      other: {parameters: {seed: 5}}}}
summaries:
  summary_toy: {toy: [toy], other: [other]}
"""


def write_notebook(path, parameters, *code):
    cells = [nbformat.v4.new_code_cell(parameters, metadata={"tags": ["parameters"]})]
    cells += [nbformat.v4.new_code_cell(source.replace("NAME", path.stem)) for source in code]
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    path.parent.mkdir(exist_ok=True)
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": kernel}), path)


class Repository:
    """A copy of what schedules and records, with notebooks that take no time."""

    def __init__(self, root):
        self.root = root
        for name in "run_all.sh", "env.sh", "requirements.txt":
            shutil.copy(ROOT / name, root)
        shutil.copytree(ROOT / "workflow", root / "workflow", ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copytree(ROOT / "lib", root / "lib", ignore=shutil.ignore_patterns("__pycache__"))
        (root / "workflow/experiments.yaml").write_text(EXPERIMENTS)
        write_notebook(root / "notebooks/toy.ipynb", *TOY)
        write_notebook(root / "notebooks/other.ipynb", *TOY)
        write_notebook(root / "notebooks/summary_toy.ipynb", *SUMMARY)
        outside = {"PRUNING_RUNS", "PRUNING_FIGURES", "OMP_NUM_THREADS"}
        self.environment = {key: value for key, value in os.environ.items() if key not in outside}
        self.environment["PRUNING_VENV"] = sys.prefix

    def start(self, *arguments, **environment):
        """Return the process of a call of run_all.sh, leader of a process group of its own."""
        return subprocess.Popen(
            ["./run_all.sh", *arguments],
            cwd=self.root,
            env=self.environment | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
            preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL),  # nohup's deafness is inherited
        )

    def run_all(self, *arguments):
        """Return (exit status, all that a call of run_all.sh said)."""
        process = self.start(*arguments)
        said, _ = process.communicate(timeout=300)
        return process.returncode, said

    def python(self, code):
        """Return what a line of Python prints in this repository."""
        command = [sys.executable, "-c", code]
        return subprocess.run(
            command, cwd=self.root, env=self.environment, capture_output=True, text=True, check=True
        ).stdout.strip()

    def due(self, profile, *targets):
        """Return the names of the executions and summaries that are due, sorted."""
        due = "sorted([one.name for one in plan.due] + plan.due_summaries)"
        code = f"import json; from workflow.plan import Plan; plan = Plan({profile!r}, {targets!r})"
        return json.loads(self.python(f"{code}; print(json.dumps({due}))"))

    def save(self, experiment, seed, score=1):
        """Make a record without a kernel."""
        code = f"namespace = dict(seed={seed}, type='good', force=True)"
        code += f"; from lib.records.runs import open_run; run = open_run({experiment!r}, namespace)"
        self.python(f"{code}; run.save(type='good', seed={seed}, scores=dict(threads={score}))")

    def records(self, folder="runs"):
        return sorted(path.stem for path in (self.root / folder / "toy").glob("*.json"))


@pytest.fixture
def repository(tmp_path):
    return Repository(tmp_path)


def test_a_failed_run_stops_nothing_else(repository):
    status, said = repository.run_all("--quick")
    assert status == 1
    assert "runs to make: 4, in 2 executions, about 4 min on any" in said
    end = said.split("These did not succeed")[1]
    assert "FAILED toy-type=bad: AssertionError: a bad one" in end
    assert "missing: [(1, 'bad'), (2, 'bad')]" in end and "type=good" not in end
    assert repository.records("runs/quick") == ["good-1", "good-2"]
    record = json.loads((repository.root / "runs/quick/toy/good-1.json").read_text())
    assert record["scores"] == {"threads": 1}, "the cores that the entry says"
    figure = repository.root / "figures/quick/toy.png"
    assert figure.read_text() == "2 runs", "the summary draws what there is"
    assert not list((repository.root / ".snakemake/stamps").iterdir())
    assert repository.due("quick") == ["summary_toy", "toy-type=bad"], "what failed is tried again"
    page = (repository.root / "report/quick/index.html").read_text("utf-8")
    assert "the report: report/quick/index.html" in said and r"[\"toy\", \"good\"" in page


def test_a_second_call_does_nothing(repository):
    for seed in 1, 2:
        repository.save("toy", seed)
    assert repository.due("cpu") == ["summary_toy"], "what has its record is not in the plan"
    status, said = repository.run_all("--profile", "cpu", "--cores", "1")
    assert status == 0 and "summaries to draw: 1" in said, said
    assert (repository.root / "figures/toy.pdf").read_text() == "2 runs"
    report = repository.root / "report/index.html"
    os.utime(report, (1, 1))
    start = resource.getrusage(resource.RUSAGE_CHILDREN)
    status, said = repository.run_all("--profile=cpu")
    assert status == 0 and "nothing to do" in said and "runs to make: 0; summaries to draw: 0" in said
    assert "the report: report/index.html" in said and report.stat().st_mtime == 1
    end = resource.getrusage(resource.RUSAGE_CHILDREN)  # of the processor, because the machine may be busy
    assert end.ru_utime + end.ru_stime - start.ru_utime - start.ru_stime < 10, "2 s"

    record = repository.root / "runs/toy/good-1.json"
    os.utime(record, (1, 1))
    os.utime(repository.root / "figures/toy.png")
    notebook = repository.root / "notebooks/toy.ipynb"
    notebook.write_text(notebook.read_text().replace("a bad one", "edited"))
    assert repository.due("cpu") == [], "neither the age of a file nor an edit makes anything due"
    assert repository.due("cpu", "report") == []
    executed = repository.root / "runs/executed/summary_toy.ipynb"
    executed.unlink()
    assert repository.due("cpu", "report") == ["summary_toy"], "what the report shows"
    executed.touch()
    figure = repository.root / "figures/toy.png"
    figure.rename(figure.with_suffix(".away"))
    assert repository.due("cpu") == ["summary_toy"], "a lost figure"
    figure.with_suffix(".away").rename(figure)
    assert repository.due("cpu") == []
    repository.save("toy", 1, score=2)
    assert repository.due("cpu") == ["summary_toy"], "a changed record"
    record.unlink()
    assert repository.due("cpu") == ["summary_toy", "toy-seed=1"], "a lost record"


def test_a_dry_run_says_what_would_be_done(repository):
    repository.save("toy", 2)
    before = sorted(repository.root.rglob("*.json"))
    status, said = repository.run_all("-n")
    assert status == 0
    assert "runs to make: 2, in 2 executions, about 2 h on a fast one; summaries to draw: 1" in said, said
    *jobs, last = said.splitlines()
    assert sorted(jobs[-3:]) == ["other", "summary_toy", "toy-seed=1"] and last.startswith("profile full: runs"), said
    assert "toy-seed=2" not in said
    assert sorted(repository.root.rglob("*.json")) == before and not (repository.root / "figures").exists()


def test_a_report_makes_no_run(repository):
    repository.save("toy", 1)
    assert repository.due("cpu", "report") == ["summary_toy"]


def test_one_figure_by_name(repository):
    assert repository.due("full", "figures/other.png") == ["other", "summary_toy"]
    assert repository.due("full", "./figures/toy.pdf") == ["summary_toy", "toy-seed=1", "toy-seed=2"]
    assert repository.due("full", "notebooks/other.ipynb") == ["other"]
    status, said = repository.run_all("-n", "--forceall", "figures/other.png")
    assert status == 0 and "runs to make: 1, in 1 executions" in said, said
    status, said = repository.run_all("-n", "--quick", "figures/toy.png")
    assert status != 0 and "figures/quick/toy.png" in said, "the names are those of the profile"


def test_what_is_no_target_is_told_with_the_nearest(repository):
    root = repository.root
    assert repository.due("full", str(root / "figures/other.png")) == ["other", "summary_toy"], "an absolute path"
    for call, told in (
        (["-n", "othr"], "othr is not in profile full. Did you mean notebooks/other.ipynb"),
        (
            ["--cores", "1", "figures/toys.png"],
            "Did you mean notebooks/toy.ipynb or figures/toy.png or figures/toy.pdf?",
        ),
        (["--profile", "quik"], "there is no profile 'quik'; there are quick, cpu and full"),
        (["--profile=quik"], "there is no profile 'quik'"),
        (["zzz"], "It makes the figures of notebooks/toy.ipynb"),
    ):
        status, said = repository.run_all(*call)
        assert status != 0 and told in said and said.count("/") < 20, said


def test_an_edited_cell_does_not_decide_what_the_plan_runs(repository):
    """The record has the name that was planned, although the notebook says otherwise by now."""
    repository.python("from lib import runs; from workflow.freeze import freeze; freeze(runs.ROOT / 'notebooks')")
    notebook = repository.root / "notebooks/toy.ipynb"
    notebook.write_text(notebook.read_text().replace('= \\"good\\"', '= \\"bad\\"'))
    assert 'type: str = \\"bad' in notebook.read_text()
    status, said = repository.run_all("--profile", "cpu", "--cores", "2", "notebooks/toy.ipynb")
    assert status == 0 and repository.records() == ["good-1", "good-2"], said


def test_a_home_that_cannot_be_written_is_in_nobodys_way(repository):
    process = repository.start("-n", "--profile", "cpu", HOME="/proc/nowhere")
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 0 and "runs to make: 2" in said, said


def test_papermill_finds_the_library_from_any_folder(repository, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    command = [sys.executable, repository.root / "workflow/bin/papermill", repository.root / "notebooks/toy.ipynb"]
    environment = repository.environment | {"OMP_NUM_THREADS": "1"}
    answer = subprocess.run([*command, "out.ipynb"], cwd=elsewhere, env=environment, capture_output=True, text=True)
    assert answer.returncode == 0 and repository.records() == ["good-1"], answer.stderr


def test_killed_whole_and_called_again(repository):
    """kill -9 of the process group: what was done stays, and neither a lock nor a kernel is in the way."""
    killed = repository.start("--profile", "cpu", "--cores", "2", TOY_SECONDS="30")
    limit = time.monotonic() + 60
    while repository.records() != ["good-1"] and time.monotonic() < limit:
        time.sleep(0.1)
    os.killpg(killed.pid, signal.SIGKILL)
    killed.communicate()
    assert repository.records() == ["good-1"]
    first = (repository.root / "runs/toy/good-1.json").read_bytes()
    locks = repository.root / ".snakemake/locks"  # as a Snakemake that locks leaves them when it is killed
    locks.mkdir(exist_ok=True)
    for kind in "input", "output":
        (locks / f"0.{kind}.lock").write_text(f"{repository.root}/.snakemake/stamps\n")
    status, said = repository.run_all("--profile", "cpu")
    assert status == 0 and "runs to make: 1, in 1 executions" in said, said
    assert repository.records() == ["good-1", "good-2"]
    assert (repository.root / "runs/toy/good-1.json").read_bytes() == first
    assert (repository.root / "figures/toy.png").read_text() == "2 runs"


# ------------------------------------------------------------------------------------ signals and what is told


def waiting(repository, **environment):
    """Return a call of run_all.sh whose second kernel computes, and all processes that it has started."""
    call = repository.start("--profile", "cpu", "--cores", "2", TOY_SECONDS="60", **environment)
    limit = time.monotonic() + 200
    while repository.records() != ["good-1"] and time.monotonic() < limit:
        time.sleep(0.1)
    family = psutil.Process(call.pid).children(recursive=True)
    assert any("ipykernel" in " ".join(one.cmdline()) for one in family)
    return call, family


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGHUP"])
def test_a_signal_to_the_call_stops_all_that_it_started(repository, name):
    """To the one process alone, as kill does and systemd: not to its group, as a terminal would."""
    call, family = waiting(repository)
    call.send_signal(getattr(signal, name))
    said, _ = call.communicate(timeout=120)
    alive = psutil.wait_procs(family, timeout=5)[1]
    assert not alive, f"left behind: {alive}"
    assert call.returncode == 128 + getattr(signal, name)
    assert f"stopped by {name}" in said and "Traceback" not in said, said
    assert repository.records() == ["good-1"]
    assert not list((repository.root / ".snakemake/stamps").iterdir())
    assert repository.due("cpu") == ["summary_toy", "toy-seed=2"]
    if name == "SIGTERM":  # once, what is due is made: nothing that the call left is in the way
        status, said = repository.run_all("--profile", "cpu", "notebooks/toy.ipynb")
        assert status == 0 and repository.records() == ["good-1", "good-2"], said


def test_what_ends_without_a_word_is_listed_and_its_summary_drawn(repository):
    """As when a cluster cancels a job: its shell is killed before it can leave a stamp."""
    call, family = waiting(repository)
    for process in family:
        if "workflow.execute" in " ".join(process.cmdline()):
            process.kill()
    said, _ = call.communicate(timeout=200)
    end = said.split("These did not succeed")[1]
    assert call.returncode == 1
    assert (
        "FAILED toy-seed=2: it ended without a word" in end and "missing: [(2, 'good')]" in end and "seed=1" not in end
    )
    assert (repository.root / "figures/toy.png").read_text() == "1 runs"
    assert repository.due("cpu") == ["summary_toy", "toy-seed=2"], "and is made again by the next call"


@pytest.fixture
def read_only(repository):
    """The repository on a file system that cannot be written."""
    bind = ["mount", "--bind", repository.root, repository.root]
    if not shutil.which("mount") or subprocess.run(bind, capture_output=True, check=False).returncode:
        pytest.skip("a read-only file system cannot be mounted here: that takes root on Linux")
    subprocess.run(["mount", "-o", "remount,ro,bind", repository.root], check=True)
    yield repository
    subprocess.run(["umount", repository.root], check=True)


def test_a_read_only_repository_is_told_in_a_sentence(read_only):
    for arguments in (), ("-n",):
        status, said = read_only.run_all(*arguments)
        assert status == 1 and "Traceback" not in said
        assert said.startswith("run_all.sh: cannot write .snakemake/stamps/") and "(Read-only file system)" in said
    script = ". ./env.sh && papermill notebooks/toy.ipynb"
    done = subprocess.run(
        ["bash", "-c", script],
        cwd=read_only.root,
        env=read_only.environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "papermill: cannot write runs (Read-only file system)" in done.stderr and "PRUNING_RUNS" in done.stderr


def test_an_executor_that_is_not_there_is_told_before_snakemake_is_asked(repository, tmp_path, monkeypatch):
    from workflow.batch import obstacle, settings

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)

    profile = tmp_path / "a cluster"
    profile.mkdir()
    (profile / "config.yaml").write_text("executor: slurm\ncores: 3\n")
    assert settings(["--profile", str(profile)]) == ("slurm", 3)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".config/snakemake").mkdir(parents=True)
    profile.rename(tmp_path / ".config/snakemake/mine")
    assert settings(["--profile=mine"]) == ("slurm", 3)
    assert settings(["-e", "slurm", "--jobs", "20"]) == ("slurm", None)
    assert settings(["--cores=2", "-n"]) == ("local", "2")
    assert "python -m pip install snakemake-executor-plugin-kubernetes" in obstacle("kubernetes", tmp_path / "s")
    status, said = repository.run_all("--executor", "slrum")
    assert (
        status == 1 and said == "run_all.sh: there is no executor 'slrum' here; there are local, slurm, kubernetes.\n"
    )


def test_options_that_nobody_knows_are_told_and_snakemakes_own_go_through(repository):
    from workflow.batch import refusal

    status, said = repository.run_all("--qick", "-n")
    assert status == 1
    assert said == "run_all.sh: there is no option --qick, here or of Snakemake. Did you mean '--quick'?\n"
    assert "mean '--profile'" in refusal(["--profil", "cpu"]) and "must be integer" in refusal(["--cores", "two"])
    assert refusal(["-n", "-j4", "-k", "--set-resources", "run:gpu=0", "run:mem_mb=9", "--cores=2", "-q"]) is None


def test_resources_come_from_the_plan():
    from workflow.plan import expand

    entry = {"parameters": {"seed": [1, 2], "type": "a"}, "stack": [], "minutes": 20}
    heavy = list(expand({"e": entry}, gpu=1))
    assert [(one.stamp, one.time_limit, one.memory, one.gpu) for one in heavy] == [
        ("e-seed=1.run", 40, 8000, 1),
        ("e-seed=2.run", 40, 8000, 1),
    ]
    (toy,) = expand({"e": {"parameters": {"seed": 1}, "threads": 1, "minutes": 0.5}}, gpu=1)
    assert (toy.stamp, toy.time_limit, toy.memory, toy.gpu) == ("e.short", 30, 2000, 0)
    (own,) = expand({"e": {"parameters": {"seed": 1}, "minutes": 90, "memory": 16}})
    assert (own.time_limit, own.memory, own.gpu) == (360, 16000, 0)


# --------------------------------------------------------------------------------------------- one execution


@pytest.fixture
def attempts(monkeypatch, tmp_path):
    """What papermill does at each attempt: raise this exception, or succeed for None; used from the front."""
    plan = []

    def execute_notebook(*arguments, **options):
        error = plan.pop(0)
        if error:
            raise error

    monkeypatch.setattr(papermill, "execute_notebook", execute_notebook)
    monkeypatch.setenv("PRUNING_RUNS", str(tmp_path))
    return plan


def test_a_kernel_that_does_not_start_is_tried_again(attempts):
    from workflow.execute import execute

    attempts += [RuntimeError("Kernel died before replying to kernel_info")]
    attempts += [RuntimeError("Address already in use (addr='tcp://...')"), None]
    assert execute("toy", "toy", {}) is None
    assert attempts == []
    attempts += [RuntimeError("Kernel didn't respond in 60 seconds")] * 9
    assert "didn't respond" in execute("toy", "toy", {})
    assert len(attempts) == 5


def test_an_error_of_the_experiment_is_not_tried_again(attempts):
    from workflow.execute import execute

    saying = "Address already in use"  # even if it says so: then it is the notebook's own
    attempts += [papermill.PapermillExecutionError(1, 1, "code", "ValueError", saying, []), None]
    assert execute("toy", "toy", {}).startswith("ValueError: Address already in use (see ")
    attempts[:] = [DeadKernelError("Kernel died"), None]
    assert execute("toy", "toy", {}).startswith("DeadKernelError")
    assert attempts == [None]


# -------------------------------------------------------------------------------------------------- the plan


def test_what_is_stacked_and_what_is_not():
    from workflow.plan import expand

    entry = {"parameters": {"seed": [1, 2], "type": ["a", "b"], "levels": [-1, -2]}, "minutes": 4}
    (all_as_one,) = expand({"e": entry})
    assert (all_as_one.name, all_as_one.parameters, all_as_one.minutes) == ("e", entry["parameters"], 4)
    by_seed = list(expand({"e": entry | {"stack": ["type"]}}))
    assert [(one.name, one.parameters["seed"], one.minutes) for one in by_seed] == [
        ("e-seed=1", 1, 2),
        ("e-seed=2", 2, 2),
    ]
    assert all(one.parameters["type"] == ["a", "b"] and one.parameters["levels"] == [-1, -2] for one in by_seed)
    assert len(list(expand({"e": entry | {"stack": []}}))) == 4


def test_grids_and_lists_of_entries():
    from workflow.plan import expand

    entries = [
        {"parameters": {"seed": 1}, "grid": {"net": ["v", "r"], "lr": [0.1, 1]}},
        {"grid": {"net": ["a/b"]}},
    ]
    names = [one.name for one in expand({"e": entries})]
    assert names == [
        "e.1-net=v-lr=0.1",
        "e.1-net=v-lr=1",
        "e.1-net=r-lr=0.1",
        "e.1-net=r-lr=1",
        "e.2-net=a_b",
    ]
    with pytest.raises(ValueError, match="theads.*allowed.*threads"):
        list(expand({"e": {"theads": 1}}))


@pytest.mark.parametrize("profile", ["quick", "cpu", "full"])
def test_every_profile_can_be_planned(profile, monkeypatch, tmp_path):
    """Its notebooks exist and take its parameters; no two executions have the same name."""
    from workflow.plan import Plan, expand

    monkeypatch.setenv("PRUNING_RUNS", str(tmp_path))
    monkeypatch.setenv("PRUNING_FIGURES", str(tmp_path))
    plan = Plan(profile)
    assert plan.due and len(plan.due) == len(plan.executions)
    assert all((ROOT / "notebooks" / f"{summary}.ipynb").exists() for summary in plan.summaries)
    everything = yaml.safe_load((ROOT / "workflow/experiments.yaml").read_text())
    assert len(list(expand(everything["profiles"][profile]["experiments"]))) == len(plan.executions)
    drawn_from = {name for figures in plan.summaries.values() for names in figures.values() for name in names}
    assert {one.experiment for one in plan.due} <= drawn_from, "an experiment that no figure shows"


def test_a_kernel_has_sockets_where_their_paths_are_short_enough(monkeypatch, tmp_path):
    from workflow import kernels

    for length, transport in ((30, "ipc"), (100, None)):
        folder = tmp_path / ("t" * max(length - len(str(tmp_path)), 1))
        folder.mkdir()
        monkeypatch.setattr(tempfile, "tempdir", str(folder))
        with kernels.config() as config:
            assert config.KernelManager.get("transport") == transport
