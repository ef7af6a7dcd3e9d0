"""The engine's processes end when the sampler process is gone, however it died.

vLLM 0.32 leaves its engine core running when its parent is killed (measured: 1.8 GB each, for ever).
A thread in the worker waits on a pidfd of the sampler; the kernel makes it readable at death, so no
polling and no confusion with a reused process id.
"""

from __future__ import annotations

import os
import select
import signal
import threading

from tensafe_gpu.sampler.environment import SAMPLER_PID_VARIABLE


def end_with_the_sampler() -> None:
    """Start the watch in this process, if the environment names a sampler that is another process."""
    sampler_pid = int(os.environ.get(SAMPLER_PID_VARIABLE, "0"))
    if sampler_pid in (0, os.getpid()):
        return
    engine_core_pid = os.getppid()
    try:
        descriptor = os.pidfd_open(sampler_pid)
    except ProcessLookupError:
        _end_all(sampler_pid, engine_core_pid)
        return
    threading.Thread(
        target=_wait, args=(descriptor, sampler_pid, engine_core_pid), name="sampler-watch", daemon=True
    ).start()


def _wait(descriptor: int, sampler_pid: int, engine_core_pid: int) -> None:
    poller = select.poll()
    poller.register(descriptor, select.POLLIN)
    poller.poll()
    _end_all(sampler_pid, engine_core_pid)


def _end_all(sampler_pid: int, engine_core_pid: int) -> None:
    """Kill the engine core above this worker, if it is another process than the sampler, and this one."""
    if engine_core_pid != sampler_pid and os.getppid() == engine_core_pid and engine_core_pid > 1:
        os.kill(engine_core_pid, signal.SIGKILL)
    os.kill(os.getpid(), signal.SIGKILL)
