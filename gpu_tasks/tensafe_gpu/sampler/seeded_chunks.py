"""Seeded requests whose prompt is read in chunks: what vLLM does for CUDA, for generators of the CPU.

After each chunk but the last vLLM draws a token that it throws away, and then sets the request's generator
back by an offset, which generators of the CPU do not have: the error ended the engine for everybody. Here the
state is put back instead, so that the same seed draws the same tokens however its prompt was cut.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from vllm.v1.worker.gpu_model_runner import GPUModelRunner


class SeededChunks(GPUModelRunner):
    """Mix-in for vLLM's model runner on CPU."""

    def _sample(self, *arguments: Any, **named: Any) -> Any:  # noqa: ANN401 - vLLM's signature
        """Called by vLLM with the logits of a pass."""
        before = [(one, one.get_state()) for one in self._of_unfinished_prompts().values()]
        try:
            return super()._sample(*arguments, **named)
        finally:
            for generator, state in before:
                generator.set_state(state)

    def _bookkeeping_sync(self, *arguments: Any, **named: Any) -> Any:  # noqa: ANN401 - vLLM's signature
        """Called by vLLM after `_sample`; it finds no generator that it would set back."""
        unfinished = self._of_unfinished_prompts()
        for index in unfinished:
            del self.input_batch.generators[index]
        try:
            return super()._bookkeeping_sync(*arguments, **named)
        finally:
            self.input_batch.generators.update(unfinished)

    def _of_unfinished_prompts(self) -> dict[int, torch.Generator]:
        """By place in the batch: the generators of requests of which more of the prompt is to come."""
        unfinished = np.flatnonzero(self.discard_request_mask.np[: self.input_batch.num_reqs]).tolist()
        generators = self.input_batch.generators
        return {index: generators[index] for index in unfinished if index in generators}
