"""What vLLM's processes find in their environment, and what their logs may say."""

from __future__ import annotations

import json
import logging
import logging.config
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tensafe.contracts.errors import ConfigurationError
from tensafe_gpu.helora.parameters import MAX_TOKENS
from tensafe_gpu.sampler.engine_logging import EngineFormatter, logging_configuration
from tensafe_gpu.sampler.environment import configure_environment
from tensafe_gpu.sampler.launch import EngineSettings

REPORT = """
import json, os, sys
from tensafe_gpu.sampler.environment import configure_environment
assert not any(name == "vllm" or name.startswith("vllm.") for name in sys.modules)
from pathlib import Path
configure_environment(device=sys.argv[1], threads=3, compile_dir=Path(sys.argv[2]) if sys.argv[2:] else None)
print(json.dumps({k: v for k, v in os.environ.items()}))
"""


def environment_after(device: str, *compile_dir: str, **more: str) -> dict[str, str]:
    command = [sys.executable, "-c", REPORT, device, *compile_dir]
    environment = {**os.environ, "VLLM_CPU_KVCACHE_SPACE": "7", **more}
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    return json.loads(done.stdout)


def test_cpu() -> None:
    found = environment_after("cpu")
    expected = {
        "OMP_NUM_THREADS": "3",
        "VLLM_USE_V2_MODEL_RUNNER": "0",
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        "HF_HUB_OFFLINE": "1",
        "VLLM_PLUGINS": "",
        "VLLM_HOST_IP": "127.0.0.1",
        "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
        "MALLOC_MMAP_THRESHOLD_": "33554432",
        "MALLOC_TRIM_THRESHOLD_": "268435456",
    }
    assert found | expected == found
    # The engine gets bytes, so that no other size can stand beside the context limit made for it.
    assert "VLLM_CPU_KVCACHE_SPACE" not in found


def test_cuda_keeps_the_compiler_and_its_own_memory_rule() -> None:
    found = environment_after("cuda")
    assert "TORCHDYNAMO_DISABLE" not in found
    assert found["VLLM_NO_USAGE_STATS"] == "1"
    assert found["VLLM_USE_FLASHINFER_SAMPLER"] == "0"
    assert "TRITON_CACHE_DIR" not in found


def test_on_cuda_triton_finds_the_driver_that_the_image_brings(tmp_path: Path) -> None:
    """Triton looks it up in its cache, where it also writes: the image itself cannot be written to."""
    driver = tmp_path / "image/KEY/cuda_utils.so"
    driver.parent.mkdir(parents=True)
    driver.write_bytes(b"driver")
    own = tmp_path / "tmp"
    own.mkdir()
    told = {"TENSAFE_TRITON_DRIVER": str(tmp_path / "image"), "TMPDIR": str(own)}
    cache = Path(environment_after("cuda", **told)["TRITON_CACHE_DIR"])
    assert cache.parent == own
    assert (cache / "KEY/cuda_utils.so").read_bytes() == b"driver"
    assert cache.stat().st_mode & 0o777 == 0o700
    assert "TRITON_CACHE_DIR" not in environment_after("cpu", **told)
    kept = tmp_path / "kept"
    for _ in range(2):  # the folder outlives the process
        found = environment_after("cuda", str(kept), **told)
        assert found["TRITON_CACHE_DIR"] == str(kept / "triton")
        assert (kept / "triton/KEY/cuda_utils.so").read_bytes() == b"driver"


def test_no_threads_are_refused() -> None:
    with pytest.raises(ConfigurationError):
        configure_environment(threads=0)


def test_an_imported_vllm_is_refused() -> None:
    script = (
        "import sys, types; sys.modules['vllm'] = types.ModuleType('vllm');"
        "from tensafe_gpu.sampler.environment import configure_environment; configure_environment()"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert "before anything imports vllm" in done.stderr


def test_logs_of_the_engine_quote_no_request(monkeypatch: pytest.MonkeyPatch) -> None:
    configuration = json.loads(logging_configuration())
    for name in ("vllm.logging_utils.dump_input", "vllm.v1.engine.detokenizer"):
        assert configuration["loggers"][name] == {"level": "CRITICAL", "handlers": [], "propagate": False}
    formatter = EngineFormatter("sampler-engine")
    try:
        raise ValueError("stop=['my secret']")
    except ValueError:
        record = logging.LogRecord("vllm", logging.ERROR, "f", 1, "step failed", (), sys.exc_info())
    monkeypatch.setattr(EngineFormatter, "_requests_may_come", False)
    assert json.loads(formatter.format(record))["reason"] == "stop=['my secret']"
    EngineFormatter.requests_may_come()
    assert "secret" not in formatter.format(record)
    assert json.loads(formatter.format(record))["exception"] == "ValueError"


WITHOUT_VLLM = """
import pathlib, sys
from tensafe_gpu.sampler.environment import configure_environment
from tensafe_gpu.sampler.launch import EngineSettings, launch
configure_environment()
sys.modules["vllm"] = None
folder = pathlib.Path(sys.argv[1])
launch(EngineSettings(folder, "auto", 64, 1, 8, 1, 1), folder)
"""


def test_vllm_01_without_vllm_nothing_stands_in_for_it(tmp_path: Path) -> None:
    """VLLM-01: an earlier system went on without the library; here the error says how to install it."""
    (tmp_path / "config.json").write_text("{}")
    command = [sys.executable, "-c", WITHOUT_VLLM, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "ImportError: sampling needs vLLM: pip install 'tensafe[sampler]'" in done.stderr


def test_a_pass_beside_private_adapters_fits_into_one_request(tmp_path: Path) -> None:
    """Of an adapter holder, which takes no more tokens at once: it is not found out in a pass."""
    (tmp_path / "config.json").write_text("{}")
    for sequences, key_holder, refused in ((4096, "m:f", False), (4097, "m:f", True), (4097, None, False)):
        settings = (tmp_path, "auto", 64, 1, 8, 1, sequences)
        if refused:
            with pytest.raises(ConfigurationError, match="at most 4096 sequences"):
                EngineSettings(*settings, key_holder=key_holder)  # type: ignore[arg-type]
        else:
            made = EngineSettings(*settings, key_holder=key_holder)  # type: ignore[arg-type]
            assert made.step_tokens == sequences
    usual = EngineSettings(tmp_path, "auto", 64, 1, 8, 1, 8, key_holder="m:f")
    assert usual.step_tokens == 2048 <= MAX_TOKENS
