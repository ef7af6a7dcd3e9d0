"""What a sampler takes along to an adapter holder: its log of indices, and its certificate."""

from __future__ import annotations

from pathlib import Path

import pytest

from tensafe.cloud.settings import read_cloud_settings
from tensafe.contracts.errors import ConfigurationError, Unavailable
from tensafe.local.certificates import keep_certificate
from tensafe.local.settings import LocalSettings
from tensafe_gpu.helora.tls import TlsFiles, client_context
from tensafe_gpu.sampler.holder_files import LOOK_S, HolderFiles
from tensafe_gpu.sampler.private_files import require_memory_backed
from tests.support.certificates import Authority
from tests.support.cloud import cloud_environment
from tests.unit.operations.world import World


@pytest.fixture
def world() -> World:
    return World()


def keep(world: World, files: TlsFiles) -> None:
    keep_certificate(world.services, {"cert": files.certificate, "key": files.key, "ca": files.authority})


def away(*_: object) -> None:
    raise Unavailable("the store is away")


def test_on_aws_the_certificate_comes_from_the_vault_into_memory(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in cloud_environment(TENSAFE_PRIVATE_ADAPTERS="true", HOME=str(tmp_path)).items():
        monkeypatch.setenv(name, value)
    now = [0.0]
    given = HolderFiles(read_cloud_settings(), world.open(), clock=lambda: now[0])
    try:
        assert given() == {"burn_log": f"{tmp_path}/burned.db"}
        files = Authority(tmp_path).issue("sampler")
        keep(world, files)
        with monkeypatch.context() as patch:
            patch.setattr(world.keyring, "unwrap", lambda *_: pytest.fail("whoever keeps it only wraps"))
            keep(world, files)  # in place of the first
        found = given()
        paths = TlsFiles(*(Path(found[f"tls_{name}"]) for name in ("cert", "key", "ca")))
        client_context(paths)
        assert paths.key.read_bytes() == files.key.read_bytes()
        require_memory_backed(paths.key.parent)
        assert given() == found
        sealed = [item.sealed for item in world.partition("holder-tls")]
        assert len(sealed) == 2
        assert not any(b"PRIVATE KEY" in one for one in sealed)
        # Another one takes its place under the same paths: whoever was told of them connects with it.
        renewed = Authority(tmp_path).issue("sampler", days=2)
        keep(world, renewed)
        assert given() == found
        assert paths.key.read_bytes() == files.key.read_bytes()
        now[0] += LOOK_S
        with monkeypatch.context() as patch:
            patch.setattr(world.items, "get", away)
            assert given() == found  # the store is away: the one before stays
        now[0] += LOOK_S
        assert given() == found
        client_context(paths)
        assert paths.key.read_bytes() == renewed.key.read_bytes()
        assert len(list(paths.key.parent.parent.iterdir())) == 2  # nothing is left of the first
    finally:
        given.close()
    assert not paths.key.exists()


def test_on_one_machine_a_folder_may_have_it(world: World, tmp_path: Path) -> None:
    given = HolderFiles(LocalSettings(data_dir=tmp_path, holder_tls=tmp_path / "tls"), world.services)
    assert given() == {
        "burn_log": f"{tmp_path}/burned.db",
        **{f"tls_{name}": f"{tmp_path}/tls/{name}.pem" for name in ("cert", "key", "ca")},
    }
    given.close()


def test_files_that_are_no_certificate_are_refused(world: World, tmp_path: Path) -> None:
    files = Authority(tmp_path).issue("sampler")
    with pytest.raises(ConfigurationError, match="cannot be used"):
        keep(world, TlsFiles(files.key, files.key, files.authority))
    with pytest.raises(ConfigurationError, match="cannot be used"):
        keep(world, TlsFiles(tmp_path / "none", files.key, files.authority))
    assert world.partition("holder-tls") == []
