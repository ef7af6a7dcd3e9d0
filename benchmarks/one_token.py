"""A forward pass over one token: what the service adds to a computation that is short itself."""

from __future__ import annotations

import statistics
from collections.abc import Mapping

from benchmarks import models, tinker_calls
from benchmarks.harness import Bench, Benchmark, Measure, at_least, at_most, cpu
from benchmarks.raw_client import Work, drive_together, rate
from benchmarks.service import deployed

CLIENTS = 8
WARM_ROUNDS = 30
LATENCY_ROUNDS = 200
RATE_ROUNDS = 60
_TOKENS = (7,)


def run(bench: Bench) -> Mapping[str, float]:
    """Forward only, cross entropy, as protobuf; the result holds the token's logprob."""
    with deployed(bench.folder, models.four_million(bench.folder)) as service:
        submit = tinker_calls.forward(service, _TOKENS)
        runs = tinker_calls.create_runs(service, CLIENTS + 1, rank=8)
        alone = tinker_calls.rounds(service, runs[0], submit, WARM_ROUNDS + LATENCY_ROUNDS)
        (latency,) = drive_together([Work(service.port, alone, WARM_ROUNDS)])
        together = drive_together(
            [
                Work(
                    service.port,
                    tinker_calls.rounds(service, run, submit, WARM_ROUNDS + RATE_ROUNDS),
                    WARM_ROUNDS,
                )
                for run in runs[1:]
            ]
        )
    return {
        "one_token_forward_p50": statistics.median(latency.seconds) * 1000,
        "one_token_forwards_per_s": rate(together),
    }


BENCHMARK = Benchmark(
    name="one_token_forward",
    summary="a forward pass over one token of a 4.1 M-parameter model, through raw protobuf",
    measures=(
        Measure("one_token_forward_p50", "ms", at_most(20)),
        Measure("one_token_forwards_per_s", "1/s", at_least(60)),
    ),
    run=run,
    device=cpu,
)
