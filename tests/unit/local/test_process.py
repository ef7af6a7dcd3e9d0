"""What a process of the service asks of the kernel when it starts."""

from __future__ import annotations

import subprocess
import sys

CODE = """
import resource
from tensafe.local.process import open_files_as_may_be
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 4000))
open_files_as_may_be()
print(*resource.getrlimit(resource.RLIMIT_NOFILE))
"""


def test_connections_are_not_bounded_by_what_the_shell_gives() -> None:
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["4000", "4000"]
