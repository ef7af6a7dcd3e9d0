"""A stand-in for an adapter holder: its own process, which holds A, over a unix socket; and its key holder.

Nothing is encrypted here. It speaks the port of `tensafe_gpu.helora.ports` with the integers of that
module's text, so that vLLM's side is tested against a real other process that can be killed, can hang and
can answer nonsense. The process reads what to do from a file before each answer.
"""

from __future__ import annotations

import os
import pickle
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tensafe_gpu.helora.ports import (
    AdapterInfo,
    Asked,
    HeUnavailable,
    KeyHolder,
    ModuleShape,
    SiteShape,
)

T_HALF = 2**27
A_BOUND = 127
Array = npt.NDArray[np.float32]


def quantised(
    pairs: Mapping[str, tuple[Array, Array]], scaling: float, fused: Sequence[Sequence[str]]
) -> dict[str, dict[str, object]]:
    """Module -> (A, B) as integers and scales, by site; `fused` lists the projections that share an input."""
    sites: dict[str, dict[str, object]] = {}
    for module, (a, b) in pairs.items():
        parent, _, last = module.rpartition(".")
        group = next((g for g in fused if last in g), (last,))
        site = sites.setdefault(f"{parent}.{'+'.join(group)}", {"order": group, "modules": {}})
        scale = np.abs(a).max(axis=1) / A_BOUND
        a_q = np.rint(a / scale[:, None]).astype(np.int64)
        site["modules"][module] = (a_q, (b * scale[None, :] * scaling).astype(np.float32))  # type: ignore[index]
    return sites


def shapes(sites: Mapping[str, dict[str, object]]) -> tuple[SiteShape, ...]:
    found = []
    for name, site in sites.items():
        modules = site["modules"]
        width = next(iter(modules.values()))[0].shape[1]  # type: ignore[attr-defined]
        bound = site.get("x_bound") or min(2**15, (T_HALF - 1) // (A_BOUND * width))
        found.append(
            SiteShape(
                name,
                width,
                tuple(ModuleShape(m, a.shape[0], b.shape[0]) for m, (a, b) in modules.items()),  # type: ignore[attr-defined]
                bound,
            )
        )
    return tuple(found)


class EvaluatorKeyHolder:
    """The port over the socket; every call has a deadline."""

    def __init__(self, path: str, timeout_s: float) -> None:
        self._lock = threading.Lock()
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(timeout_s)
        try:
            self._socket.connect(path)
        except OSError as error:
            raise HeUnavailable("adapter_holder_absent", "no connection") from error
        self._info, self._b = self._ask(("hello",))

    def info(self) -> AdapterInfo:
        return self._info  # type: ignore[no-any-return]

    def b_matrices(self) -> Mapping[str, Mapping[str, Array]]:
        return self._b  # type: ignore[no-any-return]

    def products(self, sites: Sequence[tuple[str, Array]]) -> Sequence[Array]:
        asked, scales = [], []
        for name, x in sites:
            bound = self._info.site(name).x_bound
            scale = np.abs(x.astype(np.float64)).max(axis=1, keepdims=True) / bound
            if not np.isfinite(scale).all():
                raise HeUnavailable("activations_not_finite", "an activation is not finite")
            safe = np.where(scale == 0, 1, scale)
            asked.append((name, np.rint(x / safe).astype(np.int64)))
            scales.append(scale)
        answers = self._ask(("products", asked))
        return [(a.astype(np.float64) * s).astype(np.float32) for a, s in zip(answers, scales, strict=True)]

    def ask(self, sites: Sequence[tuple[str, Array]], *, limit_s: float = 0.0) -> Asked:
        from tests.support.at_once import AtOnce

        return AtOnce(self.products(sites))

    def direct_products(self, sites: Sequence[tuple[str, Array]], *, limit_s: float = 0.0) -> Sequence[Array]:
        return self.products(sites)

    def connected(self) -> bool:
        return True

    def connect_again(self) -> None:
        pass

    def prepared(self) -> Mapping[str, int]:
        return {site.site: 10**6 for site in self._info.sites}

    def prepare(self, site: str) -> None:
        raise HeUnavailable("budget_spent", site)

    def close(self) -> None:
        self._socket.close()

    def _ask(self, message: object) -> object:
        with self._lock:
            try:
                send(self._socket, message)
                kind, answer = receive(self._socket)
            except TimeoutError as error:
                raise HeUnavailable("timeout", "no answer in time") from error
            except (OSError, EOFError) as error:
                raise HeUnavailable("adapter_holder_absent", "connection lost") from error
        if kind == "refused":
            raise HeUnavailable(str(answer), "refused")
        return answer


def connect(holder: Mapping[str, str]) -> KeyHolder:
    """What `key_holder=` names in the tests' engines: the real one where there is an address.

    With `record` it writes what it sees into that file, with `unprepared` it never prepares anything, with
    `swollen` a row of a long prompt is once beyond all measure. With `dropped` the layer of that name adds
    nothing from now on, as if a compiler had left its operator out; with `left_out` no request's row at
    that position has a delta, as if the map of rows were wrong; with `by_id` rows are found by vLLM's number
    of their adapter, which is the map that matches nothing.
    """
    _drop(holder.get("dropped"))
    _leave_out(holder.get("left_out"))
    if "by_id" in holder:
        _map_by_id()
    if "address" in holder:
        from tensafe_gpu.sampler.private import connecting

        real = connecting.connect(holder)
        if "record" in holder:
            from tests.support.recording_key_holder import recording

            real = recording(real, Path(holder["record"]))  # type: ignore[arg-type]
        if "swollen" in holder:
            _swell(real)
        if "unprepared" in holder:
            real.prepare = lambda _site: None  # type: ignore[method-assign]
        return real
    return EvaluatorKeyHolder(holder["socket"], float(holder.get("timeout_s", "2")))


def _swell(real: KeyHolder) -> None:
    """Row 40 of the first 64 or more that are asked together becomes as large as float32 lets it be.

    It is a number, so it goes the way of all others; its products are none.
    """
    ask, largest = real.ask, np.finfo(np.float32).max
    done: list[str] = []

    def swollen(sites: Sequence[tuple[str, Array]], **more: float) -> Asked:
        ((site, x),) = sites
        if len(x) >= 64 and not done:
            done.append(site)
            x = x.copy()
            x[40] = np.sign(x[40]) * largest
        return ask([(site, x)], **more)

    real.ask = swollen  # type: ignore[method-assign]


def _drop(layer: str | None) -> None:
    from tensafe_gpu.sampler.private import injection

    kept = _ASKING.setdefault("ask_for", injection.ask_for)
    injection.ask_for = lambda name, x: () if name == layer else kept(name, x)


_ASKING: dict[str, Callable[..., object]] = {}


def _leave_out(position: str | None) -> None:
    from tensafe_gpu.sampler.private import extension

    spans_of = _SPANS.setdefault("spans_of", extension.spans_of)

    def shortened(*arguments: Any) -> Iterator[Any]:
        for span in spans_of(*arguments):
            row = -1 if position is None else int(position) - span.position
            if not 0 <= row < span.count:
                yield span
                continue
            if row:
                yield replace(span, stop=span.start + row)
            if row + 1 < span.count:
                yield replace(span, start=span.start + row + 1, position=span.position + row + 1)

    extension.spans_of = shortened


def _map_by_id() -> None:
    from tensafe_gpu.sampler.private import extension

    def by_id(batch: Sequence[str], requests: Mapping[str, Any], *more: Any) -> Iterator[Any]:
        numbered = {name: one for name, one in requests.items() if one.lora_request is not None}
        return _SPANS["spans_of"](batch, numbered, *more)

    extension.spans_of = by_id


_SPANS: dict[str, Callable[..., Iterator[Any]]] = {}


def send(connection: socket.socket, message: object) -> None:
    data = pickle.dumps(message)
    connection.sendall(struct.pack("<Q", len(data)) + data)


def receive(connection: socket.socket) -> tuple[str, object]:
    size = struct.unpack("<Q", _exactly(connection, 8))[0]
    return pickle.loads(_exactly(connection, size))  # noqa: S301 - both ends are this test's


def _exactly(connection: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        part = connection.recv(size - len(data))
        if not part:
            raise EOFError
        data += part
    return data


class Evaluator:
    """The process, as a test starts, breaks and counts it."""

    def __init__(self, folder: Path, name: str, version: int, sites: dict[str, dict[str, object]]) -> None:
        self.name, self.version, self.sites = name, version, sites
        self._folder = folder
        self.socket = str(folder / "s")
        self._mode = folder / "mode"
        self._log = folder / "calls"
        (folder / "adapter").write_bytes(pickle.dumps((name, version, sites)))
        self.process: subprocess.Popen[bytes] | None = None
        self.start()

    def holder(self, **more: str) -> dict[str, str]:
        return {"socket": self.socket, **more}

    def start(self) -> None:
        Path(self.socket).unlink(missing_ok=True)
        self.mode("ok")
        self.process = subprocess.Popen([sys.executable, __file__, str(self._folder)])
        while not os.path.exists(self.socket):
            assert self.process.poll() is None
            time.sleep(0.02)

    def mode(self, mode: str) -> None:
        """`ok`, `hang`, `garbage`, `budget_spent` or another code; `N:mode` only from the N-th call on."""
        temporary = self._mode.with_suffix(".new")
        temporary.write_text(mode)
        temporary.replace(self._mode)

    def evaluated(self) -> int:
        """(site, token) pairs that it has answered since its start."""
        return sum(map(int, self._log.read_text().split())) if self._log.exists() else 0

    def kill(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def close(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.kill()


def serve(folder: Path) -> None:
    name, version, sites = pickle.loads((folder / "adapter").read_bytes())  # noqa: S301
    described = shapes(sites)
    info = AdapterInfo(name, version, f"{version:064x}", 1, "tiny", described, "test/1", 10**6)
    b = {site: {m: pair[1] for m, pair in parts["modules"].items()} for site, parts in sites.items()}
    a = {site: np.concatenate([p[0] for p in parts["modules"].values()]) for site, parts in sites.items()}
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(folder / "new"))
    listener.listen()
    os.rename(folder / "new", folder / "s")

    def answer(connection: socket.socket) -> None:
        calls = 0
        with connection, open(folder / "calls", "a") as log:
            while True:
                try:
                    kind, *rest = receive(connection)
                except (EOFError, OSError):
                    return
                calls += kind == "products"
                after, _, mode = (folder / "mode").read_text().rpartition(":")
                if calls <= int(after or 0):
                    mode = "ok"
                if mode == "hang":
                    time.sleep(1000)
                if mode == "ok":
                    if kind == "hello":
                        send(connection, ("ok", (info, b)))
                        continue
                    send(connection, ("ok", [x @ a[site].T for site, x in rest[0]]))
                    log.write(f"{sum(len(x) for _, x in rest[0])}\n")
                    log.flush()
                elif mode == "garbage":
                    send(connection, ("ok", [np.full((1, 1), np.nan) for _ in rest[0]] if rest else None))
                else:
                    send(connection, ("refused", mode))

    while True:
        connection, _ = listener.accept()
        threading.Thread(target=answer, args=(connection,), daemon=True).start()


if __name__ == "__main__":
    serve(Path(sys.argv[1]))
