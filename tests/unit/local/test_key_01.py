"""KEY-01, once: the master key was silently generated. Now: no key, no start, and none is ever made."""

from __future__ import annotations

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
