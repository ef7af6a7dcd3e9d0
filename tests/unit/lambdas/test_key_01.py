"""KEY-01: a master key was silently generated. No entry point of AWS starts without its KMS key."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.cloud import cloud_environment

FUNCTIONS = ("api", "authorizer", "sweeper", "dead_letters")
TASKS = ("trainer", "sampler")


def start(*arguments: str, **changed: str | None) -> subprocess.CompletedProcess[str]:
    system = {name: os.environ[name] for name in ("PATH", "HOME", "LD_LIBRARY_PATH") if name in os.environ}
    environment = {**system, **cloud_environment(**changed), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, "-P", *arguments],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def function(name: str, **changed: str | None) -> subprocess.CompletedProcess[str]:
    """As Lambda does it: the module is imported by a process that has a runtime to ask."""
    return start("-c", f"import tensafe.lambdas.{name}", AWS_LAMBDA_RUNTIME_API="127.0.0.1:9", **changed)


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("key", [None, "alias/tensafe"], ids=["absent", "alias"])
def test_key_01_a_function_without_its_kms_key_does_not_start(name: str, key: str | None) -> None:
    ended = function(name, TENSAFE_KMS_KEY_ID=key)
    assert ended.returncode != 0
    assert "ConfigurationError" in ended.stderr
    assert ("TENSAFE_KMS_KEY_ID" if key is None else "by its ARN") in ended.stderr


def test_a_function_with_it_starts_and_loads_no_encryption_sdk() -> None:
    """That costs a second and comes with the first data key. No answer is waited for either."""
    heavy = (
        "aws_encryption_sdk",
        "aws_cryptographic_material_providers",
        "scipy",
        "dp_accounting",
        "uvicorn",
    )
    program = "import sys, tensafe.lambdas.api\nprint([name for name in sys.argv[1:] if name in sys.modules])"
    ended = start("-c", program, *heavy, AWS_LAMBDA_RUNTIME_API="127.0.0.1:9")
    assert (ended.returncode, ended.stderr, ended.stdout.strip()) == (0, "", "[]")


@pytest.mark.parametrize("name", TASKS)
def test_key_01_a_task_without_its_kms_key_does_not_start(name: str) -> None:
    ended = start("-m", f"tensafe_gpu.{name}", "--model", "acme/tiny", TENSAFE_KMS_KEY_ID=None)
    assert ended.returncode == 1
    assert "not set: TENSAFE_KMS_KEY_ID" in ended.stderr


@pytest.mark.parametrize("key", [None, "alias/tensafe-adapters"], ids=["absent", "alias"])
def test_key_01_an_adapter_holder_without_its_kms_key_does_not_start(key: str | None) -> None:
    ended = start("-m", "tensafe_gpu.adapter_holder", "--listen", "unix:/none", TENSAFE_KMS_KEY_ID=key)
    assert ended.returncode == 1
    assert ("not set: TENSAFE_KMS_KEY_ID" if key is None else "by its ARN") in ended.stderr


@pytest.mark.parametrize("name", ["authorizer", "sampler", "adapter_holder"])
def test_key_01_on_aws_no_variable_stands_for_a_key_of_kms(name: str, tmp_path: Path) -> None:
    """Not the one that accepts a key file on one machine, and not a key file beside the table."""
    (tmp_path / "key.json").write_text("{}")
    told = {"TENSAFE_ACCEPT_LOCAL_KEY": "true", "TENSAFE_KEY_FILE": str(tmp_path / "key.json")}
    if name == "authorizer":
        ended = function(name, TENSAFE_KMS_KEY_ID=None, **told)
    else:
        more = ("--listen", "unix:/none") if name == "adapter_holder" else ("--model", "acme/tiny")
        ended = start("-m", f"tensafe_gpu.{name}", *more, TENSAFE_KMS_KEY_ID=None, **told)
    assert ended.returncode != 0
    assert "not set: TENSAFE_KMS_KEY_ID" in ended.stderr


def test_key_01_an_adapter_holder_in_production_takes_no_key_file_for_it(tmp_path: Path) -> None:
    from tensafe_gpu.adapter_holder.composition import initialise

    initialise(tmp_path)
    command = ("-m", "tensafe_gpu.adapter_holder", "list")
    named = {"TENSAFE_TABLE": None, "TENSAFE_DATA_DIR": str(tmp_path)}
    assert "refuses a key file" in start(*command, **named).stderr
    assert start(*command, **named, TENSAFE_ACCEPT_LOCAL_KEY="true").returncode == 0


def test_key_01_a_task_in_production_takes_no_key_file_for_it(tmp_path: Path) -> None:
    from tensafe.local.composition import initialise

    folder = tmp_path / "data"
    initialise(folder)
    ended = start(
        "-m", "tensafe_gpu.sampler", "--model", "acme/tiny", TENSAFE_TABLE=None, TENSAFE_DATA_DIR=str(folder)
    )
    assert ended.returncode == 1
    assert "refuses a key file" in ended.stderr
