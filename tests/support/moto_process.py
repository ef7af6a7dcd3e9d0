"""moto as a process of its own, repaired where its KMS hashes a digest again before it signs it.

`python -m tests.support.moto_process PORT`: a function under test is another process, and so must be what
it calls. With the repair a signature verifies with the public key, as on AWS.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tests.project_files import ROOT


def repair_digests() -> None:
    """Make moto sign a DIGEST as it is."""
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.asymmetric.utils import Prehashed
    from moto.kms.responses import KmsResponse
    from moto.kms.utils import ECDSAPrivateKey

    sign = KmsResponse.sign

    def sign_as_it_is(response: Any) -> str:
        if response._get_param("MessageType") != "DIGEST":
            return sign(response)
        hashed = ECDSAPrivateKey.sign

        def prehashed(key: Any, message: bytes, _: str) -> bytes:
            signed: bytes = key.private_key.sign(message, ec.ECDSA(Prehashed(hashes.SHA256())))
            return signed

        ECDSAPrivateKey.sign = prehashed
        try:
            return sign(response)
        finally:
            ECDSAPrivateKey.sign = hashed

    KmsResponse.sign = sign_as_it_is


@contextmanager
def moto_process() -> Iterator[str]:
    """The address of a new one, which ends with the block."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "tests.support.moto_process", str(port)]
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        deadline = time.monotonic() + 60
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                break
            except OSError:
                if process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError("moto does not start") from None
                time.sleep(0.05)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait(timeout=10)


def main() -> None:
    """Serve until killed; one request at a time, since moto keeps no locks."""
    from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import run_simple

    repair_digests()
    application = DomainDispatcherApplication(create_backend_app)
    run_simple("127.0.0.1", int(sys.argv[1]), application, threaded=False)


if __name__ == "__main__":
    main()
