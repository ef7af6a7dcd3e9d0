"""Attacks on what went over the wire: they fail on the build that serves, and succeed without a defence.

Every exchange is one of a real key holder with a real adapter holder over a socket, and what is attacked is
read from the captured frames.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest

from tensafe_gpu.adapter_holder import service
from tensafe_gpu.adapter_holder.service import Over
from tensafe_gpu.helora import accepted, key_holder, preparation
from tensafe_gpu.helora.accepted_records import Range
from tensafe_gpu.helora.connection import Wanted
from tensafe_gpu.helora.evaluation import BlockEvaluation
from tensafe_gpu.helora.frames import Frame, Kind
from tensafe_gpu.helora.key_holder import RemoteKeyHolder
from tensafe_gpu.helora.keystream import floods
from tensafe_gpu.helora.masks import PreparedBlock, PreparingBlock
from tensafe_gpu.helora.messages import (
    Hello,
    MaskedRange,
    pack_begin,
    pack_products,
    pack_rows,
    packed,
    reply_bytes,
    unpack_ranges,
    unpack_reply,
    unpack_ring,
    unpack_whole_rows,
)
from tensafe_gpu.helora.parameters import FLOOD, PARAMETERS, PRIMES, N, T
from tensafe_gpu.helora.ports import GARBAGE, HeUnavailable
from tensafe_gpu.helora.residues import centred_mod_t
from tensafe_gpu.helora.supply import Supply
from tests.support.helora import QUICK, TENANT, adapter_holder, peft_files, policy
from tests.support.helora_attacks import Secret, less_the_one_before, noise, solve_c1
from tests.support.helora_party import QK, parties

D, ROWS = 64, 160
"""160 rows of 64 weights: 10,240 of them."""


class WithoutFlood(BlockEvaluation):
    """Re-randomised only."""

    def _flood(self) -> np.ndarray:
        return np.zeros(N, dtype=np.int64)


class WithoutZero(BlockEvaluation):
    """Flooded only."""

    def _zero(self) -> np.ndarray:
        return np.zeros((2, len(PRIMES), N), dtype=np.uint32)


class WithSmallFlood(BlockEvaluation):
    """Covers the noise of honest ciphertexts, not all of the gap."""

    def _flood(self) -> np.ndarray:
        return floods(N, 1 << 58)


class SharedZero(BlockEvaluation):
    """Re-randomised by one encryption of zero for all rows of a reply."""

    def __init__(self, *given: np.ndarray) -> None:
        super().__init__(*given)
        self._once = super()._zero()

    def _zero(self) -> np.ndarray:
        return self._once


class SharedFlood(BlockEvaluation):
    """One flood for all rows of a reply."""

    def __init__(self, *given: np.ndarray) -> None:
        super().__init__(*given)
        self._once = super()._flood()

    def _flood(self) -> np.ndarray:
        return self._once


class Remembering(PreparingBlock):
    """Keeps what its key holder has: the secret key, which is gone with the block, and the masks."""

    last: Remembering

    def __init__(self, d_in: int, rows: int) -> None:
        super().__init__(d_in, rows)
        self.secret, self.masks = Secret(self), self._rho.copy()
        Remembering.last = self


@dataclass(frozen=True, slots=True)
class Exchange:
    """A block and three tokens as the wire had them, what the key holder has, and what it wants: A."""

    a: np.ndarray
    secret: Secret
    rho: np.ndarray
    sent: np.ndarray
    reply: np.ndarray
    prepared: PreparedBlock
    shares: np.ndarray
    x_q: np.ndarray
    z: np.ndarray
    y: np.ndarray


def exchange(build: type[BlockEvaluation], d: int, rows: int) -> Exchange:
    """A key holder that follows the protocol."""
    with parties(build, d, rows) as party, mock.patch.object(preparation, "PreparingBlock", Remembering):
        party.private.prepare(QK)
        prepared = party.private._supplies[QK]._cursors[0].block
        bound = party.private.info().site(QK).x_bound
        x = np.random.default_rng(1).integers(-99, 99, (3, d))
        x[0] = np.arange(1, d + 1)
        x[:, -1] = bound  # the scale is 1, and the integers are the activations
        party.private.products([(QK, x.astype(np.float32))])

        frames = [unpack_whole_rows(body) for body in party.sent(Kind.BLOCK_WHOLE_ROWS)]
        (reply,) = party.answered(Kind.BLOCK_REPLY)
        (products,), (answer,) = party.sent(Kind.PRODUCTS), party.answered(Kind.PRODUCTS_REPLY)
        return Exchange(
            a=party.a,
            secret=Remembering.last.secret,
            rho=Remembering.last.masks,
            sent=np.concatenate([words for *_, words in frames]),
            reply=unpack_reply(reply, rows)[1],
            prepared=prepared,
            shares=party.shares(prepared.block_id, 0, N),
            x_q=x.astype(np.int32),
            z=unpack_ring(unpack_ranges(products)[1], [(3, d)])[0],
            y=unpack_ring(answer, [(3, rows)])[0],
        )


@functools.cache
def served(build: type[BlockEvaluation], rows: int = 8) -> Exchange:
    return exchange(build, D, rows)


def centred(values: np.ndarray) -> np.ndarray:
    """Modulo t, the least in magnitude."""
    return (values.astype(np.int64) + T // 2) % T - T // 2


def differences(got: Exchange) -> Exchange:
    """Each row of the reply less the one before, as its key holder can subtract: what they share goes."""
    return dataclasses.replace(
        got,
        a=np.diff(got.a.astype(np.int64), axis=0),
        reply=less_the_one_before(got.reply),
        prepared=dataclasses.replace(
            got.prepared, shares=np.diff(got.prepared.shares.astype(np.int64), axis=1)
        ),
    )


def test_weights_cannot_be_solved_from_the_second_polynomial() -> None:
    got = served(BlockEvaluation, ROWS)
    weights = solve_c1(got.sent[:, 1, 0], got.reply[:, 1, 0])
    assert weights.size > 10_000
    assert int((weights == got.a).sum()) == 0


def test_without_re_randomisation_they_are_solved() -> None:
    got = served(WithoutZero)
    assert np.array_equal(solve_c1(got.sent[:, 1, 0], got.reply[:, 1, 0]), got.a)


def test_nor_are_their_differences_from_those_of_rows() -> None:
    got = differences(served(BlockEvaluation, ROWS))
    assert int((solve_c1(got.sent[:, 1, 0], got.reply[:, 1, 0]) == got.a).sum()) == 0


def test_with_one_encryption_of_zero_for_all_rows_they_are() -> None:
    got = differences(served(SharedZero))
    assert np.array_equal(solve_c1(got.sent[:, 1, 0], got.reply[:, 1, 0]), got.a)


def noise_regression(got: Exchange) -> np.ndarray:
    """Least squares of the replies' noise on the noise that was sent: an estimate of A, float64 [rows, d]."""
    sent = np.stack([noise(c, got.secret, m) for c, m in zip(got.sent, got.rho, strict=True)])
    shares = got.prepared.shares.T
    replied = np.stack([noise(c, got.secret, m) for c, m in zip(got.reply, shares, strict=True)])
    return np.linalg.lstsq(sent.T, replied.T, rcond=None)[0].T


def correlation(estimate: np.ndarray, a: np.ndarray) -> float:
    return float(np.corrcoef(estimate.ravel(), a.ravel())[0, 1])


def test_noise_tells_nothing_of_the_weights() -> None:
    got = served(BlockEvaluation, ROWS)
    assert abs(correlation(noise_regression(got), got.a)) <= 0.05


def test_without_a_flood_noise_tells_the_weights() -> None:
    got = served(WithoutFlood)
    estimate = noise_regression(got)
    assert correlation(estimate, got.a) > 0.999
    assert np.abs(np.rint(estimate) - got.a).mean() < 0.2 * np.abs(got.a).mean()


def correlation_by_row(estimate: np.ndarray, a: np.ndarray) -> float:
    """The mean of the rows': a few that are told do not go under in the noise of the others."""
    return float(np.mean([correlation(*pair) for pair in zip(estimate, a, strict=True)]))


def test_noise_of_row_differences_tells_nothing_of_theirs() -> None:
    got = differences(served(BlockEvaluation, ROWS))
    assert abs(correlation_by_row(noise_regression(got), got.a)) <= 0.05


def test_with_one_flood_for_all_rows_it_does() -> None:
    got = differences(served(SharedFlood))
    estimate = noise_regression(got)
    assert correlation_by_row(estimate, got.a) > 0.999
    assert np.abs(np.rint(estimate) - got.a).mean() < 0.2 * np.abs(got.a).mean()


def test_decryption_is_exact_at_both_ends_of_the_flood() -> None:
    for end in (-FLOOD, FLOOD - 1):

        class AtTheEnd(BlockEvaluation):
            def _flood(self, end: int = end) -> np.ndarray:
                return np.full(N, end, dtype=np.int64)

        got = served(AtTheEnd)
        wanted = (got.a.astype(np.int64) @ got.rho.astype(np.int64)).T - got.shares
        assert np.array_equal(got.prepared.shares, (wanted & (T - 1)).astype(np.uint32))


def deviating(build: type[BlockEvaluation], unit: int = 1 << 51) -> tuple[np.ndarray, np.ndarray]:
    """A key holder adds `unit` to single coefficients of c0; its estimate of A, and A.

    What is below the gap's unit Q/t is in no share: only the flood hides it.
    """
    d = rows = 16
    block = Remembering(d, rows)
    words, seeds = block.encrypted(0, d)
    for level, prime in enumerate(PRIMES):
        for feature in range(d):
            # Every d-th coefficient carries the same feature: 256 looks at each weight.
            some = words[feature, level, feature::d].astype(np.int64)
            words[feature, level, feature::d] = (some + unit) % prime
    with parties(build, d, rows) as party:
        wire, a = party.private._online, party.a
        begin = pack_begin(0, block.block_id, block.public_halves(wire.nonce))
        wire.ask(Kind.BLOCK_BEGIN, begin, Kind.ACCEPTED, 0, 30)
        payload = wire.ask(
            Kind.BLOCK_ROWS,
            pack_rows(block.block_id, 0, words, seeds),
            Kind.BLOCK_REPLY,
            reply_bytes(rows),
            30,
        )
    reply = unpack_reply(payload, rows)[1]
    shares = block.finish(reply).shares.T
    left = np.stack([noise(c, block.secret, m) for c, m in zip(reply, shares, strict=True)])
    return left.reshape(rows, N // d, d).mean(axis=1) / unit, a


def test_a_key_holder_with_malformed_encryptions_learns_nothing_from_the_gap() -> None:
    estimate, a = deviating(BlockEvaluation)
    assert abs(correlation(estimate, a)) < 0.3


def test_a_flood_that_covers_honest_noise_alone_tells_it_the_weights() -> None:
    estimate, a = deviating(WithSmallFlood)
    assert correlation(estimate, a) > 0.8


def divided_by_x(answer: np.ndarray, x_q: np.ndarray) -> np.ndarray:
    """Of one token, [rows] by [d]: what A would be if each product were by itself."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(np.rint(answer[:, np.newaxis] / x_q))


def test_an_answer_divided_by_x_is_no_row_of_a() -> None:
    """Replies with products in separate slots give a_ij x_j; here every answer is a whole sum, masked."""
    got = served(BlockEvaluation)
    wanted = got.x_q.astype(np.int64) @ got.a.T.astype(np.int64)
    assert np.array_equal(centred(got.y - got.prepared.shares[: len(got.y)]), wanted)
    for answer in (got.y[0], wanted[0]):  # as the wire has it, and as the key holder computes it
        found = divided_by_x(answer, got.x_q[0]) == got.a
        assert int(found.sum()) <= found.size // 100  # small integers meet by chance


def test_of_a_single_feature_division_gives_a_column_to_the_key_holder_and_nothing_to_the_wire() -> None:
    """What is in an answer by itself is found: so a metered token is a column of A (docs/threat-model.md)."""
    with parties(BlockEvaluation, D, 8) as party:
        party.private.prepare(QK)
        bound = party.private.info().site(QK).x_bound
        x = np.zeros((1, D), dtype=np.float32)
        x[0, 5] = bound
        (told,) = party.private.products([(QK, x)])
        (answer,) = party.answered(Kind.PRODUCTS_REPLY)
        on_the_wire = unpack_ring(answer, [(1, 8)])[0]
        assert np.array_equal(divided_by_x(told[0], x[0])[:, 5], party.a[:, 5])
        assert int((divided_by_x(centred(on_the_wire)[0], x[0])[:, 5] == party.a[:, 5]).sum()) <= 1


class Forgetful(Supply):
    """Takes the same indices again and again."""

    def take(self, tokens: int) -> tuple[list, list]:
        slices, _ = super().take(tokens)
        self._cursors[0].next = 0
        return slices, []


@pytest.mark.parametrize("supply", [Supply, Forgetful])
def test_masks_of_two_tokens_that_are_sent_have_nothing_in_common(supply: type[Supply]) -> None:
    """A mask used twice gives the difference of two tokens to the adapter holder: why indices are burned."""
    with mock.patch.object(key_holder, "Supply", supply), parties(BlockEvaluation, D, 8) as party:
        party.private.prepare(QK)
        bound = party.private.info().site(QK).x_bound
        x = np.random.default_rng(2).integers(-99, 99, (2, D))
        x[:, -1] = bound
        party.private.products([(QK, x[:1].astype(np.float32))])
        if supply is Forgetful:  # the adapter holder would not answer either; it has seen it by then
            with pytest.raises(HeUnavailable, match="index"):
                party.private.products([(QK, x[1:].astype(np.float32))])
        else:
            party.private.products([(QK, x[1:].astype(np.float32))])
        frames = [unpack_ranges(body) for body in party.sent(Kind.PRODUCTS)]
        first, second = (unpack_ring(rest, [(1, D)])[0].astype(np.int64) for _, rest in frames)
        seen = centred(first - second)
        if supply is Forgetful:
            assert np.array_equal(seen, x[:1] - x[1:])
        else:
            assert np.abs(seen).mean() > T / 8


class NoAcceptLog:
    """Answers whatever is asked, as often as it is."""

    def __init__(self, inner: object) -> None:
        self._inner = inner

    def __getattr__(self, name: str) -> object:
        return getattr(self._inner, name)

    def sites(self, _offer: object, ranges: list[Range]) -> list[str]:
        return [QK] * len(ranges)

    def accept(self, _offer: object, ranges: list[Range]) -> list[bytes]:
        return [b"salt"] * len(ranges)


@pytest.mark.parametrize("accepting_once", [True, False])
def test_an_index_answered_twice_would_give_a_column_of_a(accepting_once: bool) -> None:
    """Two answers with one share cancel it; so an adapter holder answers each index once."""
    with parties(BlockEvaluation, D, 8) as party:
        party.private.prepare(QK)
        block_id = party.private._supplies[QK]._cursors[0].block.block_id
        if not accepting_once:
            party.holder.service.accepted = NoAcceptLog(party.holder.service.accepted)  # type: ignore[assignment]

        def asked(z: np.ndarray) -> np.ndarray:
            parts = pack_products([MaskedRange(Range(block_id, 17, 1), z)])
            payload = party.private._online.ask(Kind.PRODUCTS, parts, Kind.PRODUCTS_REPLY, 4 * 8, 5)
            return unpack_ring(payload, [(1, 8)])[0].astype(np.int64)

        nothing = asked(np.zeros((1, D), dtype=np.uint32))
        if accepting_once:
            with pytest.raises(HeUnavailable, match="index"):
                asked(np.eye(1, D, dtype=np.uint32))
            return
        assert np.array_equal(centred(asked(np.eye(1, D, dtype=np.uint32)) - nothing)[0], party.a[:, 0])


@pytest.mark.parametrize("accepting_once", [True, False])
def test_an_index_twice_in_one_request_would_too(accepting_once: bool) -> None:
    """Refused, it is not metered, nor are the tokens beside it; and the connection goes on."""
    with parties(BlockEvaluation, D, 8) as party:
        party.private.prepare(QK)
        block_id = party.private._supplies[QK]._cursors[0].block.block_id
        log = party.holder.service.accepted
        if not accepting_once:
            party.holder.service.accepted = NoAcceptLog(log)  # type: ignore[assignment]

        def asked(*places: tuple[int, int]) -> np.ndarray:
            """Nothing at (first, tokens) of the block, and a unit for the very last token."""
            count = sum(tokens for _, tokens in places)
            z = np.zeros((count, D), dtype=np.uint32)
            z[-1, 0] = 1
            parts = np.split(z, np.cumsum([tokens for _, tokens in places])[:-1])
            ranges = [
                MaskedRange(Range(block_id, *place), part) for place, part in zip(places, parts, strict=True)
            ]
            payload = party.private._online.ask(
                Kind.PRODUCTS, pack_products(ranges), Kind.PRODUCTS_REPLY, 4 * 8 * count, 5
            )
            return unpack_ring(payload, [(count, 8)])[0].astype(np.int64)

        if not accepting_once:
            y = asked((17, 1), (17, 1))
            assert np.array_equal(centred(y[1] - y[0]), party.a[:, 0])
            return
        answered = 0
        for first in (0, 3):  # the second time it knows the block
            for overlapping in ([(first, 3), (first + 1, 1)], [(first, 3), (first, 3)]):
                with pytest.raises(HeUnavailable) as raised:
                    asked(*overlapping)
                assert raised.value.code == GARBAGE
                assert log.spent("a", 1, 1) == ({QK: {TENANT: answered}} if answered else {})
            answered += len(asked((first, 1), (first + 1, 2)))
            assert log.spent("a", 1, 1) == {QK: {TENANT: answered}}
        replied = sum(len(body) for body in party.answered(Kind.PRODUCTS_REPLY))
        assert replied == 4 * 8 * answered == 4 * 8 * 6


def test_what_is_sent_is_uniform_whatever_the_token() -> None:
    with parties(BlockEvaluation, D, 8) as party:
        party.private.prepare(QK)
        party.private.products([(QK, np.full((N, D), 1000, dtype=np.float32))])
        (body,) = party.sent(Kind.PRODUCTS)
        z = unpack_ring(unpack_ranges(body)[1], [(N, D)])[0]
    counts = np.bincount((z >> 24).ravel(), minlength=16)
    expected = z.size / 16
    assert float(((counts - expected) ** 2 / expected).sum()) < 60  # chi-square, 15 degrees: p about 2e-7


def test_the_reply_of_another_block_or_epoch_is_refused() -> None:
    """An adapter holder that says again what it said before; and masks of the epoch before."""
    with parties(BlockEvaluation, D, 8) as party:
        pack = service.pack_reply
        kept: list[bytes] = []

        def again(block_id: bytes, words: np.ndarray) -> list:
            kept.append(block_id)
            return pack(kept[0], words)

        with mock.patch.object(service, "pack_reply", again):
            party.private.prepare(QK)
            with pytest.raises(HeUnavailable) as raised:
                party.private.prepare(QK)
        assert raised.value.code == GARBAGE
        assert party.private.prepared()[QK] == N
        party.holder.store.rotate("a")
        party.holder.service.forget_what_was_looked_up()
        newer = RemoteKeyHolder(party.private._connector, Wanted(TENANT, "a"), party.private._burn_log, QUICK)
        newer._supplies[QK] = party.private._supplies[QK]  # masks of the epoch before
        with pytest.raises(HeUnavailable) as raised:
            newer.products([(QK, np.ones((1, D), dtype=np.float32))])
        assert raised.value.code == "version_mismatch"
        newer.close()


@pytest.mark.parametrize("fresh", [True, False], ids=["as it is", "one salt for all"])
def test_a_block_opened_twice_around_a_rotation_gives_nothing_of_a(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fresh: bool
) -> None:
    """The greeting of the new epoch forgets the old one's blocks, which an old session may begin once more
    if it has looked at the store before. With the same shares the difference of both replies would be A.
    """
    if not fresh:
        monkeypatch.setattr(accepted, "os", SimpleNamespace(urandom=lambda size: b"s" * size))
    with adapter_holder(tmp_path / "h") as holder:
        # A look through the shelf may come at any time, and would close the old epoch first.
        monkeypatch.setattr(holder.service.shelf, "forget_stale", lambda: None)
        holder.store.publish(
            "a", peft_files(D, 4, leaves=("q", "k")), base_model="base", policy=policy(tokens_per_site=1)
        )
        a = holder.store.load("a").adapter.sites[QK].a.astype(np.int64)
        hello = _frame(
            Kind.HELLO, [packed(Hello(parameters=PARAMETERS, tenant=TENANT, adapter="a", version=None))]
        )
        session, _ = holder.service.greet(hello, None)
        index = [shape.site for shape in session._opened.info.sites].index(QK)
        block_id = bytes(range(16))

        def shares(rho: np.ndarray) -> np.ndarray:
            block = PreparingBlock(D, len(a))
            block.block_id, block._rho = block_id, rho
            elements = block.public_halves(session._nonce)
            session.answer(_frame(Kind.BLOCK_BEGIN, pack_begin(index, block_id, elements)))
            for first in range(0, D, 64):
                _, parts = session.answer(
                    _frame(
                        Kind.BLOCK_ROWS,
                        pack_rows(block_id, first, *block.encrypted(first, min(64, D - first))),
                    )
                )
            reply = memoryview(b"".join(bytes(part) for part in parts))
            return block.finish(unpack_reply(reply, len(a))[1]).shares

        none, unit = np.zeros((D, N), dtype=np.uint32), np.zeros((D, N), dtype=np.uint32)
        unit[np.arange(D), np.arange(D)] = 1
        first = shares(none)
        with pytest.raises(HeUnavailable, match="has been used"):
            shares(unit)
        holder.service.forget_what_was_looked_up()
        holder.service.check_current(session.offer)
        holder.store.rotate("a")
        holder.service.greet(hello, None)
        with pytest.raises(Over):
            shares(unit)
        # It looks at the store before it opens a block: a rotation may still come between the two.
        monkeypatch.setattr(holder.service, "check_current", lambda *_, **__: None)
        learned = centred_mod_t(shares(unit) - first)[:D].T
        assert holder.service.accepted.spent("a", 1, 1) == {}
        assert bool((learned == a).all()) is not fresh
        if fresh:
            assert (learned == a).mean() < 0.01


def _frame(kind: Kind, parts: Sequence[bytes | memoryview]) -> Frame:
    return Frame(kind, 1, memoryview(b"".join(bytes(part) for part in parts)))
