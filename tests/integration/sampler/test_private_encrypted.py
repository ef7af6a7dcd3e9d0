"""The whole of it: vLLM as the key holder, an adapter holder in its own process, and SEAL between them."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tensafe.contracts.errors import HeRefused
from tensafe.contracts.execution import ExecutionMode
from tensafe.contracts.sampling import SampleResult
from tensafe_gpu.helora.frames import TO_ADAPTER_HOLDER, Kind
from tensafe_gpu.sampler.private.adapter import PrivateAdapter
from tensafe_gpu.sampler.private.connecting import TIMEOUTS
from tests.integration.sampler.conftest import AdapterFactory, Harness, Reference
from tests.integration.sampler.test_private import prompts
from tests.support.holder_process import HolderProcess
from tests.support.private_requests import ALL, NEW, greedy, tokens_of
from tests.support.quantised_reference import QuantisedReference, served_integers
from tests.support.tap import Tap, split

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
    path = holder.data_dir / "direct"
    tap = Tap(path, holder.socket)
    unprepared = dataclasses.replace(
        adapter, holder={**adapter.holder, "address": f"unix:{path}", "unprepared": "yes"}
    )
    prompt = (91, 92, 93, 94)
    result = harness.run(harness.engine.sample(greedy(prompt, 4), unprepared))
    harness.run(harness.engine.forget(unprepared.identity))
    kinds = {kind for up, _ in tap.streams() for kind, _ in split(up, TO_ADAPTER_HOLDER, cut=True)}
    tap.close()
    assert kinds == {Kind.HELLO, Kind.B_REQUEST, Kind.DIRECT}
    quantised = QuantisedReference(harness.model_path)
    with quantised.adapted(served_integers(holder.data_dir, "E")):
        assert tokens_of(result) == quantised.greedy(prompt, 4)
    assert result.execution is not None
    assert result.execution.evaluated == SITES * result.execution.tokens >= SITES * (4 + 4 - 1)


def test_he_01_an_adapter_holder_that_hangs_fails_its_own_requests_only(
    harness: Harness, holder: HolderProcess, adapter: PrivateAdapter, reference: Reference, tmp_path: Path
) -> None:
    """Stopped, not killed, in mid-generation: its sockets stay open and nobody answers.

    Two private adapters of it in one batch are asked at once, so the batch waits for them once.
    """
    prompt, began = (51, 52, 53), 0.0
    taps = [Tap(tmp_path / f"tap-{n}", holder.socket) for n in range(2)]
    private = [
        dataclasses.replace(adapter, holder={**adapter.holder, "address": f"unix:{tmp_path}/tap-{n}"})
        for n in range(2)
    ]
    engine = harness.engine
    first, second = harness.together(*(engine.sample(greedy(prompt), one) for one in private))
    before = tokens_of(first)
    assert tokens_of(second) == before
    assert holder.process is not None
    pid, sent = holder.process.pid, [tap.sent() for tap in taps]

    async def stop() -> None:
        nonlocal began
        while any(tap.sent() < n + 20_000 for tap, n in zip(taps, sent, strict=True)):  # some passes
            await asyncio.sleep(0.002)
        os.kill(pid, signal.SIGSTOP)
        began = time.monotonic()

    async def refused(one: PrivateAdapter) -> float:
        with pytest.raises(HeRefused) as raised:
            await engine.sample(greedy(prompt, 120), one)
        assert raised.value.code == "he_timeout"
        return time.monotonic()

    try:
        *ended, base, _ = harness.together(
            *(refused(one) for one in private), engine.sample(greedy(prompt, 120)), stop()
        )
        assert max(ended) - began < 1.7 * TIMEOUTS.online_s
        assert tokens_of(base) == reference.greedy(prompt, None, 120)
    finally:
        os.kill(pid, signal.SIGCONT)
    for one in private:
        assert tokens_of(harness.run(engine.sample(greedy(prompt), one))) == before
        harness.run(engine.forget(one.identity))
    for tap in taps:
        tap.close()


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
    harness: Harness, holder: HolderProcess, adapter: PrivateAdapter
) -> None:
    """All of them find the old epoch refused while the others still have it; the new one answers them all."""

    async def sample(number: int) -> int:
        result = await harness.engine.sample(greedy((61, 62, number), 60), adapter)
        assert result.execution is not None
        return result.execution.epoch or 0

    async def client(number: int, after: int) -> None:
        until = time.monotonic() + 60
        while await sample(number) <= after:  # no request of any is refused on the way
            assert time.monotonic() < until

    async def rotate() -> None:
        await asyncio.to_thread(holder.command, "rotate", "--name", "E")

    epoch = harness.run(sample(0))
    ended = harness.together(*(client(number, epoch) for number in range(6)), rotate())
    assert ended == [None] * 7
