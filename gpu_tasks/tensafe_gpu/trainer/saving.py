"""Saving a run: training checkpoints, sampler weights, PEFT exports."""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping
from dataclasses import dataclass

from tensafe.contracts.errors import Conflict, IntegrityError
from tensafe.contracts.payloads import SavePayload
from tensafe.operations.checkpoints import STATEMENT, UNUSED_S, Checkpoint, CheckpointKind, item_key
from tensafe.operations.records import OpKind, StreamKind
from tensafe.operations.streams import now_ms
from tensafe.operations.unclaimed import Announcement
from tensafe.packages.bundle import pack_files
from tensafe.packages.recipients import encrypt_files
from tensafe.privacy.artifact_statement import JSON_FILE, TEXT_FILE, ArtifactFacts, Statement
from tensafe.privacy.statement_text import text_of
from tensafe.services import Services
from tensafe.storage.ports import JsonValue, Write
from tensafe.vault.artifacts import ArtifactRef
from tensafe_gpu.trainer.engine import Engine
from tensafe_gpu.trainer.hot_run import HotRun
from tensafe_gpu.trainer.peft_format import export_peft
from tensafe_gpu.trainer.state import RunState
from tensafe_gpu.trainer.statements import Statements, digests

_KINDS: Mapping[OpKind, CheckpointKind] = {
    OpKind.SAVE: CheckpointKind.TRAINING,
    OpKind.SAVE_SAMPLER: CheckpointKind.SAMPLER,
    OpKind.SAVE_EXTERNAL: CheckpointKind.EXTERNAL,
}
_STATE = "state.safetensors"
"""How a statement calls the bytes of a training checkpoint."""


@dataclass(frozen=True, slots=True)
class Saved:
    """The operation's result, the writes that register the artifact, and where it is."""

    result: dict[str, JsonValue]
    writes: list[Write]
    ref: ArtifactRef


class Saver:
    """Seals what a run looks like now; the caller's transaction registers it."""

    def __init__(self, services: Services, engine: Engine) -> None:
        self._services = services
        self._engine = engine
        self._statements = Statements(services)

    def save(self, run: HotRun, op_kind: OpKind, request: SavePayload) -> Saved:
        """Write the artifact durably; the caller's transaction makes it known.

        Raises Conflict if the name or the sampling session is taken, or a private run's step is half
        accumulated.
        """
        state = run.state
        if state is None:
            raise IntegrityError("the run has no state")
        half_done = run.private is not None and bool(run.private.units or state.pending_data)
        if half_done and op_kind is OpKind.SAVE:
            raise Conflict(
                "this private run has accumulated gradients without a step: call optim_step, then save; if "
                "its budget is spent, save sampler weights, which hold no gradients"
            )
        self._refuse_taken_session(request)
        kind = _KINDS[op_kind]
        part = f"ckpt/{kind.value}/{request.name}"
        holder = item_key(run.stream.stream_id, kind, request.name)
        announce = Announcement(self._services.ports.items, holder, now_ms)
        unlisted, created_ms = request.sampling_session_id is not None, now_ms()
        files = (
            {_STATE: state.dump()} if op_kind is OpKind.SAVE else export_peft(state, run.stream.base_model)
        )
        facts = _facts(run, kind, request, files, created_ms)
        statement = self._statements.of(run, facts)
        data = _packed(files, op_kind, request, statement)
        ref = self._services.artifacts.write(run.stream.scope, part, data, announce=announce)
        idle_s = UNUSED_S if unlisted and request.ttl_s is None else None
        lasts_s = request.ttl_s or idle_s
        checkpoint = Checkpoint(
            run_id=run.stream.stream_id,
            tenant=run.stream.tenant,
            kind=kind,
            name=request.name,
            base_model=run.stream.base_model,
            created_ms=created_ms,
            ref=ref,
            artifact_id=facts.artifact_id,
            user_metadata=request.user_metadata,
            expires_ms=created_ms + lasts_s * 1000 if lasts_s else None,
            ephemeral=unlisted,
            idle_s=idle_s,
            details={**self._details(run, state), STATEMENT: statement},
        )
        try:
            writes = self._services.checkpoints.saving(checkpoint, overwrite=request.overwrite)
        except Conflict:
            self._services.artifacts.delete(ref)
            raise
        return self._saved(run, request, checkpoint, [*writes, *announce.claiming])

    def _saved(self, run: HotRun, request: SavePayload, checkpoint: Checkpoint, writes: list[Write]) -> Saved:
        if request.sampling_session_id is None:
            result: dict[str, JsonValue] = {"path": checkpoint.path, "artifact_id": checkpoint.artifact_id}
            return Saved(result, writes, checkpoint.ref)
        result = {"sampling_session_id": request.sampling_session_id}
        if not request.create_session:
            return Saved(result, writes, checkpoint.ref)
        _, session_writes = self._services.streams.creation(
            request.sampling_session_id,
            run.stream.tenant,
            StreamKind.SAMPLER,
            run.stream.base_model,
            spec={"model_path": checkpoint.path},
            session_id=run.stream.session_id,
        )
        return Saved(result, [*writes, *session_writes], checkpoint.ref)

    def _refuse_taken_session(self, request: SavePayload) -> None:
        """A session begins once: to find out in the transaction would look like a lost lease."""
        session_id = request.sampling_session_id
        if session_id is None or not request.create_session:
            return
        if self._services.streams.find(session_id) is not None:
            raise Conflict("this sampling_session_seq_id is in use", field="sampling_session_seq_id")

    def _details(self, run: HotRun, state: RunState) -> dict[str, JsonValue]:
        spec: JsonValue = json.loads(state.spec.model_dump_json())
        return {"lora": spec, "optimizer": run.stream.spec.get("optimizer"), "step": state.step}


def _facts(
    run: HotRun, kind: CheckpointKind, request: SavePayload, files: Mapping[str, bytes], saved_ms: int
) -> ArtifactFacts:
    """The artifact as its statement names it, with an id of its own."""
    return ArtifactFacts(
        artifact_id=f"art-{secrets.token_hex(12)}",
        path=f"tinker://{run.stream.stream_id}/{kind.value}/{request.name}",
        kind=kind.value,
        run_id=run.stream.stream_id,
        tenant=run.stream.tenant,
        base_model=run.stream.base_model,
        saved_ms=saved_ms,
        files=digests(files),
    )


def _packed(files: Mapping[str, bytes], op_kind: OpKind, request: SavePayload, statement: Statement) -> bytes:
    """The artifact's bytes. An export leaves the service, and takes its privacy statement along."""
    if op_kind is OpKind.SAVE:
        return files[_STATE]
    if op_kind is not OpKind.SAVE_EXTERNAL:
        return pack_files(files)
    told = {
        **files,
        JSON_FILE: (json.dumps(statement, indent=2, sort_keys=True) + "\n").encode(),
        TEXT_FILE: text_of(statement).encode(),
    }
    return pack_files(encrypt_files(told, request.age_recipients) if request.age_recipients else told)
