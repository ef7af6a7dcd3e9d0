"""What compiling the engine's passes needs: a folder that nobody else can write to, and on CPU a compiler.

vLLM compiles a model when it is loaded, and torch runs what the compiler made, now and at the next start. Its
own default for that is a folder under /tmp with a name that anybody can take first.
"""

from __future__ import annotations

import os
import shutil
import stat
import sysconfig
from pathlib import Path
from typing import Final

from tensafe.contracts.errors import ConfigurationError

FIELD: Final = "compile_dir"


def compiler_variables(directory: Path, device: str) -> dict[str, str]:
    """The variables by which torch and vLLM keep what they compile below `directory`; it is made if absent.

    Raises ConfigurationError if somebody else can write there, or on CPU if there is no compiler.
    """
    if device == "cpu":
        _require_compiler()
    _require_own(directory)
    return {
        "VLLM_CACHE_ROOT": str(directory / "vllm"),
        "TORCHINDUCTOR_CACHE_DIR": str(directory / "inductor"),
        "TRITON_CACHE_DIR": str(directory / "triton"),
        # vLLM would load a whole graph made under the same configuration, and does not count among that
        # which classes the layers had: one made without private adapters has not their operator.
        "VLLM_USE_AOT_COMPILE": "0",
    }


def _require_compiler() -> None:
    compiler = os.environ.get("CXX") or "g++"
    if shutil.which(compiler) is None:
        raise ConfigurationError(
            f"compiling on CPU needs a C++ compiler, and {compiler} is not installed; install it, or start "
            "the sampler without TENSAFE_COMPILE_DIR",
            field=FIELD,
        )
    if not (Path(sysconfig.get_path("include")) / "Python.h").is_file():
        raise ConfigurationError(
            "compiling on CPU needs Python's headers (python3-dev); install them, or start the sampler "
            "without TENSAFE_COMPILE_DIR",
            field=FIELD,
        )


def _require_own(directory: Path) -> None:
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = directory.lstat()
    except OSError as error:
        reason = os.strerror(error.errno or 0)
        raise ConfigurationError(f"{directory} cannot hold compiled code: {reason}", field=FIELD) from error
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o022:
        raise ConfigurationError(
            f"{directory} must be a folder of this user that nobody else can write to: what is in it is run",
            field=FIELD,
        )
