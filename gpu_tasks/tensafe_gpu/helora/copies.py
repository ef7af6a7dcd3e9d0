"""Whether this process is the one that drew its masks, or a copy that a fork made of it.

A copy has the same masks and the same place among them. Within a reserve nothing is burned, so the log of
used indices would let both send under one mask. A snapshot of a whole machine is not seen here
(docs/threat-model.md).
"""

from __future__ import annotations

import mmap
from typing import Final

_WIPEONFORK: Final = 18
"""MADV_WIPEONFORK (Linux 4.14, madvise(2)), which Python's mmap has no name for."""


class Original:
    """Made by a process for itself: `copied` is true in every child that is forked from it afterwards.

    A page that the kernel empties in the child. So it does not matter whether the fork was Python's, nor what
    number the child has, and asking is a read of memory.
    """

    __slots__ = ("_page",)

    def __init__(self) -> None:
        """Raises OSError where the kernel does not do that."""
        self._page = mmap.mmap(-1, mmap.PAGESIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self._page.madvise(_WIPEONFORK)
        self._page[0] = 1

    @property
    def copied(self) -> bool:
        """Whether this is another process than the one that made it."""
        return not self._page[0]
