"""The caps that hold before anything is allocated for a request."""

from __future__ import annotations

from dataclasses import dataclass

from tensafe.contracts.errors import PayloadTooLarge


@dataclass(frozen=True, slots=True)
class WireLimits:
    """What one training request may cost to decode.

    `body_bytes`: the body after decompression. `examples`: entries of `data`. `elements`: numbers in
    all decoded tensors together, sparse ones counted dense, 8 bytes each at most. `fields`: fields
    and packed values in the protobuf, so that many tiny messages cannot cost more than they weigh.
    """

    body_bytes: int = 16 * 1024 * 1024
    examples: int = 4096
    elements: int = 16 * 1024 * 1024
    fields: int = 250_000

    def check_body(self, size_bytes: int) -> None:
        """Raise PayloadTooLarge if a body of this size is over the cap."""
        if size_bytes > self.body_bytes:
            raise PayloadTooLarge(
                f"the request body has {size_bytes} bytes; at most {self.body_bytes} are accepted",
                field="body",
            )


class ElementBudget:
    """Counts down the elements that one request may still decode into arrays."""

    def __init__(self, elements: int) -> None:
        self._cap = elements
        self._left = elements

    def take(self, elements: int, field: str) -> None:
        """Reserve `elements` before allocating them; raises PayloadTooLarge when none are left."""
        if elements > self._left:
            raise PayloadTooLarge(
                f"{field} passes the cap of {self._cap} tensor elements per request; send fewer examples",
                field=field,
            )
        self._left -= elements
