"""`tensafe adapters` on a deployment of AWS, on moto: each side's stores, by each side's role.

The profiles are as docs/helora.md has them, so that every request tells which role made it. No emulator here
enforces IAM: what each role called is held to its policy and to the keys'.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
import pytest
from typer.testing import CliRunner

from tensafe.cli.app import app
from tensafe.local import publishing
from tensafe.local.holder_command import on_aws
from tensafe.operations.checkpoints import Checkpoint, CheckpointKind
from tensafe.operations.records import OpKind, StreamKind
from tensafe.operations.submissions import Submission
from tensafe.packages.bundle import pack_files
from tensafe.services import Services
from tensafe.vault.scope import stream_scope
from tests.support.aws_stack import Stack, make_stack
from tests.support.certificates import Authority
from tests.support.cloud import MODEL
from tests.support.helora import peft_files
from tests.support.holder_stack import make_holder
from tests.support.key_policies import permits
from tests.support.operator_calls import allowed, may_use
from tests.support.wire_calls import KeyUse, WireCalls, recording_moto

pytestmark = pytest.mark.slow

RUN, OTHER, PREFERRED = "s-1:train:0", "s-2:train:0", "s-3:train:0"
SERVICE, HOLDER, TASK = "PublisherRole", "HolderPublisherRole", "AdapterHolderRole"
NOT_CALLED = {
    ("s3:ListBucket", "BlobBucket"): "without it S3 answers 403 for what is not there",
    (
        "lambda:GetFunctionConfiguration",
        "ApiFunction",
    ): "the variables of the command, as docs/aws.md reads them",
}


def path_of(run: str) -> str:
    return f"tinker://{run}/sampler_weights/mine"


@dataclass(frozen=True)
class Place:
    """A deployment, its adapter holder's store, and who calls what of either."""

    stack: Stack
    holder: dict[str, str]
    services: Services
    wire: WireCalls

    def forbidden(self, role: str) -> list[KeyUse]:
        """Uses of keys that their policies do not let the role make."""
        keys = {
            self.stack.environment["TENSAFE_KMS_KEY_ID"]: "DataKey",
            self.holder["TENSAFE_KMS_KEY_ID"]: "AdapterKey",
        }
        return [
            use
            for use in self.wire.of(role).uses
            if not permits(keys[use.key], role, use.action, use.context)
        ]


@pytest.fixture(scope="module")
def place() -> Iterator[Place]:
    with recording_moto() as wire:
        stack = make_stack(wire.endpoint)
        with stack.services() as services:
            services.api_keys.create("acme", ["train"])
            for run in (RUN, OTHER, PREFERRED):
                save(services, run)
            yield Place(stack, make_holder(stack), services, wire)


def save(services: Services, run: str) -> None:
    """A run of tenant acme with sampler weights."""
    record, creation = services.streams.creation(run, "acme", StreamKind.RUN, str(MODEL["name"]))
    services.submissions.create(record, creation, Submission(0, OpKind.CREATE, b"{}" * 50_000))
    ref = services.artifacts.write(record.scope, "ckpt/sampler_weights/mine", pack_files(peft_files(32, 4)))
    checkpoint = Checkpoint(
        run_id=run, tenant="acme", kind=CheckpointKind.SAMPLER, name="mine",
        base_model=str(MODEL["name"]), created_ms=1, ref=ref, artifact_id=f"art-{run[:3]}",
    )  # fmt: skip
    services.ports.items.write(services.checkpoints.saving(checkpoint, overwrite=False))


@pytest.fixture
def tensafe(place: Place, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Any]:
    """`tensafe("list")`: the JSON that `tensafe adapters list` prints; with `fails` its standard error."""
    monkeypatch.delenv("TENSAFE_DATA_DIR", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(publishing, "_MEMORY", tmp_path)
    for name, value in place.stack.environment.items():
        monkeypatch.setenv(name, value)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setattr(boto3, "DEFAULT_SESSION", None)  # it has the credentials of whoever made it
    config = tmp_path / "config"
    config.write_text(
        "[profile me]\naws_access_key_id = person\naws_secret_access_key = secret\n"
        + "".join(
            f"[profile {role}]\nrole_arn = arn:aws:iam::123456789012:role/{role}\nsource_profile = me\n"
            for role in (SERVICE, HOLDER, TASK)
        )
    )
    monkeypatch.setenv("AWS_CONFIG_FILE", str(config))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_PROFILE", SERVICE)

    def command(*arguments: str, fails: bool = False) -> Any:
        result = CliRunner().invoke(app, ["adapters", *arguments, "--json"])
        assert bool(result.exit_code) is fails, (result.stdout, result.stderr)
        return result.stderr if fails else json.loads(result.stdout)

    return command


def publish(path: str, *more: str, holder_tenant: str = "sampler") -> tuple[str, ...]:
    return (
        *("publish", path, "--private", "--yes", "--holder", "tcp:adapter-holder.tensafe.internal:7443"),
        *("--holder-tenant", holder_tenant, "--tokens-per-site", "100", *more),
    )


def test_an_adapter_from_its_publication_to_its_end(
    place: Place, tensafe: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    services, wire, path = place.services, place.wire, path_of(RUN)
    assert "TENSAFE_HOLDER_TABLE" in tensafe(*publish(path), fails=True)
    for name in ("TABLE", "BUCKET", "KMS_KEY_ID"):
        monkeypatch.setenv(f"TENSAFE_HOLDER_{name}", place.holder[f"TENSAFE_{name}"])
    assert "not set: TENSAFE_HOLDER_PROFILE" in tensafe(*publish(path), fails=True)
    monkeypatch.setenv("TENSAFE_HOLDER_PROFILE", HOLDER)
    wire.forget()
    files = Authority(tmp_path).issue("sampler")
    pems = {"cert": files.certificate, "key": files.key, "ca": files.authority}
    assert tensafe("certificate", *(one for n, f in pems.items() for one in (f"--{n}", str(f)))) == {
        "kept": True
    }
    assert on_aws()("tls", *(one for n, f in pems.items() for one in (f"--tls-{n}", str(f)))) == {
        "kept": True
    }
    refused = tensafe(*publish(path, holder_tenant="another"), fails=True)
    assert "are sampler by their certificate" in refused
    published = tensafe(*publish(path, "--keep-run"))
    assert (published["adapter"], published["version"]) == ("art-s-1", 1)
    assert "a trained adapter of rank" in published["extraction"]
    assert services.checkpoints.peek(RUN, CheckpointKind.SAMPLER, "mine") is None
    assert services.placements.find(RUN, "mine").address.startswith("tcp:adapter-holder.")
    assert [one["path"] for one in tensafe("list")] == [path]
    assert tensafe("show", path)["policy"] == "HE_REQUIRED"
    assert tensafe("move", path, "--holder", "tcp:other.internal:7443")["digest"] == published["digest"]
    preferred = ("--policy", "HE_PREFERRED", "--keep-plaintext")
    kept = tensafe(*publish(path_of(PREFERRED), *preferred))["digest"]
    assert tensafe("show", path_of(PREFERRED))["kept_in_the_clear"] == kept
    tensafe("revoke", path_of(PREFERRED), "--yes")
    tensafe(*publish(OTHER))
    assert services.ports.items.get(stream_scope("acme", OTHER).key_item) is None
    with monkeypatch.context() as patch:
        patch.setenv("TENSAFE_HOLDER_PROFILE", TASK)
        assert tensafe("rotate", path)["epoch"] == 2
        on_aws()("rotate", "--name", "art-s-1")
    assert "--rotated" in tensafe("rotate", path, fails=True)
    assert tensafe("rotate", path, "--rotated")["epoch"] == 3
    assert tensafe("revoke", path, "--yes") == {"path": path, "revoked": True, "erased": True}
    assert [one["path"] for one in tensafe("list")] == [path_of(OTHER)]
    key = {"pk": {"S": "private/art-s-1/1"}, "sk": {"S": "key"}}
    table = place.holder["TENSAFE_TABLE"]
    assert "Item" not in place.stack.client("dynamodb").get_item(TableName=table, Key=key)

    # Each side by its own role, nobody by their own name; and neither role has a right more than that.
    assert wire.callers() - {"testing"} == {"person", SERVICE, HOLDER, TASK}
    assert wire.of("person").calls == {("sts:AssumeRole", "")}
    for role, policy in ((SERVICE, "PublisherPolicy"), (HOLDER, "HolderPublisherPolicy")):
        called, may = wire.of(role).calls, allowed(policy)
        assert called - may == set(), role
        assert may - called - set(NOT_CALLED) == set(), role
        assert place.forbidden(role) == [], role
    assert wire.of(TASK).calls - allowed("AdapterHolderPolicy") == set()
    assert place.forbidden(TASK) == []
    used = {role: {(use.key, use.action) for use in wire.of(role).uses} for role in (SERVICE, HOLDER)}
    data, adapter = place.stack.environment["TENSAFE_KMS_KEY_ID"], place.holder["TENSAFE_KMS_KEY_ID"]
    assert used == {
        SERVICE: {(data, "kms:Decrypt"), (data, "kms:GenerateDataKey")},
        HOLDER: {(adapter, "kms:GenerateDataKey")},
    }
    assert HOLDER not in may_use("AdapterKey", "kms:Decrypt")


def test_a_publisher_that_unwraps_at_the_adapter_holder_is_seen(
    place: Place, tensafe: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A rotation opens what is sealed, so it is the task's: the publisher's role lacks that."""
    for name in ("TABLE", "BUCKET", "KMS_KEY_ID"):
        monkeypatch.setenv(f"TENSAFE_HOLDER_{name}", place.holder[f"TENSAFE_{name}"])
    monkeypatch.setenv("TENSAFE_HOLDER_PROFILE", HOLDER)
    place.wire.forget()
    assert tensafe("rotate", path_of(OTHER))["epoch"] == 2
    assert {use.action for use in place.forbidden(HOLDER)} == {"kms:Decrypt"}
    assert ("s3:GetObject", "AdapterBucket") in place.wire.of(HOLDER).calls - allowed("HolderPublisherPolicy")
