"""A record that a process remembers lets nothing into a stream that has changed since."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from tensafe.contracts.errors import Conflict, Gone, NotFound, RunBlocked, TensafeError
from tensafe.operations import layout
from tensafe.operations.known_streams import KNOWN_MAX, KNOWN_S, KnownStreams
from tensafe.operations.records import Operation, OpKind, OpState, StreamKind, StreamRecord, StreamState
from tensafe.operations.submissions import Submission
from tensafe.services import Services
from tensafe.storage.ports import Put
from tests.unit.operations.world import BASE, TENANT, World

RUN, SAMPLER = "s-1:train:0", "s-1:sample:0"


def submit(services: Services, stream_id: str, seq: int, payload: bytes = b"{}") -> Operation:
    """As the edge does it, with what this process knows of the stream."""
    kind = StreamKind.RUN if stream_id == RUN else StreamKind.SAMPLER
    stream = services.streams.known(stream_id, TENANT, kind)
    return services.submissions.submit(stream, Submission(seq, OpKind.NOOP, payload))


def append(services: Services, stream_id: str = RUN, key: str | None = None) -> Operation:
    stream = services.streams.known(stream_id, TENANT, StreamKind.RUN)
    return services.submissions.append(stream, Submission(0, OpKind.NOOP, b"{}", idempotency_key=key))


def knowing(world: World) -> Services:
    """A process that has submitted to a run and to a sampling session, and remembers both."""
    world.run(RUN)
    world.sampler(SAMPLER)
    services = world.open()
    for stream_id in (RUN, SAMPLER):
        submit(services, stream_id, 1)
    return services


def erased(world: World, stream: StreamRecord) -> None:
    world.open().streams.erase(stream.stream_id, TENANT)


def half_erased(world: World, stream: StreamRecord) -> None:
    """The first transaction is through, and whoever did it has died: its operations are still there."""
    world.items.write(world.open().streams._erasing(stream))


def blocked(world: World, stream: StreamRecord) -> None:
    other = world.open()
    other.dead_letters.bury(stream, other.outcomes.get(stream, 1), "poison")


def closed(world: World, stream: StreamRecord) -> None:
    """As retention does before it looks whether the session is used (`IdleSessions.end_sampler`)."""
    body = replace(stream, state=StreamState.BLOCKED, cause="it ends").to_body()
    world.items.write([Put(layout.stream_item(stream.stream_id, "meta"), body, stream.version)])


def vanished(world: World, stream: StreamRecord) -> None:
    """The record of an erased sampling session expires in the end."""
    erased(world, stream)
    world.later(8 * 86_400)


@pytest.mark.parametrize(
    ("stream_id", "change", "refusal"),
    [
        (RUN, erased, Gone),
        (SAMPLER, erased, Gone),
        (RUN, half_erased, Gone),
        (SAMPLER, half_erased, Gone),
        (RUN, blocked, RunBlocked),
        (SAMPLER, closed, RunBlocked),
        (SAMPLER, vanished, NotFound),
    ],
    ids=lambda one: getattr(one, "__name__", None),
)
def test_what_changed_in_another_process_takes_nothing(
    either: World,
    stream_id: str,
    change: Callable[[World, StreamRecord], None],
    refusal: type[TensafeError],
) -> None:
    here = knowing(either)
    stream = either.stream(stream_id)
    change(either, stream)
    before = either.stored(stream), either.markers()
    for seq in (2, 3, 100):  # the first refusal has it forgotten, the others read it
        with pytest.raises(refusal):
            submit(here, stream_id, seq)
    if stream_id == RUN:
        with pytest.raises(refusal):
            append(here)
    if refusal is not RunBlocked:  # a blocked run's retries still find what they submitted
        with pytest.raises(refusal):
            submit(here, stream_id, 1)
    assert (either.stored(stream), either.markers()) == before


@pytest.mark.parametrize("act", [lambda here: submit(here, RUN, 2), append], ids=["submit", "append"])
def test_the_first_refusal_comes_from_the_transaction(
    either: World, act: Callable[[Services], Operation]
) -> None:
    here = knowing(either)
    half_erased(either, either.stream(RUN))
    with pytest.raises(Gone):
        act(here)
    assert [one.seq for one in either.log(either.stream(RUN))] == [0, 1]


def test_a_run_that_was_redriven_takes_operations_at_once(either: World) -> None:
    here = knowing(either)
    blocked(either, either.stream(RUN))
    with pytest.raises(RunBlocked):
        submit(here, RUN, 2)
    other = either.open()
    (letter,) = other.dead_letters.list()
    other.dead_letters.redrive(letter.letter_id)
    assert submit(here, RUN, 2).state is OpState.PENDING
    blocked(either, either.stream(RUN))  # and what was learned then holds no longer than before
    with pytest.raises(RunBlocked):
        submit(here, RUN, 3)


def test_a_known_stream_is_its_owners_alone(memory: World) -> None:
    here = knowing(memory)
    for stream_id, kind in ((RUN, StreamKind.RUN), (SAMPLER, StreamKind.SAMPLER)):
        with pytest.raises(NotFound) as known:
            here.streams.known(stream_id, "rival", kind)
        with pytest.raises(NotFound) as absent:
            here.streams.known("s-9:train:9", "rival", kind)
        assert str(known.value) == str(absent.value)
    with pytest.raises(NotFound):  # a run is no sampling session
        here.streams.known(RUN, TENANT, StreamKind.SAMPLER)


def test_what_this_process_erases_it_forgets(memory: World) -> None:
    here = knowing(memory)
    here.streams.erase(RUN, TENANT)
    with pytest.raises(Gone):
        here.streams.known(RUN, TENANT, StreamKind.RUN)


def test_appending_counts_on_from_what_this_process_saw(either: World) -> None:
    here, there = knowing(either), either.open()
    assert [append(one).seq for one in (here, here, there, there, here)] == [2, 3, 4, 5, 6]
    assert append(there, key="k").seq == 7
    assert append(here, key="k").seq == append(there, key="k").seq == 7
    assert append(here).seq == 8
    assert [one.seq for one in either.log(either.stream(RUN))] == list(range(9))


def test_a_taken_seq_is_a_conflict_for_who_knows_the_run(memory: World) -> None:
    here = knowing(memory)
    with pytest.raises(Conflict):
        submit(here, RUN, 1, b"another")
    assert submit(here, RUN, 1).seq == 1


class TestKnownStreams:
    def record(self, number: int = 0, **changed: object) -> StreamRecord:
        plain = StreamRecord(f"s:train:{number}", TENANT, StreamKind.RUN, BASE, StreamState.ACTIVE, 0, 1)
        return replace(plain, **changed)  # type: ignore[arg-type]

    def test_it_is_kept_for_a_while_and_no_longer(self) -> None:
        now = [0.0]
        known = KnownStreams(clock=lambda: now[0])
        known.keep(self.record())
        now[0] = KNOWN_S - 1
        assert known.find("s:train:0") == self.record()
        known.keep(self.record(1))
        now[0] = KNOWN_S
        assert known.find("s:train:0") is None
        assert known.find("s:train:1") is not None
        assert len(known._kept) == 1  # it is not merely hidden

    def test_so_many_are_kept_and_not_one_more(self) -> None:
        known = KnownStreams(clock=lambda: 0.0)
        for number in range(KNOWN_MAX + 1):
            known.keep(self.record(number))
        assert known.find("s:train:0") is None
        assert known.find(f"s:train:{KNOWN_MAX}") is not None
        assert len(known._kept) == KNOWN_MAX

    def test_what_takes_nothing_is_not_kept(self) -> None:
        known = KnownStreams()
        known.keep(self.record())
        known.keep(self.record(state=StreamState.BLOCKED))
        assert known.find("s:train:0") is None

    def test_what_the_user_keeps_with_a_run_is_left_out(self) -> None:
        known = KnownStreams()
        known.keep(self.record(spec={"user_metadata": {"name": "x" * 30_000}, "lora": {"rank": 4}}))
        found = known.find("s:train:0")
        assert found is not None
        assert found.spec == {"lora": {"rank": 4}}
