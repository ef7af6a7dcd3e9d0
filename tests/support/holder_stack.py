"""What the template makes for an adapter holder, made on an emulator: its own table, bucket and key."""

from __future__ import annotations

from typing import Any

from tests.support.aws_stack import Stack

TABLE, BUCKET = "tensafe-adapters", "tensafe-adapter-blobs"


def make_holder(stack: Stack) -> dict[str, str]:
    """Make them beside the service's; the variables of the adapter holder's task."""
    stack.client("dynamodb").create_table(
        TableName=TABLE,
        KeySchema=[{"AttributeName": "pk", "KeyType": "HASH"}, {"AttributeName": "sk", "KeyType": "RANGE"}],
        AttributeDefinitions=[{"AttributeName": name, "AttributeType": "S"} for name in ("pk", "sk")],
        BillingMode="PAY_PER_REQUEST",
    )
    location: Any = {"LocationConstraint": "eu-central-1"}
    stack.client("s3").create_bucket(Bucket=BUCKET, CreateBucketConfiguration=location)
    return {
        "TENSAFE_ENVIRONMENT": "production",
        "TENSAFE_TABLE": TABLE,
        "TENSAFE_BUCKET": BUCKET,
        "TENSAFE_KMS_KEY_ID": stack.client("kms").create_key()["KeyMetadata"]["Arn"],
        **{name: value for name, value in stack.environment.items() if name.startswith("AWS_")},
    }
