"""Client sessions: what groups the runs and sampling sessions of one SDK process."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import cast

from tensafe.contracts.errors import NotFound
from tensafe.operations.streams import now_ms
from tensafe.storage.ports import ConditionFailed, Items, JsonValue, Key, Put


@dataclass(frozen=True, slots=True)
class Session:
    """A session of one tenant."""

    session_id: str
    tenant: str
    created_ms: int
    body: Mapping[str, JsonValue]


class Sessions:
    """Creates and finds sessions."""

    def __init__(self, items: Items, *, clock_ms: Callable[[], int] = now_ms) -> None:
        self._items = items
        self._clock_ms = clock_ms

    def create(self, tenant: str, details: Mapping[str, JsonValue]) -> Session:
        """A new session with an unguessable id."""
        session_id = f"s-{secrets.token_hex(16)}"
        created_ms = self._clock_ms()
        body: dict[str, JsonValue] = {**details, "tenant": tenant, "created_ms": created_ms}
        self._items.write(
            [
                Put(_key(session_id), body, 0),
                Put(Key(f"tenant/{tenant}/sessions", f"{created_ms:015d}/{session_id}"), {}, 0),
            ]
        )
        return Session(session_id, tenant, created_ms, body)

    def get(self, session_id: str, tenant: str) -> Session:
        """The tenant's session. Raises NotFound."""
        item = self._items.get(_key(session_id))
        if item is None or item.body["tenant"] != tenant:
            raise NotFound("no such session; create one first", field="session_id")
        return Session(session_id, tenant, cast(int, item.body["created_ms"]), item.body)

    def list(self, tenant: str, *, limit: int = 100) -> list[Session]:
        """The tenant's sessions, newest first."""
        entries = self._items.query(f"tenant/{tenant}/sessions", limit=limit, descending=True)
        return [self.get(entry.key.sort.split("/", 1)[1], tenant) for entry in entries]

    def finish(self, session_id: str, tenant: str) -> None:
        """Note that the client closed the session; its runs stay."""
        item = self._items.get(_key(session_id))
        if item is None or item.body["tenant"] != tenant:
            raise NotFound("no such session", field="session_id")
        body = {**item.body, "finished_ms": self._clock_ms()}
        try:
            self._items.write([Put(_key(session_id), body, item.version)])
        except ConditionFailed:
            return  # somebody else finished it at the same moment


def _key(session_id: str) -> Key:
    return Key(f"session/{session_id}", "meta")
