"""Whether a forward or backward request fits its loss and its base model; numpy only.

The same checks run at the edge, so that a caller hears of a mistake at once, and in the trainer, so
that nothing unchecked reaches the model. Each failure names the field, as `data[3].loss_fn_inputs.weights`,
and says what would be right. Values of the data are never repeated beyond the one token id at fault.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Final, get_args

import numpy as np
import numpy.typing as npt

from tensafe.contracts.errors import InvalidRequest, Unsupported
from tensafe.contracts.training import Datum, ForwardBackward, LossName, ModelInfo

TARGETS: Final = "target_tokens"
CLIP_LOW: Final = "clip_low_threshold"
CLIP_HIGH: Final = "clip_high_threshold"


@dataclass(frozen=True, slots=True)
class LossRules:
    """What a loss reads: float32 inputs beside `target_tokens`, and its numbers with their defaults."""

    required: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()
    config: Mapping[str, float] = field(default_factory=dict)
    several_targets: bool = False
    """Whether `target_tokens` may be [T, K]."""


_SAMPLED: Final = ("logprobs", "advantages")
LOSS_RULES: Final[Mapping[str, LossRules]] = MappingProxyType(
    {
        "cross_entropy": LossRules(optional=("weights",), several_targets=True),
        "importance_sampling": LossRules(required=_SAMPLED),
        "ppo": LossRules(required=_SAMPLED, config={CLIP_LOW: 0.8, CLIP_HIGH: 1.2}),
        "cispo": LossRules(required=_SAMPLED, config={CLIP_LOW: 0.0, CLIP_HIGH: 4.0}),
        "dro": LossRules(required=_SAMPLED, config={"beta": 0.01}),
    }
)
"""The losses of the Tinker service; clip defaults are its cookbook's, beta's is ours."""


def check_request(request: ForwardBackward, info: ModelInfo) -> None:
    """Raise InvalidRequest (Unsupported for an unknown loss) unless every datum can be computed."""
    rules = LOSS_RULES.get(request.loss_fn)
    if rules is None:
        raise Unsupported(
            f"loss {str(request.loss_fn)[:64]!r} is not supported; use {', '.join(get_args(LossName))}",
            field="loss_fn",
        )
    resolve_config(request.loss_fn, request.loss_config)
    if not request.data:
        raise InvalidRequest("the batch is empty; send at least one datum", field="data")
    for index, datum in enumerate(request.data):
        _check_datum(datum, request.loss_fn, rules, info, f"data[{index}]")


def resolve_config(loss_fn: str, config: Mapping[str, float]) -> dict[str, float]:
    """The loss's numbers with defaults filled in. Raises InvalidRequest for an unknown key or a bad range."""
    rules = LOSS_RULES[loss_fn]
    for key, value in config.items():
        if key not in rules.config:
            known = ", ".join(rules.config) or "none"
            raise InvalidRequest(
                f"{loss_fn} has no setting {key[:64]!r}; it has: {known}", field=f"loss_fn_config.{key[:64]}"
            )
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise InvalidRequest(f"{key} must be a finite number", field=f"loss_fn_config.{key}")
        if value < 0:
            raise InvalidRequest(f"{key} must not be negative", field=f"loss_fn_config.{key}")
    resolved = {**rules.config, **{key: float(value) for key, value in config.items()}}
    if CLIP_LOW in resolved and resolved[CLIP_LOW] > resolved[CLIP_HIGH]:
        raise InvalidRequest(
            f"{CLIP_LOW} ({resolved[CLIP_LOW]:g}) must not exceed {CLIP_HIGH} ({resolved[CLIP_HIGH]:g}); "
            "they bound the probability ratio itself, as 0.8 and 1.2",
            field=f"loss_fn_config.{CLIP_LOW}",
        )
    return resolved


def _check_datum(datum: Datum, loss_fn: str, rules: LossRules, info: ModelInfo, path: str) -> None:
    """The datum's tokens, then its targets, then its float inputs; dtype, shape and range of each."""
    tokens, inputs = datum.tokens, datum.inputs
    _check_tokens(tokens, info, f"{path}.model_input")
    _check_names(inputs, loss_fn, rules, f"{path}.loss_fn_inputs")
    targets = inputs[TARGETS]
    _check_targets(targets, tokens.shape[0], rules, loss_fn, info, f"{path}.loss_fn_inputs.{TARGETS}")
    for name in (*rules.required, *rules.optional):
        if name in inputs:
            _check_floats(inputs[name], targets.shape, name, f"{path}.loss_fn_inputs.{name}")


def _check_tokens(tokens: npt.NDArray[np.int32], info: ModelInfo, path: str) -> None:
    if tokens.ndim != 1 or tokens.dtype != np.int32:
        raise InvalidRequest(f"tokens must be a 1-D int32 array, not {_describe(tokens)}", field=path)
    if tokens.shape[0] == 0:
        raise InvalidRequest("the input has no tokens; send at least one", field=path)
    if tokens.shape[0] > info.max_context_tokens:
        raise InvalidRequest(
            f"{tokens.shape[0]} tokens exceed the context; send at most {info.max_context_tokens}",
            field=path,
        )
    _check_vocabulary(tokens, info, path)


def _check_names(inputs: Mapping[str, Any], loss_fn: str, rules: LossRules, path: str) -> None:
    """Required inputs are there and no other than the known ones."""
    required = (TARGETS, *rules.required)
    for name in required:
        if name not in inputs:
            raise InvalidRequest(
                f"{loss_fn} needs {name}; required: {', '.join(required)}", field=f"{path}.{name}"
            )
    for name in inputs:
        if name not in required and name not in rules.optional:
            known = ", ".join((*required, *rules.optional))
            raise InvalidRequest(
                f"{loss_fn} does not read {name[:64]!r}; it reads: {known}", field=f"{path}.{name[:64]}"
            )


def _check_targets(
    targets: npt.NDArray[Any], length: int, rules: LossRules, loss_fn: str, info: ModelInfo, path: str
) -> None:
    """[T], or [T, K] where the loss allows it; int64; ids of the vocabulary."""
    if targets.dtype != np.int64:
        raise InvalidRequest(f"target_tokens must be int64, not {targets.dtype}", field=path)
    if targets.ndim == 2 and not rules.several_targets:
        raise InvalidRequest(
            f"{loss_fn} takes one target per token: target_tokens must be 1-D, not {_describe(targets)}",
            field=path,
        )
    if targets.ndim not in (1, 2) or targets.shape[0] != length:
        shapes = f"[{length}] or [{length}, K]" if rules.several_targets else f"[{length}]"
        raise InvalidRequest(
            f"target_tokens must have one row per input token: {shapes}, not {_describe(targets)}", field=path
        )
    if targets.ndim == 2 and not 1 <= targets.shape[1] <= info.vocab_size:
        raise InvalidRequest(
            f"target_tokens has {targets.shape[1]} targets per token; send 1 to {info.vocab_size}", field=path
        )
    _check_vocabulary(targets, info, path)


def _check_floats(values: npt.NDArray[Any], shape: tuple[int, ...], name: str, path: str) -> None:
    if values.dtype != np.float32:
        raise InvalidRequest(f"{name} must be float32, not {values.dtype}", field=path)
    if values.shape != shape:
        raise InvalidRequest(
            f"{name} must have the shape of target_tokens, {list(shape)}, not {list(values.shape)}",
            field=path,
        )
    if not np.isfinite(values).all():
        where = np.argwhere(~np.isfinite(values))[0].tolist()
        raise InvalidRequest(f"{name} must be finite; the value at {where} is not", field=path)


def _check_vocabulary(ids: npt.NDArray[Any], info: ModelInfo, path: str) -> None:
    if ids.min() < 0 or ids.max() >= info.vocab_size:
        bad = ids[(ids < 0) | (ids >= info.vocab_size)].flat[0]
        raise InvalidRequest(
            f"token id {int(bad)} is outside the vocabulary; ids are 0 to {info.vocab_size - 1}", field=path
        )


def _describe(array: npt.NDArray[Any]) -> str:
    return f"{array.dtype} of shape {list(array.shape)}"
