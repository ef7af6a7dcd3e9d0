"""`sam`, with a process in the place of each of Docker's containers; by the Python of SAM CLI's environment.

`PYTHON -m tests.support.sam_without_docker ...` SAM CLI reads its command line, the template and the
variables, finds the routes, asks the authorizer and makes the events as it is; the functions run from their
package under `awslambdaric`. Not there: Docker, Lambda's image, its memory limit. An idle process is taken
again, as Lambda does; SAM CLI itself makes a container for each request.
"""

from __future__ import annotations

import ctypes
import json
import signal
import tempfile
import threading
from collections import defaultdict
from pathlib import Path
from typing import Any

from tests.support.lambda_runtime import Crashed, Function, InitFailed, TimedOut, TooLarge

_PR_SET_PDEATHSIG = 1
_idle: dict[str, list[Function]] = defaultdict(list)
_lock = threading.Lock()
_started: list[Function] = []
_logs = Path(tempfile.mkdtemp(prefix="functions-", dir="."))


class Process:
    """What LambdaRuntime asks of a container."""

    id = None

    def __init__(self, *given: Any, env_vars: dict[str, str], **_: Any) -> None:
        _runtime, _image, self._handler, _kind, _config, code, *_ = given
        self._package, self._environment = Path(code), env_vars
        self._created = False

    def is_created(self) -> bool:
        return self._created

    def is_running(self) -> bool:
        return False

    def create(self) -> None:
        self._created = True

    def wait_for_result(self, full_path: str, event: str, stdout: Any, stderr: Any, **_: Any) -> None:
        function = self._take()
        try:
            said = json.dumps(function.invoke(json.loads(event)))
            with _lock:
                _idle[self._handler].append(function)
        except (Crashed, InitFailed, TimedOut, TooLarge) as error:
            said = json.dumps({"errorType": type(error).__name__, "errorMessage": str(error)})
            stderr.write_str(f"{full_path}: {said}\n")
            function.close()
        stdout.write_str(said)
        stdout.flush()

    def _take(self) -> Function:
        with _lock:
            if _idle[self._handler]:
                return _idle[self._handler].pop()
            log = _logs / f"{self._handler}-{len(_started)}.log"
            timeout_s = float(self._environment["AWS_LAMBDA_FUNCTION_TIMEOUT"])
            made = Function(self._package.parent, self._handler, self._environment, log, timeout_s=timeout_s)
            _started.append(made)
            return made


class Processes:
    """What stands for ContainerManager."""

    def __init__(self, **_: Any) -> None: ...

    def create(self, container: Process, context: Any) -> None:
        container.create()

    def run(self, container: Process, context: Any) -> None: ...

    def stop(self, container: Process) -> None: ...


def main() -> None:
    """As `sam`; it ends with the process that started it, however that ends."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    from samcli.cli.main import cli
    from samcli.commands.local.cli_common import invoke_context
    from samcli.lib.utils import file_observer, version_checker
    from samcli.local.lambdafn import runtime

    invoke_context.ContainerManager = Processes
    runtime.LambdaContainer = Process
    version_checker._inform_newer_version = lambda *_, **__: None  # asks PyPI
    file_observer.ImageObserver = lambda *_: None  # watches Docker's images
    try:
        cli(prog_name="sam")
    finally:
        for one in _started:
            one.close()


if __name__ == "__main__":
    main()
