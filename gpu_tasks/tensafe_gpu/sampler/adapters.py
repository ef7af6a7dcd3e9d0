"""An adapter as the sampler gets it, and the check that it fits the base model exactly.

vLLM is lenient in ways that would be silent here: it copies a matrix of the wrong size into a corner,
leaves out modules that it does not know and ignores settings that it has not read. So every adapter
is compared with the base model's own modules first, and what is not understood is refused.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

import safetensors
import torch
from safetensors.torch import load as load_tensors

from tensafe.contracts.errors import InvalidRequest, Unsupported
from tensafe_gpu.peft_settings import (
    CONFIG_FILE,
    WEIGHTS_FILE,
    check_settings,
    configuration,
    rank_and_alpha,
)

_KEY: Final = re.compile(r"base_model\.model\.(?P<module>.+)\.(?P<matrix>lora_[AB])\.weight")


@dataclass(frozen=True, slots=True)
class Adapter:
    """A LoRA adapter. `version` changes whenever the weights do: a digest or a step number.

    `files` are PEFT's adapter_config.json and adapter_model.safetensors. It is read only when the
    adapter is not resident, so a Mapping that decrypts when asked costs nothing for a warm adapter.
    """

    name: str
    version: str
    files: Mapping[str, bytes] = field(repr=False, compare=False)

    @property
    def identity(self) -> str:
        """What vLLM and its prefix cache know the adapter by."""
        return f"{self.name}@{self.version}"


@dataclass(frozen=True, slots=True)
class BaseShapes:
    """What an adapter may touch: linear module name -> (in features, out features)."""

    linear: Mapping[str, tuple[int, int]]


def read_base_shapes(model_path: str) -> BaseShapes:
    """Build the model of `model_path`/config.json without weights and list its linear modules."""
    from transformers import AutoConfig, AutoModelForCausalLM  # noqa: PLC0415 - seconds, and vLLM comes first

    config = AutoConfig.from_pretrained(model_path, local_files_only=True)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)  # type: ignore[no-untyped-call]
    modules = model.named_modules()
    return BaseShapes(
        {n: (m.in_features, m.out_features) for n, m in modules if isinstance(m, torch.nn.Linear)}
    )


def check_adapter(files: Mapping[str, bytes], base: BaseShapes, max_rank: int) -> dict[str, bytes]:
    """The two files that vLLM gets, once every tensor is known to be applied as PEFT would.

    Raises InvalidRequest for files that do not fit, Unsupported for kinds of LoRA that vLLM does not
    run; both with a `field`.
    """
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        if name not in files:
            raise InvalidRequest(f"the adapter has no {name}", field=f"adapter.{name}")
    config, weights = bytes(files[CONFIG_FILE]), bytes(files[WEIGHTS_FILE])
    rank = _check_config(config, max_rank)
    try:
        tensors = load_tensors(weights)
    except safetensors.SafetensorError as error:
        raise InvalidRequest(f"{WEIGHTS_FILE} is not readable", field=f"adapter.{WEIGHTS_FILE}") from error
    _check_tensors(tensors, base, rank)
    return {CONFIG_FILE: config, WEIGHTS_FILE: weights}


def _check_config(content: bytes, max_rank: int) -> int:
    """The adapter's rank, if its configuration says plain LoRA and nothing else."""
    where = f"adapter.{CONFIG_FILE}"
    config = configuration(content, field=where)
    check_settings(config, field=where, read={"use_rslora"})  # which vLLM reads
    rank, _ = rank_and_alpha(config, field=where, max_rank=max_rank)
    return rank


def _check_tensors(tensors: Mapping[str, torch.Tensor], base: BaseShapes, rank: int) -> None:
    """Every tensor is the A or B of a linear module of the base model, whole, finite and in pairs."""
    where = f"adapter.{WEIGHTS_FILE}"
    found: dict[str, set[str]] = {}
    for key, tensor in tensors.items():
        module, matrix = _parse_key(key)
        if module not in base.linear:
            raise InvalidRequest(f"the base model has no linear module {module}", field=where)
        width_in, width_out = base.linear[module]
        expected = (rank, width_in) if matrix == "lora_A" else (width_out, rank)
        if tuple(tensor.shape) != expected:
            raise InvalidRequest(f"{key} is {tuple(tensor.shape)}; it must be {expected}", field=where)
        if not tensor.is_floating_point() or not bool(tensor.isfinite().all()):
            raise InvalidRequest(f"{key} holds values that are not finite numbers", field=where)
        found.setdefault(module, set()).add(matrix)
    if not found:
        raise InvalidRequest("the adapter holds no LoRA matrices", field=where)
    for module, matrices in found.items():
        if len(matrices) != 2:
            raise InvalidRequest(f"{module} has only one of lora_A and lora_B", field=where)


def _parse_key(key: str) -> tuple[str, str]:
    """PEFT's tensor name -> the module's name in the base model and "lora_A" or "lora_B"."""
    match = _KEY.fullmatch(key)
    if match is None:
        where = f"adapter.{WEIGHTS_FILE}"
        raise Unsupported(f"{key} is not a LoRA matrix; save the adapter's own weights only", field=where)
    return match["module"], match["matrix"]
