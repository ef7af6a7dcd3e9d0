"""Fixtures of everything that the template makes, on a moto process; a conftest imports them by name."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tensafe.services import Services
from tests.support.aws_stack import Stack, make_stack
from tests.support.moto_process import moto_process


@pytest.fixture(scope="session")
def stack() -> Iterator[Stack]:
    """One for each folder that imports it."""
    with moto_process() as endpoint:
        yield make_stack(endpoint)


@pytest.fixture(scope="module")
def services(stack: Stack) -> Iterator[Services]:
    with stack.services() as services:
        yield services
