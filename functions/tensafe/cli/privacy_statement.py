"""`privacy statement`: what is said of an artifact's privacy, for people or as signed JSON."""

from __future__ import annotations

from typing import Annotated

import typer

from tensafe.cli.options import AsJson, DataDir, KeyFile, opened
from tensafe.cli.output import print_object


def statement(
    artifact: Annotated[
        str, typer.Argument(metavar="RUN/NAME", help="What was saved; or tinker://RUN/KIND/NAME.")
    ],
    data_dir: DataDir = None,
    key_file: KeyFile = None,
    as_json: AsJson = False,
) -> None:
    """Show the privacy statement that an artifact was saved with: what is bounded, what is not covered."""
    with opened(data_dir, key_file) as services:
        from tensafe.local.domain_admin import find_saved
        from tensafe.operations.checkpoints import statement_of

        found = statement_of(find_saved(services, artifact))
    if as_json:
        print_object(found, as_json=True)
        return
    from tensafe.privacy.statement_text import text_of

    typer.echo(text_of(found), nl=False)


def register(app: typer.Typer) -> None:
    """Add the command to the group."""
    app.command()(statement)
