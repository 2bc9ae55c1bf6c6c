"""The library is a house: a folder is a floor, imports only go down, and studies do not know each other."""

import ast
import functools
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import lib

LIB = Path(__file__).resolve().parents[1] / "lib"

# From the ground up; "" are the files on top of lib. See lib/__init__.py for what belongs where.
FLOORS = (
    ("", "kernels", "records", "data", "figures"),
    ("networks",),
    ("pruning",),
    ("training",),
    ("explorer",),
    ("studies.ewn", "studies.challenge", "studies.phew", "studies.dpp", "studies.importance", "studies.arena"),
)
FLOOR = {folder: number for number, folders in enumerate(FLOORS) for folder in folders}
LONGEST = 400  # lines; if a file passes this, ask what it is two of
# What a reader must know to follow any notebook, and how many lines that may be in all.
HALL = """
    kernels.twins networks.layers networks.nets pruning.masks pruning.methods pruning.scores training.trainer
    training.evaluate training.lab records.runs figures.drawing
""".split()
LONGEST_HALL = 2447
LONGEST_LIB = 18_222  # all files: the library is small and is to fall; lower this with it, never raise it


@functools.cache
def files() -> dict[str, str]:
    """Return the sources of lib by the names of their modules, such as "networks.nets"."""
    paths = [path for path in sorted(LIB.rglob("*.py")) if path.stem != "__init__"]
    return {".".join(path.relative_to(LIB).with_suffix("").parts): path.read_text("utf-8") for path in paths}


@functools.cache
def imports(source: str) -> frozenset[str]:
    """Return what a file imports of lib, wherever in the file it does so: "networks.nets" or "networks.nets.MLP"."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[2] for alias in node.names if alias.name.split(".")[0] == "lib"}
        elif isinstance(node, ast.ImportFrom) and (node.level or node.module.split(".")[0] == "lib"):
            inside = "relative" if node.level else node.module.partition(".")[2]
            found |= {f"{inside}.{alias.name}".strip(".") for alias in node.names}
    return frozenset(found)


def modules(source: str, names) -> set[str]:
    """Return the modules, of `names`, that a file imports; what is none of them, and in none, as it is written."""
    return {next((name for name in (said, said.rpartition(".")[0]) if name in names), said) for said in imports(source)}


def folder(module: str) -> str:
    return module.rpartition(".")[0]


def wrong_imports(sources: dict[str, str]) -> list[str]:
    """Return what is imported upwards, from one study to another, or by no path of a file."""
    wrong = []
    for name, source in sources.items():
        for other in sorted(modules(source, sources)):
            here, there = FLOOR[folder(name)], FLOOR.get(folder(other))
            sideways = here == there == len(FLOORS) - 1 and folder(name) != folder(other)
            if other not in sources or there is None or there > here or sideways:
                wrong.append(f"{name} imports {other}")
    return wrong


def cycle(graph: dict[str, set[str]]) -> list[str]:
    """Return modules that import each other in a ring, or nothing: what is left when all leaves are gone."""
    graph = {name: set(others) & set(graph) for name, others in graph.items()}
    while leaves := {name for name, others in graph.items() if not others}:
        graph = {name: others - leaves for name, others in graph.items() if name not in leaves}
    return sorted(graph)


def test_there_are_files():
    assert files(), f"no library in {LIB}"


def test_every_file_is_on_a_floor():
    unknown = [name for name in files() if folder(name) not in FLOOR]
    assert not unknown, f"{unknown} are on no floor: lib/__init__.py says what belongs where"
    assert sorted(name for name in files() if not folder(name)) == ["draws", "errors", "workers"]
    assert not [name for name in files() if name.endswith("utils")]


def test_every_folder_is_a_package_that_does_nothing():
    folders = {path.parent for path in LIB.rglob("*.py")} - {LIB}
    files = [where / "__init__.py" for where in folders | {LIB / "studies"}]
    said = {file.parent.name: ast.parse(file.read_text("utf-8")).body for file in files}
    assert {where: [type(part) for part in body] for where, body in said.items() if body} == {"kernels": [ast.Expr]}


def test_imports_only_go_down():
    assert not wrong_imports(files())


def test_there_is_no_cycle():
    sources = files()
    assert not cycle({name: modules(source, sources) for name, source in sources.items()})


def test_folders_do_not_import_each_other_in_a_ring():
    graph = {where: set() for where in FLOOR if where}
    for name, source in files().items():
        graph.setdefault(folder(name), set()).update(folder(other) for other in modules(source, files()))
    assert not cycle({where: others - {where} for where, others in graph.items()})


@pytest.mark.parametrize("name", sorted(files()))
def test_no_file_is_too_long(name):
    assert len(files()[name].splitlines()) <= LONGEST, f"{name}: what is it two of?"


def test_the_hall_is_short():
    lines = {name: len(files()[name].splitlines()) for name in HALL}
    assert sum(lines.values()) <= LONGEST_HALL, lines


def test_the_library_does_not_grow():
    assert sum(len(source.splitlines()) for source in files().values()) <= LONGEST_LIB, "what can go instead?"


def test_what_is_below_the_studies_has_a_name_of_its_own():
    names = [name.split(".") for name in files() if name.count(".") < 2]
    assert len({last for *_, last in names}) == len(names)
    assert not {last for *_, last in names} & {path.name for path in LIB.iterdir()}, "a file is called as a folder"
    for *where, last in names:
        assert getattr(lib, last).__name__ == ".".join(["lib", *where, last])
    with pytest.raises(AttributeError, match="'lib' has no attribute 'nothing'"):
        lib.nothing  # noqa: B018


def test_the_map_names_every_folder():
    said = re.findall(r"\w+", lib.__doc__)
    assert not [part for where in FLOOR for part in where.split(".") if part and part not in said]


def test_the_tests_see_every_way_to_import():
    source = "import lib.networks.nets\nfrom lib import draws\nfrom lib.pruning import masks\nfrom . import x"
    source += "\nfrom lib.pruning.phew import walk"
    assert imports(source) == {"networks.nets", "draws", "pruning.masks", "relative.x", "pruning.phew.walk"}
    assert imports("def f():\n    from lib.training import descend") == {"training.descend"}
    assert imports("import library\nfrom libs import x\nimport torch") == set()


def test_the_tests_see_what_is_wrong():
    below = {"draws": "", "networks.nets": "", "pruning.phew": "", "studies.dpp.kinds": "", "studies.phew.study": ""}

    def wrong(name, source):
        return wrong_imports(below | {name: source})

    assert wrong("networks.inits", "from lib.pruning.phew import walk") == ["networks.inits imports pruning.phew"]
    assert wrong("records.runs", "from lib.networks import nets") == ["records.runs imports networks.nets"]
    assert wrong("training.descend", "from lib.studies.dpp import kinds") == [
        "training.descend imports studies.dpp.kinds"
    ]
    assert wrong("studies.ewn.toys", "from lib.studies.phew import study") == [
        "studies.ewn.toys imports studies.phew.study"
    ]
    assert wrong("training.descend", "from lib import nets") == ["training.descend imports nets"]
    assert wrong("training.descend", "from lib import draws\nfrom lib.networks.nets import MLP") == []
    assert wrong("studies.dpp.study", "from lib.studies.dpp import kinds") == []
    assert cycle({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}) == ["a", "b", "c", "d"]
    assert cycle({"a": {"b"}, "b": set()}) == []


def test_who_imports_the_library_hears_nothing_and_brings_no_compiler():
    """torch's timer brings its compiler of extensions, which looks for CUDA and would say where there is none."""
    names = [".".join(path.relative_to(LIB.parent).with_suffix("").parts) for path in LIB.rglob("*.py")]
    names = [name for name in names if not name.endswith("__init__")]
    program = f"import importlib, sys; [importlib.import_module(name) for name in {names}];"
    program += "print('torch.utils.cpp_extension' in sys.modules);"
    program += "import lib, torch; lib.plain.latency(torch.relu, torch.zeros(1), 1)"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=LIB.parent, env={**os.environ, "CUDA_HOME": str(LIB)}, capture_output=True,
        text=True, check=False,
    )  # fmt: skip
    assert (done.stdout, done.stderr) == ("False\n", "")
