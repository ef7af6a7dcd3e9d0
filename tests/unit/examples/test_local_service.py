"""How an example starts the service and what it leaves behind."""

from __future__ import annotations

from pathlib import Path

import pytest

from local_service import model_name
from tensafe.contracts.errors import ConfigurationError
from tensafe.local.models import ModelSource


@pytest.mark.parametrize(
    ("folder", "name"),
    [
        ("qwen3", "qwen3"),
        ("Qwen3 0.6B@main (copy)", "Qwen3-0.6B-main-copy-"),
        (".hidden", "hidden"),
        ("é", "model"),
        ("x" * 120, "x" * 96),
    ],
)
def test_a_folder_goes_by_its_own_name(
    folder: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / folder).mkdir()
    (tmp_path / "beside").mkdir()
    monkeypatch.chdir(tmp_path / "beside")
    for source in (str(tmp_path / folder), f"../{folder}", f"../{folder}/"):
        assert model_name(source) == name
        parsed = ModelSource.parse(f"{model_name(source)}={source}")
        assert (parsed.name, parsed.source) == (name, source)
    monkeypatch.chdir(tmp_path / folder)
    assert model_name(".") == name


@pytest.mark.parametrize("source", ["Qwen/Qwen3-0.6B", "Qwen/Qwen3-0.6B@main", "Qwen/Qwen3-0.6B@refs/pr/1"])
def test_a_hub_id_goes_by_itself_without_its_revision(source: str) -> None:
    assert ModelSource.parse(f"{model_name(source)}={source}").name == "Qwen/Qwen3-0.6B"


@pytest.mark.parametrize("source", ["/absent/folder", "./absent"])
def test_a_folder_that_is_not_there_is_what_the_service_complains_about(source: str) -> None:
    with pytest.raises(ConfigurationError, match="there is no folder"):
        ModelSource.parse(f"{model_name(source)}={source}").resolve()
