"""service/test_cookbook.py over template.yaml, but for what has the mark `one_machine`."""

from __future__ import annotations

from tests.integration.service.test_cookbook import *  # noqa: F403 - with their fixtures
