"""Adapters that come and go, seeds, stops, cancellation, and requests that must fail alone."""

from __future__ import annotations

import asyncio
import dataclasses
import json
from collections.abc import Callable

import numpy as np
import psutil
import pytest
from safetensors.numpy import load, save
from transformers import AutoTokenizer

from tensafe.contracts.errors import InvalidRequest, TensafeError
from tensafe.contracts.sampling import SampleRequest, SampleResult, SamplingParams
from tensafe_gpu.sampler.adapters import Adapter
from tests.integration.sampler.conftest import STEP_TOKENS, AdapterFactory, Harness, Reference

pytestmark = pytest.mark.slow

PROMPT = (5, 6, 7, 8, 9)
GREEDY = SamplingParams(max_tokens=12, temperature=0, stop=())


def tokens_of(result: SampleResult) -> list[list[int]]:
    return [sequence.tokens.tolist() for sequence in result.sequences]


def draw(harness: Harness, adapter: Adapter | None = None, **params: object) -> SampleResult:
    """One prompt, with parameters of SamplingParams and `num_samples`."""
    num_samples = params.pop("num_samples", 1)
    request = SampleRequest(prompt=PROMPT, num_samples=num_samples, params=SamplingParams(**params))
    return harness.run(harness.engine.sample(request, adapter))


def test_a_new_version_under_the_same_name_has_the_new_weights(
    harness: Harness, reference: Reference, make_adapter: AdapterFactory
) -> None:
    """vLLM keyed by name alone serves the old version's cached prompt."""
    prompt = tuple(range(40, 190))
    for version, seed in (("1", 11), ("2", 12)):
        adapter, folder = make_adapter("run", version=version, seed=seed)
        request = SampleRequest(prompt=prompt, params=GREEDY)
        for _ in range(2):
            result = harness.run(harness.engine.sample(request, adapter, cache_scope="tenant"))
            assert tokens_of(result) == [reference.greedy(prompt, folder, 12)]
    assert result.prompt_cache_hit_tokens > 0


def test_more_adapters_than_places_are_served_by_eviction(
    harness: Harness, reference: Reference, make_adapter: AdapterFactory
) -> None:
    """7 adapters, 3 places, 2 slots in a step: each answer comes from its own adapter."""
    made = [make_adapter(f"many-{i}", seed=20 + i) for i in range(7)]
    request = SampleRequest(prompt=PROMPT, params=GREEDY)
    results = harness.together(*(harness.engine.sample(request, made[i % 7][0]) for i in range(21)))
    for i, result in enumerate(results):
        assert tokens_of(result) == [reference.greedy(PROMPT, made[i % 7][1], 12)]
    resident = [adapter.identity for adapter, _ in made if harness.engine.is_resident(adapter.identity)]
    assert len(resident) == 3


def test_eviction_waits_for_requests_that_ended_at_a_stop_string(
    harness: Harness, make_adapter: AdapterFactory
) -> None:
    """Such a request lives on in vLLM until its abort arrives; evicting before that ends the engine."""
    made = [make_adapter(f"stop-{i}", seed=40 + i)[0] for i in range(5)]
    params = SamplingParams(max_tokens=200, temperature=1.0, stop=("e", "a", "t", " ", "o"))
    request = SampleRequest(prompt=PROMPT, num_samples=2, params=params)
    results = harness.together(*(harness.engine.sample(request, made[i % 5]) for i in range(40)))
    assert all(isinstance(result, SampleResult) for result in results)
    assert harness.engine.healthy


def test_adapter_files_are_gone_once_loaded(harness: Harness, make_adapter: AdapterFactory) -> None:
    adapter, _ = make_adapter("plain", seed=3)
    harness.run(harness.engine.ensure_adapter(adapter))
    assert harness.engine.is_resident("plain@1")
    assert list(harness.engine._private.path.rglob("adapter_*")) == []


def test_a_forgotten_adapter_is_out_of_vllm_and_can_come_again(
    harness: Harness, make_adapter: AdapterFactory
) -> None:
    adapter, _ = make_adapter("forgotten", seed=9)
    before = tokens_of(draw(harness, adapter, temperature=0.0, max_tokens=8))
    assert adapter.identity in harness.engine.resident()
    harness.run(harness.engine.forget(adapter.identity))
    assert adapter.identity not in harness.engine.resident()
    held = harness.run(harness.engine._llm.list_loras())
    assert len(held) == len(harness.engine.resident())
    assert tokens_of(draw(harness, adapter, temperature=0.0, max_tokens=8)) == before


def test_the_same_seed_draws_the_same_and_samples_of_one_request_differ(harness: Harness) -> None:
    first = tokens_of(draw(harness, num_samples=4, seed=5, max_tokens=16, stop=()))
    again = tokens_of(draw(harness, num_samples=4, seed=5, max_tokens=16, stop=()))
    other = tokens_of(draw(harness, num_samples=4, seed=6, max_tokens=16, stop=()))
    assert first == again
    assert len({tuple(tokens) for tokens in first + other}) == 8


def test_without_a_seed_every_request_draws_anew(harness: Harness) -> None:
    drawn = [tuple(tokens_of(draw(harness, max_tokens=16, stop=()))[0]) for _ in range(3)]
    assert len(set(drawn)) == 3


def test_top_k_1_and_temperature_0_are_greedy(harness: Harness, reference: Reference) -> None:
    expected = reference.greedy(PROMPT, None, 12)
    assert tokens_of(draw(harness, max_tokens=12, temperature=0, stop=(), num_samples=2)) == [expected] * 2
    assert tokens_of(draw(harness, max_tokens=12, top_k=1, stop=())) == [expected]
    assert tokens_of(draw(harness, max_tokens=12, top_p=1e-6, stop=())) == [expected]


def test_end_of_sequence_stops_unless_the_list_of_stops_is_empty(harness: Harness) -> None:
    common = {"num_samples": 16, "seed": 1, "temperature": 2.0, "max_tokens": 200}
    free = draw(harness, stop=(), **common)
    stopped = draw(harness, stop=None, **common)
    assert {s.stop_reason for s in free.sequences} == {"length"}
    assert any(0 in tokens for tokens in tokens_of(free)), "the model never drew the end-of-sequence token"
    for whole, cut in zip(free.sequences, stopped.sequences, strict=True):
        tokens = whole.tokens.tolist()
        end = tokens.index(0) + 1 if 0 in tokens else 200
        assert cut.tokens.tolist() == tokens[:end]
        assert cut.stop_reason == ("stop" if 0 in tokens else "length")
        assert len(cut.logprobs) == end


def test_a_stop_token_is_the_last_token(harness: Harness) -> None:
    whole = draw(harness, seed=2, max_tokens=40, stop=()).sequences[0]
    wanted = int(whole.tokens[17])
    cut = draw(harness, seed=2, max_tokens=40, stop=(wanted, 1)).sequences[0]
    end = whole.tokens.tolist().index(wanted) + 1
    assert cut.tokens.tolist() == whole.tokens[:end].tolist()
    assert cut.stop_reason == "stop"
    np.testing.assert_allclose(cut.logprobs, whole.logprobs[:end], atol=1e-5)


@pytest.mark.parametrize("as_list", [True, False])
def test_a_continuation_ends_with_the_token_that_completes_a_stop_string(
    harness: Harness, as_list: bool
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(harness.model_path)
    whole = draw(harness, seed=9, max_tokens=40, stop=()).sequences[0]
    texts = [tokenizer.decode(whole.tokens[:n]) for n in range(41)]
    # A string over the border of two tokens, first completed by a token in the middle.
    end, stop = next(
        (n, texts[n][-3:])
        for n in range(12, 40)
        if texts[n].startswith(texts[n - 1]) and 0 < len(texts[n]) - len(texts[n - 1]) < 3
        if texts[n][-3:].isprintable() and "\ufffd" not in texts[n][-3:] and texts[n][-3:] not in texts[n - 1]
    )
    cut = draw(harness, seed=9, max_tokens=40, stop=("never here", stop) if as_list else stop).sequences[0]
    assert cut.tokens.tolist() == whole.tokens[:end].tolist()
    assert cut.stop_reason == "stop"
    assert len(cut.logprobs) == end


def test_a_stop_string_matches_a_special_token(harness: Harness) -> None:
    params = {"seed": 1, "temperature": 2.0, "max_tokens": 200, "num_samples": 16}
    whole = tokens_of(draw(harness, stop=(), **params))
    cut = draw(harness, stop="<|im_end|>", **params).sequences  # token 3
    assert any(3 in tokens for tokens in whole)
    for tokens, sequence in zip(whole, cut, strict=True):
        ends = [tokens.index(t) + 1 for t in (0, 3) if t in tokens]
        assert sequence.tokens.tolist() == tokens[: min([*ends, 200])]


def test_without_max_tokens_the_context_is_filled(harness: Harness) -> None:
    result = draw(harness, stop=(), seed=1)
    assert len(result.sequences[0].tokens) == 256 - len(PROMPT)
    assert result.sequences[0].stop_reason == "length"


def test_prompt_computation_is_shared_within_a_scope_only(
    harness: Harness, make_adapter: AdapterFactory
) -> None:
    adapter, _ = make_adapter("scoped", seed=4)
    request = SampleRequest(prompt=tuple(range(100, 300)), params=SamplingParams(max_tokens=1))

    def hits(scope: str | None, adapter: Adapter | None = None) -> int:
        result = harness.run(harness.engine.sample(request, adapter, cache_scope=scope))
        return result.prompt_cache_hit_tokens

    assert (hits("tenant-1"), hits("tenant-2"), hits(None), hits(None)) == (0, 0, 0, 0)
    assert hits("tenant-1") > 50
    assert hits("tenant-1", adapter) == 0
    assert hits("tenant-1", adapter) > 50


def test_the_same_seed_draws_the_same_tokens_however_its_prompt_was_cut(harness: Harness) -> None:
    """vLLM sets a seeded generator back after each chunk; on the CPU that ended the engine for everybody."""
    prompt = tuple(range(100, 250))

    def drawn(seed: int) -> SampleResult:
        params = SamplingParams(max_tokens=12, temperature=1.0, seed=seed, stop=())
        request = SampleRequest(prompt=prompt, num_samples=2, params=params)
        return harness.run(harness.engine.sample(request, cache_scope="seeded"))

    chunked, at_once, other = drawn(5), drawn(5), drawn(6)
    assert chunked.prompt_cache_hit_tokens < len(prompt) - STEP_TOKENS
    assert at_once.prompt_cache_hit_tokens >= len(prompt) - STEP_TOKENS  # one chunk is left
    assert tokens_of(chunked) == tokens_of(at_once) != tokens_of(other)
    assert harness.engine.healthy


def test_cancelling_aborts_in_vllm(harness: Harness, reference: Reference) -> None:
    async def cancel_soon() -> None:
        request = SampleRequest(prompt=PROMPT, num_samples=8, params=SamplingParams(stop=()))
        task = asyncio.create_task(harness.engine.sample(request))
        await asyncio.sleep(0.2)
        assert harness.engine._llm.get_num_unfinished_requests() == 8
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert harness.engine._llm.get_num_unfinished_requests() == 0

    harness.run(cancel_soon())
    assert tokens_of(draw(harness, max_tokens=12, temperature=0, stop=())) == [
        reference.greedy(PROMPT, None, 12)
    ]


def test_a_load_whose_request_is_cancelled_is_finished_and_counted(
    harness: Harness, make_adapter: AdapterFactory
) -> None:
    adapter, _ = make_adapter("abandoned", seed=5)

    async def abandon() -> None:
        task = asyncio.create_task(harness.engine.ensure_adapter(adapter))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        while not harness.engine.is_resident("abandoned@1"):
            await asyncio.sleep(0.01)
        assert len(await harness.engine._llm.list_loras()) == len(harness.engine._adapters)

    harness.run(abandon())


def _with_config(adapter: Adapter, **changes: object) -> dict[str, bytes]:
    config = json.loads(adapter.files["adapter_config.json"]) | changes
    return {**adapter.files, "adapter_config.json": json.dumps(config).encode()}


def _with_tensors(adapter: Adapter, change: Callable[[dict], None]) -> dict[str, bytes]:
    tensors = load(adapter.files["adapter_model.safetensors"])
    change(tensors)
    return {**adapter.files, "adapter_model.safetensors": save(tensors)}


def test_bad_requests_and_adapters_fail_alone(
    harness: Harness, reference: Reference, make_adapter: AdapterFactory
) -> None:
    good, folder = make_adapter("good", seed=6)
    over_rank, _ = make_adapter("over-rank", rank=16)
    key = "base_model.model.lm_head.lora_A.weight"

    def variant(name: str, files: dict[str, bytes]) -> Adapter:
        return dataclasses.replace(good, name=name, files=files)

    bad_adapters = [
        over_rank,
        variant("no-weights", {"adapter_config.json": good.files["adapter_config.json"]}),
        variant("garbage", {**good.files, "adapter_model.safetensors": b"\x08" + b"\0" * 64}),
        variant("dora", _with_config(good, use_dora=True)),
        variant("smaller", _with_tensors(good, lambda t: t.update({key: t[key][:, :64].copy()}))),
        variant("half", _with_tensors(good, lambda t: t.pop(key))),
        variant("infinite", _with_tensors(good, lambda t: t[key].fill(np.inf))),
        variant(
            "layer-9",
            _with_tensors(
                good, lambda t: t.update({key.replace("lm_head", "model.layers.9.mlp.up_proj"): t[key]})
            ),
        ),
    ]
    bad_requests = {
        "prompt": [
            SampleRequest(prompt=(5, 512)),
            SampleRequest(prompt=(5, -1)),
            SampleRequest(prompt=(1,) * 256),
        ],
        "params.stop": [SampleRequest(prompt=(5,), params=SamplingParams(stop=(512,)))],
    }
    plain = SampleRequest(prompt=PROMPT, params=GREEDY)
    good_work = [harness.engine.sample(plain, a) for a in (None, good) for _ in range(4)]
    bad_work = [harness.engine.sample(plain, adapter) for adapter in bad_adapters]
    bad_work += [harness.engine.sample(r, good) for requests in bad_requests.values() for r in requests]
    results = harness.together(*bad_work, *good_work)
    for failed in results[: len(bad_work)]:
        assert isinstance(failed, InvalidRequest), failed
    fields = [failed.field for failed in results[len(bad_adapters) : len(bad_work)]]
    assert fields == [name for name, requests in bad_requests.items() for _ in requests]
    expected = [reference.greedy(PROMPT, None, 12)] * 4 + [reference.greedy(PROMPT, folder, 12)] * 4
    assert [tokens_of(result)[0] for result in results[len(bad_work) :]] == expected
    assert harness.engine.healthy
    assert not any(harness.engine.is_resident(adapter.identity) for adapter in bad_adapters)


def test_a_good_adapter_after_a_bad_one_under_the_same_identity(
    harness: Harness, reference: Reference, make_adapter: AdapterFactory
) -> None:
    good, folder = make_adapter("second-try", seed=7)
    bad = dataclasses.replace(good, files=_with_config(good, use_dora=True))
    with pytest.raises(TensafeError):
        harness.run(harness.engine.sample(SampleRequest(prompt=PROMPT, params=GREEDY), bad))
    result = harness.run(harness.engine.sample(SampleRequest(prompt=PROMPT, params=GREEDY), good))
    assert tokens_of(result) == [reference.greedy(PROMPT, folder, 12)]


def test_an_adapter_that_vllm_itself_refuses_fails_alone(
    harness: Harness, reference: Reference, make_adapter: AdapterFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Past our own check, as a model family that we do not know would be."""
    monkeypatch.setattr("tensafe_gpu.sampler.loading.check_adapter", lambda files, *_: dict(files))
    over_rank, _ = make_adapter("vllm-over-rank", rank=16)
    unknown, _ = make_adapter("vllm-unknown", seed=8)
    tensors = load(unknown.files["adapter_model.safetensors"])
    stray = {key.replace("layers.1", "layers.9"): value for key, value in tensors.items()}
    unknown = dataclasses.replace(unknown, files={**unknown.files, "adapter_model.safetensors": save(stray)})
    request = SampleRequest(prompt=PROMPT, params=GREEDY)
    work = [harness.engine.sample(request, adapter) for adapter in (over_rank, unknown, None)]
    refused, left_out, base = harness.together(*work)
    assert isinstance(refused, InvalidRequest)
    assert isinstance(left_out, InvalidRequest)
    assert "model.layers.9" in left_out.message
    assert tokens_of(base) == [reference.greedy(PROMPT, None, 12)]
    assert len(harness.run(harness.engine._llm.list_loras())) == len(harness.engine._adapters)


def test_extreme_but_finite_adapters_leave_the_engine_alive(
    harness: Harness, reference: Reference, make_adapter: AdapterFactory
) -> None:
    """Weights of 1e30 make NaN logits; whatever that request gets, the others get their answers."""
    adapter, _ = make_adapter("extreme", seed=9)
    files = _with_tensors(adapter, lambda t: [value.fill(1e30) for value in t.values()])
    extreme = dataclasses.replace(adapter, files=files)
    drawn = SamplingParams(max_tokens=4, top_k=5, top_p=0.9, seed=1)
    work = [
        harness.engine.sample(SampleRequest(prompt=PROMPT, params=drawn, prompt_logprobs=True), extreme),
        harness.engine.sample(SampleRequest(prompt=PROMPT, params=GREEDY), extreme),
        harness.engine.sample(SampleRequest(prompt=PROMPT, params=GREEDY)),
    ]
    *overflowing, base = harness.together(*work)
    assert all(isinstance(error, InvalidRequest) and error.field == "adapter" for error in overflowing)
    assert tokens_of(base) == [reference.greedy(PROMPT, None, 12)]
    assert tokens_of(draw(harness, max_tokens=12, temperature=0, stop=())) == [
        reference.greedy(PROMPT, None, 12)
    ]


def test_nothing_listens_beyond_loopback(harness: Harness) -> None:
    me = psutil.Process()
    sockets = [
        c for p in (me, *me.children(recursive=True)) for c in p.net_connections() if c.status == "LISTEN"
    ]
    assert {c.laddr.ip for c in sockets} <= {"127.0.0.1", "::1"}
