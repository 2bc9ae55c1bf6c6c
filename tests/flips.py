"""Single flipped bits in a file, each of which is to be an error that names the file and the way out."""

import re

import numpy as np
import pytest

from lib.errors import RecordError

FLIPS = 100


def altered(path):
    """Yield FLIPS bits from all over the file, one at a time, while that bit is flipped."""
    whole = path.read_bytes()
    for bit in np.random.default_rng(0).choice(8 * len(whole), FLIPS, replace=False):
        data = bytearray(whole)
        data[bit // 8] ^= 1 << bit % 8
        path.write_bytes(data)
        yield bit
    path.write_bytes(whole)


def refused(path, read, error=RecordError, named=None, way_out="[Dd]elete"):
    """Assert that `read()` is an error that names the file and the way out, whichever bit of it is flipped."""
    told = re.escape(str(named or path))
    read()
    for bit in altered(path):
        with pytest.raises(error, match=f"(?s){told}.*{way_out}"):
            read()
            pytest.fail(f"bit {bit} of {path} was flipped, and nobody noticed")
    read()
