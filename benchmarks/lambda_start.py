"""The API function under Lambda's own runtime client: its size, how it starts, what a warm event costs.

A start ends with what an instance is started for: with its first request. `init` is the part before it, until
the runtime asks for an event; `cold` goes on to an answer that needs nothing, `first_call` to one that needs
the table. The bare function beside it has one route for each, Mangum and a client of DynamoDB, the same
packages and the same interpreter. Neither may write byte code, since Lambda's file system is read-only. AWS
is moto in a process of its own.
"""

from __future__ import annotations

import itertools
import json
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from benchmarks.harness import Bench, Benchmark, Measure, at_most, cpu
from tests.support.aws_stack import Stack, make_stack
from tests.support.cloud import MODEL
from tests.support.lambda_runtime import Function, http_event, http_response
from tests.support.moto_process import moto_process

STARTS = 7
WARM_EVENTS = 500
URL: Final = "https://tensafe.example"
_HEALTHZ = http_event("GET", f"{URL}/healthz")
_API: Final = "tensafe.lambdas.api.handler"
_BARE: Final = """\
import os

import boto3
from fastapi import FastAPI
from mangum import Mangum

app = FastAPI()
client = boto3.client("dynamodb")


@app.get("/healthz")
async def healthz() -> dict[str, str]:
    return {"status": "ok"}


@app.get("/item")
def item() -> dict[str, bool]:
    key = {"pk": {"S": "a"}, "sk": {"S": "b"}}
    found = client.get_item(TableName=os.environ["TENSAFE_TABLE"], Key=key, ConsistentRead=True)
    return {"found": "Item" in found}


handler = Mangum(app, lifespan="off")
"""


@dataclass(frozen=True, slots=True)
class _Start:
    """One kind of start: `handler`'s first event, and the status of its answer."""

    name: str
    handler: str
    event: Mapping[str, Any]
    status: int = 200


class _Api:
    """Starts functions of one package over one emulator."""

    def __init__(self, built: Path, stack: Stack, log: Path) -> None:
        self._built = built
        self._log = log
        self._environment = stack.environment
        self._runs = itertools.count()
        with stack.services() as services:
            self._key = services.api_keys.create("acme", ["train", "sample"])[0]
            self._session = services.sessions.create("acme", {}).session_id

    def starts(self) -> tuple[_Start, ...]:
        """What takes turns. The first run needs a data key, and with it the Encryption SDK."""
        session = {"tags": [], "sdk_version": "0.38.0"}
        run = {
            "session_id": self._session,
            "model_seq_id": next(self._runs),  # the same would be the same run
            "base_model": MODEL["name"],
            "lora_config": {"rank": 4},
        }
        return (
            _Start("cold", _API, _HEALTHZ),
            _Start("bare_cold", "bare.handler", _HEALTHZ),
            _Start("first_call", _API, self._event("GET", "/api/v1/get_server_capabilities")),
            _Start("bare_first_call", "bare.handler", http_event("GET", f"{URL}/item")),
            _Start("first_session", _API, self._event("POST", "/api/v1/create_session", session)),
            _Start("first_native_call", _API, self._event("GET", "/v1/training_clients")),
            _Start("first_run", _API, self._event("POST", "/api/v1/create_model", run)),
        )

    def times_s(self, start: _Start) -> tuple[float, float]:
        """From nothing to the process' first request for an event, and to its first answer."""
        with self._function(start.handler) as function:
            began = time.perf_counter()
            answer = http_response(function.invoke(start.event))
            took_s = time.perf_counter() - began
            assert answer.status == start.status, answer.body
            return function.init_s, took_s

    def warm_s(self) -> float:
        """An event that needs nothing, the median."""
        times: list[float] = []
        with self._function(_API) as function:
            for _ in range(WARM_EVENTS):
                began = time.perf_counter()
                function.invoke(_HEALTHZ)
                times.append(time.perf_counter() - began)
        return statistics.median(times)

    def _event(self, method: str, path: str, body: object = None) -> dict[str, Any]:
        headers = {"X-API-Key": self._key, "Content-Type": "application/json"}
        raw = b"" if body is None else json.dumps(body).encode()
        return http_event(method, URL + path, headers=headers, body=raw)

    @contextmanager
    def _function(self, handler: str) -> Iterator[Function]:
        function = Function(self._built, handler, self._environment, self._log)
        try:
            yield function
        finally:
            function.close()


def run(bench: Bench) -> Mapping[str, float]:
    """Medians of starts that take turns; the first of each, which finds nothing in the page cache, is not
    counted."""
    built = bench.folder / "built"
    bench.note("building the package")
    subprocess.run([sys.executable, "tools/build_function.py", built], check=True, stdout=subprocess.DEVNULL)
    (built / "function/bare.py").write_text(_BARE)
    times: dict[str, list[float]] = defaultdict(list)
    with moto_process() as endpoint:
        api = _Api(built, make_stack(endpoint), bench.folder / "log")
        for turn in range(STARTS + 1):
            bench.note(f"start {turn} of {STARTS}")
            for start in api.starts():
                init_s, first_s = api.times_s(start)
                if turn:
                    times[f"{start.name}_init"].append(init_s)
                    times[start.name].append(first_s)
        warm_s = api.warm_s()
    median = {name: statistics.median(taken) for name, taken in times.items()}
    return {
        "function_zipped": (built / "function.zip").stat().st_size / 1e6,
        "function_cold_ratio": median["cold"] / median["bare_cold"],
        "function_cold": median["cold"],
        "function_init_ratio": median["cold_init"] / median["bare_cold_init"],
        "function_init": median["cold_init"],
        "function_first_call_ratio": median["first_call"] / median["bare_first_call"],
        "function_first_call": median["first_call"],
        "function_first_native_call": median["first_native_call"],
        "function_first_session": median["first_session"],
        "function_first_run": median["first_run"],
        "function_warm_p50": 1000 * warm_s,
    }


BENCHMARK = Benchmark(
    name="lambda",
    summary="the API function's package, cold start and warm event",
    measures=(
        Measure("function_zipped", "MB", at_most(30)),
        Measure("function_cold_ratio", "x", at_most(1.25)),
        Measure("function_cold", "s"),
        Measure("function_init_ratio", "x"),
        Measure("function_init", "s"),
        Measure("function_first_call_ratio", "x"),
        Measure("function_first_call", "s"),
        Measure("function_first_native_call", "s"),
        Measure("function_first_session", "s"),
        Measure("function_first_run", "s"),
        Measure("function_warm_p50", "ms", at_most(5)),
    ),
    run=run,
    device=cpu,
)
