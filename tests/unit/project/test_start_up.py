"""What must not be loaded before it is needed: each costs every cold start its seconds."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tests.project_files import ROOT, imports
from tests.support.cloud import cloud_environment
from tests.support.lambda_runtime import http_event

AWS = ("boto3", "botocore")
ENCRYPTION_SDK = (
    "aws_encryption_sdk",
    "aws_cryptographic_material_providers",
    "smithy_dafny_standard_library",
)
AWS_ADAPTERS = (
    "tensafe.storage.aws_clients",
    "tensafe.storage.dynamodb_anchors",
    "tensafe.storage.dynamodb_items",
    "tensafe.storage.kms_ring",
    "tensafe.storage.kms_signer",
    "tensafe.storage.s3_blobs",
    "tensafe.storage.sqs_queues",
    "tensafe.storage.sqs_urls",
    "tensafe.tracing.xray_calls",
)
OPEN_THEM = {
    "tensafe.cloud.callers",
    "tensafe.cloud.composition",
    "tensafe.tracing.xray",
    "tensafe_gpu.adapter_holder.composition",
}


def loaded_by(*modules: str) -> set[str]:
    """The top-level packages in memory after a fresh interpreter has imported these modules."""
    program = "import importlib, json, sys\nfor name in sys.argv[1:]: importlib.import_module(name)\n"
    program += "print(json.dumps(sorted({name.split('.')[0] for name in sys.modules})))"
    done = subprocess.run(
        [sys.executable, "-c", program, *modules], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return set(json.loads(done.stdout))


@pytest.mark.parametrize(
    "modules",
    [("tensafe.api.server", "tensafe.api.app"), ("tensafe.local.composition", "tensafe.cli")],
    ids=["api", "embedded"],
)
def test_neither_aws_nor_the_encryption_sdk_is_loaded(modules: tuple[str, ...]) -> None:
    assert not loaded_by(*modules) & {*AWS, *ENCRYPTION_SDK}


def test_the_aws_adapters_load_the_encryption_sdk_with_the_first_key_alone() -> None:
    """The start-up path of the API function: the API over these adapters."""
    loaded = loaded_by("tensafe.api.app", *AWS_ADAPTERS)
    assert set(AWS) <= loaded
    assert not loaded & set(ENCRYPTION_SDK)


@pytest.mark.parametrize("name", ["api", "dead_letters", "sweeper"])
def test_a_function_loads_neither_the_encryption_sdk_nor_an_accountant(name: str) -> None:
    loaded = loaded_by(f"tensafe.lambdas.{name}")
    assert set(AWS) <= loaded
    assert not loaded & {*ENCRYPTION_SDK, "scipy", "dp_accounting", "uvicorn"}


STARTED = """
import json, os, sys
os.environ["AWS_LAMBDA_RUNTIME_API"] = "127.0.0.1:1"
before = set(sys.modules)
from tensafe.lambdas.api import handler
events = json.load(sys.stdin)
answers = [handler(event, None)["statusCode"] for event in events]
names = set(sys.modules) - before
print(json.dumps([answers, sorted(names)]))
"""
NOT_AT_THE_START = {
    "aws_xray_sdk",
    "numpy",
    "google",
    "zstandard",
    "pydantic_settings",
    "pyrage",
    "joserfc",
    "tensafe_gpu",
}
ROUTES = "tensafe.api.tinker.", "tensafe.api.native.", "tensafe.api.openai."


def started(*paths: str) -> tuple[list[int], set[str]]:
    """The API function in a fresh interpreter, as Lambda starts it: its answers to GET requests without a
    credential, and every module that it has imported by then."""
    events = [http_event("GET", f"https://tensafe.example{path}") for path in paths]
    done = subprocess.run(
        [sys.executable, "-I", "-c", STARTED],
        env=cloud_environment(),
        input=json.dumps(events),
        capture_output=True,
        text=True,
        check=True,
    )
    statuses, names = json.loads(done.stdout)
    return statuses, set(names)


def packages(names: set[str]) -> set[str]:
    return {name.split(".")[0] for name in names}


def routes_of(names: set[str]) -> set[str]:
    return {name for name in names if name.startswith(ROUTES)}


def test_the_api_function_starts_without_a_face_and_without_numpy() -> None:
    """Whoever adds an import to the start sees it here, on whatever machine; the built package is held to
    more (tests/integration/lambdas)."""
    _, names = started()
    assert not packages(names) & NOT_AT_THE_START
    assert routes_of(names) == set()
    assert {name for name in names if name.startswith("tensafe.privacy.")} == {"tensafe.privacy.rooms"}
    assert not names & {"tensafe.contracts.training", "tensafe.contracts.sampling", "pydantic.v1"}


def test_a_request_loads_the_routes_of_its_path_alone() -> None:
    (healthz, unknown, stranger), names = started(
        "/healthz", "/v1/nothing", "/api/v1/get_server_capabilities"
    )
    assert (healthz, unknown, stranger) == (200, 404, 401)
    assert {name.rpartition(".")[2] for name in routes_of(names)} == {
        "health",
        "sessions",
        "bodies",
        "prefix",
    }
    assert not packages(names) & NOT_AT_THE_START


def test_only_the_aws_adapters_import_boto3() -> None:
    users = {one.importer for one in imports() if one.target.split(".")[0] in AWS}
    assert users == set(AWS_ADAPTERS) - {"tensafe.storage.sqs_urls"}
    openers = {one.importer for one in imports() if one.target.startswith(AWS_ADAPTERS)} - set(AWS_ADAPTERS)
    assert openers == OPEN_THEM
