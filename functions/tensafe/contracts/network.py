"""Which addresses never leave the machine, and which URLs may be trusted to be whose they say."""

from __future__ import annotations

from typing import Final
from urllib.parse import urlsplit

LOOPBACK: Final = ("127.0.0.1", "::1", "localhost")


def trusted_url(url: str) -> bool:
    """Whether what the URL returns comes from who it names: https, or a service on this machine."""
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError:
        return False
    plain = bool(host) and not (parts.query or parts.fragment or parts.username or parts.password)
    printable = url.isascii() and url.isprintable() and " " not in url
    return plain and printable and (parts.scheme == "https" or (parts.scheme == "http" and host in LOOPBACK))
