"""Every random draw: a generator is keyed by what it is for, never by what was drawn before it.

Because the key says (seed, purpose, position), a draw does not depend on how many networks are trained
together, on the order in which they are trained, or on where a killed run was resumed.
"""

import functools
import hashlib

import numpy as np
from numpy.random.bit_generator import ISeedSequence

from lib.errors import number

KEY_BYTES = 16  # a Philox key is 128 bits
SEEDS = "[0, 2^64)"  # torch's generators take no others


class _Key(ISeedSequence):
    """A Philox key as a seed: with `key=` numpy first draws entropy from the system, which takes twice the time."""

    def __init__(self, words):
        self.words = words

    def generate_state(self, n_words, dtype=np.uint32):
        return self.words


def generator(seed: int, purpose: str, *position: int) -> np.random.Generator:
    """Return the generator of one purpose of one run, for example `generator(3, "order", epoch)`.

    The stream is Philox (Salmon et al. 2011), a counter-based generator: the key alone decides it.
    """
    name = "/".join(map(str, (number("seed", seed, SEEDS, whole=True), purpose, *position)))
    key = hashlib.blake2b(name.encode(), digest_size=KEY_BYTES).digest()
    return np.random.Generator(np.random.Philox(_Key(np.frombuffer(key, "<u8"))))


def permutation(seed: int, purpose: str, position: int, size: int) -> np.ndarray:
    """Return the `(size,)` int64 order in which run `seed` sees its examples in one pass."""
    return generator(seed, purpose, position).permutation(size)


def orders(seeds: list[int], positions: list[int], size: int) -> np.ndarray:
    """Return the order of each run, `(R, size)` int64, drawn once for the runs that share a seed and a position."""
    keys = list(zip(seeds, positions, strict=True))
    drawn = {key: permutation(key[0], "order", key[1], size) for key in dict.fromkeys(keys)}
    return np.stack([drawn[key] for key in keys])


# What draws scores, `(generator, shape)` to numbers from [0, 1): float64, and float32.
uniform = np.random.Generator.random
uniform32 = functools.partial(uniform, dtype=np.float32)
