"""Whether an authority still vouches for a certificate, as far as that can be told without its peer."""

from __future__ import annotations

from pathlib import Path

from cryptography import x509

from tensafe_gpu.helora.standing import _goes_on
from tests.support.certificates import Authority

OF_A_CURVE_THAT_CRYPTOGRAPHY_LACKS = b"""\
-----BEGIN CERTIFICATE-----
MIIBezCCASqgAwIBAgIUIv0Bdfzq7g2Olgh9MKGh7NSKUTYwCgYIKoZIzj0EAwIw
FDESMBAGA1UEAwwJYXV0aG9yaXR5MCAXDTI2MTEzMDE1NTczNVoYDzIxMjYxMTA2
MTU1NzM1WjAUMRIwEAYDVQQDDAlhdXRob3JpdHkwTjAQBgcqhkjOPQIBBgUrgQQA
IAM6AAQ7+WBg1tN3KIQd8eSbWK3J3UeUrnsFj6owSdEps7hAkQm2hRnQYHuAftE+
RQd7GB/ixSJzpeCNeKNjMGEwHQYDVR0OBBYEFMOCwkhgU+L6YIJbLuYaU45qUaw1
MB8GA1UdIwQYMBaAFMOCwkhgU+L6YIJbLuYaU45qUaw1MA8GA1UdEwEB/wQFMAMB
Af8wDgYDVR0PAQH/BAQDAgEGMAoGCCqGSM49BAMCAz8AMDwCHHpO/6CX9dm/boNx
uG6v1rSWSbof4pUMIPVtYeICHHLDmATg3amlzHk56MbjDqlSAh8J+3/Kht+tsHA=
-----END CERTIFICATE-----
"""
"""CN=authority on secp224k1, made with OpenSSL, which verifies what it signs."""


def certificate_of(authority: Authority) -> x509.Certificate:
    return x509.load_pem_x509_certificate(authority.issue("tenant").certificate.read_bytes())


def test_its_own_authority_vouches_for_it_and_another_of_the_name_does_not(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    authority, other = Authority(tmp_path), Authority(tmp_path / "other")
    certificate = certificate_of(authority)
    own, foreign = authority.path.read_bytes(), other.path.read_bytes()
    assert _goes_on(certificate, own)
    assert _goes_on(certificate, foreign + own)
    assert not _goes_on(certificate, foreign)
    assert not _goes_on(certificate, b"")


def test_an_authority_of_an_unknown_algorithm_has_its_peers_connect_anew(tmp_path: Path) -> None:
    """Told by no exception: a certificate of another authority beside it goes on."""
    authority = Authority(tmp_path)
    certificate = certificate_of(authority)
    assert not _goes_on(certificate, OF_A_CURVE_THAT_CRYPTOGRAPHY_LACKS)
    assert _goes_on(certificate, OF_A_CURVE_THAT_CRYPTOGRAPHY_LACKS + authority.path.read_bytes())
