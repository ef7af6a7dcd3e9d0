"""Saved artifacts: names, overwriting, expiry, listings, and whose they are."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tensafe.contracts.errors import Conflict, Gone, InvalidRequest, NotFound
from tensafe.operations.checkpoints import UNLISTED, UNUSED_S, CheckpointKind, check_name
from tensafe.storage.ports import ConditionFailed, Key
from tensafe.wire.ids import SamplerId
from tensafe.wire.paths import check_new_name, session_weights_name
from tests.unit.operations.world import World

TRAINING = CheckpointKind.TRAINING


@pytest.mark.parametrize("name", ["a", "0", "final", "step-000100", "v1.2_x", "A" * 128])
def test_names_that_are_good(name: str) -> None:
    assert check_name(name) == name


@pytest.mark.parametrize(
    "name", ["", ".", "..", "-a", "_a", ".hidden", "a/b", "a b", "a\n", "\na", "ä", "a" * 129, "a\0", "٣"]
)
def test_names_that_are_not(name: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        check_name(name, field_name="name")
    assert caught.value.field == "name"


@given(st.text(max_size=200))
def test_every_good_name_is_a_sort_key(name: str) -> None:
    try:
        check_name(name)
    except InvalidRequest:
        return
    Key("stream/x", f"ckpt/weights/{name}")


def test_what_was_saved_is_read(either: World) -> None:
    run = either.run()
    saved = either.checkpoint(run, "final", data=b"w" * 100_000)
    found = either.services.checkpoints.find(run.stream_id, TRAINING, "final", "acme")
    assert found == saved
    assert either.services.checkpoints.read(run, found) == b"w" * 100_000
    assert either.services.checkpoints.by_artifact(found.artifact_id, "acme") == found
    assert found.path == f"tinker://{run.stream_id}/weights/final"


def test_another_tenant_finds_nothing(memory: World) -> None:
    run = memory.run()
    saved = memory.checkpoint(run, "final")
    for find in (
        lambda: memory.services.checkpoints.find(run.stream_id, TRAINING, "final", "rival"),
        lambda: memory.services.checkpoints.by_artifact(saved.artifact_id, "rival"),
        lambda: memory.services.checkpoints.find(run.stream_id, TRAINING, "other", "acme"),
        lambda: memory.services.checkpoints.by_artifact("art-none", "acme"),
        lambda: memory.services.checkpoints.by_artifact("../../x y", "acme"),
        lambda: memory.services.checkpoints.find("no such\nrun", TRAINING, "final", "acme"),
    ):
        with pytest.raises(NotFound):
            find()
    assert memory.services.checkpoints.of_tenant("rival") == []


def test_a_taken_name_is_a_conflict_unless_overwritten(either: World) -> None:
    run = either.run()
    old = either.checkpoint(run, "final", data=b"old")
    with pytest.raises(Conflict) as caught:
        either.checkpoint(run, "final", data=b"new")
    assert caught.value.field == "path"
    either.later(1)
    new = either.checkpoint(run, "final", data=b"new", overwrite=True)
    assert either.services.checkpoints.read(run, new) == b"new"
    with pytest.raises(NotFound):
        either.services.checkpoints.by_artifact(old.artifact_id, "acme")
    assert either.services.checkpoints.of_tenant("acme") == [new]
    assert either.services.checkpoints.of_run(run.stream_id) == [new]
    either.services.retention.purge()
    with pytest.raises(Gone):
        either.services.checkpoints.read(run, old)
    assert either.services.checkpoints.read(run, new) == b"new"


def test_overwriting_within_a_millisecond_keeps_one_entry(memory: World) -> None:
    run = memory.run()
    memory.checkpoint(run, "final", data=b"old")
    new = memory.checkpoint(run, "final", data=b"new", overwrite=True)
    assert memory.services.checkpoints.of_tenant("acme") == [new]
    hidden = memory.checkpoint(run, "final", data=b"hidden", overwrite=True, ephemeral=True)
    assert memory.services.checkpoints.of_tenant("acme") == []
    assert memory.services.checkpoints.read(run, hidden) == b"hidden"
    assert memory.checkpoint(run, "final", overwrite=True).ephemeral is False
    assert len(memory.services.checkpoints.of_tenant("acme")) == 1


def test_the_name_of_an_expired_checkpoint_is_free(memory: World) -> None:
    run = memory.run()
    old = memory.checkpoint(run, "final", data=b"old", ttl_s=60)
    memory.later(60)
    with pytest.raises(NotFound):
        memory.services.checkpoints.find(run.stream_id, TRAINING, "final", "acme")
    with pytest.raises(NotFound):
        memory.services.checkpoints.by_artifact(old.artifact_id, "acme")
    assert memory.services.checkpoints.of_run(run.stream_id) == []
    assert memory.services.checkpoints.of_tenant("acme") == []
    new = memory.checkpoint(run, "final", data=b"new")
    memory.services.retention.purge()
    assert memory.services.checkpoints.read(run, new) == b"new"
    assert len(memory.blob_keys()) == 1


def test_two_savers_of_one_name_have_one_winner(memory: World) -> None:
    run = memory.run()
    first = memory.checkpoint(run, "other")
    checkpoints = memory.services.checkpoints
    rivals = [replace(first, name="final", artifact_id=f"art-{number}") for number in (1, 2)]
    prepared = [checkpoints.saving(rival, overwrite=True) for rival in rivals]
    memory.items.write(prepared[0])
    with pytest.raises(ConditionFailed):
        memory.items.write(prepared[1])
    assert checkpoints.find(run.stream_id, TRAINING, "final", "acme").artifact_id == "art-1"


def test_hidden_checkpoints_are_found_by_name_alone(memory: World) -> None:
    run = memory.run()
    hidden = memory.checkpoint(run, "session-weights-1", ephemeral=True)
    shown = memory.checkpoint(run, "final")
    assert memory.services.checkpoints.of_run(run.stream_id) == [shown]
    assert memory.services.checkpoints.of_tenant("acme") == [shown]
    assert memory.services.checkpoints.peek(run.stream_id, TRAINING, "session-weights-1") == hidden


def test_a_thousand_snapshots_hide_no_checkpoint_and_are_not_read(memory: World) -> None:
    run = memory.run()
    for number in range(1100):
        memory.checkpoint(run, f"session-weights-{number}", ephemeral=True, kind=CheckpointKind.SAMPLER)
    names = ["a", "final", "session-weightless", "z"]
    shown = {memory.checkpoint(run, name, kind=kind).path for name in names for kind in CheckpointKind}
    read: list[int] = []

    class Counting:
        def __getattr__(self, name: str) -> object:
            return getattr(memory.items, name)

        def query(self, *given, **bounds):
            page = memory.items.query(*given, **bounds)
            read.append(len(page))
            return page

    found = memory.open(items=Counting()).checkpoints.of_run(run.stream_id)
    assert {one.path for one in found} == shown
    assert sum(read) == len(shown)


def test_more_checkpoints_than_a_page_are_all_listed(memory: World) -> None:
    run = memory.run()
    for number in range(1100):
        memory.checkpoint(run, f"step-{number}")
    assert len(memory.services.checkpoints.of_run(run.stream_id)) == 1100


def test_unlisted_weights_have_names_that_nobody_else_may_give() -> None:
    assert session_weights_name(SamplerId("s-1", 3)).startswith(UNLISTED)
    with pytest.raises(InvalidRequest):
        check_new_name(f"{UNLISTED}mine")


def test_listings_are_newest_first_and_limited(memory: World) -> None:
    runs = [memory.run("s:train:0"), memory.run("s:train:1")]
    for number in range(6):
        memory.later(1)
        memory.checkpoint(runs[number % 2], f"n{number}")
    names = [one.name for one in memory.services.checkpoints.of_tenant("acme", limit=4)]
    assert names == ["n5", "n4", "n3", "n2"]
    assert [one.name for one in memory.services.checkpoints.of_run(runs[1].stream_id)] == ["n1", "n3", "n5"]


def test_a_deleted_checkpoint_is_gone_with_its_artifact(either: World) -> None:
    run = either.run()
    checkpoint = either.checkpoint(run, "final", ttl_s=60)
    either.services.checkpoints.delete(checkpoint)
    with pytest.raises(NotFound):
        either.services.checkpoints.find(run.stream_id, TRAINING, "final", "acme")
    with pytest.raises(Gone):
        either.services.checkpoints.read(run, checkpoint)
    with pytest.raises(Conflict):
        either.services.checkpoints.delete(checkpoint)
    assert either.blob_keys() == set()


def test_a_changed_checkpoint_refuses_an_old_reader_s_ttl(memory: World) -> None:
    run = memory.run()
    old = memory.checkpoint(run, "final")
    memory.services.checkpoints.set_ttl(old, 60)
    with pytest.raises(Conflict):
        memory.services.checkpoints.set_ttl(old, 600)


def test_who_read_the_old_one_cannot_touch_a_new_one_of_its_name(either: World) -> None:
    """The new record begins at version 1 again, as the old one did."""
    run, checkpoints = either.run(), either.services.checkpoints
    stale = either.checkpoint(run, "final", data=b"old", ttl_s=60)
    checkpoints.delete(checkpoints.find(run.stream_id, TRAINING, "final", "acme"))
    new = either.checkpoint(run, "final", data=b"new", ttl_s=600)
    assert new.version == stale.version
    with pytest.raises(Conflict):
        checkpoints.delete(stale)
    with pytest.raises(Conflict):
        checkpoints.set_ttl(stale, 3600)
    assert checkpoints.find(run.stream_id, TRAINING, "final", "acme") == new
    assert checkpoints.of_tenant("acme") == [new]
    assert checkpoints.read(run, new) == b"new"


def test_an_overwrite_prepared_for_the_old_one_does_not_replace_a_new_one(memory: World) -> None:
    run, checkpoints = memory.run(), memory.services.checkpoints
    old = memory.checkpoint(run, "final")
    prepared = checkpoints.saving(replace(old, artifact_id="art-late"), overwrite=True)
    memory.later(1)
    checkpoints.delete(old)
    new = memory.checkpoint(run, "final", data=b"new")
    with pytest.raises(ConditionFailed):
        memory.items.write(prepared)
    assert checkpoints.read(run, new) == b"new"


def test_what_lasts_as_long_as_it_is_used_is_written_once_an_hour(either: World) -> None:
    run, checkpoints = either.run(), either.services.checkpoints
    kept = either.checkpoint(run, "kept", ttl_s=UNUSED_S, idle_s=UNUSED_S)
    plain = either.checkpoint(run, "plain", ttl_s=UNUSED_S)
    versions = []
    for _ in range(4 * 48):
        either.later(900)
        for stale in (kept, checkpoints.peek(run.stream_id, TRAINING, "kept"), plain):
            assert stale is not None
            checkpoints.used(stale)
        either.services.retention.purge()
        versions.append(checkpoints.find(run.stream_id, TRAINING, "kept", "acme").version)
    assert versions[-1] == 1 + 48
    assert checkpoints.peek(run.stream_id, TRAINING, "plain") is None
    either.later(UNUSED_S)
    either.services.retention.purge()
    assert checkpoints.peek(run.stream_id, TRAINING, "kept") is None
    assert either.blob_keys() == set()
    either.services.retention.purge()
    assert either.due() == []


def test_an_expiry_that_the_owner_has_set_is_not_pushed_out(memory: World) -> None:
    run, checkpoints = memory.run(), memory.services.checkpoints
    checkpoints.set_ttl(memory.checkpoint(run, "a", ttl_s=UNUSED_S, idle_s=UNUSED_S), 60)
    changed = checkpoints.find(run.stream_id, TRAINING, "a", "acme")
    checkpoints.used(changed)
    assert checkpoints.find(run.stream_id, TRAINING, "a", "acme") == changed
    checkpoints.set_ttl(memory.checkpoint(run, "b", ttl_s=60, idle_s=60), 60)
    assert checkpoints.find(run.stream_id, TRAINING, "b", "acme").idle_s is None
