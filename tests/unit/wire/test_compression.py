"""zstd bodies: what is accepted, and that nothing is allocated for what is not."""

from __future__ import annotations

import contextlib
import tracemalloc

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from tensafe.contracts.errors import InvalidRequest, PayloadTooLarge, TensafeError, Unsupported
from tensafe.wire.compression import decode_body, decompress_zstd

CAP = 100_000


def stream(data: bytes, *, checksum: bool = False, window_log: int | None = None) -> bytes:
    """A frame without a declared content size, as a streaming client writes it."""
    parameters = zstandard.ZstdCompressionParameters.from_level(
        3,
        write_content_size=False,
        write_checksum=checksum,
        **({"window_log": window_log} if window_log else {}),
    )
    compressor = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    return compressor.compress(data) + compressor.flush()


@pytest.mark.parametrize("size", [0, 1, 1000, CAP])
@pytest.mark.parametrize("checksum", [False, True])
def test_frames_decompress_to_what_went_in(size: int, checksum: bool) -> None:
    data = bytes(i * i % 251 for i in range(size))
    declared = zstandard.ZstdCompressor(write_checksum=checksum).compress(data)
    assert decompress_zstd(declared, max_bytes=CAP) == data
    assert decompress_zstd(stream(data, checksum=checksum, window_log=10), max_bytes=CAP) == data


@pytest.mark.parametrize("make", [zstandard.ZstdCompressor().compress, lambda d: stream(d, window_log=10)])
def test_one_byte_over_the_cap_is_refused(make) -> None:
    with pytest.raises(PayloadTooLarge, match=str(CAP)):
        decompress_zstd(make(bytes(CAP + 1)), max_bytes=CAP)


@pytest.mark.parametrize("declared", [True, False])
def test_a_bomb_costs_no_memory(declared: bool) -> None:
    data = bytes(50_000_000)
    frame = zstandard.ZstdCompressor().compress(data) if declared else stream(data, window_log=10)
    del data
    tracemalloc.start()
    with pytest.raises(PayloadTooLarge):
        decompress_zstd(frame, max_bytes=CAP)
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak_bytes < 2 * CAP + 1_000_000


def test_a_window_over_the_cap_is_refused_before_it_is_allocated() -> None:
    with pytest.raises(PayloadTooLarge, match="window"):
        decompress_zstd(stream(b"x" * 1000, window_log=27), max_bytes=CAP)


def test_a_declared_size_that_is_a_lie_is_refused() -> None:
    frame = bytearray(zstandard.ZstdCompressor().compress(bytes(1000)))
    assert frame[4] & 0b1110_0000 == 0b0110_0000  # single segment, two bytes of content size
    frame[5:7] = (2000 - 256).to_bytes(2, "little")
    with pytest.raises(InvalidRequest):
        decompress_zstd(bytes(frame), max_bytes=CAP)


@pytest.mark.parametrize("make", [zstandard.ZstdCompressor().compress, lambda d: stream(d, window_log=10)])
def test_truncated_and_doubled_frames_are_refused(make) -> None:
    frame = make(bytes(range(256)) * 40)
    for end in range(len(frame)):
        with pytest.raises(InvalidRequest):
            decompress_zstd(frame[:end], max_bytes=CAP)
    with pytest.raises(InvalidRequest, match="more than one"):
        decompress_zstd(frame + frame, max_bytes=CAP)
    with pytest.raises(InvalidRequest, match="more than one"):
        decompress_zstd(frame + b"\0", max_bytes=CAP)


def test_a_damaged_checksum_is_refused() -> None:
    frame = bytearray(zstandard.ZstdCompressor(write_checksum=True).compress(b"hello " * 100))
    frame[-1] ^= 1
    with pytest.raises(InvalidRequest, match="damaged"):
        decompress_zstd(bytes(frame), max_bytes=CAP)


def test_encodings() -> None:
    frame = zstandard.ZstdCompressor().compress(b"abc")
    assert decode_body(b"abc", None, max_bytes=3) == b"abc"
    assert decode_body(b"abc", "identity", max_bytes=3) == b"abc"
    assert decode_body(frame, " ZSTD ", max_bytes=3) == b"abc"
    with pytest.raises(PayloadTooLarge):
        decode_body(b"abcd", None, max_bytes=3)
    with pytest.raises(Unsupported, match="gzip"):
        decode_body(b"abc", "gzip", max_bytes=3)
    with pytest.raises(InvalidRequest, match="not a zstd frame"):
        decode_body(b"abc", "zstd", max_bytes=3)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(data=st.data())
def test_mutated_frames_raise_only_our_errors(data) -> None:
    content = data.draw(st.binary(max_size=400))
    frame = bytearray(
        data.draw(st.sampled_from([zstandard.ZstdCompressor().compress(content), stream(content)]))
    )
    for _ in range(data.draw(st.integers(1, 4))):
        frame[data.draw(st.integers(0, len(frame) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(TensafeError):
        assert len(decompress_zstd(bytes(frame), max_bytes=1000)) <= 1000
