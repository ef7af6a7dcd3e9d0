"""The protobuf Tensor message, dense or sparse, as a checked numpy array."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Final, cast

import numpy as np
import numpy.typing as npt

from tensafe.contracts.errors import InvalidRequest
from tensafe.wire import tinker_v0_38_pb2 as pb
from tensafe.wire.limits import ElementBudget

if TYPE_CHECKING:
    from tensafe.contracts.training import Tensor

_DTYPES: Final[dict[int, np.dtype[Any]]] = {
    pb.DTYPE_FLOAT32: np.dtype("<f4"),
    pb.DTYPE_INT64: np.dtype("<i8"),
}
_INDEX: Final = np.dtype("<i8")
_MAX_DIMENSIONS: Final = 2


def decode_tensor(message: pb.Tensor, field: str, budget: ElementBudget) -> Tensor:
    """A writable float32 or int64 array of 1 or 2 dimensions.

    A sparse tensor (CSR, unlisted cells are 0) becomes dense. No shape means one dimension. Raises
    InvalidRequest for whatever does not fit together, PayloadTooLarge when `budget` runs out.
    """
    dtype = _DTYPES.get(message.dtype)
    if dtype is None:
        raise InvalidRequest(f"{field} must have dtype float32 or int64", field=field)
    shape = tuple(message.shape)
    if len(shape) > _MAX_DIMENSIONS or any(size < 1 for size in shape):
        raise InvalidRequest(f"{field} must have 1 or 2 dimensions of size 1 or more", field=field)
    encoding = message.WhichOneof("encoding")
    if encoding == "dense":
        array = _dense(message.dense, dtype, shape, field, budget)
    elif encoding == "sparse_csr":
        array = _sparse(message.sparse_csr, dtype, shape, field, budget)
    else:
        raise InvalidRequest(f"{field} has no data: give dense or sparse_csr", field=field)
    return cast("Tensor", array)


def _dense(
    data: bytes, dtype: np.dtype[Any], shape: tuple[int, ...], field: str, budget: ElementBudget
) -> npt.NDArray[Any]:
    if len(data) % dtype.itemsize:
        raise InvalidRequest(f"{field}.dense is not a whole number of {dtype.name} values", field=field)
    elements = len(data) // dtype.itemsize
    if not shape:
        shape = (elements,)
    if math.prod(shape) != elements:
        raise InvalidRequest(f"{field} has shape {list(shape)} and holds {elements} values", field=field)
    budget.take(elements, field)
    return np.frombuffer(data, dtype).astype(dtype.newbyteorder("=")).reshape(shape)


def _sparse(
    csr: pb.SparseCsr, dtype: np.dtype[Any], shape: tuple[int, ...], field: str, budget: ElementBudget
) -> npt.NDArray[Any]:
    if len(shape) != _MAX_DIMENSIONS:
        raise InvalidRequest(f"{field} is sparse and must have 2 dimensions", field=field)
    rows, columns = shape
    values = _flat(csr.values, dtype, f"{field}.sparse_csr.values")
    row_starts = _flat(csr.crow_indices, _INDEX, f"{field}.sparse_csr.crow_indices")
    column_of = _flat(csr.col_indices, _INDEX, f"{field}.sparse_csr.col_indices")
    _check_csr(values.size, row_starts, column_of, rows, columns, f"{field}.sparse_csr")
    budget.take(rows * columns, field)
    dense = np.zeros((rows, columns), dtype.newbyteorder("="))
    dense[np.repeat(np.arange(rows), np.diff(row_starts)), column_of] = values
    return dense


def _flat(data: bytes, dtype: np.dtype[Any], field: str) -> npt.NDArray[Any]:
    if len(data) % dtype.itemsize:
        raise InvalidRequest(f"{field} is not a whole number of {dtype.name} values", field=field)
    return np.frombuffer(data, dtype)


def _check_csr(
    values: int,
    row_starts: npt.NDArray[Any],
    column_of: npt.NDArray[Any],
    rows: int,
    columns: int,
    field: str,
) -> None:
    """Raise InvalidRequest unless the indices describe `values` distinct cells of [rows, columns]."""
    starts_field, columns_field = f"{field}.crow_indices", f"{field}.col_indices"
    if row_starts.size != rows + 1:
        raise InvalidRequest(
            f"{starts_field} must have {rows + 1} entries, one more than rows", field=starts_field
        )
    if row_starts[0] != 0 or row_starts[-1] != values or np.any(row_starts[1:] < row_starts[:-1]):
        raise InvalidRequest(f"{starts_field} must rise from 0 to the number of values", field=starts_field)
    if column_of.size != values:
        raise InvalidRequest(f"{columns_field} must have one entry per value", field=columns_field)
    if np.any(column_of < 0) or np.any(column_of >= columns):
        raise InvalidRequest(f"{columns_field} must lie between 0 and {columns - 1}", field=columns_field)
    rising = column_of[1:] > column_of[:-1]
    starts_row = np.zeros(values + 1, dtype=bool)
    starts_row[row_starts] = True
    if not np.all(rising | starts_row[1:values]):
        raise InvalidRequest(f"{columns_field} must rise within each row", field=columns_field)
