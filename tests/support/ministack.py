"""The emulator of AWS for tests: skipped with the reason where it was not made."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import httpx
import pytest

from tools.aws_local.deployment import Deployment, deploy
from tools.aws_local.emulator import LOOPBACK, Emulator, NotInstalled, running_ministack

__all__ = ["ON_EMULATOR", "Deployment", "Emulator", "deploy", "emulator_of_aws", "gap"]

URL: Final = "TENSAFE_EMULATOR_URL"
"""Names the variable with the address of an emulator that runs already, LocalStack say; it is emptied."""
HOST: Final = "TENSAFE_EMULATOR_HOST"
"""Names the variable with the address that a ministack of the test's own listens on."""
ON_EMULATOR: Final = pytest.param("emulator", marks=(pytest.mark.slow, pytest.mark.emulator))
"""A parameter for what runs over the emulator too."""


@contextmanager
def emulator_of_aws(folder: Path, address: str = LOOPBACK) -> Iterator[Emulator]:
    """The one at TENSAFE_EMULATOR_URL if that is set, else a ministack of the test's own.

    It listens on `address`, unless TENSAFE_EMULATOR_HOST names another.
    """
    url = os.environ.get(URL)
    if url is not None:
        ministack = is_ministack()
        reset = "_ministack/reset" if ministack else "_localstack/state/reset"
        httpx.post(f"{url}/{reset}", timeout=60).raise_for_status()
        domain = "localhost" if ministack else "localhost.localstack.cloud"
        parts = urlsplit(url)
        if parts.hostname is None or parts.port is None:
            raise pytest.UsageError(f"{URL} is no http://ADDRESS:PORT: {url}")
        yield Emulator(parts.port, folder / "none.log", domain, parts.hostname)
        return
    try:
        started = running_ministack(folder, os.environ.get(HOST, address))
        emulator = started.__enter__()
    except NotInstalled as absent:
        pytest.skip(str(absent))
    try:
        yield emulator
    finally:
        started.__exit__(None, None, None)


@cache
def is_ministack() -> bool:
    """Whether tests reach ministack, be it their own or at TENSAFE_EMULATOR_URL, and no other emulator."""
    url = os.environ.get(URL)
    return url is None or httpx.get(f"{url}/_ministack/health", timeout=10).status_code == 200


def gap(reason: str, *, raises: type[BaseException] = AssertionError) -> pytest.MarkDecorator:
    """A strict xfail where ministack deviates from AWS; any other emulator is held to what AWS does."""
    return pytest.mark.xfail(is_ministack(), raises=raises, strict=True, reason=f"ministack: {reason}")
