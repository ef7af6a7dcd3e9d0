"""HTTP/1.1 with a bound on what a client can make this process hold before a route sees anything."""

from __future__ import annotations

from typing import Final

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

HEAD_MAX_BYTES: Final = 64 * 1024
_REFUSAL: Final = (
    b'{"error":{"code":"headers_too_large","message":"send a request head of at most 65536 bytes",'
    b'"field":null,"request_id":""},"detail":"send a request head of at most 65536 bytes"}'
)
_ANSWER: Final = (
    b"HTTP/1.1 431 Request Header Fields Too Large\r\nconnection: close\r\n"
    b"content-type: application/json\r\ncontent-length: %d\r\n\r\n%s" % (len(_REFUSAL), _REFUSAL)
)


class CappedHttp(HttpToolsProtocol):
    """Ends a connection that sends 64 KiB without finishing a request head, or a piece of a body.

    The parser keeps a head, and the trailers of a chunked body, until they are whole; a body is counted
    where it is read. The cap is looked at after each read from the socket, at most 256 KiB.
    """

    _idle_bytes = 0
    """Received since the parser last handed something on."""

    def data_received(self, data: bytes) -> None:
        self._idle_bytes += len(data)
        super().data_received(data)
        if self._idle_bytes > HEAD_MAX_BYTES and not self.transport.is_closing():
            if self.cycle is None or self.cycle.response_complete:
                self.transport.write(_ANSWER)
            self.transport.close()

    def on_message_begin(self) -> None:
        self._idle_bytes = 0
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        self._idle_bytes = 0
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._idle_bytes = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._idle_bytes = 0
        super().on_message_complete()
