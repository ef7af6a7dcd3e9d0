"""A publication from the service's vault to the adapter holder's, on AWS's adapters, cut at every request.

The requests of both sides go over one wire. From the one at which it is cut on none gets through, as if the
process had died there; what it had acknowledged stands, and the next publication finishes it.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import EndpointConnectionError

from tensafe.contracts.errors import ConfigurationError, TensafeError, Unavailable
from tensafe.contracts.execution import ExecutionPolicy
from tensafe.local import publishing
from tensafe.local.publishing import publish
from tensafe.local.publishing_terms import Publishing
from tensafe.operations.checkpoints import CheckpointKind
from tensafe.operations.records import StreamState
from tensafe.packages.bundle import pack_files
from tensafe.services import Services
from tensafe.storage.dynamodb_items import DynamoDbItems
from tensafe.storage.kms_ring import KmsRing
from tensafe.storage.s3_blobs import S3Blobs
from tensafe_gpu.adapter_holder import commands
from tensafe_gpu.adapter_holder.peft_sites import read_peft
from tensafe_gpu.adapter_holder.store import AdapterStore, HolderPorts, Loaded
from tests.contract.emulators import LOST, REGION, Fault, Wire, create_table, moto_in_process, shared_client
from tests.support.helora import peft_files
from tests.unit.operations.world import World

DOWN = EndpointConnectionError(endpoint_url="x")
NAME = "final"
FILES = peft_files(32, 4, leaves=("q", "o"))


class Place(World):
    """The service with sampler weights, and an adapter holder without any: each with its own stores."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder, kms = folder, shared_client("kms")
        self.items = DynamoDbItems(create_table(), "tensafe-items", clock=self.clock_s)
        self.key, self.blobs = self._key_and_bucket("tensafe-blobs")
        key, blobs = self._key_and_bucket("tensafe-adapter-blobs")
        items = DynamoDbItems(create_table("tensafe-adapters"), "tensafe-adapters")
        self.holder = HolderPorts(items, blobs, KmsRing(kms, key))
        self.services = self.open()
        run = self.run()
        self.run_id = run.stream_id
        self.checkpoint(run, NAME, data=pack_files(FILES), kind=CheckpointKind.SAMPLER)
        self.path = f"tinker://{self.run_id}/sampler_weights/{NAME}"

    def open(self, **ports: Any) -> Services:
        if not hasattr(self, "key"):
            return super().open(**ports)
        return super().open(keyring=KmsRing(shared_client("kms"), self.key), **ports)

    @staticmethod
    def _key_and_bucket(bucket: str) -> tuple[str, S3Blobs]:
        key = shared_client("kms").create_key()["KeyMetadata"]["Arn"]
        s3 = shared_client("s3")
        s3.create_bucket(Bucket=bucket, CreateBucketConfiguration={"LocationConstraint": REGION})
        return key, S3Blobs(s3, bucket, kms_key_id=key)

    def publish(self, policy: ExecutionPolicy = ExecutionPolicy.HE_REQUIRED) -> dict[str, Any]:
        """By a process of its own: nothing is remembered."""
        keep = policy is ExecutionPolicy.HE_PREFERRED
        wanted = Publishing(self._command, "tcp:h:1", "sampler", 1000, policy, keep)
        return publish(self.open(), self.path, wanted)[1]

    def _command(self, name: str, *arguments: str) -> dict[str, Any]:
        out, err = io.StringIO(), io.StringIO()
        with redirect_stdout(out), redirect_stderr(err):
            try:
                commands.main([name, *arguments])
            except SystemExit:
                raise ConfigurationError(f"the adapter holder refused: {err.getvalue()}") from None
        found: dict[str, Any] = json.loads(out.getvalue())
        return found

    def here(self) -> bool:
        """Whether the service has the weights, and can read them."""
        services = self.open()
        checkpoint = services.checkpoints.peek(self.run_id, CheckpointKind.SAMPLER, NAME)
        return checkpoint is not None and bool(
            services.checkpoints.read(self.stream(self.run_id), checkpoint)
        )

    def held(self) -> list[Loaded]:
        """What the adapter holder opens."""
        store = AdapterStore(self.holder)
        found = [one for name in store.names() for one in store.versions(name)]
        return [store.load(one.name, one.version) for one in found if one.active]

    def kept(self) -> str | None:
        """The digest of what can be read of the weights that are kept in the clear."""
        services = self.open()
        kept = services.keeping.peek(self.run_id, NAME)
        if kept is None:
            return None
        return kept.digest if services.keeping.read(self.stream(self.run_id), kept) else ""

    def placed(self) -> tuple[str, int] | None:
        placement = self.open().placements.peek(self.run_id, NAME)
        return None if placement is None else (placement.adapter, placement.version)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], Any]:
    monkeypatch.setattr(publishing, "_MEMORY", tmp_path)

    @contextmanager
    def place() -> Iterator[tuple[Place, Wire]]:
        with moto_in_process(), Wire().between() as wire:
            made = Place(tmp_path)
            monkeypatch.setattr(commands, "read_holder_settings", lambda _: None)
            monkeypatch.setattr(commands, "open_ports", lambda *_: made.holder)
            yield made, wire

    return place


def check_moved(place: Place, case: object) -> None:
    (loaded,) = place.held()
    assert loaded.published.active, case
    assert place.placed() == (loaded.published.name, loaded.published.version), case
    assert not place.here(), case
    sites = {site.site: site for site in read_peft(FILES)}
    assert {name: site.a.shape for name, site in loaded.adapter.sites.items()} == {
        name: (sum(len(one.a) for one in site.modules), 32) for name, site in sites.items()
    }
    assert list(place.folder.glob("tensafe-publish-*")) == [], case
    # What is kept in the clear is sealed under the run's key; without it nothing of the run is left.
    state = StreamState.ACTIVE if place.kept() else StreamState.ERASED
    run = place.open().streams.find(place.run_id)
    assert run is not None
    assert run.state is state, case
    assert (place.open().ports.items.get(run.scope.key_item) is None) is (state is StreamState.ERASED), case


@pytest.mark.slow
@pytest.mark.parametrize("policy", [ExecutionPolicy.HE_REQUIRED, ExecutionPolicy.HE_PREFERRED])
@pytest.mark.parametrize("fault", [DOWN, LOST], ids=["before", "once-it-took-effect"])
def test_a_publication_cut_at_any_request_leaves_the_old_or_the_new_state(
    place: Callable[[], Any], fault: Fault, policy: ExecutionPolicy
) -> None:
    """Under HE_PREFERRED what is kept in the clear comes with the placement, and is what is served."""
    seen = set()
    for number in count(1):
        with place() as (made, wire):
            with wire.outage(number, fault, DOWN):
                try:
                    made.publish(policy)
                    cut = False
                except TensafeError:
                    cut = True
            if not cut:
                check_moved(made, number)
                break
            here, placed, held = made.here(), made.placed(), made.held()
            seen.add((here, placed is not None, bool(held)))
            # Sampled from what is placed, else from what is here: there is one of them, and it can be opened.
            assert placed is not None or here, number
            digest = None
            if placed is not None:
                digest = held[0].published.digest if policy is ExecutionPolicy.HE_PREFERRED else None
                assert placed == (held[0].published.name, held[0].published.version), number
            assert made.kept() == digest, number
            assert "a trained adapter" in made.publish(policy)["extraction"]
            check_moved(made, number)
            if policy is ExecutionPolicy.HE_PREFERRED:
                assert made.kept() == made.held()[0].published.digest
    assert number > 15
    # Untouched; at the adapter holder and not yet placed; placed and not yet erased.
    assert {(True, False, False), (True, False, True), (True, True, True)} <= seen


def test_revoking_what_a_publication_cut_short_has_left_erases_it_here_too(
    place: Callable[[], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else its path would be an ordinary adapter's, sampled in the clear."""

    def cut(*_: object) -> None:
        raise Unavailable("cut")

    with place() as (made, _):
        with monkeypatch.context() as patch:
            patch.setattr(publishing, "_erase", cut)
            with pytest.raises(Unavailable):
                made.publish()
        services = made.open()
        placement = services.placements.find(made.run_id, NAME)
        assert made.here()
        publishing.revoke(services, placement)
        assert made.placed() is None
        assert not made.here()
        publishing.revoke(services, placement)  # again, after a kill


def test_whoever_publishes_unwraps_nothing_of_the_adapter_holder_s(
    place: Callable[[], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    with place() as (made, _):

        def refuse(*_: object) -> bytes:
            raise AssertionError("a publisher has no right to that")

        with monkeypatch.context() as patch:
            patch.setattr(made.holder.keyring, "unwrap", refuse)
            said = made.publish()
        assert "extraction" in said
        check_moved(made, "calm")
