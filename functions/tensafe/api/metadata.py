"""What a client keeps with its sessions, runs and checkpoints: bounded, and otherwise its own affair."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Final

from tensafe.contracts.errors import InvalidRequest
from tensafe.storage.ports import JsonValue

METADATA_MAX_BYTES: Final = 32 * 1024


def check_metadata(metadata: Mapping[str, JsonValue] | None) -> dict[str, JsonValue]:
    """The metadata if a record has room for it. Raises InvalidRequest: a record that no store takes would
    fail in the trainer, and every retry of it too."""
    if len(json.dumps(dict(metadata or {}))) > METADATA_MAX_BYTES:
        raise InvalidRequest(
            f"user_metadata takes more than {METADATA_MAX_BYTES} bytes of JSON; keep it shorter",
            field="user_metadata",
        )
    return dict(metadata or {})
