"""A restart at any place of the log leads to the same bytes as no restart at all."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tensafe_gpu.trainer.base_model import BaseModel
from tests.unit.trainer_worker.logs import LOGS, Outcome, begin, expected_outcome, outcome
from tests.unit.trainer_worker.rig import NEVER, Rig


@pytest.fixture(scope="module", params=sorted(LOGS))
def expected(request: pytest.FixtureRequest, base: BaseModel) -> tuple[str, Outcome]:
    return request.param, expected_outcome(base, request.param)


@pytest.mark.parametrize("every", [1, 3, NEVER])
def test_restarting_after_any_operation_changes_nothing(
    new_rig: Callable[..., Rig], expected: tuple[str, Outcome], every: int
) -> None:
    name, wanted = expected
    for cut in range(len(LOGS[name][0]) + 1):
        rig = new_rig(snapshot_every_operations=every)
        for seq, step in enumerate(begin(rig, name), 1):
            rig.do(seq, step)
            if seq == cut:
                rig.restart()
        assert outcome(rig, name) == wanted, cut


def test_restarting_after_every_operation_changes_nothing(
    new_rig: Callable[..., Rig], expected: tuple[str, Outcome]
) -> None:
    name, wanted = expected
    rig = new_rig()
    for seq, step in enumerate(begin(rig, name), 1):
        rig.do(seq, step)
        rig.restart()
    assert outcome(rig, name) == wanted


def test_sending_everything_at_once_changes_nothing(
    new_rig: Callable[..., Rig], expected: tuple[str, Outcome]
) -> None:
    name, wanted = expected
    rig = new_rig()
    for seq, step in reversed(list(enumerate(begin(rig, name), 1))):
        rig.submit(seq, step)
    rig.drain()
    assert outcome(rig, name) == wanted
