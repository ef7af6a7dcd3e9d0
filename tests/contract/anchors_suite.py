"""What every anchors adapter promises."""

from __future__ import annotations

import threading

import pytest

from tensafe.contracts.errors import InvalidRequest
from tensafe.storage.anchors import Anchors, Mark
from tensafe.storage.ports import ConditionFailed

NAME = "domain/acme/letters"


def mark(position: int, name: str = NAME, **body: int | str) -> Mark:
    return Mark(name, position, {"hash": f"{position:064x}", **body})


class AnchorsSuite:
    """Subclasses give a fixture `anchors`."""

    def test_a_name_without_a_mark(self, anchors: Anchors) -> None:
        assert anchors.get(NAME) is None
        assert anchors.all() == []

    def test_what_was_put_is_read(self, anchors: Anchors) -> None:
        last = None
        for position in range(5):
            anchors.put(mark(position), after=last)
            last = anchors.get(NAME)
            assert last == mark(position)

    def test_a_writer_that_is_behind_is_told(self, anchors: Anchors) -> None:
        anchors.put(mark(1), after=None)
        with pytest.raises(ConditionFailed):
            anchors.put(mark(9), after=None)
        anchors.put(mark(2), after=mark(1))
        for behind in (mark(1), mark(2, run_id="another")):
            with pytest.raises(ConditionFailed):
                anchors.put(mark(3), after=behind)
        with pytest.raises(ConditionFailed):
            anchors.put(mark(3, "domain/acme/mails"), after=mark(2, "domain/acme/mails"))
        assert anchors.get(NAME) == mark(2)

    def test_a_position_never_falls(self, anchors: Anchors) -> None:
        anchors.put(mark(3), after=None)
        with pytest.raises(InvalidRequest, match="never goes back"):
            anchors.put(mark(2), after=mark(3))
        anchors.put(mark(3, state="abandoned"), after=mark(3))
        assert anchors.get(NAME) == mark(3, state="abandoned")

    def test_names_are_apart_and_listed(self, anchors: Anchors) -> None:
        names = [f"domain/{tenant}/{domain}" for tenant in ("a", "b" * 128) for domain in ("x", "y" * 128)]
        for position, name in enumerate(names):
            anchors.put(mark(position, name), after=None)
        assert [one.name for one in anchors.all()] == sorted(names)
        assert {one.name: one.position for one in anchors.all()} == {n: i for i, n in enumerate(names)}

    def test_of_many_writers_one_wins_each_turn(self, anchors: Anchors) -> None:
        won: list[int] = []

        def work(worker: int) -> None:
            while (last := anchors.get(NAME)) is None or last.position < 40:
                try:
                    anchors.put(mark(0 if last is None else last.position + 1, w=worker), after=last)
                except ConditionFailed:
                    continue
                won.append(worker)

        threads = [threading.Thread(target=work, args=(worker,)) for worker in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(won) == 41
