"""Saving, loading, copying and managing checkpoints."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from tensafe.contracts.errors import InvalidRequest, Unsupported
from tensafe.contracts.payloads import SavePayload
from tensafe.contracts.training import OptimizerConfig
from tensafe.wire.age_recipients import check_recipients
from tensafe.wire.ids import RequestId, RunId, SamplerId, check_session_id
from tensafe.wire.json_body import RequestModel
from tensafe.wire.paths import CheckpointPath, check_new_name, session_weights_name
from tensafe.wire.tinker_requests.fields import Count, Id, Name, SeqId, TtlSeconds, UserMetadata
from tensafe.wire.tinker_requests.optimizers import OptimizerJson, to_optimizer_config


class _SaveBody(RequestModel):
    """What the three ways of saving share."""

    model_id: Id
    seq_id: SeqId
    ttl_seconds: TtlSeconds | None = None

    def to_request_id(self) -> RequestId:
        """The operation's place in its run's log."""
        return RequestId(RunId.parse(self.model_id), self.seq_id)


class SaveWeightsBody(_SaveBody):
    """POST save_weights: weights and optimizer state, to resume from."""

    path: Name
    overwrite: bool = False
    user_metadata: UserMetadata | None = None
    type: Literal["save_weights"] = "save_weights"

    def to_payload(self) -> SavePayload:
        """Under which name, for how long."""
        return SavePayload(
            name=check_new_name(self.path),
            overwrite=self.overwrite,
            ttl_s=self.ttl_seconds,
            user_metadata=self.user_metadata or {},
        )


class SaveWeightsForSamplerBody(_SaveBody):
    """POST save_weights_for_sampler: under a name, or straight into a new sampling session."""

    path: Name | None = None
    sampling_session_seq_id: Count | None = None
    kind: Literal["snapshot", "inflight"] = "snapshot"
    user_metadata: UserMetadata | None = None
    type: Literal["save_weights_for_sampler"] = "save_weights_for_sampler"

    def to_payload(self) -> SavePayload:
        """Under which name, or for which sampling session. Weights that change under it are Unsupported."""
        if (self.path is None) == (self.sampling_session_seq_id is None):
            raise InvalidRequest("give exactly one of path and sampling_session_seq_id", field="path")
        if self.kind != "snapshot":
            raise Unsupported("kind 'inflight' is not supported; use 'snapshot'", field="kind")
        sampler = None
        if self.sampling_session_seq_id is not None:
            sampler = SamplerId(RunId.parse(self.model_id).session_id, self.sampling_session_seq_id)
        return SavePayload(
            name=check_new_name(self.path or "") if sampler is None else session_weights_name(sampler),
            ttl_s=self.ttl_seconds,
            user_metadata=self.user_metadata or {},
            sampling_session_id=None if sampler is None else str(sampler),
        )


class SaveWeightsExternalBody(_SaveBody):
    """POST save_weights_external: files for use elsewhere, encrypted with age if recipients are given."""

    path: Name
    age_encryption_recipients: list[str] | None = None
    type: Literal["save_weights_external"] = "save_weights_external"

    def to_payload(self) -> SavePayload:
        """Under which name and for whom; every recipient is checked."""
        recipients: tuple[str, ...] = ()
        # An empty list is refused: a caller who meant to encrypt must not get files in clear.
        if self.age_encryption_recipients is not None:
            recipients = check_recipients(self.age_encryption_recipients, "age_encryption_recipients")
        return SavePayload(name=check_new_name(self.path), ttl_s=self.ttl_seconds, age_recipients=recipients)


@dataclass(frozen=True, slots=True)
class LoadWeights:
    """Load `path` into a run. `creates_run`: this is the run's operation 0, with `optimizer_config`."""

    request_id: RequestId
    path: CheckpointPath
    creates_run: bool
    with_optimizer: bool
    base_model: str | None
    optimizer_config: OptimizerConfig | None
    user_metadata: dict[str, str] | None


class LoadWeightsBody(RequestModel):
    """POST load_weights: into an existing run (model_id, seq_id), or creating one (session, model_seq_id)."""

    model_id: Id | None = None
    seq_id: SeqId | None = None
    session_id: Id | None = None
    model_seq_id: Count | None = None
    base_model: Name | None = None
    user_metadata: UserMetadata | None = None
    path: str
    optimizer: bool
    optimizer_config: OptimizerJson | None = None
    weights_access_token: str | None = None
    type: Literal["load_weights"] = "load_weights"

    def to_load_weights(self) -> LoadWeights:
        """What to load and where. `optimizer_config` None: as the checkpoint says, or AdamW."""
        if self.weights_access_token is not None:
            raise Unsupported(
                "weights_access_token is not supported: load checkpoints of your own account",
                field="weights_access_token",
            )
        request_id, creates_run = self._address()
        path = CheckpointPath.parse(self.path)
        if path.kind == "external_weights":
            raise Unsupported("external_weights cannot be loaded; load weights", field="path")
        if path.kind == "sampler_weights" and self.optimizer:
            raise InvalidRequest("sampler_weights hold no optimizer state; load weights", field="path")
        if self.optimizer_config is not None and (self.optimizer or not creates_run):
            raise InvalidRequest(
                "optimizer_config is for a new run without restored optimizer state; leave it out, or load "
                "the weights alone into a new run",
                field="optimizer_config",
            )
        config = None if self.optimizer_config is None else to_optimizer_config(self.optimizer_config)
        return LoadWeights(
            request_id, path, creates_run, self.optimizer, self.base_model, config, self.user_metadata
        )

    def _address(self) -> tuple[RequestId, bool]:
        """The operation, and whether it creates the run; exactly one of the two forms must be whole."""
        old = (self.model_id, self.seq_id)
        new = (self.session_id, self.model_seq_id)
        if self.model_id is not None and self.seq_id is not None and new == (None, None):
            if self.base_model is not None or self.user_metadata is not None:
                raise InvalidRequest("base_model and user_metadata are for a new run", field="base_model")
            return RequestId(RunId.parse(self.model_id), self.seq_id), False
        if self.session_id is not None and self.model_seq_id is not None and old == (None, None):
            return RequestId(RunId(check_session_id(self.session_id), self.model_seq_id), 0), True
        raise InvalidRequest("give model_id with seq_id, or session_id with model_seq_id", field="model_id")


class WeightsInfoBody(RequestModel):
    """POST weights_info."""

    tinker_path: str

    def to_path(self) -> CheckpointPath:
        """The checkpoint asked about."""
        return CheckpointPath.parse(self.tinker_path, "tinker_path")


class CheckpointTtlBody(RequestModel):
    """PUT .../ttl. None removes the expiry; the field itself is required."""

    ttl_seconds: TtlSeconds | None


class CopyWeightsBody(RequestModel):
    """POST copy_weights. The access token, if any, is in the X-Tinker-Weights-Access-Token header."""

    session_id: Id | None = None
    model_seq_id: Count | None = None
    destination_project_id: Id | None = None
    source_path: str
    ttl_seconds: TtlSeconds | None = None
    weights_access_token: str | None = None
