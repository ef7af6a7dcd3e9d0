"""Exported files are readable with a recipient's own key and with no other."""

from __future__ import annotations

import pyrage
import pytest

from tensafe.contracts.errors import InvalidRequest
from tensafe.packages.recipients import encrypt_files

FILES = {"adapter_config.json": b"{}", "adapter_model.safetensors": b"weights" * 1000}


def test_every_recipient_opens_every_file_and_nobody_else_does() -> None:
    mine, yours, other = (pyrage.x25519.Identity.generate() for _ in range(3))
    sealed = encrypt_files(FILES, [str(mine.to_public()), str(yours.to_public())])
    assert set(sealed) == {f"{name}.age" for name in FILES}
    for name, data in FILES.items():
        assert b"weights" not in sealed[f"{name}.age"]
        for identity in (mine, yours):
            assert pyrage.decrypt(sealed[f"{name}.age"], [identity]) == data
        with pytest.raises(pyrage.DecryptError):
            pyrage.decrypt(sealed[f"{name}.age"], [other])


@pytest.mark.parametrize("recipient", ["age1", "age1qqqq", "ssh-rsa x", "nobody", "", "AGE-SECRET-KEY-1X"])
def test_what_is_no_recipient_is_refused(recipient: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        encrypt_files(FILES, [recipient])
    assert caught.value.field == "age_encryption_recipients"


def test_no_recipient_is_no_encryption_and_is_refused() -> None:
    with pytest.raises(InvalidRequest):
        encrypt_files(FILES, [])
