"""What a registered privacy domain allows: decisions on values, no storage."""

from __future__ import annotations

from typing import Final

from tensafe.contracts.domains import MAX_PAGE_UNITS, MAX_PAGES
from tensafe.contracts.errors import BudgetExceeded, Conflict, InvalidRequest, PayloadTooLarge
from tensafe.privacy.accountant import epsilon
from tensafe.privacy.domain_records import Domain
from tensafe.privacy.manifest import ENTRY_BYTES
from tensafe.privacy.records import Head

DOMAIN_CLOSED: Final = "privacy_domain_closed"
DOMAIN_NOT_OPEN: Final = "privacy_domain_not_open"


def domain_closed(domain: Domain) -> Conflict:
    """What is answered to whoever charges, or fills, a closed domain."""
    return Conflict(
        f"privacy domain {domain.name} is closed: nothing is charged to it any more; use another domain",
        code=DOMAIN_CLOSED,
    )


def domain_not_open(domain: Domain) -> Conflict:
    """What is answered to whoever uses a domain before it is finished."""
    return Conflict(
        f"privacy domain {domain.name} is {domain.state} and has no manifest yet; finish its registration "
        "first (POST /v1/privacy/domains/{name}/finish, or tensafe privacy create)",
        code=DOMAIN_NOT_OPEN,
    )


def require_open(domain: Domain) -> None:
    """Refuse to charge a domain that is not open. Raises Conflict."""
    if domain.state == "closed":
        raise domain_closed(domain)
    if domain.state != "open":
        raise domain_not_open(domain)


def require_registering(domain: Domain) -> None:
    if domain.state == "closed":
        raise domain_closed(domain)
    if domain.state != "registering":
        raise Conflict(
            f"privacy domain {domain.name} is frozen with {domain.units} units; register further data "
            "under another name"
        )


def refuse_unfit(domain: Domain, head: Head) -> None:
    """Refuse terms that the ledger of this name contradicts already."""
    if head.delta != domain.terms.delta:
        raise Conflict(
            f"the ledger of privacy domain {domain.name} has delta={head.delta!r}, set by its first run; "
            f"register it with that delta, or register the data set under another name"
        )
    spent = epsilon(head.runs, head.delta)
    if spent > domain.terms.max_epsilon:
        raise BudgetExceeded(
            f"the runs of privacy domain {domain.name} have spent epsilon {spent:.4f}, more than max_epsilon="
            f"{domain.terms.max_epsilon:g}; nothing was registered",
            field="terms.max_epsilon",
        )


def units_of_page(page: int, entries: bytes) -> int:
    if not 0 <= page < MAX_PAGES:
        raise InvalidRequest(f"a page's number is 0 to {MAX_PAGES - 1}, not {page}", field="page")
    if len(entries) > MAX_PAGE_UNITS * ENTRY_BYTES:
        raise PayloadTooLarge(
            f"a page holds at most {MAX_PAGE_UNITS} units of {ENTRY_BYTES} bytes, not {len(entries)} bytes"
        )
    if not entries or len(entries) % ENTRY_BYTES:
        raise InvalidRequest(
            f"a page is one or more entries of {ENTRY_BYTES} bytes (id as big-endian int64, then the "
            f"content hash), not {len(entries)} bytes",
            field="units",
        )
    return len(entries) // ENTRY_BYTES


def refuse_other(domain: Domain, units: int | None, root: str | None) -> None:
    """Refuse to freeze, or to confirm, what the caller has not computed."""
    if units is not None and units != domain.units:
        raise InvalidRequest(
            f"privacy domain {domain.name} holds {domain.units} units, and {units} are expected; "
            "compare the pages that were sent",
            field="units",
        )
    if root is not None and root.lower() != domain.root:
        raise InvalidRequest(
            f"the Merkle root of privacy domain {domain.name} is another one than expected; "
            "compare the pages that were sent",
            field="root",
        )
