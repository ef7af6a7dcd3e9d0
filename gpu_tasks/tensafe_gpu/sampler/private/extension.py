"""Private adapters in vLLM's worker: what is set up once, and the methods that the sampler calls."""

from __future__ import annotations

import importlib
import os
from collections.abc import Mapping
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
from vllm.model_executor.layers.linear import LinearBase
from vllm.v1.worker.gpu_model_runner import GPUModelRunner

from tensafe_gpu.sampler.environment import CONNECT_VARIABLE
from tensafe_gpu.sampler.private.holders import NOTHING_MISSING, Connect, OpenAdapters
from tensafe_gpu.sampler.private.injection import how_it_runs, installed, register
from tensafe_gpu.sampler.private.placing import Slice
from tensafe_gpu.sampler.private.step import STEP, spans_of

if os.environ.get(CONNECT_VARIABLE):
    register()


class PrivateWorkerExtension:
    """Mix-in for the worker extension; without CONNECT_VARIABLE nothing of it is installed."""

    model_runner: GPUModelRunner
    private_adapters: OpenAdapters | None

    def tensafe_private_install(self, pass_s: float) -> dict[str, Any]:
        """Put the map in front of every forward pass, of which an adapter may take `pass_s`.

        Raises TypeError if vLLM is not as examined.
        """
        if getattr(self, "private_adapters", None) is not None:
            raise TypeError("private adapters are installed already")
        runner = self.model_runner
        model = runner.get_model()
        modules = projections(model)
        layers = {one.layer for one in modules.values()}
        if installed(model) < len(layers) or not layers:
            raise TypeError("vLLM built linear layers that add no deltas")
        connect = connect_function(os.environ[CONNECT_VARIABLE])
        adapters = OpenAdapters(connect, modules, runner.device, pass_s)
        self.private_adapters = adapters
        runner.__class__ = _mapping(type(runner), adapters)
        passes = how_it_runs(runner.vllm_config)
        return {"layers": len(layers), "projections": len(modules), "passes": passes}

    def tensafe_private_open(
        self, name: str, wanted: Mapping[str, str | None], holder: Mapping[str, str]
    ) -> None:
        """Begin to open the adapter that vLLM knows by this name."""
        self._adapters().open(name, wanted, holder)

    def tensafe_private_state(self, name: str) -> dict[str, Any]:
        """How far opening has come; see `OpenAdapter.facts`."""
        adapter = self._adapters().get(name)
        return {"state": "absent"} if adapter is None else adapter.facts()

    def tensafe_private_missing(self, name: str, tokens: int) -> dict[str, Any]:
        """What a prompt still lacks of preprocessing; see `OpenAdapter.missing`."""
        adapter = self._adapters().get(name)
        return NOTHING_MISSING if adapter is None else adapter.missing(tokens)

    def tensafe_private_standing(self, name: str) -> dict[str, Any]:
        """Whether its connection stands; see `OpenAdapter.standing`. An absent one has none to wait for."""
        adapter = self._adapters().get(name)
        return {"connected": True, "code": None} if adapter is None else adapter.standing()

    def tensafe_private_failures(self) -> dict[str, str]:
        """Name -> code of the open adapters that have failed."""
        return self._adapters().failures()

    def tensafe_private_report(self, requests: list[str]) -> list[dict[str, Any]]:
        """What was evaluated for requests that have ended; see `Account.facts`."""
        return [STEP.report(request) for request in requests]

    def tensafe_private_close(self, name: str) -> None:
        """End the adapter; absent is fine."""
        self._adapters().close(name)

    def _adapters(self) -> OpenAdapters:
        adapters: OpenAdapters | None = getattr(self, "private_adapters", None)
        if adapters is None:
            raise RuntimeError("private adapters are not installed")
        return adapters


def connect_function(path: str) -> Connect:
    """The function that `module:function` names. Raises ImportError."""
    module, _, function = path.partition(":")
    return cast("Connect", getattr(importlib.import_module(module), function))


def projections(model: torch.nn.Module) -> dict[str, Slice]:
    """Every projection that a private adapter may touch -> its slice of a fused layer.

    lm_head and embeddings are not among them. One device: a slice is the whole projection.
    """
    packed = cast("Mapping[str, list[str]]", getattr(model, "packed_modules_mapping", {}))
    found: dict[str, Slice] = {}
    for name, module in model.named_modules():
        if not isinstance(module, LinearBase):
            continue
        # vLLM's LoRA layers hold the layer that they stand for under this name.
        parent, _, last = name.removesuffix(".base_layer").rpartition(".")
        parts = packed.get(last) or [last]
        widths = list(getattr(module, "output_sizes", None) or [module.output_size])
        if module.tp_size != 1 or len(parts) != len(widths):
            continue
        first = 0
        for part, width in zip(parts, widths, strict=True):
            found[f"{parent}.{part}"] = Slice(module.prefix, first, first + width, module.input_size)
            first += width
    return found


def _mapping(original: type[GPUModelRunner], adapters: OpenAdapters) -> type[GPUModelRunner]:
    """The runner's class with the rows of private requests noted before each pass."""

    class Noting(original):  # type: ignore[misc,valid-type]
        def _prepare_inputs(self, scheduler_output: Any, num_scheduled_tokens: npt.NDArray[np.int32]) -> Any:  # noqa: ANN401 - vLLM's signature
            """Called by vLLM before each forward pass of real requests."""
            resumed = scheduler_output.scheduled_cached_reqs.resumed_req_ids
            spans = spans_of(self.input_batch.req_ids, self.requests, num_scheduled_tokens, resumed)
            STEP.begin(list(spans), adapters)
            return super()._prepare_inputs(scheduler_output, num_scheduled_tokens)

        def _dummy_run(self, *arguments: Any, **settings: Any) -> Any:  # noqa: ANN401 - vLLM's signature
            """Called by vLLM for passes without a request, such as those that it captures."""
            STEP.rest()
            return super()._dummy_run(*arguments, **settings)

    Noting.__name__ = f"Private{original.__name__}"
    return Noting
