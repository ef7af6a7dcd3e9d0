"""A data directory with something of everything, and the command line to look at it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from tensafe.cli.app import app
from tensafe.contracts.training import ModelInfo
from tensafe.local.composition import initialise, local_services
from tensafe.local.model_registry import ModelRegistry
from tensafe.local.settings import LocalSettings
from tensafe.operations.checkpoints import Checkpoint, CheckpointKind
from tensafe.operations.records import OpKind, StreamKind
from tensafe.operations.streams import now_ms
from tensafe.operations.submissions import Submission
from tensafe.packages.bundle import pack_files
from tensafe.privacy.ledger import Ledger
from tensafe.privacy.mechanism import Mechanism
from tensafe.services import Services
from tests.support.model_folders import model_folder

CANARY = "canary-in-a-prompt"
RUN = "s-1:train:0"
BUNDLE = {"adapter_config.json": b"{}", "adapter_model.safetensors": b"numbers"}


@dataclass(frozen=True)
class Answer:
    """What a command printed, and its exit code."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


Tensafe = Callable[..., Answer]


@pytest.fixture
def tensafe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Tensafe:
    """`tensafe("keys", "list")` on the test's data directory."""
    monkeypatch.setenv("TENSAFE_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))

    def run(*arguments: object) -> Answer:
        result = CliRunner().invoke(app, [str(one) for one in arguments])
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return Answer(result.exit_code, result.stdout, result.stderr)

    return run


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    initialise(tmp_path / "data")
    return tmp_path / "data"


@pytest.fixture
def services(data_dir: Path, tmp_path: Path) -> Iterator[Services]:
    """The services that a running deployment would use, on the same directory."""
    model = ModelInfo(
        name="acme/tiny",
        path=str(model_folder(tmp_path / "model")),
        arch="Qwen3ForCausalLM",
        vocab_size=512,
        max_context_tokens=256,
    )
    ModelRegistry(data_dir).register(model)
    with local_services(LocalSettings(data_dir=data_dir, models=(model,))) as opened:
        yield opened


@pytest.fixture
def run_id(services: Services) -> str:
    """A run of tenant acme with two pending operations that carry a canary."""
    services.api_keys.create("acme", ["train"])
    services.api_keys.create("other", ["train"])
    record, creation = services.streams.creation(
        RUN, "acme", StreamKind.RUN, "acme/tiny", spec={"lora": {"rank": 4}}
    )
    payload = json.dumps({"prompt": CANARY}).encode()
    services.submissions.create(record, creation, Submission(0, OpKind.CREATE, payload))
    services.submissions.submit(record, Submission(1, OpKind.NOOP, payload))
    return RUN


@pytest.fixture
def checkpoint(services: Services, run_id: str) -> Checkpoint:
    """Sampler weights of the run."""
    run = services.streams.get(run_id, "acme")
    ref = services.artifacts.write(run.scope, "ckpt/sampler_weights/final", pack_files(BUNDLE))
    saved = Checkpoint(
        run_id=run_id,
        tenant="acme",
        kind=CheckpointKind.SAMPLER,
        name="final",
        base_model="acme/tiny",
        created_ms=now_ms(),
        ref=ref,
        artifact_id="art-1",
        details={"step": 7},
    )
    services.ports.items.write(services.checkpoints.saving(saved, overwrite=False))
    return saved


@pytest.fixture
def letter_id(services: Services, run_id: str) -> str:
    """A dead letter: the run's first operation."""
    run = services.streams.get(run_id, "acme")
    services.dead_letters.bury(run, services.outcomes.get(run, 0), "3 tries failed: OutOfMemoryError")
    (letter,) = services.dead_letters.list()
    return letter.letter_id


@pytest.fixture
def domain(services: Services, run_id: str) -> str:
    """A privacy domain of tenant acme in which one unit took part in one step."""
    mechanism = Mechanism(
        clip_norm=1.0, noise_multiplier=2.0, batch_size=8, max_participations=3, delta=1e-5, domain="letters"
    )
    ledger = Ledger(services.ports.items, services.vault, services.ports.signer, services.ports.anchors)
    ref = ledger.open_run("acme", run_id, mechanism, noise_key_id="noise-1")
    ledger.reserve(ref, 1, [42])
    return "letters"
