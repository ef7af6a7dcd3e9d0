"""Planted secrets are found nowhere at rest: data directory, logs, temporary folders, command lines."""

from __future__ import annotations

import json
import mmap
import os
import re
import struct
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from uuid import uuid4

import numpy as np
import psutil
import pytest
import tinker
from cryptography.exceptions import InvalidTag
from safetensors.numpy import load as load_safetensors
from tinker import types
from tinker.types.optimizer import OptimizerConfigBase

from tensafe.contracts.errors import Gone, IntegrityError
from tests.support.in_process import services_of
from tests.support.native import Native, batch, example, make_key
from tests.support.sdk_data import supervised
from tests.support.service import MODEL_NAME, Service

pytestmark = pytest.mark.one_machine("searches one machine's files; aws/test_canaries_on_aws.py is AWS's")

UNIT_ID = 0x5AFE_C0DE_D15C_0BA1
STOP_STRING = f"canary-stop-{uuid4().hex}"
PRIVATE = {
    "type": "tensafe_dp_adamw",
    "clip_norm": 1.0,
    "noise_multiplier": 1.0,
    "delta": 1e-5,
    "batch_size": 1,
    "max_participations": 4,
    "domain": "canaries",
}
SHARED_MEMORY = Path("/dev/shm")


class Canaries:
    """Byte strings that must not be found, each with what it is."""

    def __init__(self) -> None:
        self.patterns: dict[bytes, str] = {}

    def text(self, what: str, text: str) -> None:
        for encoding in ("utf-8", "utf-16-le"):
            self.patterns[text.encode(encoding)] = what

    def tokens(self, what: str, tokens: Iterable[int]) -> None:
        """As any of our encodings would write them."""
        ids = [int(token) for token in tokens]
        for dtype in ("<i4", "<i8", "<i2"):
            self.patterns[np.array(ids, dtype).tobytes()] = f"{what} as {dtype}"
        for separator in (",", ", ", " ", "\n"):
            self.patterns[separator.join(map(str, ids)).encode()] = f"{what} as text"

    def number(self, what: str, number: int) -> None:
        self.patterns[struct.pack("<q", number)] = f"{what} as int64"
        self.patterns[struct.pack(">q", number)] = f"{what} as int64"
        self.text(f"{what} as decimal", str(number))
        self.text(f"{what} as hexadecimal", f"{number:x}")

    def floats(self, what: str, values: np.ndarray) -> None:
        """Up to 32 numbers in a row that are not zero, in the widths that adapters have."""
        flat = values.reshape(-1).astype(np.float32)
        row = max(np.split(flat, np.flatnonzero(flat == 0)), key=len)[1:33]
        assert row.size >= 8
        self.patterns[row.tobytes()] = what
        self.patterns[row.astype(np.float16).tobytes()] = f"{what} in 16 bits"
        self.patterns[(row.view(np.uint32) >> 16).astype(np.uint16).tobytes()] = f"{what} as bfloat16"

    def found_in(self, paths: Iterable[Path]) -> list[str]:
        """What was found where."""
        wanted = re.compile(b"|".join(map(re.escape, self.patterns)))
        hits = []
        for path in paths:
            for match in wanted.finditer(_content(path)):
                hits.append(f"{self.patterns[match[0]]} in {path}")
        return hits


def _content(path: Path) -> bytes | mmap.mmap:
    try:
        with path.open("rb") as file:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError):  # gone, empty, or no file that can be mapped
        try:
            return path.read_bytes()
        except OSError:
            return b""


def files_below(*folders: Path) -> list[Path]:
    return [path for folder in folders for path in folder.rglob("*") if path.is_file()]


def recent_files(folder: Path, since_s: float) -> Iterator[Path]:
    """Files of a folder that others use too, written since."""
    for path in folder.glob("*"):
        try:
            if path.is_file() and path.stat().st_mtime >= since_s:
                yield path
        except OSError:
            continue


def process_files(service: Service) -> list[Path]:
    """Command lines and environments of all processes, and files that they hold open."""
    assert service.process is not None
    supervisor = psutil.Process(service.process.pid)
    paths = []
    for process in [supervisor, *supervisor.children(recursive=True)]:
        folder = Path("/proc") / str(process.pid)
        paths += [folder / "cmdline", folder / "environ"]
        for entry in (folder / "fd").iterdir():
            try:
                target = Path(os.readlink(entry))
            except FileNotFoundError:
                continue  # closed meanwhile
            if target.is_absolute() and not target.is_relative_to(SHARED_MEMORY) and target.is_file():
                paths.append(entry)
    return paths


def at_rest(service: Service, since_s: float) -> list[Path]:
    return [
        *files_below(service.folder),
        *recent_files(Path("/tmp"), since_s),
        *process_files(service),
    ]


@pytest.fixture
def planted(own_service: Service) -> tuple[Native, list[str], Canaries, str]:
    """Two runs, one of them private, that have trained and sampled on canaries."""
    native = Native(own_service, make_key(own_service, "canary"))
    rng, canaries = np.random.default_rng(7), Canaries()
    secret = rng.integers(1, 250, 24).tolist()
    canaries.tokens("a training example", secret)
    canaries.tokens("a target", secret[1:13])
    run = native.create()
    private = native.create(optimizer=PRIVATE)
    for client, more in ((run, {}), (private, {"dp_unit_id": UNIT_ID})):
        datum = {**example(secret), **more}
        native.do(client, "forward_backward", batch(datum))
        native.do(client, "optim_step", {"learning_rate": 1e-2})
    canaries.number("a unit id", UNIT_ID)
    prompt = rng.integers(1, 250, 24).tolist()
    canaries.tokens("a prompt", prompt)
    canaries.text("a stop string", STOP_STRING)
    # Several: one may end at its first token.
    asked = {"prompt": prompt, "num_samples": 4, "sampling_params": {"max_tokens": 24, "stop": [STOP_STRING]}}
    sampled = native.submit(run, "sample", asked)
    completion = max(native.result(sampled)["sequences"], key=lambda one: len(one["tokens"]))
    canaries.tokens("a completion", completion["tokens"][:16])
    canaries.floats("logprobs of a completion", np.array(completion["logprobs"]))
    state = load_safetensors(native.content(native.save(run, "state")["id"]))
    for name, tensor in sorted(state.items())[:6]:
        if tensor.dtype == np.float32 and np.count_nonzero(tensor) > 64:
            canaries.floats(f"weights {name}", tensor)
    return native, [run, private], canaries, sampled


def test_nothing_planted_is_found_during_or_after(
    own_service: Service, planted: tuple[Native, list[str], Canaries, str]
) -> None:
    began = time.time() - 60
    native, runs, canaries, _ = planted
    assert len(canaries.patterns) > 30
    # The search finds what is there: the key's tenant, which is stored in clear.
    control = Canaries()
    control.text("the tenant", '"tenant":"canary"')
    assert control.found_in(files_below(own_service.data_dir))
    assert canaries.found_in(at_rest(own_service, began)) == []
    erased = {run: artifacts_of(own_service, run) for run in runs}
    assert erased[runs[0]]
    keys = wrapped_keys(own_service, runs)
    assert keys.found_in(files_below(own_service.data_dir))
    for run in runs:
        assert native.http.delete(f"/v1/training_clients/{run}").status_code == 200
    assert_nothing_opens(own_service, erased)
    assert canaries.found_in(at_rest(own_service, began)) == []
    own_service.kill_everything()
    assert canaries.found_in(files_below(own_service.folder)) == []
    own_service.start()  # the new sampler removes what the killed one had in memory
    assert canaries.found_in(at_rest(own_service, began)) == []
    # The scrub, at the start and every 30 s, takes deleted pages out of the database and its log.
    deadline = time.monotonic() + 40
    while hits := keys.found_in(files_below(own_service.data_dir)):
        assert time.monotonic() < deadline, hits
        time.sleep(0.2)
    left = [path for path in files_below(SHARED_MEMORY) if path.stat().st_mtime >= began]
    assert canaries.found_in(left) == []


def test_nothing_is_found_in_the_middle_of_operations_through_the_sdk(
    own_service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Protobuf training with units, a sample, a save: the disk is searched while they run."""
    began, canaries, rng = time.time() - 1, Canaries(), np.random.default_rng(8)
    monkeypatch.setenv("TINKER_BASE_URL", own_service.url)
    monkeypatch.setenv("TINKER_API_KEY", make_key(own_service, "canary"))
    optimizer = OptimizerConfigBase(**{**PRIVATE, "batch_size": 200, "domain": "sdk-canaries"})
    service_client = tinker.ServiceClient()
    client = service_client.create_lora_training_client(MODEL_NAME, rank=4, optimizer=optimizer).result()
    secret = rng.integers(1, 250, 200).tolist()
    canaries.tokens("a training example", secret[:24])
    canaries.tokens("a target", secret[1:25])
    canaries.number("a unit id", UNIT_ID)
    prompt = rng.integers(1, 250, 24).tolist()
    canaries.tokens("a prompt", prompt)
    sampler = service_client.create_sampling_client(base_model=MODEL_NAME).result()
    params = types.SamplingParams(max_tokens=300, seed=1, stop=[])
    futures = [
        client.forward_backward([supervised(secret, unit=UNIT_ID + i) for i in range(200)], "cross_entropy"),
        client.optim_step(types.AdamParams(learning_rate=1e-2)),
        client.save_state("kept"),
        sampler.sample(types.ModelInput.from_ints(prompt), 2, params),
    ]
    searches = 0
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(lambda: [future.result(timeout=200) for future in futures])
        while not waiting.done():
            assert canaries.found_in(at_rest(own_service, began)) == []
            searches += 1
    assert searches > 1
    completion = waiting.result()[-1].sequences[0].tokens
    canaries.tokens("a completion", completion[:16])
    assert canaries.found_in(at_rest(own_service, began)) == []
    client.save_weights_and_get_sampling_client().result().sample(
        types.ModelInput.from_ints(prompt), 1, params
    ).result()
    assert canaries.found_in(at_rest(own_service, began)) == []
    service_client.close("success").result()


def wrapped_keys(service: Service, runs: Iterable[str]) -> Canaries:
    """The end of each run's wrapped data key: with it and the key file, everything could be opened."""
    keys = Canaries()
    with services_of(service) as services:
        for run in runs:
            stream = services.streams.find(run)
            assert stream is not None
            item = services.ports.items.get(stream.scope.key_item)
            assert item is not None
            keys.patterns[item.sealed[-48:]] = f"the wrapped key of {run}"
    return keys


Sealed = list[tuple[str, str, bytes]]


def artifacts_of(service: Service, run: str) -> Sealed:
    """(part, sealed key in hexadecimal, sealed bytes) of all that the run has saved, as a thief copies it."""
    with services_of(service) as services:
        return [
            (found.part, found.ref.sealed_key.hex(), services.ports.blobs.get(found.ref.blob_key))
            for found in services.checkpoints.of_run(run)
        ]


def assert_nothing_opens(service: Service, erased: dict[str, Sealed]) -> None:
    """With the key file, the whole data directory and copies of the ciphertexts."""
    with services_of(service) as services:
        for run, copies in erased.items():
            stream = services.streams.find(run)
            assert stream is not None
            assert services.ports.items.get(stream.scope.key_item) is None
            for part, sealed_key, sealed in copies:
                for blob in (bytes.fromhex(sealed_key), sealed):
                    with pytest.raises((Gone, IntegrityError, InvalidTag)):
                        services.vault.open(stream.scope, part, blob)
            assert services.checkpoints.of_run(run) == []
            remains = services.ports.items.query(f"stream/{run}", limit=1000)
            assert not any(item.sealed for item in remains), [item.key.sort for item in remains]


def test_no_log_holds_more_than_names_and_numbers(
    own_service: Service, planted: tuple[Native, list[str], Canaries, str]
) -> None:
    native, runs, canaries, _ = planted
    native.post(f"/v1/training_clients/{runs[0]}/forward_backward", batch(example([1, 10**6, 2])))
    native.post(f"/v1/training_clients/{runs[0]}/nothing-like-this-{STOP_STRING}")
    native.post("/v1/training_clients", {"base_model": STOP_STRING})
    canaries.text("the API key", native.http.headers["x-api-key"][24:])
    # The requests that carried them are in the log, by their route and how they ended.
    wanted = {
        ("/v1/training_clients/{client_id}/forward_backward", 422),
        ("unrouted", 404),
        ("/v1/training_clients", 404),
    }
    deadline = time.monotonic() + 10
    while missing := wanted - {(line.get("route"), line.get("status")) for line in own_service.events()}:
        assert time.monotonic() < deadline, missing
        time.sleep(0.05)
    assert canaries.found_in(files_below(own_service.data_dir / "logs", own_service.folder / "tmp")) == []
    page = own_service.folder / "metrics"
    page.write_text(own_service.metrics())
    assert "tensafe_requests_total" in page.read_text()
    canaries.text("a run", runs[0])
    canaries.text("the domain", "canaries")
    assert canaries.found_in([page]) == []
    for path in (own_service.data_dir / "logs").glob("*.log"):
        for line in path.read_text().splitlines():
            if line.startswith("{"):
                assert not re.search(r"(\d+, ?){6}", json.dumps(json.loads(line))), line[:200]
