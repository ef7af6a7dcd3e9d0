"""What a private adapter holds in the memory of either side: resident in a process of its own, and counted.

Each process has done all of it before for an adapter of one layer, which leaves what a process needs once.
The adapter holder's has opened the adapter and answered a token at every site. The key holder's has
opened it as vLLM's worker does, B' included; then a block of 4096 tokens is prepared for every site.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Final
from unittest import mock

from benchmarks.harness import Bench
from benchmarks.peer import Handler, Peer
from benchmarks.private_decode import HALF_BILLION, NAME, Shape, adapter_files
from tensafe_gpu.sampler.private.placing import Slice

if TYPE_CHECKING:
    from tensafe_gpu.helora.ports import KeyHolder

_ALLOCATOR: Final = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": str(128 * 2**10)}
"""Of glibc: what is freed leaves the process. It would keep up to 64 MB at the end of each thread's arena."""
_TENANT: Final = "tenant-1"
_CLOSE: Final = "close"
_FIRST: Final = "first"
_KEPT: Final[list[object]] = []
"""What a key holder's process has opened, which goes with it."""


def memory(bench: Bench, shape: Shape = HALF_BILLION) -> dict[str, float]:
    """Results by name, 10^6 bytes; `_counted` is the size of the arrays that are kept."""
    data_dir = bench.folder / "held"
    files = {
        NAME: str(adapter_files(bench.folder / "held-peft", shape)),
        _FIRST: str(adapter_files(bench.folder / "first-peft", replace(shape, layers=1))),
    }
    with Peer(_published, files, str(data_dir)) as publisher:  # what it needs for that is not counted
        counted: dict[str, float] = publisher(None)
    with mock.patch.dict(os.environ, _ALLOCATOR), Peer(_adapter_holder, str(data_dir)) as holder:
        try:
            with Peer(_key_holder, str(data_dir), str(bench.folder)) as key_holder:
                key_holder(_FIRST)  # what a process needs once is there then
                before = holder(None)
                nothing, adapter, blocks = key_holder(NAME)
                held = holder(None) - before
        finally:
            holder(_CLOSE)
    return {
        "helora_adapter_holder_memory": held,
        "helora_key_holder_memory": adapter - nothing,
        "helora_block_memory": blocks - adapter,
        **counted,
    }


def _published(files: Mapping[str, str], data_dir: str) -> Handler:
    from tensafe_gpu.helora.parameters import N  # noqa: PLC0415 - in the peer alone
    from tests.support.helora import adapter_holder, policy  # noqa: PLC0415

    published = {}
    with adapter_holder(Path(data_dir)) as holder:
        for name, folder in files.items():
            peft = {path.name: path.read_bytes() for path in Path(folder).iterdir()}
            published[name] = holder.store.publish(name, peft, base_model=NAME, policy=policy(10 * N))[1]
    served = published[NAME]
    b = sum(one.nbytes for site in served.sites.values() for one in site.b.values())
    a = sum(site.a.size for site in served.sites.values())
    rows = sum(shape.rank_rows for shape in served.info.sites)
    counted = {
        # A as int16 and as float64, and B', which it hands out.
        "helora_adapter_holder_counted": (a * (2 + 8) + b) / 1e6,
        # B' as it came, and as the device has it.
        "helora_key_holder_counted": 2 * b / 1e6,
        "helora_block_counted": 4 * N * rows / 1e6,
    }
    return lambda _: counted


def _adapter_holder(data_dir: str) -> Handler:
    from benchmarks.memory import resident_mb  # noqa: PLC0415 - as above
    from tests.support.helora import adapter_holder  # noqa: PLC0415

    stack = ExitStack()
    stack.enter_context(adapter_holder(Path(data_dir)))
    return lambda step: stack.close() if step == _CLOSE else resident_mb()


def _key_holder(data_dir: str, folder: str) -> Handler:
    return lambda name: _opened(name, Path(data_dir), Path(folder))


def _opened(name: str, data_dir: Path, folder: Path) -> tuple[float, float, float]:
    """Resident before anything is opened, with the adapter, and with a block for each site as well."""
    import numpy as np  # noqa: PLC0415 - as above
    import torch  # noqa: PLC0415

    from benchmarks.memory import resident_mb  # noqa: PLC0415
    from tensafe_gpu.sampler.private.connecting import connect  # noqa: PLC0415
    from tensafe_gpu.sampler.private.holders import OpenAdapters  # noqa: PLC0415
    from tests.support.helora import layers_of  # noqa: PLC0415

    there: list[KeyHolder] = []
    let, modules = threading.Event(), dict[str, Slice]()

    def connected(where: Mapping[str, str]) -> KeyHolder:
        """The first block is not begun before the adapter alone was looked at."""
        holder = connect(where)
        modules.update(layers_of(holder.info()))
        prepare = holder.prepare

        def waiting(site: str) -> None:
            if not there:
                there.append(holder)
            let.wait()
            prepare(site)

        holder.prepare = waiting  # type: ignore[method-assign]
        return holder

    where = {
        "address": f"unix:{data_dir / 's'}",
        "tenant": _TENANT,
        "adapter": name,
        "version": "1",
        "burn_log": str(folder / "held-burned.db"),
    }
    adapters = OpenAdapters(connected, modules, torch.device("cpu"))
    nothing = resident_mb()
    adapters.open(name, {}, where)
    opened = adapters.get(name)
    assert opened is not None
    while not there:
        assert opened.failure is None, opened.failure
        time.sleep(0.05)
    adapter = resident_mb()
    let.set()
    while opened.facts()["state"] == "opening":
        time.sleep(0.05)
    assert opened.usable, opened.failure
    blocks = resident_mb()
    for site in there[0].info().sites:
        there[0].products([(site.site, np.ones((1, site.d_in), np.float32))])
    _KEPT.append(adapters)
    return nothing, adapter, blocks
