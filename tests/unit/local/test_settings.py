"""Settings: what the supervisor passes on is what the children read; what is wrong is named."""

from __future__ import annotations

from pathlib import Path

import pytest

from tensafe.contracts.errors import ConfigurationError
from tensafe.contracts.training import ModelInfo
from tensafe.local.deployment import choose_threads, deployment, inherited_environment
from tensafe.local.endpoint import Endpoint
from tensafe.local.settings import LocalSettings, read_settings

MODEL = ModelInfo(
    name="acme/tiny", path="a folder", arch="LlamaForCausalLM", vocab_size=8, max_context_tokens=9
)


def settings(**values: object) -> LocalSettings:
    return read_settings(data_dir=Path("data"), models=(MODEL,), **values)


def test_the_environment_of_a_child_reads_back_as_the_same_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    original = settings(
        environment="production",
        accept_local_key=True,
        device="cuda",
        dtype="bfloat16",
        threads=3,
        lease_s=12.5,
        key_file=Path("keys/key.json"),
    )
    assert original.key_file == Path("keys/key.json").absolute()
    for name, value in original.as_environment().items():
        monkeypatch.setenv(name, value)
    assert LocalSettings() == original  # type: ignore[call-arg]


def test_without_a_key_file_no_child_is_told_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TENSAFE_KEY_FILE", "")
    assert settings().key_file is None
    assert "TENSAFE_KEY_FILE" not in settings().as_environment()


@pytest.mark.parametrize(
    ("name", "value"),
    [("ENVIRONMENT", "staging"), ("DEVICE", "tpu"), ("THREADS", "-1"), ("LEASE_S", "soon"), ("MODELS", "{")],
)
def test_a_wrong_value_is_named_in_one_sentence(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(f"TENSAFE_{name}", value)
    with pytest.raises(ConfigurationError, match=f"(?i){name}") as caught:
        read_settings(data_dir=Path("data"))
    assert "\n" not in caught.value.message


def test_a_deployment_is_an_api_and_two_tasks_for_each_model() -> None:
    children = deployment(settings(threads=2), Endpoint(port=8123))
    api, trainer, sampler = children
    assert (api.name, api.queue) == ("api", None)
    assert api.environment["TENSAFE_PORT"] == "8123"
    assert api.environment["TENSAFE_HOST"] == "127.0.0.1"
    assert trainer.command[-3:] == ("tensafe_gpu.trainer", "--model", "acme/tiny")
    assert sampler.command[-3:] == ("tensafe_gpu.sampler", "--model", "acme/tiny")
    assert trainer.queue == trainer.name.replace("trainer-", "train-")
    assert sampler.queue == sampler.name.replace("sampler-", "sample-")
    assert trainer.environment["TENSAFE_THREADS"] == trainer.environment["OMP_NUM_THREADS"] == "2"
    assert trainer.environment["HF_HUB_OFFLINE"] == "1"


def test_credentials_of_the_operator_reach_no_child() -> None:
    given = {
        "PATH": "p",
        "HOME": "h",
        "CUDA_VISIBLE_DEVICES": "0",
        "TENSAFE_LOG_LEVEL": "INFO",
        "HF_HOME": "cache",
        "HF_TOKEN": "x",
        "AWS_SECRET_ACCESS_KEY": "x",
        "TENSAFE_API_KEY": "x",
        "TINKER_API_KEY": "x",
        "SSH_AUTH_SOCK": "x",
        "PYTHONSTARTUP": "x",
    }
    assert set(inherited_environment(given)) == {
        "PATH",
        "HOME",
        "CUDA_VISIBLE_DEVICES",
        "TENSAFE_LOG_LEVEL",
        "HF_HOME",
    }


@pytest.mark.parametrize(
    ("cores", "models", "limit", "threads"),
    [
        (2, 1, "", 2),
        (2, 2, "", 1),
        (1, 3, "", 1),
        (16, 2, "", 8),
        (16, 1, "4", 4),
        (16, 2, "4", 2),
        (4, 1, "x", 4),
    ],
)
def test_threads_share_the_cores_between_models(
    monkeypatch: pytest.MonkeyPatch, cores: int, models: int, limit: str, threads: int
) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(cores)))
    assert choose_threads(models, {"OMP_NUM_THREADS": limit} if limit else {}) == threads


@pytest.mark.parametrize(
    ("endpoint", "url"),
    [
        (Endpoint(port=8000), "http://127.0.0.1:8000"),
        (Endpoint("::1", 8000), "http://[::1]:8000"),
        (Endpoint("example.org", 443, Path("c"), Path("k")), "https://example.org:443"),
    ],
)
def test_urls(endpoint: Endpoint, url: str) -> None:
    assert endpoint.url == url


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "example.org"])  # noqa: S104 - none is bound
def test_an_address_that_leaves_the_machine_needs_tls(host: str) -> None:
    with pytest.raises(ConfigurationError, match="give --tls-cert and --tls-key, or listen on"):
        Endpoint(host, 8000).checked()


def test_half_a_certificate_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="go together"):
        Endpoint("127.0.0.1", 8000, tls_cert=Path("cert.pem")).checked()


def test_what_is_no_certificate_is_refused(tmp_path: Path) -> None:
    (tmp_path / "cert.pem").write_text("not a certificate")
    with pytest.raises(ConfigurationError, match="no PEM certificate"):
        Endpoint("127.0.0.1", 8000, tmp_path / "cert.pem", tmp_path / "cert.pem").checked()
