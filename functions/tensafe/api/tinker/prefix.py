"""What every router of the Tinker protocol has in common."""

from __future__ import annotations

from enum import Enum
from typing import Final

PREFIX: Final = "/api/v1"
TAGS: Final[list[str | Enum]] = ["tinker"]
