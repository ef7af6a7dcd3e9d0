"""Training examples in whichever form their owner has them, as the service will read them.

A content hash is over exact values, so an example is converted here as the wire converts it: token ids to
int32, `target_tokens` to int64, everything else to float32 unless its dtype says int64.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from tensafe.contracts.errors import InvalidRequest
from tensafe.contracts.training import Datum

if TYPE_CHECKING:
    from tensafe.contracts.training import Tensor

UNIT_ID_INPUT: Final = "dp_unit_id"
_INTEGERS: Final = ("target_tokens", UNIT_ID_INPUT)


def as_datum(example: object, *, unit_id: int | None = None) -> Datum:
    """A contract datum of the SDK's `Datum`, of a mapping with `tokens` and `loss_fn_inputs`, or of itself.

    The mapping's values are arrays or lists, [T] or [T, K]; `dp_unit_id` may stand beside them or among the
    loss inputs. `unit_id` (an int64) names the unit where the example does not. Raises InvalidRequest.
    """
    if isinstance(example, Datum):
        return _with_unit(example.tokens, dict(example.inputs), example.unit_id, unit_id)
    if isinstance(example, Mapping):
        tokens, given = example.get("tokens"), example.get("loss_fn_inputs", {})
        beside = example.get(UNIT_ID_INPUT)
    else:
        tokens, given = _sdk_tokens(example), getattr(example, "loss_fn_inputs", {})
        beside = None
    if tokens is None or not isinstance(given, Mapping):
        raise InvalidRequest("an example has tokens and loss_fn_inputs")
    inputs = {str(name): _tensor(str(name), values) for name, values in given.items()}
    named = inputs.pop(UNIT_ID_INPUT, None)
    if named is not None:
        if named.shape != (1,):
            raise InvalidRequest("dp_unit_id must be one int64, shape [1]", field=UNIT_ID_INPUT)
        beside = int(named[0])
    return _with_unit(_token_ids(tokens), inputs, None if beside is None else int(beside), unit_id)


def _with_unit(
    tokens: npt.NDArray[np.int32], inputs: Mapping[str, Tensor], own: int | None, given: int | None
) -> Datum:
    if own is not None and given is not None and own != given:
        raise InvalidRequest(f"the example names unit {own}, and unit {given} is given", field=UNIT_ID_INPUT)
    unit_id = given if own is None else own
    if unit_id is not None and not -(2**63) <= unit_id < 2**63:
        raise InvalidRequest("dp_unit_id must be an int64", field=UNIT_ID_INPUT)
    return Datum(tokens, inputs, unit_id)


def _sdk_tokens(example: object) -> Any:  # noqa: ANN401 - whatever the SDK's ModelInput gives
    """Token ids of the SDK's ModelInput; the SDK itself is never imported here."""
    model_input = getattr(example, "model_input", None)
    to_ints = getattr(model_input, "to_ints", None)
    if to_ints is None:
        raise InvalidRequest("an example is the SDK's Datum or a mapping with tokens and loss_fn_inputs")
    return to_ints()


def _token_ids(tokens: Any) -> npt.NDArray[np.int32]:  # noqa: ANN401 - a list or an array
    ids = np.asarray(tokens)
    if ids.ndim != 1 or ids.size == 0 or ids.dtype.kind not in "iu":
        raise InvalidRequest("tokens are a list of one or more token ids", field="tokens")
    if int(ids.min()) < 0 or int(ids.max()) >= 2**31:
        raise InvalidRequest("token ids are at least 0 and below 2**31", field="tokens")
    return ids.astype(np.int32)


def _tensor(name: str, values: Any) -> Tensor:  # noqa: ANN401 - the SDK's TensorData, a list or an array
    listed = isinstance(values, list | tuple)  # whole numbers in a list say nothing of a dtype
    array = np.asarray(values) if listed else _dense(values)
    if name in _INTEGERS or (array.dtype == np.int64 and not listed):
        if array.dtype.kind not in "iu":
            raise InvalidRequest(f"{name} must hold integers, not {array.dtype}", field=name)
        return array.astype(np.int64)
    if array.dtype.kind not in "fiu":
        raise InvalidRequest(f"{name} must hold numbers, [T] or [T, K]", field=name)
    return array.astype(np.float32)


def _dense(values: Any) -> npt.NDArray[Any]:  # noqa: ANN401 - as `_tensor`
    starts = getattr(values, "sparse_crow_indices", None)
    if starts is None:
        to_numpy = getattr(values, "to_numpy", None)
        return np.asarray(values if to_numpy is None else to_numpy())
    dense = np.zeros(values.shape, np.int64 if values.dtype == "int64" else np.float32)
    rows = np.repeat(np.arange(len(starts) - 1), np.diff(np.asarray(starts, np.int64)))
    dense[rows, values.sparse_col_indices] = values.data
    return dense
