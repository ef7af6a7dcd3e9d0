"""Options that several commands have, and what they are turned into."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from tensafe.cli.output import progress
from tensafe.contracts.errors import ConfigurationError, InvalidRequest

if TYPE_CHECKING:
    from tensafe.services import Services

_LOCAL: Final = "TENSAFE_DATA_DIR"
_CLOUD: Final = "TENSAFE_TABLE"
_DEFAULT_DATA_DIR: Final = "~/.local/share/tensafe"
_DURATION: Final = re.compile(r"([1-9][0-9]{0,8})([smhdw])")
_SECONDS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}

DataDir = Annotated[
    Path | None,
    typer.Option(
        "--data-dir",
        metavar="DIR",
        help=f"Data directory, made by `tensafe init`. (default: $TENSAFE_DATA_DIR or {_DEFAULT_DATA_DIR})",
        show_default=False,
    ),
]
KeyFile = Annotated[
    Path | None,
    typer.Option(
        "--key-file",
        metavar="FILE",
        help="The key file. (default: $TENSAFE_KEY_FILE or where `tensafe init` put it)",
        show_default=False,
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")]
Tenant = Annotated[str | None, typer.Option("--tenant", metavar="T", help="Of this tenant alone.")]
Limit = Annotated[int, typer.Option("--limit", metavar="N", min=1, max=10_000, help="At most so many.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]


def data_directory(given: Path | None) -> Path:
    """The data directory that a command works on."""
    chosen = given if given is not None else Path(os.environ.get(_LOCAL) or _DEFAULT_DATA_DIR)
    return chosen.expanduser().absolute()


def key_file_option(given: Path | None) -> dict[str, Path]:
    """What `--key-file` adds to the settings; without it they hold $TENSAFE_KEY_FILE or nothing."""
    return {} if given is None else {"key_file": given}


@contextmanager
def opened(given: Path | None, key_file: Path | None, *, doing: str | None = "reading") -> Iterator[Services]:
    """The services of a data directory or of a deployment on AWS, for a command that needs no server.

    The environment names the deployment (`TENSAFE_TABLE` and what goes with it) unless `--data-dir` names a
    directory. `doing` is shown to whoever waits for the block; None for a block that asks something. Raises
    ConfigurationError.
    """
    if _on_aws(given, key_file):
        with progress(doing) if doing else nullcontext():
            yield _deployment()
        return
    from tensafe.local.composition import check_directory, local_services
    from tensafe.local.model_registry import ModelRegistry
    from tensafe.local.settings import read_settings

    data_dir = data_directory(given)
    with progress(doing) if doing else nullcontext():
        check_directory(data_dir)
        models = ModelRegistry(data_dir).models()
        settings = read_settings(data_dir=data_dir, models=models, **key_file_option(key_file))
        with local_services(settings) as services:
            yield services


def _on_aws(given: Path | None, key_file: Path | None) -> bool:
    """Whether a deployment is meant. Raises ConfigurationError if that cannot be told."""
    if given is not None or not os.environ.get(_CLOUD):
        return False
    if os.environ.get(_LOCAL):
        raise ConfigurationError(
            f"{_LOCAL} and {_CLOUD} are both set: unset one, or choose a directory with --data-dir"
        )
    if key_file is not None:
        raise ConfigurationError("a deployment on AWS has no key file: its keys are in KMS")
    return True


def _deployment() -> Services:
    try:
        from tensafe.cloud.composition import cloud_services
    except ModuleNotFoundError as error:
        raise ConfigurationError(
            f"{_CLOUD} is set, and {error.name} is not installed: pip install 'tensafe[aws]'"
        ) from None
    from tensafe.cloud.settings import read_cloud_settings
    from tensafe.metrics.port import NoMetrics

    return cloud_services(read_cloud_settings(), metrics=NoMetrics())


def one_machine(given: Path | None, instead: str) -> None:
    """For a command that looks at a machine. Raises ConfigurationError with `instead` where AWS is meant."""
    if _on_aws(given, None):
        raise ConfigurationError(f"this looks at one machine, and {_CLOUD} names a deployment: {instead}")


def parse_duration_s(text: str) -> int:
    """Seconds of `90s`, `15m`, `12h`, `30d` or `4w`. Raises InvalidRequest."""
    match = _DURATION.fullmatch(text)
    if match is None:
        raise InvalidRequest(f"{text[:40]!r} is no duration: use a number and s, m, h, d or w, such as 30d")
    return int(match[1]) * _SECONDS[match[2]]


def confirm(question: str, yes: bool) -> None:
    """Ask unless `yes`; anything but a clear yes ends the command.

    Raises InvalidRequest where nobody can answer.
    """
    if yes:
        return
    if not typer.get_text_stream("stdin").isatty():
        raise InvalidRequest("this cannot be undone: confirm it with --yes")
    typer.confirm(question, abort=True)
