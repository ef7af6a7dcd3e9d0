"""What an answer's attestation says was processed, held to what vLLM does; a row left out is found."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from tensafe.contracts.errors import HeRefused
from tensafe.contracts.execution import Execution
from tensafe.contracts.sampling import SampleRequest, SampleResult, SamplingParams
from tensafe_gpu.sampler import launch
from tensafe_gpu.sampler.private import serving
from tensafe_gpu.sampler.private.adapter import PrivateAdapter
from tensafe_gpu.sampler.private.counting import Counts, counted
from tests.integration.sampler.conftest import AdapterFactory, Harness, Reference
from tests.support.private_evaluator import Evaluator
from tests.support.private_requests import NEW, PART, greedy, tokens_of
from tests.support.quantised_reference import QuantisedReference, quantised_sites

pytestmark = pytest.mark.slow

BLOCK = 32
PROMPT = tuple(range(10, 80))


@pytest.fixture(scope="module")
def evaluator(make_adapter: AdapterFactory, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Evaluator]:
    _, folder = make_adapter("C", seed=5, modules=PART)
    evaluator = Evaluator(tmp_path_factory.mktemp("e"), "C", 1, quantised_sites(folder))
    yield evaluator
    evaluator.close()


def private(evaluator: Evaluator, **more: str) -> PrivateAdapter:
    return PrivateAdapter(evaluator.name, "1", evaluator.holder(**more))


def checked(evaluator: Evaluator, request: SampleRequest, result: SampleResult | BaseException) -> Execution:
    """The counts of an answer, which are exactly what it needs and what they say was run beside that."""
    assert isinstance(result, SampleResult), result
    found = result.execution
    assert found is not None
    sampled, sequences = sum(len(one.tokens) for one in result.sequences), len(result.sequences)
    assert found.prompt_tokens == len(request.prompt) * sequences
    needed = found.prompt_tokens - found.cached_tokens + sampled - sequences
    assert found.tokens == needed + found.recomputed_tokens + found.overrun_tokens
    assert dict(found.evaluated_by_site) == dict.fromkeys(evaluator.sites, found.tokens)
    return found


def test_every_position_is_computed_or_cached_and_the_last_token_is_not_fed(
    harness: Harness, evaluator: Evaluator
) -> None:
    """Several samples of one prompt in chunks, then again from the prefix cache; no row is run twice."""
    adapter, before = private(evaluator), evaluator.evaluated()
    for samples, most_cached in ((1, 0), (3, 3 * 64)):
        request = greedy(PROMPT, num_samples=samples)
        result = harness.run(harness.engine.sample(request, adapter, cache_scope="c"))
        found = checked(evaluator, request, result)
        assert (found.recomputed_tokens, found.overrun_tokens) == (0, 0)
        assert found.cached_tokens == most_cached
    request = greedy(PROMPT, prompt_logprobs=True)  # for which the cache is not read
    found = checked(evaluator, request, harness.run(harness.engine.sample(request, adapter, cache_scope="c")))
    assert (found.cached_tokens, found.tokens) == (0, len(PROMPT) + 12 - 1)
    # The holder's own count: what it answered is what is said, and nothing else.
    said = (len(PROMPT) + 11) + 3 * (len(PROMPT) - 64 + 11) + (len(PROMPT) + 11)
    assert evaluator.evaluated() - before == said * len(evaluator.sites)


def test_rows_behind_a_stop_string_are_told_apart(harness: Harness, evaluator: Evaluator) -> None:
    """It is found by the front end, while the engine has gone on: by how far is not for us to say."""
    params = SamplingParams(max_tokens=150, temperature=1.0, seed=3, stop=("e", "a", "t", " ", "o"))
    request = SampleRequest(prompt=PROMPT[:9], params=params, num_samples=8)
    result = harness.run(harness.engine.sample(request, private(evaluator)))
    assert "stop" in {one.stop_reason for one in result.sequences}
    found = checked(evaluator, request, result)
    assert found.recomputed_tokens == 0
    assert found.overrun_tokens <= 8 * 8


@pytest.mark.parametrize("position", ["0", "69", "70", "75"])
def test_he_01_an_answer_with_a_row_that_was_left_out_is_not_given(
    harness: Harness, evaluator: Evaluator, position: str
) -> None:
    """The prompt's first row, its last, and two decoded ones: with the delta of all others."""
    with pytest.raises(HeRefused) as refused:
        harness.run(harness.engine.sample(greedy(PROMPT), private(evaluator, left_out=position)))
    assert refused.value.code == "he_not_evaluated"
    harness.run(harness.engine.forget(private(evaluator).identity))  # opened again, it leaves nothing out
    request = greedy(PROMPT)
    checked(evaluator, request, harness.run(harness.engine.sample(request, private(evaluator))))


def test_he_01_a_map_of_rows_by_id_answers_as_the_base_model_and_is_found(
    harness: Harness, evaluator: Evaluator, reference: Reference, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The private adapter is in no row: the engine generates, and what it generated is not given out."""
    kept: list[tuple[Mapping[str, Any], list[int]]] = []

    def keeping(report: Mapping[str, Any], output: Any, sites: int) -> Counts:
        kept.append((report, list(output.outputs[0].token_ids)))
        return counted(report, output, sites)

    monkeypatch.setattr(serving, "counted", keeping)
    request, before = greedy(PROMPT[:9]), evaluator.evaluated()
    adapter = private(evaluator, by_id="yes")
    with pytest.raises(HeRefused) as refused:
        harness.run(harness.engine.sample(request, adapter))
    assert refused.value.code == "he_not_evaluated"
    ((report, generated),) = kept
    assert (report["failure"], report["tokens"], report["evaluated"]) == (None, 0, {})
    assert evaluator.evaluated() == before
    assert generated == reference.greedy(PROMPT[:9], None, NEW)
    harness.run(harness.engine.forget(adapter.identity))
    harness.run(harness.engine.forget(private(evaluator).identity))  # opened again, the map is by name
    result = harness.run(harness.engine.sample(request, private(evaluator)))
    checked(evaluator, request, result)
    assert tokens_of(result) != generated


def cache_bytes(model_path: str, blocks: int) -> int:
    shape = json.loads((Path(model_path) / "config.json").read_text())
    of_token = 2 * shape["num_hidden_layers"] * shape["num_key_value_heads"] * shape["head_dim"] * 4
    return int(blocks * BLOCK * of_token)


@pytest.fixture(scope="module")
def crowded(model_path: str) -> Iterator[Harness]:
    """An engine whose cache holds two of the test's requests to their end, and begins four."""
    with mock.patch.object(launch, "_BATCHED_TOKENS", 64):
        harness = Harness(
            model_path,
            kv_cache_bytes=cache_bytes(model_path, 10),
            max_sequences=8,
            key_holder="tests.support.private_evaluator:connect",
        )
    yield harness
    harness.close()


def test_what_a_preempted_request_computes_again_is_told_apart(
    crowded: Harness, evaluator: Evaluator
) -> None:
    requests = [greedy(tuple(range(first, first + 61)), 70) for first in (20, 120, 220, 320)]
    results = crowded.together(*(crowded.engine.sample(one, private(evaluator)) for one in requests))
    found = [checked(evaluator, one, result) for one, result in zip(requests, results, strict=True)]
    assert sum(one.recomputed_tokens for one in found) > 61
    quantised = QuantisedReference(crowded.model_path)
    with quantised.adapted(evaluator.sites):
        for one, result in zip(requests, results, strict=True):
            assert tokens_of(result) == quantised.greedy(one.prompt, 70)


def test_he_01_a_row_left_out_is_found_though_a_preemption_ran_others_twice(
    crowded: Harness, evaluator: Evaluator
) -> None:
    """There are more rows than are needed then: their number alone says nothing."""
    requests = [greedy(tuple(range(first, first + 61)), 70) for first in (20, 120, 220, 320)]
    adapter = private(evaluator, left_out="80")
    results = crowded.together(*(crowded.engine.sample(one, adapter) for one in requests))
    assert {getattr(one, "code", None) for one in results} == {"he_not_evaluated"}
