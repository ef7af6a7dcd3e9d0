#!/usr/bin/env bash
# The whole suite as two pytest processes side by side, since most tests keep one core busy.
# What it prints of the first is kept in build/tests-1.log until the second has ended. Arguments go to both.
set -uo pipefail
cd "$(dirname "$0")/.."
mkdir -p build
images=tests/integration/infra/test_images.py
pytest=(.venv/bin/python -m pytest -q "$@")

"${pytest[@]}" tests/unit tests/contract tests/audit tests/chaos "$images" -o cache_dir=.pytest_cache/1 > build/tests-1.log 2>&1 &
first=$!
trap 'kill "$first" 2>/dev/null' INT TERM
echo "unit, contract, audit, chaos and images run beside these: build/tests-1.log"
"${pytest[@]}" tests/integration --ignore="$images" -o cache_dir=.pytest_cache/2
second_rc=$?
wait "$first"
first_rc=$?
# A process of their own: they set torch and vLLM up for CUDA. Without a GPU they say why they are skipped.
"${pytest[@]}" tests/gpu -o cache_dir=.pytest_cache/3
gpu_rc=$?
echo "unit, contract, audit, chaos and images:"
cat build/tests-1.log
exit $((first_rc || second_rc || gpu_rc))
