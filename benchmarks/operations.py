"""The way of an operation that computes almost nothing: submitted, made durable, applied, answered."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping
from pathlib import Path

from benchmarks import models, tinker_calls
from benchmarks.harness import Bench, Benchmark, Measure, at_least, at_most, cpu
from benchmarks.peer import Handler, Peer
from benchmarks.raw_client import Work, drive_together, rate
from benchmarks.service import deployed

CLIENTS = 8
WARM_ROUNDS = 50
LATENCY_ROUNDS = 300
RATE_ROUNDS = 200
_RANK = 1


def run(bench: Bench) -> Mapping[str, float]:
    """Every client has a run of its own and asks for the result before it submits again."""
    model = models.smallest(bench.folder)
    with deployed(bench.folder, model) as service:
        submit = tinker_calls.optim_step(service)
        runs = tinker_calls.create_runs(service, CLIENTS + 1, rank=_RANK)
        bench.note("one client")
        alone = tinker_calls.rounds(service, runs[0], submit, WARM_ROUNDS + LATENCY_ROUNDS)
        (latency,) = drive_together([Work(service.port, alone, WARM_ROUNDS)])
        bench.note(f"{CLIENTS} clients")
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
    bench.note("the arithmetic alone")
    with Peer(_optimizer_step, str(model)) as step:
        arithmetic_ms = statistics.median(step(None) for _ in range(200)) * 1000
    return {
        "operation_p50": statistics.median(latency.seconds) * 1000,
        "operations_per_s": rate(together),
        "operation_arithmetic": arithmetic_ms,
    }


def _optimizer_step(model: str) -> Handler:
    """The same optimizer step on the trainer's engine, without a service around it."""
    import torch  # noqa: PLC0415 - in the peer alone

    from tensafe.contracts.training import AdamParams, LoraSpec  # noqa: PLC0415
    from tensafe_gpu.trainer.base_model import BaseModel  # noqa: PLC0415
    from tensafe_gpu.trainer.engine import Engine  # noqa: PLC0415

    torch.set_num_threads(1)  # as the trainer of this benchmark
    engine = Engine(BaseModel.load(str(Path(model))))
    state, params = engine.create(LoraSpec(rank=_RANK, seed=1)), AdamParams()

    def step(_: object) -> float:
        began = time.perf_counter()
        engine.optim_step(state, params)
        return time.perf_counter() - began

    return step


BENCHMARK = Benchmark(
    name="operation",
    summary="submit -> result of an optimizer step of a rank-1 adapter of a 0.3 M-parameter model",
    measures=(
        Measure("operation_p50", "ms", at_most(10)),
        Measure("operations_per_s", "1/s", at_least(300)),
        Measure("operation_arithmetic", "ms"),
    ),
    run=run,
    device=cpu,
)
