"""Throw-away certificates for mutual TLS on the loopback."""

from __future__ import annotations

import datetime
import ipaddress
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from tensafe_gpu.helora.tls import TlsFiles


class Authority:
    """Signs certificates for 127.0.0.1 and for tenants, in files of a folder."""

    def __init__(self, folder: Path, name: str = "authority") -> None:
        self._folder = folder
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = _name(name)
        certificate = self._signed(self._name, self._key, days=2, authority=True)
        self.path = folder / f"{name}.pem"
        self.path.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))

    def issue(self, name: str, *, days: float = 1, strict: bool = True, names: int = 1) -> TlsFiles:
        """A certificate whose common name is `name`; expired since yesterday if `days` is negative.

        `names`: how often it is said. Without `strict` it does not say which key of the authority signed it.
        """
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([*_name(name)] * names)
        certificate = self._signed(subject, key, days=days, authority=False, strict=strict)
        paths = self._folder / f"{name}-{days}.crt", self._folder / f"{name}-{days}.key"
        paths[0].write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        paths[1].write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            )
        )
        return TlsFiles(*paths, self.path)

    def revoked(self, *files: TlsFiles) -> bytes:
        """Its certificate and the list of those that it has taken away, PEM."""
        now = datetime.datetime.now(datetime.UTC)
        revoked = x509.CertificateRevocationListBuilder().issuer_name(self._name).last_update(now)
        revoked = revoked.next_update(now + datetime.timedelta(days=1))
        revoked = revoked.add_extension(x509.CRLNumber(1), critical=False)
        identifier = x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key())
        revoked = revoked.add_extension(identifier, critical=False)
        for one in files:
            number = x509.load_pem_x509_certificate(one.certificate.read_bytes()).serial_number
            entry = x509.RevokedCertificateBuilder().serial_number(number).revocation_date(now)
            revoked = revoked.add_revoked_certificate(entry.build())
        signed = revoked.sign(self._key, hashes.SHA256())
        return self.path.read_bytes() + signed.public_bytes(serialization.Encoding.PEM)

    def _signed(
        self,
        subject: x509.Name,
        key: ec.EllipticCurvePrivateKey,
        *,
        days: float,
        authority: bool,
        strict: bool = True,
    ) -> x509.Certificate:
        now = datetime.datetime.now(datetime.UTC)
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(days=3))
            .not_valid_after(now + datetime.timedelta(days=days))
            .add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
            .add_extension(
                x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]),
                critical=False,
            )
            .add_extension(
                x509.KeyUsage(True, False, False, False, False, authority, authority, False, False),
                critical=True,
            )
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        )
        if strict:
            identifier = x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key())
            builder = builder.add_extension(identifier, critical=False)
        return builder.sign(self._key, hashes.SHA256())


def closed_key(path: Path) -> None:
    """Put a key file under a pass phrase."""
    key = serialization.load_pem_private_key(path.read_bytes(), None)
    sealed = serialization.BestAvailableEncryption(b"pass phrase")
    path.write_bytes(key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, sealed))


def _name(common: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common)])
