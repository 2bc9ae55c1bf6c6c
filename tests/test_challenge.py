"""The modes of the pruning challenge against literal loops in float64, on digits and networks of 784-30-20-10."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from lib import anatomy, draws, masks, methods, nets, sets, shrink
from lib.studies.challenge import modes
from lib.training import checkpoint
from lib.training.evaluate import evaluate
from lib.training.trainer import Trainer

SEEDS, SPARSITIES, BATCH, LR = [1, 2], [0.0, 0.5, 0.8], 40, 0.005
DIGITS = sets.load("digits")
TRAIN, TEST = ((x[:n].double(), y[:n]) for n, (x, y) in ((200, DIGITS.split("train")), (100, DIGITS.split("test"))))
KINDS = list(modes.KINDS)


pytestmark = pytest.mark.usefixtures("shared_runs")


def exact(lab, *args, **options):
    """Return float64 networks, so that literal loops can be followed."""
    return modes.build(lab, *args, **options).double()


def lab(**changes):
    rule = {"rule": "adam", "lr": LR, "batch": BATCH, "bar": False}
    recipe = modes.recipe("digits", 200, {"lr": LR})
    return modes.Lab(**{"train": TRAIN, "test": TEST, "seeds": SEEDS, "recipe": recipe, "hidden": (30, 20), "epochs": 2,
                        "retrain_epochs": 3, "rule": rule, "build": exact} | changes)  # fmt: skip


def matrices(net, run):
    return [layer.weight[run].detach().clone() for layer in net.layers]


def outputs(ws, x):
    for w in ws[:-1]:
        x = torch.relu(x @ w.T)
    return x @ ws[-1].T


def accuracy(ws, split):
    return (outputs(ws, split[0]).argmax(1) == split[1]).double().mean().item()


def literal_masks(ws, kind, sparsity):
    """Return the masks of all matrices: the smallest |w| go, or the rows of smallest norm and what they feed."""
    found = [np.ones(w.shape, bool) for w in ws]
    for k, w in enumerate(ws[:-1]):
        size = np.abs(w.numpy()).ravel() if kind == "weight" else np.sqrt((w.numpy() ** 2).sum(1))
        gone = np.argsort(size, kind="stable")[: len(size) - int(np.floor(len(size) * (1 - sparsity) + 0.5 + 1e-9))]
        if kind == "weight":
            found[k].ravel()[gone] = False
        else:
            found[k][gone] = False
            found[k + 1][:, gone] = False
    return [torch.from_numpy(mask) for mask in found]


class Loop:
    """One network trained by torch's Adam; `remake(ws)` gives the masks of every step, which `straight` lets gradients
    pass; without it what is masked is zero, and gets none."""

    def __init__(self, ws, seed, epoch=0):
        self.ws, self.seed, self.epoch = [w.clone().requires_grad_() for w in ws], seed, epoch
        self.adam, self.seen = torch.optim.Adam(self.ws, LR, foreach=False), []
        self.train_accuracy, self.test_accuracy = [], []

    def plain(self):
        return [w.detach().clone() for w in self.ws]

    def fit(self, epochs, remake, straight=False):
        for _ in range(epochs):
            order, correct = torch.from_numpy(draws.permutation(self.seed, "order", self.epoch, 200)), 0
            for index in order.split(BATCH):
                self.seen.append(kept := remake(self.plain()))
                acting = [(w.detach() * mask).requires_grad_() for w, mask in zip(self.ws, kept, strict=True)]
                logits = outputs(acting, TRAIN[0][index])
                gradients = torch.autograd.grad(torch.nn.functional.cross_entropy(logits, TRAIN[1][index]), acting)
                for w, mask, gradient in zip(self.ws, kept, gradients, strict=True):
                    w.grad = gradient if straight else gradient * mask
                    w.data *= 1 if straight else mask
                self.adam.step()
                correct += int((logits.argmax(1) == TRAIN[1][index]).sum())
            self.epoch += 1
            self.train_accuracy.append(correct / 200)
            acting = [w * mask for w, mask in zip(self.plain(), remake(self.plain()), strict=True)]
            self.test_accuracy.append(accuracy(acting, TEST))
        return self


def fixed(kept):
    return lambda ws: kept


def same(pruned, run, loop, kept):
    """Check weights, masks and accuracies of one run of a `Pruned` against a literal loop."""
    for k, layer in enumerate(pruned.net.layers):
        mask = pruned.masks.get(f"layers.{k}.weight")
        assert mask is None and kept[k].all() or torch.equal(mask[run], kept[k])
        torch.testing.assert_close(layer.weight[run].data, loop.ws[k].data * kept[k], rtol=1e-8, atol=1e-9)
    np.testing.assert_allclose(pruned.train_accuracy[run, 1:], loop.train_accuracy)
    np.testing.assert_allclose(pruned.test_accuracy[run, 1:], loop.test_accuracy)


# ---- each mode against its literal loop


@pytest.mark.parametrize("kind", KINDS)
def test_posthoc(kind):
    """Trained once and pruned at once; at 99 % no unit is left at all."""
    here, sparsities = lab(), [*SPARSITIES, 0.99]
    dense, _ = here.dense(2)
    for sparsity, pruned in zip(sparsities, modes.posthoc(here, kind, sparsities), strict=True):
        for run in range(2):
            kept = literal_masks(matrices(dense, run), kind, sparsity)
            ws = [w * mask for w, mask in zip(matrices(dense, run), kept, strict=True)]
            assert all(torch.equal(a, b) for a, b in zip(matrices(pruned.net, run), ws, strict=True))
            assert pruned.train_accuracy[run].tolist() == [accuracy(ws, TRAIN)]
            assert pruned.test_accuracy[run].tolist() == [accuracy(ws, TEST)]
    assert torch.equal(dense.layers[0].weight, here.dense(2)[0].layers[0].weight), "the dense networks are left alone"


@pytest.mark.parametrize("kind", KINDS)
def test_finetune(kind):
    here = lab()
    dense, _ = here.dense(2)
    for sparsity, pruned in zip(SPARSITIES, modes.finetune(here, kind, SPARSITIES), strict=True):
        for run, seed in enumerate(SEEDS):
            kept = literal_masks(matrices(dense, run), kind, sparsity)
            same(pruned, run, Loop(matrices(dense, run), seed, epoch=2).fit(3, fixed(kept)), kept)


@pytest.mark.parametrize("kind", KINDS)
def test_rewind(kind):
    here = lab()
    dense, _ = here.dense(2)
    for sparsity, pruned in zip(SPARSITIES, modes.rewind(here, kind, SPARSITIES), strict=True):
        for run, seed in enumerate(SEEDS):
            kept = literal_masks(matrices(dense, run), kind, sparsity)
            same(pruned, run, Loop(matrices(here.network(), run), seed).fit(3, fixed(kept)), kept)


@pytest.mark.parametrize("kind", KINDS)
def test_hard(kind):
    """The literal loop prunes in place before every step, by masks made anew: they stay those of the start."""
    here = lab()
    for sparsity, pruned in zip(SPARSITIES, modes.hard(here, kind, SPARSITIES), strict=True):
        for run, seed in enumerate(SEEDS):
            loop = Loop(matrices(here.network(), run), seed)
            loop.fit(2, lambda ws, sparsity=sparsity: literal_masks(ws, kind, sparsity))
            for later in loop.seen[1:]:
                assert all(torch.equal(a, b) for a, b in zip(later, loop.seen[0], strict=True))
            same(pruned, run, loop, loop.seen[0])


@pytest.mark.parametrize("kind", KINDS)
def test_during(kind):
    """The literal loop makes masks anew in every step and trains the dense weights by the gradient of the masked."""
    here = lab()
    for sparsity, pruned in zip(SPARSITIES, modes.during(here, kind, SPARSITIES), strict=True):
        for run, seed in enumerate(SEEDS):
            loop = Loop(matrices(here.network(), run), seed)
            loop.fit(2, lambda ws, sparsity=sparsity: literal_masks(ws, kind, sparsity), straight=True)
            same(pruned, run, loop, literal_masks(loop.plain(), kind, sparsity))
            back = any((b & ~a).any() for a, b in zip(loop.seen[0], loop.seen[-1], strict=True))
            # A pruned unit gets no gradient: whether it comes back is a matter of those that are kept.
            assert kind == "neuron" or back == (sparsity > 0)
            assert (pruned.net.layers[0].weight[run] == 0).double().mean().item() == pytest.approx(sparsity, abs=0.02)


@pytest.mark.parametrize("kind, scope", [("neuron", "layer"), ("weight", "global")])
def test_masks_made_otherwise_do_not_go_on_from_a_killed_training(kind, scope, tmp_path, monkeypatch):
    """The dense weights behind the masks, all that the state of a training holds, say nothing of how they are made."""
    save = checkpoint.save

    def killed(*state):
        save(*state)
        raise KeyboardInterrupt

    here = lab(states=checkpoint.States(tmp_path), scope=scope)
    here.rule["every"] = 0.0
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(checkpoint, "save", killed)
        modes.during(replace(here, scope="layer"), "weight", SPARSITIES)
    assert list(tmp_path.glob("training-*"))
    for found, alone in zip(
        modes.during(here, kind, SPARSITIES), modes.during(lab(scope=scope), kind, SPARSITIES), strict=True
    ):
        np.testing.assert_array_equal(found.test_accuracy, alone.test_accuracy)


def test_networks_that_read_other_pixels_are_others():
    assert modes.recipe("mnist", 0, {}, "as_published") != modes.recipe("mnist", 0, {}, "hard")


@pytest.mark.parametrize("kind", KINDS)
def test_gradual(kind):
    """Before epoch e of 4 the sparsity rises to s (1 - (1 - e/4)³); what is pruned stays so, moments included."""
    here, shares = lab(epochs=4), [37 / 64, 56 / 64, 63 / 64, 1]
    for sparsity, pruned in zip(SPARSITIES, modes.gradual(here, kind, SPARSITIES), strict=True):
        for run, seed in enumerate(SEEDS):
            loop, before = Loop(matrices(here.network(), run), seed), None
            for share in shares:
                kept = literal_masks(loop.plain(), kind, sparsity * share)
                assert before is None or not any((b & ~a).any() for a, b in zip(before, kept, strict=True)), "nested"
                for w, mask in zip(loop.ws, kept, strict=True):
                    w.data *= mask
                    for name in ("exp_avg", "exp_avg_sq") if loop.adam.state[w] else ():
                        loop.adam.state[w][name] *= mask
                loop.fit(1, fixed(kept))
                before = kept
            same(pruned, run, loop, before)


@pytest.mark.parametrize("sparsity", [0.0, 0.5, 0.8])
def test_small_is_a_narrow_network_trained_from_scratch(sparsity):
    here = lab()
    (pruned,) = modes.prune(here, "hard", "small", [sparsity])
    widths = [round(30 * (1 - sparsity)), round(20 * (1 - sparsity))]
    narrow = lab(hidden=widths)
    for run, seed in enumerate(SEEDS):
        loop = Loop(matrices(narrow.network(), run), seed).fit(2, lambda ws: [torch.ones_like(w) for w in ws])
        torch.testing.assert_close(pruned.net(TEST[0])[run], outputs(loop.ws, TEST[0]), rtol=1e-8, atol=1e-8)
        np.testing.assert_allclose(pruned.test_accuracy[run, 1:], loop.test_accuracy)
        assert [w.shape[0] for w in loop.ws[:-1]] == widths
    found = anatomy.anatomy(pruned.net, pruned.masks)
    inside = 784 * widths[0] + widths[0] * widths[1] + widths[1] * 10
    assert found["parameters"].tolist() == [inside] * 2 and found["live_units"].tolist() == [[*widths, 10]] * 2
    assert [tuple(layer.weight.shape) for layer in pruned.net.layers] == [(2, 30, 784), (2, 20, 30), (2, 10, 20)]


@pytest.mark.parametrize(
    "mode, epochs", [("posthoc", 2), ("finetune", 5), ("rewind", 3), ("during", 2), ("gradual", 2)]
)
def test_small_is_trained_as_long_as_what_it_is_compared_with(mode, epochs):
    (pruned,) = modes.prune(lab(), mode, "small", [0.5])
    assert pruned.test_accuracy.shape == (2, epochs + 1)


@pytest.mark.parametrize("kind", KINDS)
def test_as_published_only_the_last_layer_is_trained(kind):
    """Frozen pruned features of N(0, 1) weights, and accuracies that are means over all epochs so far."""
    pixels = [(x * DIGITS.std[0] + DIGITS.mean[0], y) for x, y in (TRAIN, TEST)]
    assert pixels[0][0].min() > -1e-6 and 0.99 < pixels[0][0].max() < 1 + 1e-6
    here = lab(train=pixels[0], test=pixels[1], epochs=3)
    start = here.network(scheme="standard_normal")
    assert start.layers[0].weight.std().item() == pytest.approx(1, abs=0.02)
    for sparsity, pruned in zip(SPARSITIES, modes.as_published(here, kind, SPARSITIES), strict=True):
        for run, seed in enumerate(SEEDS):
            ws = matrices(start, run)
            kept = literal_masks(ws, kind, sparsity)
            ws = [w * mask for w, mask in zip(ws, kept, strict=True)]
            assert all(torch.equal(pruned.net.layers[k].weight[run], ws[k]) for k in (0, 1))
            features = [torch.relu(torch.relu(x @ ws[0].T) @ ws[1].T) for x, _ in pixels]
            last, accuracies = ws[2].clone().requires_grad_(), []
            adam = torch.optim.Adam([last], LR, foreach=False)
            for epoch in range(3):
                for index in torch.from_numpy(draws.permutation(seed, "order", epoch, 200)).split(BATCH):
                    adam.zero_grad()
                    torch.nn.functional.cross_entropy(features[0][index] @ last.T, TRAIN[1][index]).backward()
                    adam.step()
                accuracies.append(((features[1] @ last.T).argmax(1) == TEST[1]).double().mean().item())
            torch.testing.assert_close(pruned.net.layers[2].weight[run].data, last.data, rtol=1e-8, atol=1e-8)
            expected = [np.mean(accuracies[: k + 1]) for k in range(3)]
            np.testing.assert_allclose(pruned.test_accuracy[run, 1:], expected)
            assert np.isnan(pruned.test_accuracy[run, 0]) and np.isnan(pruned.train_accuracy[run, 0])
            logits = pruned.net(pixels[1][0])[run]
            assert (logits.argmax(1) == TEST[1]).double().mean().item() == pytest.approx(accuracies[-1])


# ---- what all modes promise


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("scope", ["layer", "global"])
@pytest.mark.parametrize("mode", modes.MODES)
def test_every_mode_keeps_what_was_asked(mode, kind, scope):
    """The count is exact, what the masks prune is zero, the accuracy is that of the network, and all is finite."""
    for sparsity, pruned in zip([0.3, 0.9], modes.prune(lab(scope=scope), mode, kind, [0.3, 0.9]), strict=True):
        kept, weights = pruned.masks, nets.weights(pruned.net)
        for name, mask in kept.items():
            assert mask.dtype == torch.bool and not weights[name][~mask].any()
            assert weights[name].isfinite().all()
        if kind == "weight":
            counts = [kept[f"layers.{k}.weight"].flatten(1).sum(1) for k in range(2)]
            sizes = [30 * 784, 20 * 30]
        else:
            counts = [kept["layers.0.weight"].any(2).sum(1), kept["layers.2.weight"].any(1).sum(1)]
            sizes = [30, 20]
        if scope == "layer":
            expected = [masks.count(size, 1 - sparsity) for size in sizes]
            assert [count.tolist() for count in counts] == [[n, n] for n in expected]
        else:
            assert sum(counts).tolist() == [masks.count(sum(sizes), 1 - sparsity)] * 2
        found = evaluate(pruned.net, *TEST).accuracy.numpy()
        assert pruned.test_accuracy.shape[0] == 2
        if mode != "as_published":
            np.testing.assert_allclose(pruned.test_accuracy[:, -1], found)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mode", modes.MODES)
def test_a_run_depends_on_neither_other_seeds_nor_other_sparsities(mode, kind):
    _, whole = modes.prune(lab(), mode, kind, [0.3, 0.8])
    (alone,) = modes.prune(lab(seeds=[2]), mode, kind, [0.8])
    one = nets.take(whole, [1])
    np.testing.assert_allclose(one.test_accuracy, alone.test_accuracy)
    for a, b in zip(one.net.parameters(), alone.net.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-9)
    assert all(torch.equal(mask, alone.masks[name]) for name, mask in one.masks.items())


def test_units_are_trained_as_a_smaller_stack_where_it_can_be_done(monkeypatch):
    """The physically narrow network and the masked one of full width are trained to the same weights."""
    here = lab()
    start, sizes = here.network(), []
    kept, units = modes.chosen(here, start, "neuron", 0.5)
    trained = Trainer.fit
    monkeypatch.setattr(Trainer, "fit", lambda t, *of: sizes.append(t.net.layers[0].weight.shape[1]) or trained(t, *of))
    narrow, masked = (modes._retrained(here, start, kept, found, 2) for found in (units, None))
    assert sizes == [15, 30]
    for a, b in zip(narrow.net.parameters(), masked.net.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-9)
    np.testing.assert_allclose(narrow.train_accuracy, masked.train_accuracy)
    torch.testing.assert_close(shrink.narrow(start, units)(TEST[0]), narrow_logits(start, kept), rtol=1e-10, atol=1e-10)


def narrow_logits(start, kept):
    return torch.stack([
        outputs([w * kept[f"layers.{k}.weight"][run] for k, w in enumerate(matrices(start, run))], TEST[0])
        for run in range(2)
    ])  # fmt: skip


@pytest.mark.parametrize("sparsity, scope, narrowed", [(0.5, "layer", True), (0.99, "layer", False)])
def test_what_can_be_narrowed(sparsity, scope, narrowed):
    here = lab(scope=scope)
    _, units = modes.chosen(here, here.network(), "neuron", sparsity)
    assert (units is not None) == narrowed
    assert modes.chosen(here, here.network(), "weight", sparsity)[1] is None


def test_no_network_is_trained_twice(monkeypatch):
    here, started = lab(epochs=1, retrain_epochs=1), []
    fit = Trainer.fit
    monkeypatch.setattr(Trainer, "fit", lambda t, n, *keep: started.append(list(t.seeds)) or fit(t, n, *keep))
    modes.posthoc(here, "weight", [0.5])
    assert started == [SEEDS]
    for mode, kind in (("posthoc", "neuron"), ("posthoc", "weight")):
        modes.prune(here, mode, kind, SPARSITIES)
    assert started == [SEEDS]
    modes.posthoc(lab(epochs=1, seeds=[2, 3]), "weight", [0.5])
    assert started == [SEEDS, [3]]
    modes.posthoc(lab(epochs=1, hidden=(30, 21)), "weight", [0.5])
    assert started == [SEEDS, [3], SEEDS]


@pytest.mark.parametrize(
    "mode, kind, message",
    [
        ("later", "weight", "mode is 'later'; allowed are .*posthoc"),
        ("later", "small", "mode is 'later'"),
        ("hard", "unit", "kind is 'unit'; allowed are .*neuron"),
        ("hard", "small", r"0.99 leaves \[0, 0\] of \[30, 20\] units"),
    ],
)
def test_what_cannot_be_done_is_an_error(mode, kind, message):
    with pytest.raises(ValueError, match=message):
        modes.prune(lab(), mode, kind, [0.99])


@pytest.mark.parametrize(
    "kind, of", [("outgoing_l1_neuron", "units"), ("random_neuron", "units"), ("random_weight", "weights")]
)
def test_every_score_that_needs_nothing_is_a_type(kind, of):
    here, name = lab(), kind.rpartition("_")[0]
    assert kind in modes.types() and not {"magnitude_weight", "dpp_neuron", "snip_weight"} & set(modes.types())
    found, kept = modes.prune(here, "posthoc", kind, [0.5])[0], {}
    scores = methods.score(here.dense(2)[0], name, seeds=SEEDS, of=of)
    for layer in [name for name in scores if not name.startswith("layers.2")]:
        flat = scores[layer].flatten(1)
        highest = flat.argsort(dim=1, descending=True)[:, : flat.shape[1] // 2]
        kept[layer] = torch.zeros_like(flat, dtype=torch.bool).scatter_(1, highest, True).view(scores[layer].shape)
    if of == "units":
        kept = masks.expand(kept, here.network())
    assert all(torch.equal(found.masks[layer], mask) for layer, mask in kept.items())


def test_only_magnitude_prunes_at_every_step():
    assert "anew by magnitude alone" in modes.complaint({"mode": "during", "type": ["random_weight"], "sparsities": []})
    with pytest.raises(ValueError, match="random_weight.*allowed are.*weight.*neuron"):
        modes.prune(lab(), "during", "random_weight", [0.5])
