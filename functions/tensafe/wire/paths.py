"""`tinker://{run}/{kind}/{name}`: where saved weights live, as the SDK parses it.

The SDK splits at '/' and insists on three parts, so a name never holds a slash; recipes use step
counters (`000020`), `final` and the like.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final, Literal, get_args

from tensafe.contracts.errors import InvalidRequest
from tensafe.contracts.payloads import CheckpointRef
from tensafe.wire.ids import RunId, SamplerId

CheckpointKind = Literal["weights", "sampler_weights", "external_weights"]
CheckpointType = Literal["training", "sampler", "external"]

_SCHEME: Final = "tinker://"
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}")
_PARTS: Final = 3
_SESSION_PREFIX: Final = "session-weights-"
_KINDS: Final[tuple[CheckpointKind, ...]] = get_args(CheckpointKind)
_TYPE_OF: Final[dict[CheckpointKind, CheckpointType]] = {
    "weights": "training",
    "sampler_weights": "sampler",
    "external_weights": "external",
}


def check_new_name(name: str, field: str = "path") -> str:
    """`name` if a client may give it to a new checkpoint; names of unlisted sampler weights are ours."""
    if name.startswith(_SESSION_PREFIX):
        raise InvalidRequest(f"{field} must not begin with {_SESSION_PREFIX}", field=field)
    return check_checkpoint_name(name, field)


def session_weights_name(sampler: SamplerId) -> str:
    """The name of the unlisted sampler weights behind a sampling session."""
    return f"{_SESSION_PREFIX}{sampler.index}"


def check_checkpoint_name(name: str, field: str = "path") -> str:
    """`name` if it can name a checkpoint, else InvalidRequest that says which names can."""
    if not _NAME.fullmatch(name):
        raise InvalidRequest(
            f"{field} must be 1 to 128 letters, digits, '.', '_' or '-', beginning with a letter or digit",
            field=field,
        )
    return name


@dataclass(frozen=True, slots=True)
class CheckpointPath:
    """Saved weights of a run. `kind` says for what: resuming, sampling, or use elsewhere."""

    run: RunId
    kind: CheckpointKind
    name: str

    def __str__(self) -> str:
        return f"{_SCHEME}{self.run}/{self.checkpoint_id}"

    @property
    def checkpoint_id(self) -> str:
        """`{kind}/{name}`, the id within the run; it contains a slash."""
        return f"{self.kind}/{self.name}"

    @property
    def checkpoint_type(self) -> CheckpointType:
        """The kind in the words of the REST resources."""
        return _TYPE_OF[self.kind]

    def to_ref(self) -> CheckpointRef:
        """As operations refer to it."""
        return CheckpointRef(run_id=str(self.run), kind=self.kind, name=self.name)

    @classmethod
    def parse(cls, text: str, field: str = "path") -> CheckpointPath:
        """Raises InvalidRequest for anything but `tinker://{run}/{kind}/{name}`."""
        parts = text.removeprefix(_SCHEME).split("/")
        if not text.startswith(_SCHEME) or len(parts) != _PARTS:
            raise InvalidRequest(f"{field} must look like tinker://<run>/<kind>/<name>", field=field)
        return cls.of(parts[0], f"{parts[1]}/{parts[2]}", field)

    @classmethod
    def of(cls, run: str, checkpoint_id: str, field: str = "checkpoint_id") -> CheckpointPath:
        """From a run id and `{kind}/{name}`, as they stand in a REST path."""
        kind_text, slash, name = checkpoint_id.partition("/")
        for kind in _KINDS:
            if kind == kind_text and slash:
                return cls(RunId.parse(run, field), kind, check_checkpoint_name(name, field))
        raise InvalidRequest(
            f"{field} must name one of {', '.join(_KINDS)}, then '/', then a name", field=field
        )
