"""Attacks on the direct mode, on captured frames: they fail on what serves, and succeed without a defence.

A direct reply is a polynomial a(X) x(X) for each group of rows; whoever can divide by what it has sent has A.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from unittest import mock

import numpy as np

from tensafe_gpu.helora import direct, key_holder
from tensafe_gpu.helora.direct import DirectRequest, DirectSite, layout_of
from tensafe_gpu.helora.direct_messages import unpack_direct, unpack_direct_reply
from tensafe_gpu.helora.evaluation import BlockEvaluation
from tensafe_gpu.helora.frames import Kind
from tensafe_gpu.helora.parameters import PRIMES, N, Q, T
from tests.support.helora_attacks import Secret, expanded, noise
from tests.support.helora_party import QK, parties
from tests.support.helora_rings import coefficients, transformed

D, ROWS = 128, 90
"""11,520 weights: three groups of 32 rows at most, the last of 26, one ciphertext each way for each."""
LAYOUT = layout_of(D, ROWS)
Build = Callable[[], AbstractContextManager[object]]


def serving() -> AbstractContextManager[object]:
    return nullcontext()


def without_zero() -> AbstractContextManager[object]:
    nothing = np.zeros((2, len(PRIMES), N), dtype=np.uint32)
    return mock.patch.object(DirectSite, "_zero", return_value=nothing)


def without_flood() -> AbstractContextManager[object]:
    return mock.patch.object(direct, "floods", lambda count, _bound: np.zeros(count, dtype=np.int64))


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
        told = [[(int(v) * T + Q // 2) // Q % T for v in secret.phase(words)] for words in reply]
        return Exchange(
            a=DirectSite(party.a)._polynomials(party.a)[:, 0],
            x_q=x[0],
            sent=expanded(entry.words, entry.seeds)[0],
            reply=reply,
            secret=secret,
            told=np.array(told, dtype=np.int64),
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


def test_weights_cannot_be_divided_out_of_the_second_polynomial() -> None:
    got = exchange(serving)
    assert int(got.is_weight.sum()) > 10_000
    assert int((divided_by_c1(got) == got.a)[got.is_weight].sum()) == 0


def test_without_re_randomisation_they_are() -> None:
    got = exchange(without_zero)
    assert np.array_equal(divided_by_c1(got), got.a)


def test_noise_tells_nothing_of_the_weights() -> None:
    got = exchange(serving)
    assert abs(correlation(divided_noise(got), got)) <= 0.05


def test_without_a_flood_noise_tells_the_weights() -> None:
    got = exchange(without_flood)
    assert correlation(divided_noise(got), got) > 0.9


def test_an_answer_divided_by_x_is_no_row_of_a() -> None:
    got = exchange(serving)
    weights = got.a[-1] != 0
    assert int(weights.sum()) > 3000
    assert int((divided_by_x(got) == got.a[-1])[weights].sum()) <= 1


def test_without_masks_one_token_divided_by_x_gives_every_row() -> None:
    got = exchange(without_masks)
    assert np.array_equal(divided_by_x(got)[: N - D], got.a[-1][: N - D])
