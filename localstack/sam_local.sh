#!/usr/bin/env bash
# Starts the API function behind `sam local start-api`, in Lambda's own container image, until Ctrl-C.
# The tables, queues, bucket and keys are those of AWS_ENDPOINT_URL (LocalStack, say); see localstack/run.sh.
set -euo pipefail
cd "$(dirname "$0")"
source ./engine.sh
cd ..
if [ ! -f build/lambda/function/tensafe/__init__.py ]; then
    echo "run make function first: build/lambda/function is empty" >&2
    exit 1
fi
export SAM_CLI_TELEMETRY=0 AWS_DEFAULT_REGION="${AWS_DEFAULT_REGION:-eu-central-1}"
exec .cache/sam/bin/sam local start-api --host 127.0.0.1 --port "${PORT:-3000}"
