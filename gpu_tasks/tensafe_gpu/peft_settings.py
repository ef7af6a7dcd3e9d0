"""Settings of a PEFT adapter that every reader here takes or refuses; no torch, for the adapter holder.

A reader computes (lora_alpha / r) B A, or with `use_rslora` (lora_alpha / sqrt(r)) B A, on the base model's
own weights. A setting that means anything else is refused by its name, and so is one that nobody here knows.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from typing import Any, Final

from tensafe.contracts.errors import InvalidRequest, Unsupported

CONFIG_FILE: Final = "adapter_config.json"
WEIGHTS_FILE: Final = "adapter_model.safetensors"
_CONFIG_MAX_BYTES: Final = 1 << 20
MAX_ALPHA: Final = 1e6
"""Far beyond what anybody trains with, and far below where float32 ends."""

_MUST_BE_OFF: Final = (
    "alora_invocation_tokens",
    "alpha_pattern",
    "ensure_weight_tying",
    "fan_in_fan_out",
    "layer_replication",
    "loftq_config",
    "lora_bias",
    "modules_to_save",
    "rank_pattern",
    "target_parameters",
    "trainable_token_indices",
    "use_dora",
    "use_qalora",
    "use_rslora",
)
"""They change what the two matrices mean, or bring more than two; set, they are refused by name."""
_MUST_BE_ABSENT: Final = (
    "arrow_config",
    "corda_config",
    "eva_config",
    "kasa_config",
    "lora_ga_config",
    "megatron_config",
    "monteclora_config",
    "use_bdlora",
    "velora_config",
)
"""Variants with settings of their own: an empty one is on, with its defaults."""
_WITHOUT_EFFECT: Final = frozenset(
    {
        "auto_mapping",
        "base_model_name_or_path",
        "exclude_modules",
        "inference_mode",
        "layers_pattern",
        "layers_to_transform",
        "lora_dropout",
        "megatron_core",
        "peft_type",
        "peft_version",
        "qalora_group_size",
        "revision",
        "runtime_config",
        "target_modules",
        "task_type",
    }
)
"""On what a finished adapter computes: which modules it has is told by its weights."""
_PLAIN_INITIALISATION: Final = (True, False, None, "gaussian", "orthogonal", "eva")
"""Others subtract what they begin with from the base model, or are not known here to leave it as it is."""


def configuration(content: bytes, *, field: str) -> dict[str, Any]:
    """What adapter_config.json holds. Raises InvalidRequest; `field` is what the error points at."""
    try:
        config = json.loads(content[:_CONFIG_MAX_BYTES])
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(f"{CONFIG_FILE} is not JSON", field=field) from error
    if not isinstance(config, dict):
        raise InvalidRequest(f"{CONFIG_FILE} is not a LoRA configuration", field=field)
    return config


def configuration_among(files: Mapping[str, bytes]) -> dict[str, Any]:
    """As `configuration`, of an adapter's files."""
    try:
        return configuration(files[CONFIG_FILE], field=CONFIG_FILE)
    except KeyError as error:
        raise InvalidRequest(f"{CONFIG_FILE} is missing", field=CONFIG_FILE) from error


def rank_and_alpha(config: Mapping[str, Any], *, field: str, max_rank: int) -> tuple[int, float]:
    """r and lora_alpha. Raises InvalidRequest."""
    rank, alpha = config.get("r"), config.get("lora_alpha")
    if not isinstance(rank, int) or isinstance(rank, bool) or not 1 <= rank <= max_rank:
        raise InvalidRequest(f"r must be 1 to {max_rank}, not {rank!r:.40}", field=field)
    if not isinstance(alpha, int | float) or isinstance(alpha, bool) or not 0 < alpha <= MAX_ALPHA:
        raise InvalidRequest(
            f"lora_alpha must be a positive number, at most {MAX_ALPHA:.0f}, not {alpha!r:.40}", field=field
        )
    return rank, float(alpha)


def check_settings(config: Mapping[str, Any], *, field: str, read: Collection[str]) -> None:
    """Raise Unsupported, with the name, unless `read` names all that the adapter's formula depends on.

    `field` is what the error points at. `read` may name `use_rslora`; r and lora_alpha are always read.
    """
    if config.get("peft_type") != "LORA":
        raise Unsupported("only plain LoRA is supported: peft_type must be LORA", field=field)
    for name, value in sorted(config.items()):
        if name in _WITHOUT_EFFECT or name in {"r", "lora_alpha"} or name in read:
            continue
        problem = _problem(name, value)
        if problem is not None:
            raise Unsupported(problem, field=field)


def _problem(name: str, value: Any) -> str | None:  # noqa: ANN401 - any JSON value
    if name == "bias":
        off, advice = value == "none", "train without biases, with bias='none'"
    elif name == "init_lora_weights":
        off = value in _PLAIN_INITIALISATION
        advice = (
            "such an adapter is one of a changed base model: save it with PEFT's "
            "path_initial_model_for_weight_conversion, or train with init_lora_weights=True"
        )
    else:
        off = not value and not (name in _MUST_BE_ABSENT and isinstance(value, dict))
        advice = "train without it; it must be absent or off"
        if name not in _MUST_BE_OFF and name not in _MUST_BE_ABSENT:
            advice = (
                "it is not known here and may change what the adapter computes: train without it, or remove "
                "it from the configuration if it has no effect"
            )
    return None if off else f"the PEFT setting {name[:100]}={value!r:.40} is not supported: {advice}"
