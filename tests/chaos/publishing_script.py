"""A run with weights to publish, and what its process does; the adapter holder's files lie beside it."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

from tensafe.contracts.execution import ExecutionPolicy
from tensafe.contracts.training import LoraSpec
from tensafe.local import publishing
from tensafe.local.publishing_terms import Publishing
from tensafe.operations.records import OpKind
from tensafe.services import Services
from tensafe_gpu.adapter_holder import composition
from tensafe_gpu.adapter_holder.commands import main
from tests.support.killing_ports import FATAL, Killer
from tests.support.training_log import begin, create, forward_backward, optim_step, save, submit

RUN = "s-9:train:0"
NAME = "final"
PATH = f"tinker://{RUN}/sampler_weights/{NAME}"
LORA = LoraSpec(rank=2, seed=7, train_unembed=False)


def submit_run(services: Services, base_model: str) -> None:
    begin(services, RUN, base_model, create(LORA))
    steps = (forward_backward(1), optim_step(), save(NAME, OpKind.SAVE_SAMPLER))
    for seq, step in enumerate(steps, start=1):
        submit(services, RUN, seq, step)


def wanted(folder: Path) -> Publishing:
    """With the adapter holder's command in this process."""

    def command(name: str, *arguments: str) -> dict[str, Any]:
        out = io.StringIO()
        with redirect_stdout(out):
            main([name, "--data-dir", str(folder.parent / "holder"), *arguments])
        found: dict[str, Any] = json.loads(out.getvalue())
        return found

    return Publishing(command, "unix:/none", "sampler", 1000, ExecutionPolicy.HE_REQUIRED)


def publish(services: Services, folder: Path, killer: Killer) -> None:
    """`tensafe adapters publish`, both sides under the same knife."""
    publishing.scrub = lambda given: given.ports.items.scrub()
    put_under_the_knife(killer)
    publishing.publish(services, PATH, wanted(folder))


def put_under_the_knife(killer: Killer) -> None:
    def killing(make: Callable[..., Any], port: str) -> Callable[..., Any]:
        return lambda *args, **given: killer.wrapped(make(*args, **given), FATAL[port])

    composition.SqliteItems = killing(composition.SqliteItems, "items")  # type: ignore[misc,assignment]
    composition.FileBlobs = killing(composition.FileBlobs, "blobs")  # type: ignore[misc,assignment]
