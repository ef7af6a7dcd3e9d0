"""What else clients of the service on one machine are tested with, over template.yaml: `make aws-all`.

It takes minutes that `make test` does not have. Left out is what the gateway answers otherwise than the API:
to an unknown key it says 403.
"""

from __future__ import annotations

import os

import pytest

from tests.integration.service.test_cookbook import (
    kitchen,
    test_direct_preference_optimization,
    test_distillation_on_the_students_own_samples,
    test_reinforcement_learning_over_several_turns,
    test_supervised_chat_goes_on_where_it_stopped_and_from_its_checkpoint,
)
from tests.integration.service.test_native import (
    native,
    run,
    test_a_result_can_be_asked_for_without_waiting,
    test_a_run_trains_and_tells_what_it_is,
    test_a_saved_state_is_an_artifact_and_goes_on_where_it_was,
    test_creating_again_with_the_same_idempotency_key_is_the_same_run,
    test_deleting_erases,
    test_forward_only_gives_the_same_numbers_and_changes_nothing,
    test_sampling_again_with_the_same_idempotency_key_is_the_same_sample,
    test_sampling_sees_every_operation_before_it,
    test_store_01_an_artifact_saved_by_one_process_is_loaded_by_another,
    test_the_openapi_document_is_valid,
)
from tests.integration.service.test_openai import (
    chat,
    test_a_conversation_streams_to_the_same_text,
    test_a_trained_adapter_is_a_model_by_its_path,
    test_completions_are_the_tokens_of_the_other_face_as_text,
)
from tests.integration.service.test_sdk import (
    test_a_bad_example_in_any_chunk_fails_its_batch_and_training_goes_on,
    test_a_private_run_without_unit_ids_is_refused,
    test_a_weak_noise_multiplier_is_refused_unless_accepted,
    test_an_encrypted_export_opens_for_its_recipient_alone,
    test_concurrent_prompt_logprobs_with_an_adapter,
    test_every_loss_runs_and_a_custom_one_too,
    test_many_chunks_keep_their_order,
    test_the_same_seed_gives_the_same_samples_and_n_samples_differ,
    test_training_lowers_the_loss_and_get_info_tells_what_was_asked,
)

__all__ = [
    "chat",
    "kitchen",
    "native",
    "run",
    "test_a_bad_example_in_any_chunk_fails_its_batch_and_training_goes_on",
    "test_a_conversation_streams_to_the_same_text",
    "test_a_private_run_without_unit_ids_is_refused",
    "test_a_result_can_be_asked_for_without_waiting",
    "test_a_run_trains_and_tells_what_it_is",
    "test_a_saved_state_is_an_artifact_and_goes_on_where_it_was",
    "test_a_trained_adapter_is_a_model_by_its_path",
    "test_a_weak_noise_multiplier_is_refused_unless_accepted",
    "test_an_encrypted_export_opens_for_its_recipient_alone",
    "test_completions_are_the_tokens_of_the_other_face_as_text",
    "test_concurrent_prompt_logprobs_with_an_adapter",
    "test_creating_again_with_the_same_idempotency_key_is_the_same_run",
    "test_deleting_erases",
    "test_direct_preference_optimization",
    "test_distillation_on_the_students_own_samples",
    "test_every_loss_runs_and_a_custom_one_too",
    "test_forward_only_gives_the_same_numbers_and_changes_nothing",
    "test_many_chunks_keep_their_order",
    "test_reinforcement_learning_over_several_turns",
    "test_sampling_again_with_the_same_idempotency_key_is_the_same_sample",
    "test_sampling_sees_every_operation_before_it",
    "test_store_01_an_artifact_saved_by_one_process_is_loaded_by_another",
    "test_supervised_chat_goes_on_where_it_stopped_and_from_its_checkpoint",
    "test_the_openapi_document_is_valid",
    "test_the_same_seed_gives_the_same_samples_and_n_samples_differ",
    "test_training_lowers_the_loss_and_get_info_tells_what_was_asked",
]

pytestmark = pytest.mark.skipif(os.environ.get("TENSAFE_AWS") != "all", reason="`make aws-all` runs it")
