"""Build the functions' package: `python tools/build_function.py FOLDER [--wheel WHEEL]`.

FOLDER/function is what Lambda unpacks (one package serves all four functions), FOLDER/function.zip what is
uploaded, and FOLDER/runtime is Lambda's own client, for the tests. Prints the sizes as JSON.
"""

from __future__ import annotations

import argparse
import json
import py_compile
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

from elf_segments import keep_segments

ROOT = Path(__file__).resolve().parent.parent
ZIPPED_MAX_BYTES = 30_000_000
PLATFORMS = ("manylinux1", "manylinux2010", "manylinux2014", "manylinux_2_17", "manylinux_2_26")
"""What Amazon Linux 2 can load."""
SERVICES = ("dynamodb", "kms", "s3", "sqs", "sts", "sso", "sso-oidc", "signin")
"""botocore describes hundreds of services; these are called, or belong to finding credentials."""
UNUSED = (
    "*.dist-info/RECORD",
    "aws_lambda_powertools/event_handler",
    "aws_xray_sdk/ext",  # patches of libraries
    "aws_lambda_powertools/utilities/[!j_]*",  # of its utilities, metrics want jmespath_utils
    "bin",
    "boto3/data/[!dks]*",
    "boto3/examples",
    "numpy/**/tests",
    "numpy/_core/_*_tests.*",
    "numpy/_core/_simd.*",
    "numpy/_core/include",
    "numpy/_core/lib",
    "numpy/random",  # noise is drawn by the trainer, from AES
    "numpy/fft",  # offline verification alone uses it
    "numpy/polynomial",
    "dateutil/zoneinfo/*.gz",  # times are UTC
    "pydantic/v1",  # FastAPI looks whether a model is one of its, and can do without it
    "pytz/zoneinfo/[!U]*",
    "numpy/testing",
    "numpy/distutils",
    "numpy/f2py",
    "tensafe_gpu",
    "wrapt-stubs",
    "zstandard/backend_cffi.py",
    "zstandard/_cffi*",  # the C extension is what is loaded on CPython
    "**/__pycache__",
    "**/*.pyi",
    "**/*.pyx",
    "**/*.pxd",
)


START = (
    *(f"tensafe.lambdas.{name}" for name in ("api", "authorizer", "dead_letters", "sweeper")),
    "tensafe.auth.tokens",
    "tensafe.auth.issuer_keys",
    "tensafe.tracing.xray",
)
"""What the functions import before their first event; the last three where an issuer is configured, and where
X-Ray's daemon is."""
LATER = (
    *(f"tensafe.privacy.{name}" for name in ("deals", "dealt_ledger", "reading")),
    "aws_encryption_sdk.identifiers",
    "aws_cryptographic_material_providers.mpl.config",
    "aws_lambda_powertools.metrics.provider.cloudwatch_emf.cloudwatch",
    "boto3.s3.inject",
)
"""What the API imports with the first request that needs it, beside the modules of its routes."""
SOURCELESS = (
    "aws_cryptographic_material_providers",
    "aws_cryptography_internal_dynamodb",
    "aws_cryptography_internal_kms",
    "aws_cryptography_primitives",
    "aws_encryption_sdk",
    "botocore",
    "numpy",
    "smithy_dafny_standard_library",
)
"""Packages, large or generated, whose byte code takes the place of their sources: both are too much."""


def main() -> int:
    """0, or 1 if the package is larger than it may be."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--wheel", type=Path, help="of tensafe; built from the sources if it is not given")
    arguments = parser.parse_args()
    sizes = build(arguments.folder, arguments.wheel)
    print(json.dumps(sizes))
    if sizes["zipped_bytes"] > ZIPPED_MAX_BYTES:
        print(f"the package may have {ZIPPED_MAX_BYTES} bytes", file=sys.stderr)
        return 1
    return 0


def build(folder: Path, wheel: Path | None = None) -> dict[str, int]:
    """Make the three in `folder`, replacing what is there; the package's sizes."""
    folder = folder.absolute()  # as the modules name their files, which byte code is made for
    function, runtime = folder / "function", folder / "runtime"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    _install(function, "-r", ROOT / "requirements/function.txt")
    _install(function, wheel or _wheel(folder / "wheel"))
    _install(runtime, "-r", ROOT / "requirements/lambda-runtime.txt")
    for pattern in UNUSED:
        for path in list(function.glob(pattern)):
            _remove(path)
    for path in (function / "botocore/data").iterdir():
        if path.is_dir() and path.name not in SERVICES:
            _remove(path)
    for library in function.rglob("*.so*"):
        keep_segments(library)
    _compile_what_is_imported(function)
    files = sorted(path for path in function.rglob("*") if path.is_file())
    with zipfile.ZipFile(folder / "function.zip", "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for path in files:
            # Always the same bytes for the same files: a deployment then sees whether anything changed.
            entry = zipfile.ZipInfo(str(path.relative_to(function)), (1980, 1, 1, 0, 0, 0))
            entry.external_attr = 0o644 << 16
            archive.writestr(entry, path.read_bytes(), zipfile.ZIP_DEFLATED)
    return {
        "zipped_bytes": (folder / "function.zip").stat().st_size,
        "unzipped_bytes": sum(path.stat().st_size for path in files),
        "files": len(files),
    }


def _install(target: Path, *what: str | Path) -> None:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--quiet", "--no-deps"]
    command += ["--no-compile", "--only-binary=:all:", "--python-version", "3.11", "--implementation", "cp"]
    for platform in PLATFORMS:
        command += ["--platform", f"{platform}_x86_64"]
    done = subprocess.run([*command, "--target", target, *what], check=False, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"pip: {done.stderr[-2000:]}")


def _wheel(folder: Path) -> Path:
    command = [sys.executable, ROOT / "tools/build_wheel.py", folder]
    built = subprocess.run(command, check=True, capture_output=True, text=True)
    return Path(built.stdout.strip())


def _compile_what_is_imported(function: Path) -> None:
    """Byte code for what the functions import: Lambda's file system is read-only, so that each cold start
    would compile it anew. It is used without a look at the sources, whose times an archive does not keep.

    What is imported by a request is imported here as well, so that a package that lacks some of it is not
    built.
    """
    program = (
        "import importlib, json, sys\n"
        "from tensafe.api.faces import MODULES\n"
        "routes = sorted({f'tensafe.api.{name}' for names in MODULES.values() for name in names})\n"
        "for name in (*sys.argv[1:], *routes): importlib.import_module(name)\n"
        "print(json.dumps([one.__file__ for one in sys.modules.values() if getattr(one, '__file__', None)]))"
    )
    loaded = subprocess.run(
        [sys.executable, "-S", "-s", "-B", "-c", program, *START, *LATER],
        # X-Ray's SDK imports other things outside Lambda, which is where there is no root of a task.
        env={
            "PYTHONPATH": str(function),
            "AWS_DEFAULT_REGION": "eu-central-1",
            "LAMBDA_TASK_ROOT": str(function),
        },
        check=True,
        capture_output=True,
        text=True,
    )
    for name in sorted(json.loads(loaded.stdout)):
        path = Path(name)
        if path.suffix == ".py" and path.is_relative_to(function):
            alone = path.relative_to(function).parts[0] in SOURCELESS
            py_compile.compile(
                name,
                cfile=str(path.with_suffix(".pyc")) if alone else None,
                dfile=str(path.relative_to(function)),
                doraise=True,
                invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH,
            )
            if alone:
                path.unlink()


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


if __name__ == "__main__":
    sys.exit(main())
