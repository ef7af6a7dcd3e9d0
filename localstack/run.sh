#!/usr/bin/env bash
# Starts LocalStack and runs on it what otherwise runs on ministack: the same tests, with another endpoint. With
# TENSAFE_EMULATOR_URL set they run on the emulator that is there. Folder by folder, each on an empty emulator; at
# the end there is a line for each. LocalStack's free image has no HTTP API, so what deploys template.yaml is left
# out there, and said; LOCALSTACK_IMAGE and LOCALSTACK_AUTH_TOKEN name one that has it.
set -euo pipefail
cd "$(dirname "$0")"
if [ -z "${TENSAFE_EMULATOR_URL:-}" ]; then
    source ./engine.sh
    trap 'docker compose down --volumes' EXIT
    docker compose up --detach --wait
    export TENSAFE_EMULATOR_URL=http://127.0.0.1:4566
fi
cd ..

has_http_apis() {
    AWS_ENDPOINT_URL="$TENSAFE_EMULATOR_URL" AWS_DEFAULT_REGION=eu-central-1 AWS_ACCESS_KEY_ID=test \
        AWS_SECRET_ACCESS_KEY=test .venv/bin/python -c 'import boto3; boto3.client("apigatewayv2").get_apis()' 2>&1
}

summary="" failed=0
run() {
    echo "$1 on $TENSAFE_EMULATOR_URL"
    if .venv/bin/python -m pytest -q -m emulator "$1"; then
        summary+="passed    $1"$'\n'
    else
        summary+="FAILED    $1"$'\n' failed=1
    fi
}

run tests/contract
run tests/chaos
if said=$(has_http_apis); then
    run tests/integration/infra
    run tests/integration/aws
else
    reason="SKIPPED   tests/integration/infra, tests/integration/aws: the emulator has no API Gateway v2"
    summary+="$reason (${said##*$'\n'})"$'\n'
fi
echo
printf '%s' "$summary"
exit "$failed"
