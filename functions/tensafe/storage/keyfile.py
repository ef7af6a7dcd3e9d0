"""The embedded key ring: one AES-256 key in a file that the operator made with a command.

Nothing here makes a key unless it is asked to: a service without its key file does not start.
"""

from __future__ import annotations

import base64
import binascii
import errno
import importlib
import json
import os
import secrets
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cryptography.hazmat.primitives import constant_time, hashes, hmac

from tensafe.contracts.errors import ConfigurationError
from tensafe.storage.checks import check_context
from tensafe.storage.encryption_sdk import MaterialProviders, SdkWrapper

FORMAT: Final = "tensafe-key-file"
FORMAT_VERSION: Final = 1
_KEY_BYTES: Final = 32
_FILE_MAX_BYTES: Final = 4096
_NAMESPACE: Final = "tensafe"
_HOW: Final = "`tensafe init` makes a key file; an existing installation needs the one it began with"


@dataclass(frozen=True, slots=True, repr=False)
class _KeyFile:
    key_id: str
    key: bytes


def create_key_file(path: Path) -> str:
    """Write a new random 256-bit key to `path`, readable by its owner alone; returns its key id.

    Raises ConfigurationError if the file exists, since overwriting a key destroys all that it protects,
    and if others could exchange it in its folder.
    """
    key, key_id = os.urandom(_KEY_BYTES), f"keyfile-{secrets.token_hex(8)}"
    fields = {
        "format": FORMAT,
        "version": FORMAT_VERSION,
        "algorithm": "AES-256",
        "key_id": key_id,
        "key": base64.b64encode(key).decode(),
        "check": _check_value(key, key_id),
    }
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    try:
        with _private_folder(path) as folder_fd:
            fd = os.open(path.name, flags, 0o600, dir_fd=folder_fd)
            with open(fd, "w", encoding="utf-8") as file:
                os.fchmod(fd, 0o600)  # whatever the umask took away or left
                file.write(json.dumps(fields, indent=2) + "\n")
                file.flush()
                os.fsync(fd)
            os.fsync(folder_fd)
    except FileExistsError as error:
        raise ConfigurationError(
            f"{path} exists; a key file is never overwritten", field="key_file"
        ) from error
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be created: {error.strerror}", field="key_file") from error
    return key_id


def check_new_key_file(path: Path) -> None:
    """Raise ConfigurationError if there is such a file or its folder will not do; makes nothing."""
    try:
        with _private_folder(path) as folder_fd:
            taken = path.name in os.listdir(folder_fd)
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be created: {error.strerror}", field="key_file") from error
    if taken:
        raise ConfigurationError(f"{path} exists; a key file is never overwritten", field="key_file")


class KeyFileRing:
    """The key ring port over a key file and the Encryption SDK's raw AES keyring. Implements `KeyRing`."""

    def __init__(self, path: Path) -> None:
        """Raises ConfigurationError if the file is missing, a link, malformed, or not its owner's alone:
        readable by others, or in a folder where they could exchange it.
        """
        self._file = _read(path)
        self._wrapper = SdkWrapper(self._make_keyring)

    @property
    def key_id(self) -> str:
        return self._file.key_id

    def wrap(self, data_key: bytes, context: Mapping[str, str]) -> bytes:
        return self._wrapper.wrap(data_key, context)

    def unwrap(self, wrapped: bytes, context: Mapping[str, str]) -> bytes:
        return self._wrapper.unwrap(wrapped, context)

    def check(self, context: Mapping[str, str]) -> None:
        """The key is in memory, where it was found whole at the start."""
        check_context(context)

    def derive(self, purpose: bytes) -> bytes:
        """A secret of 32 bytes for this purpose alone: HMAC-SHA256 under the key."""
        mac = hmac.HMAC(self._file.key, hashes.SHA256())
        mac.update(b"tensafe derived secret 1\n" + purpose)
        return mac.finalize()

    def _make_keyring(self, providers: MaterialProviders) -> object:
        models = importlib.import_module("aws_cryptographic_material_providers.mpl.models")
        return providers.create_raw_aes_keyring(
            input=models.CreateRawAesKeyringInput(
                key_namespace=_NAMESPACE,
                key_name=self._file.key_id,
                wrapping_key=self._file.key,
                wrapping_alg=models.AesWrappingAlg.ALG_AES256_GCM_IV12_TAG16,
            )
        )


@contextmanager
def _private_folder(path: Path) -> Iterator[int]:
    """A descriptor of the folder of `path`, for opening the file in the very folder that was checked.

    Raises OSError, and ConfigurationError where others could put a file of theirs in its place. A sticky
    folder, such as a temporary one, keeps them from that.
    """
    folder = path.parent
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        status = os.fstat(fd)
        if status.st_uid not in (os.geteuid(), 0):
            raise ConfigurationError(f"{folder}, the key file's folder, is another user's", field="key_file")
        if status.st_mode & 0o022 and not status.st_mode & stat.S_ISVTX:
            raise ConfigurationError(
                f"{folder}, the key file's folder, can be written by others: `chmod go-w {folder}`",
                field="key_file",
            )
        yield fd
    finally:
        os.close(fd)


def _read(path: Path) -> _KeyFile:
    try:
        with _private_folder(path) as folder_fd:
            flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOFOLLOW
            fd = os.open(path.name, flags, dir_fd=folder_fd)
    except FileNotFoundError as error:
        raise ConfigurationError(f"there is no key file at {path}; {_HOW}", field="key_file") from error
    except OSError as error:
        reason = "it is a link; name the file itself" if error.errno == errno.ELOOP else error.strerror
        raise ConfigurationError(f"{path} cannot be read: {reason}", field="key_file") from error
    try:
        _check_private(os.fstat(fd), path)
        return _parse(os.read(fd, _FILE_MAX_BYTES), path)
    finally:
        os.close(fd)


def _check_private(status: os.stat_result, path: Path) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise ConfigurationError(f"{path} is not a file; {_HOW}", field="key_file")
    if stat.S_IMODE(status.st_mode) & 0o077:
        raise ConfigurationError(
            f"{path} can be read by others than its owner: it may have leaked. `chmod 600 {path}` if it "
            f"has not; {_HOW}",
            field="key_file",
        )
    if status.st_uid not in (os.geteuid(), 0):
        raise ConfigurationError(f"{path} belongs to another user; {_HOW}", field="key_file")


def _parse(raw: bytes, path: Path) -> _KeyFile:
    try:
        fields = json.loads(raw)
        if (fields["format"], fields["version"]) != (FORMAT, FORMAT_VERSION):
            raise ValueError("another format")
        key, key_id = base64.b64decode(fields["key"], validate=True), str(fields["key_id"])
        check = bytes.fromhex(fields["check"])
        if len(key) != _KEY_BYTES or not constant_time.bytes_eq(
            check, bytes.fromhex(_check_value(key, key_id))
        ):
            raise ValueError("check value differs")
    except (ValueError, KeyError, TypeError, binascii.Error):
        # Without the cause: what a parser says may quote the key.
        raise ConfigurationError(
            f"{path} is not a key file of version {FORMAT_VERSION}, or is damaged; {_HOW}", field="key_file"
        ) from None
    return _KeyFile(key_id, key)


def _check_value(key: bytes, key_id: str) -> str:
    """Tells a damaged file at the start rather than at the first unwrap; reveals nothing of the key."""
    mac = hmac.HMAC(key, hashes.SHA256())
    mac.update(f"{FORMAT} {FORMAT_VERSION} {key_id}".encode())
    return mac.finalize()[:8].hex()
