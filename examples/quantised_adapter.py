"""A private adapter's integers, multiplied in the clear: what encrypted sampling has to come to.

Only who holds the adapter can do this, and only who has the prompts would want to; they are two parties.
In the demo both are you, so that the claim can be checked: an encrypted answer's every token is the one
that these integers choose.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from transformers import AutoModelForCausalLM
from transformers.utils.logging import disable_progress_bar

from tensafe_gpu.adapter_holder.composition import directory_store


class QuantisedAdapter:
    """The base model in transformers, float32, with what an adapter holder serves of one adapter added."""

    def __init__(self, model_path: str, holder_dir: Path, adapter: str, version: int | None = None) -> None:
        store = directory_store(holder_dir)
        try:
            served = store.load(adapter, version).adapter
        finally:
            store.close()
        self.digest = served.info.digest
        disable_progress_bar()
        self.model: Any = AutoModelForCausalLM.from_pretrained(model_path, dtype=torch.float32).eval()
        for site in served.sites.values():
            for module in site.shape.modules:
                a, b = site.a[site.shape.rows(module.name)], site.b[module.name]
                hook = _adding(a, b, site.shape.x_bound)
                self.model.get_submodule(module.name).register_forward_hook(hook)

    def greedy_after(self, prompt: Sequence[int], tokens: Sequence[int]) -> list[int]:
        """The likeliest token at each place after the prompt, given the tokens before that place.

        Equal to `tokens` if, and only if, they are what greedy sampling draws.
        """
        scored = self.logprobs([*prompt, *tokens])
        first = len(prompt) - 1
        chosen: list[int] = scored[first : first + len(tokens)].argmax(-1).tolist()
        return chosen

    def logprobs(self, tokens: Sequence[int]) -> torch.Tensor:
        """float32 [T, vocabulary]: row t predicts token t + 1."""
        with torch.no_grad():
            scored: torch.Tensor = self.model(input_ids=torch.tensor([list(tokens)])).logits[0]
        return scored.log_softmax(-1)


def _adding(
    a: npt.NDArray[np.int16], b: npt.NDArray[np.float32], x_bound: int
) -> Callable[..., torch.Tensor]:
    """Adds B' (A x_q) times the token's scale; float64 holds the integers, which stay below 2**53."""
    integers, turned = torch.from_numpy(a).double(), torch.from_numpy(b)

    def hook(_: torch.nn.Module, inputs: tuple[torch.Tensor], output: torch.Tensor) -> torch.Tensor:
        x = inputs[0].double()
        scale = x.abs().amax(-1, keepdim=True) / x_bound
        rounded = (x / scale.where(scale > 0, 1.0)).round()
        return output + (rounded @ integers.T * scale).float() @ turned.T

    return hook
