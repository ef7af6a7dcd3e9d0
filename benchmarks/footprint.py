"""How much memory the API holds, and how soon each process is ready."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping

from benchmarks import models, tinker_calls
from benchmarks.harness import Bench, Benchmark, Measure, at_most, cpu
from benchmarks.peer import Handler, Peer
from benchmarks.raw_client import Work, drive_together
from benchmarks.service import deployed

STARTS = 3
CLIENTS = 4
OPERATIONS = 150
_MB = 1e6


def run(bench: Bench) -> Mapping[str, float]:
    """Medians of three starts; memory after 600 operations with their results, and as many get_info."""
    model = models.four_million(bench.folder)
    api_s, trainer_s, resident_mb = [], [], 0.0
    for start in range(STARTS):
        bench.note(f"start {start + 1} of {STARTS}")
        folder = bench.folder / f"start-{start}"
        folder.mkdir()
        with deployed(folder, model) as service:
            api_s.append(service.ready_s["api"])
            trainer_s.append(service.ready_s["trainer"])
            if start == STARTS - 1:
                submit = tinker_calls.optim_step(service)
                runs = tinker_calls.create_runs(service, CLIENTS, rank=8)
                drive_together(
                    [
                        Work(
                            service.port,
                            [
                                [*requests, tinker_calls.get_info(service, run)]
                                for requests in tinker_calls.rounds(service, run, submit, OPERATIONS)
                            ],
                            0,
                        )
                        for run in runs
                    ]
                )
                resident_mb = service.process("api").memory_info().rss / _MB
    with Peer(_load_again, str(model)) as loading:
        load_s = statistics.median(loading(None) for _ in range(STARTS))
    return {
        "api_resident": resident_mb,
        "api_ready": statistics.median(api_s),
        "trainer_ready_beyond_load": statistics.median(trainer_s) - load_s,
    }


def _load_again(model: str) -> Handler:
    """Loads the model as the trainer does, with every module imported already: the loading alone."""
    from tensafe_gpu.trainer.base_model import BaseModel  # noqa: PLC0415 - in the peer alone

    BaseModel.load(model)

    def load(_: object) -> float:
        began = time.perf_counter()
        BaseModel.load(model)
        return time.perf_counter() - began

    return load


BENCHMARK = Benchmark(
    name="footprint",
    summary="memory of the API process and the time until each process is ready",
    measures=(
        Measure("api_resident", "MB", at_most(200)),
        Measure("api_ready", "s", at_most(2)),
        Measure("trainer_ready_beyond_load", "s", at_most(10)),
    ),
    run=run,
    device=cpu,
)
