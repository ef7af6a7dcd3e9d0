#!/usr/bin/env bash
# Starts LocalStack and runs the deployment test on it: the same test as on ministack, with another endpoint.
set -euo pipefail
cd "$(dirname "$0")"
source ./engine.sh
docker compose up --detach --wait
trap 'docker compose down --volumes' EXIT
cd ..
TENSAFE_EMULATOR_URL=http://127.0.0.1:4566 .venv/bin/python -m pytest -q tests/integration/infra/test_deployment.py
