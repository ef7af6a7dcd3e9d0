"""An artifact on AWS that must not be opened is refused and stays as it was, and can be opened afterwards.

Under another encryption context, with the wrapped key or the object altered, while KMS may not use its key.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest

from tensafe.contracts.errors import IntegrityError, Unavailable
from tensafe.operations.checkpoints import Checkpoint
from tensafe.operations.records import StreamRecord
from tensafe.storage.ports import Put, UnwrapFailed
from tests.contract.emulators import Wire, moto_in_process
from tests.contract.test_rooms_on_aws import AwsWorld

DATA = b"weights" * 20_000


@pytest.fixture
def wire() -> Iterator[Wire]:
    with moto_in_process(), Wire().between() as wire:
        yield wire


@dataclass
class Kept:
    """A run's checkpoint, and what is stored of it."""

    world: AwsWorld
    run: StreamRecord
    checkpoint: Checkpoint

    def read(self) -> bytes:
        """As a process that has no key in memory."""
        ports, part = self.world.services.ports, f"ckpt/{self.checkpoint.kind.value}/kept"
        fresh = self.world.open(keyring=ports.keyring, bell=ports.bell)
        return fresh.artifacts.read(self.run.scope, part, self.checkpoint.ref)

    def stored(self) -> tuple[object, ...]:
        keys = sorted(self.world.blob_keys())
        blobs = [hashlib.sha256(self.object(key)).hexdigest() for key in keys]
        return self.world.partition(self.run.scope.name), keys, blobs

    def object(self, key: str) -> bytes:
        return bytes(self.world.s3.get_object(Bucket=self.world.bucket, Key=key)["Body"].read())

    def put_key(self, sealed: bytes) -> None:
        """Into the place of the run's wrapped key."""
        item = self.world.items.get(self.run.scope.key_item)
        assert item is not None
        self.world.items.write([Put(item.key, item.body, item.version, sealed=sealed)])

    def wrapped_key(self, run: StreamRecord) -> bytes:
        item = self.world.items.get(run.scope.key_item)
        assert item is not None
        return item.sealed


@pytest.fixture
def kept(wire: Wire) -> Kept:
    world = AwsWorld()
    run = world.run()
    return Kept(world, run, world.checkpoint(run, "kept", data=DATA))


def altered(sealed: bytes) -> bytes:
    return sealed[:-1] + bytes([sealed[-1] ^ 1])


def of_another_run(kept: Kept) -> bytes:
    return kept.wrapped_key(kept.world.run("s-2:train:0", "globex"))


@pytest.mark.parametrize(
    "wrong", [of_another_run, lambda kept: altered(kept.wrapped_key(kept.run))], ids=["context", "tampered"]
)
def test_a_wrapped_key_that_is_not_the_runs_opens_nothing(kept: Kept, wrong: Callable[[Kept], bytes]) -> None:
    right = kept.wrapped_key(kept.run)
    kept.put_key(wrong(kept))
    before = kept.stored()
    with pytest.raises(UnwrapFailed):
        kept.read()
    assert kept.stored() == before
    kept.put_key(right)
    assert kept.read() == DATA


def test_an_altered_object_is_refused(kept: Kept) -> None:
    key, client = kept.checkpoint.ref.blob_key, kept.world.s3
    right, head = kept.object(key), client.head_object(Bucket=kept.world.bucket, Key=key)

    def replace(body: bytes, sha256: str) -> None:
        client.put_object(Bucket=kept.world.bucket, Key=key, Body=body, Metadata={"sha256": sha256})

    wrong = altered(right)
    # Whoever can write the object can write its checksum too: the seal refuses it all the same.
    for sha256 in (head["Metadata"]["sha256"], hashlib.sha256(wrong).hexdigest()):
        replace(wrong, sha256)
        before = kept.stored()
        with pytest.raises(IntegrityError):
            kept.read()
        assert kept.stored() == before
    replace(right, head["Metadata"]["sha256"])
    assert kept.read() == DATA


@pytest.mark.parametrize("code", ["DisabledException", "KMSInvalidStateException", "AccessDeniedException"])
def test_while_kms_does_not_use_its_key_nothing_opens_and_nothing_is_lost(
    kept: Kept, wire: Wire, code: str
) -> None:
    """moto decrypts under a disabled key, so that its answer is given here."""
    before, refusal = kept.stored(), (400, {"__type": code})
    # The first request of a read is DynamoDB's, for the wrapped key; the second one is KMS's.
    with wire.outage(2, refusal, refusal), pytest.raises(Unavailable, match="key service"):
        kept.read()
    assert kept.stored() == before
    assert kept.read() == DATA
