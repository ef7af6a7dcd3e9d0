"""The commands put together, and how an expected failure ends: one sentence and an exit code."""

from __future__ import annotations

from typing import Any, Final

import typer
from typer.core import TyperGroup

from tensafe.cli import (
    adapters,
    attestation,
    checkpoints,
    dead_letters,
    keys,
    ops,
    privacy,
    privacy_plan,
    runs,
    service,
    tenants,
)
from tensafe.contracts.errors import Gone, InvalidRequest, NotFound, TensafeError, Unavailable

FAILED: Final = 1
USAGE: Final = 2
NOT_FOUND: Final = 3
UNAVAILABLE: Final = 4

_HELP: Final = """Private fine-tuning and inference for open-weight language models.

Exit codes: 0 done; 1 refused or failed, with the reason; 2 wrong usage; 3 not found; 4 unavailable.
"""


def exit_code(error: TensafeError) -> int:
    """The exit code of an expected failure."""
    if isinstance(error, NotFound | Gone):
        return NOT_FOUND
    if isinstance(error, Unavailable):
        return UNAVAILABLE
    return USAGE if isinstance(error, InvalidRequest) else FAILED


class Commands(TyperGroup):
    """The top group: what the library refuses is told in one sentence, without a traceback."""

    def invoke(self, ctx: Any) -> Any:  # noqa: ANN401 - typer's own context class is not public
        try:
            return super().invoke(ctx)
        except TensafeError as error:
            typer.echo(f"tensafe: {error.message}", err=True)
            raise typer.Exit(exit_code(error)) from error
        except OSError as error:
            if error.errno is None or isinstance(error, BrokenPipeError):
                raise
            where = f": {error.filename}" if error.filename else ""
            typer.echo(f"tensafe: {error.strerror}{where}", err=True)
            raise typer.Exit(FAILED) from error


app = typer.Typer(
    cls=Commands,
    help=_HELP,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command()(service.init)
app.command()(service.up)
app.command()(service.status)
app.add_typer(keys.app, name="keys")
app.add_typer(tenants.app, name="tenants")
app.add_typer(runs.app, name="runs")
app.add_typer(ops.app, name="ops")
app.add_typer(checkpoints.app, name="checkpoints")
app.add_typer(adapters.app, name="adapters")
app.add_typer(dead_letters.app, name="dead-letters")
privacy.app.command()(privacy_plan.plan)
app.add_typer(privacy.app, name="privacy")
app.command()(attestation.verify)
app.command()(service.version)
