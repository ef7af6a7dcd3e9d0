"""Whether an adapter may be applied in the clear, who decides it, and what is said about what ran.

A *private* adapter lies with an adapter holder, which evaluates it under encryption; a *plain* one lies in
the vault and is applied by the sampler itself. The policy of an adapter says which of the two may answer.
The whole decision is `decide`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

from tensafe.contracts.errors import HeRefused, InvalidRequest


class ExecutionPolicy(StrEnum):
    """What a sample may be computed with, from the weakest to the strongest."""

    PLAINTEXT_ONLY = "PLAINTEXT_ONLY"
    HE_PREFERRED = "HE_PREFERRED"
    HE_REQUIRED = "HE_REQUIRED"

    @property
    def strength(self) -> int:
        """Greater is stronger."""
        return _ORDER.index(self)


class ExecutionMode(StrEnum):
    """What an adapter was computed with; `NONE` is a base model, which has none."""

    NONE = "NONE"
    PLAINTEXT = "PLAINTEXT"
    HE = "HE"


_ORDER: Final = (ExecutionPolicy.PLAINTEXT_ONLY, ExecutionPolicy.HE_PREFERRED, ExecutionPolicy.HE_REQUIRED)
DEFAULT_PRIVATE: Final = ExecutionPolicy.HE_REQUIRED
DEFAULT_PLAIN: Final = ExecutionPolicy.PLAINTEXT_ONLY


@dataclass(frozen=True, slots=True)
class Offer:
    """What there is of an adapter: with an adapter holder, in the vault, or neither (a base model)."""

    policy: ExecutionPolicy
    encrypted: bool
    plaintext: bool

    @property
    def is_adapter(self) -> bool:
        return self.encrypted or self.plaintext


BASE_MODEL: Final = Offer(DEFAULT_PLAIN, encrypted=False, plaintext=False)


def effective(adapter: ExecutionPolicy, request: ExecutionPolicy | None) -> ExecutionPolicy:
    """The policy that holds. Raises InvalidRequest if the request asks for less than the adapter's."""
    if request is None:
        return adapter
    if request.strength < adapter.strength:
        raise InvalidRequest(
            f"the adapter's policy is {adapter}; a request can strengthen it, not weaken it to {request}",
            field="execution_policy",
        )
    return request


OWNERS_REFUSALS: Final = frozenset({"he_budget_spent", "he_not_allowed", "he_certificate_refused"})
"""Codes by which an adapter holder says that it may not answer, where all others say that it cannot.

A certificate that has merely ended looks like one that was taken away.
"""


def decide(offer: Offer, policy: ExecutionPolicy, *, failed: str | None = None) -> ExecutionMode:
    """What an answer under `policy` is computed with; `failed` is the code if encryption was tried in vain.

    Raises HeRefused where nothing may answer: then no token is generated or none is given out. What the
    adapter's owner refuses is not answered in the clear either.
    """
    if failed in OWNERS_REFUSALS:
        raise HeRefused(failed)
    if policy is not ExecutionPolicy.PLAINTEXT_ONLY and offer.encrypted and failed is None:
        return ExecutionMode.HE
    if policy is ExecutionPolicy.HE_REQUIRED:
        raise HeRefused(failed or "he_not_offered")
    if offer.plaintext:
        return ExecutionMode.PLAINTEXT
    if offer.encrypted:  # it exists nowhere else, so there is nothing that a weaker policy could fall back to
        raise HeRefused(failed or "he_only")
    return ExecutionMode.NONE


@dataclass(frozen=True, slots=True)
class Execution:
    """What computed one answer, as counted where the work was done, over all of its continuations.

    `adapter` is `name@version`; `digest` (hex) is the SHA-256 of a private adapter as it is quantised, or of
    an ordinary one's files (`audit.attestation.files_digest`). `fallback` is the code for which an adapter
    that is preferably evaluated under encryption was applied in the clear.

    Of the prompts' `prompt_tokens`, one prompt for each continuation, `cached_tokens` were taken from the
    prefix cache. The rest is counted where an adapter holder evaluates, and 0 elsewhere: `tokens`, the rows
    that forward passes ran for this answer, of which `recomputed_tokens` had run before (a preempted request
    begins again) and `overrun_tokens` ran behind the last one that the answer needs, before a stop was
    noticed; and `evaluated_by_site`, the rows that the adapter holder answered at each layer input that the
    adapter applies to: `tokens` at every one, or the answer is discarded.
    """

    mode: ExecutionMode
    adapter: str | None = None
    digest: str | None = None
    epoch: int | None = None
    parameters: str | None = None
    fallback: str | None = None
    prompt_tokens: int = 0
    cached_tokens: int = 0
    tokens: int = 0
    recomputed_tokens: int = 0
    overrun_tokens: int = 0
    evaluated_by_site: Mapping[str, int] = field(default_factory=dict)

    @property
    def sites(self) -> int:
        """Layer inputs at which it was evaluated."""
        return len(self.evaluated_by_site)

    @property
    def evaluated(self) -> int:
        """(site, token) pairs that the adapter holder answered."""
        return sum(self.evaluated_by_site.values())
