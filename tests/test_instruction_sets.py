"""What a CPU computes is right whichever instructions it has, tried in processes that may die or hang."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from lib import plain

SCRIPT = Path(__file__).with_name("small_convolutions.py")
AVX2 = {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"}
NATIVE = {name: value for name, value in os.environ.items() if name not in AVX2}
MORE = torch.backends.cpu.get_cpu_capability() == "AVX512"


@pytest.mark.parametrize("limit", [
    {}, pytest.param(AVX2, marks=pytest.mark.skipif(not MORE, reason="this processor has no more than AVX2")),
], ids=["all that the processor has", "AVX2"])  # fmt: skip
def test_gradients_of_small_convolutions(limit):
    done = subprocess.run([sys.executable, SCRIPT], env=NATIVE | limit, capture_output=True, text=True)
    cases = done.stdout.splitlines()
    assert done.returncode >= 0, f"ended by signal {-done.returncode} in {cases[-1:]}"
    assert done.returncode == 0, done.stderr
    assert len(cases) > 500, "too few"


def test_a_convolution_that_stands_in_two_places_keeps_its_function():
    one, other = (nn.Conv2d(3, 3, 1, 2) for _ in range(2))
    shared = nn.Sequential(one, nn.Sequential(nn.ReLU(), one))
    held = plain.Graph([(0, 1), (1, 2)], nn.Identity(), nn.ReLU(), nn.Sequential(other), other)
    for module, pools in ((shared, 2), (held, 0)):
        x = torch.randn(2, 3, 8, 8)
        expected = module(x)
        torch.testing.assert_close(plain.laid_out(module)(x), expected)
        assert sum(isinstance(part, nn.AvgPool2d) for part in module.modules()) == pools
