"""chosen.py through `sam local start-api`: `make sam-local`, and `make aws-all` (TENSAFE_SAM_LOCAL=all)."""

from __future__ import annotations

import os

import pytest

from tests.integration.aws.sam_local.chosen import *  # noqa: F403 - with their fixtures

pytestmark = pytest.mark.skipif(
    os.environ.get("TENSAFE_SAM_LOCAL") is None,
    reason="`make sam-local` runs it on Docker, `make aws-all` without",
)
