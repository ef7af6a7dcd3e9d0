"""Dealing a step's units from a manifest of a million, and the compare that admits a step."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping
from pathlib import Path

from benchmarks.harness import Bench, Benchmark, Measure, at_most, cpu
from benchmarks.memory import peak_mb
from benchmarks.peer import Handler, Peer

UNITS = 1_000_000
BATCH = 1024
CAP = 1_400
DEALS = 50
ADMISSIONS = 10_000


def run(bench: Bench) -> Mapping[str, float]:
    """In a fresh process that reads a stored manifest: draw a step's units and look up their ids. The
    memory is all that the process ever held. Admission: one decision, its limit found before."""
    stored = bench.folder / "manifest"
    bench.note("a manifest of a million units")
    with Peer(_writes_a_manifest) as writer:
        writer(str(stored))
    bench.note("dealing")
    with Peer(_deals, str(stored)) as dealer:
        deal_s, peak = dealer(None)
    return {"deal": deal_s, "deal_peak": peak, "deal_admission": _admission_s() * 1e3}


def _writes_a_manifest() -> Handler:
    from tensafe.contracts.domains import DomainTerms  # noqa: PLC0415 - in the peer alone
    from tensafe.privacy.manifest import ManifestBuilder  # noqa: PLC0415

    def write(path: str) -> None:
        builder = ManifestBuilder(DomainTerms(unit="record", delta=1e-7, max_epsilon=3.0))
        for unit_id in range(UNITS):
            builder.add(unit_id, bytes(32))
        Path(path).write_bytes(builder.finish().to_bytes())

    return write


def _deals(path: str) -> Handler:
    from tensafe.privacy.dealing import DealTerms, deal, exact_probability, new_deal_seed  # noqa: PLC0415
    from tensafe.privacy.manifest import Manifest  # noqa: PLC0415

    def measure(_: object) -> tuple[float, float]:
        manifest, seed = Manifest.from_bytes(Path(path).read_bytes()), new_deal_seed()
        terms = DealTerms("bench", manifest.digest, manifest.units, exact_probability(BATCH / UNITS), CAP)
        seconds = []
        for step in range(DEALS + 1):
            began = time.perf_counter()
            manifest.ids[deal(seed, step, terms).indices].tolist()
            seconds.append(time.perf_counter() - began)
        return statistics.median(seconds[1:]), peak_mb()

    return measure


def _admission_s() -> float:
    from tensafe.privacy.deal_record import DealRecord, complete, dealt  # noqa: PLC0415 - as above

    record = DealRecord(max_steps=ADMISSIONS)
    seconds = []
    for step in range(ADMISSIONS):
        began = time.perf_counter()
        opened = dealt(record, step)
        seconds.append(time.perf_counter() - began)
        record = complete(opened, step)
    return statistics.median(seconds)


BENCHMARK = Benchmark(
    name="dealing",
    summary=f"a step's units drawn from a manifest of {UNITS:,} units",
    measures=(
        Measure("deal", "s", at_most(0.5)),
        Measure("deal_peak", "MB", at_most(200)),
        Measure("deal_admission", "ms", at_most(0.2)),
    ),
    run=run,
    device=cpu,
)
