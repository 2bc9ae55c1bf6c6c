"""Stacked autoencoders against torch's own modules, published sizes, and literal sums."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lib import contribution, nets, shrink, twins
from lib.studies.importance import vae

IMAGE, HIDDEN, LATENT = (1, 8, 8), (12, 9), 5
WIDTHS = {  # rounds of pruning a tenth: (hidden units, millions of fully connected weights as the study draws them)
    0: ((2048, 4096), 85.1),
    1: ((1843, 3686), 75.1),
    2: ((1658, 3317), 66.3),
    3: ((1492, 2985), 58.7),
}


def stack(seeds=(1, 2), image=IMAGE):
    return nets.init_(vae.VAE(image, len(seeds), HIDDEN, LATENT), list(seeds), "torch_default").double()


def images(count=7, image=IMAGE, seed=0):
    pixels = torch.Size(image).numel()
    return torch.randint(256, (count, pixels), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


def draw(runs=2, count=7):
    return torch.randn(runs, count, LATENT, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def literal(net, run):
    """Return (encode, decode) of one run, built of torch's own modules with its weights."""
    convs, deconvs = [], []
    for conv in net.convs:
        convs += [nn.Conv2d(conv.weight.shape[2], conv.weight.shape[1], 4, 2, 1).double(), nn.ReLU()]
        convs[-2].load_state_dict({"weight": conv.weight[run], "bias": conv.bias[run]})
    for conv in net.deconvs:
        deconvs += [nn.ConvTranspose2d(conv.weight.shape[2], conv.weight.shape[1], 4, 2, 1).double(), nn.ReLU()]
        deconvs[-2].load_state_dict({"weight": conv.weight[run].transpose(0, 1), "bias": conv.bias[run]})
    convs, deconvs = nn.Sequential(*convs), nn.Sequential(*deconvs[:-1])

    def encode(x):
        h = convs(x.view(-1, *net.image)).flatten(1)
        for layer in net.encoder:
            h = F.relu(F.linear(h, layer.weight[run]))
        return F.linear(h, net.mean.weight[run]), F.linear(h, net.log_variance.weight[run])

    def decode(z):
        for layer in net.decoder:
            z = F.relu(F.linear(z, layer.weight[run]))
        return torch.sigmoid(deconvs(z.view(-1, *net.features))).flatten(1)

    return encode, decode


@pytest.mark.parametrize("runs", [1, 3])
def test_a_transposed_convolution_is_torchs(runs):
    layer = vae.Deconv2d(runs, 3, 37).double()
    x = torch.randn(runs, 2, 3, 5, 5, dtype=torch.float64, requires_grad=True)
    nn.init.normal_(layer.weight)
    nn.init.normal_(layer.bias)
    out = layer(x)
    out.square().sum().backward()
    for run in range(runs):
        theirs = nn.ConvTranspose2d(3, 37, 4, 2, 1).double()
        theirs.load_state_dict({"weight": layer.weight[run].transpose(0, 1), "bias": layer.bias[run]})
        alone = x[run].detach().requires_grad_()
        expected = theirs(alone)
        expected.square().sum().backward()
        torch.testing.assert_close(out[run], expected)
        torch.testing.assert_close(x.grad[run], alone.grad)
        torch.testing.assert_close(layer.weight.grad[run], theirs.weight.grad.transpose(0, 1))
        torch.testing.assert_close(layer.bias.grad[run], theirs.bias.grad)


def test_a_transposed_convolution_can_be_normalised():
    layer = vae.Deconv2d(2, 3, 4).double()
    nn.init.normal_(layer.weight)
    nn.init.normal_(layer.scale)
    x, norm = torch.randn(2, 2, 3, 5, 5, dtype=torch.float64), torch.tensor([twins.EWN, twins.NO_WN])
    w = layer.weight.clone()
    w[0] *= (layer.scale[0].exp() / layer.weight[0].flatten(1).norm(dim=1))[:, None, None, None]
    expected = F.conv_transpose2d(x[0], w[0].transpose(0, 1), layer.bias[0], 2, 1)
    torch.testing.assert_close(vae.deconvolve(x, layer.weight, layer.scale, layer.bias, norm)[0], expected)


def test_a_transposed_convolution_takes_its_step_going_backward():
    layer = vae.Deconv2d(2, 3, 4).double()
    nn.init.normal_(layer.weight)
    x, rate = torch.randn(2, 2, 3, 5, 5, dtype=torch.float64), torch.tensor([0.1, 0.2], dtype=torch.float64)
    slopes = torch.autograd.grad(layer(x).square().sum(), (layer.weight, layer.bias))
    before = [p.detach().clone() for p in (layer.weight, layer.bias)]
    with nets.sgd_in_backward(layer, rate):
        layer(x).square().sum().backward()
    for p, was, slope in zip((layer.weight, layer.bias), before, slopes, strict=True):
        torch.testing.assert_close(p, was - rate.view(-1, *[1] * (p.dim() - 1)) * slope)
        assert p.grad is None


@pytest.mark.parametrize("image", [(1, 8, 8), (3, 12, 12)])
def test_a_stack_is_its_networks(image):
    net, x, noise = stack(image=image), images(image=image).double() / 255, draw()
    logits, mean, log_variance = net(x, noise)
    for run in range(2):
        encode, decode = literal(net, run)
        mu, log_var = encode(x)
        torch.testing.assert_close(mean[run], mu)
        torch.testing.assert_close(log_variance[run], log_var)
        torch.testing.assert_close(logits[run].sigmoid(), decode(mu + log_var.exp().sqrt() * noise[run]))


def test_the_losses_are_cross_entropy_and_divergence():
    net, x, noise = stack(), images().double() / 255, draw()
    logits, mean, log_variance = net(x, noise)
    reconstruction, kl = vae.losses(logits, mean, log_variance, x)
    for run in range(2):
        of_pixels = F.binary_cross_entropy(logits[run].sigmoid(), x, reduction="none").sum(1)
        posterior = torch.distributions.Normal(mean[run], (log_variance[run] / 2).exp())
        prior = torch.distributions.Normal(torch.zeros(LATENT).double(), torch.ones(LATENT).double())
        divergence = torch.distributions.kl_divergence(posterior, prior).sum(1)
        torch.testing.assert_close(reconstruction[run], of_pixels)
        torch.testing.assert_close(kl[run], divergence)


def counted(image, hidden, latent):
    """Return how many numbers one autoencoder trains, by hand."""
    (channels, side, _), (first, second) = image, vae.FILTERS
    sizes = [second * (side // 4) ** 2, *hidden]
    linear = 2 * sum(i * o for i, o in zip(sizes, hidden, strict=False)) + 3 * latent * hidden[-1]
    filters = 2 * vae.SIDE**2 * (channels * first + first * second)
    return linear + filters + 2 * first + second + channels


@pytest.mark.parametrize("rounds", WIDTHS)
def test_the_sizes_are_the_published_ones(rounds):
    hidden, millions = WIDTHS[rounds]
    net = vae.VAE((3, 64, 64), 1, hidden)  # its memory is asked for, never touched
    linear = sum(w.numel() for name, w in nets.weights(net).items() if "conv" not in name)
    assert round(linear / 1e6, 1) == millions
    assert int(nets.parameters_per_run(net) / 1e5) / 10 == millions, "with the convolutions, cut and not rounded"
    assert nets.parameters_per_run(net) == counted((3, 64, 64), hidden, 100)


@pytest.mark.parametrize("image", [(1, 28, 28), (3, 32, 32)])
def test_smaller_images_have_the_same_shape_of_network(image):
    net = vae.VAE(image, 1, (20, 30), 6)
    assert net.encoder[0].weight.shape == (1, 20, 64 * (image[1] // 4) ** 2)
    assert net(torch.zeros(2, torch.Size(image).numel()), torch.zeros(1, 2, 6))[0].shape[2] == torch.Size(image).numel()
    assert nets.parameters_per_run(net) == counted(image, (20, 30), 6)


@pytest.mark.parametrize("image", [(1, 28, 24), (1, 30, 30)])
def test_other_images_are_refused(image):
    with pytest.raises(ValueError, match="multiple of 4"):
        vae.VAE(image)


def test_a_narrow_network_is_the_masked_one():
    net, x, noise = stack(), images().double() / 255, draw()
    stream = torch.Generator().manual_seed(3)
    units = {
        layer: torch.stack([torch.randperm(n, generator=stream) < n - 3 for _ in range(2)])
        for layer, n in vae.hidden_widths(net).items()
    }
    masked = copy.deepcopy(net)
    with torch.no_grad():
        for layer, kept in units.items():
            masked.get_submodule(layer).weight[~kept] = 0
    small = shrink.narrow(net, units)
    assert vae.hidden_widths(small) == {layer: n - 3 for layer, n in vae.hidden_widths(net).items()}
    for ours, expected in zip(small(x, noise), masked(x, noise), strict=True):
        torch.testing.assert_close(ours, expected)
    torch.testing.assert_close(shrink.widen(small, net, units)(x, noise), masked(x, noise))


@pytest.mark.parametrize("preactivation", [False, True])
def test_contributions_are_those_of_the_values_that_the_next_layer_reads(preactivation):
    net, noise = stack(), draw(count=40)
    net.float()
    x = images(40)
    found = net.contributions(x, noise.float(), preactivation)
    assert list(found) == ["encoder.0", "encoder.1", "decoder.0", "decoder.1"]
    for run in range(2):
        encode, _ = literal(net.double(), run)
        mean, log_variance = encode(x.double() / 255)
        h = net.convs[1](torch.relu(net.convs[0](x.double().view(-1, *IMAGE) / 255))).relu()[run].flatten(1)
        z = mean + log_variance.exp().sqrt() * noise[run]
        heads = torch.cat([net.mean.weight[run], net.log_variance.weight[run]])
        ways = (
            ("encoder", h, [net.encoder[1].weight[run], heads]),
            ("decoder", z, [layer.weight[run] for layer in net.decoder[1:]]),
        )
        for side, value, readers in ways:
            for k, reader in enumerate(readers):
                before = value @ net.get_submodule(f"{side}.{k}").weight[run].T
                value = torch.relu(before)
                seen = (before if preactivation else value)[None]
                expected = contribution.Sums(reader[None]).add(seen).score()[0]
                torch.testing.assert_close(found[f"{side}.{k}"][run], expected, rtol=1e-3, atol=1e-3)


def test_contributions_do_not_depend_on_the_chunks(monkeypatch):
    net, x, noise = stack().float(), images(23), draw(count=23).float()
    whole = net.contributions(x, noise)
    monkeypatch.setattr(vae, "CHUNK", 5)
    for layer, scores in net.contributions(x, noise).items():
        torch.testing.assert_close(scores, whole[layer], rtol=1e-5, atol=1e-6)
