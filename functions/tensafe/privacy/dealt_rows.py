"""Ledger rows of dealt runs (version 3): one that opens the run, and one for each deal.

The opening charges the run whole and commits the service to the seed of its deals; a deal's row says that
one more of the charged steps was dealt, and moves no epsilon. Neither says who was dealt, nor how many:
amplification holds only against those who do not know, so a dealt row brings no unit tags.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any, Final, Literal, cast

from tensafe.contracts.errors import IntegrityError
from tensafe.privacy.dealt_mechanism import ACCOUNTANT, DEALT_VERSION, DealtMechanism
from tensafe.privacy.records import Row, RunRef, canonical, row_sort, sha256_hex
from tensafe.storage.ports import Item

OPENING_STEP: Final = 0
"""Row step of the opening; deal t has row step t + 1, which also keys its noise."""
NOT_TOLD: Final = 0
"""`at_ms` of a deal: a step takes as long as its units are many and long, and an export shows its rows."""
RowKind = Literal["opening", "deal"]


@dataclass(frozen=True, slots=True)
class DealtRow:
    """A row of a dealt run. The meaning of a published version's fields never changes.

    `seq`, `previous`: as in `Row`. `kind`: the opening (`step` 0, `index` None) or deal `index` (`step`
    `index` + 1). `at_ms`: of the opening; a deal's time is `NOT_TOLD`. `abandoned`: deals given up before
    this one. `deal_commitment`: SHA-256 that binds the seed and the law of all deals. `run_epsilon`: of all
    `max_steps` deals, alone; `epsilon`: of the domain with every dealt run whole. The others are the
    mechanism's.
    """

    seq: int
    previous: str
    run_id: str
    kind: RowKind
    step: int
    index: int | None
    abandoned: int
    at_ms: int
    mode: str
    accountant: str
    adjacency: str
    noise_multiplier: float
    clip_norm: float
    batch_size: int
    sampling_probability: float
    batch_cap: int
    max_steps: int
    units_of_domain: int
    manifest_digest: str
    deal_commitment: str
    noise_key_id: str
    fixed_in_advance: bool
    delta: float
    run_epsilon: float
    epsilon: float
    version: int = DEALT_VERSION

    def to_text(self) -> str:
        return canonical(asdict(self))


@dataclass(frozen=True, slots=True)
class DealtCharge:
    """Proof that a deal is paid for; noise may be drawn for this step and no other (see `Charge`)."""

    run: RunRef
    step: int
    index: int
    standard_deviation: float
    batch_size: int
    noise_key_id: str
    row_hash: str
    bisr_bandwidth: None = None

    @classmethod
    def of(cls, run: RunRef, row: DealtRow, row_hash: str) -> DealtCharge:
        """Raises IntegrityError for a row that is no deal's."""
        if row.index is None:
            raise IntegrityError(f"row {row.seq} of the ledger is no deal")
        deviation = row.noise_multiplier * row.clip_norm
        return cls(run, row.step, row.index, deviation, row.batch_size, row.noise_key_id, row_hash)


def row_step(deal: int) -> int:
    """Number of a deal's row in its run."""
    return deal + 1


def stated(
    mechanism: DealtMechanism, *, run_epsilon: float, deal_commitment: str, noise_key_id: str
) -> dict[str, Any]:
    """What every row of the run says alike."""
    return {
        "mode": mechanism.mode,
        "accountant": ACCOUNTANT,
        "adjacency": mechanism.adjacency,
        "noise_multiplier": mechanism.noise_multiplier,
        "clip_norm": mechanism.clip_norm,
        "batch_size": mechanism.batch_size,
        "sampling_probability": mechanism.sampling_probability,
        "batch_cap": mechanism.batch_cap,
        "max_steps": mechanism.max_steps,
        "units_of_domain": mechanism.units,
        "manifest_digest": mechanism.manifest_digest,
        "deal_commitment": deal_commitment,
        "noise_key_id": noise_key_id,
        "fixed_in_advance": mechanism.fixed_in_advance,
        "delta": mechanism.delta,
        "run_epsilon": run_epsilon,
    }


def read_row(item: Item) -> Row | DealtRow:
    """Read and verify a stored row of any version. Raises IntegrityError."""
    text = str(item.body["row"])
    if sha256_hex(text) != item.body["hash"]:
        raise IntegrityError(f"ledger row {item.key.sort} does not match its hash")
    fields = cast(dict[str, Any], json.loads(text))
    if fields.get("version") != DEALT_VERSION:
        return Row.from_item(item)
    try:
        row = DealtRow(**fields)
    except TypeError as error:
        raise IntegrityError(f"ledger row {item.key.sort} has other fields: {error}") from error
    if row_sort(row.run_id, row.step) != item.key.sort:
        raise IntegrityError(f"ledger row {item.key.sort} belongs to another step")
    placed = (row.kind, row.index) == (("opening", None) if row.step == 0 else ("deal", row.step - 1))
    if not placed:
        raise IntegrityError(f"ledger row {item.key.sort} is of another deal")
    return row
