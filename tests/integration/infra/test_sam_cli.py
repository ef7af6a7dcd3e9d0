"""SAM's own commands on the templates: `sam build` builds nothing, and what it leaves can be deployed."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.project_files import ROOT
from tools.aws_local.template import load_template

pytestmark = pytest.mark.slow
SAM = ROOT / ".cache/sam/bin/sam"


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """The templates, and a package of one file where `make function` puts the functions' own."""
    if not SAM.exists():
        pytest.skip("no SAM CLI here: make lint-infra")
    shutil.copy(ROOT / "template.yaml", tmp_path)
    shutil.copytree(ROOT / "infra", tmp_path / "infra")
    package = tmp_path / "build/lambda/function"
    package.mkdir(parents=True)
    (package / "only.py").write_text("")
    return tmp_path


def sam(project: Path, *arguments: str) -> str:
    environment = {"PATH": os.environ["PATH"], "HOME": str(project), "AWS_DEFAULT_REGION": "eu-central-1"}
    environment |= {"SAM_CLI_TELEMETRY": "0"}
    ended = subprocess.run(
        [SAM, *arguments],
        cwd=project,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout + ended.stderr


def test_sam_build_leaves_the_package_as_it_was_made_and_what_sam_deploy_takes(project: Path) -> None:
    said = sam(project, "build")
    assert "Build Succeeded" in said
    built = project / ".aws-sam/build"
    assert [path.name for path in project.rglob("only.py")] == [
        "only.py"
    ]  # no copy, no dependency of its own
    template = load_template(built / "template.yaml")
    code = [
        one["Properties"]["CodeUri"]
        for one in template["Resources"].values()
        if one["Type"] == "AWS::Serverless::Function"
    ]
    assert len(code) == 4
    assert {(built / one).resolve() for one in code} == {project / "build/lambda/function"}
    for nested, source in (("Tasks", "tasks"), ("Observability", "observability")):
        copied = load_template(built / template["Resources"][nested]["Properties"]["TemplateURL"])
        assert copied["Resources"] == load_template(project / f"infra/{source}.yaml")["Resources"]
