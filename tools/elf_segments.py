"""Cut from a shared library what no process loads: symbols of its own and debug information.

The loader goes by program headers (System V ABI, "Program Header"); sections are for linkers and debuggers.
What lies behind the last segment goes, and with it the table of sections. No binutils are needed for it.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Final

_MAGIC: Final = b"\x7fELF\x02\x01"
"""64 bit, little endian; others are left as they are."""
_HEADER_BYTES: Final = 64
_SECTION_TABLE_AT: Final = 40
_SECTION_COUNTS_AT: Final = 60


def keep_segments(library: Path) -> int:
    """Rewrite the file; the bytes that went, 0 for what is no such library."""
    data = bytearray(library.read_bytes())
    if data[: len(_MAGIC)] != _MAGIC or len(data) < _HEADER_BYTES:
        return 0
    (headers_at,) = struct.unpack_from("<Q", data, 32)
    size, count = struct.unpack_from("<HH", data, 54)
    end = headers_at + size * count
    for at in range(headers_at, end, size):
        offset, _, _, length = struct.unpack_from("<QQQQ", data, at + 8)
        end = max(end, offset + length)
    struct.pack_into("<Q", data, _SECTION_TABLE_AT, 0)
    struct.pack_into("<HH", data, _SECTION_COUNTS_AT, 0, 0)
    gone = len(data) - end
    library.write_bytes(data[:end])
    return gone
