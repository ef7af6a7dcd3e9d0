"""Who calls what on AWS, as the requests of any process come over HTTP: by the role that signed them.

moto is a server in this process. What assumes a role through STS is known by its ARN from then on, everything
else by its access key. Nothing is refused: IAM is what tests hold the calls to.
"""

from __future__ import annotations

import io
import json
import re
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import parse_qs

import boto3
import pytest
from moto.kms.responses import KmsResponse
from moto.moto_api._internal import moto_api_backend
from moto.moto_server.werkzeug_app import DomainDispatcherApplication

from tests.contract.emulators import moto_on_loopback
from tests.support.key_policies import Asked, of_context
from tests.support.moto_process import repair_digests
from tests.support.operator_calls import Call, Recorded, bucket_id

_SERVICES: Final = {"DynamoDB_20120810": "dynamodb", "AmazonSQS": "sqs", "TrentService": "kms"}
_KEY_ID: Final = re.compile(r"Credential=([^/,]+)/[^/]+/[^/]+/([a-z0-9-]+)/aws4_request")
_OF_METHODS: Final = {
    "GET": "GetObject",
    "HEAD": "HeadObject",
    "PUT": "PutObject",
    "DELETE": "DeleteObject",
}
_PLAIN: Final = re.compile(
    r"(x-amz-|x-id$|response-|list-type$|prefix$|max-keys$|encoding-type$)", re.IGNORECASE
)
"""Names in a query that leave the operation what its method says; `?tagging` is another one."""


@dataclass(frozen=True, slots=True)
class KeyUse:
    """A use of a key for somebody's own, not by S3 or DynamoDB for them."""

    key: str
    action: str
    context: Mapping[str, str]
    asked: Asked
    """The condition keys of a key's policy."""


@dataclass(slots=True)
class OfCaller:
    """What one caller did."""

    recorded: Recorded = field(default_factory=Recorded)
    uses: list[KeyUse] = field(default_factory=list)
    puts: set[tuple[str, str]] = field(default_factory=set)
    """The bucket of each written object, and the key that the request names for it."""

    @property
    def calls(self) -> set[Call]:
        """Without those of KMS, which key policies speak of."""
        return {one for one in self.recorded.calls if not one[0].startswith("kms:")}


class WireCalls:
    """Everything that reached moto so far."""

    def __init__(self, endpoint: str) -> None:
        self.endpoint = endpoint
        self._callers: dict[str, OfCaller] = defaultdict(OfCaller)
        self._roles: dict[str, str] = {}

    def of(self, caller: str) -> OfCaller:
        """By the last part of a role's ARN, or by an access key."""
        return self._callers[caller]

    def callers(self) -> set[str]:
        return set(self._callers)

    def forget(self) -> None:
        """What was called; who assumed a role stays known."""
        self._callers.clear()

    def note(self, environ: Mapping[str, Any], body: bytes) -> str | None:
        """One request; the ARN of the role that it assumes, if that is what it asks for."""
        query = parse_qs(environ.get("QUERY_STRING", ""), keep_blank_values=True)
        presigned = "".join(f"Credential={one}" for one in query.get("X-Amz-Credential", ()))
        found = _KEY_ID.search(environ.get("HTTP_AUTHORIZATION", presigned))
        if found is None:
            return None  # moto's own pages
        # Whoever follows a presigned URL does so with the rights of whoever signed it.
        caller, service = self._callers[self._roles.get(found[1], found[1])], found[2]
        target = environ.get("HTTP_X_AMZ_TARGET", "")
        if target:
            name, _, operation = target.partition(".")
            self._note_json(caller, _SERVICES.get(name, name), operation, json.loads(body))
        elif service == "s3":
            self._note_s3(caller, environ, query)
        else:
            asked = parse_qs(body.decode())
            caller.recorded.note(service, asked["Action"][0], {})
            if asked["Action"] == ["AssumeRole"]:
                return asked["RoleArn"][0]
        return None

    def assumed(self, role: str, answer: bytes) -> None:
        """STS has given these credentials for the role."""
        found = re.search(rb"<AccessKeyId>([^<]+)</AccessKeyId>", answer)
        if found is not None:
            self._roles[found[1].decode()] = role.rpartition("/")[2]

    @staticmethod
    def _note_json(caller: OfCaller, service: str, operation: str, given: Mapping[str, Any]) -> None:
        caller.recorded.note(service, operation, given)
        if service == "kms":
            context = given.get("EncryptionContext", {})
            asked = of_context(context) | {
                f"kms:{name}": given[name] for name in ("MessageType", "SigningAlgorithm") if name in given
            }
            caller.uses.append(KeyUse(given.get("KeyId", ""), f"kms:{operation}", context, asked))

    @staticmethod
    def _note_s3(caller: OfCaller, environ: Mapping[str, Any], query: Mapping[str, Any]) -> None:
        _, bucket, *rest = environ["PATH_INFO"].split("/", 2)
        unknown = [name for name in query if not _PLAIN.match(name)]
        if unknown:
            raise ValueError(f"an operation of S3 that is not known here: {unknown}")
        operation = _OF_METHODS[environ["REQUEST_METHOD"]] if rest and rest[0] else "ListObjectsV2"
        caller.recorded.note("s3", operation, {"Bucket": bucket})
        if operation == "PutObject":
            key = environ.get("HTTP_X_AMZ_SERVER_SIDE_ENCRYPTION_AWS_KMS_KEY_ID", "")
            caller.puts.add((bucket_id(bucket), key))


@contextmanager
def recording_moto(receive_s: float = 0.1) -> Iterator[WireCalls]:
    """moto on loopback until the block ends, with a record of every request that is signed.

    Its KMS signs digests as they are. A receive waits `receive_s`, and while it does others are answered.
    """
    with pytest.MonkeyPatch.context() as patch, moto_on_loopback() as endpoint:
        moto_api_backend.reset()  # this process may have had others, which it shares its stores with
        patch.setattr(boto3, "DEFAULT_SESSION", None)  # and remembers their credentials
        patch.setattr(KmsResponse, "sign", KmsResponse.sign)  # so that it comes back
        repair_digests()
        calls, answer = WireCalls(endpoint), DomainDispatcherApplication.__call__

        def noted(application: Any, environ: dict[str, Any], start: Any) -> Iterable[bytes]:
            body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
            role = calls.note(environ, body)
            if environ.get("HTTP_X_AMZ_TARGET") == "AmazonSQS.ReceiveMessage":
                time.sleep(receive_s)
                body = json.dumps(json.loads(body) | {"WaitTimeSeconds": 0}).encode()
                environ["CONTENT_LENGTH"] = str(len(body))
            environ["wsgi.input"] = io.BytesIO(body)
            answered = answer(application, environ, start)
            if role is None:
                return answered
            whole = b"".join(answered)
            calls.assumed(role, whole)
            return [whole]

        patch.setattr(DomainDispatcherApplication, "__call__", noted)
        try:
            yield calls
        finally:
            moto_api_backend.reset()
