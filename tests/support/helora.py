"""Private adapters for tests: random ones, the same in clear, and an adapter holder in this process."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import inf
from pathlib import Path

import numpy as np
from safetensors.numpy import save as save_tensors

from tensafe_gpu.adapter_holder.composition import DirectorySettings, initialise, open_ports
from tensafe_gpu.adapter_holder.listener import Listener, Patience
from tensafe_gpu.adapter_holder.policy import Policy
from tensafe_gpu.adapter_holder.service import HolderService
from tensafe_gpu.adapter_holder.sockets import tcp_listener, unix_listener
from tensafe_gpu.adapter_holder.store import AdapterStore
from tensafe_gpu.helora.accepted import AcceptLog
from tensafe_gpu.helora.adapter import ServedAdapter
from tensafe_gpu.helora.burned import BurnLog
from tensafe_gpu.helora.connection import Timeouts, Wanted, unix_connector
from tensafe_gpu.helora.direct import DirectRequest, direct_elements
from tensafe_gpu.helora.evaluation import BlockEvaluation
from tensafe_gpu.helora.key_holder import RemoteKeyHolder
from tensafe_gpu.helora.masks import PreparingBlock
from tensafe_gpu.helora.ports import AdapterInfo, Float32Array, SiteId
from tensafe_gpu.helora.public_keys import BLOCK_KEY, common_elements
from tensafe_gpu.helora.quantise import dequantised, quantised_tokens
from tensafe_gpu.helora.renewal import of_files
from tensafe_gpu.helora.seal_stream import WordArray
from tensafe_gpu.helora.tls import TlsFiles, server_context
from tensafe_gpu.peft_settings import CONFIG_FILE, WEIGHTS_FILE
from tensafe_gpu.sampler.private.placing import Slice
from tests.support.at_once import AtOnce
from tests.support.certificates import Authority

TENANT = "tenant-1"
QUICK = Timeouts(connect_s=5, online_s=5, offline_s=30)
NONCE = bytes(range(32))
"""What an adapter holder's connection has drawn; for the two halves of the protocol without one."""


def halves_of(block: PreparingBlock) -> tuple[WordArray, WordArray]:
    """Both halves of a block's public keys, as an adapter holder has them: uint32 [keys, 4, N]."""
    b = block.public_halves(NONCE)
    return b, common_elements(NONCE, BLOCK_KEY, block.block_id, len(b))


def half_of(request: DirectRequest) -> tuple[WordArray, WordArray]:
    """As `halves_of`, of a direct request's one key: uint32 [4, N] and [1, 4, N]."""
    return request.public_half(NONCE), direct_elements(NONCE, request.key_id)


def peft_files(
    d: int,
    rank: int,
    *,
    layers: int = 1,
    leaves: Sequence[str] = ("q", "k", "v", "o"),
    seed: int = 0,
    alpha: float = 32,
) -> dict[str, bytes]:
    """A random adapter in PEFT's layout on square projections of width d."""
    rng = np.random.default_rng(seed)
    tensors = {}
    for layer in range(layers):
        for leaf in leaves:
            name = f"base_model.model.model.layers.{layer}.self_attn.{leaf}_proj"
            tensors[f"{name}.lora_A.weight"] = rng.standard_normal((rank, d)).astype(np.float32)
            tensors[f"{name}.lora_B.weight"] = rng.standard_normal((d, rank)).astype(np.float32)
    config = {"peft_type": "LORA", "r": rank, "lora_alpha": alpha, "bias": "none"}
    return {WEIGHTS_FILE: save_tensors(tensors), CONFIG_FILE: json.dumps(config).encode()}


class PlainReference:
    """The port `KeyHolder` computed in clear from the quantised integers: what the protocol must equal."""

    def __init__(self, adapter: ServedAdapter, tokens: int = 1 << 30) -> None:
        self._adapter, self._left = adapter, dict.fromkeys(adapter.sites, tokens)

    def info(self) -> AdapterInfo:
        return self._adapter.info

    def b_matrices(self) -> Mapping[SiteId, Mapping[str, Float32Array]]:
        return {name: site.b for name, site in self._adapter.sites.items()}

    def products(self, sites: Sequence[tuple[SiteId, Float32Array]]) -> Sequence[Float32Array]:
        return [self._product(site, x) for site, x in sites]

    def direct_products(
        self, sites: Sequence[tuple[SiteId, Float32Array]], *, limit_s: float = inf
    ) -> Sequence[Float32Array]:
        return self.products(sites)

    def ask(self, sites: Sequence[tuple[SiteId, Float32Array]], *, limit_s: float = inf) -> AtOnce:
        return AtOnce(self.products(sites))

    def connected(self) -> bool:
        return True

    def connect_again(self) -> None:
        pass

    def prepared(self) -> Mapping[SiteId, int]:
        return self._left

    def prepare(self, site: SiteId) -> None:
        self._left[site] += 4096

    def close(self) -> None:
        pass

    def _product(self, name: SiteId, x: Float32Array) -> Float32Array:
        site = self._adapter.sites[name]
        x_q, scales = quantised_tokens(x, site.shape.x_bound)
        self._left[name] -= len(x)
        return dequantised(x_q.astype(np.int64) @ site.a.astype(np.int64).T, scales)


@dataclass(frozen=True, slots=True)
class Holder:
    """An adapter holder of this process, listening on a unix socket."""

    data_dir: Path
    socket: Path
    store: AdapterStore
    service: HolderService

    def key_holder(self, burn_log: BurnLog, *, adapter: str = "a", tenant: str = TENANT) -> RemoteKeyHolder:
        """Greets it."""
        return RemoteKeyHolder(unix_connector(self.socket), Wanted(tenant, adapter), burn_log, QUICK)


@contextmanager
def adapter_holder(
    data_dir: Path, *, patience: Patience | None = None, evaluation: type[BlockEvaluation] = BlockEvaluation
) -> Iterator[Holder]:
    """Serve a data directory, made if it is not there, until the end of the block."""
    if not (data_dir / "key.json").exists():
        initialise(data_dir)
    ports = open_ports(DirectorySettings(data_dir=data_dir))
    store, accepted = AdapterStore(ports), AcceptLog(ports.items)
    service = HolderService(store, accepted, evaluation=evaluation)
    path = data_dir / "s"
    listener = Listener(service, unix_listener(path), patience=patience)
    thread = threading.Thread(target=listener.serve_forever)
    thread.start()
    try:
        yield Holder(data_dir, path, store, service)
    finally:
        listener.close()
        thread.join()
        service.shelf.close()
        store.close()


@contextmanager
def over_tls(
    holder: Holder, authority: Authority, *, server_days: int = 1, patience: Patience | None = None
) -> Iterator[int]:
    """The same adapters on a port of the loopback, by mutual TLS."""
    files = authority.issue("server", days=server_days)
    with served_with(holder, files, patience or Patience(2, 30, 2)) as port:
        yield port


@contextmanager
def served_with(holder: Holder, files: TlsFiles, patience: Patience) -> Iterator[int]:
    """As `over_tls`, with a certificate that is there."""
    listening = tcp_listener("127.0.0.1", 0)
    listener = Listener(holder.service, listening, tls=of_files(files, server_context), patience=patience)
    thread = threading.Thread(target=listener.serve_forever)
    thread.start()
    try:
        yield listening.getsockname()[1]
    finally:
        listener.close()
        thread.join()


def layers_of(info: AdapterInfo) -> dict[str, Slice]:
    """A model that the adapter fits, each site the input of a layer of its own."""
    found: dict[str, Slice] = {}
    for site in info.sites:
        first = 0
        for one in site.modules:
            found[one.name] = Slice(site.site, first, first + one.d_out, site.d_in)
            first += one.d_out
    return found


def policy(tokens_per_site: int = 100_000, tenants: Sequence[str] = (TENANT,)) -> Policy:
    """A policy for one tenant, with plenty of tokens."""
    return Policy(tenants=list(tenants), tokens_per_site=tokens_per_site)
