"""Field types that several bodies share."""

from __future__ import annotations

from typing import Annotated, Final

from pydantic import AfterValidator, Field

from tensafe.wire.ids import COUNT_MAX

_MAX_METADATA_ENTRIES: Final = 64
_MAX_METADATA_KEY_CHARS: Final = 128
_MAX_METADATA_VALUE_CHARS: Final = 4096
TTL_MIN_S: Final = 3600
TTL_MAX_S: Final = 3653 * 24 * 3600
"""Ten years, leap days included."""


def _check_metadata(metadata: dict[str, str]) -> dict[str, str]:
    if len(metadata) > _MAX_METADATA_ENTRIES:
        raise ValueError(f"at most {_MAX_METADATA_ENTRIES} entries are kept")
    for key, value in metadata.items():
        if not 1 <= len(key) <= _MAX_METADATA_KEY_CHARS or len(value) > _MAX_METADATA_VALUE_CHARS:
            raise ValueError(
                f"a key has 1 to {_MAX_METADATA_KEY_CHARS} characters, "
                f"a value at most {_MAX_METADATA_VALUE_CHARS}"
            )
    return metadata


Id = Annotated[str, Field(min_length=1, max_length=256)]
Name = Annotated[str, Field(min_length=1, max_length=256)]
Text = Annotated[str, Field(max_length=4096)]
Count = Annotated[int, Field(ge=0, le=COUNT_MAX)]
SeqId = Annotated[int, Field(ge=1, le=COUNT_MAX)]
"""A place in a run's log. The SDK counts from 1."""
UserMetadata = Annotated[dict[str, str], AfterValidator(_check_metadata)]
"""Strings to strings: the SDK's own response models accept nothing else back."""
TtlSeconds = Annotated[int, Field(ge=TTL_MIN_S, le=TTL_MAX_S)]
