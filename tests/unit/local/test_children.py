"""Back-off, log files, locks, owners and duties: the supervisor's parts without processes."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tensafe.contracts.errors import ConfigurationError
from tensafe.local.children import Backoff, Death
from tensafe.local.lock import DirectoryLock, running_supervisor
from tensafe.local.logs import last_events, open_log, rotate_logs
from tensafe.local.maintenance import Duty, Maintenance
from tensafe.local.owners import Owners


def test_restarts_back_off_and_begin_anew_after_a_stable_life() -> None:
    backoff = Backoff(first_s=0.2, longest_s=10.0, stable_s=60.0)
    assert [round(backoff.after(1.0), 1) for _ in range(8)] == [0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 10.0, 10.0]
    assert backoff.after(60.0) == 0.2
    assert backoff.after(59.9) == 0.4


def test_how_a_death_is_told() -> None:
    assert Death("o", -9, 1.0).cause == "killed by SIGKILL"
    assert Death("o", 3, 1.0).cause == "exit code 3"


def test_logs_are_private_and_rotated_under_those_that_write_them(tmp_path: Path) -> None:
    path = tmp_path / "logs" / "api.log"
    fds = [open_log(path), open_log(path)]  # a child and what it started

    def write(text: str) -> None:
        os.write(fds[len(text) % 2], text.encode())
        rotate_logs(path.parent, rotate_bytes=100)

    write("a" * 100)
    assert path.read_text() == "a" * 100
    write("b")
    assert path.read_text() == ""
    write("c")
    assert path.read_bytes() == b"c"  # at the beginning, not behind a hole
    for letter in "defg":
        write(letter * 101)
    written = [path.with_name(f"api.log.{number}").read_text() for number in (1, 2, 3)]
    assert written == ["g" * 101, "f" * 101, "e" * 101]
    write("h" * 500)
    assert path.with_name("api.log.1").read_text() == "h" * 200
    assert len(list(path.parent.iterdir())) == 4
    for one in (path, path.with_name("api.log.1")):
        assert one.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700
    for fd in fds:
        os.close(fd)


def test_a_log_that_cannot_be_copied_is_left_whole_and_nothing_half_written_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "api.log").write_text("a" * 200)
    (tmp_path / "api.log.3").write_text("oldest")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("tensafe.local.logs.shutil.copyfileobj", full)
    with pytest.raises(OSError, match="No space left"):
        rotate_logs(tmp_path, rotate_bytes=100)
    assert [path.name for path in tmp_path.iterdir()] == ["api.log"]
    assert (tmp_path / "api.log").read_text() == "a" * 200


def test_the_last_events_are_told_without_what_came_before(tmp_path: Path) -> None:
    path = tmp_path / "x.log"
    path.write_text("earlier life\n")
    since = path.stat().st_size
    lines = [
        json.dumps({"level": "INFO", "event": "loading"}),
        "",
        "Traceback (most recent call last):",
        json.dumps({"level": "ERROR", "event": "stopped", "exception": "OSError"}),
        "x" * 1000,
    ]
    with path.open("a") as file:
        file.write("\n".join(lines))
    assert last_events(path, since=since, count=10) == [
        "INFO: loading",
        "Traceback (most recent call last):",
        "ERROR: stopped (OSError)",
        "x" * 300,
    ]
    assert last_events(path, since=since, count=2)[0] == "ERROR: stopped (OSError)"
    assert last_events(tmp_path / "absent") == []
    assert last_events(path, since=10**6, count=1) == ["x" * 300]  # the log was cut meanwhile


def test_one_lock_per_directory_and_a_note_about_who_holds_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tensafe.local.lock._PATIENCE_S", 0.1)
    assert running_supervisor(tmp_path) is None
    with DirectoryLock(tmp_path) as lock:
        lock.describe({"url": "http://127.0.0.1:1"})
        assert running_supervisor(tmp_path) == {"pid": os.getpid(), "url": "http://127.0.0.1:1"}
        with pytest.raises(ConfigurationError, match=f"another supervisor \\(process {os.getpid()}\\)"):
            DirectoryLock(tmp_path)
        assert running_supervisor(tmp_path) is not None
    assert running_supervisor(tmp_path) is None
    DirectoryLock(tmp_path).release()


def test_owners_are_remembered_until_they_are_settled(tmp_path: Path) -> None:
    owners = Owners(tmp_path)
    assert owners.all() == []
    for name in ("a-1", "b-2", "c-3"):
        owners.add(name)
    owners.settle("b-2")
    owners.settle("unknown")
    assert Owners(tmp_path).all() == ["a-1", "c-3"]


def test_an_owner_is_whole_in_the_list_after_one_that_a_full_disk_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    owners, write = Owners(tmp_path), os.write
    monkeypatch.setattr(os, "write", lambda fd, data: write(fd, data[:3]))
    with pytest.raises(OSError, match="No space left"):
        owners.add("a-1")
    monkeypatch.undo()
    owners.add("b-2")
    assert owners.all() == ["a-", "b-2"]


def test_a_duty_that_fails_does_not_stop_the_others_and_is_tried_again(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    now, done = [100.0], []
    monkeypatch.setattr("tensafe.local.maintenance.time.monotonic", lambda: now[0])

    def fail() -> None:
        done.append("fail")
        raise OSError("the disk says: secret")

    maintenance = Maintenance((Duty("first", 1.0, fail), Duty("second", 5.0, lambda: done.append("second"))))
    maintenance.run_due()
    maintenance.run_due()
    assert done == ["fail", "second"]
    now[0] += 1.0
    maintenance.run_due()
    assert done == ["fail", "second", "fail"]
    now[0] += 4.0
    maintenance.run_due()
    assert done[3:] == ["fail", "second"]
    assert [record.getMessage() for record in caplog.records] == ["maintenance failed"] * 3
