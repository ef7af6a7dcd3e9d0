"""An exported ledger to verify and to tamper with."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable, Mapping
from typing import Any

from tensafe.privacy.anchoring import Anchoring
from tensafe.privacy.export import Exporter
from tensafe.privacy.ledger import Ledger
from tensafe.privacy.records import canonical, sha256_hex
from tensafe.privacy.signing import header_digest, row_digest, trailer_digest
from tensafe.privacy.verify import verify
from tensafe.privacy.verify_replay import Report
from tensafe.storage.signing import PublicKey, Signer
from tests.fakes import MemoryAnchors, MemoryItems, memory_signer
from tests.unit.privacy.support import new_vault, open_run


class Exported:
    """Three runs with eight steps, exported; what holds the key can forge with it."""

    def __init__(self, signer: Signer | None = None) -> None:
        self.items, self.anchors = MemoryItems(), MemoryAnchors()
        self.vault = new_vault(self.items)
        self.signer = signer or memory_signer()
        self.ledger = Ledger(
            self.items, self.vault, self.signer, self.anchors, clock_ms=lambda: 1_700_000_000_000
        )
        one = open_run(self.ledger, "one", max_epsilon=30.0, max_steps=9)
        two = open_run(self.ledger, "two", noise_multiplier=2.5, clip_norm=0.5)
        open_run(self.ledger, "three")
        self.ledger.reserve(one, 0, {1, 2, 3})
        self.ledger.reserve(two, 4, {1})
        self.ledger.reserve(one, 1, {1, 3}, binding="sum")
        self.ledger.reserve(two, 5, ())
        self.ledger.commit(one, 1)
        self.ledger.reserve(one, 2, {4, 5})
        self.ledger.reserve(one, 7, {1})
        self.ledger.reserve(two, 9, {2, 3, 4, 5})
        self.ledger.reserve(one, 8, ())
        self.lines = self.export()

    def export(self) -> list[bytes]:
        return list(self.exporter().lines("acme", "letters", at_ms=1_700_000_000_001))

    def exporter(self) -> Exporter:
        return Exporter(self.items, self.vault, self.signer, Anchoring(self.items, self.anchors))

    @property
    def trusted(self) -> Mapping[str, PublicKey]:
        key = PublicKey.from_pem(self.signer.public_key)
        return {key.key_id: key}

    def verify(self, lines: list[bytes] | None = None) -> Report:
        data = b"".join(self.lines if lines is None else lines)
        return verify(io.BytesIO(data), self.trusted, processes=1)

    def forged(
        self,
        *,
        row: int | None = None,
        change: Callable[[dict[str, Any]], object] = lambda _: None,
        tags: Callable[[list[str]], list[str]] = lambda tags: tags,
        header: Callable[[dict[str, Any]], object] = lambda _: None,
    ) -> list[bytes]:
        """The export with one row or its header changed, and everything after it hashed and signed anew.

        What a service would write that charges wrongly, or somebody who has stolen the key.
        """
        forged: list[bytes] = []
        previous = json.loads(json.loads(self.lines[1])["row"])["previous"]
        for number, raw in enumerate(self.lines[1:-1], start=1):
            line = json.loads(raw)
            fields = {**json.loads(line["row"]), "previous": previous}
            units = [line["tags"][at : at + 32] for at in range(0, len(line["tags"]), 32)]
            if number == row:
                change(fields)
                units = tags(units)
            text = canonical(fields)
            previous = sha256_hex(text)
            packed = bytes.fromhex("".join(units))
            signature = self.signer.sign(row_digest(previous, packed)).hex()
            forged.append(
                _line({**line, "row": text, "hash": previous, "tags": packed.hex(), "signature": signature})
            )
        head = json.loads(self.lines[0])
        del head["signature"]
        head["head"]["hash"] = previous
        header(head)
        signed = self.signer.sign(header_digest(canonical(head))).hex()
        forged.insert(0, _line({**head, "signature": signed}))
        return self.closed(forged)

    def closed(self, lines: list[bytes]) -> list[bytes]:
        """Header and rows with a trailer that fits them, signed."""
        trailer = json.loads(self.lines[-1])
        del trailer["signature"]
        trailer |= {
            "rows": len(lines) - 1,
            "head": json.loads(lines[-1])["hash"],
            "sha256": hashlib.sha256(b"".join(lines)).hexdigest(),
        }
        signed = self.signer.sign(trailer_digest(canonical(trailer))).hex()
        return [*lines, _line({**trailer, "signature": signed})]


def _line(fields: Mapping[str, object]) -> bytes:
    return (canonical(fields) + "\n").encode()
