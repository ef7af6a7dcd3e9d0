"""Identifiers that a client composes or that it hands back to us, as values with one spelling.

run              {session}:train:{n}        Tinker's model_id; the SDK composes it itself
sampler          {session}:sample:{n}       Tinker's sampling_session_id
request          {run or sampler}:{seq}     one operation; seq 0 creates the run
sampled sequence {sampler}:{seq}:{i}        continuation i of a sampling request
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from tensafe.contracts.errors import InvalidRequest

_SESSION: Final = r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}"
_COUNT: Final = r"0|[1-9][0-9]{0,17}|[1-8][0-9]{18}"
_RUN: Final = re.compile(rf"({_SESSION}):train:({_COUNT})")
_SAMPLER: Final = re.compile(rf"({_SESSION}):sample:({_COUNT})")
_REQUEST: Final = re.compile(rf"({_SESSION}:(?:train|sample):(?:{_COUNT})):({_COUNT})")
_SESSION_PATTERN: Final = re.compile(_SESSION)
COUNT_MAX: Final = 9 * 10**18 - 1
"""Largest counter in an identifier; below 2**63."""
SEQ_IDS_PER_CLIENT: Final = 10**9
"""The SDK gives every copy of a sampling client its own block of sequence numbers."""


def check_session_id(text: str, field: str = "session_id") -> str:
    """`text` if it can be a session id, else InvalidRequest."""
    if not _SESSION_PATTERN.fullmatch(text):
        raise InvalidRequest(f"{field} is not a session id", field=field)
    return text


@dataclass(frozen=True, slots=True)
class RunId:
    """A training run of a session."""

    session_id: str
    index: int

    def __str__(self) -> str:
        return f"{self.session_id}:train:{self.index}"

    @classmethod
    def parse(cls, text: str, field: str = "model_id") -> RunId:
        """Raises InvalidRequest for anything but `{session}:train:{n}`."""
        if match := _RUN.fullmatch(text):
            return cls(match[1], int(match[2]))
        raise InvalidRequest(f"{field} must look like <session>:train:<number>", field=field)


@dataclass(frozen=True, slots=True)
class SamplerId:
    """A sampling session: one set of weights from which a session samples."""

    session_id: str
    index: int

    def __str__(self) -> str:
        return f"{self.session_id}:sample:{self.index}"

    @classmethod
    def parse(cls, text: str, field: str = "sampling_session_id") -> SamplerId:
        """Raises InvalidRequest for anything but `{session}:sample:{n}`."""
        if match := _SAMPLER.fullmatch(text):
            return cls(match[1], int(match[2]))
        raise InvalidRequest(f"{field} must look like <session>:sample:<number>", field=field)


@dataclass(frozen=True, slots=True)
class RequestId:
    """One operation: `seq` counts within its run or sampler. Creating a run is its operation 0."""

    owner: RunId | SamplerId
    seq: int

    def __str__(self) -> str:
        return f"{self.owner}:{self.seq}"

    @classmethod
    def parse(cls, text: str, field: str = "request_id") -> RequestId:
        """Raises InvalidRequest for an id that this service cannot have given out."""
        if match := _REQUEST.fullmatch(text):
            owner = match[1]
            kind = SamplerId if _SAMPLER.fullmatch(owner) else RunId
            return cls(kind.parse(owner, field), int(match[2]))
        raise InvalidRequest(f"{field} is not a request id of this service", field=field)

    @property
    def client_index(self) -> int:
        """Which copy of a sampling client sent it; the SDK polls each copy's requests apart."""
        return self.seq // SEQ_IDS_PER_CLIENT


def sample_sequence_ids(request: RequestId, num_samples: int) -> list[str]:
    """The ids that a sampling submission must return, one per continuation."""
    return [f"{request}:{i}" for i in range(num_samples)]
