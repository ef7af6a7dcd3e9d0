"""What every `Blobs` adapter must do.

A subclass supplies `blobs`; `damage(key)`, which changes a byte of the stored contents behind the
adapter's back; and `follow(url)`, which does what the holder of a URL does and raises Refused.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tensafe.contracts.errors import IntegrityError, InvalidRequest
from tensafe.storage.ports import BlobExists, BlobInfo, BlobMissing, Blobs, check_blob_key


class Refused(Exception):
    """The URL was not served."""


FIRST = st.sampled_from("09AZaz")
REST = st.text(st.sampled_from("0Aa_.=-"), max_size=20) | st.text(
    st.sampled_from("Aa_.=-"), min_size=195, max_size=199
)
SEGMENT = st.builds(str.__add__, FIRST, REST)
KEY = st.lists(SEGMENT, min_size=1, max_size=16).map("/".join).filter(lambda key: len(key) <= 900)

BAD_KEYS = (
    "",
    "/a",
    "a/",
    "a//b",
    "../a",
    "a/../b",
    ".hidden",
    "a/.b",
    "-a",
    "a b",
    "a\\b",
    "a\n",
    "a%2f",
    "a?b",
    "a#b",
    "é",
    "a\0",
    "/".join("a" * 17),
    "a" * 201,
    "/".join(["a" * 200] * 4 + ["b" * 97]),
)


class BlobsSuite:
    def test_put_get_head_delete(self, blobs: Blobs) -> None:
        data = bytes(range(256)) * 5000
        sha256 = hashlib.sha256(data).hexdigest()
        assert blobs.head("runs/r1/weights") is None
        with pytest.raises(BlobMissing):
            blobs.get("runs/r1/weights")
        info = blobs.put("runs/r1/weights", data)
        assert info == BlobInfo("runs/r1/weights", len(data), sha256)
        assert blobs.head("runs/r1/weights") == info
        assert blobs.get("runs/r1/weights") == data
        blobs.delete("runs/r1/weights")
        blobs.delete("runs/r1/weights")
        assert blobs.head("runs/r1/weights") is None
        with pytest.raises(BlobMissing):
            blobs.get("runs/r1/weights", offset=1, length=1)

    def test_no_bytes_are_a_blob(self, blobs: Blobs) -> None:
        info = blobs.put("empty", b"")
        assert (info.size_bytes, info.sha256) == (0, hashlib.sha256(b"").hexdigest())
        assert blobs.get("empty") == b""
        assert blobs.get("empty", offset=0, length=10) == b""

    def test_a_blob_is_never_overwritten(self, blobs: Blobs) -> None:
        blobs.put("a", b"first")
        for other in (b"other", b"", b"first+"):
            with pytest.raises(BlobExists):
                blobs.put("a", other)
        assert blobs.get("a") == b"first"

    def test_the_very_same_bytes_may_be_put_again(self, blobs: Blobs) -> None:
        assert blobs.put("a", b"first") == blobs.put("a", b"first")
        assert blobs.get("a") == b"first"

    def test_a_deleted_key_may_be_written_anew(self, blobs: Blobs) -> None:
        blobs.put("a", b"first")
        blobs.delete("a")
        blobs.put("a", b"second")
        assert blobs.get("a") == b"second"

    @pytest.mark.parametrize(
        ("offset", "length"),
        [(0, None), (0, 10), (0, 5), (3, 4), (3, None), (9, 1), (9, 5), (10, None), (10, 1), (50, 7), (4, 0)],
    )
    def test_ranges(self, blobs: Blobs, offset: int, length: int | None) -> None:
        data = b"0123456789"
        blobs.put("a", data)
        expected = data[offset:] if length is None else data[offset : offset + length]
        assert blobs.get("a", offset=offset, length=length) == expected

    def test_negative_ranges(self, blobs: Blobs) -> None:
        blobs.put("a", b"0123456789")
        for offset, length in ((-1, None), (0, -1)):
            with pytest.raises(InvalidRequest):
                blobs.get("a", offset=offset, length=length)

    @pytest.mark.parametrize("data", [b"x", b"0123456789" * 1000])
    def test_damage_is_seen_by_a_whole_read(
        self, blobs: Blobs, damage: Callable[[str], None], data: bytes
    ) -> None:
        blobs.put("a", data)
        damage("a")
        with pytest.raises(IntegrityError):
            blobs.get("a")
        with pytest.raises(IntegrityError):
            blobs.get("a", offset=0, length=len(data))

    @pytest.mark.parametrize("key", BAD_KEYS)
    def test_store_01_what_is_no_key_is_refused_everywhere(self, blobs: Blobs, key: str) -> None:
        calls: tuple[Callable[[], object], ...] = (
            lambda: check_blob_key(key),
            lambda: blobs.put(key, b"x"),
            lambda: blobs.get(key),
            lambda: blobs.head(key),
            lambda: blobs.delete(key),
            lambda: blobs.presign_get(key, expires_s=60),
        )
        for call in calls:
            with pytest.raises(InvalidRequest):
                call()

    @settings(
        max_examples=25,
        deadline=None,
        derandomize=True,
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.differing_executors],
    )
    @given(keys=st.sets(KEY, min_size=1, max_size=3))
    def test_store_01_any_key_that_is_accepted_round_trips(
        self, blobs: Blobs, follow: Callable[[str], bytes], keys: set[str]
    ) -> None:
        # Every folder of a key is a key too, as are names that differ in case alone.
        keys |= {key.rpartition("/")[0] for key in keys if "/" in key} | {key.swapcase() for key in keys}
        for key in keys:
            assert check_blob_key(key) == key
            assert blobs.put(key, key.encode()).key == key
        for key in keys:
            assert blobs.get(key) == key.encode()
            head = blobs.head(key)
            assert head is not None
            assert head.size_bytes == len(key)
            assert follow(blobs.presign_get(key, expires_s=60)) == key.encode()
        for key in keys:
            blobs.delete(key)
            assert blobs.head(key) is None

    def test_of_eight_threads_one_writes(self, blobs: Blobs) -> None:
        def put(thread: int, number: int) -> int:
            try:
                blobs.put(f"race/{number}", f"thread {thread}".encode())
            except BlobExists:
                return 0
            return 1

        with ThreadPoolExecutor(8) as pool:
            for number in range(15):
                wins = list(pool.map(put, range(8), [number] * 8))
                assert sum(wins) == 1
                assert blobs.get(f"race/{number}") == f"thread {wins.index(1)}".encode()

    # URLs

    def test_a_url_returns_the_bytes(self, blobs: Blobs, follow: Callable[[str], bytes]) -> None:
        blobs.put("runs/a=b/w_1.bin", b"sealed bytes")
        assert follow(blobs.presign_get("runs/a=b/w_1.bin", expires_s=60)) == b"sealed bytes"

    def test_a_url_expires(self, blobs: Blobs, follow: Callable[[str], bytes]) -> None:
        blobs.put("a", b"sealed bytes")
        url = blobs.presign_get("a", expires_s=1)
        time.sleep(1.1)
        with pytest.raises(Refused):
            follow(url)

    def test_a_url_is_for_one_key_and_one_time(self, blobs: Blobs, follow: Callable[[str], bytes]) -> None:
        blobs.put("mine", b"mine")
        blobs.put("hers", b"hers")
        url = blobs.presign_get("mine", expires_s=60)
        assert follow(url) == b"mine"
        digit = url[-1]
        for altered in (
            url.replace("mine", "hers"),
            url[:-1] + ("0" if digit != "0" else "1"),
            url[:-1],
            _later(url),
        ):
            assert altered != url
            with pytest.raises(Refused):
                follow(altered)

    def test_a_url_to_what_is_not_there(self, blobs: Blobs, follow: Callable[[str], bytes]) -> None:
        with pytest.raises(Refused):
            follow(blobs.presign_get("absent", expires_s=60))

    @pytest.mark.parametrize("expires_s", [0, -1, 7 * 24 * 3600 + 1])
    def test_how_long_a_url_may_live(self, blobs: Blobs, expires_s: int) -> None:
        with pytest.raises(InvalidRequest):
            blobs.presign_get("a", expires_s=expires_s)


def _later(url: str) -> str:
    """The same URL with its expiry, a parameter whose name begins like "expires", put off."""
    path, _, query = url.partition("?")
    pairs = [pair.split("=", 1) for pair in query.split("&")]
    altered = [f"{k}={int(v) + 1}" if "expires" in k.lower() else f"{k}={v}" for k, v in pairs]
    return f"{path}?{'&'.join(altered)}"
