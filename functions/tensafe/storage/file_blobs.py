"""Blobs as files: the embedded counterpart of a bucket.

A blob is one file, named by the SHA-256 of its key in one of 256 folders: whatever the key grammar
allows, no two keys collide and none is a folder of another ("a" and "a/b" are both keys). The file
begins with a header that names the key and checksum, so contents and checksum appear together.
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import secrets
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, Final

from tensafe.contracts.errors import IntegrityError, Unavailable
from tensafe.storage.checks import check_range
from tensafe.storage.durable import sync_directory
from tensafe.storage.ports import OCTETS, BlobExists, BlobInfo, BlobMissing, check_blob_key
from tensafe.storage.presign import UrlSigner

_log = logging.getLogger(__name__)
_MAGIC: Final = b"TSBLOB1\n"
_PREFIX: Final = struct.Struct(f">{len(_MAGIC)}sI")
_HEADER_MAX_BYTES: Final = 4096
_ABANDONED_AFTER_S: Final = 24 * 3600


class FileBlobs:
    """The blobs port on a local folder that several processes share. Implements `Blobs`."""

    def __init__(
        self, root: Path, *, url_secret: bytes, base_url: str, clock: Callable[[], float] = time.time
    ) -> None:
        """`url_secret` (32 bytes or more) signs URLs under `base_url`, where the API serves them."""
        self._signer = UrlSigner(url_secret, base_url, clock=clock)
        self._root = root
        self._unfinished = root / "unfinished"
        with _errors_made_ours():
            root.mkdir(parents=True, exist_ok=True, mode=0o700)
            for name in ("unfinished", *(f"{shard:02x}" for shard in range(256))):
                (root / name).mkdir(exist_ok=True, mode=0o700)
            sync_directory(root)
            _remove_abandoned(self._unfinished)

    def put(self, key: str, data: bytes) -> BlobInfo:
        path = self._path(key)
        info = BlobInfo(key, len(data), hashlib.sha256(data).hexdigest())
        with _errors_made_ours():
            while True:
                if not path.exists() and self._link_new(path, info, data):
                    sync_directory(path.parent)
                    return info
                with suppress(BlobMissing):  # deleted since: write it after all
                    return _same_or_raise(path, info)

    def get(self, key: str, *, offset: int = 0, length: int | None = None) -> bytes:
        check_range(offset, length)
        with _errors_made_ours(), _opened(self._path(key), key) as (file, info):
            if offset == 0 and (length is None or length >= info.size_bytes):
                data = file.read()
                if hashlib.sha256(data).hexdigest() != info.sha256:
                    raise IntegrityError(f"the blob {key!r} does not match its checksum")
                return data
            file.seek(min(offset, info.size_bytes), os.SEEK_CUR)
            return file.read(-1 if length is None else length)

    def head(self, key: str) -> BlobInfo | None:
        try:
            with _errors_made_ours(), _opened(self._path(key), key) as (_, info):
                return info
        except BlobMissing:
            return None

    def delete(self, key: str) -> None:
        path = self._path(key)
        with _errors_made_ours():
            path.unlink(missing_ok=True)
            sync_directory(path.parent)

    def presign_get(self, key: str, *, expires_s: int, media_type: str = OCTETS) -> str:
        return self._signer.url(key, expires_s, media_type)

    def open_presigned(self, key: str, expires: int, signature: str, media_type: str = OCTETS) -> bytes:
        """What the holder of a URL from `presign_get` may read: the whole verified blob.

        Raises Unauthenticated (expired, altered), InvalidRequest (no blob key), BlobMissing.
        """
        self._signer.verify(key, expires, signature, media_type)
        return self.get(key)

    def _path(self, key: str) -> Path:
        name = hashlib.sha256(check_blob_key(key).encode()).hexdigest()
        return self._root / name[:2] / name

    def _link_new(self, path: Path, info: BlobInfo, data: bytes) -> bool:
        """Write everything aside, then give it its name; False if another writer was first."""
        aside = self._unfinished / secrets.token_hex(16)
        fd = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            with open(fd, "wb") as file:
                file.write(_header(info))
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.link(aside, path)
        except FileExistsError:
            return False
        finally:
            aside.unlink(missing_ok=True)
        return True


def _same_or_raise(path: Path, info: BlobInfo) -> BlobInfo:
    taken = BlobExists(f"the blob {info.key!r} exists with other contents")
    with _opened(path, info.key) as (file, present):
        if present != info:
            raise taken
        if hashlib.sha256(file.read()).hexdigest() != info.sha256:
            raise IntegrityError(f"the blob {info.key!r} does not match its checksum")
    sync_directory(path.parent)  # the first writer may not have got that far
    return info


def _header(info: BlobInfo) -> bytes:
    fields = {"key": info.key, "sha256": info.sha256, "size_bytes": info.size_bytes}
    text = json.dumps(fields, separators=(",", ":")).encode()
    return _PREFIX.pack(_MAGIC, len(text)) + text


def _read_header(file: BinaryIO, key: str) -> BlobInfo:
    """The header, with the file left at the first byte of the blob; IntegrityError if it is not whole."""
    try:
        magic, length = _PREFIX.unpack(file.read(_PREFIX.size))
        if magic != _MAGIC or length > _HEADER_MAX_BYTES:
            raise ValueError("not a blob header")
        fields = json.loads(file.read(length))
        info = BlobInfo(fields["key"], fields["size_bytes"], fields["sha256"])
    except (struct.error, ValueError, KeyError, TypeError) as error:
        raise IntegrityError(f"the file of the blob {key!r} has no readable header") from error
    if info.key != key or os.fstat(file.fileno()).st_size != file.tell() + info.size_bytes:
        raise IntegrityError(f"the file of the blob {key!r} was cut, grown or exchanged")
    return info


@contextmanager
def _opened(path: Path, key: str) -> Iterator[tuple[BinaryIO, BlobInfo]]:
    try:
        file = path.open("rb")
    except FileNotFoundError as error:
        raise BlobMissing(f"no blob {key!r}") from error
    with file:
        yield file, _read_header(file, key)


def _remove_abandoned(folder: Path) -> None:
    """Remove what writers that were killed left behind, once no writer can still be at work on it."""
    for path in folder.iterdir():
        try:
            if time.time() - path.stat().st_mtime > _ABANDONED_AFTER_S:
                path.unlink()
        except FileNotFoundError:
            continue


@contextmanager
def _errors_made_ours() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        _log.error("blob store: %s", errno.errorcode.get(error.errno or 0, error.errno))
        raise Unavailable("the blob store is full, failing or cannot be accessed") from error
