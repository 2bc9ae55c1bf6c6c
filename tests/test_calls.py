"""Calls from Python with what is not meant: each is told what is wanted, before anything is computed."""

import tempfile
import threading
import warnings

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn
from torch.nn.utils import prune

from lib import (
    anatomy,
    checkpoint,
    checks,
    convnets,
    descend,
    dpp,
    errors,
    evaluate,
    evidence,
    gallery,
    hops,
    likelihood,
    line_search,
    masks,
    methods,
    nets,
    phew,
    plain,
    reweight,
    runs,
    scores,
    sets,
    shrink,
    slices,
    smaller,
    stacking,
    synflow,
    tables,
    topology,
    units,
)
from lib.training.trainer import Trainer

X, Y = torch.randn(4, 6), torch.tensor([0, 1, 2, 0])
LOADER = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(X, Y), batch_size=2)


def module():
    return nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))


def stack(runs=2):
    return nets.init_(nets.MLP([6, 5, 3], ["no-WN"] * runs), list(range(runs)))


def deeper():
    return nets.init_(nets.MLP([6, 5, 4, 3], "no-WN"), [1])


def diverged():
    net = stack(1)
    net.layers[1].weight.data[0, 2, 1] = float("nan")
    return net


def torch_pruned():
    net = module()
    prune.random_unstructured(net[0], "weight", 0.5)
    return net


def sparse():
    net = module()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch says that sparse tensors are in beta
        net[0].weight = nn.Parameter(net[0].weight.detach().to_sparse_csr())
    return net


def without_units():
    net = module()
    net[0].weight, net[2].weight = nn.Parameter(torch.ones(0, 6)), nn.Parameter(torch.ones(3, 0))
    return net


def locked():
    net = module()
    net.lock = threading.Lock()
    return net


def without_gradient():
    net = module()
    net.forward = torch.no_grad()(net.forward)
    return net


def keyed():
    net = module()
    net.forward = lambda x, *, scale: net[2](net[0](x) * scale)
    return net


def diverged_module():
    net = module()
    net[0].weight.data[0, 0] = np.nan
    return net


def trainer(train=(X, Y), **options):
    return Trainer(stack(1), train, (X, Y), [1], bar=False, **options)


def of_each_row(count):
    return {name: torch.arange(weight.shape[1]).expand_as(weight) < count for name, weight in (
        ("0.weight", torch.empty(5, 6)), ("2.weight", torch.empty(3, 5)))}  # fmt: skip


def drawn(moments, layer="layers.0", **options):
    return methods.prune(stack(1), "dpp", 0.5, {layer: moments}, seeds=[1], **options)


def walks():
    return phew.phew_masks(module(), 50, verbose=False)[0]


def twice():
    return pd.DataFrame({"type": ["A", "A", "B"], "seed": 1, "width": 8, "acc": [0.1, 0.2, 0.3]})


def bordered():
    """Return a network of any size of images, and masks that leave a constant filter before a padded one."""
    net = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.ReLU(), nn.Conv2d(2, 2, 3, padding=1), nn.ReLU(),
                        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 3)).eval()  # fmt: skip
    for p in (net[0].bias, net[2].weight):
        p.data.fill_(1)
    kept = {f"{k}.weight": torch.ones_like(net[k].weight, dtype=torch.bool) for k in (0, 2, 6)}
    kept["0.weight"][0] = kept["2.weight"][0, 1] = kept["2.weight"][1, 0] = False
    return net, kept


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
    "masks for units": (lambda: smaller.rows(module(), methods.prune(module(), "magnitude", 0.5)),
                        "0.weight is a mask of weights, which shrink takes itself"),
    "arrays of masks": (lambda: masks.apply_(module(), {"0.weight": np.ones((5, 6), bool)}),
                        "mask of 0.weight is a ndarray; needed is a bool tensor.*from_numpy"),
    "lists of units": (lambda: smaller.rows(module(), {"0": [True] * 5}), "mask of 0 is a list; needed is a bool"),
    "units without names": (lambda: smaller.rows(module(), [torch.ones(5)]), "masks are a list; needed is a dict"),
    "no units": (lambda: shrink.narrow(stack(), None), "masks are a NoneType; needed is a dict"),
    "no masks": (lambda: anatomy.anatomy(stack(), None), "masks are a NoneType; needed is a dict"),
    "within without names": (lambda: methods.prune(module(), "magnitude", 0.5, within=[X]), "masks are a list"),
    "within rounds without names": (lambda: methods.prune(stack(), "synflow", 0.5, within=[X]), "masks are a list"),
    "fours of units": (lambda: masks.top({"0": torch.rand(2, 5)}, 0.5, "four"), "'four'; allowed are layer, global"),
    "an example as a number": (lambda: shrink.shrink(module(), {}, inputs=6), "part of type int.*needed is an"),
    "an example as an array": (lambda: shrink.shrink(module(), {}, inputs=X.numpy()), "part of type ndarray"),
    "the work of no example": (lambda: plain.macs(module(), None), "inputs are a NoneType; needed is the length"),
    "images for a stack": (lambda: methods.prune(convnets.build("vgg11", (3, 32, 32), 3, 1, 2), "snip", 0.5,
                                                 torch.randn(4, 3, 32, 32), Y), r"\(4, 3, 32, 32\).*flatten"),
    "no stack": (lambda: evaluate.evaluate(module(), X, Y), "Sequential is no stack.*argmax"),
    "epochs below zero": (lambda: trainer().fit(-1), r"epochs is -1; allowed are whole numbers in \[0, 2\^31\)"),
    "half an epoch": (lambda: trainer().fit(1.5), "epochs is 1.5"),
    "a rate without end": (lambda: trainer(lr=float("inf")), r"lr is inf; allowed are numbers in \(0, inf\)"),
    "a momentum of one": (lambda: trainer(momentum=1), r"momentum is 1; allowed are numbers in \[0, 1\)"),
    "a drop twice": (lambda: trainer(drops=[1, 1]), r"drops are \[1, 1\]; every epoch goes once"),
    "a drop of nothing": (lambda: trainer(drop=0), r"drop is 0; allowed are numbers in \(0, 1\]"),
    "masks of units": (lambda: shrink.shrink(stack(1), methods.prune(stack(1), "magnitude", 0.5, of="units")),
                       r"layers.0 is a layer, and so these are masks of units.*masks.expand\(masks, net\)"),
    "masks of units of a module": (lambda: masks.apply_(module(), {"0": torch.ones(5, dtype=torch.bool)}),
                                   r"0 is a layer.*smaller.rows\(net, masks\)"),
    "no example": (lambda: phew.phew_masks(module(), 50, inputs=X[:0]), "part of type Tensor, or an empty one"),
    "no example to shrink": (lambda: shrink.shrink(module(), of_each_row(3), inputs=X[:0]), r"x has shape \(0, 6\)"),
    "no example to score": (lambda: methods.prune(stack(), "snip", 0.5, X[:0], Y[:0]), r"x has shape \(0, 6\)"),
    "training on short rows": (lambda: trainer(train=(X[:, :5], Y)), r"\(4, 5\); needed for a stack.*rows \(N, 6\)"),
    "training on doubles": (lambda: trainer(train=(X.double(), Y)), "x is torch.float64.*needed for a stack are"),
    "training on images": (lambda: trainer(train=(X.view(4, 2, 3), Y)), r"\(4, 2, 3\); needed.*x.flatten\(1\)"),
    "training on rows of classes": (lambda: trainer(train=(X, nn.functional.one_hot(Y))),
                                    r"4 examples with labels \(4, 3\).*needed is a class of each"),
    "training on real classes": (lambda: trainer(train=(X, Y.float())), "torch.float32; needed is a class of each"),
    "the history of others": (lambda: methods.prune(stack(), "growth", 0.5, methods.score(
        deeper(), "magnitude", of="units"), of="units"), r"x has no norms \(2, 5\) of the units of layers.0"),
    "training on nothing": (lambda: trainer(train=(X[:0], Y[:0])), "x has shape .0, 6.; needed are examples"),
    "another part": (lambda: sets.load("digits").split("validation"), r"part is 'validation'.*holdout=N"),
    "an activation": (lambda: nets.MLP([6, 5, 3], "no-WN", activation="gelu"), "activation 'gelu'.*'relu'"),
    "one size": (lambda: nets.MLP([6], "no-WN"), r"sizes \[6\].*two sizes or more"),
    "a layer of none": (lambda: nets.MLP([6, 0, 3], "no-WN"), r"side of weights \(1, 0, 6\) is 0; allowed are whole"),
    "half a unit": (lambda: nets.MLP([6, 2.5, 3], "no-WN"), "is 2.5; allowed are whole numbers"),
    "no runs": (lambda: convnets.build("vgg11", (3, 32, 32), 10, -1), "is 0; allowed are whole"),
    "a text of a density": (lambda: methods.prune(module(), "magnitude", "0.5"), "density.* is '0.5'; allowed are"),
    "no density": (lambda: methods.prune(stack(), "magnitude", None), r"is None; allowed are numbers in \(0, 1\]"),
    "a density of none": (lambda: methods.prune(module(), "magnitude", 1e-6), "none; scope='global' one at 0.0222"),
    "rounds of none": (lambda: methods.prune(stack(), "synflow", 1e-3), "0.001 of 45 keeps none"),
    "no unit": (lambda: methods.prune(stack(), "magnitude", 0.01, of="units"), "0.01 of 5 keeps none"),
    "no hidden unit": (lambda: methods.prune(nn.Sequential(nn.Linear(6, 3)), "random", 0.5, of="units"),
                       "has no hidden units to prune"),
    "no hidden unit of a stack": (lambda: methods.prune(nets.MLP([6, 3], "no-WN"), "random", 0.5, of="units"),
                                  "MLP has no hidden units to prune"),
    "no layers": (lambda: methods.prune(module(), "magnitude", 0.5, layers=[]), r"layers is \[\]; needed is a list"),
    "half a round": (lambda: methods.prune(module(), "synflow", 0.5, rounds=1.5), "rounds is 1.5; allowed are whole"),
    "more than is left in rounds": (lambda: methods.prune(module(), "synflow", 0.9, within=of_each_row(2)),
                                    "41 weights are to be kept, of which only 16 are left"),
    "within by another name": (lambda: methods.prune(stack(), "magnitude", 0.5, within={"a": 1}),
                               "within has no masks of layers.0.weight, layers.1.weight; it has those of a"),
    "half a seed": (lambda: methods.prune(module(), "random", 0.5, seeds=[1.5]), r"seed is 1.5;.*\[0, 2\^64\)"),
    "a seed below zero": (lambda: methods.prune(module(), "phew", 0.5, seeds=[-1]), "seed is -1; allowed are whole"),
    "a seed too large": (lambda: nets.init_(nets.MLP([6, 3], "no-WN"), [2**64]), "seed is 18446744073709551616;"),
    "a seed of walks": (lambda: methods.prune(stack(), "phew", 0.5, seeds=3), "seeds = 3 for a stack of 2 runs"),
    "labels of an array": (lambda: methods.prune(module(), "snip", 0.5, X, Y.numpy()), "y is a ndarray"),
    "labels as numbers": (lambda: methods.prune(module(), "snip", 0.5, X, Y.float()), r"torch.float32 \(4,\) for 4"),
    "another length": (lambda: evaluate.evaluate(stack(1), X[:, :4], Y), r"\(4, 4\); needed.*rows \(N, 6\)"),
    "doubles": (lambda: evaluate.evaluate(stack(1), X.double(), Y), "x is torch.float64.*needed.*torch.float32"),
    "labels of fewer": (lambda: methods.prune(module(), "hessian", 0.5, X, Y[:3]), r"\(3,\) for 4 examples"),
    "a yes for True": (lambda: methods.prune(module(), "snip", 0.5, X, Y, training="no"),
                       "training is 'no'; allowed are True and False"),
    "a no for False": (lambda: trainer(bf16="no"), "bf16 is 'no'; allowed are True and False"),
    "zero for False": (lambda: trainer(shuffle=0), "shuffle is 0; allowed are True and False"),
    "a column of labels": (lambda: methods.prune(module(), "snip", 0.5, X, Y[:, None]),
                           r"y has shape \(4, 1\); needed are classes \(N,\), such as y.squeeze\(1\)"),
    "labels below zero": (lambda: methods.prune(stack(), "snip", 0.5, X, Y - 100), "-100 to -98; 3 logits have 0 to 2"),
    "another network's optimizer": (lambda: masks.hold_(net := module(), methods.prune(net, "magnitude", 0.5),
                                                        torch.optim.Adam(module().parameters())),
                                    "0.weight, 2.weight are no parameters of this optimizer"),
    "one example": (lambda: methods.prune(module(), "snip", 0.5, X[0], Y[:1]), r"x has shape \(6,\).*\(N, ...\)"),
    "no batches": (lambda: methods.prune(module(), "snip", 0.5, [], []), "x is a list of none"),
    "a lazy module": (lambda: methods.prune(nn.Sequential(nn.LazyLinear(3)), "magnitude", 0.5), "no real.*once"),
    "a lazy module of walks": (lambda: phew.phew_masks(nn.Sequential(nn.LazyLinear(3)), 50, inputs=X), "no real.*once"),
    "a module of no device": (lambda: methods.prune(module().to("meta"), "magnitude", 0.5), "'2.bias'. hold no real"),
    "complex weights": (lambda: phew.phew_masks(nn.Sequential(nn.Linear(6, 3, dtype=torch.complex64)), 50),
                        r"'0.weight', '0.bias'. hold no real numbers.*masks.top\(scores"),
    "sparse weights": (lambda: shrink.shrink(sparse(), {}), r"'0.weight'. hold no .* in dense form.*to_dense"),
    "a layer without units": (lambda: methods.prune(without_units(), "magnitude", 0.5), r"'0', '2'. have no weights"),
    "a layer without units to be read": (lambda: shrink.shrink(without_units(), {}, inputs=X), "'2'. have no weights"),
    "rows of another width": (lambda: methods.prune(stack(), "snip", 0.5, X[:, 1:], Y), r"\(4, 5\); .*rows \(N, 6\)"),
    "rows of another type": (lambda: methods.prune(stack(), "snip", 0.5, [X.double()], [Y]),
                             "x is torch.float64 .*are torch.float32, rows"),
    "examples for moments": (lambda: methods.prune(stack(), "dpp", 0.5, X), "x is a Tensor; .* dict by layers, of mom"),
    "examples for history": (lambda: methods.prune(module(), "growth", 0.5, X, of="units"), "dict by layers, of hist"),
    "a second input by name": (lambda: methods.prune(keyed(), "magnitude", 0.5, X, of="units"),
                               "missing 1 required keyword-only argument: 'scale'. Or say which .*layers="),
    "what torch had pruned": (lambda: masks.apply_(torch_pruned(), {"0.weight": torch.ones(5, 6).bool()}),
                              r"layers \['0'\] compute their weights.*prune.remove"),
    "a lock in a module": (lambda: methods.prune(locked(), "magnitude", 0.5), "cannot be copied, take it out: .*lock"),
    "images of bytes": (lambda: methods.prune(module(), "snip", 0.5, X.byte(), Y),
                        r"Sequential does not run on torch.uint8 \(N, 6,\): .*Pass x, examples whose shape and type"),
    "a layer's weight": (lambda: methods.prune(module(), "magnitude", 0.5, layers=["0.weight"]),
                         "a layer is '0.weight'; allowed are 0, 2"),
    "a rule for an optimizer": (lambda: masks.hold_(module(), {}, "adam"), "optimizer is a str; needed is one of"),
    "a weight that is no number": (lambda: shrink.shrink(diverged_module(), {}, inputs=X), "that are not finite"),
    "a run by its text": (lambda: shrink.shrink(stack(), {}, "0"), r"run is '0'; allowed .*\[0, 2\)"),
    "testing on inputs": (lambda: Trainer(stack(), (X, Y), X, [0, 1]), "test is a Tensor; needed is .*split..test"),
    "training on classes that are not there": (lambda: trainer(train=(X, Y + 1)), "labels are 1 to 3; 3 logits"),
    "a row alone": (lambda: shrink.shrink(module(), {}, inputs=X[0]), r"x has shape \(6,\); needed are examples along"),
    "names of a wrapped module": (lambda: masks.apply_(nn.DataParallel(module()), {"module.0.weight": X.bool()}),
                                  "must be one of 0.weight, .*mean '0.weight'"),
    "no gradient": (lambda: methods.prune(without_gradient(), "snip", 0.5, X, Y), "has no gradient: no_grad or detach"),
    "another column": (lambda: trainer().curve("acc"), "column is 'acc'; allowed are epoch, .*test_accuracy"),
    "no experiment": (lambda: runs.table(None), "no notebook .*None.ipynb.*There are: arena"),
    "no name of one": (lambda: runs.table(""), "no notebook .*There are: arena"),
    "no folder to save in": (lambda: plain.save(module(), None), "folder is a NoneType; needed is the path of"),
    "a length of another network": (lambda: plain.macs(module(), 7), r"Sequential does not run on .* \(7,\): .*Pass"),
    "a table of an array": (lambda: smaller.table(module(), {}, X.numpy(), "."), "x is a ndarray; needed is a batch"),
    "a table of other rows": (lambda: smaller.table(stack(1), {}, X[:, :5], "."), r"\(4, 5\); needed .* rows \(N, 6\)"),
    "masks in an array": (lambda: shrink.shrink(stack(1), X.numpy()), "masks are a ndarray; needed is a dict"),
    "a length below zero": (lambda: plain.macs(module(), -3), "a side of inputs is -3; allowed are whole numbers"),
    "a number of runs": (lambda: nets.MLP([6, 5, 3], 3), "norm is 3; allowed are no-WN, SWN, EWN"),
    "a drop that is no number": (lambda: trainer(drops=[1, "a"]), "an epoch of drops is 'a'; allowed are whole"),
    "half a drop": (lambda: trainer(drops=[1, 2.5]), "an epoch of drops is 2.5; allowed are whole"),
    "drops within drops": (lambda: trainer(drops=[[1], [2, 3]]), r"an epoch of drops is \[1\]; allowed are whole"),
    "no drops": (lambda: trainer(drops=None), "an epoch of drops is None; allowed are whole numbers"),
    "testing on fewer labels": (lambda: evaluate.evaluate(stack(1), X, Y[:3]), r"4 examples with labels \(3,\)"),
    "testing on classes that are not there": (lambda: evaluate.evaluate(stack(1), X, Y + 1), "are 1 to 3; 3 logits"),
    "testing on shares": (lambda: evaluate.evaluate(stack(1), X, Y.float()), r"torch.float32; needed is a class of"),
    "a text of a power": (lambda: phew.phew_masks(module(), 50, power="2"), "power is '2'; wanted is a number"),
    "ragged matrices": (lambda: dpp.sample([[1, 2], [3]], 1, [0]), r"matrices are \[\[1, 2\], \[3\]\]; .* \(M, N, N\)"),
    "matrices in a text": (lambda: dpp.sample("abc", 1, [0]), "matrices are 'abc'; needed is"),
    "texts in matrices": (lambda: dpp.sample([[["a"]]], 1, [0]), "matrices are .*'a'.*; needed is"),
    "matrices of nothing": (lambda: dpp.sample(np.ones((1, 0, 0)), 1, [0]), r"matrices are \(1, 0, 0\); needed is"),
    "units of a unit": (lambda: methods.prune(module(), "magnitude", 0.5, of="units", scope="unit"),
                        "scope is 'unit'; allowed are layer, global"),
    "inputs for units": (
        lambda: methods.prune(nn.Sequential(nn.ConvTranspose2d(4, 6, 3)), "magnitude", 0.5, scope="unit"),
        "scope 'unit' is of rows, which are inputs in the transposed convolutions 0: take layer, global, or"),
    "scores of a module": (lambda: masks.top(methods.score(module(), "magnitude"), 0.5), "no runs as first axis.*None"),
    "scores of a module of filters": (lambda: masks.top({"0.weight": torch.ones(4, 3, 3, 3)}, 0.5, "global"),
                                      "0.weight have no runs as first axis"),
    "stacks of two functions": (lambda: nets.join([stack(), nets.MLP([6, 5, 3], "no-WN", "sigmoid")]),
                                "differently cannot join: .*sigmoid.* beside .*relu"),
    "stacks of two dropouts": (lambda: nets.join(nets.MLP([6, 5, 3], "no-WN", dropout=p) for p in (0.1, 0.5)),
                               "cannot join"),
    "stacks of two depths": (lambda: nets.join([nets.MLP([6, 5], "no-WN"), nets.MLP([6, 5, 3], "no-WN")]),
                             "other parts cannot join: .*'layers.1.weight'.* beside .*'layers.0.weight'"),
    "masks of some layers to start again": (lambda: nets.reinit_(stack(), {"layers.0.weight": torch.ones(2, 5, 6)},
                                                                 [1, 2]), "masks lack layers.1.weight, or have"),
    "masks of units to start again": (lambda: nets.reinit_(stack(), methods.prune(stack(), "random", 0.5, seeds=[1, 2],
                                      of="units"), [1, 2]), "masks lack layers.0.weight, layers.1.weight"),
    "masks of other layers": (lambda: nets.join([{"a": X}, {"a": X, "b": X}]), r"\['a', 'b'\] beside \['a'\]"),
    "no moments": (lambda: methods.prune(stack(), "dpp", 0.5, {}, seeds=[1, 2]),
                            "a layer of moments is None; allowed are layers.0, layers.1"),
    "no moments of units": (lambda: methods.prune(module(), "dpp", 0.5, {}, of="units"),
                                    "a layer of moments is None; allowed are 0, 2"),
    "no beta": (lambda: methods.prune(stack(), "dpp", 0.5, {"layers.0": likelihood.moments(X)}, seeds=[1, 2],
                                      beta=None), "beta is None; allowed are a number above 0"),
    "a list of activations": (lambda: nets.MLP([6, 5, 3], "no-WN", ["relu"]), "activation .'relu'.; needed are"),
    "a seed as a tensor": (lambda: nets.init_(stack(), torch.tensor(1)), r"seeds = tensor\(1\) for a stack of 2"),
    "a seed as an array": (lambda: Trainer(stack(1), (X, Y), (X, Y), np.array(1)), r"seeds = array\(1\) for a stack"),
    "a density as all": (lambda: methods.prune_each(stack(), "magnitude", torch.tensor(0.5)),
                         r"densities is tensor\(0.5000\); needed is a list"),
    "within without names in a stack": (lambda: methods.prune(stack(), "magnitude", 0.5, within=[X]),
                                        "within is a list; needed is masks by name"),
    "within without names of scores": (lambda: masks.top({"a": X}, 0.5, within=X > 0), "within is a Tensor"),
    "the least of each run": (lambda: methods.prune(stack(), "magnitude", 0.5, least=[0.9, 0.9]),
                              r"least = \[0.9, 0.9\] of every tensor are"),
    "an empty list of examples": (lambda: shrink.shrink(module(), {}, inputs=[]), "part of type NoneType, or an empty"),
    "an example without axes": (lambda: phew.phew_masks(module(), 50, inputs=torch.tensor(1.0)), "of type Tensor, or"),
    "a certain dropout": (lambda: nets.MLP([6, 5, 3], "no-WN", dropout=1.0), r"dropout is 1.0; .* in \[0, 1\)"),
    "a density of each layer in rounds": (
        lambda: methods.prune(module(), "synflow", {"0.weight": 0.5, "2.weight": 0.5}),
        "density for each layer, goes with one round.*rounds=1"),
    "rounds within some layers": (
        lambda: methods.prune(module(), "synflow", 0.1, within={"0.weight": torch.ones(5, 6).bool()}),
        "within has no masks of 2.weight; it has those of 0.weight"),
    "bytes": (lambda: evaluate.evaluate(stack(1), X.byte(), Y), "x is torch.uint8 .*needed .* torch.float32"),
    "examples of other runs": (lambda: evaluate.evaluate(stack(3), X.expand(2, 4, 6), Y),
                               r"\(2, 4, 6\); .* or \(R, N, 6\)"),
    "moments of nothing": (lambda: likelihood.moments(X[:0]), r"x has shape \(0, 6\)"),
    "moments of another network": (lambda: drawn(likelihood.moments(X[:, 1:])),
                                   r"moments of layers.0 are \(5, 5\);.* gram is \(6, 6\) or \(1, 6, 6\)"),
    "moments of another network's units": (lambda: drawn(likelihood.moments(X[None]), of="units"),
                                           r"are \(1, 6, 6\); needed .* gram is \(1, 5, 5\)"),
    "examples of a layer for moments": (lambda: drawn(X), "moments of layers.0 are a Tensor; needed are likel"),
    "moments that are no numbers": (lambda: drawn(likelihood.moments(X * np.nan)), "matrix .* is not finite"),
    "moments of no layer": (lambda: drawn(likelihood.moments(X), "layer.0"), "mean 'layers.0'"),
    "moments of an array": (lambda: likelihood.moments(X.numpy()), "x is a ndarray"),
    "a ridge below zero": (lambda: likelihood.likelihood(torch.eye(3), 4, ridge=-5), "ridge is -5; allowed are"),
    "a seed that stands twice": (lambda: evidence.apart(twice(), "A", "B", "acc"), "A has several rows of seed = 1; "),
    "a seed twice in a group": (lambda: tables.gains(twice(), "A", "B", ["width"], "acc"),
                                r"several rows of width, seed = \(8, 1\)"),
    "images of one size alone": (lambda: shrink.shrink(*bordered()), "depends on the size of images: .* inputs=x"),
    "units of two layers": (
        lambda: reweight.units_(net := deeper(), methods.prune(net, "magnitude", 0.5, of="units"), torch.relu),
        "masks are of layers.0, layers.1; needed are those of one layer"),
    "edges refitted to other moments": (
        lambda: reweight.edges_(stack(1), {"layers.0.weight": torch.ones(1, 5, 6).bool()}, likelihood.moments(X[1:].T)),
        r"moments of layers.0 are \(3, 3\); needed"),
    "units refitted to other moments": (
        lambda: reweight.units_(stack(1), {"layers.0": torch.ones(1, 5).bool()}, torch.relu, likelihood.moments(X)),
        r"moments of layers.1 are \(6, 6\); needed .* \(5, 5\) or"),
    "edges of two layers": (lambda: reweight.edges_(stack(1), methods.prune(stack(1), "magnitude", 0.5), None),
                            "masks are of layers.0.weight, layers.1.weight; needed are those of one"),
    "a text of levels": (lambda: descend.descend(stack(1), None, [1], "-10"), "levels are log-losses, each negative"),
    "no folder": (lambda: plain.load(None), "folder is a NoneType; needed is the path of a folder"),
    "no seeds of a claim": (lambda: gallery.claim("", [1.0, np.nan]), r"gains are \[1.0, nan\]; needed are finite"),
    "shares for hits": (lambda: gallery.share("", [0.3, 0.5]), r"hits are \[0.3 0.5\]; needed are True and False"),
    "another stack's units": (lambda: masks.expand({"layers.0": torch.ones(1, 5).bool()}, stack()),
                              r"\(1, 5\).*\(2, 5\)"),
    "units as numbers": (lambda: smaller.rows(module(), {"0": torch.ones(5)}), "0 are torch.float32.*torch.bool"),
    "units of an activation": (lambda: smaller.rows(module(), {"1": torch.ones(5).bool()}), "no layer is called '1'"),
    "units of what is transposed": (lambda: smaller.rows(nn.Sequential(nn.ConvTranspose1d(5, 5, 1)), {
                                    "0": torch.ones(5).bool()}), "no layer is called '0'"),
    "batches and a tensor": (lambda: methods.prune(module(), "snip", 0.5, [X, X], Y),
                             "x is 2 batches, y is one tensor; needed are two tensors"),
    "batches of one more": (lambda: methods.prune(stack(), "grasp", 0.5, [X, X], [Y]), "2 batches, y is 1 batches"),
    "a density of walks": (lambda: methods.prune(module(), "phew", float("nan")), "density.* is nan; allowed are"),
    "densities of walks": (lambda: methods.prune(stack(), "phew", [0.5, 1], seeds=[0, 1]), r"density.* is \[0.5, 1\]"),
    "rounds of units": (lambda: methods.prune(stack(), "magnitude", 0.5, of="units", rounds=3),
                        "allowed in rounds, which are of weights, are layers.0.weight"),
    "units of one run": (lambda: shrink.narrow(stack(), {"layers.0": torch.ones(5).bool()}), r"\(5,\).*bool \(2, 5\)"),
    "layers of walks": (lambda: methods.prune(module(), "phew", 0.5, layers=["0"]), "phew draws.*takes no layers"),
    "a scope of walks": (lambda: methods.prune(stack(), "phew", 0.5, seeds=[0, 1], scope="layer"), "takes no scope"),
    "a network that diverged": (lambda: shrink.shrink(diverged()), "layers.1 has weights that are not finite"),
    "an example of another width": (lambda: shrink.shrink(module(), {}, inputs=torch.ones(2, 7)),
                                    "reads such inputs: Linear '0' has 6 inputs, and gets 7$"),
    "scores as an array": (lambda: masks.top({"a": np.ones((1, 2, 3))}, 0.5), "score of a is a ndarray.*from_numpy"),
    "scores in a list": (lambda: masks.top([torch.ones(1, 2, 3)], 0.5), "scores are a list; needed is a dict"),
    "scores as a tensor": (lambda: masks.top(torch.ones(1, 2, 3), 0.5), "scores are a Tensor; needed is a dict"),
    "within as arrays": (lambda: masks.top({"a": torch.ones(1, 2, 3)}, 0.5, within={"a": np.ones((1, 2, 3), bool)}),
                         "mask of a is a ndarray; needed is a bool tensor"),
    "within of another network": (
        lambda: methods.prune(stack(1), "magnitude", 0.1, within=methods.prune(stack(), "magnitude", 0.5)),
        r"mask of layers.0.weight is torch.bool \(2, 5, 6\); it must be bool \(1, 5, 6\)"),
    "one of several densities": (lambda: methods.prune_each(stack(), "magnitude", 0.5), "densities is 0.5; needed is"),
    "a method in a list": (lambda: methods.prune(stack(), ["magnitude"], 0.5), r"is called \['magnitude'\]; allowed"),
    "a kind in a list": (lambda: methods.prune(stack(), "magnitude", 0.5, of=["units"]), r"of is \['units'\]; allowed"),
    "a layer by number": (lambda: methods.prune(stack(), "magnitude", 0.5, layers=0), "layers is 0; needed is a list"),
    "a number of sizes": (lambda: nets.MLP(6, "no-WN"), "sizes 6, .*two sizes or more"),
    "no type": (lambda: nets.MLP([6, 5, 3], None), r"norm is None; allowed are"),
    "training on arrays": (lambda: trainer(train=(X.numpy(), Y)), "x is a ndarray.*torch.from_numpy"),
    "training on data": (lambda: trainer(train=sets.load("digits")), r'train is a Data; needed is \(x, y\), as split'),
    "training on inputs": (lambda: trainer(train=X), "train is a Tensor; needed is"),
    "training on other labels": (lambda: trainer(train=(X, Y.float())), r"labels \(4,\), torch.float32; needed is"),
    "a text of images": (lambda: sets.load("digits", train_examples="100"), "train_examples is '100'; allowed is 0 to"),
    "half an image": (lambda: sets.load("digits", holdout=1.5), "holdout is 1.5; allowed is 0 to"),
    "no device": (lambda: sets.load("digits", None), "device is 'None'; allowed are auto, cpu"),
    "a file of another class": (lambda: plain.load(plain.save(nn.Sequential(nn.Tanh()), tempfile.mkdtemp()).parent),
                                r"module is a NoneType; .* needs a fresh Sequential\(...\) in full size"),
}  # fmt: skip


STACKS = {  # functions of a stack
    "graph": nets.graph, "runs": nets.runs, "weights": nets.weights, "fold": nets.fold,
    "units' norms": nets.unit_norms, "plain": nets.assert_plain, "evaluate": lambda net: evaluate.evaluate(net, X, Y),
    "anatomy": lambda net: anatomy.anatomy(net, {}), "path kernel": lambda net: synflow.path_kernel(net, {}),
    "narrow": lambda net: shrink.narrow(net, {}), "widen": lambda net: shrink.widen(net, net, {}),
    "init_": lambda net: nets.init_(net, [1]), "reinit_": lambda net: nets.reinit_(net, {}, [1]),
    "apart": nets.apart, "width": lambda net: stacking.width(net, 4), "readers": units.readers,
    "score": lambda net: scores.magnitude(net, None, None, [1]), "flow": synflow.flow,
    "line search": lambda net: line_search.search(net, X, Y, 1.0, 1.0, 1.0),
    "descent": lambda net: line_search.gradient_descent(net, X, Y, 0.1, 1),
    "training": lambda net: Trainer(net, (X, Y), (X, Y), [1], bar=False), "refit": lambda net: reweight.edges_(
        net, {"0.weight": torch.ones(1, 5, 6).bool()}, None),
}  # fmt: skip
MODULES = {  # functions of any torch module, stacks among them
    "prune": lambda net: methods.prune(net, "magnitude", 0.5), "shrink": shrink.shrink, "unwrapped": hops.unwrapped,
    "apply_": lambda net: masks.apply_(net, {}), "hold_": lambda net: masks.hold_(net, {}, torch.optim.SGD([X], 0.1)),
    "rows": lambda net: smaller.rows(net, {}), "sliced": lambda net: slices.sliced(net, {}),
    "topology": topology.topology, "phew": lambda net: phew.phew_masks(net, 50),
    "save": lambda net: plain.save(net, ""), "macs": lambda net: plain.macs(net, 6), "parameters": plain.parameters,
    "laid out": plain.laid_out, "expand": lambda net: masks.expand({}, net),
}  # fmt: skip
STRANGE = {"list": [module()], "NoneType": None, "OrderedDict": module().state_dict(), "type": nn.Linear}


@pytest.mark.parametrize("kind", STRANGE)
@pytest.mark.parametrize("case", STACKS | MODULES)
def test_what_is_no_network_is_told_so(case, kind):
    with pytest.raises(ValueError, match=f" is a {kind}; needed is a"):
        (STACKS | MODULES)[case](STRANGE[kind])


@pytest.mark.parametrize("case", STACKS)
def test_what_is_no_stack_is_told_so(case):
    with pytest.raises(errors.ParameterError, match="Sequential is no stack .*methods.prune and shrink.shrink take it"):
        STACKS[case](module())


WHOLE = torch.int64, torch.int32, torch.uint8, torch.uint16, torch.uint64


def test_what_is_meant_is_taken(tmp_path):
    """A device of torch, seeds in a tensor, one drop, drops and rates in tensors, labels of few bytes."""
    assert sets.load("digits", torch.device("cpu")).device == torch.device("cpu")
    drawn = [nets.init_(nets.MLP([6, 3], "no-WN"), seeds).layers[0].weight for seeds in ([3], torch.tensor([3]))]
    assert torch.equal(*drawn)
    for drops in (1, np.array(1), torch.tensor(1), {1}, np.array([1]), {1: 0.1}.keys(), iter([1])):
        assert trainer(drops=drops).drops == (1,)
    given = {"drops": torch.tensor([0, 2]), "lr": torch.tensor(0.5), "batch": np.int64(2)}
    small = trainer((X, Y.int()), **given).fit(1, checkpoint.States(tmp_path))
    plain = trainer(drops=[0, 2], lr=0.5, batch=2).fit(1)
    assert small.drops == (0, 2) and np.array_equal(small.curve("train_loss"), plain.curve("train_loss"), True)
    each = [evaluate.evaluate(plain.net, X, Y.to(kind), top5=True) for kind in WHOLE]
    assert all(one == each[0] for one in each)


def test_what_is_told_of_chains_alone_says_so():
    for net in (module(), convnets.build("resnet20", (3, 8, 8), 3, 1, 2), None):
        with pytest.raises(errors.ParameterError, match=f"net is a {type(net).__name__}; needed is nets.MLP"):
            anatomy.perturbation(net, {}, X)


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


@pytest.mark.parametrize("value", [0.5, 1, torch.tensor(0.5), np.float32(0.5), np.int64(1)])
def test_numbers_of_every_library_are_numbers(value):
    found = errors.number("share", value, "(0, 1]")
    assert found == value and type(found) in (int, float)


@pytest.mark.parametrize("value", ["0.5", None, True, [0.5], float("nan"), float("inf"), 0, 1.5, np.ones(1), 1j])
def test_what_is_no_number_of_an_interval_is_told(value):
    with pytest.raises(errors.ParameterError, match=r"^share is .*; allowed are numbers in \(0, 1\]$"):
        errors.number("share", value, "(0, 1]")


def test_what_a_module_had_pruned_stays_pruned():
    net, old = module(), {"0.weight": torch.arange(30).view(5, 6) % 3 == 0, "2.weight": torch.ones(3, 5).bool()}
    found = methods.prune(net, "magnitude", 0.4, within=old)
    sizes = torch.cat([(net.get_parameter(name).detach().abs() * mask).flatten() for name, mask in old.items()])
    least = sizes.sort().values[-18]
    assert torch.equal(torch.cat([mask.flatten() for mask in found.values()]), sizes >= least)


def test_one_layer_is_a_text_or_a_list():
    assert list(methods.prune(module(), "magnitude", 0.5, layers="2")) == ["2.weight"]
    with pytest.raises(errors.ParameterError, match="a layer is '20'; allowed are 0, 2"):
        methods.prune(module(), "magnitude", 0.5, layers="20")  # which are not the layers 2 and 0


@pytest.mark.parametrize("make", [module, stack])
def test_where_nothing_is_pruned_it_is_told(make):
    said = "nothing is pruned: density 0.95 of 5 keeps all; one less is a density of 0.8"
    with pytest.warns(UserWarning, match=said):
        found = methods.prune(make(), "magnitude", 0.95, of="units")
    assert all(mask.all() for mask in found.values())
    methods.prune(make(), "magnitude", 1.0, of="units"), methods.prune(make(), "magnitude", 0.8, of="units")


def test_a_layer_of_which_nothing_is_kept_is_told():
    net = module()
    net[2].weight.data *= 1e-6
    with pytest.warns(UserWarning, match="nothing is kept of 2.weight"):
        methods.prune(net, "magnitude", 0.5)


def test_what_every_layer_keeps_at_least():
    net = stack()
    net.layers[1].weight.data *= 1e-6
    found = methods.prune(net, "magnitude", 0.5, scope="global", least=0.2)
    assert [int(mask[0].sum()) for mask in found.values()] == [20, 3], "45 of which 23 stay, a fifth of 15 at least"
    for run in range(2):
        weights = net.layers[1].weight[run].abs().flatten()
        assert torch.equal(found["layers.1.weight"][run].flatten(), weights >= weights.sort().values[-3])
    assert not methods.prune(net, "magnitude", 0.5, scope="global")["layers.1.weight"].any()
    one = methods.prune(module(), "magnitude", 0.1, scope="global", least=1e-6)
    assert all(mask.any() for mask in one.values()), "one at least"
    with pytest.raises(ValueError, match="least = 0.6 of every tensor are 27 entries, where density keeps 23 of 45"):
        methods.prune(net, "magnitude", 0.5, scope="global", least=0.6)
    with pytest.raises(errors.ParameterError, match="goes with one round, and synflow has 100: pass rounds=1"):
        methods.prune(net, "synflow", 0.5, least=0.1)
    with pytest.raises(errors.ParameterError, match='"four".* goes with one round, and synflow has 100'):
        methods.prune(net, "synflow", 0.5, scope="four")
    with pytest.raises(errors.ParameterError, match="takes no least: leave it out"):
        methods.prune(net, "phew", 0.5, seeds=[1, 2], least=0.1)


def test_a_dropout_is_drawn_alike_each_time_and_leaves_the_stream_alone():
    net = nn.Sequential(nn.Linear(6, 5), nn.Dropout(), nn.ReLU(), nn.Linear(5, 3))
    before = torch.random.get_rng_state()
    found = methods.prune(net, "snip", 0.4, X, Y)
    assert torch.equal(before, torch.random.get_rng_state())
    torch.manual_seed(0)
    losses = nn.functional.cross_entropy(net(X), Y)
    weights = net[0].weight, net[3].weight
    scores = torch.cat(
        [(w * g).abs().flatten() for w, g in zip(weights, torch.autograd.grad(losses, weights), strict=True)]
    )
    assert torch.equal(torch.cat([mask.flatten() for mask in found.values()]), scores >= scores.sort().values[-18])


@pytest.mark.parametrize("name", ["synflow", "snip", "grasp"])
def test_a_score_has_its_gradients_whatever_the_callers_mode(name):
    net = stack()
    asked = methods.score(net, name, X, Y)
    with torch.inference_mode():
        found = methods.score(net, name, X, Y)
    assert all(torch.equal(found[key], asked[key]) for key in asked | found)


def test_what_no_score_tells_apart_is_counted():
    """By hand: of two runs, of one count for all and of one for each layer, where zeros are most of what stays."""
    scores = {"a": torch.tensor([[0.0, 0, 0, 5], [0, 0, 0, 5]]), "b": torch.tensor([[0.0, 1, 2, 3], [1, 1, 2, 3]])}
    kept = {"a": torch.tensor([[0, 1, 1, 1], [0, 0, 0, 1]]).bool(), "b": torch.tensor([[0, 0, 0, 1]] * 2).bool()}
    assert checks.blank(scores, kept, "layer") == 2, "those of a in the first run"
    assert checks.blank(scores, kept, "global") == 0, "they are half of what stays there"
    assert checks.blank(scores, kept | {"b": kept["b"] & False}, "global") == 2
    assert checks.blank(scores, {"a": kept["a"] | True, "b": kept["b"]}, "layer") == 0, "all that are alike stay"
    assert checks.blank(scores, kept, "layer", kept) == 0, "what went before goes not now"
    assert checks.blank({name: score + 1 for name, score in scores.items()}, kept, "layer") == 0


@pytest.mark.parametrize("rounds", [1, 3])
def test_scores_that_say_nothing_are_told(rounds):
    """Of a function that is flat where the sum over all paths ends, SynFlow of the weights before it is 0."""
    net = nets.init_(nets.MLP([784, 50, 10], "no-WN", "erf"), [1])
    for given in (net, nn.Sequential(nn.Linear(784, 50), nn.ReLU6(), nn.Linear(50, 3))):
        with pytest.warns(UserWarning, match="that stay, most of all, have a score of 0, .* alone decide") as heard:
            methods.prune(given, "synflow", 0.1, rounds=rounds)
            methods.prune_each(given, "synflow", [0.1], rounds=rounds)
        assert {one.filename for one in heard} == {__file__}


@pytest.mark.parametrize("name", ["snip", "hessian", "grasp", "wanda"])
def test_what_half_precision_has_no_room_for_is_told(name):
    half = module().half()
    with pytest.warns(UserWarning, match=r"in float16 squares and slopes may be 0.*\.float\(\)") as heard:
        methods.prune(half, name, 0.5, X.half(), Y)
    assert {one.filename for one in heard} == {__file__}
    methods.prune(half, "magnitude", 0.5), methods.prune(half.float(), name, 0.5, X, Y)


def test_rounds_of_some_layers_go_on_within_their_masks():
    net = module()
    within = methods.prune(net, "magnitude", 0.5, layers=["0"])
    (kept,) = methods.prune(net, "synflow", 0.2, layers=["0"], within=within).values()
    assert int(kept.sum()) == 6 and not (kept & ~within["0.weight"]).any()


def test_units_of_a_layer_that_shares_its_weight_have_a_score():
    net = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 3))
    net[2].weight = net[0].weight
    (score,) = methods.score(net, "taylor", X, Y, of="units", layers=["2"]).values()
    torch.nn.functional.cross_entropy(net.eval()(X), Y).backward()
    torch.testing.assert_close(score, (net[0].weight * net[0].weight.grad).abs().sum(1).detach())


def test_a_frozen_layer_is_pruned_and_stays():
    net = stack(1)
    net.layers[0].weight.requires_grad_(False)
    held = Trainer(net, (X, Y), (X, Y), [1], bar=False)
    held.prune(kept := methods.prune(net, "magnitude", 0.5))
    before = net.layers[0].weight.clone()
    held.fit(2)
    assert torch.equal(net.layers[0].weight, before) and not net.layers[0].weight[~kept["layers.0.weight"]].any()


def test_a_look_at_a_network_leaves_every_part_in_its_mode():
    net = nets.init_(convnets.build("resnet20", (3, 32, 32), 3, 1, 2), [1]).train()
    net.stem_norm.eval()
    before = [part.training for part in net.modules()]
    evaluate.evaluate(net, torch.rand(4, 3072), Y)
    assert [part.training for part in net.modules()] == before


def test_what_masks_take_is_measured_without_dropout():
    net = nets.init_(nets.MLP([6, 50, 3], "no-WN", dropout=0.5), [1]).train()
    kept = methods.prune(net, "magnitude", 0.5)
    found = anatomy.perturbation(net, kept, X)["output_error"]
    assert found == anatomy.perturbation(net.eval(), kept, X)["output_error"] and not net.drops[0].step


@pytest.mark.parametrize("scheme", ["torch_default", "torch_kaiming", "standard_normal"])
def test_a_start_does_not_depend_on_the_usual_type(scheme):
    wanted = nets.init_(nets.MLP([6, 5, 3], "no-WN"), [1], scheme).layers[0].weight
    torch.set_default_dtype(torch.float64)
    try:
        found = nets.init_(nets.MLP([6, 5, 3], "no-WN").float(), [1], scheme).layers[0].weight
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(found, wanted)


class Shifted(nn.Module):
    """A network that keeps numbers, a function and what it made last beside its parameters."""

    def __init__(self, function=torch.relu, gain=1.0):
        super().__init__()
        self.layer, self.mean, self.options, self.function = nn.Linear(6, 3), torch.zeros(6), {"gain": gain}, function
        self.last, self.turns = None, torch.ones(2, dtype=torch.complex64)

    def forward(self, x):
        self.last = self.function(self.layer(x - self.mean)) * self.options["gain"]
        return self.last


def test_what_a_module_keeps_beside_its_parameters_is_saved_or_told(tmp_path):
    net = Shifted(gain=3.0)
    net.mean = X.mean(0)
    made = net(X)
    plain.save(net, tmp_path)
    assert torch.equal(plain.load(tmp_path, Shifted(gain=3.0))(X), made)
    with pytest.raises(errors.ParameterError, match="'function' of module is tanh; .* relu"):
        plain.load(tmp_path, Shifted(torch.tanh, gain=3.0))
    with pytest.raises(errors.ParameterError, match=r"'options\[gain\]' of module is 1.0; .* has 3.0"):
        plain.load(tmp_path, Shifted())
    small = shrink.shrink(net, methods.prune(net, "magnitude", 0.5), inputs=X)
    plain.save(small, tmp_path)
    assert torch.equal(plain.load(tmp_path, Shifted(gain=3.0))(X), small(X))


def test_no_density_makes_no_mask():
    for name in ("magnitude", "synflow"):
        assert methods.prune_each(module(), name, []) == methods.prune_each(stack(), name, []) == []


@pytest.mark.parametrize("name, density, keep", [("magnitude", 0.5, 2), ("wanda", 0.5, 2), ("snip", 0.25, 1)])
def test_any_method_keeps_so_many_of_every_four_inputs_of_matrices_and_filters(name, density, keep):
    layers = [nn.Conv2d(1, 10, 3), nn.ReLU(), nn.Conv2d(10, 8, 3, groups=2), nn.ReLU(), nn.Flatten(), nn.Linear(72, 3)]
    net, x, y = nn.Sequential(*layers).double(), torch.rand(20, 1, 7, 7).double(), torch.arange(20) % 3
    given = () if name == "magnitude" else (x, y)
    with warnings.catch_warnings(action="ignore"):  # the first layer has one input a place
        found = methods.prune(net, name, density, *given, scope="four")
    ranked = methods.score(net, name, *given)
    for name, mask in found.items():
        rows = mask.movedim(1, -1).flatten(0, -2), ranked[name].movedim(1, -1).flatten(0, -2)
        for kept, own in zip(*rows, strict=True):
            for four, of_four in zip(kept.split(4), own.split(4), strict=True):
                assert set(four.nonzero()[:, 0].tolist()) == set(of_four.argsort()[-keep:].tolist())


def test_filters_are_pruned_one_by_one_before_a_transposed_layer():
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.ConvTranspose2d(4, 2, 3))
    (kept,) = methods.prune(net, "magnitude", 0.5, layers=["0"], scope="unit").values()
    assert kept.flatten(1).sum(1).tolist() == [5, 5, 5, 5]


def test_scores_of_norms_have_a_run_too():
    named = {"0.weight": torch.rand(1, 5, 6), "1.weight": torch.rand(1, 5), "1.bias": torch.rand(1, 5)}
    assert sum(int(mask.sum()) for mask in masks.top(named, 0.5, "global").values()) == 20
