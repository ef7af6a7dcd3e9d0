"""HE-01: who may answer, as a table; nothing is decided anywhere else."""

from __future__ import annotations

import itertools

import pytest

from tensafe.contracts.errors import HE_CODES, HeRefused, InvalidRequest
from tensafe.contracts.execution import (
    DEFAULT_PRIVATE,
    ExecutionMode,
    ExecutionPolicy,
    Offer,
    decide,
    effective,
)

ONLY, PREFERRED, REQUIRED = (
    ExecutionPolicy.PLAINTEXT_ONLY,
    ExecutionPolicy.HE_PREFERRED,
    ExecutionPolicy.HE_REQUIRED,
)
NONE, PLAIN, HE = ExecutionMode.NONE, ExecutionMode.PLAINTEXT, ExecutionMode.HE
DOWN = "he_timeout"

# (with a holder, in the vault), policy, what failed -> mode or code of the refusal
TABLE = [
    ((False, False), ONLY, None, NONE),
    ((False, False), PREFERRED, None, NONE),
    ((False, False), REQUIRED, None, "he_not_offered"),
    ((False, True), ONLY, None, PLAIN),
    ((False, True), PREFERRED, None, PLAIN),
    ((False, True), REQUIRED, None, "he_not_offered"),
    ((True, False), ONLY, None, "he_only"),
    ((True, False), PREFERRED, None, HE),
    ((True, False), REQUIRED, None, HE),
    ((True, False), PREFERRED, DOWN, DOWN),
    ((True, False), REQUIRED, DOWN, DOWN),
    ((True, True), ONLY, None, PLAIN),
    ((True, True), PREFERRED, None, HE),
    ((True, True), REQUIRED, None, HE),
    ((True, True), PREFERRED, DOWN, PLAIN),
    ((True, True), REQUIRED, DOWN, DOWN),
    ((True, True), PREFERRED, "he_budget_spent", "he_budget_spent"),
    ((True, True), PREFERRED, "he_not_allowed", "he_not_allowed"),
    ((True, True), PREFERRED, "he_certificate_refused", "he_certificate_refused"),
    ((True, True), PREFERRED, "he_adapter_holder_absent", PLAIN),
    # Which says nothing of the owner's mind: a sampler that prepares and uses nothing up.
    ((True, True), PREFERRED, "he_too_many_blocks", PLAIN),
    ((True, True), REQUIRED, "he_too_many_blocks", "he_too_many_blocks"),
]


@pytest.mark.parametrize(("offer", "policy", "failed", "expected"), TABLE)
def test_he_01_the_table(
    offer: tuple[bool, bool], policy: ExecutionPolicy, failed: str | None, expected: ExecutionMode | str
) -> None:
    there = Offer(policy, encrypted=offer[0], plaintext=offer[1])
    if isinstance(expected, ExecutionMode):
        assert decide(there, policy, failed=failed) is expected
        return
    with pytest.raises(HeRefused) as refused:
        decide(there, policy, failed=failed)
    assert refused.value.code == expected
    assert expected in HE_CODES


def test_he_01_required_is_never_answered_in_the_clear() -> None:
    for encrypted, plaintext, failed in itertools.product((True, False), (True, False), (None, DOWN)):
        try:
            mode = decide(Offer(REQUIRED, encrypted=encrypted, plaintext=plaintext), REQUIRED, failed=failed)
        except HeRefused:
            continue
        assert mode is HE


def test_a_request_strengthens_and_never_weakens() -> None:
    assert DEFAULT_PRIVATE is REQUIRED
    for adapter, request in itertools.product(ExecutionPolicy, ExecutionPolicy):
        if request.strength >= adapter.strength:
            assert effective(adapter, request) is request
        else:
            with pytest.raises(InvalidRequest) as refused:
                effective(adapter, request)
            assert refused.value.field == "execution_policy"
        assert effective(adapter, None) is adapter
