"""Records of before files were moved compare as they did, by lib/records/moved.json."""

import json
from pathlib import Path

import pytest

import lib.pruning.masks as masks
from lib import provenance, runs

TABLE = json.loads((Path(provenance.__file__).with_name("moved.json")).read_text("utf-8"))
OLD, NEW = "lib/masks.py", "lib/pruning/masks.py"
TEXT = Path(masks.__file__).read_text("utf-8")
SUM = provenance._checksum(TEXT)


def edited(stored, text=TEXT):
    """Return what is edited of a record whose code was `stored`, where `text` is the file NEW."""
    return provenance.edited(stored, {NEW: text})


def test_a_file_that_only_moved_is_not_edited():
    assert edited({OLD: SUM}) == edited({NEW: SUM}) == []
    assert edited({OLD: "another"}) == [NEW], "which is called by its present name"


def test_a_text_that_only_imports_from_elsewhere_is_not_edited(monkeypatch):
    assert edited({OLD: "~before"}) == [NEW]
    monkeypatch.setitem(provenance.MOVED["same"], SUM, "~before")
    assert edited({OLD: "~before"}) == edited({OLD: SUM}) == []
    assert edited({OLD: "~long before"}) == [NEW]


def test_a_module_that_is_not_imported_is_found_at_its_new_place():
    assert provenance.edited({OLD: SUM}, {}) == []


def test_the_table_names_files_that_there_were_and_are():
    assert TABLE["files"] and not [old for old in TABLE["files"] if (runs.ROOT / old).exists()]
    assert not [new for new in TABLE["files"].values() if not (runs.ROOT / new).exists()]


@pytest.mark.parametrize("experiment", ["mnist_prune", "phew_density", "dpp_prune"])
def test_the_code_of_committed_records_has_its_files(experiment):
    """Every file that made a record has a place now, so that none is missing because of a move."""
    for record in runs.records(experiment):
        files = {key for key in record.provenance["code"] if key.startswith("lib/")}
        assert not [key for key in files if not (runs.ROOT / TABLE["files"].get(key, key)).exists()]
