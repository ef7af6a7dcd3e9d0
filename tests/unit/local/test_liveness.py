"""Who counts as hung: what was there and is silent for long, while the store takes announcements."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tensafe.contracts.errors import Unavailable
from tensafe.local.composition import initialise, local_services
from tensafe.local.liveness import API, Watch
from tensafe.local.settings import LocalSettings
from tensafe.services import Services


@dataclass
class Scene:
    services: Services
    watch: Watch
    api_answers: bool = True

    def say(self, *owners: str) -> None:
        for owner in owners:
            self.services.workers.announce("trainer", "acme/tiny", owner, 0)

    def look(self, times: int) -> set[str]:
        for _ in range(times):
            self.watch.look()
        return self.watch.hung()


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    initialise(tmp_path / "data")
    with local_services(LocalSettings(data_dir=tmp_path / "data")) as services:
        made: list[Scene] = []
        made.append(Scene(services, Watch(services, lambda: made[0].api_answers, looks=3)))
        yield made[0]


def test_a_worker_that_announces_itself_is_never_hung(scene: Scene) -> None:
    scene.say("a")
    assert scene.look(10) == set()


def test_a_worker_is_hung_after_so_many_looks_and_told_once(scene: Scene) -> None:
    scene.say("a", "b")
    scene.look(1)
    scene.services.workers.withdraw("a")
    assert scene.look(2) == set()
    assert scene.look(1) == {"a"}
    assert scene.look(10) == set()


def test_looks_count_in_a_row(scene: Scene) -> None:
    scene.say("a")
    scene.look(1)
    for _ in range(3):
        scene.services.workers.withdraw("a")
        assert scene.look(2) == set()
        scene.say("a")
        assert scene.look(1) == set()


def test_what_was_never_there_is_starting(scene: Scene) -> None:
    scene.api_answers = False
    assert scene.look(10) == set()


def test_an_api_that_stops_answering_is_hung(scene: Scene) -> None:
    scene.look(1)
    scene.api_answers = False
    assert scene.look(3) == {API}
    assert scene.look(10) == set()  # the next one is starting
    scene.api_answers = True
    scene.look(1)
    scene.api_answers = False
    assert scene.look(3) == {API}


def test_while_the_store_takes_no_writes_nobody_is_blamed(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene.say("a")
    scene.look(1)
    scene.services.workers.withdraw("a")
    scene.look(2)

    def full(*_: Any) -> None:
        raise Unavailable("the store is full")

    with monkeypatch.context() as patched:
        patched.setattr(type(scene.services.ports.items), "write", full)
        for _ in range(5):
            with pytest.raises(Unavailable):
                scene.watch.look()
    assert scene.look(2) == set()  # time to announce itself again
    assert scene.look(1) == {"a"}
