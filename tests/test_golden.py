"""Golden values: draws, starts, masks and trained weights that no change of form may alter, and records as they read.

They say that a number is what it was, not that it is right, which the other tests say. Draws of integers and masks are
compared by digests, numbers by their sums and some entries, within what other processors round differently: starts are
uniform and networks float64 where masks or trainings depend on them. After a change that is meant to alter some:
`python -m tests.test_golden CASE ...` writes them anew, and the commit says why.
"""

import hashlib
import json
import math
import os
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from lib import (
    convnets,
    descend,
    drawing,
    draws,
    images,
    inits,
    line_search,
    masks,
    nets,
    runs,
    scores,
    sets,
    store,
)
from lib.networks.layers import Dropout
from lib.pruning.likelihood import moments, unit_moments
from lib.studies.challenge import modes
from lib.studies.dpp import committee, kinds
from lib.studies.ewn import study as ewn
from lib.studies.ewn import toys
from lib.studies.importance import study as importance
from lib.studies.importance import vae_study
from lib.studies.importance.study import Schedule
from lib.studies.phew import study as phew
from lib.training.checkpoint import States
from lib.training.trainer import Trainer

FILE = Path(__file__).with_name("golden.json")
KINDS, SEEDS = ["EWN", "SWN", "no-WN"], [1, 2]
DIGITS, COLOUR = sets.load("digits", train_examples=120), sets.load("digits32", train_examples=60, statistics="phew")
CASES, TOLERANCE = {}, {}
PROFILES = yaml.safe_load((runs.ROOT / "workflow/experiments.yaml").read_text("utf-8"))["profiles"]
INITIAL = [kind for kind in phew.types() if kind in drawing.LOOKS]


def golden(name, tolerance=1e-9, /, **options):
    """Mark a function that returns `{what: tensor}`, of a keyword `options` names, as a case for each of its values."""

    def mark(function):
        ((keyword, values),) = options.items() or (("", [""]),)
        for value in values:
            case = f"{name} {value}".strip()
            CASES[case] = (function, {keyword: value} if keyword else {})
            TOLERANCE[case] = tolerance
        return function

    return mark


def seen(value):
    """Return what is kept of a tensor: a digest of what is exact, the sums and some entries of other numbers."""
    array = np.ascontiguousarray(value.detach().cpu().numpy() if isinstance(value, torch.Tensor) else value)
    if array.dtype.kind in "biu":
        of = f"{array.dtype} {array.shape}".encode() + array.tobytes()
        return hashlib.blake2b(of, digest_size=8).hexdigest()
    flat = array.astype(np.float64).ravel()
    return [flat.sum(), np.abs(flat).sum(), *flat[np.linspace(0, flat.size - 1, 6).astype(int)]]


def made(case):
    function, options = CASES[case]
    return {what: seen(value) for what, value in function(**options).items()}


def weights(net):
    """Return all numbers of a stack in one row for each run."""
    return torch.cat([p.detach().flatten(1) for p in net.parameters()], 1)


def kept(found):
    return torch.cat([mask.flatten(1) for mask in found.values()], 1)


def mlp(sizes=(784, 12, 10), kinds=("no-WN",) * 2, seeds=SEEDS, **options):
    """Return float64 networks of uniform starts, the same bits on every processor."""
    return nets.init_(nets.MLP(list(sizes), list(kinds), **options), seeds, "torch_default").double()


def split(real, train=100, test=40):
    return [(x[:n].double(), y[:n]) for n, (x, y) in ((train, real.split("train")), (test, real.split("test")))]


# ---- draws


@golden("draws", 1e-6)
def every_draw():
    net = mlp([4, 3, 2], dropout=0.5).train()
    first, noise = committee.samples(3, 5, 2)
    found = {
        "order": draws.permutation(3, "order", 7, 100),
        "augment": torch.cat([part.reshape(-1) for part in images.moves(3, 2, 9)]),
        "subset": sets.load("digits", train_examples=100).train_x,
        "committee": torch.cat([first.flatten(), noise]), "teacher": weights(committee.teachers(SEEDS, 9)),
        "dropout": torch.stack([part.key for part in net.modules() if isinstance(part, Dropout)]),
        "dropped": net(torch.ones(50, 4).double()), "student": weights(committee.students(SEEDS, 9)),
        "lin_sep": torch.cat([part.flatten() for part in toys.lin_sep(SEEDS)]), "clusters": toys.clusters(SEEDS)[1],
    }  # fmt: skip
    for purpose in ("latent", "latent of the test", "latent of the score", "prior"):
        found[purpose] = vae_study.noise(SEEDS, purpose, 1, 5, 3)
    return found


# ---- starts


@golden("start of an MLP", 1e-4, scheme=[*inits.EVERYWHERE, *inits.TORCH])
def started(scheme):
    return {"": weights(nets.init_(nets.MLP([30, 20, 10], KINDS), [1, 1, 2], scheme))}


@golden("start of", 1e-4, name=convnets.NAMES)
def started_convnet(name):
    """The first convolutions and the last layers of both sizes, which stand for the others: drawn by the same loop."""
    found = {}
    for side in (32, 64):
        net = convnets.build(name, (3, side, side), 10, 2, 2)
        for scheme in inits.VGG if name in ("resnet20", "resnet18", "vgg11", "vgg19_bn") else ["phew"]:
            found[f"{scheme} {side}"] = weights(nets.init_(net, SEEDS, scheme))
    return found


@golden("start of other networks", 1e-4)
def started_others():
    vgg, lab = convnets.VGG((3, 32, 32), 10, KINDS, 2), autoencoders()
    deep = [nets.MLP([2, *[3] * depth, 1], KINDS, "none", bias=False).double() for depth in (1, 2)]
    toys.old_stream_(deep, [1, 1, 2], 2)
    half = {
        name: (torch.arange(w[0].numel()) % 3 > 0).view_as(w[0]).expand_as(w) for name, w in nets.weights(mlp()).items()
    }
    return {
        "VGG": weights(nets.init_(vgg, [1, 1, 2], "torch_kaiming_output_first")), "VAE": weights(lab.network()),
        **{f"old stream {k}": weights(net) for k, net in enumerate(deep)},
        "start_at_": weights(toys.start_at_(deep[1], toys.clusters([1, 1, 2])[1])),
        **{scheme: weights(nets.reinit_(mlp(), half, SEEDS, scheme)) for scheme in inits.SPARSE},
    }  # fmt: skip


# ---- masks


def double(lab, train, test):
    """Return a lab of float64 networks on data of their own."""
    return replace(lab, train=train, test=test, build=lambda lab, *of, **how: type(lab).build(lab, *of, **how).double())


def initial_lab(**options):
    rule = {"lr": 0.05, "batch": 20, "momentum": 0.9, "nesterov": True, "weight_decay": 1e-4, "bar": False}
    lab = phew.lab(COLOUR, SEEDS, width=2, epochs=1, drops=(1,), rule=rule, augment=False, rounds=3, prune_epochs=1,
                      examples_per_class=2, **options)  # fmt: skip
    return double(lab, *split(COLOUR, None, 20))


@golden("at initialisation", kind=INITIAL)
def at_initialisation(kind):
    densities = [0.2] if kind == "magnitude_trained" else [0.3, 0.1]
    return {"": torch.stack([kept(start.masks) for start in phew.prune(initial_lab(), kind, densities)])}


@golden("at initialisation, as published", kind=["phew", "synflow_l2", "grasp", "random", "synflow_shuffled"])
def as_published(kind):
    return {"": kept(phew.prune(initial_lab(as_published=True), kind, [0.2])[0].masks)}


@golden("at initialisation, more", 1e-4)
def restarted_and_shuffled():
    lab = initial_lab()
    starts = {f"shuffle {width}": phew.prune(lab, "snip", [0.2], width)[0] for width in (0.0, 0.5)}
    starts |= {scheme: phew.prune(lab, "random", [0.2], None, scheme)[0] for scheme in ("phew", "evci", "liu")}
    found = {name: kept(start.masks) for name, start in starts.items()}
    found |= {f"{name} weights": weights(starts[name].net) for name in ("phew", "evci", "liu")}
    _, y = lab.examples()
    return found | {"examples": torch.stack(list(y))}


@golden("edges and units", kind=kinds.KNOWN)
def edges_and_units(kind):
    net = mlp((49, 9, 7, 10), activation="sigmoid", output_bias=True)
    x = split(DIGITS)[0][0].view(-1, 28, 28)[:, ::4, ::4].flatten(1)
    keeps = [5, 30] if kinds.of_edges(kind) else [2, 6]
    layer = net.layers[0]
    found = {"dpp_edge": moments(x), "dpp_node": unit_moments(x, layer.weight, layer.bias, torch.sigmoid)}.get(kind)
    likeness = {"beta": "median"} if found else {}
    rules = {"random_edge": kinds.RULES, "random_node": kinds.RULES[:2]}.get(kind, ("exact",))
    return {
        f"{rule} {keep}": kept(mask)
        for rule in rules
        for keep, mask in kinds.masks_of(kind, net, "layers.0", keeps, SEEDS, found, rule, **likeness).items()
    }


def importance_study(real, **options):
    rule = {"rule": "sgd", "lr": 0.1, "batch": 40, "bar": False}
    train_set, test_set = split(real, 30 if real is COLOUR else 60, 20)
    shape, schedule = tuple(real.train_x.shape[1:]), Schedule(3, 1, 1, 0.2)
    recipe = {"name": f"golden-{real.name}", "channels": options.get("channels", False)}
    found = importance.Study(train_set, test_set, [], recipe, rule, image=shape, classes=10, hidden=(20, 12),
                             schedule=schedule, **options)  # fmt: skip
    return double(found, train_set, test_set)


@golden("while training", real=["digits", "digits32"])
def while_training(real):
    study = importance_study(DIGITS if real == "digits" else COLOUR, channels=real == "digits32")
    found = study.run(3, ["none", "contribution", "worst", "random", "magnitude", "small"])
    masks_of = {kind: torch.cat(list(outcome.kept.values()), 1) for kind, outcome in found.items()}
    return masks_of | {f"{kind} weights": weights(outcome.net) for kind, outcome in found.items()}


def autoencoders():
    picture = DIGITS.train_x.view(-1, 1, 28, 28)[:24, :, ::4, ::4]
    picture = torch.nn.functional.pad(picture, (0, 1, 0, 1)).flatten(1)
    whole = picture, torch.zeros(24, dtype=torch.int64)
    rule = {"lr": 0.005, "batch": 8, "bar": False}
    return vae_study.Lab(whole, whole, SEEDS, {"name": "golden-vae"}, rule, image=(1, 8, 8), hidden=(20, 11), latent=4,
                         schedule=Schedule(2, 1, 1, 0.3))  # fmt: skip


@golden("autoencoders", 1e-3)
def autoencoders_while_training():
    lab = autoencoders()
    net = lab.network()
    found = {
        kind: torch.cat(list(vae_study.chosen(lab, net, kind, 1).values()), 1) for kind in ("random", "contribution")
    }
    return found | {"trained": weights(lab.trainer(net).fit(1).net)}


def uniform(lab, hidden=None, scheme="torch_default"):
    return modes.build(lab, hidden, scheme).double()


@golden("challenge", mode=modes.MODES)
def challenged(mode):
    rule = {"rule": "adam", "lr": 0.005, "batch": 40, "bar": False}
    lab = modes.Lab(*split(DIGITS), SEEDS, {"name": "golden-challenge"}, rule, hidden=(20, 12), epochs=2,
                    retrain_epochs=1, build=uniform)  # fmt: skip
    found = {kind: modes.prune(lab, mode, kind, [0.5, 0.8]) for kind in (*modes.KINDS, "small")}
    return {kind: torch.stack([kept(pruned.masks) for pruned in each]) for kind, each in found.items()}


# ---- training


RULES = {
    "sgd": {"rule": "sgd", "lr": 0.2},
    "momentum": {"rule": "sgd", "lr": 0.1, "momentum": 0.9, "drops": (1,)},
    "nesterov": {"rule": "sgd", "lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 0.01},
    "adam": {"rule": "adam", "lr": 0.01, "weight_decay": 0.01},
    "rms": {"rule": "rms", "lr": 0.01, "momentum": 0.5},
}


def trainer(net, name, **options):
    return Trainer(net, *split(DIGITS), SEEDS, batch=16, bar=False, **RULES[name], **options)


@golden("trained by", name=RULES)
def trained_by(name):
    done, masked = trainer(mlp(output_bias=True), name).fit(2), trainer(mlp(output_bias=True), name)
    masked.fit(1)
    masked.prune(masks.top(scores.magnitude(masked.net, None, None, None), 0.3))
    return {"": weights(done.net), "loss": done.curve("test_loss"), "masked": weights(masked.fit(1).net)}


class Killed(BaseException):
    """What stands for the death of the process."""


def killed_and_resumed(folder):
    """Return a trainer that died in its third epoch, and another one that went on from its file."""

    class Dying(Trainer):
        def _epoch(self):
            if self.epoch == 2:
                raise Killed
            super()._epoch()

    options = {"batch": 16, "bar": False, "every": 0, **RULES["adam"]}
    with pytest.raises(Killed):
        Dying(mlp(dropout=0.2), *split(DIGITS), SEEDS, **options).fit(4, States(folder))
    assert len(list(folder.glob("*.safetensors"))) == 1
    return Trainer(mlp(dropout=0.2), *split(DIGITS), SEEDS, **options).fit(4, States(folder))


@golden("descent", 1e-4)
def descended():
    """To be compared within float32: the data of a descent are."""
    net = nets.init_(nets.MLP([784, 12, 10], KINDS), [1, 1, 2], "torch_default")
    _, ends = descend.descend(net, DIGITS, [1, 1, 2], [-200], batch=16, max_epochs=9)
    ranked = [ewn.norm_criteria({-200: end}, -200) for end in ends]
    found = {f"units by {name}": torch.cat([kept(masks.top(each[name], 0.5)) for each in ranked]) for name in ranked[0]}
    found |= {"attempts": torch.cat([end.attempt for end in ends]), "loss": torch.cat([end.log_loss for end in ends])}
    found["weights"] = torch.cat([weights(end.net) for end in ends])
    return found


@golden("toys", 1e-7)
def toy_descents():
    net = toys.fix_output_(mlp([2, 20, 1], KINDS, [1, 2, 3], bias=False), [1.0] * 10 + [-1.0] * 10)
    result = line_search.search(net, *toys.xor(), [5, 15, 15], [0.1, 1.0, 0.1], 50, budget=150)
    points, targets = toys.clusters(SEEDS)
    deep = toys.start_at_(mlp([2, 5, 1], activation="none", bias=False), targets)
    _, ends, losses = line_search.gradient_descent(deep, points.train_x, points.train_y, 0.001, 50)
    students = committee.students(SEEDS, 20)
    learned = committee.learn_(students, committee.teachers(SEEDS, 20), SEEDS, [0.0, 0.1], 1000, bar=False)
    return {
        "search": result.log_loss, "steps": result.steps, "ends": ends, "losses": losses,
        "committee": np.round(learned["error"], 5),
    }  # fmt: skip


# ---- records


@golden("record of", experiment=sorted(PROFILES["cpu"]["experiments"]))
def as_read(experiment):
    """The record of an experiment that is held on to, else its first: what it says of the run, and all bits of it."""
    held = json.loads(FILE.read_text("utf-8")).get(f"record of {experiment}", {})
    files = [runs.ROOT / "runs" / experiment / f"{name}.json" for name in held]
    record = store.read((files or store.files(runs.ROOT / "runs" / experiment))[0])
    said = [record.name, record.type, record.seed, record.parameters, record.scores, record.axes, record.arrays]
    text = json.dumps(said, sort_keys=True).encode()
    arrays = b"".join(record.array(name)[0].tobytes() for name in sorted(record.arrays))
    return {record.name: np.frombuffer(text + arrays, np.uint8)}


# ---- the tests


@pytest.mark.usefixtures("shared_runs")
@pytest.mark.parametrize("case", CASES)
def test_it_is_what_it_was(case):
    was, now = json.loads(FILE.read_text("utf-8"))[case], made(case)
    assert list(was) == list(now)
    different = [what for what in was if not same(was[what], now[what], TOLERANCE[case])]
    assert not different, {what: (was[what], now[what]) for what in different}


def same(was, now, tolerance):
    """Return whether two results of `seen` are one; a sum may be as far off as its terms together."""
    if isinstance(was, str) or isinstance(now, str):
        return was == now
    size = max(was[1], 1e-300)
    sums = all(math.isclose(a, b, abs_tol=tolerance * size) for a, b in zip(was[:2], now[:2], strict=True))
    return sums and np.allclose(
        was[2:], now[2:], rtol=tolerance, atol=tolerance * np.abs(was[2:]).max(), equal_nan=True
    )


def test_the_file_holds_these_cases_and_no_other():
    assert sorted(json.loads(FILE.read_text("utf-8"))) == sorted(CASES)


def test_a_killed_training_goes_on_to_the_golden_end(tmp_path):
    resumed = killed_and_resumed(tmp_path)
    whole = Trainer(mlp(dropout=0.2), *split(DIGITS), SEEDS, batch=16, bar=False, **RULES["adam"]).fit(4)
    assert torch.equal(weights(resumed.net), weights(whole.net))


def test_another_number_is_seen():
    number, mask = torch.linspace(0, 1, 50, dtype=torch.float64), torch.arange(50) % 3 > 0
    assert same(seen(number), seen(number * (1 + 1e-12)), 1e-9) and not same(seen(number), seen(number * 1.001), 1e-9)
    flipped = mask.clone()
    flipped[7] ^= True
    assert not same(seen(mask), seen(flipped), 1) and not same(seen(mask), seen(mask.view(5, 10)), 1)


def write(cases):
    """Write the values of `cases` anew, or of all of them if none is named."""
    found = json.loads(FILE.read_text("utf-8")) if FILE.exists() else {}
    with tempfile.TemporaryDirectory() as folder:
        os.environ["PRUNING_RUNS"] = folder
        found |= {case: made(case) for case in CASES if not cases or case in cases}
    lines = (f"{json.dumps(case)}: {json.dumps(found[case])}" for case in CASES)
    FILE.write_text("{\n" + ",\n".join(lines) + "\n}\n", "utf-8")


if __name__ == "__main__":
    write(sys.argv[1:])
