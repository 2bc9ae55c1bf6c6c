"""The benchmarks' table: ratios by rounds, files that name the machine, failures that are told; small runs of some."""

import contextlib
import importlib
import json
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

FOLDER = Path(__file__).resolve().parents[1] / "benchmarks"


@pytest.fixture
def load(monkeypatch):
    """A function that imports a benchmark; none of their names stays in the table that all tests share."""
    monkeypatch.syspath_prepend(str(FOLDER))
    before = set(sys.modules)
    yield importlib.import_module
    for name in set(sys.modules) - before:
        if Path(getattr(sys.modules[name], "__file__", None) or "/").parent == FOLDER:
            del sys.modules[name]


@pytest.fixture
def modules(load):
    return load("measure"), load("all")


@pytest.fixture
def saved(load, tmp_path, monkeypatch):
    """A function that returns a table by its name; small data, neither a ceiling measured nor garbage sought."""
    measure = load("measure")
    monkeypatch.setenv(measure.FOLDER, str(tmp_path))
    monkeypatch.setattr(measure, "ceiling", lambda threads: 1e12)
    monkeypatch.setattr(measure, "gc", SimpleNamespace(collect=list, disable=list, enable=list))
    workloads = load("workloads")
    small = {"MNIST": "digits", "CIFAR": "digits32", "UNITS": 16, "HIDDEN": (8,), "FILTERS": 2}
    for name, value in small.items():
        monkeypatch.setattr(workloads, name, value)
    for rule in (workloads.SCHEDULE, workloads.ADAM):
        monkeypatch.setitem(rule, "batch", 4)
    return lambda name: json.loads((tmp_path / f"{name}.json").read_text("utf-8"))


def medians(table):
    return {row["what"]: row["median"] for row in table["rows"]}


def filled(measure, folder, monkeypatch):
    monkeypatch.setenv(measure.FOLDER, str(folder))
    report = measure.Report("hare", "a race")
    assert report.add("tortoise", [2.0, 9.0, 4.0], flops=measure.ceiling(1) * 1.0) is None
    ratio = report.add("hare", [1.0, 3.0, 1.0], "tortoise")
    report.close(ratio)
    return json.loads((folder / "hare.json").read_text())


def test_a_ratio_is_the_median_of_the_ratios_of_the_rounds(modules, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(modules[0], "ceiling", lambda threads: 5.0)
    table = filled(modules[0], tmp_path, monkeypatch)
    assert table["ratio"] == 3.0  # 2, 3 and 4, where the medians 4 and 1 would give 4
    assert [row["ratio"] for row in table["rows"]] == [None, 3.0]
    assert table["rows"][0]["share_of_ceiling"] == pytest.approx(5.0 / 4 / 5)
    assert capsys.readouterr().out.splitlines()[-1] == "hare: 3.0x"


def test_the_page_has_every_row_and_names_the_machine(modules, tmp_path, monkeypatch):
    monkeypatch.setattr(modules[0], "ceiling", lambda threads: 5.0)
    table = filled(modules[0], tmp_path, monkeypatch)
    page = modules[1].text({"hare": table})
    assert "## hare: 3×" in page and modules[0].machine()["device"] in page
    assert "| hare | 1 s | 1 s | 3 s | 3 | tortoise | 3× |  |" in page
    assert "| tortoise | 4 s | 2 s | 9 s | 3 |  |  | 25 % |" in page


def test_nothing_is_saved_unasked(modules, tmp_path, monkeypatch):
    monkeypatch.delenv(modules[0].FOLDER, raising=False)
    monkeypatch.chdir(tmp_path)
    modules[0].Report("hare", "a race").close(1.0)
    assert not list(tmp_path.iterdir())


def test_a_benchmark_that_fails_is_told_and_the_others_are_kept(modules, tmp_path, monkeypatch):
    everything = modules[1]
    (tmp_path / "good.py").write_text(
        f"import sys; sys.path.insert(0, {str(FOLDER)!r})\nimport measure\nmeasure.Report('good', 'x').close(2.0)\n"
    )
    (tmp_path / "bad.py").write_text("raise SystemExit(3)\n")
    monkeypatch.setattr(everything, "HERE", tmp_path)
    with pytest.raises(SystemExit, match="failed: bad"):
        everything.main([])
    (saved,) = (tmp_path / "results").glob("*.json")
    assert list(json.loads(saved.read_text())) == ["good"]
    with pytest.raises(SystemExit, match="no benchmark is called worse; there are page, bad, good"):
        everything.main(["worse"])


def test_what_the_page_tells_are_benchmarks_that_are_made_by_one_name(modules, monkeypatch):
    everything, made = modules[1], []
    told = [*everything.page.PIECES, *dict.fromkeys(name for name, *_ in everything.page.OTHERS)]
    told.remove("deep_descent")
    assert set(told) <= set(everything.names())
    monkeypatch.setattr(everything, "run", lambda name, limit: made.append(name) or (None, everything.ELSEWHERE))
    monkeypatch.setattr(everything.Results, "put", lambda *table: None)
    everything.main(["page"])
    assert made == told


TABLE = {"name": "a", "about": "x", "ratio": 34.5, "unit": " % idle", "peak_gib": 1.0, "rows": []}
WRITES = "import json, os, sys\nfolder, name = os.environ['PRUNING_BENCHMARKS'], 'NAME' + ''.join(sys.argv[1:])\n"
WRITES += "open(f'{folder}/{name}.json', 'w').write(TABLE)\nopen(HERE + '/log', 'a').write(name + ' ')\n"


def written(folder, name, stem, machine, table=TABLE):
    """Write a benchmark that saves a table and notes that it ran."""
    content = repr(json.dumps(table | {"machine": machine}))
    text = WRITES.replace("NAME", name).replace("TABLE", content).replace("HERE", repr(str(folder)))
    (folder / f"{stem}.py").write_text(text)


def test_what_is_cut_keeps_what_it_measured_but_replaces_no_whole_table(modules, tmp_path, monkeypatch):
    measure, everything = modules
    monkeypatch.setenv(measure.FOLDER, str(tmp_path))
    measure.Report("hare", "a race").add("first", [2.0])
    cut = json.loads((tmp_path / "hare.json").read_text())
    assert cut["ratio"] is None and [row["what"] for row in cut["rows"]] == ["first"]
    monkeypatch.setattr(everything, "HERE", tmp_path)
    found = []
    for table, end in ((cut, "sys.exit(3)"), (cut | {"ratio": 2.0}, ""), (cut, "sys.exit(4)")):
        written(tmp_path, "hare", "hare", measure.machine(), table)
        (tmp_path / "hare.py").write_text((tmp_path / "hare.py").read_text() + end)
        with contextlib.suppress(SystemExit):
            everything.main([])
        (page,) = (tmp_path / "results").glob("*.md")
        found.append(page.read_text().split("## ")[1].split("\n")[0])
    assert found == ["hare: not whole", "hare: 2×", "hare: 2×"]
    (without,) = (tmp_path / "results").glob("*-without.txt")
    assert "hare: ended with status 4" in without.read_text()


def test_pieces_are_benchmarks_and_new_ones_are_those_whose_files_changed(modules, tmp_path, monkeypatch, capsys):
    measure, everything = modules
    monkeypatch.setattr(everything, "HERE", tmp_path)
    written(tmp_path, "one", "one", measure.machine())
    written(tmp_path, "two.", "two", measure.machine())
    (tmp_path / "two.py").write_text((tmp_path / "two.py").read_text() + 'PIECES = ("left", "right")\n')
    (tmp_path / "cuda.py").write_text(f"raise SystemExit({measure.NOT_HERE})\n")
    (tmp_path / "slow.py").write_text("import time\ntime.sleep(60)\n")
    assert everything.names() == ["cuda", "one", "slow", "two.left", "two.right"]
    with pytest.raises(SystemExit, match=r"^failed: slow \(took more than 1 s\)$"):
        everything.main(["--limit", "1", "--new", "cuda", "slow", "two.left"])
    assert "cuda needs a CUDA GPU" in capsys.readouterr().out
    (page,) = (tmp_path / "results").glob("*.md")
    assert "## two.left: 34.5 % idle" in page.read_text()
    everything.main(["--limit", "5", "--new"])  # neither what was made nor what failed
    assert (tmp_path / "log").read_text().split() == ["two.left", "one", "two.right"]
    written(tmp_path, "slow", "slow", measure.machine())
    everything.main(["--new", "slow", "one"])
    assert (tmp_path / "log").read_text().split()[3:] == ["slow", "one"]
    (page,) = (tmp_path / "results").glob("*-without.txt")
    assert page.read_text().startswith("cuda: needs a CUDA GPU, code ") and "slow" not in page.read_text()


def test_a_benchmark_for_another_machine_says_so(load, monkeypatch, capsys):
    measure = load("measure")
    monkeypatch.setattr(measure, "DEVICE", "cpu")
    with pytest.raises(SystemExit) as ended:
        measure.need_cuda("hare")
    assert ended.value.code == measure.NOT_HERE
    assert capsys.readouterr().out == "hare: needs a CUDA GPU, and torch sees none here\n"


def test_shares_of_a_notebook_add_up(load, saved, monkeypatch, tmp_path):
    goes = load("where_time_goes")
    small = {"seed": 1, "type": "dpp_node", "dataset": "digits", "hidden": [9], "keep": [4], "epochs": 2, "beta": 0.0}
    monkeypatch.setitem(goes.SMALL, "dpp_prune", small)
    monkeypatch.setenv("PRUNING_RUNS", str(tmp_path / "runs"))
    goes.main("dpp_prune")
    table = saved("where_time_goes.dpp_prune")
    rows = medians(table)
    cells = sum(share for what, share in rows.items() if what.startswith("code cell"))
    assert 90 < cells <= 100.01, "the rest is a folder made and removed, which takes longer on a busy machine"
    kinds = [rows[kind] for kind in [*goes.KINDS, "outside of operators: Python, files, figures"]]
    assert sum(kinds) == pytest.approx(100) and min(kinds) >= 0
    assert rows["products and convolutions"] > 0 and rows["linear algebra"] > 0, "numpy's is counted"
    assert any(what.startswith("lib/studies/dpp/study.py") and what.endswith("dense, in all") for what in rows)
    assert table["unit"] == " % in products and convolutions"
    assert not (tmp_path / "runs").exists(), "records are nobody's"


def test_every_operator_has_the_kind_of_its_work(load):
    kinds = {
        "products": "mm bmm addmm baddbmm mkldnn_convolution convolution_backward cudnn_convolution",
        "linear": "linalg_eigh linalg_cholesky_ex linalg_lstsq triangular_solve", "sorting": "topk sort kthvalue",
        "gathers": "index index_select gather scatter_ index_put_ nonzero", "optimizers": "_fused_adam_ _fused_sgd_",
        "batch": "native_batch_norm max_pool2d_with_indices", "copies": "copy_ clone _to_copy empty_strided zero_ cat",
        "reductions": "sum mean logsumexp _log_softmax linalg_vector_norm argmax any", "views": "t view as_strided",
        "elementwise": "mul_ add exp where maximum threshold_backward masked_fill_ convert",
    }  # fmt: skip
    kind_of = load("where_time_goes").kind_of
    for kind, operators in kinds.items():
        for operator in operators.split():
            assert kind_of(operator).startswith(kind), operator


def test_choices_stand_beside_their_alternatives(load, saved, monkeypatch, capsys):
    choices, stack = load("cpu_choices"), load("toy_stack")
    for name, value in {"EXAMPLES": 64, "IMAGES": 8, "BATCH": 4, "XOR": 3, "RUNS": 2, "WIDTHS": (310, 320)}.items():
        monkeypatch.setattr(choices, name, value)
    monkeypatch.setattr(stack, "STEPS", 5)
    monkeypatch.setattr(torch, "compile", lambda function, dynamic: function)
    choices.main(1, ["threads", "compile", "stack"])
    rows = list(medians(saved("cpu_choices")))
    assert len(rows) == 2 * (3 + 2 + 2)
    for first, size, second in (("together", "246,760", "one by one"), ("one by one", "254,720", "together")):
        assert [row for row in rows if size in row] == [f"2 MNIST runs of {size} weights, {w}" for w in (first, second)]
        assert f"weights: the library has {first}; {second} takes" in capsys.readouterr().out or first == "one by one"


def test_a_step_stands_beside_that_of_a_careful_user(load, saved, monkeypatch):
    """Each of ours has two peers, and a peer trains as the study does."""
    claims, measure = load("claims"), load("measure")
    monkeypatch.setattr(claims, "STEPS", 1)
    monkeypatch.setattr(claims, "BATCH", 4)
    report = measure.Report("claims.one_thread", "x")
    claims.steps(report, 1)
    report.close(1.0)
    rows = saved("claims.one_thread")["rows"]
    assert [row["baseline"] for row in rows] == ["", "", "", rows[0]["what"], rows[1]["what"], *(
        rows[k]["what"] for k in (0, 2))]  # fmt: skip
    x, y = torch.randn(6, 3072), torch.arange(6)
    work = claims.plain_steps(x, y, torch.channels_last)
    network, optimizer = (cell.cell_contents for cell in work.__closure__ if hasattr(cell.cell_contents, "state_dict"))
    before = [p.detach().clone() for p in network.parameters()]
    work()
    assert all(not torch.equal(p, old) for p, old in zip(network.parameters(), before, strict=True))
    assert optimizer.defaults["nesterov"] and optimizer.defaults["weight_decay"] == 1e-4


def test_the_page_claims_what_the_tables_say(load, tmp_path, monkeypatch):
    page = load("page")
    readme = tmp_path / "README.md"
    readme.write_text("# Speed\n\n<!-- claims -->\nold\n<!-- end -->\nrest\n")
    monkeypatch.setattr(page, "PAGE", readme)
    base = {"unit": "s", "n": 3, "least": 1.0, "most": 3.0, "median": 2.0, "baseline": "", "ratio": None}
    rows = [
        base | {"what": "VGG, plain PyTorch"},
        base | {"what": "VGG", "baseline": "VGG, plain PyTorch", "ratio": 1.5},
    ]
    table = {"machine": {"device": "a chip", "isa": "AVX9", "date": "2026-11-28", "threads": 1}, "rows": rows}
    two = table | {"rows": [rows[0], rows[1] | {"ratio": 2.5}]}
    masks = table | {"rows": [base | {"what": page.OTHERS[0][1], "baseline": "the published", "ratio": 30.0}]}
    page.write({"claims.one_thread": table, "claims.two_threads": two, "masks": masks}, tmp_path)
    text = readme.read_text()
    assert "| VGG | plain PyTorch | 1.5× | 2.5× | 2 s (1 to 3) | 3 | a chip, AVX9, 2026-11-28 |" in text
    assert "| the published | 30× |  | 2 s" in text and "old" not in text and text.endswith("<!-- end -->\nrest\n")
    assert (tmp_path / "claims.png").stat().st_size > 1000
    page.write({"masks": masks | {"rows": []}}, tmp_path)
    assert readme.read_text() == text


def test_every_row_that_the_page_takes_from_other_tables_is_there(load):
    page = load("page")
    tables = json.loads((FOLDER / "results" / "AMD-EPYC.json").read_text("utf-8"))
    whats = {(name, row["what"]) for name, table in tables.items() for row in table["rows"] if row["baseline"]}
    assert {(name, what) for name, what, _ in page.OTHERS} <= whats


def test_layouts_and_stacks_are_what_they_are_called(load, monkeypatch):
    choices = load("cpu_choices")
    monkeypatch.setattr(choices, "EXAMPLES", 64)
    from lib import nets

    images, strides = torch.rand(2, 3 * 4 * 4), []
    look = lambda: strides.append(nets.pixels(images, (3, 4, 4)).stride())  # noqa: E731
    look(), choices.contiguous(look)
    assert strides == [(48, 1, 12, 3), (48, 16, 4, 1)]
    for together, sizes in ((1, [1, 1, 1]), (2, [2, 1]), (0, [3])):
        states, _ = choices.descents(8, 3, together).args
        assert [len(state.seeds) for state in states] == sizes


def test_what_cannot_be_compiled_has_a_reason(load, saved, monkeypatch):
    workloads = load("workloads")

    def compiler(function, dynamic):
        raise RuntimeError("no C++ compiler\nsought everywhere")

    def lazily(function, dynamic):
        return lambda *given: compiler(function, dynamic)

    monkeypatch.setattr(torch, "compile", lazily)
    steps, one_pass, count = workloads.mnist_steps(1, 64)
    assert count == 1 and workloads.compiled(steps, one_pass) == "no C++ compiler"
    monkeypatch.setattr(torch, "compile", lambda function, dynamic: lambda *given: time.sleep(5))
    steps, one_pass, _ = workloads.mnist_steps(1, 64)
    monkeypatch.setattr(workloads, "COMPILED", 0.1)
    assert workloads.compiled(steps, one_pass) == "it took more than 0.1 s"


def test_recorded_steps_stand_beside_launched_ones(load, saved, monkeypatch):
    steps = load("captured_steps")
    monkeypatch.setattr(steps, "STEPS", 1)
    monkeypatch.setattr(steps, "POINTS", 3)
    steps.main(1, False)
    rows = list(medians(saved("captured_steps")))
    assert rows[:4] == [
        f"{what}, {way}" for what in ("9 MNIST descents", "3 XOR networks") for way in ("launched", "recorded")
    ]
    assert len(rows) == 12


def test_a_screened_descent_stands_beside_a_whole_one(load, saved, tmp_path, monkeypatch):
    deep = load("deep_descent")
    monkeypatch.setenv("PRUNING_RUNS", str(tmp_path / "runs"))
    for name, value in {"WIDTH": 16, "LEVELS": [-1, -2, -3], "ATTEMPTS": 2, "EARLY": 2, "SAME": 5}.items():
        monkeypatch.setattr(deep, name, value)
    deep.main(1, 100, "EWN")
    rows = medians(saved("deep_descent"))
    whats = "share of the examples that count", "all examples", "screened"
    assert list(rows)[6:] == [f"{what}, at {k}" for k in (-2, -3) for what in whats]
    assert rows["float64, screened, 5 attempts, relative difference"] < 1e-12
    assert 0 < rows["float32, all of them by autograd, 5 attempts, relative difference"] < 1e-4
    assert len(list(tmp_path.rglob("level-*.safetensors"))) == 3, "made once, and kept"


SMALL = {"NETWORKS": ("resnet20",), "METHODS": ("phew", "magnitude_init"), "UNITS": 2, "IMAGES": 100}
RESULTS = {
    "challenge": "2 of 10,000",
    "masks": "2 of 160",
    "dpp": "2 of 90",
    "epoch": "by one of 1",
    "descent": "14 of",
}


@pytest.mark.parametrize("piece", RESULTS)
def test_a_small_share_of_a_whole_table(load, saved, monkeypatch, piece):
    tables = load("whole_tables")
    for name, value in (SMALL | {"STACKS": (1,)}).items():
        monkeypatch.setattr(tables, name, value)
    monkeypatch.setattr(load("mnist_epoch"), "WIDTH", 8)
    monkeypatch.setattr(tables, "at_once", lambda runs, images, kind: 1.0)
    tables.main([piece, "--share", "0.01"])
    table = saved(f"whole_tables.{piece}")
    assert RESULTS[piece] in table["about"] and table["ratio"] > 0
    assert f"whole_tables.{piece}" in load("all").names()


def test_a_table_that_does_not_exist_is_refused(load, capsys):
    with pytest.raises(SystemExit):
        load("whole_tables").main(["mask"])
    assert "pieces are ['mask']" in capsys.readouterr().err


def test_every_benchmark_says_how_it_is_run(modules):
    for path in FOLDER.glob("*.py"):
        if path.stem == "all" or path.stem not in modules[1].NOT_BENCHMARKS:
            assert f"Run: python benchmarks/{path.name}" in path.read_text("utf-8"), path.name


def test_a_benchmark_runs_to_its_last_line(tmp_path):
    done = subprocess.run(
        [sys.executable, str(FOLDER / "toy_stack.py"), "1", "2"],
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
    )
    assert done.stdout.splitlines()[-1].startswith("toy_stack: ")
