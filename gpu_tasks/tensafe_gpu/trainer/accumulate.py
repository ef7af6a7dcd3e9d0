"""Gradient sums of one call: plain, or clipped per unit for differential privacy.

Neighbouring relation of the clipped sum: add or remove one unit, that is all examples of a call that
carry one unit id. Each unit adds a vector of norm at most clip_norm (1 - 2^-10) over all trained
parameters together (a frozen matrix is none); the margin covers rounding. A unit whose gradient is not
finite adds zero.
Norms and sums are fp32 or better, whatever the dtype of the base model.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from tensafe_gpu.trainer.layout import Layout, Trained
from tensafe_gpu.trainer.lora import Factors, Segment

ROUNDING_MARGIN = 2.0**-10
_NORM_BLOCK = 4096


class SumSink:
    """Adds the gradients of all rows into `total`, float32 [Q]."""

    def __init__(self, layout: Layout, device: torch.device) -> None:
        self.total = torch.zeros(layout.trained_numel, dtype=torch.float32, device=device)
        self._trained = layout.trained(self.total)

    def add(self, site: int, factors: Factors) -> None:
        totals = self._trained[site]
        for total, (left, right) in zip(totals, _products(factors, len(totals)), strict=True):
            _add_product(total, left, right)

    def add_packed(self, site: int, factors: Factors, segments: list[Segment]) -> None:
        self.add(site, factors)


class ExampleSink:
    """Keeps the gradient of each example of one microbatch: [B, rank, in] of A and [B, out, rank] of B."""

    def __init__(self, layout: Layout, examples: int) -> None:
        self._layout = layout
        self._examples = examples
        self._trained: dict[int, Trained] = {}

    def add(self, site: int, factors: Factors) -> None:
        self._trained[site] = tuple(
            _batched_product(self._by_example(left), self._by_example(right))
            for left, right in _products(factors, self._matrices)
        )

    def add_packed(self, site: int, factors: Factors, segments: list[Segment]) -> None:
        grads = self._trained.get(site) or self._zeros(site, factors.x.device)
        self._trained[site] = grads
        for grad, (left, right) in zip(grads, _products(factors, self._matrices), strict=True):
            for segment in segments:
                rows = slice(segment.start, segment.stop)
                _add_product(grad[segment.example], left[rows], right[rows])

    def gradients(self) -> list[Trained]:
        """The gradients in the layout's order. A site that the backward pass did not reach is an error."""
        return [self._trained[site] for site in range(len(self._layout.sites))]

    @property
    def _matrices(self) -> int:
        return 1 if self._layout.freeze_a else 2

    def _by_example(self, rows: torch.Tensor) -> torch.Tensor:
        return rows.view(self._examples, -1, rows.shape[-1])

    def _zeros(self, site: int, device: torch.device) -> Trained:
        shape, n = self._layout.sites[site], self._examples
        sizes = ((n, self._layout.rank, shape.in_features), (n, shape.out_features, self._layout.rank))
        return tuple(torch.zeros(size, device=device) for size in sizes[-self._matrices :])


class ClippedSum:
    """The sum over units of their clipped gradients, float32 [Q] in `total`, and what was counted.

    `units`, `clipped` and `nonfinite` are not differentially private.
    """

    def __init__(self, layout: Layout, clip_norm: float, device: torch.device) -> None:
        self.total = torch.zeros(layout.trained_numel, dtype=torch.float32, device=device)
        self.units = 0
        self.clipped = 0
        self.nonfinite = 0
        self._trained = layout.trained(self.total)
        self._bound = clip_norm * (1 - ROUNDING_MARGIN)

    def add_units(self, examples: Sequence[Trained], unit_of: Sequence[int], units: int) -> None:
        """Add whole units, given the gradients of their examples; `unit_of[i]` is the unit of example i."""
        grads = [grad for site in examples for grad in site]
        if len(unit_of) != units:
            grads = [_sum_by_unit(grad, unit_of, units) for grad in grads]
        weights = self._weights(grads)
        if weights is None:
            return
        for total, grad in zip((t for site in self._trained for t in site), grads, strict=True):
            total.view(-1).addmv_(grad.flatten(1).t(), weights)

    def add_unit(self, gradient: torch.Tensor) -> None:
        """Add one unit, given its gradient float32 [Q]."""
        weights = self._weights([gradient.view(1, -1)])
        if weights is not None:
            self.total.addcmul_(gradient, weights)

    def _weights(self, grads: list[torch.Tensor]) -> torch.Tensor | None:
        """Factor of each unit, float32 [U]; rows of non-finite units become zero in place.

        Edge cases: norm 0 or below the bound gives 1; a norm that overflows fp32 counts as non-finite; a
        factor below 2^-126 is 0.
        """
        norms = torch.stack([_squared_norms(grad.flatten(1)) for grad in grads]).sum(0).sqrt_()
        finite = norms.isfinite()
        if not bool(finite.all()):
            self.nonfinite += int((~finite).sum())
            for grad in grads:
                grad[~finite] = 0.0
            norms = torch.where(finite, norms, torch.zeros_like(norms))
        self.units += norms.shape[0]
        self.clipped += int((norms > self._bound).sum())
        weights = (self._bound / norms).clamp_(max=1.0)
        # Below its smallest normal number fp32 has few bits: rounding up could exceed the bound by half.
        return weights.where(weights >= torch.finfo(torch.float32).tiny, 0.0).float()


def _squared_norms(rows: torch.Tensor) -> torch.Tensor:
    """Squared L2 norms of float32 [U, n], float64 [U]: fp32 within blocks, float64 across them.

    One fp32 accumulation over millions of entries comes out low, by 0.84 % for 9.7 M equal ones, and a
    unit whose norm is underestimated would pass its bound. In blocks the error is below 3e-6.
    """
    whole = rows.shape[1] - rows.shape[1] % _NORM_BLOCK
    blocks = rows[:, :whole].view(rows.shape[0], -1, _NORM_BLOCK)
    parts = (torch.linalg.vector_norm(blocks, dim=2), torch.linalg.vector_norm(rows[:, whole:], dim=1))
    inside, rest = (part.double().square_() for part in parts)
    return torch.add(inside.sum(1), rest)


def _sum_by_unit(grad: torch.Tensor, unit_of: Sequence[int], units: int) -> torch.Tensor:
    """Sum [B, ...] over the examples of each unit to [U, ...]. Not a matrix product: 0 x NaN is NaN."""
    index = torch.tensor(list(unit_of), device=grad.device)
    return torch.zeros((units, *grad.shape[1:]), device=grad.device).index_add_(0, index, grad)


def _products(factors: Factors, matrices: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Left and right of the products left^T right that are dA and dB, or with one matrix dB alone."""
    return [(factors.grad_low, factors.x), (factors.grad, factors.low)][-matrices:]


def _add_product(total: torch.Tensor, left: torch.Tensor, right: torch.Tensor) -> None:
    """total += left^T right in fp32, for left [N, m] and right [N, n]."""
    if left.dtype == torch.float32:
        total.addmm_(left.t(), right)
    elif left.is_cuda:
        total.add_(torch.mm(left.t(), right, out_dtype=torch.float32))
    else:
        total.addmm_(left.t().float(), right.float())


def _batched_product(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """left^T right in fp32 per example, for left [B, T, m] and right [B, T, n]."""
    if left.dtype == torch.float32:
        return torch.bmm(left.mT, right)
    if left.is_cuda:
        return torch.bmm(left.mT, right, out_dtype=torch.float32)
    return torch.bmm(left.mT.float(), right.float())
