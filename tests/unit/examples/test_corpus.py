"""The demo's corpus: one unit per conversation, nothing shared between the two halves, only answers count."""

from __future__ import annotations

import pytest

from corpus import MAX_TURNS, Conversation, Corpus, encode, encode_prompt, load_corpus


class Characters:
    """A tokenizer with one token per character; 0 ends a sequence."""

    eos_token_id: int | None = 0
    bos_token_id: int | None = None

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        assert add_special_tokens is False
        return [ord(char) for char in text]

    def decode(self, tokens: tuple[int, ...] | list[int]) -> str:
        return "".join(chr(token) if token else "<end>" for token in tokens)


def test_the_split_is_by_conversation_and_deterministic() -> None:
    corpus = load_corpus()
    assert corpus == load_corpus()
    assert len(corpus.train) > 600
    assert 0.1 < len(corpus.heldout) / len(corpus.train) < 0.25
    ids = [conversation.unit_id for conversation in (*corpus.train, *corpus.heldout)]
    assert sorted(ids) == list(range(1, len(ids) + 1))


def test_nothing_that_is_said_in_one_half_is_said_in_the_other() -> None:
    corpus = load_corpus()
    train, heldout = (
        {turn.casefold() for conversation in half for turn in conversation.turns}
        for half in (corpus.train, corpus.heldout)
    )
    assert not train & heldout


def test_no_conversation_is_trained_on_twice_and_the_units_that_share_turns_are_counted() -> None:
    corpus = load_corpus()
    said = ["\n".join(c.turns).casefold() for c in corpus.train]
    assert len(set(said)) == len(said)
    first, second, third = (
        Conversation(n, "x", turns) for n, turns in enumerate([("A", "b"), ("a", "c"), ("d", "e")], 1)
    )
    assert Corpus((first, second, third), ()).units_that_share() == 2
    assert 0 < corpus.units_that_share() < len(corpus.train) / 2


def test_conversations_are_text_of_two_turns_or_more() -> None:
    corpus = load_corpus()
    for conversation in (*corpus.train, *corpus.heldout):
        assert 2 <= len(conversation.turns) <= MAX_TURNS
        assert all(turn == " ".join(turn.split()) and turn for turn in conversation.turns)
        assert conversation.category != "coding"


def test_only_the_answers_count() -> None:
    tokenizer = Characters()
    conversation = Conversation(7, "greetings", ("Hi", "Hello", "How?", "Well"))
    example = encode(tokenizer, conversation, max_tokens=1000)
    text = tokenizer.decode([*example.tokens[:1], *example.targets])
    assert text == "User: Hi\n\nAssistant: Hello<end>\n\nUser: How?\n\nAssistant: Well<end>"
    counted = [target for target, weight in zip(example.targets, example.weights, strict=True) if weight]
    assert tokenizer.decode(counted) == " Hello<end> Well<end>"
    assert example.tokens[1:] == example.targets[:-1]
    assert example.answer_tokens == len(counted)
    assert example.unit_id == 7


@pytest.mark.parametrize("max_tokens", [1, 5, 24, 30])
def test_an_example_is_cut_at_the_limit(max_tokens: int) -> None:
    example = encode(Characters(), Conversation(1, "x", ("Hi", "Hello there")), max_tokens=max_tokens)
    assert len(example.tokens) == len(example.targets) == len(example.weights) == max_tokens


def test_a_prompt_is_the_start_of_an_example() -> None:
    class WithStart(Characters):
        bos_token_id = 1

    for tokenizer in (Characters(), WithStart()):
        prompt = encode_prompt(tokenizer, "Hi")
        example = encode(tokenizer, Conversation(1, "x", ("Hi", "Hello")), max_tokens=1000)
        assert list(example.tokens[: len(prompt)]) == prompt
        assert example.weights[: len(prompt) - 1] == (0.0,) * (len(prompt) - 1)
        assert example.weights[len(prompt) - 1] == 1.0
