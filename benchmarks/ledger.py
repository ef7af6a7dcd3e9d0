"""The privacy ledger: what charging a step costs, and how fast a third party verifies an export."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Final

from benchmarks.harness import Bench, Benchmark, Measure, at_least, cpu
from tensafe.local.composition import initialise, local_services
from tensafe.local.settings import LocalSettings
from tensafe.privacy.anchoring import Anchoring
from tensafe.privacy.export import Exporter
from tensafe.privacy.ledger import Ledger
from tensafe.privacy.mechanism import Mechanism
from tensafe.privacy.noise import noise_key_id
from tensafe.storage.anchors import Anchors, Mark
from tensafe.storage.ports import Items

RUNS: Final = 4
STEPS: Final = 20_000
TIMED: Final = 300
UNITS: Final = 16
DATASET: Final = 1000
"""Units of the data set; each takes part 320 times, so that epsilon grows with every epoch."""
ROUNDS: Final = 5
_MECHANISM: Final = Mechanism(
    clip_norm=1.0,
    noise_multiplier=20.0,
    batch_size=UNITS,
    max_participations=STEPS,
    delta=1e-6,
    domain="bench",
)
_VERIFY: Final = """
import sys, time
from tensafe.privacy.verify import verify
from tensafe.storage.signing import PublicKey
key = PublicKey.from_pem(open(sys.argv[2]).read())
for _ in range(int(sys.argv[3])):
    began = time.perf_counter()
    with open(sys.argv[1], "rb") as file:
        report = verify(file, {key.key_id: key})
    print(report.rows / (time.perf_counter() - began))
"""
"""In a process of its own, as whoever has the file and the key would."""


def run(bench: Bench) -> Mapping[str, float]:
    """20,000 steps of four runs with 16 units each, charged, exported and verified whole.

    The first 300 charges are timed on the disk, with signature and anchor; the time inside the anchor's
    `put` also by itself. The others are written without waiting for the disk. A verification reads the file
    from the disk and uses all cores.
    """
    initialise(bench.folder / "data")
    path, pem = bench.folder / "export.jsonl", bench.folder / "key.pem"
    with local_services(LocalSettings(data_dir=bench.folder / "data")) as services:
        ports, anchors = services.ports, _Timed(services.ports.anchors)
        ledger = Ledger(ports.items, services.vault, ports.signer, anchors)
        bench.note(f"charging {TIMED} steps on the disk")
        seconds = _charge(ledger, 0, TIMED)
        relaxed, remembered = _Relaxed(ports.items), _Remembered(ports.anchors)
        bench.note(f"charging {STEPS} steps")
        _charge(Ledger(relaxed, services.vault, ports.signer, remembered), TIMED, STEPS)
        bench.note("exporting")
        exporter = Exporter(ports.items, services.vault, ports.signer, Anchoring(ports.items, remembered))
        with path.open("wb") as file:
            file.writelines(exporter.lines("bench", "bench", at_ms=0))
        pem.write_text(ports.signer.public_key)
    bench.note("verifying")
    command = [sys.executable, "-c", _VERIFY, str(path), str(pem), str(1 + ROUNDS)]
    rates = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    return {
        "ledger_verify_rows_per_s": statistics.median(map(float, rates[1:])),
        "ledger_charge_p50": statistics.median(seconds) * 1e3,
        "ledger_anchor_p50": statistics.median(anchors.seconds) * 1e3,
    }


class _Relaxed:
    """Items whose writes do not wait for the disk."""

    def __init__(self, inner: Items) -> None:
        self.get, self.query, self.write = inner.get, inner.query, inner.write_relaxed
        self.write_relaxed = inner.write_relaxed


class _Remembered:
    """Anchors that begin as others are and are kept in memory."""

    def __init__(self, inner: Anchors) -> None:
        self._marks = {mark.name: mark for mark in inner.all()}
        self.get = self._marks.get

    def put(self, mark: Mark, *, after: Mark | None) -> None:
        self._marks[mark.name] = mark

    def all(self) -> list[Mark]:
        return list(self._marks.values())


class _Timed:
    """Anchors, and how long every `put` took."""

    def __init__(self, inner: Anchors) -> None:
        self.get, self.all, self._inner = inner.get, inner.all, inner
        self.seconds: list[float] = []

    def put(self, mark: Mark, *, after: Mark | None) -> None:
        began = time.perf_counter()
        self._inner.put(mark, after=after)
        self.seconds.append(time.perf_counter() - began)


def _charge(ledger: Ledger, first: int, end: int) -> Sequence[float]:
    """Seconds of every `reserve`."""
    refs = [
        ledger.open_run("bench", f"run-{run}", _MECHANISM, noise_key_id=noise_key_id(bytes([run]) * 32))
        for run in range(RUNS)
    ]
    seconds = []
    for step in range(first, end):
        units = [(step * UNITS + unit) % DATASET for unit in range(UNITS)]
        began = time.perf_counter()
        ledger.reserve(refs[step % RUNS], step, units)
        seconds.append(time.perf_counter() - began)
    return seconds


BENCHMARK = Benchmark(
    name="ledger",
    summary="charging a step to the signed and anchored privacy ledger, and verifying an export offline",
    measures=(
        Measure("ledger_verify_rows_per_s", "1/s", at_least(10_000)),
        Measure("ledger_charge_p50", "ms"),
        Measure("ledger_anchor_p50", "ms"),
    ),
    run=run,
    device=cpu,
)
