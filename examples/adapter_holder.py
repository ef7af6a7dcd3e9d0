"""An adapter holder for an example: its data directory and process, by the commands that a person types."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Final

_COMMAND: Final = (sys.executable, "-m", "tensafe_gpu.adapter_holder")
_START_S: Final = 60.0


class AdapterHolder:
    """`python -m tensafe_gpu.adapter_holder init` and `serve`; ended with the program that started it.

    Its process has the adapter's weights and no prompts; the service's has prompts and no weights. Here both
    run as one user on one machine, which shows how it works and protects nobody.
    """

    def __init__(self, data_dir: Path) -> None:
        self.data_dir = data_dir.resolve()
        # Not in the data directory: a unix socket's name has 107 bytes at most.
        self._folder = Path(tempfile.mkdtemp(prefix="tensafe-"))
        self._socket = self._folder / "holder"
        self._log = self.data_dir / "log.json"
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> str:
        """As `tensafe adapters publish --holder` takes it."""
        return f"unix:{self._socket}"

    def __enter__(self) -> AdapterHolder:
        subprocess.run([*_COMMAND, "init", "--data-dir", str(self.data_dir)], check=True, capture_output=True)
        command = [*_COMMAND, "serve", "--data-dir", str(self.data_dir), "--listen", self.address]
        environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1"}
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                command, stderr=log, stdout=log, env=environment, start_new_session=True
            )
        began = time.monotonic()
        while not self._socket.exists():
            if self._process.poll() is not None or time.monotonic() - began > _START_S:
                self.__exit__(None, None, None)
                raise RuntimeError(f"the adapter holder did not start; see {self._log}")
            time.sleep(0.05)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)
        if self._process is not None:
            self._process.terminate()
            try:
                self._process.wait(10)
            finally:
                self._process.kill()
                self._process.wait()

    def spent(self, adapter: str) -> int:
        """Tokens metered at the site that was asked most."""
        command = [*_COMMAND, "show", "--data-dir", str(self.data_dir), "--name", adapter]
        done = subprocess.run(command, check=True, capture_output=True)
        sites: dict[str, Any] = json.loads(done.stdout)["tokens_by_site_and_tenant"]
        return max((sum(tenants.values()) for tenants in sites.values()), default=0)
