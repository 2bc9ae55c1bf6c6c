"""Images on their way into a network: standardised, and for training cropped and flipped at random.

Images stay bytes on the device; only a batch is ever turned into numbers.
"""

import functools

import torch
from torch import nn

from lib import draws

PAD = 4  # pixels of black around an image, of which a crop takes what it takes


def standardise(x, mean, std):
    """Return float32 `(..., C·H·W)` of uint8 images `x (..., C, H, W)`, to [0, 1] and then standardised."""
    mean, std = (_of_channels(tuple(numbers), x.device) for numbers in (mean, std))
    return x.float().div_(255).sub_(mean).div_(std).flatten(-3)


@functools.cache
def _of_channels(numbers, device):
    """Return a number of every channel, `(C, 1, 1)`, kept on the device: to copy it there is to wait for the GPU."""
    return torch.tensor(numbers, device=device).reshape(-1, 1, 1)


def crop_flip(images, index, shift, flip):
    """Return the chosen images `(*index.shape, C, H, W)`, each moved within a black frame and mirrored or not.

    images (N, C, H, W), uint8; index `(...)`; shift `(..., 2)`, the row and column, 0 to 2·PAD, at which the crop of
    H × W begins in the image that `PAD` black pixels surround; flip `(...)`, bool, left to right after the crop.
    """
    _, channels, height, width = images.shape
    framed = nn.functional.pad(images[index.flatten()], (PAD,) * 4)
    shift, flip = shift.reshape(-1, 2, 1), flip.reshape(-1, 1)
    rows, columns = (torch.arange(side, device=images.device) for side in (height, width))
    columns = torch.where(flip, columns.flip(0), columns)
    at = (shift[:, 0] + rows)[:, :, None] * (width + 2 * PAD) + (shift[:, 1] + columns)[:, None]
    cropped = framed.flatten(2).gather(2, at.flatten(1)[:, None].expand(-1, channels, -1))
    return cropped.view(*index.shape, channels, height, width)


def moves(seed, epoch, count):
    """Return (shift `(count, 2)`, flip `(count,)`) of every training image in one epoch of the runs of `seed`.

    All shifts, 0 to 2·PAD, are equally likely, and half the images are mirrored. No image depends on its batch.
    """
    rng = draws.generator(seed, "augment", epoch)
    shift, flip = rng.integers(2 * PAD + 1, size=(count, 2)), rng.random(count) < 0.5
    return torch.from_numpy(shift), torch.from_numpy(flip)


class Augmented:
    """Training batches of R runs: called with an epoch and an index it returns their inputs, cropped and mirrored.

    data: a `Data`; seeds: one per run, which draw the moves. `index (B,)` is a batch that all runs share, `(R, B)` one
    of each run's own. The inputs are float32, `(B, C·H·W)` where all runs see the same, else `(R, B, C·H·W)`; with no
    move at all they are what `data.split("train")` has.
    """

    def __init__(self, data, seeds):
        self.data, self.seeds, self.epoch = data, list(seeds), None

    def __call__(self, epoch, index):
        moves = self._moves(epoch)
        if index.dim() == 1 and len(moves) == 1:
            shift, flip = (part[index] for part in moves[self.seeds[0]])
        else:
            index = index.expand(len(self.seeds), -1)
            each = [[part[own] for part in moves[seed]] for seed, own in zip(self.seeds, index, strict=True)]
            shift, flip = map(torch.stack, zip(*each, strict=True))
        images = crop_flip(self.data.train_x, index, shift, flip)
        return standardise(images, self.data.mean, self.data.std)

    def _moves(self, epoch):
        """Return `{seed: (shift, flip)}` on the device, drawn once per epoch."""
        if self.epoch != epoch:
            n, device = len(self.data.train_y), self.data.train_x.device
            drawn = {seed: moves(seed, epoch, n) for seed in dict.fromkeys(self.seeds)}
            self.drawn = {seed: tuple(part.to(device) for part in pair) for seed, pair in drawn.items()}
            self.epoch = epoch
        return self.drawn
