"""A connection that sends without end is ended: heads, trailers, chunk extensions; bodies are not."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any

import uvicorn
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.types import Receive, Scope, Send
from uvicorn.server import ServerState

from tensafe.api.capped_http import HEAD_MAX_BYTES, CappedHttp

BLOCK = b"a" * 8192
POST = b"POST / HTTP/1.1\r\nHost: x\r\n"


class Transport(asyncio.Transport):
    """Keeps what is written; closes when told."""

    def __init__(self) -> None:
        super().__init__()
        self.written = b""
        self.closed = False

    def write(self, data: Any) -> None:
        self.written += bytes(data)

    def close(self) -> None:
        self.closed = True

    def is_closing(self) -> bool:
        return self.closed

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return {"peername": ("127.0.0.1", 1), "sockname": ("127.0.0.1", 2)}.get(name, default)

    def pause_reading(self) -> None: ...

    def resume_reading(self) -> None: ...

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None: ...


async def echo_size(scope: Scope, receive: Receive, send: Send) -> None:
    body = await Request(scope, receive).body()
    await PlainTextResponse(str(len(body)))(scope, receive, send)


def pour(pieces: Iterable[bytes]) -> tuple[int, Transport]:
    """Feed the pieces until the connection is closed; how many bytes were taken."""

    async def go() -> tuple[int, Transport]:
        config = uvicorn.Config(echo_size, http=CappedHttp, lifespan="off", log_config=None)
        config.load()
        transport, taken = Transport(), 0
        protocol = CappedHttp(config, ServerState(), {})
        protocol.connection_made(transport)
        for piece in pieces:
            protocol.data_received(piece)
            taken += len(piece)
            await asyncio.sleep(0)
            if transport.closed:
                break
        await asyncio.sleep(0.02)
        protocol.connection_lost(None)
        return taken, transport

    return asyncio.run(go())


def test_a_head_without_end() -> None:
    for filler in (BLOCK, b"\r\n".join([b"X: y"] * 2000) + b"\r\n"):
        taken, transport = pour([POST + b"X-Big: ", *[filler] * 1000])
        assert taken <= HEAD_MAX_BYTES + 3 * len(filler)
        assert transport.written.startswith(b"HTTP/1.1 431 ")
        assert b"headers_too_large" in transport.written


def test_trailers_and_chunk_extensions_without_end() -> None:
    for start in (b"2\r\n{}\r\n0\r\nX-Trailer: ", b"2;extension="):
        taken, transport = pour([POST + b"Transfer-Encoding: chunked\r\n\r\n", start, *[BLOCK] * 1000])
        assert transport.closed
        assert taken <= HEAD_MAX_BYTES + 3 * len(BLOCK)


def test_a_large_body_passes() -> None:
    size = len(BLOCK) * 100
    _, transport = pour([POST + b"Content-Length: %d\r\n\r\n" % size, *[BLOCK] * 100])
    assert transport.written.endswith(str(size).encode())
    chunk = b"2000\r\n" + BLOCK + b"\r\n"
    _, transport = pour([POST + b"Transfer-Encoding: chunked\r\n\r\n", *[chunk] * 100, b"0\r\n\r\n"])
    assert transport.written.endswith(str(size).encode())


def test_a_head_below_the_cap_passes_and_so_do_many_requests() -> None:
    request = POST + b"X-Big: " + b"a" * (HEAD_MAX_BYTES - 200) + b"\r\nContent-Length: 0\r\n\r\n"
    taken, transport = pour([request] * 20)
    assert taken == 20 * len(request)
    assert transport.written.count(b"HTTP/1.1 200 ") == 20
