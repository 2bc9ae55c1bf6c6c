"""The explorer without a browser: what is computed, what is drawn from it, and what its controls do."""

import base64
import contextlib
import io
import json
import re

import nbformat
import numpy as np
import pytest
import torch
from nbconvert import HTMLExporter
from PIL import Image
from sklearn.metrics import confusion_matrix
from torch.nn import functional as F

from lib import (
    board,
    controls,
    convnets,
    disk,
    drawing,
    methods,
    nets,
    once,
    plain,
    runs,
    sets,
    shrink,
    subjects,
    sweep,
)
from lib.errors import ParameterError, RecordError

SIZES, STOPS = (16, 12, 8, 4), (0.0, 0.5, 0.9)
EXPLORED = [(kind, name) for kind in controls.KINDS for name in controls.explorable(kind)]
# Of what is painted there are two sorts, with scores and drawn without: one method of each, and of every kind.
PAINTED = {kind: {methods.get(name, kind).draws: name for one, name in EXPLORED if one == kind}.values()
           for kind in controls.KINDS}  # fmt: skip


def made(bias=True):
    """Return a `Subject` of random weights and images, in float64."""
    torch.manual_seed(0)
    net = nets.init_(nets.MLP(SIZES, "no-WN", bias=bias, output_bias=bias).double(), [1])
    for layer in nets.layers(net).values():
        if bias:
            torch.nn.init.normal_(layer.bias)
    x, y = torch.randn(60, 16).double(), torch.arange(60) % 4
    pictures = torch.randint(256, (60, 1, 4, 4), dtype=torch.uint8)
    return subjects.Subject("made", net, (x[:30], y[:30]), (x, y), pictures, 1)


def by_hand(net, kept, x):
    """Return the logits of a masked MLP, by NumPy."""
    for k, (name, layer) in enumerate(nets.layers(net).items()):
        tensors = {"weight": layer.weight, "bias": layer.bias}
        tensors = {key: tensor.detach()[0].numpy() for key, tensor in tensors.items() if tensor is not None}
        tensors = {key: np.where(kept.get(f"{name}.{key}", [True])[0], value, 0) for key, value in tensors.items()}
        x = (np.maximum(x, 0) if k else x) @ tensors["weight"].T + tensors.get("bias", 0)
    return x


def of_convolutions():
    """Return a `Subject` like `made`, of a chain of convolutions."""
    torch.manual_seed(0)
    blocks = (1, 2), (2,)
    net = convnets.VGG((2, 8, 8), 4, ["no-WN"], 4, blocks, biases=True, average=True).double()
    for layer in nets.layers(nets.init_(net, [1])).values():
        torch.nn.init.normal_(layer.bias)
    x, y = torch.randn(60, 128).double(), torch.arange(60) % 4
    pictures = torch.randint(256, (60, 2, 8, 8), dtype=torch.uint8)
    return subjects.Subject("filters", net, (x[:30], y[:30]), (x, y), pictures, 1)


def convolved(net, kept, x):
    """Return the logits of that network masked, by torch's own functions, one layer after the other."""
    own = {name: p.detach()[0] for name, p in net.named_parameters()}
    own |= {name: own[name] * mask[0] for name, mask in kept.items()}
    x = x.view(-1, 2, 8, 8)
    for k, pool in enumerate((None, F.max_pool2d, F.avg_pool2d)):
        x = F.relu(F.conv2d(x, own[f"convs.{k}.weight"], own[f"convs.{k}.bias"], padding=1))
        x = pool(x, 2) if pool else x
    return x.flatten(1) @ own["output.weight"].T + own["output.bias"]


@pytest.fixture(scope="module")
def subject():
    return made()


@pytest.mark.parametrize(("kind", "name"), EXPLORED)
def test_a_sweep_is_what_its_method_leaves_at_every_stop(subject, kind, name):
    found = sweep.sweep(subject, name, kind, STOPS)
    assert [cut.asked for cut in found.cuts] == list(STOPS)
    for cut in found.cuts:
        expected = by_hand(subject.net, cut.masks, subject.test[0].numpy())
        assert np.allclose(cut.logits, expected) and np.allclose(cut.small(subject.test[0]).detach(), expected)
        assert np.isclose(
            cut.left["sparsity"], 1 - sum(int(m.sum()) for n, m in cut.masks.items() if "weight" in n) / 320
        )
        assert cut.milliseconds > 0
    kept = found.cuts[1].masks
    if kind == "units":
        assert [int(kept[f"layers.{k}.bias"].sum()) for k in (0, 1)] == [6, 4]
    else:
        assert sum(int(mask.sum()) for mask in kept.values()) == 160
    assert (found.scores is None) == methods.get(name, kind).draws


@pytest.mark.parametrize(("kind", "name"), EXPLORED)
def test_filters_go_as_units_do(kind, name):
    subject = of_convolutions()
    found = sweep.sweep(subject, name, kind, STOPS)
    for cut in found.cuts:
        assert torch.allclose(cut.logits, convolved(subject.net, cut.masks, subject.test[0]))
    asked = [int(mask.sum()) for key, mask in cut.masks.items() if key.endswith("bias")]
    assert asked == [0, 1, 1] if kind == "units" else abs(cut.left["sparsity"] - 0.9) < 0.002
    if name in PAINTED[kind]:
        board.Board(subject, [found] * 2).png([cut, cut])
    elif found.scores is not None:
        bars = sweep.histogram(found.scores)
        assert np.isfinite(bars.edges).all() and bars.counts.sum() == sum(s.numel() for s in found.scores.values())


def test_a_filter_goes_and_comes_back_by_hand():
    subject = of_convolutions()
    cut = sweep.sweep(subject, "contribution", "units", STOPS).cuts[1]
    left = sweep.there(subject.net, cut.masks)
    units = {"convs.0": ~left[None], **{f"convs.{k}": cut.masks[f"convs.{k}.bias"] for k in (1, 2)}}
    other = sweep.changed(subject, cut, {unit: not there for unit, there in enumerate(left.tolist())})
    assert torch.allclose(other.logits, shrink.narrow(subject.net, units)(subject.test[0])[0].detach())
    back = sweep.changed(subject, other, dict(enumerate(left.tolist())))
    assert torch.equal(back.logits, cut.logits) and not torch.allclose(other.logits, cut.logits)
    found = sweep.images(subject, cut.masks, torch.arange(4))
    assert torch.equal(found, subject.net.convs[0].weight.detach()[0] * left[:, None, None, None])


def test_a_network_of_filters_is_trained_now_and_shown(monkeypatch):
    for name, few in {"FILTERS": 2, "EPOCHS": 1}.items():
        monkeypatch.setattr(subjects, name, few)
    monkeypatch.setattr(sweep, "STOPS", STOPS)
    explorer = controls.Explorer("digits32", examples=60)
    explorer.show()
    assert type(explorer.subject.net) is convnets.VGG and explorer.status.value == ""
    assert numbers(explorer).loc["live units by layer", "contribution"] == "1, 2, 4, 4, 8, 8, 8, 8, 10"
    x, y = sets.load("digits32").split("test")
    again = subjects.subject("digits32").net(x)[0].argmax(1)
    assert torch.equal(again[::5], explorer.sweeps[0].cuts[0].answers) and len(y) // 60 == 5


def test_what_needs_what_the_explorer_has_not_is_not_offered():
    assert ("units", "growth") not in EXPLORED and ("weights", "dpp") not in EXPLORED
    with pytest.raises(ParameterError, match="growth needs history; allowed are"):
        controls.Explorer(first="growth")


def test_numbers_are_those_of_plain_counting(subject):
    cut, whole = (sweep.sweep(subject, "magnitude", "units", STOPS).cuts[k] for k in (1, 0))
    y = subject.test[1]
    assert np.array_equal(sweep.confusion(cut.answers, y, 4), confusion_matrix(y, cut.answers, labels=range(4)))
    assert sweep.accuracy(cut, y) == np.trace(confusion_matrix(y, cut.answers)) / 60
    right = [int(whole.answers[k]) == int(y[k]) for k in range(60)]
    now = [int(cut.answers[k]) == int(y[k]) for k in range(60)]
    moved = [k for k in range(60) if whole.answers[k] != cut.answers[k]]
    lost, won = [k for k in moved if right[k]], [k for k in moved if now[k]]
    found = sweep.flips(whole.answers, cut.answers, y).tolist()
    assert lost and won and found == lost + won + [k for k in moved if k not in lost + won]


@pytest.mark.parametrize(("kind", "name"), [("units", "magnitude"), ("weights", "snip"), ("weights", "grasp")])
def test_the_histogram_counts_what_is_pruned(subject, kind, name):
    """As many below as are pruned, and the line of each count at the lowest score that stays."""
    one = sweep.sweep(subject, name, kind, STOPS)
    found = sweep.histogram(one.scores)
    everything = np.concatenate(list(found.values.values()))
    assert len(everything) == sum(score.numel() for score in one.scores.values())
    assert np.array_equal(found.counts, np.histogram(everything, found.edges)[0])
    assert found.log == (name != "grasp"), "signed scores have no logarithm"
    counts, lowest = sweep.below(found, one.cuts[1].masks, kind)
    assert counts.sum() == (10 if kind == "units" else 160) and (counts <= found.counts).all()
    for line, values in zip(lowest, found.values.values() if kind == "units" else [None], strict=True):
        values = everything if values is None else values
        assert line == np.sort(values)[len(values) // 2]


@pytest.mark.parametrize("bias", [True, False])
def test_a_unit_goes_and_comes_back_by_hand(bias):
    subject = made(bias)
    cut = sweep.sweep(subject, "magnitude", "units", STOPS).cuts[1]
    here = sweep.there(subject.net, cut.masks)
    gone, kept = int((~here).nonzero()[0]), int(here.nonzero()[0])
    less = sweep.changed(subject, cut, {kept: False})
    assert sweep.there(subject.net, less.masks).sum() == 5
    expected = by_hand(subject.net, less.masks, subject.test[0].numpy())
    narrow = {"layers.0": here.clone()[None], "layers.1": cut.masks["layers.1.weight"].any(2)}
    narrow["layers.0"][0, kept] = False
    smaller = shrink.narrow(subject.net, narrow)
    assert np.allclose(less.logits, expected) and np.allclose(less.logits, smaller(subject.test[0])[0].detach())
    again = sweep.changed(subject, less, {kept: True})
    assert torch.equal(again.logits, cut.logits)
    more = sweep.changed(subject, cut, {gone: True})
    narrow["layers.0"][0, [kept, gone]] = True
    assert np.allclose(more.logits, shrink.narrow(subject.net, narrow)(subject.test[0])[0].detach())


def test_images_are_the_weights_that_are_left(subject):
    cut = sweep.sweep(subject, "magnitude", "weights", STOPS).cuts[1]
    found = sweep.images(subject, cut.masks, torch.arange(12))
    assert torch.equal(sweep.images(subject, cut.masks, torch.tensor([5, 2])), found[[5, 2]])
    weight = nets.weights(subject.net)["layers.0.weight"].detach()[0]
    assert found.shape == (12, 1, 4, 4) and torch.equal(found.flatten(1), weight * cut.masks["layers.0.weight"][0])
    sheet = board.sheet(found, 5)
    assert sheet.shape == (12, 20, 3) and (sheet[8:, 8:] == 255).all(), "three rows of five, the last ones blank"
    strongest = np.abs(found.numpy()).argmax()
    unit, pixel = divmod(int(strongest), 16)
    pulls = found.flatten()[strongest] > 0
    y, x = unit // 5 * 4 + pixel // 4, unit % 5 * 4 + pixel % 4
    assert (sheet[y, x, 0] > sheet[y, x, 2]) == pulls, "red pulls up, blue down"


def test_the_figure_follows_the_slider(subject):
    pair = [sweep.sweep(subject, name, "units", STOPS) for name in ("magnitude", "random")]
    drawn = board.Board(subject, pair)
    before = drawn.png([one.cuts[0] for one in pair])
    shown = [one.cuts[1] for one in pair]
    after = drawn.png(shown)
    assert before != after and after == drawn.png(shown), "nothing of an earlier place is left"
    size = Image.open(io.BytesIO(after)).size
    assert size == tuple(round(side * board.DPI) for side in board.SIZE) and size[0] >= 1300
    for dot, cut in zip(drawn.dots, shown, strict=True):
        assert dot.get_xydata().tolist() == [[0.5, 100 * sweep.accuracy(cut, subject.test[1])]]
    assert [bar.get_width() for bar in drawn.rows[0]] == pytest.approx([0.5, 0.25, 0.5])


def test_thumbnails_are_the_images(subject):
    tile = board.tile(subject.pictures[:6])
    assert np.array_equal(tile[14:18, 6:10, 0], subject.pictures[5, 0]) and (tile[14:18, 10:] == 255).all()


# ---- networks that runs have left


@pytest.fixture(scope="module")
def digits():
    return sets.load("digits")


@pytest.fixture
def trained(digits, tmp_path, monkeypatch):
    """A function that keeps a network, with the accuracy that its file is to say, and returns its label."""
    monkeypatch.setenv("PRUNING_RUNS", str(tmp_path))

    def keep(kind, net, accuracy, statistics="ewn"):
        recipe = {"name": f"digits-{kind}", "type": "dense", "seed": 3}
        once.save(runs.trained(recipe) / once.FILE, net, {"test_accuracy": [0.0, accuracy]}, recipe)
        return f"digits-{kind}, dense-3"

    return keep


def accuracy_of(net, data):
    x, y = data.split("test")
    return float((net(x)[0].argmax(1) == y).double().mean())


@pytest.mark.parametrize(
    ("kind", "statistics", "norm", "options"),
    [
        ("mlp20", "ewn", "EWN", {}),
        ("challenge", "ewn", "no-WN", {"bias": False}),
        ("importance", "half", "no-WN", {"bias": False}),
        ("dpp", "ewn", "no-WN", {"activation": "sigmoid", "output_bias": True, "dropout": 0.5}),
    ],
)
def test_a_trained_network_is_the_one_that_was_kept(trained, kind, statistics, norm, options):
    data = sets.load("digits", statistics=statistics)
    net = nets.init_(nets.MLP([784, 20, 10], norm, **options), [3]).eval()
    label = trained(kind, net, accuracy_of(net, data))
    assert list(subjects.networks()) == [label]
    found = subjects.subject(label, examples=100)
    x, y = data.split("test")
    assert torch.equal(found.test[0], x[::3]) and torch.equal(found.pictures, data.test_x[::3])
    assert torch.allclose(found.net(found.test[0]), net(x[::3]), atol=1e-5)
    assert len(found.train[1]) == subjects.SCORED and torch.allclose(found.train[0].mean(), x.mean(), atol=0.05)


def test_a_network_that_reads_other_inputs_is_refused(trained):
    net = nets.init_(nets.MLP([784, 20, 10], "no-WN"), [3])
    label = trained("challenge", net, 0.97)
    with pytest.raises(RecordError, match="test accuracy of 0.9700, here it has 0"):
        subjects.subject(label)
    with pytest.raises(ParameterError, match="network is 'digit'; allowed are digits, .* Did you mean 'digits'"):
        controls.Explorer("digit")


def test_a_file_that_belongs_elsewhere_is_refused(trained, tmp_path):
    """Tensors that are none of a run, and a network of another folder, in the place of a network."""
    label = trained("mlp20", nets.init_(nets.MLP([784, 20, 10], "no-WN"), [3]), 0.1)
    path = subjects.networks()[label]
    (tmp_path / "trained" / "digits-mlp20").rename(tmp_path / "trained" / "digits-dpp")
    with pytest.raises(RecordError, match="holds name 'digits-mlp20'; asked for is name 'digits-dpp'.*own folder"):
        subjects.subject("digits-dpp, dense-3")
    disk.save_tensors(path, {"layers.0.weight": np.ones((1, 20, 784))}, {})
    with pytest.raises(RecordError, match="holds name None; asked for is name 'digits-mlp20'"):
        subjects.subject(label)


def test_what_cannot_be_explored_is_named(trained, tmp_path):
    (tmp_path / "trained" / "digits32-vgg11_bn").mkdir(parents=True)
    assert subjects.others() == ["digits32-vgg11_bn"] and subjects.networks() == {}


# ---- controls


@pytest.fixture(scope="module")
def explorer(shared_runs):
    """An explorer on show, beside an empty folder of runs; few stops, few units."""
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()):
        patch.setattr(sweep, "STOPS", STOPS)
        drawing.style()
        found = controls.Explorer()
        found._subjects[subjects.DIGITS] = made()
        found.show()
        yield found


def numbers(explorer):
    return controls.table(explorer.subject, explorer.sweeps, explorer.cuts)


def updates(explorer, monkeypatch):
    """Return the list to which all that is displayed anew is added."""
    seen = []
    for place in explorer.places:
        monkeypatch.setattr(place, "update", seen.append)
    return seen


def test_a_move_of_the_slider_changes_what_is_shown(explorer, monkeypatch):
    explorer.slider.value = 0.5
    seen, before = updates(explorer, monkeypatch), numbers(explorer)
    explorer.slider.value = 0.9
    table, figure = seen
    after = numbers(explorer)
    assert after.loc["sparsity, asked"].tolist() == ["0.0 %", "90.0 %", "90.0 %"] and explorer.status.value == ""
    assert before.loc["sparsity, true", "random"] != after.loc["sparsity, true", "random"]
    assert after.to_html() == table.data and Image.open(io.BytesIO(figure.data)).size[0] >= 1300
    assert [cut.asked for cut in explorer.cuts] == [0.9, 0.9]


def colour(explorer, place):
    """Return how far the picture of a unit is from white, at most."""
    image = Image.open(io.BytesIO(base64.b64decode(re.search("base64,([^)]*)", explorer.looks.value)[1])))
    side, (down, across) = image.size[0] // controls.ACROSS, divmod(place, controls.ACROSS)
    return 255 - np.asarray(image)[down * side :, across * side :][:side, :side].min()


def test_a_click_takes_a_unit_out_and_the_next_brings_it_back(explorer):
    explorer.slider.value = 0.0
    start, colours = [cut.logits for cut in explorer.cuts], [colour(explorer, place) for place in (2, 3)]
    explorer.units[2].click()
    assert colour(explorer, 2) < 0.4 * colours[0] and colour(explorer, 3) > 0.9 * colours[1], "faint, the ring is not"
    unit = int(explorer.ranked[2])
    assert not sweep.there(explorer.subject.net, explorer.cuts[0].masks)[unit] and "outline" in explorer.looks.value
    assert not any(torch.equal(cut.logits, old) for cut, old in zip(explorer.cuts, start, strict=True))
    assert re.search(r"-2\{[^}]*outline", explorer.looks.value)
    explorer.units[2].click()
    assert all(torch.equal(cut.logits, old) for cut, old in zip(explorer.cuts, start, strict=True))
    explorer.back.click()
    assert "outline" not in explorer.looks.value and explorer.by_hand == {}


def test_units_that_have_all_gone_are_faint(explorer):
    explorer.slider.value = 0.0
    before = [colour(explorer, place) for place in range(12)]
    for unit in explorer.units[:12]:
        unit.click()
    assert all(colour(explorer, place) < 0.4 * old for place, old in enumerate(before))
    explorer.back.click()


def test_other_methods_and_weights_are_chosen(explorer):
    explorer.kind.value = "weights"
    assert (explorer.first.value, explorer.second.value) == ("magnitude", "random") and explorer.status.value == ""
    explorer.first.value = "synflow"
    assert [one.method for one in explorer.sweeps] == ["synflow", "random"] and explorer.sweeps[
        0
    ].rounds == sweep.ROUNDS
    explorer.kind.value = "units"
    assert explorer.sweeps[0].method == "contribution" and explorer.sweeps[1].method == "random"


def test_a_method_that_is_registered_appears_and_its_errors_are_told(explorer, monkeypatch):
    for of in controls.KINDS:
        monkeypatch.setitem(methods.METHODS, of, dict(methods.METHODS[of]))

    @methods.method("first_come", of="units")
    def first_come(net, x, y, seeds):
        norms = list(nets.unit_norms(net).items())[:-1]
        return {name: -torch.arange(norm.shape[1]).expand(norm.shape) for name, norm in norms}

    @methods.method("broken", of="units")
    def broken(net, x, y, seeds):
        raise KeyError("it is <broken>")

    assert {"first_come", "broken"} < set(controls.explorable("units"))
    explorer.kind.value = "weights"
    explorer.kind.value = "units"
    explorer.first.value, explorer.slider.value = "first_come", 0.5
    assert sweep.there(explorer.subject.net, explorer.cuts[0].masks).tolist() == [True] * 6 + [False] * 6
    explorer.first.value = "broken"
    assert "KeyError: &#x27;it is &lt;broken&gt;&#x27;" in explorer.status.value and not explorer.slider.disabled
    assert explorer.first.value == "first_come" and explorer.sweeps[0].method == "first_come", "what is shown"
    explorer.units[11].click()
    assert explorer.saved.value == "" and [*explorer.by_hand] == [int(explorer.ranked[11])]
    explorer.first.value = "contribution"
    assert explorer.status.value == "" and not explorer.slider.disabled


def test_what_was_interrupted_can_be_chosen_again(explorer, monkeypatch):
    explorer.kind.value, asked, compute = "units", [], sweep.sweep

    def interrupted(subject, name, of, stops, bar):
        asked.append((name, of))
        if len(asked) == 1:
            for stop in bar(stops):
                if stop == stops[-1]:
                    raise KeyboardInterrupt
        return compute(subject, name, of, stops, bar)

    monkeypatch.setattr(sweep, "sweep", interrupted)
    monkeypatch.setattr(explorer, "_sweeps", {})
    shown = explorer.kind.value, explorer.first.value, explorer.second.value
    for said, chosen in (("<b>KeyboardInterrupt</b>", shown), ("", ("weights", "magnitude", "random"))):
        explorer.kind.value = "weights"
        assert explorer.status.value == said and not explorer.slider.disabled and explorer.bar.value == 0
        assert (explorer.kind.value, explorer.first.value, explorer.second.value) == chosen
    explorer.kind.value, explorer.first.value = "units", "contribution"


def test_another_network_has_its_own_units_and_a_second_display_follows_too(explorer, monkeypatch):
    monkeypatch.setitem(explorer._subjects, "digits32", of_convolutions())
    explorer.network.value = "digits32"
    assert len(explorer.grid.children) == len(explorer.ranked) == 4
    explorer.network.value, places = "digits", [place.display_id for place in explorer.places]
    assert len(explorer.grid.children) == 12
    explorer.show()
    assert [place.display_id for place in explorer.places] == places
    monkeypatch.setattr(explorer, "_undo", dict().popitem)
    explorer.back.click()
    assert "KeyError" in explorer.saved.value and explorer.status.value == "", "an error is told beside its button"


def test_only_a_network_that_is_saved_is_written(explorer, shared_runs):
    assert list(shared_runs.rglob("*")) == []
    explorer.slider.value = 0.5
    explorer.save.click()
    (file,) = shared_runs.rglob("*.safetensors")
    assert file.parent == shared_runs / "explored" / "made-units-contribution-0.5"
    again = plain.load(file.parent)(explorer.subject.test[0])
    assert torch.allclose(again.float(), explorer.cuts[0].logits.float(), atol=1e-5)
    assert f"{file.stat().st_size:,} bytes" in explorer.saved.value and "of 344 parameters" in explorer.saved.value
    kept = file.read_bytes()
    explorer.units[0].click()
    explorer.save.click()
    explorer.kind.value, explorer.first.value = "weights", "magnitude"
    explorer.save.click()
    assert file.read_bytes() == kept, "what was saved stays, whatever else is saved at that sparsity"
    assert len(list(shared_runs.rglob("*.safetensors"))) == 3


def test_exported_html_stands_still(explorer, capsys, monkeypatch):
    """Controls are replaced by words, the units by their images, and nothing asks for a widget."""
    shown = []
    monkeypatch.setattr(controls, "display", lambda data, raw: shown.append(data))
    explorer.show()
    assert all("application/vnd.jupyter.widget-view+json" in data for data in shown)
    monkeypatch.setenv("PRUNING_STILL", "1")
    shown.clear()
    explorer.show()
    assert [[*data] for data in shown] == [["text/html"]] * 2
    outputs = [nbformat.v4.new_output("display_data", data) for data in shown]
    cell = nbformat.v4.new_code_cell("explorer.show()", outputs=outputs)
    page, _ = HTMLExporter().from_notebook_node(nbformat.v4.new_notebook(cells=[cell]))
    assert "The controls need a kernel" in page and "widget-view" not in page
    (image,) = re.findall(r'alt="units of the first layer" src="data:image/png;base64,([^"]+)"', page)
    width = Image.open(io.BytesIO(base64.b64decode(image))).size[0]
    assert width == controls.ACROSS * 4


def test_the_notebook_runs_and_writes_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PRUNING_RUNS", str(tmp_path))
    monkeypatch.setattr(sweep, "STOPS", STOPS)
    cells = json.loads((runs.ROOT / "notebooks/explore.ipynb").read_text("utf-8"))["cells"]
    namespace = {}
    for cell in cells:
        if cell["cell_type"] == "code":
            exec("".join(cell["source"]), namespace)
    table = numbers(namespace["explorer"])
    assert float(table.loc["test accuracy", "whole"].rstrip("%")) > 90
    assert table.loc["sparsity, asked", "random"] == "50.0 %" and list(tmp_path.iterdir()) == []
