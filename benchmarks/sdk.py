"""The official SDK against a benchmark's service, in this process."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from benchmarks.service import Deployed

if TYPE_CHECKING:
    import tinker


@contextmanager
def sdk_client(service: Deployed) -> Iterator[tinker.ServiceClient]:
    """An unmodified client; the SDK reads where the service is from the environment."""
    os.environ |= {"TINKER_BASE_URL": service.url, "TINKER_API_KEY": service.key, "HF_HUB_OFFLINE": "1"}
    import tinker  # noqa: PLC0415 - reads the environment, and takes a second to import

    client = tinker.ServiceClient()
    try:
        yield client
    finally:
        client.close("success").result()
