#!/usr/bin/env bash
# The tests, as many files at once as there are cores; arguments go to pytest:  ./run_tests.sh tests/test_masks.py -k ties
cd "$(dirname "$0")" || exit
. ./env.sh || exit
# A worker that died is not replaced: the run ends and names its test. Replacements can make xdist fail or wait for ever.
exec python -m pytest -n auto --maxprocesses 8 --dist loadfile --no-loadscope-reorder --max-worker-restart 0 "$@"
