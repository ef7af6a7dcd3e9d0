"""JWTs: what is accepted, every forgery that is not, and what happens while the issuer is away."""

from __future__ import annotations

import base64
import hmac
import json
import logging
import time
from typing import Any

import pytest
from joserfc.jwk import ECKey, RSAKey

from tensafe.auth.callers import Callers
from tensafe.auth.issuer_keys import DOCUMENT_MAX_BYTES, RETRY_S, IssuerKeys, signing_keys
from tensafe.auth.keys import ApiKeys
from tensafe.auth.oidc import token_verifier
from tensafe.auth.oidc_settings import OidcSettings
from tensafe.auth.principal import AccessScope, Principal
from tensafe.auth.tokens import TOKEN_MAX_CHARS, Tokens
from tensafe.auth.web_documents import WebDocuments
from tensafe.contracts.errors import ConfigurationError, Unauthenticated, Unavailable
from tensafe.contracts.network import trusted_url
from tests.fakes import MemoryItems
from tests.support.oidc_issuer import AUDIENCE, Issuer

pytestmark = [
    pytest.mark.filterwarnings("ignore:EdDSA is deprecated"),
    pytest.mark.filterwarnings("ignore:Key size should be"),
]


class World:
    def __init__(self, issuer: Issuer) -> None:
        self.issuer = issuer
        self.ahead_s = 0.0
        self.settings = OidcSettings(issuer.url, AUDIENCE)
        keys = IssuerKeys(self.settings, WebDocuments(timeout_s=1.0), clock=self.clock)
        self.tokens = Tokens(self.settings, keys, clock=self.clock)

    def clock(self) -> float:
        return time.time() + self.ahead_s


@pytest.fixture
def world(issuer: Issuer) -> World:
    return World(issuer)


def refused(world: World, token: str, caplog: pytest.LogCaptureFixture) -> str:
    """The reason in the log; the caller is told one message, whatever it was."""
    caplog.clear()
    with caplog.at_level(logging.INFO, "tensafe.auth.tokens"), pytest.raises(Unauthenticated) as caught:
        world.tokens.authenticate(token)
    assert caught.value.code == "unauthenticated"
    assert caught.value.message.startswith("this token is not accepted")
    assert token not in caplog.text
    reason: str = caplog.records[-1].reason  # type: ignore[attr-defined]
    return reason


@pytest.mark.parametrize("algorithm", ["RS256", "ES256", "EdDSA"])
def test_a_token_of_the_issuer_is_its_tenant_with_its_scopes(world: World, algorithm: str) -> None:
    world.issuer.rotate("a-key", algorithm)
    principal = world.tokens.authenticate(world.issuer.token())
    assert principal.tenant == "acme"
    assert principal.scopes == {AccessScope.TRAIN, AccessScope.SAMPLE}
    assert len(bytes.fromhex(principal.key_id)) == 8


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"iss": "https://elsewhere.example"}, "issuer"),
        ({"iss": None}, "issuer"),
        ({"aud": "another-service"}, "audience"),
        ({"aud": None}, "audience"),
        ({"aud": ["a", 5, {"tensafe": 1}]}, "audience"),
        ({"exp": 1_000_000_000}, "expired"),
        ({"exp": None}, "no expiry"),
        ({"exp": "9999999999"}, "exp is not a number"),
        ({"exp": True}, "exp is not a number"),
        ({"exp": 10**400}, "exp is not a number"),
        ({"exp": float("inf")}, "not a JSON object without repeated members"),
        ({"nbf": 9_999_999_999, "exp": 99_999_999_999}, "not valid yet"),
        ({"iat": 9_999_999_999, "exp": 99_999_999_999}, "not valid yet"),
        ({"sub": None}, "subject"),
        ({"tenant": None}, "tenant claim"),
        ({"tenant": "../acme"}, "tenant claim"),
        ({"tenant": ["acme"]}, "tenant claim"),
        ({"scope": None}, "scope claim"),
        ({"scope": "openid profile trainer"}, "scope claim"),
    ],
)
def test_a_signed_token_with_wrong_claims_is_refused(
    world: World, caplog: pytest.LogCaptureFixture, changed: dict[str, Any], reason: str
) -> None:
    assert refused(world, world.issuer.token(**changed), caplog) == reason


def test_scopes_and_audience_may_be_lists(world: World) -> None:
    token = world.issuer.token(aud=["other", AUDIENCE], scope=["audit", "email"])
    assert world.tokens.authenticate(token).scopes == {AccessScope.AUDIT}


def test_forged_signatures_and_headers_are_refused(world: World, caplog: pytest.LogCaptureFixture) -> None:
    issuer = world.issuer
    issuer.rotate("rsa", "RS256")
    kid, _, key = issuer.key()
    payload = json.dumps(issuer.claims()).encode()
    good = issuer.token()
    head, body, signature = good.split(".")

    def with_header(**members: Any) -> str:
        return f"{_b64(json.dumps({'alg': 'RS256', 'kid': kid, **members}).encode())}.{body}.{signature}"

    assert isinstance(key, RSAKey)
    unsigned = f"{_b64(json.dumps({'alg': 'HS256', 'kid': kid}).encode())}.{body}"
    mac = hmac.digest(key.as_pem(private=False), unsigned.encode(), "sha256")
    other = RSAKey.generate_key(2048, {"kid": kid})
    theirs = other.as_dict(private=False)
    named_twice = b'{"alg":"RS256","alg":"none","kid":"rsa"}'
    forged = {
        "form": [f"{head}.{body}.", f"{head}.{body}", good + "=", good + ".x", "ey" * TOKEN_MAX_CHARS],
        "algorithm": [
            with_header(alg="none"),
            with_header(alg="RS512"),
            with_header(alg=["RS256"]),
            f"{unsigned}.{_b64(mac)}",
        ],
        "no key id": [with_header(kid=None), with_header(kid=7)],
        "key id": [with_header(kid="another"), issuer.sign(payload, other, {"alg": "RS256", "kid": "x"})],
        "signature": [
            issuer.sign(payload, other, {"alg": "RS256", "kid": kid}),
            issuer.sign(payload, other, {"alg": "RS256", "kid": kid, "jwk": theirs}),
            issuer.sign(payload, other, {"alg": "RS256", "kid": kid, "jku": f"{issuer.url}/theirs"}),
            issuer.sign(payload, other, {"alg": "RS256", "kid": kid, "x5u": f"{issuer.url}/theirs"}),
            f"{head}.{_b64(payload.replace(b'acme', b'evil'))}.{signature}",
            f"{head}.{body}.{_b64(b'0' * 256)}",
        ],
        "critical header": [with_header(crit=["b64"], b64=False), with_header(b64=False)],
        "type": [with_header(typ="secevent+jwt"), with_header(typ=5)],
        "not a JSON object without repeated members": [
            *(f"{_b64(odd)}.{body}.{signature}" for odd in (named_twice, b"[" * 700, b"[]")),
            issuer.sign(payload[:-1] + b', "tenant": "evil"}', key, {"alg": "RS256", "kid": kid}),
            issuer.sign(b"[]", key, {"alg": "RS256", "kid": kid}),
            issuer.sign(b'{"exp": 1' + b"0" * 5000 + b"}", key, {"alg": "RS256", "kid": kid}),
        ],
    }
    for reason, tokens in forged.items():
        for token in tokens:
            assert refused(world, token, caplog) == reason, token
    assert set(issuer.requests) == {"/.well-known/openid-configuration", "/jwks"}
    assert world.tokens.authenticate(good).tenant == "acme"


def test_an_algorithm_cannot_borrow_another_ones_key(world: World, caplog: pytest.LogCaptureFixture) -> None:
    key = ECKey.generate_key("P-256", {"kid": "first"})
    token = world.issuer.sign(b"{}", key, {"alg": "ES256", "kid": "first"})
    world.issuer.rotate("first", "RS256")
    assert refused(world, token, caplog) == "key id"


def test_a_rotated_key_is_fetched_once_and_the_old_one_ends_with_it(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    old = world.issuer.token()
    assert world.tokens.authenticate(old).tenant == "acme"
    world.issuer.rotate("second")
    fresh = world.issuer.token()
    assert refused(world, fresh, caplog) == "key id"  # the set is seconds old: it is not fetched again yet
    world.ahead_s += RETRY_S
    assert world.tokens.recognise(fresh) is None
    assert world.tokens.authenticate(fresh).tenant == "acme"
    assert world.tokens.recognise(fresh) is not None
    assert refused(world, old, caplog) == "key id"  # though it was verified before
    assert len(world.issuer.requests) == 4


def test_unknown_key_ids_do_not_make_the_service_call_the_issuer(world: World) -> None:
    world.tokens.authenticate(world.issuer.token())
    for number in range(50):
        with pytest.raises(Unauthenticated):
            world.tokens.authenticate(world.issuer.token(header={"kid": f"guess-{number}"}))
    assert len(world.issuer.requests) == 2


def test_while_the_issuer_is_away_known_keys_work_until_the_cache_ends(world: World) -> None:
    token = world.issuer.token(exp=9_999_999_999)
    world.tokens.authenticate(token)
    world.issuer.down = True
    world.ahead_s += RETRY_S
    world.issuer.rotate("second", keep=True)
    with pytest.raises(Unavailable):  # it might be the issuer's: not 401, which ends the client's retries
        world.tokens.authenticate(world.issuer.token())
    world.ahead_s = world.settings.cache_s * 0.99
    assert world.tokens.authenticate(token).tenant == "acme"
    world.ahead_s = world.settings.cache_s
    for attempt in (token, world.issuer.token(kid="first")):
        assert world.tokens.recognise(attempt) is None
        with pytest.raises(Unavailable):
            world.tokens.authenticate(attempt)
    world.issuer.down = False
    world.ahead_s += RETRY_S
    assert world.tokens.authenticate(token).tenant == "acme"


def test_keys_are_renewed_before_their_time_ends(world: World) -> None:
    token = world.issuer.token(exp=9_999_999_999)
    world.tokens.authenticate(token)
    world.ahead_s = world.settings.cache_s / 2
    assert world.tokens.recognise(token) is None
    world.tokens.authenticate(token)
    assert len(world.issuer.requests) == 4
    world.ahead_s = world.settings.cache_s * 0.95
    assert world.tokens.recognise(token) is not None


def test_a_remembered_token_ends_when_it_says(world: World) -> None:
    token = world.issuer.token(exp=int(time.time()) + 60)
    principal = world.tokens.authenticate(token)
    world.tokens.check_running(principal)
    world.ahead_s = 60 + world.settings.leeway_s
    with pytest.raises(Unauthenticated):
        world.tokens.recognise(token)
    with pytest.raises(Unauthenticated):
        world.tokens.check_running(principal)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/jwks", b" " * (DOCUMENT_MAX_BYTES + 1)),
        ("/jwks", b"{}"),
        ("/jwks", json.dumps({"keys": [{}] * 51}).encode()),
        ("/jwks", b"[" * 5000),
        ("/.well-known/openid-configuration", b'{"issuer": "https://elsewhere.example"}'),
    ],
)
def test_documents_that_are_wrong_are_no_keys(world: World, path: str, body: bytes) -> None:
    world.issuer.answers[path] = body
    with pytest.raises(Unavailable):
        world.tokens.authenticate(world.issuer.token())


@pytest.mark.parametrize("uri", ["http://elsewhere.example/jwks", "file:///etc/passwd", 5, None])
def test_a_key_set_is_fetched_over_https_alone(world: World, uri: object) -> None:
    document = {"issuer": world.issuer.url, "jwks_uri": uri}
    world.issuer.answers["/.well-known/openid-configuration"] = json.dumps(document).encode()
    with pytest.raises(Unavailable):
        world.tokens.authenticate(world.issuer.token())


def test_weak_ambiguous_and_foreign_keys_are_left_out() -> None:
    def entry(key: RSAKey | ECKey, **members: str) -> dict[str, Any]:
        return {**key.as_dict(private=False), **members}

    strong, weak = RSAKey.generate_key(2048), RSAKey.generate_key(1024)
    curve = ECKey.generate_key("P-384")
    entries = [
        entry(strong, kid="good"),
        entry(weak, kid="weak"),
        entry(curve, kid="curve"),
        entry(strong, kid="enc", use="enc"),
        entry(strong, kid="other-alg", alg="PS256"),
        entry(strong, kid=""),
        entry(strong, kid="twice"),
        entry(RSAKey.generate_key(2048), kid="twice"),
        {"kty": "oct", "k": "c2VjcmV0", "kid": "shared"},
        {"kty": "RSA", "kid": "broken", "n": 5, "e": "AQAB"},
        "not a key",
    ]
    assert set(signing_keys(entries)) == {("good", "RS256")}


def test_the_form_decides_and_without_an_issuer_a_token_is_no_key(world: World) -> None:
    keys = ApiKeys(MemoryItems())
    key, record = keys.create("acme", ["train"])
    both, alone = Callers(keys, world.tokens), Callers(keys)
    assert both.recognise(key) == Principal("acme", frozenset({AccessScope.TRAIN}), record.key_id)
    token = world.issuer.token()
    assert both.recognise(token) is None
    assert both.authenticate(token).tenant == "acme"
    both.check_still(both.authenticate(token), token)
    for callers in (both, alone):
        for presented in (None, "", "tml-", "eyJ", "Bearer x"):
            with pytest.raises(Unauthenticated):
                callers.recognise(presented)
    with pytest.raises(Unauthenticated):
        alone.recognise(token)
    keys.revoke(record.key_id)
    with pytest.raises(Unauthenticated):
        both.check_still(Principal("acme", frozenset(), record.key_id), key)


def test_settings_that_could_not_be_safe_are_refused() -> None:
    assert token_verifier(None, None) is None
    assert token_verifier("", "") is None
    assert isinstance(token_verifier("https://id.example/realm", "tensafe"), Tokens)
    for issuer, audience in (
        ("http://id.example", "tensafe"),
        ("https://id.example?x=1", "tensafe"),
        ("https://user:pass@id.example", "tensafe"),
        ("https://", "tensafe"),
        ("https://id.example", None),
        (None, "tensafe"),
    ):
        with pytest.raises(ConfigurationError):
            token_verifier(issuer, audience)
    assert not trusted_url("https://[::1")


def _b64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()
