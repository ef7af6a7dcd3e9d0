"""What a stretch of work took, by two clocks at once."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple


class Spent(NamedTuple):
    """Thread CPU time, summed over the threads of this process, and time on the wall. Seconds."""

    cpu_s: float
    wall_s: float

    def __add__(self, other: object) -> Spent:
        """Both, one after the other."""
        assert isinstance(other, Spent)
        return Spent(self.cpu_s + other.cpu_s, self.wall_s + other.wall_s)

    def times(self, factor: float) -> Spent:
        """So many of them."""
        return Spent(self.cpu_s * factor, self.wall_s * factor)

    def named(self, name: str, per_s: float) -> dict[str, float]:
        """Results `name` and `name_wall`, in a unit of which a second has `per_s`."""
        return {name: self.cpu_s * per_s, f"{name}_wall": self.wall_s * per_s}

    def rates(self, name: str) -> dict[str, float]:
        """Results `name` and `name_wall`: so many a second."""
        return {name: 1 / self.cpu_s, f"{name}_wall": 1 / self.wall_s}


def spent(act: Callable[[], object]) -> Spent:
    """What `act` takes."""
    cpu_s, wall_s = time.process_time(), time.perf_counter()
    act()
    return Spent(time.process_time() - cpu_s, time.perf_counter() - wall_s)
