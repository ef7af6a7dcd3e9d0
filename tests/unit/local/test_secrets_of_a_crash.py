"""A process that breaks leaves its type and places in the log, and its memory nowhere."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from tensafe.local.composition import initialise

CANARY = "canary-in-a-prompt"
LOGGING = "from tensafe.observability import configure_logging; configure_logging('trainer')\n"
BREAK = f"def broken(*_):\n    raise ValueError('{CANARY}')\n"


def run(code: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, timeout=60, check=False
    )


@pytest.mark.parametrize(
    "code",
    [
        "broken()",
        "import threading\nthread = threading.Thread(target=broken, name='t'); thread.start(); thread.join()",
        "class Last:\n    __del__ = broken\nlast = Last(); del last",
        "import asyncio\nasync def task(): broken()\n"
        "async def main():\n    asyncio.create_task(task()); await asyncio.sleep(0)\n"
        "    import gc; await asyncio.sleep(0); gc.collect()\nasyncio.run(main())",
    ],
    ids=["main", "thread", "finalizer", "task"],
)
def test_what_nobody_catches_is_logged_without_its_message(tmp_path: Path, code: str) -> None:
    done = run(LOGGING + BREAK + code, tmp_path)
    assert CANARY not in done.stdout + done.stderr
    (record,) = [json.loads(line) for line in done.stderr.splitlines()]
    assert (record["event"], record["exception"]) == ("unhandled exception", "ValueError")
    assert record["places"][-1].endswith(" broken")


def test_the_supervisor_says_on_its_terminal_where_to_look(tmp_path: Path) -> None:
    code = "from pathlib import Path\nfrom tensafe.local.logs import log_to_file\n"
    done = run(code + BREAK + "log_to_file(Path('logs/s.log'), 'supervisor', 'INFO')\nbroken()", tmp_path)
    assert done.returncode == 1
    assert done.stderr == "tensafe: stopped by an unexpected ValueError; logs/s.log says where\n"
    log = (tmp_path / "logs" / "s.log").read_text()
    assert json.loads(log)["exception"] == "ValueError"
    assert CANARY not in log


def test_a_thread_that_exits_is_no_event(tmp_path: Path) -> None:
    code = "import sys, threading\nthread = threading.Thread(target=sys.exit); thread.start(); thread.join()"
    assert run(LOGGING + code, tmp_path).stderr == ""


def test_a_process_that_holds_the_key_dumps_no_core_and_nor_do_its_children(tmp_path: Path) -> None:
    initialise(tmp_path / "data")
    code = (
        "import os, resource\nfrom pathlib import Path\n"
        "_, hard = resource.getrlimit(resource.RLIMIT_CORE)\n"
        "resource.setrlimit(resource.RLIMIT_CORE, (hard, hard))\n"
        "from tensafe.local.composition import open_services\n"
        "from tensafe.local.settings import LocalSettings\n"
        "services = open_services(LocalSettings(data_dir=Path('data')))\n"
        "child = os.fork()\n"
        "if child == 0: os.abort()\n"
        "print(os.WCOREDUMP(os.waitpid(child, 0)[1]), *resource.getrlimit(resource.RLIMIT_CORE))\n"
    )
    done = run(code, tmp_path)
    dumped, soft, hard = done.stdout.split()
    assert dumped == "False"
    highest = resource.getrlimit(resource.RLIMIT_CORE)[1]
    assert soft == hard == ("0" if highest == 0 else "1")
    assert [name for name in os.listdir(tmp_path) if name.startswith("core")] == []
