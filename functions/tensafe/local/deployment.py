"""Which processes a single-machine deployment consists of, and what each of them may know."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from importlib.util import find_spec
from typing import Final

from tensafe.contracts.errors import ConfigurationError
from tensafe.local.children import ChildSpec
from tensafe.local.endpoint import Endpoint
from tensafe.local.settings import ENV_PREFIX, LocalSettings
from tensafe.operations.doorbell import sample_queue, train_queue

# Nothing else of the operator's environment reaches a child: no cloud credentials, no tokens.
_PASSED_ON: Final = (
    "HOME",
    "LANG",
    "LANGUAGE",
    "LD_LIBRARY_PATH",
    "LD_PRELOAD",
    "LOGNAME",
    "PATH",
    "PYTHONPATH",
    "SSL_CERT_DIR",
    "SSL_CERT_FILE",
    "TMPDIR",
    "TZ",
    "USER",
    "VIRTUAL_ENV",
)
_PASSED_ON_PREFIXES: Final = (
    "CUDA_",
    "GOMP_",
    "HF_",
    "KMP_",
    "LC_",
    "MKL_",
    "NCCL_",
    "NVIDIA_",
    "OMP_",
    "PYTORCH_",
    "TORCH",
    "VLLM_",
    "XDG_",
    ENV_PREFIX,
)
_NEVER: Final = ("_API_KEY", "_TOKEN", "_SECRET", "_PASSWORD", "_CREDENTIALS")
_TASKS: Final = {
    # The models are folders by now; nothing is fetched and nothing is reported to anybody.
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "DO_NOT_TRACK": "1",
    "TOKENIZERS_PARALLELISM": "false",
}


def deployment(settings: LocalSettings, endpoint: Endpoint) -> list[ChildSpec]:
    """The API, and a trainer and a sampler for every base model."""
    inherited = inherited_environment(os.environ)
    common = {**inherited, **settings.as_environment(), "PYTHONUNBUFFERED": "1"}
    children = [ChildSpec("api", _module("tensafe.api.server"), {**common, **_listening(endpoint)})]
    task = {**common, **_TASKS}
    if settings.threads:
        task["OMP_NUM_THREADS"] = str(settings.threads)
    for model in settings.models:
        slug = train_queue(model.name).removeprefix("train-")
        for role, queue in (("trainer", train_queue(model.name)), ("sampler", sample_queue(model.name))):
            command = (*_module(f"tensafe_gpu.{role}"), "--model", model.name)
            children.append(ChildSpec(f"{role}-{slug}", command, task, queue))
    return children


def check_installed(*, private_adapters: bool) -> None:
    """Raise ConfigurationError unless the packages of the GPU tasks are there, and of HE-LoRA if it is on."""
    missing = [name for name in ("tensafe_gpu", "torch", "transformers", "vllm") if find_spec(name) is None]
    if missing:
        raise ConfigurationError(
            f"the trainer and the sampler need {', '.join(missing)}: install tensafe[gpu,sampler], or "
            "tensafe[gpu,sampler-cuda] for CUDA"
        )
    if private_adapters and find_spec("tenseal") is None:
        raise ConfigurationError(
            f"{ENV_PREFIX}PRIVATE_ADAPTERS is set, and HE-LoRA needs TenSEAL: pip install 'tensafe[he]'"
        )


def inherited_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """The part of the operator's environment that children get."""
    return {
        name: value
        for name, value in environment.items()
        if (name in _PASSED_ON or name.startswith(_PASSED_ON_PREFIXES)) and not name.endswith(_NEVER)
    }


def choose_threads(models: int, environment: Mapping[str, str]) -> int:
    """Compute threads per task when the operator does not say.

    The trainer and the sampler of one model mostly take turns, so both get the cores; different models
    work at the same time, so they share them. OMP_NUM_THREADS, where set, is the operator's own limit.
    """
    cores = len(os.sched_getaffinity(0))
    limit = environment.get("OMP_NUM_THREADS", "")
    if limit.isdecimal() and int(limit) > 0:
        cores = min(cores, int(limit))
    return max(1, cores // max(1, models))


def _listening(endpoint: Endpoint) -> dict[str, str]:
    values = {f"{ENV_PREFIX}HOST": endpoint.host, f"{ENV_PREFIX}PORT": str(endpoint.port)}
    if endpoint.tls_cert is not None and endpoint.tls_key is not None:
        values[f"{ENV_PREFIX}TLS_CERT"] = str(endpoint.tls_cert.resolve())
        values[f"{ENV_PREFIX}TLS_KEY"] = str(endpoint.tls_key.resolve())
    return values


def _module(name: str) -> tuple[str, ...]:
    return (sys.executable, "-P", "-m", name)  # -P: nothing of the working directory is imported
