"""What a sampler takes along to an adapter holder: its log of used indices, and its certificate."""

from __future__ import annotations

import logging
import threading
from pathlib import Path

from tensafe.local.certificates import NAMES, kept_certificate
from tensafe.local.settings import LocalSettings
from tensafe.services import Services
from tensafe_gpu.composition import TaskSettings
from tensafe_gpu.sampler.private_files import PrivateDirectory

log = logging.getLogger(__name__)


class HolderFiles:
    """Paths by name, as `private.connecting` wants them; looked up when first needed. Thread-safe.

    The certificate lies in a folder that the settings name, or sealed in the vault: then it is opened into
    memory, once it is there. The log of used indices need not outlive a task on AWS: the masks that they
    are of live in its memory alone (`helora.burned`).
    """

    def __init__(self, settings: TaskSettings, services: Services) -> None:
        self._settings, self._services = settings, services
        self._lock = threading.Lock()
        self._directory: PrivateDirectory | None = None
        self._certificate: Path | None = None
        if isinstance(settings, LocalSettings):
            self._burn_log, self._certificate = settings.data_dir / "burned.db", settings.holder_tls
        else:
            self._burn_log = Path.home() / "burned.db"

    def __call__(self) -> dict[str, str]:
        """Raises IntegrityError, Unavailable, and ConfigurationError if there is no memory to write to."""
        files = {"burn_log": str(self._burn_log)}
        folder = self._folder()
        if folder is not None:
            files |= {f"tls_{name}": str(folder / f"{name}.pem") for name in NAMES}
        return files

    def close(self) -> None:
        """Remove what was opened."""
        with self._lock:
            if self._directory is not None:
                self._directory.close()
                self._directory = self._certificate = None

    def _folder(self) -> Path | None:
        with self._lock:
            if self._certificate is None:
                kept = kept_certificate(self._services)
                if kept is not None:
                    self._directory = self._directory or PrivateDirectory()
                    texts = {f"{name}.pem": text.encode() for name, text in kept.items()}
                    self._certificate = self._directory.write(texts)
                elif not isinstance(self._settings, LocalSettings):
                    log.warning("no certificate is kept for adapter holders")
            return self._certificate
