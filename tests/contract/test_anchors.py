"""The anchors suite over each adapter, and what only files can suffer."""

from __future__ import annotations

from pathlib import Path

import pytest

from tensafe.contracts.errors import ConfigurationError, IntegrityError, Unavailable
from tensafe.storage.anchors import Anchors
from tensafe.storage.file_anchors import SLOT_BYTES, FileAnchors
from tests.contract.anchors_suite import NAME, AnchorsSuite, mark
from tests.fakes import MemoryAnchors


class TestMemory(AnchorsSuite):
    @pytest.fixture
    def anchors(self) -> Anchors:
        return MemoryAnchors()


class TestFiles(AnchorsSuite):
    @pytest.fixture
    def anchors(self, tmp_path: Path) -> Anchors:
        return FileAnchors(tmp_path)

    @pytest.fixture
    def file(self, anchors: Anchors, tmp_path: Path) -> Path:
        """Of a name with three marks: 2 in the first slot, 1 in the second."""
        for position in range(3):
            anchors.put(mark(position), after=mark(position - 1) if position else None)
        (found,) = tmp_path.glob("*.anchor")
        return found

    def test_another_process_reads_it(self, anchors: Anchors, file: Path, tmp_path: Path) -> None:
        assert FileAnchors(tmp_path).get(NAME) == mark(2)
        assert file.stat().st_mode & 0o777 == 0o600

    @pytest.mark.parametrize("cut", [0, 1, 64, 150])
    def test_a_torn_slot_leaves_the_mark_before_it(self, anchors: Anchors, file: Path, cut: int) -> None:
        """The crash came while the newest slot was written."""
        raw = file.read_bytes()
        file.write_bytes(raw[:cut].ljust(SLOT_BYTES, b"#") + raw[SLOT_BYTES:])
        assert anchors.get(NAME) == mark(1)
        anchors.put(mark(2), after=mark(1))
        assert anchors.get(NAME) == mark(2)

    def test_every_altered_byte_of_a_slot_is_noticed(self, anchors: Anchors, file: Path) -> None:
        raw = file.read_bytes()
        for at in range(0, len(raw[:SLOT_BYTES].rstrip())):
            file.write_bytes(raw[:at] + bytes([raw[at] ^ 1]) + raw[at + 1 :])
            assert anchors.get(NAME) == mark(1), at

    def test_two_damaged_slots_are_an_error_and_are_not_written_over(
        self, anchors: Anchors, file: Path
    ) -> None:
        file.write_bytes(b"\0" * 2 * SLOT_BYTES)
        for act in (lambda: anchors.get(NAME), anchors.all):
            with pytest.raises(IntegrityError, match="damaged"):
                act()
        with pytest.raises(Exception, match="has moved"):
            anchors.put(mark(9), after=None)
        assert file.read_bytes() == b"\0" * 2 * SLOT_BYTES

    def test_a_file_under_anothers_name_is_refused(self, anchors: Anchors, file: Path) -> None:
        anchors.put(mark(7, "domain/acme/mails"), after=None)
        (other,) = set(file.parent.glob("*.anchor")) - {file}
        other.replace(file)
        with pytest.raises(IntegrityError, match="belongs to domain/acme/mails"):
            anchors.get(NAME)

    def test_a_missing_folder_is_not_made(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigurationError, match="is missing"):
            FileAnchors(tmp_path / "absent")
        assert not (tmp_path / "absent").exists()

    def test_a_failing_disk_is_told(
        self, anchors: Anchors, file: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def failing(_: int) -> None:
            raise OSError(5, "Input/output error")

        monkeypatch.setattr("os.fdatasync", failing)
        with pytest.raises(Unavailable, match="Input/output error"):
            anchors.put(mark(3), after=mark(2))
