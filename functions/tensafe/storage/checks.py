"""The limits of the ports, checked once for every adapter."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Final

from tensafe.contracts.errors import ConfigurationError, InvalidRequest
from tensafe.storage.ports import (
    ITEM_MAX_BYTES,
    MESSAGE_MAX_BYTES,
    TRANSACTION_MAX_BYTES,
    TRANSACTION_MAX_WRITES,
    VISIBILITY_MAX_S,
    JsonValue,
    Key,
    Put,
    QueueSpec,
    Write,
)

DEDUP_WINDOW_S: Final = 300
READ_MAX_ITEMS: Final = 100
RECEIVE_MAX_MESSAGES: Final = 10
RECEIVE_MAX_WAIT_S: Final = 20.0
DELAY_MAX_S: Final = 900.0
CONTEXT_MAX_BYTES: Final = 8192
DATA_KEY_MAX_BYTES: Final = 1024
_INTEGER_MAX: Final = 2**53
"""The last integer that every store and every JSON reader keeps exactly."""

_QUEUE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,69}")
_MESSAGE_LABEL = re.compile(r"[!-~]{1,128}")


def _plain(value: object) -> object:
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"{type(value).__name__} is not JSON")


def encode_body(body: Mapping[str, JsonValue], *, ascii_only: bool = False) -> str:
    """Compact JSON text; InvalidRequest if it has no exact JSON or UTF-8 form (NaN, lone surrogates)."""
    try:
        text = json.dumps(
            body, ensure_ascii=ascii_only, separators=(",", ":"), allow_nan=False, default=_plain
        )
        text.encode("utf-8")
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidRequest(f"the body is not plain JSON: {error}", field="body") from error
    return text


def decode_body(text: str) -> dict[str, JsonValue]:
    """The inverse of `encode_body`."""
    body: dict[str, JsonValue] = json.loads(text)
    return body


def check_writes(writes: Sequence[Write]) -> list[tuple[Write, str]]:
    """Each write with its encoded body ("" where it has none), or InvalidRequest."""
    if not 1 <= len(writes) <= TRANSACTION_MAX_WRITES:
        raise InvalidRequest(
            f"a transaction has 1 to {TRANSACTION_MAX_WRITES} writes, not {len(writes)}", field="writes"
        )
    seen: set[Key] = set()
    total_bytes = 0
    checked: list[tuple[Write, str]] = []
    for index, write in enumerate(writes):
        if write.key in seen:
            raise InvalidRequest("two writes of a transaction have the same key", field=f"writes.{index}.key")
        seen.add(write.key)
        if not 0 <= (write.if_version or 0) <= _INTEGER_MAX:
            raise InvalidRequest("a version is 0 to 2**53", field=f"writes.{index}.if_version")
        text = encode_body(write.body) if isinstance(write, Put) else ""
        if isinstance(write, Put):
            total_bytes += _item_bytes(write, text, index)
        checked.append((write, text))
    if total_bytes > TRANSACTION_MAX_BYTES:
        raise InvalidRequest(
            f"a transaction is at most {TRANSACTION_MAX_BYTES} bytes, not {total_bytes}", field="writes"
        )
    return checked


def _item_bytes(put: Put, text: str, index: int) -> int:
    if not 0 <= (put.expires_at_s or 0) <= _INTEGER_MAX:
        raise InvalidRequest("an expiry is in Unix seconds", field=f"writes.{index}.expires_at_s")
    size_bytes = len(put.key.partition) + len(put.key.sort) + len(text.encode()) + len(put.sealed)
    if size_bytes > ITEM_MAX_BYTES:
        raise InvalidRequest(
            f"an item is at most {ITEM_MAX_BYTES} bytes, not {size_bytes}", field=f"writes.{index}"
        )
    return size_bytes


def check_keys(keys: Sequence[Key]) -> None:
    """InvalidRequest for no key, too many, or one twice."""
    if not 1 <= len(keys) <= READ_MAX_ITEMS:
        raise InvalidRequest(f"a read is of 1 to {READ_MAX_ITEMS} items, not {len(keys)}", field="keys")
    if len(set(keys)) < len(keys):
        raise InvalidRequest("two of these keys are the same", field="keys")


def check_query(partition: str, first: str, last: str | None, limit: int) -> None:
    """InvalidRequest for what is no partition, no text that can be compared, or a limit below 1."""
    Key(partition, "0")
    if limit < 1:
        raise InvalidRequest(f"a query returns 1 item or more, not {limit}", field="limit")
    for name, bound in (("first", first), ("last", last or "")):
        try:
            bound.encode()
        except UnicodeEncodeError as error:
            raise InvalidRequest("a range bound is not UTF-8 text", field=name) from error


def declared_queues(specs: Sequence[QueueSpec]) -> dict[str, tuple[QueueSpec, bool]]:
    """Every queue by name, with its spec and whether it is the dead queue of that spec.

    Raises ConfigurationError for a name that a queue service rejects or that is declared twice.
    """
    queues: dict[str, tuple[QueueSpec, bool]] = {}
    for spec in specs:
        if not _QUEUE_NAME.fullmatch(spec.name) or spec.max_receives < 1:
            raise ConfigurationError(
                f"not a queue: {spec!r}; a name is 1 to 70 letters, digits, '_' and '-', "
                "and max_receives is 1 or more",
                field="queues",
            )
        for name, dead in ((spec.name, False), (spec.dead_queue, True)):
            if name in queues:
                raise ConfigurationError(f"the queue {name!r} is declared twice", field="queues")
            queues[name] = (spec, dead)
    return queues


def check_send(
    spec: QueueSpec,
    body: Mapping[str, JsonValue],
    *,
    group: str | None,
    dedup_id: str | None,
    delay_s: float,
) -> str:
    """The encoded body of a message that `spec` accepts, or InvalidRequest."""
    if spec.fifo and group is None:
        raise InvalidRequest(f"the queue {spec.name!r} is FIFO: a message needs a group", field="group")
    if spec.fifo and delay_s != 0:
        raise InvalidRequest("a FIFO queue cannot delay one message", field="delay_s")
    if not spec.fifo and group is not None:
        raise InvalidRequest(f"the queue {spec.name!r} is not FIFO: it has no groups", field="group")
    for name, label in (("group", group), ("dedup_id", dedup_id)):
        if label is not None and not _MESSAGE_LABEL.fullmatch(label):
            raise InvalidRequest("must be 1 to 128 printable ASCII characters without spaces", field=name)
    if not 0 <= delay_s <= DELAY_MAX_S:
        raise InvalidRequest(f"a delay is 0 to {DELAY_MAX_S:g} s, not {delay_s:g}", field="delay_s")
    text = encode_body(body, ascii_only=True)
    if len(text) > MESSAGE_MAX_BYTES:
        raise InvalidRequest(
            f"a message is at most {MESSAGE_MAX_BYTES} bytes of JSON, not {len(text)}", field="body"
        )
    return text


def check_receive(*, visibility_s: float, max_messages: int, wait_s: float) -> None:
    """InvalidRequest outside the limits of `Queues.receive`."""
    if visibility_s == 0:
        raise InvalidRequest("a received message must be hidden for a while", field="visibility_s")
    check_visibility(visibility_s)
    if not 1 <= max_messages <= RECEIVE_MAX_MESSAGES:
        raise InvalidRequest(
            f"a receive returns 1 to {RECEIVE_MAX_MESSAGES} messages, not {max_messages}",
            field="max_messages",
        )
    if not 0 <= wait_s <= RECEIVE_MAX_WAIT_S:
        raise InvalidRequest(f"a receive waits 0 to {RECEIVE_MAX_WAIT_S:g} s, not {wait_s:g}", field="wait_s")


def check_visibility(visibility_s: float) -> None:
    """InvalidRequest unless 0 <= visibility_s <= 12 h."""
    if not (math.isfinite(visibility_s) and 0 <= visibility_s <= VISIBILITY_MAX_S):
        raise InvalidRequest(
            f"a visibility is 0 to {VISIBILITY_MAX_S} s, not {visibility_s:g}", field="visibility_s"
        )


def check_range(offset: int, length: int | None) -> None:
    """InvalidRequest for a negative offset or length."""
    if offset < 0:
        raise InvalidRequest("an offset is 0 or more", field="offset")
    if length is not None and length < 0:
        raise InvalidRequest("a length is 0 or more", field="length")


def check_context(context: Mapping[str, str]) -> dict[str, str]:
    """A copy of an encryption context that every key ring accepts, or InvalidRequest.

    At least one pair, no empty key or value, no key of the SDK's own `aws-crypto-` family, 8 KB in all.
    """
    if not context:
        raise InvalidRequest("an encryption context is required", field="context")
    size_bytes = 0
    for name, value in context.items():
        if not name or not value or name.startswith("aws-crypto-"):
            raise InvalidRequest(
                "an encryption context has no empty key or value and no key that begins with 'aws-crypto-'",
                field="context",
            )
        try:
            size_bytes += len(name.encode()) + len(value.encode())
        except UnicodeEncodeError as error:
            raise InvalidRequest("an encryption context is UTF-8 text", field="context") from error
    if size_bytes > CONTEXT_MAX_BYTES:
        raise InvalidRequest(
            f"an encryption context is at most {CONTEXT_MAX_BYTES} bytes, not {size_bytes}", field="context"
        )
    return dict(context)


def check_data_key(data_key: bytes) -> None:
    """InvalidRequest unless it has 1 to 1024 bytes."""
    if not 1 <= len(data_key) <= DATA_KEY_MAX_BYTES:
        raise InvalidRequest(f"a data key has 1 to {DATA_KEY_MAX_BYTES} bytes", field="data_key")
