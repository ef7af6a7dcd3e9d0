"""The emulator of AWS for tests: skipped with the reason where it was not made."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tools.aws_local.deployment import Deployment, deploy
from tools.aws_local.emulator import Emulator, NotInstalled, running_ministack

__all__ = ["Deployment", "Emulator", "deploy", "emulator_of_aws"]


@contextmanager
def emulator_of_aws(folder: Path) -> Iterator[Emulator]:
    """LocalStack at TENSAFE_EMULATOR_URL if that is set, else a ministack of the test's own."""
    url = os.environ.get("TENSAFE_EMULATOR_URL")
    if url is not None:
        yield Emulator(int(url.rpartition(":")[2]), folder / "none.log", "localhost.localstack.cloud")
        return
    try:
        started = running_ministack(folder)
        emulator = started.__enter__()
    except NotInstalled as absent:
        pytest.skip(str(absent))
    try:
        yield emulator
    finally:
        started.__exit__(None, None, None)
