"""The blobs port on its adapters, and what only the embedded one promises."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Callable
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest

from tensafe.contracts.errors import IntegrityError, InvalidRequest, Unauthenticated
from tensafe.storage.file_blobs import FileBlobs
from tensafe.storage.ports import BlobMissing, Blobs
from tests.contract.blobs_suite import BlobsSuite, Refused
from tests.contract.children import blob_bytes, open_blobs
from tests.contract.processes import Child
from tests.fakes import MemoryBlobs

BASE_URL = "http://127.0.0.1/blobs"


def follow_on(blobs: FileBlobs | MemoryBlobs) -> Callable[[str], bytes]:
    def follow(url: str) -> bytes:
        assert url.startswith(f"{BASE_URL}/")
        parts = urlsplit(url)
        query = {name: values[0] for name, values in parse_qs(parts.query).items()}
        key = parts.path.removeprefix("/blobs/")
        try:
            return blobs.open_presigned(key, int(query["expires"]), query["signature"])
        except (Unauthenticated, InvalidRequest, BlobMissing) as error:
            raise Refused from error

    return follow


class TestFileBlobs(BlobsSuite):
    @pytest.fixture
    def blobs(self, tmp_path: Path) -> Blobs:
        return open_blobs(tmp_path)

    @pytest.fixture
    def follow(self, blobs: FileBlobs) -> Callable[[str], bytes]:
        return follow_on(blobs)

    @pytest.fixture
    def damage(self, tmp_path: Path) -> Callable[[str], None]:
        def damage(key: str) -> None:
            path = file_of(tmp_path, key)
            raw = bytearray(path.read_bytes())
            raw[-1] ^= 1
            path.write_bytes(raw)

        return damage


class TestMemoryBlobs(BlobsSuite):
    @pytest.fixture
    def blobs(self) -> Blobs:
        return MemoryBlobs(base_url=BASE_URL)

    @pytest.fixture
    def follow(self, blobs: MemoryBlobs) -> Callable[[str], bytes]:
        return follow_on(blobs)

    @pytest.fixture
    def damage(self, blobs: MemoryBlobs) -> Callable[[str], None]:
        def damage(key: str) -> None:
            info, data = blobs.stored[key]
            blobs.stored[key] = (info, data[:-1] + bytes([data[-1] ^ 1]))

        return damage


def file_of(folder: Path, key: str) -> Path:
    name = hashlib.sha256(key.encode()).hexdigest()
    return folder / "blobs" / name[:2] / name


class TestFiles:
    def test_only_the_owner_can_read(self, tmp_path: Path) -> None:
        old_umask = os.umask(0)
        try:
            open_blobs(tmp_path).put("a/b", b"x")
        finally:
            os.umask(old_umask)
        modes = {
            path.is_dir(): stat.S_IMODE(path.stat().st_mode)
            for path in [tmp_path / "blobs", *(tmp_path / "blobs").rglob("*")]
        }
        assert modes == {True: 0o700, False: 0o600}
        assert file_of(tmp_path, "a/b").is_file()

    @pytest.mark.parametrize("cut", [0, 5, 12, 60, -1])
    def test_a_file_that_was_cut_is_never_read(self, tmp_path: Path, cut: int) -> None:
        blobs = open_blobs(tmp_path)
        blobs.put("a", b"0123456789")
        path = file_of(tmp_path, "a")
        path.write_bytes(path.read_bytes()[:cut])
        with pytest.raises(IntegrityError):
            blobs.get("a")
        with pytest.raises(IntegrityError):
            blobs.get("a", offset=2, length=2)
        with pytest.raises(IntegrityError):
            blobs.head("a")

    def test_files_that_were_exchanged_are_seen(self, tmp_path: Path) -> None:
        blobs = open_blobs(tmp_path)
        blobs.put("a", b"contents of a")
        blobs.put("b", b"contents of b")
        file_of(tmp_path, "a").write_bytes(file_of(tmp_path, "b").read_bytes())
        with pytest.raises(IntegrityError):
            blobs.get("a")

    def test_a_put_over_a_damaged_blob_is_not_called_the_same(self, tmp_path: Path) -> None:
        blobs = open_blobs(tmp_path)
        blobs.put("a", b"0123456789")
        path = file_of(tmp_path, "a")
        path.write_bytes(path.read_bytes()[:-1] + b"x")
        with pytest.raises(IntegrityError):
            blobs.put("a", b"0123456789")

    def test_nothing_is_left_beside_the_blobs(self, tmp_path: Path) -> None:
        blobs = open_blobs(tmp_path)
        blobs.put("a", b"x")
        blobs.put("a", b"x")
        assert list((tmp_path / "blobs" / "unfinished").iterdir()) == []

    def test_what_a_killed_writer_left_is_removed_a_day_later(self, tmp_path: Path) -> None:
        open_blobs(tmp_path)
        left, fresh = (tmp_path / "blobs" / "unfinished" / name for name in ("left", "fresh"))
        for path in (left, fresh):
            path.write_bytes(b"x")
        os.utime(left, (0, 0))
        open_blobs(tmp_path)
        assert (left.exists(), fresh.exists()) == (False, True)


class TestAcrossProcesses:
    def test_state_01_acknowledged_blobs_survive_sigkill(
        self, tmp_path: Path, child: Callable[..., Child]
    ) -> None:
        acknowledged, attempted = [], 0
        for life, kill_after in enumerate((1, 40, 17)):
            writer = child("put_blobs", tmp_path, life * 1_000_000)
            seen = [writer.line() for _ in range(kill_after)]
            acknowledged += seen + writer.kill()
            attempted += 1
        blobs = open_blobs(tmp_path)
        for number in acknowledged:
            assert blobs.get(f"runs/{number}") == blob_bytes(number)
        stored = [path for path in (tmp_path / "blobs").glob("??/*") if path.is_file()]
        assert len(acknowledged) <= len(stored) <= len(acknowledged) + attempted

    def test_of_several_processes_one_writes(self, tmp_path: Path, child: Callable[..., Child]) -> None:
        racers = [child("race_for_blobs", tmp_path, str(n), 60) for n in range(4)]
        for racer in racers:
            racer.tell()
        wins = {str(n): [int(line) for line in racer.rest()] for n, racer in enumerate(racers)}
        assert sorted(n for won in wins.values() for n in won) == list(range(60))
        blobs = open_blobs(tmp_path)
        for mine, won in wins.items():
            assert all(blobs.get(f"race/{number}") == mine.encode() * 1000 for number in won)
