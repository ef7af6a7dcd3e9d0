"""PKG-02: the images of the GPU tasks, built for real: who runs in them, what is in them, who gets healthy.

TENSAFE_IMAGES names those that are built (all if unset), TENSAFE_ACCELERATOR for what (cpu if unset);
TENSAFE_REQUIRE_IMAGES=1 forbids skipping.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final, cast

import pytest

from infra.images.triton_driver import make_library, symbols_of
from tensafe.local.models import describe
from tests.support.tiny_models import tiny_model
from tools.buildah import buildah, environment, line_in, why_not
from tools.images import build_all, image_name, images_for
from tools.locks import Accelerator

ACCELERATOR: Final = cast("Accelerator", os.environ.get("TENSAFE_ACCELERATOR") or "cpu")
IMAGES: Final = os.environ.get("TENSAFE_IMAGES", "").split() or images_for(ACCELERATOR)
REASON: Final = why_not()
REQUIRED: Final = os.environ.get("TENSAFE_REQUIRE_IMAGES") == "1"
HEALTH: Final = ["CMD", "python", "-m", "tensafe_gpu.healthcheck"]
USER: Final = 10001
ADDRESS: Final = "unix:/data/holder/socket"
SERVE: Final = {
    "trainer": ("trainer", "--model", "tiny"),
    "sampler": ("sampler", "--model", "tiny"),
    "adapter_holder": ("adapter_holder", "serve", "--data-dir", "/data/holder", "--listen", ADDRESS),
}

pytestmark = [
    pytest.mark.images,
    pytest.mark.slow,
    pytest.mark.timeout(1200),
    pytest.mark.skipif(REASON is not None and not REQUIRED, reason=str(REASON)),
]


@pytest.fixture(scope="module")
def built() -> None:
    if REASON is not None:
        pytest.fail(REASON, pytrace=False)
    try:
        build_all(IMAGES, ACCELERATOR)
    except subprocess.CalledProcessError as error:
        pytest.fail(f"{error.cmd[0]} failed: see what it printed above", pytrace=False)


@pytest.fixture(scope="module", params=IMAGES)
def task(request: pytest.FixtureRequest, built: None) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def container(task: str) -> Iterator[str]:
    name = buildah("from", image_name(task, ACCELERATOR), capture=True)
    yield name
    buildah("rm", name, capture=True)


def run(container: str, *command: str, volumes: Mapping[Path, str] | None = None) -> str:
    """What the command printed. Raises CalledProcessError."""
    line = line_in(container, *command, volumes=volumes)
    done = subprocess.run(line, env=environment(), capture_output=True, text=True, check=True)
    return done.stdout.strip()


def run_bytes(container: str, *command: str) -> bytes:
    """As `run`, untouched."""
    line = line_in(container, *command)
    return subprocess.run(line, env=environment(), capture_output=True, check=True).stdout


def healthy(container: str) -> bool:
    line = line_in(container, *HEALTH[1:])
    return subprocess.run(line, env=environment(), capture_output=True, check=False).returncode == 0


def test_pkg_02_an_image_says_who_runs_and_how_its_health_is_asked(task: str) -> None:
    config = json.loads(buildah("inspect", "--type=image", image_name(task, ACCELERATOR), capture=True))[
        "Docker"
    ]["config"]
    assert config["User"] == f"{USER}:{USER}"
    assert config["Healthcheck"]["Test"] == HEALTH
    assert config["Cmd"][:3] == ["python", "-m", f"tensafe_gpu.{task}"]


def test_pkg_02_nobody_is_root_and_nothing_but_wheels_is_there(container: str) -> None:
    assert run(container, "id", "-u") == str(USER)
    shown = "import tensafe, tensafe_gpu; print(tensafe.__file__, tensafe_gpu.__file__)"
    where = run(container, "python", "-c", shown).split()
    assert [path.startswith("/opt/tensafe/lib/python3.11/site-packages/") for path in where] == [True, True]
    left = (
        "ls -d /src /wheels /wheelhouse/* /nonexistent 2>/dev/null; command -v cc gcc g++ ld make pip; true"
    )
    assert run(container, "sh", "-c", left) == ""
    with pytest.raises(subprocess.CalledProcessError):
        run(container, "touch", "/opt/tensafe/lib/python3.11/site-packages/tensafe/x")


def test_pkg_02_what_lies_in_the_working_directory_is_not_imported(container: str) -> None:
    """It is where a task may write."""
    shown = "import os, tensafe_gpu; print(os.getcwd(), tensafe_gpu.__file__)"
    planted = "mkdir tensafe_gpu && echo 'raise SystemExit(9)' > tensafe_gpu/__init__.py"
    said = run(container, "sh", "-c", f"{planted} && python -c '{shown}'; rm -r tensafe_gpu")
    assert said.startswith("/tmp /opt/tensafe/")


def deployment(task: str, container: str, folder: Path) -> tuple[dict[Path, str], dict[str, str]]:
    """Host folders with a model and an initialised data directory for the task, and its variables."""
    model, data = folder / "model", folder / "data"
    info = describe("tiny", Path(tiny_model(model, hidden=128))).model_copy(update={"path": "/models/tiny"})
    data.mkdir()
    for file in (data, model, *model.iterdir()):
        shutil.chown(file, USER, USER)
    volumes = {data: "/data", model: "/models/tiny"}
    variables = {
        "TENSAFE_DATA_DIR": "/data",
        "TENSAFE_MODELS": json.dumps([info.model_dump(mode="json")]),
        "OMP_NUM_THREADS": "1",
    }
    if task == "adapter_holder":
        init = ("python", "-m", "tensafe_gpu.adapter_holder", "init", "--data-dir", "/data/holder")
    else:
        init = ("tensafe", "init", "--data-dir", "/data")
    run(container, *init, volumes=volumes)
    return volumes, variables


def command(task: str) -> tuple[str, ...]:
    return ("python", "-m", f"tensafe_gpu.{SERVE[task][0]}", *SERVE[task][1:])


def test_pkg_02_a_task_in_its_image_gets_healthy(task: str, container: str, tmp_path: Path) -> None:
    """On the embedded adapters, with a data directory of the host's; before it runs it is not healthy."""
    if (task, ACCELERATOR) == ("sampler", "cuda"):
        pytest.skip("vLLM for CUDA computes on a GPU alone")
    assert not healthy(container)
    volumes, variables = deployment(task, container, tmp_path)
    line = line_in(container, *command(task), volumes=volumes, variables=variables)
    log = tmp_path / "task.log"
    with log.open("wb") as file:
        process = subprocess.Popen(line, env=environment(), stdout=file, stderr=file)
    try:
        deadline = time.monotonic() + 300
        # It is healthy while it loads, so that alone is not enough.
        while f"{task.replace('_', ' ')} ready" not in log.read_text() or not healthy(container):
            assert process.poll() is None, log.read_text()[-2000:]
            assert time.monotonic() < deadline, log.read_text()[-2000:]
            time.sleep(0.5)
        if task == "adapter_holder":
            assert (tmp_path / "data/holder/socket").is_socket()
    finally:
        process.terminate()
        process.wait(60)


def refusal(container: str, task: str, volumes: Mapping[Path, str], variables: Mapping[str, str]) -> str:
    """What a task said that ended before it served."""
    line = line_in(container, *command(task), volumes=volumes, variables=variables)
    done = subprocess.run(line, env=environment(), capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode != 0
    return done.stderr


def test_a_task_that_is_told_cuda_without_a_gpu_says_what_is_missing(task: str, container: str) -> None:
    if task == "adapter_holder":
        pytest.skip("it computes on a CPU alone")
    said = refusal(container, task, {}, {"TENSAFE_DATA_DIR": "/absent", "TENSAFE_DEVICE": "cuda"})
    missing = "sees no GPU" if ACCELERATOR == "cuda" else "built for a CPU, as requirements/lock.txt has it"
    assert "TENSAFE_DEVICE is cuda, and torch 2.13.0" in said
    assert missing in said
    assert "Traceback" not in said


@pytest.mark.skipif(ACCELERATOR != "cuda", reason="of an image for CUDA")
def test_a_sampler_for_cuda_does_not_begin_on_a_cpu(task: str, container: str, tmp_path: Path) -> None:
    if task != "sampler":
        pytest.skip("torch for CUDA computes on a CPU too")
    said = refusal(container, task, *deployment(task, container, tmp_path))
    assert "TENSAFE_DEVICE is cpu, and the vLLM here is not built for it" in said


@pytest.mark.skipif(ACCELERATOR != "cuda", reason="of an image for CUDA")
@pytest.mark.skipif(shutil.which("gcc") is None, reason="a stand-in for NVIDIA's driver needs gcc")
def test_triton_finds_its_driver_in_a_sampler_without_a_compiler(
    task: str, container: str, tmp_path: Path
) -> None:
    """Linked to a library of the name of NVIDIA's that has the functions and does nothing."""
    if task != "sampler":
        pytest.skip("torch alone compiles nothing")
    (made,) = run(container, "sh", "-c", "echo /opt/tensafe/triton/*/*.so").split()
    stub, module = tmp_path / "stub", tmp_path / "module.so"
    stub.mkdir()
    module.write_bytes(run_bytes(container, "cat", made))
    make_library(stub, symbols_of(module))
    shutil.chown(stub, USER, USER)
    load = "from triton.backends.nvidia.driver import CudaUtils; print(CudaUtils().launch.__name__)"
    ours = "from tensafe_gpu.sampler.environment import configure_environment as c; c(device='cuda'); "
    volumes, variables = {stub: "/stub"}, {"LD_LIBRARY_PATH": "/stub"}
    told = subprocess.run(
        line_in(container, "python", "-c", ours + load, volumes=volumes, variables=variables),
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert told.stdout == "launch\n", told.stderr[-2000:]
    without = subprocess.run(
        line_in(container, "python", "-c", load, volumes=volumes, variables=variables),
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert "Failed to find C compiler" in without.stderr
