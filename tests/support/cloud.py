"""The environment that the template gives to functions and tasks."""

from __future__ import annotations

import json

MODEL = {
    "name": "acme/tiny",
    "path": "/models/tiny",
    "arch": "x",
    "vocab_size": 512,
    "max_context_tokens": 128,
}
KEY_ARN = "arn:aws:kms:eu-central-1:123456789012:key/11111111-2222-3333-4444-555555555555"


def cloud_environment(**changed: str | None) -> dict[str, str]:
    """All variables, some of them changed; None leaves one out."""
    values: dict[str, str | None] = {
        "TENSAFE_ENVIRONMENT": "production",
        "TENSAFE_TABLE": "tensafe-items",
        "TENSAFE_ANCHOR_TABLE": "tensafe-anchors",
        "TENSAFE_BUCKET": "tensafe-blobs",
        "TENSAFE_KMS_KEY_ID": KEY_ARN,
        "TENSAFE_SIGNING_KEY_ID": "22222222-3333-4444-5555-666666666666",
        "TENSAFE_QUEUE_PREFIX": "ts-",
        "TENSAFE_MODELS": json.dumps([MODEL]),
        "TENSAFE_BASE_URL": "https://tensafe.example",
        "TENSAFE_OIDC_ISSUER": "",
        "TENSAFE_OIDC_AUDIENCE": "",
        "TENSAFE_OIDC_TENANT_CLAIM": "tenant",
        "TENSAFE_SERVICE_NAME": "tensafe",
        "TENSAFE_DEVICE": "cpu",
        "AWS_DEFAULT_REGION": "eu-central-1",
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_EC2_METADATA_DISABLED": "true",
        **changed,
    }
    return {name: value for name, value in values.items() if value is not None}
