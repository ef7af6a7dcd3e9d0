"""`make aws-local` itself prints where the service is and a key for it, and leaves nothing at its end."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
import threading
from pathlib import Path

import httpx
import psutil
import pytest

from tests.project_files import ROOT
from tests.support.ministack import URL
from tests.support.service import MODEL_NAME
from tools.aws_local.emulator import PYTHON

READY_S = 300.0

pytestmark = [
    pytest.mark.skipif(not PYTHON.exists(), reason="ministack is not installed: make ministack"),
    pytest.mark.skipif(
        URL in os.environ, reason="it starts a ministack of its own; another emulator was chosen"
    ),
]


def test_it_prints_an_address_and_a_key_and_ends_with_ctrl_c(built: Path, model_path: Path) -> None:
    command = [sys.executable, "-m", "tools.aws_local", "--tenant", "globex"]
    command += ["--model", f"{MODEL_NAME}={model_path}", "--package", str(built / "function")]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    late = threading.Timer(READY_S, process.kill)
    late.start()
    try:
        printed = ""
        for line in process.stdout:
            printed += line
            if line.startswith("Ctrl-C ends it"):
                break
        (url,), (key,) = (
            re.findall(r"^ready (\S+)$", printed, re.M),
            re.findall(r"^key   (\S+)$", printed, re.M),
        )
        (demo,) = (line for line in printed.splitlines() if "private_finetune.py" in line)
        words = shlex.split(demo)
        assert (words[0], words[words.index("--url") + 1]) == (f"TINKER_API_KEY={key}", url)
        assert (
            Path(words[words.index("--public-key") + 1]).read_text().startswith("-----BEGIN PUBLIC KEY-----")
        )
        assert httpx.get(f"{url}/healthz").status_code == 200
        told = httpx.get(f"{url}/v1/training_clients", headers={"X-API-Key": key})
        assert told.status_code == 200, told.text
        assert httpx.get(f"{url}/v1/training_clients").status_code in (401, 403)
        started = psutil.Process(process.pid).children(recursive=True)
        assert len(started) >= 3  # the emulator, the trainer and the sampler
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0
        assert [one for one in started if one.is_running() and one.status() != psutil.STATUS_ZOMBIE] == []
    finally:
        late.cancel()
        process.kill()
        process.wait()
