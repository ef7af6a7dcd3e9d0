"""A walk over protobuf bytes before they are parsed: refuses what parsing would silently accept.

Parsing keeps unknown fields, lets a repeated singular field override the first, and spends tens of
bytes on a message that takes two on the wire. The walk builds nothing and stops at a field count.
Wire format: https://protobuf.dev/programming-guides/encoding/.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Final, NamedTuple, cast

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message

from tensafe.contracts.errors import InvalidRequest, PayloadTooLarge

_VARINT, _FIXED64, _LENGTH, _FIXED32 = 0, 1, 2, 5
_FIXED_BYTES: Final = {_FIXED64: 8, _FIXED32: 4}
_VARINT_MAX_BYTES: Final = 10
_CONTINUES: Final = 0x80
_LENGTH_TYPES: Final = frozenset(
    {FieldDescriptor.TYPE_STRING, FieldDescriptor.TYPE_BYTES, FieldDescriptor.TYPE_MESSAGE}
)
_FIXED64_TYPES: Final = frozenset(
    {FieldDescriptor.TYPE_DOUBLE, FieldDescriptor.TYPE_FIXED64, FieldDescriptor.TYPE_SFIXED64}
)
_FIXED32_TYPES: Final = frozenset(
    {FieldDescriptor.TYPE_FLOAT, FieldDescriptor.TYPE_FIXED32, FieldDescriptor.TYPE_SFIXED32}
)


@dataclass(frozen=True, slots=True)
class _Field:
    """What the walk needs to know of a field."""

    name: str
    wire_type: int
    repeated: bool
    message: Descriptor | None


@cache
def _fields_of(descriptor: Descriptor) -> Mapping[int, _Field]:
    return {field.number: _field_of(field) for field in descriptor.fields}


def _field_of(field: FieldDescriptor) -> _Field:
    if field.type in _LENGTH_TYPES:
        wire_type = _LENGTH
    elif field.type in _FIXED64_TYPES:
        wire_type = _FIXED64
    elif field.type in _FIXED32_TYPES:
        wire_type = _FIXED32
    else:
        wire_type = _VARINT
    return _Field(field.name, wire_type, field.is_repeated, field.message_type)


def check_wire_format(raw: bytes, message_type: type[Message], *, max_fields: int) -> None:
    """Raise unless `raw` is a whole message of known fields, each singular one given once.

    Raises InvalidRequest with the path of the field, or PayloadTooLarge past `max_fields` fields
    and packed values. Takes about a microsecond per field.
    """
    descriptor = cast("Descriptor", message_type.DESCRIPTOR)
    _Scanner(raw, max_fields).message(0, len(raw), descriptor, _Place(None, "", None))


def head_length(raw: bytes, message_type: type[Message], names: Collection[str]) -> int:
    """How many bytes at the start of `raw` hold the fields `names` alone, each at most once."""
    descriptor = cast("Descriptor", message_type.DESCRIPTOR)
    fields = _fields_of(descriptor)
    scanner, top = _Scanner(raw, len(names)), _Place(None, "", None)
    position = 0
    for _ in names:
        if (
            position >= len(raw)
            or (field := fields.get(raw[position] >> 3)) is None
            or field.name not in names
        ):
            break
        try:
            position = scanner.value(position + 1, len(raw), raw[position] & 7, field, 0, top)
        except InvalidRequest:
            break
    return position


class _Place(NamedTuple):
    """Where the walk is; spelled out only for an error."""

    parent: _Place | None
    name: str
    entry: int | None

    def path(self, name: str = "") -> str:
        here = self.name if self.entry is None else f"{self.name}[{self.entry}]"
        above = self.parent.path() if self.parent is not None else ""
        return ".".join(part for part in (above, here, name) if part)


class _Scanner:
    def __init__(self, raw: bytes, max_fields: int) -> None:
        self._raw = raw
        self._max_fields = max_fields
        self._left = max_fields

    def message(self, position: int, end: int, descriptor: Descriptor, place: _Place) -> None:
        """Check raw[position:end] as one message; recursion is bounded by the schema's depth."""
        raw, fields = self._raw, _fields_of(descriptor)
        seen: dict[int, int] = {}
        while position < end:
            tag = raw[position]
            position += 1
            if tag >= _CONTINUES:
                tag, position = self._varint(position - 1, end, place)
            self._left -= 1
            if self._left < 0:
                raise self._too_many(place.path())
            number = tag >> 3
            field = fields.get(number)
            if field is None:
                raise _unknown(number, place)
            count = seen.get(number, 0)
            if count and not field.repeated:
                path = place.path(field.name)
                raise InvalidRequest(f"{path} is given twice", field=path)
            seen[number] = count + 1
            position = self.value(position, end, tag & 7, field, count, place)

    def value(self, position: int, end: int, wire_type: int, field: _Field, index: int, place: _Place) -> int:
        """Check one value and return the position after it."""
        if wire_type == _LENGTH:
            return self._length_delimited(position, end, field, index, place)
        return self._scalar(position, end, wire_type, field, place)

    def _length_delimited(self, position: int, end: int, field: _Field, index: int, place: _Place) -> int:
        """Check a string, bytes, message or packed value and return the position after it."""
        length = self._raw[position] if position < end else _CONTINUES
        position += 1
        if length >= _CONTINUES:
            length, position = self._varint(position - 1, end, place, field.name)
        if length > end - position:
            raise _truncated(place.path(field.name))
        if field.message is not None:
            inner = _Place(place, field.name, index if field.repeated else None)
            self.message(position, position + length, field.message, inner)
        elif field.wire_type != _LENGTH:
            if not field.repeated:
                raise _wrong_type(place.path(field.name))
            self._left -= length
            if self._left < 0:
                raise self._too_many(place.path(field.name))
        return position + length

    def _scalar(self, position: int, end: int, wire_type: int, field: _Field, place: _Place) -> int:
        """Check a number and return the position after it."""
        if wire_type != field.wire_type:
            raise _wrong_type(place.path(field.name))
        if wire_type == _VARINT:
            return self._varint(position, end, place, field.name)[1]
        position += _FIXED_BYTES[wire_type]
        if position > end:
            raise _truncated(place.path(field.name))
        return position

    def _varint(self, position: int, end: int, place: _Place, name: str = "") -> tuple[int, int]:
        value = 0
        for shift in range(_VARINT_MAX_BYTES):
            if position >= end:
                raise _truncated(place.path(name))
            byte = self._raw[position]
            position += 1
            value |= (byte & 0x7F) << (7 * shift)
            if byte < _CONTINUES:
                return value, position
        path = place.path(name)
        raise InvalidRequest(f"{path or 'the request'} is not valid protobuf", field=path or "body")

    def _too_many(self, path: str) -> PayloadTooLarge:
        return PayloadTooLarge(
            f"the request has more than {self._max_fields} protobuf fields; send fewer examples",
            field=path or "body",
        )


def _unknown(number: int, place: _Place) -> InvalidRequest:
    owner = place.path() or "the request"
    return InvalidRequest(
        f"protobuf field number {number} of {owner} is not known to this service",
        field=place.path(f"field_{number}"),
    )


def _truncated(path: str) -> InvalidRequest:
    return InvalidRequest(f"{path or 'the request'} is truncated", field=path or "body")


def _wrong_type(path: str) -> InvalidRequest:
    return InvalidRequest(f"{path} has the wrong protobuf wire type", field=path)
