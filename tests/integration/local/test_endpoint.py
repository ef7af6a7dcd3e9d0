"""Where the API listens: a port that is taken, TLS with exactly the given certificate, the parent's death."""

from __future__ import annotations

import datetime
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from tensafe.contracts.errors import ConfigurationError
from tensafe.local.deployment import deployment
from tensafe.local.endpoint import Endpoint
from tensafe.local.settings import LocalSettings
from tests.integration.local.conftest import ROOT, until
from tests.support.model_folders import model_folder


def certificate(folder: Path) -> tuple[Path, Path]:
    """A self-signed certificate for another name, and its key."""
    folder.mkdir()
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "tensafe.example.org")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(hours=1))
        .sign(key, hashes.SHA256())
    )
    (folder / "cert.pem").write_bytes(made.public_bytes(serialization.Encoding.PEM))
    (folder / "key.pem").write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
    return folder / "cert.pem", folder / "key.pem"


@pytest.fixture
def https(data_dir: Path, tmp_path: Path) -> Iterator[Endpoint]:
    """The API itself over TLS, without a model."""
    endpoint = Endpoint("127.0.0.1", 0, *certificate(tmp_path / "own")).checked()
    (api,) = deployment(LocalSettings(data_dir=data_dir), endpoint)
    process = subprocess.Popen(api.command, env={**api.environment})
    yield endpoint
    process.terminate()
    process.wait(timeout=20)


def test_readiness_is_asked_over_tls_of_exactly_this_certificate(https: Endpoint, tmp_path: Path) -> None:
    until(https.answers_ready)
    other, other_key = certificate(tmp_path / "other")
    assert not replace(https, tls_cert=other, tls_key=other_key).answers_ready()
    assert not Endpoint(https.host, https.port).answers_ready()


def test_a_key_of_another_certificate_is_refused(tmp_path: Path) -> None:
    cert, _ = certificate(tmp_path / "one")
    _, key = certificate(tmp_path / "two")
    with pytest.raises(ConfigurationError, match="no PEM certificate with its unencrypted key"):
        Endpoint("127.0.0.1", 0, cert, key).checked()


def test_another_address_is_allowed_with_tls(tmp_path: Path) -> None:
    endpoint = Endpoint("0.0.0.0", 0, *certificate(tmp_path / "one")).checked()  # noqa: S104 - bound for a moment
    assert endpoint.port > 0
    assert endpoint.url == f"https://{socket.gethostname()}:{endpoint.port}"


def test_a_port_that_is_taken_is_one_clear_sentence(data_dir: Path, tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "model")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = subprocess.run(
            [
                sys.executable,
                "-c",
                "from tensafe.cli import main; main()",
                "up",
                "--data-dir",
                str(data_dir),
                "--port",
                str(port),
                "--model",
                f"tiny={folder}",
            ],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    assert done.returncode == 1
    assert done.stderr == f"tensafe: port {port} on 127.0.0.1 is in use; choose another with --port\n"
    assert done.stdout == ""


def test_a_port_that_was_just_left_is_free() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        client = socket.create_connection(("127.0.0.1", port))
        accepted, _ = server.accept()
        accepted.close()  # the server's side closes first: its port is in TIME_WAIT now
        client.close()
    assert Endpoint("127.0.0.1", port).checked().port == port


def test_a_child_whose_supervisor_died_while_it_was_importing_ends() -> None:
    code = "from tensafe.local.process import die_with_parent; die_with_parent(); print('lives')"
    for pid, lives in (("1", False), (str(os.getpid()), True), ("", True)):
        done = subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "TENSAFE_SUPERVISOR_PID": pid},
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert (done.stdout == "lives\n") is lives
        assert (done.returncode == 0) is lives
