"""From hidden states to logprobs, loss and the gradient of the hidden states, a chunk of rows at a time.

Every loss here is a sum over tokens, so its derivative to the logits is known as soon as a row's
logits are. The backward pass of the output projection therefore runs in the same chunk, and no more
than one chunk of logits [rows, vocabulary] exists at any time.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch.nn import functional

from tensafe.contracts.training import LossName
from tensafe_gpu.trainer.batching import Microbatch
from tensafe_gpu.trainer.lora import Factors, LoraLinear, Segment, lora_backward, lora_forward
from tensafe_gpu.trainer.losses import loss_and_slope

CHUNK_LOGITS = 1 << 21
"""Logits held at once; but a chunk has at least MIN_CHUNK_ROWS rows, to keep matrix products efficient."""
MIN_CHUNK_ROWS = 128


@dataclass(frozen=True, slots=True)
class Loss:
    """A loss and its settings, with defaults filled in."""

    name: LossName
    config: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class HeadOutput:
    """`logprobs` and `losses` float32 [N, K]; `grad` of the rows [N, H] in their dtype, or None."""

    logprobs: torch.Tensor
    losses: torch.Tensor
    grad: torch.Tensor | None


@dataclass(frozen=True, slots=True)
class _Part:
    """Rows on their way back: hidden states, low-rank activations, targets, slope, and whose they are."""

    x: torch.Tensor
    low: torch.Tensor | None
    targets: torch.Tensor
    slope: torch.Tensor
    segments: list[Segment]


@torch.no_grad()
def run_head(
    rows: torch.Tensor, batch: Microbatch, head: LoraLinear, loss: Loss, *, backward: bool
) -> HeadOutput:
    """Logprobs and losses of hidden states `rows` [N, H]; with `backward` their gradient too.

    The gradients of the head's own A and B go to the binding's sink.
    """
    size = max(MIN_CHUNK_ROWS, CHUNK_LOGITS // head.weight.shape[0])
    logprobs, losses, grads = [], [], []
    for start in range(0, rows.shape[0], size):
        chunk = slice(start, min(start + size, rows.shape[0]))
        logits, low = _project(rows[chunk], head)
        targets = batch.targets[chunk]
        chosen = logits.gather(1, targets)
        exponentials, normaliser, offset = _exponentials(logits)
        lp = chosen.sub_(offset).sub_(normaliser.log())
        floats = {name: values[chunk] for name, values in batch.floats.items()}
        value, slope = loss_and_slope(loss.name, lp, floats, loss.config)
        logprobs.append(lp)
        losses.append(value)
        if backward:
            part = _Part(rows[chunk], low, targets, slope, _segments(batch.lengths, chunk))
            grads.append(_backproject(part, exponentials, normaliser, head))
    return HeadOutput(torch.cat(logprobs), torch.cat(losses), torch.cat(grads) if backward else None)


def _project(x: torch.Tensor, head: LoraLinear) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Logits float32 [n, V], and the head's low-rank activations if the run trains it."""
    if head.slot.pair is None:
        return functional.linear(x, head.weight).float(), None
    logits, low = lora_forward(x, head.weight, None, head.slot.pair, head.binding.scale)
    return logits.float(), low


def _exponentials(logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """exp(logits - offset) in place of the logits, its row sums, and the offset (the row's maximum)."""
    offset = logits.amax(1, keepdim=True)
    exponentials = logits.sub_(offset).exp_()
    return exponentials, exponentials.sum(1, keepdim=True), offset


def _backproject(
    part: _Part, exponentials: torch.Tensor, normaliser: torch.Tensor, head: LoraLinear
) -> torch.Tensor:
    """The gradient of the chunk's hidden states [n, H]; that of the head's A and B goes to the sink.

    Rows whose loss has no slope, such as the tokens of a masked prompt, are left out of the products.
    """
    kept = _rows_with_slope(part.slope)
    if kept is None:
        return _product(part, exponentials, normaliser, head)
    chosen = _Part(
        part.x[kept],
        None if part.low is None else part.low[kept],
        part.targets[kept],
        part.slope[kept],
        _among(part.segments, kept),
    )
    grad = _product(chosen, exponentials[kept], normaliser[kept], head)
    return torch.zeros_like(part.x).index_copy_(0, kept, grad)


def _product(
    part: _Part, exponentials: torch.Tensor, normaliser: torch.Tensor, head: LoraLinear
) -> torch.Tensor:
    """d loss / d logit_v = sum_k slope_k (1[v = target_k] - softmax_v), in place, and projected back."""
    logit_grad = exponentials.mul_(part.slope.sum(1, keepdim=True).neg_().div_(normaliser))
    grad = logit_grad.scatter_add_(1, part.targets, part.slope).to(part.x.dtype)
    if head.slot.pair is None or part.low is None:
        return torch.mm(grad, head.weight)
    grad_low, grad_x = lora_backward(grad, head.weight, head.slot.pair, head.binding.scale, need_x=True)
    if head.binding.sink is not None:
        head.binding.sink.add_packed(head.slot.site, Factors(grad_low, part.x, grad, part.low), part.segments)
    return torch.zeros_like(part.x) if grad_x is None else grad_x


def _rows_with_slope(slope: torch.Tensor) -> torch.Tensor | None:
    """Indices int64 of the rows with a slope; None when so many have one that copying would not pay."""
    active = slope.any(1)
    return None if int(active.sum()) * 8 > 7 * slope.shape[0] else active.nonzero().view(-1)


def _segments(lengths: tuple[int, ...], chunk: slice) -> list[Segment]:
    """Which rows of the chunk, counted from its start, belong to which example."""
    segments, first = [], 0
    for example, length in enumerate(lengths):
        start, stop = max(first, chunk.start), min(first + length, chunk.stop)
        if start < stop:
            segments.append(Segment(example, start - chunk.start, stop - chunk.start))
        first += length
    return segments


def _among(segments: list[Segment], kept: torch.Tensor) -> list[Segment]:
    """The segments as seen when only the rows `kept` (ascending) remain."""
    cuts = torch.tensor([segments[0].start, *(segment.stop for segment in segments)], device=kept.device)
    places = torch.searchsorted(kept, cuts).tolist()
    return [
        Segment(segment.example, start, stop)
        for segment, start, stop in zip(segments, places, places[1:], strict=False)
        if start < stop
    ]
