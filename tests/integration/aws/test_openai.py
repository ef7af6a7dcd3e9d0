"""service/test_openai.py over template.yaml, but for what has the mark `one_machine`."""

from __future__ import annotations

from tests.integration.service.test_openai import *  # noqa: F403 - with their fixtures
