"""The linear layers of vLLM with the deltas of private adapters added to their outputs.

`PluggableLayer.register_oot` is vLLM's way to replace a layer class from outside: the class below is built
in its place, asks for what has to be added and adds it to its quantisation method's output. vLLM's own LoRA
layers call that same method, so plain and private adapters share a batch. What is asked depends on a layer's
input alone, so it is on its way while the layer is computed.

Where vLLM compiles the model both are done by an operator that the compiler cannot see into, in every pass;
whether there is anything to add is asked inside. A Python condition around it would be
answered once, while nobody asks for anything private, and the operator would be gone. Where vLLM captures
graphs as well, the graph is split at the operator, which so runs between its pieces.

Nothing here raises in a forward pass: an error there ends the engine for every request, for good. What
fails leaves a zero delta and marks the requests; the sampler discards them.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, Final, cast

import numpy as np
import numpy.typing as npt
import torch
from vllm.config import CompilationMode, VllmConfig, get_current_vllm_config
from vllm.model_executor.layers import linear

from tensafe_gpu.helora.exchange import gather
from tensafe_gpu.helora.ports import NOT_FINITE, HeUnavailable
from tensafe_gpu.sampler.private.holders import Pending
from tensafe_gpu.sampler.private.placing import Placed, Target
from tensafe_gpu.sampler.private.step import STEP, Group, Rows

LAYERS: Final = (
    "QKVParallelLinear",
    "MergedColumnParallelLinear",
    "ColumnParallelLinear",
    "RowParallelLinear",
    "ReplicatedLinear",
)
OPERATOR: Final = "tensafe::add_deltas"


Waiting = Sequence[tuple[Group, Placed, Pending]]
"""What private adapters were asked at a layer."""


def ask_for(layer: str, x: torch.Tensor) -> Waiting:
    """Send what each private adapter with a site here is asked: x [tokens, d_in], any float dtype.

    All are asked before any is waited for, so that a layer takes as long as the slowest of them.
    """
    waiting: list[tuple[Group, Placed, Pending]] = []
    for group in STEP.groups:
        placed = group.adapter.placed.get(layer)
        if placed is None:
            continue
        try:
            if group.adapter.failure is not None:
                group.fail(group.adapter.failure)
                continue
            rows = x.reshape(-1, x.shape[-1])[group.rows]
            if len(rows) != group.count:  # a slice of too few rows is shorter, and no error
                raise IndexError("the layer has other rows than the pass")
            waiting.append((group, placed, _asked(group, placed, rows)))
        except Exception as error:  # noqa: BLE001 - whatever it is, it must not leave a forward pass
            group.fail(group.adapter.fail(error))
    return waiting


def add_answers(waiting: Waiting, y: torch.Tensor) -> None:
    """`y[rows] += B' · products(x[rows])` for what was asked; y [tokens, width], sums are float32."""
    if not waiting:  # a layer without a site
        return
    with suppress(Exception):  # what then has not ended says so itself
        gather([pending.asked for _, _, pending in waiting if pending.asked is not None])
    for group, placed, pending in waiting:
        try:
            products = group.adapter.answered(placed, pending, group.budget)
            if products.overflowed is not None:
                group.fail_rows(products.overflowed)
            low = torch.from_numpy(products.rows).to(y.device)
            flat = y.view(-1, y.shape[-1])
            for target in placed.targets:
                _add(flat, group.rows, target, low[:, target.rows], group.adapter.b[target.module])
            group.evaluated(placed.site)
        except Exception as error:  # noqa: BLE001 - as above
            group.fail(group.adapter.fail(error))


def _operate(y: torch.Tensor, x: torch.Tensor, layer: str) -> None:
    add_answers(ask_for(layer, x), y)


def _operate_on_shapes(y: torch.Tensor, x: torch.Tensor, layer: str) -> None:
    """Adding changes no shape."""


_LIBRARY: Final = torch.library.Library("tensafe", "FRAGMENT")  # type: ignore[no-untyped-call]
_LIBRARY.define("add_deltas(Tensor(a!) y, Tensor x, str layer) -> ()")  # type: ignore[no-untyped-call]
_LIBRARY.impl("add_deltas", _operate, "CompositeExplicitAutograd")  # type: ignore[no-untyped-call]
torch.library.register_fake(OPERATOR, _operate_on_shapes, lib=_LIBRARY)


def _asked(group: Group, placed: Placed, x: torch.Tensor) -> Pending:
    """Ask for x [n, d_in]; rows that are no numbers become 0 and end their request."""
    rows = _on_host(x)
    try:
        return group.adapter.ask(placed, rows, group.budget)
    except HeUnavailable as error:
        if error.code != NOT_FINITE:
            raise
    bad: npt.NDArray[np.bool_] = np.logical_not(np.isfinite(rows).all(axis=1))
    group.fail_rows(bad)
    return group.adapter.ask(placed, np.where(bad[:, None], np.float32(0), rows), group.budget)


def _on_host(x: torch.Tensor) -> npt.NDArray[np.float32]:
    """x as contiguous float32 numpy, and no copy where it is that already."""
    if x.dtype is not torch.float32 or x.device.type != "cpu":
        x = x.to("cpu", torch.float32)
    rows: npt.NDArray[np.float32] = np.ascontiguousarray(x.detach().numpy())
    return rows


def _add(y: torch.Tensor, rows: Rows, target: Target, low: torch.Tensor, b: torch.Tensor) -> None:
    """y[rows, start:stop] += low b, summed in float32 and rounded once: y [tokens, width], b [rank, out]."""
    part = y[rows, target.start : target.stop]
    if y.dtype == torch.float32 and isinstance(rows, slice):
        part.addmm_(low, b)  # a view
    else:
        y[rows, target.start : target.stop] = torch.addmm(part.float(), low, b).to(y.dtype)


def _injected(method: Any, *, compiled: bool) -> Any:  # noqa: ANN401 - a vLLM LinearMethodBase of any kind
    """A copy of one layer's quantisation method whose `apply` adds the deltas.

    A copy and an instance attribute: its class, by which vLLM chooses a weight loader, stays.
    """
    method = copy.copy(method)
    apply = method.apply

    def apply_and_add(layer: Any, x: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:  # noqa: ANN401
        if not STEP.groups:
            return cast("torch.Tensor", apply(layer, x, bias))
        waiting = ask_for(layer.prefix, x)  # the adapter holders work while the layer does
        y: torch.Tensor = apply(layer, x, bias)
        add_answers(waiting, y)
        return y

    def apply_and_operate(layer: Any, x: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:  # noqa: ANN401
        y: torch.Tensor = apply(layer, x, bias)
        torch.ops.tensafe.add_deltas(y, x, layer.prefix)
        return y

    # The operator costs a dispatch, which an eager pass without private rows need not pay.
    method.apply = apply_and_operate if compiled else apply_and_add
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
            compilation = get_current_vllm_config().compilation_config
            splitting = compilation.splitting_ops
            if splitting and OPERATOR not in splitting:  # as vLLM's own models add theirs
                splitting.append(OPERATOR)
            compiled = compilation.mode is not CompilationMode.NONE
            self.quant_method: Any = _injected(self.quant_method, compiled=compiled)

    Injected.__name__ = Injected.__qualname__ = f"Injected{base.__name__}"
    return Injected


def how_it_runs(config: VllmConfig) -> str:
    """`eager`, `compiled`, or `compiled in pieces` that vLLM may capture.

    Raises TypeError where a pass would not come by the operator: it is captured whole, or not split there.
    """
    compilation = config.compilation_config
    if compilation.cudagraph_mode is not None and compilation.cudagraph_mode.has_full_cudagraphs():
        raise TypeError("vLLM would capture passes in whole graphs")
    if compilation.mode is CompilationMode.NONE:
        return "eager"
    if compilation.mode is CompilationMode.DYNAMO_TRACE_ONCE:
        return "compiled"
    if compilation.mode is CompilationMode.VLLM_COMPILE and OPERATOR in (compilation.splitting_ops or ()):
        return "compiled in pieces"
    raise TypeError("vLLM compiles in a way that was not examined")


def installed(model: torch.nn.Module) -> int:
    """How many layers of the model add deltas."""
    return sum(type(module).__name__.startswith("Injected") for module in model.modules())
