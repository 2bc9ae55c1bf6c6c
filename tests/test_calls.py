"""Calls from Python with what is not meant: each is told what is wanted, before anything is computed."""

import numpy as np
import pytest
import torch
from torch import nn

from lib import errors, evaluate, mask_files, masks, methods, nets, phew, plain, sets, shrink, smaller

X, Y = torch.randn(4, 6), torch.tensor([0, 1, 2, 0])
LOADER = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(X, Y), batch_size=2)


def module():
    return nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))


def stack(runs=2):
    return nets.init_(nets.MLP([6, 5, 3], ["no-WN"] * runs), list(range(runs)))


def diverged():
    net = stack(1)
    net.layers[1].weight.data[0, 2, 1] = float("nan")
    return net


def walks():
    return phew.phew_masks(module(), 50, verbose=False)[0]


TOLD = {
    "one seed": (lambda: nets.init_(nets.MLP([6, 5, 3], "no-WN"), 3), r"seeds = 3 for a stack of 1 runs.*\[1\]"),
    "one seed of many": (lambda: methods.prune(stack(), "random", 0.5, seeds=3), "seeds = 3 for a stack of 2 runs"),
    "no seeds": (lambda: methods.prune(stack(), "random", 0.5), "seeds = None for a stack of 2 runs"),
    "too many seeds": (lambda: errors.one_each(2, seeds=[1, 2, 3]), "3 seeds for a stack of 2 runs"),
    "an array": (lambda: methods.prune(module(), "snip", 0.5, X.numpy(), Y), r"x is a ndarray.*torch.from_numpy\(x\)"),
    "an array for a stack": (lambda: methods.prune(stack(), "snip", 0.5, X.numpy(), Y), "x is a ndarray"),
    "a loader": (lambda: methods.prune(module(), "snip", 0.5, LOADER), r"x is a DataLoader.*zip\(\*loader\)"),
    "a class": (lambda: methods.prune(nn.Linear, "magnitude", 0.5), "net is a type; needed is a network itself"),
    "weights alone": (lambda: methods.prune(module().state_dict(), "magnitude", 0.5), "net is a OrderedDict"),
    "another kind": (lambda: methods.prune(module(), "magnitude", 0.5, of="unit"), "of is 'unit'.*mean 'units'"),
    "a layer without density": (lambda: methods.prune(stack(), "magnitude", {"layers.7": 0.5}, of="units"),
                                r"density says layers.7, scores are of layers.0.*stand in one only"),
    "lists of masks": (lambda: shrink.shrink(module(), walks()), r"masks are a list; needed is a dict.*methods.prune"),
    "lists of masks applied": (lambda: masks.apply_(module(), walks()), "masks are a list"),
    "lists of masks saved": (lambda: mask_files.save(walks(), "never"), "masks are a list"),
    "masks for units": (lambda: smaller.rows(module(), methods.prune(module(), "magnitude", 0.5)),
                        "0.weight is a mask of weights, which shrink takes itself"),
    "no stack": (lambda: evaluate.evaluate(module(), X, Y), "Sequential is no stack.*argmax"),
    "another part": (lambda: sets.load("digits").split("validation"), r"part is 'validation'.*holdout=N"),
    "an activation": (lambda: nets.MLP([6, 5, 3], "no-WN", activation="gelu"), "activation 'gelu'.*'relu'"),
    "one size": (lambda: nets.MLP([6], "no-WN"), r"sizes \[6\].*two sizes or more"),
    "a layer of none": (lambda: nets.MLP([6, 0, 3], "no-WN"), r"sizes \[6, 0, 3\].*none below 1"),
    "batches and a tensor": (lambda: methods.prune(module(), "snip", 0.5, [X, X], Y),
                             "x is 2 batches, y is one tensor; needed are two tensors"),
    "batches of one more": (lambda: methods.prune(stack(), "grasp", 0.5, [X, X], [Y]), "2 batches, y is 1 batches"),
    "layers of walks": (lambda: methods.prune(module(), "phew", 0.5, layers=["0"]), "phew draws.*takes no layers"),
    "a scope of walks": (lambda: methods.prune(stack(), "phew", 0.5, seeds=[0, 1], scope="layer"), "takes no scope"),
    "a network that diverged": (lambda: shrink.shrink(diverged()), "layers.1 has weights that are not finite"),
    "an example of another width": (lambda: shrink.shrink(module(), {}, inputs=torch.ones(2, 7)),
                                    "^Linear '0' has 6 inputs, and gets 7$"),
    "other modules as a file": (lambda: plain.save(nn.Sequential(nn.BatchNorm1d(3)), "never"),
                                r"BatchNorm1d cannot be kept.*torch.save\(module, FILE\)"),
}  # fmt: skip


@pytest.mark.parametrize("case", TOLD)
def test_what_is_wanted_is_told(case):
    call, told = TOLD[case]
    with pytest.raises((ValueError, RuntimeError), match=told):
        call()


def test_batches_of_a_loader_are_those_of_all():
    """The way out of the message, and the sum of the batches' scores by hand."""
    net = module().double()
    x, y = map(list, zip(*((images.double(), labels) for images, labels in LOADER), strict=True))
    found = methods.prune(net, "snip", 0.4, x, y)
    total = sum(nn.functional.cross_entropy(net(images), labels) for images, labels in zip(x, y, strict=True))
    slopes = torch.autograd.grad(total, [net[0].weight, net[2].weight])
    scores = [(slope * w).abs().flatten() for slope, w in zip(slopes, (net[0].weight, net[2].weight), strict=True)]
    least = torch.cat(scores).sort().values[-masks.count(45, 0.4)]
    assert [mask.flatten().tolist() for mask in found.values()] == [(score >= least).tolist() for score in scores]


def test_the_work_of_a_network_of_images_is_counted():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4 * 36, 5))
    assert plain.macs(net, (3, 8, 8)) == 4 * 27 * 36 + 4 * 36 * 5
    assert plain.macs(net[2], 144) == plain.macs(net[2], (144,)) == 720


def test_a_network_of_images_becomes_onnx(tmp_path):
    runtime = pytest.importorskip("onnxruntime")
    torch.manual_seed(1)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 5))
    x = torch.randn(3, 3, 8, 8)
    session = runtime.InferenceSession(str(plain.onnx(net, tmp_path, (3, 8, 8))), providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"x": x.numpy()})
    np.testing.assert_allclose(found, net.eval()(x).detach().numpy(), rtol=1e-4, atol=1e-5)
