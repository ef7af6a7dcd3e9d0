#!/usr/bin/env bash
# The whole suite as two lanes side by side, since most tests keep one core busy, each of two pytest processes in a row.
# What the first lane prints is kept in build/tests-1.log until the second has ended. Arguments go to all.
set -uo pipefail
cd "$(dirname "$0")/.."
mkdir -p build
images=tests/integration/infra/test_images.py
aws=tests/integration/aws
pytest=(.venv/bin/python -m pytest -q "$@")

first_lane() {
    local rc=0
    "${pytest[@]}" tests/unit tests/contract tests/audit -o cache_dir=.pytest_cache/1 || rc=$?
    "${pytest[@]}" "$aws" -o cache_dir=.pytest_cache/2 || rc=$?
    return "$rc"
}

second_lane() {
    local rc=0
    "${pytest[@]}" tests/integration --ignore="$images" --ignore="$aws" -o cache_dir=.pytest_cache/3 || rc=$?
    "${pytest[@]}" tests/chaos "$images" -o cache_dir=.pytest_cache/4 || rc=$?
    return "$rc"
}

first_lane > build/tests-1.log 2>&1 &
first=$!
# Stopped first, so that it starts no second one when its pytest ends.
trap 'kill -STOP "$first"; pkill -P "$first"; kill -KILL "$first"' INT TERM
echo "unit, contract and audit, then the service on an emulator of AWS, run beside these: build/tests-1.log"
second_lane
second_rc=$?
wait "$first"
first_rc=$?
# A process of their own: they set torch and vLLM up for CUDA. Without a GPU they say why they are skipped.
"${pytest[@]}" tests/gpu -o cache_dir=.pytest_cache/5
gpu_rc=$?
echo "unit, contract and audit, then the service on an emulator of AWS:"
cat build/tests-1.log
exit $((first_rc || second_rc || gpu_rc))
