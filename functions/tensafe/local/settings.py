"""What the processes of the single-machine mode are told, read from the environment once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final, Literal

from pydantic import Field, ValidationError, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict, SettingsError

from tensafe.auth.oidc_settings import SCOPE_CLAIM, TENANT_CLAIM
from tensafe.contracts.errors import ConfigurationError
from tensafe.contracts.training import ModelInfo

ENV_PREFIX: Final = "TENSAFE_"


class LocalSettings(BaseSettings):
    """Environment variables `TENSAFE_*`; an unknown value is refused, not ignored."""

    model_config = SettingsConfigDict(env_prefix=ENV_PREFIX, extra="ignore", frozen=True)

    data_dir: Path
    """Made by `tensafe init`."""
    key_file: Path | None = None
    """The wrapping key, where it is not where `tensafe init` put it."""
    environment: Literal["development", "production"] = "development"
    accept_local_key: bool = False
    """In production: the operator accepts that the wrapping key is a file on this machine."""
    models: tuple[ModelInfo, ...] = ()
    """The base models that this deployment serves (JSON)."""
    base_url: str = "http://127.0.0.1:8000"
    """Where clients reach the API; signed URLs begin with it."""
    device: Literal["cpu", "cuda"] = "cpu"
    dtype: Literal["float32", "bfloat16"] = "float32"
    oidc_issuer: str | None = None
    """Accept JWTs of this OpenID Connect issuer, beside API keys."""
    oidc_audience: str | None = None
    """What they must have been made for."""
    oidc_tenant_claim: str = TENANT_CLAIM
    """The claim that names the tenant."""
    oidc_scope_claim: str = SCOPE_CLAIM
    """The claim that holds the scopes: admin, train, sample, audit."""
    lease_s: float = Field(default=30.0, ge=2, le=600)
    load_limit_s: float = Field(default=1800.0, ge=60, le=86_400)
    """How long a task may load its model; its container counts as healthy meanwhile and no longer."""
    threads: int = Field(default=0, ge=0, le=1024)
    """Compute threads per task; 0 leaves the choice to the library."""
    private_adapters: bool = False
    """Samplers evaluate private adapters with their adapter holders; needs the extra `he`."""
    private_pass_s: float = Field(default=3.0, ge=0.05, le=600)
    """What a private adapter may take of a forward pass, while all others wait; 10 ms a token on top."""
    compile_dir: Path | None = None
    """Samplers compile their passes and keep the code in this folder (docs/vllm.md); on CPU without LoRA."""
    holder_tls: Path | None = None
    """A folder with cert.pem, key.pem and ca.pem, for adapter holders that are reached over TCP."""
    metrics_port: int | None = Field(default=None, ge=1, le=65535)
    """Serve numbers for Prometheus on this port of 127.0.0.1."""
    otlp_endpoint: str | None = None
    """Send spans to this OpenTelemetry collector (OTLP over HTTP), such as http://127.0.0.1:4318/v1/traces."""
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"

    @field_validator("models", mode="before")
    @classmethod
    def _from_json(cls, value: object) -> object:
        return json.loads(value) if isinstance(value, str) else value

    @field_validator("key_file", mode="before")
    @classmethod
    def _absolute(cls, value: object) -> object:
        return Path(str(value)).expanduser().absolute() if value else None

    def as_environment(self) -> dict[str, str]:
        """The variables from which another process reads the same settings."""
        values = self.model_dump(mode="json")
        return {
            f"{ENV_PREFIX}{name.upper()}": value if isinstance(value, str) else json.dumps(value)
            for name, value in values.items()
            if value is not None
        }


def read_settings(**given: Any) -> LocalSettings:  # noqa: ANN401 - checked by the model
    """The environment's settings with `given` above them. Raises ConfigurationError naming what is wrong."""
    try:
        return LocalSettings(**given)
    except ValidationError as error:
        problems = "; ".join(
            f"{ENV_PREFIX}{'.'.join(str(part) for part in problem['loc']).upper()}: {problem['msg']}"
            for problem in error.errors(include_url=False, include_input=False)
        )
        raise ConfigurationError(f"settings that cannot be used: {problems}") from error
    except SettingsError as error:
        raise ConfigurationError(f"settings that cannot be read: {error}") from error
