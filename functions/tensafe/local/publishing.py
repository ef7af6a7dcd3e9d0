"""Moving sampler weights from this service to an adapter holder: publish there, place, erase here."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from tensafe.contracts.errors import ConfigurationError, Conflict, InvalidRequest, NotFound
from tensafe.local.admin import erase_run, find_checkpoint, find_run, scrub
from tensafe.local.publishing_terms import (
    OTHER_DIGEST,
    Publishing,
    check_others,
    check_policy,
    check_tenant,
    known,
    told_again,
)
from tensafe.operations import layout
from tensafe.operations.checkpoints import POINTER_VERSION, CheckpointKind
from tensafe.operations.placements import Placement, check_address
from tensafe.operations.records import StreamState
from tensafe.packages.bundle import pack_files, unpack_files
from tensafe.services import Services
from tensafe.storage.ports import Check, Write
from tensafe.wire.paths import CheckpointPath

_SAVED_ANEW: Final = (
    "other weights were saved under this path after {adapter}@{version} was published from it, which an "
    "older release allowed: save them under another name, or `tensafe adapters revoke PATH` first"
)
_MEMORY: Final = Path("/dev/shm")  # noqa: S108 - tmpfs: the weights are in the clear for a moment


def sampler_weights(services: Services, weights: str) -> str:
    """The path of a run's newest sampler weights; a path is that already.

    Those that have been published count too, so that a run that is published again, after it was cut short,
    means what it meant. Raises NotFound for no such run, or one that has none; Conflict where it is not known
    which are the newest.
    """
    if "/" in weights:
        return weights
    run = find_run(services, weights)
    saved = [one for one in services.checkpoints.of_run(run.stream_id) if one.kind is CheckpointKind.SAMPLER]
    placed = services.placements.of_run(run)
    undated = [one.path for one in placed if one.saved_ms is None]
    if undated and {one.name for one in saved} - {one.name for one in placed}:
        raise Conflict(
            f"{undated[0]} was published by an older release, which did not note when it was saved: name the "
            "weights that are meant by their path"
        )
    times = {one.name: one.saved_ms or one.created_ms for one in placed}
    times |= {one.name: one.created_ms for one in saved}
    if not times:
        raise NotFound(f"run {weights} has no sampler weights: save_weights_for_sampler saves them")
    return f"tinker://{run.stream_id}/sampler_weights/{max(times, key=times.__getitem__)}"


def publish(services: Services, path: str, wanted: Publishing) -> tuple[Placement, dict[str, Any]]:
    """Publish, place, erase: the placement and what the adapter holder said. Again, it goes on.

    The adapter holder knows the weights by their artifact's id, so a publication that was cut short is
    found there, and not made twice; what it left in memory goes. What is erased is the run, or its checkpoint
    alone if the run is kept.
    Raises NotFound, InvalidRequest for other weights than a sampler's; Conflict if it was begun or done on
    other terms, if other weights have been saved under the path meanwhile (they stay), if the adapter holder
    has lost it, or if the run's erasure would take what is kept of another adapter; ConfigurationError with
    the adapter holder's sentence.
    """
    parsed = CheckpointPath.parse(path)
    if parsed.kind != CheckpointKind.SAMPLER.value:
        raise InvalidRequest(
            "only sampler weights can be published: tinker://RUN/sampler_weights/NAME, which "
            "save_weights_for_sampler saves",
            field="path",
        )
    placed = services.placements.peek(str(parsed.run), parsed.name)
    check_tenant(services, wanted.address, wanted.holder_tenant)
    check_others(services, str(parsed.run), parsed.name, wanted)
    if placed is not None:
        told = told_again(wanted, placed)
        _remove_folder(placed.adapter)
        _erase(services, placed)
        _erase_run(services, placed, wanted)
        return placed, told
    checkpoint = find_checkpoint(services, path)
    stream = services.streams.find(checkpoint.run_id)
    if stream is None:
        raise InvalidRequest("the run of these weights has been erased", field="path")
    said, kept = known(wanted, checkpoint.artifact_id), list[Write]()
    if said is not None and wanted.keep_plaintext:
        # What it serves is in the clear only while it is published; nothing is sampled from that version yet.
        wanted.holder("revoke", "--name", str(said["name"]), "--version", str(said["version"]))
        said = None
    if said is not None:
        check_policy(wanted, said)
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
    placement = _placed(
        services,
        wanted,
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
            saved_ms=checkpoint.created_ms,
        ),
        kept,
    )
    _erase(services, placement)
    _erase_run(services, placement, wanted)
    return placement, said


def revoke(services: Services, placement: Placement) -> None:
    """Nobody samples from it any more, not even from weights that were kept or left here.

    Those that a publication cut short had left are erased first: without the placement their path would be an
    ordinary adapter's again. Other ones, which an older release let be saved under it, stay.
    """
    services.keeping.delete(placement.run_id, placement.name)
    _erase(services, placement, others_stay=True)
    services.placements.remove(placement)


def move(services: Services, placement: Placement, address: str) -> Placement:
    """Its adapter holder is at another address; nothing is asked there, and nothing else is changed.

    So samplers go on to take the published digest alone, whoever answers there. Raises InvalidRequest for an
    address that is none, or one where the samplers are not whom it is published for; Conflict for what an
    older release placed without a digest, or if it was changed meanwhile.
    """
    check_address(address)
    check_tenant(services, address, placement.holder_tenant)
    if placement.digest is None:
        raise Conflict(
            "an older release published it without its digest, so whatever is at the address would be taken "
            "for it: `tensafe adapters rotate PATH --rotated` takes the digest over; then move it"
        )
    return services.placements.move(placement, address)


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


def _erase_run(services: Services, placement: Placement, wanted: Publishing) -> None:
    """Nothing of the run is left; again is fine, and ends nobody's sampling that has begun since."""
    if not wanted.erases_run:
        return
    run = find_run(services, placement.run_id)
    if run.state is StreamState.ERASED:
        services.streams.finish_erasure(run.stream_id)
    else:
        erase_run(services, run)


def _erase(services: Services, placement: Placement, *, others_stay: bool = False) -> None:
    """Delete the checkpoint, and scrub its sealed key whether this try deleted it or one before.

    Raises Conflict if other weights have its path, unless `others_stay`; in either case they do.
    """
    checkpoint = services.checkpoints.peek(placement.run_id, CheckpointKind.SAMPLER, placement.name)
    if checkpoint is not None and checkpoint.artifact_id == placement.adapter:
        services.checkpoints.delete(checkpoint)
    elif checkpoint is not None and not others_stay:
        raise Conflict(_SAVED_ANEW.format(adapter=placement.adapter, version=placement.version))
    scrub(services)


def _placed(services: Services, wanted: Publishing, placement: Placement, also: Sequence[Write]) -> Placement:
    """Placed, as long as its weights are registered here; else ended at the adapter holder.

    Others under the path would be erased unpublished, and it would answer with these. Raises Conflict.
    """
    registered = Check(layout.artifact_item(placement.adapter), POINTER_VERSION)
    try:
        return services.placements.add(placement, [*also, registered])
    except Conflict as error:
        if services.placements.peek(placement.run_id, placement.name) is not None:
            raise
        wanted.holder("revoke", "--name", placement.adapter, "--version", str(placement.version))
        raise Conflict(
            f"{placement.path} was deleted, or other weights were saved under it, while it was published: "
            "publish what is there now"
        ) from error
