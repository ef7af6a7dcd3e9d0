"""The runbooks' commands over a moto that is a process of its own."""

from __future__ import annotations

from tests.support.stack_fixtures import services, stack

__all__ = ["services", "stack"]
