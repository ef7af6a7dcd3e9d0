"""What a refusal leaves of an adapter that is open, and what is said of faults on the sampler's own side."""

from __future__ import annotations

import asyncio
import itertools
import json
import logging
import time
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tensafe.contracts.errors import HE_CODES, HeRefused
from tensafe_gpu.helora.connection import TlsConnector
from tensafe_gpu.helora.ports import HeUnavailable
from tensafe_gpu.sampler.engine import SamplingEngine
from tensafe_gpu.sampler.loading import AdapterLoading
from tensafe_gpu.sampler.private import connecting
from tensafe_gpu.sampler.private.adapter import PrivateAdapter, vllm_name
from tensafe_gpu.sampler.private.connecting import connect
from tensafe_gpu.sampler.private.holders import OpenAdapters
from tensafe_gpu.sampler.private.serving import PrivateServing
from tensafe_gpu.sampler.residency import Resident, ResidentAdapters
from tests.project_files import ROOT
from tests.support.certificates import Authority


class Worker:
    """What the engine's process answers of one adapter."""

    def __init__(self) -> None:
        self.missing, self.block_s, self.failure = 5000, 0.0, None
        self.failures, self.code = itertools.count(2, 0), ""
        """How many blocks were not made by each look, and why the last one was not."""
        self.closed = list[str]()

    async def __call__(self, method: str, arguments: tuple[Any, ...]) -> Any:
        match method:
            case "tensafe_private_state":
                return {"state": "ready", "sites": 1, "digest": "d", "epoch": 1, "parameters": "p"}
            case "tensafe_private_missing":
                found = {"missing": self.missing, "blocks": 3, "block_s": self.block_s}
                return found | {"failures": next(self.failures), "code": self.code}
            case "tensafe_private_standing":
                return {"connected": self.failure is None, "code": self.failure}
            case "tensafe_private_close":
                self.closed.append(arguments[0])
            case "tensafe_private_failures":
                return {}
            case "tensafe_private_report":
                return [{} for _ in arguments[0]]
        return None


@pytest.mark.parametrize(
    ("why", "unmade"),
    [
        ("he_not_prepared", ""),
        ("he_timeout", ""),
        ("he_too_many_blocks", "he_too_many_blocks"),
        ("he_adapter_holder_absent", "he_adapter_holder_absent"),
        ("he_version_mismatch", "he_version_mismatch"),
    ],
)
def test_a_prompt_that_was_never_begun_leaves_what_is_prepared(why: str, unmade: str) -> None:
    """Opened anew, an adapter prepares a block of every site, and those of before stay open at its holder.

    It is where the epoch is another one by now.
    """
    worker, adapter = Worker(), PrivateAdapter("A", "1", {})

    async def asked() -> bool:
        serving = PrivateServing(worker, block_s=0.15)

        async def load(adapter_id: int, wanted: Any) -> str:
            await serving.open(wanted, adapter_id)
            return vllm_name(wanted, adapter_id)

        async def unload(resident: Resident) -> None:
            await serving.close(resident.path)

        async def generate(*_: object, **__: object) -> list[object]:
            raise AssertionError("the engine was given it")

        engine = object.__new__(SamplingEngine)
        engine._serving, engine._adapters = serving, ResidentAdapters(4, load, unload)
        engine._request_ids = itertools.count(1)
        engine._generate_all = generate  # type: ignore[method-assign]
        request: Any = SimpleNamespace(num_samples=1, prompt=[1] * 2000)
        if why == "he_timeout":  # an adapter that has failed: nobody can use it any more
            async with engine._adapters.lease(adapter) as resident:
                serving._stood[resident.path] -= 10
            worker.failure = why
        if unmade:  # and what was not made before is not this prompt's
            worker.failures, worker.code = itertools.count(2), unmade
        with pytest.raises(HeRefused) as refused:
            await engine._evaluated(request, adapter, "salt")
        assert refused.value.code == why
        return adapter.identity in engine._adapters

    stays = why not in {"he_timeout", "he_version_mismatch"}
    assert asyncio.run(asked()) == stays
    assert bool(worker.closed) != stays


@pytest.mark.parametrize(("missing", "code"), [(2000, None), (2600, "he_too_many_blocks")])
def test_where_no_more_blocks_are_made_what_is_left_answers_if_a_prompt_fits(
    missing: int, code: str | None
) -> None:
    """Continuations may share their prompt's rows, and a cached prompt needs fewer: that is not known."""
    worker, adapter = Worker(), PrivateAdapter("A", "1", {})
    worker.missing, worker.failures, worker.code = missing, itertools.count(2), "he_too_many_blocks"

    async def asked() -> str:
        serving = PrivateServing(worker, block_s=5)
        await serving.open(adapter, 1)

        async def work() -> str:
            return "done"

        return await serving.run(vllm_name(adapter, 1), work(), 6000, 1500)

    if code is None:
        assert asyncio.run(asked()) == "done"
        return
    with pytest.raises(HeRefused) as refused:
        asyncio.run(asked())
    assert refused.value.code == code


def test_a_block_of_a_wide_site_has_the_time_that_it_takes() -> None:
    """At 28,672 inputs half a minute: a fixed time would refuse every prompt that has to wait for one."""
    worker, adapter = Worker(), PrivateAdapter("A", "1", {})
    worker.block_s = 0.6

    async def asked() -> str:
        serving = PrivateServing(worker, block_s=0.1)
        await serving.open(adapter, 1)

        async def work() -> str:
            return "done"

        asyncio.get_running_loop().call_later(0.3, setattr, worker, "missing", 0)
        return await serving.run(vllm_name(adapter, 1), work(), 2000)

    assert asyncio.run(asked()) == "done"


@pytest.fixture
def reached(tmp_path: Path) -> dict[str, str]:
    files = Authority(tmp_path).issue("t")
    return {
        "address": "tcp:127.0.0.1:9",
        "tenant": "t",
        "adapter": "a",
        "version": "1",
        "burn_log": str(tmp_path / "burned.db"),
        "tls_cert": str(files.certificate),
        "tls_key": str(files.key),
        "tls_ca": str(files.authority),
    }


def faults(folder: Path) -> dict[str, tuple[Mapping[str, str | None], str]]:
    (folder / "bad.pem").write_text("x")
    (folder / "damaged.db").write_bytes(b"not a database at all" * 100)
    return {
        "no certificate": ({"tls_cert": None, "tls_key": None, "tls_ca": None}, "misconfigured"),
        "no such file": ({"tls_cert": str(folder / "absent.pem")}, "misconfigured"),
        "no PEM": ({"tls_cert": str(folder / "bad.pem")}, "misconfigured"),
        "address": ({"address": "tcp:127.0.0.1"}, "misconfigured"),
        "damaged log": ({"burn_log": str(folder / "damaged.db")}, "state_failed"),
        "no folder": ({"burn_log": str(folder / "bad.pem" / "b.db")}, "state_failed"),
        "nobody there": ({"address": f"unix:{folder / 's'}"}, "adapter_holder_absent"),
    }


@pytest.mark.parametrize("name", ["no certificate", "no such file", "no PEM", "address", "damaged log",
                                  "no folder", "nobody there"])  # fmt: skip
def test_a_fault_of_this_side_is_not_laid_at_the_adapter_holders_door(
    tmp_path: Path, reached: dict[str, str], name: str, caplog: pytest.LogCaptureFixture
) -> None:
    change, code = faults(tmp_path)[name]
    given = {key: value for key, value in (reached | change).items() if value is not None}
    with pytest.raises(HeUnavailable) as raised:
        connect(given)
    assert raised.value.code == code
    opened = OpenAdapters(connect, {}, torch.device("cpu"))
    with caplog.at_level(logging.ERROR):
        opened.open("n", {}, given)
        deadline = time.monotonic() + 10
        while not (told := [one for one in caplog.records if one.msg == "private adapter failed"]):
            assert time.monotonic() < deadline
            time.sleep(0.01)
    assert opened.failures() == {"n": f"he_{code}"}
    assert HE_CODES[f"he_{code}"]
    assert [vars(one)["reason"] for one in told] == [str(raised.value)]


def test_what_fails_in_a_pass_leaves_no_words_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    from tensafe_gpu.sampler.private.holders import OpenAdapter

    with caplog.at_level(logging.ERROR):
        OpenAdapter("n").fail(HeUnavailable("garbage", "the prompt was SECRET"))
    assert "SECRET" not in json.dumps([vars(record) for record in caplog.records], default=str)


def test_the_runbook_says_what_to_do_for_every_code() -> None:
    text = (ROOT / "infra" / "runbooks" / "he-unavailable.md").read_text(encoding="utf-8")
    assert {code for code in HE_CODES if f"`{code}`" not in text} == set()


def test_a_certificate_whose_key_is_not_there_yet_leaves_the_one_before_to_every_adapter(
    reached: dict[str, str], tmp_path: Path
) -> None:
    """Whoever replaces two files replaces one of them first, and an adapter may be opened in between."""
    before = connecting._connector(reached)
    assert isinstance(before, TlsConnector)
    (tmp_path / "other").mkdir()
    other = Authority(tmp_path / "other").issue("t")
    Path(reached["tls_cert"]).write_bytes(other.certificate.read_bytes())
    later = connecting._connector(reached)
    assert isinstance(later, TlsConnector)
    assert later._contexts() is before._contexts()


def test_he_01_a_sampler_that_was_not_started_for_private_adapters_refuses_them() -> None:
    """Nothing of it reaches vLLM; a plaintext that may answer is the publisher's choice alone."""
    engine: Any = object.__new__(SamplingEngine)
    engine._serving, engine._closed = None, False
    engine._llm = SimpleNamespace(errored=False)
    request: Any = SimpleNamespace(num_samples=1, prompt=[1] * 3)
    loading = AdapterLoading(None, None, None, None, None)  # type: ignore[arg-type] - none is reached
    for asked in (
        engine._evaluated(request, PrivateAdapter("A", "1", {}), "salt"),
        loading.load(1, PrivateAdapter("A", "1", {})),
    ):
        with pytest.raises(HeRefused) as refused:
            asked.send(None)
        assert refused.value.code == "he_not_configured"
