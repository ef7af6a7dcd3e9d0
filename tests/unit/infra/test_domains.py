"""Neither trust domain reaches into the other by the templates, and keys go with what they encrypt."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.support.template_access import key_statement, policy_statement, properties
from tests.support.template_domains import domains_crossed, keys_apart
from tests.support.templates import CORE, TASKS, Template, read_template

CROSSED: dict[str, Callable[[Template, Template], object]] = {
    "a sampler that reads private adapters": lambda core, tasks: policy_statement(
        core, "SamplerPolicy"
    ).update(Resource=[{"Fn::GetAtt": ["ItemsTable", "Arn"]}, {"Fn::GetAtt": ["AdapterTable", "Arn"]}]),
    "an API that reads their bucket": lambda core, tasks: policy_statement(core, "ApiPolicy", 1).update(
        Resource={"Fn::Sub": "${AdapterBucket.Arn}/*"}
    ),
    "an adapter holder that reads the service's items": lambda core, tasks: policy_statement(
        core, "AdapterHolderPolicy"
    ).update(Resource={"Fn::GetAtt": ["ItemsTable", "Arn"]}),
    "a sampler that unwraps adapters": lambda core, tasks: key_statement(
        core, "AdapterKey", "UnwrapDataKeysOfAdapters"
    )["Principal"]["AWS"].append({"Fn::GetAtt": ["SamplerRole", "Arn"]}),
    "an adapter holder that unwraps runs": lambda core, tasks: key_statement(
        core, "DataKey", "UnwrapDataKeysOfATenant"
    )["Principal"]["AWS"].append({"Fn::GetAtt": ["AdapterHolderRole", "Arn"]}),
    "an adapter holder that signs": lambda core, tasks: key_statement(core, "SigningKey", "SignDigests")[
        "Principal"
    ]["AWS"].append({"Fn::GetAtt": ["AdapterHolderRole", "Arn"]}),
    "a publisher that unwraps adapters": lambda core, tasks: key_statement(
        core, "AdapterKey", "UnwrapDataKeysOfAdapters"
    )["Principal"]["AWS"].append({"Fn::GetAtt": ["HolderPublisherRole", "Arn"]}),
    "a publisher at the service that wraps for the adapter holder": lambda core, tasks: key_statement(
        core, "AdapterKey", "WrapDataKeysOfAdapters"
    )["Principal"]["AWS"].append({"Fn::GetAtt": ["PublisherRole", "Arn"]}),
    "a publisher at the adapter holder that opens runs": lambda core, tasks: key_statement(
        core, "DataKey", "UnwrapDataKeysOfRunsToPublish"
    )["Principal"]["AWS"].append({"Fn::GetAtt": ["HolderPublisherRole", "Arn"]}),
    "one role for both sides of a publication": lambda core, tasks: properties(core, "HolderPublisherPolicy")[
        "Roles"
    ].append({"Ref": "PublisherRole"}),
    "a publisher who is a person to a key": lambda core, tasks: key_statement(
        core, "DataKey", "UnwrapDataKeysOfRunsToPublish"
    )["Principal"]["AWS"].append({"Ref": "PublisherArn"}),
    "an adapter holder that is told the service's table": lambda core, tasks: core["Resources"]["Tasks"][
        "Properties"
    ]["Parameters"].update(AdapterTable={"Ref": "ItemsTable"}),
    "a sampler that is told the adapter holder's key": lambda core, tasks: properties(tasks, "SamplerTask")[
        "ContainerDefinitions"
    ][0]["Environment"].append({"Name": "TENSAFE_KMS_KEY_ID", "Value": {"Ref": "AdapterKeyArn"}}),
}


def test_neither_trust_domain_reaches_into_the_other() -> None:
    assert domains_crossed(read_template(CORE), read_template(TASKS)) == []


@pytest.mark.parametrize("name", CROSSED)
def test_a_planted_crossing_is_seen(name: str) -> None:
    core, tasks = read_template(CORE), read_template(TASKS)
    CROSSED[name](core, tasks)
    assert domains_crossed(core, tasks) != []


APART: dict[str, Callable[[Template], object]] = {
    "a publisher that reads objects without their key": lambda core: key_statement(
        core, "DataKey", "ObjectsToPublishThroughS3"
    )["Action"].remove("kms:Decrypt"),
    "a publisher that writes objects without their key": lambda core: key_statement(
        core, "DataKey", "ObjectsToPublishThroughS3"
    )["Action"].remove("kms:GenerateDataKey"),
    "a publisher that may use the key for objects and writes none": lambda core: policy_statement(
        core, "PublisherPolicy", 1
    )["Action"].remove("s3:PutObject"),
    "a role that writes objects and may not": lambda core: policy_statement(core, "HolderPublisherPolicy", 1)[
        "Action"
    ].append("s3:GetObject"),
    "a role that cannot read its table": lambda core: key_statement(
        core, "StorageKey", "TablesThroughDynamoDB"
    )["Principal"]["AWS"].pop(),
}


def test_a_bucket_or_table_comes_with_its_key() -> None:
    assert keys_apart(read_template(CORE)) == []


@pytest.mark.parametrize("name", APART)
def test_a_key_that_does_not_fit_is_seen(name: str) -> None:
    core = read_template(CORE)
    APART[name](core)
    assert keys_apart(core) != []
