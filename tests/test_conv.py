"""Convolutions, the VGG, and the pruning of its filters, against plain torch modules on odd shapes."""

import copy
import functools

import pytest
import torch
from torch import nn
from torch.nn.functional import conv2d

from lib import convnets, descend, evaluate, masks, nets, stacking, twins
from lib import sets as data
from lib.studies.ewn import study as ewn

TYPES = ["EWN", "SWN", "no-WN"]
PUBLISHED_WIDTHS = [64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512]
PUBLISHED_POOLS = (2, 4, 7, 10, 13)  # after these convolutions, counted from one


def case(runs, shared, shape=(2, 5, 3, 6, 7), seed=0):
    """Return random (x, v, s, bias, codes) in float64 of `runs` runs; shape is (N, O, I, H, W)."""
    n, units, inputs, height, width = shape
    g = torch.Generator().manual_seed(seed)

    def draw(*size):
        return torch.randn(*size, generator=g, dtype=torch.float64)

    x = draw(n, inputs, height, width) if shared else draw(runs, n, inputs, height, width)
    codes = torch.tensor([twins.NORMS[kind] for kind in (TYPES * runs)[:runs]], dtype=torch.int8)
    return x, draw(runs, units, inputs, 3, 3), draw(runs, units), draw(runs, units), codes


def effective(v, s, code):
    """Return the filters of one run, written down from their definition."""
    if code == twins.NO_WN:
        return v
    size = s.exp() if code == twins.EWN else s
    return size[:, None, None, None] * v / v.flatten(1).norm(dim=1)[:, None, None, None]


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("shape", [(2, 5, 3, 6, 7), (1, 37, 1, 1, 1), (3, 1, 2, 5, 1)])
@pytest.mark.parametrize("runs", [1, 3, 4])
def test_a_stacked_convolution_is_torchs_run_by_run(runs, shape, shared):
    x, v, s, bias, codes = case(runs, shared, shape)
    found = twins.conv2d(x, v, s, bias, codes)
    for r in range(runs):
        expected = conv2d(x if shared else x[r], effective(v[r], s[r], codes[r]), bias[r], padding=1)
        torch.testing.assert_close(found[r], expected)
    without = twins.conv2d(x, v, s, None, torch.zeros_like(codes), normalised=False)
    torch.testing.assert_close(without[0], conv2d(x if shared else x[0], v[0], padding=1))


@pytest.mark.parametrize("image", [(1, 1), (2, 3), (4, 4)])
@pytest.mark.parametrize("stride, padding, side", [(1, None, 3), (2, 1, 3), (2, 0, 1)])
def test_one_small_image_is_convolved_by_a_product(stride, padding, side, image):
    draw = functools.partial(torch.randn, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    leaves = [leaf.requires_grad_() for leaf in (draw(1, 1, 5, *image), draw(1, 7, 5, side, side), draw(1, 7))]
    x, w, bias = leaves
    found = twins.conv2d(x, w, None, bias, None, False, stride, padding)
    expected = conv2d(*(leaf[0] for leaf in leaves), stride, side // 2 if padding is None else padding)[None]
    below, plain = (out.grad_fn.next_functions[0][0] for out in (found, expected))
    assert type(below) is not type(plain)
    torch.testing.assert_close(found, expected)
    weight = draw(*expected.shape)
    ours, theirs = (torch.autograd.grad((out * weight).sum(), leaves) for out in (found, expected))
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other)


def test_gradients_are_those_of_finite_differences():
    x, v, s, bias, codes = case(3, False, (1, 2, 2, 3, 2))
    inputs = [t.requires_grad_() for t in (x, v, s, bias)]
    assert torch.autograd.gradcheck(lambda *tensors: twins.conv2d(*tensors, codes), inputs)


def test_pooling_is_torchs():
    x = torch.randn(2, 3, 4, 7, 6)
    for found, alone in zip(twins.max_pool(x, 2), x, strict=True):
        assert torch.equal(found, torch.max_pool2d(alone, 2))


def stack(types=TYPES, seeds=None, width=2, image=(3, 32, 32), classes=4):
    net = convnets.VGG(image, classes, types, width)
    return nets.init_(net, seeds or list(range(len(types))), "torch_kaiming_output_first")


def pixels(n, image=(3, 32, 32), seed=1, dtype=torch.float32):
    return torch.randn(n, image[0] * image[1] * image[2], generator=torch.Generator().manual_seed(seed), dtype=dtype)


def plain(folded, run, kept=None):
    """Return one run of a folded VGG as torch modules, physically without the filters that `kept` leaves out."""
    modules, before = [nn.Unflatten(1, folded.image)], slice(None)
    for k, conv in enumerate(folded.convs, 1):
        own = slice(None) if kept is None else kept[f"convs.{k - 1}"][run]
        weight = conv.weight[run].detach()[own][:, before]
        torch_conv = nn.Conv2d(weight.shape[1], weight.shape[0], 3, padding=1, bias=conv.bias is not None)
        torch_conv.weight.data = weight.clone()
        if conv.bias is not None:
            torch_conv.bias.data = conv.bias[run].detach()[own].clone()
        modules += [torch_conv, nn.ReLU()] + [nn.MaxPool2d(2)] * (k in PUBLISHED_POOLS)
        before = own
    matrix = folded.output.weight[run].detach().unflatten(1, (folded.convs[-1].weight.shape[1], -1))[:, before]
    linear = nn.Linear(matrix[0].numel(), len(matrix), bias=False)
    linear.weight.data = matrix.flatten(1).clone()
    return nn.Sequential(*modules, nn.Flatten(), linear)


def shaken(net):
    with torch.no_grad():
        for p in net.parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())))
    return net.double()


def test_the_network_is_the_published_one():
    plain_one, normalised = (convnets.VGG((3, 32, 32), 10, [kind]) for kind in ("no-WN", "EWN"))
    assert nets.parameters_per_run(plain_one) == 14_715_648
    assert nets.parameters_per_run(normalised) == 14_715_648 + 4224
    assert round(nets.macs_per_run(normalised) / 1e6) == 313
    assert [conv.weight.shape[1] for conv in normalised.convs] == PUBLISHED_WIDTHS
    assert [conv.bias is not None for conv in normalised.convs] == [True] + [False] * 12
    assert all(conv.normalised for conv in normalised.convs) and not normalised.output.normalised
    assert normalised.output.weight.shape == (1, 10, 512) and nets.widest(normalised) == 64 * 32 * 32


@pytest.mark.parametrize("image", [(3, 32, 32), (1, 64, 64)])
def test_a_stack_is_torch_modules_run_by_run(image):
    net = shaken(stack(image=image))
    folded, x = nets.fold(net), pixels(3, image, dtype=torch.float64)
    expected = torch.stack([plain(folded, r).double()(x) for r in range(3)])
    torch.testing.assert_close(net(x), expected)
    torch.testing.assert_close(folded(x), expected)
    torch.testing.assert_close(net(torch.stack([x, x.flip(0), x]))[1], expected[1].flip(0))


def test_the_types_are_one_function_at_the_start():
    logits = stack(TYPES, [5, 5, 5], width=8)(pixels(6))
    assert (logits - logits[2:]).abs().max() < 1e-5


def test_init_draws_what_the_published_script_draws():
    """All modules made under manual_seed; then Kaiming-normal, the output layer first."""
    net = stack(["no-WN"], [3576], width=3)
    with torch.random.fork_rng():
        torch.manual_seed(3576)
        modules, inputs = [], 3
        for conv in net.convs:
            units = conv.weight.shape[1]
            modules.append(nn.Conv2d(inputs, units, 3, padding=1, bias=conv.bias is not None))
            inputs = units
        modules.append(nn.Linear(inputs, 4, bias=False))
        for module in [modules[-1], *modules[:-1]]:
            nn.init.kaiming_normal_(module.weight)
    for layer, module in zip(nets.layers(net).values(), modules, strict=True):
        assert torch.equal(layer.weight[0], module.weight)
    assert not net.convs[0].bias.any()


@pytest.mark.parametrize("image", [(3, 28, 28), (3, 32, 64)])
def test_an_image_that_does_not_fit_is_told(image):
    with pytest.raises(ValueError, match="squares of 32×32 and more"):
        convnets.VGG(image, 10, ["EWN"])


def test_take_join_and_norms_work_on_filters():
    net = shaken(stack())
    again = nets.join([nets.take(net, [0, 1]), nets.take(net, slice(2, 3))])
    assert all(torch.equal(tensor, again.state_dict()[name]) for name, tensor in net.state_dict().items())
    folded = nets.weights(nets.fold(net))
    for layer, norms in nets.unit_norms(net).items():
        torch.testing.assert_close(norms, folded[f"{layer}.weight"].flatten(2).norm(dim=2))


@pytest.mark.parametrize("kind", TYPES)
def test_steps_in_the_backward_pass_are_torchs_sgd(kind):
    """Ten steps on a whole network, float64, beside torch.optim.SGD on the same parameters."""
    fused = stack([kind, kind], [1, 2]).double()
    reference = copy.deepcopy(fused)
    optimizer = torch.optim.SGD(reference.parameters(), lr=0.05)
    for step in range(10):
        x, y = pixels(5, seed=step, dtype=torch.float64), torch.arange(5) % 4
        with nets.sgd_in_backward(fused, torch.full((2,), 0.05, dtype=torch.float64)):
            twins.log_loss(fused(x), y).sum().backward()
        optimizer.zero_grad()
        twins.log_loss(reference(x), y).sum().backward()
        optimizer.step()
    for name, p in reference.named_parameters():
        torch.testing.assert_close(dict(fused.named_parameters())[name], p, rtol=1e-8, atol=1e-10)


# ------------------------------------------------------------------------------------------------- pruning


@pytest.mark.parametrize("image", [(3, 32, 32), (1, 64, 64)])
def test_pruning_filters_is_removing_them(image):
    """The masked network is the physically smaller one, also where a filter feeds four inputs of the linear layer."""
    net = nets.fold(shaken(stack(image=image, width=4)))
    g = torch.Generator().manual_seed(3)
    kept = {f"convs.{k}": torch.rand(conv.weight.shape[:2], generator=g) < 0.7 for k, conv in enumerate(net.convs)}
    for mask in kept.values():
        mask[:, 0] = True
    x = pixels(3, image, dtype=torch.float64)
    expected = torch.stack([plain(net, r, kept).double()(x) for r in range(3)])
    masks.apply_(net, masks.expand(kept, net))
    torch.testing.assert_close(net(x), expected)


def test_a_pruned_filter_loses_bias_filter_and_slices():
    net = nets.fold(stack(["no-WN"]))
    found = masks.expand({"convs.0": torch.tensor([[True, False]])}, net)
    assert found["convs.0.bias"].tolist() == [[True, False]]
    assert found["convs.0.weight"][0, 0].all() and not found["convs.0.weight"][0, 1].any()
    assert found["convs.1.weight"][0, :, 0].all() and not found["convs.1.weight"][0, :, 1].any()
    assert all(found[f"convs.{k}.weight"].all() for k in range(2, 13)) and found["output.weight"].all()


# -------------------------------------------------------------------------------------- training and scores


@pytest.fixture(scope="module")
def digits():
    return data.load("digits32", train_examples=96)


def test_a_descent_goes_down_and_resumes_bit_for_bit(digits, tmp_path, monkeypatch):
    seeds, folders, made, real = [1, 1, 1], [tmp_path / kind for kind in TYPES], [], descend.attempt
    fresh = functools.partial(stack, TYPES, seeds, width=2, classes=10)

    def stop(*arguments):
        made.append(1)
        if len(made) > 2:
            raise KeyboardInterrupt
        real(*arguments)

    keywords = {"batch": 16, "max_epochs": 3}
    _, whole = descend.descend(fresh(), digits, seeds, [-1], **keywords)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(descend, "attempt", stop)
        descend.descend(fresh(), digits, seeds, [-1], folders=folders, checkpoint=0.0, **keywords)
    _, again = descend.descend(fresh(), digits, seeds, [-1], folders=folders, checkpoint=0.0, **keywords)
    for a, b in zip(whole, again, strict=True):
        assert a.log_loss[0] < a.history[0][0][2], "the loss fell"
        assert all(torch.equal(tensor, b.net.state_dict()[name]) for name, tensor in a.net.state_dict().items())


@pytest.mark.parametrize("as_text", [False, True])
def test_every_convolution_is_pruned_and_the_output_never(digits, as_text):
    net, sets = stack(classes=10), (digits.split("train"), digits.split("test"))
    found = ewn.norm_criteria({-1: descend.start(net, [0, 1, 2], sets)}, -1, as_text=as_text)
    assert list(found["norm"]) == [f"convs.{k}" for k in range(13)]
    accuracy = ewn.pruned_accuracy(net, *sets[1], found["norm"], [0.0, 0.5])
    assert torch.equal(accuracy[:, 0], evaluate.evaluate(net, *sets[1]).accuracy)


def test_alone_and_in_a_stack_agree(digits):
    sets = tuple((digits.split(part)[0].double()[:48], digits.split(part)[1][:48]) for part in ("train", "test"))
    kinds, seeds = ["EWN", "SWN", "no-WN"], [1, 2, 2]
    assert stacking.width(stack(kinds, seeds, width=2), 16, kind="descent") == 3, "these are trained as one"
    together = descend.start(stack(kinds, seeds, classes=10).double(), seeds, sets)
    alone = [descend.start(stack([k], [s], classes=10).double(), [s], sets) for k, s in zip(kinds, seeds, strict=True)]
    for _ in range(3):
        descend.attempt(together, sets, 16)
        for state in alone:
            descend.attempt(state, sets, 16)
    for r, state in enumerate(alone):
        torch.testing.assert_close(together.log_loss[r], state.log_loss[0], rtol=1e-9, atol=1e-9)


def test_a_pass_holds_a_bounded_number_of_activations():
    full, mlp = convnets.VGG((3, 32, 32), 10, ["EWN"]), nets.MLP([784, 1024, 10], ["EWN"])
    assert (evaluate.chunk(full, "cpu"), evaluate.chunk(full, "cuda")) == (128, 4096)
    assert (evaluate.chunk(mlp, "cpu"), evaluate.chunk(mlp, "cuda")) == (128, 20_000)


def test_norms_sort_as_texts_in_the_published_way():
    """Lowest first: shrunken ones by magnitude, e-notation by its mantissa; the order of a printed list."""
    numbers = torch.tensor([[0.5, -0.25, 9.9e-05, -0.001, 10.0, 2.0, -3e-06, 0.05]])
    ranks = ewn.text_ranks({"a": numbers})["a"]
    assert numbers[0][ranks[0].argsort()].tolist() == pytest.approx(
        [-0.001, -0.25, -3e-06, 0.05, 0.5, 10.0, 2.0, 9.9e-05], rel=1e-6
    )
    assert numbers[0].argsort().tolist() == [1, 3, 6, 2, 7, 0, 5, 4], "while as numbers they sort so"


def overlap(numbers, share):
    """Return how many of the units pruned by number are pruned by text too."""
    prune = int(share * numbers.shape[1])
    by_number, by_text = (set(s[0].argsort()[:prune].tolist()) for s in (numbers, ewn.text_ranks({"": numbers})[""]))
    return len(by_number & by_text) / prune


def test_the_text_order_departs_as_published():
    """Norms of one decade agree; growths of which a quarter are negative disagree most where few are pruned."""
    g = torch.Generator().manual_seed(0)
    assert overlap(1 + torch.rand(1, 512, generator=g), 0.3) == 1.0
    growth = 0.3 * (torch.randn(1, 512, generator=g) + 0.67)
    shares = [overlap(growth, share) for share in (0.1, 0.2, 0.3, 0.5)]
    assert shares[0] < 0.5 and shares[0] < shares[1] < shares[2] and shares[3] > 0.9


def test_a_growth_that_is_no_number_has_no_place():
    with pytest.raises(ValueError, match="NaN"):
        ewn.text_ranks({"a": torch.tensor([[1.0, float("nan")]])})
