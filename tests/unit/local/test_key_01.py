"""KEY-01, once: the master key was silently generated. Now: no key, no start, and none is ever made."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from tensafe.contracts.errors import ConfigurationError
from tensafe.local.composition import initialise, local_services, open_services
from tensafe.local.endpoint import Endpoint
from tensafe.local.models import ModelSource
from tensafe.local.settings import LocalSettings
from tensafe.local.up import UpRequest, up
from tests.support.model_folders import model_folder


class Silent:
    """Events that must never become readiness."""

    def note(self, text: str) -> None:
        """Nothing runs that could say anything."""

    def waiting(self, text: str) -> None:
        """Whatever it waits for."""

    def ready(self, url: str) -> None:
        pytest.fail(f"it started without a key: {url}")


@pytest.fixture
def request_for(tmp_path: Path) -> UpRequest:
    source = ModelSource("tiny", str(model_folder(tmp_path / "model")))
    return UpRequest(tmp_path / "data", [source], Endpoint(port=0))


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_key_01_without_init_nothing_starts_and_nothing_is_made(
    tmp_path: Path, request_for: UpRequest
) -> None:
    for make in (lambda: None, (tmp_path / "data").mkdir):
        make()
        with pytest.raises(ConfigurationError, match="run: tensafe init --data-dir"):
            up(request_for, Silent())
        with pytest.raises(ConfigurationError, match="run: tensafe init --data-dir"):
            open_services(LocalSettings(data_dir=tmp_path / "data"))
    assert files(tmp_path / "data") == set()


def test_key_01_a_lost_key_is_not_replaced(tmp_path: Path, request_for: UpRequest) -> None:
    data_dir = tmp_path / "data"
    initialise(data_dir)
    with local_services(LocalSettings(data_dir=data_dir)):
        (data_dir / "key.json").unlink()
    before = files(data_dir)
    with pytest.raises(ConfigurationError, match="there is no key file"):
        up(request_for, Silent())
    with pytest.raises(ConfigurationError, match="there is no key file"):
        open_services(LocalSettings(data_dir=data_dir))
    # Not even by the command that makes keys: what the directory holds could never be opened with it.
    with pytest.raises(ConfigurationError, match="holds data whose key file is missing"):
        initialise(data_dir)
    assert files(data_dir) == before


def test_key_01_init_never_overwrites_a_key(tmp_path: Path) -> None:
    initialise(tmp_path / "data")
    key = (tmp_path / "data" / "key.json").read_bytes()
    with pytest.raises(ConfigurationError, match="initialised already"):
        initialise(tmp_path / "data")
    assert (tmp_path / "data" / "key.json").read_bytes() == key


def test_key_01_production_refuses_the_local_key_unless_it_is_accepted_by_name(
    tmp_path: Path, request_for: UpRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    initialise(tmp_path / "data")
    monkeypatch.setenv("TENSAFE_ENVIRONMENT", "production")
    with pytest.raises(ConfigurationError, match="TENSAFE_ACCEPT_LOCAL_KEY=true"):
        up(request_for, Silent())
    with pytest.raises(ConfigurationError, match="TENSAFE_ACCEPT_LOCAL_KEY=true"):
        open_services(LocalSettings(data_dir=tmp_path / "data"))
    monkeypatch.setenv("TENSAFE_ACCEPT_LOCAL_KEY", "true")
    with local_services(LocalSettings(data_dir=tmp_path / "data")) as services:
        assert services.ports.keyring.key_id.startswith("keyfile-")


def test_opening_reads_the_key_file_once_and_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    initialise(tmp_path / "data")
    read = Path.read_bytes

    def watched(path: Path) -> bytes:
        assert path.name != "key.json", "read without the checks"
        return read(path)

    monkeypatch.setattr(Path, "read_bytes", watched)
    with local_services(LocalSettings(data_dir=tmp_path / "data")):
        pass


def test_an_interrupted_init_can_be_repeated(tmp_path: Path) -> None:
    data_dir = tmp_path / "data"
    initialise(data_dir)
    (data_dir / "key.json").unlink()  # as if it had been killed before its last step
    assert initialise(data_dir).startswith("keyfile-")


@pytest.mark.parametrize("name", ["notes.txt", "key.json", "VERSION", "blobs", "items.db"])
def test_init_leaves_a_folder_with_something_of_others_as_it_is(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "home"
    folder.mkdir(mode=0o755)
    (folder / name).write_text("2.1\n")
    with pytest.raises(ConfigurationError, match="choose a new or an empty one") as refusal:
        initialise(folder)
    assert "\n" not in refusal.value.message
    assert files(folder) == {name}
    assert (folder / name).read_text() == "2.1\n"
    assert folder.stat().st_mode & 0o777 == 0o755


def test_init_takes_an_empty_folder_and_one_in_which_it_was_killed_at_the_first_step(tmp_path: Path) -> None:
    for name in ("empty", "begun"):
        (tmp_path / name).mkdir(mode=0o755)
    (tmp_path / "begun" / "VERSION.new").touch()
    for name in ("empty", "begun"):
        assert initialise(tmp_path / name).startswith("keyfile-")
        assert (tmp_path / name).stat().st_mode & 0o777 == 0o700


def test_init_says_in_one_sentence_that_a_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigurationError, match="Not a directory"):
        initialise(tmp_path / "file")


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    """In a folder of its own, as on another disk."""
    (tmp_path / "keys").mkdir(mode=0o700)
    return tmp_path / "keys" / "wrapping.json"


def test_the_key_file_may_lie_elsewhere_and_its_place_is_remembered(tmp_path: Path, key_file: Path) -> None:
    key_id = initialise(tmp_path / "data", key_file)
    assert not (tmp_path / "data" / "key.json").exists()
    secret = json.loads(key_file.read_text())["key"].encode()
    with local_services(LocalSettings(data_dir=tmp_path / "data")) as services:
        assert services.ports.keyring.key_id == key_id
    for name in files(tmp_path / "data"):
        assert secret not in (tmp_path / "data" / name).read_bytes()
    with pytest.raises(ConfigurationError, match="initialised already"):
        initialise(tmp_path / "data")


def test_a_key_file_that_has_moved_is_named_by_the_settings(
    tmp_path: Path, key_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key_id = initialise(tmp_path / "data", key_file)
    moved = key_file.rename(key_file.with_name("moved.json"))
    with pytest.raises(ConfigurationError, match=r"there is no key file at .*wrapping\.json"):
        open_services(LocalSettings(data_dir=tmp_path / "data"))
    monkeypatch.setenv("TENSAFE_KEY_FILE", str(moved))
    with local_services(LocalSettings(data_dir=tmp_path / "data")) as services:
        assert services.ports.keyring.key_id == key_id


@pytest.mark.sockets
def test_up_reads_the_key_file_that_it_is_told(
    tmp_path: Path, key_file: Path, request_for: UpRequest
) -> None:
    initialise(tmp_path / "data", key_file)
    moved = key_file.with_name("moved.json")
    with pytest.raises(ConfigurationError, match=r"there is no key file at .*moved\.json"):
        up(replace(request_for, overrides={"key_file": moved}), Silent())
    key_file.rename(moved)
    (tmp_path / "model" / "config.json").unlink()  # the step after the key
    with pytest.raises(ConfigurationError, match=r"no config\.json"):
        up(replace(request_for, overrides={"key_file": moved}), Silent())


def test_a_data_directory_moves_with_the_key_in_it(tmp_path: Path) -> None:
    key_id = initialise(tmp_path / "data")
    (tmp_path / "data").rename(tmp_path / "elsewhere")
    with local_services(LocalSettings(data_dir=tmp_path / "elsewhere")) as services:
        assert services.ports.keyring.key_id == key_id


@pytest.mark.parametrize("note", ["", "key.json", "\n", "\xff"])
def test_a_damaged_note_of_the_place_is_one_sentence(tmp_path: Path, key_file: Path, note: str) -> None:
    initialise(tmp_path / "data", key_file)
    (tmp_path / "data" / "key-location").write_text(note, encoding="latin-1")
    with pytest.raises(ConfigurationError, match="name the key file with --key-file"):
        open_services(LocalSettings(data_dir=tmp_path / "data"))


def test_init_makes_nothing_when_the_key_file_cannot_be_made(tmp_path: Path, key_file: Path) -> None:
    key_file.touch()
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    for path, problem in (
        (key_file, "never overwritten"),
        (tmp_path / "open" / "key.json", "can be written by others"),
        (tmp_path / "absent" / "key.json", "cannot be created: No such file"),
    ):
        with pytest.raises(ConfigurationError, match=problem):
            initialise(tmp_path / "data", path)
    assert not (tmp_path / "data").exists()
