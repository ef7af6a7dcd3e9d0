"""The embedded stores themselves: durable writes, and how soon a bell wakes another process."""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Mapping
from pathlib import Path

from benchmarks.harness import Bench, Benchmark, Measure, cpu
from benchmarks.peer import Handler, Peer
from tensafe.storage.ports import JsonValue, Key, Put
from tensafe.storage.sqlite_items import SqliteItems
from tensafe.storage.unix_bell import UnixBell

PUTS = 2000
WARM_RINGS = 20
RINGS = 500
_WAKE_TIMEOUT_S = 5.0
_BODY: dict[str, JsonValue] = {"kind": "optim_step", "state": "pending", "fingerprint": "0" * 64}


def run(bench: Bench) -> Mapping[str, float]:
    """Conditional puts of a small item, one after the other and each on the disk when it returns; a ring
    there and back, halved."""
    items = SqliteItems(bench.folder / "items.db")
    began = time.perf_counter()
    for index in range(PUTS):
        items.write([Put(Key("bench", f"item/{index:06d}"), _BODY, 0)])
    puts_per_s = PUTS / (time.perf_counter() - began)
    items.close()
    bench.note("the bell")
    bells = bench.folder / "bells"
    bell = UnixBell(bells)
    with Peer(_echo, str(bells)):
        trips = [_there_and_back(bell) for _ in range(WARM_RINGS + RINGS)][WARM_RINGS:]
    bell.close()
    return {"durable_puts_per_s": puts_per_s, "bell_wake_p50": statistics.median(trips) / 2 * 1e6}


def _there_and_back(bell: UnixBell) -> float:
    since = bell.count("back")
    began = time.perf_counter()
    bell.ring("there")
    if bell.wait("back", since=since, timeout_s=_WAKE_TIMEOUT_S) == since:
        raise TimeoutError("a ring was lost")
    return time.perf_counter() - began


def _echo(bells: str) -> Handler:
    """Answers every ring of `there` with one of `back`."""
    bell = UnixBell(Path(bells))

    def answer() -> None:
        seen = 0
        while True:
            count = bell.wait("there", since=seen, timeout_s=60)
            if count > seen:
                seen = count
                bell.ring("back")

    threading.Thread(target=answer, daemon=True).start()
    return lambda _: None


BENCHMARK = Benchmark(
    name="storage",
    summary="durable conditional puts of the items port, and the bell's way to another process",
    measures=(Measure("durable_puts_per_s", "1/s"), Measure("bell_wake_p50", "us")),
    run=run,
    device=cpu,
)
