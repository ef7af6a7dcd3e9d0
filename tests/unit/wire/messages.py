"""Valid requests to start from: protobuf messages built with our own schema, and a way to break them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from tensafe.wire import tinker_v0_38_pb2 as pb

MODEL_ID = "s-0123:train:0"


def dense(values: Any, dtype: str, shape: list[int] | None = None) -> pb.Tensor:
    """A dense tensor message; `dtype` is float32 or int64."""
    array = np.asarray(values, dtype)
    kind = {"float32": pb.DTYPE_FLOAT32, "int64": pb.DTYPE_INT64}[dtype]
    return pb.Tensor(dense=array.tobytes(), dtype=kind, shape=array.shape if shape is None else shape)


def sparse(
    values: list[float], row_starts: list[int], columns: list[int], shape: list[int], dtype: str = "float32"
) -> pb.Tensor:
    """A CSR tensor message."""
    kind = {"float32": pb.DTYPE_FLOAT32, "int64": pb.DTYPE_INT64}[dtype]
    csr = pb.SparseCsr(
        values=np.asarray(values, dtype).tobytes(),
        crow_indices=np.asarray(row_starts, np.int64).tobytes(),
        col_indices=np.asarray(columns, np.int64).tobytes(),
    )
    return pb.Tensor(sparse_csr=csr, dtype=kind, shape=shape)


def text(*tokens: int) -> pb.Chunk:
    """A chunk of token ids."""
    return pb.Chunk(encoded_text=pb.EncodedTextChunk(tokens=np.asarray(tokens, np.int32).tobytes()))


def datum(length: int = 3) -> pb.Datum:
    """An example of `length` tokens for cross_entropy."""
    inputs = {
        "target_tokens": dense(np.arange(1, length + 1), "int64"),
        "weights": dense(np.ones(length), "float32"),
    }
    return pb.Datum(model_input=[text(*range(length))], loss_fn_inputs=inputs)


def request(examples: int = 3, length: int = 3) -> pb.ForwardBackwardRequest:
    """A cross_entropy request of equal examples."""
    return pb.ForwardBackwardRequest(
        model_id=MODEL_ID,
        seq_id=1,
        loss_fn="cross_entropy",
        data=[datum(length) for _ in range(examples)],
    )


def broken(change: Callable[[pb.ForwardBackwardRequest], None]) -> bytes:
    """The bytes of a valid request after `change`."""
    message = request()
    change(message)
    return message.SerializeToString()
