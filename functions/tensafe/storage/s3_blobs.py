"""Blobs in one S3 bucket: the counterpart of the folder on AWS.

A blob is one object, encrypted by S3 under a KMS key. Its SHA-256 travels twice: S3 checks the bytes that
arrive against it, and it is kept as metadata, which this side checks every whole read against.
"""

from __future__ import annotations

import base64
import hashlib
import re
from typing import Any, Final

from botocore.exceptions import ClientError

from tensafe.contracts.errors import IntegrityError, InvalidRequest, Unavailable
from tensafe.storage.aws_clients import AwsClient, Backoff, aws_errors_made_ours, error_code
from tensafe.storage.checks import check_range
from tensafe.storage.ports import OCTETS, BlobExists, BlobInfo, BlobMissing, check_blob_key
from tensafe.storage.presign import check_url_lifetime

PUT_MAX_BYTES: Final = 5 * 2**30
"""What S3 takes in one request. Nothing here is larger: an artifact has less than 2 GiB."""
_SHA256: Final = re.compile(r"[0-9a-f]{64}")
_MISSING: Final = frozenset({"NoSuchKey", "404"})
_STORE: Final = "blob store"


class S3Blobs:
    """The blobs port on a bucket. Implements `Blobs`.

    The role needs s3:ListBucket: without it S3 answers 403 for what is not there, which is Unavailable
    here. On a versioned bucket a deleted blob is hidden until the lifecycle rule removes it.
    """

    def __init__(
        self, client: AwsClient, bucket: str, *, kms_key_id: str, backoff: Backoff | None = None
    ) -> None:
        """`client` is `aws_client("s3")`; `kms_key_id` names the key that S3 encrypts objects under."""
        self._client = client
        self._bucket = bucket
        self._kms_key_id = kms_key_id
        self._backoff = backoff or Backoff()

    def put(self, key: str, data: bytes) -> BlobInfo:
        check_blob_key(key)
        if len(data) > PUT_MAX_BYTES:
            raise InvalidRequest(f"a blob is at most {PUT_MAX_BYTES} bytes", field="data")
        digest = hashlib.sha256(data)
        info = BlobInfo(key, len(data), digest.hexdigest())
        request = {
            "Bucket": self._bucket,
            "Key": key,
            "Body": data,
            "IfNoneMatch": "*",
            "ChecksumSHA256": base64.b64encode(digest.digest()).decode(),
            "ContentType": OCTETS,
            "Metadata": {"sha256": info.sha256},
            "ServerSideEncryption": "aws:kms",
            "SSEKMSKeyId": self._kms_key_id,
            "BucketKeyEnabled": True,
        }
        for _ in self._backoff:
            with aws_errors_made_ours(_STORE):
                try:
                    self._client.put_object(**request)
                except ClientError as error:
                    if error_code(error) == "PreconditionFailed":
                        present = self.head(key)
                        if present == info:
                            return info  # or an earlier try of ours, whose answer was lost
                        if present is not None:
                            raise BlobExists(f"the blob {key!r} exists with other contents") from error
                    # A delete, or another writer, at the same moment: look again.
                    elif error_code(error) != "ConditionalRequestConflict":
                        raise
                else:
                    return info
        raise Unavailable(f"others write the blob {key!r} all the time; try again")

    def get(self, key: str, *, offset: int = 0, length: int | None = None) -> bytes:
        check_blob_key(key)
        check_range(offset, length)
        if length == 0:
            return self._none_of(key)
        request = {"Bucket": self._bucket, "Key": key}
        if offset or length is not None:
            end = "" if length is None else offset + length - 1
            request["Range"] = f"bytes={offset}-{end}"
        with aws_errors_made_ours(_STORE):
            try:
                answer = self._client.get_object(**request)
            except ClientError as error:
                if error_code(error) in _MISSING:
                    raise BlobMissing(f"no blob {key!r}") from error
                if error_code(error) == "InvalidRange":
                    return self._none_of(key)
                raise
            data: bytes = answer["Body"].read()
        whole = len(data) == _size_bytes(answer)
        if whole and hashlib.sha256(data).hexdigest() != _sha256(key, answer):
            raise IntegrityError(f"the blob {key!r} does not match its checksum")
        return data

    def head(self, key: str) -> BlobInfo | None:
        check_blob_key(key)
        with aws_errors_made_ours(_STORE):
            try:
                answer = self._client.head_object(Bucket=self._bucket, Key=key)
            except ClientError as error:
                if error_code(error) not in _MISSING:
                    raise
                # The answer to a HEAD has no body: a bucket that is not there looks the same.
                self._client.head_bucket(Bucket=self._bucket)
                return None
        return BlobInfo(key, answer["ContentLength"], _sha256(key, answer))

    def delete(self, key: str) -> None:
        check_blob_key(key)
        with aws_errors_made_ours(_STORE):
            self._client.delete_object(Bucket=self._bucket, Key=key)

    def presign_get(self, key: str, *, expires_s: int, media_type: str = OCTETS) -> str:
        """As the port says; and it ends with the credentials that signed it, which for a role is in hours."""
        check_blob_key(key)
        check_url_lifetime(expires_s)
        with aws_errors_made_ours(_STORE):
            asked = {"Bucket": self._bucket, "Key": key, "ResponseContentType": media_type}
            url: str = self._client.generate_presigned_url("get_object", Params=asked, ExpiresIn=expires_s)
        return url

    def _none_of(self, key: str) -> bytes:
        """No bytes of a blob that must be there: HTTP has no such range."""
        if self.head(key) is None:
            raise BlobMissing(f"no blob {key!r}")
        return b""


def _size_bytes(answer: dict[str, Any]) -> int:
    """The size of the whole object, whichever part of it was asked for."""
    content_range = answer.get("ContentRange")
    size: int = answer["ContentLength"]
    return size if content_range is None else int(content_range.rpartition("/")[2])


def _sha256(key: str, answer: dict[str, Any]) -> str:
    text = str(answer.get("Metadata", {}).get("sha256", ""))
    if not _SHA256.fullmatch(text):
        raise IntegrityError(f"the object of the blob {key!r} was not written by this service")
    return text
