"""How vLLM's processes log: JSON on standard error, and nothing that a request said.

vLLM dumps the sampling parameters of every running request, stop strings included, when a step fails;
its detokenizer logs token ids that it cannot decode. Both loggers are shut. Messages of exceptions are
written while the engine starts, when there are no requests yet, and never afterwards.
"""

from __future__ import annotations

import json
import logging
from typing import Final

from tensafe.observability import JsonFormatter

SHUT: Final = ("vllm.logging_utils.dump_input", "vllm.v1.engine.detokenizer")
"""A version that names them otherwise would write requests to the logs: the contract tests look for them."""


class EngineFormatter(JsonFormatter):
    """JsonFormatter that adds an exception's message until `requests_may_come`."""

    _requests_may_come = False

    @classmethod
    def requests_may_come(cls) -> None:
        """From now on messages of exceptions may quote requests and are left out."""
        cls._requests_may_come = True

    def format(self, record: logging.LogRecord) -> str:
        line = super().format(record)
        if self._requests_may_come or not record.exc_info or record.exc_info[1] is None:
            return line
        return json.dumps(json.loads(line) | {"reason": str(record.exc_info[1])}, separators=(",", ":"))


def logging_configuration(level: str = "WARNING") -> bytes:
    """The JSON file that VLLM_LOGGING_CONFIG_PATH names (a logging.config.dictConfig)."""
    formatter = f"{EngineFormatter.__module__}.{EngineFormatter.__qualname__}"
    configuration = {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {"json": {"()": formatter, "role": "sampler-engine"}},
        "handlers": {
            "stderr": {
                "class": "logging.StreamHandler",
                "formatter": "json",
                "stream": "ext://sys.stderr",
            }
        },
        "loggers": {
            "vllm": {"handlers": ["stderr"], "level": level, "propagate": False},
            **{name: {"level": "CRITICAL", "handlers": [], "propagate": False} for name in SHUT},
        },
    }
    return json.dumps(configuration).encode()
