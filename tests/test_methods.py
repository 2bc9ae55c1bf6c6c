"""Methods: ten lines in one file are a type of the notebooks and of their summaries; any torch module can be pruned."""

import contextlib
import importlib.util
import io
import re
import subprocess
import sys

import matplotlib.pyplot as plt
import pytest
import torch
from matplotlib.text import Text
from torch import nn
from torch.nn.functional import cross_entropy

from lib import drawing, masks, methods, nets, phew, runs
from lib.errors import ParameterError
from lib.studies.arena import entrants
from lib.studies.challenge import modes
from lib.studies.dpp import kinds
from lib.studies.importance import study as importance
from lib.studies.importance import vae_study
from lib.studies.phew import study as initial
from tests.shown import ACTIVITY, CONTRIBUTING, FISHER
from tests.test_door import CELLS
from tests.test_summaries import summarised


@pytest.fixture(scope="module", autouse=True)
def written(tmp_path_factory):
    """Two methods, each in a file of its own, which nothing else names."""
    folder = tmp_path_factory.mktemp("methods")
    for name, text in (("mine", FISHER), ("yours", ACTIVITY)):
        (folder / f"{name}.py").write_text(text, "utf-8")
        spec = importlib.util.spec_from_file_location(name, folder / f"{name}.py")
        spec.loader.exec_module(importlib.util.module_from_spec(spec))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PRUNING_RUNS", str(folder / "runs"))
        patch.setenv("PRUNING_FIGURES", str(folder / "figures"))
        yield folder
    del methods.METHODS["weights"]["fisher"], methods.METHODS["units"]["activity"]
    plt.close("all")


def executed(name, **given):
    """Run the cells of a notebook with these parameters."""
    namespace = {"display": print}
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        for number, source in enumerate(CELLS[name]):
            exec(source, namespace)
            namespace |= {} if number else given


@pytest.fixture
def texts(monkeypatch):
    """Return what stands in every figure that is saved, `{name: texts}`."""
    found, save = {}, drawing.save

    def kept(figure, name):
        path = save(figure, name)
        if path:
            found[name] = {text.get_text() for text in figure.findobj(Text)}
        return path

    monkeypatch.setattr(drawing, "save", kept)
    return found


SMALL = {"device": "cpu", "seed": [1, 2]}
OF_WEIGHTS = SMALL | {
    "seed": 1, "type": ["snip", "fisher"], "dataset": "digits32", "width": 2, "densities": [0.3, 0.1],
    "train_examples": 60, "epochs": 1, "drops": [1], "augment": False, "watch": 20, "batch_size": 20,
    "examples_per_class": 2,
}  # fmt: skip
OF_UNITS = SMALL | {
    "type": ["none", "magnitude", "activity"], "dataset": "digits", "train_examples": 100, "epochs": 3, "initial": 1,
    "increment": 1, "batch_size": 50,
}  # fmt: skip


def test_ten_lines_in_one_file_are_a_type_of_weights(written, texts):
    executed("phew_density", **OF_WEIGHTS)
    accuracy = runs.curves("phew_density", "test_accuracy").pivot(
        index=["seed", "density"], columns="type", values="test_accuracy"
    )
    assert len(accuracy) == 2 and (accuracy["fisher"] == accuracy["snip"]).all(), "a square ranks as its root does"
    assert "fisher" in summarised("summary_phew")
    assert {name for name, found in texts.items() if "fisher" in found} >= {"phew_accuracy", "phew_layers"}


def test_ten_lines_in_one_file_are_a_type_of_units(written, texts):
    executed("train_time_prune", **OF_UNITS)
    left = runs.table("train_time_prune").groupby("type")["units_left"].unique()
    assert left["activity"].tolist() == left["magnitude"].tolist() == [64] and left["none"].tolist() == [80]
    assert "activity" in summarised("summary_importance")
    shown = {name for name, found in texts.items() if "activity" in found}
    assert shown == {"importance_training", "importance_left", "importance_cost", "importance_recovery"}


def test_a_type_that_no_file_has_is_no_choice():
    for notebook, more in (("phew_density", "Did you mean 'fisher'"), ("train_time_prune", "contribution")):
        with pytest.raises(ParameterError, match=f"fishr.*{more}"):
            executed(notebook, type="fishr")


# ---- the register


def test_all_files_of_the_folder_are_looked_through():
    """In a process that has imported nothing else."""
    code = "from lib.pruning import methods; methods.names()\nfor of in methods.METHODS.values(): print(*sorted(of))"
    found = subprocess.run([sys.executable, "-c", code], cwd=runs.ROOT, capture_output=True, text=True, check=True)
    methods.names()
    here = [sorted(set(known) - {"fisher", "activity"}) for known in methods.METHODS.values()]
    assert found.stdout.split() == sum(here, [])


def test_what_an_editor_leaves_beside_methods_is_none(tmp_path, monkeypatch):
    """The lock of Emacs, a link to nowhere, and what somebody put aside; they are not imported."""
    (tmp_path / ".#scores.py").symlink_to("somebody@somewhere.7")
    (tmp_path / "scores.old.py").write_text("1 / 0")
    monkeypatch.setattr(methods, "__file__", str(tmp_path / "methods.py"))
    methods._load.__wrapped__()


def test_every_way_to_misname_is_told():
    net = nets.init_(nets.MLP([6, 5, 3], ["no-WN"]), [0])
    with pytest.raises(ParameterError, match="'snib'.*Did you mean 'snip'"):
        methods.prune(net, "snib", 0.5)
    with pytest.raises(ParameterError, match="'contribution'.*of='units'"):
        methods.prune(net, "contribution", 0.5)
    with pytest.raises(ParameterError, match="snip needs examples"):
        methods.prune(net, "snip", 0.5)
    with pytest.raises(ParameterError, match=r"no keywords \['powr'\].*power.*Did you mean 'power'"):
        methods.prune(net, "synflow_l2", 0.5, powr=1)
    with pytest.raises(ParameterError, match="a layer is 'layers.7'; allowed are layers.0"):
        methods.prune(net, "magnitude", 0.5, layers=["layers.7"])
    with pytest.raises(ParameterError, match="'labels'; allowed are.*examples"):
        methods.method("mine", needs="labels")
    with pytest.raises(ParameterError, match="lib.pruning.scores has a method of weights called 'snip'"):
        methods.method("snip")(lambda net, x, y, seeds: {})


ODD = {  # what a method of one's own makes of the weights or the units of a stack
    "nothing": ("weights", lambda weights: None, "scores are a NoneType"),
    "a dict of none": ("weights", lambda weights: {}, "scores are a dict, or none"),
    "no runs": ("weights", lambda weights: nets.take(weights, 0),
                r"score of layers.0.weight is a Tensor \(5, 6\); needed is a Tensor \(2, 5, 6\), of which runs"),
    "arrays": ("weights", lambda weights: {name: w.detach().numpy() for name, w in weights.items()}, "is a ndarray"),
    "names of layers": ("weights", lambda weights: {"layers.0": weights["layers.0.weight"]}, "mean 'layers.0.weight'"),
    "a score of each weight": ("units", lambda weights: {"layers.0": weights["layers.0.weight"]}, r"needed.*\(2, 5\)"),
    "names of weights": ("units", lambda weights: {name: w.abs().sum(2) for name, w in weights.items()},
                         "'layers.0.weight'; allowed are layers.0, layers.1"),
    "complex numbers": ("weights", lambda weights: {name: w + 0j for name, w in weights.items()},
                        "is torch.complex64, torch.strided, on cpu; needed are real numbers, torch.strided, on cpu"),
    "another device": ("weights", lambda weights: {name: w.to("meta") for name, w in weights.items()}, "on meta; need"),
    "sparse numbers": ("units", lambda weights: {"layers.0": weights["layers.0.weight"].detach().sum(2).to_sparse()},
                       "torch.sparse_coo, on cpu; needed"),
}  # fmt: skip


@pytest.mark.parametrize("case", ODD)
def test_odd_scores_of_a_method_of_ones_own_are_told(case, monkeypatch):
    of, made, told = ODD[case]
    methods.names()
    function = lambda net, x, y, seeds: made(nets.weights(net))  # noqa: E731
    monkeypatch.setitem(methods.METHODS[of], "mine", methods.Method("mine", of, "nothing", False, 1, function))
    for rounds in (1, 2) if of == "weights" else (1,):
        with pytest.raises(ParameterError, match=told.replace("(2,", "(1,") if rounds == 2 else told):
            methods.prune(nets.init_(nets.MLP([6, 5, 3], ["no-WN"] * 2), [0, 1]), "mine", 0.5, of=of, rounds=rounds)


DRAWN = {  # what a method that draws makes of the weights
    "one dict": (lambda weights: weights, "mine draws a dict; needed is a list of masks, one for each density: 2"),
    "one of two": (lambda weights: [{}], "mine draws 1; needed is a list"),
    "numbers": (lambda weights: [weights, weights], r"layers.0.weight is torch.float32.*must be bool \(1, 5, 6\)"),
    "no runs": (lambda weights: [{name: w[0] > 0 for name, w in weights.items()}] * 2, r"must be bool \(1, 5, 6\)"),
    "units": (lambda weights: [{"layers.0": weights["layers.0.weight"][0] > 0}] * 2, "layers.0 is a layer, and so"),
}  # fmt: skip


@pytest.mark.parametrize("case", DRAWN)
def test_odd_masks_of_a_method_of_ones_own_are_told(case, monkeypatch):
    made, told = DRAWN[case]
    methods.names()
    function = lambda net, densities, x, y, seeds: made(nets.weights(net))  # noqa: E731
    monkeypatch.setitem(
        methods.METHODS["weights"], "mine", methods.Method("mine", "weights", "nothing", True, 1, function)
    )
    with pytest.raises(ValueError, match=told):
        methods.prune_each(nets.init_(nets.MLP([6, 5, 3], "no-WN"), [0]), "mine", [0.5, 0.1], seeds=[0])


@pytest.mark.parametrize("name, function, told", [
    (3, lambda net, x, y, seeds: {}, "a method is called 3; needed are letters"),
    ("a/b", lambda net, x, y, seeds: {}, "a method is called 'a/b'; needed"),
    (lambda net, x, y, seeds: {}, None, "a method is called <function"),
    ("mine", lambda net, x: {}, r"mine has \(net, x\); it is called with \(net, x, y, seeds\): too many"),
    ("mine", lambda net, x, y, seeds, power: {}, "missing a required argument: 'power'"),
    ("mine", dict, r"mine is a type; needed is a function \(net, x, y, seeds\)"),
])  # fmt: skip
def test_what_cannot_be_a_method_is_told_where_it_is_made_one(name, function, told):
    with pytest.raises(ParameterError, match=told):
        methods.method(name)(function)
    assert not {3, "a/b", "mine"} & {*methods.METHODS["weights"]}


@pytest.mark.parametrize("types, of, name", [
    (entrants.entrants, "weights", "none"), (entrants.entrants, "weights", "taylor"),
    (entrants.entrants, "weights", "magnitude_layer"), (importance.types, "units", "small"),
    (vae_study.types, "units", "none"), (initial.types, "weights", "reinit"), (initial.types, "weights", "phew_res"),
])  # fmt: skip
def test_a_method_cannot_take_the_name_of_a_type_that_is_something_else(types, of, name, monkeypatch):
    before = types()
    assert name in before
    other = methods.METHODS[of].get("magnitude")._replace(name=name)
    monkeypatch.setitem(methods.METHODS[of], name, other)
    with pytest.raises(ParameterError, match=f"two types are called '{name}', one of them by a method: give it anoth"):
        types()


TYPES = {"phew_density": initial.types, "train_time_prune": importance.types, "vae_prune": vae_study.types,
         "weight_vs_neuron": modes.types, "dpp_prune": kinds.types, "arena": entrants.entrants}  # fmt: skip
TABLE = re.findall(r"^ *\| (nothing|examples|moments|history) \| (.*?) \| (.*?) \|$", CONTRIBUTING, re.MULTILINE)


@pytest.mark.parametrize("draws", [False, True])
@pytest.mark.parametrize("needs, of, told", [
    (needs, of, told) for needs, *cells in TABLE for of, told in zip(methods.METHODS, cells, strict=True)
])  # fmt: skip
def test_a_method_is_a_type_of_the_notebooks_that_are_told(needs, of, told, draws, monkeypatch):
    methods.names()
    monkeypatch.setitem(methods.METHODS[of], "mine", methods.Method("mine", of, needs, draws, 1, None))
    told = told.partition("unless it draws")[0] if draws else told
    expected = {(name, kind or "mine") for name, kind in re.findall(r"`(\w+)`(?: as `(\w+)`)?", told)}
    named = ("mine", *(f"mine_{word}" for word in (*modes.OF, *kinds.OF)))
    assert {(name, kind) for name, types in TYPES.items() for kind in named if kind in types()} == expected


def test_a_method_whose_name_begins_as_another_s_is_a_type_too(monkeypatch):
    for of in modes.OF.values():
        methods.names(of)
        mine = methods.METHODS[of]["magnitude"]._replace(name="magnitude_mine")
        monkeypatch.setitem(methods.METHODS[of], "magnitude_mine", mine)
    assert {"magnitude_mine_weight", "magnitude_mine_neuron"} <= set(modes.types())


def test_a_stack_stays_what_it_is_whatever_a_method_does(monkeypatch):
    def careless(net, x, y, seeds):
        made = {name: w.detach().abs() for name, w in nets.weights(net).items()}
        net.eval().requires_grad_(False)
        for part in net.modules():
            part.register_forward_hook(lambda *_: None)
        for weight in net.parameters():
            weight.data.zero_()
        return made

    methods.names()
    monkeypatch.setitem(methods.METHODS["weights"], "careless", methods.Method(
        "careless", "weights", "nothing", False, 1, careless))  # fmt: skip
    net = nets.init_(nets.MLP([6, 5, 3], ["no-WN"] * 2), [0, 1])
    before, expected = {name: x.clone() for name, x in net.state_dict().items()}, methods.prune(net, "magnitude", 0.5)
    assert same(methods.prune(net, "careless", 0.5), expected)
    assert same(net.state_dict(), before) and net.training and all(p.requires_grad for p in net.parameters())
    assert not any(part._forward_hooks for part in net.modules())


def test_units_that_are_outputs_stay_of_a_stack_too(monkeypatch):
    """Whatever layers a method of units has scores of."""
    every = lambda net, x, y, seeds: {name: layer.weight.abs().sum(2) for name, layer in nets.layers(net).items()}  # noqa: E731
    methods.names()
    monkeypatch.setitem(methods.METHODS["units"], "every", methods.Method("every", "units", "nothing", False, 1, every))
    net = nets.init_(nets.MLP([6, 5, 3], ["no-WN"] * 2), [0, 1])
    assert list(methods.prune(net, "every", 0.5, of="units")) == ["layers.0"]


def test_densities_by_run_and_by_layer():
    net = nets.init_(nets.MLP([9, 8, 6, 3], ["no-WN"] * 2), [0, 1])
    found = methods.prune(net, "magnitude", [0.5, 0.25], of="units")
    assert [kept.sum(1).tolist() for kept in found.values()] == [[4, 2], [3, 2]]
    found = methods.prune(net, "magnitude", {"layers.1": 0.5}, of="units", layers=["layers.1"])
    assert {name: kept.sum(1).tolist() for name, kept in found.items()} == {"layers.1": [3, 3]}


# ---- any torch module


def convnet():
    torch.manual_seed(3)
    body = [nn.Conv2d(2, 4, 3, stride=2), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 6, 3, groups=2), nn.ReLU()]
    net = nn.Sequential(*body, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(24, 3)).double()
    net[1].running_mean.normal_(), net[1].running_var.uniform_(0.5, 2)
    return net


X, Y = torch.randn(8, 2, 9, 9, generator=torch.Generator().manual_seed(1)).double(), torch.arange(8) % 3
NAMES = ["0.weight", "3.weight", "7.weight"]


def highest(scores, keep):
    """Return which of all scores are among the highest, `{name: bool}`."""
    least = torch.cat([score.flatten() for score in scores.values()]).sort().values[-keep]
    return {name: score >= least for name, score in scores.items()}


def same(found, expected):
    assert list(found) == list(expected)
    return all(torch.equal(mask, expected[name]) for name, mask in found.items())


def test_snip_of_a_module_is_its_own_gradient():
    net = convnet().train()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    found = methods.prune(net, "snip", 0.3, X, Y)
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items()) and net.training
    cross_entropy(net(X), Y).backward()
    parameters = dict(net.named_parameters())
    scores = {name: (parameters[name] * parameters[name].grad).abs() for name in NAMES}
    assert same(found, highest(scores, masks.count(72 + 108 + 72, 0.3)))
    assert same(methods.prune(net, "fisher", 0.3, X, Y), found)


def test_synflow_of_a_module_by_a_loop():
    """Weights alone: biases zero, batch normalisation the identity but for its ε; three rounds, each a sort."""
    net, kept, total = convnet().eval(), {}, 72 + 108 + 72
    found = methods.prune(net, "synflow", 0.05, X, rounds=3)
    sizes = {name: p.detach().abs() for name, p in net.named_parameters() if name in NAMES}
    for k in (1, 2, 3):
        leaves = {name: (size * kept.get(name, 1)).requires_grad_() for name, size in sizes.items()}
        y = nn.functional.conv2d(torch.ones(1, 2, 9, 9).double(), leaves["0.weight"], stride=2) / (1 + 1e-5) ** 0.5
        y = nn.functional.conv2d(y.relu(), leaves["3.weight"], groups=2)
        (nn.functional.adaptive_avg_pool2d(y.relu(), 2).flatten(1) @ leaves["7.weight"].T).sum().backward()
        scores = {name: leaf.detach() * leaf.grad for name, leaf in leaves.items()}
        kept = highest(scores, masks.count(total, 0.05 ** (k / 3)))
    assert same(found, kept)


def test_walks_and_magnitudes_of_a_module():
    net = convnet()
    weights, _ = phew.phew_masks(net, 70, verbose=False)
    found = methods.prune(net, "phew", 0.3, nested=True)
    assert same(found, {name: mask.bool() for name, mask in zip(NAMES, weights, strict=True)})
    sizes = {name: p.detach().abs() for name, p in net.named_parameters() if name in NAMES}
    assert same(methods.prune(net, "magnitude", 0.5), highest(sizes, 126))
    assert all(sizes[name].shape == mask.shape for name, mask in methods.prune(net, "random", 0.5, seeds=[4]).items())


@pytest.mark.parametrize("batches", [1, 2])
def test_activations_of_a_module_are_its_own(batches):
    """What convolutions make, before the batch normalisation; no hook is left, and none on the module itself."""
    net = convnet().train()
    x, y = (X, Y) if batches == 1 else ([X[:5], X[5:]], [Y[:5], Y[5:]])
    one, given = methods.modules.One(net, x), methods.checks.examples(x)
    before = methods.score(one, "magnitude", of="units")
    for act, options in ((torch.relu, {}), (torch.tanh, {"act": torch.tanh})):
        found = methods.score(net, "activity", x, y, of="units", **options)
        z = [net[0](X), net[:4].eval()(X)]
        expected = {name: act(made).abs().sum((0, 2, 3)) for name, made in zip(("0", "3"), z, strict=True)}
        torch.testing.assert_close(found, expected)
        found = methods.score(one, "activity", given, y, of="units", **options)
        torch.testing.assert_close(nets.take(found, 0), expected)
    assert not any(part._forward_hooks for part in (*net.modules(), *one._own.modules()))
    assert same(methods.score(one, "magnitude", of="units"), before)


def test_a_hook_may_change_what_a_part_of_a_module_makes():
    one = methods.modules.One(convnet().eval(), X)
    logits = one(X.flatten(1))
    with one.get_submodule("7").register_forward_hook(lambda part, read, made: made + 1):
        torch.testing.assert_close(one(X.flatten(1)), logits + 1)
    with one.get_submodule("7").register_forward_pre_hook(lambda part, read: (read[0] * 0,)):
        torch.testing.assert_close(one(X.flatten(1)), one.get_submodule("7").bias[:, None].expand_as(logits))


def test_a_method_without_a_score_of_hidden_layers_is_told(monkeypatch):
    methods.names()
    nothing = methods.Method("blind", "units", "nothing", False, 1, lambda net, x, y, seeds: {})
    monkeypatch.setitem(methods.METHODS["units"], "blind", nothing)
    for layers in (None, ["3"]):
        with pytest.raises(ParameterError, match="blind has no score of a hidden layer of Sequential.*some of.* 3, by"):
            methods.prune(nn.Sequential(*convnet()), "blind", 0.5, X, of="units", layers=layers)


def test_a_module_shares_what_it_shares():
    """One layer used twice has one mask; its gradient has both uses."""
    layer = nn.Linear(5, 5, bias=False)
    net = nn.Sequential(layer, nn.ReLU(), layer).double()
    x, y = torch.randn(7, 5).double(), torch.arange(7) % 5
    found = methods.prune(net, "snip", 0.4, x, y)
    cross_entropy(net(x), y).backward()
    assert same(found, highest({"0.weight": (layer.weight * layer.weight.grad).abs()}, 10))
    assert int(methods.prune(net, "synflow", 0.4)["0.weight"].sum()) == 10  # which copies what has run


def test_a_module_that_cannot_be_pruned_says_why():
    with pytest.raises(ParameterError, match="pass x"):
        methods.prune(convnet(), "synflow", 0.5)
    with pytest.raises(ParameterError, match="neither a convolution nor a linear"):
        methods.prune(nn.ReLU(), "magnitude", 0.5)
    with pytest.raises(ParameterError, match="1 normalise each example"):
        methods.prune(nn.Sequential(nn.Linear(4, 3), nn.LayerNorm(3)), "synflow", 0.5)
    with pytest.raises(ParameterError, match="the module itself"):
        methods.prune(nn.Linear(4, 3), "magnitude", 0.5)
    assert list(methods.prune(nn.Sequential(nn.Linear(4, 3), nn.LayerNorm(3)), "magnitude", 0.5)) == ["0.weight"]


def test_methods_stand_in_the_order_of_their_files_whatever_was_imported_before():
    methods.names()
    for known in methods.METHODS.values():
        files = [one.function.__module__ for one in known.values()]
        ours = [name for name in files if name.startswith("lib.pruning.")]
        assert ours == sorted(ours)
