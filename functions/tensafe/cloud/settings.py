"""What the functions and tasks on AWS are told, read from the environment once.

The template passes these to every function and task. None of them is a secret: credentials come from the
role, and region and endpoint from boto3's own variables.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated, Any, Final, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, field_validator

from tensafe.auth.oidc_settings import SCOPE_CLAIM, TENANT_CLAIM
from tensafe.contracts.base_models import ModelInfo
from tensafe.contracts.errors import ConfigurationError

ENV_PREFIX: Final = "TENSAFE_"
WAITS_PER_TENANT: Final = 25
_MODELS_MAX_CHARS: Final = 64 * 1024
_ABSENT: Final = frozenset({"missing", "string_too_short"})
Name = Annotated[str, Field(min_length=1, max_length=256)]
Settings = TypeVar("Settings", bound=BaseModel)


def _names_a_key(value: str) -> str:
    """The key ring says it more exactly; the authorizer has none, and is not to start either."""
    if not value.startswith("arn:") or ":key/" not in value:
        raise ValueError("a KMS key is named by its ARN, arn:aws:kms:REGION:ACCOUNT:key/ID")
    return value


KeyArn = Annotated[Name, AfterValidator(_names_a_key)]


class CloudSettings(BaseModel):
    """Environment variables `TENSAFE_*`; those without a default must be there, and empty ones are not.

    Without pydantic-settings, whose sources of every other kind a cold start would wait for.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    environment: Literal["production", "staging", "development"]
    table: Name
    """The table of the items: keys `pk` and `sk`, TTL on `x`."""
    anchor_table: Name
    """The table of the ledger's anchors, with the same keys; another account's or role's, if it can be."""
    bucket: Name
    kms_key_id: KeyArn
    """ARN of the key that wraps data keys, and that S3 encrypts objects under."""
    signing_key_id: Name
    """Id or ARN of the KMS key (ECC_NIST_P256, SIGN_VERIFY) that signs the ledger."""
    queue_prefix: str = Field(pattern=r"^[A-Za-z0-9_-]{0,14}$")
    """What the names of the queues begin with. SQS allows 80 characters, of which ours take 66."""
    models: tuple[ModelInfo, ...]
    """The base models that this deployment serves (JSON); `path` is where a task has them."""
    base_url: str = Field(pattern=r"^https?://[^/]+$")
    """Where clients reach the API."""
    oidc_issuer: str | None = None
    """An issuer of JSON web tokens that is believed; without one, API keys alone are."""
    oidc_audience: str | None = None
    oidc_tenant_claim: str = TENANT_CLAIM
    oidc_scope_claim: str = SCOPE_CLAIM
    waits_per_tenant: int = Field(default=WAITS_PER_TENANT, ge=1, le=1000)
    """Requests of one tenant that wait for results at once; each holds an execution of the API's function."""
    service_name: Name
    """Names the deployment; the dimension `service` of its metrics, which the alarms look for."""
    otlp_endpoint: str | None = None
    """Where tasks send spans (docs/observability.md); None sends none, and functions never do."""
    private_adapters: bool = False
    """Samplers evaluate private adapters with their adapter holders; needs the extra `he`."""
    private_pass_s: float = Field(default=3.0, ge=0.05, le=600)
    """What a private adapter may take of a forward pass, while all others wait; 10 ms a token on top."""
    compile_dir: Path | None = None
    """Samplers compile their passes and keep the code in this folder (docs/vllm.md); on CPU without LoRA."""
    device: Literal["cpu", "cuda"] = "cuda"
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    lease_s: float = Field(default=30.0, ge=2, le=600)
    load_limit_s: float = Field(default=1800.0, ge=60, le=86_400)
    """How long a task may load its model; its container counts as healthy meanwhile and no longer."""
    threads: int = Field(default=0, ge=0, le=1024)
    """Compute threads per task; 0 leaves the choice to the library."""
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"

    @field_validator("models", mode="before")
    @classmethod
    def _from_json(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        if len(value) > _MODELS_MAX_CHARS:
            raise ValueError(f"at most {_MODELS_MAX_CHARS} characters")
        return json.loads(value)

    @field_validator("oidc_issuer", "oidc_audience", "otlp_endpoint", "compile_dir", mode="before")
    @classmethod
    def _empty_is_none(cls, value: object) -> object:
        return value or None  # CloudFormation has no way to leave a variable out


def read_cloud_settings(**given: Any) -> CloudSettings:  # noqa: ANN401 - checked by the model
    """The environment's settings with `given` above them. Raises as `read_environment`."""
    return read_environment(CloudSettings, **given)


def read_environment(kind: type[Settings], **given: Any) -> Settings:  # noqa: ANN401 - checked by the model
    """The variables `TENSAFE_*` of the environment as these settings, with `given` above them.

    Raises ConfigurationError that names every variable which is absent or cannot be used, and no value.
    """
    variables = {field: _variable((field,)) for field in kind.model_fields}
    try:
        return kind.model_validate(
            {field: os.environ[name] for field, name in variables.items() if name in os.environ} | given
        )
    except ValidationError as error:
        problems = error.errors(include_url=False, include_input=False, include_context=False)
        named = [(_variable(problem["loc"]), problem) for problem in problems]
        absent = sorted(name for name, problem in named if problem["type"] in _ABSENT)
        wrong = [f"{name}: {problem['msg']}" for name, problem in named if problem["type"] not in _ABSENT]
        told = [f"not set: {', '.join(absent)}"] if absent else []
        raise ConfigurationError(f"settings that cannot be used: {'; '.join([*told, *wrong])}") from None


def _variable(place: tuple[int | str, ...]) -> str:
    """`TENSAFE_TABLE` for a field, `TENSAFE_MODELS.0.NAME` for a place within its value."""
    return ENV_PREFIX + ".".join(str(part) for part in place).upper()
