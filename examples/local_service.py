"""Start and stop a TenSafe service for an example, by the same commands that a person would type."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Final

import psutil
import tinker
from rich.console import Console

_TENSAFE: Final = (sys.executable, "-c", "from tensafe.cli import main; main()")
"""What the `tensafe` command of this interpreter's environment runs."""
_SERVICE: Final = (
    sys.executable,
    "-c",
    "import ctypes, signal; ctypes.CDLL(None).prctl(1, signal.SIGTERM); from tensafe.cli import main; main()",
)
"""The same with PR_SET_PDEATHSIG: the kernel sends SIGTERM when the process that started it is gone."""
_HUB_ID: Final = re.compile(r"([A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(@.*)?", re.ASCII)
_STOP_S: Final = 60.0
_NAME_MAX: Final = 96


def model_name(source: str) -> str:
    """The name under which a folder or a hub id is served: a path itself cannot name a model.

    A folder goes by its own name, a hub id by itself without `@REVISION`.
    """
    folder = Path(source).expanduser()
    hub = _HUB_ID.fullmatch(source)
    if hub and not folder.is_dir():
        return hub[1]
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", folder.resolve().name).lstrip("_.-")[:_NAME_MAX] or "model"


def end_on_signals() -> None:
    """SIGTERM and SIGHUP end this program as Ctrl-C does: what was opened is closed."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda received, _: sys.exit(128 + received))


class LocalService:
    """`tensafe init`, `tensafe up`, `tensafe keys create`; Ctrl-C at the end.

    Whatever happens in between, nothing is left running: even when this process is killed, the kernel
    tells the service.
    """

    def __init__(self, data_dir: Path, model_name: str, model_path: str, console: Console) -> None:
        self._data_dir = data_dir
        self._model = f"{model_name}={model_path}"
        self._console = console
        self._process: subprocess.Popen[str] | None = None
        self.url = ""
        self.api_key = ""

    def __enter__(self) -> LocalService:
        try:
            self._start()
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stop()

    def _start(self) -> None:
        self._data_dir.parent.mkdir(parents=True, exist_ok=True)
        data_dir = ("--data-dir", str(self._data_dir))
        subprocess.run([*_TENSAFE, "init", *data_dir], check=True, capture_output=True)
        port = _free_port()
        command = ["up", *data_dir, "--port", str(port), "--model", self._model]
        with self._console.status("starting the service: API, trainer, sampler"):
            self._process = subprocess.Popen(
                [*_SERVICE, *command],
                stdout=subprocess.PIPE,
                text=True,
                env={**os.environ, "TENSAFE_PRIVATE_ADAPTERS": "true"},
                start_new_session=True,  # a Ctrl-C reaches this program alone, which then ends the service
            )
            assert self._process.stdout is not None
            line = self._process.stdout.readline().strip()
        if not line.startswith("ready "):
            sys.exit("the service did not start; see the messages above")
        self.url = line.removeprefix("ready ")
        created = self.operate("keys", "create", "--tenant", "demo", "--scope", "train,sample")
        self.api_key = created["key"]
        self._console.print(f"service ready at {self.url}")

    def _stop(self) -> None:
        """SIGINT, and SIGKILL if that takes too long or a second Ctrl-C comes; its children end with it."""
        process = self._process
        if process is None:
            return
        try:
            process.send_signal(signal.SIGINT)
            process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            pass
        finally:
            process.kill()
            process.wait()

    def command(self, *arguments: str) -> str:
        """As `tensafe`, on this service."""
        return tensafe(*arguments, "--data-dir", str(self._data_dir))

    def operate(self, *arguments: str) -> dict[str, Any]:
        """As `command`, of one that takes --json."""
        found: dict[str, Any] = json.loads(self.command(*arguments, "--json"))
        return found

    def public_key(self) -> str:
        """What its signatures are verified with, PEM; from its operator, which is this program."""
        return self.command("privacy", "public-key")

    @staticmethod
    def verify(attestation: Path, public_key: Path) -> dict[str, Any]:
        """`tensafe verify`, which needs no data directory: the statement."""
        verified = tensafe("verify", str(attestation), "--public-key", str(public_key), "--json")
        found: dict[str, Any] = json.loads(verified)
        return found

    def kill_trainer(self) -> int | None:
        """SIGKILL the trainer process; its pid. The supervisor starts another one."""
        assert self._process is not None
        for child in psutil.Process(self._process.pid).children():
            if "tensafe_gpu.trainer" in child.cmdline():
                os.kill(child.pid, signal.SIGKILL)
                return child.pid
        raise RuntimeError("there is no trainer to kill")


def tensafe(*arguments: str) -> str:
    """What a `tensafe` command prints; if it fails, this program ends with the command's own sentence."""
    done = subprocess.run([*_TENSAFE, *arguments], check=False, capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr.strip() or f"tensafe {arguments[0]} failed")
    return done.stdout


@dataclass(frozen=True, slots=True)
class RunningService:
    """One that somebody else has started: its address and a key; its processes and files are not ours."""

    url: str
    api_key: str
    public_key_file: Path | None = None
    """What its operator gave to verify signatures with, PEM."""

    def model_name(self) -> str:
        """The first base model that it serves."""
        client = tinker.RestClient(base_url=self.url, api_key=self.api_key)
        return str(client.get_server_capabilities().result().supported_models[0].model_name)

    def kill_trainer(self) -> None:
        """There is nothing here to kill."""

    def public_key(self) -> str | None:
        """PEM; None if nobody gave one."""
        return None if self.public_key_file is None else self.public_key_file.read_text(encoding="ascii")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
