"""The sampler and an adapter holder over TCP, each with a certificate, in processes of their own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tensafe.contracts.errors import HeRefused
from tensafe.contracts.execution import ExecutionMode
from tensafe_gpu.helora.tls import TlsFiles
from tensafe_gpu.sampler.private.adapter import PrivateAdapter
from tests.integration.sampler.conftest import AdapterFactory, Harness
from tests.support.certificates import Authority
from tests.support.holder_process import HolderProcess
from tests.support.private_requests import NEW, greedy, tokens_of
from tests.support.quantised_reference import QuantisedReference, served_integers

pytestmark = pytest.mark.slow

PROMPT = (61, 62, 63)
TENANT = "sampler-1"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tls")


@pytest.fixture(scope="module")
def authority(folder: Path) -> Authority:
    return Authority(folder)


@pytest.fixture(scope="module")
def holder(folder: Path, authority: Authority, make_adapter: AdapterFactory) -> Iterator[HolderProcess]:
    _, peft = make_adapter("S", seed=15, modules=("q_proj", "o_proj"))
    process = HolderProcess(folder / "holder", tls=authority.issue("holder"))
    process.command(
        "publish",
        *("--name", "S", "--peft", str(peft), "--base-model", "tiny", "--tenants", TENANT),
        *("--tokens-per-site", "1000"),
    )
    yield process
    process.kill()


def held(holder: HolderProcess, files: TlsFiles, trusted: Authority) -> PrivateAdapter:
    where = {
        "address": holder.address,
        "tenant": TENANT,
        "adapter": "S",
        "version": "1",
        "burn_log": str(holder.data_dir / "burned.db"),
        "tls_cert": str(files.certificate),
        "tls_key": str(files.key),
        "tls_ca": str(trusted.path),
    }
    return PrivateAdapter("S", "1", where)


def test_he_01_tokens_over_mutual_tls_are_those_of_the_integers(
    harness: Harness, holder: HolderProcess, authority: Authority
) -> None:
    adapter = held(holder, authority.issue(TENANT), authority)
    result = harness.run(harness.engine.sample(greedy(PROMPT), adapter))
    assert result.execution is not None
    assert result.execution.mode is ExecutionMode.HE
    quantised = QuantisedReference(harness.model_path)
    base = harness.run(harness.engine.sample(greedy(PROMPT)))
    with quantised.adapted(served_integers(holder.data_dir, "S")):
        assert tokens_of(result) == quantised.greedy(PROMPT, NEW) != tokens_of(base)


@pytest.mark.parametrize("wrong", ["name", "expired", "stranger", "other holder"])
def test_he_01_whoever_cannot_prove_who_they_are_gets_no_token(
    harness: Harness, holder: HolderProcess, authority: Authority, folder: Path, wrong: str
) -> None:
    """Another tenant's certificate, one of yesterday, one of another authority; a holder that is not ours."""
    (folder / wrong).mkdir()
    stranger = Authority(folder / wrong, "stranger")
    files, trusted = {
        "name": (authority.issue("sampler-2"), authority),
        "expired": (authority.issue(TENANT, days=-1), authority),
        "stranger": (stranger.issue(TENANT), authority),
        "other holder": (authority.issue(TENANT), stranger),
    }[wrong]
    with pytest.raises(HeRefused) as refused:
        harness.run(harness.engine.sample(greedy(PROMPT), held(holder, files, trusted)))
    assert refused.value.code == ("he_not_allowed" if wrong == "name" else "he_certificate_refused")
    assert harness.engine.healthy
