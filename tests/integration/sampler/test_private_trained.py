"""A trained adapter under encryption: 200 prompts, and every token that of the integers in the clear."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pytest
import torch

from tensafe.contracts.execution import ExecutionMode
from tensafe.contracts.sampling import SampleResult
from tensafe_gpu.sampler.private.adapter import PrivateAdapter
from tests.integration.sampler.conftest import AdapterFactory, Harness, Reference
from tests.support.holder_process import HolderProcess
from tests.support.private_requests import greedy, tokens_of
from tests.support.quantised_reference import QuantisedReference, served_integers
from tests.support.trained_adapter import nats, train_adapter, walks

pytestmark = pytest.mark.slow

PROMPTS = 200
NEW = 10
MODULES = ("q_proj", "k_proj", "v_proj", "o_proj")
HELDOUT_SEED = 7


@dataclass(frozen=True, slots=True)
class Trained:
    """An adapter as trained, and where it is held."""

    model: torch.nn.Module
    holder: HolderProcess

    @property
    def adapter(self) -> PrivateAdapter:
        where = {"address": self.holder.address, "tenant": "t", "adapter": "T", "version": "1"}
        return PrivateAdapter("T", "1", {**where, "burn_log": str(self.holder.data_dir / "burned.db")})


@pytest.fixture(scope="module")
def trained(model_path: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trained]:
    folder = tmp_path_factory.mktemp("trained")
    model = train_adapter(model_path, folder / "peft", modules=MODULES)
    process = HolderProcess(folder / "holder")
    process.command(
        "publish",
        *("--name", "T", "--peft", str(folder / "peft"), "--base-model", "tiny", "--tenants", "t"),
        *("--tokens-per-site", "10000"),
    )
    yield Trained(model, process)
    process.kill()


def asked() -> list[tuple[int, ...]]:
    """Beginnings of held-out walks, and in every other one some tokens that no walk has."""
    draw = random.Random(3)
    found = []
    for index, walk in enumerate(walks(PROMPTS, HELDOUT_SEED).tolist()):
        stray = [draw.randrange(5, 500) for _ in range(draw.randrange(1, 6))] if index % 2 else []
        found.append(tuple(stray + walk[: draw.randrange(3, 12)]))
    return found


def test_he_01_all_of_200_generations_are_those_of_the_trained_adapter_s_integers(
    harness: Harness, trained: Trained, make_adapter: AdapterFactory, reference: Reference
) -> None:
    """With a plain adapter's and the base model's between them, each arriving while others run."""
    plain, plain_folder = make_adapter("P", seed=3)
    kinds = ("private", "private", "base", "private", "private", "plain")
    prompts = asked()
    work: list[tuple[str, tuple[int, ...]]] = []
    for prompt in prompts:
        while kinds[len(work) % 6] != "private":
            work.append((kinds[len(work) % 6], prompt))
        work.append(("private", prompt))
    adapters = {"private": trained.adapter, "plain": plain, "base": None}
    arrivals = random.Random(4)
    delays, at = [], 0.0
    for _ in work:
        at += arrivals.expovariate(200.0)
        delays.append(at)

    async def one(kind: str, prompt: tuple[int, ...], delay_s: float) -> SampleResult:
        await asyncio.sleep(delay_s)
        return await harness.engine.sample(greedy(prompt, NEW), adapters[kind])

    harness.run(harness.engine.sample(greedy(prompts[0], 1), trained.adapter))  # prepared before the rush
    results = harness.together(*(one(*pair, delay) for pair, delay in zip(work, delays, strict=True)))
    quantised = QuantisedReference(harness.model_path)
    counts = dict.fromkeys(adapters, 0)
    unlike_base = 0
    off_quantised, off_trained = [], []
    with quantised.adapted(served_integers(trained.holder.data_dir, "T")):
        for (kind, prompt), result in zip(work, results, strict=True):
            tokens, counts[kind] = tokens_of(result), counts[kind] + 1
            if kind == "private":
                scored = quantised.logprobs([*prompt, *tokens])
                assert isinstance(result, SampleResult)
                assert result.execution is not None
                assert result.execution.mode is ExecutionMode.HE
                assert result.execution.evaluated == 4 * result.execution.tokens
                base = reference.logprobs([*prompt, *tokens], None)
                unlike_base += best(base, prompt, NEW) != tokens
                with torch.no_grad():
                    exact = trained.model(torch.tensor([[*prompt, *tokens]])).logits[0].log_softmax(-1)
                logprobs = result.sequences[0].logprobs
                off_quantised.append(np.abs(logprobs - chosen(scored, prompt, tokens)))
                off_trained.append(np.abs(logprobs - chosen(exact, prompt, tokens)))
            else:
                folder = plain_folder if kind == "plain" else None
                scored = reference.logprobs([*prompt, *tokens], folder)
            # Greedy tokens are those that score best after what precedes them.
            assert tokens == best(scored, prompt, NEW), (kind, prompt)
    assert counts["private"] == PROMPTS
    assert min(counts.values()) >= 40
    assert unlike_base > 0.9 * PROMPTS
    # A trained adapter is so sure of its tokens that they hide small errors; what they scored does not.
    assert np.max(off_quantised) < 5e-4
    assert np.mean(off_quantised) < 0.05 * np.mean(off_trained)


def best(scored: torch.Tensor, prompt: tuple[int, ...], count: int) -> list[int]:
    """The likeliest token at each of the places after the prompt, float32 [T, vocab]."""
    return scored[len(prompt) - 1 : len(prompt) - 1 + count].argmax(-1).tolist()


def chosen(scored: torch.Tensor, prompt: tuple[int, ...], tokens: list[int]) -> npt.NDArray[np.float32]:
    """What these tokens scored, from float32 [T, vocab]."""
    rows = scored[len(prompt) - 1 : len(prompt) - 1 + len(tokens)]
    found: npt.NDArray[np.float32] = rows[torch.arange(len(tokens)), torch.tensor(tokens)].numpy()
    return found


def test_quantising_a_trained_adapter_costs_next_to_nothing_on_held_out_walks(
    trained: Trained, reference: Reference
) -> None:
    heldout = walks(64, seed=HELDOUT_SEED)
    quantised = QuantisedReference(reference.model_path)
    with torch.no_grad():
        base = float(nats(reference.model(None), heldout))
        adapter = float(nats(trained.model, heldout))
        with quantised.adapted(served_integers(trained.holder.data_dir, "T")):
            rounded = float(nats(quantised.model, heldout))
    assert adapter < 0.4 * base  # trained
    assert 0 < abs(rounded - adapter) < 0.005 * adapter  # rounded, and hardly so
