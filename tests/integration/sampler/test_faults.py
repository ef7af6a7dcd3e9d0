"""What happens when a process dies: the engine's, or the sampler's own."""

from __future__ import annotations

import asyncio
import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tensafe.contracts.errors import Unavailable
from tensafe.contracts.sampling import SampleRequest, SamplingParams
from tensafe_gpu.sampler.private_files import PrivateDirectory
from tests.integration.sampler.conftest import AdapterFactory, Harness

pytestmark = pytest.mark.slow

LONG = SampleRequest(prompt=(5, 6, 7), num_samples=4, params=SamplingParams(stop=()))

SAMPLER = """
import asyncio, sys
from tensafe.contracts.sampling import SampleRequest, SamplingParams
from tensafe_gpu.sampler.engine import SamplingEngine
from tensafe_gpu.sampler.environment import configure_environment

async def main():
    engine = await SamplingEngine.start(sys.argv[1], dtype="float32", max_context_tokens=256)
    print("ready", flush=True)
    while True:
        await engine.sample(SampleRequest(prompt=(5, 6), params=SamplingParams(stop=())))

if __name__ == "__main__":
    configure_environment()
    print("starting", flush=True)
    asyncio.run(main())
"""


def descendants(pid: int) -> list[psutil.Process]:
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


@pytest.fixture
def doomed(model_path: str) -> Iterator[tuple[Harness, list[psutil.Process]]]:
    """An engine of its own, which will be killed, and the processes that hold its model."""
    before = set(descendants(os.getpid()))
    harness = Harness(model_path)
    yield harness, [core for core in engine_cores(os.getpid()) if core not in before]
    harness.close()


def engine_cores(pid: int) -> list[psutil.Process]:
    """The descendants that hold a model: those that named themselves VLLM."""
    return [process for process in descendants(pid) if "VLLM" in process.name()]


def start_sampler(tmp_path: Path, model_path: str) -> subprocess.Popen[str]:
    script = tmp_path / "run_sampler.py"
    script.write_text(SAMPLER)
    environment = {k: v for k, v in os.environ.items() if not k.startswith("VLLM_")}
    with open(tmp_path / "stderr", "w") as stderr:
        return subprocess.Popen(
            [sys.executable, str(script), model_path],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
        )


def kill_and_expect_no_survivors(process: subprocess.Popen[str]) -> None:
    alive = descendants(process.pid)
    assert any("VLLM" in p.name() for p in alive)
    process.kill()
    process.wait()
    _, survivors = psutil.wait_procs(alive, timeout=60)
    assert survivors == []


def test_sigkill_leaves_no_orphan_and_no_plaintext(tmp_path: Path, model_path: str) -> None:
    """vLLM alone leaves its engine core, 1.8 GB, behind for ever."""
    process = start_sampler(tmp_path, model_path)
    assert process.stdout is not None
    while process.stdout.readline() != "ready\n":
        assert process.poll() is None, (tmp_path / "stderr").read_text()[-3000:]
    locks = [Path(file.path) for file in psutil.Process(process.pid).open_files()]
    private = next(path.with_suffix("") for path in locks if path.name.startswith("tensafe-sampler-"))
    assert stat.S_IMODE(private.stat().st_mode) == 0o700
    kill_and_expect_no_survivors(process)
    assert private.is_dir()  # nobody was left to remove it
    PrivateDirectory().close()
    assert not private.exists()
    assert not private.with_suffix(".lock").exists()


def test_sigkill_while_the_engine_starts_leaves_no_orphan(tmp_path: Path, model_path: str) -> None:
    process = start_sampler(tmp_path, model_path)
    deadline = time.monotonic() + 120
    while not engine_cores(process.pid):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    kill_and_expect_no_survivors(process)


def test_a_dead_engine_core_fails_what_is_pending_and_says_so(
    doomed: tuple[Harness, list[psutil.Process]], make_adapter: AdapterFactory
) -> None:
    harness, cores = doomed
    adapter, _ = make_adapter("a")
    assert len(cores) == 1

    async def kill_and_watch() -> None:
        engine = harness.engine
        pending = [asyncio.create_task(engine.sample(LONG, a)) for a in (None, adapter)]
        await asyncio.sleep(0.3)
        os.kill(cores[0].pid, signal.SIGKILL)
        for task in pending:
            with pytest.raises(Unavailable):
                await task
        await asyncio.wait_for(engine.wait_until_dead(), 5)
        assert not engine.healthy
        for work in (engine.sample(LONG), engine.sample(LONG, adapter), engine.ensure_adapter(adapter)):
            with pytest.raises(Unavailable):
                await work

    harness.run(kill_and_watch(), timeout_s=30)
