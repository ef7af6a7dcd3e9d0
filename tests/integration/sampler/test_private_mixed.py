"""Two private adapters, an ordinary one and the base model in one batch, with SEAL between two holders."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tensafe.contracts.errors import HeRefused
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

PROMPTS = {
    "G": [(11, 12, 13, 14, 15), (210, 3, 77)],
    "H": [(11, 12, 13, 14, 15), (400, 401, 402, 9)],
    "plain": [(11, 12, 13, 14, 15), (52, 8)],
    "base": [(11, 12, 13, 14, 15), (300, 12, 45, 46, 47, 48)],
}


@dataclass(frozen=True)
class Held:
    """A private adapter, and the process of its own that holds it."""

    process: HolderProcess
    adapter: PrivateAdapter


@pytest.fixture(scope="module")
def held(make_adapter: AdapterFactory, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Held]]:
    found = {}
    for name, seed, modules in (("G", 13, ALL), ("H", 14, PART)):
        _, folder = make_adapter(name, seed=seed, modules=modules)
        process = HolderProcess(tmp_path_factory.mktemp(name))
        process.publish(name, folder, base_model="tiny", tenant="t", tokens_per_site=100_000)
        found[name] = Held(process, PrivateAdapter(name, "1", process.reached(name, tenant="t")))
    yield found
    for one in found.values():
        one.process.kill()


@pytest.fixture(scope="module")
def plain(make_adapter: AdapterFactory) -> tuple[Adapter, Path]:
    return make_adapter("P", seed=3)


@pytest.fixture(scope="module")
def expected(
    held: dict[str, Held], plain: tuple[Adapter, Path], reference: Reference
) -> dict[str, dict[tuple[int, ...], list[int]]]:
    """What each of the four says in the clear: the private ones by their integers."""
    found = {
        "base": {prompt: reference.greedy(prompt, None, NEW) for prompt in PROMPTS["base"]},
        "plain": {prompt: reference.greedy(prompt, plain[1], NEW) for prompt in PROMPTS["plain"]},
    }
    quantised = QuantisedReference(reference.model_path)
    for name, one in held.items():
        with quantised.adapted(served_integers(one.process.data_dir, name)):
            found[name] = {prompt: quantised.greedy(prompt, NEW) for prompt in PROMPTS[name]}
    return found


def test_he_01_one_batch_holds_two_private_adapters_an_ordinary_one_and_the_base_model(
    harness: Harness,
    held: dict[str, Held],
    plain: tuple[Adapter, Path],
    expected: dict[str, dict[tuple[int, ...], list[int]]],
    tmp_path: Path,
) -> None:
    same = PROMPTS["base"][0]
    assert len({tuple(one[same]) for one in expected.values()}) == 4  # who gets whose would be seen
    with (
        tapped(harness, held["G"].process, held["G"].adapter, tmp_path / "g") as (tap_g, over_g),
        tapped(harness, held["H"].process, held["H"].adapter, tmp_path / "h") as (tap_h, over_h),
    ):
        adapters = {"G": over_g, "H": over_h, "plain": plain[0], "base": None}
        asked = [(kind, prompt) for kind, prompts in PROMPTS.items() for prompt in prompts]
        for adapter in (over_g, over_h, plain[0]):  # opened before the batch
            harness.run(harness.engine.sample(greedy((5, 6), 1), adapter))
        heard = {"plain": 0}
        seen: list[tuple[int, ...]] = []

        def hear_plain(*_: object) -> None:
            heard["plain"] += 1

        def hear_base(*_: object) -> None:
            seen.append((tap_g.sent(), tap_h.sent(), heard["plain"]))

        hears = {"plain": hear_plain, "base": hear_base}
        results = harness.together(
            *(
                harness.engine.sample(greedy(prompt), adapters[kind], on_tokens=hears.get(kind))
                for kind, prompt in asked
            )
        )
    for (kind, prompt), result in zip(asked, results, strict=True):
        assert tokens_of(result) == expected[kind][prompt], (kind, prompt)
        assert isinstance(result, SampleResult)
        assert result.execution is not None
        private = kind in held
        assert (result.execution.mode is ExecutionMode.HE) == private
        if private:
            assert result.execution.adapter == f"{kind}@1"
            sites = {"G": 8, "H": 4}[kind]
            assert result.execution.evaluated == sites * result.execution.tokens
    # Between two tokens of the base model both holders were asked, and the ordinary adapter went on.
    steps = [
        all(after > before for before, after in zip(*pair, strict=True))
        for pair in zip(seen, seen[2:], strict=False)
    ]
    assert sum(steps) >= NEW // 2


def test_he_01_a_killed_adapter_holder_fails_its_own_requests_and_nobody_else_s(
    harness: Harness,
    held: dict[str, Held],
    plain: tuple[Adapter, Path],
    expected: dict[str, dict[tuple[int, ...], list[int]]],
    reference: Reference,
) -> None:
    """SIGKILL of one process in mid-generation, with requests of the other one's in the same batches."""
    prompt, tokens = PROMPTS["base"][0], 60
    adapters = {name: one.adapter for name, one in held.items()}
    for adapter in adapters.values():
        harness.run(harness.engine.sample(greedy((5, 6), 1), adapter))
    heard: list[int] = []

    def kill_at_the_tenth(*_: object) -> None:
        heard.append(len(heard))
        if len(heard) == 10:
            held["G"].process.kill()

    engine = harness.engine
    first, second, other, ordinary, base = harness.together(
        engine.sample(greedy(prompt, tokens), adapters["G"]),
        engine.sample(greedy((9, 10), tokens), adapters["G"]),
        engine.sample(greedy(prompt, tokens), adapters["H"]),
        engine.sample(greedy(prompt, tokens), plain[0]),
        engine.sample(greedy(prompt, tokens), on_tokens=kill_at_the_tenth),
    )
    for refused in (first, second):
        assert isinstance(refused, HeRefused), refused
        assert refused.code == "he_adapter_holder_absent"
    assert tokens_of(base) == reference.greedy(prompt, None, tokens)
    assert tokens_of(ordinary) == reference.greedy(prompt, plain[1], tokens)
    quantised = QuantisedReference(harness.model_path)
    with quantised.adapted(served_integers(held["H"].process.data_dir, "H")):
        assert tokens_of(other) == quantised.greedy(prompt, tokens)
    assert engine.healthy
    held["G"].process.start()
    assert tokens_of(harness.run(engine.sample(greedy(prompt), adapters["G"]))) == expected["G"][prompt]
