"""The anchors suite over each adapter, and what only files can suffer."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tensafe.contracts.errors import ConfigurationError, IntegrityError, InvalidRequest, Unavailable
from tensafe.storage.anchors import Anchors
from tensafe.storage.dynamodb_anchors import DynamoDbAnchors
from tensafe.storage.file_anchors import SLOT_BYTES, FileAnchors
from tensafe.storage.ports import ConditionFailed
from tests.contract.anchors_suite import NAME, AnchorsSuite, mark
from tests.contract.emulators import LOST, TABLE, Wire, create_table, moto_in_process, shared_client
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

    def test_a_folder_that_goes_away_has_not_forgotten_its_marks(self, tmp_path: Path) -> None:
        """A disk that is taken off, say: no mark is not the same as nobody to ask."""
        (tmp_path / "away").mkdir()
        anchors = FileAnchors(tmp_path / "away")
        anchors.put(mark(2), after=None)
        (tmp_path / "away").rename(tmp_path / "elsewhere")
        for act in (lambda: anchors.get(NAME), anchors.all):
            with pytest.raises(Unavailable, match="is missing"):
                act()
        (tmp_path / "elsewhere").rename(tmp_path / "away")
        assert anchors.get(NAME) == mark(2)

    def test_a_failing_disk_is_told(
        self, anchors: Anchors, file: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def failing(_: int) -> None:
            raise OSError(5, "Input/output error")

        monkeypatch.setattr("os.fdatasync", failing)
        with pytest.raises(Unavailable, match="Input/output error"):
            anchors.put(mark(3), after=mark(2))


class TestDynamoDb(AnchorsSuite):
    @pytest.fixture
    def wire(self) -> Iterator[Wire]:
        with moto_in_process(), Wire().between() as wire:
            yield wire

    @pytest.fixture
    def anchors(self, wire: Wire) -> Anchors:
        return DynamoDbAnchors(create_table(), TABLE)

    def test_a_write_whose_answer_was_lost_has_succeeded(self, anchors: Anchors, wire: Wire) -> None:
        """The SDK's own retry finds its write there, and must not call that a lost race."""
        wire.break_next(LOST)
        anchors.put(mark(0), after=None)
        wire.break_next(LOST, LOST)
        anchors.put(mark(1), after=mark(0))
        assert anchors.get(NAME) == mark(1)

    def test_an_equal_mark_of_another_writer_is_a_lost_race(self, anchors: Anchors) -> None:
        anchors.put(mark(1), after=None)
        with pytest.raises(ConditionFailed, match="has moved"):
            anchors.put(mark(1), after=None)

    def test_one_call_for_each(self, anchors: Anchors, wire: Wire) -> None:
        wire.forget()
        anchors.put(mark(0), after=None)
        anchors.get(NAME)
        assert [call.rpartition(".")[2] for call in wire.called] == ["PutItem", "GetItem"]
        assert wire.sent[1]["ConsistentRead"] is True

    def test_a_body_that_a_file_could_not_hold_is_refused(self, anchors: Anchors) -> None:
        with pytest.raises(InvalidRequest, match="at most"):
            anchors.put(mark(0, note="x" * 2000), after=None)

    def test_a_damaged_mark_is_an_error(self, anchors: Anchors, wire: Wire) -> None:
        anchors.put(mark(0), after=None)
        key = {"pk": {"S": NAME}, "sk": {"S": "anchor"}}
        create = {"TableName": TABLE, "Item": key | {"n": {"N": "0"}, "b": {"S": "[]"}, "w": {"S": "x"}}}
        shared_client("dynamodb").put_item(**create)
        for act in (lambda: anchors.get(NAME), anchors.all):
            with pytest.raises(IntegrityError, match="damaged"):
                act()

    def test_an_outage_is_told(self, anchors: Anchors, wire: Wire) -> None:
        wire.break_next(*[(500, {"__type": "InternalServerError"})] * 4)
        with pytest.raises(Unavailable):
            anchors.put(mark(0), after=None)
        assert anchors.get(NAME) is None
