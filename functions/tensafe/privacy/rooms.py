"""The rooms of privacy over one mode's adapters, each made by its first use.

They load numpy and most of this package. Few requests need any of it, and a function of Lambda would wait
for it before its first answer, whatever that is.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import TYPE_CHECKING

from tensafe.operations.streams import now_ms
from tensafe.storage.anchors import Anchors
from tensafe.storage.ports import Items
from tensafe.vault.vault import Vault

if TYPE_CHECKING:
    from tensafe.privacy.deals import Deals
    from tensafe.privacy.domains import Domains
    from tensafe.privacy.reading import DomainReader
    from tensafe.storage.signing import Signer


class PrivacyRooms:
    """Registered domains, what is read of their ledgers, and deals. Thread-safe: Python 3.11's
    `cached_property` makes each of them once, under a lock."""

    def __init__(
        self,
        items: Items,
        vault: Vault,
        signer: Signer,
        anchors: Anchors,
        *,
        clock_ms: Callable[[], int] = now_ms,
    ) -> None:
        self._items = items
        self._vault = vault
        self._signer = signer
        self._anchors = anchors
        self._clock_ms = clock_ms

    @cached_property
    def domains(self) -> Domains:
        """The registry of domains."""
        from tensafe.privacy.domains import Domains  # noqa: PLC0415

        return Domains(self._items, self._vault, clock_ms=self._clock_ms)

    @cached_property
    def domain_reader(self) -> DomainReader:
        """What domains have spent, their ledgers and exports."""
        from tensafe.privacy.reading import DomainReader  # noqa: PLC0415

        return DomainReader(self._items, self._vault, self._signer, self._anchors, self.domains)

    @cached_property
    def deals(self) -> Deals:
        """The deals of dealt runs, over their ledger."""
        from tensafe.privacy.deals import Deals  # noqa: PLC0415
        from tensafe.privacy.dealt_ledger import DealtLedger  # noqa: PLC0415

        ledger = DealtLedger(self._items, self._vault, self._signer, self._anchors, clock_ms=self._clock_ms)
        return Deals(self._items, self._vault, ledger, self.domains)
