"""Every write of a trainer in turn is the last of its process, or is not answered: nothing changes."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest

from tensafe.contracts.errors import Unavailable
from tensafe.storage.ports import Items
from tensafe_gpu.trainer.base_model import BaseModel
from tests.unit.trainer_worker.logs import LOGS, Outcome, begin, expected_outcome, outcome
from tests.unit.trainer_worker.rig import NEVER, Rig


@pytest.fixture(scope="module", params=sorted(LOGS))
def expected(request: pytest.FixtureRequest, base: BaseModel) -> tuple[str, Outcome]:
    return request.param, expected_outcome(base, request.param)


class Cut(BaseException):
    """The process is gone."""


class CutItems:
    """The k-th write never returns, before or after it was applied."""

    def __init__(self, inner: Items, left: int, *, after: bool) -> None:
        self._inner = inner
        self.left = left
        self._after = after
        self.get = inner.get
        self.get_all = inner.get_all
        self.query = inner.query

    def write_relaxed(self, writes: Any) -> None:
        self.write(writes)

    def write(self, writes: Any) -> None:
        self.left -= 1
        if self.left != 0:
            self._inner.write(writes)
            return
        if self._after:
            self._inner.write(writes)
        raise Cut


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("every", [1, NEVER])
def test_cutting_at_any_write_changes_nothing(
    new_rig: Callable[..., Rig], expected: tuple[str, Outcome], after: bool, every: int
) -> None:
    """Every write of the worker in turn is the last one that its process attempts."""
    name, wanted = expected
    cuts = 0
    while True:
        rig = new_rig(snapshot_every_operations=every)
        steps = begin(rig, name)
        for seq, step in enumerate(steps, 1):
            rig.submit(seq, step)
        rig.worker.release_all()
        items = CutItems(rig.world.items, cuts + 1, after=after)
        rig.restart(items=items)
        with suppress(Cut):
            rig.drain()
        rig.restart()
        rig.drain()
        assert outcome(rig, name) == wanted, cuts
        if items.left > 0:
            break
        cuts += 1
    assert cuts > 2 * len(steps)


def test_a_write_whose_answer_is_lost_changes_nothing(
    new_rig: Callable[..., Rig], expected: tuple[str, Outcome]
) -> None:
    """As a lost connection: the process lives on, and does not know what became of its write."""
    name, wanted = expected

    class Lossy(CutItems):
        def write(self, writes: Any) -> None:
            try:
                super().write(writes)
            except Cut:
                raise Unavailable("the store did not answer") from None

    for cut in range(1, 30):
        rig = new_rig()
        steps = begin(rig, name)
        for seq, step in enumerate(steps, 1):
            rig.submit(seq, step)
        rig.worker.release_all()
        rig.restart(items=Lossy(rig.world.items, cut, after=cut % 2 == 0))
        for _ in range(4):
            rig.drain()
            rig.world.later(100)
            rig.ring_again()
        rig.restart()
        rig.drain()
        assert outcome(rig, name) == wanted, cut
