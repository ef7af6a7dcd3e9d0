"""Text and tokens with a real byte-level tokenizer."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from tensafe.contracts.errors import InvalidRequest, Unsupported
from tensafe.contracts.sampling import SampleResult, SamplingParams, Sequence, TopkLogprobs
from tensafe.contracts.text import ChatMessage, TextPayload
from tensafe_gpu.sampler.text import Texts
from tests.support.tiny_models import byte_tokenizer

TEMPLATE = (
    "{% if messages[0].role == 'assistant' %}{{ raise_exception('user first') }}{% endif %}"
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}<assistant>"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tokenizer")
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(path)
    return path


def ids(text: str) -> list[int]:
    return list(byte_tokenizer()(text)["input_ids"])


def result_of(tokens: list[int], *, top: int = 0) -> SampleResult:
    count = len(tokens)
    topk = None
    if top:
        topk = TopkLogprobs(
            np.tile(np.array(tokens, np.int32)[:, None], (1, top)), np.full((count, top), -np.inf, np.float32)
        )
    drawn = Sequence(np.array(tokens, np.int32), np.full(count, -1.5, np.float32), "stop", topk)
    return SampleResult((drawn,), prompt_cache_hit_tokens=3)


def test_a_prompt_is_encoded_as_the_tokenizer_does_and_token_ids_stay(folder: Path) -> None:
    texts = Texts(folder)
    assert list(texts.request(TextPayload(prompt="hello, wörld")).prompt) == ids("hello, wörld")
    assert texts.request(TextPayload(prompt=(5, 6))).prompt == (5, 6)


def test_a_conversation_goes_through_the_models_template(folder: Path) -> None:
    messages = (ChatMessage(role="system", content="be brief"), ChatMessage(role="user", content="hi"))
    request = Texts(folder).request(TextPayload(messages=messages))
    assert list(request.prompt) == ids("<system>be brief<user>hi<assistant>")


def test_what_the_template_refuses_names_the_messages(folder: Path) -> None:
    payload = TextPayload(messages=(ChatMessage(role="assistant", content="hi"),))
    with pytest.raises(InvalidRequest) as refused:
        Texts(folder).request(payload)
    assert refused.value.field == "messages"


def test_without_template_or_tokenizer_it_says_what_to_do_instead(tmp_path: Path) -> None:
    plain = byte_tokenizer()
    plain.chat_template = None
    plain.save_pretrained(tmp_path / "plain")
    messages = TextPayload(messages=(ChatMessage(role="user", content="hi"),))
    with pytest.raises(Unsupported, match="no chat template"):
        Texts(tmp_path / "plain").request(messages)
    (tmp_path / "empty").mkdir()
    with pytest.raises(Unsupported, match="no tokenizer"):
        Texts(tmp_path / "empty").request(TextPayload(prompt="hi"))


def test_an_empty_prompt_is_refused(folder: Path) -> None:
    with pytest.raises(InvalidRequest, match="no tokens"):
        Texts(folder).request(TextPayload(prompt=""))


def test_text_ends_before_the_stop_string_and_without_special_tokens(folder: Path) -> None:
    texts = Texts(folder)
    payload = TextPayload(prompt="x", params=SamplingParams(stop=("END",)))
    request = texts.request(payload)
    assert texts.result(payload, request, result_of(ids("so it ENDS"))).choices[0].text == "so it "
    plain = TextPayload(prompt="x")
    answered = texts.result(plain, request, result_of([*ids("done"), 0]))
    assert answered.choices[0].text == "done"
    assert (answered.prompt_tokens, answered.completion_tokens) == (1, len(ids("done")) + 1)
    assert answered.cached_prompt_tokens == 3
    assert answered.choices[0].tokens is None


def test_logprobs_come_with_each_tokens_text_and_are_finite(folder: Path) -> None:
    texts, tokens = Texts(folder), ids("ab")
    payload = TextPayload(prompt="x", top_logprobs=2)
    (choice,) = texts.result(payload, texts.request(payload), result_of(tokens, top=2)).choices
    assert choice.tokens is not None
    assert "".join(token.text for token in choice.tokens) == "ab"
    assert choice.tokens[0].logprob == -1.5
    assert [value for _, value in choice.tokens[0].top] == [-9999.0, -9999.0]


def test_a_growing_text_never_takes_back_what_it_has_settled(folder: Path) -> None:
    """Broken characters and beginnings of a stop string are held back; at the end all of it was a prefix."""
    texts, text = Texts(folder), "naïve — 日本語 EN, then ENDless"
    payload = TextPayload(prompt="x", params=SamplingParams(stop=("END",)))
    tokens = ids(text)
    final = texts.result(payload, texts.request(payload), result_of(tokens)).choices[0].text
    settled = [texts.settled(payload, tokens[:count]) for count in range(len(tokens) + 1)]
    assert all(later.startswith(earlier) for earlier, later in pairwise(settled))
    assert all(final.startswith(part) and "\N{REPLACEMENT CHARACTER}" not in part for part in settled)
    assert settled[-1] == final == "naïve — 日本語 EN, then "
