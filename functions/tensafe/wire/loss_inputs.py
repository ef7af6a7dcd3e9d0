"""What the wire may say about a loss: its name, its settings, and an example's privacy unit.

Whether the tensors fit the loss and the base model is checked by `contracts.data_checks`, at the edge
and again in the trainer.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Final, get_args

import numpy as np
import numpy.typing as npt

from tensafe.contracts.errors import InvalidRequest, Unsupported
from tensafe.contracts.training import Datum, LossName

if TYPE_CHECKING:
    from tensafe.contracts.training import Tensor

UNIT_ID_INPUT: Final = "dp_unit_id"
"""The loss input, int64 [1], that names an example's privacy unit."""

SUPPORTED_LOSSES: Final[tuple[LossName, ...]] = get_args(LossName)
_OTHER_LOSSES_OF_THE_PROTOCOL: Final = frozenset({"gspo", "stable_reinforce", "custom"})


def check_loss_name(name: str) -> LossName:
    """`name` if this service computes that loss, else an error that lists the ones it does."""
    for loss in SUPPORTED_LOSSES:
        if loss == name:
            return loss
    message = f"loss {name[:64]!r} is not supported; supported losses: {', '.join(SUPPORTED_LOSSES)}"
    if name in _OTHER_LOSSES_OF_THE_PROTOCOL:
        raise Unsupported(message, field="loss_fn")
    raise InvalidRequest(message, field="loss_fn")


def check_loss_config(config: Mapping[str, float | str]) -> dict[str, float]:
    """The settings as finite numbers. Text is Unsupported, since none of our losses reads any."""
    checked: dict[str, float] = {}
    for name, value in config.items():
        field = f"loss_fn_config.{name[:64]}"
        if isinstance(value, str):
            raise Unsupported(f"{field} is text; the losses of this service take numbers only", field=field)
        if not math.isfinite(value):
            raise InvalidRequest(f"{field} must be a finite number", field=field)
        checked[name] = float(value)
    return checked


def build_datum(tokens: npt.NDArray[np.int32], inputs: Mapping[str, Tensor], field: str) -> Datum:
    """A training example; the unit id leaves `inputs`. Raises InvalidRequest if it is not one int64."""
    unit_id = inputs.get(UNIT_ID_INPUT)
    if unit_id is None:
        return Datum(tokens, dict(inputs))
    unit_field = f"{field}.loss_fn_inputs.{UNIT_ID_INPUT}"
    if unit_id.dtype != np.int64 or unit_id.shape != (1,):
        raise InvalidRequest(f"{unit_field} must be one int64, shape [1]", field=unit_field)
    others = {name: array for name, array in inputs.items() if name != UNIT_ID_INPUT}
    return Datum(tokens, others, int(unit_id[0]))
