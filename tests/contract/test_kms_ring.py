"""The key ring port on KMS, over moto alone: other emulators' KMS is not cryptography."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest
from botocore.exceptions import EndpointConnectionError

from tensafe.contracts.errors import ConfigurationError, Unavailable
from tensafe.storage.kms_ring import KmsRing
from tensafe.storage.ports import KeyRing, UnwrapFailed
from tests.contract.emulators import Wire, moto_in_process, shared_client
from tests.contract.keyring_suite import CONTEXT, KeyRingSuite


@pytest.fixture
def wire() -> Iterator[Wire]:
    with moto_in_process(), Wire().between() as wire:
        yield wire


@pytest.fixture
def client(wire: Wire) -> Any:
    return shared_client("kms")


def new_key(client: Any) -> str:
    return str(client.create_key()["KeyMetadata"]["Arn"])


@pytest.fixture
def key_arn(client: Any) -> str:
    return new_key(client)


@pytest.fixture
def ring(client: Any, key_arn: str, wire: Wire) -> KeyRing:
    wire.forget()
    return KmsRing(client, key_arn)


@pytest.fixture
def other_ring(client: Any) -> KeyRing:
    return KmsRing(client, new_key(client))


class TestKmsRing(KeyRingSuite):
    altered = (UnwrapFailed, Unavailable)  # a key id inside KMS's own bytes that is altered: "access denied"


class TestKms:
    def test_the_context_reaches_kms_whole(self, ring: KeyRing, key_arn: str, wire: Wire) -> None:
        """So a key policy can ask for it."""
        ring.unwrap(ring.wrap(b"k" * 32, CONTEXT), CONTEXT)
        assert len(wire.sent) == 2
        assert all(one["EncryptionContext"] == CONTEXT and one["KeyId"] == key_arn for one in wire.sent)

    def test_the_data_key_never_reaches_kms(self, ring: KeyRing, wire: Wire) -> None:
        ring.wrap(b"k" * 32, CONTEXT)
        (asked,) = wire.sent  # for a key of its own, which then wraps ours here
        assert sorted(asked) == ["EncryptionContext", "GrantTokens", "KeyId", "NumberOfBytes"]

    def test_a_check_asks_what_wrapping_would_and_loads_no_sdk(self, ring: KmsRing, wire: Wire) -> None:
        ring.check(CONTEXT)
        assert ring._wrapper._loaded is None
        (asked,) = wire.sent
        called = wire.called[:]
        wire.forget()
        ring.wrap(b"k" * 32, CONTEXT)
        (wrapping,) = wire.sent
        assert called == wire.called
        assert asked == {name: value for name, value in wrapping.items() if name != "GrantTokens"}

    def test_no_key_but_its_own_is_asked(self, ring: KeyRing, other_ring: KeyRing, wire: Wire) -> None:
        """A discovery keyring would ask the key that the message names."""
        wrapped = other_ring.wrap(b"k" * 32, CONTEXT)
        wire.forget()
        with pytest.raises(UnwrapFailed):
            ring.unwrap(wrapped, CONTEXT)
        assert wire.sent == []

    def test_another_context_is_refused_before_kms_is_asked_to_decrypt(
        self, ring: KeyRing, wire: Wire
    ) -> None:
        wrapped = ring.wrap(b"k" * 32, CONTEXT)
        wire.forget()
        with pytest.raises(UnwrapFailed):
            ring.unwrap(wrapped, {**CONTEXT, "tenant": "t-2"})
        assert wire.sent == []

    @pytest.mark.xfail(
        raises=pytest.fail.Exception, strict=True, reason="moto: a disabled key still decrypts"
    )
    def test_a_disabled_key_unwraps_nothing(self, ring: KeyRing, client: Any, key_arn: str) -> None:
        wrapped = ring.wrap(b"k" * 32, CONTEXT)
        client.disable_key(KeyId=key_arn.rpartition("/")[2])
        with pytest.raises(Unavailable):
            ring.unwrap(wrapped, CONTEXT)


class TestFaults:
    @pytest.mark.parametrize(
        "code", ["DisabledException", "KMSInvalidStateException", "AccessDeniedException"]
    )
    def test_a_key_that_kms_will_not_use_is_unavailable_and_nothing_is_lost(
        self, ring: KeyRing, wire: Wire, code: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        wrapped = ring.wrap(b"k" * 32, CONTEXT)
        wire.break_next((400, {"__type": code, "message": "secret"}))
        with pytest.raises(Unavailable) as failure:
            ring.unwrap(wrapped, CONTEXT)
        assert code in caplog.text
        assert "secret" not in failure.value.message + caplog.text
        for call in (lambda: ring.wrap(b"k" * 32, CONTEXT), lambda: ring.check(CONTEXT)):
            wire.break_next((400, {"__type": code}))
            with pytest.raises(Unavailable):
                call()
        assert ring.unwrap(wrapped, CONTEXT) == b"k" * 32

    def test_an_outage_is_unavailable_and_one_lost_call_is_not_noticed(
        self, ring: KeyRing, wire: Wire
    ) -> None:
        fault = EndpointConnectionError(endpoint_url="x")
        wrapped = ring.wrap(b"k" * 32, CONTEXT)
        wire.break_next(fault)
        assert ring.unwrap(wrapped, CONTEXT) == b"k" * 32
        for call in (
            lambda: ring.unwrap(wrapped, CONTEXT),
            lambda: ring.wrap(b"k" * 32, CONTEXT),
            lambda: ring.check(CONTEXT),
        ):
            wire.break_next(*[fault] * 4)
            with pytest.raises(Unavailable):
                call()

    @pytest.mark.parametrize("code", ["InvalidCiphertextException", "IncorrectKeyException"])
    def test_what_kms_does_not_recognise_does_not_authenticate(
        self, ring: KeyRing, wire: Wire, code: str
    ) -> None:
        wrapped = ring.wrap(b"k" * 32, CONTEXT)
        wire.break_next((400, {"__type": code}))
        with pytest.raises(UnwrapFailed):
            ring.unwrap(wrapped, CONTEXT)

    def test_an_outage_is_not_remembered(self, ring: KeyRing, wire: Wire) -> None:
        wrapped = ring.wrap(b"k" * 32, CONTEXT)
        wire.break_next((400, {"__type": "DisabledException"}))
        with pytest.raises(Unavailable):
            ring.unwrap(wrapped, CONTEXT)
        with pytest.raises(UnwrapFailed):
            ring.unwrap(os.urandom(len(wrapped)), CONTEXT)


@pytest.mark.parametrize(
    ("key_arn", "message"),
    [
        ("", "by its ARN"),
        ("11111111-2222-3333-4444-555555555555", "by its ARN"),
        ("arn:aws:kms:eu-central-1:123456789012:alias/tensafe", "by its ARN"),
        ("arn:aws:s3:eu-central-1:123456789012:key/1", "by its ARN"),
        ("arn:aws:kms:us-east-1:123456789012:key/1", "us-east-1"),
    ],
)
def test_keys_that_are_refused_at_the_start(client: Any, key_arn: str, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message) as failure:
        KmsRing(client, key_arn)
    assert failure.value.field == "kms_key_arn"
