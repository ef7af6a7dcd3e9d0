"""On what terms weights are published, and what refuses them before anything is moved or erased."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from tensafe.contracts.errors import Conflict, InvalidRequest
from tensafe.contracts.execution import ExecutionPolicy
from tensafe.local.certificates import common_name, kept_name, read_pem
from tensafe.operations.placements import Placement, check_address
from tensafe.services import Services

_TENANT: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.@-]{0,99}")
"""As `TenantName` of the adapter holder's policy, which is not part of this package; a test compares them."""

OTHER_DIGEST: Final = (
    "the adapter holder has other weights, or another epoch of them, than the service was told of, and "
    "nothing is sampled from them; if it was rotated there, take that over: "
    "`tensafe adapters rotate PATH --rotated`"
)


@dataclass(frozen=True, slots=True)
class Publishing:
    """What the publisher decides. `holder` runs a command of the adapter holder on its own store.

    With `keep_plaintext` the quantised adapter stays in the vault, for answers under HE_PREFERRED. It is
    sealed under the key of the run, which then stays too, as with `keep_run`.
    """

    holder: Callable[..., dict[str, Any]]
    address: str
    holder_tenant: str
    tokens_per_site: int
    policy: ExecutionPolicy
    keep_plaintext: bool = False
    keep_run: bool = False

    @property
    def erases_run(self) -> bool:
        """Whether nothing of the run is left, and not the published checkpoint alone."""
        return not (self.keep_run or self.keep_plaintext)

    def __post_init__(self) -> None:
        # All before the adapter holder has anything: what is published is not changed any more.
        check_address(self.address)
        if not _TENANT.fullmatch(self.holder_tenant):
            raise InvalidRequest(
                "one name, of letters, digits and '_.@-', is what an adapter holder knows the samplers by",
                field="holder_tenant",
            )
        if self.policy is ExecutionPolicy.PLAINTEXT_ONLY:
            raise InvalidRequest(
                "its adapter holder would never be asked: leave it an ordinary one, or choose HE_REQUIRED",
                field="policy",
            )
        preferred = self.policy is ExecutionPolicy.HE_PREFERRED
        if preferred and not self.keep_plaintext:
            raise InvalidRequest(
                "under HE_PREFERRED an answer falls back to weights in the clear, and there would be none: "
                "say --keep-plaintext to keep them in the vault of this service, or choose HE_REQUIRED",
                field="policy",
            )
        if self.keep_plaintext and not preferred:
            raise InvalidRequest(
                "nothing that is kept in the clear is used under HE_REQUIRED: leave out --keep-plaintext, or "
                "choose HE_PREFERRED",
                field="keep_plaintext",
            )


def known(wanted: Publishing, adapter: str) -> dict[str, Any] | None:
    """The active publication of a try that was cut short, the newest of several: nothing is placed yet."""
    found = _active(wanted, adapter)
    return found[-1] if found else None


def _active(wanted: Publishing, adapter: str) -> list[dict[str, Any]]:
    """Versions that the adapter holder serves, oldest first; tries cut short may have left several."""
    adapters = wanted.holder("list")["adapters"]
    return [one for one in adapters if one["name"] == adapter and one["status"] == "active"]


def told_again(wanted: Publishing, placed: Placement) -> dict[str, Any]:
    """What the adapter holder says of what is published, which is known by its version and digest. Raises
    Conflict if that was on other terms, or it is not there any more: then whatever is left here stays.
    """
    there = (placed.policy, placed.address, placed.holder_tenant)
    if there != (wanted.policy, wanted.address, wanted.holder_tenant):
        raise Conflict(
            f"it is published already: {placed.policy}, at {placed.address}, for {placed.holder_tenant}; "
            "`tensafe adapters move` changes the address, other terms need another checkpoint"
        )
    active = _active(wanted, placed.adapter)
    said = next((one for one in active if one["version"] == placed.version), None)
    if said is None:
        raise Conflict(
            "it is published already, and the adapter holder that is named has it no more, so nothing is "
            "erased. Is that the right one? If so, `tensafe adapters revoke` ends it here"
        )
    if placed.digest not in (None, said["digest"]):
        raise Conflict(f"it is published already, and nothing is erased: {OTHER_DIGEST}")
    check_policy(wanted, said)
    return said


def check_policy(wanted: Publishing, said: Mapping[str, Any]) -> None:
    """Raise Conflict if the adapter holder has it under another policy, which is not changed by this."""
    budget, tenants = said["policy"]["tokens_per_site"], said["policy"]["tenants"]
    if budget != wanted.tokens_per_site:
        raise Conflict(
            f"the adapter holder has it with a budget of {budget} tokens per site; give --tokens-per-site "
            f"{budget}, or publish another checkpoint"
        )
    if tenants != [wanted.holder_tenant]:
        same = f"give --holder-tenant {tenants[0]}, or " if len(tenants) == 1 else ""
        raise Conflict(
            f"the adapter holder has it for {', '.join(tenants)}; {same}publish another checkpoint"
        )


def check_tenant(services: Services, address: str, holder_tenant: str) -> None:
    """Over TCP samplers are who their certificate says. Raises InvalidRequest for another name."""
    if not address.startswith("tcp:"):
        return
    folder = os.environ.get("TENSAFE_HOLDER_TLS")  # which samplers of this machine prefer
    named = common_name(read_pem(Path(folder) / "cert.pem")) if folder else kept_name(services)
    if named not in (None, holder_tenant):
        raise InvalidRequest(
            f"this service's samplers are {named} by their certificate: nobody could use it",
            field="holder_tenant",
        )


def check_others(services: Services, run_id: str, name: str, wanted: Publishing) -> None:
    """Raise Conflict if the erasure of the run would take what HE_PREFERRED keeps of another adapter."""
    run = services.streams.find(run_id)
    if run is None or not wanted.erases_run:
        return
    others = services.placements.of_run(run)
    kept = [one.path for one in others if one.name != name and services.keeping.peek(run_id, one.name)]
    if kept:
        raise Conflict(
            f"the run is erased with its key, under which {kept[0]} is kept for HE_PREFERRED: say "
            "--keep-run, or revoke that one first"
        )
