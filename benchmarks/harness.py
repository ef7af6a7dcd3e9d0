"""What a benchmark is, what it measures, and on what it ran."""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from benchmarks.results_file import Result

_CPUINFO: Final = Path("/proc/cpuinfo")


class NotRun(Exception):
    """This machine lacks what the benchmark needs; the message says what."""


@dataclass(frozen=True, slots=True)
class Goal:
    """A bound, met by values at it or on its good side."""

    sign: Literal["<=", ">="]
    bound: float

    def met_by(self, value: float) -> bool:
        return value <= self.bound if self.sign == "<=" else value >= self.bound

    def __str__(self) -> str:
        return f"{self.sign} {self.bound:g}"


@dataclass(frozen=True, slots=True)
class Measure:
    """One number that a benchmark promises. Without a goal it is there to be read."""

    name: str
    unit: str
    goal: Goal | None = None


@dataclass(frozen=True, slots=True)
class Bench:
    """What a benchmark is handed: an empty folder on a disk, and how to say what it is doing."""

    folder: Path
    note: Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Benchmark:
    """`run` returns a number for every measure, or raises NotRun."""

    name: str
    summary: str
    measures: tuple[Measure, ...]
    run: Callable[[Bench], Mapping[str, float]]
    device: Callable[[], str]


def at_most(bound: float) -> Goal:
    return Goal("<=", bound)


def at_least(bound: float) -> Goal:
    return Goal(">=", bound)


def execute(benchmark: Benchmark, bench: Bench) -> list[Result]:
    """Run it; a result for every measure, whether it ran or not."""
    try:
        values = benchmark.run(bench)
    except NotRun as reason:
        return not_run(benchmark, str(reason))
    wrong = set(values) ^ {measure.name for measure in benchmark.measures}
    assert not wrong, f"{benchmark.name} does not declare, or did not measure: {sorted(wrong)}"
    device = benchmark.device()
    return [_result(measure, values[measure.name], device) for measure in benchmark.measures]


def not_run(benchmark: Benchmark, reason: str) -> list[Result]:
    """Results without values; `device` holds the reason."""
    return [
        Result(measure.name, None, measure.unit, _goal(measure), None, f"not run: {reason}")
        for measure in benchmark.measures
    ]


def _result(measure: Measure, value: float, device: str) -> Result:
    met = measure.goal.met_by(value) if measure.goal else None
    return Result(measure.name, float(f"{value:.4g}"), measure.unit, _goal(measure), met, device)


def _goal(measure: Measure) -> str | None:
    return str(measure.goal) if measure.goal else None


def cpu() -> str:
    """The processor's model and the number of cores that this process may use."""
    model = platform.processor() or platform.machine()
    for line in _CPUINFO.read_text().splitlines() if _CPUINFO.exists() else ():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    return f"{model}, {cores()} cores"


def cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0))


def two_cores() -> tuple[int, int]:
    """One for each side of a conversation; the same one twice where there is no other."""
    usable = sorted(os.sched_getaffinity(0))
    return usable[0], usable[-1]


@contextmanager
def pinned(core: int) -> Iterator[None]:
    """Processes that are started in this block run on this core alone, and so does what they start."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def gpu() -> str:
    """The first CUDA device. Raises NotRun if there is none."""
    import torch  # noqa: PLC0415 - heavy, and only some benchmarks need it

    if not torch.cuda.is_available():
        raise NotRun("no CUDA device")
    return torch.cuda.get_device_name(0)


Side = Callable[[int], float]
"""Does round number `i` and returns the seconds that it took."""


def interleaved(
    sides: Mapping[str, Side], rounds: int, warm_rounds: int, *, pause_s: float = 0.0
) -> dict[str, list[float]]:
    """Seconds of every side's measured rounds. The sides take turns, in alternating order, so that what
    else the machine does, or a clock that slows down, meets all of them alike; `pause_s` before each is
    for a side that is not idle as soon as it has answered."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for index in range(warm_rounds + rounds):
        order = list(sides) if index % 2 == 0 else list(reversed(sides))
        for name in order:
            time.sleep(pause_s)
            took = sides[name](index)
            if index >= warm_rounds:
                seconds[name].append(took)
    return seconds


def ratio(numerator: Sequence[float], denominator: Sequence[float]) -> float:
    """Ratio of the medians."""
    return statistics.median(numerator) / statistics.median(denominator)
