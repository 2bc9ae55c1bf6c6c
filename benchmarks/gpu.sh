#!/usr/bin/env bash
# For any moment at which a CUDA GPU is at hand, of 78 GiB or more: within a quarter of an hour first the CUDA tests
# (two minutes), then the tables, then what a CPU cannot reproduce. Each part prints what came of it as soon as that is
# there, and can be cut at any moment: call it again to go on. Tests that passed, and tables that came to their end or
# failed, are not made again while the files of lib/, benchmarks/ and, for tests, tests/ stay what they were; what has a
# record is not run again, and trainings go on from their checkpoints. In benchmarks/results/ all files begin with the
# card's name: CARD-tests.txt, the tables CARD.md and CARD.json, CARD-tables.txt (all that they printed, cut ones too),
# CARD-without.txt (what made no table, and why), and CARD-runs.txt. What it lacks, data or packages, is told first.
#   benchmarks/gpu.sh [PART] [MINUTES]            PART: tests, tables, runs or all (default); MINUTES: 15 by default
#   PRUNING_VENV=FOLDER benchmarks/gpu.sh         an environment already prepared, where nothing can be installed
#   PRUNING_CARD=stand-in benchmarks/gpu.sh       tries it without a GPU, on tests/card.py, all at small size; its times
#                                                 say nothing, and its records go to runs/quick/stand-in
set -u
cd "$(dirname "$0")/.." || exit
part=${1:-all} minutes=${2:-15}
case $part in tests | tables | runs | all) ;; *)
    echo "gpu.sh: there is no part '$part'; allowed are tests, tables, runs and all" >&2
    exit 2
    ;;
esac
end=$((60 * minutes)) failed=0 # of $SECONDS, which bash counts from the start
export PIP_RETRIES=${PIP_RETRIES:-1} PIP_TIMEOUT=${PIP_TIMEOUT:-5} PYTHONUNBUFFERED=1 # what is cut has said all it knew
PATH=$PWD/workflow/bin:$PATH
. ./env.sh || {
    has_torch='import importlib.util as found, sys; sys.exit(found.find_spec("torch") is None)'
    if ! python -c "$has_torch" 2>/dev/null && python3 -c "$has_torch" 2>/dev/null; then
        only=$(mktemp -d) # a program, because a link would be no Python of its environment
        printf '#!/bin/sh\nexec python3 "$@"\n' >"$only/python" && chmod +x "$only/python"
        PATH=$only:$PATH
    fi
    echo "gpu.sh: going on with $(python -c 'import sys; print(sys.executable)') as it is" >&2
}
seeds='1 2 3' wide='densities: [0.069, 0.018]' profile=''
if [ -n "${PRUNING_CARD:-}" ]; then # kernels are compiled where there is a GPU to run them, and interpreted elsewhere
    export PYTHONPATH=$PWD/tests/stand_in${PYTHONPATH:+:$PYTHONPATH} TRITON_INTERPRET=1
    export PRUNING_RUNS=${PRUNING_RUNS:-runs/quick/stand-in} PRUNING_FIGURES=${PRUNING_FIGURES:-figures/quick/stand-in}
    small='batch_size: 20, train_examples: 40' seeds=1 profile=--quick
    wide="densities: [0.1], dataset: digits32, net: vgg11_bn, width: 2, epochs: 2, drops: [1], examples_per_class: 2"
    wide="$wide, $small"
fi
name=$(python -c '
import re, torch
print(re.sub(r"\W+", "-", torch.cuda.get_device_name()) if torch.cuda.is_available() else "")')
[ -n "$name" ] || {
    echo "gpu.sh: torch sees no CUDA GPU here; on a CPU use ./run_tests.sh and python benchmarks/NAME.py" >&2
    exit 1
}
results=benchmarks/results/$name
mkdir -p benchmarks/results
missing=$(python -c '
import importlib.metadata as found, re
for line in open("requirements.txt"):
    requirement = re.match(r"[\w.-]+", line)
    if requirement and not any(found.distributions(name=requirement[0])):
        print(requirement[0], end=" ")')
[ -z "$missing" ] || [ "$part" = tests ] || [ "$part" = tables ] ||
    echo "gpu.sh: the runs need $missing, and nothing could be installed. Where there is a network, with the same" \
        "Python: pip download -r requirements.txt -d wheels; copy wheels/ here, then" \
        "pip install --no-index --find-links wheels -r requirements.txt. All time is for the tables" >&2
[ "$part" = tests ] || [ -n "${PRUNING_CARD:-}" ] || python -c '
from lib import sets
for name in ("mnist", "cifar10"):
    try:
        sets.load(name)
    except Exception as error:
        print(f"gpu.sh: without {name} most tables and runs will fail. {error}")' >&2
within() { # SECONDS COMMAND ...: for so long at the most, and as long as there is time
    local left=$((end - SECONDS))
    [ "$left" -gt 3 ] || return 124
    timeout --kill-after=10 "$(($1 < left ? $1 : left))" "${@:2}"
}
told() { # STATUS COMMAND ...: how it ended, also in CARD-runs.txt
    local how=done
    [ "$1" = 0 ] || how="failed, status $1" failed=1
    [ "$1" != 124 ] || how="cut, to be gone on with"
    echo "gpu.sh, after $SECONDS s: $how: ${*:2}" | tee -a "$results-runs.txt" >&2
}

if [ "$part" = tests ] || [ "$part" = all ]; then
    files=$(cat lib/*.py lib/*/*.py lib/*/*/*.py tests/*.py benchmarks/*.py 2>/dev/null | cksum)
    if ! grep -q "^status [01], files $files$" "$results-tests.txt" 2>/dev/null; then
        grep -qs "files $files$" "$results-tests.txt" || echo "files $files" >"$results-tests.txt"
        mapfile -t passed < <(sed -n 's/^\(tests.*\) PASSED .*/--deselect=\1/p' "$results-tests.txt")
        within 120 python -m pytest -v -p no:cacheprovider -p no:xdist \
            tests/test_cuda.py tests/test_fused.py "${passed[@]}" 2>&1 | tee -a "$results-tests.txt"
        status=${PIPESTATUS[0]}
        [ "$status" != 5 ] || status=0 # none is left
        echo "status $status, files $files" | tee -a "$results-tests.txt"
    fi
    grep -q "^status 0" "$results-tests.txt" || failed=1
fi
if [ "$part" = tables ] || [ "$part" = all ]; then # what decides defaults comes first
    for table in kernels captured_steps whole_tables.{descent,epoch,challenge,masks,dpp} mnist_epoch toy_stack \
        cost_of_runs cifar_epoch; do
        # A third of the time is for the runs.
        [ "$part" = tables ] || [ -n "$missing" ] || [ $((SECONDS * 3)) -lt $((end * 2)) ] || break
        within 110 python benchmarks/all.py --new --limit 90 "$table" 2>&1 | tee -a "$results-tables.txt"
        status=${PIPESTATUS[0]}
        [ "$status" = 0 ] || told "$status" table "$table"
    done
    cat "$results-without.txt" 2>/dev/null
fi
[ "$part" = runs ] || [ "$part" = all ] || exit "$failed"
[ -z "$missing" ] || exit 1
run() { # COMMAND ...: until the time is over
    [ $((end - SECONDS)) -gt 3 ] || exit "$failed"
    within "$end" "$@"
    told $? "$@"
}
for seed in $seeds; do
    for kind in phew synflow synflow_l2 snip grasp magnitude_init random dense; do
        run papermill notebooks/phew_density.ipynb -y "{seed: $seed, type: $kind, $wide}"
    done
done
for notebook in weight_vs_neuron train_time_prune mnist_prune; do # the last to a log-loss of -300
    run ./run_all.sh ${profile:+$profile} "notebooks/$notebook.ipynb"
done
exit "$failed"
