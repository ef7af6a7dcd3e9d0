"""Each artifact has a key of its own: it can be deleted alone, and goes with its scope."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tensafe.contracts.errors import Gone, IntegrityError
from tensafe.storage.ports import BlobInfo, Delete, check_blob_key
from tensafe.vault.artifacts import Artifacts
from tensafe.vault.scope import stream_scope
from tensafe.vault.vault import Vault
from tests.fakes import MemoryBlobs, MemoryItems, MemoryKeyRing

SCOPE = stream_scope("acme", "s-1:train:0")
OTHER = stream_scope("acme", "s-1:train:1")


class World:
    def __init__(self) -> None:
        self.items = MemoryItems()
        self.blobs = MemoryBlobs()
        self.keyring = MemoryKeyRing()
        self.artifacts = self.open()
        for scope in (SCOPE, OTHER):
            Vault(self.items, self.blobs, self.keyring).ensure_key(scope)

    def open(self) -> Artifacts:
        return Artifacts(Vault(self.items, self.blobs, self.keyring), self.blobs)


@pytest.fixture
def world() -> World:
    return World()


@given(st.binary(max_size=500))
def test_store_01_what_is_saved_is_loaded(data: bytes) -> None:
    world = World()
    ref = world.artifacts.write(SCOPE, "ckpt/weights/final", data)
    assert world.open().read(SCOPE, "ckpt/weights/final", ref) == data
    assert ref.size_bytes == len(data)
    assert check_blob_key(ref.blob_key) == ref.blob_key


def test_each_artifact_has_a_key_of_its_own(world: World) -> None:
    refs = [world.artifacts.write(SCOPE, "part", b"same") for _ in range(2)]
    vault = Vault(world.items, world.blobs, world.keyring)
    keys = {vault.open(SCOPE, "part/key", ref.sealed_key) for ref in refs}
    assert len(keys) == 2
    scope_item = world.items.get(SCOPE.key_item)
    assert scope_item is not None
    assert not keys & {world.keyring.unwrap(scope_item.sealed, SCOPE.context())}
    crossed = replace(refs[0], sealed_key=refs[1].sealed_key)
    with pytest.raises(IntegrityError):
        world.artifacts.read(SCOPE, "part", crossed)


def test_an_artifact_is_bound_to_its_scope_and_part(world: World) -> None:
    ref = world.artifacts.write(SCOPE, "ckpt/weights/final", b"weights")
    for scope, part in ((OTHER, "ckpt/weights/final"), (SCOPE, "ckpt/weights/other"), (SCOPE, "snapshot/3")):
        with pytest.raises(IntegrityError):
            world.artifacts.read(scope, part, ref)


def test_altered_bytes_are_found(world: World) -> None:
    ref = world.artifacts.write(SCOPE, "part", b"weights")
    _, stored = world.blobs.stored[ref.blob_key]
    altered = bytes([*stored[:-1], stored[-1] ^ 1])
    world.blobs.stored[ref.blob_key] = (BlobInfo(ref.blob_key, len(altered), ref.sha256), altered)
    with pytest.raises(IntegrityError):
        world.artifacts.read(SCOPE, "part", ref)
    # Even a store that vouches for them is not believed.
    del world.blobs.stored[ref.blob_key]
    world.blobs.put(ref.blob_key, altered)
    with pytest.raises(IntegrityError):
        world.artifacts.read(SCOPE, "part", ref)


def test_the_checksum_is_that_of_what_is_stored(world: World) -> None:
    ref = world.artifacts.write(SCOPE, "part", b"weights")
    info, stored = world.blobs.stored[ref.blob_key]
    assert ref.sha256 == info.sha256
    assert b"weights" not in stored


def test_a_deleted_artifact_is_gone_and_the_others_are_not(world: World) -> None:
    one, two = (world.artifacts.write(SCOPE, "part", data) for data in (b"one", b"two"))
    world.artifacts.delete(one)
    world.artifacts.delete(one)
    with pytest.raises(Gone):
        world.artifacts.read(SCOPE, "part", one)
    assert world.artifacts.read(SCOPE, "part", two) == b"two"


def test_without_the_scope_s_key_no_artifact_opens(world: World) -> None:
    ref = world.artifacts.write(SCOPE, "part", b"weights")
    other = world.artifacts.write(OTHER, "part", b"weights")
    world.items.write([Delete(SCOPE.key_item, None)])
    with pytest.raises(Gone):
        world.open().read(SCOPE, "part", ref)
    assert world.open().read(OTHER, "part", other) == b"weights"
    with pytest.raises(Gone):
        world.open().write(SCOPE, "part", b"new")
