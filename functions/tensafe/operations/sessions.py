"""Client sessions: what groups the runs and sampling sessions of one SDK process."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, cast

from tensafe.contracts.errors import NotFound
from tensafe.operations import layout
from tensafe.operations.streams import now_ms
from tensafe.storage.ports import ConditionFailed, Delete, Item, Items, JsonValue, Key, Put

_SEEN_NOTED_MS: Final = 86_400_000
"""Sightings within this of one another are noted once."""


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
        body: dict[str, JsonValue] = {
            **details,
            "tenant": tenant,
            "created_ms": created_ms,
            "seen_ms": created_ms,
        }
        due = layout.due_session(created_ms + layout.UNSEEN_MS, session_id)
        self._items.write(
            [
                Put(_key(session_id), body, 0),
                Put(_listing(tenant, created_ms, session_id), {}, 0),
                Put(due, {"session": session_id}, 0),
            ]
        )
        return Session(session_id, tenant, created_ms, body)

    def get(self, session_id: str, tenant: str) -> Session:
        """The tenant's session, which its client has in use: noted durably, once a day. Raises NotFound."""
        item = self._items.get(_key(session_id))
        if item is None or item.body["tenant"] != tenant:
            raise NotFound("no such session; create one first", field="session_id")
        if self._clock_ms() - _seen_ms(item) >= _SEEN_NOTED_MS:
            try:
                self._items.write([Put(item.key, {**item.body, "seen_ms": self._clock_ms()}, item.version)])
            except ConditionFailed:
                return self.get(session_id, tenant)  # somebody else has noted it, finished it or dropped it
        return _session(item)

    def list(self, tenant: str, *, limit: int = 100) -> list[Session]:
        """The tenant's sessions, newest first."""
        entries = self._items.query(f"tenant/{tenant}/sessions", limit=limit, descending=True)
        items = (self._items.get(_key(entry.key.sort.split("/", 1)[1])) for entry in entries)
        return [_session(item) for item in items if item is not None]

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

    def drop_unseen(self, session_id: str) -> int | None:
        """Forget the session unless its client has been seen: None, or when to look again."""
        item = self._items.get(_key(session_id))
        if item is None:
            return None
        unseen_ms = _seen_ms(item) + layout.UNSEEN_MS
        if unseen_ms > self._clock_ms():
            return unseen_ms
        tenant, created_ms = str(item.body["tenant"]), cast(int, item.body["created_ms"])
        try:
            self._items.write(
                [Delete(item.key, item.version), Delete(_listing(tenant, created_ms, session_id), None)]
            )
        except ConditionFailed:
            return self._clock_ms() + _SEEN_NOTED_MS  # its client has come back at this moment
        return None


def _session(item: Item) -> Session:
    session_id = item.key.partition.removeprefix("session/")
    return Session(session_id, str(item.body["tenant"]), cast(int, item.body["created_ms"]), item.body)


def _seen_ms(item: Item) -> int:
    return cast(int, item.body.get("seen_ms", item.body["created_ms"]))


def _listing(tenant: str, created_ms: int, session_id: str) -> Key:
    return Key(f"tenant/{tenant}/sessions", f"{created_ms:015d}/{session_id}")


def _key(session_id: str) -> Key:
    return Key(f"session/{session_id}", "meta")
