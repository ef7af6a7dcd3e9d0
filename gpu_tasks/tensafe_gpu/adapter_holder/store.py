"""Private adapters at rest: sealed in the adapter holder's own vault, under its own key file."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, cast

from tensafe.contracts.errors import (
    ConfigurationError,
    Conflict,
    Gone,
    IntegrityError,
    InvalidRequest,
    NotFound,
)
from tensafe.packages.bundle import pack_files, unpack_files
from tensafe.storage.durable import make_directory
from tensafe.storage.file_blobs import FileBlobs
from tensafe.storage.keyfile import KeyFileRing, create_key_file
from tensafe.storage.ports import BlobMissing, ConditionFailed, Delete, Item, JsonValue, Key, Put
from tensafe.storage.sqlite_items import SqliteItems
from tensafe.vault.scope import Scope
from tensafe.vault.vault import Vault
from tensafe_gpu.adapter_holder import served_codec
from tensafe_gpu.adapter_holder.peft_sites import read_peft
from tensafe_gpu.adapter_holder.policy import Policy
from tensafe_gpu.helora.adapter import Naming, ServedAdapter, serve
from tensafe_gpu.helora.keystream import new_key

KEY_FILE: Final = "key.json"
_ITEMS: Final = "items.db"
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}")
_INDEX: Final = "adapters"
_ACTIVE, _REVOKED = "active", "revoked"


def initialise(data_dir: Path, key_file: Path | None = None) -> str:
    """Make the data directory and its key file, by default in it; the key's id. Raises ConfigurationError."""
    try:
        make_directory(data_dir, mode=0o700)
    except OSError as error:
        raise ConfigurationError(f"{data_dir} cannot be made: {error.strerror}") from error
    return create_key_file(key_file or data_dir / KEY_FILE)


@dataclass(frozen=True, slots=True)
class Published:
    """A record: what is public of one version of an adapter."""

    name: str
    version: int
    epoch: int
    base_model: str
    digest: str
    status: str
    policy: Policy

    @property
    def active(self) -> bool:
        return self.status == _ACTIVE


@dataclass(frozen=True, slots=True)
class Loaded:
    """An adapter opened for serving; `secret` keys its shares."""

    published: Published
    adapter: ServedAdapter = field(repr=False)
    secret: bytes = field(repr=False)


class AdapterStore:
    """Publish, rotate, revoke, list and load. Several processes may have one open."""

    def __init__(self, data_dir: Path, key_file: Path | None = None) -> None:
        """Raises ConfigurationError without a key file: nothing here makes one."""
        keyring = KeyFileRing(key_file or data_dir / KEY_FILE)
        self._items = SqliteItems(data_dir / _ITEMS)
        self._blobs = FileBlobs(
            data_dir / "blobs", url_secret=keyring.derive(b"url"), base_url="http://localhost"
        )
        self._vault = Vault(self._items, self._blobs, keyring)

    def publish(
        self, name: str, files: Mapping[str, bytes], *, base_model: str, policy: Policy
    ) -> tuple[Published, ServedAdapter]:
        """Seal an adapter's PEFT files as the next version of `name`, in its first epoch.

        Raises InvalidRequest and Unsupported for what cannot be served, Conflict when somebody else
        published.
        """
        if not _NAME.fullmatch(name) or not base_model:
            raise InvalidRequest("an adapter's name has letters, digits, '.', '_' and '-'", field="name")
        sites, secret = read_peft(files), new_key()
        version = max((one.version for one in self.versions(name)), default=0) + 1
        scope = _scope(name, version)
        naming = Naming(name, version, 1, base_model, policy.tokens_per_site)
        adapter = serve(sites, naming, secret)
        self._vault.ensure_key(scope)
        body: dict[str, JsonValue] = {
            "policy": cast(JsonValue, policy.model_dump()),
            "base_model": base_model,
            "status": _ACTIVE,
            "source": self._sealed_blob(scope, "source", pack_files(dict(files))),
            **self._epoch(scope, adapter),
        }
        sealed = self._vault.seal(scope, "secret", secret)
        writes = [Put(_key(name, version), body, 0, sealed=sealed)]
        if version == 1:
            writes.append(Put(Key(_INDEX, name), {}, 0))
        try:
            self._items.write(writes)
        except ConditionFailed as error:
            raise Conflict(f"another version of {name} was published meanwhile; publish again") from error
        return self.get(name, version), adapter

    def rotate(self, name: str, version: int | None = None) -> Published:
        """Begin the next epoch: new bases, a new budget, and every block prepared before is refused."""
        item = self._item(name, version)
        published = _published(item)
        if not published.active:
            raise Gone(f"{name} version {published.version} has been revoked")
        scope = _scope(name, published.version)
        secret = self._vault.open(scope, "secret", item.sealed)
        naming = _naming(published, published.epoch + 1)
        files = unpack_files(self._opened_blob(scope, "source", item.body["source"]))
        adapter = serve(read_peft(files), naming, secret)
        body = dict(item.body) | self._epoch(scope, adapter)
        try:
            self._items.write([Put(item.key, body, item.version, sealed=item.sealed)])
        except ConditionFailed as error:
            raise Conflict(f"{name} was changed meanwhile; rotate again") from error
        self._blobs.delete(str(item.body["served"]))
        return self.get(name, published.version)

    def revoke(self, name: str, version: int | None = None) -> Published:
        """Never serve it again, and erase its key first: what is sealed under it is gone for good."""
        item = self._item(name, version)
        published = _published(item)
        scope = _scope(name, published.version)
        body = dict(item.body) | {"status": _REVOKED}
        self._items.write([Put(item.key, body, item.version, sealed=b""), Delete(scope.key_item, None)])
        self._vault.forget(scope)
        self._items.scrub()
        for part in ("source", "served"):
            self._blobs.delete(str(item.body[part]))
        return self.get(name, published.version)

    def get(self, name: str, version: int | None = None) -> Published:
        """One version, by default the newest that is active. Raises NotFound."""
        return _published(self._item(name, version))

    def versions(self, name: str) -> list[Published]:
        """All versions, oldest first."""
        return [_published(item) for item in self._items.query(f"adapter/{name}", limit=1000)]

    def names(self) -> list[str]:
        """Every adapter's name."""
        return [item.key.sort for item in self._items.query(_INDEX, limit=10_000)]

    def load(self, name: str, version: int | None = None) -> Loaded:
        """Open an active version for serving. Raises NotFound, Gone, IntegrityError."""
        item = self._item(name, version)
        published = _published(item)
        if not published.active:
            raise Gone(f"{name} version {published.version} has been revoked")
        scope = _scope(name, published.version)
        secret = self._vault.open(scope, "secret", item.sealed)
        content = self._opened_blob(scope, f"served/{published.epoch}", item.body["served"])
        naming = _naming(published, published.epoch)
        return Loaded(published, served_codec.from_bytes(content, naming, published.digest), secret)

    def close(self) -> None:
        """Let go of the files."""
        self._items.close()

    def _epoch(self, scope: Scope, adapter: ServedAdapter) -> dict[str, JsonValue]:
        info = adapter.info
        blob = self._sealed_blob(scope, f"served/{info.epoch}", served_codec.to_bytes(adapter))
        return {"epoch": info.epoch, "digest": info.digest, "served": blob}

    def _sealed_blob(self, scope: Scope, part: str, content: bytes) -> str:
        # A name of its own per attempt: a retry seals with another nonce, so its bytes differ.
        blob_key = f"sealed/{os.urandom(2).hex()}/{os.urandom(16).hex()}"
        self._blobs.put(blob_key, self._vault.seal(scope, part, content))
        return blob_key

    def _opened_blob(self, scope: Scope, part: str, blob_key: JsonValue) -> bytes:
        try:
            return self._vault.open(scope, part, self._blobs.get(str(blob_key)))
        except BlobMissing:
            raise Gone("the adapter was rotated or revoked meanwhile") from None

    def _item(self, name: str, version: int | None) -> Item:
        items = self._items.query(f"adapter/{name}", limit=1000) if _NAME.fullmatch(name) else []
        if version is None:
            items = [item for item in items if item.body["status"] == _ACTIVE][-1:]
        else:
            items = [item for item in items if item.key == _key(name, version)]
        if not items:
            raise NotFound(f"there is no such adapter: {name[:100]}")
        return items[0]


def _published(item: Item) -> Published:
    body = item.body
    name, version = item.key.partition.partition("/")[2], int(item.key.sort)
    try:
        return Published(
            name=name,
            version=version,
            epoch=int(cast(int, body["epoch"])),
            base_model=str(body["base_model"]),
            digest=str(body["digest"]),
            status=str(body["status"]),
            policy=Policy.model_validate(body["policy"]),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise IntegrityError("a published adapter's record cannot be read") from error


def _key(name: str, version: int) -> Key:
    return Key(f"adapter/{name}", f"{version:010d}")


def _scope(name: str, version: int) -> Scope:
    return Scope("adapter-holder", f"private/{name}/{version}")


def _naming(published: Published, epoch: int) -> Naming:
    budget = published.policy.tokens_per_site
    return Naming(published.name, published.version, epoch, published.base_model, budget)
