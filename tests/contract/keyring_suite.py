"""What every `KeyRing` adapter must do. A subclass supplies `ring` and `other_ring`, another key."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor

import pytest

from tensafe.contracts.errors import InvalidRequest
from tensafe.storage.ports import KeyRing, UnwrapFailed

CONTEXT = {"tenant": "t-1", "run": "run-1", "purpose": "naïve 😀"}


class KeyRingSuite:
    altered: tuple[type[Exception], ...] = (UnwrapFailed,)
    """What refuses altered bytes."""

    @pytest.mark.parametrize("size_bytes", [1, 16, 32, 1024])
    def test_wrap_and_unwrap(self, ring: KeyRing, size_bytes: int) -> None:
        data_key = os.urandom(size_bytes)
        wrapped = ring.wrap(data_key, CONTEXT)
        assert ring.unwrap(wrapped, CONTEXT) == data_key
        assert ring.unwrap(wrapped, dict(reversed(CONTEXT.items()))) == data_key
        if size_bytes >= 16:
            assert data_key not in wrapped

    def test_two_wraps_differ(self, ring: KeyRing) -> None:
        assert ring.wrap(b"k" * 32, CONTEXT) != ring.wrap(b"k" * 32, CONTEXT)

    @pytest.mark.parametrize(
        "context",
        [
            {**CONTEXT, "tenant": "t-2"},
            {**CONTEXT, "more": "x"},
            {"tenant": "t-1", "run": "run-1"},
            {"tenant": "run-1", "run": "t-1", "purpose": CONTEXT["purpose"]},
            {name.upper(): value for name, value in CONTEXT.items()},
        ],
    )
    def test_another_context_does_not_unwrap(self, ring: KeyRing, context: dict[str, str]) -> None:
        wrapped = ring.wrap(b"k" * 32, CONTEXT)
        with pytest.raises(UnwrapFailed):
            ring.unwrap(wrapped, context)

    def test_another_key_does_not_unwrap(self, ring: KeyRing, other_ring: KeyRing) -> None:
        assert ring.key_id != other_ring.key_id
        with pytest.raises(UnwrapFailed):
            other_ring.unwrap(ring.wrap(b"k" * 32, CONTEXT), CONTEXT)

    def test_altered_bytes_do_not_unwrap(self, ring: KeyRing) -> None:
        wrapped = ring.wrap(b"k" * 32, {"a": "b"})
        altered = [b"", b"x", wrapped + b"x", wrapped * 2, b"x" + wrapped, os.urandom(len(wrapped))]
        altered += [wrapped[:length] for length in range(0, len(wrapped), 17)]
        for index in range(len(wrapped)):
            changed = bytearray(wrapped)
            changed[index] ^= 1 << index % 8
            altered.append(bytes(changed))
        for one in altered:
            with pytest.raises(self.altered):
                ring.unwrap(one, {"a": "b"})

    @pytest.mark.parametrize(
        "context", [{}, {"": "x"}, {"a": ""}, {"aws-crypto-x": "y"}, {"a": "x" * 8192}, {"a": "\ud800"}]
    )
    def test_contexts_that_are_refused(self, ring: KeyRing, context: dict[str, str]) -> None:
        with pytest.raises(InvalidRequest):
            ring.wrap(b"k" * 32, context)
        with pytest.raises(InvalidRequest):
            ring.unwrap(b"anything", context)

    @pytest.mark.parametrize("data_key", [b"", b"k" * 1025])
    def test_data_keys_that_are_refused(self, ring: KeyRing, data_key: bytes) -> None:
        with pytest.raises(InvalidRequest):
            ring.wrap(data_key, CONTEXT)

    def test_it_can_be_asked_whether_it_would_wrap(self, ring: KeyRing) -> None:
        ring.check(CONTEXT)
        with pytest.raises(InvalidRequest):
            ring.check({})

    def test_threads_share_a_ring(self, ring: KeyRing) -> None:
        def round_trip(n: int) -> bool:
            data_key, context = os.urandom(32), {"run": f"run-{n}"}
            return ring.unwrap(ring.wrap(data_key, context), context) == data_key

        with ThreadPoolExecutor(8) as pool:
            assert all(pool.map(round_trip, range(80)))
