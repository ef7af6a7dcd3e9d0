"""get_info: an answer from the registry, the shortest useful request."""

from __future__ import annotations

import statistics
from collections.abc import Mapping

from benchmarks import models, tinker_calls
from benchmarks.harness import Bench, Benchmark, Measure, at_least, cpu
from benchmarks.raw_client import Work, drive_together, rate
from benchmarks.service import deployed

CLIENTS = 8
WARM_ROUNDS = 100
ROUNDS = 1000


def run(bench: Bench) -> Mapping[str, float]:
    """One client for the latency, then eight at once for the rate."""
    with deployed(bench.folder, models.smallest(bench.folder)) as service:
        (run,) = tinker_calls.create_runs(service, 1, rank=8)
        requests = [[tinker_calls.get_info(service, run)]] * (WARM_ROUNDS + ROUNDS)
        work = Work(service.port, requests, WARM_ROUNDS)
        (alone,) = drive_together([work])
        together = drive_together([work] * CLIENTS)
    return {"get_info_p50": statistics.median(alone.seconds) * 1000, "get_info_per_s": rate(together)}


BENCHMARK = Benchmark(
    name="get_info",
    summary="get_info, one client for the latency and eight processes for the rate",
    measures=(Measure("get_info_p50", "ms"), Measure("get_info_per_s", "1/s", at_least(1000))),
    run=run,
    device=cpu,
)
