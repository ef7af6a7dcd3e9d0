"""Composition root of the single-machine mode: SQLite, files, a key file, unix-socket bells."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from tensafe.auth.oidc import token_verifier
from tensafe.contracts.errors import ConfigurationError
from tensafe.local import evidence
from tensafe.local.process import forbid_core_dumps
from tensafe.local.settings import LocalSettings
from tensafe.metrics.counters import Counters
from tensafe.operations.doorbell import queue_specs
from tensafe.services import Ports, Services, wire
from tensafe.storage.durable import make_directory, replace_file
from tensafe.storage.file_blobs import FileBlobs
from tensafe.storage.keyfile import KeyFileRing, check_new_key_file, create_key_file
from tensafe.storage.sqlite_items import SqliteItems
from tensafe.storage.sqlite_queues import SqliteQueues
from tensafe.storage.unix_bell import UnixBell
from tensafe.tracing.endpoint import tracer_to

LAYOUT_VERSION: Final = "1"
ITEMS: Final = "items.db"
_VERSION: Final = "VERSION"
_KEY_FILE: Final = "key.json"
_KEY_LOCATION: Final = "key-location"


def initialise(data_dir: Path, key_file: Path | None = None, anchor_dir: Path | None = None) -> str:
    """Make the data directory, its key file and the anchors' folder, both by default in it; the key's id.

    Another place is noted in the data directory. Raises ConfigurationError if there is a key already, or
    data that belongs to a lost one: no new key could open it. Also if the directory holds something of
    others, which is left as it is, or if the key file's folder will not do.
    """
    _check_ours(data_dir)
    for path in (key_location(data_dir), data_dir / _KEY_FILE):
        if path.exists():
            raise ConfigurationError(
                f"{data_dir} is initialised already; its key file is {path}. To begin anew choose another "
                "directory"
            )
    if (data_dir / ITEMS).exists():
        raise ConfigurationError(
            f"{data_dir} holds data whose key file is missing; put {key_location(data_dir)} back from your "
            "backup. To begin anew choose another directory"
        )
    if key_file is not None:
        check_new_key_file(key_file)
    evidence.check_new_anchors(anchor_dir)
    try:
        make_directory(data_dir, mode=0o700)
        data_dir.chmod(0o700)
        # First: a folder with this file is ours, however far its making got.
        replace_file(data_dir / _VERSION, LAYOUT_VERSION + "\n")
        for folder in ("blobs", "bells", "logs"):
            (data_dir / folder).mkdir(mode=0o700, exist_ok=True)
        if key_file is None:  # not noted: the directory may be moved with its key
            (data_dir / _KEY_LOCATION).unlink(missing_ok=True)
        else:
            replace_file(data_dir / _KEY_LOCATION, f"{key_file.absolute()}\n")
        evidence.make_anchors(data_dir, anchor_dir)
        # Sealed under a key that is gone: of an `init` that did not get this far.
        evidence.signing_key_path(data_dir).unlink(missing_ok=True)
    except OSError as error:
        raise ConfigurationError(f"{data_dir} cannot be made: {error.strerror}") from error
    # After all else: a directory with a key is whole, but for the signing key, which is sealed under it.
    key_id = create_key_file(key_file or data_dir / _KEY_FILE)
    evidence.make_signing_key(data_dir, KeyFileRing(key_location(data_dir)))
    return key_id


def key_location(data_dir: Path) -> Path:
    """Where `tensafe init` put the key file. Raises ConfigurationError if the note of it is damaged."""
    note = data_dir / _KEY_LOCATION
    try:
        path = Path(note.read_text().removesuffix("\n"))
    except FileNotFoundError:
        return data_dir / _KEY_FILE
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"{note} cannot be read; name the key file with --key-file") from error
    if not path.is_absolute():
        raise ConfigurationError(f"{note} is damaged; name the key file with --key-file")
    return path


def open_services(settings: LocalSettings) -> Services:
    """Open the data directory. Raises ConfigurationError: no directory, no key or signing key, no anchors.

    Every process that holds the key comes through here, so this also forbids its core dumps.
    """
    forbid_core_dumps()
    check_directory(settings.data_dir)
    keyring = check_key(settings)
    signer, anchors = (
        evidence.open_signer(settings.data_dir, keyring),
        evidence.open_anchors(settings.data_dir),
    )
    specs = tuple(queue_specs(model.name for model in settings.models))
    bell = UnixBell(settings.data_dir / "bells")
    # Separate secrets for separate uses; this one only signs download URLs of this installation.
    url_secret = keyring.derive(b"url")
    ports = Ports(
        items=SqliteItems(settings.data_dir / ITEMS),
        queues=SqliteQueues(settings.data_dir / "queues.db", specs, bell),
        blobs=FileBlobs(settings.data_dir / "blobs", url_secret=url_secret, base_url=settings.base_url),
        keyring=keyring,
        bell=bell,
        signer=signer,
        anchors=anchors,
        queue_specs=specs,
    )
    models = {model.name: model for model in settings.models}
    tokens = token_verifier(
        settings.oidc_issuer, settings.oidc_audience, settings.oidc_tenant_claim, settings.oidc_scope_claim
    )
    tracer = tracer_to(settings.otlp_endpoint)
    return wire(ports, models, lease_s=settings.lease_s, tokens=tokens, metrics=Counters(), tracer=tracer)


@contextmanager
def local_services(settings: LocalSettings) -> Iterator[Services]:
    """`open_services` for a while; everything is closed at the end."""
    services = open_services(settings)
    try:
        yield services
    finally:
        for port in (services.ports.bell, services.ports.queues, services.ports.items):
            if isinstance(port, UnixBell | SqliteQueues | SqliteItems):
                port.close()


def sqlite_items(services: Services) -> SqliteItems:
    """The items adapter of this mode, for what only it can do: purging and scrubbing."""
    if not isinstance(services.ports.items, SqliteItems):
        raise ConfigurationError("these services do not keep their items in a local file")
    return services.ports.items


def sqlite_queues(services: Services) -> SqliteQueues:
    """The queues adapter of this mode, for what only it can do: handing messages back."""
    if not isinstance(services.ports.queues, SqliteQueues):
        raise ConfigurationError("these services do not keep their queues in a local file")
    return services.ports.queues


def check_key(settings: LocalSettings) -> KeyFileRing:
    """The key ring. Raises ConfigurationError without a key file, or in production unless it is accepted."""
    if settings.environment == "production" and not settings.accept_local_key:
        raise ConfigurationError(
            "TENSAFE_ENVIRONMENT=production refuses a key file on this machine; use KMS, or state that you "
            "accept the risk with TENSAFE_ACCEPT_LOCAL_KEY=true"
        )
    return KeyFileRing(settings.key_file or key_location(settings.data_dir))


def check_directory(data_dir: Path) -> None:
    """Raise ConfigurationError unless `tensafe init` made this directory with this layout."""
    found = _layout(data_dir)
    if found is None:
        raise ConfigurationError(
            f"{data_dir} is not a TenSafe data directory; run: tensafe init --data-dir {data_dir}"
        )
    if found != LAYOUT_VERSION:
        raise ConfigurationError(f"{data_dir} has layout {found!r}; this release reads {LAYOUT_VERSION!r}")


def _check_ours(data_dir: Path) -> None:
    """Raise ConfigurationError unless the folder is absent, empty, or one that `initialise` began."""
    try:
        if not data_dir.exists() or _layout(data_dir) == LAYOUT_VERSION:
            return
        names = {path.name for path in data_dir.iterdir()}
    except OSError as error:
        raise ConfigurationError(f"{data_dir} cannot be used: {error.strerror}") from error
    if names - {f"{_VERSION}.new"}:
        raise ConfigurationError(
            f"{data_dir} is not empty and is no data directory of this release; choose a new or an empty one"
        )


def _layout(data_dir: Path) -> str | None:
    version = data_dir / _VERSION
    return version.read_text(errors="replace")[:100].strip() if version.is_file() else None
