"""run_all.sh on a node of Slurm that is set up here: only on request, `./run_tests.sh -m slurm`, as root.

It needs Debian's slurm-wlm, whose daemons it starts and ends, and Snakemake's plugin; without them it is skipped.
"""

import importlib.util
import os
import shutil
import socket
import subprocess
import time
from pathlib import Path

import pytest
from test_workflow import Repository

pytestmark = pytest.mark.slurm
CONFIGURATION = Path("/etc/slurm/slurm.conf")  # a job's steps look for it there and nowhere else
CONTENT = """
ClusterName=one
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmctldPort=16817
SlurmdPort=16818
AuthType=auth/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/controller.pid
SlurmdPidFile={folder}/node.pid
SlurmctldLogFile={folder}/controller.log
SlurmdLogFile={folder}/node.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
ReturnToService=2
NodeName={host} NodeAddr=127.0.0.1 CPUs={cores} RealMemory=16000
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


def answers(*command):
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


@pytest.fixture
def cluster(tmp_path):
    """A cluster of this one node: one that is there already, or one of its own for the time of a test."""
    if importlib.util.find_spec("snakemake_executor_plugin_slurm") is None:
        pytest.skip("python -m pip install snakemake-executor-plugin-slurm")
    if shutil.which("sinfo") and answers("sinfo"):
        yield
        return
    if not all(map(shutil.which, ("slurmctld", "slurmd", "munge"))) or os.getuid() or CONFIGURATION.exists():
        pytest.skip("Slurm is not installed (Debian: apt install slurm-wlm), or it takes root to start it")
    (tmp_path / "state").mkdir()
    CONFIGURATION.parent.mkdir(exist_ok=True)
    CONFIGURATION.write_text(CONTENT.format(host=socket.gethostname(), folder=tmp_path, cores=os.cpu_count()))
    if not answers("munge", "-n"):
        Path("/run/munge").mkdir(exist_ok=True)
        shutil.chown("/run/munge", "munge", "munge")
        subprocess.run(["su", "-s", "/bin/sh", "munge", "-c", "/usr/sbin/munged"], check=True)
    daemons = [subprocess.Popen([name, "-D"], stderr=subprocess.DEVNULL) for name in ("slurmctld", "slurmd")]
    try:
        limit = time.monotonic() + 60
        while not answers("srun", "-n1", "true") and time.monotonic() < limit:
            time.sleep(1)
        yield
    finally:
        for daemon in reversed(daemons):
            daemon.terminate()
            daemon.wait()
        CONFIGURATION.unlink()


@pytest.fixture
def repository(tmp_path, cluster):
    folder = tmp_path / "repository"
    folder.mkdir()
    return Repository(folder)


def jobs(form, *options):
    """Return what squeue says of each job that waits or runs."""
    done = subprocess.run(["squeue", "-h", "-o", form, *options], capture_output=True, text=True, check=True)
    return done.stdout.split("\n")[:-1]


def test_short_runs_share_a_job_and_ask_for_what_the_plan_says(repository):
    before = set(jobs("%i", "-t", "all"))
    status, said = repository.run_all("--quick", "--profile", "workflow/slurm", "--retries", "0")
    assert status == 1 and "FAILED toy-type=bad: AssertionError: a bad one" in said, said
    assert repository.records("runs/quick") == ["good-1", "good-2"]
    assert (repository.root / "figures/quick/toy.png").read_text() == "2 runs"
    (job,) = [line.split()[1:] for line in jobs("%i %m %l", "-t", "all") if line.split()[0] not in before]
    assert job == ["4000M", "30:00"], "two executions of 2,000 MB in one job"


def test_a_cancelled_job_is_listed_and_made_again(repository):
    alone = "--group-components", "short=1"
    arguments = "--profile", "cpu", "--profile", "workflow/slurm", "--retries", "0", *alone
    call = repository.start(*arguments, TOY_SECONDS="300")
    limit = time.monotonic() + 280
    while repository.records() != ["good-1"] and time.monotonic() < limit:
        time.sleep(1)
    while len(jobs("%i")) > 1 and time.monotonic() < limit:  # the other one is ending
        time.sleep(1)
    (job,) = jobs("%i")
    subprocess.run(["scancel", job], check=True)
    said, _ = call.communicate(timeout=300)
    assert call.returncode == 1
    end = said.split("These did not succeed")[1]
    assert "FAILED toy-seed=2: it ended without a word" in end and "seed=1" not in end
    assert (repository.root / "figures/toy.png").read_text() == "1 runs"
    status, said = repository.run_all("--profile", "cpu", "--profile", "workflow/slurm")
    assert status == 0 and repository.records() == ["good-1", "good-2"], said
