"""The cut into microbatches: complete, within budget, and without effect on the numbers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tensafe_gpu.trainer import engine as engine_module
from tensafe_gpu.trainer import head
from tensafe_gpu.trainer.batching import Budget, build, plan, plan_units
from tensafe_gpu.trainer.engine import Engine, accumulated_sum
from tests.support.training_data import random_request, warm_run

lengths_strategy = st.lists(st.integers(1, 40), min_size=1, max_size=30)
budgets = st.builds(Budget, st.integers(1, 100), st.integers(1, 8))


@given(lengths_strategy, budgets)
def test_plan_covers_every_datum_once_within_the_budget(lengths, budget):
    batches = plan(lengths, budget)
    assert sorted(i for batch in batches for i in batch) == list(range(len(lengths)))
    for batch in batches:
        padded = len(batch) * max(lengths[i] for i in batch)
        assert len(batch) <= budget.examples
        assert padded <= budget.tokens or len(batch) == 1


@given(st.data(), lengths_strategy, budgets)
def test_unit_groups_hold_whole_units_within_the_budget(data, lengths, budget):
    units = data.draw(st.lists(st.integers(0, 5), min_size=len(lengths), max_size=len(lengths)))
    groups = plan_units(lengths, units, budget)
    seen: list[int] = []
    for group in groups:
        indices = [i for batch in group.microbatches for i in batch]
        inside = {units[i] for i in indices}
        assert len(inside) == group.units
        assert sorted(indices) == sorted(i for i, unit in enumerate(units) if unit in inside)
        if len(group.microbatches) == 1:
            numbering = {(units[i], number) for i, number in zip(indices, group.unit_of, strict=True)}
            assert len(numbering) == group.units
        else:
            assert group.units == 1
        for batch in group.microbatches:
            assert len(batch) <= budget.examples
            assert len(batch) * max(lengths[i] for i in batch) <= budget.tokens or len(batch) == 1
        seen += indices
    assert sorted(seen) == list(range(len(lengths)))


def test_build_pads_on_the_right_and_keeps_rows_in_order():
    request = random_request((2, 3), targets=2)
    batch = build(request, (1, 0), torch.device("cpu"))
    assert batch.token_ids[0].tolist() == request.data[1].tokens.tolist()
    assert batch.token_ids[1].tolist() == [*request.data[0].tokens.tolist(), 0]
    assert batch.rows.tolist() == [0, 1, 2, 3, 4]
    expected = np.concatenate([request.data[1].inputs["weights"], request.data[0].inputs["weights"]])
    assert np.array_equal(batch.floats["weights"].numpy(), expected)


@pytest.mark.parametrize("clip_norm", [None, 10.0])
@pytest.mark.parametrize("loss_fn", ["cross_entropy", "ppo"])
def test_neither_padding_nor_chunks_of_logits_change_the_numbers(base, monkeypatch, loss_fn, clip_norm):
    request = random_request((30, 1, 17, 8, 25), loss_fn=loss_fn, units=range(5))
    results, sums = [], []
    for tokens, chunk_rows in ((4096, 128), (1, 128), (4096, 7)):
        monkeypatch.setattr(head, "CHUNK_LOGITS", 1)
        monkeypatch.setattr(head, "MIN_CHUNK_ROWS", chunk_rows)
        state = warm_run(Engine(base))
        engine = Engine(base, microbatch_tokens=tokens)
        results.append(engine.forward_backward(state, request, clip_norm=clip_norm))
        sums.append(accumulated_sum(state))
    for other, total in zip(results[1:], sums[1:], strict=True):
        assert other.loss_sum == pytest.approx(results[0].loss_sum, rel=1e-6)
        for a, b in zip(other.logprobs, results[0].logprobs, strict=True):
            assert np.allclose(a, b, atol=2e-5)
        assert np.linalg.norm(total - sums[0]) <= 1e-5 * np.linalg.norm(sums[0])


@pytest.mark.parametrize("clip_norm", [None, 10.0])
def test_a_long_datum_is_recomputed_to_the_same_bits_in_less_memory(base, monkeypatch, clip_norm):
    request = random_request((200,), units=(1,))
    kept_bytes, sums = [], []
    for factor in (100, 2):  # 200 tokens against 64 a microbatch: kept, then recomputed
        monkeypatch.setattr(engine_module, "RECOMPUTE_ABOVE", factor)
        state, sizes = warm_run(Engine(base)), []

        def note(tensor: torch.Tensor, sizes: list[int] = sizes) -> torch.Tensor:
            sizes.append(tensor.numel() * tensor.element_size())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            Engine(base, microbatch_tokens=64).forward_backward(state, request, clip_norm=clip_norm)
        kept_bytes.append(sum(sizes))
        sums.append(accumulated_sum(state))
    assert np.array_equal(*sums)
    assert kept_bytes[1] < kept_bytes[0] / 4
