"""Every error that TenSafe raises on purpose.

    TensafeError
    ├── InvalidRequest        the caller sent something wrong; `field` names it
    │   └── Unsupported       understood, but this service does not do it
    ├── PayloadTooLarge       over a documented cap
    ├── Unauthenticated       no credential, or one that is not accepted
    ├── Forbidden             the key is valid and lacks the scope
    ├── NotFound              absent, or another tenant's: the two are indistinguishable
    ├── Conflict              the same idempotency key or sequence number with another payload
    ├── Gone                  it existed and has been erased or has expired
    ├── RunBlocked            an earlier operation of the run died; nothing more runs on it
    ├── BudgetExceeded        a privacy budget would be overspent; nothing was drawn
    ├── QuotaExceeded         the tenant has as much as it may; waiting does not help
    ├── Unavailable           a dependency is down or busy; trying again may help
    │   ├── TooManyRequests   one tenant has too much in hand at once
    │   │   └── RateLimited   the tenant has used what it may for now; `retry_after_s` says until when
    │   └── HeRefused         what must run under encryption cannot; nothing was given out
    ├── IntegrityError        sealed data did not authenticate, or a checksum differs
    └── ConfigurationError    the operator has to change something before anything starts

`code` is stable and public; `message` says what to do and is safe to show; inner detail belongs in
the log. HTTP status codes are mapped by type in `tensafe.api.errors` and nowhere else. To add an
error: subclass the nearest class, give it a `code`, and add it to that map.
"""

from __future__ import annotations

from typing import Final, Literal

Category = Literal["user", "server"]


class TensafeError(Exception):
    """Base of all deliberate errors."""

    code = "internal_error"
    category: Category = "server"

    def __init__(self, message: str, *, field: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.field = field
        if code is not None:
            self.code = code


class InvalidRequest(TensafeError):
    """The request is wrong; `field` is the path of the offending value."""

    code = "invalid_request"
    category: Category = "user"


class Unsupported(InvalidRequest):
    """A value that is valid in the protocol and that this service refuses by name."""

    code = "unsupported"


class PayloadTooLarge(TensafeError):
    """A size cap was exceeded; nothing was allocated for the rest."""

    code = "payload_too_large"
    category: Category = "user"


class Unauthenticated(TensafeError):
    """No credential, or one that is unknown, expired or revoked."""

    code = "unauthenticated"
    category: Category = "user"


class Forbidden(TensafeError):
    """The credential is valid and lacks the scope."""

    code = "forbidden"
    category: Category = "user"


class NotFound(TensafeError):
    """Absent, or owned by another tenant."""

    code = "not_found"
    category: Category = "user"


class Conflict(TensafeError):
    """The key or sequence number is taken by another payload."""

    code = "conflict"
    category: Category = "user"


class Gone(TensafeError):
    """Erased or expired."""

    code = "gone"
    category: Category = "user"


class RunBlocked(TensafeError):
    """An earlier operation of this run ended in the dead letters."""

    code = "run_blocked"
    category: Category = "user"


class BudgetExceeded(TensafeError):
    """The step would overspend a privacy budget; no noise was drawn and nothing was applied."""

    code = "privacy_budget_exceeded"
    category: Category = "user"


class QuotaExceeded(TensafeError):
    """The tenant has as much as it may; nothing was done, and only less of it or a higher limit will help."""

    code = "quota_exceeded"
    category: Category = "user"


class Unavailable(TensafeError):
    """A dependency is down or busy."""

    code = "unavailable"


class TooManyRequests(Unavailable):
    """The tenant has as many requests in hand as it may; nothing was done for this one."""

    code = "too_many_requests"
    retry_after_s: int = 1


class RateLimited(TooManyRequests):
    """The tenant has used what it may for now; nothing was done, and asking again later will do."""

    code = "rate_limited"

    def __init__(self, message: str, *, retry_after_s: int, code: str | None = None) -> None:
        super().__init__(message, code=code)
        self.retry_after_s = retry_after_s


class HeRefused(Unavailable):
    """What must run under encryption cannot run so; no token was given out. `code` says why."""

    code = "he_not_offered"

    def __init__(self, code: str, detail: str = "") -> None:
        reason = HE_CODES.get(code, "it could not be evaluated")
        super().__init__(f"this answer must be computed under encryption, and {reason}{detail}", code=code)


HE_CODES: Final = {
    "he_not_offered": "there is no adapter holder for it",
    "he_only": "the adapter exists nowhere else; leave out PLAINTEXT_ONLY",
    "he_not_configured": "its sampler runs without TENSAFE_PRIVATE_ADAPTERS=true",
    "he_adapter_holder_absent": "its adapter holder does not answer; try again later",
    "he_budget_spent": "the budget that the adapter's owner set is spent until its next epoch",
    "he_too_many_blocks": "too much that was prepared at its adapter holder was never used; try in an hour",
    "he_parameters_refused": "the two parties do not agree on the parameters",
    "he_version_mismatch": "the adapter holder has another version of it, or of the protocol",
    "he_digest_mismatch": "its adapter holder offers other weights than were published, or another epoch",
    "he_timeout": "its adapter holder did not answer in time; try again later",
    "he_garbage": "its adapter holder answered with something that is not an evaluation",
    "he_not_allowed": "its adapter holder does not offer it to this tenant",
    "he_certificate_refused": "its sampler and its adapter holder do not accept each other's certificates",
    "he_misconfigured": "its sampler has no address or certificate to reach the adapter holder with",
    "he_not_prepared": "its preprocessing did not keep up; try again",
    "he_activations_not_finite": "the base model's activations are no numbers for this prompt",
    "he_state_failed": "the record of used masks cannot be written",
    "he_does_not_fit": "it does not fit the base model",
    "he_not_evaluated": "fewer of its layers were evaluated than the answer needs; it was discarded",
}
"""Every code of HeRefused and the end of its sentence."""


class IntegrityError(TensafeError):
    """Sealed data did not authenticate or a checksum differs; the data must not be used."""

    code = "integrity_error"


class ConfigurationError(TensafeError):
    """The service cannot start as configured."""

    code = "configuration_error"
    category: Category = "user"
