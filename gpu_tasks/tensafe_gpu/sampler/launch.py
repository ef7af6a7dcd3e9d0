"""Starting vLLM's AsyncLLM with the repairs of worker_extension installed, or not at all."""

from __future__ import annotations

import logging
import os
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

from tensafe.contracts.errors import ConfigurationError
from tensafe.contracts.sampling import MAX_TOPK_LOGPROBS
from tensafe_gpu.helora.parameters import MAX_TOKENS
from tensafe_gpu.sampler.engine_logging import logging_configuration
from tensafe_gpu.sampler.environment import (
    CONNECT_VARIABLE,
    environment_compiles,
    environment_device,
    environment_is_configured,
)
from tensafe_gpu.sampler.private.budget import PASS_S

if TYPE_CHECKING:
    from vllm.v1.engine.async_llm import AsyncLLM

_LOG: Final = logging.getLogger(__name__)

_WORKER_EXTENSION: Final = "tensafe_gpu.sampler.worker_extension.SamplerWorkerExtension"
_RANKS: Final = (8, 16, 32, 64, 128, 256, 320, 512)
"""Values that vLLM accepts for max_lora_rank; every adapter slot takes memory for this rank."""
_CPU_BLOCK_TOKENS: Final = 32
"""KV cache block on CPU, where vLLM takes 128: only whole blocks of a prompt are shared (docs/vllm.md)."""
_CPU_CACHE_BYTES: Final = 2**30
_BATCHED_TOKENS: Final = 2048
"""Tokens in one step. Prompt logprobs take float32 [tokens, vocabulary] of memory at a time."""

_IN_PIECES: Final = {"compilation_config": {"cudagraph_mode": "PIECEWISE"}}
"""A graph of a whole pass would not come by the private adapters; on CPU vLLM captures none."""
_NO_VLLM: Final = (
    "sampling needs vLLM: pip install 'tensafe[sampler]' for CPU, 'tensafe[sampler-cuda]' for CUDA"
)

Dtype = Literal["auto", "float32", "bfloat16", "float16"]


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """What one engine is started with. Sizes are counts of tokens, sequences or adapters."""

    model_path: Path
    dtype: Dtype
    max_context_tokens: int
    max_loras: int
    max_lora_rank: int
    max_resident_adapters: int
    max_sequences: int
    kv_cache_bytes: int | None = None
    """None: 1 GiB on CPU; on CUDA what vLLM finds free."""
    key_holder: str | None = None
    """`module:function` that makes key holders (`private.holders.Connect`); None: no private adapters."""
    private_pass_s: float = PASS_S
    """What a private adapter may take of a forward pass (`private.budget`)."""

    def __post_init__(self) -> None:
        if not (self.model_path / "config.json").is_file():
            raise ConfigurationError(
                f"{self.model_path} is not a local model folder: it has no config.json", field="model_path"
            )
        if not 1 <= self.max_lora_rank <= _RANKS[-1]:
            raise ConfigurationError(f"the rank limit must be 1 to {_RANKS[-1]}", field="max_lora_rank")
        if not 1 <= self.max_loras <= self.max_resident_adapters:
            raise ConfigurationError(
                "max_loras must be at least 1 and at most max_resident_adapters", field="max_loras"
            )
        if self.key_holder is not None and self.step_tokens > MAX_TOKENS:
            raise ConfigurationError(
                f"with private adapters at most {MAX_TOKENS} sequences run at once", field="max_sequences"
            )

    @property
    def step_tokens(self) -> int:
        """The most that one forward pass has: an adapter holder is asked for all of them at once."""
        return max(_BATCHED_TOKENS, self.max_sequences)

    @property
    def rank_limit(self) -> int | None:
        """Of ordinary adapters; None where vLLM takes none of any rank: it compiles, and runs on CPU."""
        return None if environment_compiles() and environment_device() == "cpu" else self.max_lora_rank

    def vllm_arguments(self) -> dict[str, Any]:
        """Arguments of vllm.AsyncEngineArgs."""
        on_cpu, compiled = environment_device() == "cpu", environment_compiles()
        return {
            "model": str(self.model_path),
            "dtype": self.dtype,
            "max_model_len": self.max_context_tokens,
            "kv_cache_memory_bytes": self.kv_cache_bytes or (_CPU_CACHE_BYTES if on_cpu else None),
            "max_num_seqs": self.max_sequences,
            "max_num_batched_tokens": self.step_tokens,
            "enforce_eager": not compiled and (on_cpu or self.key_holder is not None),
            "block_size": _CPU_BLOCK_TOKENS if on_cpu else None,
            **self._lora_arguments(),
            **(_IN_PIECES if compiled and self.key_holder is not None else {}),
            "max_logprobs": MAX_TOPK_LOGPROBS,
            "logprobs_mode": "raw_logprobs",
            "enable_prefix_caching": True,
            "trust_remote_code": False,
            "enable_log_requests": False,
            "disable_log_stats": True,
            "worker_extension_cls": _WORKER_EXTENSION,
            # vLLM's default is 0: every restart would draw the same tokens for unseeded requests.
            "seed": secrets.randbits(31),
        }

    def _lora_arguments(self) -> dict[str, Any]:
        limit = self.rank_limit
        if limit is None:
            return {}
        return {
            "enable_lora": True,
            "max_loras": self.max_loras,
            "max_cpu_loras": self.max_resident_adapters,
            "max_lora_rank": next(rank for rank in _RANKS if rank >= limit),
        }


def launch(settings: EngineSettings, runtime_directory: Path) -> AsyncLLM:
    """Start the engine's process and wait until the model is loaded; blocks for 10 to 30 seconds.

    `runtime_directory` gets vLLM's unix sockets and logging configuration. Raises ConfigurationError, and
    ImportError with the command that installs vLLM.
    """
    if not environment_is_configured():
        raise ConfigurationError("call configure_environment before the sampling engine is started")
    logging_file = runtime_directory / "logging.json"
    logging_file.write_bytes(logging_configuration())
    os.environ["VLLM_LOGGING_CONFIG_PATH"] = str(logging_file)
    os.environ["VLLM_RPC_BASE_PATH"] = str(runtime_directory)
    if settings.key_holder is None:
        os.environ.pop(CONNECT_VARIABLE, None)
    else:
        os.environ[CONNECT_VARIABLE] = settings.key_holder

    # vLLM reads the environment when it is imported, so it is imported here and not above.
    try:
        from vllm.engine.arg_utils import AsyncEngineArgs  # noqa: PLC0415
        from vllm.platforms import current_platform  # noqa: PLC0415
        from vllm.v1.engine.async_llm import AsyncLLM  # noqa: PLC0415
    except ImportError as error:
        raise ImportError(_NO_VLLM) from error
    device = environment_device()
    if not (current_platform.is_cpu() if device == "cpu" else current_platform.is_cuda()):
        raise ConfigurationError(
            f"TENSAFE_DEVICE is {device}, and the vLLM here is not built for it: {_NO_VLLM}. The CPU's is "
            "in requirements/lock.txt, CUDA's in lock-cuda.txt (docs/aws.md, Images)",
            field="device",
        )
    try:
        return AsyncLLM.from_engine_args(AsyncEngineArgs(**settings.vllm_arguments()))
    except Exception as error:
        _LOG.error("vLLM did not start: %s", error)  # there is no request yet that it could quote
        raise ConfigurationError(
            f"vLLM cannot start on {settings.model_path}; see the log. If memory is short: --max-context, "
            "--kv-cache-gib"
        ) from error


async def repair(llm: AsyncLLM, *, private_pass_s: float | None) -> None:
    """Install the repairs in every worker, and private adapters unless `private_pass_s` is None.

    Raises ConfigurationError if one does not fit this vLLM.
    """
    try:
        facts = await llm.collective_rpc("tensafe_repair")
        if private_pass_s is not None:
            facts[0] |= (await llm.collective_rpc("tensafe_private_install", args=(private_pass_s,)))[0]
    except Exception as error:
        raise ConfigurationError("this version of vLLM cannot be repaired; see docs/vllm.md") from error
    _LOG.info("sampling engine repaired", extra={"workers": len(facts), **facts[0]})
