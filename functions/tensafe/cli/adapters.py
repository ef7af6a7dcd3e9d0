"""`adapters`: private adapters, which an adapter holder evaluates and this service does not have."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tensafe.cli.options import AsJson, DataDir, KeyFile, Tenant, Yes, confirm, opened
from tensafe.cli.output import Row, print_object, print_rows, progress, utc
from tensafe.contracts.errors import InvalidRequest
from tensafe.contracts.execution import DEFAULT_PRIVATE, ExecutionPolicy

if TYPE_CHECKING:
    from tensafe.local.holder_command import HolderCommand
    from tensafe.local.publishing_terms import Publishing
    from tensafe.operations.placements import Placement
    from tensafe.services import Services

_CREST = 8.0
"""As `tensafe_gpu.helora.quantise.CREST`, which is not part of this package; a test compares them."""
app = typer.Typer(
    help="Publish, list, show, move, rotate and revoke private adapters; keep the samplers' certificate.",
    no_args_is_help=True,
)
AdapterPath = Annotated[
    str,
    typer.Argument(metavar="PATH", help="tinker://RUN/sampler_weights/NAME, as `adapters list` shows it."),
]
HolderAddress = Annotated[
    str,
    typer.Option("--holder", metavar="ADDRESS", help="Where it listens: unix:PATH or tcp:HOST:PORT."),
]
HolderDir = Annotated[
    Path | None,
    typer.Option(
        "--holder-dir",
        metavar="DIR",
        help="The adapter holder's data directory. (default: its store on AWS, named by "
        "$TENSAFE_HOLDER_TABLE, _BUCKET and _KMS_KEY_ID, with the credentials of $TENSAFE_HOLDER_PROFILE)",
        show_default=False,
    ),
]


@app.command()
def publish(  # noqa: PLR0913, PLR0917 - one option each
    weights: Annotated[
        str,
        typer.Argument(
            metavar="RUN|PATH",
            help="A run, whose newest sampler weights are meant, or tinker://RUN/sampler_weights/NAME.",
        ),
    ],
    holder: HolderAddress,
    tokens_per_site: Annotated[
        int, typer.Option(min=1, help="Budget of an epoch; what it gives away is printed.")
    ],
    holder_tenant: Annotated[
        str,
        typer.Option(
            metavar="T",
            help="For whom it is evaluated: what this service's samplers are called there, the common name "
            "of their one certificate, or any name on a unix socket.",
        ),
    ],
    holder_dir: HolderDir = None,
    private: Annotated[
        bool, typer.Option("--private", help="Needed: these weights are moved, and their run erased.")
    ] = False,
    policy: Annotated[
        ExecutionPolicy, typer.Option(help="The least that an answer may do.")
    ] = DEFAULT_PRIVATE,
    keep_plaintext: Annotated[
        bool,
        typer.Option(
            "--keep-plaintext",
            help="For HE_PREFERRED: keep the quantised adapter in the vault of this service too, to answer "
            "in the clear while the adapter holder cannot. Implies --keep-run.",
        ),
    ] = False,
    keep_run: Annotated[
        bool,
        typer.Option(
            "--keep-run",
            help="Erase this checkpoint alone, so that the run can go on; it keeps such weights.",
        ),
    ] = False,
    data_dir: DataDir = None,
    key_file: KeyFile = None,
    yes: Yes = False,
    as_json: AsJson = False,
) -> None:
    """Move sampler weights to an adapter holder; they are sampled under the same path as before.

    Their run is erased here with all that was saved of it, since its snapshots and other checkpoints hold
    such weights too, and its sampling sessions end; --keep-run erases the one checkpoint. A run that began
    from them is another run.
    """
    from tensafe.local.publishing import publish as move
    from tensafe.local.publishing import sampler_weights
    from tensafe.local.publishing_terms import Publishing

    if not private:
        raise InvalidRequest("say --private: the weights are moved, and erased here", field="private")
    terms = (holder_tenant, tokens_per_site, policy, keep_plaintext, keep_run)
    wanted = Publishing(_holder(holder_dir), holder, *terms)
    with opened(data_dir, key_file, doing=None) as services:
        path = sampler_weights(services, weights)
        erased = (
            "their run with all that was saved of it and its sampling sessions"
            if wanted.erases_run
            else "their checkpoint"
        )
        kept = ", and keep them in the vault in the clear" if keep_plaintext else ""
        confirm(f"Move {path} to the adapter holder, and erase {erased} here{kept}?", yes)
        with progress("publishing"):
            placement, said = move(services, path, wanted)
    facts = {**_row(placement), "extraction": said.get("extraction")}
    if sites := said.get("sites"):
        facts["rounding"] = _rounding(sites)
    print_object({**facts, "other_copies": _copies(wanted, placement)}, as_json=as_json)


@app.command("list")
def list_(
    data_dir: DataDir = None, key_file: KeyFile = None, tenant: Tenant = None, as_json: AsJson = False
) -> None:
    """List private adapters."""
    from tensafe.local.admin import placements

    with opened(data_dir, key_file) as services:
        rows = [_row(one) for one in placements(services, tenant)]
    columns = ("path", "tenant", "base_model", "policy", "holder", "version")
    print_rows(rows, as_json=as_json, columns=columns, empty="no private adapters")


@app.command()
def show(
    path: AdapterPath,
    holder_dir: Annotated[
        Path | None,
        typer.Option("--holder-dir", metavar="DIR", help="Ask the adapter holder of this directory too."),
    ] = None,
    data_dir: DataDir = None,
    key_file: KeyFile = None,
    as_json: AsJson = False,
) -> None:
    """Show a private adapter: its policy and where it is held; from its holder, epoch and budget."""
    command = None if holder_dir is None else _holder(holder_dir)
    with opened(data_dir, key_file) as services:
        placement = _find(services, path)
        kept = services.keeping.peek(placement.run_id, placement.name)
    here: Row = {} if kept is None else {"kept_in_the_clear": kept.digest}
    there = {} if command is None else _at_the_holder(placement, command("show", *_named(placement)))
    print_object({**_row(placement), **here, **there}, as_json=as_json)


@app.command()
def move(
    path: AdapterPath,
    holder: HolderAddress,
    data_dir: DataDir = None,
    key_file: KeyFile = None,
    as_json: AsJson = False,
) -> None:
    """Say where its adapter holder listens now; the weights have to be those that were published.

    Samplers look there from their next request on, and sample from the published digest alone.
    """
    from tensafe.local.publishing import move as take

    with opened(data_dir, key_file) as services:
        placement = take(services, _find(services, path), holder)
    print_object(_row(placement), as_json=as_json)


@app.command()
def rotate(
    path: AdapterPath,
    holder_dir: HolderDir = None,
    rotated: Annotated[
        bool,
        typer.Option(
            "--rotated", help="The adapter holder has begun it already: take over its epoch and digest."
        ),
    ] = False,
    data_dir: DataDir = None,
    key_file: KeyFile = None,
    as_json: AsJson = False,
) -> None:
    """Begin a new epoch at the adapter holder: new bases, a new budget, another digest."""
    from tensafe.local.publishing import rotate as turn

    command = _holder(holder_dir)
    with opened(data_dir, key_file) as services:
        placement = turn(services, _find(services, path), command, rotated=rotated)
    print_object(_row(placement), as_json=as_json)


@app.command()
def revoke(
    path: AdapterPath,
    holder_dir: Annotated[
        Path | None,
        typer.Option(
            "--holder-dir",
            metavar="DIR",
            help="Erase it at this adapter holder too; on AWS at the one that $TENSAFE_HOLDER_TABLE names.",
        ),
    ] = None,
    data_dir: DataDir = None,
    key_file: KeyFile = None,
    yes: Yes = False,
    as_json: AsJson = False,
) -> None:
    """Stop sampling from a private adapter for ever."""
    from tensafe.local.publishing import revoke as end

    erase = holder_dir is not None or bool(os.environ.get("TENSAFE_HOLDER_TABLE"))
    command = _holder(holder_dir) if erase else None
    with opened(data_dir, key_file, doing=None) as services:
        placement = _find(services, path)
        confirm(f"Revoke {path} of tenant {placement.tenant}?", yes)
        if command is not None:
            command("revoke", *_named(placement))
        end(services, placement)
    facts: dict[str, object] = {"path": path, "revoked": True, "erased": erase}
    if not erase:
        named = " ".join(_named(placement))
        facts["left"] = (
            f"at its adapter holder: python -m tensafe_gpu.adapter_holder revoke {named} erases it"
        )
    print_object(facts, as_json=as_json)


@app.command()
def certificate(
    cert: Annotated[Path, typer.Option(metavar="FILE", help="The samplers' certificate (PEM).")],
    key: Annotated[Path, typer.Option(metavar="FILE", help="Its key, without a pass phrase.")],
    ca: Annotated[Path, typer.Option(metavar="FILE", help="The authority of the adapter holders.")],
    data_dir: DataDir = None,
    key_file: KeyFile = None,
    as_json: AsJson = False,
) -> None:
    """Seal the samplers' certificate for adapter holders in the vault; new connections are made with it."""
    from tensafe.local.certificates import keep_certificate

    with opened(data_dir, key_file) as services:
        keep_certificate(services, {"cert": cert, "key": key, "ca": ca})
    print_object({"kept": True}, as_json=as_json)


def _holder(holder_dir: Path | None) -> HolderCommand:
    """Commands of the adapter holder: of a directory, or of its own store on AWS."""
    from tensafe.local.holder_command import in_directory, on_aws

    return on_aws() if holder_dir is None else in_directory(holder_dir)


def _at_the_holder(placement: Placement, said: dict[str, Any]) -> Row:
    """Where its epoch stands; metered is what the site that was asked most has answered to all together."""
    from tensafe.local.publishing_terms import OTHER_DIGEST

    sites = said["tokens_by_site_and_tenant"].values()
    differs = placement.digest not in (None, said["digest"])
    return {
        **({"refused": OTHER_DIGEST} if differs else {}),
        "status": said["status"],
        "epoch": said["epoch"],
        "digest": said["digest"],
        "tokens_per_site": said["policy"]["tokens_per_site"],
        "metered": max((sum(tenants.values()) for tenants in sites), default=0),
    }


def _copies(wanted: Publishing, placement: Placement) -> str:
    """What else this service has of the weights, and what erases it."""
    run = placement.run_id
    if wanted.erases_run:
        return f"none: run {run} is erased (a run that began from these weights is another one)"
    rest = f"in what is kept of run {run}: tensafe runs erase {run}"
    if not wanted.keep_plaintext:
        return rest
    return f"the quantised adapter, for HE_PREFERRED, and more {rest} erases both"


def _rounding(sites: list[dict[str, float]]) -> str:
    """What the integers of the protocol cost at most: the error of the weights is measured, that of
    activations follows from their bound, for the crest factor that `helora/quantise.py` assumes.
    """
    weights, activations = (max(site[error] for site in sites) for error in ("error_a", "error_x"))
    return (
        f"weights to a relative error of {weights:.1e}, measured; activations to {activations:.1e}, assumed "
        f"that a token's largest is {_CREST:g} times their root mean square; at the worst of "
        f"{len(sites)} sites"
    )


def _find(services: Services, path: str) -> Placement:
    from tensafe.wire.paths import CheckpointPath

    parsed = CheckpointPath.parse(path)
    return services.placements.find(str(parsed.run), parsed.name)


def _named(placement: Placement) -> tuple[str, ...]:
    return ("--name", placement.adapter, "--version", str(placement.version))


def _row(placement: Placement) -> Row:
    return {
        "path": placement.path,
        "tenant": placement.tenant,
        "base_model": placement.base_model,
        "policy": placement.policy.value,
        "holder": placement.address,
        "holder_tenant": placement.holder_tenant,
        "adapter": placement.adapter,
        "version": placement.version,
        "epoch": placement.epoch,
        "digest": placement.digest,
        "created": utc(placement.created_ms),
    }
