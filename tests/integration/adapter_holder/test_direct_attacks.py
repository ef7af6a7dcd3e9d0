"""Attacks on the direct mode, on captured frames: they fail on what serves, and succeed without a defence.

A direct reply is a polynomial a(X) x(X) for each group of rows; whoever can divide by what it has sent has A.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from dataclasses import dataclass
from unittest import mock

import numpy as np

from tensafe_gpu.helora import direct, key_holder
from tensafe_gpu.helora.direct import DirectRequest, DirectSite, layout_of
from tensafe_gpu.helora.direct_messages import (
    DirectEntry,
    direct_reply_bytes,
    pack_direct,
    unpack_direct,
    unpack_direct_reply,
)
from tensafe_gpu.helora.evaluation import BlockEvaluation
from tensafe_gpu.helora.frames import Kind
from tensafe_gpu.helora.parameters import PRIMES, N, Q, T
from tests.support.helora_attacks import Secret, expanded, less_the_one_before, noise
from tests.support.helora_party import QK, parties
from tests.support.helora_rings import coefficients, transformed

D, ROWS = 128, 154
"""19,712 weights: five groups of 32 rows at most, the last of 26, one ciphertext each way for each."""
LAYOUT = layout_of(D, ROWS)
Build = Callable[[], AbstractContextManager[object]]


def serving() -> AbstractContextManager[object]:
    return nullcontext()


def without_zero() -> AbstractContextManager[object]:
    nothing = np.zeros((2, len(PRIMES), N), dtype=np.uint32)
    return mock.patch.object(DirectSite, "_zero", return_value=nothing)


def without_flood() -> AbstractContextManager[object]:
    return mock.patch.object(direct, "floods", lambda count, _bound: np.zeros(count, dtype=np.int64))


@contextmanager
def one_zero_for_all_groups() -> Iterator[None]:
    zero, drawn = DirectSite._zero, []

    def shared(site: DirectSite, encryptor: object) -> np.ndarray:
        drawn[:] = drawn or [zero(site, encryptor)]
        return drawn[0]

    with mock.patch.object(DirectSite, "_zero", shared):
        yield


def one_flood_for_all_groups() -> AbstractContextManager[object]:
    return mock.patch.object(direct, "floods", return_value=direct.floods(N, direct.DIRECT_FLOOD))


def with_small_flood() -> AbstractContextManager[object]:
    """Covers the noise of honest ciphertexts, not all of the gap."""
    return mock.patch.object(direct, "DIRECT_FLOOD", 1 << 45)


def without_masks() -> AbstractContextManager[object]:
    return mock.patch.object(direct, "ring_rows", return_value=np.zeros((1, N), dtype=np.uint32))


class Remembering(DirectRequest):
    """Keeps the secret key, which is gone with the request."""

    last: Secret

    def __init__(self) -> None:
        super().__init__()
        Remembering.last = Secret(self)


@dataclass(frozen=True, slots=True)
class Exchange:
    """A token as the wire had it, and what its key holder has."""

    a: np.ndarray
    """What is wanted, int64 [groups, N]: the groups' polynomials."""
    x_q: np.ndarray
    sent: np.ndarray
    """uint32 [2, 3, N]."""
    reply: np.ndarray
    """uint32 [groups, 2, 3, N]."""
    secret: Secret
    told: np.ndarray
    """The reply as it decrypts, int64 [groups, N] below t: the rows' products, and what covers the rest."""

    @property
    def is_weight(self) -> np.ndarray:
        return self.a != 0


def decrypted(secret: Secret, reply: np.ndarray) -> np.ndarray:
    """Ciphertexts uint32 [groups, 2, 3, N] -> int64 [groups, N] below t."""
    told = [[(int(v) * T + Q // 2) // Q % T for v in secret.phase(words)] for words in reply]
    return np.array(told, dtype=np.int64)


@functools.cache
def exchange(build: Build) -> Exchange:
    with (
        build(),
        mock.patch.object(key_holder, "DirectRequest", Remembering),
        parties(BlockEvaluation, D, ROWS) as party,
    ):
        x = np.random.default_rng(1).integers(-99, 99, (1, D))
        x[0, 0], x[0, -1] = 1, party.private.info().site(QK).x_bound  # the scale is 1
        (products,) = party.private.direct_products([(QK, x.astype(np.float32))])
        assert np.array_equal(products[0], (x[0] @ party.a.T.astype(np.int64)).astype(np.float32))
        (asked,), (answer,) = party.sent(Kind.DIRECT), party.answered(Kind.DIRECT_REPLY)
        _, _, (entry,) = unpack_direct(asked, [LAYOUT])
        (reply,) = unpack_direct_reply(answer, [LAYOUT])
        secret = Remembering.last
        return Exchange(
            a=DirectSite(party.a)._polynomials(party.a)[:, 0],
            x_q=x[0],
            sent=expanded(entry.words, entry.seeds)[0],
            reply=reply,
            secret=secret,
            told=decrypted(secret, reply),
        )


def differences(got: Exchange) -> Exchange:
    """Each group of the reply less the one before, as its key holder can subtract: what they share goes."""
    return dataclasses.replace(
        got,
        a=np.diff(got.a, axis=0),
        reply=less_the_one_before(got.reply),
        told=np.diff(got.told, axis=0),
    )


def divided_by_c1(got: Exchange) -> np.ndarray:
    """The groups' polynomials, if the reply's second polynomial is a(X) c1(X): int64 [groups, N]."""
    prime = PRIMES[0]
    below = transformed(got.sent[1, 0].astype(object))[0]
    inverse = np.array([pow(int(word), -1, prime) for word in below], dtype=np.int64)
    found = []
    for words in got.reply:
        points = np.zeros((4, N), dtype=np.int64)
        points[0] = transformed(words[1, 0].astype(object))[0] * inverse % prime
        found.append(coefficients(points)[0])
    return (np.stack(found) + prime // 2) % prime - prime // 2


def divided_noise(got: Exchange) -> np.ndarray:
    """They again, if the reply's noise is a(X) e(X) and little else: float64 [groups, N].

    Least squares with a penalty, since some of e(X)'s values at the roots of X^N + 1 are nearly zero.
    """
    message = np.zeros(N, dtype=np.int64)
    message[:D] = got.x_q % T
    turn = np.exp(1j * np.pi * np.arange(N) / N)
    e = np.fft.fft(noise(got.sent, got.secret, message) * turn)
    penalty = 0.1 * float((np.abs(e) ** 2).mean())
    found = []
    for words, told in zip(got.reply, got.told, strict=True):
        left = np.fft.fft(noise(words, got.secret, told) * turn)
        found.append((np.fft.ifft(left * e.conj() / (np.abs(e) ** 2 + penalty)) / turn).real)
    return np.stack(found)


def divided_by_x(got: Exchange) -> np.ndarray:
    """The last group's polynomial, if what decrypts is all of a(X) x(X): int64 [N], by long division.

    That group is not full, so nothing wraps around, and the first coefficient is one weight times x[0].
    """
    rest, found = got.told[-1].copy(), np.zeros(N, dtype=np.int64)
    inverse = pow(int(got.x_q[0]), -1, T)
    for k in range(N - D):
        found[k] = (int(rest[k]) * inverse + T // 2) % T - T // 2
        rest[k : k + D] = (rest[k : k + D] - found[k] * got.x_q) % T
    return found


def correlation(estimate: np.ndarray, got: Exchange) -> float:
    some = got.is_weight
    return float(np.corrcoef(estimate[some], got.a[some])[0, 1])


def correlation_by_group(estimate: np.ndarray, got: Exchange) -> float:
    """The mean of the groups': a few that are told do not go under in the noise of the others."""
    pairs = zip(estimate, got.a, got.is_weight, strict=True)
    return float(np.mean([np.corrcoef(one[some], a[some])[0, 1] for one, a, some in pairs]))


def test_weights_cannot_be_divided_out_of_the_second_polynomial() -> None:
    got = exchange(serving)
    assert int(got.is_weight.sum()) > 10_000
    assert int((divided_by_c1(got) == got.a)[got.is_weight].sum()) == 0


def test_without_re_randomisation_they_are() -> None:
    got = exchange(without_zero)
    assert np.array_equal(divided_by_c1(got), got.a)


def test_nor_can_their_differences_out_of_those_of_groups() -> None:
    got = differences(exchange(serving))
    assert int((divided_by_c1(got) == got.a)[got.is_weight].sum()) == 0


def test_with_one_encryption_of_zero_for_all_groups_they_can() -> None:
    got = differences(exchange(one_zero_for_all_groups))
    assert np.array_equal(divided_by_c1(got), got.a)


def test_noise_tells_nothing_of_the_weights() -> None:
    got = exchange(serving)
    assert abs(correlation(divided_noise(got), got)) <= 0.05


def test_without_a_flood_noise_tells_the_weights() -> None:
    got = exchange(without_flood)
    assert correlation(divided_noise(got), got) > 0.9


def test_noise_of_group_differences_tells_nothing_of_theirs() -> None:
    got = differences(exchange(serving))
    assert abs(correlation_by_group(divided_noise(got), got)) <= 0.05


def test_with_one_flood_for_all_groups_it_does() -> None:
    got = differences(exchange(one_flood_for_all_groups))
    assert correlation_by_group(divided_noise(got), got) > 0.9


def deviating(build: Build, unit: int = 1 << 51) -> tuple[np.ndarray, np.ndarray]:
    """A key holder adds `unit` to c0's first coefficient; its estimate of the groups' polynomials, and they.

    What is below the gap's unit Q/t is in no product: only the flood hides it.
    """
    with build(), parties(BlockEvaluation, D, ROWS) as party, closing(DirectRequest()) as request:
        wire = party.private._online
        words, seeds = request.encrypted(LAYOUT, np.zeros(D, dtype=np.int32))
        for level, prime in enumerate(PRIMES):
            words[0, level, 0] = (int(words[0, level, 0]) + unit) % prime
        parts = pack_direct(request.key_id, request.public_half(wire.nonce), [DirectEntry(0, words, seeds)])
        payload = wire.ask(Kind.DIRECT, parts, Kind.DIRECT_REPLY, direct_reply_bytes([LAYOUT]), 5)
        (reply,) = unpack_direct_reply(payload, [LAYOUT])
        secret = Secret(request)
        left = [
            noise(words, secret, told) for words, told in zip(reply, decrypted(secret, reply), strict=True)
        ]
        return np.stack(left) / unit, DirectSite(party.a)._polynomials(party.a)[:, 0]


def test_a_key_holder_with_a_malformed_encryption_learns_nothing_from_the_gap() -> None:
    estimate, a = deviating(serving)
    assert abs(float(np.corrcoef(estimate.ravel(), a.ravel())[0, 1])) <= 0.05


def test_a_flood_that_covers_honest_noise_alone_tells_it_every_weight() -> None:
    estimate, a = deviating(with_small_flood)
    assert np.array_equal(np.rint(estimate), a)


def test_an_answer_divided_by_x_is_no_row_of_a() -> None:
    got = exchange(serving)
    weights = got.a[-1] != 0
    assert int(weights.sum()) > 3000
    assert int((divided_by_x(got) == got.a[-1])[weights].sum()) <= 1


def test_without_masks_one_token_divided_by_x_gives_every_row() -> None:
    got = exchange(without_masks)
    assert np.array_equal(divided_by_x(got)[: N - D], got.a[-1][: N - D])
