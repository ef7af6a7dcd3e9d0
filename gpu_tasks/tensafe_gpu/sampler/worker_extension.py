"""What runs inside vLLM's worker process: repairs, the watch on the sampler, questions about adapters.

vLLM imports this module by name (`worker_extension_cls`) before it builds the model and mixes the
class into its worker; the sampler calls the methods through `collective_rpc`. What has to happen
before the model is loaded happens when it is imported.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import torch
from vllm.model_executor.models.qwen2 import Qwen2ForCausalLM
from vllm.v1.kv_cache_interface import KVCacheConfig
from vllm.v1.worker.gpu_model_runner import GPUModelRunner

from tensafe_gpu.sampler.engine_logging import EngineFormatter
from tensafe_gpu.sampler.lora_rows import NO_ADAPTER, PromptRows, repaired_class
from tensafe_gpu.sampler.parent_watch import end_with_the_sampler
from tensafe_gpu.sampler.private.extension import PrivateWorkerExtension
from tensafe_gpu.sampler.seeded_chunks import SeededChunks

if TYPE_CHECKING:
    from vllm.lora.model_manager import LoRAModelManager
    from vllm.v1.outputs import LogprobsTensors

end_with_the_sampler()

# vLLM zeroes fresh cache blocks only for state-space models. A request whose adapter overflows leaves
# NaN in its blocks, and the next request to get them, any tenant's, would read NaN beyond its end.
KVCacheConfig.needs_kv_cache_zeroing = property(lambda _: True)  # type: ignore[assignment,method-assign]

# The class attribute is vLLM's documented way to declare it; Qwen2 shares Qwen3's head and lacks it.
if not Qwen2ForCausalLM.embedding_modules:
    Qwen2ForCausalLM.embedding_modules = {"lm_head": "output_embeddings"}


class SamplerWorkerExtension(PrivateWorkerExtension):
    """Methods that the sampler adds to vLLM's worker."""

    model_runner: GPUModelRunner

    def tensafe_repair(self) -> dict[str, Any]:
        """Install the repairs; returns facts. Raises TypeError if one does not fit."""
        runner = self.model_runner
        if not isinstance(runner, GPUModelRunner):
            raise TypeError("vLLM chose its second model runner; the repairs are for the first")
        repairs: list[type] = []
        modules = 0
        if runner.lora_config is not None:  # else no ordinary adapters, and nothing of theirs to repair
            modules = _repair_lora(_manager(runner))
            repairs.append(_PromptLogprobs)
        if runner.device.type == "cpu":
            repairs.append(SeededChunks)
        if repairs and not isinstance(runner, tuple(repairs)):
            runner.__class__ = type("TensafeModelRunner", (*repairs, type(runner)), {})
        EngineFormatter.requests_may_come()
        return {"lora_modules": modules, "threads": torch.get_num_threads()}

    def tensafe_unapplied(self, adapter_id: int) -> list[str]:
        """Modules of a loaded adapter that vLLM has no LoRA layer for and would silently leave out."""
        manager = _manager(self.model_runner)
        adapter = manager.get_adapter(adapter_id)
        if adapter is None:
            raise RuntimeError(f"adapter {adapter_id} is not loaded")
        return sorted(set(adapter.loras) - set(manager.modules))


def _repair_lora(manager: LoRAModelManager) -> int:
    """How many LoRA layers apply their adapters by groups of rows now: all. Raises TypeError otherwise."""
    for wrapper in manager.punica_wrapper_mapping.values():
        if not isinstance(wrapper, PromptRows):
            wrapper.__class__ = repaired_class(type(wrapper))
    for name, module in manager.modules.items():
        if not isinstance(module.punica_wrapper, PromptRows):
            raise TypeError(f"the LoRA layer {name} was not repaired")
    return len(manager.modules)


def _manager(runner: GPUModelRunner) -> LoRAModelManager:
    return cast("LoRAModelManager", runner.get_model().lora_manager)


class _PromptLogprobs(GPUModelRunner):
    """Mix-in for vLLM's model runner: prompt logprobs request by request, each with its own adapter."""

    def _get_prompt_logprobs_dict(
        self, hidden_states: torch.Tensor, num_scheduled_tokens: dict[str, int]
    ) -> dict[str, LogprobsTensors | None]:
        """hidden_states [tokens, hidden] of the whole batch -> the finished prompts' logprobs by request."""
        pending = self.num_prompt_logprobs
        results: dict[str, LogprobsTensors | None] = {}
        for request_id in list(pending):
            if request_id not in num_scheduled_tokens:
                continue
            only = {request_id: pending[request_id]}
            self.num_prompt_logprobs = only
            try:
                slot, wrapper = self._slot_and_wrapper(request_id)
                with wrapper.rows_of_one_prompt(slot):
                    results |= super()._get_prompt_logprobs_dict(hidden_states, num_scheduled_tokens)
            finally:
                self.num_prompt_logprobs = pending
            if not only:  # vLLM removes a request whose prompt is complete
                del pending[request_id]
        return results

    def _slot_and_wrapper(self, request_id: str) -> tuple[int, PromptRows]:
        """The slot of the request's adapter, and what applies LoRA to lm_head."""
        manager = _manager(self)
        wrapper = cast("PromptRows", next(iter(manager.punica_wrapper_mapping.values())))
        request = self.requests[request_id].lora_request
        slot = NO_ADAPTER if request is None else manager.lora_index_to_id.index(request.lora_int_id)
        return slot, wrapper
