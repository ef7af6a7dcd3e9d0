"""Queues in SQS: FIFO and standard, each with a dead queue of its kind.

SQS itself keeps visibility, the lock of a group and the move to the dead queue (the redrive policy of the
source, with the `max_receives` of its spec); this adapter asks and translates. SQS counts whole seconds:
durations are rounded up.
"""

from __future__ import annotations

import logging
import math
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from botocore.exceptions import ClientError

from tensafe.contracts.errors import ConfigurationError, InvalidRequest, Unavailable
from tensafe.storage.aws_clients import AwsClient, aws_errors_made_ours, error_code
from tensafe.storage.checks import (
    check_receive,
    check_send,
    check_visibility,
    declared_queues,
    decode_body,
)
from tensafe.storage.ports import VISIBILITY_MAX_S, JsonValue, Message, QueueSpec, StaleReceipt

_log = logging.getLogger(__name__)

_STORE: Final = "queue service"
_NO_LONGER_HELD: Final = frozenset(
    {
        "AWS.SimpleQueueService.MessageNotInflight",
        "MessageNotInflight",
        "ReceiptHandleIsInvalid",
        "InvalidParameterValue",  # an expired handle of a FIFO queue, or a message that was deleted
    }
)
_COUNTS: Final = (
    "ApproximateNumberOfMessages",
    "ApproximateNumberOfMessagesNotVisible",
    "ApproximateNumberOfMessagesDelayed",
)
_REDRIVE_VISIBILITY_S: Final = 60
_REDRIVE_WAIT_S: Final = 1
"""Above 0 SQS asks all of its servers, and so finds what is there."""
_CLOCK_MARGIN_S: Final = 1


class SqsQueues:
    """The queues port on SQS. Implements `Queues`.

    A receive from a FIFO queue makes one call for each message: SQS would otherwise hand out several of
    one group, whose worker could only give them back, which counts towards their death.
    """

    def __init__(
        self,
        client: AwsClient,
        specs: Sequence[QueueSpec],
        urls: Mapping[str, str],
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`client` is `aws_client("sqs")`; `urls` has the URL of every queue of `specs`, dead ones too.

        Raises ConfigurationError if one is missing, or is of the other kind.
        """
        self._queues = declared_queues(specs)
        for name, (spec, _) in self._queues.items():
            # Those of `QueueUrls` are right by their names, and asked for later.
            wrong = isinstance(urls, dict) and name in urls and urls[name].endswith(".fifo") is not spec.fifo
            if name not in urls or wrong:
                kind = "a FIFO" if spec.fifo else "a standard"
                raise ConfigurationError(f"the queue {name!r} needs the URL of {kind} queue", field="urls")
        self._client = client
        self._urls = urls
        self._clock = clock

    def send(
        self,
        queue: str,
        body: Mapping[str, JsonValue],
        *,
        group: str | None = None,
        dedup_id: str | None = None,
        delay_s: float = 0.0,
    ) -> None:
        spec, _ = self._declared(queue)
        text = check_send(spec, body, group=group, dedup_id=dedup_id, delay_s=delay_s)
        self._send(queue, text, group=group, dedup_id=dedup_id, delay_s=math.ceil(delay_s))

    def receive(
        self, queue: str, *, visibility_s: float, max_messages: int = 1, wait_s: float = 0.0
    ) -> list[Message]:
        spec, _ = self._declared(queue)
        check_receive(visibility_s=visibility_s, max_messages=max_messages, wait_s=wait_s)
        hidden_s = math.ceil(visibility_s)
        at_once = 1 if spec.fifo else max_messages
        received = self._receive(queue, hidden_s, at_once, math.ceil(wait_s))
        while received and spec.fifo and len(received) < max_messages:
            try:
                more = self._receive(queue, hidden_s, 1, 0)
            except Unavailable:
                break  # what is in hand must not be lost with it
            if not more:
                break
            received += more
        messages = [_message(queue, receipt, raw) for receipt, raw in received]
        return [message for message in messages if message is not None]

    def extend(self, queue: str, receipt: str, visibility_s: float) -> None:
        self._declared(queue)
        check_visibility(visibility_s)
        received_at_s, handle = _parsed(receipt)
        left_s = received_at_s + VISIBILITY_MAX_S - _CLOCK_MARGIN_S - math.ceil(self._clock())
        if handle is None or (visibility_s > 0 and left_s <= 0):
            raise StaleReceipt(f"the message of {queue!r} is no longer held by this receipt")
        hidden_s = min(math.ceil(visibility_s), max(0, left_s))
        with aws_errors_made_ours(_STORE):
            try:
                self._client.change_message_visibility(
                    QueueUrl=self._urls[queue], ReceiptHandle=handle, VisibilityTimeout=hidden_s
                )
            except ClientError as error:
                if error_code(error) not in _NO_LONGER_HELD:
                    raise
                raise StaleReceipt(f"the message of {queue!r} is no longer held by this receipt") from error

    def delete(self, queue: str, receipt: str) -> None:
        self._declared(queue)
        _, handle = _parsed(receipt)
        if handle is None:
            return
        with aws_errors_made_ours(_STORE):
            try:
                self._client.delete_message(QueueUrl=self._urls[queue], ReceiptHandle=handle)
            except ClientError as error:
                if error_code(error) not in _NO_LONGER_HELD:
                    raise

    def depth(self, queue: str) -> int:
        self._declared(queue)
        with aws_errors_made_ours(_STORE):
            answer = self._client.get_queue_attributes(
                QueueUrl=self._urls[queue], AttributeNames=list(_COUNTS)
            )
        return sum(int(answer["Attributes"][name]) for name in _COUNTS)

    def redrive(self, queue: str, *, max_messages: int = 100) -> int:
        """As the port says, by receive, send and delete of each letter.

        SQS's own StartMessageMoveTask runs behind the caller's back, moves everything, and counts
        approximately. Here a letter whose move was cut after the send comes again; a FIFO queue drops it.
        """
        spec, is_dead = self._declared(queue)
        if is_dead:
            raise InvalidRequest(f"{queue!r} is itself a dead queue; name its source", field="queue")
        dead, moved = spec.dead_queue, 0
        while moved < max_messages:
            # One at a time: moving the oldest of a group uncovers the next one.
            letters = self._receive(dead, _REDRIVE_VISIBILITY_S, 1, _REDRIVE_WAIT_S)
            if not letters:
                break
            ((receipt, letter),) = letters
            group = letter["Attributes"].get("MessageGroupId") if spec.fifo else None
            self._send(queue, letter["Body"], group=group, dedup_id=f"redrive-{letter['MessageId']}")
            self.delete(dead, receipt)
            moved += 1
        return moved

    def _send(
        self, queue: str, text: str, *, group: str | None, dedup_id: str | None, delay_s: int = 0
    ) -> None:
        request: dict[str, Any] = {"QueueUrl": self._urls[queue], "MessageBody": text}
        if group is not None:
            # Without an id of its own a message gets one for its retries.
            request |= {"MessageGroupId": group, "MessageDeduplicationId": dedup_id or uuid.uuid4().hex}
        if delay_s:
            request["DelaySeconds"] = delay_s
        with aws_errors_made_ours(_STORE):
            self._client.send_message(**request)

    def _receive(
        self, queue: str, hidden_s: int, max_messages: int, wait_s: int
    ) -> list[tuple[str, dict[str, Any]]]:
        """Messages as SQS describes them, each behind a receipt that also says when it was received."""
        request = {
            "QueueUrl": self._urls[queue],
            "VisibilityTimeout": hidden_s,
            "MaxNumberOfMessages": max_messages,
            "WaitTimeSeconds": wait_s,
            "MessageSystemAttributeNames": ["ApproximateReceiveCount", "MessageGroupId"],
        }
        if self._queues[queue][0].fifo:
            # A retry after a lost answer gets the same messages, which would else be hidden from everybody.
            request["ReceiveRequestAttemptId"] = uuid.uuid4().hex
        received_at_s = int(self._clock())
        with aws_errors_made_ours(_STORE):
            answer = self._client.receive_message(**request)
        return [(f"{received_at_s}.{raw['ReceiptHandle']}", raw) for raw in answer.get("Messages", [])]

    def _declared(self, queue: str) -> tuple[QueueSpec, bool]:
        try:
            return self._queues[queue]
        except KeyError as error:
            raise InvalidRequest(f"no such queue: {queue[:80]!r}", field="queue") from error


def _parsed(receipt: str) -> tuple[int, str | None]:
    """When the message was received (Unix seconds), and SQS's own handle; None for what is no receipt."""
    text, _, handle = receipt.partition(".")
    if not (text.isascii() and text.isdecimal() and len(text) < 12 and handle):
        return 0, None
    return int(text), handle


def _message(queue: str, receipt: str, raw: dict[str, Any]) -> Message | None:
    """The message, or None if somebody else put it there: it dies by itself, and must not hold up others."""
    try:
        body: object = decode_body(raw["Body"])
    except ValueError:
        body = None
    if not isinstance(body, dict):
        _log.warning("a message that is not ours", extra={"queue": queue})
        return None
    attributes = raw["Attributes"]
    return Message(
        queue, body, receipt, int(attributes["ApproximateReceiveCount"]), attributes.get("MessageGroupId")
    )
