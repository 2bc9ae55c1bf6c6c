#!/usr/bin/env bash
# Makes workflow/tested.txt from the versions in the active environment, once the tests pass there:
#   PRUNING_LATEST=1 ./run_tests.sh && PRUNING_LATEST=1 . ./env.sh && pip install uv && workflow/tested.sh
# The file has every platform's hashes, and versions for the Pythons and systems that this environment is not.
# torch, torchvision and what only their builds bring are left out: workflow/torch.txt bounds the two.
set -eu
cd "$(dirname "$0")/.."
pip freeze >workflow/tested.txt # uv prefers the versions that its output names
builds=$(sed -nE 's/^((nvidia|cuda)-[a-z0-9-]+|triton|torch|torchvision)==.*/--no-emit-package \1/p' workflow/tested.txt)
# shellcheck disable=SC2086
UV_CUSTOM_COMPILE_COMMAND=workflow/tested.sh uv pip compile --quiet --universal --python-version 3.11 \
    --generate-hashes --no-annotate -c workflow/torch.txt $builds requirements.txt -o workflow/tested.txt
