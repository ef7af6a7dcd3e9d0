"""From where an adapter is held to a key holder of it: the real one, over a unix socket or mutual TLS."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Final

from tensafe.contracts import holder_address
from tensafe.contracts.errors import TensafeError
from tensafe_gpu.helora.burned import BurnLog
from tensafe_gpu.helora.connection import Connector, Timeouts, TlsConnector, Wanted, unix_connector
from tensafe_gpu.helora.key_holder import RemoteKeyHolder
from tensafe_gpu.helora.ports import MISCONFIGURED, STATE_FAILED, HeUnavailable, KeyHolder
from tensafe_gpu.helora.renewal import Renewed, of_files
from tensafe_gpu.helora.tls import TlsFiles, client_context

CONNECT: Final = "tensafe_gpu.sampler.private.connecting:connect"
TIMEOUTS: Final = Timeouts(connect_s=3.0, online_s=3.0, offline_s=60.0)
"""A late online answer holds up every request of the batch, so its time-out is short."""


def connect(holder: Mapping[str, str]) -> KeyHolder:
    """Greet the adapter holder at `address` (`unix:PATH` or `tcp:HOST:PORT`) for `tenant`.

    `adapter` and `version` say which one; `burn_log` is this sampler's file of used indices; tcp needs the
    files `tls_cert`, `tls_key` and `tls_ca`, and reads them again for a connection after they were replaced.
    `digest` is what it has to say, if given: a stranger's word ends no epoch here. Raises HeUnavailable.
    """
    wanted = Wanted(holder["tenant"], holder["adapter"], int(holder["version"]))
    try:
        burn_log = _burn_log(holder["burn_log"])
    except (TensafeError, OSError, sqlite3.Error) as error:
        raise HeUnavailable(STATE_FAILED, "the log of used indices cannot be opened") from error
    private = RemoteKeyHolder(_connector(holder), wanted, burn_log, TIMEOUTS)
    info = private.info()
    if holder.get("digest") not in (None, info.digest):
        return private  # which whoever compares them refuses
    try:
        burn_log.begin_epoch(f"{holder['address']} {info.name}@{info.version}", info.epoch, info.digest)
    except TensafeError as error:
        private.close()
        raise HeUnavailable(STATE_FAILED, "the used indices cannot be written") from error
    return private


def _connector(holder: Mapping[str, str]) -> Connector:
    try:
        address = holder_address.parse(holder["address"])
    except TensafeError as error:
        raise HeUnavailable(MISCONFIGURED, str(error)) from error
    if isinstance(address, Path):
        return unix_connector(address, TIMEOUTS.connect_s)
    try:
        files = TlsFiles(*(Path(holder[f"tls_{name}"]) for name in ("cert", "key", "ca")))
    except KeyError as error:
        raise HeUnavailable(MISCONFIGURED, "this sampler has no certificate for adapter holders") from error
    try:
        contexts = _contexts(files)
    except TensafeError as error:
        raise HeUnavailable(MISCONFIGURED, str(error)) from error
    return TlsConnector(*address, contexts, TIMEOUTS.connect_s)


@cache
def _contexts(files: TlsFiles) -> Renewed:
    """One for all adapters: what cannot be used leaves the one before, also to those opened later."""
    return of_files(files, client_context)


@cache
def _burn_log(path: str) -> BurnLog:
    """One per file in this process; it stays open."""
    return BurnLog(Path(path))
