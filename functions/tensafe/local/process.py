"""What every process of a deployment does first: not outlive its supervisor, not dump its memory."""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import sys
from typing import Final

SUPERVISOR_PID_VARIABLE: Final = "TENSAFE_SUPERVISOR_PID"
OWNER_VARIABLE: Final = "TENSAFE_OWNER"
_PR_SET_PDEATHSIG: Final = 1


def die_with_parent() -> None:
    """Ask the kernel for SIGKILL when the parent dies; a child must not outlive its supervisor.

    The supervisor names itself in the environment, since it may have died while this process was still
    importing: then the parent is already another one. On ECS the parent is the container's init, no
    supervisor is named, and this changes nothing.
    """
    expected = int(os.environ.get(SUPERVISOR_PID_VARIABLE) or os.getppid())
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != expected:
        sys.exit("the supervisor died during start-up")


def open_files_as_may_be() -> None:
    """As many open files as the hard limit allows: a connection is one, and shells often give 1,024."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def forbid_core_dumps() -> None:
    """No core dump of this process and of those that it starts: it would hold keys and training data.

    A limit of one byte rather than none: the kernel ignores a limit of zero where a program collects
    dumps through a pipe, and takes one to mean no dump at all (core(5), fs/coredump.c).
    """
    _, hard = resource.getrlimit(resource.RLIMIT_CORE)
    limit = 1 if hard == resource.RLIM_INFINITY else min(1, hard)
    resource.setrlimit(resource.RLIMIT_CORE, (limit, limit))
