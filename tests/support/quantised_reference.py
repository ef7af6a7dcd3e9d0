"""The plaintext quantised adapter in transformers: the same integers, multiplied in the clear."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from safetensors.numpy import load_file
from transformers import AutoModelForCausalLM

from tensafe_gpu.adapter_holder.composition import directory_store
from tests.support.private_evaluator import quantised, shapes

FUSED = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))
Array = npt.NDArray[np.float32]


def lora_pairs(folder: Path) -> dict[str, tuple[Array, Array]]:
    """Module name -> (A, B) of a PEFT folder, q before k before v, as the fused layers stack them."""
    tensors = load_file(folder / "adapter_model.safetensors")
    order = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    modules = {key.removeprefix("base_model.model.").split(".lora_")[0] for key in tensors}
    ordered = sorted(
        (m for m in modules if m.endswith(order)), key=lambda m: order.index(m.rpartition(".")[2])
    )
    return {
        module: tuple(tensors[f"base_model.model.{module}.lora_{m}.weight"] for m in "AB")  # type: ignore[misc]
        for module in ordered
    }


def quantised_sites(folder: Path, *, alpha: float = 32, rank: int = 4) -> dict[str, dict[str, object]]:
    return quantised(lora_pairs(folder), alpha / rank, FUSED)


def served_integers(data_dir: Path, name: str) -> dict[str, dict[str, object]]:
    """What an adapter holder serves of its newest version in this epoch, out of its own store."""
    store = directory_store(data_dir)
    adapter = store.load(name).adapter
    store.close()
    return {
        site_name: {
            "x_bound": site.shape.x_bound,
            "modules": {
                module.name: (site.a[site.shape.rows(module.name)], site.b[module.name])
                for module in site.shape.modules
            },
        }
        for site_name, site in adapter.sites.items()
    }


class QuantisedReference:
    """A transformers model of its own whose linear modules add the quantised deltas of one adapter."""

    def __init__(self, model_path: str) -> None:
        self.model = AutoModelForCausalLM.from_pretrained(model_path, dtype=torch.float32).eval()

    @contextmanager
    def adapted(self, sites: Mapping[str, dict[str, object]]) -> Iterator[None]:
        handles = []
        for shape in shapes(sites):
            for name, (a, b) in sites[shape.site]["modules"].items():  # type: ignore[attr-defined]
                module = self.model.get_submodule(name)
                handles.append(module.register_forward_hook(_adding(a, b, shape.x_bound)))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def greedy(self, prompt: tuple[int, ...], tokens: int) -> list[int]:
        with torch.no_grad():
            ids = self.model.generate(
                input_ids=torch.tensor([prompt]),
                max_new_tokens=tokens,
                min_new_tokens=tokens,
                do_sample=False,
                eos_token_id=None,
                pad_token_id=1,
            )
        return ids[0, len(prompt) :].tolist()

    def logprobs(self, tokens: list[int]) -> torch.Tensor:
        """float32 [T, vocab]: row t predicts token t+1."""
        with torch.no_grad():
            return self.model(input_ids=torch.tensor([tokens])).logits[0].log_softmax(-1)


def _adding(a: npt.NDArray[np.int64], b: Array, bound: int) -> object:
    def hook(_module: object, inputs: tuple[torch.Tensor], output: torch.Tensor) -> torch.Tensor:
        x = inputs[0].double()
        scale = x.abs().amax(-1, keepdim=True) / bound
        x_q = (x / scale.where(scale > 0, 1.0)).round()
        exact = x_q @ torch.from_numpy(a).double().T  # integers below 2**53
        return output + (exact * scale).float() @ torch.from_numpy(b).T

    return hook
