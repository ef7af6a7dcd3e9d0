"""The linear layers of vLLM with the deltas of private adapters added to their outputs.

`PluggableLayer.register_oot` is vLLM's way to replace a layer class from outside: the class below is built
in its place and hands its quantisation method's output to `add_deltas`. vLLM's own LoRA layers call that
same method, so plain and private adapters share a batch.

Nothing here raises in a forward pass: an error there ends the engine for every request, for good. What
fails leaves a zero delta and marks the requests; the sampler discards them.
"""

from __future__ import annotations

import copy
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
from vllm.model_executor.layers import linear

from tensafe_gpu.sampler.private.step import STEP, Group, Rows

LAYERS: Final = (
    "QKVParallelLinear",
    "MergedColumnParallelLinear",
    "ColumnParallelLinear",
    "RowParallelLinear",
    "ReplicatedLinear",
)


def add_deltas(layer: str, y: torch.Tensor, x: torch.Tensor) -> None:
    """`y[rows] += B' · products(x[rows])` for each private adapter with a site here.

    y [tokens, width], x [tokens, d_in] of the layer named `layer`, any float dtype; sums are float32.
    """
    for group in STEP.groups:
        placed = group.adapter.placed.get(layer)
        if placed is None:
            continue
        try:
            if group.adapter.failure is not None:
                group.fail(group.adapter.failure)
                continue
            rows = _finite_rows(group, x.reshape(-1, x.shape[-1])[group.rows])
            low = torch.from_numpy(group.adapter.products(placed, rows)).to(y.device)
            flat = y.view(-1, y.shape[-1])
            for target in placed.targets:
                b = group.adapter.b[target.module]
                _add(flat[:, target.start : target.stop], group.rows, low[:, target.rows], b.T)
            group.evaluated(placed.site)
        except Exception as error:  # noqa: BLE001 - whatever it is, it must not leave a forward pass
            group.fail(group.adapter.fail(error))


def _finite_rows(group: Group, x: torch.Tensor) -> npt.NDArray[np.float32]:
    """x [n, d_in] as contiguous float32 numpy; rows that are no numbers become 0 and end their request."""
    rows: npt.NDArray[np.float32] = x.detach().to("cpu", torch.float32).contiguous().numpy()
    with np.errstate(invalid="ignore", over="ignore"):
        if np.isfinite(rows.sum()):  # then every summand is; one pass for what is nearly always so
            return rows
    bad: npt.NDArray[np.bool_] = np.logical_not(np.isfinite(rows).all(axis=1))
    if bad.any():
        group.fail_rows(bad)
        rows = np.where(bad[:, None], np.float32(0), rows)
    return rows


def _add(y: torch.Tensor, rows: Rows, low: torch.Tensor, b: torch.Tensor) -> None:
    """y[rows] += low b, summed in float32 and rounded once."""
    if y.dtype == torch.float32 and isinstance(rows, slice):
        y[rows].addmm_(low, b)
    else:
        y[rows] = torch.addmm(y[rows].float(), low, b).to(y.dtype)


def _injected(method: Any) -> Any:  # noqa: ANN401 - a vLLM LinearMethodBase of any kind
    """A copy of one layer's quantisation method whose `apply` adds the deltas.

    A copy and an instance attribute: its class, by which vLLM chooses a weight loader, stays.
    """
    method = copy.copy(method)
    apply = method.apply

    def apply_and_add(layer: Any, x: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:  # noqa: ANN401
        y: torch.Tensor = apply(layer, x, bias)
        if STEP.groups:
            add_deltas(layer.prefix, y, x)
        return y

    method.apply = apply_and_add
    return method


def register() -> None:
    """Replace vLLM's linear layers, before the model is built; twice is fine."""
    from vllm.model_executor.custom_op import op_registry_oot  # noqa: PLC0415 - only to ask

    for name in LAYERS:
        if name not in op_registry_oot:
            base = getattr(linear, name)
            base.register_oot(_replacement(base))


def _replacement(base: Any) -> Any:  # noqa: ANN401 - one of vLLM's layer classes
    class Injected(base):  # type: ignore[misc]
        """vLLM's layer; see the module."""

        def __init__(self, *arguments: Any, **settings: Any) -> None:  # noqa: ANN401
            super().__init__(*arguments, **settings)
            self.quant_method: Any = _injected(self.quant_method)

    Injected.__name__ = Injected.__qualname__ = f"Injected{base.__name__}"
    return Injected


def installed(model: torch.nn.Module) -> int:
    """How many layers of the model add deltas."""
    return sum(type(module).__name__.startswith("Injected") for module in model.modules())
