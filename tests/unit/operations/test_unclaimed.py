"""A blob whose transaction never came is found and deleted; one that is named is not."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tensafe.operations import layout
from tensafe.operations.records import OpKind, OpState, Result, StreamRecord
from tensafe.operations.submissions import Submission
from tensafe.operations.unclaimed import GRACE_MS, Announcement
from tensafe.services import Services
from tests.unit.operations.world import World

LARGE = b"x" * 100_000


def _submit(services: Services, run: StreamRecord) -> None:
    services.submissions.submit(run, Submission(1, OpKind.NOOP, LARGE))


def _complete(services: Services, run: StreamRecord) -> None:
    operation = services.outcomes.get(run, 1)
    services.outcomes.complete(run, operation, Result("text/plain", LARGE))


class _Dying:
    """Answers nothing after the k-th write or put, which has had its effect."""

    def __init__(self, inner: object, left: list[int]) -> None:
        self._inner = inner
        self._left = left

    def __getattr__(self, name: str) -> Callable[..., object]:
        method = getattr(self._inner, name)

        def call(*args: object, **kwargs: object) -> object:
            if self._left[0] == 0 and name in ("write", "put"):
                raise SystemError("killed")
            self._left[0] -= name in ("write", "put")
            return method(*args, **kwargs)

        return call if name in ("write", "put", "delete") else method


@pytest.mark.parametrize("write", [_submit, _complete])
@pytest.mark.parametrize("calls", [0, 1, 2, 3])
def test_a_blob_is_named_or_goes_after_a_day(
    memory: World, write: Callable[[Services, StreamRecord], None], calls: int
) -> None:
    run = memory.run()
    if write is _complete:
        memory.services.outcomes.start(memory.submit(run, 1), [])
    left = [calls]
    dying = memory.open(items=_Dying(memory.items, left), blobs=_Dying(memory.blobs, left))
    try:
        write(dying, run)
    except SystemError:
        assert calls < 3
    assert len(memory.blob_keys()) == (calls >= 2)
    memory.now_ms += GRACE_MS
    memory.services.retention.purge()
    assert len(memory.blob_keys()) == (calls == 3)
    assert not [item for item in memory.due() if "unclaimed" in item.key.sort]
    if calls == 3 and write is _submit:
        assert memory.services.outcomes.payload(run, 1) == LARGE
    elif calls == 3:
        assert memory.services.outcomes.result(run, memory.op(run, 1)).data == LARGE


def test_an_attempt_that_lost_its_race_is_not_the_one_that_is_named(memory: World) -> None:
    run = memory.run()
    memory.services.artifacts.write(run.scope, "snapshot/1", b"nobody announced this")
    before = memory.blob_keys()
    memory.submit(run, 1, LARGE)
    key = layout.payload_item(run.stream_id, 1)
    memory.services.vault.store(
        run.scope, "op/1/noop/payload", LARGE, announce=Announcement(memory.items, key, memory.clock_ms)
    )
    memory.now_ms += GRACE_MS
    memory.services.retention.purge()
    assert len(memory.blob_keys() - before) == 1
    assert memory.services.outcomes.payload(run, 1) == LARGE


def test_the_note_goes_with_the_transaction_that_names_the_blob(either: World) -> None:
    run = either.run()
    either.submit(run, 1, LARGE)
    assert either.due() == []
    either.services.outcomes.start(either.op(run, 1), [])
    _complete(either.services, run)
    assert [item.key.sort.split("/")[1] for item in either.due()] == ["blob"]  # the result's, in a week


def test_nothing_is_noted_for_what_is_small(memory: World) -> None:
    run = memory.run()
    memory.complete(run, memory.submit(run, 1, b"small"), b"small")
    assert memory.due() == []


def test_a_failed_sample_leaves_no_prompt_behind(memory: World) -> None:
    sampler = memory.sampler()
    for seq, payload in ((1, LARGE), (2, b"small")):
        memory.fail(sampler, memory.submit(sampler, seq, payload))
    memory.services.dead_letters.bury(sampler, memory.submit(sampler, 3, LARGE), "it died")
    assert [sort for sort in memory.stored(sampler) if sort.startswith("pay/")] == [f"pay/{3:019d}"]
    assert len(memory.blob_keys()) == 1
    (letter,) = memory.services.dead_letters.list()
    memory.services.dead_letters.redrive(letter.letter_id)
    assert memory.op(sampler, 3).state is OpState.PENDING
    assert memory.services.outcomes.payload(sampler, 3) == LARGE
