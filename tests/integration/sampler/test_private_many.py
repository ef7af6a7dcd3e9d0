"""Five private adapters, an ordinary one and the base model in one batch that requests join and leave."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from tensafe.contracts.execution import ExecutionMode
from tensafe.contracts.sampling import SampleResult
from tensafe_gpu.sampler.adapters import Adapter
from tensafe_gpu.sampler.private.adapter import PrivateAdapter
from tests.integration.sampler.conftest import AdapterFactory, Harness, Reference
from tests.integration.sampler.test_private_encrypted import tapped
from tests.support.holder_process import HolderProcess
from tests.support.private_requests import ALL, NEW, PART, greedy, tokens_of
from tests.support.quantised_reference import QuantisedReference, served_integers

pytestmark = pytest.mark.slow

SAME = (11, 12, 13, 14, 15)
"""Asked of everybody, so that an answer with another one's weights is seen."""
LONG = (300, 12, 45, 46, 47, 48)
"""The base model's request that the others arrive beside."""
TOGETHER = 36
"""Its new tokens; each other request joins at the next one of them and stays for NEW passes or more."""


@dataclass(frozen=True)
class Kind:
    """A private adapter's shape; in both layers of the model it has so many sites."""

    seed: int
    rank: int
    modules: tuple[str, ...]
    sites: int


PRIVATE = {
    "I": Kind(21, 4, ALL, 8),
    "J": Kind(22, 4, ALL, 8),  # as I but for its weights, so that they could take each other's places
    "K": Kind(23, 8, PART, 4),
    "L": Kind(24, 2, ("gate_proj", "up_proj", "down_proj"), 4),
    "M": Kind(25, 16, ("k_proj", "o_proj"), 4),
}
KINDS = (*PRIVATE, "plain", "base")


def prompts_of(kind: str) -> list[tuple[int, ...]]:
    first = 50 + 30 * KINDS.index(kind)
    return [SAME, (first, first + 3, 77), tuple(range(first, first + 9))]


@pytest.fixture(scope="module")
def harness(model_path: str) -> Iterator[Harness]:
    """An engine with a place for each of them; that of the package has three."""
    harness = Harness(
        model_path,
        max_loras=1,
        max_lora_rank=8,
        max_resident_adapters=len(PRIVATE) + 1,
        max_sequences=32,
        key_holder="tests.support.private_evaluator:connect",
    )
    yield harness
    harness.close()


@pytest.fixture(scope="module")
def holder(make_adapter: AdapterFactory, tmp_path_factory: pytest.TempPathFactory) -> Iterator[HolderProcess]:
    """One adapter holder of all of them: they are told apart by their connections alone."""
    process = HolderProcess(tmp_path_factory.mktemp("many"))
    for name, kind in PRIVATE.items():
        _, folder = make_adapter(name, seed=kind.seed, rank=kind.rank, modules=kind.modules)
        process.publish(name, folder, base_model="tiny", tenant="t", tokens_per_site=100_000)
    yield process
    process.kill()


@pytest.fixture(scope="module")
def plain(make_adapter: AdapterFactory) -> tuple[Adapter, Path]:
    return make_adapter("P", seed=3)


@pytest.fixture(scope="module")
def expected(
    holder: HolderProcess, plain: tuple[Adapter, Path], reference: Reference
) -> dict[str, dict[tuple[int, ...], list[int]]]:
    """What each says in the clear: the private ones by their integers."""
    found = {
        "base": {prompt: reference.greedy(prompt, None, NEW) for prompt in prompts_of("base")},
        "plain": {prompt: reference.greedy(prompt, plain[1], NEW) for prompt in prompts_of("plain")},
    }
    quantised = QuantisedReference(reference.model_path)
    for name in PRIVATE:
        with quantised.adapted(served_integers(holder.data_dir, name)):
            found[name] = {prompt: quantised.greedy(prompt, NEW) for prompt in prompts_of(name)}
    return found


def test_he_01_one_batch_holds_five_private_adapters_as_requests_come_and_go(
    harness: Harness,
    holder: HolderProcess,
    plain: tuple[Adapter, Path],
    expected: dict[str, dict[tuple[int, ...], list[int]]],
    reference: Reference,
    tmp_path: Path,
) -> None:
    assert len({tuple(one[SAME]) for one in expected.values()}) == len(KINDS)
    asked = [(kind, prompts_of(kind)[turn]) for turn in range(3) for kind in KINDS]
    arrivals = [asyncio.Event() for _ in asked]
    seen: list[tuple[int, ...]] = []
    heard = [0]
    with ExitStack() as stack:
        taps, adapters = [], {"plain": plain[0], "base": None}
        for name in PRIVATE:
            adapter = PrivateAdapter(name, "1", holder.reached(name, tenant="t"))
            tap, adapters[name] = stack.enter_context(tapped(harness, holder, adapter, tmp_path / name))
            taps.append(tap)
        for one in adapters.values():  # opened before the batch
            harness.run(harness.engine.sample(greedy((5, 6), 1), one))

        def let_in(_number: int, tokens: Sequence[int]) -> None:
            seen.append((*(tap.sent() for tap in taps), heard[0]))
            for arrival in arrivals[: len(tokens)]:
                arrival.set()

        def hear_plain(*_: object) -> None:
            heard[0] += 1

        async def joining(arrival: asyncio.Event, kind: str, prompt: tuple[int, ...]) -> SampleResult:
            await arrival.wait()
            hear = hear_plain if kind == "plain" else None
            return await harness.engine.sample(greedy(prompt), adapters[kind], on_tokens=hear)

        base, *results = harness.together(
            harness.engine.sample(greedy(LONG, TOGETHER), on_tokens=let_in),
            *(joining(arrival, *one) for arrival, one in zip(arrivals, asked, strict=True)),
        )
    assert tokens_of(base) == reference.greedy(LONG, None, TOGETHER)
    for (kind, prompt), result in zip(asked, results, strict=True):
        assert tokens_of(result) == expected[kind][prompt], (kind, prompt)
        assert isinstance(result, SampleResult)
        assert result.execution is not None
        assert (result.execution.mode is ExecutionMode.HE) == (kind in PRIVATE)
        if kind in PRIVATE:
            assert result.execution.adapter == f"{kind}@1"
            assert set(result.execution.evaluated_by_site.values()) == {result.execution.tokens}
            assert len(result.execution.evaluated_by_site) == PRIVATE[kind].sites
    # Between two tokens of the base model's long answer all were asked, and the ordinary adapter went on.
    steps = [
        all(after > before for before, after in zip(*pair, strict=True))
        for pair in zip(seen, seen[2:], strict=False)
    ]
    assert sum(steps) >= NEW // 2
