"""Weights that are saved under the path of a private adapter: neither lost nor answered for by it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tensafe.contracts.errors import Conflict
from tensafe.contracts.execution import ExecutionPolicy
from tensafe.local.admin import find_checkpoint
from tensafe.local.holder_command import in_directory
from tensafe.local.publishing import publish as published
from tensafe.local.publishing_terms import Publishing
from tensafe.operations.checkpoints import Checkpoint, CheckpointKind
from tensafe.packages.bundle import pack_files
from tensafe.services import Services
from tensafe.storage.ports import Check, ConditionFailed, Write
from tensafe_gpu.adapter_holder.composition import initialise as initialise_holder
from tests.integration.adapter_holder.test_adapters_command import (
    AT,
    BASE,
    RUN,
    Tensafe,
    path,
    publish,
    services,
    tensafe,
)
from tests.support.helora import peft_files

__all__ = ["services", "tensafe"]
pytestmark = pytest.mark.slow


@pytest.fixture
def holder(tmp_path: Path) -> Path:
    initialise_holder(tmp_path / "holder")
    return tmp_path / "holder"


def anew(services: Services, name: str = "mine", artifact_id: str = "art-anew") -> list[Write]:
    """Writes that save other weights under the name."""
    run = services.streams.find(RUN)
    assert run is not None
    ref = services.artifacts.write(
        run.scope, f"ckpt/sampler_weights/{name}", pack_files(peft_files(64, 8, leaves=("o",), seed=2))
    )
    checkpoint = Checkpoint(
        run_id=RUN, tenant="acme", kind=CheckpointKind.SAMPLER, name=name, base_model=BASE.name,
        created_ms=50, ref=ref, artifact_id=artifact_id,
    )  # fmt: skip
    return services.checkpoints.saving(checkpoint, overwrite=True)


def saved_anew_by_an_older_release(services: Services) -> None:
    placement = services.placements.find(RUN, "mine")
    services.placements.remove(placement)
    services.ports.items.write(anew(services))
    services.placements.add(placement)


def test_nothing_is_saved_under_the_path_of_a_private_adapter(
    tensafe: Tensafe, services: Services, holder: Path
) -> None:
    """Whoever sampled from it would have the published weights' answers, whatever was saved."""
    before = anew(services)
    publish(tensafe, holder, "mine", "--keep-run")
    with pytest.raises(Conflict, match="save under another name") as refused:
        anew(services)
    assert refused.value.field == "path"
    with pytest.raises(ConditionFailed):  # nor by whoever had looked before
        services.ports.items.write([one for one in before if isinstance(one, Check)])
    services.ports.items.write(anew(services, "more", "art-more"))
    tensafe("revoke", path("mine"), "--yes")
    services.ports.items.write(anew(services))  # once it has ended


def test_what_is_saved_while_it_is_published_is_not_erased_unpublished(
    services: Services, holder: Path
) -> None:
    """What is there of the former is taken back, since its path is the new one's."""
    command, said = in_directory(holder), dict[str, Any]()

    def meanwhile(name: str, *more: str) -> dict[str, Any]:
        told = command(name, *more)
        if name == "publish" and not said:
            said.update(told)
            services.ports.items.write(anew(services))
        return told

    wanted = Publishing(meanwhile, AT, "sampler", 100, ExecutionPolicy.HE_REQUIRED, keep_run=True)
    with pytest.raises(Conflict, match="publish what is there now"):
        published(services, path("mine"), wanted)
    assert find_checkpoint(services, path("mine")).artifact_id == "art-anew"
    assert services.placements.peek(RUN, "mine") is None
    assert command("show", "--name", said["name"], "--version", "1")["status"] == "revoked"
    placement, _ = published(services, path("mine"), wanted)
    assert placement.adapter == "art-anew"


@pytest.mark.parametrize("then", ["saved anew", "nothing"])
def test_what_is_deleted_while_it_is_published_is_taken_back(
    services: Services, holder: Path, then: str
) -> None:
    """A name that is saved anew after it was deleted begins at its first version again."""
    command = in_directory(holder)

    def meanwhile(name: str, *more: str) -> dict[str, Any]:
        told = command(name, *more)
        if name == "publish":
            services.checkpoints.delete(find_checkpoint(services, path("mine")))
            if then == "saved anew":
                services.ports.items.write(anew(services))
        return told

    wanted = Publishing(meanwhile, AT, "sampler", 100, ExecutionPolicy.HE_REQUIRED, keep_run=True)
    with pytest.raises(Conflict, match="publish what is there now"):
        published(services, path("mine"), wanted)
    assert services.placements.peek(RUN, "mine") is None
    (one,) = command("list")["adapters"]
    assert one["status"] == "revoked"


def test_a_note_on_its_weights_while_it_is_published_ends_nothing(services: Services, holder: Path) -> None:
    """A life time that is set changes the record, and not what it stands for."""
    command = in_directory(holder)

    def meanwhile(name: str, *more: str) -> dict[str, Any]:
        told = command(name, *more)
        if name == "publish":
            services.checkpoints.set_ttl(find_checkpoint(services, path("mine")), 3600)
        return told

    wanted = Publishing(meanwhile, AT, "sampler", 100, ExecutionPolicy.HE_REQUIRED, keep_run=True)
    placement, _ = published(services, path("mine"), wanted)
    assert placement.adapter == "art-mine"
    assert services.checkpoints.peek(RUN, CheckpointKind.SAMPLER, "mine") is None


def test_what_an_older_release_let_be_saved_is_neither_published_as_it_nor_erased(
    tensafe: Tensafe, services: Services, holder: Path
) -> None:
    publish(tensafe, holder, "mine", "--keep-run")
    saved_anew_by_an_older_release(services)
    for weights in ("mine", RUN):
        assert "save them under another name" in publish(tensafe, holder, weights, code=1)
    run = services.streams.find(RUN)
    assert run is not None
    assert run.state.value == "active"
    assert tensafe("revoke", path("mine"), "--yes")["revoked"] is True
    assert find_checkpoint(services, path("mine")).artifact_id == "art-anew"
    assert publish(tensafe, holder, "mine", "--keep-run")["adapter"] == "art-anew"


def test_a_publication_that_was_cut_short_before_it_erased_ends_by_erasing_its_own(
    tensafe: Tensafe, services: Services, holder: Path
) -> None:
    first = publish(tensafe, holder, "mine", "--keep-run")
    placement = services.placements.find(RUN, "mine")
    services.placements.remove(placement)
    run = services.streams.find(RUN)
    assert run is not None
    ref = services.artifacts.write(
        run.scope, "ckpt/sampler_weights/mine", pack_files(peft_files(64, 8, leaves=("o",)))
    )
    checkpoint = Checkpoint(
        run_id=RUN, tenant="acme", kind=CheckpointKind.SAMPLER, name="mine", base_model=BASE.name,
        created_ms=1, ref=ref, artifact_id="art-mine",
    )  # fmt: skip
    services.ports.items.write(services.checkpoints.saving(replace(checkpoint), overwrite=True))
    services.placements.add(placement)
    assert publish(tensafe, holder, "mine", "--keep-run")["digest"] == first["digest"]
    assert services.checkpoints.peek(RUN, CheckpointKind.SAMPLER, "mine") is None
