"""Private adapters where vLLM compiles its passes: the operator is in the graph, or nothing is given out.

One engine with torch's own compiler, in a folder of this test; on CPU vLLM takes no ordinary adapters then.
"""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import numpy as np
import pytest

from tensafe.contracts.errors import HeRefused, Unsupported
from tensafe.contracts.execution import ExecutionMode
from tensafe.contracts.sampling import SampleRequest, SampleResult, SamplingParams
from tensafe_gpu.sampler import launch
from tensafe_gpu.sampler.environment import configure_environment
from tensafe_gpu.sampler.private.adapter import PrivateAdapter
from tests.integration.sampler.conftest import STEP_TOKENS, AdapterFactory, Harness, Reference
from tests.support.holder_process import HolderProcess
from tests.support.private_evaluator import Evaluator
from tests.support.private_requests import ALL, NEW, PART, greedy, tokens_of
from tests.support.quantised_reference import QuantisedReference, quantised_sites, served_integers

pytestmark = pytest.mark.slow

MODULES = {"A": ALL, "B": PART}


@pytest.fixture(scope="module")
def compiled(model_path: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Harness]:
    before = dict(os.environ)
    # Torch asks the compiler which vectors this processor has, for some seconds; the processor knows.
    os.environ["TORCHINDUCTOR_VEC_ISA_OK"] = "1"
    configure_environment(threads=1, compile_dir=tmp_path_factory.mktemp("compiled") / "code")
    try:
        with (
            mock.patch.object(launch, "_BATCHED_TOKENS", STEP_TOKENS),
            mock.patch.object(launch, "_LOG") as log,
        ):
            harness = Harness(
                model_path, max_sequences=32, key_holder="tests.support.private_evaluator:connect"
            )
        assert log.info.call_args.kwargs["extra"]["passes"] == "compiled"
        yield harness
        harness.close()
    finally:
        os.environ.clear()
        os.environ.update(before)


@pytest.fixture(scope="module")
def served(
    make_adapter: AdapterFactory, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, Evaluator]]:
    found = {}
    for seed, (name, modules) in enumerate(MODULES.items(), 1):
        _, folder = make_adapter(name, seed=seed, modules=modules)
        found[name] = Evaluator(tmp_path_factory.mktemp("e"), name, 1, quantised_sites(folder))
    yield found
    for one in found.values():
        one.close()


def private(evaluator: Evaluator, **more: str) -> PrivateAdapter:
    return PrivateAdapter(evaluator.name, "1", evaluator.holder(**more))


def test_he_01_compiled_tokens_are_those_of_the_quantised_adapters_and_each_site_is_counted(
    compiled: Harness, served: dict[str, Evaluator], reference: Reference
) -> None:
    """Base and two private adapters in the same passes, some prompts in chunks; none was asked before."""
    assert [one.evaluated() for one in served.values()] == [0, 0]
    draw = random.Random(3)
    lengths = [3, 150, 7, 9, 11, 100, 5, 6, 17, 90, 4, 8]
    asked = [tuple(draw.randrange(5, 500) for _ in range(length)) for length in lengths]
    kinds = ["A", "B", None] * 4
    results = compiled.together(
        *(
            compiled.engine.sample(greedy(prompt), private(served[kind]) if kind else None)
            for prompt, kind in zip(asked, kinds, strict=True)
        )
    )
    quantised = QuantisedReference(compiled.model_path)
    counted = dict.fromkeys(served, 0)
    changed = 0
    for prompt, kind, result in zip(asked, kinds, results, strict=True):
        plain = reference.greedy(prompt, None, NEW)
        if kind is None:
            assert tokens_of(result) == plain
            continue
        with quantised.adapted(served[kind].sites):
            assert tokens_of(result) == quantised.greedy(prompt, NEW), kind
        changed += tokens_of(result) != plain
        assert isinstance(result, SampleResult)
        assert result.execution is not None
        assert len(prompt) + NEW - 1 <= result.execution.tokens <= len(prompt) + NEW
        assert result.execution.evaluated == result.execution.tokens * len(served[kind].sites)
        counted[kind] += result.execution.evaluated
    assert changed >= 6
    assert {name: one.evaluated() for name, one in served.items()} == counted


def test_he_01_compiled_tokens_are_encrypted_and_exact_over_an_adapter_holder(
    compiled: Harness, make_adapter: AdapterFactory, reference: Reference, tmp_path: Path
) -> None:
    """SEAL between two processes: prompts of a few tokens and one in chunks, beside the base model's."""
    _, folder = make_adapter("E", seed=11, modules=ALL)
    holder = HolderProcess(tmp_path / "h")
    try:
        holder.publish("E", folder, base_model="tiny", tenant="t", tokens_per_site=10_000)
        sealed = PrivateAdapter("E", "1", holder.reached("E", tenant="t"))
        draw = random.Random(9)
        asked = [tuple(draw.randrange(5, 500) for _ in range(length)) for length in (5, 4, 150, 7)]
        results = compiled.together(
            *(compiled.engine.sample(greedy(p), sealed if i % 2 == 0 else None) for i, p in enumerate(asked))
        )
        quantised, changed = QuantisedReference(compiled.model_path), 0
        for index, (prompt, result) in enumerate(zip(asked, results, strict=True)):
            plain = reference.greedy(prompt, None, NEW)
            if index % 2:
                assert tokens_of(result) == plain
                continue
            with quantised.adapted(served_integers(holder.data_dir, "E")):
                assert tokens_of(result) == quantised.greedy(prompt, NEW)
            assert isinstance(result, SampleResult)
            assert result.execution is not None
            assert result.execution.mode is ExecutionMode.HE
            assert result.execution.evaluated == 8 * result.execution.tokens
            changed += tokens_of(result) != plain
        assert changed
    finally:
        holder.kill()


def test_he_01_an_operator_that_the_compiler_left_out_is_noticed(
    compiled: Harness, served: dict[str, Evaluator]
) -> None:
    """One layer of eight adds nothing: the count is short, the answer discarded, and the engine goes on."""
    layer = "model.layers.1.self_attn.o_proj"
    with pytest.raises(HeRefused) as refused:
        compiled.run(compiled.engine.sample(greedy((5, 6, 7)), private(served["A"], dropped=layer)))
    assert refused.value.code == "he_not_evaluated"
    whole = compiled.run(compiled.engine.sample(greedy((5, 6, 7)), private(served["A"], dropped="none")))
    assert whole.execution is not None
    assert whole.execution.sites == 8


def test_he_01_a_dying_evaluator_fails_its_own_requests_only_when_compiled(
    compiled: Harness, served: dict[str, Evaluator], reference: Reference
) -> None:
    broken = served["A"]
    compiled.run(compiled.engine.ensure_adapter(private(broken)))
    before = broken.evaluated()

    async def kill() -> None:
        while broken.evaluated() < before + 100:
            await asyncio.sleep(0.005)
        broken.kill()

    prompt = (21, 22, 23, 24)
    refused, base, other, _ = compiled.together(
        compiled.engine.sample(greedy(prompt, 60), private(broken)),
        compiled.engine.sample(greedy(prompt, 60)),
        compiled.engine.sample(greedy(prompt), private(served["B"])),
        kill(),
    )
    assert isinstance(refused, HeRefused), refused
    assert refused.code == "he_adapter_holder_absent"
    assert tokens_of(base) == reference.greedy(prompt, None, 60)
    quantised = QuantisedReference(compiled.model_path)
    with quantised.adapted(served["B"].sites):
        assert tokens_of(other) == quantised.greedy(prompt, NEW)
    broken.start()
    with quantised.adapted(broken.sites):
        again = compiled.run(compiled.engine.sample(greedy(prompt), private(broken)))
        assert tokens_of(again) == quantised.greedy(prompt, NEW)


def test_compiled_numbers_and_what_it_does_not_serve(
    compiled: Harness, served: dict[str, Evaluator], make_adapter: AdapterFactory, reference: Reference
) -> None:
    """Prompt logprobs of several, a seed over a prompt in chunks, caches apart; no ordinary adapter."""
    draw = random.Random(5)
    asked = [tuple(draw.randrange(5, 500) for _ in range(length)) for length in (4, 9, 90)]
    scored = compiled.together(
        *(compiled.engine.sample(greedy(prompt, 2, prompt_logprobs=True)) for prompt in asked)
    )
    for prompt, result in zip(asked, scored, strict=True):
        assert isinstance(result, SampleResult)
        assert result.prompt_logprobs is not None
        rows = reference.logprobs(list(prompt), None)
        expected = [float(rows[t, token]) for t, token in enumerate(prompt[1:])]
        np.testing.assert_allclose(result.prompt_logprobs[1:], expected, atol=1e-3)
    params = SamplingParams(max_tokens=6, temperature=1.0, seed=4, stop=())
    seeded = SampleRequest(prompt=asked[2], params=params)
    first, again, mixed, _ = compiled.together(
        compiled.engine.sample(seeded, cache_scope="t"),
        compiled.engine.sample(seeded, cache_scope="u"),
        compiled.engine.sample(seeded, private(served["B"]), cache_scope="t"),
        compiled.engine.sample(greedy(asked[2])),
    )
    assert tokens_of(first) == tokens_of(again) != tokens_of(mixed)
    assert isinstance(mixed, SampleResult)
    assert mixed.prompt_cache_hit_tokens == 0
    ordinary, _ = make_adapter("P", seed=3)
    with pytest.raises(Unsupported, match="TENSAFE_COMPILE_DIR"):
        compiled.run(compiled.engine.sample(greedy((1, 2)), ordinary))
    assert compiled.engine.healthy
