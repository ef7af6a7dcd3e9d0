"""What a sampler needs before it compiles its passes, and what it puts into vLLM's environment then."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tensafe.contracts.errors import ConfigurationError, Unsupported
from tensafe.local.settings import read_settings
from tensafe_gpu.sampler.adapters import Adapter
from tensafe_gpu.sampler.compiling import compiler_variables
from tensafe_gpu.sampler.loading import AdapterLoading

REPORT = """
import json, os, pathlib, sys
from tensafe_gpu.sampler.environment import configure_environment
from tensafe_gpu.sampler.launch import EngineSettings
device, model, folder, key_holder = sys.argv[1:]
configure_environment(device=device, compile_dir=pathlib.Path(folder) if folder else None)
settings = EngineSettings(pathlib.Path(model), "auto", 64, 2, 8, 4, 8, key_holder=key_holder or None)
print(json.dumps([dict(os.environ), settings.vllm_arguments()]))
"""


def settings_on(device: str, model: Path, folder: str, key_holder: str = "") -> tuple[dict, dict]:
    (model / "config.json").write_text("{}")
    command = [sys.executable, "-c", REPORT, device, str(model), folder, key_holder]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    environment, arguments = json.loads(done.stdout)
    return environment, arguments


def test_on_cpu_compiling_leaves_ordinary_adapters_out(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "compiled"
    environment, arguments = settings_on("cpu", tmp_path, str(folder), "m:f")
    assert not arguments["enforce_eager"]
    assert not [name for name in arguments if "lora" in name]
    assert "TORCHDYNAMO_DISABLE" not in environment
    for name in ("TORCHINDUCTOR_CACHE_DIR", "VLLM_CACHE_ROOT", "TRITON_CACHE_DIR"):
        assert Path(environment[name]).parent == folder
    assert environment["VLLM_USE_AOT_COMPILE"] == "0"
    assert folder.stat().st_mode & 0o777 == 0o700
    environment, arguments = settings_on("cpu", tmp_path, "", "m:f")
    assert arguments["enforce_eager"]
    assert arguments["enable_lora"]
    assert environment["TORCHDYNAMO_DISABLE"] == "1"


def test_on_cuda_passes_are_captured_in_pieces_or_not_at_all_beside_private_adapters(tmp_path: Path) -> None:
    folder = str(tmp_path / "compiled")
    _, compiled = settings_on("cuda", tmp_path, folder, "m:f")
    assert not compiled["enforce_eager"]
    assert compiled["enable_lora"]
    assert compiled["compilation_config"] == {"cudagraph_mode": "PIECEWISE"}
    _, eager = settings_on("cuda", tmp_path, "", "m:f")
    assert eager["enforce_eager"]
    _, base_only = settings_on("cuda", tmp_path, "")
    assert not base_only["enforce_eager"]
    assert "compilation_config" not in base_only


def test_without_a_compiler_it_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(ConfigurationError, match=r"g\+\+ is not installed") as refused:
        compiler_variables(tmp_path / "compiled", "cpu")
    assert refused.value.field == "compile_dir"
    compiler_variables(tmp_path / "compiled", "cuda")


def test_without_pythons_headers_it_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sysconfig.get_path", lambda _: str(tmp_path))
    with pytest.raises(ConfigurationError, match="headers"):
        compiler_variables(tmp_path / "compiled", "cpu")


@pytest.mark.parametrize("how", ["others may write", "a link", "a file"])
def test_code_is_not_run_from_a_folder_that_others_reach(tmp_path: Path, how: str) -> None:
    folder = tmp_path / "compiled"
    if how == "others may write":
        folder.mkdir()
        folder.chmod(0o770)
    elif how == "a link":
        (tmp_path / "elsewhere").mkdir(mode=0o700)
        folder.symlink_to(tmp_path / "elsewhere")
    else:
        folder.write_text("")
    with pytest.raises(ConfigurationError) as refused:
        compiler_variables(folder, "cuda")
    assert refused.value.field == "compile_dir"


def test_an_ordinary_adapter_is_refused_by_the_name_of_the_setting() -> None:
    loading = AdapterLoading(None, None, None, None, None)  # type: ignore[arg-type] - none is reached
    work = loading.load(1, Adapter("A", "1", {}))
    with pytest.raises(Unsupported, match="TENSAFE_COMPILE_DIR") as refused:
        work.send(None)
    assert refused.value.field == "adapter"


def test_the_setting_reaches_a_task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TENSAFE_DATA_DIR", str(tmp_path))
    monkeypatch.setenv("TENSAFE_COMPILE_DIR", str(tmp_path / "c"))
    settings = read_settings()
    assert settings.compile_dir == tmp_path / "c"
    assert settings.as_environment()["TENSAFE_COMPILE_DIR"] == os.fspath(tmp_path / "c")
