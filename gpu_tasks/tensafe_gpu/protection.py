"""Keeping the platform from stopping a task that works: ECS's scale-in protection.

ECS stops any task of a service that is scaled in, and kills it when its stop time-out is over. A task that
says through its agent that it works is not chosen. It does not stop Spot from taking the machine: SIGTERM
then ends the work in good order, as everywhere.
"""

from __future__ import annotations

import json
import logging
import os
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final, Protocol

log = logging.getLogger(__name__)

AGENT_VARIABLE: Final = "ECS_AGENT_URI"
"""Set by ECS in every container; its absence means that there is no such agent."""
_EXPIRES_MIN: Final = 10
"""What a task that was killed while protected holds up: its place in a scale-in, for so long."""
_TIMEOUT_S: Final = 2.0
_ANSWER_MAX_BYTES: Final = 64 * 1024


class Protection(Protocol):
    """Who can keep this task from being stopped."""

    def protect(self, protected: bool) -> None:
        """Ask for it, or give it up; asking again prolongs it. Raises OSError if that was not granted."""


class EcsProtection:
    """The agent's task-protection endpoint. Implements `Protection`."""

    def __init__(self, agent_uri: str) -> None:
        """`agent_uri` is http, to an address of this machine, as ECS sets it."""
        if not agent_uri.startswith("http://"):
            raise ValueError(f"{AGENT_VARIABLE} is no http address")
        self._url = f"{agent_uri.rstrip('/')}/task-protection/v1/state"

    def protect(self, protected: bool) -> None:
        asked: dict[str, object] = {"ProtectionEnabled": protected}
        if protected:
            asked["ExpiresInMinutes"] = _EXPIRES_MIN
        request = urllib.request.Request(  # noqa: S310 - http alone, checked above
            self._url,
            json.dumps(asked).encode(),
            {"Content-Type": "application/json"},
            method="PUT",
        )
        with urllib.request.urlopen(request, timeout=_TIMEOUT_S) as answer:  # noqa: S310
            try:
                granted = json.loads(answer.read(_ANSWER_MAX_BYTES))["protection"]["ProtectionEnabled"]
            except (ValueError, KeyError, TypeError) as error:
                raise OSError("the agent did not say that it did") from error
        if granted is not protected:
            raise OSError("the agent refused")


def platform_protection() -> Protection | None:
    """ECS's, where this is a task of ECS."""
    agent_uri = os.environ.get(AGENT_VARIABLE)
    return EcsProtection(agent_uri) if agent_uri else None


class ProtectionKeeper:
    """Looks every `look_s` whether the task works, and has it protected while it does.

    An agent that does not answer is asked again and stops no work. Idle for `idle_s` gives it up.
    """

    def __init__(
        self,
        protection: Protection,
        busy: Callable[[], bool],
        *,
        look_s: float = 1.0,
        idle_s: float = 5.0,
        renew_s: float = 240.0,
        retry_s: float = 10.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._protection = protection
        self._busy = busy
        self._look_s = look_s
        self._idle_s = idle_s
        self._renew_s = renew_s
        self._retry_s = retry_s
        self._clock = clock
        self._protected = False
        self._ask_at = self._renew_at = 0.0
        self._busy_at = float("-inf")

    def look(self) -> None:
        """Ask for protection, prolong it or give it up if that is due."""
        now = self._clock()
        if self._busy():
            self._busy_at = now
        wanted = now - self._busy_at < self._idle_s
        if wanted is self._protected and not (wanted and now >= self._renew_at):
            return
        if now < self._ask_at:
            return  # the agent did not answer a moment ago
        try:
            self._protection.protect(wanted)
        except OSError as error:
            log.warning("task protection not changed: %s", type(error).__name__, extra={"wanted": wanted})
            self._ask_at = now + self._retry_s
            return
        # Giving it up waits for no renewal.
        self._protected, self._ask_at = wanted, 0.0
        self._renew_at = now + self._renew_s

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Look from a thread of its own while the block runs; give it up at the end."""
        ended = threading.Event()

        def keep() -> None:
            while not ended.wait(self._look_s):
                self.look()

        thread = threading.Thread(target=keep, name="protection", daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join(timeout=2 * _TIMEOUT_S)
            if self._protected:
                self._busy_at, self._ask_at = float("-inf"), 0.0
                self._busy = lambda: False
                self.look()


@contextmanager
def protected_while(busy: Callable[[], bool]) -> Iterator[None]:
    """Have this task protected while it is busy, where the platform can; elsewhere nothing happens."""
    protection = platform_protection()
    if protection is None:
        yield
        return
    with ProtectionKeeper(protection, busy).kept():
        yield
