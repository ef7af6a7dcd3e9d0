"""The LoRA linear map y = xW^T + b + s (x A^T) B^T, whose backward hands factors to a gradient sink.

One autograd function serves private and other runs: it returns the gradient of x alone and passes
what the gradients of A and B are made of to the sink, which sums over all rows, or keeps one gradient
per example at the same cost: a batched product has the multiplications of the summed one.

The adapter's matrices belong to the run. A layer holds pointers to those of the bound run, in the
base model's dtype; gradients are formed in fp32.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from tensafe_gpu.trainer.layout import Pair


@dataclass(frozen=True, slots=True)
class Factors:
    """What a site's gradients are made of: dA = grad_low^T x and dB = grad^T low, over rows [N, .].

    `grad_low` is s (g B) [N, rank], `x` [N, in], `grad` g [N, out], `low` is s (x A^T) [N, rank].
    """

    grad_low: torch.Tensor
    x: torch.Tensor
    grad: torch.Tensor
    low: torch.Tensor


@dataclass(frozen=True, slots=True)
class Segment:
    """Rows start to stop of packed factors belong to one example of the microbatch."""

    example: int
    start: int
    stop: int


class GradientSink(Protocol):
    """Collects the adapter's gradients during one backward pass."""

    def add(self, site: int, factors: Factors) -> None:
        """Rows of a padded microbatch: example after example, each of the same number of rows."""

    def add_packed(self, site: int, factors: Factors, segments: list[Segment]) -> None:
        """Rows without padding, as `segments` tell."""


@dataclass(slots=True)
class Slot:
    """The bound run's matrices for a layer, None if it trains none, and their index in its layout."""

    pair: Pair | None = None
    site: int = -1


class Binding:
    """The run whose adapter the model applies now, and where its gradients go (None: no backward).

    With `recompute` each decoder layer keeps its input alone and runs again in the backward pass.
    """

    def __init__(self) -> None:
        self.scale = 0.0
        self.sink: GradientSink | None = None
        self.recompute = False


def lora_forward(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, pair: Pair, scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """y [N, out] and low = s (x A^T) [N, rank] of rows x [N, in]."""
    a, b = pair
    low = torch.mm(x, a.t()).mul_(scale)
    y = functional.linear(x, weight, bias)
    return y.addmm_(low, b.t()), low


def lora_backward(
    grad: torch.Tensor, weight: torch.Tensor, pair: Pair, scale: float, *, need_x: bool
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """grad_low = s (g B) [N, rank] and, if needed, the gradient of x [N, in], for g = `grad` [N, out]."""
    a, b = pair
    grad_low = torch.mm(grad, b).mul_(scale)
    return grad_low, torch.mm(grad, weight).addmm_(grad_low, a) if need_x else None


class _LoraFunction(torch.autograd.Function):
    """`lora_forward` in the graph. A is an input only so that the first layer's backward runs."""

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401 - torch passes its own context object
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        a: torch.Tensor,
        b: torch.Tensor,
        binding: Binding,
        site: int,
    ) -> torch.Tensor:
        y, low = lora_forward(x.reshape(-1, x.shape[-1]), weight, bias, (a, b), binding.scale)
        ctx.save_for_backward(x, weight, a, b, low)
        ctx.binding, ctx.site = binding, site
        return y.view(*x.shape[:-1], y.shape[-1])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:  # noqa: ANN401
        x, weight, a, b, low = ctx.saved_tensors
        rows = grad.reshape(-1, grad.shape[-1])
        grad_low, grad_x = lora_backward(
            rows, weight, (a, b), ctx.binding.scale, need_x=ctx.needs_input_grad[0]
        )
        ctx.binding.sink.add(ctx.site, Factors(grad_low, x.reshape(-1, x.shape[-1]), rows, low))
        return (None if grad_x is None else grad_x.view(x.shape), *(None,) * 6)


class LoraLinear(nn.Module):
    """A frozen linear layer to which the bound run's A and B apply; without them it is the base layer."""

    def __init__(self, base: nn.Linear, binding: Binding) -> None:
        super().__init__()
        self.weight = base.weight
        self.bias = base.bias
        self.binding = binding
        self.slot = Slot()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        pair = self.slot.pair
        if pair is None:
            return functional.linear(x, self.weight, self.bias)
        a, b = pair
        if not torch.is_grad_enabled():
            y, _ = lora_forward(x.reshape(-1, x.shape[-1]), self.weight, self.bias, pair, self.binding.scale)
            return y.view(*x.shape[:-1], y.shape[-1])
        apply: Callable[..., torch.Tensor] = _LoraFunction.apply
        return apply(x, self.weight, self.bias, a, b, self.binding, self.slot.site)
