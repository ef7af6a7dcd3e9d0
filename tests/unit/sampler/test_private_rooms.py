"""Private adapters without an engine: sites onto layers, counting, what a broken holder does, preparing."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Mapping, Sequence
from math import inf
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from tensafe.contracts.errors import HE_CODES, HeRefused
from tensafe_gpu.helora import ports
from tensafe_gpu.helora.ports import AdapterInfo, HeUnavailable, ModuleShape, SiteShape
from tensafe_gpu.sampler.private.adapter import (
    PrivateAdapter,
    cache_salt,
    external_id,
    naming,
    vllm_name,
)
from tensafe_gpu.sampler.private.budget import Budget
from tensafe_gpu.sampler.private.holders import OpenAdapter, OpenAdapters
from tensafe_gpu.sampler.private.placing import DoesNotFit, Placed, Slice, Target, place
from tensafe_gpu.sampler.private.preparing import Preparer
from tensafe_gpu.sampler.private.serving import PrivateServing
from tensafe_gpu.sampler.private.step import Account, Span, Step, spans_of
from tests.support.at_once import AtOnce

MODULES = {
    "m.q_proj": Slice("m.qkv_proj", 0, 8, 4),
    "m.k_proj": Slice("m.qkv_proj", 8, 10, 4),
    "m.v_proj": Slice("m.qkv_proj", 10, 12, 4),
    "m.o_proj": Slice("m.o_proj", 0, 4, 8),
}
QV = SiteShape("m.qkv", 4, (ModuleShape("m.q_proj", 2, 8), ModuleShape("m.v_proj", 3, 2)), 100)


def info(*sites: SiteShape, version: int = 1) -> AdapterInfo:
    return AdapterInfo("A", version, "d" * 64, 2, "base", sites, "p", 1000)


class Holder:
    """A key holder that does what a test says."""

    def __init__(self, *sites: SiteShape) -> None:
        self._info = info(*(sites or (QV,)))
        self.answer: Any = None
        self.direct: list[list[int]] = []
        self.direct_answer: BaseException | None = None
        self.left = {site.site: 0 for site in self._info.sites}
        self.closed = threading.Event()
        self.prepared_sites: list[str] = []

    def info(self) -> AdapterInfo:
        return self._info

    def b_matrices(self) -> Mapping[str, Mapping[str, np.ndarray]]:
        return {
            s.site: {m.name: np.ones((m.d_out, m.rank), np.float32) for m in s.modules}
            for s in self._info.sites
        }

    def products(self, sites: Sequence[tuple[str, np.ndarray]]) -> Sequence[np.ndarray]:
        if isinstance(self.answer, BaseException):
            raise self.answer
        if self.answer is not None:
            return [self.answer]
        return [np.zeros((len(x), self._info.site(s).rank_rows), np.float32) for s, x in sites]

    def ask(self, sites: Sequence[tuple[str, np.ndarray]], *, limit_s: float = inf) -> AtOnce:
        return AtOnce(self.products(sites))

    def direct_products(
        self, sites: Sequence[tuple[str, np.ndarray]], *, limit_s: float = inf
    ) -> Sequence[np.ndarray]:
        self.direct.append([len(x) for _, x in sites])
        if isinstance(self.direct_answer, BaseException):
            raise self.direct_answer
        return [np.ones((len(x), self._info.site(s).rank_rows), np.float32) for s, x in sites]

    def connected(self) -> bool:
        return True

    def connect_again(self) -> None:
        pass

    def prepared(self) -> Mapping[str, int]:
        return dict(self.left)

    def prepare(self, site: str) -> None:
        self.prepared_sites.append(site)
        self.left[site] += 4096

    def close(self) -> None:
        self.closed.set()


def opened(holder: Holder, **wanted: str) -> OpenAdapter:
    adapters = OpenAdapters(lambda _: holder, MODULES, torch.device("cpu"))
    adapters.open("n", wanted, {})
    adapter = adapters.get("n")
    assert adapter is not None
    for _ in range(500):
        if adapter.facts()["state"] != "opening":
            return adapter
        threading.Event().wait(0.01)
    raise AssertionError("still opening")


def evaluated(adapter: OpenAdapter, placed: Placed, x: np.ndarray) -> np.ndarray:
    budget = Budget(len(x), 5)
    return adapter.answered(placed, adapter.ask(placed, x, budget), budget).rows


def brought(preparer: Preparer, site: str, tokens: int, wait_s: float) -> None:
    preparer.want(site)
    preparer.wait(site, tokens, wait_s)


def test_sites_are_placed_in_the_layers_that_fuse_their_modules() -> None:
    placed = place(info(QV), MODULES)
    assert placed["m.qkv_proj"].rank_rows == 5
    assert placed["m.qkv_proj"].targets == (
        Target("m.q_proj", 0, 8, slice(0, 2)),
        Target("m.v_proj", 10, 12, slice(2, 5)),
    )


@pytest.mark.parametrize(
    "sites",
    [
        (),
        (SiteShape("s", 4, (ModuleShape("m.x_proj", 2, 8),), 9),),
        (SiteShape("s", 5, (ModuleShape("m.q_proj", 2, 8),), 9),),
        (SiteShape("s", 4, (ModuleShape("m.q_proj", 2, 9),), 9),),
        (SiteShape("s", 4, (ModuleShape("m.q_proj", 129, 8),), 9),),
        (SiteShape("s", 4, (ModuleShape("m.q_proj", 2, 8), ModuleShape("m.q_proj", 2, 8)), 9),),
        (QV, SiteShape("t", 4, (ModuleShape("m.k_proj", 2, 2),), 9)),
    ],
)
def test_an_adapter_that_does_not_fit_in_whole_is_not_opened(sites: tuple[SiteShape, ...]) -> None:
    with pytest.raises(DoesNotFit):
        place(info(*sites), MODULES)


def test_nothing_of_an_adapter_that_does_not_fit_is_fetched() -> None:
    """Its matrices are as large as it says that they are; then they are held to the model's widths."""
    holder = Holder(SiteShape("m.qkv", 4, (ModuleShape("m.q_proj", 2, 1 << 20),), 9))
    holder.b_matrices = lambda: pytest.fail("fetched")  # type: ignore[method-assign]
    assert opened(holder).facts() == {"state": "failed", "code": "he_does_not_fit"}


def test_opening_prepares_every_site_and_compares_the_version() -> None:
    holder = Holder()
    adapter = opened(holder, name="A", version="1")
    assert adapter.facts() | {"state": "ready", "epoch": 2, "sites": 1} == adapter.facts()
    assert holder.prepared_sites == ["m.qkv"]
    adapter.close()
    assert holder.closed.is_set()
    other = Holder()
    assert opened(other, version="2").facts() == {"state": "failed", "code": "he_version_mismatch"}
    assert other.closed.is_set()
    foreign = Holder()
    assert opened(foreign, base_model="other").facts() == {"state": "failed", "code": "he_does_not_fit"}
    adapter = opened(Holder(), base_model="base")
    assert adapter.facts()["state"] == "ready"
    adapter.close()


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        (np.zeros((3, 4), np.float32), "he_garbage"),
        (np.zeros((3, 5), np.float64), "he_garbage"),
        (np.full((3, 5), np.nan, np.float32), "he_garbage"),
        (ValueError("broken"), "he_garbage"),
        (HeUnavailable("timeout", ""), "he_timeout"),
        (HeUnavailable("not_prepared", ""), "he_not_prepared"),
    ],
)
def test_whatever_a_holder_does_has_a_code(answer: Any, code: str) -> None:
    holder = Holder()
    adapter = opened(holder)
    holder.answer = answer
    with pytest.raises(Exception) as raised:  # noqa: PT011 - of any kind
        evaluated(adapter, adapter.placed["m.qkv_proj"], np.zeros((3, 4), np.float32))
    assert adapter.fail(raised.value) == code
    assert adapter.fail(HeUnavailable("budget_spent", "")) == code  # the first one stays
    assert not adapter.usable
    adapter.close()


@pytest.mark.parametrize("bad", [np.inf, -np.inf])
def test_products_beyond_float32_are_a_row_of_one_request_and_no_failure_of_the_adapter(bad: float) -> None:
    """Nothing is clipped: the row is no number and said to be bad, all others are as they came."""
    holder = Holder()
    adapter = opened(holder)
    holder.answer = np.arange(15, dtype=np.float32).reshape(3, 5)
    expected, budget = holder.answer.copy(), Budget(3, 5)
    expected[1] = np.nan
    holder.answer[1, 4] = bad
    placed, x = adapter.placed["m.qkv_proj"], np.zeros((3, 4), np.float32)
    products = adapter.answered(placed, adapter.ask(placed, x, budget), budget)
    assert np.array_equal(products.rows, expected, equal_nan=True)
    assert products.overflowed is not None
    assert products.overflowed.tolist() == [False, True, False]
    holder.answer[1, 4] = 1
    again = adapter.answered(placed, adapter.ask(placed, x, budget), budget)
    assert again.overflowed is None
    assert np.array_equal(again.rows, holder.answer)
    assert adapter.usable
    adapter.close()


WIDE = SiteShape("m.down", 400, (ModuleShape("m.down_proj", 2, 4),), 100)
OTHER = SiteShape("m.o", 8, (ModuleShape("m.o_proj", 2, 4),), 100)
ROOMS = {**MODULES, "m.down_proj": Slice("m.down_proj", 0, 4, 400)}


class Slow(Holder):
    """Answers what is prepared, and prepares when it is let."""

    def __init__(self, *sites: SiteShape) -> None:
        super().__init__(*sites)
        self.let, self.failure = threading.Event(), None
        self.let.set()

    def products(self, sites: Sequence[tuple[str, np.ndarray]]) -> Sequence[np.ndarray]:
        for site, x in sites:
            if self.left[site] < len(x):
                raise HeUnavailable("not_prepared", "")
        return super().products(sites)

    def prepare(self, site: str) -> None:
        self.let.wait(10)
        if self.failure is not None:
            raise self.failure
        super().prepare(site)


def slow(*sites: SiteShape) -> tuple[Slow, OpenAdapter]:
    holder = Slow(*sites)
    adapters = OpenAdapters(lambda _: holder, ROOMS, torch.device("cpu"))
    adapters.open("n", {}, {})
    adapter = adapters.get("n")
    assert adapter is not None
    while adapter.facts()["state"] != "ready":
        threading.Event().wait(0.01)
    return holder, adapter


def emptied(holder: Slow) -> None:
    """Nothing is left of what was prepared, and the thread that prepares has ended with it."""
    while min(holder.left.values()) < 1024:
        threading.Event().wait(0.005)
    threading.Event().wait(0.02)
    holder.left = dict.fromkeys(holder.left, 0)


def test_few_tokens_without_preprocessing_go_the_direct_way_and_many_wait_for_a_block() -> None:
    holder, adapter = slow(WIDE, OTHER)
    placed = adapter.placed["m.down_proj"]
    emptied(holder)
    assert evaluated(adapter, placed, np.zeros((16, 400), np.float32)).all()
    assert holder.direct == [[16]]
    assert not evaluated(adapter, placed, np.zeros((17, 400), np.float32)).any()
    assert holder.direct == [[16]]
    assert holder.left["m.down"] >= 4096
    # A site with few inputs has its block sooner; one that is too large for the direct mode waits too.
    emptied(holder)
    assert not evaluated(adapter, adapter.placed["m.o_proj"], np.zeros((1, 8), np.float32)).any()
    emptied(holder)
    holder.direct_answer = HeUnavailable("parameters_refused", "")
    assert not evaluated(adapter, placed, np.zeros((1, 400), np.float32)).any()
    emptied(holder)
    holder.direct_answer = HeUnavailable("budget_spent", "")
    with pytest.raises(HeUnavailable) as raised:
        evaluated(adapter, placed, np.zeros((1, 400), np.float32))
    assert raised.value.code == "budget_spent"
    adapter.close()


def test_all_rounds_of_a_pass_have_one_budget_and_work_that_was_not_prepared_its_time_on_top() -> None:
    limits: list[float] = []

    class Answering(Slow):
        took_s = 1.0

        def ask(self, sites: Sequence[tuple[str, np.ndarray]], *, limit_s: float = inf) -> AtOnce:
            limits.append(limit_s)
            asked = super().ask(sites)
            asked.took_s = self.took_s
            return asked

        def direct_products(
            self, sites: Sequence[tuple[str, np.ndarray]], *, limit_s: float = inf
        ) -> Sequence[np.ndarray]:
            limits.append(limit_s)
            threading.Event().wait(0.1)
            return super().direct_products(sites)

    holder = Answering(WIDE, OTHER)
    adapters = OpenAdapters(lambda _: holder, ROOMS, torch.device("cpu"), 2.0)
    adapters.open("n", {}, {})
    adapter = adapters.get("n")
    assert adapter is not None
    while adapter.facts()["state"] != "ready":
        threading.Event().wait(0.01)
    step, x = Step(), np.zeros((16, 400), np.float32)
    placed = adapter.placed["m.down_proj"]
    step.begin([Span("n", "s1", 0, 16, 0)], adapters)
    (group,) = step.groups
    for _ in range(3):
        adapter.answered(placed, adapter.ask(placed, x, group.budget), group.budget)
    np.testing.assert_allclose(limits, [2.16, 1.16, 0.16])  # the fourth has none: it is given up at once
    assert group.budget.left_s < 0
    step.begin([Span("n", "s1", 0, 16, 16)], adapters)  # another pass
    (group,) = step.groups
    limits.clear()
    emptied(holder)
    adapter.answered(placed, adapter.ask(placed, x, group.budget), group.budget)
    np.testing.assert_allclose(limits, [2.16, 2.16 + 2 * 0.16])  # asked for, then the direct way
    assert group.budget.left_s == 2.16  # a direct answer in the time that it should take costs nothing
    holder.let.clear()
    emptied_now = dict.fromkeys(holder.left, 0)
    holder.left, began = emptied_now, time.monotonic()
    many = np.zeros((17, 400), np.float32)
    group.budget.left_s = 0.1
    with pytest.raises(HeUnavailable) as late:
        adapter.answered(placed, adapter.ask(placed, many, group.budget), group.budget)
    assert late.value.code == "not_prepared"
    assert 0.8 < time.monotonic() - began < 3  # twice what a block of 400 inputs takes, and what was left
    holder.let.set()
    adapter.close()


def test_a_pass_waits_for_a_block_a_limited_time_and_hears_why_there_is_none() -> None:
    holder, adapter = slow(OTHER, WIDE)
    preparer = adapter._preparer
    assert preparer is not None
    holder.left = {"m.o": 0, "m.down": 1500}
    holder.prepared_sites.clear()
    brought(preparer, "m.down", 2000, 5)
    assert holder.prepared_sites[0] == "m.down"  # ahead of the other, though it has more
    holder.let.clear()
    holder.left = {"m.o": 0, "m.down": 0}
    with pytest.raises(HeUnavailable) as late:
        brought(preparer, "m.down", 1, 0.05)
    assert late.value.code == "not_prepared"
    holder.failure = HeUnavailable("budget_spent", "")
    threading.Timer(0.05, holder.let.set).start()
    with pytest.raises(HeUnavailable) as spent:
        brought(preparer, "m.down", 1, 5)
    assert spent.value.code == "budget_spent"
    holder.failure = ValueError("broken")  # type: ignore[assignment]
    with pytest.raises(HeUnavailable) as broken:
        brought(preparer, "m.down", 1, 5)
    assert broken.value.code == "garbage"
    holder.failure = None
    brought(preparer, "m.down", 1, 5)  # and the thread lives on
    adapter.close()


def test_a_wish_that_comes_while_the_thread_looks_for_one_is_not_forgotten() -> None:
    """Between reading the last wish and forgetting it, planted: the pass that wishes waits for its block."""

    class Between(Preparer):
        wished = False

        @property
        def _urgent(self) -> str | None:
            found = self.__dict__.get("urgent")
            if not self.wished and threading.current_thread() is self._thread:
                self.wished = True
                wishing = threading.Thread(target=self.want, args=("m.down",))
                wishing.start()
                wishing.join(0.3)
            return found

        @_urgent.setter
        def _urgent(self, site: str | None) -> None:
            self.__dict__["urgent"] = site

    holder = Slow(OTHER, WIDE)
    holder.left = {"m.o": 4096, "m.down": 1500}  # neither runs low
    preparer = Between(holder)
    preparer.start()
    preparer._wake.set()
    while not preparer.wished:
        threading.Event().wait(0.005)
    preparer.wait("m.down", 2000, 2)
    assert holder.prepared_sites == ["m.down"]
    preparer.stop()


@pytest.mark.parametrize("when", ["before", "meanwhile"])
def test_closing_ends_an_opening_after_the_block_at_hand(when: str) -> None:
    begun, go_on = threading.Barrier(2), threading.Event()

    class Opening(Slow):
        def b_matrices(self) -> Mapping[str, Mapping[str, np.ndarray]]:
            if when == "before":
                begun.wait(5)
                go_on.wait(5)
            return super().b_matrices()

        def prepare(self, site: str) -> None:
            if when == "meanwhile" and not self.prepared_sites:
                begun.wait(5)
                go_on.wait(5)
            super().prepare(site)

    holder = Opening(OTHER, WIDE, QV)
    adapters = OpenAdapters(lambda _: holder, ROOMS, torch.device("cpu"))
    adapters.open("n", {}, {})
    adapter = adapters.get("n")
    assert adapter is not None
    begun.wait(5)
    adapter.close()
    go_on.set()
    assert holder.closed.wait(5)
    assert len(holder.prepared_sites) == (when == "meanwhile")
    assert not adapter.usable


def test_opening_may_take_as_long_as_it_comes_along() -> None:
    blocks = iter([0, 1, 1, 2, 3, 3, 4])

    async def rpc(method: str, _arguments: tuple[Any, ...]) -> Any:
        if method != "tensafe_private_state":
            return {}
        await asyncio.sleep(0.08)
        count = next(blocks, None)
        return {"state": "ready", "sites": 1} if count is None else {"state": "opening", "blocks": count}

    async def stuck(method: str, _arguments: tuple[Any, ...]) -> Any:
        return {"state": "opening", "blocks": 1} if method == "tensafe_private_state" else {}

    adapter = PrivateAdapter("A", "1", {})
    asyncio.run(PrivateServing(rpc, open_s=0.4).open(adapter, 1))
    with pytest.raises(HeRefused) as late:
        asyncio.run(PrivateServing(stuck, open_s=0.2).open(adapter, 1))
    assert late.value.code == "he_timeout"


def test_a_long_prompt_is_prepared_for_on_every_site_and_no_further_than_a_block() -> None:
    holder, adapter = slow(WIDE, OTHER)
    emptied(holder)
    holder.left = {"m.down": 1500, "m.o": 3000}
    holder.prepared_sites.clear()
    before = adapter.missing(1400)
    assert before["missing"] == 0  # nothing is made for what is there
    while adapter.missing(2000)["missing"]:
        threading.Event().wait(0.005)
    assert holder.prepared_sites == ["m.down"]
    assert adapter.missing(2000) == before | {"blocks": before["blocks"] + 1}
    holder.left, holder.failure = dict.fromkeys(holder.left, 1500), HeUnavailable("timeout", "")
    found = adapter.missing(2000)
    assert (found["missing"], found["failures"], found["code"]) == (500, 0, None)
    while not (found := adapter.missing(2000))["failures"]:
        threading.Event().wait(0.005)
    assert (found["missing"], found["code"]) == (500, "he_timeout")
    assert holder.left == dict.fromkeys(holder.left, 1500)
    holder.failure = None  # whoever asks next has it tried again, and waits
    while (found := adapter.missing(2000))["missing"]:
        assert found["failures"] >= 1
        threading.Event().wait(0.005)
    assert min(holder.left.values()) >= 4096
    adapter.close()
    adapter.fail(HeUnavailable("timeout", ""))
    assert adapter.missing(2000)["missing"] == 0


@pytest.mark.parametrize(
    ("rows", "answers", "code"),
    [
        (1024, [], None),
        (2000, [(0, 9)], None),
        (9000, [(4096, 0), (4096, 1), (900, 2), (900, 3), (0, 4)], None),
        (2000, [(500, 3)], "he_not_prepared"),
    ],
)
def test_a_prompt_waits_for_its_preprocessing_before_the_engine_has_it(
    rows: int, answers: list[tuple[int, int]], code: str | None
) -> None:
    """As long as blocks come along; one that stands still is given up, and never begun."""
    asked, begun = [], []

    async def rpc(method: str, arguments: tuple[Any, ...]) -> Any:
        if method == "tensafe_private_missing":
            asked.append(arguments[1])
            await asyncio.sleep(0.1)
            missing, blocks = answers[min(len(asked), len(answers)) - 1]
            return {"missing": missing, "blocks": blocks, "block_s": 0.0, "failures": 3, "code": "he_timeout"}
        return {"state": "ready", "sites": 1} if method == "tensafe_private_state" else {}

    async def work() -> str:
        begun.append(len(asked))
        return "done"

    async def run() -> str:
        serving, adapter = PrivateServing(rpc, block_s=0.3), PrivateAdapter("A", "1", {})
        await serving.open(adapter, 1)
        return await serving.run(vllm_name(adapter, 1), work(), rows)

    if code is None:
        assert asyncio.run(run()) == "done"
        assert begun == [len(answers)]
        assert set(asked) <= {min(rows, 4096)}
        return
    with pytest.raises(HeRefused) as refused:
        asyncio.run(run())
    assert (refused.value.code, begun) == (code, [])


@pytest.mark.parametrize("code", [None, "he_adapter_holder_absent"])
def test_after_a_while_requests_wait_until_the_connection_stands_and_ask_once(code: str | None) -> None:
    asked, begun = [], []

    async def rpc(method: str, _arguments: tuple[Any, ...]) -> Any:
        if method == "tensafe_private_standing":
            asked.append(len(begun))
            stands = len(asked) == 4
            return {"connected": stands and code is None, "code": code if stands else None}
        return {"state": "ready", "sites": 1} if method == "tensafe_private_state" else {}

    async def work() -> str:
        begun.append(len(asked))
        return "done"

    async def run() -> list[Any]:
        serving, adapter = PrivateServing(rpc), PrivateAdapter("A", "1", {})
        name = vllm_name(adapter, 1)
        await serving.open(adapter, 1)
        assert await serving.run(name, work()) == "done"
        assert asked == []  # it has just been opened
        begun.clear()
        serving._stood[name] -= 2
        many = [serving.run(name, work()) for _ in range(5)]
        return list(await asyncio.gather(*many, return_exceptions=True))

    found = asyncio.run(run())
    assert asked == [0, 0, 0, 0]
    if code is None:
        assert (found, begun) == (["done"] * 5, [4] * 5)
        return
    assert [one.code for one in found] == [code] * 5
    assert begun == []


def test_a_connection_that_has_gone_is_made_anew_in_a_thread_and_only_once() -> None:
    class Cut(Holder):
        there, let = False, threading.Event()
        made, failure = 0, None

        def connected(self) -> bool:
            return self.there

        def connect_again(self) -> None:
            self.made += 1
            self.let.wait(5)
            if self.failure is not None:
                raise self.failure
            self.there = True

    holder = Cut()
    adapter = opened(holder)
    for _ in range(3):
        assert adapter.standing() == {"connected": False, "code": None}
    assert holder.made == 1
    holder.let.set()
    while not adapter.standing()["connected"]:
        threading.Event().wait(0.005)
    holder.there, holder.failure = False, HeUnavailable("version_mismatch", "")  # type: ignore[assignment]
    while adapter.standing()["code"] is None:
        threading.Event().wait(0.005)
    assert adapter.standing() == {"connected": False, "code": "he_version_mismatch"}
    adapter.close()


def test_every_code_of_a_key_holder_has_a_sentence() -> None:
    assert {f"he_{code}" for code in ports.CODES} <= set(HE_CODES)


def test_a_step_knows_its_rows_and_charges_them() -> None:
    adapters = OpenAdapters(lambda _: Holder(), MODULES, torch.device("cpu"))
    adapters.open("private:A@1#1", {}, {})
    while adapters.get("private:A@1#1").facts()["state"] != "ready":  # type: ignore[union-attr]
        threading.Event().wait(0.01)
    step = Step()
    spans = [
        Span("private:A@1#1", "s1", 0, 3, 32),
        Span("private:gone@1#2", "s2", 3, 4, 0),
        Span("private:A@1#1", "s3", 5, 6, 0),
    ]
    step.begin(spans, adapters)
    (group,) = step.groups
    assert isinstance(group.rows, torch.Tensor)
    assert group.rows.tolist() == [0, 1, 2, 5]
    group.evaluated("m.qkv")
    group.fail_rows(np.array([False, False, False, True]))
    assert step.report("s1") == {
        "failure": None,
        "tokens": 3,
        "first": 32,
        "cached": 32,
        "reached": 35,
        "evaluated": {"m.qkv": 3},
    }
    assert step.report("s2")["failure"] == "he_adapter_holder_absent"
    assert step.report("s3")["failure"] == "he_activations_not_finite"
    assert step.report("s1")["tokens"] == 0  # closed
    step.begin(spans[:1], adapters)
    assert step.groups
    step.rest()  # a pass of nobody's
    assert not step.groups
    step.begin(spans[:1], adapters)
    step.begin([], adapters)
    assert step.groups == []
    adapters.close("private:A@1#1")


def test_positions_are_counted_once_and_what_was_skipped_ends_the_request() -> None:
    """Each case: passes as (position, rows, resumed), and what the account then says."""
    for passes, cached, reached, failure in (
        ([(0, 5, False), (5, 1, False)], 0, 6, None),
        ([(32, 5, False), (37, 1, False)], 32, 38, None),
        ([(0, 40, False), (40, 1, False), (32, 9, True), (41, 1, False)], 0, 42, None),
        ([(0, 40, False), (64, 3, True)], 24, 67, None),  # somebody else had computed what was left
        ([(0, 5, False), (6, 1, False)], 1, 7, "he_not_evaluated"),
    ):
        account = Account()
        for position, count, resumed in passes:
            account.ran(Span("n", "s1", 0, count, position, resumed))
        facts = account.facts()
        assert facts["tokens"] == sum(count for _, count, _ in passes)
        assert (facts["first"], facts["cached"]) == (passes[0][0], cached), passes
        assert (facts["reached"], facts["failure"]) == (reached, failure), passes


def test_rows_have_the_name_that_their_request_carries() -> None:
    """By no id and no order; a request that vLLM no longer knows has none, and is not vouched for."""
    carried: dict[str, Any] = {"s1-aaaaaaaa": naming("private:A@1#1"), "s2-bbbbbbbb": None, "s3-cccccccc": {}}
    requests: Any = {
        name: SimpleNamespace(sampling_params=SimpleNamespace(extra_args=extra), num_computed_tokens=7)
        for name, extra in carried.items()
    }
    requests["s4-dddddddd"] = SimpleNamespace(sampling_params=None)
    batch = ["s2-bbbbbbbb", "s1-aaaaaaaa", "gone-eeeeeee", "s3-cccccccc", "s4-dddddddd", "s1-aaaaaaaa"]
    counts = np.array([2, 3, 1, 1, 1, 4], np.int32)
    found = list(spans_of(batch, requests, counts, {"s2-bbbbbbbb"}))
    assert found == [Span("private:A@1#1", "s1", 2, 5, 7), Span("private:A@1#1", "s1", 8, 12, 7)]
    (again,) = spans_of(batch[1:2], requests, counts[1:2], {"s1-aaaaaaaa"})
    assert again.resumed


def test_cache_blocks_are_of_one_opening_and_scope() -> None:
    salts = {cache_salt(name, salt) for name in ("private:A@1#1", "private:A@1#2") for salt in ("s", "t")}
    assert len(salts) == 4
    assert cache_salt("a", 'b", "c') != cache_salt('a", "b', "c")


def test_names() -> None:
    adapter = PrivateAdapter("A", "1", {"socket": "/a"})
    assert vllm_name(adapter, 3).startswith("private:A@1~")
    assert vllm_name(adapter, 3).endswith("#3")
    assert adapter.identity != PrivateAdapter("A", "1", {"socket": "/b"}).identity
    assert adapter.identity != PrivateAdapter("A", "1", {"socket": "/a"}, digest="0").identity
    assert external_id("s12-0a1b2c3d") == external_id("s12") == "s12"


REPORT = {
    "failure": None,
    "tokens": 9,
    "first": 2,
    "cached": 2,
    "reached": 11,
    "evaluated": {"m.qkv": 9, "m.o": 9},
}


def rows(count: int) -> dict[str, int]:
    return {"m.qkv": count, "m.o": count}


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({}, None),
        ({"tokens": 13, "evaluated": rows(13), "reached": 12}, None),  # a preemption, a step on its way
        ({"tokens": 8, "evaluated": rows(8), "reached": 10}, "he_not_evaluated"),
        ({"tokens": 8, "evaluated": rows(8)}, "he_not_evaluated"),
        # As many rows as are needed, but by a preemption, and the last one is not among them.
        ({"reached": 10}, "he_not_evaluated"),
        # The first row was left out, which looks as if it had been cached.
        ({"tokens": 8, "evaluated": rows(8), "first": 3, "cached": 3}, "he_not_evaluated"),
        ({"tokens": 0, "evaluated": {}, "first": 0, "cached": 0, "reached": 0}, "he_not_evaluated"),
        ({"evaluated": {"m.qkv": 9, "m.o": 8}}, "he_not_evaluated"),
        ({"evaluated": {"m.qkv": 9, "m.o": 10}}, "he_not_evaluated"),
        ({"evaluated": {"m.qkv": 9}}, "he_not_evaluated"),
        ({"failure": "he_timeout"}, "he_timeout"),
    ],
)
def test_he_01_an_answer_whose_count_is_short_is_discarded(change: dict[str, Any], code: str | None) -> None:
    """5 prompt tokens of which 2 were cached and 7 new ones: 9 rows at each of 2 sites."""

    async def rpc(method: str, _arguments: tuple[Any, ...]) -> Any:
        if method == "tensafe_private_state":
            return {"state": "ready", "digest": "d", "epoch": 2, "parameters": "p", "sites": 2}
        return [REPORT | change] if method == "tensafe_private_report" else {}

    adapter = PrivateAdapter("A", "1", {})
    output: Any = SimpleNamespace(
        prompt_token_ids=[1] * 5, num_cached_tokens=2, outputs=[SimpleNamespace(token_ids=[1] * 7)]
    )

    async def vouched() -> Any:
        serving = PrivateServing(rpc)
        await serving.open(adapter, 1)
        return await serving.vouch(adapter, vllm_name(adapter, 1), ["s1"], [output])

    if code is None:
        found, said = asyncio.run(vouched()), REPORT | change
        assert (found.evaluated_by_site, found.tokens) == (said["evaluated"], said["tokens"])
        assert (found.prompt_tokens, found.cached_tokens) == (5, 2)
        assert found.tokens == 9 + found.recomputed_tokens + found.overrun_tokens
        return
    with pytest.raises(HeRefused) as refused:
        asyncio.run(vouched())
    assert refused.value.code == code


def test_preprocessing_is_kept_ahead_within_a_limit() -> None:
    holder = Holder()
    preparer = Preparer(holder, low_water=100)
    preparer.fill()
    preparer.start()
    holder.left["m.qkv"] = 99
    preparer.used("m.qkv", 4096 - 100)
    threading.Event().wait(0.05)
    assert holder.prepared_sites == ["m.qkv"]  # by the count there is enough, and nobody looks again
    preparer.used("m.qkv", 1)
    for _ in range(500):
        if holder.left["m.qkv"] == 99 + 4096:
            break
        threading.Event().wait(0.01)
    preparer.stop()
    assert holder.prepared_sites == ["m.qkv", "m.qkv"]
