"""The whole of it: vLLM as the key holder, an adapter holder in its own process, and SEAL between them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tensafe.contracts.errors import HeRefused
from tensafe.contracts.execution import ExecutionMode
from tensafe.contracts.sampling import SampleResult
from tensafe_gpu.adapter_holder.store import AdapterStore
from tensafe_gpu.sampler.private.adapter import PrivateAdapter
from tests.integration.sampler.conftest import AdapterFactory, Harness, Reference
from tests.integration.sampler.test_private import NEW, greedy, prompts, tokens_of
from tests.support.quantised_reference import QuantisedReference

pytestmark = pytest.mark.slow

COMMAND = (sys.executable, "-m", "tensafe_gpu.adapter_holder")
MODULES = ("q_proj", "k_proj", "v_proj", "o_proj")


class HolderProcess:
    """`python -m tensafe_gpu.adapter_holder` with one published adapter."""

    def __init__(self, data_dir: Path, peft: Path) -> None:
        self.data_dir, self.socket = data_dir, data_dir / "s"
        self.command("init")
        published = self.command(
            "publish", "--name", "E", "--peft", str(peft), "--base-model", "tiny", "--tenants", "t",
            "--tokens-per-site", "1000",
        )  # fmt: skip
        self.version = str(published["version"])
        self.process = self.serve()

    def command(self, name: str, *arguments: str) -> dict[str, object]:
        done = subprocess.run(
            [*COMMAND, name, "--data-dir", str(self.data_dir), *arguments], capture_output=True, check=True
        )
        return json.loads(done.stdout)  # type: ignore[no-any-return]

    def serve(self) -> subprocess.Popen[bytes]:
        self.socket.unlink(missing_ok=True)
        listen = f"unix:{self.socket}"
        arguments = [*COMMAND, "serve", "--data-dir", str(self.data_dir), "--listen", listen]
        process = subprocess.Popen(arguments)
        while not self.socket.exists():
            assert process.poll() is None
            time.sleep(0.05)
        return process

    def kill(self) -> None:
        os.kill(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def sites(self) -> dict[str, dict[str, object]]:
        """The integers that it serves in this epoch."""
        store = AdapterStore(self.data_dir)
        adapter = store.load("E").adapter
        store.close()
        return {
            name: {
                "x_bound": site.shape.x_bound,
                "modules": {
                    module.name: (site.a[site.shape.rows(module.name)], site.b[module.name])
                    for module in site.shape.modules
                },
            }
            for name, site in adapter.sites.items()
        }


@pytest.fixture(scope="module")
def holder(make_adapter: AdapterFactory, tmp_path_factory: pytest.TempPathFactory) -> Iterator[HolderProcess]:
    _, folder = make_adapter("E", seed=11, modules=MODULES)
    process = HolderProcess(tmp_path_factory.mktemp("holder"), folder)
    yield process
    process.kill()


@pytest.fixture
def adapter(holder: HolderProcess) -> PrivateAdapter:
    reached = {
        "address": f"unix:{holder.socket}",
        "tenant": "t",
        "adapter": "E",
        "version": holder.version,
        "burn_log": str(holder.data_dir / "burned.db"),
    }
    return PrivateAdapter("E", holder.version, reached)


def test_he_01_encrypted_tokens_are_those_of_the_integers_in_the_clear(
    harness: Harness, holder: HolderProcess, adapter: PrivateAdapter, reference: Reference
) -> None:
    asked = prompts(21, 8)
    results = harness.together(
        *(harness.engine.sample(greedy(p), adapter if i % 2 else None) for i, p in enumerate(asked))
    )
    quantised = QuantisedReference(harness.model_path)
    for index, (prompt, result) in enumerate(zip(asked, results, strict=True)):
        base = reference.greedy(prompt, None, NEW)
        if not index % 2:
            assert tokens_of(result) == base
            continue
        with quantised.adapted(holder.sites()):
            assert tokens_of(result) == quantised.greedy(prompt, NEW) != base
        assert isinstance(result, SampleResult)
        assert result.execution is not None
        assert result.execution.mode is ExecutionMode.HE
        assert result.execution.evaluated == result.execution.tokens * 4


def test_he_01_a_killed_adapter_holder_is_refused_and_resumes(
    harness: Harness, holder: HolderProcess, adapter: PrivateAdapter
) -> None:
    prompt = (31, 32, 33)
    before = harness.run(harness.engine.sample(greedy(prompt), adapter))
    holder.kill()
    with pytest.raises(HeRefused) as refused:
        harness.run(harness.engine.sample(greedy(prompt), adapter))
    assert refused.value.code == "he_adapter_holder_absent"
    assert harness.engine.healthy
    holder.process = holder.serve()
    assert tokens_of(harness.run(harness.engine.sample(greedy(prompt), adapter))) == tokens_of(before)


def test_he_01_a_spent_budget_is_refused_and_a_new_epoch_serves_again(
    harness: Harness, holder: HolderProcess, adapter: PrivateAdapter
) -> None:
    async def spend() -> None:
        for start in range(5, 60):
            await harness.engine.sample(greedy(tuple(range(start, start + 60)), 30), adapter)

    with pytest.raises(HeRefused) as refused:
        harness.run(spend())
    assert refused.value.code == "he_budget_spent"
    holder.command("rotate", "--name", "E")
    result = harness.run(harness.engine.sample(greedy((41, 42, 43)), adapter))
    assert result.execution is not None
    assert result.execution.epoch == 2
    quantised = QuantisedReference(harness.model_path)
    with quantised.adapted(holder.sites()):
        assert tokens_of(result) == quantised.greedy((41, 42, 43), NEW)
