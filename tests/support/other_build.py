"""`python -m tests.support.other_build WHICH serve ...`: an adapter holder that a sampler must refuse.

announces   it takes our greeting, and announces other parameters
speaks      its frames are of another version
offers      it has another version of the adapter than was asked for
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from tensafe_gpu.adapter_holder import service
from tensafe_gpu.adapter_holder.commands import main
from tensafe_gpu.helora import frames
from tensafe_gpu.helora.messages import Welcome

OTHER = "bfv/n2048/q54/t20/none/tc0/1"
WELCOME = Welcome.of


def speaks() -> None:
    frames.VERSION += 1  # type: ignore[misc]


def announces() -> None:
    welcomes_with(lambda info: {"parameters": OTHER})


def offers() -> None:
    welcomes_with(lambda info: {"version": info.version + 1})


def welcomes_with(changed: Callable[[Any], dict[str, Any]]) -> None:
    def of(info: Any, *more: Any) -> Welcome:
        return WELCOME(info, *more).model_copy(update=changed(info))

    service.Welcome.of = of  # type: ignore[method-assign,assignment]


CODES = {
    "announces": "he_parameters_refused",
    "speaks": "he_version_mismatch",
    "offers": "he_version_mismatch",
}
"""What a request is refused with."""

if __name__ == "__main__":
    {"announces": announces, "speaks": speaks, "offers": offers}[sys.argv.pop(1)]()
    main()
