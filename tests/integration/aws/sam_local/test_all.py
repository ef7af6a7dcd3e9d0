"""What test_shared.py has, through `sam local start-api`: `make sam-local` and `make aws-all`."""

from __future__ import annotations

import os

import pytest

from tests.integration.aws.test_shared import *  # noqa: F403 - with their fixtures

pytestmark = pytest.mark.skipif(
    os.environ.get("TENSAFE_SAM_LOCAL") is None and os.environ.get("TENSAFE_AWS") != "all",
    reason="`make sam-local` runs it on Docker, `make aws-all` without",
)
