"""`privacy export`, `verify`, `public-key`, `upgrade`, `abandon`: the ledger's proof and its keeping."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, BinaryIO, Final

import typer

from tensafe.cli.options import (
    AsJson,
    DataDir,
    KeyFile,
    Yes,
    confirm,
    data_directory,
    key_file_option,
    opened,
)
from tensafe.cli.output import print_object, print_rows, progress, utc
from tensafe.contracts.errors import InvalidRequest

if TYPE_CHECKING:
    from tensafe.privacy.verify_replay import Report
    from tensafe.storage.signing import PublicKey

_STATEMENT_MAX_CHARS: Final = 1024 * 1024


def export(
    domain: Annotated[str, typer.Argument(metavar="DOMAIN", help="The name of the dataset.")],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="A new file.")],
    data_dir: DataDir = None,
    key_file: KeyFile = None,
    tenant: Annotated[
        str | None,
        typer.Option("--tenant", metavar="T", help="Needed if several tenants have a domain of this name."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Write a domain's ledger to a file that anybody can verify with the public key.

    It shows how often and together with which others each unit took part, under pseudonyms; no unit ids.
    """
    with opened(data_dir, key_file, doing="exporting") as services:
        from tensafe.local.domain_admin import export_ledger

        facts = export_ledger(services, domain, tenant, output)
    print_object(facts, as_json=as_json)


def verify(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="What `tensafe privacy export` wrote.")],
    public_key: Annotated[
        list[Path] | None,
        typer.Option("--public-key", metavar="FILE", help="Public key to trust, PEM. Repeatable."),
    ] = None,
    key_id: Annotated[
        list[str] | None,
        typer.Option(
            "--key-id", metavar="ID", help="Trust the key of this id that the file brings. Repeatable."
        ),
    ] = None,
    statement: Annotated[
        Path | None,
        typer.Option(
            "--statement", metavar="FILE", help="Hold this privacy statement to the ledger too (its JSON)."
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Check an exported ledger offline: chain, signatures, counts, budgets and epsilon.

    Needs neither a data directory nor a key file. Exit code 1, naming the row, if anything is wrong.
    """
    from dataclasses import asdict

    from tensafe.privacy.verify import keys_of
    from tensafe.privacy.verify import verify as check
    from tensafe.privacy.verify_forms import LedgerRefused
    from tensafe.storage.signing import PEM_MAX_CHARS, PublicKey

    if not public_key and not key_id:
        raise InvalidRequest(
            "say whose signatures count: --public-key FILE, or --key-id ID for a key that the file brings "
            "along; `tensafe privacy public-key` prints both"
        )
    with progress("verifying"), file.open("rb") as exported:
        try:
            keys = [PublicKey.from_pem(_read(path, PEM_MAX_CHARS)) for path in public_key or ()]
            trusted = {key.key_id: key for key in keys}
            if key_id:
                trusted |= keys_of(exported, frozenset(key_id))
                exported.seek(0)
            found = check(exported, trusted)
            if statement is not None:
                _hold(statement, exported, found, trusted)
            report = asdict(found)
            registered = None if found.registered is None else found.registered.model_dump()
        except LedgerRefused as error:
            if as_json:
                print_object({"valid": False, "where": error.where, "problem": error.problem}, as_json=True)
            raise
    runs = [dict(run) for run in report.pop("runs")]
    if statement is not None:
        report["statement"] = "holds"
    if as_json:
        print_object({"valid": True, **report, "registered": registered, "runs": runs}, as_json=True)
        return
    del report["registered"]
    if not report["warnings"]:
        del report["warnings"]
    if registered is not None:
        report |= {**registered.pop("terms"), **registered}
    report["exported"] = utc(report.pop("exported_at_ms"))
    print_object({"valid": True, **report}, as_json=False)
    columns = (
        "run_id",
        "mode",
        "epsilon",
        "attested_epsilon",
        "steps",
        "max_steps",
        "abandoned",
        "units",
        "participations",
        "max_participations",
        "noise_multiplier",
    )
    typer.echo("")
    print_rows(runs, as_json=False, columns=columns, empty="no runs")


def _hold(statement: Path, exported: BinaryIO, report: Report, trusted: Mapping[str, PublicKey]) -> None:
    """Check the statement's signature, and its numbers against the replayed rows."""
    import json

    from tensafe.privacy.artifact_statement import check_statement
    from tensafe.privacy.statement_check import check_against_ledger

    try:
        said = json.loads(_read(statement, _STATEMENT_MAX_CHARS))
    except ValueError:
        raise InvalidRequest(
            f"{statement} is not JSON; `tensafe privacy statement --json` prints it"
        ) from None
    if not isinstance(said, dict):
        raise InvalidRequest(f"{statement} is not a privacy statement")
    check_statement(said, trusted)
    check_against_ledger(said, exported, report)


def public_key(data_dir: DataDir = None, key_file: KeyFile = None, as_json: AsJson = False) -> None:
    """Print the public key that the ledger's signatures are verified with (PEM); its id on standard error."""
    with opened(data_dir, key_file) as services:
        signer = services.ports.signer
    if as_json:
        facts = {"kind": signer.kind, "key_id": signer.key_id, "public_key": signer.public_key}
        print_object(facts, as_json=True)
        return
    typer.echo(signer.public_key, nl=False)
    typer.echo(signer.key_id, err=True)


def upgrade(
    data_dir: DataDir = None,
    key_file: KeyFile = None,
    new_key: Annotated[
        bool, typer.Option("--new-key", help="Go on under a new signing key although rows are signed.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Give a data directory of an earlier release its signing key and anchors, and sign its rows.

    The service must be stopped. Again, it does nothing.
    """
    from dataclasses import asdict

    from tensafe.local.settings import read_settings
    from tensafe.local.upgrade import upgrade as take_further

    directory = data_directory(data_dir)
    settings = read_settings(data_dir=directory, models=(), **key_file_option(key_file))
    with progress("upgrading"):
        done = [asdict(one) for one in take_further(settings, new_key=new_key)]
    columns = ("tenant", "domain", "rows", "signed_now", "anchored_now")
    print_rows(done, as_json=as_json, columns=columns, empty="no privacy domains; new ones will be signed")


def abandon(
    domain: Annotated[str, typer.Argument(metavar="DOMAIN", help="The name of the dataset.")],
    tenant: Annotated[str, typer.Option("--tenant", metavar="T", help="Whose domain.")],
    data_dir: DataDir = None,
    key_file: KeyFile = None,
    yes: Yes = False,
) -> None:
    """Close a domain for ever whose store has lost rows: nothing is charged to it any more."""
    from tensafe.local.admin import abandon_domain

    confirm(f"No run can ever train on domain {domain!r} of {tenant} again. Close it?", yes)
    with opened(data_dir, key_file, doing=None) as services:
        abandon_domain(services, tenant, domain)
    typer.echo(f"{domain} is closed")


def register(app: typer.Typer) -> None:
    """Add the commands to the group."""
    for command in (export, verify, upgrade, abandon):
        app.command()(command)
    app.command("public-key")(public_key)


def _read(path: Path, most: int) -> str:
    with path.open(encoding="ascii", errors="replace") as file:
        return file.read(most + 1)
