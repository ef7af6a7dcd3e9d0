"""Moving sampler weights from this service to an adapter holder: publish there, place, erase here."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from tensafe.contracts.errors import ConfigurationError, Conflict, InvalidRequest
from tensafe.contracts.execution import ExecutionPolicy
from tensafe.local.admin import find_checkpoint, scrub
from tensafe.operations.checkpoints import CheckpointKind
from tensafe.operations.placements import Placement, check_address
from tensafe.packages.bundle import pack_files, unpack_files
from tensafe.services import Services
from tensafe.storage.ports import Write
from tensafe.wire.paths import CheckpointPath

OTHER_DIGEST: Final = (
    "the adapter holder has other weights, or another epoch of them, than the service was told of, and "
    "nothing is sampled from them; if it was rotated there, take that over: "
    "`tensafe adapters rotate PATH --rotated`"
)
_MEMORY: Final = Path("/dev/shm")  # noqa: S108 - tmpfs: the weights are in the clear for a moment


@dataclass(frozen=True, slots=True)
class Publishing:
    """What the publisher decides. `holder` runs a command of the adapter holder on its own store.

    With `keep_plaintext` the quantised adapter stays in the vault, for answers under HE_PREFERRED.
    """

    holder: Callable[..., dict[str, Any]]
    address: str
    holder_tenant: str
    tokens_per_site: int
    policy: ExecutionPolicy
    keep_plaintext: bool = False

    def __post_init__(self) -> None:
        check_address(self.address)  # before the adapter holder has anything
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


def publish(services: Services, path: str, wanted: Publishing) -> tuple[Placement, dict[str, Any]]:
    """Publish, place, erase: the placement and what the adapter holder said. Again, it goes on.

    The adapter holder knows the weights by their artifact's id, so a publication that was cut short is
    found there, and not made twice; what it left in memory goes. The run's snapshots and its other
    checkpoints are not touched.
    Raises NotFound, InvalidRequest for other weights than a sampler's, Conflict if it was begun or done on
    other terms, ConfigurationError with the adapter holder's sentence.
    """
    parsed = CheckpointPath.parse(path)
    if parsed.kind != CheckpointKind.SAMPLER.value:
        raise InvalidRequest(
            "only sampler weights can be published: tinker://RUN/sampler_weights/NAME, which "
            "save_weights_for_sampler saves",
            field="path",
        )
    placed = services.placements.peek(str(parsed.run), parsed.name)
    if placed is not None:
        _remove_folder(placed.adapter)
        _erase(services, path)
        return placed, _told_again(wanted, placed)
    checkpoint = find_checkpoint(services, path)
    stream = services.streams.find(checkpoint.run_id)
    if stream is None:
        raise InvalidRequest("the run of these weights has been erased", field="path")
    said, kept = _known(wanted, checkpoint.artifact_id), list[Write]()
    if said is not None and wanted.keep_plaintext:
        # What it serves is in the clear only while it is published; nothing is sampled from that version yet.
        wanted.holder("revoke", "--name", str(said["name"]), "--version", str(said["version"]))
        said = None
    if said is not None:
        _check_budget(wanted, said)
    else:
        files = unpack_files(services.checkpoints.read(stream, checkpoint))
        with _in_memory(checkpoint.artifact_id, files) as folder:
            in_clear = folder / "in_clear"
            said = wanted.holder(
                "publish",
                *("--name", checkpoint.artifact_id, "--peft", str(folder)),
                *("--base-model", checkpoint.base_model, "--tenants", wanted.holder_tenant),
                *("--tokens-per-site", str(wanted.tokens_per_site)),
                *(("--in-clear", str(in_clear)) if wanted.keep_plaintext else ()),
            )
            if wanted.keep_plaintext:
                data = pack_files({name: (in_clear / name).read_bytes() for name in files})
                kept = services.keeping.writing(stream, parsed.name, str(said["digest"]), data)
    _remove_folder(checkpoint.artifact_id)
    placement = services.placements.add(
        Placement(
            run_id=checkpoint.run_id,
            name=parsed.name,
            tenant=checkpoint.tenant,
            base_model=checkpoint.base_model,
            policy=wanted.policy,
            address=wanted.address,
            adapter=str(said["name"]),
            version=int(said["version"]),
            holder_tenant=wanted.holder_tenant,
            created_ms=0,
            epoch=int(said["epoch"]),
            digest=str(said["digest"]),
        ),
        kept,
    )
    _erase(services, path)
    return placement, said


def revoke(services: Services, placement: Placement) -> None:
    """Nobody samples from it any more, not even from weights that were kept or left here.

    Those that a publication cut short had left are erased first: without the placement their path would be an
    ordinary adapter's again.
    """
    services.keeping.delete(placement.run_id, placement.name)
    _erase(services, placement.path)
    services.placements.remove(placement)


def rotate(
    services: Services, placement: Placement, holder: Callable[..., dict[str, Any]], *, rotated: bool
) -> Placement:
    """Begin the next epoch at the adapter holder, and sample from that alone; `rotated`: it has begun it.

    Again, after a rotation that was cut short between the two, it is refused: then `rotated` takes over what
    the adapter holder has. Raises Conflict if that is not what was published, ConfigurationError with the
    adapter holder's sentence.
    """
    named = ("--name", placement.adapter, "--version", str(placement.version))
    said = holder("show", *named)
    if rotated:
        if said["status"] != "active":
            raise Conflict(
                f"the adapter holder has {said['status']} it; `tensafe adapters revoke` ends it here"
            )
    elif placement.digest not in (None, said["digest"]):
        raise Conflict(OTHER_DIGEST)
    else:
        said = holder("rotate", *named)
    return services.placements.renew(placement, epoch=int(said["epoch"]), digest=str(said["digest"]))


@contextmanager
def _in_memory(artifact_id: str, files: Mapping[str, bytes]) -> Iterator[Path]:
    """A folder of this user's own with the weights in clear, under a name that the next try finds.

    Raises ConfigurationError if somebody else has made it.
    """
    _remove_folder(artifact_id)
    folder = _folder(artifact_id)
    try:
        folder.mkdir(mode=0o700)
    except FileExistsError:
        raise ConfigurationError(f"{folder} is not this user's own; remove it, and publish again") from None
    try:
        for name, content in files.items():
            (folder / name).write_bytes(content)
        yield folder
    finally:
        _remove_folder(artifact_id)


def _folder(artifact_id: str) -> Path:
    return _MEMORY / f"tensafe-publish-{os.getuid()}-{artifact_id}"


def _remove_folder(artifact_id: str) -> None:
    """What this try, or one that was killed, has put into memory; absent is fine."""
    shutil.rmtree(_folder(artifact_id), ignore_errors=True)


def _known(wanted: Publishing, adapter: str) -> dict[str, Any] | None:
    """The active publication of a try that was cut short."""
    adapters = wanted.holder("list")["adapters"]
    found = [one for one in adapters if one["name"] == adapter and one["status"] == "active"]
    return found[-1] if found else None


def _told_again(wanted: Publishing, placed: Placement) -> dict[str, Any]:
    """What the adapter holder says of what is published. Raises Conflict if that was on other terms."""
    there = (placed.policy, placed.address, placed.holder_tenant)
    if there != (wanted.policy, wanted.address, wanted.holder_tenant):
        raise Conflict(
            f"it is published already: {placed.policy}, at {placed.address}, for {placed.holder_tenant}; "
            "other terms need another checkpoint"
        )
    said = _known(wanted, placed.adapter) or {}
    _check_budget(wanted, said)
    return said


def _check_budget(wanted: Publishing, said: Mapping[str, Any]) -> None:
    """Raise Conflict if the adapter holder has it with another budget, which is not changed by this."""
    budget = said["policy"]["tokens_per_site"] if said else wanted.tokens_per_site
    if budget != wanted.tokens_per_site:
        raise Conflict(
            f"the adapter holder has it with a budget of {budget} tokens per site; give --tokens-per-site "
            f"{budget}, or publish another checkpoint"
        )


def _erase(services: Services, path: str) -> None:
    """Delete the checkpoint, and scrub its sealed key whether this try deleted it or one before."""
    parsed = CheckpointPath.parse(path)
    checkpoint = services.checkpoints.peek(str(parsed.run), CheckpointKind(parsed.kind), parsed.name)
    if checkpoint is not None:
        services.checkpoints.delete(checkpoint)
    scrub(services)
