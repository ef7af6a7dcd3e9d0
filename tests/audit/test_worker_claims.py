"""Through a real trainer: a retry releases nothing new, and forks and reloads are charged."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest

from tensafe.operations.records import OpState
from tensafe.privacy.ledger import Ledger
from tests.support.privacy_audit import planted
from tests.support.privacy_audit.watching import Released, watch_releases
from tests.support.training_log import forward_backward, load, optim_step, private, save
from tests.unit.privacy.support import exact_epsilon
from tests.unit.trainer_worker.rig import RUN, Rig

FORK, FORK_2 = "s-1:train:1", "s-1:train:2"
UNITS = (1, 2, 3)


class Killed(BaseException):
    """The process is gone: nothing of it runs after this."""


def step_with_a_crash(rig: Rig, patch: pytest.MonkeyPatch, crashes: int) -> list[Released]:
    """One private step that dies after its noise is drawn and before its result is durable."""
    released = watch_releases(patch)
    left = [crashes]
    commit = Ledger.commit_writes

    def dies(self: Ledger, *args: object) -> object:
        if left[0]:
            left[0] -= 1
            raise Killed
        return commit(self, *args)  # type: ignore[arg-type]

    patch.setattr(Ledger, "commit_writes", dies)
    rig.begin(optimizer=private())
    rig.do(1, forward_backward(units=UNITS))
    rig.submit(2, optim_step())
    for _ in range(crashes):
        with pytest.raises(Killed):
            rig.drain()
        rig.restart()
    rig.drain()
    assert rig.op(2).state is OpState.COMPLETED
    return released


def different(released: Sequence[Released]) -> int:
    return len({one.noisy_sum.tobytes() for one in released})


def test_a_step_that_crashes_releases_one_vector_and_is_charged_once(
    new_rig: Callable[..., Rig], monkeypatch: pytest.MonkeyPatch
) -> None:
    rig = new_rig()
    released = step_with_a_crash(rig, monkeypatch, crashes=2)
    assert len(released) == 3
    assert different(released) == 1
    assert rig.result(2)["metrics"]["dp/participations"] == 1
    assert rig.result(2)["metrics"]["dp/epsilon"] == pytest.approx(exact_epsilon(1.0, 1e-5), rel=1e-5)


def test_noise_redrawn_on_retry_is_seen(new_rig: Callable[..., Rig], monkeypatch: pytest.MonkeyPatch) -> None:
    planted.redraw_on_retry(monkeypatch)
    assert different(step_with_a_crash(new_rig(), monkeypatch, crashes=2)) == 3


def claimed_after_forks(rig: Rig) -> float:
    """Epsilon that the last step of the last run states, after all runs have seen the same units.

    A run, its checkpoint loaded again, and two forks: four releases of every unit, each of mu 1.
    """
    optimizer = private(max_participations=2)
    rig.begin(RUN, optimizer=optimizer)
    rig.do(1, save("start"))
    rig.do(2, forward_backward(units=UNITS))
    rig.do(3, optim_step())
    assert rig.do(4, load(RUN, "start", optimizer=optimizer)).state is OpState.COMPLETED
    rig.do(5, forward_backward(units=UNITS))
    assert rig.do(6, optim_step()).state is OpState.COMPLETED
    for fork in (FORK, FORK_2):
        rig.begin(fork, load(RUN, "start", optimizer=optimizer), optimizer=optimizer)
        rig.do(1, forward_backward(units=UNITS), fork)
        assert rig.do(2, optim_step(), fork).state is OpState.COMPLETED
    return float(rig.result(2, FORK_2)["metrics"]["dp/epsilon"])


def true_epsilon(released: Sequence[Released]) -> float:
    """Of all that was released about one unit, which was in every one of these sums."""
    return exact_epsilon(sum(0.5**2 / one.charge.standard_deviation**2 for one in released), 1e-5)


def test_reloads_and_forks_are_charged_to_one_ledger(
    new_rig: Callable[..., Rig], monkeypatch: pytest.MonkeyPatch
) -> None:
    released = watch_releases(monkeypatch)
    claimed = claimed_after_forks(new_rig())
    assert different(released) == 4
    assert true_epsilon(released) <= claimed <= 1.02 * true_epsilon(released)


def test_a_fork_with_a_ledger_of_its_own_is_seen(
    new_rig: Callable[..., Rig], monkeypatch: pytest.MonkeyPatch
) -> None:
    planted.ledger_of_its_own(monkeypatch)
    released = watch_releases(monkeypatch)
    assert claimed_after_forks(new_rig()) < 0.6 * true_epsilon(released)
