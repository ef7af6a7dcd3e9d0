"""What the built API function imports before its first answer, which decides how long that takes.

By name and not by time: so it fails on every machine, whoever adds an import, and on none for being busy.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from tests.support.aws_stack import Stack
from tests.support.cloud import cloud_environment
from tests.support.lambda_runtime import http_event

BARE = """
import boto3
from fastapi import FastAPI
from mangum import Mangum
app = FastAPI()
boto3.client("dynamodb")
@app.get("/healthz")
async def healthz() -> dict[str, str]:
    return {"status": "ok"}
handler = Mangum(app, lifespan="off")
"""
OURS = "from tensafe.lambdas.api import handler\n"
ANSWER = """
import json, os, sys
def told():
    specs = {name: getattr(module, "__spec__", None) for name, module in sys.modules.items()}
    sources = {name: spec for name, spec in specs.items() if spec and (spec.origin or "").endswith(".py")}
    return [sorted(specs), [name for name, spec in sources.items() if not os.path.exists(spec.cached)]]
answer = handler(json.loads(sys.argv[1]), None)
assert answer["statusCode"] == 200, answer
print(json.dumps(told()))
"""
READY = """
import json, sys
answer = handler(json.loads(sys.argv[1]), None)
assert json.loads(answer["body"])["checks"]["keys"] == "ok", answer
print(json.dumps([sorted(sys.modules), []]))
"""
LATER = """
import importlib
import boto3
from tensafe.api.faces import Faces
Faces().load()
for name in ("privacy.deals", "privacy.dealt_ledger", "privacy.reading"):
    importlib.import_module(f"tensafe.{name}")
for name in ("aws_encryption_sdk.identifiers", "aws_cryptographic_material_providers.mpl.config"):
    importlib.import_module(name)
importlib.import_module("aws_lambda_powertools.metrics.provider.cloudwatch_emf.cloudwatch")
for service in ("dynamodb", "s3", "sqs", "kms"):
    boto3.client(service)
print(json.dumps(told()))
"""
XRAY = {"AWS_XRAY_DAEMON_ADDRESS": "127.0.0.1:9", "LAMBDA_TASK_ROOT": "/var/task"}
"""As Lambda sets them, so that what tracing imports is counted."""
BESIDE = {
    *("_cffi_backend", "_openssl", "aws_lambda_powertools", "aws_xray_sdk", "cryptography", "tensafe"),
    *("_wrapt", "wrapt"),
}
"""What a bare function does not load: log lines, X-Ray's subsegments, AES of the vault, and ourselves."""


def loaded(
    built: Path, *programs: str, path: str = "/healthz", settings: Mapping[str, str | None] | None = None
) -> list[tuple[set[str], set[str]]]:
    """Modules in memory, and those of them without byte code, after each part that tells."""
    environment = {"PYTHONPATH": str(built / "function"), "AWS_LAMBDA_RUNTIME_API": "127.0.0.1:1", **XRAY}
    merged = {**environment, **(settings or cloud_environment())}
    event = json.dumps(http_event("GET", f"https://tensafe.example{path}"))
    done = subprocess.run(
        [sys.executable, "-S", "-s", "-B", "-c", "".join(programs), event],
        env={name: value for name, value in merged.items() if value is not None},
        capture_output=True,
        text=True,
        check=True,
    )
    return [(set(names), set(slow)) for names, slow in map(json.loads, done.stdout.splitlines())]


def packages(names: set[str]) -> set[str]:
    return {name.split(".")[0] for name in names} - set(sys.stdlib_module_names)


def test_it_loads_what_a_bare_function_loads_and_little_else(built: Path) -> None:
    ((bare, _),) = loaded(built, BARE, ANSWER)
    ((ours, _),) = loaded(built, OURS, ANSWER)
    assert packages(ours) - packages(bare) <= BESIDE
    own = {name for name in ours if name.split(".")[0] == "tensafe"}
    assert {name for name in own if name.startswith("tensafe.privacy.")} == {"tensafe.privacy.rooms"}
    assert {name for name in own if name.startswith(("tensafe.api.native.", "tensafe.api.tinker."))} == {
        "tensafe.api.native.health"
    }
    assert len(own) <= 105
    tracing = {name for name in ours if name.split(".")[0] in ("aws_xray_sdk", "wrapt")}
    assert len(tracing) <= 60
    assert len(ours - own - bare - tracing) <= 85


def test_where_x_ray_is_not_nothing_is_imported_for_it(built: Path) -> None:
    away = {**cloud_environment(), "AWS_XRAY_DAEMON_ADDRESS": None}
    ((names, _),) = loaded(built, OURS, ANSWER, settings=away)
    assert "tensafe.lambdas.subsegments" in names
    assert not packages(names) & {"aws_xray_sdk", "wrapt"}


def test_whatever_it_imports_sooner_or_later_has_its_byte_code(built: Path) -> None:
    (_, at_start), (names, later) = loaded(built, OURS, ANSWER, LATER)
    assert {"numpy", "tensafe.api.openai.completions", "tensafe.privacy.deals", "aws_encryption_sdk"} <= names
    assert (at_start, later) == (set(), set())


def test_whether_the_keys_answer_is_asked_without_the_encryption_sdk(built: Path, stack: Stack) -> None:
    """A cold function would import it for longer than a probe may take, and say that KMS hangs."""
    ((names, _),) = loaded(built, OURS, READY, path="/readyz", settings=stack.environment)
    assert "botocore.client" in names
    assert not {name for name in names if name.startswith(("aws_encryption_sdk", "aws_cryptographic"))}
