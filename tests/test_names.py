"""Published names: each leads to a type and keywords that exist here."""

import inspect

import pytest

from lib import inits, names, phew, scores
from lib.errors import ParameterError

WALKS = set(inspect.signature(phew.Walks).parameters)


@pytest.mark.parametrize("name", names.ALIASES)
def test_every_keyword_exists(name):
    kind, keywords = names.published(name)
    assert kind in {*scores.WEIGHT_SCORES, "dense", "phew", "magnitude_trained"}
    own = {key for key in keywords if key not in ("nested", "init", "reinit", "shuffle")}
    known = WALKS if kind == "phew" else inspect.signature(scores.WEIGHT_SCORES.get(kind, scores.random)).parameters
    assert own <= set(known)
    assert keywords.get("init", "phew") in inits.SCHEMES
    assert keywords.get("reinit", "phew") in {*inits.SCHEMES, *inits.SPARSE}


def test_there_are_all_names_and_no_two_are_one():
    assert len(names.ALIASES) == 24
    assert len({repr(alias) for alias in names.ALIASES.values()}) == 24


def test_an_unknown_name_has_a_neighbour():
    with pytest.raises(ParameterError, match="Did you mean 'Kernel_PHEW'"):
        names.published("kernelPHEW")
    with pytest.raises(ParameterError, match="does nothing"):
        names.published("IMAG")


def test_keywords_are_a_copy():
    names.published("PHEW2")[1]["power"] = 7
    assert names.published("PHEW2") == ("phew", {"nested": True, "power": 2})
