"""A download link is good for its file, its tenant and its time, until the run is erased."""

from __future__ import annotations

import time
from urllib.parse import parse_qs, urlsplit

import pytest

from tensafe.api import signed_urls
from tensafe.contracts.errors import NotFound
from tensafe.operations.checkpoints import Checkpoint, CheckpointKind
from tensafe.packages.bundle import pack_files
from tensafe.services import Services
from tests.unit.operations.world import World

FILES = {"adapter_config.json": b"{}", "adapter_model.safetensors": b"weights"}


@pytest.fixture
def export(world: World) -> Checkpoint:
    return exported(world, "export", CheckpointKind.EXTERNAL)


def exported(world: World, name: str, kind: CheckpointKind) -> Checkpoint:
    run = world.services.streams.find("s-1:train:0") or world.run()
    checkpoint = Checkpoint(
        run_id=run.stream_id,
        tenant=run.tenant,
        kind=kind,
        name=name,
        base_model=run.base_model,
        created_ms=world.now_ms,
        ref=world.services.artifacts.write(run.scope, f"ckpt/{kind.value}/{name}", pack_files(FILES)),
        artifact_id=f"art-{name}",
    )
    world.items.write(world.services.checkpoints.saving(checkpoint, overwrite=False))
    return checkpoint


def link(services: Services, checkpoint: Checkpoint, file: str, expires_s: int) -> dict[str, str]:
    """The query of a fresh link."""
    url = signed_urls.make(services, "https://edge.example/", checkpoint, file, expires_s)
    parts = urlsplit(url)
    assert (parts.scheme, parts.netloc) == ("https", "edge.example")
    assert parts.path == f"/api/v1/external_files/{checkpoint.artifact_id}/{file}"
    return {name: values[0] for name, values in parse_qs(parts.query).items()}


def follow(services: Services, artifact_id: str, file: str, query: dict[str, str]) -> bytes:
    return signed_urls.open_file(
        services, query["tenant"], artifact_id, file, int(query["expires"]), query["signature"]
    )


def test_it_opens_its_file(services: Services, export: Checkpoint) -> None:
    for file, content in FILES.items():
        query = link(services, export, file, int(time.time()) + 60)
        assert follow(services, export.artifact_id, file, query) == content
    assert signed_urls.file_names(services, export) == sorted(FILES)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("tenant", "globex"),
        ("tenant", "../acme"),
        ("expires", "99999999999"),
        ("signature", ""),
        ("signature", "0" * 64),
        ("signature", "\u00e9"),
    ],
)
def test_nothing_of_it_can_be_changed(services: Services, export: Checkpoint, name: str, value: str) -> None:
    query = link(services, export, "adapter_config.json", int(time.time()) + 60)
    with pytest.raises(NotFound, match="ask for a new one"):
        follow(services, export.artifact_id, "adapter_config.json", {**query, name: value})


def test_it_does_not_open_another_file_or_artifact(
    world: World, services: Services, export: Checkpoint
) -> None:
    query = link(services, export, "adapter_config.json", int(time.time()) + 60)
    other = exported(world, "other", CheckpointKind.EXTERNAL)
    for artifact_id, file in (
        (export.artifact_id, "adapter_model.safetensors"),
        (export.artifact_id, "none"),
        (other.artifact_id, "adapter_config.json"),
        ("art-none", "adapter_config.json"),
        ("\x00", "adapter_config.json"),
    ):
        with pytest.raises(NotFound, match="ask for a new one"):
            follow(services, artifact_id, file, query)


def test_it_expires(services: Services, export: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    query = link(services, export, "adapter_config.json", 2_000_000_000)
    monkeypatch.setattr(time, "time", lambda: 1_999_999_999.9)
    assert follow(services, export.artifact_id, "adapter_config.json", query)
    monkeypatch.setattr(time, "time", lambda: 2_000_000_000.0)
    with pytest.raises(NotFound):
        follow(services, export.artifact_id, "adapter_config.json", query)


def test_only_exports_have_links(world: World, services: Services) -> None:
    state = exported(world, "state", CheckpointKind.TRAINING)
    query = link(services, state, "adapter_config.json", int(time.time()) + 60)
    with pytest.raises(NotFound):
        follow(services, state.artifact_id, "adapter_config.json", query)


def test_erasing_the_run_ends_its_links(services: Services, export: Checkpoint) -> None:
    query = link(services, export, "adapter_config.json", int(time.time()) + 60)
    services.streams.erase(export.run_id, export.tenant)
    with pytest.raises(NotFound):
        follow(services, export.artifact_id, "adapter_config.json", query)
