"""Which rows of a batch belong to which adapter, and the LoRA arithmetic on them.

Two defects of vLLM 0.32 are repaired here; docs/vllm.md has the measurements.

1. On CPU, vLLM marks rows without an adapter by slot -1 and then *indexes* with it: when all slots
   are taken, every request on the base model in a mixed batch gets the last slot's adapter. Here rows
   are grouped by slot and rows without one are not touched. It is also faster: vLLM copies the
   adapter's weights once per row.
2. Prompt logprobs are computed from one row per prompt token, but the LoRA on lm_head looks the
   adapter up by *request*: on CPU a shape error that ends the engine, on CUDA the wrong or no adapter
   (vllm-project/vllm issue 51594). While `prompt_slot` is set, all rows take that one adapter.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

import torch
from vllm.lora.punica_wrapper.punica_base import PunicaWrapperBase
from vllm.lora.punica_wrapper.punica_cpu import PunicaWrapperCPU

if TYPE_CHECKING:
    from vllm.lora.layers import LoRAMapping

Rows = slice | torch.Tensor
"""Row numbers of a batch: a slice, or int64 [n]."""
Group = tuple[int, Rows]

NO_ADAPTER: Final = -1


class _Batch(enum.Enum):
    ROWS = "rows"


BATCH_ROWS: Final = _Batch.ROWS
"""Value of `prompt_slot` while the rows are those of the whole batch, one per sampled token."""


def group_rows(slots: torch.Tensor) -> list[Group]:
    """Group the rows by slot, rows without an adapter (slot -1) left out. `slots` is int64 [rows]."""
    groups: list[Group] = []
    for slot in torch.unique(slots).tolist():
        if slot == NO_ADAPTER:
            continue
        rows = (slots == slot).nonzero().squeeze(1)
        first, last = int(rows[0]), int(rows[-1])
        groups.append((slot, slice(first, last + 1) if last - first + 1 == len(rows) else rows))
    return groups


def shrink(x: torch.Tensor, a: torch.Tensor, scale: float) -> torch.Tensor:
    """`scale * x Aᵀ` in float32: x [n, in], a [rank, in] -> [n, rank]."""
    return scale * (x.float() @ a.float().T)


def add_expanded(y: torch.Tensor, rows: Rows, low: torch.Tensor, b: torch.Tensor, offset: int) -> None:
    """`y[rows, offset:offset+out] += low Bᵀ`: y [N, width], low [n, rank] float32, b [out, rank]."""
    delta = (low.to(b.dtype) @ b.T).to(y.dtype)
    width = min(delta.shape[1], y.shape[1] - offset)  # vLLM pads the vocabulary in y or in b
    target = y[:, offset : offset + width]
    if isinstance(rows, slice):
        target[rows] += delta[:, :width]
    else:
        target.index_add_(0, rows, delta[:, :width])


def _matrix(stacked: torch.Tensor, slot: int) -> torch.Tensor:
    """The slot's matrix: stacked is [slots, 1, out, in] or [slots, out, in]."""
    return stacked[slot, 0] if stacked.ndim == 4 else stacked[slot]


class PromptRows(PunicaWrapperBase):
    """Mix-in: the LoRA on lm_head for the prompt rows of one request."""

    prompt_slot: int | _Batch = BATCH_ROWS

    @contextmanager
    def rows_of_one_prompt(self, slot: int) -> Iterator[None]:
        """Until the end of the block, every row that reaches lm_head belongs to `slot`."""
        self.prompt_slot = slot
        try:
            yield
        finally:
            self.prompt_slot = BATCH_ROWS

    def add_lora_logits(
        self,
        y: torch.Tensor,
        x: torch.Tensor,
        lora_a_stacked: torch.Tensor,
        lora_b_stacked: torch.Tensor,
        scale: float,
        **kwargs: Any,  # noqa: ANN401 - vLLM's signature
    ) -> None:
        """`y += scale * x Aᵀ Bᵀ`: y logits [rows, vocab], x hidden states [rows, hidden]."""
        slot = self.prompt_slot
        if isinstance(slot, _Batch):
            super().add_lora_logits(y, x, lora_a_stacked, lora_b_stacked, scale, **kwargs)  # type: ignore[safe-super]
        elif slot != NO_ADAPTER:
            low = shrink(x, _matrix(lora_a_stacked, slot), scale)
            add_expanded(y, slice(None), low, _matrix(lora_b_stacked, slot), 0)


class GroupedCpuLora(PunicaWrapperCPU):
    """LoRA on CPU by groups of rows; replaces vLLM's per-row gather (defect 1 above)."""

    _token_groups: Sequence[Group] = ()
    _sampler_groups: Sequence[Group] = ()

    def update_metadata(
        self,
        mapping: LoRAMapping,
        lora_index_to_id: list[int | None],
        max_loras: int,
        vocab_size: int,
        **kwargs: Any,  # noqa: ANN401 - vLLM's signature
    ) -> None:
        """Called by vLLM before each step whose composition or slots changed."""
        super().update_metadata(mapping, lora_index_to_id, max_loras, vocab_size, **kwargs)
        self._token_groups = group_rows(self.token_lora_indices)
        self._sampler_groups = group_rows(self.sampler_indices)

    def add_shrink(
        self,
        y: tuple[torch.Tensor, ...] | torch.Tensor,
        x: torch.Tensor,
        lora_a_stacked: tuple[torch.Tensor, ...],
        scale: float,
        **kwargs: Any,  # noqa: ANN401 - vLLM's signature
    ) -> None:
        """`y[i][rows] = scale * x Aᵢᵀ` for each packed slice i."""
        x = x.view(-1, x.shape[-1])
        for i, stacked in enumerate(lora_a_stacked):
            out = y[i].view(-1, y[i].shape[-1])
            for slot, rows in self._token_groups:
                out[rows] = shrink(x[rows], _matrix(stacked, slot), scale).to(out.dtype)

    def add_expand(
        self,
        y: torch.Tensor,
        x: tuple[torch.Tensor, ...] | torch.Tensor,
        lora_b_stacked: tuple[torch.Tensor, ...],
        output_slices: tuple[int, ...],
        offset_start: int = 0,
        add_inputs: bool = True,
        **kwargs: Any,  # noqa: ANN401 - vLLM's signature
    ) -> None:
        """`y[rows, slice i] += x[i] Bᵢᵀ` for each packed slice i."""
        if not add_inputs:
            raise ValueError("an expand that overwrites is not supported; vLLM 0.32 never asks for one")
        y = y.view(-1, y.shape[-1])
        offset = offset_start
        for i, stacked in enumerate(lora_b_stacked):
            for slot, rows in self._token_groups:
                add_expanded(y, rows, x[i][rows], _matrix(stacked, slot), offset)
            offset += output_slices[i]

    def add_lora_linear(
        self,
        y: torch.Tensor,
        x: torch.Tensor,
        lora_a_stacked: tuple[torch.Tensor, ...],
        lora_b_stacked: tuple[torch.Tensor, ...],
        scale: float,
        output_slices: tuple[int, ...],
        *,
        buffer: tuple[torch.Tensor, ...] | None = None,
        **kwargs: Any,  # noqa: ANN401 - vLLM's signature
    ) -> None:
        """`y[rows, slice i] += scale * x Aᵢᵀ Bᵢᵀ`: y [tokens, out], x [tokens, in]."""
        y, x = y.view(-1, y.shape[-1]), x.view(-1, x.shape[-1])
        for slot, rows in self._token_groups:
            x_rows, offset = x[rows], 0
            for a, b, width in zip(lora_a_stacked, lora_b_stacked, output_slices, strict=True):
                low = shrink(x_rows, _matrix(a, slot), scale)
                add_expanded(y, rows, low, _matrix(b, slot), offset)
                offset += width

    def add_lora_embedding(
        self,
        y: torch.Tensor,
        x: torch.Tensor,
        lora_b_stacked: torch.Tensor,
        add_inputs: bool = True,
        **kwargs: Any,  # noqa: ANN401 - vLLM's signature
    ) -> None:
        """`y[rows] += x Bᵀ`: x are rows of A that vLLM has looked up by token."""
        for slot, rows in self._token_groups:
            add_expanded(y, rows, x[rows].float(), _matrix(lora_b_stacked, slot), 0)

    def add_lora_logits(
        self,
        y: torch.Tensor,
        x: torch.Tensor,
        lora_a_stacked: torch.Tensor,
        lora_b_stacked: torch.Tensor,
        scale: float,
        *,
        buffer: torch.Tensor | None = None,
        **kwargs: Any,  # noqa: ANN401 - vLLM's signature
    ) -> None:
        """`y[rows] += scale * x Aᵀ Bᵀ` for the sampled rows: y [requests, vocab]."""
        y, x = y.view(-1, y.shape[-1]), x.view(-1, x.shape[-1])
        if y.shape[0] != self.sampler_indices.shape[0]:
            # Guessing would answer with another tenant's adapter; an engine that stops does not.
            raise RuntimeError("the rows at lm_head are not those of the batch")
        for slot, rows in self._sampler_groups:
            low = shrink(x[rows], _matrix(lora_a_stacked, slot), scale)
            add_expanded(y, rows, low, _matrix(lora_b_stacked, slot), 0)


def repaired_class(original: type[PunicaWrapperBase]) -> type[PromptRows]:
    """The class that replaces vLLM's `original` punica wrapper on this platform."""
    base = GroupedCpuLora if issubclass(original, PunicaWrapperCPU) else original
    return type(f"Tensafe{original.__name__}", (PromptRows, base), {})
