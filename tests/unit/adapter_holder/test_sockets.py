"""What `--listen` names, and what is said of anything else."""

from __future__ import annotations

from pathlib import Path

import pytest

from tensafe.contracts.errors import ConfigurationError
from tensafe_gpu.adapter_holder.sockets import listen_address, unix_listener
from tensafe_gpu.helora.tls import TlsFiles, TlsTexts, client_context, server_context, server_context_of
from tests.support.certificates import Authority, closed_key


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("unix:/run/s", Path("/run/s")),
        ("unix:s", Path("s")),
        ("unix:/" + 106 * "x", Path("/" + 106 * "x")),
        ("tcp:0.0.0.0:7443", ("0.0.0.0", 7443)),  # noqa: S104 - it is parsed
        ("tcp:host:1", ("host", 1)),
        ("tcp:::1:65535", ("::1", 65535)),
    ],
)
def test_an_address_is_a_path_or_a_host_and_a_port(text: str, address: object) -> None:
    assert listen_address(text) == address


@pytest.mark.parametrize(
    "text",
    [
        "", "unix:", "tcp:", "tcp:host", "tcp:host:", "tcp::7443", "tcp:host:https", "tcp:host:0",
        "tcp:host:65536", "tcp:host:99999", "tcp:host:-1", "tcp:host:7443 ", "tcp:host:\u0667\u0668",
        "tcp:host:" + 5000 * "9", "tcp:host.:7443", "udp:host:1", "/run/s",
    ],
)  # fmt: skip
def test_anything_else_is_refused_with_the_form(text: str) -> None:
    with pytest.raises(
        ConfigurationError, match=r"unix:PATH or tcp:HOST:PORT with a port of 1 to 65535"
    ) as it:
        listen_address(text)
    assert it.value.field == "listen"
    assert len(it.value.message) < 400


@pytest.mark.parametrize("name", [107 * "x", 53 * "\u00e9" + "x"], ids=["ascii", "by-bytes"])
def test_a_path_that_is_too_long_is_refused_with_the_limit(name: str) -> None:
    with pytest.raises(ConfigurationError, match="at most 107 bytes, and this one has 108"):
        listen_address(f"unix:/{name}")


def test_the_limit_is_the_system_s(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = listen_address("unix:" + 107 * "x")
    assert isinstance(path, Path)
    unix_listener(path).close()
    with pytest.raises(ConfigurationError, match="too long"):
        unix_listener(Path(108 * "x"))


def test_a_key_with_a_pass_phrase_is_refused_by_both_ends(tmp_path: Path) -> None:
    files = Authority(tmp_path).issue("x")
    closed_key(files.key)
    texts = TlsTexts(*(path.read_text() for path in (files.certificate, files.key, files.authority)))
    for make in (
        lambda: server_context(files),
        lambda: client_context(TlsFiles(files.certificate, files.key, files.authority)),
        lambda: server_context_of(texts),
    ):
        with pytest.raises(ConfigurationError, match="has a pass phrase, and such keys are not taken") as it:
            make()
        assert it.value.field == "tls"
