"""`tensafe adapters` on a deployment of AWS: the service's stores and the adapter holder's, on moto."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from tensafe.cli.app import app
from tensafe.local import publishing
from tensafe.operations.checkpoints import Checkpoint, CheckpointKind
from tensafe.operations.records import OpKind, StreamKind
from tensafe.operations.submissions import Submission
from tensafe.packages.bundle import pack_files
from tensafe.services import Services
from tests.support.aws_stack import Stack, make_stack
from tests.support.cloud import MODEL
from tests.support.helora import peft_files
from tests.support.holder_stack import make_holder
from tests.support.moto_process import moto_process

pytestmark = pytest.mark.slow

RUN = "s-1:train:0"
PATH = f"tinker://{RUN}/sampler_weights/mine"


@pytest.fixture(scope="module")
def stack() -> Iterator[Stack]:
    with moto_process() as endpoint:
        yield make_stack(endpoint)


@pytest.fixture(scope="module")
def services(stack: Stack) -> Iterator[Services]:
    """With sampler weights of tenant acme."""
    with stack.services() as services:
        services.api_keys.create("acme", ["train"])
        record, creation = services.streams.creation(RUN, "acme", StreamKind.RUN, str(MODEL["name"]))
        services.submissions.create(record, creation, Submission(0, OpKind.CREATE, b"{}"))
        ref = services.artifacts.write(
            record.scope, "ckpt/sampler_weights/mine", pack_files(peft_files(32, 4))
        )
        checkpoint = Checkpoint(
            run_id=RUN, tenant="acme", kind=CheckpointKind.SAMPLER, name="mine",
            base_model=str(MODEL["name"]), created_ms=1, ref=ref, artifact_id="art-on-aws",
        )  # fmt: skip
        services.ports.items.write(services.checkpoints.saving(checkpoint, overwrite=False))
        yield services


@pytest.fixture
def tensafe(stack: Stack, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Any]:
    """`tensafe("list")`: the JSON that `tensafe adapters list` prints; with `fails` its standard error."""
    monkeypatch.delenv("TENSAFE_DATA_DIR", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(publishing, "_MEMORY", tmp_path)
    for name, value in stack.environment.items():
        monkeypatch.setenv(name, value)

    def command(*arguments: str, fails: bool = False) -> Any:
        result = CliRunner().invoke(app, ["adapters", *arguments, "--json"])
        assert bool(result.exit_code) is fails, (result.stdout, result.stderr)
        return result.stderr if fails else json.loads(result.stdout)

    return command


def test_an_adapter_from_its_publication_to_its_end(
    stack: Stack, services: Services, tensafe: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    publish = (
        *("publish", PATH, "--private", "--yes", "--holder", "tcp:adapter-holder.tensafe.internal:7443"),
        *("--tokens-per-site", "100"),
    )
    assert "TENSAFE_HOLDER_TABLE" in tensafe(*publish, fails=True)
    made = make_holder(stack)
    for name in ("TABLE", "BUCKET", "KMS_KEY_ID"):
        monkeypatch.setenv(f"TENSAFE_HOLDER_{name}", made[f"TENSAFE_{name}"])
    published = tensafe(*publish)
    assert (published["adapter"], published["version"]) == ("art-on-aws", 1)
    assert "a trained adapter of rank" in published["extraction"]
    assert services.checkpoints.peek(RUN, CheckpointKind.SAMPLER, "mine") is None
    assert services.placements.find(RUN, "mine").address.startswith("tcp:adapter-holder.")
    assert [one["path"] for one in tensafe("list")] == [PATH]
    assert tensafe("show", PATH)["policy"] == "HE_REQUIRED"
    assert tensafe("rotate", PATH)["epoch"] == 2
    assert tensafe("revoke", PATH, "--yes") == {"path": PATH, "revoked": True, "erased": True}
    assert tensafe("list") == []
    key = {"pk": {"S": "private/art-on-aws/1"}, "sk": {"S": "key"}}
    assert "Item" not in stack.client("dynamodb").get_item(TableName=made["TENSAFE_TABLE"], Key=key)
