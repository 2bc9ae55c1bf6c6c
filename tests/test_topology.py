"""Networks of every kind are read so that all kept weights lie on paths, by autograd; or refused by name."""

import copy
import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.prune import random_unstructured

from lib import hops, methods, phew, topology
from lib.pruning.hops import unwrapped, weighted
from tests.odd_networks import READ, Flagged, Lambda, act, conv, two_inputs
from tests.oracle import dead

SPARSE = 80, 96  # per cent


def kept(network, percentage, **options):
    """Return PHEW's weight masks, whichever layers are left without any."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*keep no weight")
        return phew.phew_masks(network, percentage, verbose=False, **options)[0]


def made(make):
    torch.manual_seed(0)
    return make()


@pytest.mark.parametrize("name", READ)
def test_all_kept_weights_of_every_kind_of_network_are_alive(name):
    make, shape = READ[name]
    network = made(make)
    before = copy.deepcopy(network.state_dict())
    alone = name in ("pixel unshuffle", "discriminator", "narrowing", "skipping", "unet", "siamese")
    given = {"inputs": torch.zeros(1, *shape)} if alone else {}
    for percentage in SPARSE if not name.startswith("one ") else (50,):
        assert dead(unwrapped(network), kept(network, percentage, **given), shape) == 0
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())


def test_scattered_weights_are_dead():
    """In half of these networks: else the oracle would not tell."""
    found, generator = 0, torch.Generator().manual_seed(1)
    for make, shape in list(READ.values())[::4]:
        network = unwrapped(made(make))
        masks = [torch.rand(part.weight.shape, generator=generator) < 0.05 for part in weighted(network).values()]
        found += dead(network, masks, shape) > 0
    assert found >= 6


@pytest.mark.parametrize("percentage", [98, 99])
def test_a_unit_of_a_linear_layer_is_a_pixel_of_a_decoder(percentage):
    network = made(READ["decoder"][0])
    masks = kept(network, percentage)
    assert sum(int(mask.sum()) for mask in masks) - int((1 - percentage / 100) * 12_208) in range(4)
    assert dead(network, masks, (10,)) == 0


PADDED = {
    "pooled": lambda: [act(conv(3, 8)), nn.MaxPool2d(2), act(conv(8, 16)), nn.Flatten(), nn.Linear(256, 4)],
    "strided": lambda: [act(conv(3, 8, stride=2)), act(conv(8, 8, stride=2)), nn.Flatten(), nn.Linear(32, 10)],
    "padded apart": lambda: [
        nn.ZeroPad2d(1), act(nn.Conv2d(3, 6, 3)), nn.ZeroPad2d(1), nn.Conv2d(6, 4, 3), nn.Flatten(), nn.Linear(256, 3)
    ],
    "residual": lambda: [
        Lambda(lambda s, x: s.b(F.relu(s.a(x))) + s.c(x), a=conv(3, 6, stride=4), b=conv(6, 6), c=conv(3, 6, stride=4)),
        nn.Flatten(), nn.Linear(24, 3),
    ],
}  # fmt: skip


@pytest.mark.parametrize("name", PADDED)
def test_at_the_border_of_a_padded_map_few_cells_have_something_to_read(name):
    """So that which pixels of a channel a linear layer can read depends on the cells that are kept."""
    for seed, percentage in enumerate((90, 95, 98, 99, 99)):
        network = made(lambda: nn.Sequential(*PADDED[name]()))
        assert dead(network, kept(network, percentage, seed=seed, inputs=torch.zeros(1, 3, 8, 8)), (3, 8, 8)) == 0


def test_maps_as_small_as_kernels_leave_some_cells_nothing_to_read():
    """On a map of one pixel the middle cell alone reads; images that nobody gives are large enough for all cells."""
    network = made(READ["narrowing"][0])
    for given in ({"inputs": torch.zeros(1, 3, 8, 8)}, {}):
        last = kept(network, 85, **given)[3]
        assert last[:, :, 1, 1].any() and bool(last.any((0, 1)).flatten()[[0, 2, 6, 8]].any()) == (not given)


def test_a_classifier_is_alive_on_images_smaller_than_its_own():
    network = made(lambda: pytest.importorskip("torchvision.models").mobilenet_v2(num_classes=10))
    x = torch.zeros(1, 3, 32, 32)
    assert dead(network.eval(), kept(network, 98, inputs=x), (3, 32, 32)) == 0


def test_pixels_that_no_stride_reaches_are_never_kept():
    network = made(READ["strided pixels"][0])
    reached = torch.zeros(2, 5, 5, dtype=torch.bool)
    reached[:, ::2, ::2] = True
    assert not kept(network, 85)[0].bool()[~reached.flatten()].any()
    with pytest.raises(ValueError, match="78 of 103 weights.*on no path"):
        kept(network, 50)


def test_several_inputs_have_one_group_of_units():
    network = made(two_inputs)
    x, y = torch.zeros(2, 6), torch.zeros(2, 3)
    read = topology.topology(network, (x, y))
    assert [hop.layer for hop in read] == ["a", "b", "out"]
    assert [hop.wiring.pairs[0].tolist() for hop in read[:2]] == [[*range(6)], [6, 7, 8]]
    assert dead(network, kept(network, 80, inputs=(x, y)), (6,), (3,)) == 0
    with pytest.raises(ValueError, match="does not run on what was tried.*pass an example"):
        phew.phew_masks(network, 80)


def test_layers_that_share_a_weight_have_one_mask():
    network = made(READ["tied"][0])
    masks = kept(network, 50)
    assert torch.equal(masks[1], masks[2])
    assert sum(int(mask.sum()) for mask in (masks[0], masks[1], masks[3])) >= int(0.5 * (20 + 25 + 15))
    assert list(methods.prune(network, "phew", 0.5)) == ["0.weight", "2.weight", "6.weight"]


def test_wrapped_networks_are_unwrapped():
    network = nn.Sequential(act(nn.Linear(5, 6)), nn.Linear(6, 3))
    alone = kept(network, 60)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that scripts are deprecated, of which torch 2.11 imports some to compile
        script, compiled = torch.jit.script(network), torch.compile(nn.DataParallel(network))
    for wrapped in (nn.DataParallel(network), compiled):
        assert all(map(torch.equal, kept(wrapped, 60), alone))
        assert list(methods.prune(wrapped, "magnitude", 0.5)) == ["0.0.weight", "1.weight"]
    with pytest.raises(ValueError, match="is a script.*pass the module that it was made from"):
        phew.phew_masks(script, 60)


def test_a_default_of_a_flag_decides():
    assert [hop.layer for hop in topology.topology(Flagged())] == ["a", "b"]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_masks_have_the_type_of_the_weights(dtype):
    masks = kept(nn.Sequential(act(nn.Linear(5, 6)), nn.Linear(6, 3)).to(dtype), 60)
    assert all(mask.dtype == dtype for mask in masks)


def test_what_holds_state_is_left_alone():
    """Not even the vectors of a power iteration move, or the global random state."""
    network = nn.Sequential(nn.utils.parametrizations.spectral_norm(nn.Linear(5, 6)), nn.Dropout(), nn.Linear(6, 3))
    network.append(random_unstructured(nn.Linear(3, 3), "weight", 0.5)).train()
    before, random = copy.deepcopy(network.state_dict()), torch.get_rng_state()
    weight = network[3].weight
    kept(network, 50)
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random) and network[3].weight is weight


# --- refusals ------------------------------------------------------------------------------------------------------


def attention():
    part = nn.MultiheadAttention(6, 2, batch_first=True)
    return Lambda(lambda self, x: self.out(self.mix(x, x, x)[0]), mix=part, out=nn.Linear(6, 3))


REFUSED = {
    "attention": (attention, "MultiheadAttention 'mix' .* calls multi_head_attention_forward"),
    "fold": (lambda: nn.Sequential(conv(3, 4), nn.Unfold(2)), "Unfold '1' .* calls unfold"),
    "recurrent": (lambda: nn.Sequential(nn.Linear(4, 6), nn.GRU(6, 5)), "GRU '1' .* calls gru"),
    "bilinear": (
        lambda: Lambda(lambda s, x: s.b(s.a(x), x), a=nn.Linear(4, 3), b=nn.Bilinear(3, 4, 2)),
        "Bilinear 'b' .* calls bilinear",
    ),
    "values": (
        lambda: Lambda(lambda s, x: s.a(x) if x.sum() > 0 else s.b(x), a=nn.Linear(4, 3), b=nn.Linear(4, 3)),
        "Lambda .* calls gt",
    ),
    "truth": (lambda: Lambda(lambda s, x: s.a(x) if x.sum() else x, a=nn.Linear(4, 3)), "decides by values.*__bool__"),
    "quotient": (
        lambda: Lambda(lambda s, x: s.a(x) / s.b(x), a=nn.Linear(4, 3), b=nn.Linear(4, 3)),
        "calls (__true)?div",
    ),
    "no layer's weight": (
        lambda: Lambda(lambda s, x: F.linear(s.a(x), s.w), a=nn.Linear(4, 3), w=nn.Parameter(torch.ones(2, 3))),
        "Lambda calls linear with a weight that is no layer's own",
    ),
    "unused": (
        lambda: Lambda(lambda s, x: s.a(x), a=nn.Linear(4, 3), b=nn.Linear(4, 3)),
        r"no output depends.*\['b'\]",
    ),
    "unpooled": (
        lambda: nn.Sequential(conv(3, 4), nn.MaxPool2d(2, return_indices=True)),
        "MaxPool2d '1' .* calls max_pool2d_with_indices",
    ),
    "written into": (
        lambda: Lambda(lambda s, x: torch.zeros(2, 3).copy_(s.a(x)), a=nn.Linear(4, 3)),
        "calls copy_",
    ),
    "no layers": (lambda: nn.Sequential(nn.ReLU()), "Sequential has neither a convolution nor a linear layer"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_read_is_named_with_its_place(name):
    make, message = REFUSED[name]
    with pytest.raises(ValueError, match=message):
        phew.phew_masks(make(), 50)


def test_sparsities_that_leave_nothing_say_what_is_the_least():
    network = nn.Sequential(act(nn.Linear(784, 300)), act(nn.Linear(300, 100)), nn.Linear(100, 10))
    with pytest.raises(ValueError, match="leaves 0 of 266200 weights; the least is 1, a density of 3.76e-06"):
        phew.phew_masks(network, 99.9999)
    with pytest.warns(UserWarning, match="prunes 0.95 % of the weights, not 95.0%"):
        masks = phew.phew_masks(nn.Sequential(nn.Linear(40, 40)), 0.95, verbose=False)[0]
    assert int(masks[0].sum()) >= 1584
    with pytest.warns(UserWarning, match="keep no weight: at 99.0 % walks go around them"):
        phew.phew_masks(made(READ["inception"][0]), 99, verbose=False)


@pytest.mark.parametrize("wrong", ["95", None, [95], torch.tensor([95.0])])
def test_texts_and_lists_are_no_percentages(wrong):
    with pytest.raises(ValueError, match="prune_percentage is .*; wanted is a number"):
        phew.phew_masks(nn.Linear(4, 3), wrong)
    with pytest.raises(ValueError, match="density is '0.5'; wanted is a number"):
        phew.masks([hops.Hop("", 0, 1)], {".weight": torch.ones(1, 3, 4)}, "0.5", [0])


def test_a_seed_is_a_whole_number_and_a_percentage_may_be_a_tensor():
    for seed in ("1", 1.5, None):
        with pytest.raises(ValueError, match="seed is .*; wanted is a whole number"):
            phew.phew_masks(nn.Linear(4, 3), 50, seed=seed)
    network = nn.Linear(40, 30)
    assert torch.equal(kept(network, torch.tensor(95.0))[0], kept(network, 95)[0])


# --- torchvision ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["densenet121", "mobilenet_v3_small", "shufflenet_v2_x0_5", "convnext_tiny"])
def test_classifiers_of_torchvision_are_read_to_the_last_layer(name):
    models = pytest.importorskip("torchvision.models")
    with torch.device("meta"):
        network = models.get_model(name)
    read = topology.topology(network)
    assert {hop.layer for hop in read} - {None} == set(weighted(network))
    last = next(hop for hop in reversed(read) if hop.layer)
    assert last.target == max(hop.target for hop in read) and last.wiring.width == 1000


@pytest.mark.parametrize(("name", "told"), [("vit_b_16", "MultiheadAttention"), ("swin_t", "ShiftedWindowAttention")])
def test_attention_is_refused_by_its_place(name, told):
    models = pytest.importorskip("torchvision.models")
    with torch.device("meta"):
        network = models.get_model(name)
    with pytest.raises(ValueError, match=rf"{told} '[\w.]+' joins units in a way that is not read: it calls \w+"):
        topology.topology(network)
