"""The process environment that vLLM reads when it is imported, set once and before that.

Nothing here names a tenant or a request. What is switched off: usage statistics, the model hub,
third-party plugins, logging of requests. What is switched on: loopback only, children started by
`spawn` (a fork would copy decrypted keys into the engine), the first model runner (the one whose
attributes docs/vllm.md lists).
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Final, Literal

from tensafe.contracts.errors import ConfigurationError
from tensafe_gpu.sampler.compiling import compiler_variables

Device = Literal["cpu", "cuda"]

SAMPLER_PID_VARIABLE: Final = "TENSAFE_SAMPLER_PID"
"""Process id that the engine's processes watch: when it is gone they end themselves."""

CONNECT_VARIABLE: Final = "TENSAFE_KEY_HOLDER"
"""`module:function` that makes key holders in the engine's process; absent without private adapters."""

_DEVICE_VARIABLE: Final = "TENSAFE_SAMPLER_DEVICE"
_COMPILED_VARIABLE: Final = "TENSAFE_SAMPLER_COMPILED"
_NO_DYNAMO: Final = "TORCHDYNAMO_DISABLE"

_ALWAYS: Final = {
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_DO_NOT_TRACK": "1",
    "DO_NOT_TRACK": "1",
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "VLLM_PLUGINS": "",
    "VLLM_USE_V2_MODEL_RUNNER": "0",
    "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
    "VLLM_HOST_IP": "127.0.0.1",
    "VLLM_LOOPBACK_IP": "127.0.0.1",
    "VLLM_LOGGING_LEVEL": "WARNING",
    "VLLM_LOGGING_COLOR": "0",
    "TOKENIZERS_PARALLELISM": "false",
}

_CPU: Final = {
    # One engine process instead of two: 12 s instead of 19 s to start and 0.6 GB less (docs/vllm.md).
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    # The host is shared with the trainer: no pinning of threads to cores.
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    # LoRA on CPU is eager anyway; without this the first request needs a C++ compiler at run time.
    _NO_DYNAMO: "1",
    # glibc would give the engine's activations back after every step and fault them in again
    # (docs/vllm.md, Measured). Read when the engine's process starts; 32 MiB is the most it takes.
    "MALLOC_MMAP_THRESHOLD_": str(32 * 2**20),
    "MALLOC_TRIM_THRESHOLD_": str(256 * 2**20),
}

_CUDA: Final = {
    # It compiles itself when it is first used, and knows no seed of a single request.
    "VLLM_USE_FLASHINFER_SAMPLER": "0",
}

_TRITON_CACHE: Final = "TRITON_CACHE_DIR"
DRIVER_VARIABLE: Final = "TENSAFE_TRITON_DRIVER"
"""The folder with what Triton would compile at its first launch, in an image without a compiler
(infra/images/triton_driver.py); absent elsewhere."""

_state: Final = {"configured": False}
"""Whether this process set the variables before it imported vLLM."""


def configure_environment(
    *, device: Device = "cpu", threads: int = 1, compile_dir: Path | None = None
) -> None:
    """Set vLLM's environment variables for this process and its children.

    `threads` is the number of OpenMP threads of the engine on CPU. With `compile_dir` the engine compiles
    its passes and keeps what the compiler made there; see `compiling`. Call it once, first.
    Raises ConfigurationError when a value is out of range, vLLM has been imported already, or nothing can
    be compiled here.
    """
    if threads < 1:
        raise ConfigurationError("the sampler needs at least one thread", field="threads")
    if "vllm" in sys.modules and not _state["configured"]:
        raise ConfigurationError("configure_environment must run before anything imports vllm")
    values = dict(_ALWAYS)
    if device == "cpu":
        values |= _CPU | {"OMP_NUM_THREADS": str(threads)}
    os.environ.pop(_COMPILED_VARIABLE, None)
    if compile_dir is not None:
        values |= {_COMPILED_VARIABLE: "1", **compiler_variables(compile_dir.absolute(), device)}
        values.pop(_NO_DYNAMO, None)
        os.environ.pop(_NO_DYNAMO, None)
    if device == "cuda":
        values |= _CUDA | _triton_cache(values.get(_TRITON_CACHE))
    values[_DEVICE_VARIABLE] = device
    values[SAMPLER_PID_VARIABLE] = str(os.getpid())
    os.environ.update(values)
    # `tensafe up` has read it: the engine is given the bytes that the context limit was made for.
    os.environ.pop("VLLM_CPU_KVCACHE_SPACE", None)
    _state["configured"] = True


def _triton_cache(chosen: str | None) -> dict[str, str]:
    """A cache of this process's own, or the chosen one, with Triton's driver where the image brings one.

    Triton writes to it too.
    """
    driver = os.environ.get(DRIVER_VARIABLE)
    if not driver:
        return {}
    cache = Path(chosen or tempfile.mkdtemp(prefix="triton-"))
    for entry in Path(driver).iterdir():
        shutil.copytree(entry, cache / entry.name, dirs_exist_ok=True)
    return {_TRITON_CACHE: str(cache)}


def environment_is_configured() -> bool:
    """Whether `configure_environment` has run in this very process."""
    return os.environ.get(SAMPLER_PID_VARIABLE) == str(os.getpid())


def environment_device() -> Device:
    """The device that `configure_environment` was called with."""
    return "cuda" if os.environ.get(_DEVICE_VARIABLE) == "cuda" else "cpu"


def environment_compiles() -> bool:
    """Whether `configure_environment` was told to compile."""
    return os.environ.get(_COMPILED_VARIABLE) == "1"
