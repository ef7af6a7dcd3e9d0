"""What a sampler takes along to an adapter holder: its log of used indices, and its certificate."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from tensafe.contracts.errors import TensafeError
from tensafe.local.certificates import NAMES, kept_certificate, kept_version
from tensafe.local.settings import LocalSettings
from tensafe.services import Services
from tensafe_gpu.composition import TaskSettings
from tensafe_gpu.sampler.private_files import PrivateDirectory

log = logging.getLogger(__name__)


LOOK_S: Final = 30.0
"""How often a request for a private adapter looks whether another certificate is kept."""


class HolderFiles:
    """Paths by name, as `private.connecting` wants them; looked up when first needed. Thread-safe.

    The certificate lies in a folder that the settings name, or sealed in the vault: then it is opened into
    memory, once it is there, and others that are kept later take its place under the same paths. The log of
    used indices need not outlive a task on AWS: the masks that they are of live in its memory alone
    (`helora.burned`).
    """

    def __init__(
        self, settings: TaskSettings, services: Services, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._settings, self._services, self._clock = settings, services, clock
        self._lock = threading.Lock()
        self._directory: PrivateDirectory | None = None
        self._written: Path | None = None
        self._opened: Path | None = None
        self._version, self._looked = 0, 0.0
        self._given = settings.holder_tls if isinstance(settings, LocalSettings) else None
        home = settings.data_dir if isinstance(settings, LocalSettings) else Path.home()
        self._burn_log = home / "burned.db"

    def __call__(self) -> dict[str, str]:
        """Raises IntegrityError, Unavailable, and ConfigurationError if there is no memory to write to."""
        files = {"burn_log": str(self._burn_log)}
        folder = self._given or self._folder()
        if folder is not None:
            files |= {f"tls_{name}": str(folder / f"{name}.pem") for name in NAMES}
        return files

    def close(self) -> None:
        """Remove what was opened."""
        with self._lock:
            if self._directory is not None:
                self._directory.close()
                self._directory = self._opened = None

    def _folder(self) -> Path | None:
        with self._lock:
            if self._opened is None:
                self._open_kept()
            elif self._clock() - self._looked >= LOOK_S:
                try:
                    self._open_kept()
                except TensafeError as error:  # the one before is there, and it is asked again
                    log.warning("certificate not looked at", extra={"code": error.code})
            return self._opened

    def _open_kept(self) -> None:
        self._looked = self._clock()
        version = kept_version(self._services)
        if version == self._version and self._opened is not None:
            return
        kept = kept_certificate(self._services) if version else None
        if kept is None:
            if not isinstance(self._settings, LocalSettings):
                log.warning("no certificate is kept for adapter holders")
            return
        self._directory = self._directory or PrivateDirectory()
        before, texts = self._written, {f"{name}.pem": text.encode() for name, text in kept.items()}
        self._written = self._directory.write(texts)
        self._opened = self._directory.lead("tls", self._written)
        self._version = version
        if before is not None:
            self._directory.remove(before)
            log.info("certificate renewed")
