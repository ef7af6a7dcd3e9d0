"""Each call of AWS as a subsegment: botocore alone is patched, once for a process.

The SDK's own patch of botocore takes a refused condition for a fault and a connection that failed for none,
and records the message of what was raised, and the keys of objects.
"""

from __future__ import annotations

import functools
import secrets
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any, Final

from aws_xray_sdk.core import xray_recorder
from botocore.client import BaseClient
from botocore.exceptions import ClientError

_NAMES: Final = {"TableName": "table_name", "Bucket": "bucket_name", "QueueUrl": "queue_url"}
"""Of a call's parameters: what it went to."""


@functools.cache
def trace_calls() -> None:
    """From now on; a second time changes nothing."""
    call = BaseClient._make_api_call

    @functools.wraps(call)
    def traced(client: Any, operation: str, parameters: Mapping[str, Any]) -> Any:  # noqa: ANN401 - botocore's
        if not xray_recorder.is_sampled():
            return call(client, operation, parameters)
        subsegment = xray_recorder.begin_subsegment(_service(client), "aws")
        told: dict[str, Any] = {"operation": operation, "region": client.meta.region_name}
        told |= {ours: parameters[theirs] for theirs, ours in _NAMES.items() if theirs in parameters}
        subsegment.set_aws(told)
        try:
            answer = call(client, operation, parameters)
        except ClientError as error:  # its status says whose fault it was
            _answered(subsegment, error.response)
            subsegment.cause = _cause(error.response.get("Error", {}).get("Code"), remote=True)
            raise
        except Exception as error:
            subsegment.add_fault_flag()
            subsegment.cause = _cause(type(error).__name__, remote=False)
            raise
        else:
            _answered(subsegment, answer)
            return answer
        finally:
            xray_recorder.end_subsegment()

    BaseClient._make_api_call = traced


def _service(client: Any) -> str:  # noqa: ANN401 - botocore's
    return str(client.meta.service_model.endpoint_prefix)


def _answered(subsegment: Any, answer: Mapping[str, Any]) -> None:  # noqa: ANN401 - the SDK's
    about = answer.get("ResponseMetadata", {})
    subsegment.put_http_meta("status", about.get("HTTPStatusCode"))
    if "RequestId" in about:
        subsegment.aws["request_id"] = about["RequestId"]


def _cause(kind: str | None, *, remote: bool) -> dict[str, Any]:
    """As the SDK holds an exception, without its message and its stack."""
    return {"exceptions": [SimpleNamespace(id=secrets.token_hex(8), type=kind, remote=remote)]}
