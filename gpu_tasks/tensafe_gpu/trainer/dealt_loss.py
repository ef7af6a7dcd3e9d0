"""The loss of a dealt run: one, fixed with the first data that are let in.

A content hash binds a unit's data, and not what is computed of them. If the client could choose the loss, or
its configuration, request by request, a unit's part of the sum could depend on who else was dealt, and no
amplification would hold.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from tensafe.contracts.data_checks import resolve_config
from tensafe.contracts.errors import InvalidRequest
from tensafe.contracts.training import ForwardBackward
from tensafe.operations import layout
from tensafe.operations.records import StreamRecord
from tensafe.privacy.arrival import STAYS
from tensafe.privacy.records import canonical
from tensafe.storage.ports import Items, Put, Write

_ITEM: Final = "dealt-loss"


def fixing_loss(items: Items, stream: StreamRecord, request: ForwardBackward) -> Sequence[Write]:
    """The write that fixes the run's loss, for the transaction of its first data; none once it is fixed.

    Raises InvalidRequest for another loss, or another configuration of it, than the run's.
    """
    config = resolve_config(request.loss_fn, request.loss_config)
    asked = canonical({"loss_fn": request.loss_fn, "config": {name: float(config[name]) for name in config}})
    key = layout.stream_item(stream.stream_id, _ITEM)
    item = items.get(key)
    if item is None:
        return (Put(key, {"loss": asked}, 0),)
    if item.body["loss"] != asked:
        raise InvalidRequest(
            f"a dealt run keeps the loss of its first data, {item.body['loss']}: chosen anew for a deal, it "
            f"could tell who was dealt. Send the data with that loss. {STAYS}",
            field="loss_fn",
        )
    return ()
