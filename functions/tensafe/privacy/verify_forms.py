"""The lines of an exported ledger as a verifier reads them: exact fields, exact types, nothing else.

Modes, accountants and versions are written out, not imported: what a verifier believes must not change
with what the service charges. A ledger of another mode is refused by the name of the field.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from json.encoder import encode_basestring_ascii as _quoted
from typing import Annotated, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from tensafe.contracts.errors import IntegrityError

Hash = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Hex = Annotated[str, Field(pattern=r"^(?:[0-9a-f]{2})*$")]
Name = Annotated[str, Field(min_length=1, max_length=128)]
Count = Annotated[int, Field(ge=0, le=2**53)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Mode = Literal["bounded_participation_independent_gaussian", "bounded_participation_bisr_gaussian"]
DealtMode = Literal["dealt_truncated_poisson_gaussian"]
Adjacency = Literal["add_or_remove_one_unit", "zero_out_one_unit"]
Loss = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Delta = Annotated[float, Field(gt=0, lt=1)]


class LedgerRefused(IntegrityError):
    """The export is not what the key signed, or does not add up. `where` names the line or row."""

    code = "ledger_refused"

    def __init__(self, where: str, problem: str) -> None:
        super().__init__(f"{where}: {problem}")
        self.where = where
        self.problem = problem


class _Exact(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    def canonical(self) -> str:
        """The one form that an export writes these values in."""
        fields = self.model_dump(mode="json")
        return json.dumps(fields, sort_keys=True, separators=(",", ":"), allow_nan=False)


class _Correlation(_Exact):
    """What version 2 adds to a mechanism and to its rows; all None for independent noise."""

    min_separation: Annotated[int, Field(ge=1, le=2**53)]
    bisr_bandwidth: Annotated[int, Field(ge=1, le=256)] | None
    sensitivity: Positive | None
    coefficient_hash: Hash | None


class _MechanismCommon(_Exact):
    adjacency: Literal["add_or_remove_one_unit"]
    clip_norm: Positive
    noise_multiplier: Positive
    batch_size: Annotated[int, Field(ge=1)]
    max_participations: Annotated[int, Field(ge=1)]
    delta: Delta
    domain: Name
    max_steps: Annotated[int, Field(ge=1, le=2**53)] | None
    max_epsilon: Positive | None


class MechanismForm1(_MechanismCommon):
    """A run's frozen mechanism (`Mechanism.to_body`), independent noise, no separation."""

    version: Literal[1]
    mode: Literal["bounded_participation_independent_gaussian"]


class MechanismForm2(_MechanismCommon, _Correlation):
    """A run's frozen mechanism, with a separation or correlated noise."""

    version: Literal[2]
    mode: Mode


class MechanismForm3(_Exact):
    """A dealt run's frozen mechanism (`DealtMechanism.to_body`)."""

    version: Literal[3]
    mode: DealtMode
    adjacency: Adjacency
    clip_norm: Positive
    noise_multiplier: Positive
    batch_size: Annotated[int, Field(ge=1)]
    sampling_probability: Annotated[float, Field(gt=0, le=1)]
    batch_cap: Annotated[int, Field(ge=1, le=2**53)]
    max_steps: Annotated[int, Field(ge=1, le=1_000_000)]
    delta: Delta
    domain: Name
    units: Annotated[int, Field(ge=1, le=2**53)]
    manifest_digest: Hash
    max_epsilon: Positive | None
    fixed_in_advance: bool
    reveal_non_dp: bool


class MechanismForm4(MechanismForm2):
    """A run's frozen mechanism whose client attests how it samples."""

    version: Literal[4]  # type: ignore[assignment]  # a form of its own with all fields of version 2
    attested_probability: Annotated[float, Field(gt=0, le=1)]


class DealtRunForm(_Exact):
    """A dealt run of the domain."""

    mechanism: MechanismForm3
    noise_key_id: Name
    deal_commitment: Hash


class RunForm(_Exact):
    """A run of the domain."""

    mechanism: Annotated[MechanismForm1 | MechanismForm2 | MechanismForm4, Field(discriminator="version")]
    noise_key_id: Name


class KeyForm(_Exact):
    """A public key that the export brings along; trusted only if the verifier's user says so."""

    kind: Name
    key_id: Name
    public_key: Annotated[str, Field(max_length=4096)]


class HeadForm(_Exact):
    """The end of the chain."""

    rows: Count
    hash: Hash


class HeaderForm(_Exact):
    """The first line."""

    type: Literal["header"]
    format: Literal["tensafe-privacy-ledger"]
    version: Literal[1]
    tenant: Name
    domain: Name
    delta: Delta
    adjacency: Adjacency
    exported_at_ms: Count
    keys: Annotated[tuple[KeyForm, ...], Field(max_length=64, strict=False)]
    runs: Mapping[Name, RunForm | DealtRunForm]
    head: HeadForm
    key_id: Name
    signature: Hex


class TermsForm(_Exact):
    """A registered domain's terms."""

    unit: Literal["record", "user"]
    adjacency: Adjacency
    delta: Delta
    max_epsilon: Positive


class RegisteredForm(_Exact):
    """What a domain is registered with; `earlier_rows` were charged under its name before that."""

    terms: TermsForm
    units: Annotated[int, Field(ge=1, le=2**53)]
    root: Hash
    manifest_digest: Hash
    earlier_rows: Count


class HeaderForm2(HeaderForm):
    """The first line of a registered domain's export."""

    version: Literal[2]  # type: ignore[assignment]  # a form of its own with all fields of version 1
    registered: RegisteredForm


HEADER: Final[TypeAdapter[HeaderForm | HeaderForm2]] = TypeAdapter(
    Annotated[HeaderForm | HeaderForm2, Field(discriminator="version")]
)
"""Reads a header. Raises ValidationError."""


class RowLineForm(_Exact):
    """A line with a row."""

    type: Literal["row"]
    row: str
    hash: Hash
    tags: Hex
    key_id: Name
    signature: Hex

    def canonical(self) -> str:
        """The one form of the line, put together faster than a JSON encoder sorts it."""
        key_id, row = _quoted(self.key_id), _quoted(self.row)
        return (
            f'{{"hash":"{self.hash}","key_id":{key_id},"row":{row},"signature":"{self.signature}",'
            f'"tags":"{self.tags}","type":"row"}}'
        )


class TrailerForm(_Exact):
    """The last line."""

    type: Literal["trailer"]
    rows: Count
    head: Hash
    sha256: Hash
    key_id: Name
    signature: Hex


class _RowCommon(_Exact):
    seq: Count
    previous: Hash
    run_id: Name
    step: Count
    at_ms: Count
    noise_multiplier: Positive
    clip_norm: Positive
    batch_size: Annotated[int, Field(ge=1)]
    max_participations: Annotated[int, Field(ge=1)]
    delta: Delta
    mode: Mode
    adjacency: Literal["add_or_remove_one_unit"]
    accountant: Literal[
        "dp-accounting/gaussian-mechanism/v1", "dp-accounting/gaussian-mechanism/k-b-sensitivity/v1"
    ]
    noise_key_id: Name
    units: Count
    units_digest: Hash
    binding: Annotated[str, Field(max_length=128)]
    participations: Count
    run_epsilon: Loss
    epsilon: Loss


class RowForm1(_RowCommon):
    """A row's text; the fields are described in `records.Row`."""

    version: Literal[1]


class RowForm2(_RowCommon, _Correlation):
    """A row's text of a mechanism of version 2."""

    version: Literal[2]
    index: Count
    max_steps: Annotated[int, Field(ge=1, le=2**53)] | None


class RowForm4(RowForm2):
    """A row's text of a mechanism of version 4; `attested_epsilon` None is one above 300."""

    version: Literal[4]  # type: ignore[assignment]  # a form of its own with all fields of version 2
    attested_probability: Annotated[float, Field(gt=0, le=1)]
    attested_epsilon: Loss | None


class RowForm3(_Exact):
    """A row's text of a dealt run; the fields are described in `dealt_rows.DealtRow`."""

    version: Literal[3]
    seq: Count
    previous: Hash
    run_id: Name
    kind: Literal["opening", "deal"]
    step: Count
    index: Count | None
    abandoned: Count
    at_ms: Count
    mode: DealtMode
    accountant: Literal["dp-accounting/pld-truncated-poisson/v1"]
    adjacency: Adjacency
    noise_multiplier: Positive
    clip_norm: Positive
    batch_size: Annotated[int, Field(ge=1)]
    sampling_probability: Annotated[float, Field(gt=0, le=1)]
    batch_cap: Annotated[int, Field(ge=1)]
    max_steps: Annotated[int, Field(ge=1)]
    units_of_domain: Annotated[int, Field(ge=1)]
    manifest_digest: Hash
    deal_commitment: Hash
    noise_key_id: Name
    fixed_in_advance: bool
    delta: Delta
    run_epsilon: Loss
    epsilon: Loss


ROW: Final[TypeAdapter[RowForm1 | RowForm2 | RowForm3 | RowForm4]] = TypeAdapter(
    Annotated[RowForm1 | RowForm2 | RowForm3 | RowForm4, Field(discriminator="version")]
)
"""Reads a row's text. Raises ValidationError."""
