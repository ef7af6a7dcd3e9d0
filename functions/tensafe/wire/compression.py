"""Request bodies: the content encodings that a client may use, decoded under a cap.

zstd frames as in RFC 8878, section 3.1.1: magic, header, blocks of at most 128 KiB, checksum.
"""

from __future__ import annotations

from typing import Final

import zstandard

from tensafe.contracts.errors import InvalidRequest, PayloadTooLarge, Unsupported

_MAGIC: Final = b"\x28\xb5\x2f\xfd"
_BLOCK_HEADER_BYTES: Final = 3
_CHECKSUM_BYTES: Final = 4
_RLE_BLOCK: Final = 1
_RESERVED_BLOCK: Final = 3
_READ_BYTES: Final = 64 * 1024
_SMALLEST_WINDOW_BYTES: Final = 1024
_FIELD: Final = "body"


def decode_body(raw: bytes, content_encoding: str | None, *, max_bytes: int) -> bytes:
    """The body behind its Content-Encoding (None, identity or zstd), at most `max_bytes` long.

    Raises PayloadTooLarge over the cap, InvalidRequest for a broken frame, Unsupported for any other
    encoding.
    """
    encoding = (content_encoding or "identity").strip().lower()
    if encoding == "zstd":
        return decompress_zstd(raw, max_bytes=max_bytes)
    if encoding != "identity":
        raise Unsupported(
            f"content encoding {encoding[:40]!r} is not supported; use zstd or none", field="Content-Encoding"
        )
    if len(raw) > max_bytes:
        raise _too_large(len(raw), max_bytes)
    return raw


def decompress_zstd(frame: bytes, *, max_bytes: int) -> bytes:
    """The content of exactly one zstd frame.

    A declared content size and the window are compared with `max_bytes` before anything is
    allocated; without a declared size the content is read in pieces up to the cap.
    """
    if not frame.startswith(_MAGIC):
        raise InvalidRequest("the body is not a zstd frame", field=_FIELD)
    try:
        parameters = zstandard.get_frame_parameters(frame)
        blocks_start = zstandard.frame_header_size(frame)
    except zstandard.ZstdError as error:
        raise InvalidRequest("the zstd frame header is damaged", field=_FIELD) from error
    if parameters.dict_id:
        raise Unsupported("zstd dictionaries are not supported", field=_FIELD)
    unknown = parameters.content_size == zstandard.CONTENTSIZE_UNKNOWN
    declared = None if unknown else parameters.content_size
    if declared is not None and declared > max_bytes:
        raise _too_large(declared, max_bytes)
    if parameters.window_size > max(max_bytes, _SMALLEST_WINDOW_BYTES):
        raise PayloadTooLarge(
            f"the zstd window has {parameters.window_size} bytes; at most {max_bytes} are accepted",
            field=_FIELD,
        )
    _check_blocks(frame, blocks_start, has_checksum=parameters.has_checksum)
    try:
        return _read(frame, declared, max_bytes)
    except (zstandard.ZstdError, MemoryError) as error:
        raise InvalidRequest("the zstd frame is damaged", field=_FIELD) from error


def _check_blocks(frame: bytes, start: int, *, has_checksum: bool) -> None:
    """Walk the block headers: raise InvalidRequest unless the frame ends where `frame` does."""
    position, last = start, False
    while not last:
        header = frame[position : position + _BLOCK_HEADER_BYTES]
        if len(header) < _BLOCK_HEADER_BYTES:
            raise InvalidRequest("the zstd frame is truncated", field=_FIELD)
        fields = int.from_bytes(header, "little")
        last, kind, size = bool(fields & 1), fields >> 1 & 3, fields >> 3
        if kind == _RESERVED_BLOCK:
            raise InvalidRequest("the zstd frame has a block of a reserved type", field=_FIELD)
        position += _BLOCK_HEADER_BYTES + (1 if kind == _RLE_BLOCK else size)
    end = position + (_CHECKSUM_BYTES if has_checksum else 0)
    if end > len(frame):
        raise InvalidRequest("the zstd frame is truncated", field=_FIELD)
    if end < len(frame):
        raise InvalidRequest("the body holds more than one zstd frame", field=_FIELD)


def _read(frame: bytes, declared: int | None, max_bytes: int) -> bytes:
    """Decompress piece by piece; never holds more than `max_bytes` and one piece."""
    pieces: list[bytes] = []
    total = 0
    with zstandard.ZstdDecompressor().stream_reader(frame) as reader:
        while piece := reader.read(_READ_BYTES):
            total += len(piece)
            if total > max_bytes:
                raise _too_large(total, max_bytes)
            pieces.append(piece)
    if declared is not None and total != declared:
        raise InvalidRequest(f"the zstd frame declares {declared} bytes and holds {total}", field=_FIELD)
    return b"".join(pieces)


def _too_large(size_bytes: int, max_bytes: int) -> PayloadTooLarge:
    return PayloadTooLarge(
        f"the decompressed body has {size_bytes} bytes or more; at most {max_bytes} are accepted",
        field=_FIELD,
    )
