"""What the ledger stores: the domain's head, one record per run, one hash-chained row per step.

Partition `domain/<tenant>/<domain>`:

    key                       the domain's wrapped data key (vault)
    head                      delta, length and hash of the chain, (sigma, m) of every run as accounted;
                              dealt runs with all their deals, and epsilon once there is one
    run/<run>                 the run's frozen mechanism, its steps, its largest count
    row/<run>/<step>          one step: the row as canonical JSON, its hash, its state, its sealed unit tags

Partition `dp-noise/<tenant>`: one item per noise secret ever used, so that no two runs share one.

A row is kept as the very text that was hashed, so that no store's number format can change it.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Final, cast

from tensafe.contracts.errors import IntegrityError, InvalidRequest
from tensafe.privacy.amplified import DealtGaussian
from tensafe.privacy.mechanism import Mechanism
from tensafe.storage.ports import Item, JsonValue, Key
from tensafe.vault.scope import Scope, domain_scope

ROW_VERSIONS: Final = (1, 2, 4)
"""Version 2 is for mechanisms of version 2 and adds the fields of `_ADDED`; version 1 is still written.

Version 3 is that of dealt runs (dealt_rows.py). Version 4 adds `_ATTESTED` to version 2."""
_CHAIN_VERSION: Final = 1
_ADDED: Final = (
    "index",
    "max_steps",
    "min_separation",
    "bisr_bandwidth",
    "sensitivity",
    "coefficient_hash",
)
_ATTESTED: Final = ("attested_probability", "attested_epsilon")
STEP_MAX: Final = 10**15 - 1
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.:@=+-]{0,127}")


@dataclass(frozen=True, slots=True)
class RunRef:
    """A private run: tenant and domain make the ledger's scope."""

    tenant: str
    domain: str
    run_id: str

    def __post_init__(self) -> None:
        for name in ("tenant", "domain", "run_id"):
            if not _NAME.fullmatch(getattr(self, name)):
                raise InvalidRequest(f"not a {name} that the privacy ledger can hold", field=name)

    @property
    def scope(self) -> Scope:
        """What the unit tags are sealed under; it outlives the run, so erasing a run refunds nothing."""
        return domain_scope(self.tenant, self.domain)

    @property
    def run_item(self) -> Key:
        return Key(self.scope.name, f"run/{self.run_id}")

    def row_item(self, step: int) -> Key:
        return Key(self.scope.name, row_sort(self.run_id, step))

    def tags_part(self, step: int) -> str:
        """Names the sealed tags of a step in their associated data."""
        return row_sort(self.run_id, step)


def row_sort(run_id: str, step: int) -> str:
    """Sort key of a row; ordered by step within a run."""
    return f"row/{run_id}/{step:015d}"


def head_item(scope: Scope) -> Key:
    return Key(scope.name, "head")


def noise_item(tenant: str, noise_key_id: str) -> Key:
    return Key(f"dp-noise/{tenant}", noise_key_id)


def canonical(value: Mapping[str, object]) -> str:
    """JSON with sorted keys and no spaces; floats in Python's shortest exact form."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False, ensure_ascii=True)


def sha256_hex(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def genesis(scope: Scope, delta: float) -> str:
    """`previous` of the first row: binds the chain to its tenant, domain and delta."""
    return sha256_hex(canonical({"version": _CHAIN_VERSION, "scope": scope.name, "delta": delta}))


@dataclass(frozen=True, slots=True)
class Row:
    """One charged step. The meaning of a published version's fields never changes.

    `seq` counts the domain's rows from 1; `previous` is the hash of the row before. `participations` is
    the run's largest count and `epsilon` the domain's total, both after this step. `units` is the
    number of units in the step and `units_digest` a keyed digest of them. `binding` is the caller's
    digest of what the step sums. From version 2 on: `index` counts the run's steps before this one and
    names its fresh noise vector; the others are the mechanism's. In version 4: the probability with which
    the client says that it draws units, and epsilon of the run's steps if that is true (None above 300).
    """

    seq: int
    previous: str
    run_id: str
    step: int
    at_ms: int
    noise_multiplier: float
    clip_norm: float
    batch_size: int
    max_participations: int
    delta: float
    mode: str
    adjacency: str
    accountant: str
    noise_key_id: str
    units: int
    units_digest: str
    binding: str
    participations: int
    run_epsilon: float
    epsilon: float
    version: int = 1
    index: int | None = None
    max_steps: int | None = None
    min_separation: int = 1
    bisr_bandwidth: int | None = None
    sensitivity: float | None = None
    coefficient_hash: str | None = None
    attested_probability: float | None = None
    attested_epsilon: float | None = None

    def to_text(self) -> str:
        absent = _absent(self.version)
        return canonical({name: value for name, value in asdict(self).items() if name not in absent})

    @classmethod
    def from_item(cls, item: Item) -> Row:
        """Read and verify a stored row. Raises IntegrityError."""
        text = str(item.body["row"])
        if sha256_hex(text) != item.body["hash"]:
            raise IntegrityError(f"ledger row {item.key.sort} does not match its hash")
        fields = cast(dict[str, Any], json.loads(text))
        if fields.get("version") not in ROW_VERSIONS:
            raise IntegrityError(f"ledger row {item.key.sort} is of version {fields.get('version')}")
        try:
            row = cls(**fields)
        except TypeError as error:
            raise IntegrityError(f"ledger row {item.key.sort} has other fields: {error}") from error
        if any((name in fields) == (name in _absent(row.version)) for name in (*_ADDED, *_ATTESTED)):
            raise IntegrityError(f"ledger row {item.key.sort} has fields of another version")
        if row_sort(row.run_id, row.step) != item.key.sort:
            raise IntegrityError(f"ledger row {item.key.sort} belongs to another step")
        return row


def _absent(version: int) -> tuple[str, ...]:
    """Fields that rows of this version do not have."""
    return {1: (*_ADDED, *_ATTESTED), 2: _ATTESTED}.get(version, ())


@dataclass(frozen=True, slots=True)
class Head:
    """Present state of a domain: chain length and hash, and each run's `Mechanism.accounted`.

    `dealt`: mechanism and number of deals of every dealt run. Once there is one, `epsilon` is what the last
    row states of the domain, so that a deal, which moves it no further, need not compute it.
    """

    delta: float
    seq: int
    hash: str
    runs: Mapping[str, tuple[float, int]] = field(default_factory=dict)
    item_version: int = 0
    dealt: Mapping[str, tuple[DealtGaussian, int]] = field(default_factory=dict)
    epsilon: float | None = None

    @property
    def has_released(self) -> bool:
        """Whether anything but openings of dealt runs has been charged, so that outputs may be known."""
        return self.seq > len(self.dealt)

    @classmethod
    def from_item(cls, item: Item) -> Head:
        runs = cast(Mapping[str, tuple[float, int]], item.body["runs"])
        dealt = cast(Mapping[str, tuple[int, float, int, float, int]], item.body.get("dealt", {}))
        return cls(
            delta=float(cast(float, item.body["delta"])),
            seq=int(cast(int, item.body["seq"])),
            hash=str(item.body["hash"]),
            runs={run_id: (float(sigma), int(count)) for run_id, (sigma, count) in runs.items()},
            dealt={
                run_id: (DealtGaussian(int(units), float(q), int(cap), float(sigma)), int(steps))
                for run_id, (units, q, cap, sigma, steps) in dealt.items()
            },
            epsilon=float(cast(float, item.body["epsilon"])) if dealt else None,
            item_version=item.version,
        )

    def to_body(self) -> dict[str, JsonValue]:
        body: dict[str, JsonValue] = {
            "version": _CHAIN_VERSION,
            "delta": self.delta,
            "seq": self.seq,
            "hash": self.hash,
            "runs": {run_id: [sigma, count] for run_id, (sigma, count) in self.runs.items()},
        }
        if self.dealt:
            dealt: dict[str, JsonValue] = {
                run_id: [g.units, g.sampling_probability, g.batch_cap, g.noise_multiplier, steps]
                for run_id, (g, steps) in self.dealt.items()
            }
            body |= {"dealt": dealt, "epsilon": self.epsilon}
        return body

    def with_run(self, run_id: str, sigma: float, count: int) -> Head:
        return replace(self, runs={**self.runs, run_id: (sigma, count)})


@dataclass(frozen=True, slots=True)
class RunRecord:
    """A run's frozen mechanism and how far it has come. `last_step` is -1 before the first."""

    mechanism: Mechanism
    noise_key_id: str
    steps: int = 0
    last_step: int = -1
    participations: int = 0
    fixed_in_advance: bool = False
    """The owner's declaration, for a run that opens beside dealt runs after something was released."""
    attested_epsilon: float | None = None
    """As the last row states it."""
    item_version: int = 0

    @classmethod
    def from_item(cls, item: Item) -> RunRecord:
        body = item.body
        return cls(
            mechanism=Mechanism.from_body(cast(Mapping[str, JsonValue], body["mechanism"])),
            noise_key_id=str(body["noise_key_id"]),
            steps=int(cast(int, body["steps"])),
            last_step=int(cast(int, body["last_step"])),
            participations=int(cast(int, body["participations"])),
            fixed_in_advance=bool(body.get("fixed_in_advance", False)),
            attested_epsilon=cast("float | None", body.get("attested_epsilon")),
            item_version=item.version,
        )

    def to_body(self) -> dict[str, JsonValue]:
        return {
            "mechanism": self.mechanism.to_body(),
            "noise_key_id": self.noise_key_id,
            "steps": self.steps,
            "last_step": self.last_step,
            "participations": self.participations,
            **({"fixed_in_advance": True} if self.fixed_in_advance else {}),
            **({"attested_epsilon": self.attested_epsilon} if self.attested_epsilon is not None else {}),
        }
