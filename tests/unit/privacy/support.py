"""A flaky store, runs to open, and an independent epsilon."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Final, cast

import mpmath

from tensafe.contracts.errors import Unavailable
from tensafe.privacy.ledger import Ledger
from tensafe.privacy.mechanism import Mechanism
from tensafe.privacy.noise import noise_key_id
from tensafe.privacy.records import RunRef
from tensafe.storage.anchors import Anchors
from tensafe.storage.ports import Blobs, Items, Write
from tensafe.vault.vault import Vault
from tests.fakes import MemoryAnchors, MemoryKeyRing, memory_signer


class FlakyItems:
    """Fails the next write before it is applied, or just after, as a lost connection would."""

    def __init__(self, inner: Items) -> None:
        self.inner = inner
        self.fail: str | None = None
        self.get = inner.get
        self.query = inner.query

    def write(self, writes: Sequence[Write]) -> None:
        fail, self.fail = self.fail, None
        if fail == "before":
            raise Unavailable("the store did not answer")
        self.inner.write(writes)
        if fail == "after":
            raise Unavailable("the store did not answer")


class NoBlobs:
    """The ledger keeps everything in items; touching a blob is a failure (no attribute exists)."""


def new_vault(items: Items) -> Vault:
    return Vault(items, cast(Blobs, NoBlobs()), MemoryKeyRing())


SIGNER: Final = memory_signer()
_anchors_of: Final[weakref.WeakKeyDictionary[Vault, Anchors]] = weakref.WeakKeyDictionary()


def anchors_of(vault: Vault) -> Anchors:
    """The anchors of the installation that has this vault: one for all ledgers over it."""
    return _anchors_of.setdefault(vault, MemoryAnchors())


def new_ledger(items: Items, vault: Vault, *, clock_ms: Callable[[], int] | None = None) -> Ledger:
    """A ledger as another process over the same stores would have it."""
    given = {} if clock_ms is None else {"clock_ms": clock_ms}
    return Ledger(items, vault, SIGNER, anchors_of(vault), **given)


MECHANISM = Mechanism(
    clip_norm=1.0,
    noise_multiplier=1.0,
    batch_size=8,
    max_participations=3,
    delta=1e-5,
    domain="letters",
)


def secret_of(run_id: str) -> bytes:
    return run_id.encode()[-32:].ljust(32, b"\0")


def open_run(ledger: Ledger, run_id: str = "run-1", tenant: str = "acme", **changes: object) -> RunRef:
    mechanism = replace(MECHANISM, **changes)  # type: ignore[arg-type]
    return ledger.open_run(tenant, run_id, mechanism, noise_key_id=noise_key_id(secret_of(run_id)))


def exact_delta(epsilon: float, mu: mpmath.mpf) -> mpmath.mpf:
    """Balle and Wang 2018, Theorem 8, with mu = sensitivity / standard deviation."""
    return mpmath.ncdf(mu / 2 - epsilon / mu) - mpmath.exp(epsilon) * mpmath.ncdf(-mu / 2 - epsilon / mu)


def exact_epsilon(mu_2: float, delta: float, digits: int = 40) -> float:
    """The smallest epsilon >= 0 with exact_delta(epsilon) <= delta, by bisection in high precision."""
    with mpmath.workdps(digits):
        mu, target = mpmath.sqrt(mpmath.mpf(mu_2)), mpmath.mpf(delta)
        low, high = mpmath.mpf(0), mpmath.mpf(1)
        if mu == 0 or exact_delta(low, mu) <= target:
            return 0.0
        while exact_delta(high, mu) > target:
            low, high = high, high * 2
        for _ in range(70):
            middle = (low + high) / 2
            low, high = (middle, high) if exact_delta(middle, mu) > target else (low, middle)
        return float(high)
