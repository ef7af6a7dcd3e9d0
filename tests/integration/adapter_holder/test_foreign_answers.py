"""Answers of another request, block or epoch: what a key holder can tell from its own it refuses.

Other words under the right number and block id are not found out (docs/helora.md: integrity is not claimed).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from tensafe_gpu.helora.burned import BurnLog
from tensafe_gpu.helora.connection import Wanted, unix_connector
from tensafe_gpu.helora.frames import Frame, Kind
from tensafe_gpu.helora.key_holder import RemoteKeyHolder
from tensafe_gpu.helora.messages import Refusal, packed
from tensafe_gpu.helora.parameters import N
from tensafe_gpu.helora.ports import (
    BUDGET_SPENT,
    CODES,
    GARBAGE,
    HOLDER_ABSENT,
    PARAMETERS_REFUSED,
    VERSION_MISMATCH,
    WIRE_CODES,
    Float32Array,
    HeUnavailable,
)
from tests.support.helora import QUICK, TENANT, Holder, PlainReference, adapter_holder, peft_files, policy
from tests.support.meddler import Meddler, unchanged

D, RANK = 64, 8
OUT = "model.layers.0.self_attn.o"
FILES = peft_files(D, RANK, leaves=("o",))


@dataclass(frozen=True)
class Parties:
    """An adapter holder, somebody in front of it, and a key holder that talks to that one."""

    holder: Holder
    between: Meddler
    private: RemoteKeyHolder

    def plain(self, x: Float32Array) -> Float32Array:
        return PlainReference(self.holder.store.load("a").adapter).products([(OUT, x)])[0]

    def asked(self, kind: Kind) -> int:
        return sum(frame.kind is kind for frame in self.between.asked)


@pytest.fixture
def parties(holder: Holder, burn_log: BurnLog, tmp_path: Path) -> Iterator[Parties]:
    holder.store.publish("a", FILES, base_model="base", policy=policy())
    with closing(Meddler(tmp_path / "between", holder.socket)) as between:
        connector = unix_connector(tmp_path / "between")
        with closing(RemoteKeyHolder(connector, Wanted(TENANT, "a"), burn_log, QUICK)) as private:
            yield Parties(holder, between, private)


@pytest.fixture
def newer(tmp_path: Path) -> Iterator[Holder]:
    """The same weights elsewhere under the same name and version, and in the epoch after."""
    with adapter_holder(tmp_path / "newer") as newer:
        newer.store.publish("a", FILES, base_model="base", policy=policy())
        newer.store.rotate("a")
        yield newer


def tokens(count: int, seed: int = 1) -> Float32Array:
    return np.random.default_rng(seed).standard_normal((count, D)).astype(np.float32)


def refused(ask: Callable[[], object]) -> str:
    with pytest.raises(HeUnavailable) as raised:
        ask()
    return raised.value.code


Asking = Callable[[RemoteKeyHolder], object]
ASKING: dict[Kind, Asking] = {
    Kind.B_REPLY: lambda private: private._fetch_b(*private._shapes[OUT]),
    Kind.ACCEPTED: lambda private: private.prepare(OUT),
    Kind.BLOCK_REPLY: lambda private: private.prepare(OUT),
    Kind.PRODUCTS_REPLY: lambda private: private.products([(OUT, tokens(3))]),
    Kind.DIRECT_REPLY: lambda private: private.direct_products([(OUT, tokens(3))]),
}
"""What makes an adapter holder answer with a frame of this kind."""


@pytest.mark.parametrize("kind", ASKING, ids=lambda kind: kind.name)
def test_an_answer_that_is_said_again_is_refused_and_ends_its_connection(
    parties: Parties, kind: Kind
) -> None:
    """Byte for byte what the request before was answered with."""
    between, private, ask = parties.between, parties.private, ASKING[kind]
    private.prepare(OUT)
    ask(private)
    sound, prepared = between.of(kind)[-1], private.prepared()[OUT]
    between.change = lambda frame: sound if frame.kind is kind else frame
    assert refused(lambda: ask(private)) == GARBAGE
    offline = kind in (Kind.ACCEPTED, Kind.BLOCK_REPLY)
    used = private._offline if offline else private._online
    assert used is not None
    assert not used.usable
    lost = 3 if kind is Kind.PRODUCTS_REPLY else 0
    assert private.prepared()[OUT] == prepared - lost  # no block of it, and its indices are used no more
    between.change = unchanged
    private.connect_again()
    ask(private)
    x = tokens(5, 2)
    assert np.array_equal(private.products([(OUT, x)])[0], parties.plain(x))


def test_no_mask_is_used_again_for_what_was_answered_with_an_earlier_answer(parties: Parties) -> None:
    """The token that got none is asked anew under other indices."""
    between, private = parties.between, parties.private
    private.prepare(OUT)
    private.products([(OUT, tokens(3))])
    sound = between.of(Kind.PRODUCTS_REPLY)[-1]
    between.change = lambda frame: sound if frame.kind is Kind.PRODUCTS_REPLY else frame
    assert refused(lambda: private.products([(OUT, tokens(3))])) == GARBAGE
    between.change = unchanged
    private.connect_again()
    private.products([(OUT, tokens(3))])
    masked = [bytes(frame.payload[28:]) for frame in between.asked if frame.kind is Kind.PRODUCTS]
    assert len(masked) == len(set(masked)) == 3


def test_a_block_of_another_epoch_is_refused_also_under_the_number_that_was_asked(
    parties: Parties, newer: Holder, tmp_path: Path
) -> None:
    """Another basis of A has answered, and what it said is handed to the request of this epoch's block."""
    elsewhere = Meddler(tmp_path / "elsewhere", newer.socket)
    connector, log = unix_connector(tmp_path / "elsewhere"), BurnLog(tmp_path / "theirs.db")
    with closing(elsewhere), closing(log):
        with closing(RemoteKeyHolder(connector, Wanted(TENANT, "a"), log, QUICK)) as theirs:
            theirs.prepare(OUT)
        (foreign,) = elsewhere.of(Kind.BLOCK_REPLY)
    between, private = parties.between, parties.private
    between.change = lambda frame: (
        frame._replace(payload=foreign.payload) if frame.kind is Kind.BLOCK_REPLY else frame
    )
    assert refused(lambda: private.prepare(OUT)) == GARBAGE
    assert private.prepared()[OUT] == 0
    between.change = unchanged
    private.prepare(OUT)
    assert private.prepared()[OUT] == N
    x = tokens(4)
    assert np.array_equal(private.products([(OUT, x)])[0], parties.plain(x))


def words_beyond(payload: memoryview, word: int) -> memoryview:
    """With its last word changed."""
    return memoryview(bytes(payload[:-4]) + word.to_bytes(4, "little"))


BROKEN: dict[str, tuple[Kind, Callable[[memoryview], memoryview]]] = {
    "products cut short": (Kind.PRODUCTS_REPLY, lambda payload: payload[:-4]),
    "products not below t": (Kind.PRODUCTS_REPLY, lambda payload: words_beyond(payload, 1 << 28)),
    "direct reply cut short": (Kind.DIRECT_REPLY, lambda payload: payload[:-4]),
    "direct reply beyond a prime": (Kind.DIRECT_REPLY, lambda payload: words_beyond(payload, 2**32 - 1)),
    "direct reply that is transparent": (Kind.DIRECT_REPLY, lambda payload: memoryview(bytes(len(payload)))),
    "block reply cut short": (Kind.BLOCK_REPLY, lambda payload: payload[:-4]),
    "block reply beyond a prime": (Kind.BLOCK_REPLY, lambda payload: words_beyond(payload, 2**32 - 1)),
    "block reply that is transparent": (
        Kind.BLOCK_REPLY,
        lambda payload: memoryview(bytes(payload[:16]) + bytes(len(payload) - 16)),
    ),
    "B cut short": (Kind.B_REPLY, lambda payload: payload[:-4]),
}


@pytest.mark.parametrize(("kind", "breaks"), BROKEN.values(), ids=BROKEN)
def test_an_answer_that_cannot_be_one_ends_its_connection(
    parties: Parties, kind: Kind, breaks: Callable[[memoryview], memoryview]
) -> None:
    between, private, ask = parties.between, parties.private, ASKING[kind]
    private.prepare(OUT)
    between.change = lambda one: one._replace(payload=breaks(one.payload)) if one.kind is kind else one
    assert refused(lambda: ask(private)) in {GARBAGE, PARAMETERS_REFUSED}
    used = private._offline if kind is Kind.BLOCK_REPLY else private._online
    assert used is not None
    assert not used.usable
    between.change = unchanged
    private.connect_again()
    ask(private)
    x = tokens(3, 3)
    assert np.array_equal(private.products([(OUT, x)])[0], parties.plain(x))


@pytest.mark.parametrize("code", [*sorted({*CODES} - {*WIRE_CODES}), "another"])
def test_a_refusal_with_a_code_that_is_the_key_holder_s_own_is_garbage(parties: Parties, code: str) -> None:
    """That activations are no numbers, say, leaves an adapter open, which would refuse everybody then."""
    between, private = parties.between, parties.private
    private.prepare(OUT)
    body = memoryview(packed(Refusal(code=code, message="m")))
    between.change = lambda frame: frame._replace(kind=Kind.ERROR, payload=body)
    assert refused(lambda: private.products([(OUT, tokens(3))])) == GARBAGE
    assert not private._online.usable
    between.change = unchanged
    private.connect_again()
    x = tokens(3, 3)
    assert np.array_equal(private.products([(OUT, x)])[0], parties.plain(x))


def test_a_refusal_that_is_said_again_lets_no_later_answer_pass_for_the_next_one(parties: Parties) -> None:
    """It refuses, whoever says so; the answer that comes behind it is another request's."""
    between, private = parties.between, parties.private
    private.prepare(OUT)
    body = memoryview(packed(Refusal(code=BUDGET_SPENT, message="m")))
    late: list[Frame] = []

    def behind(frame: Frame) -> Frame:
        """Each answer one request late, behind a refusal with the number of the first request."""
        if frame.kind is not Kind.PRODUCTS_REPLY:
            return frame
        late.append(frame)
        return late[-2] if len(late) > 1 else Frame(Kind.ERROR, 1, body)

    between.change = behind
    assert refused(lambda: private.products([(OUT, tokens(3))])) == BUDGET_SPENT
    assert refused(lambda: private.products([(OUT, tokens(3, 2))])) == GARBAGE
    assert not private._online.usable
    between.change = unchanged
    private.connect_again()
    x = tokens(3, 3)
    assert np.array_equal(private.products([(OUT, x)])[0], parties.plain(x))


def welcomed_as(**changed: object) -> Callable[[Frame], Frame]:
    """The adapter holder's own greeting, but for this."""

    def change(frame: Frame) -> Frame:
        if frame.kind is not Kind.WELCOME:
            return frame
        fields = json.loads(bytes(frame.payload)) | changed
        return frame._replace(payload=memoryview(json.dumps(fields).encode()))

    return change


@pytest.mark.parametrize(
    "changed",
    [{"epoch": 2}, {"digest": "0" * 64}, {"version": 2}, {"name": "b"}],
    ids=lambda one: next(iter(one)),
)
def test_whoever_greets_as_something_else_after_a_reconnect_is_asked_for_nothing(
    parties: Parties, changed: dict[str, object]
) -> None:
    """Each alone, on both connections; the masks and B' of the first greeting are used with it alone."""
    between, private = parties.between, parties.private
    private.b_matrices()
    private.prepare(OUT)
    assert private._offline is not None
    for connection in (private._online, private._offline):
        connection.close()
    between.change = welcomed_as(**changed)
    asked = len(between.asked)
    assert refused(private.connect_again) == VERSION_MISMATCH
    assert refused(lambda: private.prepare(OUT)) == VERSION_MISMATCH
    assert refused(lambda: private.products([(OUT, tokens(1))])) == HOLDER_ABSENT
    assert [frame.kind for frame in between.asked[asked:]] == [Kind.HELLO] * 2
    between.change = unchanged
    private.connect_again()
    x = tokens(2)
    assert np.array_equal(private.products([(OUT, x)])[0], parties.plain(x))


def test_another_epoch_in_the_place_of_the_first_gets_neither_masked_tokens_nor_a_block(
    parties: Parties, newer: Holder
) -> None:
    """A real one that answers the greeting, of the same name, version and weights, with other bases."""
    between, private = parties.between, parties.private
    private.prepare(OUT)
    before, b = private.info(), private.b_matrices()
    between.target = newer.socket
    assert private._offline is not None
    for connection in (private._online, private._offline):
        connection.close()
    for ask in (private.connect_again, lambda: private.prepare(OUT)):
        assert refused(ask) == VERSION_MISMATCH
    assert not private.connected()
    assert refused(lambda: private.products([(OUT, tokens(1))])) == HOLDER_ABSENT
    assert set(newer.service.counters) == set()  # greeted, and asked for nothing
    assert private.info() == before
    between.target = parties.holder.socket
    private.connect_again()
    x = tokens(2)
    assert np.array_equal(private.products([(OUT, x)])[0], parties.plain(x))
    assert private.b_matrices() is b
