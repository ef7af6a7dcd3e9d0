#!/usr/bin/env bash
# The tests that one machine and AWS share, over `sam local start-api`: the API's function and its authorizer in
# Lambda's own container image, the rest of template.yaml on ministack. Ends with the tests' exit code.
set -euo pipefail
cd "$(dirname "$0")"
source ./engine.sh
cd ..
# Where the default network of containers has this machine: an address that both reach it by.
address=$(docker network inspect bridge --format '{{(index .IPAM.Config 0).Gateway}}')
if [ -z "$address" ]; then
    echo "docker's network \"bridge\" has no gateway, by which containers would reach this machine" >&2
    exit 1
fi
export TENSAFE_SAM_LOCAL=docker TENSAFE_EMULATOR_HOST="$address"
exec .venv/bin/python -m pytest -q tests/integration/aws/sam_local
