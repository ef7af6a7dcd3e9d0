"""The trace that Lambda itself keeps of the event in hand (template: `Tracing: Active`), by X-Ray's header.

`_X_AMZN_TRACE_ID` is set anew for each event: `Root=1-5759e988-bd862e3fe1be46a994272793;Parent=...;Sampled=1`
"""

from __future__ import annotations

import os
import re
from typing import Final

_VARIABLE: Final = "_X_AMZN_TRACE_ID"
_SAMPLED: Final = re.compile(
    r"Root=1-([0-9a-f]{8})-([0-9a-f]{24});Parent=([0-9a-f]{16});(?:.*;)?Sampled=1(?:;.*)?"
)


def trace_id() -> str | None:
    """X-Ray's id of the trace, for log lines; None outside Lambda, and where tracing is off."""
    root = os.environ.get(_VARIABLE, "").partition(";")[0]
    return root.removeprefix("Root=") or None


def traceparent() -> str | None:
    """The function's segment as W3C Trace Context writes it, if X-Ray keeps it.

    An X-Ray id without its version and dashes is a W3C trace id, which is how OpenTelemetry tells X-Ray.
    """
    found = _SAMPLED.fullmatch(os.environ.get(_VARIABLE, ""))
    return f"00-{found[1]}{found[2]}-{found[3]}-01" if found else None
