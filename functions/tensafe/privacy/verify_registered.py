"""What an export's header says of a domain's registration (version 2), held to its digest, runs and rows.

The manifest's digest is computed again from the root, N and the terms, and every dealt run and row names it.
The units themselves are not in an export: that the root is theirs is shown by the owner's manifest.
"""

from __future__ import annotations

import hashlib
import json
from typing import Final

from tensafe.privacy.verify_forms import (
    HeaderForm,
    HeaderForm2,
    LedgerRefused,
    MechanismForm3,
    RegisteredForm,
)

_DELTA_TOO_LARGE: Final = "delta_at_least_one_over_units"


def registered_of(header: HeaderForm | HeaderForm2) -> RegisteredForm | None:
    """The registration that the header states, if it adds up; None for one without. Raises LedgerRefused."""
    if not isinstance(header, HeaderForm2):
        return None
    stated = header.registered
    if stated.terms.delta != header.delta:
        raise LedgerRefused("header", "the domain is registered with another delta")
    if stated.manifest_digest != _digest(stated):
        raise LedgerRefused("header", "manifest_digest is not that of its root, units and terms")
    if stated.earlier_rows > header.head.rows:
        raise LedgerRefused("header", "more rows came before the registration than there are")
    for run_id, run in header.runs.items():
        mechanism = run.mechanism
        if not isinstance(mechanism, MechanismForm3):
            continue
        found = (mechanism.manifest_digest, mechanism.units, mechanism.adjacency)
        if found != (stated.manifest_digest, stated.units, stated.terms.adjacency):
            raise LedgerRefused("header", f"run {run_id} is dealt from another manifest than the domain's")
    return stated


def warnings_of(stated: RegisteredForm) -> tuple[str, ...]:
    """What the registration allows and is on record: a delta of 1/N or more. The digest holds it."""
    return (_DELTA_TOO_LARGE,) if stated.terms.delta * stated.units >= 1.0 else ()


def _digest(stated: RegisteredForm) -> str:
    """SHA-256 over root, N, what is warned of, and the terms, as the manifest has it."""
    named = {"root": stated.root, "units": stated.units, "warnings": warnings_of(stated)}
    text = json.dumps(
        {**named, "terms": stated.terms.model_dump()}, sort_keys=True, separators=(",", ":"), allow_nan=False
    )
    return hashlib.sha256(text.encode()).hexdigest()
