"""Executes one notebook of the plan and leaves a stamp that says how it went: `python -m workflow.execute`.

The stamp is written whether the notebook succeeded or failed, and the exit status is 0 in both cases: for
Snakemake a failed run is a finished job, so that the summaries that wait for it still say what there is.
workflow/batch.py lists the failures: what counts as done is the record and nothing else.
"""

import argparse
import os
import re
import sys
import time
from pathlib import Path

# jsonschema's check of internationalised addresses, which no notebook has: it takes longer to import than all the rest.
sys.modules.setdefault("rfc3987_syntax", None)
import papermill  # noqa: E402

from lib import runs  # noqa: E402
from lib.errors import UNWRITABLE, unwritable  # noqa: E402
from workflow import kernels  # noqa: E402
from workflow.plan import ROOT, Plan, executed  # noqa: E402

# Where sockets fail it is TCP after all. Only a kernel that did not start is tried again: an error of the experiment
# would come back, after hours.
START_FAILURE = re.compile(r"Kernel died before|Kernel didn't respond|ZMQError|Address already in use")
ATTEMPTS = 4


def execute(notebook, name, parameters):
    """Return None when the notebook ran to its end, else the error in one line."""
    output = executed(name)
    for attempt in range(1, ATTEMPTS + 1):
        try:
            output.parent.mkdir(parents=True, exist_ok=True)
            with kernels.config(sockets=attempt == 1) as config:
                papermill.execute_notebook(
                    ROOT / "notebooks" / f"{notebook}.ipynb",
                    output,
                    parameters,
                    cwd=ROOT,
                    progress_bar=False,
                    config=config,
                )
            return None
        except papermill.PapermillExecutionError as error:
            message = f"{error.ename}: {error.evalue}"
        except Exception as error:  # papermill, nbclient and zmq have no common one
            if isinstance(error, OSError) and error.errno in UNWRITABLE:
                return str(unwritable(output, error))
            message = f"{error.__class__.__name__}: {error}"
            if START_FAILURE.search(message) and attempt < ATTEMPTS:
                print(f"{name}: the kernel did not start, again ({message})", file=sys.stderr)
                continue
        return " ".join(message.split())[:300] + f" (see {os.path.relpath(output)})"


def run(plan, name):
    """Return None when all runs of the execution called `name` have a record, else what is wrong."""
    execution = plan.executions[name]
    if not execution.missing():
        return None  # another call has made them
    # All of them: an edited parameters cell must not decide what a run of the plan is.
    error = execute(execution.experiment, name, runs.declared(execution.experiment) | execution.parameters)
    missing = execution.missing()
    if missing:
        error = f"{error or 'the notebook ended without an error'}; missing: {missing}"
    return error


def summarise(plan, name):
    """Return None when all figures of the summary called `name` are drawn, else what is wrong."""
    digest = plan.digest(name)  # before it reads, so that a record that arrives meanwhile counts as new
    if not plan.outdated(name):
        return None  # all the runs that it waited for have failed
    error = execute(name, name, {})
    error = error or ", ".join(f"{path} was not drawn" for path in plan.undrawn(name)) or None
    if error is None:
        plan.seen(name).parent.mkdir(parents=True, exist_ok=True)
        plan.seen(name).write_text(digest)
    return error


def main():
    """Execute what the command line names and write its stamp."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("profile")
    parser.add_argument("name", help="an execution or a summary")
    parser.add_argument("stamp", type=Path)
    given = parser.parse_args()
    plan, start = Plan(given.profile), time.monotonic()
    try:
        error = (summarise if given.name in plan.summaries else run)(plan, given.name)
    except OSError as problem:
        error = unwritable(runs.folder(), problem)
    line = f"FAILED {given.name}: {error}" if error else f"done {given.name} in {time.monotonic() - start:.0f} s"
    print(line, file=sys.stderr)
    try:
        given.stamp.write_text(line + "\n")
    except OSError as problem:
        sys.exit(str(unwritable(given.stamp, problem)))


if __name__ == "__main__":
    main()
