"""How a request is cut into microbatches. The cut depends on the request and fixed budgets alone.

Data are sorted by length, longest first (ties in request order), and packed greedily so that
rows x longest row stays within a token budget. For privacy whole units are packed; a unit that alone
exceeds the budget becomes a group of its own, in several microbatches.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from tensafe.contracts.data_checks import TARGETS
from tensafe.contracts.training import ForwardBackward


@dataclass(frozen=True, slots=True)
class Budget:
    """Bounds of one microbatch: padded tokens, and examples."""

    tokens: int
    examples: int


@dataclass(frozen=True, slots=True)
class UnitGroup:
    """Whole units of a request, as microbatches of data indices.

    With one microbatch, `unit_of[i]` in 0..units-1 is the unit of its i-th example. With several the
    group is one unit whose examples do not fit together.
    """

    microbatches: tuple[tuple[int, ...], ...]
    unit_of: tuple[int, ...]
    units: int


@dataclass(frozen=True, slots=True)
class Microbatch:
    """Tensors of some data. Rows are the real tokens, example after example: N rows, K targets each.

    `token_ids` int64 [B, T] is padded on the right with id 0, which causal attention never reads;
    `rows` int64 [N] finds the rows in the flattened [B * T] (None: nothing is padded); `targets` is
    int64 [N, K]; `floats` float32 [N, K], zero where a datum has fewer than K targets.
    """

    indices: tuple[int, ...]
    lengths: tuple[int, ...]
    token_ids: torch.Tensor
    rows: torch.Tensor | None
    targets: torch.Tensor
    floats: dict[str, torch.Tensor]


def plan(lengths: Sequence[int], budget: Budget) -> list[tuple[int, ...]]:
    """Indices of each microbatch, longest data first; a single datum may exceed the token budget."""
    return _pack(sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)), lengths, budget)


def plan_units(lengths: Sequence[int], units: Sequence[int], budget: Budget) -> list[UnitGroup]:
    """Groups of whole units; `units[i]` is the unit of datum i."""
    members: dict[int, list[int]] = {}
    for index, unit in enumerate(units):
        members.setdefault(unit, []).append(index)
    ordered = sorted(members.values(), key=lambda rows: (-max(lengths[i] for i in rows), rows[0]))
    groups: list[UnitGroup] = []
    batch: list[list[int]] = []
    width = 0
    for rows in ordered:
        count = sum(map(len, batch)) + len(rows)
        if batch and (count > budget.examples or count * width > budget.tokens):
            groups.append(_group(batch))
            batch = []
        if not batch:
            width = max(lengths[i] for i in rows)
        if len(rows) > 1 and (len(rows) > budget.examples or len(rows) * width > budget.tokens):
            parts = plan([lengths[i] for i in rows], budget)
            groups.append(UnitGroup(tuple(tuple(rows[i] for i in part) for part in parts), (), 1))
        else:
            batch.append(rows)
    if batch:
        groups.append(_group(batch))
    return groups


def build(request: ForwardBackward, indices: tuple[int, ...], device: torch.device) -> Microbatch:
    """The microbatch of these data on `device`. Missing cross_entropy weights are ones."""
    data = [request.data[i] for i in indices]
    lengths = tuple(datum.tokens.shape[0] for datum in data)
    longest = max(lengths)
    token_ids = np.zeros((len(data), longest), np.int64)
    for row, datum in enumerate(data):
        token_ids[row, : lengths[row]] = datum.tokens
    targets = [_columns(datum.inputs[TARGETS]) for datum in data]
    width = max(t.shape[1] for t in targets)
    names = ("weights",) if request.loss_fn == "cross_entropy" else ("logprobs", "advantages")
    floats = {
        name: [
            _columns(datum.inputs[name]) if name in datum.inputs else np.ones(target.shape, np.float32)
            for datum, target in zip(data, targets, strict=True)
        ]
        for name in names
    }
    rows = None
    if min(lengths) < longest:
        real = np.concatenate([b * longest + np.arange(n) for b, n in enumerate(lengths)])
        rows = torch.from_numpy(real).to(device)
    return Microbatch(
        indices=indices,
        lengths=lengths,
        token_ids=torch.from_numpy(token_ids).to(device),
        rows=rows,
        targets=_stack(targets, width, device),
        floats={name: _stack(parts, width, device) for name, parts in floats.items()},
    )


def _pack(order: Iterable[int], lengths: Sequence[int], budget: Budget) -> list[tuple[int, ...]]:
    """Greedy packing of indices that come longest first."""
    batches: list[tuple[int, ...]] = []
    batch: list[int] = []
    for index in order:
        full = len(batch) >= budget.examples or (
            batch and (len(batch) + 1) * lengths[batch[0]] > budget.tokens
        )
        if full:
            batches.append(tuple(batch))
            batch = []
        batch.append(index)
    return [*batches, tuple(batch)]


def _group(units: list[list[int]]) -> UnitGroup:
    """One microbatch of whole units."""
    indices = tuple(index for rows in units for index in rows)
    unit_of = tuple(unit for unit, rows in enumerate(units) for _ in rows)
    return UnitGroup((indices,), unit_of, len(units))


def _columns(values: np.ndarray) -> np.ndarray:
    """[T] as [T, 1]; [T, K] unchanged."""
    return values[:, None] if values.ndim == 1 else values


def _stack(parts: list[np.ndarray], width: int, device: torch.device) -> torch.Tensor:
    """Concatenate [T_i, K_i] to [N, width], with zeros on the right."""
    if any(part.shape[1] != width for part in parts):
        parts = [np.pad(part, ((0, 0), (0, width - part.shape[1]))) for part in parts]
    return torch.from_numpy(np.concatenate(parts)).to(device)
