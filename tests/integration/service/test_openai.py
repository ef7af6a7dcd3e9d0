"""The OpenAI face through OpenAI's own client, against the tokens that the other faces draw."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import openai
import pytest
import tinker
from transformers import AutoTokenizer

from tests.support.native import is_stranger
from tests.support.service import MODEL_NAME, Service

GREEDY = {"temperature": 0.0, "max_tokens": 24}


@pytest.fixture
def chat(service: Service, key: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{service.url}/v1", api_key=key, max_retries=0) as client:
        yield client


def drawn(sampler: tinker.SamplingClient, prompt: list[int], count: int = 24) -> list[int]:
    params = tinker.SamplingParams(max_tokens=count, temperature=0.0)
    result = sampler.sample(tinker.ModelInput.from_ints(prompt), 1, params).result()
    return list(result.sequences[0].tokens)


def test_completions_are_the_tokens_of_the_other_face_as_text(
    chat: openai.OpenAI, client: tinker.ServiceClient, model_path: Path
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(model_path)
    sampler = client.create_sampling_client(base_model=MODEL_NAME)
    expected = tokenizer.decode(
        drawn(sampler, tokenizer("hello there")["input_ids"]), skip_special_tokens=True
    )
    answer = chat.completions.create(model=MODEL_NAME, prompt="hello there", logprobs=2, **GREEDY)
    assert answer.choices[0].text == expected
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert answer.usage is not None
    assert len(logprobs.tokens or []) == answer.usage.completion_tokens
    assert all(value <= 0 for value in logprobs.token_logprobs or [])


def test_a_conversation_streams_to_the_same_text(
    chat: openai.OpenAI, client: tinker.ServiceClient, model_path: Path
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(model_path)
    messages = [{"role": "user", "content": "hello there"}]
    rendered = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    sampler = client.create_sampling_client(base_model=MODEL_NAME)
    prompt = tokenizer(rendered, add_special_tokens=False)["input_ids"]
    tokens = drawn(sampler, prompt, 400)
    pieces = list(
        chat.chat.completions.create(
            model=MODEL_NAME,
            messages=messages,  # type: ignore[arg-type]
            temperature=0.0,
            max_tokens=400,
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    told = [
        piece.choices[0].delta.content for piece in pieces if piece.choices and piece.choices[0].delta.content
    ]
    assert "".join(told) == tokenizer.decode(tokens, skip_special_tokens=True)
    usage = pieces[-1].usage
    assert usage is not None
    assert usage.completion_tokens == len(tokens)
    if len(tokens) > 200:
        assert len(told) > 2, "it came in pieces"


def test_a_trained_adapter_is_a_model_by_its_path(
    chat: openai.OpenAI, training_client: tinker.TrainingClient
) -> None:
    path = training_client.save_weights_for_sampler("final").result().path
    assert path in [model.id for model in chat.models.list()]
    assert chat.models.retrieve(path).id == path
    answer = chat.completions.create(model=path, prompt=[5, 6, 7], n=2, **GREEDY)
    assert len(answer.choices) == 2
    assert answer.model == path


def test_what_the_engine_refuses_reaches_the_client_with_its_field(
    chat: openai.OpenAI, service: Service
) -> None:
    with pytest.raises(openai.UnprocessableEntityError) as refused:
        chat.completions.create(model=MODEL_NAME, prompt="a" * 20_000, **GREEDY)
    assert refused.value.body["field"] == "prompt"  # type: ignore[index]
    with pytest.raises(openai.NotFoundError):
        chat.completions.create(model="no/such-model", prompt="a", **GREEDY)
    with pytest.raises(openai.APIStatusError) as unknown:
        chat.with_options(api_key="tml-wrong").models.list()
    assert is_stranger(service, unknown.value.response)
