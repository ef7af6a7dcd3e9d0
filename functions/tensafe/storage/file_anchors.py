"""Anchors as small files in one folder: the embedded adapter.

A file has two slots that are written in turn, in place, and forced to the disk: one sync of one block
rather than the two of a new file that is renamed. A slot that a crash has torn does not match its
digest, and the other one still holds the mark before it.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Final

from tensafe.contracts.errors import ConfigurationError, IntegrityError, InvalidRequest, Unavailable
from tensafe.storage.anchors import Mark
from tensafe.storage.durable import sync_directory
from tensafe.storage.file_lock import FairFileLock
from tensafe.storage.ports import ConditionFailed

SLOT_BYTES: Final = 2048
_SUFFIX: Final = ".anchor"
_LOCK: Final = "anchors"
_LOCK_TIMEOUT_S: Final = 10.0
_DIGEST_CHARS: Final = 64


class FileAnchors:
    """Implements `Anchors`; any number of processes and threads."""

    def __init__(self, folder: Path) -> None:
        """Raises ConfigurationError unless the folder is there: an empty one would have forgotten all."""
        if not folder.is_dir():
            raise ConfigurationError(f"the folder of the privacy ledger's anchors, {folder}, is missing")
        self._folder = folder
        self._thread_lock = threading.Lock()

    def get(self, name: str) -> Mark | None:
        path = self._path(name)
        found = _read(path)
        if found is None and path.exists():  # both slots are being written, or both are damaged
            with self._locked():
                found = _read(path)
            if found is None:
                raise IntegrityError(f"the anchor {path} is damaged; put it back from your backup")
        if found is None:
            self._check_folder()
        if found is not None and found[1].name != name:
            raise IntegrityError(f"the anchor {path} belongs to {found[1].name}")
        return None if found is None else found[1]

    def put(self, mark: Mark, *, after: Mark | None) -> None:
        if after is not None and (after.name != mark.name or mark.position < after.position):
            raise InvalidRequest(f"an anchor never goes back: {after.position} to {mark.position}")
        path = self._path(mark.name)
        try:
            with self._locked():
                found = _read(path)
                if (None if found is None else found[1]) != after or (found is None and path.exists()):
                    raise ConditionFailed(f"the anchor of {mark.name} has moved", index=0)
                if found is None:
                    self._create(path, _slot(0, mark))
                else:
                    _overwrite(path, found[0] + 1, mark)
        except OSError as error:
            raise Unavailable(f"the anchor {path} cannot be written: {error.strerror}") from error

    def all(self) -> list[Mark]:
        self._check_folder()
        marks = []
        for path in self._folder.glob(f"*{_SUFFIX}"):
            found = _read(path)
            if found is None:
                raise IntegrityError(f"the anchor {path} is damaged; put it back from your backup")
            marks.append(found[1])
        return sorted(marks, key=lambda mark: mark.name)

    def _check_folder(self) -> None:
        if not self._folder.is_dir():
            raise Unavailable(f"the folder of the privacy ledger's anchors, {self._folder}, is missing")

    def _path(self, name: str) -> Path:
        return self._folder / f"{hashlib.sha256(name.encode()).hexdigest()[:40]}{_SUFFIX}"

    def _create(self, path: Path, slot: bytes) -> None:
        aside = path.with_name(f"{path.name}.new")
        fd = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        with open(fd, "wb") as file:
            file.write(slot.ljust(2 * SLOT_BYTES))
            file.flush()
            os.fsync(fd)
        aside.replace(path)
        sync_directory(self._folder)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        # A lock of its own each time: descriptors that a fork shares would share the lock too.
        with self._thread_lock, closing(FairFileLock(self._folder / _LOCK)) as lock:
            lock.acquire(_LOCK_TIMEOUT_S)
            try:
                yield
            finally:
                lock.release()


def _read(path: Path) -> tuple[int, Mark] | None:
    """The newest whole slot and its number; None if there is none, or no file. Raises Unavailable."""
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise Unavailable(f"the anchor {path} cannot be read: {error.strerror}") from error
    slots = (_parse(raw[at : at + SLOT_BYTES]) for at in (0, SLOT_BYTES))
    return max((slot for slot in slots if slot is not None), key=lambda slot: slot[0], default=None)


def _overwrite(path: Path, number: int, mark: Mark) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.pwrite(fd, _slot(number, mark), number % 2 * SLOT_BYTES)
        os.fdatasync(fd)
    finally:
        os.close(fd)


def _slot(number: int, mark: Mark) -> bytes:
    fields = {"number": number, "name": mark.name, "position": mark.position, "body": dict(mark.body)}
    text = json.dumps(fields, sort_keys=True).encode()
    slot = hashlib.sha256(text).hexdigest().encode() + b" " + text
    if len(slot) >= SLOT_BYTES:
        raise InvalidRequest(f"an anchor holds at most {SLOT_BYTES} bytes")
    return slot.ljust(SLOT_BYTES - 1) + b"\n"


def _parse(slot: bytes) -> tuple[int, Mark] | None:
    digest, _, text = slot.rstrip(b" \n").partition(b" ")
    if hashlib.sha256(text).hexdigest().encode() != digest or len(digest) != _DIGEST_CHARS:
        return None
    fields = json.loads(text)
    return int(fields["number"]), Mark(str(fields["name"]), int(fields["position"]), fields["body"])
