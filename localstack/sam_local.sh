#!/usr/bin/env bash
# The tests that one machine and AWS share, over `sam local start-api`: the API's function and its authorizer in
# containers of Docker, the rest of template.yaml on ministack. Ends with the tests' exit code.
set -euo pipefail
cd "$(dirname "$0")"
source ./engine.sh
cd ..
export TENSAFE_SAM_LOCAL=docker
exec .venv/bin/python -m pytest -q tests/integration/aws/sam_local
