"""How long a greeted key holder's frames may be: as long as its adapter makes them."""

from __future__ import annotations

from collections.abc import Mapping

from tensafe_gpu.helora.direct import layout_of
from tensafe_gpu.helora.direct_messages import most_direct_bytes
from tensafe_gpu.helora.frames import TO_ADAPTER_HOLDER, Kind
from tensafe_gpu.helora.messages import (
    ROWS_PER_FRAME,
    begin_bytes,
    most_products_bytes,
    rows_bytes,
    whole_rows_bytes,
)
from tensafe_gpu.helora.ports import AdapterInfo


def request_limits(info: AdapterInfo) -> Mapping[Kind, int]:
    """Of every kind that may follow WELCOME. Both sides work them out: one refuses more, one sends none."""
    widest = max(shape.d_in for shape in info.sites)
    features = min(ROWS_PER_FRAME, widest)
    most = {
        Kind.B_REQUEST: TO_ADAPTER_HOLDER[Kind.B_REQUEST],
        Kind.BLOCK_BEGIN: begin_bytes(widest),
        Kind.BLOCK_ROWS: rows_bytes(features),
        Kind.BLOCK_WHOLE_ROWS: whole_rows_bytes(features),
        Kind.PRODUCTS: most_products_bytes(widest),
        Kind.DIRECT: most_direct_bytes([layout_of(shape.d_in, shape.rank_rows) for shape in info.sites]),
    }
    return {kind: min(size, TO_ADAPTER_HOLDER[kind]) for kind, size in most.items()}
