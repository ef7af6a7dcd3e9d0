"""What frames carry. Control messages are JSON with known fields alone; numbers are packed words, little-
endian.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from typing import Annotated, Final, NamedTuple, TypeVar

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tensafe_gpu.helora.accepted_records import Range
from tensafe_gpu.helora.frames import TO_KEY_HOLDER, FrameError, Kind
from tensafe_gpu.helora.parameters import MAX_D_IN, MAX_ROWS, MAX_TOKENS, PRIMES, N, T
from tensafe_gpu.helora.ports import AdapterInfo, Float32Array, ModuleShape, SiteShape
from tensafe_gpu.helora.public_keys import BLOCK_ID_BYTES, NONCE_BYTES, keys_of_block
from tensafe_gpu.helora.seal_stream import SEED_BYTES, SeedArray, WordArray

ROWS_PER_FRAME: Final = 64
MAX_RANGES: Final = 4096
_WORDS: Final = len(PRIMES) * N
_BEGIN: Final = struct.Struct("<HH")
_ROWS: Final = struct.Struct(f"<{BLOCK_ID_BYTES}sIHH")
_RANGE: Final = struct.Struct(f"<{BLOCK_ID_BYTES}sII")
_MESSAGE_CHARACTERS: Final = 2000
_Name = Annotated[str, Field(min_length=1, max_length=200)]
_Dims = Annotated[int, Field(ge=1, le=MAX_D_IN)]


class _Message(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class Hello(_Message):
    """Key holder: its parameters, who it is (over TLS the certificate says that), what it wants."""

    parameters: _Name
    tenant: _Name
    adapter: _Name
    version: Annotated[int, Field(ge=1, le=1 << 53)] | None = None


class ModuleMessage(_Message):
    name: _Name
    rank: Annotated[int, Field(ge=1, le=MAX_ROWS)]
    d_out: Annotated[int, Field(ge=1, le=1 << 20)]


class SiteMessage(_Message):
    site: _Name
    d_in: _Dims
    x_bound: Annotated[int, Field(ge=1, le=1 << 20)]
    modules: Annotated[list[ModuleMessage], Field(min_length=1, max_length=16)]


class Welcome(_Message):
    """Adapter holder: the adapter, as AdapterInfo, and the nonce of this connection's public elements."""

    name: _Name
    version: Annotated[int, Field(ge=1, le=1 << 53)]
    digest: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    epoch: Annotated[int, Field(ge=1, le=1 << 53)]
    base_model: _Name
    parameters: _Name
    tokens_per_site: Annotated[int, Field(ge=0)]
    sites: Annotated[list[SiteMessage], Field(min_length=1, max_length=4096)]
    nonce: Annotated[str, Field(pattern=rf"^[0-9a-f]{{{2 * NONCE_BYTES}}}$")]

    def info(self) -> AdapterInfo:
        """As the port has it."""
        sites = tuple(
            SiteShape(
                site.site,
                site.d_in,
                tuple(ModuleShape(one.name, one.rank, one.d_out) for one in site.modules),
                site.x_bound,
            )
            for site in self.sites
        )
        return AdapterInfo(
            self.name, self.version, self.digest, self.epoch, self.base_model, sites, self.parameters,
            self.tokens_per_site,
        )  # fmt: skip

    @classmethod
    def of(cls, info: AdapterInfo, nonce: bytes) -> Welcome:
        """From the port's."""
        sites = [
            SiteMessage(
                site=site.site,
                d_in=site.d_in,
                x_bound=site.x_bound,
                modules=[
                    ModuleMessage(name=one.name, rank=one.rank, d_out=one.d_out) for one in site.modules
                ],
            )
            for site in info.sites
        ]
        return cls(
            name=info.name,
            version=info.version,
            digest=info.digest,
            epoch=info.epoch,
            base_model=info.base_model,
            parameters=info.parameters,
            tokens_per_site=info.tokens_per_site,
            sites=sites,
            nonce=nonce.hex(),
        )


class Refusal(_Message):
    """Adapter holder: why a request was not served; `code` is one of WIRE_CODES."""

    code: _Name
    message: Annotated[str, Field(max_length=_MESSAGE_CHARACTERS)]


M = TypeVar("M", bound=_Message)


def parsed(kind: type[M], payload: memoryview) -> M:
    """A JSON message. Raises FrameError, naming the fields that are wrong and never their values."""
    try:
        message = kind.model_validate_json(bytes(payload))
        json.loads(bytes(payload), object_pairs_hook=_once)  # pydantic takes the last of two
        return message
    except ValidationError as error:
        fields = sorted({".".join(map(str, one["loc"])) or "body" for one in error.errors()})
        raise FrameError(f"{kind.__name__} has fields that are unknown or wrong: {fields[:4]}") from None


def _once(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise FrameError("a JSON message names a field twice")
    return found


def packed(message: _Message) -> bytes:
    """A JSON message's bytes."""
    return message.model_dump_json().encode()


def packed_refusal(code: str, message: str) -> bytes:
    """A Refusal's bytes; as much of the message as its frame may hold."""
    said = message[:_MESSAGE_CHARACTERS]
    while len(text := packed(Refusal(code=code, message=said))) > TO_KEY_HOLDER[Kind.ERROR]:
        said = said[: len(said) // 2]
    return text


def pack_begin(site: int, block_id: bytes, b: WordArray) -> list[bytes | memoryview]:
    """BLOCK_BEGIN: site u16, 0 u16, block id, b of its keys uint32 [keys, 4, N]."""
    return [_BEGIN.pack(site, 0) + block_id, _words(b)]


def begin_bytes(d_in: int) -> int:
    """Of a BLOCK_BEGIN for a site of this width."""
    return _BEGIN.size + BLOCK_ID_BYTES + 4 * keys_of_block(d_in) * (len(PRIMES) + 1) * N


def unpack_begin(payload: memoryview, widths: Sequence[int]) -> tuple[int, bytes, WordArray]:
    """`widths`: d_in by site number. Raises FrameError."""
    if len(payload) < _BEGIN.size:
        raise FrameError("a block begins without a site")
    site, zero = _BEGIN.unpack_from(payload)
    if zero:
        raise FrameError("reserved bytes must be zero")
    if site >= len(widths):
        raise FrameError("a site's number is out of range")
    shape = (keys_of_block(widths[site]), len(PRIMES) + 1, N)
    _exactly(payload, begin_bytes(widths[site]))
    rest = payload[_BEGIN.size :]
    return site, bytes(rest[:BLOCK_ID_BYTES]), _array(rest[BLOCK_ID_BYTES:], shape)


def pack_rows(block_id: bytes, first: int, words: WordArray, seeds: SeedArray) -> list[bytes | memoryview]:
    """BLOCK_ROWS: block id, first feature u32, count u16, 0 u16, uint32 [count, 3, N], seeds uint8 [count,
    64].
    """
    return [_ROWS.pack(block_id, first, len(words), 0), _words(words), seeds.tobytes()]


def rows_bytes(count: int) -> int:
    """Of a BLOCK_ROWS with so many features."""
    return _ROWS.size + count * (4 * _WORDS + SEED_BYTES)


def unpack_rows(payload: memoryview) -> tuple[bytes, int, WordArray, SeedArray]:
    """Raises FrameError."""
    block_id, first, count = _rows_header(payload)
    _exactly(payload, rows_bytes(count))
    middle = _ROWS.size + count * 4 * _WORDS
    seeds = np.frombuffer(payload[middle:], dtype=np.uint8).reshape(count, SEED_BYTES)
    return block_id, first, _array(payload[_ROWS.size : middle], (count, len(PRIMES), N)), seeds


def pack_whole_rows(block_id: bytes, first: int, words: WordArray) -> list[bytes | memoryview]:
    """BLOCK_WHOLE_ROWS: block id, first feature u32, count u16, 0 u16, uint32 [count, 2, 3, N]."""
    return [_ROWS.pack(block_id, first, len(words), 0), _words(words)]


def whole_rows_bytes(count: int) -> int:
    """Of a BLOCK_WHOLE_ROWS with so many features."""
    return _ROWS.size + count * 8 * _WORDS


def unpack_whole_rows(payload: memoryview) -> tuple[bytes, int, WordArray]:
    """Raises FrameError."""
    block_id, first, count = _rows_header(payload)
    _exactly(payload, whole_rows_bytes(count))
    return block_id, first, _array(payload[_ROWS.size :], (count, 2, len(PRIMES), N))


def reply_bytes(rows: int) -> int:
    """Of a BLOCK_REPLY for R rows."""
    return BLOCK_ID_BYTES + rows * 2 * _WORDS * 4


def pack_reply(block_id: bytes, words: WordArray) -> list[bytes | memoryview]:
    """BLOCK_REPLY: block id, uint32 [R, 2, 3, N]."""
    return [block_id, _words(words)]


def unpack_reply(payload: memoryview, rows: int) -> tuple[bytes, WordArray]:
    """Raises FrameError."""
    _exactly(payload, reply_bytes(rows))
    words = _array(payload[BLOCK_ID_BYTES:], (rows, 2, len(PRIMES), N))
    return bytes(payload[:BLOCK_ID_BYTES]), words


class MaskedRange(NamedTuple):
    """Masked tokens of a block's range: z uint32 [count, d_in] below t."""

    range: Range
    z: WordArray


def pack_products(parts: Sequence[MaskedRange]) -> list[bytes | memoryview]:
    """PRODUCTS: count u32; per range block id, first u32, count u32; then every z in the same order."""
    head = struct.pack("<I", len(parts)) + b"".join(
        _RANGE.pack(part.range.block_id, part.range.first, part.range.tokens) for part in parts
    )
    return [head, *(_words(part.z) for part in parts)]


def most_products_bytes(d_in: int) -> int:
    """Of a PRODUCTS whose sites are no wider than this."""
    return 4 + MAX_RANGES * _RANGE.size + 4 * MAX_TOKENS * d_in


def pack_products_reply(parts: Sequence[WordArray]) -> list[bytes | memoryview]:
    """PRODUCTS_REPLY: for each range of the request, uint32 [count, R] below t."""
    return [_words(part) for part in parts]


def unpack_ranges(payload: memoryview) -> tuple[list[Range], memoryview]:
    """The ranges, and the bytes of z behind them. Raises FrameError."""
    if len(payload) < 4:
        raise FrameError("a request for products ends before its ranges")
    (count,) = struct.unpack_from("<I", payload)
    if not 1 <= count <= MAX_RANGES or len(payload) < 4 + count * _RANGE.size:
        raise FrameError(f"a request for products holds 1 to {MAX_RANGES} ranges")
    ranges = [Range(*_RANGE.unpack_from(payload, 4 + index * _RANGE.size)) for index in range(count)]
    for one in ranges:
        if not 1 <= one.tokens <= N or one.first + one.tokens > N:
            raise FrameError("a range leaves its block")
    if count > 1 and sum(one.tokens for one in ranges) > MAX_TOKENS:
        raise FrameError(f"a request for products holds at most {MAX_TOKENS} tokens")
    return ranges, payload[4 + count * _RANGE.size :]


def ring_bytes(shapes: Sequence[tuple[int, int]]) -> int:
    """Of uint32 arrays of these shapes: a PRODUCTS_REPLY has one for each range, [count, R]."""
    return 4 * sum(rows * width for rows, width in shapes)


def ring_words(payload: memoryview, shapes: Sequence[tuple[int, int]]) -> list[WordArray]:
    """Consecutive uint32 arrays of these shapes. Raises FrameError."""
    _exactly(payload, ring_bytes(shapes))
    result, begin = [], 0
    for rows, width in shapes:
        end = begin + 4 * rows * width
        result.append(_array(payload[begin:end], (rows, width)))
        begin = end
    return result


def unpack_ring(payload: memoryview, shapes: Sequence[tuple[int, int]]) -> list[WordArray]:
    """As `ring_words`, every word below t. Raises FrameError."""
    result = ring_words(payload, shapes)
    if any(words.size and int(words.max()) >= T for words in result):
        raise FrameError("a masked word is not below t")
    return result


def pack_b(site: int, matrices: Sequence[Float32Array]) -> list[bytes | memoryview]:
    """B_REPLY: site u16, then B' of its modules, float32 [d_out, rank] each."""
    return [struct.pack("<H", site), *(np.ascontiguousarray(b, dtype="<f4").tobytes() for b in matrices)]


def b_bytes(shape: SiteShape) -> int:
    """Of a B_REPLY for this site."""
    return 2 + 4 * sum(one.d_out * one.rank for one in shape.modules)


def unpack_b(payload: memoryview, site: int, shape: SiteShape) -> dict[str, Float32Array]:
    """Raises FrameError."""
    _exactly(payload, b_bytes(shape))
    if struct.unpack_from("<H", payload)[0] != site:
        raise FrameError("B of another site than asked for")
    result, begin = {}, 2
    for one in shape.modules:
        end = begin + 4 * one.d_out * one.rank
        matrix = np.frombuffer(payload[begin:end], dtype="<f4").reshape(one.d_out, one.rank)
        if not np.isfinite(matrix).all():
            raise FrameError("B holds a value that is not finite")
        result[one.name], begin = matrix.astype(np.float32), end
    return result


def _rows_header(payload: memoryview) -> tuple[bytes, int, int]:
    """Block id, first feature, count. Raises FrameError."""
    if len(payload) < _ROWS.size:
        raise FrameError("rows end before their header")
    block_id, first, count, zero = _ROWS.unpack_from(payload)
    if zero or not 1 <= count <= ROWS_PER_FRAME:
        raise FrameError(f"a frame of rows holds 1 to {ROWS_PER_FRAME} of them")
    return block_id, first, count


def _words(words: WordArray) -> memoryview:
    return np.ascontiguousarray(words, dtype="<u4").data.cast("B")


def _array(payload: memoryview, shape: tuple[int, ...]) -> WordArray:
    return np.frombuffer(payload, dtype="<u4").reshape(shape)


def _exactly(payload: memoryview, size: int) -> None:
    if len(payload) != size:
        raise FrameError(f"a payload of {len(payload)} bytes where {size} belong")
