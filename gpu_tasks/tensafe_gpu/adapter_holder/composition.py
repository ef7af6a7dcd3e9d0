"""What an adapter holder is opened over: a directory with a key file, or a table, a bucket and a key of AWS.

They are its own in either mode. Nothing of the service is opened here: the two are different trust domains.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, Literal

from pydantic import BaseModel, ConfigDict

from tensafe.cloud.settings import KeyArn, Name, read_environment
from tensafe.contracts.errors import ConfigurationError
from tensafe.local.process import forbid_core_dumps
from tensafe.storage.durable import make_directory
from tensafe.storage.file_blobs import FileBlobs
from tensafe.storage.keyfile import KeyFileRing, create_key_file
from tensafe.storage.sqlite_items import SqliteItems
from tensafe_gpu.adapter_holder.store import AdapterStore, HolderPorts
from tensafe_gpu.composition import on_aws

KEY_FILE: Final = "key.json"
ITEMS: Final = "items.db"
_OLDER: Final = "accepted.db"
_OF_THE_SERVICE: Final = "VERSION"


class DirectorySettings(BaseModel):
    """Environment variables `TENSAFE_*` of an adapter holder on one machine."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    data_dir: Path
    """Made by `init`; the adapter holder's own, not the service's."""
    environment: Literal["production", "staging", "development"] = "development"
    accept_local_key: bool = False
    """In production: the operator accepts that the wrapping key is a file on this machine."""
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"


class CloudHolderSettings(BaseModel):
    """Environment variables `TENSAFE_*` of an adapter holder on AWS; all its own, none the service's."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    environment: Literal["production", "staging", "development"]
    table: Name
    """The table of adapters, blocks and meters: keys `pk` and `sk`."""
    bucket: Name
    kms_key_id: KeyArn
    """ARN of the key that wraps data keys, and that S3 encrypts objects under."""
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"


HolderSettings = DirectorySettings | CloudHolderSettings


def read_holder_settings(data_dir: Path | None = None) -> HolderSettings:
    """The settings of the directory that is given, or of the store that the environment names.

    Raises ConfigurationError if it names two, or none, or lacks what the mode needs.
    """
    if data_dir is not None:
        return read_environment(DirectorySettings, data_dir=data_dir)
    return read_environment(CloudHolderSettings) if on_aws() else read_environment(DirectorySettings)


def open_ports(settings: HolderSettings, key_file: Path | None = None) -> HolderPorts:
    """The adapters of the settings' mode. Raises ConfigurationError: no key, or one that will not do."""
    forbid_core_dumps()
    if isinstance(settings, CloudHolderSettings):
        if key_file is not None:
            raise ConfigurationError("an adapter holder on AWS has no key file: its key is in KMS")
        return _of_aws(settings)
    if settings.environment == "production" and not settings.accept_local_key:
        raise ConfigurationError(
            "TENSAFE_ENVIRONMENT=production refuses a key file on this machine; use KMS, or state that you "
            "accept the risk with TENSAFE_ACCEPT_LOCAL_KEY=true"
        )
    return _of_directory(settings.data_dir, key_file)


def initialise(data_dir: Path, key_file: Path | None = None) -> str:
    """Make the data directory and its key file, by default in it; the key's id. Raises ConfigurationError."""
    try:
        make_directory(data_dir, mode=0o700)
    except OSError as error:
        raise ConfigurationError(f"{data_dir} cannot be made: {error.strerror}") from error
    return create_key_file(key_file or data_dir / KEY_FILE)


def directory_store(data_dir: Path, key_file: Path | None = None) -> AdapterStore:
    """The adapters of a directory; `close` it. Raises ConfigurationError without a key file."""
    return AdapterStore(_of_directory(data_dir, key_file))


@contextmanager
def alone(settings: HolderSettings, name: str = "serving.lock") -> Iterator[None]:
    """Raises ConfigurationError while another process serves the same directory: has the lock of that name.

    On AWS several may for a while, as one task replaces another: no index is answered by two of them, since
    each reserves its own (`helora.accepted`).
    """
    if isinstance(settings, CloudHolderSettings):
        yield
        return
    path = settings.data_dir / name
    try:
        lock_fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be opened: {error.strerror}") from error
    try:
        fcntl.flock(lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(lock_fd)
        raise ConfigurationError(f"another adapter holder serves {path.parent}; stop it first") from None
    try:
        yield
    finally:
        os.close(lock_fd)


def _of_directory(data_dir: Path, key_file: Path | None) -> HolderPorts:
    """Raises ConfigurationError without a key file: nothing here makes one."""
    if (data_dir / _OF_THE_SERVICE).exists():
        raise ConfigurationError(f"{data_dir} is the service's; an adapter holder has a directory of its own")
    if (data_dir / _OLDER).exists():
        raise ConfigurationError(
            f"{data_dir} holds the indices and meters of an older release in {_OLDER}, which this one does "
            "not read: rotate every adapter with that release, which begins new ones, and remove the file"
        )
    key_path = key_file or data_dir / KEY_FILE
    if not key_path.exists():
        raise ConfigurationError(
            f"there is no key file at {key_path}: `python -m tensafe_gpu.adapter_holder init --data-dir "
            f"{data_dir}` makes a new adapter holder; one that has adapters needs the key that it began with",
            field="key_file",
        )
    keyring = KeyFileRing(key_path)
    items = SqliteItems(data_dir / ITEMS)
    blobs = FileBlobs(data_dir / "blobs", url_secret=keyring.derive(b"url"), base_url="http://localhost")
    return HolderPorts(items, blobs, keyring)


def _of_aws(settings: CloudHolderSettings) -> HolderPorts:
    """Calls nothing: what the role may not use is refused when it is used."""
    # boto3 costs 0.3 s and is not installed with the embedded mode.
    from tensafe.storage.aws_clients import LazyClient  # noqa: PLC0415
    from tensafe.storage.dynamodb_items import DynamoDbItems  # noqa: PLC0415
    from tensafe.storage.kms_ring import KmsRing  # noqa: PLC0415
    from tensafe.storage.s3_blobs import S3Blobs  # noqa: PLC0415

    return HolderPorts(
        DynamoDbItems(LazyClient("dynamodb"), settings.table),
        S3Blobs(LazyClient("s3"), settings.bucket, kms_key_id=settings.kms_key_id),
        KmsRing(LazyClient("kms"), settings.kms_key_id),
    )
