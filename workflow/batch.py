"""Runs Snakemake on what is due and says what did not succeed: `python -m workflow.batch`, started by run_all.sh.

What did not succeed is told by the records that are missing and not by what jobs say of themselves: one that a cluster
cancels, or that runs out of time or memory, says nothing.
"""

import argparse
import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import yaml

from lib.errors import RecordError, hint
from workflow.plan import REPORT, ROOT, Plan

KNOWN = (
    "slurm",
    "kubernetes",
)  # executors whose plugin is named to who lacks it; a misspelt name is no package to install
BUILT_IN = "local", "dryrun", "touch"
DRY = {"-n", "--dry-run", "--dryrun"}
CORES = 4  # of one job on a cluster, unless --cores says otherwise; those of the submitting machine tell nothing
GRACE = 30  # seconds in which what was told to stop may do so
SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]


class Stopped(BaseException):
    """A signal has come, whose number is the argument."""


def settings(options):
    """Return (executor, cores or None) that Snakemake's options ask for, themselves or by a profile's config.yaml."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--executor", "-e", nargs="?")
    parser.add_argument("--cores", "-c", nargs="?", const="all")
    parser.add_argument("--profile", nargs="?", default=os.environ.get("SNAKEMAKE_PROFILE"))
    given, _ = parser.parse_known_args(options)
    places = [Path(given.profile), Path.home() / ".config/snakemake" / given.profile] if given.profile else []
    files = next((found for place in places if (found := sorted(place.glob("config*.yaml")))), [])
    kept = yaml.safe_load(files[-1].read_text()) or {} if files else {}
    return given.executor or kept.get("executor", "local"), given.cores or kept.get("cores")


def obstacle(executor, stamps):
    """Return why Snakemake cannot start, as a sentence with the way out, or None."""
    module = f"snakemake_executor_plugin_{executor.replace('-', '_')}"
    if executor not in BUILT_IN and importlib.util.find_spec(module) is None:
        if executor in KNOWN:
            return (
                f"--executor {executor} needs a plugin of Snakemake: . ./env.sh && "
                f"python -m pip install snakemake-executor-plugin-{executor}"
            )
        return f"there is no executor {executor!r} here; there are {', '.join((*BUILT_IN[:1], *KNOWN))}"
    if executor == "slurm" and shutil.which("sbatch") is None:
        return "there is no sbatch on this machine: go to a login node of the cluster"
    try:
        stamps.mkdir(parents=True)
        (stamps / "probe").write_bytes(bytes(2**16))
        (stamps / "probe").unlink()
    except OSError as error:
        return (
            f"cannot write {stamps} ({error.strerror}), where Snakemake keeps its notes. Make room, or make the folder "
            f"of this repository writable; or copy it to a place of yours"
        )
    return None


def refusal(options):
    """Return why Snakemake would refuse these options, as a sentence, or None: its own reply is pages of usage."""
    from snakemake import cli  # a second that most calls do without

    def refuse(message):
        raise ValueError(message)

    parser = cli.get_argument_parser()
    parser.error, parser.allow_abbrev = refuse, False  # of --profil, say, nobody here would hear
    try:
        surplus = [one for one in parser.parse_known_args(options)[1] if one.startswith("-")]
    except (ValueError, cli.CliException) as error:
        return str(error)
    known = ["--quick", *(name for name in parser._option_string_actions if len(name) > 5)]
    return f"there is no option {surplus[0]}, here or of Snakemake.{hint(surplus[0], known)}" if surplus else None


def snakemake(profile, targets, options, stamps):
    """Return Snakemake's exit status; `Stopped` if a signal came, once nothing that it started here is left."""
    executor, cores = settings(options)
    # --nolock: the lock of a killed call would stop this one. Two calls at once are safe without it, because
    # their stamps are apart and each run has a lock of its own, which dies with its owner.
    command = [sys.executable, "-m", "snakemake", "--snakefile", "workflow/Snakefile", "--keep-going", "--nolock"]
    command += ["--drop-metadata", "--rerun-triggers", "input", "--scheduler", "greedy", "--quiet", "host", "reason"]
    command += ["--cores", str(cores or ("all" if executor in BUILT_IN else CORES))]
    command += ["--config", f"profile={profile}", f"stamps={stamps}", f"targets={targets}", f"executor={executor}"]

    def stopped(number, _):
        for one in SIGNALS:
            signal.signal(one, signal.SIG_IGN)
        raise Stopped(number)

    for number in SIGNALS:
        # What nohup has made deaf stays so; a shell in the background ignores SIGINT, which Snakemake must hear.
        if number == signal.SIGINT or signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, stopped)
    child = subprocess.Popen([*command, *options])
    try:
        return child.wait()
    except Stopped as error:
        stop(child, *error.args)
        raise


def stop(child, number):
    """Return nothing once nothing is left of Snakemake and its jobs here; those on a cluster it cancels itself."""
    begun = psutil.Process(child.pid).children(recursive=True) if child.poll() is None else []
    if not (number == signal.SIGINT and _from_terminal()):  # a terminal has told everybody already
        child.send_signal(signal.SIGINT)
    for process in begun:
        _quietly(process.terminate)
    limit, alive = time.monotonic() + GRACE, begun
    while (alive or child.poll() is None) and time.monotonic() < limit:
        alive = psutil.wait_procs(alive, timeout=0.1)[1]
    if child.poll() is None:
        alive += psutil.Process(child.pid).children(recursive=True) + [child]
    for process in alive:
        _quietly(process.kill)
    child.wait()


def _quietly(action):
    try:
        action()
    except psutil.NoSuchProcess:
        pass


def _from_terminal():
    """Return whether a Ctrl-C on the terminal reaches this process."""
    try:
        terminal = os.open("/dev/tty", os.O_RDONLY)
    except OSError:
        return False
    try:
        return os.tcgetpgrp(terminal) == os.getpgrp()
    except OSError:
        return False
    finally:
        os.close(terminal)


def told(profile, targets, dry):
    """Return whether all is said: the name of each job on a line and how much that is, if `dry` or if there is none.

    Snakemake would say the same, two seconds later.
    """
    try:
        plan = Plan(profile, targets.split())
    except ValueError as error:
        sys.exit(f"run_all.sh: {error}")
    names = [*(one.name for one in plan.due), *plan.due_summaries]
    if names and not dry:
        return False
    print(*names or ["nothing to do"], plan, sep="\n", file=sys.stderr)
    return True


def failures(profile, targets, stamps):
    """Return a line for each execution and summary that was due and is not done, after drawing what nobody drew.

    Snakemake draws no summary that waits for a job that was cancelled; here it shows what there is.
    """
    plan = Plan(profile, targets.split())
    for name in plan.due_summaries:
        if plan.outdated(name) and not (stamps / f"{name}.summary").exists():
            subprocess.run([sys.executable, "-m", "workflow.execute", profile, name, stamps / f"{name}.summary"])
    said = {file.name: file.read_text().strip() for file in sorted(stamps.iterdir())}
    told = [line for name, line in said.items() if name.endswith(".summary") and line.startswith("FAILED")]
    for one in plan.due:
        line = said.get(one.stamp, "")
        silent = f"FAILED {one.name}: it ended without a word (cancelled, out of time or of memory, or never started)"
        told.append(line if line.startswith("FAILED") else f"{silent}; missing: {one.missing()}")
    return told


def reported(profile, targets, anew=False):
    """Return nothing; write the report if these targets want one, `anew` or where it is missing, and say where."""
    plan = Plan(profile, targets.split())
    if not plan.reports:
        return
    if anew or not plan.report.exists() or REPORT in targets.split():
        from workflow import report  # a second that most calls do without

        try:
            report.write(plan)
        except (OSError, RecordError) as error:
            sys.exit(f"run_all.sh: no report was written: {error} (PRUNING_REPORT=FOLDER writes it elsewhere)")
    print(f"the report: {os.path.relpath(plan.report)}", file=sys.stderr)


def main():
    """Exit with Snakemake's status, 1 where something that was due is not done, 128 + its number after a signal."""
    profile, targets, *options = sys.argv[1:]
    stamps = Path(".snakemake/stamps", f"{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}")  # of this call alone
    problem = obstacle(settings(options)[0], stamps)
    if problem:
        sys.exit(f"run_all.sh: {problem}.")
    try:
        dry = DRY & set(options)
        if set(options) - DRY and (problem := refusal(options)):
            sys.exit(f"run_all.sh: {problem}")
        if told(profile, targets, dry):
            return None if dry else reported(profile, targets)
        status = snakemake(profile, targets, options, stamps)
        tried = (stamps / "started").exists()
        failed = failures(profile, targets, stamps) if tried else []
        if tried and not status:
            reported(profile, targets, anew=True)
    except Stopped as error:
        (number,) = error.args
        print(f"stopped by {signal.Signals(number).name}; ./run_all.sh goes on from here", file=sys.stderr)
        sys.exit(128 + number)
    finally:
        shutil.rmtree(stamps, ignore_errors=True)
    if failed:
        print("\nThese did not succeed; what was done is kept, and ./run_all.sh tries them again:", file=sys.stderr)
        print("\n".join(failed), file=sys.stderr)
    sys.exit(1 if failed else status)


if __name__ == "__main__":
    os.chdir(ROOT)
    main()
