"""What a signed URL is bound to."""

from __future__ import annotations

import hashlib
import hmac
from urllib.parse import parse_qs, urlsplit

import pytest

from tensafe.contracts.errors import ConfigurationError, InvalidRequest, Unauthenticated
from tensafe.storage.presign import UrlSigner

SECRET = bytes(range(32))


def signer(now_s: float = 1_000_000.0) -> UrlSigner:
    return UrlSigner(SECRET, "https://host.invalid/v1/blobs/", clock=lambda: now_s)


def parts(url: str) -> tuple[str, int, str]:
    split = urlsplit(url)
    query = parse_qs(split.query)
    return split.path.removeprefix("/v1/blobs/"), int(query["expires"][0]), query["signature"][0]


def test_the_signature_is_hmac_sha256_over_key_and_expiry() -> None:
    """Computed once more with the standard library."""
    key, expires, signature = parts(signer().url("runs/a=b/x_1.bin", 60))
    text = b"tensafe presigned GET v1\nruns/a=b/x_1.bin\n1000060"
    assert (key, expires) == ("runs/a=b/x_1.bin", 1_000_060)
    assert signature == hmac.new(SECRET, text, hashlib.sha256).hexdigest()


def test_it_holds_until_its_second() -> None:
    key, expires, signature = parts(signer().url("a", 60))
    signer(1_000_059.9).verify(key, expires, signature)
    for late in (1_000_060.0, 1_000_061.0, 2e9):
        with pytest.raises(Unauthenticated, match="expired"):
            signer(late).verify(key, expires, signature)


@pytest.mark.parametrize("signature", ["", "00" * 32, "zz", "é", "00" * 31, "00" * 33])
def test_another_signature_is_refused(signature: str) -> None:
    with pytest.raises(Unauthenticated, match="verify"):
        signer().verify("a", 1_000_060, signature)


def test_it_is_for_one_key_one_time_and_one_secret() -> None:
    key, expires, signature = parts(signer().url("a", 60))
    other = UrlSigner(bytes(32), "https://host.invalid", clock=lambda: 1_000_000.0)
    for who, wrong_key, wrong_expires in (
        (signer(), "b", expires),
        (signer(), key, expires + 1),
        (signer(), key, -expires),
        (other, key, expires),
    ):
        with pytest.raises(Unauthenticated):
            who.verify(wrong_key, wrong_expires, signature)
    with pytest.raises(InvalidRequest):
        signer().verify("../a", expires, signature)


def test_a_short_secret_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="32"):
        UrlSigner(b"short", "https://host.invalid")
