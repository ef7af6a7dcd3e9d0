"""The native JSON body of forward_backward: the same request with plain lists."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Final

import numpy as np
import numpy.typing as npt
from pydantic import Field

from tensafe.contracts.errors import InvalidRequest, PayloadTooLarge
from tensafe.contracts.training import Datum, ForwardBackward
from tensafe.wire.json_body import RequestModel, parse_json
from tensafe.wire.limits import ElementBudget, WireLimits
from tensafe.wire.loss_inputs import UNIT_ID_INPUT, build_datum, check_loss_config, check_loss_name

if TYPE_CHECKING:
    from tensafe.contracts.training import Tensor

_INT32_MAX: Final = 2**31 - 1
_INT64_MAX: Final = 2**63 - 1
_INTEGER_INPUT: Final = "target_tokens"
_DEFAULT_LIMITS: Final = WireLimits()

# Stopping at the first wrong entry: a problem of pydantic's takes a thousand times its entry's space.
TensorJson = Annotated[
    list[int | float | Annotated[list[int | float], Field(fail_fast=True)]], Field(fail_fast=True)
]


class DatumJson(RequestModel):
    """One example: token ids, the loss's inputs as (nested) lists, and the privacy unit's id."""

    tokens: list[int] = Field(min_length=1, fail_fast=True)
    loss_fn_inputs: dict[str, TensorJson]
    dp_unit_id: int | None = Field(default=None, ge=-_INT64_MAX - 1, le=_INT64_MAX)

    def to_datum(self, field: str, limits: WireLimits = _DEFAULT_LIMITS) -> Datum:
        """The contract object of this example alone; `field` names it in errors."""
        return _to_datum(self, field, ElementBudget(limits.elements))


class ForwardBackwardJson(RequestModel):
    """The body of a forward_backward call on the native face."""

    data: list[DatumJson] = Field(min_length=1, fail_fast=True)
    loss_fn: str
    loss_fn_config: dict[str, float | str] = Field(default_factory=dict)
    forward_only: bool = False

    def to_forward_backward(self, limits: WireLimits = _DEFAULT_LIMITS) -> ForwardBackward:
        """The contract object; the same rules and messages as for protobuf."""
        loss = check_loss_name(self.loss_fn)
        config = check_loss_config(self.loss_fn_config)
        if len(self.data) > limits.examples:
            raise PayloadTooLarge(
                f"data has {len(self.data)} examples; at most {limits.examples} are accepted", field="data"
            )
        budget = ElementBudget(limits.elements)
        data = tuple(_to_datum(datum, f"data[{i}]", budget) for i, datum in enumerate(self.data))
        return ForwardBackward(data, loss, config, self.forward_only)


def request_json_to_forward_backward(raw: bytes, limits: WireLimits = _DEFAULT_LIMITS) -> ForwardBackward:
    """Parse and check a JSON body. Raises InvalidRequest (with `field`), Unsupported, PayloadTooLarge."""
    return parse_json(ForwardBackwardJson, raw, max_bytes=limits.body_bytes).to_forward_backward(limits)


def _to_datum(datum: DatumJson, field: str, budget: ElementBudget) -> Datum:
    tokens = _array(datum.tokens, np.dtype(np.int64), f"{field}.tokens", budget)
    if tokens.max() > _INT32_MAX or tokens.min() < 0:
        raise InvalidRequest(f"{field}.tokens must be token ids below 2**31", field=f"{field}.tokens")
    inputs: dict[str, Tensor] = {}
    for name, values in datum.loss_fn_inputs.items():
        input_field = f"{field}.loss_fn_inputs.{name[:64]}"
        if name == UNIT_ID_INPUT:
            raise InvalidRequest(f"{input_field} belongs beside loss_fn_inputs", field=input_field)
        dtype: np.dtype[Any] = np.dtype(np.int64 if name == _INTEGER_INPUT else np.float32)
        inputs[name] = _array(values, dtype, input_field, budget)
    if datum.dp_unit_id is not None:
        inputs[UNIT_ID_INPUT] = np.array([datum.dp_unit_id], np.int64)
    return build_datum(tokens.astype(np.int32), inputs, field)


def _array(values: list[Any], dtype: np.dtype[Any], field: str, budget: ElementBudget) -> npt.NDArray[Any]:
    """A 1- or 2-dimensional array of `dtype` from lists of numbers, none of them rounded to an integer."""
    rows = [value for value in values if isinstance(value, list)]
    if rows and (len(rows) != len(values) or len({len(row) for row in rows}) != 1 or not rows[0]):
        raise InvalidRequest(f"{field} must be a list of numbers, or of equally long lists", field=field)
    flat = [number for row in rows for number in row] if rows else values
    budget.take(len(flat), field)
    if dtype.kind == "i" and any(type(number) is not int or abs(number) > _INT64_MAX for number in flat):
        raise InvalidRequest(f"{field} must hold 64-bit integers", field=field)
    try:
        with np.errstate(over="ignore"):
            array = np.array(flat, dtype)
    except OverflowError as error:
        raise InvalidRequest(f"{field} holds a number that is too large", field=field) from error
    return array.reshape(len(rows), -1) if rows else array
