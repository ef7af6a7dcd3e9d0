"""The service that an example starts is gone when the example is, however that ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from rich.console import Console

import local_service
from local_service import LocalService
from tests.project_files import ROOT

WAITS = "import sys, time; print('ready http://127.0.0.1:1', flush=True); time.sleep(600)"
"""Stands in for `tensafe up`."""


@pytest.fixture
def service(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LocalService:
    monkeypatch.setattr(local_service, "_SERVICE", (sys.executable, "-c", WAITS))
    monkeypatch.setattr(local_service, "_TENSAFE", (sys.executable, "-c", 'print(\'{"key": "k"}\')'))
    return LocalService(tmp_path / "out" / "data", "m", "p", Console(quiet=True))


def _gone(process: subprocess.Popen[str] | None) -> bool:
    return process is not None and process.returncode is not None and not psutil.pid_exists(process.pid)


def test_it_ends_with_the_block(service: LocalService) -> None:
    with service:
        assert service._process is not None
        assert service._process.poll() is None
        assert (service.url, service.api_key) == ("http://127.0.0.1:1", "k")
    assert _gone(service._process)


def test_it_ends_when_the_block_fails_before_it_began(
    service: LocalService, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = (sys.executable, "-c", "import sys; sys.exit('keys' in sys.argv)")
    monkeypatch.setattr(local_service, "_TENSAFE", broken)
    with pytest.raises(SystemExit, match="tensafe keys failed"), service:
        pytest.fail("the block began")
    assert _gone(service._process)


def test_it_ends_when_it_never_becomes_ready(service: LocalService, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local_service, "_SERVICE", (sys.executable, "-c", WAITS.replace("ready", "not yet")))
    with pytest.raises(SystemExit, match="did not start"), service:
        pytest.fail("the block began")
    assert _gone(service._process)


def test_one_that_ignores_the_request_is_killed(
    service: LocalService, monkeypatch: pytest.MonkeyPatch
) -> None:
    deaf = "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN); " + WAITS
    monkeypatch.setattr(local_service, "_SERVICE", (sys.executable, "-c", deaf))
    monkeypatch.setattr(local_service, "_STOP_S", 0.2)
    with service:
        pass
    assert _gone(service._process)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
def test_it_ends_with_the_program(number: signal.Signals, tmp_path: Path) -> None:
    """The real bootstrap with a stand-in for what it runs."""
    program = f"""
import sys, time
sys.path.insert(0, {str(ROOT / "examples")!r})
import local_service
from rich.console import Console
before, main = local_service._SERVICE[2].split("from tensafe")
local_service._SERVICE = (sys.executable, "-c", before + {WAITS!r})
local_service._TENSAFE = (sys.executable, "-c", "print('{{\\"key\\": 1}}')")
local_service.end_on_signals()
folder = local_service.Path({str(tmp_path)!r})
with local_service.LocalService(folder, "m", "p", Console(quiet=True)) as service:
    print(service._process.pid, flush=True)
    time.sleep(600)
"""
    running = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert running.stdout is not None
    child = psutil.Process(int(running.stdout.readline()))
    os.kill(running.pid, number)
    running.wait(30)
    deadline = time.monotonic() + 10
    while child.is_running() and child.status() != psutil.STATUS_ZOMBIE and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not child.is_running() or child.status() == psutil.STATUS_ZOMBIE
