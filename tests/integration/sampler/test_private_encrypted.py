"""The whole of it: vLLM as the key holder, an adapter holder in its own process, and SEAL between them."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import pairwise
from pathlib import Path

import pytest

from tensafe.contracts.errors import HeRefused
from tensafe.contracts.execution import ExecutionMode
from tensafe.contracts.sampling import SampleResult
from tensafe_gpu.helora.frames import TO_ADAPTER_HOLDER, Kind
from tensafe_gpu.sampler.private.adapter import PrivateAdapter
from tensafe_gpu.sampler.private.budget import PASS_S
from tensafe_gpu.sampler.private.connecting import TIMEOUTS
from tests.integration.sampler.conftest import AdapterFactory, Harness, Reference
from tests.integration.sampler.test_private import prompts
from tests.support.holder_process import HolderProcess
from tests.support.private_requests import ALL, NEW, greedy, tokens_of
from tests.support.quantised_reference import QuantisedReference, served_integers
from tests.support.tap import Tap, indices_sent, split

pytestmark = pytest.mark.slow

SITES = 8
"""q, k and v share one in each of two layers, as do gate and up; o and down have one each."""


@pytest.fixture(scope="module")
def holder(make_adapter: AdapterFactory, tmp_path_factory: pytest.TempPathFactory) -> Iterator[HolderProcess]:
    _, folder = make_adapter("E", seed=11, modules=ALL)
    process = HolderProcess(tmp_path_factory.mktemp("holder"))
    process.publish("E", folder, base_model="tiny", tenant="t", tokens_per_site=1000)
    yield process
    process.kill()


@pytest.fixture
def adapter(holder: HolderProcess) -> PrivateAdapter:
    return PrivateAdapter("E", "1", holder.reached("E", tenant="t"))


@pytest.fixture(scope="module")
def ample(holder: HolderProcess, make_adapter: AdapterFactory) -> PrivateAdapter:
    """One whose budget no test spends, however often it has to ask on a busy machine."""
    _, folder = make_adapter("F", seed=12, modules=ALL)
    holder.publish("F", folder, base_model="tiny", tenant="t", tokens_per_site=1_000_000)
    return PrivateAdapter("F", "1", holder.reached("F", tenant="t"))


@contextmanager
def tapped(
    harness: Harness, holder: HolderProcess, adapter: PrivateAdapter, path: Path, **more: str
) -> Iterator[tuple[Tap, PrivateAdapter]]:
    """The wire of a connection of its own, and the adapter that is reached over it; forgotten afterwards."""
    tap = Tap(path, holder.socket)
    over_it = dataclasses.replace(adapter, holder={**adapter.holder, "address": f"unix:{path}", **more})
    yield tap, over_it
    harness.run(harness.engine.forget(over_it.identity))
    tap.close()


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
        assert result.execution.evaluated == result.execution.tokens * SITES


def test_he_01_what_was_not_prepared_in_time_is_evaluated_the_direct_way(
    harness: Harness, holder: HolderProcess, adapter: PrivateAdapter
) -> None:
    """A round trip for a few tokens without preprocessing: the same tokens, metered and counted."""
    prompt = (91, 92, 93, 94)
    path = holder.data_dir / "direct"
    with tapped(harness, holder, adapter, path, unprepared="yes") as (tap, unprepared):
        result = harness.run(harness.engine.sample(greedy(prompt, 4), unprepared))
        kinds = {kind for up, _ in tap.streams() for kind, _ in split(up, TO_ADAPTER_HOLDER, cut=True)}
    assert kinds == {Kind.HELLO, Kind.B_REQUEST, Kind.DIRECT}
    quantised = QuantisedReference(harness.model_path)
    with quantised.adapted(served_integers(holder.data_dir, "E")):
        assert tokens_of(result) == quantised.greedy(prompt, 4)
    assert result.execution is not None
    assert result.execution.evaluated == SITES * result.execution.tokens >= SITES * (4 + 4 - 1)


def test_he_01_activations_beyond_all_measure_fail_their_own_request_and_nobody_elses(
    harness: Harness, holder: HolderProcess, ample: PrivateAdapter, reference: Reference, tmp_path: Path
) -> None:
    """In a batch with another request of the adapter and one of the base model; the adapter goes on.

    What was cached of the prompt holds no numbers: whoever would read it is refused, and never answered.
    """
    bad, good = tuple(range(100, 170)), (84, 85, 86)
    with tapped(harness, holder, ample, tmp_path / "tap", swollen="yes") as (tap, private):

        async def sample(prompt: tuple[int, ...], adapter: PrivateAdapter | None, scope: str) -> SampleResult:
            return await harness.engine.sample(greedy(prompt), adapter, cache_scope=scope)

        first, other, base = harness.together(
            sample(bad, private, "t"), sample(good, private, "t"), sample(good, None, "t")
        )
        again, elsewhere = harness.together(sample(bad, private, "t"), sample(bad, private, "u"))
        opened = len(tap.streams())
        used = indices_sent(tap)
    for refused in (first, again):
        assert isinstance(refused, HeRefused)
        assert refused.code == "he_activations_not_finite"
    quantised = QuantisedReference(harness.model_path)
    with quantised.adapted(served_integers(holder.data_dir, "F")):
        assert tokens_of(other) == quantised.greedy(good, NEW)
        assert tokens_of(elsewhere) == quantised.greedy(bad, NEW)
    assert tokens_of(base) == reference.greedy(good, None, NEW)
    assert opened == 2  # the one opening: its products and its preprocessing
    assert len(set(used)) == len(used) > 200


def test_he_01_an_answer_longer_than_its_request_makes_it_fails_private_requests_only(
    harness: Harness, holder: HolderProcess, ample: PrivateAdapter, reference: Reference, tmp_path: Path
) -> None:
    prompt = (87, 88, 89)
    with tapped(harness, holder, ample, tmp_path / "tap") as (tap, private):
        before = tokens_of(harness.run(harness.engine.sample(greedy(prompt), private)))

        async def claim() -> None:
            sent = tap.sent()
            while tap.sent() < sent + 20_000:  # some passes
                await asyncio.sleep(0.002)
            tap.claimed = {Kind.PRODUCTS_REPLY: 64 << 20}

        refused, base, _ = harness.together(
            harness.engine.sample(greedy(prompt, 120), private),
            harness.engine.sample(greedy(prompt, 120)),
            claim(),
        )
        assert isinstance(refused, HeRefused)
        assert refused.code == "he_garbage"
        assert tokens_of(base) == reference.greedy(prompt, None, 120)
        tap.claimed = {}
        assert tokens_of(harness.run(harness.engine.sample(greedy(prompt), private))) == before


def test_he_01_an_adapter_holder_that_hangs_fails_its_own_requests_only(
    harness: Harness, holder: HolderProcess, ample: PrivateAdapter, reference: Reference, tmp_path: Path
) -> None:
    """Stopped, not killed, in mid-generation: its sockets stay open and nobody answers.

    Two private adapters of it in one batch are asked at once, so the batch waits for them once, unless it was
    stopped between two answers of a round: then the other adapter is waited for in the next one.
    """
    prompt, began = (51, 52, 53), 0.0
    with ExitStack() as stack:
        pairs = [stack.enter_context(tapped(harness, holder, ample, tmp_path / f"tap-{n}")) for n in range(2)]
        taps, private = zip(*pairs, strict=True)
        engine = harness.engine
        first, second = harness.together(*(engine.sample(greedy(prompt), one) for one in private))
        before = tokens_of(first)
        assert tokens_of(second) == before
        assert holder.process is not None
        pid = holder.process.pid

        async def stop() -> None:
            nonlocal began
            sent = [tap.sent() for tap in taps]
            while any(tap.sent() < n + 20_000 for tap, n in zip(taps, sent, strict=True)):  # some passes
                await asyncio.sleep(0.002)
            os.kill(pid, signal.SIGSTOP)
            began = time.monotonic()

        async def refused(one: PrivateAdapter) -> float:
            with pytest.raises(HeRefused) as raised:
                await engine.sample(greedy(prompt, 120), one)
            assert raised.value.code == "he_timeout"
            return time.monotonic()

        waited = []
        while not waited or (min(waited) >= 1.7 * TIMEOUTS.online_s and len(waited) < 4):
            try:
                *ended, base, _ = harness.together(
                    *(refused(one) for one in private), engine.sample(greedy(prompt, 120)), stop()
                )
                waited.append(max(ended) - began)
                assert tokens_of(base) == reference.greedy(prompt, None, 120)
            finally:
                os.kill(pid, signal.SIGCONT)
            for one in private:
                assert tokens_of(harness.run(engine.sample(greedy(prompt), one))) == before
        assert min(waited) < 1.7 * TIMEOUTS.online_s
        assert max(waited) < 2.7 * TIMEOUTS.online_s


class Watched:
    """A generation of the base model, and its longest wait for a token."""

    def __init__(self, harness: Harness, tokens: int) -> None:
        self._harness, self._tokens, self._times = harness, tokens, [time.monotonic()]

    async def sample(self) -> list[int]:
        return tokens_of(
            await self._harness.engine.sample(
                greedy((71, 72, 73), self._tokens),
                on_tokens=lambda *_: self._times.append(time.monotonic()),
            )
        )

    @property
    def longest_s(self) -> float:
        return max(after - before for before, after in pairwise(self._times))


def test_he_01_a_holder_that_always_answers_just_in_time_takes_no_more_of_a_pass_than_its_budget(
    harness: Harness, holder: HolderProcess, adapter: PrivateAdapter, reference: Reference, tmp_path: Path
) -> None:
    """Each of the 8 rounds of a pass is far below its time-out; all of them are too much."""
    with tapped(harness, holder, adapter, tmp_path / "tap") as (tap, slow):
        before = tokens_of(harness.run(harness.engine.sample(greedy((51, 52, 53)), slow)))
        tap.hold_s = 0.9
        assert SITES * tap.hold_s > 2 * PASS_S > 6 * tap.hold_s
        base = Watched(harness, 100)
        refused, tokens = harness.together(
            harness.engine.sample(greedy((51, 52, 53), 120), slow), base.sample()
        )
        assert isinstance(refused, HeRefused)
        assert refused.code == "he_timeout"
        assert tokens == reference.greedy((71, 72, 73), None, 100)
        assert 0.8 * PASS_S < base.longest_s < 1.4 * PASS_S
        tap.hold_s = 0.0
        assert tokens_of(harness.run(harness.engine.sample(greedy((51, 52, 53)), slow))) == before


def test_he_01_a_connection_that_ended_while_idle_is_made_anew_while_nobody_else_waits(
    harness: Harness, holder: HolderProcess, adapter: PrivateAdapter, reference: Reference, tmp_path: Path
) -> None:
    """A greeting that takes its time, before the request that needs it is given to the engine."""
    with tapped(harness, holder, adapter, tmp_path / "tap") as (tap, idle):
        before = tokens_of(harness.run(harness.engine.sample(greedy((51, 52, 53)), idle)))
        time.sleep(1.1)
        tap.cut()
        tap.hold_s = 2.0
        base, opened = Watched(harness, 150), len(tap.streams())

        async def private(last: int) -> list[int]:
            return tokens_of(await harness.engine.sample(greedy((51, 52, last)), idle))

        async def let() -> None:
            while len(tap.streams()) == opened:
                await asyncio.sleep(0.01)
            await asyncio.sleep(1.0)
            tap.hold_s = 0.0

        first, second, tokens, _ = harness.together(private(53), private(53), base.sample(), let())
        assert first == second == before
        assert tokens == reference.greedy((71, 72, 73), None, 150)
        assert base.longest_s < 1.5
        kinds = {
            kind for up, _ in tap.streams()[opened:] for kind, _ in split(up, TO_ADAPTER_HOLDER, cut=True)
        }
        assert Kind.PRODUCTS in kinds
        assert Kind.B_REQUEST not in kinds  # the same opening, with what it had prepared


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


def test_he_01_requests_that_overlap_go_on_after_a_rotation(
    harness: Harness, holder: HolderProcess, ample: PrivateAdapter
) -> None:
    """All of them find the old epoch refused while the others still have it; the new one answers them all."""

    async def sample(number: int) -> int:
        result = await harness.engine.sample(greedy((61, 62, number), 60), ample)
        assert result.execution is not None
        return result.execution.epoch or 0

    async def client(number: int, after: int) -> None:
        until = time.monotonic() + 60
        while await sample(number) <= after:  # no request of any is refused on the way
            assert time.monotonic() < until

    async def rotate() -> None:
        await asyncio.to_thread(holder.command, "rotate", "--name", "F")

    epoch = harness.run(sample(0))
    ended = harness.together(*(client(number, epoch) for number in range(6)), rotate())
    assert ended == [None] * 7
