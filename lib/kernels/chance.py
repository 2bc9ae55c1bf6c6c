"""Draws of a counter: what a network draws while it trains, the same on every device and without a generator."""

import math

import torch


def coins(keys, step, count, chance):
    """Return `(R, count)` bools, each True with `chance` in (0, 1), the same on every device; keys, step: int64 `(R,)`.

    Entry i of a run is draw 2³²·step + i of the generator splitmix64 (Steele, Lea & Flood 2014) that starts at the
    run's key: there is no generator to keep, and a GPU is not waited for to seed one.
    """
    return _drawn(keys, step, count) < int((chance - 0.5) * 2**64)


def normals(keys, step, count):
    """Return `(R, count)` standard normal numbers, float32, of the draws that `coins` makes of the same arguments.

    Both halves of a draw are a uniform number, and those a normal one (Box & Muller 1958).
    """
    words = _drawn(keys, step, count)
    first, second = (((half & (2**32 - 1)).double() + 0.5) / 2**32 for half in (words >> 32, words))
    return ((-2 * first.log()).sqrt() * (2 * math.pi * second).cos()).float()


def _drawn(keys, step, count):
    """Return the draws of `coins`, int64 `(R, count)`."""
    position = (step[:, None] << 32) + torch.arange(1, count + 1, device=keys.device)
    z = keys[:, None] + position * (0x9E3779B97F4A7C15 - 2**64)  # as int64 has it; so too below
    z = (z ^ _shifted(z, 30)) * (0xBF58476D1CE4E5B9 - 2**64)
    z = (z ^ _shifted(z, 27)) * (0x94D049BB133111EB - 2**64)
    return z ^ _shifted(z, 31)


def _shifted(z, bits):
    """Return int64 `z` moved right by `bits`, filled with zeros, which `>>` fills with the sign."""
    return (z >> bits) & (2 ** (64 - bits) - 1)
