"""Plaintext on disk is refused; in memory it is private, and never outlives its owner for long."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from tensafe.contracts.errors import ConfigurationError
from tensafe_gpu.sampler.private_files import PrivateDirectory, require_memory_backed

MEMORY = Path("/dev/shm")


@pytest.fixture
def root() -> Path:
    """A folder in memory for this test alone."""
    folder = MEMORY / f"tensafe-test-{os.getpid()}"
    folder.mkdir()
    yield folder
    subprocess.run(["rm", "-rf", str(folder)], check=True)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_disk_is_refused(tmp_path: Path) -> None:
    disk = next(p for p in (Path("/usr"), Path.home()) if not _is_memory(p))
    with pytest.raises(ConfigurationError, match="not in memory"):
        require_memory_backed(disk)
    with pytest.raises(ConfigurationError, match="No such file"):
        require_memory_backed(tmp_path / "absent")


def _is_memory(path: Path) -> bool:
    mounts = [line.split()[1:3] for line in Path("/proc/mounts").read_text().splitlines()]
    inside = [(mount, kind) for mount, kind in mounts if path.is_relative_to(mount)]
    return max(inside, key=lambda entry: len(entry[0]))[1] in ("tmpfs", "ramfs")


def test_files_are_private_and_removable(root: Path) -> None:
    private = PrivateDirectory(root)
    folder = private.write({"a.json": b"{}", "b.bin": b"secret"})
    assert mode(private.path) == mode(folder) == 0o700
    assert {path.name: (path.read_bytes(), mode(path)) for path in folder.iterdir()} == {
        "a.json": (b"{}", 0o600),
        "b.bin": (b"secret", 0o600),
    }
    assert private.write({}) != folder
    private.remove(folder)
    assert not folder.exists()
    private.close()
    private.close()
    assert list(root.iterdir()) == []


def test_a_file_name_cannot_leave_the_folder(root: Path) -> None:
    private = PrivateDirectory(root)
    with pytest.raises(ValueError, match="path"):
        private.write({"good": b"1", "../outside": b"2"})
    assert list(private.path.iterdir()) == []
    private.close()


def test_a_dead_owner_is_swept_and_a_living_one_is_not(root: Path) -> None:
    script = (
        "import sys, os, pathlib; from tensafe_gpu.sampler.private_files import PrivateDirectory;"
        "p = PrivateDirectory(pathlib.Path(sys.argv[1])); p.write({'weights': b'secret'});"
        "print(p.path, flush=True); sys.stdin.read()"
    )
    arguments = [sys.executable, "-c", script, str(root)]
    owner = subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    left = Path(owner.stdout.readline().strip())
    PrivateDirectory(root).close()
    assert left.is_dir()
    owner.kill()
    owner.wait()
    assert left.is_dir()
    PrivateDirectory(root).close()
    assert list(root.iterdir()) == []
    owner.stdin.close()
    owner.stdout.close()
