"""A private request that cannot be evaluated never reaches vLLM: what its engine is given is listened to."""

from __future__ import annotations

import dataclasses
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest

from tensafe.api.errors import status_of
from tensafe.contracts.errors import HeRefused
from tensafe.contracts.execution import ExecutionMode, ExecutionPolicy
from tensafe_gpu.helora.burned import BurnLog
from tensafe_gpu.helora.connection import Wanted, unix_connector
from tensafe_gpu.helora.key_holder import RemoteKeyHolder
from tensafe_gpu.sampler.engine import SamplingEngine
from tensafe_gpu.sampler.private.adapter import PrivateAdapter, name_in
from tensafe_gpu.sampler.private.serving import _STANDS_S
from tests.integration.sampler.conftest import AdapterFactory, Harness
from tests.support.helora import QUICK
from tests.support.holder_process import HolderProcess
from tests.support.other_build import CODES
from tests.support.private_requests import PART, greedy, tokens_of

pytestmark = pytest.mark.slow

Given = list[str | None]
"""Of each request that vLLM's engine was given, the private adapter whose name it carries."""
BUDGET = 256
PROMPT = (31, 32, 33, 34)


@pytest.fixture(scope="module")
def folder(make_adapter: AdapterFactory) -> Path:
    return make_adapter("N", seed=31, modules=PART)[1]


@pytest.fixture
def holder(folder: Path, tmp_path: Path) -> Iterator[HolderProcess]:
    process = HolderProcess(tmp_path / "holder")
    process.publish("N", folder, base_model="tiny", tenant="t", tokens_per_site=BUDGET)
    yield process
    process.kill()


@contextmanager
def listened(engine: SamplingEngine) -> Iterator[Given]:
    """At the last door: what goes by it is vLLM's process's."""
    given: Given = []
    core: Any = engine._llm.engine_core
    add = core.add_request_async

    async def noted(request: Any) -> None:
        given.append(name_in(request.sampling_params.extra_args))
        await add(request)

    with mock.patch.object(core, "add_request_async", noted):
        yield given


def private(holder: HolderProcess, **more: Any) -> PrivateAdapter:
    return PrivateAdapter("N", "1", holder.reached("N", tenant="t"), base_model="tiny", **more)


def absent(holder: HolderProcess, _harness: Harness) -> PrivateAdapter:
    holder.kill()
    return private(holder)


def gone_since(holder: HolderProcess, harness: Harness) -> PrivateAdapter:
    """It was there for the request before."""
    adapter = private(holder)
    harness.run(harness.engine.sample(greedy(PROMPT, 2), adapter))
    holder.kill()
    time.sleep(_STANDS_S + 0.1)  # after which a request asks whether the connection stands
    return adapter


def another_build(which: str) -> Callable[[HolderProcess, Harness], PrivateAdapter]:
    def started(holder: HolderProcess, _harness: Harness) -> PrivateAdapter:
        holder.kill()
        holder.start(build=(sys.executable, "-m", "tests.support.other_build", which))
        return private(holder)

    return started


def spent(holder: HolderProcess, _harness: Harness) -> PrivateAdapter:
    """By another sampler of the tenant's."""
    wanted, log = Wanted("t", "N", 1), BurnLog(holder.data_dir / "theirs.db")
    with closing(log), closing(RemoteKeyHolder(unix_connector(holder.socket), wanted, log, QUICK)) as theirs:
        for site in theirs.info().sites:
            theirs.prepare(site.site)
            theirs.products([(site.site, np.ones((BUDGET, site.d_in), np.float32))])
    return private(holder)


def spent_since(holder: HolderProcess, harness: Harness) -> PrivateAdapter:
    """By this sampler's own requests, the last of which was refused."""
    adapter = private(holder)

    async def spend() -> None:
        for start in range(5, 20):
            await harness.engine.sample(greedy(tuple(range(start, start + 60)), 30), adapter)

    with pytest.raises(HeRefused) as refused:
        harness.run(spend())
    assert refused.value.code == "he_budget_spent"
    return adapter


def other_version(holder: HolderProcess, _harness: Harness) -> PrivateAdapter:
    return dataclasses.replace(private(holder), version="2")


def other_epoch(holder: HolderProcess, _harness: Harness) -> PrivateAdapter:
    """The digest is that of the publication; the adapter holder has begun another epoch meanwhile."""
    (shown,) = holder.command("list")["adapters"]
    holder.command("rotate", "--name", "N")
    return private(holder, digest=shown["digest"])


CASES: dict[str, tuple[Callable[[HolderProcess, Harness], PrivateAdapter], str]] = {
    "absent": (absent, "he_adapter_holder_absent"),
    "gone since": (gone_since, "he_adapter_holder_absent"),
    "other parameters": (another_build("announces"), CODES["announces"]),
    "other protocol": (another_build("speaks"), CODES["speaks"]),
    "another version offered": (another_build("offers"), CODES["offers"]),
    "another version wanted": (other_version, "he_version_mismatch"),
    "another epoch": (other_epoch, "he_digest_mismatch"),
    "budget spent": (spent, "he_budget_spent"),
    "budget spent since": (spent_since, "he_budget_spent"),
}


def test_he_01_what_is_answered_goes_by_the_door_that_is_listened_at(
    harness: Harness, holder: HolderProcess
) -> None:
    """Else the tests below would say nothing."""
    with listened(harness.engine) as given:
        result = harness.run(harness.engine.sample(greedy(PROMPT, 2, num_samples=2), private(holder)))
        harness.run(harness.engine.sample(greedy(PROMPT, 2)))
    assert len(tokens_of(result)) == 2
    assert [name is not None for name in given] == [True, True, False]
    assert str(given[0]).startswith("private:N@1")


@pytest.mark.parametrize("case", CASES)
def test_he_01_what_cannot_be_evaluated_is_never_given_to_the_engine(
    harness: Harness, holder: HolderProcess, make_adapter: AdapterFactory, case: str
) -> None:
    """Neither under its name nor in the clear, though who prefers encryption has its weights here."""
    prepare, code = CASES[case]
    adapter = prepare(holder, harness)
    in_clear, _ = make_adapter("N", seed=31, modules=PART)
    preferred = dataclasses.replace(
        adapter, policy=ExecutionPolicy.HE_PREFERRED, plain=in_clear, plain_digest="ab" * 32
    )
    with listened(harness.engine) as given:
        refusals = harness.together(
            harness.engine.sample(greedy(PROMPT, num_samples=2), adapter),
            harness.engine.sample(greedy(PROMPT), adapter, policy=ExecutionPolicy.HE_REQUIRED),
            harness.engine.sample(greedy(PROMPT), preferred, policy=ExecutionPolicy.HE_REQUIRED),
        )
        assert given == []
        base = harness.run(harness.engine.sample(greedy(PROMPT, 2)))
    assert given == [None]  # and the engine serves all others
    assert base.execution is not None
    assert base.execution.mode is ExecutionMode.NONE
    for refused in refusals:
        assert isinstance(refused, HeRefused), refused
        assert refused.code == code
        assert status_of(refused, tinker=False) == 503
