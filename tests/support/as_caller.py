"""A process of a stack with credentials of its own, so that what it calls is known by them."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import boto3
import pytest

from tensafe.cloud import composition
from tensafe.cloud.settings import CloudSettings, read_cloud_settings
from tensafe.services import Services
from tensafe.storage.aws_clients import aws_client
from tests.support.aws_stack import Stack

_T = TypeVar("_T")


def made_as(caller: str, stack: Stack, make: Callable[[CloudSettings], _T]) -> _T:
    """What a function or task of the stack works with; every call has `caller` as its access key."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (stack.environment | {"AWS_ACCESS_KEY_ID": caller}).items():
            patch.setenv(name, value)
        patch.setattr(boto3, "DEFAULT_SESSION", None)
        # A client takes the credentials that are there when it is made: here and not at its first use.
        patch.setattr(composition, "LazyClient", aws_client)
        return make(read_cloud_settings())


def services_as(caller: str, stack: Stack) -> Services:
    """The services of such a process."""
    return made_as(caller, stack, composition.cloud_services)
