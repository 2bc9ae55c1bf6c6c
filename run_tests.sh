#!/usr/bin/env bash
# The tests; arguments go to pytest:  ./run_tests.sh tests/test_masks.py -k ties
cd "$(dirname "$0")" || exit
. ./env.sh || exit
exec python -m pytest "$@"
