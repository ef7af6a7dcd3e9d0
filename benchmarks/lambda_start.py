"""The API function under Lambda's own runtime client: its size, how it starts, what a warm event costs.

The bare function beside it has one route, Mangum and a client of DynamoDB, the same packages and the same
interpreter. Neither may write byte code, since Lambda's file system is read-only.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from benchmarks.harness import Bench, Benchmark, Measure, at_most, cpu
from tests.support.cloud import cloud_environment
from tests.support.lambda_runtime import Function, http_event

STARTS = 7
WARM_EVENTS = 500
_HEALTHZ = http_event("GET", "https://tensafe.example/healthz")
_API = "tensafe.lambdas.api.handler"
_BARE = """\
import boto3
from fastapi import FastAPI
from mangum import Mangum

app = FastAPI()
client = boto3.client("dynamodb")


@app.get("/healthz")
async def healthz() -> dict[str, str]:
    return {"status": "ok"}


handler = Mangum(app, lifespan="off")
"""


def run(bench: Bench) -> Mapping[str, float]:
    """Medians of starts that take turns; the first of each, which finds nothing in the page cache, is not
    counted."""
    built = bench.folder / "built"
    bench.note("building the package")
    subprocess.run([sys.executable, "tools/build_function.py", built], check=True, stdout=subprocess.DEVNULL)
    (built / "function/bare.py").write_text(_BARE)
    ours: list[float] = []
    bare: list[float] = []
    for start in range(STARTS + 1):
        bench.note(f"start {start} of {STARTS}")
        for handler, times in ((_API, ours), ("bare.handler", bare)):
            times.append(_start_s(built, handler, bench.folder / "log"))
    cold_s, bare_s = statistics.median(ours[1:]), statistics.median(bare[1:])
    return {
        "function_zipped": (built / "function.zip").stat().st_size / 1e6,
        "function_cold_ratio": cold_s / bare_s,
        "function_cold": cold_s,
        "function_warm_p50": 1000 * _warm_s(built, bench.folder / "log"),
    }


def _function(built: Path, handler: str, log: Path) -> Function:
    return Function(built, handler, cloud_environment(), log)


def _start_s(built: Path, handler: str, log: Path) -> float:
    """From nothing to the first answer."""
    function = _function(built, handler, log)
    began = time.perf_counter()
    try:
        function.invoke(_HEALTHZ)
        return time.perf_counter() - began
    finally:
        function.close()


def _warm_s(built: Path, log: Path) -> float:
    function = _function(built, _API, log)
    times: list[float] = []
    try:
        for _ in range(WARM_EVENTS):
            began = time.perf_counter()
            function.invoke(_HEALTHZ)
            times.append(time.perf_counter() - began)
        return statistics.median(times)
    finally:
        function.close()


BENCHMARK = Benchmark(
    name="lambda",
    summary="the API function's package, cold start and warm event",
    measures=(
        Measure("function_zipped", "MB", at_most(30)),
        Measure("function_cold_ratio", "x", at_most(1.25)),
        Measure("function_cold", "s"),
        Measure("function_warm_p50", "ms", at_most(5)),
    ),
    run=run,
    device=cpu,
)
