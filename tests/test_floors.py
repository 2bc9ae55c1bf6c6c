"""The library is a house: a file imports only what lies on a floor below it, or on the ground."""

import ast
from pathlib import Path

import pytest

LIB = Path(__file__).resolve().parents[1] / "lib"

# Floor by floor, from the ground up. A new file gets its place here, with the reason for it in the review.
FLOORS = (
    {"errors", "parameters", "ranges", "disk", "provenance", "draws", "records", "runs", "figures"}
    | {"kernels", "layers", "inits", "plain", "workers", "data", "images", "tiny_imagenet", "celeba", "names"}
    | {"fused", "triton_kernels", "capture", "optimizers", "curvature"},
    {"nets", "masks", "paths", "likelihood", "tables"},
    {
        "passes",
        "screening",
        "convnets",
        "scores",
        "shrink",
        "phew",
        "dpp",
        "reweight",
        "evaluate",
        "descent",
        "line_search",
        "toys",
    }
    | {"anatomy", "remask", "stacking", "trained", "checkpoint", "anneal", "shuffle", "committee", "dpp_figures"}
    | {"contribution", "importance_figures", "ewn_figures"},
    {"screening", "trainer", "sparse", "arms", "widgets", "path_kernel", "vae"},
    {"train", "challenge", "dpp_study", "initial", "importance"},
    {"survey", "committee_study", "outcome", "vae_study"},
)
FLOOR = {name: number for number, names in enumerate(FLOORS) for name in names}
LONGEST = 400  # lines; if a file passes this, ask what it is two of


def imports(source: str) -> set[str]:
    """Return the modules of lib that a file imports, wherever in the file it does so."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[1] for alias in node.names if alias.name.startswith("lib.")}
        elif isinstance(node, ast.ImportFrom) and (node.level or node.module.split(".")[0] == "lib"):
            inner = (node.module or "").removeprefix("lib").strip(".")
            found |= {inner.split(".")[0]} if inner else {alias.name for alias in node.names}
    return found


def files() -> dict[str, str]:
    """Return the sources of lib by the names of their modules."""
    return {path.stem: path.read_text("utf-8") for path in sorted(LIB.glob("*.py")) if path.stem != "__init__"}


def wrong_imports(sources: dict[str, str]) -> list[str]:
    """Return what is imported upwards or sideways; the ground floor is open to all."""
    pairs = [(name, other) for name, source in sources.items() for other in sorted(imports(source))]
    return [f"{a} imports {b}" for a, b in pairs if FLOOR.get(b, 0) and FLOOR[b] >= FLOOR.get(a, 0)]


def cycle(graph: dict[str, set[str]]) -> list[str]:
    """Return modules that import each other in a ring, or nothing: what is left when all leaves are gone."""
    graph = {name: set(others) & set(graph) for name, others in graph.items()}
    while leaves := {name for name, others in graph.items() if not others}:
        graph = {name: others - leaves for name, others in graph.items() if name not in leaves}
    return sorted(graph)


def test_there_are_files():
    assert files(), f"no library in {LIB}"


def test_every_file_has_a_floor():
    unknown = set(files()) - set(FLOOR)
    assert not unknown, f"{sorted(unknown)} is on no floor: give it one in {Path(__file__).name}"
    assert "utils" not in FLOOR
    assert not [path for path in LIB.iterdir() if path.is_dir() and path.name != "__pycache__"], "lib/ is flat"


def test_imports_only_go_down():
    assert not wrong_imports(files())


def test_there_is_no_cycle():
    assert not cycle({name: imports(source) for name, source in files().items()})


@pytest.mark.parametrize("name", sorted(files()))
def test_no_file_is_too_long(name):
    assert len(files()[name].splitlines()) <= LONGEST, f"lib/{name}.py: what is it two of?"


def test_the_tests_see_every_way_to_import():
    source = "import lib.nets\nfrom lib import data, masks\nfrom lib.phew import walk"
    source += "\nfrom .dpp import a\nfrom . import runs"
    assert imports(source) == {"nets", "data", "masks", "phew", "dpp", "runs"}
    assert imports("def f():\n    from lib import train") == {"train"}
    assert imports("import library\nfrom libs import x\nimport torch") == set()


def test_the_tests_see_what_is_wrong():
    assert wrong_imports({"nets": "from lib import masks, kernels"}) == ["nets imports masks"]
    assert wrong_imports({"runs": "from lib import train"}) == ["runs imports train"]
    assert wrong_imports({"train": "from lib import nets", "data": "from lib import draws"}) == []
    assert cycle({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}) == ["a", "b", "c", "d"]
    assert cycle({"a": {"b"}, "b": set()}) == []
