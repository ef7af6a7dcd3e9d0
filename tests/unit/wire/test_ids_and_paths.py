"""Identifiers and checkpoint paths: one spelling each, and the SDK's parser agrees."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tinker.types import ParsedCheckpointTinkerPath

from tensafe.contracts.errors import InvalidRequest
from tensafe.wire.ids import COUNT_MAX, RequestId, RunId, SamplerId, check_session_id, sample_sequence_ids
from tensafe.wire.paths import CheckpointPath, check_new_name, session_weights_name

sessions = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}", fullmatch=True)
counts = st.integers(0, COUNT_MAX)
owners = st.builds(RunId, sessions, counts) | st.builds(SamplerId, sessions, counts)


@settings(derandomize=True)
@given(owner=owners, seq=counts)
def test_ids_survive_the_round_trip(owner: RunId | SamplerId, seq: int) -> None:
    assert type(owner).parse(str(owner)) == owner
    request = RequestId(owner, seq)
    assert RequestId.parse(str(request)) == request


@settings(derandomize=True)
@given(text=st.text(max_size=40))
def test_no_other_text_is_an_id(text: str) -> None:
    for kind in (RunId, SamplerId, RequestId):
        with pytest.raises(InvalidRequest):
            kind.parse(text)


@pytest.mark.parametrize("suffix", ["01", "00", "-1", "", "0 ", "0\n", "٣", "0:train:1", str(10**19)])
@pytest.mark.parametrize("prefix", ["s:train:", ":train:", "s:run:", "a:b:train:", "s/x:train:"])
def test_near_misses_are_refused(prefix: str, suffix: str) -> None:
    text = f"{prefix}{suffix}"
    with pytest.raises(InvalidRequest) as caught:
        RunId.parse(text, field="model_id")
    assert caught.value.field == "model_id"
    with pytest.raises(InvalidRequest):
        RequestId.parse(f"{text}:1")


def test_a_run_and_a_sampler_of_one_number_differ() -> None:
    assert RequestId.parse("s:train:1:2").owner == RunId("s", 1)
    assert RequestId.parse("s:sample:1:2").owner == SamplerId("s", 1)
    assert str(RequestId(RunId("s", 1), 2)) != str(RequestId(RunId("s", 12), 0))


def test_copies_of_a_sampling_client_have_their_own_blocks() -> None:
    # SDK 0.38: seq ids of copy c start at c * 10**9, c at most 10**9.
    assert RequestId.parse(f"s:sample:0:{10**9 * 10**9 + 5}").client_index == 10**9
    assert RequestId.parse("s:sample:0:5").client_index == 0


def test_sequence_ids_are_distinct() -> None:
    ids = sample_sequence_ids(RequestId(SamplerId("s", 0), 1), 12)
    assert len(set(ids) | set(sample_sequence_ids(RequestId(SamplerId("s", 0), 11), 12))) == 24


@pytest.mark.parametrize("name", ["000020", "final", "teacher_sync_4", "smol-g1-v2.5", "A" * 128])
@pytest.mark.parametrize(
    ("kind", "kind_of_sdk"),
    [("weights", "training"), ("sampler_weights", "sampler"), ("external_weights", "external")],
)
def test_paths_are_the_sdks(name: str, kind: str, kind_of_sdk: str) -> None:
    path = CheckpointPath.parse(f"tinker://s-1:train:0/{kind}/{name}")
    theirs = ParsedCheckpointTinkerPath.from_tinker_path(str(path))
    assert theirs.training_run_id == str(path.run) == "s-1:train:0"
    assert theirs.checkpoint_id == path.checkpoint_id == f"{kind}/{name}"
    assert theirs.checkpoint_type == path.checkpoint_type == kind_of_sdk
    assert CheckpointPath.of(theirs.training_run_id, theirs.checkpoint_id) == path
    assert path.to_ref().model_dump() == {"run_id": "s-1:train:0", "kind": kind, "name": name}


OTHER_PATHS = """
tinker://
s:train:0/weights/a
tinker://s:train:0/weights
tinker://s:train:0/weights/
tinker://s:train:0/weights/a/b
tinker://s:train:0/weights/../a
tinker://s:train:0/weights/..
tinker://s:train:0/weights/a?b
tinker://s:train:0/weights/a%2Fb
tinker://s:train:0/other/a
tinker://run/weights/a
tinker://tinker://s:train:0/weights/a
TINKER://s:train:0/weights/a
"""


@pytest.mark.parametrize("text", [*OTHER_PATHS.split("\n")[1:], "tinker://s:train:0/weights/a\n"])
def test_other_paths_are_refused(text: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        CheckpointPath.parse(text, field="model_path")
    assert caught.value.field == "model_path"


def test_a_client_cannot_take_the_name_of_a_sessions_weights() -> None:
    name = session_weights_name(SamplerId("s", 3))
    assert CheckpointPath.parse(f"tinker://s:train:0/sampler_weights/{name}").name == name
    with pytest.raises(InvalidRequest):
        check_new_name(name)


@pytest.mark.parametrize("text", ["", "a:b", "a/b", "-a", ".a", "a" * 129, "a b", "é"])
def test_session_ids(text: str) -> None:
    with pytest.raises(InvalidRequest):
        check_session_id(text)
