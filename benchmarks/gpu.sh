#!/usr/bin/env bash
# For any moment at which a CUDA GPU is at hand: tests on it, benchmarks, then the pending reproduction runs, for at
# most so many minutes; call it again to go on. Whatever is cut off goes on from its checkpoint.
#   benchmarks/gpu.sh [MINUTES]                   default 9
#   PRUNING_VENV=FOLDER benchmarks/gpu.sh         an environment already prepared, where nothing can be installed
set -u
cd "$(dirname "$0")/.." || exit
. ./env.sh || exit
python -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' || {
    echo "gpu.sh: torch sees no CUDA GPU here; on a CPU use ./run_tests.sh and python benchmarks/NAME.py" >&2
    exit 1
}
mkdir -p benchmarks/results
name=$(python -c 'import torch; print(torch.cuda.get_device_name().replace(" ", "-"))')
python -m pytest 2>&1 | tee "benchmarks/results/$name-tests.txt"
for benchmark in benchmarks/*.py; do
    python "$benchmark" 2>&1 | tee "benchmarks/results/$name-$(basename "$benchmark" .py).txt"
done
timeout --kill-after=30 "${1:-9}m" ./run_all.sh notebooks/mnist_prune.ipynb
