"""What the buckets of the templates keep from everybody: the public, plain HTTP, another key."""

from __future__ import annotations

from typing import Any, Final

from tests.support.templates import Template, listed, referred, resources


def public_buckets(template: Template) -> list[str]:
    """Buckets that are not closed to the public, not versioned, or without their policy's two refusals."""
    wrong = []
    policies = {
        referred(properties["Bucket"]): properties["PolicyDocument"]["Statement"]
        for properties in resources(template, "AWS::S3::BucketPolicy").values()
    }
    for name, properties in resources(template, "AWS::S3::Bucket").items():
        blocked = properties.get("PublicAccessBlockConfiguration", {})
        if [blocked.get(key) for key in _BLOCKS] != [True] * 4:
            wrong.append(f"{name}: public access is not blocked")
        if properties.get("VersioningConfiguration") != {"Status": "Enabled"}:
            wrong.append(f"{name}: not versioned")
        statements = policies.get(name, [])
        wrong += [f"{name}: allows {one['Sid']}" for one in statements if one["Effect"] != "Deny"]
        refusals = [{**one, "Resource": listed(one["Resource"])} for one in statements]
        arn, objects = {"Fn::GetAtt": [name, "Arn"]}, {"Fn::Sub": f"${{{name}.Arn}}/*"}
        if _refusal("TlsOnly", "s3:*", [arn, objects], _WITHOUT_TLS) not in refusals:
            wrong.append(f"{name}: takes requests without TLS")
        (rule,) = properties["BucketEncryption"]["ServerSideEncryptionConfiguration"]
        key = rule["ServerSideEncryptionByDefault"]["KMSMasterKeyID"]
        if (
            _refusal("OurKeyOnly", "s3:PutObject", [objects], {"StringNotEquals": {_KEY: key}})
            not in refusals
        ):
            wrong.append(f"{name}: takes objects under another key")
    return wrong


def _refusal(sid: str, action: str, targets: list[Any], condition: Template) -> Template:
    """A statement by which nobody may do this."""
    return {
        "Sid": sid,
        "Effect": "Deny",
        "Principal": "*",
        "Action": action,
        "Resource": targets,
        "Condition": condition,
    }


_WITHOUT_TLS: Final = {"Bool": {"aws:SecureTransport": "false"}}
_KEY: Final = "s3:x-amz-server-side-encryption-aws-kms-key-id"
_BLOCKS: Final = ("BlockPublicAcls", "BlockPublicPolicy", "IgnorePublicAcls", "RestrictPublicBuckets")
