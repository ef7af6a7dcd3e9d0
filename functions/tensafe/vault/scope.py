"""What a data key belongs to, and where its wrapped form is kept."""

from __future__ import annotations

from dataclasses import dataclass

from tensafe.storage.ports import Key


@dataclass(frozen=True, slots=True)
class Scope:
    """A tenant's run, sampling session or privacy domain: everything sealed under one data key.

    `name` is `stream/<id>` or `domain/<tenant>/<name>`; it is part of every associated data, so that
    a ciphertext cannot be moved to another scope.
    """

    tenant: str
    name: str

    @property
    def key_item(self) -> Key:
        """The item whose `sealed` bytes are the wrapped data key."""
        return Key(self.name, "key")

    def context(self) -> dict[str, str]:
        """Encryption context of the wrapped key; not secret."""
        return {"tenant": self.tenant, "scope": self.name, "purpose": "tensafe-data-key"}


def stream_scope(tenant: str, stream_id: str) -> Scope:
    """Scope of a run or sampling session."""
    return Scope(tenant, f"stream/{stream_id}")


def domain_scope(tenant: str, domain: str) -> Scope:
    """Scope of a privacy domain."""
    return Scope(tenant, f"domain/{tenant}/{domain}")
