"""Every parameter of every notebook is checked when its run is opened: before any data, before any training.

A draw of parameters ends in one of two ways: a ParameterError, or a run whose every number is in its declared range.
"""

import contextlib
import io
import json
import math

import hypothesis.strategies as st
import matplotlib.pyplot as plt
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings

from lib import errors, ranges, runs, sets
from lib.errors import ParameterError
from lib.records.parameters import in_cell
from workflow.freeze import experiments

NOTEBOOKS = runs.ROOT / "notebooks"
EXPERIMENTS = [path.stem for path in experiments(NOTEBOOKS)]
OTHERS = sorted({path.stem for path in NOTEBOOKS.glob("*.ipynb")} - {*EXPERIMENTS})
CELLS = {
    name: ["".join(cell["source"]) for cell in json.loads((NOTEBOOKS / f"{name}.ipynb").read_text("utf-8"))["cells"]
           if cell["cell_type"] == "code"]
    for name in EXPERIMENTS
}  # fmt: skip
OPENING = {name: compile(cells[1], name, "exec") for name, cells in CELLS.items()}
WHOLE = [0, 1, -1, 2, 3, 9, 10, 499, 500, 10_001, 70_000, 2**31, 2**63, 2**64 - 1, 2**64, 10**30, -(10**30)]
REAL = [0.0, 1.0, -1.0, 0.5, 0.1, 1e-300, 1e300, 1e30, 700.0, 701.0, 1000.5, math.inf, -math.inf, math.nan, -1e-9]
TEXTS = ["", "0", "[1, 2]", "None", "nan", "cpu", "cuda:1", "../..", "type", "0..3", "0..99999999999", "3..1"]
ODD = st.sampled_from([None, True, [], [[1]], {"a": 1}, (1, 2), b"x"])


@pytest.fixture(autouse=True)
def elsewhere(monkeypatch, tmp_path):
    monkeypatch.setenv("PRUNING_RUNS", str(tmp_path))


def opened(name, **given):
    """Return the namespace of a notebook after it has opened its run with these parameters."""
    namespace = {}
    exec(CELLS[name][0], namespace)
    namespace |= given
    with contextlib.redirect_stdout(io.StringIO()):
        exec(OPENING[name], namespace)
    return namespace


def drawn(default):
    """Return a strategy of values, most of them of the kind of a default, near the ends of what kinds can hold."""
    if isinstance(default, list):
        return st.one_of(drawn(default[0]), st.lists(drawn(default[0]), max_size=4), ODD)
    if isinstance(default, bool):
        return st.one_of(st.booleans(), ODD)
    if isinstance(default, str):
        return st.one_of(st.sampled_from(TEXTS), st.text(max_size=5), ODD)
    numbers = st.one_of(st.sampled_from(WHOLE), st.integers())
    if isinstance(default, float):
        numbers = st.one_of(st.sampled_from(REAL), st.floats(), st.sampled_from(WHOLE))
    return st.one_of(numbers, numbers, st.lists(numbers, max_size=3), ODD)


@st.composite
def parameters(draw, name):
    """Return up to three parameters of a notebook, drawn."""
    defaults = runs.declared(name)
    chosen = draw(st.lists(st.sampled_from(sorted(defaults)), min_size=1, max_size=3, unique=True))
    return {key: draw(drawn(defaults[key])) for key in chosen}


def outside(number, interval):
    """Return whether a number is outside of "[a, b)", written otherwise than in the library."""
    low, high = interval[1:-1].split(", ")
    low, high = (eval(end.replace("^", "**"), {"inf": math.inf}) for end in (low, high))
    return number < low or number > high or (number == low and interval[0] == "(") or (
        number == high and interval[-1] == ")")  # fmt: skip


@pytest.mark.parametrize("name", EXPERIMENTS)
@settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(draws=st.data())
def test_what_is_drawn_is_refused_or_in_range(name, draws):
    given = draws.draw(parameters(name))
    try:
        run = opened(name, **given)["run"]
    except ParameterError as error:
        assert len(str(error)) > 20
        return
    table = ranges.RANGES | ranges.OWN.get(name, {})
    for key, value in run.parameters.items():
        numbers = value if isinstance(value, list) else [value]
        if key in table and not isinstance(numbers[0], str):
            assert not any(outside(number, table[key]) for number in numbers), (key, value)


def settled(name, **given):
    """Return the parameters of a notebook that makes no record, as its third cell has them."""
    namespace = parameters_of(name) | given | {"In": ["", "# Parameters\n" + "".join(f"{key} = 0\n" for key in given)]}
    runs.settle(name, namespace)
    return namespace


def parameters_of(name):
    return in_cell(runs.ROOT / "notebooks" / f"{name}.ipynb")


@pytest.mark.parametrize("name", OTHERS)
def test_what_makes_no_record_has_a_door_too(name):
    defaults = parameters_of(name)
    assert {key: settled(name)[key] for key in defaults} == defaults
    with pytest.raises(ParameterError, match="no parameter 'widht'.*The parameters are: " + ", ".join(defaults)):
        settled(name, widht=3)
    for key, default in defaults.items():
        first = default[0] if isinstance(default, list) else default
        with pytest.raises(ParameterError, match=f"^{key} = "):
            settled(name, **{key: 3 if isinstance(first, str) else "no"})
        if isinstance(default, list):
            assert settled(name, **{key: first})[key] == [first]
    with pytest.raises(ParameterError, match=f"no value for {next(iter(defaults))}: run the"):
        runs.settle(name, {key: value for key, value in [*defaults.items()][1:]})


@pytest.mark.parametrize("name", EXPERIMENTS + OTHERS)
def test_every_number_of_a_notebook_has_a_range(name):
    """And both ends of it are let in or refused as the interval says, each alone."""
    table = ranges.RANGES | ranges.OWN.get(name, {})
    defaults, door = (runs.declared(name), opened) if name in EXPERIMENTS else (parameters_of(name), settled)
    first = {key: value[0] if isinstance(value, list) else value for key, value in defaults.items()}
    numbers = {key for key, value in first.items() if isinstance(value, int | float) and not isinstance(value, bool)}
    assert numbers - set(table) == set()
    for key in numbers:
        for end, allowed in zip(errors.ends(table[key]), (table[key][0] == "[", table[key][-1] == "]"), strict=True):
            assert errors.within(end, table[key]) == allowed
        low = errors.ends(table[key])[0]
        with pytest.raises(ParameterError, match=f"^{key} = "):
            door(name, **{key: [low - 1] if isinstance(defaults[key], list) else low - 1})


def test_the_shapes_of_data_are_as_told():
    for name in ("digits", "digits32", "digits64"):
        found = sets.load(name)
        shape = (*found.train_x.shape[1:3], found.classes, len(found.train_y), len(found.test_y))
        assert sets.SHAPES[name] == shape
    assert set(sets.SHAPES) == {*sets.NAMES, *sets.UNLABELLED}


@pytest.mark.parametrize("units", range(1, 10))
def test_few_units_have_no_budgets(units):
    with pytest.raises(ParameterError, match="keep = .* different numbers from 1 to"):
        opened("dpp_prune", hidden=[units])
    if units >= 2:
        assert opened("dpp_prune", hidden=[units], keep=[1, 2])["run"].todo


@pytest.mark.parametrize(
    ("name", "given", "message"),
    [
        ("dpp_prune", {"keep": [0, 3]}, "keep = .* 0, 3 of 500"),
        ("dpp_prune", {"keep": [501]}, "501 of 500"),
        ("dpp_prune", {"keep": [785], "type": "dpp_edge"}, "785 of 784"),
        ("dpp_prune", {"beta": -0.1}, r"beta = -0.1.*\[0, inf\)"),
        ("dpp_prune", {"dropout": 1.0}, r"dropout = 1.0.*\[0, 1\)"),
        ("dpp_teacher_student", {"students": 1}, "keep = .*none of 1"),
        ("dpp_teacher_student", {"seed": 2**54}, "not in .0, 2.54., which is allowed"),
        ("phew_density", {"rounds": 0}, "rounds = 0"),
        ("phew_density", {"rule": "adm"}, "Did you mean 'adam'"),
        ("phew_density", {"rule": "adam"}, "momentum = 0.9 with rule 'adam'"),
        ("phew_density", {"momentum": 0.0}, "nesterov"),
        ("phew_density", {"net": "vgg11", "dataset": "digits"}, "takes images of cifar10"),
        ("phew_density", {"type": "snip", "dataset": "digits32", "examples_per_class": 200}, "are more than"),
        ("train_time_prune", {"initial": 101}, "initial = 101: allowed are 0 to epochs = 100"),
        ("train_time_prune", {"hidden": [3, 0]}, "hidden"),
        ("train_time_prune", {"channels": True}, "channels = True with .*: gray images have no filters here"),
        ("train_time_prune", {"rule": "adamm"}, "rule"),
        ("train_time_prune", {"average": 0.0, "maximum": -0.0}, "all units would have one score; take another number"),
        ("train_time_prune", {"lr": 1e308}, r"lr = 1e\+308: 1e\+308 is not in \(0, 1000\], which is allowed"),
        ("lin_sep", {"seed": "0..4294967296"}, "at most 100000 of them"),
        ("lin_sep", {"seed": 2**32}, r"4294967296 is not in \[0, 2\^32\)"),
        ("conv_rate", {"published_seed": 2**32}, r"4294967296 is not in \[0, 2\^32\)"),
        ("conv_rate", {"rate": 1e308}, "rate = 1e.308"),
        ("vae_prune", {"initial": 0}, "initial = 0: allowed are 1"),
        ("vae_prune", {"latent": 0}, "latent = 0"),
        ("weight_vs_neuron", {"type": "small", "hidden": [10], "sparsities": [0.99]}, "0.99 leaves"),
        ("sparse_speed", {"batches": [10_001]}, "10000 test images"),
        ("arena", {"type": ["fpgm", "outgoing_l1"], "net": "resnet20", "dataset": "cifar10"}, "outgoing_l1, and a"),
        ("arena", {"type": "fpgm", "net": "resnet20", "dataset": "cifar10", "width": 2, "sparsities": [0.98],
                   "shuffle_at": [0.98]}, "0.98 leaves .0, 0, 0"),
        ("arena", {"type": ["lamp", "snip_init"], "level": -10}, "snip_init: what is trained under masks"),
        ("arena", {"type": "fpgm", "hidden": [999, 9], "sparsities": [0.99], "shuffle_at": [0.99]}, "leaves .10, 0"),
        ("arena", {"shuffle_at": [0.5]}, "0.5 is none of the sparsities .*; take of those"),
        ("arena", {"score_examples": [5, 5]}, "score_examples = .*: 5 stands there twice"),
        ("arena", {"holdout": 50_001}, "9999 are left to train on"),
        ("arena", {"score_examples": [10_001]}, "there are 10000 images"),
        ("mnist_prune", {"train_examples": 60_001}, "10 to 60000 training images"),
        ("mnist_prune", {"width": -1}, r"width = -1: -1 is not in \[1, 65536\]"),
        ("mnist_prune", {"seed": 10**29}, "below 2\\^64"),
        ("mnist_prune", {"levels": "[-1, -2]"}, r"a list goes by -y: -y '\{levels: \[-1, -2\]\}'"),
        ("mnist_prune", {"type": "[EWN, SWN]"}, "a list goes by -y"),
        ("mnist_prune", {"device": "gpu"}, "device = 'gpu'"),
        ("xor", {"seed": "0..999999999999"}, "at most 100000"),
        ("simple_traj", {"point": [1.0]}, "2 numbers"),
    ],
)  # fmt: skip
def test_what_no_parameter_alone_makes_wrong(name, given, message):
    with pytest.raises(ParameterError, match=message):
        opened(name, **given)


# ---- as in a class: cells run once more


SHORT = {
    "lin_sep": {"seed": "0..1", "limit": 10.0, "steps": 60},
    "simple_traj": {"seed": "0..1", "limit": 5.0, "steps": 40},
    "xor": {"seed": "0..1", "limit": 5.0, "steps": 60},
    "conv_rate": {"seed": "0..1", "steps": 20, "as_published": True},
}


@pytest.mark.parametrize("name", SHORT)
def test_a_cell_that_is_run_twice_changes_no_record(name, tmp_path, monkeypatch):
    found = []
    for times in (1, 2):
        monkeypatch.setenv("PRUNING_RUNS", str(tmp_path / str(times)))
        namespace = {"display": str}
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            for number, source in enumerate(cell for cell in CELLS[name] for _ in range(times)):
                exec(source, namespace)
                namespace |= SHORT[name] if number < times else {}
        plt.close("all")
        found.append({record.name: record for record in namespace["run"].records()})
        exec(OPENING[name], namespace)
        assert namespace["run"].todo == [], "it was done, and is called what it was"
    once, twice = found
    assert once.keys() == twice.keys() and len(once) == 3
    for key, record in once.items():
        assert record.scores == twice[key].scores
        for array in record.arrays:
            np.testing.assert_array_equal(record.array(array)[0], twice[key].array(array)[0])


# ---- at the lower ends of all ranges at once


DIGITS = {"dataset": "digits", "train_examples": 10}
IMAGES = {"dataset": "digits32", "train_examples": 10, "nesterov": False, "seed": 2**64 - 1, "width": 1}
SMALL = {  # what goes together, and what keeps a run within a second
    "mnist_prune": DIGITS | {"levels": [-1], "batch_size": 10, "width": 8},
    "cifar_prune": {"dataset": "digits32", "train_examples": 10, "levels": [-1], "batch_size": 5, "width": 2},
    "dpp_prune": DIGITS | {"hidden": [2], "keep": [1], "type": ["dpp_node", "dpp_edge"], "seed": 2**64 - 1},
    "dpp_teacher_student": {"keep": [1], "students": 2, "seed": 2**54 - 1},
    "phew_density": IMAGES | {"net": "vgg11_bn", "type": ["synflow", "random", "reinit"], "densities": [5e-4, 1.0]},
    "phew_width": IMAGES | {"density": 0.01},
    "simple_traj": {"seed": f"{2**64 - 1}", "point": [1.0, 1.0]},
    "lin_sep": {"seed": "0"},
    "xor": {"seed": "0", "exponents": [0.0] * 3, "caps": [1e-30] * 3},
    "conv_rate": {"seed": "0"},
    "sparse_speed": DIGITS | {"type": ["csr", "shrunk"]},
    "train_time_prune": DIGITS | {"type": ["contribution", "small"], "seed": 2**64 - 1, "average": 1.0},
    "vae_prune": DIGITS | {"initial": 1},
    "arena": DIGITS
    | {
        "type": ["small", "hessian", "lamp_init", "magnitude_gradual", "dpp_units"],
        "hidden": [2],
        "level": 0.0,
        "drops": [0],
        "seed": 2**64 - 1,
        "sparsities": [0.0],
        "shuffle_at": [0.0],
    },
    "weight_vs_neuron": DIGITS | {"type": ["weight", "small"], "seed": 2**64 - 1},
}


def lowest(name):
    """Return the numbers of a notebook at the lower ends of their ranges; just above, where the end is not allowed."""
    table, found = ranges.RANGES | ranges.OWN.get(name, {}), {}
    for key, default in runs.declared(name).items():
        first = default[0] if isinstance(default, list) else default
        if key in table and key != "seed" and not isinstance(first, str):
            low = max(errors.ends(table[key])[0], 0)
            low = low if table[key][0] == "[" else 1e-30
            found[key] = [low] if isinstance(default, list) else low
    return found


@pytest.mark.parametrize("name", EXPERIMENTS)
@pytest.mark.filterwarnings("ignore:.*numerically the identity")  # of a network of one input
def test_the_lower_ends_of_all_ranges_run(name):
    """What the door lets in must not fail behind it: every cell runs, and the records are saved."""
    namespace = opened(name, **lowest(name) | SMALL[name]) | {"display": str}
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        for source in CELLS[name][2:]:
            exec(source, namespace)
    plt.close("all")
    run = namespace["run"]
    assert len(run.records()) == len(run.todo) >= 1
