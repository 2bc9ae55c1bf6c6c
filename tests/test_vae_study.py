"""Autoencoders pruned while they train: against a literal loop, uninterrupted training, and masks that stay."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch

from lib import draws, methods, nets, shrink, store
from lib.errors import ParameterError
from lib.studies.importance import vae, vae_study
from lib.studies.importance.study import Schedule
from lib.studies.importance.vae_study import Lab
from lib.training.trainer import Trainer

IMAGE, SEEDS, BATCH, LR = (1, 8, 8), [1, 2], 8, 0.005
STREAM = torch.Generator().manual_seed(0)


def images(count):
    """Return pictures of four squares, each black or white: two bits less than the latent numbers could tell."""
    x = torch.randint(2, (count, 1, 2, 2), generator=STREAM).repeat_interleave(4, 2).repeat_interleave(4, 3)
    return 255 * x.flatten(1).to(torch.uint8), torch.zeros(count, dtype=torch.int64)


TRAIN, TEST = images(83), images(21)


pytestmark = pytest.mark.usefixtures("shared_runs")


def lab(**changes):
    rule = {"lr": LR, "batch": BATCH, "bar": False}
    made = Lab(TRAIN, TEST, SEEDS, {"name": "toy-vae"}, rule, image=IMAGE, hidden=(20, 11), latent=4,
               schedule=Schedule(5, 2, 2, 0.2))  # fmt: skip
    return replace(made, **changes)


def begun(**changes):
    """Return a trainer behind the first epochs."""
    return lab(**changes).resumed(*lab(**changes).begun())


def weights(net):
    return {name: p.detach().clone() for name, p in net.named_parameters()}


def assert_same(net, other, **tolerance):
    for name, p in weights(other).items():
        torch.testing.assert_close(weights(net)[name], p, **tolerance)


def test_the_widths_of_the_schedule_are_the_published_ones():
    found = Schedule(20, 5, 5).widths((2048, 4096))
    assert found == [(2048, 4096), (1843, 3686), (1658, 3317), (1492, 2985)]
    assert Schedule(10, 5, 5).rounds == [5]


# ---- training


def literal_epoch(net, optimizer, seed, epoch, count):
    """Take one pass over the training images as one would write it for one network; return the mean losses."""
    order = draws.permutation(seed, "order", epoch, count)
    drawn = draws.generator(seed, "latent", epoch).standard_normal((count, 4), np.float32)
    totals = np.zeros(2)
    for k in range(0, count, BATCH):
        at = order[k : k + BATCH]
        x = TRAIN[0][at] / 255
        logits, mean, log_variance = net(x, torch.from_numpy(drawn[at])[None])
        entropy = torch.nn.functional.binary_cross_entropy(logits.sigmoid(), x[None], reduction="sum")
        kl = -0.5 * (1 + log_variance - mean**2 - log_variance.exp()).sum()
        optimizer.zero_grad()
        (entropy + kl).backward()
        optimizer.step()
        totals += entropy.item(), kl.item()
    return totals / count


def test_training_is_adam_on_the_sum_of_both_losses():
    start = lab().network()
    ours = lab().trainer(copy.deepcopy(start)).fit(1)
    for run, seed in enumerate(SEEDS):
        net = nets.take(start, [run])
        optimizer = torch.optim.Adam(net.parameters(), LR)
        losses = [literal_epoch(net, optimizer, seed, 0, 83)]
        assert_same(nets.take(ours.net, [run]), net, rtol=1e-2, atol=1e-4)
        found = np.stack([ours.curve("train_reconstruction")[run, 1:], ours.curve("train_kl")[run, 1:]], 1)
        np.testing.assert_allclose(found, losses, rtol=1e-4)


def test_the_test_loss_is_that_of_the_same_noise_at_every_look(monkeypatch):
    monkeypatch.setitem(vae_study.CHUNK, "cpu", 8)
    training = lab().trainer(lab().network()).fit(1)
    first, second = vae_study.test_losses(training), vae_study.test_losses(training)
    x = TEST[0] / 255
    for run, seed in enumerate(SEEDS):
        drawn = draws.generator(seed, "latent of the test", 0).standard_normal((21, 4), np.float32)
        found = vae.losses(*nets.take(training.net, [run])(x, torch.from_numpy(drawn)[None]), x)
        for column, expected in zip(first, found, strict=True):
            # A divergence of 1e-4 is left over from terms of 1, whose rounding is 1e-7.
            assert column[run] == pytest.approx(expected.mean().item(), rel=1e-5, abs=1e-7)
    np.testing.assert_array_equal(first, second)
    np.testing.assert_array_equal(first[0], training.curve("test_reconstruction")[:, -1])


def test_a_run_does_not_depend_on_its_neighbours():
    together = vae_study.study(lab(), "random")
    alone = vae_study.study(lab(seeds=[2], recipe={"name": "alone"}), "random")
    assert_same(nets.take(together.net, [1]), alone.net, rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(vae_study.noise([3, 2], "latent", 1, 6, 4)[1:], vae_study.noise([2], "latent", 1, 6, 4))


def test_own_batches_of_each_run_are_used():
    """Runs of two seeds see different batches, so that the index has a row for each."""
    training = lab().trainer(lab().network())
    at = torch.tensor([[0, 3], [5, 1]])
    torch.testing.assert_close(training._inputs(at), TRAIN[0][at] / 255)


def test_bfloat16_learns_nearly_the_same():
    exact = lab().trainer(lab().network()).fit(1)
    rough = lab(rule=lab().rule | {"bf16": True}).trainer(lab().network()).fit(1)
    ours, theirs = (t.curve("test_reconstruction")[:, -1] for t in (rough, exact))
    assert not np.array_equal(ours, theirs)
    np.testing.assert_allclose(ours, theirs, rtol=0.01)


# ---- the shared first epochs, and what Adam remembers


def test_going_on_from_a_file_is_going_on():
    whole = lab().trainer(lab().network()).fit(5)
    assert_same(begun().fit(3).net, whole.net, rtol=0, atol=0)
    history = vae_study.study(lab(), "none").history
    for name in vae_study.HISTORY[:-1]:
        np.testing.assert_array_equal(history[name], whole.curve(name))
    assert (np.diff(history["seconds"]) >= 0).all()


@pytest.mark.filterwarnings("ignore:.*that stay, most of all, have a score of 0")  # of units that are silent yet
def test_the_first_epochs_are_trained_once(monkeypatch):
    begun()
    trained, epoch = [], Trainer._epoch
    monkeypatch.setattr(Trainer, "_epoch", lambda self: trained.append((self.epoch, self.seeds)) or epoch(self))
    vae_study.study(lab(), "contribution")
    assert trained == [(2, SEEDS), (3, SEEDS), (4, SEEDS)], "of five epochs, of which the first two were there"
    lab(seeds=[2, 3]).begun()
    assert trained[3:] == [(0, [3]), (1, [3])]


def unit_masks(net, units):
    """Return the masks of the weights that go with units: their rows, and their columns in all that read them."""
    masks = {name: torch.ones_like(w, dtype=torch.bool) for name, w in nets.weights(net).items()}
    for layer, kept in units.items():
        masks[f"{layer}.weight"] &= kept[:, :, None]
        for reader in vae.readers(net)[layer]:
            masks[f"{reader}.weight"] &= kept[:, None]
    return masks


@pytest.mark.filterwarnings("ignore:.*that stay, most of all, have a score of 0")  # of units that are silent yet
@pytest.mark.parametrize("kind", ["contribution", "random"])
def test_training_on_narrow_is_training_on_masked(kind):
    start = begun()
    wide, narrow = copy.deepcopy(start.net), begun()
    units = vae_study.chosen(lab(), wide, kind, 1)
    start.prune(unit_masks(wide, units))
    narrow.narrow(units)
    assert narrow.steps == start.steps == 22
    np.testing.assert_allclose(*map(vae_study.test_losses, (narrow, start)), rtol=1e-6, atol=1e-6)
    start.fit(2)
    assert_same(shrink.widen(narrow.fit(2).net, wide, units), start.net, rtol=1e-3, atol=1e-5)


def test_moments_follow_their_weights():
    training, kept = begun(), torch.arange(20)[None].expand(2, -1) % 3 > 0
    before = {key: weights(stack) for key, stack in training.memory().items()}
    training.narrow({"encoder.0": kept})
    assert set(before) == {"exp_avg", "exp_avg_sq"}
    for key, stack in training.memory().items():
        rows = before[key]["encoder.0.weight"][:, kept[0]]
        assert rows.any() and torch.equal(stack.encoder[0].weight, rows)
        assert torch.equal(stack.encoder[1].weight, before[key]["encoder.1.weight"][:, :, kept[0]])
        assert torch.equal(stack.decoder[2].weight, before[key]["decoder.2.weight"])


def test_masks_and_narrowing_do_not_mix():
    training = begun()
    training.prune({"mean.weight": torch.ones_like(training.net.mean.weight, dtype=torch.bool)})
    with pytest.raises(ValueError, match="narrow first"):
        training.narrow({})


@pytest.mark.parametrize("changes", [{"reset_optimizer": True}, {"as_published": True}])
def test_adam_can_forget(changes, monkeypatch):
    begun()
    memories, epoch = [], Trainer._epoch
    monkeypatch.setattr(Trainer, "_epoch", lambda self: memories.append(len(self.memory())) or epoch(self))
    vae_study.study(lab(), "random")
    assert memories == [2, 2, 2], "both moments, in all epochs of both rounds"
    vae_study.study(lab(**changes), "random")
    assert memories[3:] == [0, 2, 0]


# ---- which units stay


def test_a_round_keeps_the_highest_contributions():
    net = lab().network()
    kept = vae_study.chosen(lab(score_examples=30), net, "contribution", 1)
    drawn = torch.stack([
        torch.from_numpy(draws.generator(seed, "latent of the score", 1).standard_normal((30, 4), np.float32))
        for seed in SEEDS
    ])  # fmt: skip
    for layer, scores in methods.score(net, "contribution", TRAIN[0][:30], of="units", noise=drawn).items():
        for run in range(2):
            stay, go = scores[run][kept[layer][run]], scores[run][~kept[layer][run]]
            assert len(stay) == int(0.8 * scores.shape[1]) and stay.min() >= go.max() and stay.min() < stay.max()


def test_random_units_come_from_seed_and_round():
    net = lab().network()
    first, second = (vae_study.chosen(lab(), net, "random", number) for number in (1, 2))
    alone = vae_study.chosen(lab(seeds=[2]), nets.take(net, [1]), "random", 1)
    for layer, width in vae.hidden_widths(net).items():
        assert first[layer].sum(1).tolist() == [int(0.8 * width)] * 2
        assert torch.equal(first[layer][1:], alone[layer])
    assert not torch.equal(first["encoder.0"][0], first["encoder.0"][1])
    assert not torch.equal(first["encoder.0"], second["encoder.0"])


def test_the_published_score_reads_the_last_batch():
    published = vae_study._scored_on(lab(as_published=True))
    assert torch.equal(published, TRAIN[0][80:])
    assert torch.equal(vae_study._scored_on(lab(score_examples=9)), TRAIN[0][:9])
    assert torch.equal(vae_study._scored_on(lab()), TRAIN[0])


# ---- what is kept of it


@pytest.fixture(scope="module")
def outcome():
    return vae_study.study(lab(), "random")


def test_a_round_is_said_before_and_after(outcome):
    rounds = outcome.rounds
    assert rounds["round_epoch"].tolist() == [[0, 2, 4]] * 2
    assert rounds["round_widths"][0].tolist() == [[20, 11, 11, 20], [16, 8, 8, 16], [12, 6, 6, 12]]
    smaller = [vae.VAE(IMAGE, 1, tuple(map(int, w[:2])), 4) for w in rounds["round_widths"][0]]
    sizes = [nets.parameters_per_run(net) for net in smaller]
    assert rounds["round_parameters"].tolist() == [sizes] * 2
    assert nets.parameters_per_run(outcome.net) == sizes[-1]
    curve = outcome.history["test_kl"]
    np.testing.assert_array_equal(rounds["before_kl"], curve[:, [0, 2, 4]])
    assert (rounds["after_reconstruction"][:, 1:] != rounds["before_reconstruction"][:, 1:]).all()


def test_none_loses_nothing():
    rounds = vae_study.study(lab(), "none").rounds
    np.testing.assert_array_equal(rounds["round_widths"], [[[20, 11, 11, 20]] * 3] * 2)
    np.testing.assert_array_equal(rounds["after_kl"], rounds["before_kl"])


def test_a_schedule_without_rounds_is_plain_training():
    outcome = vae_study.study(lab(schedule=Schedule(2, 2, 2)), "random")
    assert outcome.rounds["round_epoch"].shape == (2, 1)
    np.testing.assert_array_equal(outcome.pictures["after"], outcome.pictures["end"])


def test_pictures_are_what_they_are_called(outcome):
    shown, net = outcome.pictures, outcome.net
    assert {name: part.shape for name, part in shown.items()} == {
        name: (2, 16 if name == "samples" else 8, *IMAGE)
        for name in ("originals", "before", "after", "end", "samples", "walk")
    }
    np.testing.assert_array_equal(shown["originals"][0].reshape(8, -1), TEST[0][:8])
    with torch.no_grad():
        expected = 255 * net.decode(net.encode(TEST[0][:8] / 255)[0]).sigmoid()
    assert np.abs(shown["end"].reshape(2, 8, -1) - expected.numpy()).max() <= 0.5 + 1e-3
    np.testing.assert_array_equal(shown["walk"][:, [0, -1]], shown["end"][:, :2])
    assert not np.array_equal(shown["before"], shown["after"])


def test_a_record_takes_it(outcome):
    found = vae_study.content(outcome, 1)
    npz, axes = store.pack(found["arrays"], store.coordinates(found["axes"]))
    assert len(npz) < 60_000
    assert axes["test_kl"] == ["epoch"] and axes["round_widths"] == ["round", "layer"]
    assert found["scores"]["loss"] == found["scores"]["reconstruction"] + found["scores"]["kl"]
    assert found["cost"]["parameters"] == outcome.rounds["round_parameters"][1, -1]


def test_tiles_put_images_side_by_side():
    rows = np.arange(2 * 3 * 1 * 2 * 2, dtype=np.uint8).reshape(2, 3, 1, 2, 2)
    whole = vae_study.tiles(*rows)
    assert whole.shape == (4, 6, 3)
    np.testing.assert_array_equal(whole[2:, 4:, 0], rows[1, 2, 0])
    coloured = np.arange(12, dtype=np.uint8).reshape(1, 3, 2, 2)
    np.testing.assert_array_equal(vae_study.tiles(coloured)[1, 0], coloured[0, :, 1, 0])


def test_a_notebooks_parameters_make_a_lab():
    from lib import sets

    real = sets.load("digits", train_examples=50)
    p = {"dataset": "digits", "hidden": [9, 7], "latent": 3, "epochs": 3, "initial": 1, "increment": 1, "fraction": 0.5}
    p |= {"lr": 0.01, "batch_size": 25, "score_examples": 10, "reset_optimizer": False, "as_published": True}
    p |= {"train_examples": 50, "bf16": False, "watch": 40}
    made = vae_study.lab(real, p, [4])
    assert made.image == (1, 28, 28) and made.train[0].shape == (50, 784) and made.train[0].dtype == torch.uint8
    assert len(made.test[0]) == len(made.test[1]) == 40
    assert made.trainer(made.network()).shuffle is False
    saved = vae_study.study(made, "contribution")
    sizes = vae_study.parameters(p, Fake(saved))
    np.testing.assert_array_equal(sizes, saved.rounds["round_parameters"][0])


class Fake:
    """What `parameters` asks of a record."""

    def __init__(self, outcome):
        self.outcome = outcome

    def array(self, name):
        return self.outcome.pictures[name][0], ()


def test_what_is_refused():
    with pytest.raises(ValueError, match="'worse'; allowed are.*worst"):
        vae_study.study(lab(), "worse")
    with pytest.raises(ParameterError, match="initial = 0: allowed are 1 to epochs = 5"):
        lab(schedule=Schedule(5, 0, 2))
