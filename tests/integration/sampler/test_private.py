"""Private adapters in the real engine: another process evaluates them; tokens are the quantised adapter's."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tensafe.contracts.errors import HeRefused
from tensafe.contracts.execution import ExecutionMode, ExecutionPolicy
from tensafe.contracts.sampling import SampleRequest, SampleResult, SamplingParams
from tensafe_gpu.sampler.private.adapter import PrivateAdapter
from tests.integration.sampler.conftest import STEP_TOKENS, AdapterFactory, Harness, Reference
from tests.support.private_evaluator import Evaluator
from tests.support.private_requests import ALL, NEW, PART, greedy, tokens_of
from tests.support.quantised_reference import QuantisedReference, quantised_sites

pytestmark = pytest.mark.slow


class Served:
    """A private adapter, the process that evaluates it, and its weights as they are in the clear."""

    def __init__(self, evaluator: Evaluator, folder: Path) -> None:
        self.evaluator, self.folder = evaluator, folder

    def adapter(self, version: int = 1, **more: str) -> PrivateAdapter:
        return PrivateAdapter(self.evaluator.name, str(version), self.evaluator.holder(**more))

    @property
    def sites(self) -> int:
        return len(self.evaluator.sites)


@pytest.fixture(scope="module")
def served(
    make_adapter: AdapterFactory, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, Served]]:
    found = {}
    for name, seed, modules in (("A", 1, ALL), ("B", 2, PART)):
        _, folder = make_adapter(name, seed=seed, modules=modules)
        evaluator = Evaluator(tmp_path_factory.mktemp("e"), name, 1, quantised_sites(folder))
        found[name] = Served(evaluator, folder)
    yield found
    for one in found.values():
        one.evaluator.close()


@pytest.fixture(autouse=True)
def _well(request: pytest.FixtureRequest) -> Iterator[None]:
    """Every test leaves the evaluators as it found them."""
    yield
    if "served" in request.fixturenames:
        for one in request.getfixturevalue("served").values():
            one.evaluator.mode("ok")


def prompts(seed: int, count: int) -> list[tuple[int, ...]]:
    draw = random.Random(seed)
    return [tuple(draw.randrange(5, 500) for _ in range(draw.randrange(3, 20))) for _ in range(count)]


def test_he_01_tokens_are_those_of_the_quantised_adapter_in_mixed_batches(
    harness: Harness, served: dict[str, Served], make_adapter: AdapterFactory, reference: Reference
) -> None:
    """Base, a plain adapter and two private ones together, arrivals interleaved: 0 mismatches of all."""
    plain, plain_folder = make_adapter("P", seed=3)
    asked = prompts(0, 60)
    kinds = ["A", "B", "plain", "base"]

    async def one(index: int, prompt: tuple[int, ...]) -> SampleResult:
        await asyncio.sleep(0.01 * index)
        kind = kinds[index % 4]
        adapter = (
            {"plain": plain, "base": None}.get(kind)
            if kind in ("plain", "base")
            else (served[kind].adapter())
        )
        return await harness.engine.sample(greedy(prompt), adapter)

    results = harness.together(*(one(i, p) for i, p in enumerate(asked)))
    quantised = QuantisedReference(harness.model_path)
    changed = 0
    for index, (prompt, result) in enumerate(zip(asked, results, strict=True)):
        kind = kinds[index % 4]
        base = reference.greedy(prompt, None, NEW)
        if kind in served:
            with quantised.adapted(served[kind].evaluator.sites):
                expected = quantised.greedy(prompt, NEW)
            changed += expected != base
        else:
            expected = reference.greedy(prompt, plain_folder, NEW) if kind == "plain" else base
        assert tokens_of(result) == expected, (index, kind)
    assert changed > 20  # of 30: the private adapters do something


def test_he_01_what_was_evaluated_is_counted_where_it_happened(
    harness: Harness, served: dict[str, Served]
) -> None:
    one = served["B"]
    before = one.evaluator.evaluated()
    request = greedy((7, 8, 9, 10, 11), num_samples=2)
    result = harness.run(harness.engine.sample(request, one.adapter()))
    execution = result.execution
    assert execution is not None
    assert (execution.mode, execution.adapter, execution.sites) == (ExecutionMode.HE, "B@1", one.sites)
    assert (execution.digest, execution.epoch, execution.parameters) == (f"{1:064x}", 1, "test/1")
    # Per continuation the prompt and all new tokens but the last; a step may be on its way at the end.
    least = 2 * (5 + NEW - 1)
    assert least <= execution.tokens <= least + 2
    assert execution.evaluated == execution.tokens * one.sites
    assert one.evaluator.evaluated() - before == execution.evaluated
    base = harness.run(harness.engine.sample(greedy((7, 8, 9, 10, 11))))
    assert tokens_of(base) != tokens_of(result)
    assert base.execution is not None
    assert base.execution.mode is ExecutionMode.NONE


def test_he_01_long_prompts_are_evaluated_in_chunks_beside_others(
    harness: Harness, served: dict[str, Served], reference: Reference
) -> None:
    """Chunks of two private adapters, the base model and single new tokens in the same passes."""
    draw = random.Random(7)
    asked = [tuple(draw.randrange(5, 500) for _ in range(count)) for count in (200, 150, 3, 170, 180)]
    kinds = ["A", "B", "A", None, "A"]
    results = harness.together(
        *(
            harness.engine.sample(greedy(prompt), served[kind].adapter() if kind else None)
            for prompt, kind in zip(asked, kinds, strict=True)
        )
    )
    assert harness.engine._llm.vllm_config.scheduler_config.max_num_batched_tokens == STEP_TOKENS < 150
    quantised = QuantisedReference(harness.model_path)
    for prompt, kind, result in zip(asked, kinds, results, strict=True):
        if kind is None:
            assert tokens_of(result) == reference.greedy(prompt, None, NEW)
            continue
        with quantised.adapted(served[kind].evaluator.sites):
            assert tokens_of(result) == quantised.greedy(prompt, NEW)
        assert isinstance(result, SampleResult)
        assert result.execution is not None
        assert len(prompt) + NEW - 1 <= result.execution.tokens <= len(prompt) + NEW
        assert result.execution.evaluated == result.execution.tokens * served[kind].sites


def test_prompt_logprobs_of_several_at_once_and_other_temperatures(
    harness: Harness, served: dict[str, Served]
) -> None:
    asked = prompts(4, 6)
    params = SamplingParams(max_tokens=6, temperature=0.7, seed=5, stop=())
    requests = [SampleRequest(prompt=p, params=params, prompt_logprobs=True) for p in asked]
    results = harness.together(
        *(harness.engine.sample(request, served["AB"[i % 2]].adapter()) for i, request in enumerate(requests))
    )
    quantised = QuantisedReference(harness.model_path)
    for index, (prompt, result) in enumerate(zip(asked, results, strict=True)):
        tokens = tokens_of(result)
        assert isinstance(result, SampleResult)
        assert result.prompt_logprobs is not None
        with quantised.adapted(served["AB"[index % 2]].evaluator.sites):
            scored = quantised.logprobs([*prompt, *tokens])
        both = np.concatenate([result.prompt_logprobs[1:], result.sequences[0].logprobs])
        following = [*prompt, *tokens][1:]
        expected = np.array([scored[t, token] for t, token in enumerate(following)])
        np.testing.assert_allclose(both, expected, atol=1e-3)


def test_prefix_cache_is_shared_by_one_version_of_one_adapter_only(
    harness: Harness, served: dict[str, Served], make_adapter: AdapterFactory, tmp_path: Path
) -> None:
    prompt = tuple(range(10, 80))

    def sample(adapter: PrivateAdapter | None) -> SampleResult:
        return harness.run(harness.engine.sample(greedy(prompt), adapter, cache_scope="t"))

    first, again = sample(served["A"].adapter()), sample(served["A"].adapter())
    assert (first.prompt_cache_hit_tokens, again.prompt_cache_hit_tokens) == (0, 64)
    assert tokens_of(first) == tokens_of(again)
    assert again.execution is not None
    assert first.execution is not None
    assert first.execution.tokens - again.execution.tokens == 64
    assert sample(None).prompt_cache_hit_tokens == 0
    assert sample(served["B"].adapter()).prompt_cache_hit_tokens == 0
    _, folder = make_adapter("A", seed=9, modules=ALL)
    newer = Evaluator(tmp_path, "A", 2, quantised_sites(folder))
    try:
        second = sample(PrivateAdapter("A", "2", newer.holder()))
    finally:
        newer.close()
    assert second.prompt_cache_hit_tokens == 0
    quantised = QuantisedReference(harness.model_path)
    with quantised.adapted(newer.sites):
        assert tokens_of(second) == quantised.greedy(prompt, NEW) != tokens_of(first)


@pytest.mark.parametrize(
    ("mode", "code"),
    [
        ("10:hang", "he_timeout"),
        ("10:garbage", "he_garbage"),
        ("10:budget_spent", "he_budget_spent"),
        ("kill", "he_adapter_holder_absent"),
    ],
)
def test_he_01_a_failing_evaluator_fails_its_own_requests_only(
    harness: Harness, served: dict[str, Served], reference: Reference, mode: str, code: str
) -> None:
    """In mid-generation: the private ones are refused, all others answer, and it works again afterwards."""
    broken = served["A"]
    prompt = (21, 22, 23, 24)
    long = greedy(prompt, 60)

    async def break_it() -> None:
        await asyncio.sleep(0)
        if mode == "kill":
            before = broken.evaluator.evaluated()
            while broken.evaluator.evaluated() < before + 20:
                await asyncio.sleep(0.005)
            broken.evaluator.kill()

    if mode != "kill":
        harness.run(harness.engine.forget(broken.adapter().identity))
        broken.evaluator.mode(mode)
    first, second, base, other, _ = harness.together(
        harness.engine.sample(long, broken.adapter(timeout_s="0.7")),
        harness.engine.sample(greedy((31, 32, 33), 60), broken.adapter(timeout_s="0.7")),
        harness.engine.sample(long),
        harness.engine.sample(greedy(prompt), served["B"].adapter()),
        break_it(),
    )
    for refused in (first, second):
        assert isinstance(refused, HeRefused), refused
        assert refused.code == code
    assert tokens_of(base) == reference.greedy(prompt, None, 60)
    assert isinstance(other, SampleResult)
    assert harness.engine.healthy
    if mode == "kill":
        broken.evaluator.start()
    broken.evaluator.mode("ok")
    quantised = QuantisedReference(harness.model_path)
    with quantised.adapted(broken.evaluator.sites):
        expected = quantised.greedy(prompt, NEW)
    assert tokens_of(harness.run(harness.engine.sample(greedy(prompt), broken.adapter()))) == expected


def test_he_01_nothing_is_generated_where_it_cannot_be_evaluated(
    harness: Harness, served: dict[str, Served], make_adapter: AdapterFactory, tmp_path: Path
) -> None:
    """Absent, another version, digest or base model, foreign sites, nothing offered: refused at once."""
    plain, _ = make_adapter("P", seed=3)
    one = served["B"].evaluator
    refusals = {
        "he_adapter_holder_absent": PrivateAdapter("X", "1", {"socket": str(tmp_path / "none")}),
        "he_version_mismatch": PrivateAdapter("B", "2", one.holder()),
        "he_not_offered": plain,
    }

    def refused(adapter: object, policy: ExecutionPolicy | None = None) -> str:
        with pytest.raises(HeRefused) as error:
            harness.run(harness.engine.sample(greedy((5, 6)), adapter, policy=policy))  # type: ignore[arg-type]
        return error.value.code

    before = one.evaluated()
    for code, adapter in refusals.items():
        assert refused(adapter, ExecutionPolicy.HE_REQUIRED) == code
    assert refused(PrivateAdapter("B", "1", one.holder(), digest="0" * 64)) == "he_digest_mismatch"
    assert refused(None, ExecutionPolicy.HE_REQUIRED) == "he_not_offered"
    elsewhere = PrivateAdapter("B", "1", one.holder(), base_model="another/model")
    assert refused(elsewhere) == "he_does_not_fit"
    sites = {
        name.replace("layers.1", "layers.7"): {
            "order": site["order"],
            "modules": {m.replace("layers.1", "layers.7"): pair for m, pair in site["modules"].items()},  # type: ignore[attr-defined]
        }
        for name, site in one.sites.items()
    }
    foreign = Evaluator(tmp_path, "F", 1, sites)
    try:
        assert refused(PrivateAdapter("F", "1", foreign.holder())) == "he_does_not_fit"
    finally:
        foreign.close()
    assert one.evaluated() == before
    assert harness.engine.healthy


def test_he_preferred_answers_in_the_clear_and_says_so(
    harness: Harness, make_adapter: AdapterFactory, reference: Reference, tmp_path: Path
) -> None:
    plain, folder = make_adapter("Q", seed=6)
    adapter = PrivateAdapter(
        "Q",
        "1",
        {"socket": str(tmp_path / "none")},
        policy=ExecutionPolicy.HE_PREFERRED,
        plain=plain,
        plain_digest="ab" * 32,
    )
    result = harness.run(harness.engine.sample(greedy((9, 8, 7)), adapter))
    assert result.execution is not None
    assert result.execution.mode is ExecutionMode.PLAINTEXT
    assert (result.execution.adapter, result.execution.digest) == ("Q@1", "ab" * 32)
    assert result.execution.fallback == "he_adapter_holder_absent"
    assert tokens_of(result) == reference.greedy((9, 8, 7), folder, NEW)
    with pytest.raises(HeRefused, match="adapter holder"):
        harness.run(harness.engine.sample(greedy((9, 8, 7)), adapter, policy=ExecutionPolicy.HE_REQUIRED))
