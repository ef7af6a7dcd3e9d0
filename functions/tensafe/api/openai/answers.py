"""Answers of the OpenAI face, as its clients read them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import Any, Final

from tensafe.contracts.text import TextChoice, TextResult, TokenText

Json = dict[str, Any]
DONE: Final = b"data: [DONE]\n\n"


class CompletionAnswers:
    """`text_completion` objects."""

    whole: Final = "text_completion"
    chunk: Final = "text_completion"

    def choice(self, index: int, choice: TextChoice) -> Json:
        """A whole continuation."""
        return {
            "index": index,
            "text": choice.text,
            "logprobs": None if choice.tokens is None else _completion_logprobs(choice.tokens),
            "finish_reason": choice.stop_reason,
        }

    def opening(self, index: int) -> Json | None:
        """What precedes the first piece of a continuation."""
        return None

    def piece(self, index: int, text: str) -> Json:
        """A piece of a continuation."""
        return {"index": index, "text": text, "logprobs": None, "finish_reason": None}

    def ending(self, index: int, rest: str, choice: TextChoice) -> Json:
        """The last piece, with the logprobs of the whole continuation."""
        return {**self.choice(index, choice), "text": rest}


class ChatAnswers:
    """`chat.completion` objects."""

    whole: Final = "chat.completion"
    chunk: Final = "chat.completion.chunk"

    def choice(self, index: int, choice: TextChoice) -> Json:
        """A whole continuation."""
        return {
            "index": index,
            "message": {"role": "assistant", "content": choice.text, "refusal": None},
            "logprobs": _chat_logprobs(choice.tokens),
            "finish_reason": choice.stop_reason,
        }

    def opening(self, index: int) -> Json | None:
        """What precedes the first piece of a continuation."""
        return _delta(index, {"role": "assistant", "content": ""})

    def piece(self, index: int, text: str) -> Json:
        """A piece of a continuation."""
        return _delta(index, {"content": text})

    def ending(self, index: int, rest: str, choice: TextChoice) -> Json:
        """The last piece, with the logprobs of the whole continuation."""
        ending = _delta(index, {"content": rest} if rest else {})
        return {**ending, "logprobs": _chat_logprobs(choice.tokens), "finish_reason": choice.stop_reason}


Answers = CompletionAnswers | ChatAnswers


def usage(results: Sequence[TextResult]) -> Json:
    """Tokens read and drawn."""
    read = sum(result.prompt_tokens for result in results)
    drawn = sum(result.completion_tokens for result in results)
    return {
        "prompt_tokens": read,
        "completion_tokens": drawn,
        "total_tokens": read + drawn,
        "prompt_tokens_details": {"cached_tokens": sum(result.cached_prompt_tokens for result in results)},
    }


def evidence(results: Sequence[TextResult]) -> Json:
    """Per prompt, the attestation of its answer; clients of OpenAI keep fields that they do not know."""
    return {
        "attestations": [
            {"attestation": result.attestation, "attestation_salt": result.attestation_salt}
            for result in results
        ]
    }


def _delta(index: int, delta: Json) -> Json:
    return {"index": index, "delta": delta, "logprobs": None, "finish_reason": None}


def _completion_logprobs(tokens: Sequence[TokenText]) -> Json:
    texts = [token.text for token in tokens]
    return {
        "tokens": texts,
        "token_logprobs": [token.logprob for token in tokens],
        "top_logprobs": [dict(token.top) for token in tokens] if any(t.top for t in tokens) else None,
        "text_offset": [0, *accumulate(len(text) for text in texts)][: len(texts)],
    }


def _chat_logprobs(tokens: Sequence[TokenText] | None) -> Json | None:
    return None if tokens is None else {"content": list(_chat_tokens(tokens)), "refusal": None}


def _chat_tokens(tokens: Sequence[TokenText]) -> Iterator[Json]:
    for token in tokens:
        top = [{"token": text, "logprob": logprob, "bytes": None} for text, logprob in token.top]
        yield {"token": token.text, "logprob": token.logprob, "bytes": None, "top_logprobs": top}
