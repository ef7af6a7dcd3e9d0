"""An OpenID Connect issuer on loopback: discovery, a key set that rotates, tokens as one wants them."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from joserfc import jws
from joserfc.jwk import ECKey, Key, OKPKey, RSAKey

AUDIENCE = "tensafe"
_NEW: dict[str, Callable[[str], Key]] = {
    "RS256": lambda kid: RSAKey.generate_key(2048, {"kid": kid}),
    "ES256": lambda kid: ECKey.generate_key("P-256", {"kid": kid}),
    "EdDSA": lambda kid: OKPKey.generate_key("Ed25519", {"kid": kid}),
}


class Issuer:
    """`keys` are published; whatever is set on it holds from the next request on."""

    def __init__(self, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self.keys: dict[str, tuple[str, Key]] = {}
        self.requests: list[str] = []
        self.down = False
        self.answers: dict[str, bytes] = {}
        """In place of the issuer's own documents, by path."""
        self.rotate("first")

    def rotate(self, kid: str, algorithm: str = "ES256", *, keep: bool = False) -> None:
        """Publish a new key, instead of the others or beside them."""
        kept = self.keys if keep else {}
        self.keys = {**kept, kid: (algorithm, _NEW[algorithm](kid))}

    def key(self, kid: str | None = None) -> tuple[str, str, Key]:
        """`kid`, algorithm and private key; of the newest by default."""
        kid = kid or list(self.keys)[-1]
        return (kid, *self.keys[kid])

    def claims(self, **changed: Any) -> dict[str, Any]:
        """Of a good token; a change to None takes the claim away."""
        now = int(time.time())
        claims = {
            **{"iss": self.url, "aud": AUDIENCE, "sub": "user-1", "exp": now + 300, "nbf": now, "iat": now},
            **{"tenant": "acme", "scope": "openid train sample"},
            **changed,
        }
        return {name: value for name, value in claims.items() if value is not None}

    def token(
        self, *, kid: str | None = None, header: Mapping[str, Any] | None = None, **changed: Any
    ) -> str:
        """A signed token."""
        kid, algorithm, key = self.key(kid)
        payload = json.dumps(self.claims(**changed)).encode()
        return self.sign(payload, key, {"alg": algorithm, "kid": kid, "typ": "at+jwt", **(header or {})})

    def sign(self, payload: bytes, key: Key, header: dict[str, Any]) -> str:
        registry = jws.JWSRegistry(algorithms=[header["alg"]], strict_check_header=False)
        return jws.serialize_compact(header, payload, key, registry=registry)

    def document(self, path: str) -> bytes | None:
        if path in self.answers:
            return self.answers[path]
        if path == "/.well-known/openid-configuration":
            return json.dumps({"issuer": self.url, "jwks_uri": f"{self.url}/jwks"}).encode()
        if path == "/jwks":
            public = [
                {**key.as_dict(private=False), "alg": alg, "use": "sig"} for alg, key in self.keys.values()
            ]
            return json.dumps({"keys": public}).encode()
        return None


@contextmanager
def oidc_issuer() -> Iterator[Issuer]:
    """A running issuer."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            issuer.requests.append(self.path)
            body = None if issuer.down else issuer.document(self.path)
            self.send_response(503 if issuer.down else 404 if body is None else 200)
            self.end_headers()
            self.wfile.write(body or b"")

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    issuer = Issuer(server.server_address[1])
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield issuer
    finally:
        server.shutdown()
        server.server_close()
        thread.join(5)
