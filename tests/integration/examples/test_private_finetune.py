"""The demo from its command to its report, on a tiny model and two steps."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from corpus import load_corpus
from evidence import trusted
from local_service import RunningService
from output_folder import MARKER
from private_finetune import Plan, batches, parse
from tests.support.example import example
from tests.support.tiny_models import tiny_model


def demo(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return example("private_finetune.py", *arguments, folder=folder)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_two_steps_on_a_model_given_by_its_path(tmp_path: Path) -> None:
    tiny_model(tmp_path / "my model", "qwen3", hidden=64, heads=2, kv_heads=1, layers=1, max_context=512)
    done = demo("--model", "./my model", "--steps", "2", folder=tmp_path)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]

    output = tmp_path / "demo-out"
    report = json.loads((output / "report.json").read_text())
    assert [step["step"] for step in report["steps"]] == [1, 2]
    assert 0 < report["steps"][0]["epsilon"] <= report["steps"][1]["epsilon"]  # the units are others
    privacy = report["privacy"]
    assert privacy["epsilon"] == report["steps"][1]["epsilon"] <= privacy["max_epsilon"] == 8.0
    assert (privacy["delta"], privacy["max_participations"]) == (1e-4, 1)
    assert [event["step"] for event in report["events"]] == [1]  # killed half-way, and went on
    corpus = load_corpus()
    assert report["heldout"]["conversations"] == len(corpus.heldout)
    assert 0 < report["heldout"]["before"] < 10
    assert 0 < report["heldout"]["after"] < 10
    assert len(report["samples"]) == 4
    facts = dict(report["facts"])
    assert facts["base model"] == "my-model"
    assert facts["steps"] == f"2 of {len(corpus.train) // 2} conversations each"
    assert facts["checkpoint"].startswith("tinker://")
    assert "other copies here: in what is kept of run" in done.stdout
    assert facts["ledger, verified offline"].startswith(
        f"2 rows, epsilon {privacy['epsilon']:.4f} computed again; signed with key"
    )
    encrypted = report["encrypted"]
    assert [answer["exact"] for answer in encrypted["answers"]] == [True] * 4
    assert (encrypted["policy"], encrypted["sites"], encrypted["attestations"]) == ("HE_REQUIRED", 4, 4)
    assert 0 < encrypted["opening_s"] < 300
    assert 0 < encrypted["plain_ms_per_token"] < 60_000
    assert 0 < encrypted["private_ms_per_token"] < 60_000
    tokens = sum(answer["tokens"] for answer in encrypted["answers"])
    assert encrypted["evaluated"] >= 4 * tokens
    assert encrypted["metered"] >= tokens
    page = (output / "report.html").read_text()
    assert f"epsilon {privacy['epsilon']:.2f}, delta 0.0001" in page
    assert "time of a token, one prompt at a time" in page
    assert (output / MARKER).is_file()


def test_it_does_not_touch_somebody_s_folder(tmp_path: Path) -> None:
    (tmp_path / "letter.txt").write_text("dear")
    done = demo("--model", "m", "--output", str(tmp_path), folder=tmp_path)
    assert done.returncode == 1
    assert "holds files that this demo has not made" in done.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["letter.txt"]


@pytest.mark.parametrize("conversations", [1, 2, 3, 100, 675])
def test_a_step_fits_the_corpus_and_a_conversation_is_in_one_step_of_a_pass(conversations: int) -> None:
    plan = Plan(conversations=conversations)
    examples = load_corpus().train[:conversations]
    steps = batches(list(examples), plan)  # type: ignore[arg-type]  # only who takes part matters
    assert [len(step) for step in steps] == [plan.batch_size] * plan.steps
    takes = [conversation.unit_id for step in steps for conversation in step]
    assert max(takes.count(unit) for unit in set(takes)) <= plan.max_participations


def test_the_command_line() -> None:
    assert parse([]).steps == Plan(conversations=1).steps
    assert parse([]).model is None
    for refused in (
        ["--steps", "1"],
        ["--url", "http://127.0.0.1:1", "--api-key", "k", "--model", "m"],
        ["--public-key", "service.pem"],
    ):
        with pytest.raises(SystemExit):
            parse(refused)


@pytest.mark.parametrize("given", [False, True])
def test_whose_word_a_signature_rests_on(tmp_path: Path, given: bool) -> None:
    pem = tmp_path / "operator.pem"
    pem.write_text("PEM")
    service = RunningService("http://127.0.0.1:1", "k", pem if given else None)
    options, words = trusted(service, "key-1", tmp_path)
    if given:
        assert (options[0], Path(options[1]).read_text()) == ("--public-key", "PEM")
        assert words.endswith("as its operator told")
    else:
        assert options == ["--key-id", "key-1"]
        assert words.endswith("only the service itself vouches for")


def test_fewer_examples_than_a_step_are_refused_rather_than_waited_for() -> None:
    with pytest.raises(ValueError, match="a step needs 5 conversations and there are 2"):
        batches(list(load_corpus().train[:2]), Plan(conversations=10))  # type: ignore[arg-type]
