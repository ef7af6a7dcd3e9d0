"""How a training loop comes by its batches, and which options of a privacy plan are true for it."""

from __future__ import annotations

from enum import StrEnum
from typing import Final

ANY_LOOP: Final = "any loop over epochs"
FIXED_ORDER: Final = "epochs in one fixed order"
DEALT: Final = "batches that the server draws"


class Loop(StrEnum):
    """`sampled`: the client draws each unit at random, by itself; `dealt`: the server does."""

    RESHUFFLED = "reshuffled"
    FIXED = "fixed"
    SAMPLED = "sampled"
    DEALT = "dealt"


HONEST: Final = {
    Loop.RESHUFFLED: frozenset({ANY_LOOP}),
    Loop.FIXED: frozenset({ANY_LOOP, FIXED_ORDER}),
    # Nobody can check what the client drew: the server counts, whatever the client says.
    Loop.SAMPLED: frozenset({ANY_LOOP}),
    # Each unit is drawn anew in every step, so that no number of participations bounds it.
    Loop.DEALT: frozenset({DEALT}),
}
"""The values of `planner.Option.honest_for` that hold for each loop."""
