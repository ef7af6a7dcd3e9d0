"""How a training loop comes by its batches, and which options of a privacy plan are true for it."""

from __future__ import annotations

from enum import StrEnum
from typing import Final

ANY_LOOP: Final = "any loop over epochs"
FIXED_ORDER: Final = "epochs in one fixed order"
SAMPLED: Final = "batches that the client samples"
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
    Loop.SAMPLED: frozenset({ANY_LOOP, SAMPLED}),
    # Each unit is drawn anew in every step, so that no number of participations bounds it.
    Loop.DEALT: frozenset({DEALT}),
}
"""The values of `planner.Option.honest_for` that hold for each loop."""

WHY: Final = {
    Loop.RESHUFFLED: "A loop that the client shuffles anew is honest with mode=bounded alone. Shuffling must "
    "not be billed as Poisson sampling, whose noise holds if the server draws every batch.",
    Loop.FIXED: "One fixed order keeps a unit's steps apart: mode=bounded uses that, and the server counts. "
    "It must not be billed as Poisson sampling, whose noise holds if the server draws every batch.",
    Loop.SAMPLED: "Nobody can check a sample that the client draws: its amplification can at most be "
    "attested (mode=attested), and the budget binds on what the server counts, as in mode=bounded. A unit "
    "that is drawn more often than max_participations is refused.",
    Loop.DEALT: "A loop that trains on exactly the units that the server draws earns the noise of Poisson "
    "sampling, and no other: nothing bounds the number of steps in which a unit is drawn.",
}
"""Which mode is honest for each loop, in words."""
