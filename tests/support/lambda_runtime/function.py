"""A function: its process is started by the first event, kept for the next, killed when it takes too long."""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.support.lambda_runtime.api_server import Answer, Invocation, RuntimeApi

PAYLOAD_MAX_BYTES = 6 * 1024 * 1024 + 100
"""Of an event, and of an answer, as JSON: Lambda's quota for synchronous invocations."""
INIT_TIMEOUT_S = 60.0
"""Lambda's is 10 s; a busy test machine is no Lambda."""


class InitFailed(Exception):
    """The process did not get as far as asking for an event."""


class Crashed(Exception):
    """The handler raised; the event of an event source would be tried again."""


class TimedOut(Exception):
    """The process was killed in the middle."""


class TooLarge(Exception):
    """The event, or the answer, passes Lambda's quota."""


class Function:
    """One concurrent instance of `handler`, of the package that tools/build_function.py has made."""

    def __init__(
        self, built: Path, handler: str, environment: Mapping[str, str], log: Path, *, timeout_s: float = 29.0
    ) -> None:
        self._built = built
        self._handler = handler
        self._environment = dict(environment)
        self._log = log
        self._timeout_s = timeout_s
        self._api: RuntimeApi | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._began_s = 0.0
        self.starts = 0

    @property
    def logged(self) -> str:
        """What its processes have written, on both streams."""
        return self._log.read_text() if self._log.exists() else ""

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process else None

    @property
    def last(self) -> Invocation:
        """The last event that it was given."""
        assert self._api is not None
        assert self._api.last is not None
        return self._api.last

    @property
    def init_s(self) -> float:
        """Seconds that its present process took until it asked for its first event."""
        assert self._api is not None
        assert self._api.first_asked_s is not None
        return self._api.first_asked_s - self._began_s

    def invoke(self, event: Mapping[str, Any], *, sampled: bool = True) -> Any:
        """What the handler returns; `sampled` says whether X-Ray keeps its trace.

        Raises one of the above; TooLarge before anything is started.
        """
        raw = json.dumps(event).encode()
        if len(raw) > PAYLOAD_MAX_BYTES:
            raise TooLarge(f"an event of {len(raw)} bytes")
        fresh = self._process is None
        if fresh:
            self._start()
        assert self._api is not None
        self._api.put(raw, self._timeout_s, sampled=sampled)
        answer = self._await(self._api, self._timeout_s + (INIT_TIMEOUT_S if fresh else 0))
        if answer.kind == "init":
            self.close()
            raise InitFailed(answer.body.decode())
        if answer.kind == "error":
            raise Crashed(answer.body.decode())
        if len(answer.body) > PAYLOAD_MAX_BYTES:
            raise TooLarge(f"an answer of {len(answer.body)} bytes")
        return json.loads(answer.body)

    def close(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait(timeout=10)
            self._process = None
        if self._api is not None:
            self._api.close()
            self._api = None

    def _start(self) -> None:
        self._api = RuntimeApi()
        self.starts += 1
        function, runtime = self._built / "function", self._built / "runtime"
        environment = {
            "PATH": os.environ["PATH"],
            "LANG": "en_US.UTF-8",
            "TZ": ":UTC",
            "LAMBDA_TASK_ROOT": str(function),
            "LAMBDA_RUNTIME_DIR": str(runtime),
            "PYTHONPATH": f"{runtime}{os.pathsep}{function}",
            "PYTHONDONTWRITEBYTECODE": "1",  # Lambda's file system is read-only
            "_HANDLER": self._handler,
            "AWS_LAMBDA_RUNTIME_API": self._api.address,
            "AWS_LAMBDA_FUNCTION_NAME": "tensafe",
            "AWS_LAMBDA_FUNCTION_VERSION": "$LATEST",
            "AWS_LAMBDA_FUNCTION_MEMORY_SIZE": "1024",
            "AWS_LAMBDA_LOG_GROUP_NAME": "/aws/lambda/tensafe",
            "AWS_LAMBDA_LOG_STREAM_NAME": "one",
            "AWS_LAMBDA_INITIALIZATION_TYPE": "on-demand",
            "AWS_EXECUTION_ENV": "AWS_Lambda_python3.11",
            "AWS_XRAY_DAEMON_ADDRESS": "127.0.0.1:9",  # where nobody listens, unless a test does
            "AWS_XRAY_CONTEXT_MISSING": "LOG_ERROR",
            **self._environment,
        }
        self._began_s = time.perf_counter()
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                # -S: the packages of the tests' own environment are not there.
                [sys.executable, "-S", "-s", "-m", "awslambdaric", self._handler],
                cwd=function,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def _await(self, api: RuntimeApi, timeout_s: float) -> Answer:
        assert self._process is not None
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            try:
                return api.answers.get(timeout=0.05)
            except queue.Empty:
                if self._process.poll() is None:
                    continue
            try:  # it may have said why, just before it ended
                return api.answers.get(timeout=0.2)
            except queue.Empty:
                code = self._process.returncode
                self.close()
                raise InitFailed(f"the process ended with {code}; see {self._log}") from None
        self.close()
        raise TimedOut(f"{self._handler} was killed after {timeout_s} s")
