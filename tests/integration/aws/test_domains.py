"""service/test_domains.py over template.yaml, but for what has the mark `one_machine`."""

from __future__ import annotations

from tests.integration.service.test_domains import *  # noqa: F403 - with their fixtures
