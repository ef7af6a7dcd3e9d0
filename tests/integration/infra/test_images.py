"""The images that `make images` built: who runs in them, what is in them, and that a task gets healthy."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tensafe.local.models import describe
from tests.support.tiny_models import tiny_model
from tools.images import EXTRAS, STORE, buildah

BUILT = os.environ.get("TENSAFE_IMAGES", "")
IMAGES = list(EXTRAS) if BUILT == "all" else BUILT.split()
pytestmark = [
    pytest.mark.images,
    pytest.mark.skipif(not BUILT, reason="images are built and tested by `make images`"),
]
HEALTH = ("python", "-m", "tensafe_gpu.healthcheck")
USER = 10001


@pytest.fixture(params=IMAGES)
def container(request: pytest.FixtureRequest) -> Iterator[str]:
    name = buildah("from", f"localhost/tensafe-{request.param.replace('_', '-')}", capture=True)
    yield name
    buildah("rm", name, capture=True)


def run(
    container: str, *command: str, volumes: tuple[str, ...] = (), env: dict[str, str] | None = None
) -> list[str]:
    """The command line that runs `command` in the container."""
    options = [f"--volume={one}" for one in volumes] + [
        f"--env={key}={value}" for key, value in (env or {}).items()
    ]
    store = ["--root", str(STORE / "root"), "--runroot", str(STORE / "run")]
    return ["buildah", *store, "run", *options, container, "--", *command]


def output(container: str, *command: str) -> str:
    environment = os.environ | {"BUILDAH_ISOLATION": "chroot", "STORAGE_DRIVER": "vfs"}
    done = subprocess.run(
        run(container, *command), env=environment, capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def test_nobody_is_root_and_nothing_but_wheels_is_there(container: str) -> None:
    assert output(container, "id", "-u") == str(USER)
    where = output(
        container,
        "python",
        "-c",
        "import tensafe, tensafe_gpu; print(tensafe.__file__, tensafe_gpu.__file__)",
    )
    assert all(path.startswith("/opt/tensafe/lib/python3.11/site-packages/") for path in where.split())
    assert (
        output(
            container,
            "sh",
            "-c",
            "ls -d /src /wheels /wheelhouse/* 2>/dev/null; command -v cc gcc pip || true",
        )
        == ""
    )


def test_a_container_without_its_task_is_not_healthy(container: str) -> None:
    with pytest.raises(subprocess.CalledProcessError):
        output(container, *HEALTH)


@pytest.mark.parametrize("task", [one for one in IMAGES if one in ("trainer", "sampler")])
def test_a_task_in_its_image_gets_healthy(task: str, tmp_path: Path) -> None:
    """On the embedded adapters; what an adapter holder needs before it starts is another deployment's."""
    container = buildah("from", f"localhost/tensafe-{task}", capture=True)
    environment = os.environ | {"BUILDAH_ISOLATION": "chroot", "STORAGE_DRIVER": "vfs"}
    model, data = tmp_path / "model", tmp_path / "data"
    info = describe("tiny", Path(tiny_model(model, hidden=128))).model_copy(update={"path": "/models/tiny"})
    data.mkdir()
    os.chown(data, USER, USER)
    for file in model.iterdir():
        file.chmod(0o644)
    volumes = (f"{data}:/data", f"{model}:/models/tiny:ro")
    settings = {
        "TENSAFE_DATA_DIR": "/data",
        "TENSAFE_MODELS": json.dumps([info.model_dump(mode="json")]),
        "OMP_NUM_THREADS": "1",
    }
    subprocess.run(
        run(container, "tensafe", "init", "--data-dir", "/data", volumes=volumes), env=environment, check=True
    )
    command = run(
        container, "python", "-m", f"tensafe_gpu.{task}", "--model", "tiny", volumes=volumes, env=settings
    )
    process = subprocess.Popen(command, env=environment)
    try:
        deadline, healthy = time.monotonic() + 180, False
        while not healthy and process.poll() is None and time.monotonic() < deadline:
            healthy = subprocess.run(run(container, *HEALTH), env=environment, check=False).returncode == 0
            time.sleep(0.5)
        assert healthy
    finally:
        process.terminate()
        process.wait(60)
        buildah("rm", container, capture=True)
