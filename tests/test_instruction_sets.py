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


@pytest.mark.parametrize(("channels", "kept"), [(7, True), (8, False)])
def test_a_module_whose_gradient_would_not_be_safe_keeps_its_memory(channels, kept):
    module = plain.laid_out(nn.Sequential(nn.Conv2d(2, channels, 3), nn.Sequential(nn.Conv2d(channels, 3, 1, 2))))
    assert module[0].weight.is_contiguous(memory_format=torch.channels_last) != kept == module[0].weight.is_contiguous()
