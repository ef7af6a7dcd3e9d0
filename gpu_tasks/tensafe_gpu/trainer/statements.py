"""The privacy statement of what a run saves: its ledger as it stands, and what its weights began from."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from typing import Final, cast

from tensafe.contracts.errors import IntegrityError
from tensafe.contracts.training import PRIVATE_OPTIMIZERS
from tensafe.operations import layout
from tensafe.operations.checkpoints import STATEMENT, Checkpoint
from tensafe.privacy.artifact_statement import (
    Ancestor,
    ArtifactFacts,
    Statement,
    plain_statement,
    private_statement,
    signed,
)
from tensafe.services import Services
from tensafe.storage.ports import JsonValue, Put, Write
from tensafe_gpu.trainer.hot_run import HotRun

MAX_ANCESTORS: Final = 50
_UNKNOWN: Final = Ancestor("(weights before that: no statement says which)", private=False)


class Statements:
    """Makes signed statements; they are stored with the artifact, by the transaction that registers it."""

    def __init__(self, services: Services) -> None:
        self._services = services

    def of(self, run: HotRun, artifact: ArtifactFacts) -> Statement:
        """The artifact's statement; every step of the run is charged by now, and the ledger is read here.

        Raises IntegrityError (the ledger is older than its anchor, or does not know the run), Unavailable.
        """
        began_from = self._began_from(run.stream.stream_id)
        if run.private is None:
            return signed(plain_statement(artifact, began_from=began_from), self._services.ports.signer)
        ref = run.private.ref
        overview = self._services.domain_reader.show(ref.tenant, ref.domain)
        if overview.spent is None:
            raise IntegrityError(f"the ledger of privacy domain {ref.domain} is missing")
        statement = private_statement(
            artifact,
            run.private.mechanism.to_body(),
            overview.spent,
            overview.registered,
            began_from=began_from,
        )
        return signed(statement, self._services.ports.signer)

    def _began_from(self, run_id: str) -> list[Ancestor]:
        """Of all loads of the run: a statement covers what any of them may have left in the weights."""
        partition, first = layout.stream_partition(run_id), layout.LOADED
        found: list[Ancestor] = []
        while page := self._services.ports.items.query(partition, first=first, last=f"{layout.LOADED}~"):
            for item in page:
                found += _ancestors(item.body["ancestors"])
            first = layout.after(page[-1].key.sort)
        return _few(found)


def loading(run_id: str, seq: int, checkpoint: Checkpoint) -> Write:
    """The write that notes what a load brings into a run; for the transaction that completes it."""
    optimizer = checkpoint.details.get("optimizer")
    given = optimizer if isinstance(optimizer, dict) else {}
    private = given.get("type") in PRIVATE_OPTIMIZERS
    found = [Ancestor(checkpoint.path, private, str(given["domain"]) if private else None)]
    statement = checkpoint.details.get(STATEMENT)
    found += _ancestors(statement["began_from"]) if isinstance(statement, dict) else [_UNKNOWN]
    body: dict[str, JsonValue] = {
        "ancestors": [{"path": one.path, "private": one.private, "domain": one.domain} for one in _few(found)]
    }
    return Put(layout.loaded_item(run_id, seq), body, 0)


def digests(files: Mapping[str, bytes]) -> dict[str, str]:
    """SHA-256 of each file, in hexadecimal."""
    return {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}


def _ancestors(stored: JsonValue) -> list[Ancestor]:
    listed = cast(list[Mapping[str, JsonValue]], stored)
    return [
        Ancestor(str(one["path"]), bool(one["private"]), cast("str | None", one["domain"])) for one in listed
    ]


def _few(found: Iterable[Ancestor]) -> list[Ancestor]:
    """Each once, nearest first; of too many, the rest counts as weights without privacy."""
    once = list(dict.fromkeys(found))
    return once if len(once) <= MAX_ANCESTORS else [*once[:MAX_ANCESTORS], _UNKNOWN]
