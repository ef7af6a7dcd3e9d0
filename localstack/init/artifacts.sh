#!/usr/bin/env bash
# Run by LocalStack once it answers: the bucket that the function package and the nested templates are uploaded to.
set -euo pipefail
awslocal s3api create-bucket --bucket deployment-artifacts \
    --create-bucket-configuration LocationConstraint=eu-central-1
