#!/usr/bin/env bash
# For any moment at which a CUDA GPU is at hand: the tests, the benchmarks, then the pending reproduction runs, for so
# many minutes; call it again to go on. What has a record is not run again, and descents go on from their checkpoints.
# Tests that came to their end, and benchmarks that did or failed, are not run again while the files of lib/, benchmarks/
# and, for tests, tests/, notebooks/ and workflow/ stay what they were: what came of them is in benchmarks/results/.
#   benchmarks/gpu.sh [WHAT] [MINUTES]            WHAT: tests, benchmarks, runs or all (default); MINUTES: 9 by default
#   PRUNING_VENV=FOLDER benchmarks/gpu.sh         an environment already prepared, where nothing can be installed
set -u
cd "$(dirname "$0")/.." || exit
what=${1:-all} minutes=${2:-9}
end=$((60 * minutes)) failed=0 # of $SECONDS, which bash counts from the start
export PIP_RETRIES=${PIP_RETRIES:-1} PIP_TIMEOUT=${PIP_TIMEOUT:-5}
PATH=$PWD/workflow/bin:$PATH
. ./env.sh || echo "gpu.sh: going on with $(command -v python) as it is" >&2
python -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' || {
    echo "gpu.sh: torch sees no CUDA GPU here; on a CPU use ./run_tests.sh and python benchmarks/NAME.py" >&2
    exit 1
}
name=$(python -c 'import torch; print(torch.cuda.get_device_name().replace(" ", "-"))')
mkdir -p benchmarks/results
piece() { # one command, for as long as there is time; what it has not finished is for the next call
    local left=$((end - SECONDS))
    [ "$left" -gt 20 ] || exit "$failed"
    echo "gpu.sh: $* (${left} s left)" >&2
    timeout --kill-after=30 "$left" "$@" || {
        local status=$?
        failed=1
        return "$status"
    }
}
tests() { # NAME ARGUMENT ...: pytest's output in results/; its last line says how it ended, with which files
    local kept=benchmarks/results/$name-$1.txt files status=0
    files=$(cat lib/*.py lib/*/*.py lib/*/*/*.py notebooks/*.ipynb workflow/* tests/*.py benchmarks/*.py 2>/dev/null | cksum)
    if ! tail -n 1 "$kept" 2>/dev/null | grep -q "^status [01], files $files$"; then
        piece python -m pytest -p no:cacheprovider "${@:2}" >"$kept" 2>&1 || status=$?
        echo "status $status, files $files" >>"$kept"
    fi
    tail -n 15 "$kept"
    tail -n 1 "$kept" | grep -q "^status 0" || failed=1
}

if [ "$what" = tests ] || [ "$what" = all ]; then
    cuda=(tests/test_cuda.py tests/test_fused.py tests/test_capture.py tests/test_stacking.py)
    tests tests "${cuda[@]}"
    beside=()
    python -c 'import xdist' 2>/dev/null && beside=(-n auto --maxprocesses 8 --dist loadfile)
    tests suite tests "${beside[@]}" "${cuda[@]/#/--ignore=}"
fi
if [ "$what" = benchmarks ] || [ "$what" = all ]; then
    piece python benchmarks/all.py --new --limit $((54 * minutes))
fi
[ "$what" = runs ] || [ "$what" = all ] || exit "$failed"

missing=$(python -c '
import importlib.metadata as found, re
for line in open("requirements.txt"):
    requirement = re.match(r"[\w.-]+", line)
    if requirement and not any(found.distributions(name=requirement[0])):
        print(requirement[0], end=" ")')
[ -z "$missing" ] || {
    echo "gpu.sh: the runs need $missing, and nothing could be installed. Where there is a network, with the same" \
        "Python: pip download -r requirements.txt -d wheels; copy wheels/ here, then" \
        "pip install --no-index --find-links wheels -r requirements.txt" >&2
    exit 1
}
piece papermill notebooks/mnist_prune.ipynb -y '{seed: [9192, 3576, 2356], type: [EWN, SWN, no-WN], levels: [-10, -100]}'
for seed in 1 2 3; do
    for kind in phew synflow synflow_l2 snip grasp magnitude_init random dense; do
        piece papermill notebooks/phew_density.ipynb -y "{seed: $seed, type: $kind, densities: [0.069, 0.018]}"
    done
done
for notebook in weight_vs_neuron train_time_prune mnist_prune; do # the last to a log-loss of -300
    piece ./run_all.sh "notebooks/$notebook.ipynb"
done
exit "$failed"
