"""Who follows a runbook on the emulator's deployment: `tensafe`, `aws` and `curl`, run for real.

`aws` is the call of boto3 that it would make. The logs of tasks, which ECS would send to CloudWatch, are the
files that their processes write.
"""

from __future__ import annotations

import json
import re
import time
from typing import Any, Final

import httpx
import pytest
from typer.testing import CliRunner

from tensafe.cli.app import app
from tests.support.aws_service import AwsService
from tests.support.aws_words import called, matching

_TASKS: Final = ("trainer", "sampler")
_NOT_HERE: Final = ("adapter-holder",)
"""Groups of infra/tasks.yaml whose task is not run here."""
_UNIT_S: Final = {"s": 1, "m": 60, "h": 3600}


class AwsOperator:
    """Implements `Operator`."""

    def __init__(self, service: AwsService) -> None:
        self._service = service

    def run(self, words: list[str]) -> Any:
        """What `tensafe` prints as JSON, the answer of `aws`, the text of `aws logs tail` and `curl`."""
        if words[:3] == ["aws", "logs", "tail"]:
            return self._tailed(words[3], dict(zip(words[4::2], words[5::2], strict=True)))
        if words[0] == "aws":
            client = self._service.stack.emulator.client(words[1])
            return called(client, words[2], words[3:])
        if words[0] == "tensafe":
            return self._tensafe(words[1:])
        assert words[:2] == ["curl", "-s"], words
        return httpx.get(words[2], timeout=60).text

    def _tensafe(self, words: list[str]) -> Any:
        with pytest.MonkeyPatch.context() as patch:
            for name, value in self._service.stack.environment().items():
                patch.setenv(name, value)
            patch.delenv("TENSAFE_DATA_DIR", raising=False)
            done = CliRunner().invoke(app, [*words, "--json"])
        assert done.exit_code == 0, (words, done.stdout, done.stderr)
        return json.loads(done.stdout)

    def _tailed(self, group: str, options: dict[str, str]) -> str:
        role, pattern = group.removeprefix("/tensafe/"), options.pop("--filter-pattern", None)
        since = re.fullmatch(r"(\d+)([smh])", options.pop("--since"))
        assert since is not None
        assert options == {}
        if role in _NOT_HERE:
            return ""
        if role in _TASKS:
            lines = self._service.stack.tasks.log(role).read_text().splitlines()
            return "\n".join(matching(lines, pattern))
        since_ms = int((time.time() - int(since[1]) * _UNIT_S[since[2]]) * 1000)
        return tailed(self._service, role, since_ms, pattern)


def tailed(service: AwsService, role: str, since_ms: int, pattern: str | None = None) -> str:
    """What a function has logged since, as far as the filter pattern lets it through.

    The pattern is worked out here: the emulator lets everything through one that looks at JSON.
    """
    logs = service.stack.emulator.client("logs")
    pages = logs.get_paginator("filter_log_events").paginate(
        logGroupName=f"/tensafe/{role}", startTime=since_ms
    )
    lines = [line for page in pages for one in page["events"] for line in one["message"].splitlines()]
    return "\n".join(matching(lines, pattern))
