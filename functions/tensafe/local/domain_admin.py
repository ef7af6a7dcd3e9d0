"""Registering, listing, showing and exporting privacy domains, for the command line."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from tensafe.auth.principal import check_tenant
from tensafe.contracts.domains import MAX_PAGE_UNITS, DomainTerms
from tensafe.contracts.errors import ConfigurationError, Conflict, InvalidRequest, NotFound, TensafeError
from tensafe.contracts.training import Datum
from tensafe.local.admin import find_checkpoint, tenants, write_new_file
from tensafe.operations.checkpoints import Checkpoint, CheckpointKind
from tensafe.operations.streams import now_ms
from tensafe.privacy.domain_records import Domain
from tensafe.privacy.export import rows_in_order
from tensafe.privacy.reading import Overview, Summary, row_fields
from tensafe.privacy.unit_hashes import UnitHashes
from tensafe.services import Services
from tensafe.storage.ports import JsonValue
from tensafe.vault.scope import domain_scope
from tensafe.wire.forward_backward_json import DatumJson
from tensafe.wire.json_body import parse_json

LINE_MAX_BYTES: Final = 16 * 1024 * 1024


def only_tenant(services: Services, tenant: str | None) -> str:
    """The tenant that a new domain belongs to: the named one, or the only one that there is."""
    if tenant is not None:
        return check_tenant(tenant)
    names = tenants(services)
    if len(names) == 1:
        return names[0]
    there = f"there are {', '.join(names)}" if names else "nobody has an API key here yet"
    raise InvalidRequest(f"name the tenant whose data set it is with --tenant ({there})")


def create_domain(
    services: Services,
    tenant: str,
    name: str,
    terms: DomainTerms,
    data: Path,
    *,
    progress: Callable[[int], None] | None = None,
) -> Domain:
    """Register the data set in a JSONL file; again with the same file and terms, it does nothing.

    Every line is a datum of the native face: {"dp_unit_id": 7, "tokens": [...], "loss_fn_inputs": {...}}.
    A file that cannot be registered leaves no domain behind, whose terms could not be changed.
    `progress` is told how many data have been read. Raises InvalidRequest naming the line, Conflict.
    """
    domains, hashes = services.domains, UnitHashes(terms)
    if domains.find(tenant, name) is not None:
        domains.create(tenant, name, terms)  # says so if its terms are others, before the file is read
    for number, datum in enumerate(_data(data), start=1):
        try:
            hashes.add(datum)
        except InvalidRequest as error:
            raise InvalidRequest(f"{data}, line {number}: {error.message}") from None
        if progress is not None:
            progress(number)
    hashes.require_some()
    domain = domains.create(tenant, name, terms)
    manifest = hashes.manifest(domains.content_key(domain))
    if domain.state == "registering":
        pages = 0
        for pages, entries in enumerate(manifest.pages(MAX_PAGE_UNITS), start=1):
            domains.add_units(tenant, name, pages - 1, entries)
        for left in range(pages, domain.pages):
            domains.remove_units(tenant, name, left)
        return domains.finish(tenant, name, units=manifest.units, root=manifest.root.hex())
    if domain.root != manifest.root.hex():
        raise Conflict(
            f"privacy domain {name} is {domain.state} with other data ({domain.units} units, the file has "
            f"{manifest.units}); register these under another name"
        )
    return domain


def list_domains(services: Services, tenant: str | None, *, limit: int) -> list[tuple[str, Summary]]:
    """Domains with their tenants, of one tenant or of all, by name."""
    names = tenants(services) if tenant is None else [tenant]
    reader = services.domain_reader
    return [(one, summary) for one in names for summary in reader.summaries(one, limit=limit)][:limit]


def find_overview(services: Services, name: str, tenant: str | None) -> Overview:
    """The domain of one tenant. Raises NotFound, InvalidRequest if several tenants have one of this name."""
    found: list[Overview] = []
    for owner in tenants(services) if tenant is None else [tenant]:
        try:
            found.append(services.domain_reader.show(owner, name))
        except NotFound:
            continue
    if not found:
        raise NotFound(
            f"there is no privacy domain {name[:128]!r}; `tensafe privacy create` registers one, and a run "
            "with dp settings makes its own"
        )
    if len(found) > 1:
        owners = ", ".join(one.tenant for one in found)
        raise InvalidRequest(f"several tenants have a domain {name!r}: choose one with --tenant ({owners})")
    return found[0]


def ledger_rows(
    services: Services, domain: str, tenant: str | None, *, limit: int
) -> list[dict[str, JsonValue]]:
    """The last rows of the domain's ledger, oldest first; none if nothing was charged. As `find_overview`."""
    overview = find_overview(services, domain, tenant)
    if overview.spent is None:
        return []
    scope = domain_scope(overview.tenant, domain)
    last = deque(rows_in_order(services.ports.items, scope, up_to=overview.spent.steps), maxlen=limit)
    return [row_fields(item) for item in last]


def export_ledger(services: Services, domain: str, tenant: str | None, output: Path) -> dict[str, JsonValue]:
    """Write the domain's signed ledger to a new file; what it is. As `find_overview`, and `Exporter`."""
    owner = find_overview(services, domain, tenant).tenant
    write_new_file(output, services.domain_reader.export(owner, domain, at_ms=now_ms()))
    signer = services.ports.signer
    return {"file": str(output), "tenant": owner, "domain": domain, "key_id": signer.key_id}


def find_saved(services: Services, what: str) -> Checkpoint:
    """The artifact at `tinker://RUN/KIND/NAME`, or at RUN/NAME if one of its kinds has that name.

    Raises NotFound, InvalidRequest if several have.
    """
    if what.startswith("tinker://"):
        return find_checkpoint(services, what)
    run_id, _, name = what.rpartition("/")
    peeked = (services.checkpoints.peek(run_id, kind, name) for kind in CheckpointKind)
    found = [checkpoint for checkpoint in peeked if checkpoint is not None]
    if not found:
        raise NotFound(f"there is no checkpoint {what[:200]}; `tensafe checkpoints list` shows them")
    if len(found) > 1:
        raise InvalidRequest(f"{what} is several: name one of {', '.join(one.path for one in found)}")
    return found[0]


def _data(path: Path) -> Iterator[Datum]:
    """The file's data, a line at a time. Raises InvalidRequest naming the line."""
    try:
        file = path.open("rb")
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be read: {error.strerror}") from error
    with file:
        for number in range(1, 2**63):
            line = file.readline(LINE_MAX_BYTES + 1)
            if not line:
                return
            if not line.strip():
                raise InvalidRequest(f"{path}, line {number}: it is empty; every line is one datum")
            where = f"line {number}"
            try:
                yield parse_json(DatumJson, line, max_bytes=LINE_MAX_BYTES).to_datum(where)
            except TensafeError as error:
                raise InvalidRequest(f"{path}, {where}: {error.message}") from None
