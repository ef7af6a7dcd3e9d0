"""What one private adapter may take of a forward pass, while which everybody else waits.

A time-out per exchange is none for a pass: who answers each of 48 rounds just before it holds the batch up
48 times as long. So each adapter has one budget of waiting for all rounds of a pass.
"""

from __future__ import annotations

from typing import Final

PASS_S: Final = 3.0
"""What one exchange may take, so that a holder that hangs costs what it did. 48 rounds of 16 rows take 8 ms
on one host, and some 20 ms a site when the holder reserves indices in a remote table.
"""
TOKEN_S: Final = 0.01
"""On top for each row of the pass: measured are 0.5 ms (2048 rows, 48 rounds, 1.0 s)."""


class Budget:
    """Of one adapter in one pass. What was not prepared is allowed its time on top."""

    __slots__ = ("left_s",)

    def __init__(self, rows: int, pass_s: float) -> None:
        self.left_s = pass_s + TOKEN_S * rows

    def charge(self, took_s: float, work_s: float = 0.0) -> None:
        """A round ended after `took_s`, of which `work_s` is allowed to whatever it did."""
        if took_s > work_s:
            self.left_s -= took_s - work_s
