"""What every notebook keeps to, to be read top to bottom, run by papermill and compared in git."""

import ast
import io
import re
import tokenize
from pathlib import Path

import nbformat
import papermill
import pytest

NOTEBOOKS = sorted((Path(__file__).resolve().parents[1] / "notebooks").glob("*.ipynb"))
FIRST_IMPORT = 'import sys; sys.path[:0] = [".", ".."]'  # lib lies here for papermill, one up for JupyterLab

# Lines of code in all and in one cell. A summary draws many figures, and asks for each section whether it has
# records; where an experiment needs more, the library lacks a function.
LIMITS = {"experiment": (70, 15), "summary": (165, 20)}
WORDS_PER_LINE = 5  # as much prose as code: a line of code says about as much as five words

ABSOLUTE = re.compile(r"""(?<![\w.:/~])/(?:home|Users|root|tmp|mnt|opt|var|usr|work|content|data)/|\b[A-Z]:\\\w""")


def load(path):
    return nbformat.read(path, as_version=4)


def sources(notebook, kind):
    return [cell.source for cell in notebook.cells if cell.cell_type == kind]


def code_lines(source: str) -> int:
    """Return how many lines hold code: neither empty nor comment alone."""
    return sum(bool(line.strip()) and not line.strip().startswith("#") for line in source.splitlines())


def bad_parameters(source: str) -> list[str]:
    """Return the lines of a parameters cell that are not `name: kind = literal  # unit or choices`."""
    commented = {
        token.start[0]
        for token in tokenize.generate_tokens(io.StringIO(source).readline)
        if token.type == tokenize.COMMENT
    }
    bad = []
    for statement in ast.parse(source).body:
        named = isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name)
        if not (named and literal(statement.value) and statement.end_lineno in commented):
            bad.append(ast.unparse(statement))
    return bad


def literal(node) -> bool:
    """Return whether an expression is a literal value."""
    try:
        ast.literal_eval(node)
    except (ValueError, TypeError):
        return False
    return True


def definitions(source: str) -> list[str]:
    """Return what a cell defines: functions, classes and lambdas with a name."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            found.append(node.name)
        elif isinstance(node, ast.Assign | ast.AnnAssign | ast.NamedExpr) and isinstance(node.value, ast.Lambda):
            found.append(ast.unparse(node))
    return found


RAW = {"record.type", "r.type", *(f"p['{name}']" for name in ("dataset", "net", "mode", "type", "rule"))}


def raw_titles(source: str) -> list[str]:
    """Return the titles of a cell that show a raw name, not what it is called in words."""
    calls = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]
    titles = [keyword.value for call in calls for keyword in call.keywords if keyword.arg == "title"]
    titles += [call.args[0] for call in calls if getattr(call.func, "attr", "") == "set_title"]
    parts = [(title, [title, *(n.value for n in ast.walk(title) if isinstance(n, ast.FormattedValue))])
             for title in titles]  # fmt: skip
    return [ast.unparse(title) for title, shown in parts if RAW & {ast.unparse(part) for part in shown}]


def calls_type(source: str) -> bool:
    """Return whether a cell calls type(): in a notebook that name is the parameter."""
    calls = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]
    return any(isinstance(call.func, ast.Name) and call.func.id == "type" for call in calls)


def test_there_are_notebooks():
    assert NOTEBOOKS


@pytest.fixture(params=NOTEBOOKS, ids=lambda path: path.stem)
def notebook(request):
    return load(request.param)


@pytest.fixture
def limits(notebook, request):
    stem = request.node.callspec.params["notebook"].stem
    return LIMITS["summary" if stem.startswith("summary_") else "experiment"]


def test_is_a_valid_notebook(notebook):
    nbformat.validate(notebook)
    assert notebook.metadata.kernelspec.name == "python3", "the kernel of the environment it runs in"


def test_outputs_are_stripped(notebook):
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.source for cell in code if cell.outputs or cell.execution_count is not None] == []
    assert "papermill" not in notebook.metadata, "this is an executed copy"


def test_begins_with_a_title(notebook):
    assert notebook.cells[0].cell_type == "markdown"
    assert notebook.cells[0].source.startswith("# ")


def test_second_cell_holds_the_parameters(notebook):
    tagged = [i for i, cell in enumerate(notebook.cells) if "parameters" in cell.metadata.get("tags", [])]
    assert tagged == [1], "exactly one cell is tagged `parameters`, and it is the second"
    assert notebook.cells[1].source.strip()
    assert bad_parameters(notebook.cells[1].source) == []


def test_papermill_sees_every_parameter(request, notebook):
    """papermill reads the cell line by line: with a second `=` in a line, even in its comment, it sees nothing."""
    path = request.node.callspec.params["notebook"]
    declared = [ast.unparse(statement.target) for statement in ast.parse(notebook.cells[1].source).body]
    assert sorted(papermill.inspect_notebook(path)) == sorted(declared)


def test_third_cell_finds_the_library(notebook):
    assert notebook.cells[2].cell_type == "code"
    assert notebook.cells[2].source.startswith(FIRST_IMPORT)


def test_third_cell_checks_the_parameters(request, notebook):
    """Whether or not records are made: papermill passes a mistyped name by, and "no" counts as true."""
    stem = request.node.callspec.params["notebook"].stem
    calls = [node for node in ast.walk(ast.parse(notebook.cells[2].source)) if isinstance(node, ast.Call)]
    doors = [call for call in calls if ast.unparse(call.func) in ("runs.open_run", "runs.settle")]
    assert [ast.unparse(argument) for argument in doors[0].args[:2]] == [repr(stem), "globals()"] and len(doors) == 1


def test_parameters_stay_what_they_were_given(notebook):
    """A cell that gave one another value would, when the third is run once more, ask for another run."""
    given = {ast.unparse(statement.target) for statement in ast.parse(notebook.cells[1].source).body}
    nodes = [node for source in sources(notebook, "code")[1:] for node in ast.walk(ast.parse(source))]
    stored = [node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)]
    assert [name for name in stored if name in given] == []


def test_defines_nothing(notebook):
    assert [definitions(source) for source in sources(notebook, "code") if definitions(source)] == []


def test_never_calls_type(notebook):
    assert [source for source in sources(notebook, "code") if calls_type(source)] == []


def test_a_legend_names_a_type_once(notebook):
    """A look is a type's: an entry for each of its seeds would show the same line, and not say which is whose."""
    code = "\n".join(sources(notebook, "code"))
    assert not re.search(r"\{label\} \{r|\.legend\(\*", code)


def test_no_title_shows_a_raw_name(notebook):
    assert [found for source in sources(notebook, "code") if (found := raw_titles(source))] == []


def test_code_is_short(notebook, limits):
    lines = [code_lines(source) for source in sources(notebook, "code")]
    assert sum(lines) <= limits[0]
    assert max(lines[1:]) <= limits[1], "in a cell; the first is the table of parameters"


def test_there_is_as_much_prose_as_code(notebook):
    words = sum(len(source.split()) for source in sources(notebook, "markdown"))
    assert words >= WORDS_PER_LINE * sum(code_lines(source) for source in sources(notebook, "code"))


def test_names_no_absolute_path(notebook):
    assert [cell.source for cell in notebook.cells if ABSOLUTE.search(cell.source)] == []


def test_the_tests_see_bad_parameters():
    good = 'seed: int = 1  # random origin\nlevels: list = [-10]  # log-loss\ntype: str = "EWN"  # EWN or SWN'
    assert bad_parameters(good) == []
    assert bad_parameters("seed = 1  # not annotated") == ["seed = 1"]
    assert bad_parameters("seed: int = 1") == ["seed: int = 1"]
    assert bad_parameters("seed: int = other + 1  # derived") == ["seed: int = other + 1"]
    assert bad_parameters("seed: int  # no value") == ["seed: int"]
    assert bad_parameters('type: str = "#1"') == ["type: str = '#1'"]


def test_the_tests_see_definitions():
    assert definitions("def f():\n    pass\nclass A: pass\ng = lambda x: x") == ["f", "A", "g = lambda x: x"]
    assert definitions("frame.sort_values(key=lambda column: -column)") == []
    assert calls_type("print(type(3))") and not calls_type("run.type(3); type = 3")


def test_the_tests_see_raw_names_in_titles():
    assert raw_titles("axes.set(title=p['mode'])") == ["p['mode']"]
    assert len(raw_titles("axes.set_title(f\"{p['net']}, {p['epochs']} epochs\")")) == 1
    assert raw_titles("axes.set(title=words(p['net'])), axes.set_title(HOW[p['mode']])") == []


def test_the_tests_see_absolute_paths():
    assert ABSOLUTE.search('open("/home/someone/x")') and ABSOLUTE.search(r'open("C:\x")')
    assert not ABSOLUTE.search("https://example.org/data/x and runs/data/x, a/b, ../data/x")
