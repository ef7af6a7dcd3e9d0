"""Where an adapter holder listens: its socket is its user's alone, and nothing else is taken away for it."""

from __future__ import annotations

import fcntl
import os
import socket
import stat
import threading
import time
from pathlib import Path

import pytest

from tensafe.contracts.errors import ConfigurationError
from tensafe_gpu.adapter_holder import sockets
from tensafe_gpu.adapter_holder.sockets import unix_listener
from tensafe_gpu.helora.burned import BurnLog
from tests.support.helora import adapter_holder, peft_files, policy


def test_a_socket_is_its_users_alone_whatever_the_mask(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        with unix_listener(tmp_path / "s"):
            assert stat.S_IMODE((tmp_path / "s").stat().st_mode) == 0o600
        assert os.umask(0) == 0  # and the mask is what it was
    finally:
        os.umask(before)


def test_what_a_process_that_ended_left_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "s"
    unix_listener(path).close()
    assert path.is_socket()
    with unix_listener(path), socket.socket(socket.AF_UNIX) as peer:
        peer.connect(str(path))


@pytest.mark.parametrize("what", ["file", "folder", "link"])
def test_anything_else_stays_as_it_is(tmp_path: Path, what: str) -> None:
    """A key file, say: with it every adapter of its folder would be lost."""
    path, key = tmp_path / "s", tmp_path / "key.json"
    key.write_text("key")
    if what == "file":
        path.write_text("key")
    elif what == "folder":
        path.mkdir()
    else:
        path.symlink_to(key)
    with pytest.raises(ConfigurationError, match="no socket: name another path"):
        unix_listener(path)
    assert path.is_symlink() if what == "link" else path.exists()
    assert key.read_text() == "key"


def test_a_socket_that_is_served_is_not_taken(tmp_path: Path) -> None:
    with adapter_holder(tmp_path / "holder") as holder:
        holder.store.publish("a", peft_files(64, 4), base_model="base", policy=policy())
        with pytest.raises(ConfigurationError, match="served by another process"):
            unix_listener(holder.socket)
        burn_log = BurnLog(tmp_path / "burned.db")
        holder.key_holder(burn_log).close()
        burn_log.close()


def test_a_place_where_nothing_can_be_put_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file" / "s", tmp_path / "absent" / "s"):
        with pytest.raises(ConfigurationError, match="cannot listen on"):
            unix_listener(path)


class _OfTwo(socket.socket):
    """A socket whose process asks who serves a path, and is not scheduled for a while."""

    def connect(self, address: object) -> None:
        try:
            super().connect(address)  # type: ignore[arg-type]
        finally:
            time.sleep(0.2)


def test_of_two_that_start_at_once_in_place_of_a_dead_one_one_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both find that nobody serves it; one would take away what the other has made, where nobody finds it."""
    path, started = tmp_path / "s", list[socket.socket | ConfigurationError]()
    unix_listener(path).close()

    def start() -> None:
        try:
            started.append(unix_listener(path))
        except ConfigurationError as error:
            started.append(error)

    monkeypatch.setattr(sockets.socket, "socket", _OfTwo)
    threads = [threading.Thread(target=start) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    monkeypatch.undo()
    (refused,) = [one for one in started if isinstance(one, ConfigurationError)]
    assert "served by another process" in refused.message
    (serves,) = [one for one in started if isinstance(one, socket.socket)]
    with serves, socket.socket(socket.AF_UNIX) as peer:
        peer.connect(str(path))
        serves.accept()[0].close()


def test_one_that_begins_to_listen_and_does_not_end_is_not_waited_for_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sockets, "_BEGINS_S", 0.1)
    path, beside = tmp_path / "s", tmp_path / ".s.lock"
    unix_listener(path).close()
    assert stat.S_IMODE(beside.stat().st_mode) == 0o600
    with beside.open("w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(ConfigurationError, match="another process that begins to listen"):
            unix_listener(path)
    unix_listener(path).close()


def test_nobody_who_may_read_its_folder_keeps_it_from_listening(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A lock needs no right to write."""
    monkeypatch.setattr(sockets, "_BEGINS_S", 0.1)
    folder = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(folder, fcntl.LOCK_EX)
    unix_listener(tmp_path / "s").close()
    os.close(folder)
    (tmp_path / ".t.lock").symlink_to(tmp_path / "key.json")
    with pytest.raises(ConfigurationError, match="cannot listen on"):
        unix_listener(tmp_path / "t")
    assert not (tmp_path / "key.json").exists()
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    with pytest.raises(ConfigurationError, match="another user's"):
        unix_listener(tmp_path / "s")
