#!/usr/bin/env bash
# The linters of template.yaml and infra/; `make lint-infra` made their environments. Justified skips stand in the files.
set -euo pipefail
cd "$(dirname "$0")/.."
export SAM_CLI_TELEMETRY=0 AWS_DEFAULT_REGION=eu-central-1
templates=(template.yaml infra/tasks.yaml infra/observability.yaml)
mkdir -p build/lambda/function  # what template.yaml names as the functions' code; its contents are not looked at

.cache/checkov/bin/checkov --skip-download --quiet --compact --framework cloudformation \
    "${templates[@]/#/--file=}" > build/checkov.log 2>&1 &
checkov=$!
.cache/sam/bin/cfn-lint "${templates[@]}"
.cache/sam/bin/sam validate --lint > build/sam-validate.log 2>&1 || { cat build/sam-validate.log >&2; exit 1; }
wait "$checkov" || { cat build/checkov.log >&2; exit 1; }
