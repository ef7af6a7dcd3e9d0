#!/usr/bin/env bash
# Starts LocalStack and runs on it what otherwise runs on ministack: the same tests, with another endpoint. With
# TENSAFE_EMULATOR_URL set they run on the emulator that is there. Folder by folder, each on an empty emulator.
set -euo pipefail
cd "$(dirname "$0")"
if [ -z "${TENSAFE_EMULATOR_URL:-}" ]; then
    source ./engine.sh
    docker compose up --detach --wait
    trap 'docker compose down --volumes' EXIT
    export TENSAFE_EMULATOR_URL=http://127.0.0.1:4566
fi
cd ..
failed=0
for folder in tests/contract tests/chaos tests/integration/infra tests/integration/aws; do
    echo "$folder on $TENSAFE_EMULATOR_URL"
    .venv/bin/python -m pytest -q -m emulator "$folder" || failed=1
done
exit "$failed"
