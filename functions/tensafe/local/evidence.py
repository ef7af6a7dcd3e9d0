"""Where a data directory keeps what vouches for its privacy ledger: the signing key and the anchors."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from tensafe.contracts.errors import ConfigurationError
from tensafe.storage.durable import make_directory, replace_file
from tensafe.storage.file_anchors import FileAnchors
from tensafe.storage.keyfile import KeyFileRing
from tensafe.storage.signing_key import Ed25519Signer, create_signing_key, open_signing_key

_SIGNING_KEY: Final = "signing-key.json"
_ANCHORS: Final = "anchors"
_ANCHOR_LOCATION: Final = "anchor-location"
_SECRET: Final = b"signing-key"
_UPGRADE: Final = "a data directory from before there was one is taken further by `tensafe privacy upgrade`"


def signing_key_path(data_dir: Path) -> Path:
    """The signing key's file; the key in it is sealed under the key file."""
    return data_dir / _SIGNING_KEY


def anchors_path(data_dir: Path) -> Path:
    """The anchors' folder. Raises ConfigurationError if the note of it is damaged."""
    note = data_dir / _ANCHOR_LOCATION
    try:
        path = Path(note.read_text().removesuffix("\n"))
    except FileNotFoundError:
        return data_dir / _ANCHORS
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"{note} cannot be read") from error
    if not path.is_absolute():
        raise ConfigurationError(f"{note} is damaged: it names no folder")
    return path


def check_new_anchors(folder: Path | None) -> None:
    """Raise ConfigurationError if the folder holds something, such as another installation's anchors."""
    if folder is None:
        return
    try:
        taken = folder.exists() and bool(os.listdir(folder))
    except OSError as error:
        raise ConfigurationError(f"{folder} cannot be used: {error.strerror}") from error
    if taken:
        raise ConfigurationError(f"{folder} is not empty; choose a new or an empty folder for the anchors")


def make_anchors(data_dir: Path, folder: Path | None) -> None:
    """Make the anchors' folder, by default in the data directory; another place is noted. Raises OSError."""
    if folder is not None:
        replace_file(data_dir / _ANCHOR_LOCATION, f"{folder.absolute()}\n")
    make_directory(anchors_path(data_dir), mode=0o700)


def make_signing_key(data_dir: Path, keyring: KeyFileRing) -> str:
    """Make the signing key; its id. Raises ConfigurationError if there is one."""
    return create_signing_key(signing_key_path(data_dir), keyring.derive(_SECRET))


def open_signer(data_dir: Path, keyring: KeyFileRing) -> Ed25519Signer:
    """The signer. Raises ConfigurationError: without it nothing that spends privacy may start."""
    path = signing_key_path(data_dir)
    if not path.exists():
        raise ConfigurationError(f"there is no signing key for the privacy ledger at {path}; {_UPGRADE}")
    return open_signing_key(path, keyring.derive(_SECRET))


def open_anchors(data_dir: Path) -> FileAnchors:
    """The anchors. Raises ConfigurationError if their folder is missing."""
    folder = anchors_path(data_dir)
    if not folder.is_dir():
        raise ConfigurationError(
            f"the folder of the privacy ledger's anchors, {folder}, is missing: put it back; {_UPGRADE}"
        )
    return FileAnchors(folder)
