"""Forward, backward and optimizer step of LoRA runs that share one base model.

Deterministic on the CPU: the same calls with the same number of threads give bit-identical
parameters. On CUDA `device.compute_alike` asks torch for the same. An operation changes the run's
state entirely or, if it raises, not at all.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from tensafe.contracts.data_checks import TARGETS, check_request, resolve_config
from tensafe.contracts.errors import IntegrityError, InvalidRequest
from tensafe.contracts.training import ForwardBackward, LoraSpec, SgdParams, StepParams
from tensafe_gpu.trainer.accumulate import ClippedSum, ExampleSink, SumSink
from tensafe_gpu.trainer.base_model import BaseModel
from tensafe_gpu.trainer.batching import Budget, Microbatch, build, plan, plan_units
from tensafe_gpu.trainer.head import HeadOutput, Loss, run_head
from tensafe_gpu.trainer.layout import Layout
from tensafe_gpu.trainer.lora import GradientSink
from tensafe_gpu.trainer.losses import loss_metrics
from tensafe_gpu.trainer.method import ADAMW, Method
from tensafe_gpu.trainer.optimizer import adamw_step, clip_by_global_norm, sgd_step
from tensafe_gpu.trainer.state import RunState

MICROBATCH_TOKENS = {"cpu": 1024, "cuda": 4096}
"""Padded tokens of a microbatch by device: activations, and on a CPU its caches, bound it."""
RECOMPUTE_ABOVE = 2
"""A datum longer than this many microbatches keeps no activations: its layers run twice instead."""
EXAMPLE_GRADIENT_BYTES = 1 << 28
"""Memory for the per-example gradients of one microbatch of a private run."""

Release = Callable[[npt.NDArray[np.float32]], npt.NDArray[np.float64]]


@dataclass(frozen=True, slots=True)
class ForwardBackwardResult:
    """`logprobs[i]` is float32 with the shape of datum i's target_tokens; metrics are `name:reduction`."""

    logprobs: list[npt.NDArray[np.float32]]
    loss_sum: float
    metrics: dict[str, float]


@dataclass(frozen=True, slots=True)
class _Pass:
    """What the forward pass of one microbatch gave."""

    batch: Microbatch
    output: HeadOutput


class Engine:
    """Runs operations on run states. One engine per base model, used by one thread."""

    def __init__(self, base: BaseModel, *, microbatch_tokens: int | None = None) -> None:
        """`microbatch_tokens` defaults to what MICROBATCH_TOKENS has for the device."""
        self.base = base
        self._microbatch_tokens = microbatch_tokens or MICROBATCH_TOKENS[base.device.type]

    def create(self, spec: LoraSpec, method: Method = ADAMW) -> RunState:
        """A new run: A as PEFT initialises it (Kaiming uniform, a = sqrt 5), from the spec's seed; B zero."""
        layout = self.base.layout(spec)
        params = torch.zeros(layout.numel)
        generator = torch.Generator().manual_seed(spec.seed)
        for a, _ in layout.pairs(params):
            torch.nn.init.kaiming_uniform_(a, a=math.sqrt(5), generator=generator)
        return RunState(spec, self.base, params.to(self.base.device), method)

    def forward_backward(
        self, state: RunState, request: ForwardBackward, *, clip_norm: float | None = None
    ) -> ForwardBackwardResult:
        """Logprobs and loss; unless `forward_only`, the gradient sum is added to the run's accumulator.

        With `clip_norm` the examples of each unit are summed and clipped (see `accumulate`); every
        datum needs a unit id, and units whose gradient is not finite add zero and are counted.
        Raises InvalidRequest, with the state unchanged, for data that do not fit, and without
        `clip_norm` for a loss or gradient that is not finite.
        """
        check_request(request, self.base.info)
        loss = Loss(request.loss_fn, resolve_config(request.loss_fn, request.loss_config))
        clipped: ClippedSum | None = None
        with self.base.bound(state):
            if request.forward_only:
                passes, total = self._forward(request, loss), None
            elif clip_norm is None:
                passes, total = self._summed(state.layout, request, loss)
            else:
                clipped = ClippedSum(state.layout, clip_norm, self.base.device)
                passes, total = self._clipped(state.layout, request, loss, clipped), clipped.total
        result = _result(request, loss, passes, skip_nonfinite=clip_norm is not None)
        if total is not None:
            _accumulate(state, total, len(request.data))
        if clipped is not None:
            result.metrics.update(_unit_metrics(clipped))
        return result

    @torch.no_grad()
    def optim_step(
        self, state: RunState, params: StepParams, *, release: Release | None = None
    ) -> dict[str, float]:
        """One step of the run's method on the accumulated sum; the sum is cleared and the step counted.

        `release` turns the clipped sum (float32 [Q], in the layout's order) into what may be used of it
        (float64 [Q], the noisy mean); nothing else of a private run's sum reaches the parameters.
        `grad_norm` in the result is that of the gradient used, before `grad_clip_norm` applies.
        Raises IntegrityError, with the state unchanged, for parameters of another method.
        """
        if isinstance(params, SgdParams) != (state.method.rule == "sgd"):
            raise IntegrityError(f"these are not the parameters of a step of {state.method.rule}")
        gradient = state.grad_sum if release is None else _released(state, release)
        norm = float(torch.linalg.vector_norm(gradient, dtype=torch.float64))
        trained = state.layout.gather(state.params)
        if isinstance(params, SgdParams):
            sgd_step(trained, gradient, params)
        else:
            clip_by_global_norm(gradient, norm, params.grad_clip_norm)
            adamw_step(trained, state.exp_avg, state.exp_avg_sq, gradient, state.step + 1, params)
        state.layout.scatter(trained, state.params)
        state.grad_sum.zero_()
        state.pending_data = 0
        state.step += 1
        state.refresh()
        return {"grad_norm": norm, "step": float(state.step)}

    def _forward(self, request: ForwardBackward, loss: Loss) -> list[_Pass]:
        passes = []
        for indices in plan(_lengths(request), self._budget(None)):
            batch = build(request, indices, self.base.device)
            passes.append(self._pass(batch, loss, None))
        return passes

    def _summed(
        self, layout: Layout, request: ForwardBackward, loss: Loss
    ) -> tuple[list[_Pass], torch.Tensor]:
        """The plain gradient sum, float32 [Q]."""
        sink = SumSink(layout, self.base.device)
        passes = []
        for indices in plan(_lengths(request), self._budget(None)):
            batch = build(request, indices, self.base.device)
            passes.append(self._pass(batch, loss, sink))
        return passes, sink.total

    def _clipped(
        self, layout: Layout, request: ForwardBackward, loss: Loss, clipped: ClippedSum
    ) -> list[_Pass]:
        """Fill `clipped` with every unit of the request."""
        passes = []
        for group in plan_units(_lengths(request), _units(request), self._budget(layout)):
            if len(group.microbatches) == 1:
                batch = build(request, group.microbatches[0], self.base.device)
                examples = ExampleSink(layout, len(batch.indices))
                passes.append(self._pass(batch, loss, examples))
                clipped.add_units(examples.gradients(), group.unit_of, group.units)
                continue
            whole = SumSink(layout, self.base.device)
            for indices in group.microbatches:
                batch = build(request, indices, self.base.device)
                passes.append(self._pass(batch, loss, whole))
            clipped.add_unit(whole.total)
        return passes

    def _pass(self, batch: Microbatch, loss: Loss, sink: GradientSink | None) -> _Pass:
        """Forward of one microbatch and, with a sink, its backward."""
        long = batch.token_ids.numel() > RECOMPUTE_ABOVE * self._microbatch_tokens
        hidden = self.base.hidden(batch.token_ids, sink=sink, recompute=long)
        flat = hidden.detach().view(-1, hidden.shape[-1])
        rows = flat if batch.rows is None else flat[batch.rows]
        output = run_head(rows, batch, self.base.head, loss, backward=sink is not None)
        if output.grad is not None and hidden.requires_grad:
            grad = output.grad
            if batch.rows is not None:
                grad = torch.zeros_like(flat).index_copy_(0, batch.rows, grad)
            torch.autograd.backward(hidden, grad.view(hidden.shape))
        return _Pass(batch, HeadOutput(output.logprobs, output.losses, None))

    def _budget(self, layout: Layout | None) -> Budget:
        """Bounds of a microbatch; with a layout, per-example gradients of it have to fit too.

        Matrix products in bfloat16 depend in their third digit on the shape of the batch, so that a unit
        would move the gradients of those beside it, which nothing bounds: there each example of a private
        run is computed by itself.
        """
        examples = self._microbatch_tokens
        if layout is not None and self.base.dtype != torch.float32:
            examples = 1
        elif layout is not None:
            examples = max(1, EXAMPLE_GRADIENT_BYTES // (4 * layout.trained_numel))
        return Budget(self._microbatch_tokens, examples)


def accumulated_sum(state: RunState) -> npt.NDArray[np.float32]:
    """A copy of the gradient sum since the last step, float32 [Q] in the layout's order. Not private."""
    return state.grad_sum.cpu().numpy().copy()


def _lengths(request: ForwardBackward) -> list[int]:
    return [datum.tokens.shape[0] for datum in request.data]


def _units(request: ForwardBackward) -> list[int]:
    """The unit of each datum. Raises InvalidRequest if one has none."""
    units = []
    for index, datum in enumerate(request.data):
        if datum.unit_id is None:
            raise InvalidRequest(
                "a private run needs dp_unit_id, int64 of shape [1], with every datum",
                field=f"data[{index}].loss_fn_inputs.dp_unit_id",
            )
        units.append(datum.unit_id)
    return units


def _released(state: RunState, release: Release) -> torch.Tensor:
    """What `release` gives for the run's sum, as float32 [Q]. Raises ValueError for anything else."""
    mean = release(state.grad_sum.cpu().numpy())
    size = state.layout.trained_numel
    if mean.shape != (size,) or mean.dtype != np.float64 or not np.isfinite(mean).all():
        raise ValueError(f"a release must be {size} finite float64 values")
    return torch.from_numpy(mean).to(device=state.grad_sum.device, dtype=torch.float32)


def _accumulate(state: RunState, total: torch.Tensor, data: int) -> None:
    """Add a call's gradient sum to the run's, or raise with the state unchanged."""
    grown = state.grad_sum + total
    if not bool(grown.isfinite().all()):
        raise InvalidRequest(
            "the gradient is not finite and was not added; lower the learning rate, weights or advantages",
            field="data",
        )
    state.grad_sum = grown
    state.pending_data += data


def _result(
    request: ForwardBackward, loss: Loss, passes: Sequence[_Pass], *, skip_nonfinite: bool
) -> ForwardBackwardResult:
    """Bring rows back to the request's order and reduce the losses in float64.

    With `skip_nonfinite` a datum whose loss is not finite counts as zero in the sum; else it raises.
    """
    logprobs: list[npt.NDArray[np.float32]] = [np.empty(0, np.float32)] * len(request.data)
    losses = np.zeros(len(request.data))
    for done in passes:
        lp, values = done.output.logprobs.cpu().numpy(), done.output.losses.cpu().numpy()
        first = 0
        for index, length in zip(done.batch.indices, done.batch.lengths, strict=True):
            shape = request.data[index].inputs[TARGETS].shape
            width = shape[1] if len(shape) == 2 else 1
            rows = slice(first, first + length)
            logprobs[index] = lp[rows, :width].reshape(shape)
            losses[index] = values[rows, :width].sum(dtype=np.float64)
            first += length
    finite = np.isfinite(losses)
    if not finite.all() and not skip_nonfinite:
        index = int(np.argmin(finite))
        raise InvalidRequest(
            f"the loss of data[{index}] is not finite; nothing was added. Check its logprobs, advantages and "
            "weights, and whether the run has diverged",
            field=f"data[{index}]",
        )
    loss_sum = float(losses[finite].sum())
    return ForwardBackwardResult(
        logprobs, loss_sum, {"loss:sum": loss_sum, **_metrics(request, loss, logprobs)}
    )


def _metrics(
    request: ForwardBackward, loss: Loss, logprobs: list[npt.NDArray[np.float32]]
) -> dict[str, float]:
    """The loss's own metrics over all targets of the request."""
    names = ("weights",) if loss.name == "cross_entropy" else ("logprobs", "advantages")
    inputs = {
        name: np.concatenate(
            [
                datum.inputs[name].ravel() if name in datum.inputs else np.ones(lp.size, np.float32)
                for datum, lp in zip(request.data, logprobs, strict=True)
            ]
        )
        for name in names
    }
    return loss_metrics(loss.name, np.concatenate([lp.ravel() for lp in logprobs]), inputs, loss.config)


def _unit_metrics(clipped: ClippedSum) -> dict[str, float]:
    """Counts that are not differentially private, and are named so."""
    return {
        "non_dp/units:sum": float(clipped.units),
        "non_dp/clipped_units:sum": float(clipped.clipped),
        "non_dp/nonfinite_units:sum": float(clipped.nonfinite),
    }
