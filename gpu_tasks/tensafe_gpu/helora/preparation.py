"""A block of masks over a connection: encrypted here, multiplied there, decrypted here."""

from __future__ import annotations

from tensafe_gpu.helora.connection import Connection
from tensafe_gpu.helora.frames import FrameError, Kind
from tensafe_gpu.helora.masks import PreparedBlock, PreparingBlock
from tensafe_gpu.helora.messages import (
    ROWS_PER_FRAME,
    pack_begin,
    pack_rows,
    pack_whole_rows,
    reply_bytes,
    unpack_reply,
)
from tensafe_gpu.helora.ports import HeUnavailable, SiteShape


def prepared(connection: Connection, index: int, shape: SiteShape, timeout_s: float) -> PreparedBlock:
    """A block for the site of this number; each answer has `timeout_s`. Raises HeUnavailable."""
    block = PreparingBlock(shape.d_in, shape.rank_rows)
    try:
        begin = pack_begin(index, block.block_id, block.public_halves(connection.nonce))
        connection.ask(Kind.BLOCK_BEGIN, begin, Kind.ACCEPTED, 0, timeout_s)
        for first in range(0, shape.d_in, ROWS_PER_FRAME):
            count = min(ROWS_PER_FRAME, shape.d_in - first)
            kind, rows = _rows_of(block, first, count, whole=connection.on_one_host)
            last = first + count == shape.d_in
            answer = (Kind.BLOCK_REPLY, reply_bytes(shape.rank_rows)) if last else (Kind.ACCEPTED, 0)
            payload = connection.ask(kind, rows, *answer, timeout_s)
        block_id, words = unpack_reply(payload, shape.rank_rows)
        if block_id != block.block_id:
            raise FrameError("the reply of another block")
        try:
            return block.finish(words)
        except HeUnavailable:
            connection.close()
            raise
    except FrameError as error:
        raise connection.garbage("reply", error) from error
    finally:
        block.close()


def _rows_of(
    block: PreparingBlock, first: int, count: int, *, whole: bool
) -> tuple[Kind, list[bytes | memoryview]]:
    """The frame of encrypted features [first, first + count)."""
    if whole:
        words = block.encrypted_whole(first, count)
        return Kind.BLOCK_WHOLE_ROWS, pack_whole_rows(block.block_id, first, words)
    return Kind.BLOCK_ROWS, pack_rows(block.block_id, first, *block.encrypted(first, count))
