"""What the ledger stores of a dealt run beside its rows, under `run/<run>` like a bounded run's record.

Frozen mechanism, digest of the configuration it came from, commitment to the seed of its deals, and what
has become of them (`deal_record`). Reading runs of either kind is here too.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, cast

from tensafe.contracts.errors import IntegrityError
from tensafe.contracts.training import PrivateConfig
from tensafe.privacy.deal_record import DealRecord
from tensafe.privacy.dealt_mechanism import DealtMechanism
from tensafe.privacy.records import RunRecord, canonical
from tensafe.storage.ports import Item, Items, JsonValue
from tensafe.vault.scope import Scope

_NOT_OF_THE_MECHANISM: Final = {"type", "freeze_lora_a", "allow_nonprivate_weights"}


@dataclass(frozen=True, slots=True)
class DealtRecord:
    """A dealt run. `epsilon`: of all its deals, alone; `config_digest`: of what the caller asked for."""

    mechanism: DealtMechanism
    config_digest: str
    noise_key_id: str
    deal_commitment: str
    epsilon: float
    deals: DealRecord
    item_version: int = 0

    @property
    def last_step(self) -> int:
        """Step of its last row: the opening's is 0, that of deal t is t + 1."""
        return self.deals.dealt

    @classmethod
    def from_item(cls, item: Item) -> DealtRecord:
        """Raises IntegrityError."""
        body = item.body
        try:
            return cls(
                mechanism=DealtMechanism.from_body(cast(Mapping[str, JsonValue], body["mechanism"])),
                config_digest=str(body["config_digest"]),
                noise_key_id=str(body["noise_key_id"]),
                deal_commitment=str(body["deal_commitment"]),
                epsilon=float(cast(float, body["epsilon"])),
                deals=DealRecord.from_body(cast(Mapping[str, JsonValue], body["deals"])),
                item_version=item.version,
            )
        except (KeyError, TypeError, ValueError) as error:
            raise IntegrityError(f"the record of dealt run {item.key.sort} is damaged: {error!r}") from error

    def to_body(self) -> dict[str, JsonValue]:
        return {
            "mechanism": self.mechanism.to_body(),
            "config_digest": self.config_digest,
            "noise_key_id": self.noise_key_id,
            "deal_commitment": self.deal_commitment,
            "epsilon": self.epsilon,
            "deals": self.deals.to_body(),
        }


AnyRecord = RunRecord | DealtRecord


def config_digest(config: PrivateConfig) -> str:
    """SHA-256 (hexadecimal) of what a configuration says about privacy: another one is another mechanism."""
    fields = config.model_dump(mode="json", exclude=_NOT_OF_THE_MECHANISM)
    return hashlib.sha256(canonical(fields).encode()).hexdigest()


def read_record(item: Item) -> AnyRecord:
    """The record of a run of either kind. Raises IntegrityError."""
    return DealtRecord.from_item(item) if "deals" in item.body else RunRecord.from_item(item)


def read_runs(items: Items, scope: Scope) -> dict[str, AnyRecord]:
    """Every run of a domain."""
    runs: dict[str, AnyRecord] = {}
    first = "run/"
    while page := items.query(scope.name, first=first, last="run/~"):
        runs |= {item.key.sort.removeprefix("run/"): read_record(item) for item in page}
        first = page[-1].key.sort + "!"  # below every character that a sort key may hold
    return runs
