"""The queues port on SQS, over moto."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest
from botocore.exceptions import EndpointConnectionError

from tensafe.contracts.errors import ConfigurationError, Unavailable
from tensafe.storage import sqs_queues
from tensafe.storage.aws_clients import ATTEMPTS, READ_TIMEOUT_S
from tensafe.storage.checks import RECEIVE_MAX_WAIT_S
from tensafe.storage.ports import VISIBILITY_MAX_S, QueueSpec, StaleReceipt
from tensafe.storage.sqs_queues import SqsQueues
from tests.contract.emulators import LOST, Wire, create_queues, moto_in_process
from tests.contract.queues_suite import FIFO, LONG_S, SPECS, STANDARD, QueuesSuite, nothing, take

OUTAGE = [EndpointConnectionError(endpoint_url="x")] * ATTEMPTS


@pytest.fixture
def wire() -> Iterator[Wire]:
    with moto_in_process(), Wire().between() as wire:
        yield wire


@pytest.fixture
def sqs(wire: Wire) -> tuple[Any, dict[str, str]]:
    made = create_queues(SPECS)
    wire.forget()
    return made


@pytest.fixture
def queues(sqs: tuple[Any, dict[str, str]]) -> SqsQueues:
    client, urls = sqs
    return SqsQueues(client, SPECS, urls)


class TestSqsQueues(QueuesSuite):
    tick_s = 1.0

    @pytest.mark.xfail(
        raises=pytest.fail.Exception,
        strict=True,
        reason="moto: the visibility of a message that is not in flight can be changed (MessageNotInflight)",
    )
    @pytest.mark.parametrize("queue", [FIFO, STANDARD])
    def test_what_was_handed_back_is_not_held(self, queues: SqsQueues, queue: str) -> None:
        super().test_what_was_handed_back_is_not_held(queues, queue)


class TestSending:
    def test_a_message_without_a_dedup_id_gets_one_for_its_retries(
        self, queues: SqsQueues, wire: Wire
    ) -> None:
        wire.break_next(LOST)
        queues.send(FIFO, {"n": 1}, group="g")
        first, retry = wire.sent
        assert first == retry
        take(queues, FIFO)
        wire.forget()
        assert nothing(queues, FIFO)  # SQS knew it again
        queues.send(FIFO, {"n": 1}, group="g")
        assert wire.sent[-1]["MessageDeduplicationId"] != first["MessageDeduplicationId"]

    def test_an_outage_is_unavailable(self, queues: SqsQueues, wire: Wire) -> None:
        for call in (
            lambda: queues.send(STANDARD, {}),
            lambda: queues.receive(STANDARD, visibility_s=1),
            lambda: queues.extend(STANDARD, f"{int(time.time())}.handle", 1),
            lambda: queues.delete(STANDARD, "1.handle"),
            lambda: queues.depth(STANDARD),
            lambda: queues.redrive(STANDARD),
        ):
            wire.break_next(*OUTAGE)
            with pytest.raises(Unavailable):
                call()

    def test_parts_of_seconds_are_rounded_up(self, queues: SqsQueues, wire: Wire) -> None:
        queues.send(STANDARD, {}, delay_s=0.1)
        queues.receive(STANDARD, visibility_s=0.1, wait_s=1.2)
        assert wire.sent[0]["DelaySeconds"] == 1
        assert (wire.sent[1]["VisibilityTimeout"], wire.sent[1]["WaitTimeSeconds"]) == (1, 2)


class TestReceiving:
    def test_a_group_is_never_handed_out_twice_in_one_receive(self, queues: SqsQueues, wire: Wire) -> None:
        """SQS, asked for several, would return several of a group."""
        for n in range(6):
            queues.send(FIFO, {"n": n}, group=f"g{n % 2}")
        wire.forget()
        batch = queues.receive(FIFO, visibility_s=LONG_S, max_messages=10)
        assert {message.group: message.body for message in batch} == {"g0": {"n": 0}, "g1": {"n": 1}}
        assert [one["MaxNumberOfMessages"] for one in wire.sent] == [1, 1, 1]
        assert len({one["ReceiveRequestAttemptId"] for one in wire.sent}) == 3

    def test_an_outage_after_the_first_message_does_not_lose_it(self, queues: SqsQueues, wire: Wire) -> None:
        for group in "ab":
            queues.send(FIFO, {}, group=group)
        first = queues.receive(FIFO, visibility_s=LONG_S, max_messages=1)
        queues.extend(FIFO, first[0].receipt, 0)
        real = queues._receive
        calls = iter([real])

        def once(*asked: Any) -> Any:
            call = next(calls, None)
            if call is None:
                wire.break_next(*OUTAGE)
            return real(*asked)

        queues._receive = once  # type: ignore[method-assign]
        assert len(queues.receive(FIFO, visibility_s=LONG_S, max_messages=2)) == 1

    def test_the_socket_outlives_the_longest_wait(self) -> None:
        assert READ_TIMEOUT_S["sqs"] >= RECEIVE_MAX_WAIT_S + 5

    @pytest.mark.parametrize("body", ["no JSON", "[]", '"text"', "{" * 5])
    def test_what_somebody_else_sent_does_not_hold_up_others(
        self, queues: SqsQueues, sqs: tuple[Any, dict[str, str]], body: str
    ) -> None:
        client, urls = sqs
        client.send_message(QueueUrl=urls[STANDARD], MessageBody=body)
        queues.send(STANDARD, {"n": 1})
        seen = []
        for _ in range(2):
            seen += queues.receive(STANDARD, visibility_s=LONG_S, max_messages=10)
        assert [message.body for message in seen] == [{"n": 1}]


class TestReceipts:
    def test_a_message_is_hidden_for_twelve_hours_after_its_receive_at_most(
        self, sqs: tuple[Any, dict[str, str]], wire: Wire
    ) -> None:
        client, urls = sqs
        now_s = time.time()
        queues = SqsQueues(client, SPECS, urls, clock=lambda: now_s)
        queues.send(STANDARD, {})
        message = take(queues, STANDARD, visibility_s=VISIBILITY_MAX_S)
        asked = []
        for hours in (0, 6, 11):
            now_s += hours * 3600 - (now_s - int(message.receipt.partition(".")[0]))
            with_timeout = len(wire.sent)
            queues.extend(STANDARD, message.receipt, 6 * 3600)
            asked.append(wire.sent[with_timeout]["VisibilityTimeout"])
        assert asked[0] == asked[1] + 1 == 6 * 3600  # a second is kept for what clocks differ
        assert asked[2] == 3600 - 1
        now_s += 3600
        wire.forget()
        with pytest.raises(StaleReceipt):
            queues.extend(STANDARD, message.receipt, 1)
        assert wire.sent == []
        queues.extend(STANDARD, message.receipt, 0)  # it may be handed back at any time

    @pytest.mark.parametrize(
        "code", ["MessageNotInflight", "ReceiptHandleIsInvalid", "InvalidParameterValue"]
    )
    def test_what_sqs_no_longer_holds_is_stale(self, queues: SqsQueues, wire: Wire, code: str) -> None:
        queues.send(FIFO, {}, group="g")
        receipt = take(queues, FIFO).receipt
        wire.break_next((400, {"__type": f"com.amazonaws.sqs#{code}"}))
        with pytest.raises(StaleReceipt):
            queues.extend(FIFO, receipt, 1)
        wire.break_next((400, {"__type": f"com.amazonaws.sqs#{code}"}))
        queues.delete(FIFO, receipt)


class TestRedrive:
    def test_a_letter_that_could_not_be_sent_stays(
        self, queues: SqsQueues, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        queues.send(STANDARD, {"n": 1})
        QueuesSuite().give_up(queues, STANDARD)

        def out(*_: Any, **__: Any) -> None:
            raise Unavailable("an outage")

        monkeypatch.setattr(queues, "_send", out)
        with pytest.raises(Unavailable):
            queues.redrive(STANDARD)
        assert queues.depth(f"{STANDARD}-dead") == 1

    def test_a_letter_whose_move_was_cut_comes_once(
        self, queues: SqsQueues, wire: Wire, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(sqs_queues, "_REDRIVE_VISIBILITY_S", 1)
        queues.send(FIFO, {"n": 1}, group="g")
        QueuesSuite().give_up(queues, FIFO)
        delete = queues.delete

        def cut(*_: str) -> None:
            raise Unavailable("cut after the send")

        monkeypatch.setattr(queues, "delete", cut)
        with pytest.raises(Unavailable):
            queues.redrive(FIFO)
        monkeypatch.setattr(queues, "delete", delete)
        time.sleep(1.1)
        assert queues.redrive(FIFO) == 1
        delete(FIFO, take(queues, FIFO).receipt)
        assert nothing(queues, FIFO)
        assert queues.depth(f"{FIFO}-dead") == 0


@pytest.mark.parametrize("change", ["missing", "dead missing", "exchanged"])
def test_queues_need_their_urls(sqs: tuple[Any, dict[str, str]], change: str) -> None:
    client, urls = sqs
    if change == "exchanged":
        urls[FIFO], urls[STANDARD] = urls[STANDARD], urls[FIFO]
    else:
        del urls[FIFO if change == "missing" else f"{FIFO}-dead"]
    with pytest.raises(ConfigurationError, match=FIFO):
        SqsQueues(client, SPECS, urls)
    with pytest.raises(ConfigurationError):
        SqsQueues(client, [QueueSpec("not a name", fifo=True)], urls)
