"""Every benchmark, in the order in which they run and are shown."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks import (
    dealing,
    dp_table,
    engines,
    footprint,
    get_info,
    helora,
    lambda_start,
    ledger,
    manifest,
    noise,
    one_token,
    operations,
    private_decode,
    private_step,
    sampling,
    storage,
    training_step,
)
from benchmarks.harness import Benchmark

BENCHMARKS: tuple[Benchmark, ...] = (
    operations.BENCHMARK,
    get_info.BENCHMARK,
    one_token.BENCHMARK,
    training_step.BENCHMARK,
    training_step.CUDA_BENCHMARK,
    private_step.BENCHMARK,
    private_step.CUDA_BENCHMARK,
    dp_table.BENCHMARK,
    noise.BENCHMARK,
    dealing.BENCHMARK,
    manifest.BENCHMARK,
    sampling.BENCHMARK,
    footprint.BENCHMARK,
    lambda_start.BENCHMARK,
    storage.BENCHMARK,
    ledger.BENCHMARK,
    helora.BENCHMARK,
    private_decode.BENCHMARK,
    engines.BENCHMARK,
)


def measure_names() -> list[str]:
    """The names of all results, in order."""
    return [measure.name for benchmark in BENCHMARKS for measure in benchmark.measures]


def chosen(only: str | None) -> Sequence[Benchmark]:
    """All, or the one of this name or with a measure of this name. Raises KeyError."""
    if only is None:
        return BENCHMARKS
    for benchmark in BENCHMARKS:
        if only == benchmark.name or only in {measure.name for measure in benchmark.measures}:
            return (benchmark,)
    raise KeyError(only)
