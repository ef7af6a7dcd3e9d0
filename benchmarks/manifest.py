"""The manifest of a million records, from their data to a sealed blob on the disk."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping
from pathlib import Path

from benchmarks.harness import Bench, Benchmark, Measure, at_most, cpu
from benchmarks.memory import peak_mb
from benchmarks.peer import Handler, Peer
from tensafe.storage.file_blobs import FileBlobs
from tensafe.storage.keyfile import KeyFileRing, create_key_file
from tensafe.storage.sqlite_items import SqliteItems
from tensafe.vault.vault import Vault

UNITS = 1_000_000
TOKENS = 128
DISTINCT = 2_000
PROOFS = 50


def run(bench: Bench) -> Mapping[str, float]:
    """In a fresh process: hash every record (128 tokens, as many targets and weights), sort, hash the
    tree, seal, write durably. Making the records is not counted: 2,000 take turns under all the ids."""
    with Peer(_builds, str(bench.folder)) as builder:
        bench.note("a million records")
        build_s, proof_s, peak = builder(None)
    return {"manifest": build_s, "manifest_proof": proof_s * 1e3, "manifest_peak": peak}


def _builds(folder: str) -> Handler:
    import numpy as np  # noqa: PLC0415 - in the peer alone

    from tensafe.contracts.domains import DomainTerms  # noqa: PLC0415
    from tensafe.contracts.training import Datum  # noqa: PLC0415
    from tensafe.privacy.content import content_key, unit_content_hash  # noqa: PLC0415
    from tensafe.privacy.manifest import ManifestBuilder  # noqa: PLC0415
    from tensafe.privacy.manifest_store import store_manifest  # noqa: PLC0415
    from tensafe.vault.scope import domain_scope  # noqa: PLC0415

    random = np.random.default_rng(1)
    rows = random.integers(0, 32_000, (DISTINCT, TOKENS)).astype(np.int32)
    weights = np.ones(TOKENS, dtype=np.float32)
    data = [Datum(row, {"target_tokens": row.astype(np.int64), "weights": weights}) for row in rows]
    key, scope, vault = content_key(bytes(32)), domain_scope("bench", "bench"), _vault(Path(folder))
    vault.ensure_key(scope)

    def measure(_: object) -> tuple[float, float, float]:
        began = time.perf_counter()
        builder = ManifestBuilder(DomainTerms(unit="record", delta=1e-7, max_epsilon=3.0))
        for unit_id in range(UNITS):
            builder.add(unit_id, unit_content_hash(key, unit_id, [data[unit_id % DISTINCT]]))
        manifest = builder.finish()
        store_manifest(vault, scope, manifest)
        build_s, peak = time.perf_counter() - began, peak_mb()
        tree, seconds = manifest.tree(), []
        for index in range(0, UNITS, UNITS // PROOFS):
            began = time.perf_counter()
            tree.proof(index)
            seconds.append(time.perf_counter() - began)
        return build_s, statistics.median(seconds), peak

    return measure


def _vault(folder: Path) -> Vault:
    create_key_file(folder / "key")
    items = SqliteItems(folder / "items.db")
    blobs = FileBlobs(folder / "blobs", url_secret=bytes(32), base_url="http://127.0.0.1")
    return Vault(items, blobs, KeyFileRing(folder / "key"))


BENCHMARK = Benchmark(
    name="manifest",
    summary=f"the manifest of {UNITS:,} records, from their data to a sealed blob",
    measures=(
        Measure("manifest", "s", at_most(30)),
        Measure("manifest_proof", "ms"),
        Measure("manifest_peak", "MB"),
    ),
    run=run,
    device=cpu,
)
