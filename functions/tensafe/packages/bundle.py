"""A few named files as one byte string: a plain (uncompressed) tar, read back under strict limits."""

from __future__ import annotations

import io
import re
import tarfile
from collections.abc import Mapping
from typing import Final

from tensafe.contracts.errors import IntegrityError

MAX_FILES: Final = 16
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}")
_PLAIN: Final = (tarfile.REGTYPE, tarfile.AREGTYPE)
_END_BYTES: Final = 2 * tarfile.BLOCKSIZE
_REFUSED: Final = "a bundle holds a few plain files and nothing else"


def pack_files(files: Mapping[str, bytes]) -> bytes:
    """One tar of the files, the same bytes for the same files. Raises IntegrityError as `unpack_files`."""
    if len(files) > MAX_FILES:
        raise IntegrityError(f"a bundle holds at most {MAX_FILES} files, not {len(files)}")
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name in sorted(files):
            info = tarfile.TarInfo(_checked(name))
            info.size = len(files[name])
            info.mode = 0o600
            tar.addfile(info, io.BytesIO(files[name]))
    return buffer.getvalue()


def unpack_files(data: bytes) -> dict[str, bytes]:
    """The files of a bundle, in memory. Raises IntegrityError for anything but whole, plain named files."""
    files: dict[str, bytes] = {}
    end = 0
    try:
        with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as tar:
            for info in tar:
                name = _checked(info.name)
                if len(files) >= MAX_FILES or name in files:
                    raise IntegrityError(_REFUSED)
                files[name] = _content(tar, info, len(data))
                end = info.offset_data + -(-info.size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
    except (tarfile.TarError, ValueError, OverflowError) as error:  # the latter two for odd extended headers
        raise IntegrityError("not a bundle of files") from error
    # A reader of tars takes one that was cut between two files for a whole one.
    if len(data) < end + _END_BYTES or any(data[end:]):
        raise IntegrityError("the bundle of files has been cut short, or has something behind its end")
    return files


def _content(tar: tarfile.TarFile, info: tarfile.TarInfo, bundle_bytes: int) -> bytes:
    """The bytes of a plain file; a sparse one could claim any size, and reading would fill its holes."""
    content = tar.extractfile(info) if info.type in _PLAIN and not info.issparse() else None
    if content is None or info.size > bundle_bytes:
        raise IntegrityError(_REFUSED)
    return content.read()


def _checked(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise IntegrityError(f"not a file name for a bundle: {name[:80]!r}")
    return name
