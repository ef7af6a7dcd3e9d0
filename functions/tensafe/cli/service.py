"""`init`, `up`, `status`, `version`: the service as a whole."""

from __future__ import annotations

import sys
from contextlib import suppress
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TextIO

import typer

import tensafe
from tensafe.cli.options import AsJson, DataDir, KeyFile, data_directory, key_file_option, one_machine, opened
from tensafe.cli.output import print_object, print_rows, progress, utc

if TYPE_CHECKING:
    from rich.status import Status


class Device(StrEnum):
    """Where models are computed."""

    CPU = "cpu"
    CUDA = "cuda"


class Dtype(StrEnum):
    """Number format of the base models' weights."""

    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"


def init(
    data_dir: DataDir = None,
    key_file: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Where to put the key file, which later commands remember. "
            "(default: $TENSAFE_KEY_FILE or key.json in the data directory)",
        ),
    ] = None,
    anchor_dir: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Where to keep the privacy ledger's anchors, such as another disk, out of reach of the data "
            "directory's backups. (default: anchors in the data directory)",
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Make a data directory, its key file, its signing key and the anchors of its privacy ledger."""
    from tensafe.local.composition import initialise, key_location
    from tensafe.local.settings import read_settings

    directory = data_directory(data_dir)
    chosen = read_settings(data_dir=directory, models=(), **key_file_option(key_file)).key_file
    with progress("making the data directory"):
        key_id = initialise(directory, chosen, anchor_dir and anchor_dir.expanduser())
    facts = {"data_dir": str(directory), "key_file": str(key_location(directory)), "key_id": key_id}
    print_object(facts, as_json=as_json)
    if chosen is None:
        typer.echo(
            "The key file lies in the data directory: whoever copies that can read it. "
            "`tensafe init --key-file` puts it elsewhere.",
            err=True,
        )
    typer.echo("Keep a copy of the key file elsewhere: without it nothing here can be read again.", err=True)


def up(  # noqa: PLR0913, PLR0917 - one argument per option
    model: Annotated[
        list[str],
        typer.Option(
            "--model", metavar="NAME=SOURCE", help="Base model: NAME=FOLDER or NAME=HUB_ID. Repeatable."
        ),
    ],
    data_dir: DataDir = None,
    key_file: KeyFile = None,
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8000,
    host: Annotated[
        str, typer.Option(help="Address to listen on; any but loopback needs TLS.")
    ] = "127.0.0.1",
    tls_cert: Annotated[Path | None, typer.Option(metavar="FILE", help="PEM certificate chain.")] = None,
    tls_key: Annotated[Path | None, typer.Option(metavar="FILE", help="PEM private key.")] = None,
    oidc_issuer: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help="Accept JWTs of this OpenID Connect issuer too. (default: $TENSAFE_OIDC_ISSUER)",
        ),
    ] = None,
    oidc_audience: Annotated[
        str | None,
        typer.Option(metavar="TEXT", help="What they must be made for. (default: $TENSAFE_OIDC_AUDIENCE)"),
    ] = None,
    metrics_port: Annotated[
        int | None,
        typer.Option(
            min=1, max=65535, help="Serve numbers for Prometheus on this port of 127.0.0.1. (default: none)"
        ),
    ] = None,
    device: Annotated[Device | None, typer.Option(help="(default: $TENSAFE_DEVICE or cpu)")] = None,
    dtype: Annotated[Dtype | None, typer.Option(help="(default: $TENSAFE_DTYPE or float32)")] = None,
    max_lora_rank: Annotated[
        int | None, typer.Option(min=1, help="Largest rank of an adapter. (default: 64)")
    ] = None,
    max_context: Annotated[
        int | None,
        typer.Option(
            min=2, metavar="TOKENS", help="Longest prompt with its continuation. (default: what fits)"
        ),
    ] = None,
    kv_cache_gib: Annotated[
        float | None,
        typer.Option(
            min=0.001,
            metavar="GIB",
            envvar="VLLM_CPU_KVCACHE_SPACE",
            help="KV cache of each sampler. (default: from the free memory)",
        ),
    ] = None,
    threads: Annotated[
        int | None,
        typer.Option(
            min=1, max=1024, help="Compute threads of each trainer and sampler. (default: the cores)"
        ),
    ] = None,
) -> None:
    """Serve: start and watch the API, and a trainer and a sampler for each model, until Ctrl-C.

    Prints one line on standard output, `ready http://HOST:PORT`, once clients can train and sample.
    """
    from tensafe.local.endpoint import Endpoint
    from tensafe.local.kv_cache import ContextWish
    from tensafe.local.models import ModelSource
    from tensafe.local.up import UpRequest
    from tensafe.local.up import up as serve

    given = {
        **{"device": device, "dtype": dtype, "threads": threads},
        **{"oidc_issuer": oidc_issuer, "oidc_audience": oidc_audience},
        "metrics_port": metrics_port,
        **key_file_option(key_file),
    }
    request = UpRequest(
        data_dir=data_directory(data_dir),
        models=[ModelSource.parse(one) for one in model],
        endpoint=Endpoint(host, port, tls_cert, tls_key),
        max_lora_rank=max_lora_rank,
        context=ContextWish(max_context, kv_cache_gib),
        overrides={name: value for name, value in given.items() if value is not None},
    )
    with _Terminal() as events:
        serve(request, events)


def status(data_dir: DataDir = None, key_file: KeyFile = None, as_json: AsJson = False) -> None:
    """Show whether the service runs, its workers and its queues. Exit code 4 if it is not ready."""
    from tensafe.local.status import read_status

    one_machine(data_dir, "what a deployment on AWS lacks stands in its /readyz")
    with opened(data_dir, key_file) as services:
        found = read_status(services, data_directory(data_dir))
    if as_json:
        print_object(found.to_json(), as_json=True)
    else:
        print_object(found.facts(), as_json=False)
        workers = [{**row, "since": utc(float(str(row["since_s"])) * 1000)} for row in found.workers]
        for title, rows, columns in (
            ("workers", workers, ("role", "base_model", "since", "owner")),
            ("queues", found.queues, ("name", "waiting", "dead")),
        ):
            if rows:
                typer.echo(f"\n{title}")
                print_rows(rows, as_json=False, columns=columns, empty="")
    if not found.ready:
        raise typer.Exit(4)


def version(as_json: AsJson = False) -> None:
    """Print the version."""
    if as_json:
        print_object({"version": tensafe.__version__}, as_json=True)
    else:
        typer.echo(tensafe.__version__)


class _Terminal:
    """What happens, on standard error: a status line on a terminal, plain lines elsewhere.

    A full disk or a closed pipe behind either stream must not end the service.
    """

    def __init__(self) -> None:
        from rich.console import Console

        self._console = Console(stderr=True, markup=False, highlight=False, emoji=False)
        self._status: Status | None = None
        self._last = ""

    def __enter__(self) -> _Terminal:
        return self

    def __exit__(self, *_: object) -> None:
        self._end_status()

    def note(self, text: str) -> None:
        if self._console.is_terminal:
            self._console.print(text)
        else:
            _write(sys.stderr, text)

    def waiting(self, text: str) -> None:
        if text == self._last:
            return
        self._last = text
        if not self._console.is_terminal:
            _write(sys.stderr, text)
        elif self._status is None:
            self._status = self._console.status(text)
            self._status.start()
        else:
            self._status.update(text)

    def ready(self, url: str) -> None:
        self._end_status()
        _write(sys.stdout, f"ready {url}")

    def _end_status(self) -> None:
        if self._status is not None:
            self._status.stop()
            self._status = None


def _write(stream: TextIO, line: str) -> None:
    with suppress(OSError):
        stream.write(f"{line}\n")
        stream.flush()
