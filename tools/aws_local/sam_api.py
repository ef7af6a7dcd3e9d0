"""`sam local start-api` in front of a deployment: SAM CLI's API Gateway, and Lambda's own container image.

The tables, queues, bucket and keys stay the deployment's; its own API and functions are left aside. SAM CLI
is given a copy of template.yaml, since it does not read the template as AWS does (`sam_template`).
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from tools.aws_local.deployment import PACKAGE, Deployment
from tools.aws_local.emulator import ACCOUNT, LOOPBACK, REGION, ROOT, DidNotStart, NotInstalled, free_port
from tools.aws_local.front import front
from tools.aws_local.template import Template, load_template

SAM: Final = ROOT / ".cache/sam/bin/sam"
"""Made by `make sam-local` and `make lint-infra`."""
FUNCTIONS: Final = ("ApiFunction", "AuthorizerFunction")
"""What requests reach."""
BINARY: Final = ("application/x-protobuf", "application/octet-stream")
_API: Final = "HttpApi"
_START_S: Final = 60.0
_FIRST_S: Final = 600.0
"""Of the first request, for which Lambda's image may have to be fetched."""
_STOP_S: Final = 30.0
_CONTAINER_S: Final = 60.0
"""Until a container answers; SAM CLI's own 20 s are few for a busy machine."""
_SYSTEM: Final = ("PATH", "LANG", "TMPDIR", "DOCKER_HOST")


def sam_template(package: Path) -> Template:
    """template.yaml as SAM CLI 1.170 has to have it, with the functions of the folder `package`.

    - It reads routes of the first kind of resource that may have some, which here is a function without any:
      so the API comes first.
    - It finds the function behind an integration by the long form of its URI alone.
    - It takes a body for text unless the API's document names its media type. On a compressed body of another
      type it fails, as API Gateway does not.
    - It gives a function the variables that the template has, and no other: AWS_ENDPOINT_URL becomes one.
    """
    template = load_template(ROOT / "template.yaml")
    resources = template["Resources"]
    for one in resources.values():
        if one["Type"] == "AWS::Serverless::Function":
            assert one["Properties"]["CodeUri"] == PACKAGE
            one["Properties"]["CodeUri"] = str(package.resolve())
    nested = {name for name, one in resources.items() if one["Type"] == "AWS::CloudFormation::Stack"}
    function = f"arn:aws:lambda:{REGION}:{ACCOUNT}:function:{FUNCTIONS[0]}"
    uri = f"arn:aws:apigateway:{REGION}:lambda:path/2015-03-31/functions/{function}/invocations"
    resources["ApiIntegration"]["Properties"]["IntegrationUri"] = uri
    document = {"openapi": "3.0.1", "paths": {}, "x-amazon-apigateway-binary-media-types": list(BINARY)}
    resources[_API]["Properties"]["Body"] = document
    template["Resources"] = {
        _API: resources[_API],
        **{name: one for name, one in resources.items() if name != _API and name not in nested},
    }
    template["Globals"]["Function"]["Environment"]["Variables"]["AWS_ENDPOINT_URL"] = ""
    return template


def variables(deployment: Deployment, url: str) -> dict[str, dict[str, str]]:
    """By function, for --env-vars: what the deployment gives it, with the addresses of API and emulator."""
    changed = {"TENSAFE_BASE_URL": url, "AWS_ENDPOINT_URL": deployment.emulator.endpoint_url}
    return {name: {**deployment.function_environment(name), **changed} for name in FUNCTIONS}


@contextmanager
def sam_api(
    deployment: Deployment,
    package: Path,
    folder: Path,
    command: Sequence[str | Path] = (SAM,),
    image: str | None = None,
) -> Iterator[str]:
    """The address of a new one, which ends with the block. `command` is `sam`, its log sam.log in `folder`.

    Docker has `image`, in which it runs the functions; Lambda's own, which it fetches, if none is given.

    It makes a container for each request and for its authorizer, so the front holds back a burst. Raises
    NotInstalled, DidNotStart.
    """
    if not SAM.exists():
        raise NotInstalled("SAM CLI is not installed: make lint-infra")
    port = free_port()
    with front(LOOPBACK, port) as reached:
        template, values = folder / "sam-template.json", folder / "sam-variables.json"
        template.write_text(json.dumps(sam_template(package)))
        values.write_text(json.dumps(variables(deployment, reached.url)))
        with _running(
            command, _options(template, values, port, image), folder, _environment(deployment, folder)
        ) as process:
            _wait_until_it_answers(process, port, folder / "sam.log")
            reached.host = f"{LOOPBACK}:{port}"
            yield reached.url


def _options(template: Path, values: Path, port: int, image: str | None) -> list[str]:
    options: dict[str, Any] = {
        "--template": template,
        "--env-vars": values,
        "--region": REGION,
        "--host": LOOPBACK,
        "--port": port,
    }
    if image is not None:
        options["--invoke-image"] = image
    given = [str(one) for pair in options.items() for one in pair]
    return given if image is None else [*given, "--skip-pull-image"]


@contextmanager
def _running(
    command: Sequence[str | Path], options: Sequence[str], folder: Path, environment: Mapping[str, str]
) -> Iterator[subprocess.Popen[bytes]]:
    with (folder / "sam.log").open("wb") as log:
        process = subprocess.Popen(
            [*map(str, command), "local", "start-api", *options],
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,  # a Ctrl-C reaches this process alone, which then ends it
        )
    try:
        yield process
    finally:
        _end(process)


def _environment(deployment: Deployment, folder: Path) -> dict[str, str]:
    """SAM CLI hands the credentials on, and would any variable of the shell that the template has too."""
    given = {name: os.environ[name] for name in _SYSTEM if name in os.environ}
    return {
        **given,
        **deployment.emulator.environment(),
        "HOME": str(folder),
        "SAM_CLI_TELEMETRY": "0",
        "SAM_CLI_CONTAINER_CONNECTION_TIMEOUT": str(int(_CONTAINER_S)),
    }


def _wait_until_it_answers(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    deadline = time.monotonic() + _START_S
    while time.monotonic() < deadline and process.poll() is None:
        try:
            urllib.request.urlopen(f"http://{LOOPBACK}:{port}/healthz", timeout=_FIRST_S).close()
        except urllib.error.HTTPError:
            break
        except OSError:
            time.sleep(0.1)
        else:
            return
    said = log.read_text(errors="replace")[-2000:]
    raise DidNotStart(f"sam local start-api does not serve the API:\n{said}")


def _end(process: subprocess.Popen[bytes]) -> None:
    """SIGTERM, upon which it removes its containers; a Ctrl-C it may have been started to ignore."""
    process.terminate()
    try:
        process.wait(_STOP_S)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
