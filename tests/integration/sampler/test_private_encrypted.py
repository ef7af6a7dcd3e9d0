"""The whole of it: vLLM as the key holder, an adapter holder in its own process, and SEAL between them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tensafe.contracts.errors import HeRefused
from tensafe.contracts.execution import ExecutionMode
from tensafe.contracts.sampling import SampleResult
from tensafe_gpu.sampler.private.adapter import PrivateAdapter
from tests.integration.sampler.conftest import AdapterFactory, Harness, Reference
from tests.integration.sampler.test_private import NEW, greedy, prompts, tokens_of
from tests.support.holder_process import HolderProcess
from tests.support.quantised_reference import QuantisedReference, served_integers

pytestmark = pytest.mark.slow

MODULES = ("q_proj", "k_proj", "v_proj", "o_proj")


@pytest.fixture(scope="module")
def holder(make_adapter: AdapterFactory, tmp_path_factory: pytest.TempPathFactory) -> Iterator[HolderProcess]:
    _, folder = make_adapter("E", seed=11, modules=MODULES)
    process = HolderProcess(tmp_path_factory.mktemp("holder"))
    process.command(
        "publish",
        *("--name", "E", "--peft", str(folder), "--base-model", "tiny", "--tenants", "t"),
        *("--tokens-per-site", "1000"),
    )
    yield process
    process.kill()


@pytest.fixture
def adapter(holder: HolderProcess) -> PrivateAdapter:
    reached = {
        "address": holder.address,
        "tenant": "t",
        "adapter": "E",
        "version": "1",
        "burn_log": str(holder.data_dir / "burned.db"),
    }
    return PrivateAdapter("E", "1", reached)


def test_he_01_encrypted_tokens_are_those_of_the_integers_in_the_clear(
    harness: Harness, holder: HolderProcess, adapter: PrivateAdapter, reference: Reference
) -> None:
    asked = prompts(21, 8)
    results = harness.together(
        *(harness.engine.sample(greedy(p), adapter if i % 2 else None) for i, p in enumerate(asked))
    )
    quantised = QuantisedReference(harness.model_path)
    for index, (prompt, result) in enumerate(zip(asked, results, strict=True)):
        base = reference.greedy(prompt, None, NEW)
        if not index % 2:
            assert tokens_of(result) == base
            continue
        with quantised.adapted(served_integers(holder.data_dir, "E")):
            assert tokens_of(result) == quantised.greedy(prompt, NEW) != base
        assert isinstance(result, SampleResult)
        assert result.execution is not None
        assert result.execution.mode is ExecutionMode.HE
        assert result.execution.evaluated == result.execution.tokens * 4


def test_he_01_a_killed_adapter_holder_is_refused_and_resumes(
    harness: Harness, holder: HolderProcess, adapter: PrivateAdapter
) -> None:
    prompt = (31, 32, 33)
    before = harness.run(harness.engine.sample(greedy(prompt), adapter))
    holder.kill()
    with pytest.raises(HeRefused) as refused:
        harness.run(harness.engine.sample(greedy(prompt), adapter))
    assert refused.value.code == "he_adapter_holder_absent"
    assert harness.engine.healthy
    holder.start()
    assert tokens_of(harness.run(harness.engine.sample(greedy(prompt), adapter))) == tokens_of(before)


def test_he_01_a_spent_budget_is_refused_and_a_new_epoch_serves_again(
    harness: Harness, holder: HolderProcess, adapter: PrivateAdapter
) -> None:
    async def spend() -> None:
        for start in range(5, 60):
            await harness.engine.sample(greedy(tuple(range(start, start + 60)), 30), adapter)

    with pytest.raises(HeRefused) as refused:
        harness.run(spend())
    assert refused.value.code == "he_budget_spent"
    holder.command("rotate", "--name", "E")
    result = harness.run(harness.engine.sample(greedy((41, 42, 43)), adapter))
    assert result.execution is not None
    assert result.execution.epoch == 2
    quantised = QuantisedReference(harness.model_path)
    with quantised.adapted(served_integers(holder.data_dir, "E")):
        assert tokens_of(result) == quantised.greedy((41, 42, 43), NEW)
