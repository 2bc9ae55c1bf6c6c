"""Published names: each leads to a type that exists here, and every type to keywords that exist."""

import inspect
import re

import pytest

from lib import inits, phew, runs
from lib.studies.phew import study

WALKS = set(inspect.signature(phew.Walks).parameters)
NAMES = runs.published("phew_names").fillna("")
WRITTEN = NAMES[NAMES["type"] != ""].set_index("name")
NOTEBOOKS = {"phew_density": study.types(), "phew_width": ("synflow", "synflow_l2")}


@pytest.mark.parametrize("name", WRITTEN.index)
def test_every_name_is_a_type_of_its_notebook(name):
    notebook, kind = WRITTEN.loc[name]
    assert kind in NOTEBOOKS[notebook]
    assert repr(kind) in study.meaning(name) and notebook in study.meaning(name)


def test_there_are_all_names_and_no_two_are_one():
    assert len(WRITTEN) == len(set(WRITTEN.itertuples(index=False))) == 24
    assert len(set(NAMES["name"])) == len(NAMES) == 29


def test_the_notebooks_say_the_same():
    told = (runs.ROOT / "notebooks/README.md").read_text("utf-8").partition("## Published names")[2]
    found = set()
    for notebook, line in re.findall(r"^\| `(\w+)` \| (.*) \|$", told, re.MULTILINE):
        for kinds, names in re.findall(r"((?:`\w+`(?:, )?)+) \(([\w, ]+)\)", line):
            found |= {(name, notebook, kind) for name, kind in
                      zip(names.split(", "), re.findall(r"\w+", kinds), strict=True)}  # fmt: skip
    assert found == set(WRITTEN.itertuples(name=None))


def test_names_without_an_experiment_and_unknown_ones():
    assert "does nothing" in study.meaning("IMAG")
    assert study.meaning("kernelPHEW") == ""


@pytest.mark.parametrize("kind", [*study.VARIANTS, *study.ABLATIONS])
def test_every_keyword_of_a_type_exists(kind):
    method, keywords = study.method_of(kind)
    own = set(keywords) - {"nested", "init", "reinit", "shuffle"}
    assert own <= (WALKS if method.name == "phew" else set(inspect.signature(method.function).parameters))
    assert keywords.get("init", "phew") in inits.SCHEMES
    assert keywords.get("reinit", "phew") in {*inits.SCHEMES, *inits.SPARSE}
