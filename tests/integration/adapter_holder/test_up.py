"""`python -m tensafe_gpu.adapter_holder up`: whatever happens to the process that serves, it serves again."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tensafe.contracts.errors import ConfigurationError
from tensafe_gpu import healthcheck
from tensafe_gpu.adapter_holder.composition import initialise
from tensafe_gpu.adapter_holder.watched import Watcher
from tests.support.holder_process import COMMAND

WITHIN_S = 60.0
ACCEPTS = "import os, pathlib, time; pathlib.Path(os.environ['TENSAFE_ALIVE_FILE']).touch(); time.sleep(60)"

JUMPS = (
    "import itertools, os, time; alive = os.environ['TENSAFE_ALIVE_FILE']; open(alive, 'w').close()\n"
    "for n in itertools.count(1): os.utime(alive, (10**9 + (-1) ** n * 10**6 * n,) * 2); time.sleep(0.5)"
)


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    initialise(tmp_path / "data")
    return tmp_path / "data"


@pytest.fixture
def up(data_dir: Path) -> Iterator[subprocess.Popen[str]]:
    line = [*COMMAND, "up", "--data-dir", str(data_dir), "--listen", f"unix:{data_dir / 's'}"]
    process = subprocess.Popen(line, stderr=subprocess.PIPE, text=True)
    yield process
    process.kill()
    process.communicate()


def told(process: subprocess.Popen[str]) -> str:
    assert process.stderr is not None
    return process.stderr.readline().strip().partition(": ")[2]


def accepts(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as peer:
        try:
            peer.connect(str(path))
        except OSError:
            return False
    return True


def until(what: object) -> None:
    deadline = time.monotonic() + WITHIN_S
    while not what():  # type: ignore[operator]
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.slow
def test_it_serves_again_after_a_kill_and_ends_when_it_is_told_to(
    up: subprocess.Popen[str], data_dir: Path
) -> None:
    assert told(up) == "ready"
    for _ in range(2):
        (served,) = psutil.Process(up.pid).children()
        served.kill()
        assert told(up).startswith("killed by SIGKILL; starting it again in 0.")
        until(lambda: accepts(data_dir / "s"))
    (served,) = psutil.Process(up.pid).children()
    up.send_signal(signal.SIGTERM)
    assert up.wait(WITHIN_S) == 0
    assert not served.is_running()
    assert not accepts(data_dir / "s")


@pytest.mark.slow
def test_what_it_started_does_not_outlive_it(up: subprocess.Popen[str]) -> None:
    assert told(up) == "ready"
    (served,) = psutil.Process(up.pid).children()
    up.kill()
    until(lambda: not served.is_running())


@pytest.mark.slow
def test_a_second_one_is_refused_and_does_the_first_no_harm(
    up: subprocess.Popen[str], data_dir: Path
) -> None:
    assert told(up) == "ready"
    line = [*COMMAND, "up", "--data-dir", str(data_dir), "--listen", f"unix:{data_dir / 'other'}"]
    second = subprocess.run(line, capture_output=True, text=True, timeout=WITHIN_S, check=False)
    assert (second.returncode, "another adapter holder serves" in second.stderr) == (1, True)
    assert (data_dir / "alive").exists()
    (served,) = psutil.Process(up.pid).children()
    assert served.is_running()


@pytest.mark.slow
def test_what_never_served_is_not_started_again_but_explained(data_dir: Path, tmp_path: Path) -> None:
    def fails(*options: str) -> str:
        done = subprocess.run(
            [*COMMAND, "up", *options], capture_output=True, text=True, timeout=WITHIN_S, check=False
        )
        assert done.returncode == 1
        return done.stderr

    assert "init --data-dir" in fails(
        "--data-dir", str(tmp_path / "none"), "--listen", f"unix:{tmp_path / 's'}"
    )
    nowhere = tmp_path / "nowhere" / "s"
    assert f"cannot listen on {nowhere}" in fails("--data-dir", str(data_dir), "--listen", f"unix:{nowhere}")


def started(data_dir: Path) -> int:
    """How often the program of `command` has begun."""
    file = data_dir / "starts"
    return len(file.read_text()) if file.exists() else 0


def run(watcher: Watcher, data_dir: Path, *, starts: int) -> None:
    """Until it has been started so often."""
    stop = threading.Event()

    def count() -> None:
        until(lambda: started(data_dir) >= starts)
        stop.set()

    counting = threading.Thread(target=count)
    counting.start()
    watcher.run(stop)
    counting.join()


def command(data_dir: Path, program: str) -> list[str]:
    return [sys.executable, "-c", f"open({str(data_dir / 'starts')!r}, 'a').write('x'); {program}"]


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(healthcheck, "STALE_S", 2.0)
    monkeypatch.setenv(healthcheck.VARIABLE, "")


@pytest.mark.slow
@pytest.mark.usefixtures("impatient")
def test_one_that_stands_still_is_killed_and_started_again(tmp_path: Path) -> None:
    said: list[str] = []
    run(Watcher(command(tmp_path, ACCEPTS), tmp_path, said.append), tmp_path, starts=2)
    assert said[:2] == ["ready", "it stands still; killing it"]
    assert said[2].startswith("killed by SIGKILL; starting it again")
    assert not (tmp_path / "alive").exists()


@pytest.mark.slow
@pytest.mark.usefixtures("impatient")
def test_a_clock_that_is_put_forward_or_back_kills_nobody(tmp_path: Path) -> None:
    """What counts is that the file is touched, whatever times it is given."""
    said: list[str] = []
    stop = threading.Event()
    threading.Timer(6, stop.set).start()
    Watcher(command(tmp_path, JUMPS), tmp_path, said.append).run(stop)
    assert said == ["ready"]


@pytest.mark.usefixtures("impatient")
def test_one_that_ends_before_it_accepted_any_is_told_in_its_own_words(tmp_path: Path) -> None:
    ends = command(tmp_path, "import sys; sys.exit('no certificate')")
    with pytest.raises(ConfigurationError, match="does not start: no certificate"):
        Watcher(ends, tmp_path, lambda _: None).run(threading.Event())
