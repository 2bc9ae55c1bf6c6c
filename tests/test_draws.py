"""Generators are keyed: by numpy's own Philox of the same key, whoever drew before."""

import hashlib

import numpy as np
import pytest

from lib import draws


@pytest.mark.parametrize("position", [(), (4,), (2, 7)])
def test_the_stream_is_numpys_of_the_same_key(position):
    name = "/".join(map(str, (3, "order", *position)))
    key = int.from_bytes(hashlib.blake2b(name.encode(), digest_size=16).digest(), "little")
    expected = np.random.Generator(np.random.Philox(key=key))
    found = draws.generator(3, "order", *position)
    np.testing.assert_array_equal(found.random(5), expected.random(5))
    np.testing.assert_array_equal(found.standard_normal(5), expected.standard_normal(5))
    np.testing.assert_array_equal(found.permutation(9), expected.permutation(9))


def test_every_part_of_the_key_counts():
    keys = [(3, "order", 1), (4, "order", 1), (3, "noise", 1), (3, "order", 2), (3, "order", 1, 0)]
    assert len({draws.generator(*key).integers(2**63) for key in keys}) == len(keys)
    assert draws.generator(*keys[0]).integers(2**63) == draws.generator(*keys[0]).integers(2**63)
