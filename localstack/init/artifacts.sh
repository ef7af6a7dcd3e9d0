#!/usr/bin/env bash
# Run by LocalStack each time it starts: the bucket that the function package and the nested templates are uploaded to.
set -euo pipefail
bucket=deployment-artifacts
awslocal s3api head-bucket --bucket "$bucket" > /dev/null 2>&1 ||
    awslocal s3api create-bucket --bucket "$bucket" --create-bucket-configuration LocationConstraint=eu-central-1
