"""Which of the shared tests run through `sam local start-api` too.

They are the same functions; what differs is the `service` behind their fixtures.
"""

from __future__ import annotations

from tests.integration.service.test_correlation import test_a_failure_names_the_request_that_submitted_it
from tests.integration.service.test_isolation import (
    alice,
    bob,
    test_another_tenants_thing_is_as_absent_as_nothing,
    test_lists_show_ones_own,
    test_sampling_from_another_tenants_weights,
    test_the_owner_is_answered,
)
from tests.integration.service.test_native import (
    native,
    run,
    test_a_cancelled_operation_never_runs,
    test_a_failed_operation_is_told_with_its_field,
    test_both_faces_see_one_run,
    test_the_same_idempotency_key_is_the_same_operation,
)
from tests.integration.service.test_sdk import (
    test_a_private_run_reports_epsilon_and_stops_at_its_budget,
    test_logprobs_of_sampled_tokens_are_the_trainers,
    test_resume_goes_on_exactly,
    test_the_exported_adapter_gives_the_trainers_logprobs_under_peft,
)

__all__ = [
    "alice",
    "bob",
    "native",
    "run",
    "test_a_cancelled_operation_never_runs",
    "test_a_failed_operation_is_told_with_its_field",
    "test_a_failure_names_the_request_that_submitted_it",
    "test_a_private_run_reports_epsilon_and_stops_at_its_budget",
    "test_another_tenants_thing_is_as_absent_as_nothing",
    "test_both_faces_see_one_run",
    "test_lists_show_ones_own",
    "test_logprobs_of_sampled_tokens_are_the_trainers",
    "test_resume_goes_on_exactly",
    "test_sampling_from_another_tenants_weights",
    "test_the_exported_adapter_gives_the_trainers_logprobs_under_peft",
    "test_the_owner_is_answered",
    "test_the_same_idempotency_key_is_the_same_operation",
]
