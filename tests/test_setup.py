"""env.sh in bash and zsh, and the papermill command as a user types it."""

import errno
import hashlib
import os
import re
import shutil
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import nbformat
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from lib import provenance

ROOT = Path(__file__).resolve().parents[1]
SHELLS = [
    "bash",
    pytest.param("zsh", marks=pytest.mark.skipif(not shutil.which("zsh"), reason="zsh is not installed")),
]
LAUNCHER = ROOT / "workflow/bin/papermill"


def clean(**changes):
    """Return an environment as in a fresh terminal, where no virtual environment is active."""
    outside = {"VIRTUAL_ENV", "PRUNING_VENV", "PRUNING_LATEST", "PRUNING_RUNS", "PRUNING_FIGURES", "PYTHON", "BASH_ENV"}
    inherited = {key: value for key, value in os.environ.items() if key not in outside}
    return inherited | {"PYTHON": sys.executable} | changes


def shell(name, script, cwd, **environment):
    """Return what a shell without start-up files makes of a script."""
    flag = "--norc" if name == "bash" else "-f"
    command = [name, flag, "-c", script]
    return subprocess.run(command, cwd=cwd, env=clean(**environment), capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    """A copy of the set-up files with empty requirements, and the environment made once (some seconds)."""
    root = tmp_path_factory.mktemp("a repository")  # with a space in its path
    shutil.copy(ROOT / "env.sh", root)
    shutil.copytree(ROOT / "workflow/bin", root / "workflow/bin")
    for file in "requirements.txt", "workflow/tested.txt", "workflow/torch.txt":
        (root / file).write_text("# nothing\n")
    first = shell("bash", ". ./env.sh && command -v python", root)
    assert first.returncode == 0, first.stderr
    assert first.stdout.strip() == f"{root}/.venv/bin/python"
    assert "making" in first.stderr and "installing" in first.stderr
    return root


@pytest.mark.parametrize("name", SHELLS)
def test_sourcing_again_is_silent_and_quick(repository, name):
    script = '. ./env.sh; . ./env.sh; echo "$VIRTUAL_ENV"; command -v papermill; echo "$PATH"'
    seconds = []
    for _ in range(3):  # the best of three, because the machine may be busy
        start = time.monotonic()
        done = shell(name, script, repository)
        seconds.append(time.monotonic() - start)
    venv, papermill, path = done.stdout.split("\n")[:3]
    assert done.stderr == "" and venv == f"{repository}/.venv"
    assert papermill == f"{repository}/workflow/bin/papermill"
    assert path.count(str(repository)) == 2, "sourced twice, on the path once"
    assert min(seconds) < 1, "it takes 0.1 s unless pip is started"


@pytest.mark.parametrize("name", SHELLS)
def test_the_caller_is_left_as_it_was(repository, name, tmp_path):
    look = 'echo "$-"; set -o; typeset -f | grep -c "^_pruning" || :; set | grep -c "^_pruning" || :; pwd'
    script = f'set -eu; {{ {look}; }} >before; . "{repository}/env.sh"; {{ {look}; }} >after'
    done = shell(name, script, tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "before").read_text() == (tmp_path / "after").read_text()


@pytest.mark.parametrize("name", SHELLS)
def test_an_old_python_is_refused_and_the_terminal_stays_open(repository, name, tmp_path):
    old = tmp_path / "python-old"
    old.write_text("#!/bin/sh\nexit 1\n")
    old.chmod(0o755)
    script = f'. "{repository}/env.sh"; echo "returned $?"'
    done = shell(name, script, tmp_path, PYTHON=str(old), PRUNING_VENV=str(tmp_path / "venv"))
    assert done.stdout == "returned 1\n"
    assert "3.11 or newer" in done.stderr and str(old) in done.stderr
    assert not (tmp_path / "venv").exists()


def test_a_failed_installation_is_taken_up_again(repository):
    stamp = repository / ".venv/.pruning-installed"
    before = stamp.read_text()
    requirements = repository / "requirements.txt"
    requirements.write_text("./not-there-yet\n")
    try:
        failed = shell("bash", '. ./env.sh; echo "returned $?"', repository)
    finally:
        requirements.write_text("# nothing\n")
    assert failed.stdout == "returned 1\n" and "go on from here" in failed.stderr
    assert stamp.read_text() == before, "no stamp for what was not installed"
    stamp.unlink()  # as an interrupted installation leaves it
    again = shell("bash", ". ./env.sh", repository)
    assert again.returncode == 0 and stamp.read_text() == before
    assert "installing" in again.stderr and "making" not in again.stderr


# -------------------------------------------------------------------------------------------- tested versions


def wheel(folder, version):
    """Return the path and the sha256 of a wheel of a package `tiny` that says its version."""
    path, info = folder / f"tiny-{version}-py3-none-any.whl", f"tiny-{version}.dist-info"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr(zipfile.ZipInfo("tiny.py"), f"print({version!r})\n")
        file.writestr(zipfile.ZipInfo(f"{info}/METADATA"), f"Metadata-Version: 2.1\nName: tiny\nVersion: {version}\n")
        file.writestr(
            zipfile.ZipInfo(f"{info}/WHEEL"), "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        file.writestr(zipfile.ZipInfo(f"{info}/RECORD"), "")
    return path, hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def shop(repository, tmp_path):
    """Return an environment with a shop of two releases of `tiny`; the older one is what was tested."""
    _, digest = wheel(tmp_path, "1.0")
    wheel(tmp_path, "2.0")
    (repository / "requirements.txt").write_text("tiny>=0.5\n")
    (repository / "workflow/tested.txt").write_text(f"tiny==1.0 \\\n    --hash=sha256:{digest}\n")
    yield {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(tmp_path), "PIP_CONFIG_FILE": os.devnull}
    for file in "requirements.txt", "workflow/tested.txt":
        (repository / file).write_text("# nothing\n")


def tiny(repository, **environment):
    """Return the version of `tiny` that env.sh leaves installed, or what it said instead."""
    done = shell("bash", ". ./env.sh && python -m tiny", repository, **environment)
    return done.stdout.strip() or done.stderr


def test_the_tested_versions_are_installed_and_the_newest_when_asked_for(repository, shop):
    assert tiny(repository, **shop) == "1.0"
    assert tiny(repository, PRUNING_LATEST="1", **shop) == "2.0"
    assert tiny(repository, PRUNING_LATEST="0", **shop) == "1.0", "the next call without it"


def test_a_release_that_was_altered_is_not_installed(repository, shop, tmp_path):
    shell("bash", ". ./env.sh && python -m pip uninstall -y tiny", repository, **shop)
    (repository / ".venv/.pruning-installed").unlink()
    with zipfile.ZipFile(tmp_path / "tiny-1.0-py3-none-any.whl", "a") as file:
        file.writestr("more.py", "print('stolen')")
    said = tiny(repository, **shop)
    assert "THESE PACKAGES DO NOT MATCH THE HASHES" in said and "PRUNING_LATEST=1 source env.sh" in said


def test_what_somebody_else_prepared_keeps_its_versions(repository, shop):
    environment = {"PRUNING_VENV": str(repository / ".venv"), **shop}
    tiny(repository, PRUNING_LATEST="1", **shop)
    made = repository / ".venv/.pruning-made"
    made.unlink()
    assert tiny(repository, **environment) == "2.0"
    made.touch()
    (repository / ".venv/.pruning-installed").unlink()
    assert tiny(repository, **environment) == "1.0", "what env.sh made, wherever it lies, has the tested versions"


def test_every_requirement_has_a_tested_version_with_hashes():
    lower = [Requirement(line.split("#")[0]) for line in lines("requirements.txt")]
    bounds = {one.name: one.specifier for one in map(Requirement, lines("workflow/torch.txt"))}
    pins = re.findall(
        r"^(\S+?)==(\S+)(.*)$((?:\n    --hash=sha256:[0-9a-f]{64}.*)*)", read("workflow/tested.txt"), re.M
    )
    pinned = {canonicalize_name(name): version for name, version, _, hashes in pins if hashes}
    assert len(pins) == sum(line[:1].isalpha() for line in lines("workflow/tested.txt")), "every line has its hashes"
    assert set(bounds) == {"torch", "torchvision"}, "their builds depend on the machine"
    assert not {name for name in pinned if name in bounds or name.startswith(("nvidia-", "cuda-", "triton"))}
    for one in lower:
        if one.name not in bounds:
            assert one.specifier.contains(pinned[canonicalize_name(one.name)]), one
    assert bounds["torch"].contains("2.15.0") and not bounds["torch"].contains("2.16.0")
    assert set(provenance.COMPUTING) - {"torch", "torchvision", "triton"} <= set(pinned)


def read(name):
    return (ROOT / name).read_text()


def lines(name):
    return [line for line in read(name).splitlines() if line and not line.startswith("#")]


# ------------------------------------------------------------------------------------------------- papermill


@pytest.fixture(scope="module")
def launcher():
    """What the launcher defines, read from the file that has no .py at its end."""
    scope = {"__file__": str(LAUNCHER), "__name__": "launcher"}
    exec(compile(LAUNCHER.read_text(), str(LAUNCHER), "exec"), scope)
    return scope


@pytest.fixture
def default_output(launcher):
    return launcher["default_output"]


@pytest.fixture
def notebook(tmp_path, monkeypatch):
    """`nb.ipynb` in the current folder: takes a seed, says it, and says whether standard input is empty."""
    cells = [nbformat.v4.new_code_cell("seed: int = 1  # any", metadata={"tags": ["parameters"]})]
    cells += [nbformat.v4.new_code_cell("print('the seed is', seed)")]
    cells += [nbformat.v4.new_code_cell("open(f'runs/nb/EWN-{seed}.json', 'w').close(); print('already done: EWN-1')")]
    late = """# as on a busy machine, where a kernel has replied but not yet left what it replied to
import time
handlers = get_ipython().kernel.shell_handlers
leave = handlers["kernel_info_request"]
async def late(*request): await leave(*request); time.sleep(0.03)
handlers["kernel_info_request"] = late
"""
    cells += [nbformat.v4.new_code_cell(late)]
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": kernel}), tmp_path / "nb.ipynb")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PRUNING_RUNS", str(tmp_path / "runs"))
    (tmp_path / "runs/nb").mkdir(parents=True)
    return tmp_path / "nb.ipynb"


@pytest.mark.parametrize(
    ("line", "name"),
    [
        ("nb.ipynb", "nb"),
        ("nb.ipynb -p seed 3 -p type SWN", "nb-seed-3-type-SWN"),
        ("-p seed 3 nb.ipynb --cwd other -k python3 --no-progress-bar", "nb-seed-3"),
        ("nb.ipynb -y {seed:[1,2],type:[EWN,no-WN]}", "nb-seed-1-2-type-EWN-no-WN"),
        ("nb.ipynb --parameters=seed 3 -r type 7 --log-level DEBUG", "nb-seed-3-type-7"),
        ("nb.ipynb -f nb.ipynb", "nb-nb.ipynb"),
        ("nb.ipynb -p a ../../b", "nb-a-..-..-b"),
        (f"nb.ipynb -p a {'x' * 300}", "nb-a-" + "x" * 115 + "-e2ba2387"),
        (f"nb.ipynb -p a {'x' * 300} -p seed 2", "nb-a-" + "x" * 115 + "-89196b2b"),
    ],
)
def test_an_output_path_is_supplied(notebook, default_output, line, name):
    assert default_output(line.split()) == f"runs/executed/{name}.ipynb"


@pytest.mark.parametrize(
    "line",
    [
        "",
        "--help",
        "--version",
        "nb.ipynb out.ipynb",
        "nb.ipynb -",
        "nb.ipynb -p seed 3 out.ipynb -p type SWN",
        "nb.ipynb --help",
        "nb.ipynb --help-notebook",
        "-",
        "missing.ipynb",
        "nb.ipynb -p seed",
        "nb.ipynb out.ipynb surplus.ipynb",
        "nb.ipynb --no-such-option",
    ],
)
def test_papermill_is_left_alone(notebook, default_output, line):
    assert default_output(line.split()) is None


def test_a_notebook_that_is_not_there_is_told_with_what_may_be_meant(notebook, launcher, monkeypatch):
    for name in ("PRUNING_STILL", "PYTHONPATH"):  # which the launcher sets: they are put back
        monkeypatch.setenv(name, os.environ.get(name, ""))
    with pytest.raises(SystemExit, match=r"no notebook notebooks/mnist_prun.ipynb. Did you mean 'mnist_prune'\? .*xor"):
        launcher["main"](["notebooks/mnist_prun.ipynb", "-p", "seed", "3"])
    for number, given in ((errno.ENOENT, "xor"), (errno.EISDIR, "notebooks")):
        told = launcher["missing"](OSError(number, "", given))
        assert told.startswith(f"there is no notebook {given}.") and "are notebooks/NAME.ipynb of arena" in told
    for given, told in (("-f given.yaml", "No such file.*given.yaml"), ("-y seed", r"[^!]*A notebook comes first")):
        with pytest.raises(SystemExit, match=f"papermill: .*{told}"):
            launcher["main"](["nb.ipynb", "out.ipynb", *given.split()])
    assert launcher["missing"](FileNotFoundError(errno.ENOENT, "no such file", "given.yaml")) is None


def test_records_that_are_edited_are_no_obstacle(notebook, launcher):
    """Emacs holds a file by a link to nowhere."""
    record = notebook.parent / "runs/nb/EWN-1.json"
    record.touch(), record.with_name(".#EWN-1.json").symlink_to("somebody@somewhere.7")
    record.with_name("EWN-2.json").symlink_to("nowhere.json")
    assert list(launcher["records"]()) == [record]


@pytest.mark.parametrize("stdin", ["pipe", "notebook"])
def test_the_command_works_as_written(notebook, stdin):
    """In a pipe plain papermill saves nothing; with standard input it overwrites the notebook."""
    before = notebook.read_bytes()
    script = f'. "{ROOT}/env.sh" && papermill nb.ipynb -p seed 3 2>&1 | cat'
    environment = {**os.environ, "PRUNING_VENV": sys.prefix}
    given = before if stdin == "notebook" else b""
    done = subprocess.run(["bash", "-c", script], env=environment, input=given, capture_output=True, check=False)
    assert notebook.read_bytes() == before
    executed = notebook.parent / "runs/executed/nb-seed-3.ipynb"
    assert executed.exists(), done.stdout.decode() + done.stderr.decode()
    assert "the seed is 3" in executed.read_text()
    said = done.stdout.decode()
    assert "TCP" not in said and "KeyboardInterrupt" not in said, said
    assert said.splitlines()[-2:] == ["already done: EWN-1", "record: runs/nb/EWN-3.json"], said
