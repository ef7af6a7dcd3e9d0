"""Units' data cut into requests: a unit whole in one, and a request one that the SDK does not cut again.

The SDK cuts the data of a `forward_backward` into chunks of at most `SDK_MAX_DATA` data and `SDK_MAX_BYTES`
bytes (`TrainingClient._chunked_requests_generator`, SDK 0.38), wherever a unit happens to end. A dealt unit
that comes in two of them is refused, so the data are handed to it in parts that fit.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import numpy as np

from tensafe.client.examples import as_datum
from tensafe.contracts.errors import InvalidRequest
from tensafe.contracts.training import Datum

SDK_MAX_DATA: Final = 1024
SDK_MAX_BYTES: Final = 5_000_000
_TOKEN_BYTES: Final = 4
_INDEX_BYTES: Final = 8
_Example = TypeVar("_Example")


@dataclass(frozen=True, slots=True)
class PartLimits:
    """What one request takes; beyond the defaults the SDK cuts it, and units with it."""

    data: int = SDK_MAX_DATA
    bytes: int = SDK_MAX_BYTES

    def size_of(self, unit_id: int, examples: Sequence[object]) -> int:
        """Bytes of a unit. Raises InvalidRequest for one that has no data or fits in no request."""
        size = sum(map(sent_bytes, examples))
        if not examples:
            raise InvalidRequest(f"unit {unit_id} has no data")
        if len(examples) > self.data or size > self.bytes:
            raise InvalidRequest(
                f"unit {unit_id} has {len(examples)} data of {size} bytes, and a request takes {self.data} "
                f"data and {self.bytes} bytes; a unit comes whole in one request, so register it as several "
                "units, or with fewer or shorter data"
            )
        return size


DEFAULT_LIMITS: Final = PartLimits()


def by_unit(data: Iterable[_Example]) -> dict[int, list[_Example]]:
    """The data of each unit, named by `dp_unit_id`; the SDK's `Datum`s or mappings. Raises InvalidRequest."""
    units: dict[int, list[_Example]] = {}
    for position, example in enumerate(data):
        unit_id = as_datum(example).unit_id
        if unit_id is None:
            raise InvalidRequest(
                "every datum needs dp_unit_id, an int64 that says whose it is", field=f"data[{position}]"
            )
        units.setdefault(unit_id, []).append(example)
    return units


def parts_of(
    units: Iterable[tuple[int, Sequence[_Example]]], limits: PartLimits = DEFAULT_LIMITS
) -> list[list[_Example]]:
    """Lists within the limits, each unit whole in one of them. Raises as `PartLimits.size_of`."""
    parts: list[list[_Example]] = []
    last: list[_Example] = []
    last_bytes = 0
    for unit_id, examples in units:
        size = limits.size_of(unit_id, examples)
        if not parts or len(last) + len(examples) > limits.data or last_bytes + size > limits.bytes:
            last, last_bytes = [], 0
            parts.append(last)
        last.extend(examples)
        last_bytes += size
    return parts


def sent_bytes(example: object) -> int:
    """Bytes of one example as the SDK counts them before it cuts; for a mapping, at most 8 a number."""
    if isinstance(example, Datum):
        return int(example.tokens.nbytes + sum(values.nbytes for values in example.inputs.values()))
    if isinstance(example, Mapping):
        inputs = example.get("loss_fn_inputs", {})
        return _TOKEN_BYTES * len(example["tokens"]) + sum(8 * np.size(values) for values in inputs.values())
    given: Any = example
    return _TOKEN_BYTES * int(given.model_input.length) + sum(
        map(_tensor_bytes, given.loss_fn_inputs.values())
    )


def _tensor_bytes(tensor: Any) -> int:  # noqa: ANN401 - the SDK's TensorData
    if tensor.sparse_crow_indices is None:
        return int(tensor.to_numpy().nbytes)
    width = 8 if tensor.dtype == "int64" else 4
    indices = len(tensor.sparse_crow_indices) + len(tensor.sparse_col_indices)
    return width * len(tensor.sparse_col_indices) + _INDEX_BYTES * indices
