"""What the template makes, made by hand on an emulator: tables, queues, bucket, keys; and its environment."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import boto3
import pytest

from tensafe.cloud.composition import cloud_services
from tensafe.cloud.settings import read_cloud_settings
from tensafe.operations.doorbell import queue_specs
from tensafe.services import Services
from tests.support.cloud import MODEL, cloud_environment

PREFIX = "ts-"


@dataclass(frozen=True)
class Stack:
    """An emulator with everything in it. `environment` is what a function or task gets."""

    endpoint: str
    environment: dict[str, str]

    def client(self, service: str) -> Any:
        return boto3.client(
            service,
            endpoint_url=self.endpoint,
            region_name="eu-central-1",
            aws_access_key_id="testing",
            aws_secret_access_key="testing",
        )

    @contextmanager
    def services(self) -> Iterator[Services]:
        """Another process's view, in this one; meanwhile its variables of AWS stay set."""
        with pytest.MonkeyPatch.context() as patch, pytest.MonkeyPatch.context() as while_read:
            for name, value in self.environment.items():
                (patch if name.startswith("AWS_") else while_read).setenv(name, value)
            settings = read_cloud_settings()
            while_read.undo()
            yield cloud_services(settings)


def make_stack(endpoint: str, model: Mapping[str, Any] = MODEL) -> Stack:
    """Create it all; names as `cloud_environment` has them."""
    stack = Stack(endpoint, {})
    kms, s3, sqs, dynamodb = (stack.client(name) for name in ("kms", "s3", "sqs", "dynamodb"))
    key = kms.create_key()["KeyMetadata"]["Arn"]
    signing = kms.create_key(KeySpec="ECC_NIST_P256", KeyUsage="SIGN_VERIFY")["KeyMetadata"]["KeyId"]
    environment = cloud_environment(
        TENSAFE_KMS_KEY_ID=key,
        TENSAFE_SIGNING_KEY_ID=signing,
        TENSAFE_QUEUE_PREFIX=PREFIX,
        TENSAFE_MODELS=json.dumps([model]),
        AWS_ENDPOINT_URL=endpoint,
    )
    for name in ("TENSAFE_TABLE", "TENSAFE_ANCHOR_TABLE"):
        dynamodb.create_table(
            TableName=environment[name],
            KeySchema=[
                {"AttributeName": "pk", "KeyType": "HASH"},
                {"AttributeName": "sk", "KeyType": "RANGE"},
            ],
            AttributeDefinitions=[{"AttributeName": name, "AttributeType": "S"} for name in ("pk", "sk")],
            BillingMode="PAY_PER_REQUEST",
        )
    location = {"LocationConstraint": "eu-central-1"}
    s3.create_bucket(Bucket=environment["TENSAFE_BUCKET"], CreateBucketConfiguration=location)
    for spec in queue_specs([str(model["name"])]):
        suffix, kind = (".fifo", {"FifoQueue": "true"}) if spec.fifo else ("", {})
        dead = sqs.create_queue(QueueName=f"{PREFIX}{spec.dead_queue}{suffix}", Attributes=kind)["QueueUrl"]
        arn = sqs.get_queue_attributes(QueueUrl=dead, AttributeNames=["QueueArn"])["Attributes"]["QueueArn"]
        policy = json.dumps({"deadLetterTargetArn": arn, "maxReceiveCount": spec.max_receives})
        attributes = kind | {"RedrivePolicy": policy}
        sqs.create_queue(QueueName=f"{PREFIX}{spec.name}{suffix}", Attributes=attributes)
    return Stack(endpoint, environment)
