"""Private adapters at rest: sealed in the adapter holder's own vault, under its own key."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Final, cast

from tensafe.contracts.errors import Conflict, Gone, IntegrityError, InvalidRequest, NotFound
from tensafe.packages.bundle import pack_files, unpack_files
from tensafe.storage.ports import (
    BlobMissing,
    Blobs,
    ConditionFailed,
    Delete,
    Item,
    Items,
    JsonValue,
    Key,
    KeyRing,
    Put,
)
from tensafe.storage.sqlite_items import SqliteItems
from tensafe.vault.scope import Scope
from tensafe.vault.vault import Vault
from tensafe_gpu.adapter_holder import served_codec
from tensafe_gpu.adapter_holder.peft_sites import check_base_model, read_peft
from tensafe_gpu.adapter_holder.policy import Policy
from tensafe_gpu.adapter_holder.servable import check_servable
from tensafe_gpu.helora.adapter import Naming, ServedAdapter, serve
from tensafe_gpu.helora.keystream import new_key

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}")
_INDEX: Final = "adapters"
_ACTIVE, _REVOKED = "active", "revoked"
_TRIES: Final = 4
"""Of a revocation that meets rotations; each of these takes longer than a try."""


@dataclass(frozen=True, slots=True)
class HolderPorts:
    """Where an adapter holder keeps what it has; `composition` chooses them."""

    items: Items
    blobs: Blobs
    keyring: KeyRing

    def close(self) -> None:
        """Let go of the files, where there are any."""
        if isinstance(self.items, SqliteItems):
            self.items.close()


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
    width: int | None
    """Inputs of the narrowest site; None for what an older release published."""

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

    def __init__(self, ports: HolderPorts) -> None:
        self._ports, self._items, self._blobs = ports, ports.items, ports.blobs
        self._vault = Vault(ports.items, ports.blobs, ports.keyring)

    def publish(
        self,
        name: str,
        files: Mapping[str, bytes],
        *,
        base_model: str,
        policy: Policy,
        before: Callable[[ServedAdapter], None] | None = None,
    ) -> tuple[Published, ServedAdapter]:
        """Seal an adapter's PEFT files as the next version of `name`, in its first epoch.

        `before` is told what will be served while nothing is stored yet; if it raises, nothing is.
        Raises InvalidRequest and Unsupported for what cannot be served, Conflict when somebody else
        published.
        """
        if not _NAME.fullmatch(name) or not base_model:
            raise InvalidRequest("an adapter's name has letters, digits, '.', '_' and '-'", field="name")
        check_base_model(files, base_model)
        sites, secret = read_peft(files), new_key()
        version = max((one.version for one in self.versions(name)), default=0) + 1
        scope = _scope(name, version)
        naming = Naming(name, version, 1, base_model, policy.tokens_per_site)
        adapter = serve(sites, naming, secret)
        check_servable(adapter)
        if before is not None:
            before(adapter)
        # Written with the record: a publication that was cut short leaves no key, and whoever publishes needs
        # to wrap and never to unwrap.
        key = self._vault.begin(scope)
        left = self._items.get(scope.key_item)  # by an older release; nothing that is kept lies under it
        body: dict[str, JsonValue] = {
            "policy": cast(JsonValue, policy.model_dump()),
            "base_model": base_model,
            "status": _ACTIVE,
            "width": min(site.d_in for site in adapter.info.sites),
            "source": self._sealed_blob(scope, "source", pack_files(dict(files))),
            **self._epoch(scope, adapter),
        }
        sealed = self._vault.seal(scope, "secret", secret)
        key = replace(key, if_version=0 if left is None else left.version)
        writes = [Put(_key(name, version), body, 0, sealed=sealed), key]
        if version == 1:
            writes.append(Put(Key(_INDEX, name), {}, 0))
        try:
            self._items.write(writes)
        except ConditionFailed as error:
            raise Conflict(f"another version of {name} was published meanwhile; publish again") from error
        finally:
            self._vault.forget(scope)
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
        check_servable(adapter)
        body = dict(item.body) | self._epoch(scope, adapter)
        try:
            self._items.write([Put(item.key, body, item.version, sealed=item.sealed)])
        except ConditionFailed as error:
            raise Conflict(f"{name} was changed meanwhile; rotate again") from error
        self._blobs.delete(str(item.body["served"]))
        return self.get(name, published.version)

    def revoke(self, name: str, version: int | None = None) -> Published:
        """Never serve it again, and erase its key first: what is sealed under it is gone for good.

        Again, it does what was left undone. Without a version it must be clear which one is meant: raises
        InvalidRequest if several are active. Raises NotFound; Conflict while others change it all the time.
        """
        item = self._revocable(name, version)
        published = _published(item)
        scope = _scope(name, published.version)
        for _ in range(_TRIES):
            body = dict(item.body) | {"status": _REVOKED}
            try:
                self._items.write(
                    [Put(item.key, body, item.version, sealed=b""), Delete(scope.key_item, None)]
                )
                break
            except ConditionFailed:  # rotated meanwhile: what it is by now is revoked
                item = self._item(name, published.version)
        else:
            raise Conflict(f"{name} version {published.version} is changed all the time; revoke it again")
        self._vault.forget(scope)
        if isinstance(self._items, SqliteItems):  # DynamoDB has no log of its own that keeps the key
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

    def forget_key(self, name: str, version: int) -> None:
        """Drop the data key that `load` left in memory."""
        self._vault.forget(_scope(name, version))

    def close(self) -> None:
        """Let go of the ports."""
        self._ports.close()

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

    def _revocable(self, name: str, version: int | None) -> Item:
        """Of several, "the newest that is active" would be another one for who asks again."""
        if version is not None:
            return self._item(name, version)
        items = self._stored(name)
        active = [item for item in items if item.body["status"] == _ACTIVE]
        if len(active) > 1:
            numbers = ", ".join(str(_published(item).version) for item in active)
            raise InvalidRequest(f"{name} has versions {numbers}; name the one to revoke", field="version")
        if not items:
            raise NotFound(f"there is no such adapter: {name[:100]}")
        return (active or items)[-1]

    def _stored(self, name: str) -> list[Item]:
        return self._items.query(f"adapter/{name}", limit=1000) if _NAME.fullmatch(name) else []

    def _item(self, name: str, version: int | None) -> Item:
        items = self._stored(name)
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
            width=int(cast(int, body["width"])) if "width" in body else None,
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
