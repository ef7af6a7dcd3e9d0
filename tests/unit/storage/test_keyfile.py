"""The key file: made by command alone, refused unless it is whole and private (KEY-01)."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tensafe.contracts.errors import ConfigurationError
from tensafe.storage.keyfile import KeyFileRing, create_key_file


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "key.json"


def test_key_01_without_a_key_file_nothing_starts_and_none_is_made(path: Path) -> None:
    with pytest.raises(ConfigurationError, match="tensafe init"):
        KeyFileRing(path)
    assert list(path.parent.iterdir()) == []


def test_key_01_a_key_is_never_overwritten(path: Path) -> None:
    create_key_file(path)
    before = path.read_bytes()
    with pytest.raises(ConfigurationError, match="never overwritten"):
        create_key_file(path)
    assert path.read_bytes() == before


def test_key_01_a_link_is_not_followed_when_making_a_key(path: Path) -> None:
    path.symlink_to(path.parent / "elsewhere")
    with pytest.raises(ConfigurationError):
        create_key_file(path)
    assert not (path.parent / "elsewhere").exists()


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o620, 0o601])
def test_key_01_a_file_that_others_can_reach_is_refused(path: Path, mode: int) -> None:
    create_key_file(path)
    path.chmod(mode)
    with pytest.raises(ConfigurationError, match="tensafe init"):
        KeyFileRing(path)


@pytest.mark.parametrize("mode", [0o600, 0o400])
def test_a_private_file_opens(path: Path, mode: int) -> None:
    key_id = create_key_file(path)
    path.chmod(mode)
    assert KeyFileRing(path).key_id == key_id


@pytest.mark.parametrize("umask", [0o000, 0o077, 0o777])
def test_the_file_is_private_whatever_the_umask(path: Path, umask: int) -> None:
    old_umask = os.umask(umask)
    try:
        create_key_file(path)
    finally:
        os.umask(old_umask)
    assert oct(path.stat().st_mode & 0o7777) == "0o600"


def test_every_file_holds_another_key_of_256_bits(tmp_path: Path) -> None:
    paths = [tmp_path / f"{n}.json" for n in range(20)]
    ids = {create_key_file(path) for path in paths}
    keys = {base64.b64decode(json.loads(path.read_text())["key"]) for path in paths}
    assert len(ids) == len(keys) == 20
    assert {len(key) for key in keys} == {32}


def _altered(path: Path, **changes: object) -> bytes:
    return json.dumps(json.loads(path.read_text()) | changes).encode()


def test_a_damaged_file_is_refused_without_quoting_it(path: Path) -> None:
    create_key_file(path)
    fields = json.loads(path.read_text())
    key = base64.b64decode(fields["key"])
    flipped = bytes([key[0] ^ 1]) + key[1:]
    bad = [
        b"",
        b"{}",
        b"[]",
        b"null",
        b"\xff",
        path.read_bytes()[:-20],
        _altered(path, version=2),
        _altered(path, format="other"),
        _altered(path, key="!!!"),
        _altered(path, key=None),
        _altered(path, key=base64.b64encode(key[:16]).decode()),
        _altered(path, key=base64.b64encode(flipped).decode()),
        _altered(path, key_id="keyfile-0000000000000000"),
        _altered(path, check="00"),
        _altered(path, check=5),
    ]
    for raw in bad:
        path.write_bytes(raw)
        with pytest.raises(ConfigurationError, match="tensafe init") as refusal:
            KeyFileRing(path)
        assert fields["key"][:10] not in str(refusal.value)
        assert refusal.value.__cause__ is None


def test_what_is_not_a_file_is_refused(path: Path) -> None:
    path.mkdir(mode=0o700)
    with pytest.raises(ConfigurationError):
        KeyFileRing(path)
    os.mkfifo(path.parent / "pipe", 0o600)
    with pytest.raises(ConfigurationError):
        KeyFileRing(path.parent / "pipe")


def test_a_link_is_not_followed_when_reading_a_key(path: Path) -> None:
    create_key_file(path)
    link = path.with_name("link.json")
    link.symlink_to(path)
    with pytest.raises(ConfigurationError, match="it is a link; name the file itself"):
        KeyFileRing(link)


@pytest.mark.parametrize("mode", [0o770, 0o702, 0o777])
def test_a_folder_in_which_others_could_exchange_the_key_is_refused(path: Path, mode: int) -> None:
    create_key_file(path)
    path.parent.chmod(mode)
    with pytest.raises(ConfigurationError, match="can be written by others: `chmod go-w"):
        KeyFileRing(path)
    with pytest.raises(ConfigurationError, match="can be written by others"):
        create_key_file(path.with_name("second.json"))
    assert not path.with_name("second.json").exists()


@pytest.mark.parametrize("mode", [0o755, 0o500, 0o1777])
def test_a_folder_that_others_may_only_read_or_that_is_sticky_will_do(path: Path, mode: int) -> None:
    key_id = create_key_file(path)
    path.parent.chmod(mode)
    assert KeyFileRing(path).key_id == key_id
    path.parent.chmod(0o700)


def test_derived_secrets_belong_to_one_key_and_one_purpose(path: Path) -> None:
    create_key_file(path)
    create_key_file(path.with_name("other.json"))
    rings = [KeyFileRing(path), KeyFileRing(path.with_name("other.json"))]
    secrets = {ring.derive(purpose) for ring in rings for purpose in (b"url", b"more")}
    assert len(secrets) == 4
    assert {len(secret) for secret in secrets} == {32}
    assert KeyFileRing(path).derive(b"url") == rings[0].derive(b"url")


def test_the_ring_does_not_show_its_key(path: Path) -> None:
    create_key_file(path)
    ring = KeyFileRing(path)
    key = base64.b64decode(json.loads(path.read_text())["key"])
    shown = repr(ring) + repr(vars(ring)) + str(ring._file)
    assert repr(key)[2:12] not in shown


def test_the_sdk_is_loaded_by_the_first_wrap_alone(path: Path) -> None:
    create_key_file(path)
    program = (
        "import sys; from pathlib import Path; from tensafe.storage.keyfile import KeyFileRing;"
        "ring = KeyFileRing(Path(sys.argv[1])); before = 'aws_encryption_sdk' in sys.modules;"
        "ring.wrap(b'k' * 32, {'a': 'b'}); print(before, 'aws_encryption_sdk' in sys.modules)"
    )
    result = subprocess.run(
        [sys.executable, "-c", program, str(path)], capture_output=True, text=True, timeout=60, check=True
    )
    assert result.stdout.split() == ["False", "True"]
