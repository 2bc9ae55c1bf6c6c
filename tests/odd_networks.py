"""Small networks of every kind that a reader of topologies meets."""

import torch
from torch import nn
from torch.nn import functional as F


class Lambda(nn.Module):
    """A module of a function of its parts and x."""

    def __init__(self, function, **parts):
        super().__init__()
        self.function = function
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, *x):
        return self.function(self, *x)


def act(part):
    return nn.Sequential(part, nn.ReLU())


def conv(inputs, units, side=3, padding=1, **options):
    return nn.Conv2d(inputs, units, side, padding=padding, **options)


def decoder():
    hidden = [act(nn.Linear(10, 256)), nn.Unflatten(1, (16, 4, 4)), act(conv(16, 32)), act(conv(32, 16)), conv(16, 3)]
    return nn.Sequential(*hidden)


def viewed_decoder():
    return Lambda(
        lambda self, z: self.body(torch.relu(self.first(z)).view(-1, 16, 4, 4)),
        first=nn.Linear(10, 256),
        body=nn.Sequential(act(conv(16, 32)), act(nn.Conv2d(32, 16, 3)), conv(16, 3)),
    )


def upsampling_decoder(mode):
    up = nn.Upsample(scale_factor=2, mode=mode)
    return nn.Sequential(act(nn.Linear(6, 72)), nn.Unflatten(1, (8, 3, 3)), up, act(conv(8, 6)), up, conv(6, 2))


def generator():
    first, second = nn.ConvTranspose2d(7, 12, 4), nn.ConvTranspose2d(12, 8, 4, 2, 1)
    parts = [nn.Unflatten(1, (7, 1, 1)), act(first), nn.BatchNorm2d(12), act(second), nn.ConvTranspose2d(8, 3, 4, 2, 1)]
    return nn.Sequential(*parts, nn.Tanh())


def tokens():
    return nn.Sequential(act(nn.Linear(6, 16)), act(nn.Linear(16, 32)), nn.Flatten(), nn.Linear(224, 5))


def mean_of_channels():
    return Lambda(lambda self, x: self.out(self.conv(x).mean(1).flatten(1)), conv=conv(3, 8), out=nn.Linear(256, 4))


def over_positions():
    return Lambda(lambda self, x: self.out(torch.relu(self.conv(x)).flatten(2)), conv=conv(3, 8), out=nn.Linear(256, 4))


def channels_last():
    return Lambda(
        lambda self, x: self.out(torch.relu(self.conv(x)).permute(0, 2, 3, 1).flatten(1)),
        conv=conv(3, 8, padding=0), out=nn.Linear(8 * 36, 4),
    )  # fmt: skip


def tied():
    first, second = nn.Linear(5, 5), nn.Linear(5, 5)
    second.weight = first.weight
    return nn.Sequential(nn.Linear(4, 5), nn.ReLU(), first, nn.ReLU(), second, nn.ReLU(), nn.Linear(5, 3))


def twice():
    layer = nn.Linear(6, 6)
    return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), layer, nn.ReLU(), layer, nn.ReLU(), nn.Linear(6, 3))


class Excited(nn.Module):
    """Squeeze and excite behind a convolution, with a residual sum."""

    def __init__(self, inputs, units):
        super().__init__()
        self.conv, self.squeeze, self.excite = conv(inputs, units), nn.Conv2d(units, 3, 1), nn.Conv2d(3, units, 1)
        self.skip = conv(inputs, units, 1, 0)

    def forward(self, x):
        y = F.hardswish(self.conv(x))
        gate = torch.sigmoid(self.excite(F.relu(self.squeeze(F.adaptive_avg_pool2d(y, 1)))))
        return torch.relu(gate * y + self.skip(x))


def excited():
    return nn.Sequential(Excited(3, 8), Excited(8, 10), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(10, 4))


def dense():
    return Lambda(
        lambda self, x: self.out(torch.cat([x, a := F.relu(self.a(x)), self.b(torch.cat([a, x], 1))], 1).mean((2, 3))),
        a=conv(3, 5), b=conv(8, 4), out=nn.Linear(12, 4),
    )  # fmt: skip


def inception():
    return Lambda(
        lambda self, x: self.out(
            torch.cat([self.a(x), self.b(x), self.c(F.max_pool2d(x, 3, 1, 1))], 1).relu().amax((2, 3))
        ),
        a=conv(3, 4, 1, 0), b=nn.Sequential(act(conv(3, 3, 1, 0)), conv(3, 6)), c=conv(3, 2, 1, 0),
        out=nn.Linear(12, 4),
    )  # fmt: skip


def shuffled():
    def forward(self, x):
        x = F.relu(self.stem(x))
        for part in (self.one, self.two):
            a, b = x.chunk(2, 1)
            x = torch.cat([a, part(b)], 1)
            n, c, h, w = x.shape
            x = x.view(n, 2, c // 2, h, w).transpose(1, 2).contiguous().view(n, -1, h, w)
        return self.out(x.mean([2, 3]))

    parts = {"stem": conv(3, 8), "out": nn.Linear(8, 4)}
    return Lambda(forward, **parts, one=act(conv(4, 4)), two=act(conv(4, 4, groups=4)))


def option_a():
    def forward(self, x):
        x = F.relu(self.stem(x))
        y = self.second(F.relu(self.first(x)))
        return self.out(F.relu(y + F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 2, 2))).mean((2, 3)))

    return Lambda(forward, stem=conv(3, 4), first=conv(4, 8, stride=2), second=conv(8, 8), out=nn.Linear(8, 4))


def two_heads():
    parts = {"stem": nn.Linear(6, 9), "a": nn.Linear(9, 4), "b": nn.Linear(9, 1)}
    return Lambda(lambda self, x: {"a": self.a(h := F.relu(self.stem(x))), "b": self.b(h)}, **parts)


def two_inputs():
    return Lambda(
        lambda self, x, y: self.out(F.relu(self.a(x) + self.b(y))), a=nn.Linear(6, 8), b=nn.Linear(3, 8),
        out=nn.Linear(8, 2),
    )  # fmt: skip


def scaled():
    def forward(self, x):
        assert x.dim() == 4
        x = self.conv(x * 2 - 1) * self.g + self.offset
        return self.out((F.relu(x / 3 + 1).float().to(x.device)).double().mean((2, 3)))

    g, offset = nn.Parameter(torch.ones(1, 6, 1, 1)), nn.Parameter(torch.zeros(6, 1, 1))
    return Lambda(forward, conv=conv(3, 6), g=g, offset=offset, out=nn.Linear(6, 4))


class Flagged(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(5, 6), nn.Linear(6, 3)

    def forward(self, x, return_features=False, scale: float = 1.0):
        h = F.relu(self.a(x)) * scale
        if return_features:
            return h
        return self.b(h)


def gated_by_one():
    """One attention map for all channels."""
    return Lambda(
        lambda self, x: self.out((h := F.relu(self.conv(x))).mul(torch.sigmoid(self.map(h))).mean((2, 3))),
        conv=conv(3, 6), map=conv(6, 1), out=nn.Linear(6, 4),
    )  # fmt: skip


def padded(pad):
    return nn.Sequential(
        pad, nn.Conv2d(3, 6, 3), nn.ReLU(), pad, nn.Conv2d(6, 4, 3), nn.Flatten(), nn.Linear(4 * 64, 3)
    )


def head(units, *body):
    return nn.Sequential(*body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(units, 4))


def mixer():
    """Tokens are mixed by a linear layer over a transposed axis, as in an MLP-Mixer."""

    def forward(self, x):
        x = self.embed(x).flatten(2).transpose(1, 2)
        x = x + self.mix(x.transpose(1, 2)).transpose(1, 2)
        return self.out((x + self.channels(x)).mean(1))

    return Lambda(
        forward, embed=nn.Conv2d(3, 6, 4, 4), mix=nn.Sequential(nn.Linear(4, 5), nn.GELU(), nn.Linear(5, 4)),
        channels=nn.Sequential(nn.LayerNorm(6), nn.Linear(6, 8), nn.GELU(), nn.Linear(8, 6)), out=nn.Linear(6, 3),
    )  # fmt: skip


def unet():
    """Maps of odd sides, so that what is unpooled is padded to fit what it is put beside."""

    def forward(self, x):
        a = self.down(x)
        up = self.up(self.deep(F.max_pool2d(a, 2)))
        return self.out(self.join(torch.cat([a, F.pad(up, (0, a.shape[3] - up.shape[3], 0, 1))], 1)))

    parts = {"down": act(conv(3, 4)), "deep": act(conv(4, 6)), "up": nn.ConvTranspose2d(6, 4, 2, 2)}
    return Lambda(forward, **parts, join=nn.Sequential(act(conv(8, 5)), act(conv(5, 4))), out=conv(4, 2, 1, 0))


def siamese():
    branch = nn.Sequential(act(nn.Linear(6, 8)), nn.Linear(8, 7))
    return Lambda(
        lambda s, x: s.out((s.branch(x[:, :6]) - s.branch(x[:, 6:])).abs()), branch=branch, out=nn.Linear(7, 2)
    )


def recurrent():
    def forward(self, x):
        h = F.relu(self.enter(x))
        for _ in range(3):
            h = F.relu(self.cell(h) + self.enter(x))
        return self.out(h)

    return Lambda(forward, enter=nn.Linear(6, 8), cell=nn.Linear(8, 8), out=nn.Linear(8, 3))


def discriminator():
    parts = [act(conv(3, 8, 4, 1, stride=2)), act(conv(8, 12, 4, 1, stride=2)), conv(12, 1, 4, 0), nn.Flatten()]
    return nn.Sequential(*parts)


def narrowing():
    """Its last maps are a pixel."""
    return head(6, *(act(conv(a, b, stride=2)) for a, b in ((3, 6), (6, 6), (6, 6))), act(conv(6, 6)))


def skipping():
    """A frame of zeros around what is as small as a kernel."""
    forward = lambda s, x: s.b(F.pad(F.relu(s.a(F.max_pool2d(x, 4))), (1, 1, 1, 1))).relu().mean((2, 3))  # noqa: E731
    return nn.Sequential(Lambda(forward, a=conv(3, 6), b=conv(6, 5, padding=0)), nn.Linear(5, 3))


IMAGE = (3, 8, 8)
READ = {
    "decoder": (decoder, (10,)),
    "viewed decoder": (viewed_decoder, (10,)),
    "one channel of pixels": (
        lambda: nn.Sequential(nn.Linear(10, 784), nn.Unflatten(1, (1, 28, 28)), nn.Conv2d(1, 8, 3)),
        (10,),
    ),
    "nearest": (lambda: upsampling_decoder("nearest"), (6,)),
    "bilinear": (lambda: upsampling_decoder("bilinear"), (6,)),
    "strided pixels": (
        lambda: nn.Sequential(nn.Linear(4, 50), nn.Unflatten(1, (2, 5, 5)), nn.ReLU(), nn.Conv2d(2, 3, 1, 2)),
        (4,),
    ),
    "pooled pixels": (
        lambda: nn.Sequential(
            nn.Linear(4, 72), nn.Unflatten(1, (2, 6, 6)), nn.ReLU(), nn.AvgPool2d(2), act(conv(2, 4)), conv(4, 3)
        ),
        (4,),
    ),
    "globally pooled pixels": (
        lambda: nn.Sequential(
            nn.Linear(4, 72),
            nn.Unflatten(1, (8, 3, 3)),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.ReLU(),
            nn.Linear(8, 3),
        ),
        (4,),
    ),
    "generator": (generator, (7,)),
    "tokens": (tokens, (7, 6)),
    "tokens alone": (lambda: nn.Sequential(act(nn.Linear(6, 16)), nn.Linear(16, 3)), (7, 6)),
    "linear to tokens": (
        lambda: nn.Sequential(
            act(nn.Linear(5, 24)), nn.Unflatten(1, (4, 6)), act(nn.Linear(6, 7)), nn.Flatten(), nn.Linear(28, 3)
        ),
        (5,),
    ),
    "mean of channels": (mean_of_channels, (3, 16, 16)),
    "over positions": (over_positions, (3, 16, 16)),
    "channels last": (channels_last, IMAGE),
    "mixer": (mixer, IMAGE),
    "tied": (tied, (4,)),
    "twice": (twice, (4,)),
    "excited": (excited, IMAGE),
    "gated by one": (gated_by_one, IMAGE),
    "dense": (dense, IMAGE),
    "inception": (inception, IMAGE),
    "shuffled": (shuffled, IMAGE),
    "option A": (option_a, IMAGE),
    "two heads": (two_heads, (6,)),
    "scaled": (scaled, IMAGE),
    "flagged": (Flagged, (5,)),
    "depthwise first": (lambda: head(8, conv(4, 4, groups=4), nn.ReLU(), conv(4, 8, 1, 0)), (4, 8, 8)),
    "grouped first": (lambda: head(6, act(conv(4, 6, groups=2))), (4, 8, 8)),
    "depthwise twice as wide": (lambda: head(6, act(conv(3, 6, groups=3))), IMAGE),
    "transposed": (lambda: head(5, act(nn.ConvTranspose2d(3, 6, 3, 2)), act(conv(6, 5))), IMAGE),
    "transposed in groups": (lambda: head(4, act(conv(3, 6)), act(nn.ConvTranspose2d(6, 4, 3, 2, groups=2))), IMAGE),
    "zero padding": (lambda: padded(nn.ZeroPad2d(1)), IMAGE),
    "reflection": (lambda: padded(nn.ReflectionPad2d(1)), IMAGE),
    "reflecting convolution": (
        lambda: head(5, act(conv(3, 4, padding_mode="reflect")), act(conv(4, 5, padding_mode="circular"))),
        IMAGE,
    ),
    "upsample": (lambda: head(5, act(conv(3, 4)), nn.Upsample(scale_factor=2), act(conv(4, 5))), IMAGE),
    "pixel shuffle": (lambda: nn.Sequential(act(conv(3, 8)), nn.PixelShuffle(2), conv(2, 3)), IMAGE),
    "pixel unshuffle": (lambda: nn.Sequential(nn.PixelUnshuffle(2), act(conv(12, 4)), conv(4, 2)), IMAGE),
    "one linear layer": (lambda: nn.Linear(6, 4), (6,)),
    "data parallel": (lambda: nn.DataParallel(nn.Sequential(act(nn.Linear(5, 6)), nn.Linear(6, 3))), (5,)),
    "3d": (
        lambda: nn.Sequential(act(nn.Conv3d(2, 4, 3)), nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(4, 3)),
        (2, 5, 5, 5),
    ),
    "1d": (lambda: nn.Sequential(act(nn.Conv1d(2, 4, 3)), nn.MaxPool1d(2), nn.Flatten(), nn.Linear(12, 3)), (2, 8)),
    "residual": (lambda: Lambda(lambda s, x: s.out(x + s.a(x)), a=act(nn.Linear(5, 5)), out=nn.Linear(5, 3)), (5,)),
    "sum with the input": (lambda: Lambda(lambda s, x: x + s.a(x), a=conv(3, 3)), IMAGE),
    "one unit": (lambda: nn.Sequential(act(nn.Linear(5, 1)), nn.Linear(1, 3)), (5,)),
    "unet": (unet, (3, 9, 9)),
    "siamese": (siamese, (12,)),
    "recurrent": (recurrent, (6,)),
    "discriminator": (discriminator, (3, 16, 16)),
    "narrowing": (narrowing, IMAGE),
    "skipping": (skipping, IMAGE),
    "gated linear": (lambda: nn.Sequential(nn.Linear(6, 16), nn.GLU(), nn.Linear(8, 3)), (6,)),
    "sines": (lambda: Lambda(lambda s, x: s.b(torch.sin(s.a(x))), a=nn.Linear(6, 9), b=nn.Linear(9, 3)), (6,)),
    "flat images": (
        lambda: nn.Sequential(nn.Unflatten(1, (3, 8, 8)), act(conv(3, 5, padding=0)), nn.Flatten(), nn.Linear(180, 3)),
        (192,),
    ),
}
