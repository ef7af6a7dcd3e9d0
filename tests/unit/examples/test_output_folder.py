"""Only what the demo made itself is ever removed."""

from __future__ import annotations

from pathlib import Path

import pytest

from output_folder import MARKER, fresh_folder


def test_what_an_earlier_run_left_is_removed(tmp_path: Path) -> None:
    folder = fresh_folder(tmp_path / "a" / "out")
    (folder / "data").mkdir()
    (folder / "data" / "items.db").write_text("old")
    assert fresh_folder(folder) == folder
    assert [path.name for path in folder.iterdir()] == [MARKER]


def test_an_empty_folder_is_taken(tmp_path: Path) -> None:
    assert (fresh_folder(tmp_path) / MARKER).is_file()


def test_somebody_s_folder_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(FileExistsError, match="holds files that this demo has not made; choose a new folder"):
        fresh_folder(tmp_path)
    assert (tmp_path / "thesis.tex").read_text() == "years of work"
    assert not (tmp_path / MARKER).exists()


def test_a_file_and_a_link_are_refused(tmp_path: Path) -> None:
    made = fresh_folder(tmp_path / "made")
    (tmp_path / "link").symlink_to(made)
    (tmp_path / "file").write_text("")
    for name in ("link", "file"):
        with pytest.raises(FileExistsError, match="is not a folder"):
            fresh_folder(tmp_path / name)
    assert (made / MARKER).is_file()
